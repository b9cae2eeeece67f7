//! The recipe's data, opened.

use std::sync::Arc;

use trainer_config::{DataPath, Recipe, SourceFormat};
use trainer_data::{Format, Order, Source, SourceSpec};

use crate::error::RuntimeError;

/// What the data crate needs to know to open a recipe's `path` under a name.
///
/// # Errors
/// A `builtin:` name that is not embedded.
pub fn source_spec(name: &str, path: &DataPath, format: SourceFormat) -> Result<SourceSpec, RuntimeError> {
    let mut spec = match path {
        DataPath::Path(path) => SourceSpec::paths(name, [path.to_string_lossy().into_owned()]),
        DataPath::Builtin(builtin) => {
            let file = trainer_nano::data(builtin).ok_or_else(|| RuntimeError::UnknownData {
                name: builtin.clone(),
                known: trainer_nano::DATA_FILES.iter().map(|f| f.name).collect(),
            })?;
            SourceSpec::embedded(name, format!("builtin:{}", file.file), file.bytes)
        }
    };
    spec.format = match format {
        SourceFormat::Auto => None,
        SourceFormat::Jsonl => Some(Format::Jsonl),
        SourceFormat::Json => Some(Format::Json),
        SourceFormat::Parquet => Some(Format::Parquet),
        SourceFormat::Csv => Some(Format::Csv),
    };
    Ok(spec)
}

/// All training sources, in the recipe's order.
///
/// # Errors
/// A file is missing, empty or broken.
pub fn open_sources(recipe: &Recipe) -> Result<Vec<Arc<Source>>, RuntimeError> {
    recipe.data.sources.iter().map(|s| Ok(Arc::new(Source::open(source_spec(&s.name, &s.path, s.format)?)?))).collect()
}

/// The rows to evaluate on, in file order.
///
/// # Errors
/// As [`open_sources`].
pub fn eval_source(path: &DataPath, format: SourceFormat) -> Result<Source, RuntimeError> {
    let mut spec = source_spec("eval", path, format)?;
    spec.order = Order::File;
    Ok(Source::open(spec)?)
}

/// sha256 over the names' order and the digests of a source's files, hexadecimal.
pub fn source_digest(source: &Source) -> String {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for file in source.files() {
        hash.update(file.sha256.as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
