//! Training speed: the default recipe's steps through the same loop as `trainer run`, data path, metrics and optimizer included.

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use trainer_train::{Event, Start, run};

use super::figure::{Figure, Target};

/// Steps that warm up caches, the thread pool and the prefetch.
const WARM_UP: u64 = 5;

/// Tokens per second with these threads and with one.
pub fn measure(threads: usize) -> Result<Vec<Figure>> {
    let all = samples(threads)?;
    let mut figures = vec![Figure::new("train/tokens_per_second", "tokens/s", all).target(Target::AtLeast(4500.0))];
    if threads > 1 {
        figures.push(Figure::new("train/tokens_per_second_1_thread", "tokens/s", samples(1)?));
    }
    Ok(figures)
}

/// Tokens per second of each step after the warm-up.
fn samples(threads: usize) -> Result<Vec<f64>> {
    let off = [
        ("device.threads", threads.to_string()),
        ("eval.before", "false".to_owned()),
        ("eval.after", "false".to_owned()),
        ("sample.prompt", super::super::toml_string("")),
    ];
    let recipe = super::super::recipe_with(&[], &off)?;
    let folder = tempfile::tempdir()?;
    let start = Start::Fresh { recipe: Box::new(recipe), dir: Some(folder.path().join("run")), locked: None };
    let mut samples = Vec::new();
    run(start, &AtomicBool::new(false), &mut |event| {
        if let Event::Step(info) = event
            && info.step > WARM_UP
        {
            samples.push(info.tokens as f64 / info.time.as_secs_f64().max(1e-12));
        }
    })?;
    Ok(samples)
}
