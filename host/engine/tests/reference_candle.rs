//! An independent oracle: candle-transformers' Qwen3 on the same weights gives the same logits.

mod common;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::qwen3::{Config, ModelForCausalLM};
use common::*;
use trainer_test_support as support;

#[test]
fn reference_models_give_candles_logits() {
    let mut seen = 0;
    for name in reference_models() {
        let (config, weights) = reference_weights(&format!("model/{name}"));
        if weights.layers.iter().any(|l| l.q.is_quantized()) {
            continue;
        }
        seen += 1;
        let model = reference_model(&format!("model/{name}"));
        let candle_config = Config {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            head_dim: config.head_dim,
            attention_bias: config.attention_bias,
            num_key_value_heads: config.num_key_value_heads,
            max_position_embeddings: 512,
            sliding_window: None,
            max_window_layers: config.num_hidden_layers,
            tie_word_embeddings: config.tie_word_embeddings,
            rope_theta: config.rope_theta,
            rms_norm_eps: config.rms_norm_eps,
            use_sliding_window: false,
            hidden_act: candle_nn::Activation::Silu,
        };
        let file = support::reference_file(&format!("model/{name}/model.safetensors"));
        let vars = VarBuilder::from_buffered_safetensors(std::fs::read(file).unwrap(), DType::F32, &Device::Cpu).unwrap();
        let mut candle = ModelForCausalLM::new(&candle_config, vars).unwrap();
        let rows = Row::reference(&support::tensors(&format!("model/{name}_goldens/forward.safetensors")));
        let logits = model.hidden_states(None, &pack(&rows)).unwrap().logits;
        let mut ours = logits.chunks(config.vocab_size);
        for row in &rows {
            // Candle gives the logits of the last position: one token after the other, through its cache.
            candle.clear_kv_cache();
            for (position, id) in row.ids.iter().enumerate() {
                let input = Tensor::new(&[[*id]], &Device::Cpu).unwrap();
                let expected = candle.forward(&input, position).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let difference = support::max_abs_diff(ours.next().unwrap(), &expected);
                assert!(difference < 1e-4, "{name}, position {position}: logits differ by {difference}");
            }
        }
        assert!(ours.next().is_none());
    }
    assert!(seen > 0, "no dense model");
}
