//! The base model of a recipe or a command, in host memory.

use std::sync::Arc;

use trainer_config::{ModelSource, Quantization};
use trainer_hub::{Headers, Wanted};
use trainer_model::{
    Checkpoint, GenerationConfig, LoadOptions, ModelConfig, ModelFiles, ModelWeights, PendingDigest, Quantize, load_weights,
};
use trainer_text::Tokenizer;

use crate::error::RuntimeError;

/// Above this size a tokenizer file is a mistake.
const TOKENIZER_LIMIT: u64 = 256 << 20;

/// A base model.
pub struct Base {
    /// `nano`, the folder, or the name on a hub.
    pub name: String,
    /// Its files.
    pub files: ModelFiles,
    /// config.json.
    pub config: ModelConfig,
    /// The tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The weights.
    pub weights: ModelWeights,
    /// Digests of its files, for the lock, which are being computed.
    pub digest: PendingDigest,
    /// Tokens that end an answer: the generation settings' over the model's.
    pub eos: Vec<u32>,
}

/// The files of a recipe's model; those of a hub are fetched as far as they are not in its cache.
///
/// # Errors
/// A hub that does not give them.
pub fn model_files(source: &ModelSource) -> Result<ModelFiles, RuntimeError> {
    files_of(source, &Wanted::Model)
}

/// The same without weights, as far as they would have to be fetched: configuration and tokenizer.
///
/// # Errors
/// A hub that does not give them.
pub fn model_texts(source: &ModelSource) -> Result<ModelFiles, RuntimeError> {
    files_of(source, &Wanted::Texts)
}

/// A model's files to look at: of a hub's, only the headers of the weights, which are gone with the second value.
///
/// # Errors
/// A hub that does not give them.
pub fn model_headers(source: &ModelSource) -> Result<(ModelFiles, Option<Headers>), RuntimeError> {
    match source {
        ModelSource::Hub(repo) => {
            let headers = crate::hub::headers(repo)?;
            Ok((ModelFiles::dir(headers.dir()), Some(headers)))
        }
        other => Ok((model_files(other)?, None)),
    }
}

fn files_of(source: &ModelSource, wanted: &Wanted) -> Result<ModelFiles, RuntimeError> {
    Ok(match source {
        ModelSource::Nano => ModelFiles::Embedded(trainer_nano::MODEL_FILES),
        ModelSource::Folder(path) => ModelFiles::dir(path),
        ModelSource::Hub(repo) => ModelFiles::dir(crate::hub::model(repo, wanted)?.dir),
    })
}

fn tokenizer_of(files: &ModelFiles) -> Result<Tokenizer, RuntimeError> {
    Ok(match files {
        ModelFiles::Dir(path) => Tokenizer::from_dir(path)?,
        ModelFiles::Embedded(_) | ModelFiles::Gguf(_) => {
            let read = |name: &str| files.read(name, TOKENIZER_LIMIT);
            let json = read("tokenizer.json")?.unwrap_or_default();
            Tokenizer::from_bytes(&json, read("tokenizer_config.json")?.as_deref(), read("generation_config.json")?.as_deref())?
        }
    })
}

/// Loads a model's tokenizer without its weights.
///
/// # Errors
/// Files that are missing or broken.
pub fn load_tokenizer(source: &ModelSource) -> Result<Arc<Tokenizer>, RuntimeError> {
    Ok(Arc::new(tokenizer_of(&model_texts(source)?)?))
}

/// Loads a base model. Plain weights are quantized while loading where the recipe says so; with `defer` those in bfloat16 stay in their files, and
/// are quantized when and where a device takes them ([`trainer_kernels::ops::Ops::reads_weights`]).
///
/// # Errors
/// Files that are missing, broken, or of another architecture; each error names file and tensor or key.
pub fn load_base(source: &ModelSource, quantization: Quantization, defer: bool) -> Result<Base, RuntimeError> {
    let files = model_files(source)?;
    let digest = PendingDigest::start(files.clone());
    let (config, tokenizer, weights, eos) = read_base(&files, quantization, defer)?;
    Ok(Base { name: name_of(source), files, config, tokenizer: Arc::new(tokenizer), weights, digest, eos })
}

/// How people call a model: `nano`, its folder, or its name on a hub, which is what PEFT keeps too.
fn name_of(source: &ModelSource) -> String {
    match source {
        ModelSource::Hub(repo) => repo.id().to_owned(),
        other => other.to_string(),
    }
}

type Parts = (ModelConfig, Tokenizer, ModelWeights, Vec<u32>);

fn read_base(files: &ModelFiles, quantization: Quantization, defer: bool) -> Result<Parts, RuntimeError> {
    let config = ModelConfig::read(files)?;
    let generation = GenerationConfig::read(files)?;
    let tokenizer = tokenizer_of(files)?;
    let quantize = match quantization {
        Quantization::Nf4 => Quantize::Nf4Double,
        Quantization::None => Quantize::None,
        Quantization::AsStored => Quantize::AsStored,
    };
    let checkpoint = Checkpoint::open(files)?;
    let weights = load_weights(&checkpoint, &config, LoadOptions { quantize, defer, ..LoadOptions::default() })?;
    let mut eos = tokenizer.eos_ids().to_vec();
    for id in generation.eos_token_ids.iter().chain(&config.eos_token_ids) {
        if !eos.contains(id) {
            eos.push(*id);
        }
    }
    Ok((config, tokenizer, weights, eos))
}
