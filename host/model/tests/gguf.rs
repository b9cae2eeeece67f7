//! GGUF files: types against candle's reading of them, files that are broken or hostile.

use candle_core::Device;
use candle_core::quantized::{GgmlDType, ggml_file::qtensor_from_ggml};
use half::f16;
use proptest::prelude::*;
use std::path::Path;
use trainer_kernels::rng::philox4x32_10;
use trainer_model::gguf::{GgmlType, metadata::kind};
use trainer_model::{Checkpoint, GgufFile, LoadOptions, ModelConfig, ModelError, ModelFiles, load_weights};

/// Random blocks whose f16 scales are of a weight's size.
fn blocks(which: GgmlType, count: usize, seed: u32) -> Vec<u8> {
    let (_, size) = which.block();
    let scales: &[usize] = match which {
        GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => &[],
    };
    let word = |i: usize| philox4x32_10([i as u32, 0, 0, 0], [seed, 5])[0];
    let mut bytes: Vec<u8> = (0..count * size).map(|i| (word(i) >> 11) as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(size).enumerate() {
        for (j, at) in scales.iter().enumerate() {
            let scale = f16::from_f32((word(1_000_000 + i * 2 + j) % 1000) as f32 / 4000.0 - 0.1);
            block[*at..*at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn every_type_is_unpacked_as_candle_unpacks_it() {
    for (ours, theirs) in [
        (GgmlType::Q4_0, GgmlDType::Q4_0),
        (GgmlType::Q4_1, GgmlDType::Q4_1),
        (GgmlType::Q5_0, GgmlDType::Q5_0),
        (GgmlType::Q5_1, GgmlDType::Q5_1),
        (GgmlType::Q8_0, GgmlDType::Q8_0),
        (GgmlType::Q2_K, GgmlDType::Q2K),
        (GgmlType::Q3_K, GgmlDType::Q3K),
        (GgmlType::Q4_K, GgmlDType::Q4K),
        (GgmlType::Q5_K, GgmlDType::Q5K),
        (GgmlType::Q6_K, GgmlDType::Q6K),
    ] {
        let (values, size) = ours.block();
        assert_eq!((values, size), (theirs.block_size(), theirs.type_size()), "{ours}");
        let bytes = blocks(ours, 50, 3);
        let reference = qtensor_from_ggml(theirs, &bytes, vec![50, values], &Device::Cpu).unwrap();
        let reference: Vec<f32> = reference.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let unpacked = ours.unpack(&bytes).unwrap();
        assert!(unpacked.iter().any(|v| *v != 0.0));
        for (i, (a, b)) in unpacked.iter().zip(&reference).enumerate() {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{ours}: value {i} is {a}, candle has {b}");
        }
    }
}

/// A file in pieces, so that tests can break one.
#[derive(Clone, Default)]
struct Build {
    metadata: Vec<u8>,
    pairs: u64,
    tensors: Vec<u8>,
    count: u64,
    data: usize,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Build {
    fn put(&mut self, key: &str, number: u32, bytes: &[u8]) -> &mut Self {
        text(&mut self.metadata, key);
        self.metadata.extend(number.to_le_bytes());
        self.metadata.extend(bytes);
        self.pairs += 1;
        self
    }

    fn number(&mut self, key: &str, n: u32) -> &mut Self {
        self.put(key, kind::U32, &n.to_le_bytes())
    }

    fn text(&mut self, key: &str, value: &str) -> &mut Self {
        let mut bytes = Vec::new();
        text(&mut bytes, value);
        self.put(key, kind::STRING, &bytes)
    }

    fn list(&mut self, key: &str, number: u32, count: u64, bytes: &[u8]) -> &mut Self {
        let mut all = number.to_le_bytes().to_vec();
        all.extend(count.to_le_bytes());
        all.extend(bytes);
        self.put(key, kind::ARRAY, &all)
    }

    fn tensor(&mut self, name: &str, shape: &[u64], number: u32, offset: u64) -> &mut Self {
        text(&mut self.tensors, name);
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|d| self.tensors.extend(d.to_le_bytes()));
        self.tensors.extend(number.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.count += 1;
        self
    }

    /// An f32 tensor behind those so far.
    fn dense(&mut self, name: &str, shape: &[u64]) -> &mut Self {
        let offset = self.data;
        self.data = (offset + 4 * shape.iter().product::<u64>() as usize).next_multiple_of(32);
        self.tensor(name, shape, 0, offset as u64)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(self.pairs.to_le_bytes());
        bytes.extend(&self.metadata);
        bytes.extend(&self.tensors);
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend((0..self.data).map(|i| if i % 4 == 3 { 0x3d } else { (i * 37 % 251) as u8 }));
        bytes
    }
}

/// A whole model of one layer.
fn model() -> Build {
    let mut b = Build::default();
    b.text("general.architecture", "qwen3").number("qwen3.block_count", 1).number("qwen3.context_length", 64);
    b.number("qwen3.embedding_length", 8).number("qwen3.feed_forward_length", 12).number("qwen3.attention.head_count", 2);
    b.number("qwen3.attention.head_count_kv", 1).number("qwen3.attention.key_length", 4).number("qwen3.attention.value_length", 4);
    b.put("qwen3.attention.layer_norm_rms_epsilon", kind::F32, &1e-6f32.to_le_bytes());
    b.put("qwen3.rope.freq_base", kind::F32, &1e6f32.to_le_bytes());
    b.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "qwen2").text("tokenizer.chat_template", "{{ messages }}");
    let mut tokens = Vec::new();
    ["a", "b", "ab", "<|endoftext|>", "<|im_end|>"].iter().for_each(|t| text(&mut tokens, t));
    b.list("tokenizer.ggml.tokens", kind::STRING, 5, &tokens);
    let kinds: Vec<u8> = [1i32, 1, 1, 3, 3].iter().flat_map(|k| k.to_le_bytes()).collect();
    b.list("tokenizer.ggml.token_type", kind::I32, 5, &kinds);
    let mut merges = Vec::new();
    text(&mut merges, "a b");
    b.list("tokenizer.ggml.merges", kind::STRING, 1, &merges);
    b.number("tokenizer.ggml.eos_token_id", 4).number("tokenizer.ggml.padding_token_id", 3);
    b.dense("token_embd.weight", &[8, 5]).dense("output_norm.weight", &[8]);
    for (name, shape) in [
        ("attn_norm", &[8u64][..]),
        ("ffn_norm", &[8]),
        ("attn_q_norm", &[4]),
        ("attn_k_norm", &[4]),
        ("attn_q", &[8, 8]),
        ("attn_k", &[8, 4]),
        ("attn_v", &[8, 4]),
        ("attn_output", &[8, 8]),
        ("ffn_gate", &[8, 12]),
        ("ffn_up", &[8, 12]),
        ("ffn_down", &[12, 8]),
    ] {
        b.dense(&format!("blk.0.{name}.weight"), shape);
    }
    b
}

fn load(bytes: &[u8]) -> Result<(ModelConfig, String), ModelError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    load_path(&path)
}

fn load_path(path: &Path) -> Result<(ModelConfig, String), ModelError> {
    let files = ModelFiles::dir(path);
    let config = ModelConfig::read(&files)?;
    load_weights(&Checkpoint::open(&files)?, &config, LoadOptions::default())?;
    let mut texts = String::new();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        texts.push_str(&files.read_text(name)?.unwrap_or_default());
    }
    Ok((config, texts))
}

#[test]
fn a_file_stands_for_a_folder() {
    let (config, texts) = load(&model().bytes()).unwrap();
    assert_eq!((config.hidden_size, config.num_hidden_layers, config.head_dim, config.vocab_size), (8, 1, 4, 5));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 1e6));
    assert!(config.tie_word_embeddings && !config.attention_bias);
    assert_eq!((config.eos_token_ids, config.pad_token_id), (vec![4, 3], Some(3)));
    for part in ["\"<|im_end|>\"", "{{ messages }}", "[\"a\",\"b\"]", "\"eos_token\":\"<|im_end|>\""] {
        assert!(texts.contains(part), "{part} is not in {texts}");
    }
}

#[test]
fn what_is_wrong_is_said_by_name() {
    let broken = |change: &dyn Fn(&mut Build) -> &mut Build| {
        let mut b = model();
        change(&mut b);
        load(&b.bytes()).unwrap_err().to_string()
    };
    let bytes = model().bytes();
    let at = |position: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[position..position + new.len()].copy_from_slice(new);
        load(&bytes).unwrap_err().to_string()
    };
    let huge = u64::MAX.to_le_bytes();
    for (error, needle) in [
        (at(0, b"GGML"), "does not begin with GGUF"),
        (at(4, &1u32.to_le_bytes()), "version 1"),
        (at(4, &3u32.to_be_bytes()), "big-endian"),
        (at(8, &huge), "claims 18446744073709551615 tensors"),
        (at(16, &huge), "claims 18446744073709551615 metadata"),
        (at(24, &huge), "at most 65536 are read"),
        (load(&bytes[..bytes.len() - 40]).unwrap_err().to_string(), "ends beyond the file"),
        (load(&bytes[..200]).unwrap_err().to_string(), "ends before byte"),
        (broken(&|b| b.number("qwen3.block_count", 1)), "\"qwen3.block_count\" occurs twice"),
        (broken(&|b| b.list("x", kind::U8, 1 << 40, &[])), "lists of more than"),
        (broken(&|b| b.list("x", kind::F64, 1 << 20, &[])), "ends before byte"),
        (broken(&|b| b.list("x", kind::ARRAY, 1, &[0; 16])), "metadata \"x\": has type 9"),
        (broken(&|b| b.put("x", 77, &[])), "has type 77"),
        (broken(&|b| b.put("x", kind::BOOL, &[2])), "truth value of 2"),
        (broken(&|b| b.put("x", kind::STRING, &(1u64 << 40).to_le_bytes())), "would have 1099511627776 bytes"),
        (broken(&|b| b.put("general.alignment", kind::U32, &7u32.to_le_bytes())), "no power of two"),
        (broken(&|b| b.tensor("x", &[u64::MAX, 2], 0, 0)), "tensor \"x\" is too large"),
        (broken(&|b| b.tensor("x", &[1; 5], 0, 0)), "5 dimensions"),
        (broken(&|b| b.tensor("x", &[32], 999, 0)), "type 999"),
        (broken(&|b| b.tensor("x", &[33], 8, 0)), "Q8_0 has blocks of 32"),
        (broken(&|b| b.tensor("x", &[4], 0, 7)), "offset 7"),
        (broken(&|b| b.tensor("x", &[4], 0, u64::MAX - 31)), "offset"),
        (broken(&|b| b.tensor("x", &[4], 0, 0)), "overlaps"),
        (broken(&|b| b.dense("token_embd.weight", &[8, 5])), "occurs twice"),
        (broken(&|b| b.dense("blk.0.attn_sinks.weight", &[8])), "extra: blk.0.attn_sinks.weight"),
    ] {
        assert!(error.contains(needle), "{needle:?} is not in: {error}");
    }
    let with = |from: &[u8], to: &[u8]| {
        let start = bytes.windows(from.len()).position(|w| w == from).unwrap();
        at(start, to)
    };
    for (error, needle) in [
        (with(b"\x05\0\0\0\0\0\0\0qwen3", b"\x05\0\0\0\0\0\0\0llama"), "general.architecture \"llama\" is not supported"),
        (with(b"gpt2", b"bert"), "tokenizer.ggml.model \"bert\" is not supported"),
        (with(b"qwen3.block_count", b"qwen3.block_c0unt"), "qwen3.block_count is missing"),
        (with(b"blk.0.attn_q.weight", b"blk.7.attn_q.weight"), "missing: model.layers.0.self_attn.q_proj.weight"),
    ] {
        assert!(error.contains(needle), "{needle:?} is not in: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    /// Any bytes in place of some of a sound file, or a file cut short: an answer, never a panic.
    #[test]
    fn corrupted_files_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
        let mut bytes = model().bytes();
        let reach = bytes.len() - model().data;
        for (at, byte) in changes {
            bytes[at.index(reach)] = byte;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = load(&bytes);
    }

    /// A large number in the place of any eight bytes: counts, lengths, sizes, offsets.
    #[test]
    fn large_numbers_never_panic(at in any::<prop::sample::Index>(), number in prop_oneof![Just(u64::MAX), Just(1 << 62), Just(1 << 40), Just(1 << 31), any::<u64>()]) {
        let mut bytes = model().bytes();
        let reach = bytes.len() - model().data - 8;
        let at = at.index(reach);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        let _ = load(&bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, [b"GGUF\x03\0\0\0".as_slice(), &bytes].concat()).unwrap();
        let _ = GgufFile::open(&path);
    }
}
