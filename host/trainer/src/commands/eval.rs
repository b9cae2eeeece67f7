//! `trainer eval`

mod html;
mod junit;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use trainer_config::{Override, Recipe};
use trainer_eval::{Candidate, Judged, Panel, Predictions, Report, Speaker, chat_template};
use trainer_kernels::ops::Ops;
use trainer_runtime::{Plugins, adapter_digest, apply_plugin, compiler_command, load_base, open_device, with_ops};
use trainer_train::When;
use trainer_train::rundir::{RunDir, default_path};

use super::Loaded;
use crate::cli::EvalArgs;
use crate::output::{check_json, interruption, json_on_stdout, write_json};
use crate::ui::{Progress, terminal};

/// What to evaluate.
struct Target {
    recipe: Recipe,
    adapter: Option<PathBuf>,
    folder: PathBuf,
    record: Option<PathBuf>,
    replay: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: EvalArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let target = target(&args)?;
    let judged = match &args.predictions {
        Some(predictions) => judge_predictions(predictions, &target)?,
        None => {
            let open = open_device(&target.recipe.device)?;
            with_ops!(open.backend, ops => judge(ops, &target, json_on_stdout(args.json.as_deref())))?
        }
    };
    let report = &judged.report;
    let write = |path: &Path, text: String| {
        trainer_model::durable::write_atomic(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &args.html {
        write(path, html::page(report, &judged.samples))?;
    }
    if let Some(path) = &args.junit {
        write(path, junit::report(report, &judged.samples))?;
    }
    match &args.json {
        Some(to) => write_json(to, report)?,
        None => show(&judged, &target.folder),
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads what is to be evaluated and evaluates it.
fn judge<O: Ops>(ops: Arc<O>, target: &Target, quiet: bool) -> Result<Judged> {
    let base = load_base(&target.recipe.model.source, target.recipe.model.quantization, ops.reads_weights())?;
    let mut plugins = Plugins::new(&target.recipe, compiler_command()?)?;
    let speaker = Speaker::new(&target.recipe, &base, &mut plugins)?;
    let mut panel = match &target.replay {
        Some(tape) => Panel::replaying(&target.recipe, &mut plugins, tape)?,
        None => Panel::new(&target.recipe, &mut plugins)?,
    };
    for warning in panel.ungranted() {
        note!("warning: {warning}");
    }
    panel.resumable();
    if let Some(tape) = &target.record {
        panel.record(tape);
    }
    let loaded = Loaded::new(ops, &base, target.adapter.as_deref())?;
    let adapter = loaded.host.as_ref().map(adapter_digest).transpose()?;
    let stop = interruption()?;
    let mut progress = Progress::new(terminal() && !quiet);
    let candidate = Candidate { model: loaded.model, base: &base, live: loaded.live.as_ref(), adapter, measured: Vec::new() };
    let judged = panel.judge(&candidate, &speaker, &target.folder, "eval", &mut |p| {
        if !quiet {
            progress.evaluating(When::After, p.done, p.total);
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    progress.clear();
    Ok(judged?)
}

/// Scores given outputs.
fn judge_predictions(predictions: &Path, target: &Target) -> Result<Judged> {
    let predictions = Predictions::read(predictions)?;
    let mut plugins = Plugins::new(&target.recipe, compiler_command()?)?;
    let template = chat_template(&target.recipe, &mut plugins)?;
    let panel = Panel::for_predictions(&target.recipe, &mut plugins)?;
    Ok(panel.judge_predictions(&predictions, &template, &target.folder, "eval")?)
}

fn show(judged: &Judged, folder: &Path) {
    let report: &Report = &judged.report;
    for (name, value) in &report.metrics {
        let stderr = report.stderr.get(name).map_or_else(String::new, |s| format!(" ± {s:.4}"));
        let over = report.counted.get(name).map_or_else(String::new, |n| format!("  over {n} samples"));
        say!("{name}  {value:.4}{stderr}{over}");
    }
    for (name, table) in &report.pass_at_k {
        let mut table: Vec<(u32, f64)> = table.iter().filter_map(|(k, v)| Some((k.parse().ok()?, *v))).collect();
        table.sort_by_key(|(k, _)| *k);
        say!("{name}  {}", table.iter().map(|(k, v)| format!("pass@{k} {v:.4}")).collect::<Vec<_>>().join("  "));
    }
    if judged.taken_over > 0 {
        say!("{} answers taken over from the evaluation that was stopped", judged.taken_over);
    }
    for (metric, rows) in &report.rows {
        say!(
            "{metric}: {} of {} rows scored, {} skipped, {} bad, {} failed",
            rows.scored,
            rows.rows,
            rows.skipped.values().sum::<u64>(),
            rows.bad,
            rows.failed
        );
    }
    if report.model.is_some() {
        say!("{} prompt tokens, {} generated, {:.1} s", report.prompt_tokens, report.generated_tokens, report.seconds);
    }
    say!("written to {}", folder.display());
}

/// The recipe to evaluate by: the run's own, or the default one.
fn target(args: &EvalArgs) -> Result<Target> {
    let mut more: Vec<(&str, String)> = Vec::new();
    if let Some(data) = &args.data {
        more.push(("eval.data", super::toml_string(data)));
    }
    if let Some(limit) = args.limit {
        more.push(("eval.limit", limit.to_string()));
    }
    if let Some(model) = &args.model {
        more.push(("model.source", super::toml_string(model)));
    }
    if let Some(device) = &args.device {
        more.push(("device.backend", super::toml_string(device)));
    }
    if let Some(repeats) = args.repeats {
        more.push(("eval.repeats", repeats.to_string()));
    }
    let (mut recipe, adapter, folder) = match &args.run {
        Some(dir) => {
            let run = RunDir::view(dir)?;
            let adapter = run.adapter_path();
            if !adapter.is_dir() {
                bail!(
                    "{} has no adapter yet: the run is not complete; continue it with trainer run --resume {}",
                    dir.display(),
                    dir.display()
                );
            }
            let sets: Vec<Override> = super::overrides(&args.set, &more)?;
            (super::recipe_of(&run, &sets)?, Some(adapter), run.eval_path())
        }
        None if args.model.is_some() || args.predictions.is_some() => {
            (super::recipe_with(&args.set, &more)?, args.adapter.clone(), default_path("eval", SystemTime::now()))
        }
        None => bail!(
            "say what to evaluate: --run DIR for a run, --model MODEL (nano, a folder, or org/name on a hub), or --predictions FILE for outputs that are given"
        ),
    };
    // Metrics that are given replace the recipe's, all together.
    let mut metrics = Vec::new();
    for plugin in &args.plugin {
        let before = std::mem::take(&mut recipe.eval.metrics);
        apply_plugin(&mut recipe, plugin)?;
        metrics.append(&mut recipe.eval.metrics);
        recipe.eval.metrics = before;
    }
    if !metrics.is_empty() {
        recipe.eval.metrics = metrics;
    }
    super::grant(&mut recipe, &args.grants)?;
    let folder = args.out.clone().unwrap_or(folder);
    Ok(Target { recipe, adapter, folder, record: args.record.clone(), replay: args.replay.clone() })
}
