//! JSON output and interruption, the same in every command.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde::Serialize;

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
        eprintln!("\nstopping after this step and writing a checkpoint; once more stops at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}
