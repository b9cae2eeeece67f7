//! From a checkpoint to the weights that an engine takes: typed, checked, quantized while loading.

use crate::bnb;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::TensorProblems;
use crate::layout::{self, ModelTensor, TensorRole, norms, projections};
use crate::tensors::{Dtype, StoredTensor};
use crate::{ModelError, Result};
use half::bf16;
use rayon::prelude::*;
use std::collections::BTreeSet;
use trainer_kernels::nf4::{self, DoubleQuant, Nf4};
use trainer_kernels::ops::ReadMatrix;

/// What happens to the seven projections of each layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// NF4 with double quantization, from the stored type, as bitsandbytes does on loading. A checkpoint that is stored in 4 bits stays as
    /// it is, the modules that it left in 16 bits included.
    #[default]
    Nf4Double,
    /// Dense: 4-bit weights are unpacked to f32, exactly.
    None,
    /// Whatever form each is stored in.
    AsStored,
}

/// How [`load_weights`] loads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// The projections' form. The embedding, the norms and the output head are never quantized here.
    pub quantize: Quantize,
    /// How double quantization picks its codes.
    pub rounding: trainer_kernels::blockwise8::Rounding,
    /// Whether matrices in bfloat16 stay in their files ([`LinearWeight::Stored`]) until a device takes, and quantizes, them: for devices that do
    /// it faster, and so that host memory never holds them.
    pub defer: bool,
}

/// A frozen matrix `[out, in]`, row-major, in the type it was stored in (f16 became f32, exactly) or in NF4: a linear layer's weight with
/// its bias, or a table of `[vocabulary, hidden]`.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearWeight {
    /// NF4 blocks of shape `[out, in]`.
    Nf4 {
        /// The blocks.
        weight: Nf4,
        /// `[out]`, if the model has one.
        bias: Option<Vec<f32>>,
    },
    /// 32-bit floats.
    F32 {
        /// `out * in` values.
        values: Vec<f32>,
        /// Output features.
        out_features: usize,
        /// Input features.
        in_features: usize,
        /// `[out]`, if the model has one.
        bias: Option<Vec<f32>>,
    },
    /// bfloat16.
    Bf16 {
        /// `out * in` values.
        values: Vec<bf16>,
        /// Output features.
        out_features: usize,
        /// Input features.
        in_features: usize,
        /// `[out]`, if the model has one.
        bias: Option<Vec<f32>>,
    },
    /// bfloat16 that is still in its file.
    Stored {
        /// Where it is.
        tensor: StoredTensor,
        /// How it is quantized once it has been read.
        quantize: Option<DoubleQuant>,
        /// Output features.
        out_features: usize,
        /// Input features.
        in_features: usize,
        /// `[out]`, if the model has one.
        bias: Option<Vec<f32>>,
    },
}

impl LinearWeight {
    /// Output features, or rows of a table.
    pub fn out_features(&self) -> usize {
        match self {
            Self::Nf4 { weight, .. } => weight.rows(),
            Self::F32 { out_features, .. } | Self::Bf16 { out_features, .. } | Self::Stored { out_features, .. } => *out_features,
        }
    }

    /// Input features, or columns of a table.
    pub fn in_features(&self) -> usize {
        match self {
            Self::Nf4 { weight, .. } => weight.cols(),
            Self::F32 { in_features, .. } | Self::Bf16 { in_features, .. } | Self::Stored { in_features, .. } => *in_features,
        }
    }

    /// The bias, `[out]`, if there is one.
    pub fn bias(&self) -> Option<&[f32]> {
        match self {
            Self::Nf4 { bias, .. } | Self::F32 { bias, .. } | Self::Bf16 { bias, .. } | Self::Stored { bias, .. } => bias.as_deref(),
        }
    }

    /// The matrix as f32, `[out, in]`, exactly: NF4 as code point x scale. What is still in its file is read, and quantized, for this.
    ///
    /// # Errors
    /// A file that cannot be read any more, or that holds what cannot be quantized.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Nf4 { weight, .. } => weight.dequantize(),
            Self::F32 { values, .. } => values.clone(),
            Self::Bf16 { values, .. } => values.iter().map(|v| v.to_f32()).collect(),
            Self::Stored { tensor, quantize, out_features, in_features, .. } => {
                match ReadMatrix::new(tensor, *out_features, *in_features, *quantize).map_err(|e| tensor.wrong(e.to_string()))? {
                    ReadMatrix::Nf4(weight) => weight.dequantize(),
                    ReadMatrix::Bf16(values) => values.iter().map(|v| v.to_f32()).collect(),
                }
            }
        })
    }

    /// Whether the matrix is in 4 bits, or will be once it is read.
    pub fn is_quantized(&self) -> bool {
        matches!(self, Self::Nf4 { .. } | Self::Stored { quantize: Some(_), .. })
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        let values = match self {
            Self::Nf4 { weight, .. } => weight.bytes(),
            Self::F32 { values, .. } => values.len() * 4,
            Self::Bf16 { values, .. } => values.len() * 2,
            Self::Stored { .. } => 0,
        };
        values + self.bias().map_or(0, |b| b.len() * 4)
    }
}

/// The weights of one decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    /// RMSNorm before attention, `[hidden]`.
    pub input_norm: Vec<f32>,
    /// RMSNorm before the MLP, `[hidden]`.
    pub post_norm: Vec<f32>,
    /// RMSNorm of each query head, `[head_dim]`.
    pub q_norm: Vec<f32>,
    /// RMSNorm of each key head, `[head_dim]`.
    pub k_norm: Vec<f32>,
    /// Queries.
    pub q: LinearWeight,
    /// Keys.
    pub k: LinearWeight,
    /// Values.
    pub v: LinearWeight,
    /// Attention output.
    pub o: LinearWeight,
    /// The MLP's gate.
    pub gate: LinearWeight,
    /// The MLP's other input projection.
    pub up: LinearWeight,
    /// The MLP's output projection.
    pub down: LinearWeight,
}

/// All weights of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelWeights {
    /// `[vocabulary, hidden]`; also the output head of a tied model.
    pub embed: LinearWeight,
    /// In order.
    pub layers: Vec<LayerWeights>,
    /// RMSNorm before the output head, `[hidden]`.
    pub final_norm: Vec<f32>,
    /// `[vocabulary, hidden]`; `None` for a tied model.
    pub lm_head: Option<LinearWeight>,
}

/// Loads all weights of a Qwen3 model.
///
/// # Errors
/// [`ModelError::Tensors`] with every missing, extra or misshapen tensor at once, before anything is read; then whatever is wrong with the
/// content of one: a broken 4-bit form, a value that is not finite where it must be quantized, a file that ends early.
pub fn load_weights(checkpoint: &Checkpoint, config: &ModelConfig, options: LoadOptions) -> Result<ModelWeights> {
    check_tensors(checkpoint, config)?;
    let vector = |name: &str| checkpoint.read(name)?.to_f32();
    let table = [config.vocab_size, config.hidden_size];
    let embed = dense(checkpoint, "model.embed_tokens.weight", table, None, options)?;
    let layer = |layer: usize| -> Result<LayerWeights> {
        let prefix = format!("model.layers.{layer}");
        let [input_norm, post_norm, q_norm, k_norm] = norms(config).map(|(name, _)| vector(&format!("{prefix}.{name}")));
        let [q, k, v, o, gate, up, down] = projections(config).map(|(name, out_features, in_features, bias)| {
            linear(checkpoint, config, options, &format!("{prefix}.{name}"), [out_features, in_features], bias)
        });
        tracing::debug!(layer, of = config.num_hidden_layers, "loaded");
        Ok(LayerWeights {
            input_norm: input_norm?,
            post_norm: post_norm?,
            q_norm: q_norm?,
            k_norm: k_norm?,
            q: q?,
            k: k?,
            v: v?,
            o: o?,
            gate: gate?,
            up: up?,
            down: down?,
        })
    };
    // What is quantized here keeps every thread busy by itself, and several layers at a time would only need more memory.
    let layers: Vec<Result<LayerWeights>> = if config.quantization.is_some() || options.defer {
        (0..config.num_hidden_layers).into_par_iter().map(layer).collect()
    } else {
        (0..config.num_hidden_layers).map(layer).collect()
    };
    let layers = layers.into_iter().collect::<Result<Vec<_>>>()?;
    let final_norm = vector("model.norm.weight")?;
    let lm_head = if config.tie_word_embeddings {
        None
    } else {
        let keep =
            LoadOptions { quantize: if options.quantize == Quantize::None { Quantize::None } else { Quantize::AsStored }, ..options };
        Some(linear(checkpoint, config, keep, "lm_head", table, false)?)
    };
    Ok(ModelWeights { embed, layers, final_norm, lm_head })
}

/// Missing tensors that are told one by one; a configuration may claim more layers than any file could name, and these say enough.
const TOLD: usize = 1000;

/// Compares names, shapes and types with what the configuration asks for.
///
/// # Errors
/// [`ModelError::Tensors`] with every missing, extra or misshapen tensor at once.
pub fn check_tensors(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<()> {
    let mut problems = TensorProblems { file: checkpoint.describe(), ..TensorProblems::default() };
    let mut used = BTreeSet::new();
    for ModelTensor { name, shape, role } in layout::tensors(config) {
        let linear = matches!(role, TensorRole::Projection | TensorRole::Head);
        if linear && checkpoint.tensor(&bnb::state_name(&name)).is_some() {
            // The shapes of the parts follow from the stored state and are checked when it is read.
            used.extend(bnb::part_names(&name));
        } else {
            match checkpoint.tensor(&name) {
                None => problems.missing.push(format!("{name} {shape:?}")),
                Some(info) if info.shape != shape => {
                    problems.misshapen.push((name.clone(), format!("shape {:?} instead of {shape:?}", info.shape)))
                }
                Some(info) if !info.dtype.is_float() => {
                    problems.misshapen.push((name.clone(), format!("type {} instead of F32, BF16 or F16", info.dtype)));
                }
                Some(_) => {}
            }
        }
        used.insert(name);
        if problems.missing.len() > TOLD {
            break;
        }
    }
    if config.tie_word_embeddings {
        // Some programs write the tied head a second time; it is the embedding.
        used.insert("lm_head.weight".into());
    }
    // Nothing that was only not looked at is extra. Old checkpoints carry the rotary frequencies, which follow from the configuration.
    if problems.missing.len() <= TOLD {
        let extra = checkpoint.names().filter(|name| !used.contains(*name) && !name.ends_with(".rotary_emb.inv_freq"));
        problems.extra = extra.map(String::from).collect();
    }
    if problems.is_empty() { Ok(()) } else { Err(ModelError::Tensors(problems)) }
}

/// The values of a matrix, exactly, whatever form it is stored in: 4-bit ones as code point x scale.
///
/// # Errors
/// A tensor that is missing, misshapen or broken, or a file that cannot be read.
pub fn read_matrix(checkpoint: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Vec<f32>> {
    match read_nf4(checkpoint, name, shape)? {
        Some(weight) => Ok(weight.dequantize()),
        None => checkpoint.read(name)?.to_f32(),
    }
}

/// A matrix that is stored in bitsandbytes' 4-bit form; none if it is stored densely.
///
/// # Errors
/// As [`read_matrix`].
pub fn read_nf4(checkpoint: &Checkpoint, name: &str, shape: [usize; 2]) -> Result<Option<Nf4>> {
    if is_four_bit(checkpoint, name) { bnb::read(checkpoint, name, shape).map(Some) } else { Ok(None) }
}

/// Whether a matrix is stored in bitsandbytes' 4-bit form.
pub fn is_four_bit(checkpoint: &Checkpoint, name: &str) -> bool {
    checkpoint.tensor(&bnb::state_name(name)).is_some()
}

fn dense(
    checkpoint: &Checkpoint,
    name: &str,
    [out_features, in_features]: [usize; 2],
    bias: Option<Vec<f32>>,
    options: LoadOptions,
) -> Result<LinearWeight> {
    Ok(match checkpoint.stored(name) {
        Some(tensor) if options.defer => LinearWeight::Stored { tensor, quantize: None, out_features, in_features, bias },
        Some(tensor) => LinearWeight::Bf16 { values: tensor.values()?, out_features, in_features, bias },
        None => LinearWeight::F32 { values: checkpoint.read(name)?.to_f32()?, out_features, in_features, bias },
    })
}

fn linear(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    options: LoadOptions,
    module: &str,
    shape: [usize; 2],
    bias: bool,
) -> Result<LinearWeight> {
    let name = format!("{module}.weight");
    let bias = if bias { Some(checkpoint.read(&format!("{module}.bias"))?.to_f32()?) } else { None };
    if let Some(weight) = read_nf4(checkpoint, &name, shape)? {
        if options.quantize != Quantize::None {
            return Ok(LinearWeight::Nf4 { weight, bias });
        }
        let [out_features, in_features] = shape;
        return Ok(LinearWeight::F32 { values: weight.dequantize(), out_features, in_features, bias });
    }
    if options.quantize != Quantize::Nf4Double || config.quantization.is_some() {
        return dense(checkpoint, &name, shape, bias, options);
    }
    let double = DoubleQuant::Yes { blocksize: nf4::NESTED_BLOCKSIZE, rounding: options.rounding };
    if let Some(tensor) = checkpoint.stored(&name).filter(|_| options.defer) {
        let [out_features, in_features] = shape;
        return Ok(LinearWeight::Stored { tensor, quantize: Some(double), out_features, in_features, bias });
    }
    Ok(LinearWeight::Nf4 { weight: quantize(checkpoint, &name, shape, double)?, bias })
}

/// Quantizes from the stored type: bitsandbytes takes the block's largest value and divides in f32 whatever the type.
fn quantize(checkpoint: &Checkpoint, name: &str, shape: [usize; 2], double: DoubleQuant) -> Result<Nf4> {
    if let Some(tensor) = checkpoint.stored(name) {
        let quantized = Nf4::quantize(&tensor.values()?, &shape, nf4::BLOCKSIZE, double);
        return quantized.map_err(|e| tensor.wrong(e.to_string()));
    }
    let tensor = checkpoint.read(name)?;
    let quantized = match tensor.dtype {
        Dtype::F16 => Nf4::quantize(&tensor.to_f16()?, &shape, nf4::BLOCKSIZE, double),
        _ => Nf4::quantize(&tensor.to_f32()?, &shape, nf4::BLOCKSIZE, double),
    };
    quantized.map_err(|e| ModelError::tensor(&tensor.file, &tensor.name, e.to_string()))
}
