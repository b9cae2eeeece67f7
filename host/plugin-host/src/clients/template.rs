//! Kind `chat-template`.

use std::sync::Arc;

use serde_json::Value;
use wasmtime::Store;
use wasmtime::component::ResourceAny;

use crate::bindings::template::Plugin as World;
use crate::bindings::template::exports::trainer::chat_template::template::{Description, OutputPart, Piece, PromptRequest, Rendered};
use crate::call::{Load, State, place};
use crate::check::{Check, Path};
use crate::error::{Place, PluginError, RowError};
use crate::host::Plugin;
use crate::instance::{Configure, Guest, Pool, bindings, bounded};
use crate::kind::Kind;
use crate::types::{CallArguments, Content, Conversation};

const DESCRIBE: &str = "trainer:chat-template/template@0.1.0#describe";
const RENDER_PROMPTS: &str = "trainer:chat-template/template@0.1.0#render-prompts";
const RENDER_TRAINING: &str = "trainer:chat-template/template@0.1.0#render-training";
const PARSE: &str = "trainer:chat-template/template@0.1.0#parse";
const PARSER: &str = "trainer:chat-template/template@0.1.0#output-parser";
const PUSH: &str = "trainer:chat-template/template@0.1.0#output-parser.push";
const FINISH: &str = "trainer:chat-template/template@0.1.0#output-parser.finish";

bindings!(template, Kind::ChatTemplate);

impl Configure for World {
    const CONFIGURE: &'static str = "trainer:chat-template/template@0.1.0#configure";

    fn configure(&self, store: &mut Store<State>, settings: &str) -> wasmtime::Result<Result<(), String>> {
        self.trainer_chat_template_template().call_configure(store, &settings.to_owned())
    }
}

/// A template under its settings. Made by [`Plugin::template`]; shared between threads.
pub struct Template {
    pool: Pool<World>,
}

impl Plugin {
    /// This plugin as a chat template.
    ///
    /// # Errors
    /// If it is none, the settings do not fit its schema, or it refuses them.
    pub fn template(self: &Arc<Self>, settings: &Value) -> Result<Template, PluginError> {
        Ok(Template { pool: Pool::new(self, settings)? })
    }
}

impl Template {
    /// What is fixed about the template.
    ///
    /// # Errors
    /// If the plugin traps, runs into a limit or returns a bad value.
    pub fn describe(&self) -> Result<Description, PluginError> {
        let description = self
            .pool
            .with_retry(|guest| guest.call(DESCRIBE, Load::default(), |b, s| b.trainer_chat_template_template().call_describe(s)))?;
        let at = place(self.plugin().manifest(), DESCRIBE);
        let check = self.check(&at);
        let root = Path::Root("stop-tokens");
        check.list(root, description.stop_tokens.len())?;
        for (i, token) in description.stop_tokens.iter().enumerate() {
            check.string(root.index(i), token)?;
            if token.is_empty() {
                return Err(check.bad(root.index(i), "a token is not empty"));
            }
        }
        Ok(description)
    }

    /// Renders prompts exactly as the model's own template does. One answer per request, in order.
    ///
    /// # Errors
    /// Only what stops a run: a deadline, or an instance that cannot be made.
    pub fn render_prompts(&self, requests: &[PromptRequest]) -> Result<Vec<Result<Rendered, RowError>>, PluginError> {
        let at = place(self.plugin().manifest(), RENDER_PROMPTS);
        let check = self.check(&at);
        let root = Path::Root("results");
        let outputs = self.pool.isolated(requests, |guest, requests| {
            let load = Load { rows: requests.len(), bytes: requests.iter().map(|r| size(&r.conversation)).sum() };
            let outputs = guest.call(RENDER_PROMPTS, load, |b, s| b.trainer_chat_template_template().call_render_prompts(s, requests))?;
            check.count(root, outputs.len(), requests.len())?;
            for (i, (output, request)) in outputs.iter().zip(requests).enumerate() {
                if let Ok(rendered) = output {
                    self.rendered(&check, root.index(i), rendered, &request.conversation)?;
                }
            }
            Ok(outputs)
        })?;
        Ok(outputs.into_iter().map(row).collect())
    }

    /// Renders conversations to learn from. A conversation gives one sample, or, under settings that cut it into turns, one per turn
    /// (none if it has no such turn).
    ///
    /// # Errors
    /// Only what stops a run: a deadline, or an instance that cannot be made.
    pub fn render_training(&self, conversations: &[Conversation]) -> Result<Vec<Result<Vec<Rendered>, RowError>>, PluginError> {
        let at = place(self.plugin().manifest(), RENDER_TRAINING);
        let check = self.check(&at);
        let root = Path::Root("results");
        let outputs = self.pool.isolated(conversations, |guest, conversations| {
            let load = Load { rows: conversations.len(), bytes: conversations.iter().map(size).sum() };
            let outputs =
                guest.call(RENDER_TRAINING, load, |b, s| b.trainer_chat_template_template().call_render_training(s, conversations))?;
            check.count(root, outputs.len(), conversations.len())?;
            for (i, (output, conversation)) in outputs.iter().zip(conversations).enumerate() {
                let Ok(samples) = output else { continue };
                let path = root.index(i);
                check.list(path, samples.len())?;
                for (j, rendered) in samples.iter().enumerate() {
                    self.rendered(&check, path.index(j), rendered, conversation)?;
                }
            }
            Ok(outputs)
        })?;
        Ok(outputs.into_iter().map(row).collect())
    }

    /// Parses whole outputs of the model: one list of parts per output.
    ///
    /// # Errors
    /// Only what stops a run: a deadline, or an instance that cannot be made. A trap is that output's own.
    pub fn parse(&self, outputs: &[Vec<Piece>]) -> Result<Vec<Result<Vec<OutputPart>, PluginError>>, PluginError> {
        let at = place(self.plugin().manifest(), PARSE);
        let check = self.check(&at);
        let root = Path::Root("results");
        self.pool.isolated(outputs, |guest, outputs| {
            let load = Load { rows: outputs.len(), bytes: outputs.iter().map(|o| pieces(o)).sum() };
            let parsed = guest.call(PARSE, load, |b, s| b.trainer_chat_template_template().call_parse(s, outputs))?;
            check.count(root, parsed.len(), outputs.len())?;
            for (i, parts) in parsed.iter().enumerate() {
                output_parts(&check, root.index(i), parts)?;
            }
            Ok(parsed)
        })
    }

    /// A parser for one generation while it grows, in an instance of its own.
    ///
    /// # Errors
    /// If the instance cannot be made or the plugin fails.
    pub fn output_parser(&self, in_reasoning: bool) -> Result<OutputParser, PluginError> {
        let mut guest = self.pool.fresh()?;
        let parser = guest
            .call(PARSER, Load::default(), |b, s| b.trainer_chat_template_template().output_parser().call_constructor(s, in_reasoning))?;
        Ok(OutputParser { plugin: Arc::clone(self.plugin()), guest, parser })
    }

    /// The plugin.
    pub fn plugin(&self) -> &Arc<Plugin> {
        self.pool.plugin()
    }

    /// All that decides what it answers: component, manifest, contract versions, limits, grants and settings. For caches of its answers.
    pub fn identity(&self) -> Value {
        self.pool.identity()
    }

    fn check<'a>(&'a self, at: &'a Arc<Place>) -> Check<'a> {
        Check { at, limits: self.plugin().limits() }
    }

    fn rendered(&self, check: &Check<'_>, path: Path<'_>, rendered: &Rendered, conversation: &Conversation) -> Result<(), PluginError> {
        let segments = path.field("segments");
        check.list(segments, rendered.segments.len())?;
        for (i, segment) in rendered.segments.iter().enumerate() {
            let path = segments.index(i);
            match &segment.piece {
                Piece::Text(text) => check.string(path.field("piece"), text)?,
                Piece::Special(token) if token.is_empty() => return Err(check.bad(path.field("piece"), "a special token is not empty")),
                Piece::Special(token) => check.string(path.field("piece"), token)?,
            }
            check.weight(path.field("weight"), segment.weight)?;
            let messages = conversation.messages.len();
            if let Some(message) = segment.source_message
                && message as usize >= messages
            {
                let message = format!("there is no message {message} in a conversation of {messages}");
                return Err(check.bad(path.field("source-message"), message));
            }
        }
        Ok(())
    }
}

fn row<T>(output: Result<Result<T, String>, PluginError>) -> Result<T, RowError> {
    output.map_err(RowError::Trapped)?.map_err(|words| RowError::Refused(bounded(&words)))
}

fn output_parts(check: &Check<'_>, path: Path<'_>, parts: &[OutputPart]) -> Result<(), PluginError> {
    check.list(path, parts.len())?;
    for (i, part) in parts.iter().enumerate() {
        let path = path.index(i);
        match part {
            OutputPart::Text(text) | OutputPart::Reasoning(text) => check.string(path, text)?,
            OutputPart::ToolCall(call) => {
                check.string(path.field("name"), &call.name)?;
                check.arguments(path.field("arguments"), &call.arguments)?;
            }
            OutputPart::Malformed(malformed) => {
                check.string(path.field("raw"), &malformed.raw)?;
                check.string(path.field("message"), &malformed.message)?;
            }
        }
    }
    Ok(())
}

fn pieces(pieces: &[Piece]) -> usize {
    pieces.iter().map(|(Piece::Text(text) | Piece::Special(text))| text.len()).sum()
}

/// Bytes of text in a conversation, for the fuel of rendering it.
pub(crate) fn size(conversation: &Conversation) -> usize {
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let messages = conversation.messages.iter().map(|message| {
        let content = match &message.content {
            Content::None => 0,
            Content::Text(text) | Content::Json(text) => text.len(),
        };
        let calls = message.tool_calls.iter().map(|call| {
            let (CallArguments::Json(arguments) | CallArguments::Text(arguments)) = &call.arguments;
            call.name.len() + arguments.len()
        });
        message.role.len() + content + optional(&message.reasoning_content) + calls.sum::<usize>()
    });
    messages.sum::<usize>() + conversation.tools.iter().map(String::len).sum::<usize>() + optional(&conversation.template_args)
}

/// Reads the output of one generation while it grows. Made by [`Template::output_parser`].
pub struct OutputParser {
    plugin: Arc<Plugin>,
    guest: Guest<World>,
    parser: ResourceAny,
}

impl OutputParser {
    /// Takes the next pieces of the output and gives what is certain by now.
    ///
    /// # Errors
    /// If the plugin traps, runs into a limit or returns a bad value. The parser is then of no more use.
    pub fn push(&mut self, new: &[Piece]) -> Result<Vec<OutputPart>, PluginError> {
        let parser = self.parser;
        let load = Load { rows: new.len(), bytes: pieces(new) };
        let parts = self.guest.call(PUSH, load, |b, s| b.trainer_chat_template_template().output_parser().call_push(s, parser, new))?;
        self.checked(PUSH, parts)
    }

    /// The output has ended: gives what was held back.
    ///
    /// # Errors
    /// As for [`Self::push`].
    pub fn finish(mut self) -> Result<Vec<OutputPart>, PluginError> {
        let parser = self.parser;
        let parts =
            self.guest.call(FINISH, Load::default(), |b, s| b.trainer_chat_template_template().output_parser().call_finish(s, parser))?;
        self.checked(FINISH, parts)
    }

    fn checked(&self, export: &'static str, parts: Vec<OutputPart>) -> Result<Vec<OutputPart>, PluginError> {
        let at = place(self.plugin.manifest(), export);
        output_parts(&Check { at: &at, limits: self.plugin.limits() }, Path::Root("parts"), &parts)?;
        Ok(parts)
    }
}
