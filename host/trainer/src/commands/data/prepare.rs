//! `trainer data prepare`

use std::io::{IsTerminal, Write as _};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::Serialize;
use trainer_data::{Preparation, PrepareProgress, prepare};
use trainer_runtime::{DataSetup, prepared_store};

use crate::cli::DataPrepareArgs;
use crate::output::{check_json, json_on_stdout, write_json};
use crate::ui::{bytes, count};

/// How often a long preparation says how far it is.
const INTERVAL: Duration = Duration::from_millis(500);

/// The result.
#[derive(Serialize)]
struct Prepared {
    /// This program's version.
    trainer: &'static str,
    /// Where prepared data are kept.
    folder: std::path::PathBuf,
    /// In the recipe's order.
    sources: Vec<Preparation>,
}

/// Runs the command.
pub fn run(args: &DataPrepareArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let store = prepared_store().ok_or_else(|| anyhow!("there is no folder for prepared data: neither XDG_CACHE_HOME nor HOME is set"))?;
    let setup = DataSetup::load(super::super::recipe(args.recipe.as_deref(), &args.over)?)?;
    let mut spec = setup.spec()?;
    // Nothing else wants the cores meanwhile.
    spec.workers = Some(setup.recipe().data.workers.or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())));
    let quiet = json_on_stdout(args.json.as_deref());
    let mut sources = Vec::new();
    for (i, source) in setup.sources().iter().enumerate() {
        let mut line = Line::new();
        let done = prepare(&spec, i, &store, &mut |progress| {
            line.show(source.name(), progress, source.len());
            ControlFlow::Continue(())
        })?;
        line.clear();
        // Only breaking off gives none.
        let Some(done) = done else { continue };
        if !quiet {
            say!("{}", text(&done));
            for row in done.bad_examples.iter().take(3) {
                say!("    {row}");
            }
        }
        sources.push(done);
    }
    if !quiet {
        say!("kept in {}", store.folder().display());
    }
    if let Some(target) = &args.json {
        write_json(target, &Prepared { trainer: env!("CARGO_PKG_VERSION"), folder: store.folder().to_owned(), sources })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(p: &Preparation) -> String {
    let (rows, size) = (count(p.rows), bytes(p.bytes));
    if p.found {
        return format!("source {}: {rows} rows, prepared before and checked now ({size})", p.source);
    }
    let speed = count((p.rows as f64 / p.seconds.max(1e-9)) as u64);
    let left = match (p.skipped, p.bad) {
        (0, 0) => String::new(),
        (skipped, bad) => format!(", {} left out, {} bad", count(skipped), count(bad)),
    };
    let (samples, tokens, seconds) = (count(p.samples), count(p.tokens), p.seconds);
    format!("source {}: {rows} rows, {samples} samples of {tokens} tokens{left} ({size}, {seconds:.1} s, {speed} rows/s)", p.source)
}

/// A line on standard error where a person may be waiting.
struct Line {
    shown: bool,
    last: Instant,
    drawn: bool,
}

impl Line {
    fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), last: Instant::now(), drawn: false }
    }

    fn show(&mut self, source: &str, progress: PrepareProgress, total: u64) {
        let text = match progress {
            PrepareProgress::Waiting => {
                note!("source {source}: another process prepares the same; waiting for it");
                return;
            }
            PrepareProgress::Rows(_) if !self.shown || self.last.elapsed() < INTERVAL => return,
            PrepareProgress::Rows(done) => format!("source {source}: {} of {} rows", count(done), count(total)),
        };
        (self.last, self.drawn) = (Instant::now(), true);
        let _ = write!(std::io::stderr(), "\r\x1b[2K{text}");
    }

    fn clear(&mut self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
