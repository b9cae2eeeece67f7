//! The empty world: what meets the WASI imports of language runtimes, so that a component of theirs imports nothing but what every plugin may.

use std::path::Path;

use wit_component::StringEncoding;
use wit_parser::Resolve;

use crate::Error;
use crate::bindings::{WIT_VERSION, push, select_world};

/// The import module that the adapter stands for.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";

/// The adapter as a module with its component type; see `adapter/empty-world.wat`.
pub(crate) const EMPTY_WORLD: &[u8] = include_bytes!("../adapter/empty-world.wasm");

/// Adds to the adapter's module, translated from its text, the component type that the encoder asks for. `wit` is the folder of WIT packages.
pub fn with_type(mut module: Vec<u8>, wit: &Path) -> Result<Vec<u8>, Error> {
    let mut resolve = Resolve::default();
    push(&mut resolve, wit, "host")?;
    let world = format!("package trainer:adapter;\nworld adapter {{\n  import trainer:host/log@{WIT_VERSION};\n}}\n");
    let package = resolve.push_str("adapter.wit", &world).map_err(|e| Error::invalid("the adapter's world", e))?;
    let world = select_world(&resolve, package, "adapter")?;
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .map_err(|e| Error::invalid("the adapter", e))?;
    Ok(module)
}
