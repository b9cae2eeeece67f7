//! The names of tensors in GGUF files and in Hugging Face's checkpoints.

/// What both call the tensors outside of layers.
const OUTER: [(&str, &str); 3] =
    [("token_embd.weight", "model.embed_tokens.weight"), ("output_norm.weight", "model.norm.weight"), ("output.weight", "lm_head.weight")];

/// What both call the modules of a layer, without `.weight` and `.bias`.
const INNER: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The name in checkpoints of a tensor of a GGUF file; none for tensors that Qwen3 has not.
pub fn to_checkpoint(name: &str) -> Option<String> {
    if let Some((_, found)) = OUTER.iter().find(|(gguf, _)| *gguf == name) {
        return Some((*found).to_string());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    let (_, found) = INNER.iter().find(|(gguf, _)| *gguf == module)?;
    Some(format!("model.layers.{}.{found}.{part}", number(layer)?))
}

/// The name in GGUF files of a tensor of a checkpoint.
pub fn to_gguf(name: &str) -> Option<String> {
    if let Some((found, _)) = OUTER.iter().find(|(_, hf)| *hf == name) {
        return Some((*found).to_string());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, part) = rest.rsplit_once('.')?;
    let (found, _) = INNER.iter().find(|(_, hf)| *hf == module)?;
    Some(format!("blk.{}.{found}.{part}", number(layer)?))
}

/// A layer's number, in the one way of writing it.
fn number(text: &str) -> Option<u32> {
    text.parse::<u32>().ok().filter(|n| n.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (gguf, hf) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.11.attn_q_norm.weight", "model.layers.11.self_attn.q_norm.weight"),
            ("blk.0.attn_output.bias", "model.layers.0.self_attn.o_proj.bias"),
        ] {
            assert_eq!(to_checkpoint(gguf).as_deref(), Some(hf));
            assert_eq!(to_gguf(hf).as_deref(), Some(gguf));
        }
        for strange in ["rope_freqs.weight", "blk.01.attn_q.weight", "blk.0.ssm_a.weight", "blk.x.attn_q.weight", "blk.0"] {
            assert_eq!(to_checkpoint(strange), None, "{strange}");
        }
    }
}
