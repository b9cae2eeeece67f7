//! Training speed: the default recipe's steps through the same loop as `trainer run`, data path, metrics and optimizer included.

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use trainer_train::{Event, Start, run};

use super::Place;
use super::figure::{Figure, Target};

/// Steps that warm up caches, the thread pool and the prefetch.
const WARM_UP: u64 = 5;

/// Tokens per second, and with `also_one` on a single thread too.
pub fn measure(place: &Place, also_one: bool) -> Result<Vec<Figure>> {
    let all = samples(place)?;
    let mut figures = vec![Figure::new("train/tokens_per_second", "tokens/s", all).target(Target::AtLeast(4500.0))];
    if also_one {
        let one = Place { threads: Some(1), ..place.clone() };
        figures.push(Figure::new("train/tokens_per_second_1_thread", "tokens/s", samples(&one)?));
    }
    Ok(figures)
}

/// Tokens per second of each step after the warm-up.
fn samples(place: &Place) -> Result<Vec<f64>> {
    let mut settings = place.settings();
    settings.extend([
        ("eval.before", "false".to_owned()),
        ("eval.after", "false".to_owned()),
        ("sample.prompt", super::super::toml_string("")),
    ]);
    let recipe = super::super::recipe_with(&[], &settings)?;
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
