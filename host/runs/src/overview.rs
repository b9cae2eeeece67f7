//! A run in one line, and runs side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::read::{Run, RunError, State};
use crate::records::StepTimings;

/// A run's last loss is the mean over so many steps, because a single step's says little.
const LAST: usize = 10;

/// A run in one line.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    /// The folder's name.
    pub name: String,
    /// The folder.
    pub path: PathBuf,
    /// Where it stands.
    pub state: State,
    /// When it began, UTC.
    pub started: Option<String>,
    /// The base model.
    pub model: Option<String>,
    /// What computed.
    pub device: Option<String>,
    /// Steps done.
    pub step: u64,
    /// Steps in the run.
    pub steps: Option<u64>,
    /// The first step's loss.
    pub first_loss: Option<f64>,
    /// The mean loss of the last ten steps.
    pub last_loss: Option<f64>,
    /// Tokens that were trained on.
    pub tokens: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Tokens per second of training.
    pub tokens_per_second: Option<f64>,
    /// The share of the training time that was spent waiting for data.
    pub data_wait_share: Option<f64>,
    /// The most memory seen, in bytes.
    pub memory: Option<u64>,
    /// The card's mean load over the time of the steps, in percent, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_load: Option<f64>,
    /// The most memory of the card in use that was seen, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// Metrics by evaluation (`before`, `after`, ...).
    pub evaluations: BTreeMap<String, BTreeMap<String, f64>>,
    /// The step whose adapter is in `adapter-best`.
    pub best_step: Option<u64>,
    /// Why the run ended before its last step.
    pub stopped_early: Option<String>,
}

impl Run {
    /// The run in one line.
    ///
    /// # Errors
    /// If a file of it is there and cannot be read.
    pub fn overview(&self) -> Result<Overview, RunError> {
        let metrics = self.metrics()?;
        let timings = self.timings()?;
        let lock = self.lock()?;
        let text = |place: &str| lock.pointer(place).and_then(Value::as_str).map(str::to_owned);
        let step = metrics.last().map_or(0, |m| m.step);
        let last = metrics.get(metrics.len().saturating_sub(LAST)..).unwrap_or_default();
        let seconds: f64 = timings.iter().map(|t| t.seconds).sum();
        let tokens: u64 = metrics.iter().map(|m| m.tokens).sum();
        let evals = self.evals()?;
        Ok(Overview {
            name: self.name(),
            path: self.root().to_owned(),
            state: self.state(step),
            started: text("/recorded/started"),
            model: text("/recorded/model"),
            device: text("/recorded/device"),
            step,
            steps: lock.pointer("/plan/steps").and_then(Value::as_u64),
            first_loss: metrics.first().map(|m| m.loss),
            last_loss: (!last.is_empty()).then(|| last.iter().map(|m| m.loss).sum::<f64>() / last.len() as f64),
            tokens,
            seconds,
            tokens_per_second: (seconds > 0.0).then(|| tokens as f64 / seconds),
            data_wait_share: (seconds > 0.0).then(|| timings.iter().map(|t| t.data_wait_seconds).sum::<f64>() / seconds),
            memory: timings.iter().filter_map(|t| t.memory).max(),
            gpu_load: gpu_load(&timings),
            gpu_memory: timings.iter().filter_map(|t| t.gpu_memory).max(),
            evaluations: self.evaluations().into_iter().map(|e| (e.name, e.metrics)).collect(),
            best_step: evals.iter().rev().find(|e| e.best).map(|e| e.step),
            stopped_early: evals.last().and_then(|e| e.stopped.clone()),
        })
    }
}

/// The mean over the steps that have a load, each as long as it took.
fn gpu_load(timings: &[StepTimings]) -> Option<f64> {
    let loads = timings.iter().filter_map(|t| Some((t.gpu_load?, t.seconds)));
    let (sum, seconds) = loads.fold((0.0, 0.0), |(sum, all), (load, seconds)| (sum + load * seconds, all + seconds));
    (seconds > 0.0).then(|| sum / seconds)
}

/// A setting that is not the same in all runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Its dotted key.
    pub key: String,
    /// Its value in each run; null where it has none.
    pub values: Vec<Value>,
}

/// Runs side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Each run.
    pub runs: Vec<Overview>,
    /// Settings of the recipes that differ.
    pub recipe: Vec<Difference>,
    /// What else differs in what decides the result: data, model, plugins, machine, libraries.
    pub lock: Vec<Difference>,
    /// Evaluation metrics by `<evaluation>/<metric>`, a value for each run.
    pub evaluations: Vec<Difference>,
    /// The first step whose loss is not the same to the bit in all runs; none as far as all have gone.
    pub first_different_step: Option<u64>,
}

/// Compares runs.
///
/// # Errors
/// If a file of one is there and cannot be read.
pub fn compare(runs: &[Run]) -> Result<Comparison, RunError> {
    let overviews = runs.iter().map(Run::overview).collect::<Result<Vec<_>, _>>()?;
    let recipes = runs.iter().map(|r| Ok(flat(&r.recipe()?))).collect::<Result<Vec<_>, RunError>>()?;
    let mut locks = runs.iter().map(Run::lock).collect::<Result<Vec<_>, _>>()?;
    for lock in locks.iter_mut().filter_map(Value::as_object_mut) {
        // The recipe stands above, and what is only recorded decides nothing.
        lock.remove("recipe");
        lock.remove("recorded");
    }
    let locks: Vec<_> = locks.iter().map(flat).collect();
    let evaluations: Vec<BTreeMap<String, Value>> = overviews
        .iter()
        .map(|o| o.evaluations.iter().flat_map(|(name, m)| m.iter().map(move |(k, v)| (format!("{name}/{k}"), Value::from(*v)))).collect())
        .collect();
    let all = |tables: &[BTreeMap<String, Value>]| side_by_side(tables);
    let differing = |tables: &[BTreeMap<String, Value>]| {
        let mut rows = all(tables);
        rows.retain(|row| row.values.iter().any(|v| Some(v) != row.values.first()));
        rows
    };
    let losses = runs.iter().map(Run::metrics).collect::<Result<Vec<_>, _>>()?;
    let first_different_step = losses.first().and_then(|first| {
        let differs = |i: usize, loss: u64| losses.iter().any(|l| l.get(i).is_some_and(|m| m.loss.to_bits() != loss));
        first.iter().enumerate().find(|(i, m)| differs(*i, m.loss.to_bits())).map(|(_, m)| m.step)
    });
    Ok(Comparison {
        runs: overviews,
        recipe: differing(&recipes),
        lock: differing(&locks),
        evaluations: all(&evaluations),
        first_different_step,
    })
}

fn side_by_side(tables: &[BTreeMap<String, Value>]) -> Vec<Difference> {
    let keys: BTreeSet<&String> = tables.iter().flat_map(BTreeMap::keys).collect();
    let row =
        |key: &String| Difference { key: key.clone(), values: tables.iter().map(|t| t.get(key).cloned().unwrap_or_default()).collect() };
    keys.into_iter().map(row).collect()
}

/// Leaves by dotted key. Entries of lists that have a `name` go by it, so that a source that was added in front does not change all others.
pub fn flat(value: &Value) -> BTreeMap<String, Value> {
    let mut out = BTreeMap::new();
    flatten("", value, &mut out);
    out
}

fn flatten(key: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    let join = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) if !map.is_empty() => map.iter().for_each(|(name, value)| flatten(&join(name), value, out)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (i, item) in items.iter().enumerate() {
                let name = item.get("name").and_then(Value::as_str).map_or_else(|| i.to_string(), str::to_owned);
                flatten(&join(&name), item, out);
            }
        }
        other => drop(out.insert(key.to_owned(), other.clone())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_are_compared_by_key_and_sources_by_name() {
        let a = flat(&json!({"train": {"lr": 1, "seed": 2}, "sources": [{"name": "m", "path": "x"}], "list": [1, 2]}));
        let b = flat(&json!({"train": {"lr": 1}, "sources": [{"name": "new", "path": "y"}, {"name": "m", "path": "z"}], "list": [1, 2]}));
        let rows: Vec<_> = side_by_side(&[a, b]).into_iter().filter(|r| r.values[0] != r.values[1]).map(|r| r.key).collect();
        assert_eq!(rows, ["sources.m.path", "sources.new.name", "sources.new.path", "train.seed"]);
    }
}
