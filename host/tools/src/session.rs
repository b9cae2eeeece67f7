//! The calls of one episode: what is let through, who answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use trainer_plugin_host::tools::{Call, Outcome as PluginOutcome};
use trainer_plugin_host::types::CallArguments;
use trainer_plugin_host::{PluginError, Recorder, ToolContext, ToolSession};

use crate::case::Case;
use crate::error::ToolsError;
use crate::json::{canonical, depth, shown};
use crate::schema::Refusal;
use crate::toolbox::Toolbox;
use crate::transcript::{By, CallRecord, ErrorKind, Outcome};

/// Bytes of a name that the model wrote, as messages show it.
const SHOWN_NAME: usize = 80;
/// Bytes of what is no call, as records keep it.
const KEPT_RAW: usize = 4096;
/// Tools that a message lists.
const SHOWN_TOOLS: usize = 20;

/// Which episode it is: the key of its traffic on a tape.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpisodeKey {
    /// The metric whose question it is; empty in a chat.
    pub metric: String,
    /// The case.
    pub case: String,
    /// Which of several answers, from 0.
    pub repeat: u32,
}

/// What the model wrote where it set out to make a call.
#[derive(Clone, Debug)]
pub(crate) enum Attempt {
    Call { name: String, arguments: CallArguments },
    Malformed { raw: String, message: String },
}

/// What one episode calls.
pub struct EpisodeTools {
    toolbox: Arc<Toolbox>,
    key: EpisodeKey,
    case: Case,
    seed: u64,
    now_ms: u64,
    /// By executor.
    sessions: BTreeMap<usize, (ToolSession, Arc<Recorder>)>,
    /// By plugin.
    state: BTreeMap<String, String>,
    ordinal: u32,
}

/// What becomes of a call.
enum Decision {
    Answered(By, Outcome),
    /// By this executor, with these arguments.
    Run(usize, String),
}

impl EpisodeTools {
    pub(crate) fn new(toolbox: Arc<Toolbox>, key: EpisodeKey, case: Case, seed: u64, now_ms: u64) -> Self {
        Self { toolbox, key, case, seed, now_ms, sessions: BTreeMap::new(), state: BTreeMap::new(), ordinal: 0 }
    }

    /// The toolbox.
    pub fn toolbox(&self) -> &Arc<Toolbox> {
        &self.toolbox
    }

    /// Which episode it is.
    pub fn key(&self) -> &EpisodeKey {
        &self.key
    }

    /// Whether something can answer calls of this tool.
    pub fn can_execute(&self, name: &str) -> bool {
        self.case.answers(name) || self.toolbox.by_name.contains_key(name)
    }

    /// By plugin: the digest of its state as far as known.
    pub(crate) fn state(&self) -> &BTreeMap<String, String> {
        &self.state
    }

    /// Answers what the model wrote in one turn, in order, and says whether a plugin failed, which ends the episode.
    pub(crate) fn answer(
        &mut self,
        turn: u32,
        offered: &BTreeMap<String, Arc<Value>>,
        attempts: &[Attempt],
    ) -> Result<Vec<CallRecord>, ToolsError> {
        let mut records = Vec::with_capacity(attempts.len());
        // Calls of one plugin, up to the first of another, that it is given at once; their places in the records.
        let mut waiting: Vec<(usize, Call)> = Vec::new();
        let mut executor = None;
        let tape = self.toolbox.tape.clone();
        for attempt in attempts {
            let ordinal = self.ordinal;
            self.ordinal = self.ordinal.saturating_add(1);
            let (name, arguments) = match attempt {
                Attempt::Call { name, arguments } => (name.clone(), form(arguments)),
                Attempt::Malformed { raw, .. } => {
                    (raw.get(..raw.floor_char_boundary(KEPT_RAW)).unwrap_or_default().to_owned(), Value::Null)
                }
            };
            let record = |by, outcome, state_digest| CallRecord {
                turn,
                ordinal,
                name: name.clone(),
                arguments: arguments.clone(),
                by,
                outcome,
                state_digest,
                http: Vec::new(),
            };
            let decision = match (attempt, &tape) {
                (Attempt::Malformed { message, .. }, _) => {
                    let message = format!("this is no tool call: {message}");
                    Decision::Answered(By::Host, Outcome::Error { kind: ErrorKind::Malformed, message })
                }
                (Attempt::Call { .. }, Some(tape)) => {
                    let entry = tape.answer(&self.key, ordinal, &name, &arguments)?;
                    if let (Some(digest), By::Plugin(plugin)) = (&entry.state_digest, &entry.by) {
                        self.state.insert(plugin.clone(), digest.clone());
                    }
                    records.push(record(entry.by.clone(), entry.outcome.clone(), entry.state_digest.clone()));
                    if matches!(entry.outcome, Outcome::Trap(_)) {
                        return Ok(records);
                    }
                    continue;
                }
                (Attempt::Call { name, arguments }, None) => self.decide(offered, name, arguments),
            };
            match decision {
                Decision::Answered(by, outcome) => records.push(record(by, outcome, None)),
                Decision::Run(index, text) => {
                    if executor.is_some_and(|before| before != index) && self.flush(executor.take(), &mut waiting, &mut records) {
                        return Ok(records);
                    }
                    executor = Some(index);
                    waiting.push((records.len(), Call { name: name.clone(), arguments: text }));
                    let plugin = self.toolbox.executors.get(index).map_or_else(String::new, |e| e.about.name.clone());
                    // Filled in by `flush`.
                    records.push(record(By::Plugin(plugin), Outcome::Trap(String::new()), None));
                }
            }
        }
        self.flush(executor, &mut waiting, &mut records);
        Ok(records)
    }

    /// Runs the calls that wait for a plugin. True if it failed: then the records end at the first of the calls that failed.
    fn flush(&mut self, executor: Option<usize>, waiting: &mut Vec<(usize, Call)>, records: &mut Vec<CallRecord>) -> bool {
        let Some(index) = executor.filter(|_| !waiting.is_empty()) else { return false };
        let (places, calls): (Vec<usize>, Vec<Call>) = std::mem::take(waiting).into_iter().unzip();
        let limit = self.toolbox.limits.result_bytes;
        // One at a time where requests are made, so that it is known which call each belongs to.
        let asks = self.toolbox.executors.get(index).and_then(|e| e.plugin.as_ref()).is_some_and(|used| used.plugin.makes_requests());
        let at_once = if asks { 1 } else { calls.len() };
        for (places, calls) in places.chunks(at_once).zip(calls.chunks(at_once)) {
            let result = self.run(index, calls);
            let http = self.sessions.get(&index).map(|(_, recorder)| recorder.take()).unwrap_or_default();
            let (Some(first), Some(last)) = (places.first().copied(), places.last().copied()) else { continue };
            match result {
                Ok((outcomes, digest)) => {
                    for (place, outcome) in places.iter().zip(outcomes) {
                        if let Some(record) = records.get_mut(*place) {
                            record.outcome = bounded(outcome, limit);
                        }
                    }
                    let Some(record) = records.get_mut(last) else { continue };
                    if let (Some(digest), By::Plugin(plugin)) = (&digest, &record.by) {
                        self.state.insert(plugin.clone(), digest.clone());
                    }
                    (record.state_digest, record.http) = (digest, http);
                }
                Err(e) => {
                    records.truncate(first.saturating_add(1));
                    if let Some(record) = records.last_mut() {
                        (record.outcome, record.http) = (Outcome::Trap(e.to_string()), http);
                    }
                    return true;
                }
            }
        }
        false
    }

    fn run(&mut self, index: usize, calls: &[Call]) -> Result<(Vec<PluginOutcome>, Option<String>), PluginError> {
        let gone = || PluginError::Host("a tool's plugin is not loaded".to_owned());
        let used = self.toolbox.executors.get(index).and_then(|e| e.plugin.as_ref()).ok_or_else(gone)?;
        if !self.sessions.contains_key(&index) {
            let context = ToolContext { settings: used.settings.clone(), seed: self.seed, now_ms: self.now_ms };
            let recorder = Recorder::new(used.plugin.transport());
            let session = used.plugin.tool_session_through(&context, recorder.clone())?;
            self.sessions.insert(index, (session, recorder));
        }
        let (session, _) = self.sessions.get_mut(&index).ok_or_else(gone)?;
        let outcomes = session.call(calls)?;
        let digest = session.state_digest()?;
        Ok((outcomes, digest))
    }

    /// Checks a call.
    fn decide(&self, offered: &BTreeMap<String, Arc<Value>>, name: &str, arguments: &CallArguments) -> Decision {
        let refuse = |kind, message| Decision::Answered(By::Host, Outcome::Error { kind, message });
        let Some(schema) = offered.get(name) else {
            let tools: Vec<String> = offered.keys().take(SHOWN_TOOLS).map(|t| shown(t, SHOWN_NAME)).collect();
            let message = format!("there is no tool \"{}\"; the tools are: {}", shown(name, SHOWN_NAME), tools.join(", "));
            return refuse(ErrorKind::UnknownTool, message);
        };
        let name_shown = shown(name, SHOWN_NAME);
        let text = match arguments {
            CallArguments::Json(text) => text,
            CallArguments::Text(_) => {
                let message = format!("the arguments of {name_shown} are a string; they must be a JSON object");
                return refuse(ErrorKind::Arguments, message);
            }
        };
        let limits = &self.toolbox.limits;
        if text.len() > limits.argument_bytes {
            let message = format!("the arguments of {name_shown} have {} bytes; at most {} are taken", text.len(), limits.argument_bytes);
            return refuse(ErrorKind::Arguments, message);
        }
        if depth(text, limits.argument_depth) > limits.argument_depth {
            let message = format!("the arguments of {name_shown} are nested more than {} deep", limits.argument_depth);
            return refuse(ErrorKind::Arguments, message);
        }
        let value: Value = match serde_json::from_str(text) {
            Ok(value @ Value::Object(_)) => value,
            Ok(_) => return refuse(ErrorKind::Arguments, format!("the arguments of {name_shown} must be a JSON object")),
            Err(e) => return refuse(ErrorKind::Arguments, format!("the arguments of {name_shown} are no JSON: {e}")),
        };
        match self.toolbox.schemas.check(schema, &value) {
            Err(Refusal::Schema(e)) => return refuse(ErrorKind::Schema, format!("{name_shown} cannot be called: {e}")),
            Err(Refusal::Arguments(faults)) => {
                let message = format!("the arguments of {name_shown} do not fit its parameters: {}", faults.join("; "));
                return refuse(ErrorKind::Arguments, message);
            }
            Ok(()) => {}
        }
        if let Some(outcome) = self.case.answer(name, &value) {
            return Decision::Answered(By::Fixture, outcome);
        }
        match self.toolbox.by_name.get(name) {
            Some((index, own)) => {
                // The case may say less about the tool than the plugin does; the plugin was promised its own schema.
                if !Arc::ptr_eq(own, schema)
                    && let Err(Refusal::Arguments(faults)) = self.toolbox.schemas.check(own, &value)
                {
                    let message = format!("the arguments of {name_shown} do not fit its parameters: {}", faults.join("; "));
                    return refuse(ErrorKind::Arguments, message);
                }
                Decision::Run(*index, text.clone())
            }
            None => refuse(ErrorKind::UnknownTool, format!("nothing executes {name_shown}")),
        }
    }
}

/// Arguments in canonical form.
fn form(arguments: &CallArguments) -> Value {
    match arguments {
        CallArguments::Text(text) => Value::String(text.clone()),
        CallArguments::Json(text) => {
            serde_json::from_str::<Value>(text).map_or_else(|_| Value::String(text.clone()), |value| canonical(&value))
        }
    }
}

fn bounded(outcome: PluginOutcome, limit: usize) -> Outcome {
    let too_large = |bytes: usize, what: &str| Outcome::Error {
        kind: ErrorKind::ResultSize,
        message: format!("the {what} has {bytes} bytes; at most {limit} are passed on"),
    };
    match outcome {
        PluginOutcome::Ok(json) if json.len() > limit => too_large(json.len(), "result"),
        PluginOutcome::ToolError(words) if words.len() > limit => too_large(words.len(), "tool's error"),
        PluginOutcome::Ok(json) => Outcome::Ok(json),
        PluginOutcome::ToolError(message) => Outcome::Error { kind: ErrorKind::Tool, message },
    }
}
