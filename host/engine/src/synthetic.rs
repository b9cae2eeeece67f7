//! Models with random weights of any shape, made on the device: for measurements, without a checkpoint and without its host memory.

use std::sync::Arc;

use trainer_kernels::ops::{Ops, Random};
use trainer_model::ModelConfig;

use crate::adapter::sites;
use crate::error::{OpsContext, Result};
use crate::model::{Layer, Model, ModelOptions};
use crate::modules::{Dims, Projection};
use crate::workspace::MidWidths;

impl<O: Ops> Model<O> {
    /// A model with random weights: projections normal with deviation `1 / sqrt(in)`, so that activations keep their size from layer to layer, the
    /// embedding with 0.02 as the original's initialisation, and norms of 1; with `nf4` the projections are quantized with double quantization. The
    /// weights are a function of the seed.
    ///
    /// # Errors
    /// A configuration that cannot be run, or memory that the backend has not got.
    pub fn synthetic(ops: Arc<O>, config: &ModelConfig, options: &ModelOptions<'_>, nf4: bool, seed: u64) -> Result<Arc<Self>> {
        let dims = Dims::new(config)?;
        let sites = options.adapter.map(|config| sites(config, &dims)).transpose()?;
        let ones = |len: usize, what: &'static str| ops.vector(&vec![1.0; len]).at(|| what.into());
        let mut seed = seed;
        let mut random = |deviation: f32| {
            // A group draws its members' weights from the seeds that follow.
            seed = seed.wrapping_add(8);
            Random { seed, deviation, nf4 }
        };
        let mut layers = Vec::with_capacity(dims.layers);
        for number in 0..dims.layers {
            let mids = sites.as_deref().map(|sites| MidWidths::of(sites, number)).unwrap_or_default();
            let mut group = |projections: &[Projection], ranks: usize| {
                let members: Vec<(usize, usize)> = projections.iter().map(|p| dims.features(*p)).collect();
                let inner = members.first().map_or(1, |m| m.1);
                let random = random(1.0 / (inner as f32).sqrt());
                ops.random_group(&members, random, options.weights, ranks).at(|| format!("layer {number}, {}", projections[0].path()))
            };
            layers.push(Layer {
                input_norm: ones(dims.hidden, "norm")?,
                post_norm: ones(dims.hidden, "norm")?,
                q_norm: ones(dims.attention.head_dim, "norm")?,
                k_norm: ones(dims.attention.head_dim, "norm")?,
                qkv: group(&[Projection::Q, Projection::K, Projection::V], mids.qkv)?,
                o: group(&[Projection::O], mids.o)?,
                gate_up: group(&[Projection::Gate, Projection::Up], mids.gate_up)?,
                down: group(&[Projection::Down], mids.down)?,
            });
        }
        let final_norm = ones(dims.hidden, "norm")?;
        let host_embedding = options.host_embedding && !dims.tied;
        let embedding = if host_embedding {
            ops.random_lookup_table(dims.vocab, dims.hidden, random(0.02))
        } else {
            ops.random_table(dims.vocab, dims.hidden, random(0.02))
        };
        let embedding = embedding.at(|| "the embedding".into())?;
        let head =
            if dims.tied { None } else { Some(ops.random_table(dims.vocab, dims.hidden, random(0.02)).at(|| "the output head".into())?) };
        let biases = vec![None; dims.modules().len()];
        Ok(Self::assemble(ops, config, dims, (options.weights, host_embedding), embedding, head, layers, final_norm, biases))
    }
}

/// The configuration of a Qwen3 dense model by its size: 0.6b, 1.7b, 4b, 8b, 14b or 32b (Qwen3 technical report, 2025).
pub fn shape(name: &str) -> Option<ModelConfig> {
    let (hidden, intermediate, layers, heads, kv_heads, tied) = match name {
        "0.6b" => (1024, 3072, 28, 16, 8, true),
        "1.7b" => (2048, 6144, 28, 16, 8, true),
        "4b" => (2560, 9728, 36, 32, 8, true),
        "8b" => (4096, 12288, 36, 32, 8, false),
        "14b" => (5120, 17408, 40, 40, 8, false),
        "32b" => (5120, 25600, 64, 64, 8, false),
        _ => return None,
    };
    let text = format!(
        r#"{{"architectures":["Qwen3ForCausalLM"],"model_type":"qwen3","hidden_act":"silu","attention_bias":false,"hidden_size":{hidden},
        "intermediate_size":{intermediate},"num_hidden_layers":{layers},"num_attention_heads":{heads},"num_key_value_heads":{kv_heads},
        "head_dim":128,"vocab_size":151936,"max_position_embeddings":40960,"rms_norm_eps":1e-6,"rope_theta":1000000.0,
        "tie_word_embeddings":{tied},"torch_dtype":"bfloat16"}}"#
    );
    ModelConfig::parse(&text, "a built-in shape").ok()
}

/// The names that [`shape`] knows.
pub const SHAPES: [&str; 6] = ["0.6b", "1.7b", "4b", "8b", "14b", "32b"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_a_valid_configuration() {
        for name in SHAPES {
            Dims::new(&shape(name).unwrap()).unwrap();
        }
        assert!(shape("7b").is_none());
    }
}
