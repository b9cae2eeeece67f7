//! Formatter and template of the main job as native code: the same Rust crates that the official components are built from, linked into the program for
//! this comparison and used for nothing else.

use anyhow::{Result, anyhow, bail};
use math_mix::formatter::OpenMathReasoning;
use qwen3_chat::Qwen3Chat;
use trainer_data::conversation::{CallArguments, Content, Conversation, Message, Piece, SpanWeight, ToolCall};
use trainer_data::stages::{RenderFault, RenderedSegment};
use trainer_data::{BadKind, FormatOutcome, RowFormatter, SampleTemplate, StageError};
use trainer_plugin_sdk as sdk;
use trainer_plugin_sdk::{Formatter as _, Template as _};

/// The formatter under its default settings.
pub struct NativeFormatter(OpenMathReasoning);

/// The template under its default settings.
pub struct NativeTemplate(Qwen3Chat);

impl NativeFormatter {
    /// Under its default settings.
    pub fn new() -> Result<Self> {
        Ok(Self(OpenMathReasoning::new(math_mix::Settings::default()).map_err(|e| anyhow!(e))?))
    }
}

impl NativeTemplate {
    /// Under its default settings.
    pub fn new() -> Result<Self> {
        Ok(Self(Qwen3Chat::new(qwen3_chat::Settings::default()).map_err(|e| anyhow!(e))?))
    }
}

/// Rows through both, as the plugins do it: without what the pipeline's own types cost.
pub fn format_and_render(rows: &[String], batch: usize) -> Result<()> {
    let (formatter, template) = (NativeFormatter::new()?, NativeTemplate::new()?);
    for rows in rows.chunks(batch) {
        let mut conversations = Vec::with_capacity(rows.len());
        for row in rows {
            match formatter.0.format(std::hint::black_box(row)) {
                Ok(sdk::Outcome::Sample(conversation)) => conversations.push(conversation),
                _ => bail!("an embedded row gave no sample"),
            }
        }
        for conversation in &conversations {
            std::hint::black_box(template.0.render_training(conversation).map_err(|e| anyhow!(e))?);
        }
    }
    Ok(())
}

impl RowFormatter for NativeFormatter {
    fn format(&self, rows: &[String]) -> Result<Vec<FormatOutcome>, StageError> {
        let one = |row: &String| match self.0.format(row).unwrap_or_else(Into::into) {
            sdk::Outcome::Sample(conversation) => FormatOutcome::Sample(from_sdk(conversation)),
            sdk::Outcome::Skip(reason) => FormatOutcome::Skip(reason),
            sdk::Outcome::Bad(bad) => FormatOutcome::Bad { pointer: bad.pointer, message: bad.message },
        };
        Ok(rows.iter().map(one).collect())
    }
}

impl SampleTemplate for NativeTemplate {
    fn render(&self, conversations: &[Conversation]) -> Result<Vec<Result<Vec<Vec<RenderedSegment>>, RenderFault>>, StageError> {
        let segment = |s: sdk::Segment| RenderedSegment {
            piece: match s.piece {
                sdk::Piece::Text(text) => Piece::Text(text),
                sdk::Piece::Special(token) => Piece::Special(token),
            },
            generated: s.generated,
            weight: s.weight,
            message: s.source_message,
        };
        let one = |conversation: &Conversation| match self.0.render_training(&to_sdk(conversation)) {
            Ok(samples) => Ok(samples.into_iter().map(|s| s.segments.into_iter().map(segment).collect()).collect()),
            Err(message) => Err(RenderFault { kind: BadKind::Template, message }),
        };
        Ok(conversations.iter().map(one).collect())
    }
}

fn from_sdk(conversation: sdk::Conversation) -> Conversation {
    let call = |c: sdk::ToolCall| ToolCall {
        id: c.id,
        name: c.name,
        arguments: match c.arguments {
            sdk::CallArguments::Json(json) => CallArguments::Json(json),
            sdk::CallArguments::Text(text) => CallArguments::Text(text),
        },
    };
    let message = |m: sdk::Message| Message {
        role: m.role,
        content: match m.content {
            sdk::Content::None => Content::None,
            sdk::Content::Text(text) => Content::Text(text),
            sdk::Content::Json(json) => Content::Json(json),
        },
        reasoning_content: m.reasoning_content,
        tool_calls: m.tool_calls.into_iter().map(call).collect(),
        tool_call_id: m.tool_call_id,
        name: m.name,
        weight: m.weight,
        spans: m.spans.into_iter().map(|s| SpanWeight { start: s.start, end: s.end, weight: s.weight }).collect(),
    };
    Conversation {
        messages: conversation.messages.into_iter().map(message).collect(),
        tools: conversation.tools,
        template_args: conversation.template_args,
        weight: conversation.weight,
    }
}

/// A copy: the pipeline keeps its own. It costs the native path about a hundredth of its time.
fn to_sdk(conversation: &Conversation) -> sdk::Conversation {
    let call = |c: &ToolCall| sdk::ToolCall {
        id: c.id.clone(),
        name: c.name.clone(),
        arguments: match &c.arguments {
            CallArguments::Json(json) => sdk::CallArguments::Json(json.clone()),
            CallArguments::Text(text) => sdk::CallArguments::Text(text.clone()),
        },
    };
    let message = |m: &Message| sdk::Message {
        role: m.role.clone(),
        content: match &m.content {
            Content::None => sdk::Content::None,
            Content::Text(text) => sdk::Content::Text(text.clone()),
            Content::Json(json) => sdk::Content::Json(json.clone()),
        },
        reasoning_content: m.reasoning_content.clone(),
        tool_calls: m.tool_calls.iter().map(call).collect(),
        tool_call_id: m.tool_call_id.clone(),
        name: m.name.clone(),
        weight: m.weight,
        spans: m.spans.iter().map(|s| sdk::SpanWeight { start: s.start, end: s.end, weight: s.weight }).collect(),
    };
    sdk::Conversation {
        messages: conversation.messages.iter().map(message).collect(),
        tools: conversation.tools.clone(),
        template_args: conversation.template_args.clone(),
        weight: conversation.weight,
    }
}
