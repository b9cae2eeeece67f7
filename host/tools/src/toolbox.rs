//! What can execute calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use trainer_plugin_host::Plugin;

use crate::case::Case;
use crate::error::ToolsError;
use crate::limits::Limits;
use crate::schema::Schemas;
use crate::session::{EpisodeKey, EpisodeTools};
use crate::tape::{Tape, TapePlugin, TapeTool};

/// A tool plugin under its settings.
#[derive(Clone, Debug)]
pub struct ToolPlugin {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its settings; null counts as `{}`.
    pub settings: Value,
}

/// A plugin with what it offers.
pub(crate) struct Executor {
    /// Its name, version, digest and tools.
    pub about: TapePlugin,
    /// What executes; none in a replay.
    pub plugin: Option<ToolPlugin>,
}

/// The tools of some plugins, or a tape of their answers; shared by all episodes and threads.
pub struct Toolbox {
    pub(crate) executors: Vec<Executor>,
    /// By tool: the executor and the tool's parameters.
    pub(crate) by_name: BTreeMap<String, (usize, Arc<Value>)>,
    pub(crate) schemas: Schemas,
    pub(crate) limits: Limits,
    pub(crate) tape: Option<Arc<Tape>>,
}

impl Toolbox {
    /// A toolbox of plugins, each asked once for its tools. Without any it serves cases with canned responses.
    ///
    /// # Errors
    /// A plugin fails or is no tool executor, or two offer a tool of the same name.
    pub fn new(plugins: Vec<ToolPlugin>, limits: Limits) -> Result<Self, ToolsError> {
        let mut executors = Vec::new();
        for used in plugins {
            let tools = used.plugin.tools(&used.settings)?;
            let about = TapePlugin {
                name: used.plugin.name().to_owned(),
                version: used.plugin.version().to_owned(),
                sha256: used.plugin.digest().to_owned(),
                kinds: used.plugin.kinds().iter().map(|k| format!("{}@{}", k.kind, k.version)).collect(),
                grants: used.plugin.grants().to_vec(),
                tools: tools
                    .into_iter()
                    .map(|t| TapeTool {
                        // The host has checked that it is JSON.
                        parameters: serde_json::from_str(&t.parameters).unwrap_or_default(),
                        name: t.name,
                        description: t.description,
                    })
                    .collect(),
            };
            executors.push(Executor { about, plugin: Some(used) });
        }
        Self::of(executors, limits, None)
    }

    /// A toolbox that answers from a tape. No plugin runs: the tape says which tools there were.
    ///
    /// # Errors
    /// The tape names a tool twice.
    pub fn replay(tape: Arc<Tape>, limits: Limits) -> Result<Self, ToolsError> {
        let executors = tape.header().plugins.iter().map(|about| Executor { about: about.clone(), plugin: None }).collect();
        Self::of(executors, limits, Some(tape))
    }

    fn of(executors: Vec<Executor>, limits: Limits, tape: Option<Arc<Tape>>) -> Result<Self, ToolsError> {
        let mut by_name: BTreeMap<String, (usize, Arc<Value>)> = BTreeMap::new();
        for (index, executor) in executors.iter().enumerate() {
            for tool in &executor.about.tools {
                if let Some((first, _)) = by_name.insert(tool.name.clone(), (index, Arc::new(tool.parameters.clone()))) {
                    let first = executors.get(first).map_or_else(String::new, |e| e.about.name.clone());
                    return Err(ToolsError::DuplicateTool { tool: tool.name.clone(), first, second: executor.about.name.clone() });
                }
            }
        }
        Ok(Self { executors, by_name, schemas: Schemas::default(), limits, tape })
    }

    /// The limits of its episodes.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The plugins with their tools, in the order given: what the header of a tape says.
    pub fn plugins(&self) -> Vec<TapePlugin> {
        self.executors.iter().map(|e| e.about.clone()).collect()
    }

    /// The tape that it answers from, in a replay.
    pub fn tape(&self) -> Option<&Arc<Tape>> {
        self.tape.as_ref()
    }

    /// For each plugin that lacks a grant, what it lacks and the flags that would grant it: its calls may give nothing but errors. Nothing in a replay.
    pub fn ungranted(&self) -> Vec<String> {
        self.executors.iter().filter_map(|e| e.plugin.as_ref()?.plugin.ungranted()).collect()
    }

    /// The definitions of all plugins' tools, each one JSON object in OpenAI's form, in the order in which the model is to see them.
    pub fn offer(&self) -> Vec<String> {
        let tools = self.executors.iter().flat_map(|e| &e.about.tools);
        tools
            .map(|t| {
                let function = serde_json::json!({"name": t.name, "description": t.description, "parameters": t.parameters});
                serde_json::json!({"type": "function", "function": function}).to_string()
            })
            .collect()
    }

    /// Opens what one episode calls. `now_ms` is its clock, which stands still. Plugins get an instance each when the first call comes.
    pub fn open(self: &Arc<Self>, key: EpisodeKey, case: Case, seed: u64, now_ms: u64) -> EpisodeTools {
        EpisodeTools::new(self.clone(), key, case, seed, now_ms)
    }
}

impl std::fmt::Debug for Toolbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Toolbox").field("tools", &self.by_name.keys()).field("replay", &self.tape.is_some()).finish_non_exhaustive()
    }
}
