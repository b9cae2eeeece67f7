//! What of a run's parts stands in its lock.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use trainer_config::{DataPath, Quantization, Recipe};
use trainer_data::Source;
use trainer_engine::Keep;
use trainer_kernels::ops::Ops;
use trainer_model::{ModelDigest, ModelFiles};
use trainer_plugin_host::Plugin;
use trainer_runtime::{DeviceKind, Planned, source_digest};

use crate::error::TrainError;
use crate::lock::{PluginLock, SourceLock};

pub(super) fn plugin_lock(plugin: &Arc<Plugin>, recipe: &Recipe) -> PluginLock {
    let manifest = plugin.manifest();
    let name = manifest.name.as_str();
    let mut settings = BTreeMap::new();
    let mut add = |usage: String, value: trainer_config::Settings| settings.insert(usage, serde_json::Value::Object(value));
    if recipe.mix.plugin.as_str() == name {
        add("mix".into(), recipe.settings_of(&recipe.mix.plugin, &recipe.mix.settings));
    }
    if recipe.template.plugin.as_str() == name {
        add("template".into(), recipe.settings_of(&recipe.template.plugin, &recipe.template.settings));
    }
    for s in recipe.data.sources.iter().filter(|s| s.formatter.as_str() == name) {
        add(format!("data.{}", s.name), recipe.settings_of(&s.formatter, &s.settings));
    }
    for metric in recipe.eval.metrics.iter().filter(|m| m.as_str() == name) {
        add("eval".into(), recipe.metric_settings(metric));
    }
    for tools in recipe.eval.tools.iter().filter(|t| t.as_str() == name) {
        add("tools".into(), recipe.settings_of(tools, &trainer_config::Settings::new()));
    }
    PluginLock {
        version: manifest.version.clone(),
        sha256: plugin.digest().to_owned(),
        kinds: plugin.kinds().iter().map(|k| (k.kind.to_string(), k.version.to_string())).collect(),
        grants: plugin.grants().to_vec(),
        limits: deciding_limits(plugin),
        settings,
    }
}

/// A plugin's limits without those that only depend on the machine.
fn deciding_limits(plugin: &Plugin) -> serde_json::Value {
    let mut limits = serde_json::to_value(plugin.limits()).unwrap_or_default();
    if let Some(map) = limits.as_object_mut() {
        let connects = plugin.imports().iter().any(|i| i.starts_with("trainer:http/"));
        map.retain(|key, _| !Recipe::TIMING_LIMITS.contains(&key.as_str()) && (connects || !key.starts_with("http_")));
    }
    limits
}

/// A name with the commit that was used, where it is one of a hub.
pub(super) fn pinned(pins: &BTreeMap<String, String>, name: String) -> String {
    pins.get(&name).cloned().unwrap_or(name)
}

pub(super) fn source_lock(name: &str, path: &DataPath, source: &Source, pins: &BTreeMap<String, String>) -> SourceLock {
    SourceLock { name: name.to_owned(), path: pinned(pins, path.to_string()), sha256: source_digest(source), rows: Some(source.len()) }
}

/// What else of the plan decides bits, or on a card the speed.
pub(super) fn algorithms(planned: &Planned, keeps: &[Keep], kind: DeviceKind) -> BTreeMap<String, String> {
    let packed = ("packed micro-batch".to_owned(), format!("{} tokens", planned.packed));
    let mut all = BTreeMap::from([packed]);
    let mut add = |name: &str, text: String| all.insert(name.to_owned(), text);
    match kind {
        DeviceKind::Cpu => add("evaluation", "merged adapter".to_owned()),
        DeviceKind::Cuda => {
            let count = |keep: Keep| keeps.iter().filter(|k| **k == keep).count();
            let (whole, lean, input) = (count(Keep::All), count(Keep::Lean), count(Keep::Input));
            add("kept activations", format!("all of {whole} layers, products of {lean}, inputs of {input}"));
            add("layer inputs", if planned.choice.offload { "in host memory" } else { "on the card" }.to_owned());
            add("loss", format!("{} positions at a time", planned.choice.loss_rows));
            add("evaluation", "adapter beside the weights".to_owned())
        }
    };
    all
}

pub(super) fn weights_name<O: Ops>(recipe: &Recipe, planned: &Planned, ops: &O) -> String {
    let how = planned.weights_text(ops);
    match recipe.model.quantization {
        Quantization::Nf4 => format!("nf4 (double-quantized), {how}"),
        Quantization::None if ops.element_bytes() == 4 => "f32".to_owned(),
        Quantization::None => "bf16".to_owned(),
        Quantization::AsStored => format!("as stored, {how}"),
    }
}

/// Digests of the files of an adapter to start from.
pub(super) fn adapter_files(folder: &Path) -> Result<BTreeMap<String, String>, TrainError> {
    Ok(ModelDigest::of(&ModelFiles::dir(folder))?.files.into_iter().map(|f| (f.name, f.sha256)).collect())
}
