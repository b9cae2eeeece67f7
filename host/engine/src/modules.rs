//! The projections of a model: names, shapes and a numbering that never changes with the adapter's targets.

use trainer_kernels::ops::AttentionShape;
use trainer_model::ModelConfig;

use crate::error::{EngineError, Result};

/// Projections per decoder layer.
pub(crate) const PROJECTIONS: usize = 7;
/// Number of the first projection of each group of a layer.
pub(crate) const QKV: usize = 0;
/// See [`QKV`].
pub(crate) const O: usize = 3;
/// See [`QKV`].
pub(crate) const GATE_UP: usize = 4;
/// See [`QKV`].
pub(crate) const DOWN: usize = 6;

/// One of a decoder layer's seven projections, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention output.
    O,
    /// The gated half of the MLP's input.
    Gate,
    /// The other half.
    Up,
    /// The MLP's output.
    Down,
}

impl Projection {
    /// All seven, by number.
    pub const ALL: [Projection; PROJECTIONS] =
        [Projection::Q, Projection::K, Projection::V, Projection::O, Projection::Gate, Projection::Up, Projection::Down];

    /// The name inside a layer, as in Hugging Face checkpoints.
    pub fn path(self) -> &'static str {
        match self {
            Projection::Q => "self_attn.q_proj",
            Projection::K => "self_attn.k_proj",
            Projection::V => "self_attn.v_proj",
            Projection::O => "self_attn.o_proj",
            Projection::Gate => "mlp.gate_proj",
            Projection::Up => "mlp.up_proj",
            Projection::Down => "mlp.down_proj",
        }
    }
}

/// A projection of a certain layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// `model.layers.<layer>.<path>`.
    pub name: String,
    /// `7 * layer + projection`: part of the dropout stream.
    pub index: usize,
    /// Which of the seven.
    pub projection: Projection,
    /// Input features.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
    /// Whether the model has a bias there.
    pub has_bias: bool,
}

/// The sizes that the decoder computes with, checked to be usable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Heads.
    pub attention: AttentionShape,
    /// Of every RMSNorm.
    pub eps: f32,
    /// RoPE's base.
    pub theta: f64,
    /// Whether the embedding table is also the output head.
    pub tied: bool,
    /// Whether q, k, v and o have biases.
    pub attention_bias: bool,
    /// Positions that the model was made for.
    pub max_positions: usize,
}

impl Dims {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// [`EngineError::Model`] for sizes of 0, an odd head size or heads that are not a multiple of the key/value heads;
    /// [`EngineError::Overflow`] where widths overflow.
    pub fn new(config: &ModelConfig) -> Result<Dims> {
        let dims = Dims {
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            layers: config.num_hidden_layers,
            vocab: config.vocab_size,
            attention: AttentionShape {
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
            eps: config.rms_norm_eps as f32,
            theta: config.rope_theta,
            tied: config.tie_word_embeddings,
            attention_bias: config.attention_bias,
            max_positions: config.max_position_embeddings,
        };
        let a = dims.attention;
        for (name, size) in [
            ("hidden_size", dims.hidden),
            ("intermediate_size", dims.intermediate),
            ("num_hidden_layers", dims.layers),
            ("vocab_size", dims.vocab),
            ("num_attention_heads", a.heads),
            ("num_key_value_heads", a.kv_heads),
            ("head_dim", a.head_dim),
            ("max_position_embeddings", dims.max_positions),
        ] {
            if size == 0 {
                return Err(EngineError::Model(format!("{name} is 0")));
            }
        }
        if !a.heads.is_multiple_of(a.kv_heads) {
            return Err(EngineError::Model(format!("{} attention heads cannot share {} key/value heads evenly", a.heads, a.kv_heads)));
        }
        if !a.head_dim.is_multiple_of(2) {
            return Err(EngineError::Model(format!("head_dim {} is odd: rotary positions need pairs", a.head_dim)));
        }
        let heads = a.kv_heads.checked_mul(2).and_then(|kv| kv.checked_add(a.heads));
        let widths = heads.and_then(|h| h.checked_mul(a.head_dim)).and_then(|_| dims.intermediate.checked_mul(2));
        let modules = dims.layers.checked_mul(PROJECTIONS).filter(|&m| u32::try_from(m).is_ok());
        if widths.is_none() || modules.is_none() || u32::try_from(dims.vocab).is_err() {
            return Err(EngineError::Overflow("the model's configuration"));
        }
        Ok(dims)
    }

    /// Output and input features of a projection.
    pub fn features(&self, projection: Projection) -> (usize, usize) {
        let a = self.attention;
        match projection {
            Projection::Q => (a.q_width(), self.hidden),
            Projection::K | Projection::V => (a.kv_width(), self.hidden),
            Projection::O => (self.hidden, a.q_width()),
            Projection::Gate | Projection::Up => (self.intermediate, self.hidden),
            Projection::Down => (self.hidden, self.intermediate),
        }
    }

    /// All projections by number.
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = Vec::with_capacity(self.layers * PROJECTIONS);
        for layer in 0..self.layers {
            for projection in Projection::ALL {
                let (out_features, in_features) = self.features(projection);
                let attention = matches!(projection, Projection::Q | Projection::K | Projection::V | Projection::O);
                modules.push(Module {
                    name: format!("model.layers.{layer}.{}", projection.path()),
                    index: modules.len(),
                    projection,
                    in_features,
                    out_features,
                    has_bias: attention && self.attention_bias,
                });
            }
        }
        modules
    }
}
