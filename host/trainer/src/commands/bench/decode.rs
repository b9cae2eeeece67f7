//! Decoding speed, and the main job as a whole with its two evaluations.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Result, bail};
use trainer_config::Recipe;
use trainer_engine::{Adapter, GenOptions, GenRequest, Generator, Model};
use trainer_eval::{Report, Rows, Speaker, conversation};
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_kernels::sampling::SamplingParams;
use trainer_model::AdapterConfig;
use trainer_runtime::{Plugins, compiler_command, load_base, open_device, with_ops};
use trainer_train::{Start, run};

use super::Place;
use super::figure::{Figure, Target, rates, seconds};

/// New tokens of each answer; nothing stops one earlier, so that each measurement does the same work.
const NEW_TOKENS: usize = 128;
/// Measurements of each batch size.
const TIMES: usize = 5;

/// Tokens per second at several batch sizes, then the main job.
pub fn measure(place: &Place) -> Result<Vec<Figure>> {
    let recipe = super::super::recipe_with(&[], &place.settings())?;
    let open = open_device(&recipe.device)?;
    let mut figures = with_ops!(open.backend, ops => decoding(ops, &recipe))?;
    figures.extend(main_job(recipe)?);
    Ok(figures)
}

/// Greedy decoding by the model with an adapter folded in, as evaluation decodes. The prompts are the test rows', their prefill is included.
fn decoding<O: Ops>(ops: Arc<O>, recipe: &Recipe) -> Result<Vec<Figure>> {
    let base = load_base(&recipe.model.source, recipe.model.quantization, ops.reads_weights())?;
    let mut plugins = Plugins::new(recipe, compiler_command()?)?;
    let speaker = Speaker::new(recipe, &base, &mut plugins)?;
    let mut prompts = Vec::new();
    for (place, row) in Rows::read(recipe, None)?.rows {
        let row: serde_json::Value = serde_json::from_str(&row)?;
        let Some(problem) = row.get("problem").and_then(|p| p.as_str()) else { bail!("{place}: no text in the column problem") };
        prompts.push(speaker.prompt(&base, conversation(&[("user", problem)]), recipe.eval.enable_thinking.get())?);
    }
    let model = Model::new(ops.clone(), &base.config, &base.weights, WeightPlan::Unpacked)?;
    let adapter = Adapter::init(&model, AdapterConfig::default(), recipe.train.seed)?.to_host(&model)?;
    let merged = Model::merged(ops, &base.config, &base.weights, &adapter)?;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or_default();
    let mut figures = Vec::new();
    for batch in [1, 32, 128] {
        let requests: Vec<GenRequest> = prompts.iter().cycle().take(batch).zip(0u64..).map(|(ids, id)| request(id, ids.clone())).collect();
        let mut tokens = 0;
        let samples = seconds(TIMES, || {
            let options = GenOptions { slots: batch, cache_length: longest + NEW_TOKENS, prefill_tokens: 2048 };
            let results = Generator::new(merged.clone(), options)?.generate(None, requests.clone(), &mut |_| ControlFlow::Continue(()))?;
            tokens = results.iter().map(|r| r.ids.len()).sum::<usize>();
            Ok(())
        })?;
        figures.push(Figure::new(format!("decode/tokens_per_second_batch_{batch}"), "tokens/s", rates(tokens, &samples)));
    }
    Ok(figures)
}

fn request(id: u64, prompt_ids: Vec<u32>) -> GenRequest {
    GenRequest { id, prompt_ids, params: SamplingParams::greedy(), sample: id, max_new_tokens: NEW_TOKENS, ..GenRequest::default() }
}

/// `trainer run` of the default recipe, from the loaded program to the last file, and its two evaluations. The targets are twice the speed of
/// the peer on as many rows (docs/src/benchmarks.md), where the peer took 2.7 s for 200 rows before training and 17 s after.
fn main_job(recipe: Recipe) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let start = Start::Fresh { recipe: Box::new(recipe), dir: Some(folder.path().join("run")), locked: None };
    let began = Instant::now();
    let summary = run(start, &AtomicBool::new(false), &mut |_| {})?;
    let job = Figure::new("job/seconds", "s", vec![began.elapsed().as_secs_f64()]).target(Target::AtMost(30.0));
    let mut figures = vec![job];
    let mut evaluated = |report: Option<Report>, when: &str, peer_seconds_of_200: f64, accuracy: Option<f64>| {
        let Some(report) = report else { return };
        let rows = report.rows.values().map(|r| r.rows).max().unwrap_or_default();
        let target = Target::AtMost(peer_seconds_of_200 / 200.0 * rows as f64 / 2.0);
        figures.push(Figure::new(format!("job/evaluation_{when}_of_{rows}"), "s", vec![report.seconds]).target(target));
        if let Some(value) = report.metrics.get("boxed_answer/accuracy") {
            let figure = Figure::new(format!("job/accuracy_{when}"), "share", vec![*value]);
            figures.push(match accuracy {
                Some(wanted) => figure.target(Target::AtLeast(wanted)),
                None => figure,
            });
        }
    };
    evaluated(summary.before, "before", 2.7, None);
    evaluated(summary.after, "after", 17.0, Some(0.95));
    Ok(figures)
}
