//! What a run makes of its evaluations during training: which step was best, and when to stop.
//!
//! Both are functions of `evals.jsonl` and the newest report alone, so a resumed run decides what an undisturbed one would.

use std::collections::BTreeMap;

use serde::Serialize;
use trainer_config::{Better, Eval};
use trainer_eval::Report;
use trainer_runs::records::EvalMetrics;

use crate::error::TrainError;

const STOPPING: &str = "eval.early_stopping.metric";
const BEST: &str = "eval.best.metric";

/// The step that was best.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BestStep {
    /// The step; its adapter is in `adapter-best`.
    pub step: u64,
    /// The number.
    pub metric: String,
    /// Its value there.
    pub value: f64,
}

/// The step that a run's evaluations so far say was best.
pub(crate) fn best(eval: &Eval, history: &[EvalMetrics]) -> Option<BestStep> {
    let metric = eval.best.metric.as_ref()?;
    let line = history.iter().rev().find(|e| e.best)?;
    Some(BestStep { step: line.step, metric: metric.clone(), value: *line.metrics.get(metric)? })
}

/// Whether a report has what is watched, and says which way is better.
///
/// # Errors
/// [`TrainError::NotMeasured`], [`TrainError::NoDirection`].
pub(crate) fn check(eval: &Eval, report: &Report) -> Result<(), TrainError> {
    for (key, metric, mode) in watched(eval) {
        higher_is_better(key, metric, mode, report)?;
    }
    Ok(())
}

fn watched(eval: &Eval) -> impl Iterator<Item = (&'static str, &str, Better)> {
    let stopping = eval.early_stopping.metric.as_deref().map(|m| (STOPPING, m, eval.early_stopping.mode));
    stopping.into_iter().chain(eval.best.metric.as_deref().map(|m| (BEST, m, eval.best.mode)))
}

fn higher_is_better(key: &'static str, metric: &str, mode: Better, report: &Report) -> Result<bool, TrainError> {
    if !report.metrics.contains_key(metric) {
        return Err(TrainError::NotMeasured { key, metric: metric.to_owned(), known: report.metrics.keys().cloned().collect() });
    }
    match mode {
        Better::Max => Ok(true),
        Better::Min => Ok(false),
        Better::Auto => {
            report.higher_is_better.get(metric).copied().ok_or_else(|| TrainError::NoDirection { key, metric: metric.to_owned() })
        }
    }
}

/// The line of an evaluation after a step, given those before it.
///
/// # Errors
/// As [`check`].
pub(crate) fn measured(eval: &Eval, history: &[EvalMetrics], step: u64, report: &Report, adapter: &str) -> Result<EvalMetrics, TrainError> {
    let finite = |all: &BTreeMap<String, f64>| all.iter().filter(|(_, v)| v.is_finite()).map(|(k, v)| (k.clone(), *v)).collect();
    let mut line = EvalMetrics {
        step,
        metrics: finite(&report.metrics),
        stderr: finite(&report.stderr),
        adapter: adapter.to_owned(),
        best: false,
        stopped: None,
    };
    if let Some(metric) = &eval.best.metric {
        let course = Course { higher: higher_is_better(BEST, metric, eval.best.mode, report)?, min_delta: 0.0 };
        line.best = course.walk(metric, history, &line).is_some_and(|w| w.step == step);
    }
    let stopping = &eval.early_stopping;
    if let Some(metric) = &stopping.metric {
        let course = Course { higher: higher_is_better(STOPPING, metric, stopping.mode, report)?, min_delta: stopping.min_delta };
        let (since, best) = match course.walk(metric, history, &line) {
            Some(walk) => (walk.since, format!("better than {} (after step {})", walk.value, walk.step)),
            None => (history.len() as u64 + 1, "a finite number".to_owned()),
        };
        if since >= stopping.patience {
            let times = if since == 1 { "evaluation".to_owned() } else { format!("{since} evaluations") };
            line.stopped = Some(format!("{metric} was not {best} in the last {times}"));
        }
    }
    Ok(line)
}

/// What counts as better.
struct Course {
    higher: bool,
    min_delta: f64,
}

/// The best value on the way, its step, and how many evaluations came after it.
struct Walk {
    value: f64,
    step: u64,
    since: u64,
}

impl Course {
    /// None where there is no value at all. The first of equal values is the best.
    fn walk(&self, metric: &str, history: &[EvalMetrics], last: &EvalMetrics) -> Option<Walk> {
        let mut best: Option<Walk> = None;
        for line in history.iter().chain([last]) {
            let value = line.metrics.get(metric).copied();
            match (&mut best, value) {
                (None, Some(value)) => best = Some(Walk { value, step: line.step, since: 0 }),
                (None, None) => {}
                (Some(best), Some(value)) if self.better(value, best.value) => *best = Walk { value, step: line.step, since: 0 },
                (Some(best), _) => best.since += 1,
            }
        }
        best
    }

    fn better(&self, value: f64, than: f64) -> bool {
        if self.higher { value > than + self.min_delta } else { value < than - self.min_delta }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
