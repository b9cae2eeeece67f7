//! `trainer run`

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use trainer_kernels::ops::Ops;
use trainer_runtime::{open_device_as, trains_by_plugin, with_ops};
use trainer_track::Outcome;
use trainer_train::lock::Lock;
use trainer_train::{Assembly, Event, Start, run as train};

use crate::cli::RunArgs;
use crate::output::{check_json, interruption, json_on_stdout, put, write_json};
use crate::tracking::{ReportTo, Tracking};
use crate::ui::{Pace, Progress, banner, bytes, loss_table, shown, summary, terminal};

/// Runs the command. `json_lines`: progress goes among the log lines.
pub fn run(args: RunArgs, json_lines: bool) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let start = match args.resume {
        Some(dir) => Start::Resume(dir),
        None => {
            let mut over = args.over;
            if let Some(model) = &args.model {
                over.set.insert(0, format!("model.source={}", super::toml_string(model)));
            }
            if let Some(folder) = &args.adapter {
                // The recipe's own model, where the flag names none.
                let model = super::recipe(args.recipe.as_deref(), &over)?.model.source.to_string();
                over.set.splice(0..0, super::continued::settings(&model, folder)?);
            }
            let mut recipe = super::recipe(args.recipe.as_deref(), &over)?;
            if let Some(ReportTo(trackers)) = &args.report_to {
                recipe.track.report_to.clone_from(trackers);
            }
            // Before anything is loaded.
            trains_by_plugin(&recipe)?;
            if args.dry_run {
                return dry_run(recipe, args.locked.as_deref(), args.json.as_deref());
            }
            Start::Fresh { recipe: Box::new(recipe), dir: args.out, locked: args.locked }
        }
    };
    let stop = interruption()?;
    // With JSON on standard output nothing else may be written there.
    let quiet = args.quiet || json_lines || json_on_stdout(args.json.as_deref());
    let mut pace = Pace::default();
    let mut progress = Progress::new(terminal() && !quiet);
    let mut tracking = Tracking::new(args.report_to.map(|r| r.0), quiet);
    let result = train(start, &stop, &mut |event| {
        tracking.event(&event);
        match &event {
            event if json_lines && !args.quiet => log_event(event, &mut pace),
            Event::Warning(text) if quiet => note!("warning: {text}"),
            event if !quiet => show(event, &mut progress),
            _ => {}
        }
    });
    progress.finish();
    tracking.finish(match &result {
        Ok(summary) if summary.complete => Outcome::Complete,
        Ok(_) => Outcome::Stopped,
        Err(_) => Outcome::Failed,
    });
    let result = result?;
    if let Some(target) = &args.json {
        write_json(target, &result)?;
    }
    if !result.complete {
        note!("stopped after step {}; continue with: trainer run --resume {}", result.steps, result.dir.display());
        return Ok(ExitCode::from(130));
    }
    if !quiet {
        put(format_args!("\n{}", summary(&result)));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(event: &Event<'_>, progress: &mut Progress) {
    match event {
        Event::Preparing { source, done, total } => progress.preparing(source, *done, *total),
        Event::Ready(b) => {
            progress.clear();
            say!("{}", banner(b));
        }
        Event::Warning(text) => say!("warning: {text}"),
        Event::Evaluating { when, done, total } => progress.evaluating(*when, *done, *total),
        Event::Evaluated { when, report } => {
            progress.clear();
            for (name, value) in &report.metrics {
                say!("{name} {when}: {value:.4} ({:.1} s)", report.seconds);
            }
        }
        Event::Measured(line) => {
            if let Some(why) = &line.stopped {
                say!("stopping early: {why}");
            }
        }
        Event::Step(info) => progress.step(info),
        Event::Checkpoint { step } => tracing::info!(step, "checkpoint written"),
        Event::Trained { losses } => {
            progress.finish();
            say!("\n{}", loss_table(losses));
        }
        Event::SamplePrompt(prompt) => {
            progress.clear();
            say!("user: {prompt}\nassistant:");
        }
        Event::SampleText(text) => {
            put(format_args!("{}", shown(text)));
            // Streaming is for the eye; a failure to flush shows up at the next print.
            let _ = std::io::stdout().flush();
        }
        Event::SampleEnd => say!("\n"),
        Event::SampleKept { .. } => {}
    }
}

/// An event as a log line.
fn log_event(event: &Event<'_>, pace: &mut Pace) {
    match event {
        Event::Ready(b) => {
            tracing::info!(target: "progress", dir = %b.dir.display(), model = b.model, backend = b.backend, steps = b.steps, "ready")
        }
        Event::Warning(text) => tracing::warn!(target: "progress", "{text}"),
        Event::Evaluated { when, report } => {
            for (metric, value) in &report.metrics {
                tracing::info!(target: "progress", when = when.name(), metric, value, seconds = report.seconds, "evaluated");
            }
        }
        Event::Measured(line) => {
            if let Some(why) = &line.stopped {
                tracing::info!(target: "progress", step = line.step, reason = why, "stopping early");
            }
        }
        Event::Step(s) => {
            pace.add(s);
            let seconds = s.time.as_secs_f64();
            tracing::info!(
                target: "progress",
                step = s.step,
                total = s.total,
                loss = s.loss,
                lr = s.lr,
                grad_norm = s.grad_norm,
                tokens = s.tokens,
                seconds,
                tokens_per_second = s.tokens as f64 / seconds.max(1e-9),
                data_wait_share = pace.waiting(),
                eta_seconds = pace.eta(s.total.saturating_sub(s.step)).as_secs_f64(),
                memory = s.memory,
                gpu_load = s.card.load,
                gpu_memory = s.card.memory,
                gpu_memory_total = s.card.memory_total,
                gpu_engine_peak = s.card.engine_peak,
                "step"
            );
        }
        Event::Checkpoint { step } => tracing::info!(target: "progress", step, "checkpoint"),
        Event::SampleKept { step } => tracing::info!(target: "progress", step, "sample"),
        Event::Preparing { .. }
        | Event::Evaluating { .. }
        | Event::Trained { .. }
        | Event::SamplePrompt(_)
        | Event::SampleText(_)
        | Event::SampleEnd => {}
    }
}

/// Prints the recipe and the plan; with a lock, only if the run would be the locked one.
fn dry_run(recipe: trainer_config::Recipe, locked: Option<&std::path::Path>, json: Option<&std::path::Path>) -> Result<ExitCode> {
    let expected = locked.map(Lock::load).transpose()?;
    let open = open_device_as(&recipe.device, recipe.train.precision)?;
    with_ops!(open.backend, ops => show_plan(&Assembly::new(recipe, ops, open.threads, open.info, expected.as_ref(), false)?, expected, json))
}

fn show_plan<O: Ops>(assembly: &Assembly<O>, expected: Option<Lock>, json: Option<&std::path::Path>) -> Result<ExitCode> {
    let lock = assembly.lock();
    if let Some(expected) = expected {
        expected.check(lock)?;
    }
    if let Some(target) = json {
        let plan = serde_json::json!({
            "recipe": assembly.recipe(),
            "plan": lock.plan,
            "memory": assembly.memory().parts,
            "memory_total": assembly.memory().total(),
            "lock_digest": lock.digest()?,
        });
        write_json(target, &plan)?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}", assembly.recipe().to_toml()?);
    say!("# plan");
    say!("#   steps           {}", lock.plan.steps);
    say!("#   samples a step  {} x {}", lock.plan.micro_batch, lock.plan.accumulation);
    say!("#   packing         {}", if lock.plan.packing { "without padding" } else { "one sample at a time" });
    say!("#   frozen weights  {}", lock.plan.weights);
    say!("#   recompute       {} of {} layers", lock.plan.recompute.iter().filter(|r| **r).count(), lock.plan.recompute.len());
    say!("#   memory          {} at the most, for micro-batches of {} tokens", bytes(assembly.memory().total()), lock.plan.max_tokens);
    for (part, size) in &assembly.memory().parts {
        say!("#     {:<22} {}", part, bytes(*size));
    }
    say!("#   lock digest     {}", lock.digest()?);
    Ok(ExitCode::SUCCESS)
}
