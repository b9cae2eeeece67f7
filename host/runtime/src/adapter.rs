//! What identifies an adapter.

use sha2::{Digest, Sha256};
use trainer_model::Adapter;

use crate::error::RuntimeError;

/// sha256 over an adapter's two files as they are written, hexadecimal.
///
/// # Errors
/// Values that do not fit their sizes.
pub fn adapter_digest(adapter: &Adapter) -> Result<String, RuntimeError> {
    let (config, weights) = adapter.to_files()?;
    let mut hash = Sha256::new();
    hash.update(config);
    hash.update(weights);
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
