//! The SDK for `trainer` plugins in Rust.
//!
//! A plugin implements one trait per kind ([`Formatter`], [`Template`], [`Policy`], [`Executor`], [`Metric`]) and names them in
//! [`plugin!`]. The traits are plain Rust: they can be tested natively, without WebAssembly. One component may carry several kinds.
//!
//! ```
//! use trainer_plugin_sdk::{Conversation, Formatter, Message, NoSettings, Outcome, RowError, parse_row, plugin};
//!
//! struct Answers;
//!
//! #[derive(serde::Deserialize)]
//! struct Row { question: String, answer: String }
//!
//! impl Formatter for Answers {
//!     type Settings = NoSettings;
//!     fn new(_: NoSettings) -> Result<Self, String> { Ok(Self) }
//!     fn format(&self, row: &str) -> Result<Outcome, RowError> {
//!         let row: Row = parse_row(row)?;
//!         Ok(Outcome::Sample(Conversation::of([Message::user(row.question), Message::assistant(row.answer)])))
//!     }
//! }
//!
//! plugin! { name: "answers", description: "Question and answer columns", formatter: Answers, }
//! # fn main() {}
//! ```
//!
//! A newer version of a kind is a module of its own behind a feature, so that the components of older plugins stay as they are, to the byte:
//! `metric_0_2`.
//!
//! A panic ends the call; its message reaches the user through the host's log. A settings type derives `serde::Deserialize`; give it
//! `#[serde(default, deny_unknown_fields)]` so that every setting is optional and a misspelt one is refused.

pub mod adapter;
pub mod allocator;
pub mod bindings;
pub mod http;
mod json;
pub mod log;
#[macro_use]
mod macros;
#[cfg(feature = "metric_0_2")]
pub mod metric_0_2;
mod row;
pub mod scan;
pub mod secrets;
mod traits;
mod types;

pub use json::{Object, Pointer, RowError, parse_row};
pub use traits::{Executor, Formatter, Metric, NoSettings, OutputParser, Policy, Session, Template};
pub use types::*;

/// What the macros use; no part of the interface.
#[doc(hidden)]
pub mod internal {
    /// The length of [`join`]'s result.
    pub const fn length(parts: &[&str]) -> usize {
        let (mut sum, mut i) = (0, 0);
        while i < parts.len() {
            sum += parts[i].len();
            i += 1;
        }
        sum
    }

    /// Joins strings at compile time.
    pub const fn join<const N: usize>(parts: &[&str]) -> [u8; N] {
        let (mut out, mut at, mut i) = ([0; N], 0, 0);
        while i < parts.len() {
            let (part, mut j) = (parts[i].as_bytes(), 0);
            while j < part.len() {
                out[at] = part[j];
                at += 1;
                j += 1;
            }
            i += 1;
        }
        out
    }

    /// A slice as an array at compile time.
    pub const fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        let (mut out, mut i) = ([0; N], 0);
        while i < N {
            out[i] = bytes[i];
            i += 1;
        }
        out
    }
}
