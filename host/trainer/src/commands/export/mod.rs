//! `trainer export`: models for other programs.

pub mod args;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use trainer_export::{Exported, Merged, Provenance, Subject, export_adapter, export_gguf, export_merged};
use trainer_model::{Adapter, ModelDigest, ModelFiles};
use trainer_runtime::model_files;
use trainer_train::rundir::RunDir;

use super::model::named_model;
use crate::output::{check_json, write_json};
use crate::ui::bytes;
use args::{ExportArgs, ExportCommand};

/// Runs the command.
pub fn run(command: ExportCommand) -> Result<ExitCode> {
    let (args, dtype) = match &command {
        ExportCommand::Adapter(args) => (args, None),
        ExportCommand::Merged16(args) | ExportCommand::Merged4(args) => (&args.export, args.dtype.get()),
        ExportCommand::Gguf(args) => (&args.export, None),
    };
    check_json(args.json.as_deref())?;
    let subject = subject(args)?.in_type(dtype);
    let limit = shard_limit(args.shard_size);
    let exported = match &command {
        ExportCommand::Adapter(_) => export_adapter(&subject, &args.out)?,
        ExportCommand::Merged16(_) => export_merged(&subject, Merged::SixteenBit, limit, &args.out)?,
        ExportCommand::Merged4(_) => export_merged(&subject, Merged::FourBit, limit, &args.out)?,
        ExportCommand::Gguf(gguf) => export_gguf(&subject, gguf.quant.get(), &args.out)?,
    };
    done(&exported, args.json.as_deref())
}

/// Bytes of a shard.
pub fn shard_limit(gigabytes: f64) -> u64 {
    // In the range that the flag allows, exactly.
    (gigabytes * 1e9) as u64
}

/// Says what was written.
pub fn done(exported: &Exported, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(target) = json {
        write_json(target, exported)?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("{} written to {} ({})", exported.format, exported.path.display(), bytes(exported.bytes));
    if let Some(weights) = &exported.weights {
        say!("  {weights}");
    }
    say!("  {} tensors read again and equal", exported.verified_tensors);
    for note in &exported.notes {
        say!("  note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}

fn subject(args: &ExportArgs) -> Result<Subject> {
    let name = args.out.file_stem().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned());
    let original = args.base.as_deref().map(named_model).transpose()?.map(|(files, _)| files);
    let read = |folder: &Path| Adapter::read(&ModelFiles::dir(folder)).with_context(|| format!("the adapter in {}", folder.display()));
    if let Some(model) = &args.model {
        let (files, source) = named_model(model)?;
        let adapter = args.adapter.as_deref().map(read).transpose()?;
        return Ok(Subject::open(files, original, adapter, Provenance { name, base: source.to_string(), lock: None })?);
    }
    let Some(run) = &args.run else { bail!("give --run or --model") };
    let dir = RunDir::view(run)?;
    let lock = dir.lock()?;
    let recipe = super::recipe_of(&dir, &[])?;
    let folder = if args.best { dir.root().join("adapter-best") } else { dir.adapter_path() };
    if !folder.is_dir() {
        let why = if args.best {
            "the recipe's eval.best decides whether one is kept"
        } else {
            "it is written at the end; go on with `trainer run --resume`"
        };
        bail!("{} has no {}: {why}", run.display(), folder.file_name().unwrap_or_default().to_string_lossy());
    }
    let adapter = read(&folder)?;
    let files = model_files(&recipe.model.source)?;
    check_digest(&files, &lock.model.files)?;
    let digest = lock.digest()?;
    let provenance = Provenance { name, base: recipe.model.source.to_string(), lock: Some((serde_json::to_value(&lock)?, digest)) };
    Ok(Subject::open(files, original, Some(adapter), provenance)?)
}

/// Refuses a model that is not the one that the run had.
fn check_digest(files: &ModelFiles, locked: &std::collections::BTreeMap<String, String>) -> Result<()> {
    let now = ModelDigest::of(files)?;
    for (name, sha256) in locked {
        match now.files.iter().find(|f| f.name == *name) {
            Some(file) if file.sha256 == *sha256 => {}
            Some(_) => bail!("{} is not the file that the run was made with; put the original back", files.describe_file(name)),
            None => bail!("{} is missing, which the run was made with", files.describe_file(name)),
        }
    }
    Ok(())
}
