//! Models for other programs: adapters for PEFT, merged checkpoints in 16 bits and in bitsandbytes' 4 bits, GGUF files for llama.cpp and Ollama.
//!
//! Every export is written under a temporary name, read again from disk, compared with what was meant to be written, and only then gets its name.
//! Weights go through memory tensor by tensor.
//!
//! ```text
//! Subject (base, original weights, adapter, lock)
//!    ├─> adapter.rs                       the adapter with tokenizer and card
//!    ├─> merged.rs ──> safetensors.rs     W + scale B A, in 16 bits or through bnb.rs in 4
//!    ├─> quantize.rs ─┘                   a checkpoint in 4 bits
//!    └─> gguf/                            F16, BF16, Q8_0, Q4_K_M
//! folder.rs: tokenizer, template, generation settings beside them; card.rs: the README
//! ```

mod adapter;
mod bnb;
mod card;
mod dense;
mod error;
mod folder;
pub mod gguf;
mod merged;
mod quantize;
mod safetensors;
mod subject;

pub use adapter::export_adapter;
pub use error::ExportError;
pub use folder::token_notes;
pub use gguf::{GgufQuant, export_gguf};
pub use merged::{Merged, export_merged};
pub use quantize::{QuantizeOptions, quantize};
pub use safetensors::SHARD_LIMIT;
pub use subject::{Provenance, Subject, WeightOrigin};

use serde::Serialize;
use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, ExportError>;

/// What an export wrote.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exported {
    /// The folder or file.
    pub path: PathBuf,
    /// What it is, such as `merged-16bit`.
    pub format: String,
    /// Which weights an adapter was merged into; none where nothing was merged.
    pub weights: Option<String>,
    /// Tensors that were read again and found equal.
    pub verified_tensors: usize,
    /// Bytes of all files.
    pub bytes: u64,
    /// What else the user should know.
    pub notes: Vec<String>,
}
