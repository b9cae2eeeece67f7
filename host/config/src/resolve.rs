//! From a file, a text and flags to a recipe, and back to TOML.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use crate::check::check;
use crate::error::{ConfigError, Origin, Problem};
use crate::recipe::Recipe;
use crate::section::{Context, Setting};
use crate::tree::{self, Data, Node};
use crate::values::{PluginName, Settings};

/// A recipe is written by people; a larger file is a mistake.
const MAX_BYTES: u64 = 16 << 20;

/// A setting from the command line: `key.path=value`, the value in TOML's syntax. A bare word counts as a string, because shells eat
/// quotes: `train.schedule=cosine`. Items of an array that the recipe writes are reached by their index: `data.sources.0.path=rows.jsonl`.
#[derive(Clone, Debug)]
pub struct Override {
    path: Vec<String>,
    value: Node,
    origin: Origin,
}

impl Override {
    /// Reads `key.path=value`.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let origin = Origin::Flag(text.to_owned());
        let invalid = |message: String| ConfigError::Invalid {
            problems: vec![Problem {
                origin: origin.clone(),
                key: String::new(),
                message,
                help: Some("write --set key.path=value, such as --set train.max_steps=100".to_owned()),
            }],
        };
        let Some(split) = equals_sign(text) else { return Err(invalid("there is no `=`".to_owned())) };
        let (key, value) = (text[..split].trim(), text[split + 1..].trim());
        let path = key_path(key).ok_or_else(|| invalid(format!("`{key}` is not a key")))?;
        // What is set there may be a secret's value by mistake, which no message repeats.
        let origin = if path.iter().any(|p| p == "secrets") { Origin::Flag(format!("{key}=...")) } else { origin };
        let dotted = path.join(".");
        let value = match tree::parse_value(value, &origin, &dotted) {
            Ok(node) => node,
            Err(_) if is_bare_word(value) => Node { origin: origin.clone(), data: Data::String(value.to_owned()) },
            Err(problems) => return Err(ConfigError::Invalid { problems }),
        };
        Ok(Self { path, value, origin })
    }
}

/// The first `=` outside quotes.
fn equals_sign(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, b) in text.bytes().enumerate() {
        match (quote, b) {
            (None, b'=') => return Some(i),
            (None, b'"' | b'\'') => quote = Some(b),
            (Some(q), b) if q == b => quote = None,
            _ => {}
        }
    }
    None
}

/// The parts of a dotted key, by TOML's own rules.
fn key_path(key: &str) -> Option<Vec<String>> {
    let mut node = tree::parse("", &format!("{key} = 0")).ok()?;
    let mut path = Vec::new();
    loop {
        node = match node.data {
            Data::Table(mut entries) if entries.len() == 1 => {
                let entry = entries.pop()?;
                path.push(entry.key);
                entry.node
            }
            Data::Integer(0) if !path.is_empty() => return Some(path),
            _ => return None,
        };
    }
}

/// Whether a text that is no TOML value can only be meant as a string.
fn is_bare_word(text: &str) -> bool {
    !text.is_empty() && !text.starts_with(['"', '\'', '[', '{']) && !text.chars().any(char::is_control)
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the mix.
    Epochs(f64),
}

impl Recipe {
    /// Reads a file. Paths in it are relative to its folder and come out absolute.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with(path, &[])
    }

    /// Reads a file, with flags over it. Paths in flags are relative to the current folder.
    pub fn load_with(path: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        std::fs::File::open(path).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(read)?;
        let invalid = |message: String| {
            let origin = Origin::Text { file: path.display().to_string(), line: 1, column: 1 };
            ConfigError::Invalid { problems: vec![Problem { origin, key: String::new(), message, help: None }] }
        };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(invalid(format!("the file is larger than {} MiB, so it can hardly be a recipe", MAX_BYTES >> 20)));
        }
        let text = String::from_utf8(bytes).map_err(|e| invalid(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
        let absolute = std::path::absolute(path).map_err(read)?;
        let base = absolute.parent().unwrap_or(&absolute);
        if base.to_str().is_none() {
            return Err(invalid("the path of the recipe's folder is not UTF-8, which TOML cannot hold".to_owned()));
        }
        Self::parse_with(&path.display().to_string(), &text, Some(base), overrides)
    }

    /// Reads a text. Paths in it stay as they are.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::parse_with("recipe", text, None, &[])
    }

    /// The default recipe with flags over it. Paths in flags are relative to the current folder and come out absolute.
    pub fn default_with(overrides: &[Override]) -> Result<Self, ConfigError> {
        Self::parse_with("recipe", "", Some(Path::new("")), overrides)
    }

    /// Reads a text with flags over it. `name` stands for the text in messages; paths in the text are relative to `base`.
    pub fn parse_with(name: &str, text: &str, base: Option<&Path>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let mut tree =
            if text.is_empty() { Node::empty() } else { tree::parse(name, text).map_err(|problems| ConfigError::Invalid { problems })? };
        let mut cx = Context { base, problems: Vec::new() };
        for o in overrides {
            if let Err(message) = tree.set(&o.path, o.value.clone(), &o.origin) {
                cx.problem(&o.origin, &o.path.join("."), message, None);
            }
        }
        one_length(&mut tree);
        let recipe = Self::read(&mut cx, "", &tree);
        let Some(mut recipe) = recipe else { return Err(ConfigError::Invalid { problems: cx.problems }) };
        if recipe.train.epochs.is_some() && !tree.has(&["train", "max_steps"]) {
            recipe.train.max_steps = None;
        }
        cx.problems.extend(check(&recipe, &tree));
        if cx.problems.is_empty() { Ok(recipe) } else { Err(ConfigError::Invalid { problems: cx.problems }) }
    }

    /// Checks a recipe that was changed in the program by the same rules as one that was read.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Self::parse(&self.to_toml()?).map(drop)
    }

    /// The whole recipe as TOML, every setting in the order of the documentation. Reading it gives an equal recipe.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        Ok(toml::to_string(self)?)
    }

    /// Plugin limits that depend on the machine: they can end a run, resumably, but never cost a row.
    pub const TIMING_LIMITS: [&'static str; 3] = ["deadline", "compile_time", "compile_memory"];

    /// What decides the result of a run, as JSON, for the lock: the recipe without what must not matter (the run directory, thread counts,
    /// prepared data, checkpointing, the printed sample, trackers), without the choice of device and plan, which the lock has as they came out, and without the folders of models, data, plugins and adapters, whose contents the
    /// lock pins by digest.
    pub fn identity(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        let mut cut = |table: &str, key: &str| {
            if let Some(table) = value.get_mut(table).and_then(serde_json::Value::as_object_mut) {
                table.remove(key);
            }
        };
        cut("model", "source");
        cut("adapter", "from");
        cut("data", "workers");
        cut("data", "cache");
        cut("eval", "data");
        if self.eval.every == 0 {
            // Without evaluations during training these decide nothing, and are not in the locks of older programs.
            for key in ["every", "early_stopping", "best"] {
                cut("eval", key);
            }
        }
        // A run's prompts are the plugin's; evaluations afterwards may choose.
        cut("template", "prompts");
        // The lock has the machine and the plan that came of these.
        cut("device", "backend");
        cut("device", "threads");
        cut("device", "plan");
        cut("device", "memory_limit");
        cut("train", "checkpoint_every");
        cut("train", "keep_checkpoints");
        let entries = value.pointer_mut("/data/sources").and_then(serde_json::Value::as_array_mut);
        for source in entries.into_iter().flatten().filter_map(serde_json::Value::as_object_mut) {
            source.remove("path");
        }
        let entries = value.get_mut("plugins").and_then(serde_json::Value::as_object_mut);
        for plugin in entries.into_iter().flat_map(|m| m.values_mut()).filter_map(serde_json::Value::as_object_mut) {
            plugin.remove("path");
            // The lock has the digest itself.
            plugin.remove("sha256");
            // Where a secret lies decides nothing; that there is one, and where it may go, is among the plugin's grants in the lock.
            plugin.remove("secrets");
            // Wall-clock limits and the compiler's stop a run; they never decide what is in it. So they may be raised to continue one.
            if let Some(limits) = plugin.get_mut("limits").and_then(serde_json::Value::as_object_mut) {
                for key in Self::TIMING_LIMITS {
                    limits.remove(key);
                }
            }
        }
        if let Some(sections) = value.as_object_mut() {
            sections.remove("output");
            sections.remove("sample");
            sections.remove("track");
        }
        value
    }

    /// The length of the run. A recipe that was read has exactly one.
    pub fn length(&self) -> Length {
        match (self.train.max_steps, self.train.epochs) {
            (None, Some(epochs)) => Length::Epochs(epochs),
            (steps, _) => Length::Steps(steps.unwrap_or(0)),
        }
    }

    /// Samples in a step: `batch` times `accumulation`.
    pub fn samples_per_step(&self) -> usize {
        self.train.batch.saturating_mul(self.train.accumulation)
    }

    /// The settings of a plugin in one of its uses: those of `[plugins.NAME]`, with the use's own over them, key by key.
    pub fn settings_of(&self, plugin: &PluginName, own: &Settings) -> Settings {
        let mut merged = self.plugins.get(plugin).map(|p| p.settings.clone()).unwrap_or_default();
        merged.extend(own.iter().map(|(k, v)| (k.clone(), v.clone())));
        merged.sort_keys();
        merged
    }

    /// The settings of a metric.
    pub fn metric_settings(&self, metric: &PluginName) -> Settings {
        self.settings_of(metric, self.eval.settings.get(metric).unwrap_or(&Settings::new()))
    }

    /// Every plugin that the recipe uses, each once, sorted.
    pub fn plugin_names(&self) -> BTreeSet<PluginName> {
        let formatters = self.data.sources.iter().map(|s| &s.formatter);
        formatters.chain([&self.mix.plugin, &self.template.plugin]).chain(&self.eval.metrics).chain(&self.eval.tools).cloned().collect()
    }
}

/// A flag for one of `train.max_steps` and `train.epochs` displaces the other one in the text.
fn one_length(tree: &mut Node) {
    let is_flag =
        |tree: &Node, key: &str| tree.has(&["train", key]).then(|| matches!(tree.origin_of(&format!("train.{key}")), Origin::Flag(_)));
    match (is_flag(tree, "max_steps"), is_flag(tree, "epochs")) {
        (Some(true), Some(false)) => tree.remove("train", "epochs"),
        (Some(false), Some(true)) => tree.remove("train", "max_steps"),
        _ => {}
    }
}
