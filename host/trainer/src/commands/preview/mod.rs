//! `trainer preview`: every token that training will see, before it does.

mod html;
mod report;
mod terminal;
mod warnings;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use trainer_config::Recipe;
use trainer_data::{Fate, RowTrace, Sample, Tracer, batches, pack};
use trainer_runtime::{DataSetup, open_device_as, with_ops};
use trainer_train::plan_run;

use crate::cli::PreviewArgs;
use crate::output::{check_json, put, write_json};
use crate::ui::{colors, terminal};
use report::{BatchView, Packing, Preview, Warning, row_view};
use warnings::Checker;

/// Samples of the first step that are laid out, at the most.
const MAX_PACKED: usize = 256;
/// Rows that are gone through for them, at the most.
const MAX_ROWS: usize = 4096;

/// Runs the command.
pub fn run(args: &PreviewArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let recipe = super::recipe(args.recipe.as_deref(), &args.over)?;
    let preview = collect(DataSetup::load(recipe)?, args)?;
    if let Some(target) = &args.json {
        write_json(target, &preview)?;
    }
    if let Some(target) = &args.html {
        let page = html::page(&preview);
        trainer_model::durable::write_atomic(target, page.as_bytes()).with_context(|| format!("cannot write {}", target.display()))?;
    }
    if args.json.is_none() && args.html.is_none() {
        put(format_args!("{}", terminal::text(&preview, terminal() && colors())));
    }
    Ok(ExitCode::SUCCESS)
}

fn collect(setup: DataSetup, args: &PreviewArgs) -> Result<Preview> {
    let recipe = setup.recipe();
    let mut tracer = Tracer::new(&setup.spec()?)?;
    let wanted = usize::try_from(args.rows).unwrap_or(usize::MAX);
    let only = args.source.as_deref().map(|name| source(recipe, name)).transpose()?;
    let mut shown = Vec::new();
    let mut step = Vec::new();
    let per_step = recipe.samples_per_step();
    if let Some(row) = &args.row {
        let index = match only {
            Some(index) => index,
            None if recipe.data.sources.len() == 1 => 0,
            None => bail!("--row needs --source, for there are several: {}", names(recipe)),
        };
        shown.push(named_row(&setup, &mut tracer, index, row)?);
        fill_step(&shown, &mut step, per_step);
    } else {
        while shown.len() < wanted
            && let Some(row) = tracer.next(only)?
        {
            shown.push(row);
        }
        fill_step(&shown, &mut step, per_step);
        let mut rows = shown.len();
        while only.is_none() && step.len() < per_step.min(MAX_PACKED) && rows < MAX_ROWS {
            let Some(row) = tracer.next(None)? else { break };
            rows += 1;
            fill_step(std::slice::from_ref(&row), &mut step, per_step);
        }
    }
    let checker = Checker::new(&setup)?;
    let mut all = checker.general();
    let mut next = 0;
    let mut rows = Vec::with_capacity(shown.len());
    for trace in &shown {
        all.extend(checker.row(trace)?);
        let name = usize::try_from(trace.source).ok().and_then(|s| recipe.data.sources.get(s)).map_or("", |s| s.name.as_str());
        rows.push(row_view(trace, name, setup.tokenizer(), &mut next));
    }
    let packing = match packing(recipe, &step) {
        Ok(packing) => Some(packing),
        Err(error) => {
            all.push(Warning { kind: "packing", row: None, message: format!("the packing is not shown: {error}") });
            None
        }
    };
    Ok(Preview {
        trainer: env!("CARGO_PKG_VERSION"),
        model: recipe.model.source.to_string(),
        tokenizer: setup.tokenizer().digest().to_owned(),
        template: recipe.template.plugin.to_string(),
        train_on: recipe.data.train_on.to_string(),
        max_seq_length: recipe.data.max_seq_length,
        too_long: recipe.data.too_long.to_string(),
        warnings: all,
        rows,
        packing,
    })
}

fn names(recipe: &Recipe) -> String {
    recipe.data.sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The number of a source.
fn source(recipe: &Recipe, name: &str) -> Result<u32> {
    let found = recipe.data.sources.iter().position(|s| s.name == name).and_then(|i| u32::try_from(i).ok());
    found.with_context(|| format!("there is no source called {name}; there are {}", names(recipe)))
}

/// The row that an error names as `file:row`, or by its row alone.
fn named_row(setup: &DataSetup, tracer: &mut Tracer, index: u32, text: &str) -> Result<RowTrace> {
    let (file, number) = match text.rsplit_once(':') {
        Some((file, number)) => (Some(file), number),
        None => (None, text),
    };
    let number: u64 =
        number.parse().ok().filter(|n| *n > 0).with_context(|| format!("--row {text}: a row is a number from 1, or FILE:NUMBER"))?;
    let source = usize::try_from(index).ok().and_then(|i| setup.sources().get(i)).context("there is no such source")?;
    if !source.random_access() {
        bail!("source {} is read as a stream, which has no single rows; add --set data.sources.{index}.shuffle_window=0", source.name());
    }
    match source.find_row(file, number) {
        Some(ordinal) => Ok(tracer.row(index, ordinal)?),
        None => {
            let files: Vec<&str> = source.files().iter().take(5).map(|f| &*f.name).collect();
            bail!(
                "source {} has no row {text}; rows are numbered as in errors: by line in text files, by row in tables, from 1, in {}",
                source.name(),
                files.join(", ")
            )
        }
    }
}

/// Adds the samples of rows that are trained on, up to one step's.
fn fill_step(rows: &[RowTrace], step: &mut Vec<Sample>, per_step: usize) {
    for row in rows.iter().filter(|r| r.fate == Fate::Samples) {
        for sample in row.samples.iter().filter(|s| s.left_out.is_none()) {
            if step.len() >= per_step.min(MAX_PACKED) {
                return;
            }
            let (ids, weights) = sample.trained();
            step.push(Sample {
                ids: ids.to_vec(),
                weights: weights.to_vec(),
                source: row.source,
                file: row.file.clone(),
                row: row.row,
                draw: row.draw.unwrap_or(0),
                index: step.len() as u64,
            });
        }
    }
}

/// The micro-batches that the samples make on the recipe's device.
fn packing(recipe: &Recipe, samples: &[Sample]) -> Result<Packing> {
    let max_tokens = if recipe.data.packing {
        let open = open_device_as(&recipe.device, recipe.train.precision)?;
        Some(with_ops!(open.backend, ops => plan_run(ops.as_ref(), recipe, &open.info))?.1.packed)
    } else {
        None
    };
    let laid = match max_tokens {
        Some(tokens) => pack(samples, tokens)?,
        None => batches(samples, 1)?,
    };
    let length = |w: &[u32]| w.last().zip(w.first()).map_or(0, |(end, start)| end.saturating_sub(*start) as usize);
    let lengths = |b: &trainer_data::MicroBatch| b.cu_seqlens.windows(2).map(length).collect();
    Ok(Packing {
        max_tokens,
        samples_per_step: recipe.samples_per_step(),
        samples: samples.len(),
        batches: laid.iter().map(|b| BatchView { samples: b.sample_index.clone(), lengths: lengths(b), tokens: b.tokens() }).collect(),
    })
}
