//! Kind `tool-executor`.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;
use wasmtime::component::ResourceAny;

use crate::bindings::executor::Plugin as World;
use crate::bindings::executor::exports::trainer::tool_executor::executor::{Call, Context, Outcome, Tool};
use crate::call::{Load, place};
use crate::capability::Transport;
use crate::check::{Check, Expect, Path};
use crate::error::PluginError;
use crate::host::Plugin;
use crate::instance::{Factory, Guest, bindings, bounded};
use crate::kind::Kind;

const TOOLS: &str = "trainer:tool-executor/executor@0.1.0#tools";
const OPEN: &str = "trainer:tool-executor/executor@0.1.0#session.open";
const CALL: &str = "trainer:tool-executor/executor@0.1.0#session.call";
const STATE_DIGEST: &str = "trainer:tool-executor/executor@0.1.0#session.state-digest";

bindings!(executor, Kind::ToolExecutor);

/// What a session starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolContext {
    /// The recipe's settings for the plugin, checked here against its schema; null counts as `{}`.
    pub settings: Value,
    /// The episode's seed.
    pub seed: u64,
    /// The episode's clock, milliseconds since 1970 UTC.
    pub now_ms: u64,
}

/// One episode with a plugin's tools, in an instance of its own. Made by [`Plugin::tool_session`].
///
/// A failure fails the episode; after one the session is of no more use.
pub struct ToolSession {
    plugin: Arc<Plugin>,
    guest: Guest<World>,
    session: ResourceAny,
}

impl Plugin {
    /// The tools on offer, in the order in which the model sees them. Names are unique and parameters are valid JSON Schemas.
    ///
    /// # Errors
    /// If it is no tool executor, the settings do not fit, or what it returns is not as the interface says.
    pub fn tools(self: &Arc<Self>, settings: &Value) -> Result<Vec<Tool>, PluginError> {
        self.require(Kind::ToolExecutor)?;
        let settings = self.check_settings(settings)?;
        let load = Load { rows: 1, bytes: settings.len() };
        let mut guest = Factory::<World>::new(self)?.make()?;
        let tools = guest.call(TOOLS, load, |b, s| b.trainer_tool_executor_executor().call_tools(s, &settings))?;
        let at = place(self.manifest(), TOOLS);
        let tools = tools.map_err(|words| PluginError::Configure { at: Arc::clone(&at), message: bounded(&words) })?;
        let check = Check { at: &at, limits: self.limits() };
        let root = Path::Root("tools");
        check.list(root, tools.len())?;
        let mut names = HashSet::new();
        for (i, tool) in tools.iter().enumerate() {
            let path = root.index(i);
            check.string(path.field("name"), &tool.name)?;
            check.string(path.field("description"), &tool.description)?;
            if tool.name.is_empty() || !names.insert(tool.name.as_str()) {
                return Err(check.bad(path.field("name"), format!("{:?} is empty or the name of another tool", bounded(&tool.name))));
            }
            let parameters = path.field("parameters");
            check.json(parameters, &tool.parameters, Expect::Object)?;
            let schema: Value = serde_json::from_str(&tool.parameters).map_err(|e| check.bad(parameters, e.to_string()))?;
            crate::schema::compile(&schema).map_err(|e| check.bad(parameters, e.to_string()))?;
        }
        Ok(tools)
    }

    /// Begins an episode.
    ///
    /// # Errors
    /// If it is no tool executor, the settings do not fit, or it refuses the context.
    pub fn tool_session(self: &Arc<Self>, context: &ToolContext) -> Result<ToolSession, PluginError> {
        self.tool_session_through(context, self.transport())
    }

    /// Begins an episode whose requests something else carries than the plugin's own [`Plugin::transport`], such as a recording.
    ///
    /// # Errors
    /// As for [`Plugin::tool_session`].
    pub fn tool_session_through(
        self: &Arc<Self>,
        context: &ToolContext,
        transport: Arc<dyn Transport>,
    ) -> Result<ToolSession, PluginError> {
        self.require(Kind::ToolExecutor)?;
        let settings = self.check_settings(&context.settings)?;
        let load = Load { rows: 1, bytes: settings.len() };
        let raw = Context { settings, seed: context.seed, now_ms: context.now_ms };
        let mut guest = Factory::<World>::through(self, transport)?.make()?;
        guest.store.data_mut().world.begin(context.seed, context.now_ms);
        let opened = guest.call(OPEN, load, |b, s| b.trainer_tool_executor_executor().session().call_open(s, &raw))?;
        let refused =
            |words: String| PluginError::Refused { at: place(self.manifest(), OPEN), message: bounded(&self.capabilities().scrub(words)) };
        let session = opened.map_err(refused)?;
        Ok(ToolSession { plugin: Arc::clone(self), guest, session })
    }
}

impl ToolSession {
    /// Executes calls in order: one outcome per call. Each call's arguments are one JSON object, valid under the tool's schema.
    ///
    /// # Errors
    /// If the plugin traps, runs into a limit or returns a bad value: the episode has failed.
    pub fn call(&mut self, calls: &[Call]) -> Result<Vec<Outcome>, PluginError> {
        let session = self.session;
        let load = Load { rows: calls.len(), bytes: calls.iter().map(|c| c.arguments.len()).sum() };
        let outcomes = self.guest.call(CALL, load, |b, s| b.trainer_tool_executor_executor().session().call_call(s, session, calls))?;
        // A guest holds no secrets, but it holds their placeholders.
        let capabilities = self.plugin.capabilities();
        let scrub = |outcome| match outcome {
            Outcome::Ok(json) => Outcome::Ok(capabilities.scrub(json)),
            Outcome::ToolError(words) => Outcome::ToolError(capabilities.scrub(words)),
        };
        let outcomes: Vec<Outcome> = outcomes.into_iter().map(scrub).collect();
        let at = place(self.plugin.manifest(), CALL);
        let check = Check { at: &at, limits: self.plugin.limits() };
        let root = Path::Root("outcomes");
        check.count(root, outcomes.len(), calls.len())?;
        for (i, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Outcome::Ok(json) => check.json(root.index(i), json, Expect::Any)?,
                Outcome::ToolError(words) => check.string(root.index(i), words)?,
            }
        }
        Ok(outcomes)
    }

    /// A digest of the session's state; none for tools without state.
    ///
    /// # Errors
    /// As for [`Self::call`].
    pub fn state_digest(&mut self) -> Result<Option<String>, PluginError> {
        let session = self.session;
        let digest = self
            .guest
            .call(STATE_DIGEST, Load::default(), |b, s| b.trainer_tool_executor_executor().session().call_state_digest(s, session))?;
        let digest = digest.map(|digest| self.plugin.capabilities().scrub(digest));
        if let Some(digest) = &digest {
            let at = place(self.plugin.manifest(), STATE_DIGEST);
            Check { at: &at, limits: self.plugin.limits() }.string(Path::Root("digest"), digest)?;
        }
        Ok(digest)
    }

    /// The plugin.
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }
}
