//! The contract's types under short names, with constructors for what plugins write most.

pub use crate::bindings::exports::trainer::chat_template::template::{
    Description, MalformedCall, OutputPart, ParsedCall, Piece, PromptRequest, Rendered, Segment,
};
pub use crate::bindings::exports::trainer::dataset_formatter::formatter::{BadRow, Outcome};
pub use crate::bindings::exports::trainer::eval_metric::metric::{
    Answer, Finish, Generation, Item, Likelihood, Plan, Request, Response, SampleScore as Score, Summary as Aggregate, Value,
};
pub use crate::bindings::exports::trainer::mixing_policy::policy::{Draw, Feedback, Setup, Source, SourceLoss};
pub use crate::bindings::exports::trainer::tool_executor::executor::{Call, Context, Outcome as CallOutcome, Tool};
pub use crate::bindings::trainer::conversation::types::{CallArguments, Content, Conversation, Json, Message, SpanWeight, ToolCall};

impl Message {
    /// A message with text and nothing else.
    pub fn text(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { content: Content::Text(content.into()), ..Self::empty(role) }
    }

    /// A message without a body.
    pub fn empty(role: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Content::None,
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            weight: None,
            spans: Vec::new(),
        }
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::text("user", content)
    }

    /// An assistant's message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::text("assistant", content)
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::text("system", content)
    }
}

impl Conversation {
    /// A conversation of these messages: no tools, no template arguments, weight 1.
    pub fn of(messages: impl Into<Vec<Message>>) -> Self {
        Self { messages: messages.into(), tools: Vec::new(), template_args: None, weight: 1.0 }
    }
}

impl Outcome {
    /// A bad row.
    pub fn bad(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Bad(BadRow { pointer: pointer.into(), message: message.into() })
    }
}

impl Piece {
    /// The characters of a piece, whichever kind it is.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Text(s) | Self::Special(s) => s,
        }
    }
}

impl Rendered {
    /// The whole text.
    pub fn text(&self) -> String {
        self.segments.iter().map(|s| s.piece.as_str()).collect()
    }
}
