//! `trainer runs`, `trainer report`, `trainer dashboard`: looking at what runs left.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use trainer_dashboard::Options;
use trainer_runs::{Comparison, Difference, Overview, Run, State, compare, find, for_people, html};

use crate::cli::{DashboardArgs, RunsCommand};
use crate::output::{check_json, json_on_stdout, write_json};
use crate::ui::{bytes, count};

/// Runs the command.
pub fn run(command: RunsCommand) -> Result<ExitCode> {
    match command {
        RunsCommand::List { dir, json } => list(&dir, json.as_deref()),
        RunsCommand::Show { run, json } => show(&run, json.as_deref()),
        RunsCommand::Compare { runs, json } => side_by_side(&runs, json.as_deref()),
        RunsCommand::Rm { runs, yes, dry_run } => remove(&runs, yes, dry_run),
    }
}

fn list(dir: &Path, json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    if !dir.is_dir() {
        bail!("{} is no folder; give the folder that holds the runs", dir.display());
    }
    let mut runs = Vec::new();
    for run in find(dir) {
        // One that is broken does not hide the others.
        match run.overview() {
            Ok(overview) => runs.push(overview),
            Err(e) => note!("warning: {} is left out: {e}", run.root().display()),
        }
    }
    if let Some(target) = json {
        write_json(target, &serde_json::json!({ "runs": runs }))?;
    }
    if json_on_stdout(json) {
        return Ok(ExitCode::SUCCESS);
    }
    if runs.is_empty() {
        say!("no runs in {}", dir.display());
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["RUN", "STATE", "STEPS", "LOSS", "TOKENS/S", "EVALUATION"].map(str::to_owned).to_vec();
    let rows = runs.iter().map(|o| {
        let path = o.path.strip_prefix(std::path::absolute(".").unwrap_or_default()).unwrap_or(&o.path);
        let steps = o.steps.map_or_else(|| o.step.to_string(), |n| format!("{}/{n}", o.step));
        let loss = o.last_loss.map_or_else(|| "-".to_owned(), |l| format!("{l:.4}"));
        let speed = o.tokens_per_second.map_or_else(|| "-".to_owned(), |s| format!("{s:.0}"));
        vec![path.display().to_string(), o.state.name().to_owned(), steps, loss, speed, evaluation(o)]
    });
    table(std::iter::once(head).chain(rows).collect());
    Ok(ExitCode::SUCCESS)
}

/// The first metric, before and after.
fn evaluation(o: &Overview) -> String {
    let Some(name) = o.evaluations.values().flat_map(|m| m.keys()).next() else { return "-".to_owned() };
    let value = |when: &str| o.evaluations.get(when).and_then(|m| m.get(name)).map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    format!("{name} {} -> {}", value("before"), value("after"))
}

/// Columns as wide as their widest cell.
fn table(rows: Vec<Vec<String>>) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide: Vec<usize> =
        (0..columns).map(|c| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let line: Vec<String> = row.iter().zip(&wide).map(|(text, w)| format!("{text:<w$}")).collect();
        say!("{}", line.join("  ").trim_end());
    }
}

fn show(path: &Path, json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    let run = Run::open(path)?;
    let o = run.overview()?;
    if let Some(target) = json {
        let value = serde_json::json!({ "overview": o, "evaluations": run.evaluations(), "samples": *run.samples()?, "recipe": run.recipe()?, "lock": run.lock()? });
        write_json(target, &value)?;
    }
    if json_on_stdout(json) {
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![("run", o.path.display().to_string()), ("state", o.state.name().to_owned())];
    rows.extend(o.started.clone().map(|s| ("began", format!("{} UTC", for_people(&s)))));
    rows.extend(o.model.clone().map(|m| ("model", m)));
    rows.extend(o.device.clone().map(|d| ("device", d)));
    rows.push(("steps", o.steps.map_or_else(|| o.step.to_string(), |n| format!("{} of {n}", o.step))));
    if let (Some(first), Some(last)) = (o.first_loss, o.last_loss) {
        rows.push(("loss", format!("{first:.4} at first, {last:.4} in the last ten steps")));
    }
    rows.push(("tokens", count(o.tokens)));
    if let (Some(speed), Some(wait)) = (o.tokens_per_second, o.data_wait_share) {
        rows.push(("speed", format!("{speed:.0} tokens/s, {:.1} % of the time waiting for data", 100.0 * wait)));
    }
    rows.extend(o.best_step.map(|s| ("best", format!("after step {s}; its adapter is in adapter-best"))));
    rows.extend(o.stopped_early.clone().map(|why| ("ended", format!("early: {why}"))));
    rows.extend(o.memory.map(|m| ("memory", format!("{} at the most", bytes(m)))));
    let card = [o.gpu_load.map(|l| format!("{l:.0} % load")), o.gpu_memory.map(|m| format!("{} of memory in use at the most", bytes(m)))];
    let card: Vec<_> = card.into_iter().flatten().collect();
    rows.extend((!card.is_empty()).then(|| ("card", card.join(", "))));
    for (name, value) in rows {
        say!("{name:<8} {value}");
    }
    for (when, metrics) in &o.evaluations {
        for (metric, value) in metrics {
            say!("{metric} {when}: {value:.4}");
        }
    }
    if o.state == State::Stopped {
        say!("continue it with: trainer run --resume {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn side_by_side(paths: &[PathBuf], json: Option<&Path>) -> Result<ExitCode> {
    check_json(json)?;
    let runs = paths.iter().map(|p| Run::open(p)).collect::<Result<Vec<_>, _>>()?;
    let comparison = compare(&runs)?;
    if let Some(target) = json {
        write_json(target, &comparison)?;
    }
    if !json_on_stdout(json) {
        print_comparison(&comparison);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_comparison(c: &Comparison) {
    let head = |title: &str| std::iter::once(title.to_owned()).chain(c.runs.iter().map(|r| r.name.clone())).collect::<Vec<_>>();
    let line = |name: &str, value: &dyn Fn(&Overview) -> String| std::iter::once(name.to_owned()).chain(c.runs.iter().map(value)).collect();
    let float = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    table(vec![
        head(""),
        line("state", &|o| o.state.name().to_owned()),
        line("steps", &|o| o.steps.map_or_else(|| o.step.to_string(), |n| format!("{} of {n}", o.step))),
        line("first loss", &|o| float(o.first_loss)),
        line("last loss", &|o| float(o.last_loss)),
        line("tokens/s", &|o| o.tokens_per_second.map_or_else(|| "-".to_owned(), |s| format!("{s:.0}"))),
    ]);
    for (title, rows, none) in
        [("evaluations", &c.evaluations, "none"), ("recipe", &c.recipe, "the same"), ("lock", &c.lock, "the same besides the recipe")]
    {
        if rows.is_empty() {
            say!("\n{title}: {none}");
            continue;
        }
        say!("");
        let cells = |d: &Difference| std::iter::once(d.key.clone()).chain(d.values.iter().map(plain)).collect();
        table(std::iter::once(head(&title.to_uppercase())).chain(rows.iter().map(cells)).collect());
    }
    match c.first_different_step {
        Some(step) => say!("\nthe losses differ from step {step} on"),
        None => say!("\nthe losses are the same to the bit as far as all runs have gone"),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn remove(paths: &[PathBuf], yes: bool, dry_run: bool) -> Result<ExitCode> {
    // All are looked at before any is removed.
    let mut runs = Vec::new();
    for path in paths {
        if path.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
            bail!("{} is a link; give the run directory itself", path.display());
        }
        let run = Run::open(path)?;
        if run.is_held() {
            bail!("{} is running; stop it first", path.display());
        }
        runs.push(run);
    }
    for run in &runs {
        say!("{} {} ({})", if dry_run { "would remove" } else { "remove" }, run.root().display(), bytes(size(run.root())));
    }
    if dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    if !yes && !confirmed(runs.len())? {
        note!("nothing was removed");
        return Ok(ExitCode::FAILURE);
    }
    for run in &runs {
        // Held while it goes, so that nothing resumes it meanwhile.
        let held = trainer_train::rundir::RunDir::open(run.root())?;
        std::fs::remove_dir_all(run.root()).with_context(|| format!("cannot remove {}", run.root().display()))?;
        drop(held);
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks, where somebody can answer.
fn confirmed(runs: usize) -> Result<bool> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        bail!("removing needs a yes, and there is nobody to ask; add --yes");
    }
    note!("remove {runs} {}, with adapters and checkpoints? [y/N]", if runs == 1 { "run" } else { "runs" });
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// The bytes of the files below a folder.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|e| e.file_type().map_or(0, |t| if t.is_dir() { size(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })).sum()
}

/// `trainer report`
pub fn report(run: &Path, out: Option<&Path>) -> Result<ExitCode> {
    let run = Run::open(run)?;
    let page = html::report(&run)?;
    let out = out.map_or_else(|| run.file("report.html"), Path::to_owned);
    trainer_model::durable::write_atomic(&out, page.as_bytes()).with_context(|| format!("cannot write {}", out.display()))?;
    say!("written to {}", out.display());
    Ok(ExitCode::SUCCESS)
}

/// `trainer dashboard`
pub fn dashboard(args: DashboardArgs) -> Result<ExitCode> {
    let options = Options { folder: args.dir, host: args.host, port: args.port, allowed_hosts: args.allow_host };
    if !options.host.is_loopback() {
        note!("warning: everybody who reaches {} can read the runs in {}", options.host, options.folder.display());
    }
    let folder = options.folder.clone();
    let ready = move |address: std::net::SocketAddr| {
        say!("the runs in {} are shown at http://{address}/ (Ctrl-C ends it)", folder.display());
        let _ = std::io::stdout().flush();
    };
    // It only reads, so Ctrl-C may end it at any moment.
    trainer_dashboard::serve(options, ready, std::future::pending())?;
    Ok(ExitCode::SUCCESS)
}
