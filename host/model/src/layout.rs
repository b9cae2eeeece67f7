//! The tensors of a Qwen3 model by name: what a checkpoint must hold, and in which order one is written.

use crate::config::ModelConfig;

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorRole {
    /// The table of token embeddings, `[vocabulary, hidden]`.
    Embedding,
    /// An RMSNorm's weight.
    Norm,
    /// A projection of a decoder layer, `[out, in]`: what an adapter may change and 4-bit forms hold.
    Projection,
    /// A projection's bias, `[out]`.
    Bias,
    /// The output head of an untied model, `[vocabulary, hidden]`.
    Head,
}

/// A tensor that a model has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTensor {
    /// Its name in checkpoints, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// What it is for.
    pub role: TensorRole,
}

impl ModelTensor {
    /// The module that it belongs to: its name without the last part.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_str(), |(module, _)| module)
    }
}

/// A linear layer: its name inside a decoder layer, output and input features, and whether `attention_bias` gives it a bias.
pub(crate) fn projections(c: &ModelConfig) -> [(&'static str, usize, usize, bool); 7] {
    let (h, q, kv, i) = (c.hidden_size, c.q_width(), c.kv_width(), c.intermediate_size);
    let bias = c.attention_bias;
    [
        ("self_attn.q_proj", q, h, bias),
        ("self_attn.k_proj", kv, h, bias),
        ("self_attn.v_proj", kv, h, bias),
        ("self_attn.o_proj", h, q, bias),
        ("mlp.gate_proj", i, h, false),
        ("mlp.up_proj", i, h, false),
        ("mlp.down_proj", h, i, false),
    ]
}

/// The dense vectors of a layer and their lengths.
pub(crate) fn norms(c: &ModelConfig) -> [(&'static str, usize); 4] {
    [
        ("input_layernorm.weight", c.hidden_size),
        ("post_attention_layernorm.weight", c.hidden_size),
        ("self_attn.q_norm.weight", c.head_dim),
        ("self_attn.k_norm.weight", c.head_dim),
    ]
}

/// All tensors of a model, layer by layer. Lazy: a configuration may claim more layers than any file could name.
pub fn tensors(config: &ModelConfig) -> impl Iterator<Item = ModelTensor> + '_ {
    let table = vec![config.vocab_size, config.hidden_size];
    let one = |name: &str, shape: Vec<usize>, role| ModelTensor { name: name.to_string(), shape, role };
    let first = one("model.embed_tokens.weight", table.clone(), TensorRole::Embedding);
    let norm = one("model.norm.weight", vec![config.hidden_size], TensorRole::Norm);
    let head = (!config.tie_word_embeddings).then(|| one("lm_head.weight", table, TensorRole::Head));
    let layers = (0..config.num_hidden_layers).flat_map(move |layer| layer_tensors(config, layer));
    std::iter::once(first).chain(layers).chain(std::iter::once(norm)).chain(head)
}

fn layer_tensors(config: &ModelConfig, layer: usize) -> Vec<ModelTensor> {
    let prefix = format!("model.layers.{layer}");
    let mut all = Vec::with_capacity(15);
    for (name, len) in norms(config) {
        all.push(ModelTensor { name: format!("{prefix}.{name}"), shape: vec![len], role: TensorRole::Norm });
    }
    for (name, out_features, in_features, bias) in projections(config) {
        let shape = vec![out_features, in_features];
        all.push(ModelTensor { name: format!("{prefix}.{name}.weight"), shape, role: TensorRole::Projection });
        if bias {
            all.push(ModelTensor { name: format!("{prefix}.{name}.bias"), shape: vec![out_features], role: TensorRole::Bias });
        }
    }
    all
}
