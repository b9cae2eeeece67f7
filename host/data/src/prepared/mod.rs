//! Prepared data: what became of every row of a source, kept on disk so that a run need not format, render and tokenize it again.
//!
//! An entry belongs to one source under everything that decides its samples ([`identity`]): the digests of its files and what is selected of them,
//! formatter, template and tokenizer with digests, settings and limits, the rules about length and targets, and this program's own data path. Its name is
//! the digest of that description, which also stands in the file and is compared whole. So an entry that is found is one that fits; there is nothing to
//! invalidate, and what no longer fits is only space to be freed ([`PreparedStore::entries`]).
//!
//! An entry appears by renaming a finished file, and each record carries a digest over the entry's name, its own place and its bytes, checked before it is
//! used. A record that fails is computed from its row as if there were no entry. Readers hold one file open and no index, so memory does not depend on
//! how many rows there are.

mod entry;
mod make;
mod record;
mod store;

pub use make::{Preparation, PrepareProgress, prepare};
pub use store::{EntryInfo, EntryState, PreparedStore, StoreError};

pub(crate) use entry::PreparedSource;

use serde_json::{Value, json};

use crate::pipeline::PipelineSpec;
use crate::source::Access;

/// The format of entries.
pub(crate) const FORMAT: u32 = 1;
/// This program's data path: see `build.rs`.
pub(crate) const DATA_PATH: &str = env!("TRAINER_DATA_PATH");

/// Everything that decides what the rows of a source become; none where a stage cannot tell (or depends on more than it is given), so that nothing may
/// be kept.
pub(crate) fn identity(spec: &PipelineSpec, source: usize) -> Option<Value> {
    let input = spec.sources.get(source)?;
    let (formatter, template, tokenizer) = (input.formatter.identity()?, spec.template.identity()?, spec.tokenizer.identity()?);
    let files: Vec<Value> =
        input.source.files().iter().map(|f| json!({ "sha256": f.sha256, "bytes": f.bytes, "format": f.format, "rows": f.rows })).collect();
    let access = match input.source.access() {
        Access::Random => "random",
        Access::Stream { .. } => "stream",
    };
    Some(json!({
        "format": FORMAT,
        "data_path": DATA_PATH,
        "files": files,
        "access": access,
        "view": input.source.view(),
        "rows": input.source.len(),
        "formatter": formatter,
        "template": template,
        "tokenizer": tokenizer,
        "train_on": spec.train_on,
        "max_seq_length": spec.max_seq_length,
        "too_long": spec.too_long,
        "truncation_side": spec.truncation_side,
        "no_target": spec.no_target,
    }))
}
