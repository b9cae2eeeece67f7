//! Runs plugins: WebAssembly components found by their type, linked to nothing by default, limited in everything, compiled in a child process.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use trainer_plugin_host::{CompilerCommand, HostOptions, Limits, PluginHost, PluginSource};
//!
//! let host = PluginHost::new(HostOptions::new(CompilerCommand::current_exe()?))?;
//! let plugin = host.load(&PluginSource::File("math_mix.wasm".into()), Limits::default())?;
//! let formatter = plugin.formatter(&serde_json::json!({}))?;
//! for outcome in formatter.format(&[r#"{"problem": "1 + 1?", "generated_solution": "2"}"#.to_owned()])? {
//!     println!("{outcome:?}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What a plugin can reach
//! Nothing. The one import that every plugin has is `trainer:host/log@0.1.0`, whose lines go to `tracing`, counted and cut. Tools that
//! declare it may also send requests to servers that the user granted, with secrets that they never see ([`Grants`]). Components of language
//! runtimes that import WASI get an empty world: no files, no network, clocks that stand still, random bytes from a fixed seed. A component
//! that imports anything else is refused before it is compiled.
//!
//! # What stops a plugin
//! [`Limits`]: memory, tables, stack, fuel (deterministic: about one unit per instruction), wall-clock deadline, size of what it returns.
//! Every returned value is checked before anybody sees it. A trap, a deterministic limit or a bad value costs the row: a batch that
//! fails is repeated row by row in fresh instances. A deadline is no property of the row and stops the run, which can be resumed.
//!
//! # Where the code comes from
//! Components are compiled in a child process under limits ([`compile_main`]); the result is cached per user under a keyed digest,
//! because loading compiled code is running it (see the `cache` module's source).

mod bindings;
mod cache;
mod call;
mod capability;
mod check;
mod clients;
mod compile;
pub mod confine;
pub mod dynamic;
mod engine;
mod error;
mod features;
mod host;
mod inspect;
mod instance;
mod kind;
mod limits;
mod manifest;
pub mod schema;
mod settings;
mod wasi;

pub use cache::make_private;
pub use capability::{
    AddressRange, GrantError, Grants, Method, Need, Network, Outgoing, Recorder, Resolver, SecretGrant, SecretSource, ServerPattern,
    SystemResolver, Transport,
};
pub use clients::formatter::{Formatter, RowOutcome};
pub use clients::metric::Metric;
pub use clients::mixer::{Mixer, MixerSetup};
pub use clients::template::{OutputParser, Template};
pub use clients::tools::{ToolContext, ToolSession};
pub use compile::{CompilerCommand, SUBCOMMAND as COMPILER_SUBCOMMAND, compile_main};
pub use error::{Place, PluginError, RowError};
pub use host::{HostOptions, Plugin, PluginHost, PluginSource};
pub use inspect::{Inspection, inspect};
pub use kind::{Kind, KindVersion, UnknownKind};
pub use limits::{ByteSize, Limits, Span};
pub use manifest::Manifest;

/// A conversation and its parts: the types that all kinds share (`wit/conversation`).
pub mod types {
    pub use crate::bindings::shared::trainer::conversation::types::{
        CallArguments, Content, Conversation, Json, Message, SpanWeight, ToolCall,
    };
}

/// Kind `dataset-formatter` (`wit/dataset-formatter`).
pub mod formatter {
    pub use crate::clients::formatter::{Formatter, RowOutcome};
}

/// Kind `chat-template` (`wit/chat-template`).
pub mod template {
    pub use crate::bindings::template::exports::trainer::chat_template::template::{
        Description, MalformedCall, OutputPart, ParsedCall, Piece, PromptRequest, Rendered, Segment,
    };
    pub use crate::clients::template::{OutputParser, Template};
}

/// Kind `mixing-policy` (`wit/mixing-policy`).
pub mod mixing {
    pub use crate::bindings::policy::exports::trainer::mixing_policy::policy::{Draw, Feedback, Source, SourceLoss};
    pub use crate::clients::mixer::{Mixer, MixerSetup};
}

/// Kind `tool-executor` (`wit/tool-executor`).
pub mod tools {
    pub use crate::bindings::executor::exports::trainer::tool_executor::executor::{Call, Outcome, Tool};
    pub use crate::clients::tools::{ToolContext, ToolSession};
}

/// Requests of tools (`wit/http`).
pub mod http {
    pub use crate::capability::http::{Error, Header, Request, Response};
    pub use crate::capability::{Answer, Body, Exchange};
}

/// Kind `eval-metric` (`wit/eval-metric`).
pub mod metric {
    pub use crate::bindings::metric::exports::trainer::eval_metric::metric::{
        Answer, Call, Finish, Generation, Item, Likelihood, Plan, Request, Response, SampleScore as Score, Summary as Aggregate, Value,
    };
    pub use crate::clients::metric::Metric;
}
