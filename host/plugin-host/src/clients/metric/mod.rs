//! Kind `eval-metric`, in every version of its interface that this host knows.

mod worlds;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value as Json;

use crate::bindings::metric::Plugin as World2;
use crate::bindings::metric::exports::trainer::eval_metric::metric::{
    Item, Plan, Request, Response, SampleScore as Score, Summary as Aggregate, Value,
};
use crate::bindings::metric_0_1::Plugin as World1;
use crate::call::{Load, place};
use crate::check::{Check, Path};
use crate::error::PluginError;
use crate::host::Plugin;
use crate::instance::{Pool, bounded};
use crate::kind::Kind;
use worlds::World;

/// A metric under its settings. Made by [`Plugin::metric`]; shared between threads.
///
/// It speaks the newest version of the interface; a plugin of an older one is not given what that cannot say, and leaves out what it cannot.
pub struct Metric {
    pool: Versions,
}

/// Instances under the version of the interface that the component exports.
enum Versions {
    V1(Pool<World1>),
    V2(Pool<World2>),
}

/// Does the same with the instances of any version.
macro_rules! with {
    ($metric:expr, $pool:ident => $run:expr) => {
        match &$metric.pool {
            Versions::V1($pool) => $run,
            Versions::V2($pool) => $run,
        }
    };
}

impl Plugin {
    /// This plugin as an evaluation metric, in the newest version of the interface that it exports.
    ///
    /// # Errors
    /// If it is none, the settings do not fit its schema, or it refuses them.
    pub fn metric(self: &Arc<Self>, settings: &Json) -> Result<Metric, PluginError> {
        let pool = match self.version_of(Kind::EvalMetric)? {
            "0.1.0" => Versions::V1(Pool::new(self, settings)?),
            _ => Versions::V2(Pool::new(self, settings)?),
        };
        Ok(Metric { pool })
    }
}

impl Metric {
    /// The version of the scoring: two reports compare only if it is equal.
    ///
    /// # Errors
    /// If the plugin traps, runs into a limit or returns a bad value.
    pub fn scoring_version(&self) -> Result<String, PluginError> {
        with!(self, pool => scoring_version(pool))
    }

    /// What to ask of the model for each row. One plan per row, in order; an error is that row's own.
    ///
    /// # Errors
    /// Only what stops a run: a deadline, or an instance that cannot be made.
    pub fn prepare(&self, rows: &[String]) -> Result<Vec<Result<Plan, PluginError>>, PluginError> {
        with!(self, pool => prepare(pool, rows))
    }

    /// The scores of each item, in order; an error is that item's own.
    ///
    /// # Errors
    /// Only what stops a run: a deadline, or an instance that cannot be made.
    pub fn score(&self, items: &[Item]) -> Result<Vec<Result<Vec<Score>, PluginError>>, PluginError> {
        with!(self, pool => score(pool, items))
    }

    /// Sums up the scores of all samples, given in the order of the rows.
    ///
    /// # Errors
    /// If the plugin fails or refuses, or gives values that are not finite, names that are not unique or counts that cannot be.
    pub fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, PluginError> {
        with!(self, pool => aggregate(pool, samples))
    }

    /// The plugin.
    pub fn plugin(&self) -> &Arc<Plugin> {
        with!(self, pool => pool.plugin())
    }
}

fn scoring_version<W: World>(pool: &Pool<W>) -> Result<String, PluginError> {
    let export = W::EXPORTS.scoring_version;
    let version = pool.with_retry(|guest| guest.call(export, Load::default(), |b, s| b.scoring_version(s)))?;
    if version.is_empty() || version.len() > 256 {
        let at = place(pool.plugin().manifest(), export);
        let message = format!("a version has 1 to 256 bytes, not {}", version.len());
        return Err(PluginError::BadValue { at, field: "its result".to_owned(), message });
    }
    Ok(version)
}

fn prepare<W: World>(pool: &Pool<W>, rows: &[String]) -> Result<Vec<Result<Plan, PluginError>>, PluginError> {
    let export = W::EXPORTS.prepare;
    let at = place(pool.plugin().manifest(), export);
    let check = Check { at: &at, limits: pool.plugin().limits() };
    let root = Path::Root("plans");
    pool.isolated(rows, |guest, rows| {
        let load = Load { rows: rows.len(), bytes: rows.iter().map(String::len).sum() };
        let plans = guest.call(export, load, |b, s| b.prepare(s, rows))?;
        check.count(root, plans.len(), rows.len())?;
        for (i, plan) in plans.iter().enumerate() {
            self::plan(&check, root.index(i), plan)?;
        }
        Ok(plans)
    })
}

fn score<W: World>(pool: &Pool<W>, items: &[Item]) -> Result<Vec<Result<Vec<Score>, PluginError>>, PluginError> {
    let export = W::EXPORTS.score;
    let at = place(pool.plugin().manifest(), export);
    let check = Check { at: &at, limits: pool.plugin().limits() };
    let root = Path::Root("scores");
    pool.isolated(items, |guest, items| {
        let load = Load { rows: items.len(), bytes: items.iter().map(size).sum() };
        let scores = guest.call(export, load, |b, s| b.score(s, items))?;
        check.count(root, scores.len(), items.len())?;
        for (i, sample) in scores.iter().enumerate() {
            let path = root.index(i);
            check.list(path, sample.len())?;
            let mut names = HashSet::new();
            for (j, score) in sample.iter().enumerate() {
                let path = path.index(j);
                check.string(path.field("explanation"), &score.explanation)?;
                name(&check, path.field("name"), &score.name, &mut names)?;
                match &score.value {
                    Value::Number(number) => check.finite(path.field("value"), *number)?,
                    Value::Text(text) => check.string(path.field("value"), text)?,
                    Value::Boolean(_) | Value::Unscored => {}
                }
            }
        }
        Ok(scores)
    })
}

fn aggregate<W: World>(pool: &Pool<W>, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, PluginError> {
    let export = W::EXPORTS.aggregate;
    let bytes = samples.iter().flatten().map(|s| s.name.len() + s.explanation.len()).sum();
    let load = Load { rows: samples.len(), bytes };
    let at = place(pool.plugin().manifest(), export);
    let aggregates = pool
        .with_retry(|guest| guest.call(export, load, |b, s| b.aggregate(s, samples)))?
        .map_err(|words| PluginError::Refused { at: Arc::clone(&at), message: bounded(&words) })?;
    let check = Check { at: &at, limits: pool.plugin().limits() };
    let root = Path::Root("aggregates");
    check.list(root, aggregates.len())?;
    let mut names = HashSet::new();
    for (i, aggregate) in aggregates.iter().enumerate() {
        let path = root.index(i);
        name(&check, path.field("name"), &aggregate.name, &mut names)?;
        check.finite(path.field("value"), aggregate.value)?;
        if let Some(stderr) = aggregate.stderr {
            check.finite(path.field("stderr"), stderr)?;
            if stderr < 0.0 {
                return Err(check.bad(path.field("stderr"), format!("{stderr} is negative")));
            }
        }
        if let Some(count) = aggregate.samples.filter(|n| *n > samples.len() as u64) {
            return Err(check.bad(path.field("samples"), format!("{count} are more than the {} samples given", samples.len())));
        }
    }
    Ok(aggregates)
}

/// Names become keys of a report: short, printable and unique.
fn name<'a>(check: &Check<'_>, path: Path<'_>, name: &'a str, names: &mut HashSet<&'a str>) -> Result<(), PluginError> {
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) {
        return Err(check.bad(path, format!("{:?} is no name; it has 1 to 128 bytes and no control characters", bounded(name))));
    }
    if !names.insert(name) {
        return Err(check.bad(path, format!("the name `{name}` is given twice")));
    }
    Ok(())
}

fn plan(check: &Check<'_>, path: Path<'_>, plan: &Plan) -> Result<(), PluginError> {
    match plan {
        Plan::Ask(Request::Generate(generation)) => {
            check.conversation(path.field("conversation"), &generation.conversation)?;
            if generation.repeats == 0 {
                return Err(check.bad(path.field("repeats"), "at least one answer has to be drawn"));
            }
            if generation.max_new_tokens == Some(0) {
                return Err(check.bad(path.field("max-new-tokens"), "an answer of no tokens cannot be asked for"));
            }
            let stop = path.field("stop");
            check.list(stop, generation.stop.len())?;
            for (i, text) in generation.stop.iter().enumerate() {
                check.string(stop.index(i), text)?;
                if text.is_empty() {
                    return Err(check.bad(stop.index(i), "a stop string is not empty"));
                }
            }
        }
        Plan::Ask(Request::LogLikelihood(likelihood)) => {
            check.conversation(path.field("conversation"), &likelihood.conversation)?;
            let continuations = path.field("continuations");
            check.list(continuations, likelihood.continuations.len())?;
            for (i, text) in likelihood.continuations.iter().enumerate() {
                check.string(continuations.index(i), text)?;
            }
        }
        Plan::Skip(words) => check.string(path, words)?,
        Plan::Bad((pointer, message)) => {
            check.pointer(path.field("pointer"), pointer)?;
            check.string(path, message)?;
        }
    }
    Ok(())
}

/// Bytes of text in an item, for the fuel of scoring it.
fn size(item: &Item) -> usize {
    let response = match &item.response {
        Response::Answers(answers) => answers.iter().map(|a| a.raw.len() + a.text.len() + a.reasoning.len()).sum(),
        Response::LogLikelihoods(values) => values.len() * 16,
        Response::Failed(words) => words.len(),
    };
    item.row.len() + response
}
