//! `trainer data stat`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use trainer_config::{Length, Recipe};
use trainer_data::{FileInfo, count_draws, each_sample};
use trainer_runtime::DataSetup;

use super::figures::{Count, Figures, Tally, share, total};
use crate::cli::DataStatArgs;
use crate::output::{check_json, put, write_json};
use crate::ui::{bytes, count};

/// Draws that are counted for the mix; a longer run is counted up to here.
const MAX_DRAWS: u64 = 10_000_000;
/// How often a long count says how far it is.
const INTERVAL: Duration = Duration::from_secs(2);
/// Beyond any sample: lengths are counted before the recipe's own limit is applied.
const NO_LIMIT: usize = u32::MAX as usize - 1;

/// The result.
#[derive(Debug, Serialize)]
struct Stat {
    /// This program's version.
    trainer: &'static str,
    /// The base model, whose tokenizer counts.
    model: String,
    /// The longest sample in tokens.
    max_seq_length: usize,
    /// What becomes of a longer one.
    too_long: String,
    /// In the recipe's order.
    sources: Vec<SourceStat>,
    /// All of them.
    total: Figures,
    /// What the run will draw.
    mix: Mix,
}

/// A source.
#[derive(Debug, Serialize)]
struct SourceStat {
    name: String,
    formatter: String,
    files: Vec<FileInfo>,
    #[serde(flatten)]
    figures: Figures,
}

/// The mix as it will be drawn.
#[derive(Debug, Serialize)]
struct Mix {
    /// The mixing policy.
    policy: String,
    /// Draws in a pass over the mix, if there is such a thing.
    epoch: Option<u64>,
    /// Draws of the run. Rows that give no sample are replaced by further draws, which are not among these.
    draws: u64,
    /// How many of them were counted: fewer for a very long run.
    counted: u64,
    /// By source, in the recipe's order.
    sources: Vec<Drawn>,
}

/// A source's share.
#[derive(Debug, Serialize)]
struct Drawn {
    name: String,
    /// Of the counted draws.
    draws: u64,
    /// Of all draws.
    share: f64,
    /// Of all tokens, by the mean length of the source's samples.
    token_share: f64,
    /// How often the counted draws go through the source.
    passes: f64,
}

/// Runs the command.
pub fn run(args: &DataStatArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let recipe = super::super::recipe(args.recipe.as_deref(), &args.over)?;
    let stat = collect(&DataSetup::load(recipe)?)?;
    match &args.json {
        Some(target) => write_json(target, &stat)?,
        None => put(format_args!("{}", text(&stat))),
    }
    Ok(ExitCode::SUCCESS)
}

fn collect(setup: &DataSetup) -> Result<Stat> {
    let recipe = setup.recipe();
    let mut spec = setup.spec()?;
    spec.max_seq_length = NO_LIMIT;
    // Nothing else wants the cores while data are counted.
    spec.workers = Some(recipe.data.workers.or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())));
    let mut tally = Tally::new(recipe);
    let (mut all, mut parts) = (BTreeMap::new(), Vec::new());
    let mut progress = Progress::new();
    for (i, source) in setup.sources().iter().enumerate() {
        let mut counting = Count::default();
        let number = u32::try_from(i).unwrap_or(u32::MAX);
        let counters = each_sample(&spec, i, &mut |sample| {
            tally.sample(number, sample, &mut counting);
            progress.sample(source.name(), Some(source.len()));
        })?;
        counting.lengths_into(&mut all);
        parts.push(counting.finish(&counters));
    }
    progress.finish();
    let total = total(&parts, &all);
    let mix = mix(recipe, &spec, &parts)?;
    let sources = parts.into_iter().zip(&recipe.data.sources).zip(setup.sources());
    Ok(Stat {
        trainer: env!("CARGO_PKG_VERSION"),
        model: recipe.model.source.to_string(),
        max_seq_length: recipe.data.max_seq_length,
        too_long: recipe.data.too_long.to_string(),
        sources: sources
            .map(|((figures, setting), source)| SourceStat {
                name: setting.name.clone(),
                formatter: setting.formatter.to_string(),
                files: source.files().to_vec(),
                figures,
            })
            .collect(),
        total,
        mix,
    })
}

fn mix(recipe: &Recipe, spec: &trainer_data::PipelineSpec, parts: &[Figures]) -> Result<Mix> {
    let mut wanted = 0;
    let drawn = count_draws(spec, |epoch| {
        wanted = match (recipe.length(), epoch) {
            (Length::Steps(steps), _) => steps.saturating_mul(recipe.samples_per_step() as u64),
            (Length::Epochs(epochs), Some(draws)) => (epochs * draws as f64).ceil() as u64,
            (Length::Epochs(_), None) => 0,
        };
        wanted.min(MAX_DRAWS)
    })?;
    let counted = drawn.total();
    let mean = |figures: &Figures| figures.tokens as f64 / figures.rows.max(1) as f64;
    let tokens: Vec<f64> = drawn.by_source.iter().zip(parts).map(|(draws, part)| *draws as f64 * mean(part)).collect();
    let sum: f64 = tokens.iter().sum();
    let each = recipe.data.sources.iter().zip(&spec.sources).zip(drawn.by_source.iter().zip(&tokens));
    Ok(Mix {
        policy: recipe.mix.plugin.to_string(),
        epoch: drawn.epoch,
        draws: wanted,
        counted,
        sources: each
            .map(|((setting, input), (draws, tokens))| Drawn {
                name: setting.name.clone(),
                draws: *draws,
                share: share(*draws, counted),
                token_share: if sum > 0.0 { tokens / sum } else { 0.0 },
                passes: *draws as f64 / input.source.len().max(1) as f64,
            })
            .collect(),
    })
}

/// A line on standard error where a person may be waiting.
struct Progress {
    shown: bool,
    seen: u64,
    last: Instant,
    drawn: bool,
}

impl Progress {
    fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), seen: 0, last: Instant::now(), drawn: false }
    }

    fn sample(&mut self, source: &str, rows: Option<u64>) {
        self.seen += 1;
        if self.shown && self.last.elapsed() >= INTERVAL {
            (self.last, self.drawn) = (Instant::now(), true);
            let of = rows.map(|n| format!(" ({} rows)", count(n))).unwrap_or_default();
            let _ = write!(std::io::stderr(), "\r\x1b[2K{} samples counted, in source {source}{of}", count(self.seen));
        }
    }

    fn finish(&self) {
        if self.drawn {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

fn text(stat: &Stat) -> String {
    let mut out = String::new();
    for source in &stat.sources {
        let _ = writeln!(out, "source {} by {}", source.name, source.formatter);
        for file in source.files.iter().take(5) {
            let _ = writeln!(out, "  file        {} ({}, {})", file.name, file.format.name(), bytes(file.bytes));
        }
        if let Some(more) = source.files.len().checked_sub(5).filter(|n| *n > 0) {
            let _ = writeln!(out, "  and {more} more files");
        }
        figures(&mut out, &source.figures, stat);
        out.push('\n');
    }
    if stat.sources.len() > 1 {
        out.push_str("all sources\n");
        figures(&mut out, &stat.total, stat);
        out.push('\n');
    }
    let epoch = stat.mix.epoch.map_or_else(|| "no fixed epoch".to_owned(), |n| format!("{} draws an epoch", count(n)));
    let counted =
        if stat.mix.counted < stat.mix.draws { format!(", the first {} counted", count(stat.mix.counted)) } else { String::new() };
    let _ = writeln!(out, "mix by {}: {epoch}; the run makes {} draws{counted}", stat.mix.policy, count(stat.mix.draws));
    for drawn in &stat.mix.sources {
        let (draws, part, tokens) = (count(drawn.draws), 100.0 * drawn.share, 100.0 * drawn.token_share);
        let _ = writeln!(out, "  {:<11} {draws} draws ({part:.1} %), {tokens:.1} % of the tokens, {:.2} passes", drawn.name, drawn.passes);
    }
    out
}

fn figures(out: &mut String, f: &Figures, stat: &Stat) {
    let _ = writeln!(out, "  rows        {}, which give {} samples to train on", count(f.rows), count(f.samples));
    let _ = writeln!(out, "  tokens      {}, {:.1} % of them learned", count(f.tokens), 100.0 * f.trained_share);
    let l = &f.lengths;
    let _ = writeln!(
        out,
        "  lengths     {} to {}, mean {:.1}, median {}, 90 % to {}, 99 % to {}",
        l.min, l.max, l.mean, l.median, l.p90, l.p99
    );
    let most = l.histogram.iter().map(|b| b.samples).max().unwrap_or(0).max(1);
    for bar in &l.histogram {
        let width = usize::try_from(u128::from(bar.samples) * 40 / u128::from(most)).unwrap_or(0).max(1);
        let _ = writeln!(out, "    {:>7} - {:<7} {:>10} {}", bar.from, bar.to, count(bar.samples), "#".repeat(width));
    }
    if f.too_long > 0 {
        let (dropped, truncated) = (count(f.dropped), count(f.truncated));
        let (n, limit, what) = (count(f.too_long), stat.max_seq_length, &stat.too_long);
        let _ = writeln!(
            out,
            "  too long    {n} over max_seq_length = {limit} (too_long = \"{what}\"): {dropped} dropped, {truncated} truncated"
        );
    }
    for (reason, n) in &f.skipped {
        let _ = writeln!(out, "  skipped     {} {reason}", count(*n));
    }
    for (kind, n) in &f.bad {
        let _ = writeln!(out, "  bad         {} {kind}", count(*n));
    }
    for row in f.bad_examples.iter().take(3) {
        let _ = writeln!(out, "    {row}");
    }
    let _ = writeln!(out, "  duplicates  {} within a source, {} across sources", count(f.duplicates), count(f.duplicates_across));
}
