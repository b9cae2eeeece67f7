//! JSON output and interruption, the same in every command.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// Writes text to standard output. Where nobody reads any more (`| head`, a closed terminal), it is lost and the work goes on, since what
/// matters is written to files; `print!` would panic.
pub fn put(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stdout().write_fmt(text);
}

/// A line on standard output, by [`put`].
macro_rules! say {
    ($($text:tt)*) => { $crate::output::put(format_args!("{}\n", format_args!($($text)*))) };
}

/// A line on standard error, by [`tell`].
macro_rules! note {
    ($($text:tt)*) => { $crate::output::tell(format_args!($($text)*)) };
}

/// Set where log lines are JSON.
static AS_LOG_LINES: AtomicBool = AtomicBool::new(false);

/// From now on [`tell`] writes log lines: a program that collects JSON must not meet anything else among it.
pub fn tell_as_log_lines() {
    AS_LOG_LINES.store(true, Ordering::Relaxed);
}

/// Says something on standard error, under the rule of [`put`]; where log lines are JSON, as one of them, with what the text begins with as its
/// level.
pub fn tell(text: std::fmt::Arguments<'_>) {
    if AS_LOG_LINES.load(Ordering::Relaxed) {
        let text = text.to_string();
        match (text.strip_prefix("error: "), text.strip_prefix("warning: ")) {
            // An error is told whatever the filter says.
            (Some(error), _) if tracing::enabled!(target: "progress", tracing::Level::ERROR) => {
                tracing::error!(target: "progress", "{error}")
            }
            (Some(_), _) => drop(writeln!(std::io::stderr(), "{text}")),
            (_, Some(warning)) => tracing::warn!(target: "progress", "{warning}"),
            _ => tracing::info!(target: "progress", "{}", text.trim_start()),
        }
    } else {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// Refuses a `--json` argument that can only be another argument in the wrong place, before anything is done.
pub fn check_json(target: Option<&Path>) -> Result<()> {
    let Some(path) = target else { return Ok(()) };
    if path.extension().is_some_and(|e| e == "toml" || e == "wasm") {
        bail!("--json would write to {}, which looks like an input; give inputs first and --json last, or write --json -", path.display());
    }
    Ok(())
}

/// Whether JSON goes to standard output, so that nothing else may.
pub fn json_on_stdout(target: Option<&Path>) -> bool {
    target.is_some_and(|p| p.as_os_str() == "-")
}

/// Writes one JSON object where `--json` says.
pub fn write_json(target: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).context("cannot express the result as JSON")?;
    text.push(b'\n');
    if target.as_os_str() == "-" {
        let mut out = std::io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush()).context("cannot write to standard output")
    } else {
        trainer_model::durable::write_atomic(target, &text).with_context(|| format!("cannot write {}", target.display()))
    }
}

/// Set by the first Ctrl-C or SIGTERM; the second ends the process at once, which a run survives too.
pub fn interruption() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = flag.clone();
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        note!("\nstopping after this step and writing a checkpoint; once more stops at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}
