//! GGUF files for llama.cpp and Ollama.
//!
//! ```text
//! metadata.rs   architecture, tokenizer, chat template
//! mix.rs        which tensor is stored how
//! encode.rs     f32 values to blocks
//! write.rs      the file
//! modelfile.rs  Ollama's Modelfile beside it
//! ```

mod encode;
mod metadata;
mod mix;
mod modelfile;
mod write;

pub use encode::pack;
pub use mix::GgufQuant;

use crate::card::{self, Card};
use crate::folder::{Folder, companions};
use crate::subject::Subject;
use crate::{ExportError, Exported, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::path::Path;
use trainer_model::gguf::{GgmlType, names};
use trainer_model::layout::{ModelTensor, TensorRole};
use trainer_model::{GgufFile, durable};
use write::{Planned, Writer};

/// The file in a folder of an export.
const MODEL: &str = "model.gguf";

/// Writes a GGUF file with the adapter merged in: `out` is a file ending in `.gguf`, or a folder, which also gets a Modelfile, a card and the lock.
///
/// # Errors
/// A place that is not free, a tokenizer that GGUF has no name for, values that the type cannot hold, what the operating system refuses, and a file
/// that differs when it is read again.
pub fn export_gguf(subject: &Subject, quant: GgufQuant, out: &Path) -> Result<Exported> {
    let single = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if single && out.symlink_metadata().is_ok() {
        return Err(ExportError::Occupied { path: out.to_path_buf() });
    }
    // A file is made in a folder of its own beside its place, too, so that it appears complete.
    let place = if single { out.with_extension("gguf.export") } else { out.to_path_buf() };
    let folder = Folder::create(&place)?;
    let path = folder.path().join(MODEL);
    let (_, notes) = companions(&subject.files, &subject.config)?;
    let verified = write_file(subject, quant, &path)?;
    let origin = subject.origin().sentence();
    let weights = subject.adapter.as_ref().map(|_| origin.clone());
    let mut done = Exported {
        path: out.to_path_buf(),
        format: format!("gguf {}", quant.name()),
        weights,
        verified_tensors: verified,
        bytes: 0,
        notes,
    };
    if single {
        done.bytes = std::fs::metadata(&path).map_err(ExportError::io("read", &path))?.len();
        std::fs::rename(&path, out).map_err(ExportError::io("rename to", out))?;
        let above = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        durable::sync_folder(above)?;
        return Ok(done);
    }
    folder.write("Modelfile", modelfile::text(subject, MODEL)?)?;
    let merged = if subject.adapter.is_some() { format!("A LoRA adapter, {origin}") } else { "The base model".to_string() };
    card::write(
        &folder,
        subject,
        &Card {
            what: format!("{merged}, as a GGUF file in {} for llama.cpp and Ollama.", quant.name()),
            library: "gguf",
            tags: &["gguf", "llama.cpp"],
            usage: ("sh", "llama-cli -m PATH/model.gguf\nollama create NAME -f PATH/Modelfile".to_string()),
            verified,
            notes: &done.notes,
        },
    )?;
    done.bytes = folder.commit()?;
    Ok(done)
}

/// Writes the file and reads it again; says how many tensors are equal.
fn write_file(subject: &Subject, quant: GgufQuant, path: &Path) -> Result<usize> {
    let tensors = subject.tensors();
    let mut planned = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let name = names::to_gguf(&tensor.name).ok_or_else(|| ExportError::unfit(&tensor.name, "has no name in GGUF files"))?;
        planned.push(Planned { name, shape: tensor.shape.clone(), kind: mix::kind(subject, quant, tensor) });
    }
    let mut writer = Writer::create(path, &metadata::of(subject, quant)?, &planned)?;
    let mut digests: Vec<[u8; 32]> = Vec::with_capacity(tensors.len());
    for (tensor, plan) in tensors.iter().zip(&planned) {
        let bytes = encoded(subject, tensor, plan.kind)?;
        digests.push(Sha256::digest(&bytes).into());
        writer.tensor(&bytes)?;
    }
    writer.finish()?;
    verify(path, &planned, &digests)
}

/// A tensor's bytes.
fn encoded(subject: &Subject, tensor: &ModelTensor, kind: GgmlType) -> Result<Vec<u8>> {
    let values = subject.values(tensor)?;
    // Norms and biases are small, and kept in f32; matrices pass through the 16-bit type in which the merged model is exported, so that every export is
    // of one and the same model.
    let values = if tensor.role == TensorRole::Norm { values } else { crate::dense::rounded(values, subject.dtype()) };
    if let Some(at) = values.par_iter().position_first(|v| !v.is_finite()) {
        return Err(ExportError::unfit(&tensor.name, format!("value {at} is not finite")));
    }
    pack(kind, &values).map_err(|problem| ExportError::unfit(&tensor.name, problem))
}

fn verify(path: &Path, planned: &[Planned], digests: &[[u8; 32]]) -> Result<usize> {
    let wrong =
        |tensor: &str, problem: &str| ExportError::Verify { file: path.to_path_buf(), tensor: tensor.into(), problem: problem.into() };
    let file = GgufFile::open(path)?;
    for (plan, digest) in planned.iter().zip(digests) {
        match file.tensors().get(&plan.name) {
            None => return Err(wrong(&plan.name, "is not there")),
            Some(t) if t.kind != plan.kind || t.shape() != plan.shape => return Err(wrong(&plan.name, "has another type or shape")),
            Some(_) => {}
        }
        if <[u8; 32]>::from(Sha256::digest(&file.bytes(&plan.name)?)) != *digest {
            return Err(wrong(&plan.name, "differs from what was written"));
        }
    }
    if file.tensors().len() != planned.len() {
        return Err(wrong("(all)", "has company that was not to be written"));
    }
    // As a model: configuration, tokenizer and tensors of the checkpoint that the file stands for.
    let files = trainer_model::ModelFiles::dir(path);
    let config = trainer_model::ModelConfig::read(&files)?;
    trainer_model::check_tensors(&trainer_model::Checkpoint::open(&files)?, &config)?;
    Ok(planned.len())
}
