//! What one episode may use up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits on one episode, or, in a chat, on what follows one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Turns of the model.
    pub turns: u32,
    /// Calls in all turns together, those that are refused included.
    pub calls: u32,
    /// Tokens that the model writes in all turns together; none: only each turn has a limit.
    pub generated_tokens: Option<u64>,
    /// Wall-clock time. None where results must not depend on how fast the machine is: in evaluations.
    pub wall_time: Option<Duration>,
    /// Bytes of one call's arguments.
    pub argument_bytes: usize,
    /// Nesting of one call's arguments.
    pub argument_depth: usize,
    /// Bytes of one result.
    pub result_bytes: usize,
    /// Bytes of all results together.
    pub all_result_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            turns: 8,
            calls: 32,
            generated_tokens: None,
            wall_time: None,
            argument_bytes: 64 << 10,
            argument_depth: 32,
            result_bytes: 64 << 10,
            all_result_bytes: 1 << 20,
        }
    }
}
