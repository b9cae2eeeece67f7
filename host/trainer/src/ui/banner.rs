//! What stands above and below a run.

use std::fmt::Write;

use trainer_runtime::{DeviceInfo, DeviceKind};
use trainer_train::{Banner, RunSummary};

use super::text::{bytes, count};

/// A card in words: number, name, capability, memory, driver.
fn card(device: &DeviceInfo) -> String {
    let mut text = format!("cuda:{} ({}", device.ordinal.unwrap_or(0), device.name);
    if let Some(capability) = &device.compute_capability {
        let _ = write!(text, ", compute capability {capability}");
    }
    if let Some(memory) = device.memory {
        let _ = write!(text, ", {} memory", bytes(memory));
    }
    if let Some(driver) = &device.driver {
        let _ = write!(text, ", driver {driver}");
    }
    text + ")"
}

/// The lines before anything starts.
pub fn banner(b: &Banner) -> String {
    let mut out = String::new();
    let memory = b.machine.memory.map_or_else(String::new, |m| format!(", {} memory", bytes(m)));
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<10} {text}");
    };
    let machine = format!("{} of {} cores ({}){memory}", b.threads, b.machine.cores, b.machine.processor);
    match b.device.kind {
        DeviceKind::Cpu => line("backend", format!("{}, {machine}", b.backend)),
        DeviceKind::Cuda => {
            line("backend", format!("{} on {}", b.backend, card(&b.device)));
            line("host", machine);
        }
    }
    line("model", format!("{}, {} parameters, frozen weights {}", b.model, count(b.parameters), b.quantization));
    let share = 100.0 * b.trainable as f64 / (b.parameters + b.trainable).max(1) as f64;
    line("adapter", format!("{} trainable parameters ({share:.2} %)", count(b.trainable)));
    for p in &b.plugins {
        let grants = if p.grants.is_empty() { "no grants".to_owned() } else { format!("granted {}", p.grants.join(", ")) };
        let digest = p.sha256.get(..12).unwrap_or(&p.sha256);
        line("plugin", format!("{} {} ({}) sha256 {digest}, {grants}", p.name, p.version, p.kinds.join(", ")));
    }
    let rows: u64 = b.sources.iter().filter_map(|s| s.rows).sum();
    for s in &b.sources {
        let rows = s.rows.map_or_else(|| "rows unknown".to_owned(), |n| format!("{} rows", count(n)));
        line("source", format!("{}: {} ({rows}), formatted by {}", s.name, s.path, s.formatter));
    }
    let epoch = match b.epoch {
        Some(n) => format!("{} draws an epoch, of {} rows", count(n), count(rows)),
        None => "without a fixed epoch".to_owned(),
    };
    line("mix", format!("by {}: {epoch}", b.mixer));
    let total: u64 = b.memory.iter().map(|m| m.1).sum();
    line("plan", format!("{} steps of {} x {} samples; {} planned", count(b.steps), b.batch, b.accumulation, bytes(total)));
    line("run", b.dir.display().to_string());
    if let Some(step) = b.resumed_after {
        line("resumed", format!("after step {step}"));
    }
    format!("trainer {}\n{out}", b.trainer)
}

/// The losses, several steps to a line.
pub fn loss_table(losses: &[(u64, f64)]) -> String {
    const COLUMNS: usize = 5;
    // A long run is shown at about a hundred evenly spaced steps; all of them are in metrics.jsonl.
    let every = losses.len().div_ceil(100).max(1);
    let shown: Vec<&(u64, f64)> =
        losses.iter().enumerate().filter(|(i, _)| i % every == 0 || i + 1 == losses.len()).map(|(_, l)| l).collect();
    let rows = shown.len().div_ceil(COLUMNS);
    let columns = shown.len().div_ceil(rows.max(1));
    let mut out = String::new();
    let _ = writeln!(out, "{}", vec!["  step    loss"; columns].join("   "));
    for row in 0..rows {
        let line: Vec<String> =
            (0..columns).filter_map(|c| shown.get(c * rows + row)).map(|(step, loss)| format!("{step:>6}  {loss:.4}")).collect();
        let _ = writeln!(out, "{}", line.join("   "));
    }
    out
}

/// The lines after everything.
pub fn summary(s: &RunSummary) -> String {
    let mut out = String::new();
    let names = s.before.iter().chain(&s.after).flat_map(|r| r.metrics.keys()).collect::<std::collections::BTreeSet<_>>();
    for name in names {
        let value = |r: &Option<trainer_eval::Report>| r.as_ref().and_then(|r| r.metrics.get(name)).copied();
        // A loss is no share, however small it is.
        let share = !name.starts_with("loss/");
        let percent = |x: f64| if share && (0.0..=1.0).contains(&x) { format!("{:.1} %", 100.0 * x) } else { format!("{x:.4}") };
        let text = match (value(&s.before), value(&s.after)) {
            (Some(b), Some(a)) => format!("{} -> {}", percent(b), percent(a)),
            (Some(b), None) => format!("{} before training", percent(b)),
            (None, Some(a)) => format!("{} after training", percent(a)),
            (None, None) => continue,
        };
        let _ = writeln!(out, "{name}  {text}");
    }
    if let Some(best) = &s.best {
        let _ = writeln!(out, "best after step {}: {} {:.4}", best.step, best.metric, best.value);
    }
    if let Some(why) = &s.stopped_early {
        let _ = writeln!(out, "ended early after step {}: {why}", s.steps);
    }
    if !s.skipped.is_empty() || s.bad_rows > 0 {
        let reasons: Vec<String> = s.skipped.iter().map(|(why, n)| format!("{n} {why}")).collect();
        let _ = writeln!(
            out,
            "rows left out: {} bad; skipped: {}",
            s.bad_rows,
            if reasons.is_empty() { "none".into() } else { reasons.join(", ") }
        );
    }
    if s.truncated > 0 {
        let _ = writeln!(out, "{} samples were cut to max_seq_length", count(s.truncated));
    }
    let _ = writeln!(out, "\nwritten to {}", s.dir.display());
    for (path, what) in &s.files {
        let _ = writeln!(out, "  {:<24} {what}", path.display());
    }
    out
}
