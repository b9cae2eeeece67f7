//! Model folders: config.json, safetensors checkpoints (16-bit and bitsandbytes 4-bit), GGUF files and PEFT adapters, read with checks and written
//! atomically.
//!
//! Everything here is untrusted input: sizes are checked against the file before they are used, nothing is executed (no pickle), and every
//! error names the file, the key or tensor, and what to do.
//!
//! ```text
//! ModelFiles ──> ModelConfig, GenerationConfig        config.json, generation_config.json
//!        └─────> Checkpoint ──> load_weights          *.safetensors, tensor by tensor
//!                Checkpoint, adapter ──> ModelTree    for looking at
//! Adapter::read / Adapter::write                      adapter_config.json, adapter_model.safetensors
//! ```

pub mod adapter;
mod adapter_config;
mod adapter_match;
mod bnb;
pub mod chat_template;
pub mod checkpoint;
pub mod config;
mod digest;
pub mod durable;
pub mod error;
pub mod files;
pub mod gguf;
mod json;
pub mod layout;
pub mod load;
pub mod quantization;
mod tensors;
pub mod tree;

pub use adapter::{Adapter, LoraModule};
pub use adapter_config::{AdapterBias, AdapterConfig};
pub use checkpoint::Checkpoint;
pub use config::{GenerationConfig, ModelConfig};
pub use digest::{FileDigest, ModelDigest, PendingDigest};
pub use error::ModelError;
pub use files::ModelFiles;
pub use gguf::GgufFile;
pub use load::{LayerWeights, LinearWeight, LoadOptions, ModelWeights, Quantize, check_tensors, load_weights};
pub use quantization::QuantizationConfig;
pub use tensors::{Dtype, StoredTensor, TensorInfo, TensorValues};
pub use trainer_kernels::nf4::FloatType;
pub use tree::ModelTree;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, ModelError>;
