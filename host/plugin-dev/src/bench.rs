//! `trainer plugin bench`: what a plugin costs, under all limits and on one thread.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use trainer_plugin_host::{CompilerCommand, HostOptions, Kind, Limits, Plugin, PluginHost, PluginSource};

use crate::Error;
use crate::fixtures::Fixture;
use crate::properties::is_about;

/// How many items go into a call, as in training.
const BATCH: usize = 64;

/// What was measured. Times in milliseconds or microseconds as their names say; medians where a thing was done several times.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The plugin.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Bytes of the component.
    pub size: u64,
    /// Compiling it, in a process of its own.
    pub cold_ms: f64,
    /// A new host, and the component from the cache of compiled code.
    pub cached_ms: f64,
    /// Per kind.
    pub kinds: Vec<KindFigures>,
}

/// What one kind costs.
#[derive(Debug, Clone, Serialize)]
pub struct KindFigures {
    /// The kind.
    pub kind: Kind,
    /// A new instance, configured if the kind is.
    pub instance_us: f64,
    /// Linear memory of an instance after the calls, in bytes.
    pub instance_memory: u64,
    /// The functions that the fixtures call.
    pub calls: Vec<CallFigures>,
}

/// What calls of one function cost.
#[derive(Debug, Clone, Serialize)]
pub struct CallFigures {
    /// The function.
    pub call: String,
    /// Whether it was called by name, as `trainer plugin run` calls: its arguments and results are converted from and to values of any type, which takes
    /// longer than the typed calls of a run.
    pub by_name: bool,
    /// One item per call: a call's overhead and an item's work.
    pub single_us: f64,
    /// Items in a large call.
    pub batch: usize,
    /// Items per second in large calls.
    pub per_second: f64,
    /// Bytes of JSON in an item, on average.
    pub item_bytes: f64,
}

/// Measures the plugin with this digest with the inputs of fixtures. `span` is how long each function is called.
///
/// # Errors
/// If the plugin does not load, is another one, or fails on an input.
pub fn bench(
    source: &PluginSource,
    digest: &str,
    compiler: &CompilerCommand,
    fixtures: &[Fixture],
    cache: &Path,
    span: Duration,
) -> Result<Figures, Error> {
    let host = || PluginHost::new(HostOptions { cache_dir: Some(cache.to_owned()), ..HostOptions::new(compiler.clone()) });
    let load = || {
        let plugin = host()?.load(source, Limits::default())?;
        // A file is read each time.
        if plugin.digest() != digest {
            return Err(Error::Argument(format!("plugin `{}` changed while it was measured; try again", plugin.name())));
        }
        Ok(plugin)
    };
    let started = Instant::now();
    load()?;
    let cold = started.elapsed();
    let cached = median(9, || load().map(drop))?;
    let plugin = load()?;
    let mut kinds = Vec::new();
    for kind in plugin.kinds() {
        kinds.push(kind_figures(&plugin, kind.kind, fixtures, span)?);
    }
    Ok(Figures {
        name: plugin.name().to_owned(),
        version: plugin.version().to_owned(),
        size: plugin.size(),
        cold_ms: cold.as_secs_f64() * 1e3,
        cached_ms: cached.as_secs_f64() * 1e3,
        kinds,
    })
}

fn kind_figures(plugin: &Arc<Plugin>, kind: Kind, fixtures: &[Fixture], span: Duration) -> Result<KindFigures, Error> {
    let inputs = inputs(plugin, kind, fixtures);
    let settings = inputs.first().map_or_else(|| serde_json::json!({}), |(settings, ..)| settings.clone());
    let mut caller = plugin.caller(kind, &settings)?;
    let instance = median(50, || {
        plugin.caller(kind, &settings)?.start()?;
        Ok(())
    })?;
    caller.start()?;
    let mut calls: Vec<CallFigures> = Vec::new();
    for (settings, function, items) in &inputs {
        if calls.iter().any(|c| c.call == *function) {
            continue;
        }
        let take = |n: usize| items.iter().cycle().take(n).cloned().collect::<Vec<Value>>();
        // Rows go through the client that training uses; other items through calls by name, which convert results a little slower.
        let by_name = !matches!((kind, function.as_str()), (Kind::DatasetFormatter, "format") | (Kind::EvalMetric, "prepare"));
        let mut timed = |n: usize, span: Duration| match (kind, function.as_str()) {
            (Kind::DatasetFormatter, "format") => {
                let (formatter, rows) = (plugin.formatter(settings)?, texts(&take(n)));
                repeat(span, || Ok(formatter.format(&rows).map(|_| ())?))
            }
            (Kind::EvalMetric, "prepare") => {
                let (metric, rows) = (plugin.metric(settings)?, texts(&take(n)));
                repeat(span, || Ok(metric.prepare(&rows).map(|_| ())?))
            }
            _ => {
                let call = caller.prepare_call(function, &[Value::Array(take(n))])?;
                repeat(span, || Ok(caller.call_prepared(&call)?))
            }
        };
        let bytes: usize = texts(items).iter().map(String::len).sum();
        calls.push(CallFigures {
            call: function.clone(),
            by_name,
            single_us: timed(1, span / 2)?.as_secs_f64() * 1e6,
            batch: BATCH,
            per_second: BATCH as f64 / timed(BATCH, span)?.as_secs_f64(),
            item_bytes: bytes as f64 / items.len() as f64,
        });
        let warm = caller.prepare_call(function, &[Value::Array(take(BATCH))])?;
        caller.call_prepared(&warm)?;
    }
    Ok(KindFigures { kind, instance_us: instance.as_secs_f64() * 1e6, instance_memory: caller.memory(), calls })
}

/// Rows as the text that they travel as.
fn texts(items: &[Value]) -> Vec<String> {
    items.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect()
}

/// Functions that take a list of items, with items and the settings of their case. Methods need a handle and are left out.
fn inputs(plugin: &Arc<Plugin>, kind: Kind, fixtures: &[Fixture]) -> Vec<(Value, String, Vec<Value>)> {
    let mut found: Vec<(Value, String, Vec<Value>)> = Vec::new();
    let Ok(caller) = plugin.caller(kind, &serde_json::json!({})) else { return found };
    for fixture in fixtures.iter().filter(|f| is_about(plugin, kind, f)) {
        for step in fixture.calls.iter().filter(|s| s.error.is_none()) {
            let fits = caller.function(&step.call).is_ok_and(|f| f.takes_rows && f.params.len() == 1 && !f.is_method());
            let Some(items) = step.args.first().and_then(Value::as_array).filter(|items| fits && !items.is_empty()) else { continue };
            match found.iter_mut().find(|(settings, call, _)| *call == step.call && *settings == fixture.settings) {
                Some((.., all)) => all.extend(items.iter().cloned()),
                None => found.push((fixture.settings.clone(), step.call.clone(), items.clone())),
            }
        }
    }
    found
}

/// The mean time of a call, repeated for a span.
fn repeat(span: Duration, mut run: impl FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
    // The first calls fill caches and the guest's heap.
    for _ in 0..3 {
        run()?;
    }
    let started = Instant::now();
    let mut times = 0u32;
    while times == 0 || (started.elapsed() < span && times < u32::MAX) {
        run()?;
        times += 1;
    }
    Ok(started.elapsed() / times)
}

fn median(times: usize, mut run: impl FnMut() -> Result<(), Error>) -> Result<Duration, Error> {
    let mut spans = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        run()?;
        spans.push(started.elapsed());
    }
    spans.sort();
    Ok(spans.get(times / 2).copied().unwrap_or_default())
}
