//! Reading what a run writes, a bounded piece at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use trainer_runs::records::{EvalMetrics, SampleAnswer, StepMetrics, StepTimings};
use trainer_runs::{Run, RunError, Tail};

use crate::sink::{About, Item, Load, SinkError};
use crate::state::State;

/// At most so many items are delivered at once.
const BATCH: usize = 500;

/// What a tracker has not been given yet.
pub struct Follower {
    run: Run,
    steps: u64,
    metrics: Tail<StepMetrics>,
    timings: Tail<StepTimings>,
    samples: Tail<SampleAnswer>,
    evals: Tail<EvalMetrics>,
    read_metrics: VecDeque<StepMetrics>,
    read_timings: VecDeque<StepTimings>,
    read_evals: VecDeque<EvalMetrics>,
    /// The last step that was passed on.
    passed: u64,
}

impl Follower {
    /// Of a run from its beginning. `steps`: how many it is to have.
    pub fn new(run: Run, steps: u64) -> Self {
        Self {
            metrics: Tail::new(&run.file("metrics.jsonl")),
            timings: Tail::new(&run.file("timings.jsonl")),
            samples: Tail::new(&run.file("samples.jsonl")),
            evals: Tail::new(&run.file("evals.jsonl")),
            run,
            steps,
            read_metrics: VecDeque::new(),
            read_timings: VecDeque::new(),
            read_evals: VecDeque::new(),
            passed: 0,
        }
    }

    /// Goes back to the beginning.
    pub fn rewind(&mut self) {
        *self = Self::new(self.run.clone(), self.steps);
    }

    /// The next items that `state` does not have, in the order of the run; none if there are none now. `ended`: nothing will follow, so a step
    /// does not wait for its times.
    pub fn next(&mut self, state: &State, ended: bool) -> Result<Vec<Item>, SinkError> {
        let reports = self.run.evaluations();
        let mut items = Vec::new();
        items.extend(self.evaluation("before", 0, &reports).filter(|item| !state.has(item)));
        loop {
            let steps = self.steps(ended, BATCH.saturating_sub(items.len()))?;
            let read = !steps.is_empty();
            items.extend(steps.into_iter().filter(|item| !state.has(item)));
            // Steps that were delivered already are passed over to the first that was not.
            if !read || items.len() >= BATCH {
                break;
            }
        }
        if items.len() < BATCH {
            let samples = self.samples.read().map_err(SinkError::file("read", &self.run.file("samples.jsonl")))?;
            let at = now();
            let samples = samples.into_iter().map(|s| Item::Sample { step: s.step, at, prompt: s.prompt, text: s.text });
            items.extend(samples.filter(|item| !state.has(item)));
            items.extend(self.evaluation("after", self.ended_at(), &reports).filter(|item| !state.has(item)));
        }
        Ok(items)
    }

    fn steps(&mut self, ended: bool, most: usize) -> Result<Vec<Item>, SinkError> {
        let refused = |name: &str, run: &Run| SinkError::file("read", &run.file(name));
        if self.read_metrics.is_empty() {
            self.read_metrics.extend(self.metrics.read().map_err(refused("metrics.jsonl", &self.run))?);
        }
        // After the metrics: what was measured before the last step that was read is there then, and can be passed on in its place.
        loop {
            let more = self.evals.read().map_err(refused("evals.jsonl", &self.run))?;
            if more.is_empty() {
                break;
            }
            self.read_evals.extend(more);
        }
        let mut items = Vec::new();
        self.evals_so_far(&mut items);
        while items.len() < most {
            let Some(step) = self.read_metrics.front().map(|m| m.step) else { break };
            while self.read_timings.front().is_some_and(|t| t.step < step) {
                self.read_timings.pop_front();
            }
            if self.read_timings.is_empty() {
                let more = self.timings.read().map_err(refused("timings.jsonl", &self.run))?;
                if !more.is_empty() {
                    self.read_timings.extend(more);
                    continue;
                }
                // The times come right after the metrics.
                if !ended {
                    break;
                }
            }
            let timings = self.read_timings.front().filter(|t| t.step == step).cloned();
            items.extend(self.read_metrics.pop_front().map(|m| step_item(&m, timings.as_ref())));
            self.passed = step;
            self.evals_so_far(&mut items);
        }
        Ok(items)
    }

    /// The evaluations that stand at or before the last step that was passed on.
    fn evals_so_far(&mut self, items: &mut Vec<Item>) {
        while let Some(e) = self.read_evals.pop_front_if(|e| e.step <= self.passed) {
            let name = EvalMetrics::report_name(e.step);
            items.push(Item::Evaluation { at: self.written(&name), name, step: e.step, values: eval_values(&e.metrics) });
        }
    }

    fn evaluation(&self, name: &str, step: u64, reports: &[trainer_runs::Evaluation]) -> impl Iterator<Item = Item> + use<> {
        let at = self.written(name);
        let report = reports.iter().find(|r| r.name == name).map(|r| Item::Evaluation {
            name: name.to_owned(),
            step,
            at,
            values: eval_values(&r.metrics),
        });
        report.into_iter()
    }

    /// When a report was written: its own time, so that what is delivered twice is the same twice.
    fn written(&self, report: &str) -> f64 {
        let written = std::fs::metadata(self.run.file("eval").join(format!("{report}.json"))).and_then(|m| m.modified()).ok();
        written.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or_else(now, |d| d.as_secs_f64())
    }

    /// The step after which training was over: the last one, or the one at which early stopping ended it.
    fn ended_at(&self) -> u64 {
        let early = self.run.evals().ok().and_then(|evals| evals.last().filter(|e| e.stopped.is_some()).map(|e| e.step));
        early.unwrap_or(self.steps)
    }
}

/// The numbers of an evaluation under the trackers' names.
fn eval_values(metrics: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    metrics.iter().map(|(metric, value)| (format!("eval/{}", label(metric)), *value)).collect()
}

/// A step under the names that people know from other trainers.
fn step_item(m: &StepMetrics, t: Option<&StepTimings>) -> Item {
    let mut values = vec![
        ("train/loss".to_owned(), m.loss),
        ("train/learning_rate".to_owned(), m.lr),
        ("train/grad_norm".to_owned(), m.grad_norm),
        ("train/tokens".to_owned(), m.tokens as f64),
        ("train/target_weight".to_owned(), m.target_weight),
    ];
    for s in &m.sources {
        values.push((format!("loss/{}", label(&s.name)), s.loss));
        values.push((format!("mix/{}", label(&s.name)), s.samples as f64));
    }
    if let Some(t) = t {
        values.push(("perf/tokens_per_second".to_owned(), t.tokens_per_second));
        values.push(("perf/step_seconds".to_owned(), t.seconds));
        values.push(("perf/data_wait_share".to_owned(), if t.seconds > 0.0 { t.data_wait_seconds / t.seconds } else { 0.0 }));
        values.extend(t.memory.map(|m| ("perf/memory_gib".to_owned(), m as f64 / (1u64 << 30) as f64)));
    }
    let load = t.map_or_else(Load::default, |t| Load {
        memory: t.memory,
        gpu: t.gpu_load,
        gpu_memory: t.gpu_memory,
        gpu_memory_total: t.gpu_memory_total,
    });
    Item::Step { step: m.step, at: t.and_then(|t| t.ended).unwrap_or_else(now), values, load }
}

/// A name with the characters that every tracker takes in a metric's name.
pub fn label(name: &str) -> String {
    let kept = |c: char| if c.is_ascii_alphanumeric() || "_-./ ".contains(c) { c } else { '_' };
    name.chars().map(kept).take(200).collect()
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// What a run is.
pub fn about(run: &Run) -> Result<About, RunError> {
    let recipe = run.recipe()?;
    let lock = run.lock()?;
    let mut facts = BTreeMap::new();
    for (name, place) in [
        ("trainer.version", "/trainer"),
        ("trainer.backend", "/machine/backend"),
        ("trainer.device", "/recorded/device"),
        ("trainer.model", "/recorded/model"),
        ("trainer.model_digest", "/model/digest"),
    ] {
        if let Some(text) = lock.pointer(place).and_then(Value::as_str) {
            facts.insert(name.to_owned(), text.to_owned());
        }
    }
    let text = |name: &str| {
        let path = run.file(name);
        std::fs::read_to_string(&path).map_err(|source| RunError::Read { path, source })
    };
    let mut settings = BTreeMap::new();
    flatten("", &recipe, &mut settings);
    let began = std::fs::metadata(run.file("lock.json")).and_then(|m| m.modified()).ok();
    let began = began.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or_else(now, |d| d.as_secs_f64());
    Ok(About { settings, recipe, recipe_text: text("recipe.toml")?, lock_text: text("lock.json")?, facts, began })
}

/// Settings by dotted key; lists of tables by index, other lists as they are.
fn flatten(key: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    let join = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(name, value)| flatten(&join(name), value, out)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(i, item)| flatten(&join(&i.to_string()), item, out));
        }
        other => drop(out.insert(key.to_owned(), other.clone())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn evaluations_stand_behind_their_steps() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (name, text) in [("recipe.toml", ""), ("lock.json", "{}")] {
            std::fs::write(root.join(name), text).unwrap();
        }
        let metric =
            |step: u64| json!({ "step": step, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "tokens": 1, "target_weight": 1.0, "sources": [] });
        let timing = |step: u64| json!({ "step": step, "seconds": 1.0, "tokens_per_second": 1.0, "data_wait_seconds": 0.0 });
        let eval = |step: u64| json!({ "step": step, "metrics": { "m/acc": step }, "adapter": "" });
        let write = |name: &str, lines: Vec<Value>| {
            std::fs::write(root.join(name), lines.iter().map(|l| format!("{l}\n")).collect::<String>()).unwrap();
        };
        write("metrics.jsonl", (1..=1200).map(metric).collect());
        write("timings.jsonl", (1..=1200).map(timing).collect());
        write("evals.jsonl", [3, 700, 1200, 1201].map(eval).to_vec());
        let mut follower = Follower::new(Run::open(root).unwrap(), 1201);
        let mut state = State::default();
        let mut steps = Vec::new();
        loop {
            let items = follower.next(&state, false).unwrap();
            if items.is_empty() {
                break;
            }
            assert!(items.len() <= BATCH + 1);
            state.delivered(&items);
            steps.extend(items.iter().map(|item| match item {
                Item::Step { step, .. } => (*step, false),
                Item::Evaluation { step, .. } | Item::Sample { step, .. } => (*step, true),
            }));
        }
        let mut expected: Vec<(u64, bool)> = (1..=1200).map(|s| (s, false)).chain([3, 700, 1200].map(|s| (s, true))).collect();
        expected.sort_unstable();
        assert_eq!(steps, expected, "what has not been trained yet waits");
        assert!(follower.next(&state, false).unwrap().is_empty());
    }
}
