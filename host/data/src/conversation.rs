//! The types that stages hand to each other: those of the plugin host and of the tokenizer.

pub use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message, SpanWeight, ToolCall};
pub use trainer_text::Piece;
