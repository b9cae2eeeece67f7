//! The recipe's data, opened.

use std::sync::Arc;

use trainer_config::{DataPath, Recipe, SourceFormat};
use trainer_data::{Access, Filter, Format, Holdout, Order, RowView, Source, SourceSpec};

use crate::error::RuntimeError;

/// What the data crate needs to know to open a recipe's `path` under a name.
fn source_spec(name: &str, path: &DataPath, format: SourceFormat) -> Result<SourceSpec, RuntimeError> {
    let mut spec = match path {
        DataPath::Path(path) => SourceSpec::paths(name, [path.to_string_lossy().into_owned()]),
        DataPath::Hub(repo) => SourceSpec::paths(name, crate::hub::data_files(repo)?.iter().map(|p| p.to_string_lossy().into_owned())),
        DataPath::Builtin(builtin) => {
            let file = trainer_nano::data(builtin).ok_or_else(|| RuntimeError::UnknownData {
                name: builtin.clone(),
                known: trainer_nano::DATA_FILES.iter().map(|f| f.name).collect(),
            })?;
            SourceSpec::embedded(name, format!("builtin:{}", file.file), file.bytes)
        }
        // The recipe's check has refused it wherever there is no recipe to look the source up in.
        DataPath::Holdout(source) => return Err(RuntimeError::NoHoldout { name: source.clone() }),
    };
    spec.format = match format {
        SourceFormat::Auto => None,
        SourceFormat::Jsonl => Some(Format::Jsonl),
        SourceFormat::Json => Some(Format::Json),
        SourceFormat::Parquet => Some(Format::Parquet),
        SourceFormat::Csv => Some(Format::Csv),
        SourceFormat::Arrow => Some(Format::Arrow),
    };
    Ok(spec)
}

/// A source of the recipe: the rows to train on, or those that are held out.
fn recipe_source(setting: &trainer_config::Source, held_out: bool) -> Result<SourceSpec, RuntimeError> {
    let mut spec = source_spec(&setting.name, &setting.path, setting.format)?;
    let filter = |f: &trainer_config::Filter| Filter {
        column: f.column.clone(),
        is: f.is.0.clone(),
        is_not: f.is_not.0.clone(),
        contains: f.contains.clone(),
        min: f.min,
        max: f.max,
        min_length: f.min_length,
        max_length: f.max_length,
        present: f.present,
    };
    spec.view = RowView {
        filters: setting.filter.iter().map(filter).collect(),
        holdout: (setting.holdout > 0.0).then(|| Holdout { share: setting.holdout, by: setting.holdout_by.clone(), held_out }),
        // The limit is one on what is trained on.
        limit: setting.limit.filter(|_| !held_out),
        columns: setting.columns.iter().map(|(name, column)| (name.clone(), column.clone())).collect(),
    };
    spec.weight = setting.weight;
    if !setting.shuffle || held_out {
        spec.order = Order::File;
    }
    if setting.shuffle_window > 0 && !held_out {
        spec.access = Access::Stream { window: setting.shuffle_window };
    }
    Ok(spec)
}

/// All training sources, in the recipe's order.
///
/// # Errors
/// A file is missing, empty or broken.
pub fn open_sources(recipe: &Recipe) -> Result<Vec<Arc<Source>>, RuntimeError> {
    recipe.data.sources.iter().map(|s| Ok(Arc::new(Source::open(recipe_source(s, false)?)?))).collect()
}

/// The rows that sources hold out of training, in file order, each with its source's place in the recipe. At most `eval.limit` of each.
///
/// # Errors
/// As [`open_sources`].
pub fn open_held_out(recipe: &Recipe) -> Result<Vec<(usize, Arc<Source>)>, RuntimeError> {
    let holding = recipe.data.sources.iter().enumerate().filter(|(_, s)| s.holdout > 0.0);
    let open = |(i, setting): (usize, &trainer_config::Source)| {
        let mut spec = recipe_source(setting, true)?;
        spec.view.limit = recipe.eval.limit;
        Ok((i, Arc::new(Source::open(spec)?)))
    };
    holding.map(open).collect()
}

/// The rows that the recipe evaluates on, in file order.
///
/// # Errors
/// As [`open_sources`].
pub fn eval_source(recipe: &Recipe) -> Result<Source, RuntimeError> {
    let eval = &recipe.eval;
    if let DataPath::Holdout(name) = &eval.data {
        let setting = recipe.data.sources.iter().find(|s| s.name == *name && s.holdout > 0.0);
        let setting = setting.ok_or_else(|| RuntimeError::NoHoldout { name: name.clone() })?;
        return Ok(Source::open(recipe_source(setting, true)?)?);
    }
    let mut spec = source_spec("eval", &eval.data, eval.format)?;
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
