//! Conversations in which the model calls tools.
//!
//! A [`Toolbox`] holds what can execute calls: tool plugins, or a tape of what they answered once. Each conversation is an [`Episode`]: it is
//! given what the model wrote, part by part, and says how the conversation goes on or why it has ended. It never touches the engine, so that hundreds
//! can be open at once, and it reaches nothing but the toolbox: nothing that a model writes can widen what a tool may do.
//!
//! Everything that a model wrote is untrusted. A call that is malformed, names no tool, does not fit the tool's schema or is too large is not
//! executed; the model is told in words that it can use. Calls of the history that a conversation begins with are left as they are.

mod case;
mod episode;
mod error;
mod json;
mod limits;
mod schema;
mod session;
mod tape;
mod toolbox;
mod transcript;

pub use case::{Case, Fixture};
pub use episode::{End, Episode, Next, Turn, TurnEnd, turn_seed};
pub use error::{NotOnTape, ToolsError};
pub use json::{canonical, equal};
pub use limits::Limits;
pub use session::{EpisodeKey, EpisodeTools};
pub use tape::{Tape, TapeEntry, TapeHeader, TapePlugin, TapeTimeout, write_tape};
pub use toolbox::{ToolPlugin, Toolbox};
pub use transcript::{By, CallRecord, ErrorKind, MessageRecord, Outcome, TimedOut, Transcript};
