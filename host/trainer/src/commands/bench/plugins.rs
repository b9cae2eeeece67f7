//! What the sandbox costs: compiling, starting, calling, and rows through formatter and template, beside the same code linked natively.

use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use serde_json::json;
use trainer_plugin_host::types::Conversation;
use trainer_plugin_host::{HostOptions, Limits, PluginHost, RowOutcome};
use trainer_runtime::{compiler_command, find_plugin};

use super::data::longer_rows;
use super::figure::{Figure, Target, rates, scaled, seconds};

/// Rows that go to a plugin at once.
const BATCH: usize = 64;

/// All of it, on one thread with all limits on, with rows that think `times` times as long as the embedded ones.
pub fn measure(times: u16) -> Result<Vec<Figure>> {
    let (math, chat) = (find_plugin("math_mix")?.source(), find_plugin("qwen3_chat")?.source());
    let host = |cache: &std::path::Path| -> Result<PluginHost> {
        Ok(PluginHost::new(HostOptions { cache_dir: Some(cache.join("plugins")), ..HostOptions::new(compiler_command()?) })?)
    };
    let mut cold = Vec::new();
    for _ in 0..3 {
        let cache = tempfile::tempdir()?;
        let host = host(cache.path())?;
        let began = Instant::now();
        host.load(&math, Limits::default())?;
        cold.push(began.elapsed().as_secs_f64() * 1e3);
    }

    let cache = tempfile::tempdir()?;
    host(cache.path())?.load(&math, Limits::default())?;
    let set_up = seconds(20, || host(cache.path()).map(drop))?;
    // A host anew each time, as a program's start has; only what the plugin adds to it is timed.
    let mut cached = Vec::new();
    for _ in 0..20 {
        let host = host(cache.path())?;
        let began = Instant::now();
        host.load(&math, Limits::default())?.formatter(&json!({}))?;
        cached.push(began.elapsed().as_secs_f64() * 1e3);
    }

    let host = host(cache.path())?;
    let plugin = host.load(&math, Limits::default())?;
    let instance = seconds(200, || Ok(plugin.formatter(&json!({})).map(drop)?))?;
    let formatter = plugin.formatter(&json!({}))?;
    let template = host.load(&chat, Limits::default())?.template(&json!({}))?;
    let call = seconds(2000, || Ok(template.describe().map(drop)?))?;

    let rows = longer_rows(times)?;
    let mut sandboxed = || -> Result<()> {
        for rows in rows.chunks(BATCH) {
            let mut conversations: Vec<Conversation> = Vec::with_capacity(rows.len());
            for outcome in formatter.format(rows)? {
                let RowOutcome::Sample(conversation) = outcome else { bail!("an embedded row gave no sample") };
                conversations.push(conversation);
            }
            for rendered in template.render_training(&conversations)? {
                rendered.map_err(|e| anyhow!("{e:?}"))?;
            }
        }
        Ok(())
    };
    // In turns, so that what else the machine does falls on both.
    let (mut both, mut native) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        both.extend(seconds(1, &mut sandboxed)?);
        native.extend(native_seconds(&rows)?);
    }
    let mut figures = vec![
        Figure::new("plugins/cold_compile_in_child", "ms", cold),
        Figure::new("plugins/host_set_up", "ms", scaled(1e3, &set_up)),
        Figure::new("plugins/cached_start", "ms", cached).target(Target::AtMost(2.0)),
        Figure::new("plugins/instantiate_and_configure", "us", scaled(1e6, &instance)),
        Figure::new("plugins/empty_call", "us", scaled(1e6, &call)).target(Target::AtMost(20.0)),
        Figure::new("plugins/format_and_render_rows_per_second", "rows/s", rates(rows.len(), &both)),
    ];
    if !native.is_empty() {
        figures.push(Figure::new("plugins/native_format_and_render_rows_per_second", "rows/s", rates(rows.len(), &native)));
        let ratios = both.iter().zip(&native).map(|(wasm, native)| native / wasm.max(1e-12)).collect();
        figures.push(Figure::new("plugins/wasm_over_native", "ratio", ratios).target(Target::AtLeast(0.6)));
    }
    Ok(figures)
}

/// The time of the same rows in native code, where that is in the program.
#[cfg(feature = "native-plugins")]
fn native_seconds(rows: &[String]) -> Result<Option<f64>> {
    Ok(seconds(1, || super::native::format_and_render(rows, BATCH))?.pop())
}

/// The program was built without native code of plugins.
#[cfg(not(feature = "native-plugins"))]
fn native_seconds(_: &[String]) -> Result<Option<f64>> {
    Ok(None)
}
