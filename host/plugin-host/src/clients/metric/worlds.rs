//! The versions of `eval-metric`: what each exports, and how the older one is adapted to the newest.

use wasmtime::Store;

use crate::bindings::metric::Plugin as World2;
use crate::bindings::metric::exports::trainer::eval_metric::metric as v2;
use crate::bindings::metric_0_1::Plugin as World1;
use crate::bindings::metric_0_1::exports::trainer::eval_metric::metric as v1;
use crate::call::State;
use crate::instance::{Configure, bindings};
use crate::kind::Kind;

/// The exports' names for errors.
pub(super) struct Exports {
    pub(super) scoring_version: &'static str,
    pub(super) prepare: &'static str,
    pub(super) score: &'static str,
    pub(super) aggregate: &'static str,
}

macro_rules! exports {
    ($interface:literal) => {
        Exports {
            scoring_version: concat!($interface, "#scoring-version"),
            prepare: concat!($interface, "#prepare"),
            score: concat!($interface, "#score"),
            aggregate: concat!($interface, "#aggregate"),
        }
    };
}

/// One version's world, called with the newest version's values.
pub(super) trait World: Configure {
    const EXPORTS: Exports;

    fn scoring_version(&self, store: &mut Store<State>) -> wasmtime::Result<String>;
    fn prepare(&self, store: &mut Store<State>, rows: &[String]) -> wasmtime::Result<Vec<v2::Plan>>;
    fn score(&self, store: &mut Store<State>, items: &[v2::Item]) -> wasmtime::Result<Vec<Vec<v2::SampleScore>>>;
    fn aggregate(&self, store: &mut Store<State>, samples: &[Vec<v2::SampleScore>]) -> wasmtime::Result<Result<Vec<v2::Summary>, String>>;
}

bindings!(metric, Kind::EvalMetric);
bindings!(metric_0_1, Kind::EvalMetric);

impl Configure for World2 {
    const CONFIGURE: &'static str = "trainer:eval-metric/metric@0.2.0#configure";

    fn configure(&self, store: &mut Store<State>, settings: &str) -> wasmtime::Result<Result<(), String>> {
        self.trainer_eval_metric_metric().call_configure(store, &settings.to_owned())
    }
}

impl World for World2 {
    const EXPORTS: Exports = exports!("trainer:eval-metric/metric@0.2.0");

    fn scoring_version(&self, store: &mut Store<State>) -> wasmtime::Result<String> {
        self.trainer_eval_metric_metric().call_scoring_version(store)
    }

    fn prepare(&self, store: &mut Store<State>, rows: &[String]) -> wasmtime::Result<Vec<v2::Plan>> {
        self.trainer_eval_metric_metric().call_prepare(store, rows)
    }

    fn score(&self, store: &mut Store<State>, items: &[v2::Item]) -> wasmtime::Result<Vec<Vec<v2::SampleScore>>> {
        self.trainer_eval_metric_metric().call_score(store, items)
    }

    fn aggregate(&self, store: &mut Store<State>, samples: &[Vec<v2::SampleScore>]) -> wasmtime::Result<Result<Vec<v2::Summary>, String>> {
        self.trainer_eval_metric_metric().call_aggregate(store, samples)
    }
}

impl Configure for World1 {
    const CONFIGURE: &'static str = "trainer:eval-metric/metric@0.1.0#configure";

    fn configure(&self, store: &mut Store<State>, settings: &str) -> wasmtime::Result<Result<(), String>> {
        self.trainer_eval_metric_metric().call_configure(store, &settings.to_owned())
    }
}

impl World for World1 {
    const EXPORTS: Exports = exports!("trainer:eval-metric/metric@0.1.0");

    fn scoring_version(&self, store: &mut Store<State>) -> wasmtime::Result<String> {
        self.trainer_eval_metric_metric().call_scoring_version(store)
    }

    fn prepare(&self, store: &mut Store<State>, rows: &[String]) -> wasmtime::Result<Vec<v2::Plan>> {
        Ok(self.trainer_eval_metric_metric().call_prepare(store, rows)?.into_iter().map(plan).collect())
    }

    fn score(&self, store: &mut Store<State>, items: &[v2::Item]) -> wasmtime::Result<Vec<Vec<v2::SampleScore>>> {
        let items: Vec<v1::Item> = items.iter().map(old_item).collect();
        let scores = self.trainer_eval_metric_metric().call_score(store, &items)?;
        Ok(scores.into_iter().map(|sample| sample.into_iter().map(score).collect()).collect())
    }

    fn aggregate(&self, store: &mut Store<State>, samples: &[Vec<v2::SampleScore>]) -> wasmtime::Result<Result<Vec<v2::Summary>, String>> {
        let samples: Vec<Vec<v1::SampleScore>> = samples.iter().map(|sample| sample.iter().map(old_score).collect()).collect();
        let summaries = self.trainer_eval_metric_metric().call_aggregate(store, &samples)?;
        Ok(summaries.map(|all| all.into_iter().map(summary).collect()))
    }
}

// From 0.1.0.

fn plan(old: v1::Plan) -> v2::Plan {
    match old {
        v1::Plan::Ask(v1::Request::Generate(g)) => v2::Plan::Ask(v2::Request::Generate(v2::Generation {
            conversation: g.conversation,
            enable_thinking: g.enable_thinking,
            repeats: g.repeats,
            max_new_tokens: g.max_new_tokens,
            stop: g.stop,
        })),
        v1::Plan::Ask(v1::Request::LogLikelihood(l)) => {
            v2::Plan::Ask(v2::Request::LogLikelihood(v2::Likelihood { conversation: l.conversation, continuations: l.continuations }))
        }
        v1::Plan::Skip(words) => v2::Plan::Skip(words),
        v1::Plan::Bad(bad) => v2::Plan::Bad(bad),
    }
}

fn score(old: v1::SampleScore) -> v2::SampleScore {
    let value = match old.value {
        v1::Value::Number(number) => v2::Value::Number(number),
        v1::Value::Boolean(boolean) => v2::Value::Boolean(boolean),
        v1::Value::Text(text) => v2::Value::Text(text),
        v1::Value::Unscored => v2::Value::Unscored,
    };
    v2::SampleScore { name: old.name, value, explanation: old.explanation }
}

fn summary(old: v1::Summary) -> v2::Summary {
    v2::Summary { name: old.name, value: old.value, stderr: old.stderr, higher_is_better: old.higher_is_better, samples: None }
}

// To 0.1.0, which does not know how many tokens an answer has.

fn old_item(new: &v2::Item) -> v1::Item {
    let response = match &new.response {
        v2::Response::Answers(answers) => v1::Response::Answers(answers.iter().map(old_answer).collect()),
        v2::Response::LogLikelihoods(values) => v1::Response::LogLikelihoods(values.clone()),
        v2::Response::Failed(words) => v1::Response::Failed(words.clone()),
    };
    v1::Item { row: new.row.clone(), response }
}

fn old_answer(new: &v2::Answer) -> v1::Answer {
    v1::Answer {
        raw: new.raw.clone(),
        text: new.text.clone(),
        reasoning: new.reasoning.clone(),
        calls: new.calls.iter().map(|c| v1::Call { name: c.name.clone(), arguments: c.arguments.clone() }).collect(),
        malformed: new.malformed.clone(),
        finish: match new.finish {
            v2::Finish::Stop => v1::Finish::Stop,
            v2::Finish::Length => v1::Finish::Length,
            v2::Finish::Limit => v1::Finish::Limit,
        },
    }
}

fn old_score(new: &v2::SampleScore) -> v1::SampleScore {
    let value = match &new.value {
        v2::Value::Number(number) => v1::Value::Number(*number),
        v2::Value::Boolean(boolean) => v1::Value::Boolean(*boolean),
        v2::Value::Text(text) => v1::Value::Text(text.clone()),
        v2::Value::Unscored => v1::Value::Unscored,
    };
    v1::SampleScore { name: new.name.clone(), value, explanation: new.explanation.clone() }
}
