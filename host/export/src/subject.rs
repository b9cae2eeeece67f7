//! What is exported: a base model, an adapter on it, and where both came from.

use crate::{ExportError, Result};
use serde_json::Value;
use trainer_model::layout::{ModelTensor, TensorRole, tensors};
use trainer_model::load::{is_four_bit, read_matrix, read_nf4};
use trainer_model::{Adapter, AdapterBias, Checkpoint, Dtype, FloatType, ModelConfig, ModelFiles, ModelTree, check_tensors};

use trainer_kernels::nf4::Nf4;

/// Where a model came from, for the card.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    /// The name of the export, as its card says it.
    pub name: String,
    /// The base model, as its user named it.
    pub base: String,
    /// The run's lock file and its digest.
    pub lock: Option<(Value, String)>,
}

/// Which weights an adapter is merged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightOrigin {
    /// Weights as they were before any quantization, from here.
    Original {
        /// The folder.
        from: String,
    },
    /// 4-bit weights, unpacked.
    Dequantized {
        /// The folder or file.
        from: String,
        /// How they are stored, such as `NF4`.
        form: String,
    },
}

impl WeightOrigin {
    /// A sentence for cards and messages.
    pub fn sentence(&self) -> String {
        match self {
            Self::Original { from } => format!("merged into the original unquantized weights of {from}"),
            Self::Dequantized { from, form } => {
                format!("merged into dequantized weights ({form}) of {from}; their quantization error remains")
            }
        }
    }
}

/// A model to export.
pub struct Subject {
    pub(crate) files: ModelFiles,
    pub(crate) config: ModelConfig,
    checkpoint: Checkpoint,
    original: Option<(ModelFiles, Checkpoint)>,
    pub(crate) adapter: Option<Adapter>,
    pub(crate) provenance: Provenance,
    dtype: Option<FloatType>,
}

impl Subject {
    /// Opens and checks a base model with an adapter for it. `original` has the unquantized weights of the same model, into which the adapter is
    /// merged instead.
    ///
    /// # Errors
    /// Files that are missing or broken; tensors that are not the configuration's; an adapter of other shapes; original weights of another model, or
    /// that are quantized themselves.
    pub fn open(files: ModelFiles, original: Option<ModelFiles>, adapter: Option<Adapter>, provenance: Provenance) -> Result<Self> {
        let config = ModelConfig::read(&files)?;
        let checkpoint = Checkpoint::open(&files)?;
        // Checks the checkpoint's tensors and the adapter's shapes.
        ModelTree::new(&checkpoint, &config, adapter.as_ref())?;
        let original = original.map(|files| open_original(files, &config)).transpose()?;
        let subject = Self { files, config, checkpoint, original, adapter, provenance, dtype: None };
        if let Some(name) = subject.bias_without_place() {
            let problem = "the adapter trained a bias here, but the model has none: its configuration says attention_bias false";
            return Err(ExportError::unfit(name, problem));
        }
        Ok(subject)
    }

    /// Weights before the adapter.
    pub(crate) fn weights(&self) -> &Checkpoint {
        self.original.as_ref().map_or(&self.checkpoint, |(_, checkpoint)| checkpoint)
    }

    /// Which weights an adapter is merged into.
    pub fn origin(&self) -> WeightOrigin {
        if let Some((files, _)) = &self.original {
            return WeightOrigin::Original { from: files.describe() };
        }
        let from = self.provenance.base.clone();
        let projections = tensors(&self.config).filter(|t| t.role == TensorRole::Projection);
        let quantized = |t: ModelTensor| {
            let storage = self.checkpoint.storage(&t.name)?;
            let dense = matches!(storage.form.as_str(), "F32" | "F16" | "BF16");
            (!dense).then_some(storage.form)
        };
        match projections.filter_map(quantized).next() {
            Some(form) => WeightOrigin::Dequantized { from, form },
            None => WeightOrigin::Original { from },
        }
    }

    /// With dense weights in a type that the user chose.
    pub fn in_type(mut self, dtype: Option<FloatType>) -> Self {
        self.dtype = dtype;
        self
    }

    /// The type of dense weights in an export: what was chosen, else the weights' own 16-bit type where they have one, else bfloat16.
    pub(crate) fn dtype(&self) -> FloatType {
        if let Some(dtype) = self.dtype {
            return dtype;
        }
        match self.weights().tensor("model.embed_tokens.weight").map(|t| t.dtype) {
            Some(Dtype::F16) => FloatType::F16,
            Some(Dtype::BF16) => FloatType::Bf16,
            _ => match self.config.dtype {
                Some(FloatType::F16) => FloatType::F16,
                _ => FloatType::Bf16,
            },
        }
    }

    /// All tensors in the order in which they are written.
    pub(crate) fn tensors(&self) -> Vec<ModelTensor> {
        tensors(&self.config).collect()
    }

    /// Whether the adapter changes a tensor.
    pub(crate) fn changes(&self, tensor: &ModelTensor) -> bool {
        let Some(lora) = self.adapter.as_ref().and_then(|a| a.modules.get(tensor.module())) else { return false };
        match tensor.role {
            TensorRole::Projection => lora.rank > 0,
            TensorRole::Bias => lora.bias.is_some(),
            _ => false,
        }
    }

    /// The values of a tensor with the adapter merged in.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub(crate) fn values(&self, tensor: &ModelTensor) -> Result<Vec<f32>> {
        let weights = self.weights();
        Ok(match tensor.shape.as_slice() {
            &[out_features, in_features] => {
                let mut values = read_matrix(weights, &tensor.name, [out_features, in_features])?;
                if let Some(adapter) = self.adapter.as_ref().filter(|_| self.changes(tensor)) {
                    adapter.merge(tensor.module(), &mut values, out_features, in_features)?;
                }
                values
            }
            _ => match self.trained_bias(tensor) {
                Some(bias) => bias.to_vec(),
                None => weights.read(&tensor.name)?.to_f32()?,
            },
        })
    }

    /// The 4-bit form of a matrix that is stored so and that the adapter leaves alone.
    pub(crate) fn four_bit(&self, tensor: &ModelTensor) -> Result<Option<Nf4>> {
        let &[out_features, in_features] = tensor.shape.as_slice() else { return Ok(None) };
        if self.changes(tensor) {
            return Ok(None);
        }
        Ok(read_nf4(self.weights(), &tensor.name, [out_features, in_features])?)
    }

    /// Whether a matrix of the base, not of the original weights, is stored in 4 bits.
    pub(crate) fn base_is_four_bit(&self, tensor: &ModelTensor) -> bool {
        is_four_bit(&self.checkpoint, &tensor.name)
    }

    fn trained_bias(&self, tensor: &ModelTensor) -> Option<&[f32]> {
        self.adapter.as_ref().filter(|_| tensor.role == TensorRole::Bias)?.modules.get(tensor.module())?.bias.as_deref()
    }

    /// A module with a trained bias that the model has no place for.
    fn bias_without_place(&self) -> Option<String> {
        let adapter = self.adapter.as_ref().filter(|a| a.config.bias != AdapterBias::None)?;
        let places: std::collections::BTreeSet<String> =
            tensors(&self.config).filter(|t| t.role == TensorRole::Bias).map(|t| t.module().to_string()).collect();
        adapter.modules.iter().find(|(name, lora)| lora.bias.is_some() && !places.contains(*name)).map(|(name, _)| name.clone())
    }
}

/// Unquantized weights of the model with this configuration.
fn open_original(files: ModelFiles, config: &ModelConfig) -> Result<(ModelFiles, Checkpoint)> {
    let other = ModelConfig::read(&files)?;
    let what = files.describe();
    let sizes = |c: &ModelConfig| {
        let ModelConfig { vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, .. } = *c;
        let rest = (c.num_key_value_heads, c.head_dim, c.tie_word_embeddings, c.attention_bias);
        ([vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads], rest)
    };
    if sizes(&other) != sizes(config) || other.rope_theta != config.rope_theta || other.rms_norm_eps != config.rms_norm_eps {
        return Err(ExportError::unfit(
            what,
            "its configuration is not that of the model that was trained; give the unquantized weights of the same model",
        ));
    }
    let checkpoint = Checkpoint::open(&files)?;
    check_tensors(&checkpoint, &other)?;
    let projections = tensors(&other).filter(|t| t.role == TensorRole::Projection);
    for tensor in projections {
        match checkpoint.storage(&tensor.name) {
            Some(storage) if !matches!(storage.form.as_str(), "F32" | "F16" | "BF16") => {
                let problem = format!("{} is stored as {}; original weights must be unquantized", tensor.name, storage.form);
                return Err(ExportError::unfit(what, problem));
            }
            _ => {}
        }
    }
    Ok((files, checkpoint))
}
