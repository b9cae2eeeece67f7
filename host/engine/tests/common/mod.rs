//! What the engine's tests share: small random models, and the reference set's models, rows and adapters.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::sync::Arc;

use trainer_engine::{Adapter, Model};
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels::nf4::{DoubleQuant, Nf4};
use trainer_kernels::ops::{HostBatch, WeightPlan};
use trainer_kernels::rng::philox4x32_10;
use trainer_model::{
    Adapter as HostAdapter, AdapterConfig, Checkpoint, LayerWeights, LinearWeight, LoadOptions, ModelConfig, ModelFiles, ModelWeights,
    Quantize, load_weights,
};
use trainer_test_support as support;

pub fn cpu(threads: usize) -> Arc<Cpu> {
    Arc::new(Cpu::new(CpuOptions { threads }).unwrap())
}

/// Numbers that depend on a seed and their place only.
pub struct Random {
    seed: u32,
    next: u32,
}

impl Random {
    pub fn new(seed: u32) -> Self {
        Random { seed, next: 0 }
    }

    pub fn word(&mut self) -> u32 {
        self.next += 1;
        philox4x32_10([self.next, 0, 0, 0], [self.seed, 77])[0]
    }

    pub fn below(&mut self, n: u32) -> u32 {
        self.word() % n
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.word() as f32 / u32::MAX as f32) * 2.0 - 1.0
    }

    pub fn values(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| self.unit() * scale).collect()
    }
}

/// A small random model of odd sizes.
#[derive(Clone, Copy, Debug)]
pub struct Tiny {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub tied: bool,
    pub bias: bool,
    pub nf4: bool,
}

impl Default for Tiny {
    fn default() -> Self {
        Tiny {
            hidden: 40,
            intermediate: 72,
            layers: 3,
            heads: 6,
            kv_heads: 2,
            head_dim: 10,
            vocab: 131,
            tied: true,
            bias: false,
            nf4: false,
        }
    }
}

impl Tiny {
    pub fn config(&self) -> ModelConfig {
        let json = serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": self.bias,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied, "torch_dtype": "float32",
        });
        ModelConfig::parse(&json.to_string(), "config.json").unwrap()
    }

    pub fn weights(&self, seed: u32) -> ModelWeights {
        let mut r = Random::new(seed);
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let linear = |r: &mut Random, out_features: usize, in_features: usize, bias: bool| {
            let values = r.values(out_features * in_features, 2.0 / (in_features as f32).sqrt());
            let bias = bias.then(|| r.values(out_features, 0.3));
            if self.nf4 {
                LinearWeight::Nf4 {
                    weight: Nf4::quantize(&values, &[out_features, in_features], 64, DoubleQuant::default()).unwrap(),
                    bias,
                }
            } else {
                LinearWeight::F32 { values, out_features, in_features, bias }
            }
        };
        let norm = |r: &mut Random, len: usize| -> Vec<f32> { (0..len).map(|_| 1.0 + 0.3 * r.unit()).collect() };
        let table = |r: &mut Random| {
            let values = r.values(self.vocab * self.hidden, 0.5);
            LinearWeight::F32 { values, out_features: self.vocab, in_features: self.hidden, bias: None }
        };
        let embed = table(&mut r);
        let layers = (0..self.layers)
            .map(|_| LayerWeights {
                input_norm: norm(&mut r, self.hidden),
                post_norm: norm(&mut r, self.hidden),
                q_norm: norm(&mut r, self.head_dim),
                k_norm: norm(&mut r, self.head_dim),
                q: linear(&mut r, q, self.hidden, self.bias),
                k: linear(&mut r, kv, self.hidden, self.bias),
                v: linear(&mut r, kv, self.hidden, self.bias),
                o: linear(&mut r, self.hidden, q, self.bias),
                gate: linear(&mut r, self.intermediate, self.hidden, false),
                up: linear(&mut r, self.intermediate, self.hidden, false),
                down: linear(&mut r, self.hidden, self.intermediate, false),
            })
            .collect();
        let head = (!self.tied).then(|| table(&mut r));
        ModelWeights { embed, layers, final_norm: norm(&mut r, self.hidden), lm_head: head }
    }

    pub fn model(&self, seed: u32, threads: usize) -> Arc<Model<Cpu>> {
        Model::new(cpu(threads), &self.config(), &self.weights(seed), WeightPlan::Unpacked).unwrap()
    }
}

/// Settings of rank `r` on all projections.
pub fn lora(r: usize) -> AdapterConfig {
    let mut config = AdapterConfig::default();
    (config.r, config.alpha) = (r, 2.0 * r as f64);
    config
}

/// An adapter whose B is not zero, so that all of its gradients are alive.
pub fn adapter(model: &Model<Cpu>, config: AdapterConfig, seed: u32) -> Adapter<Cpu> {
    let mut host = Adapter::init(model, config, u64::from(seed)).unwrap().to_host(model).unwrap();
    let mut r = Random::new(seed + 1);
    for module in host.modules.values_mut() {
        let scale = 0.3 / (module.rank.max(1) as f32).sqrt();
        module.b = r.values(module.b.len(), scale);
    }
    Adapter::load(model, &host).unwrap()
}

/// A sequence to train on.
#[derive(Clone, Debug)]
pub struct Row {
    pub ids: Vec<u32>,
    /// Weight of predicting the next token, per position.
    pub weights: Vec<f32>,
    pub sample: u64,
}

impl Row {
    pub fn random(r: &mut Random, len: usize, vocab: usize, sample: u64) -> Row {
        let ids = (0..len).map(|_| r.below(vocab as u32)).collect();
        let mut weights: Vec<f32> = (0..len).map(|_| [0.0, 1.0, 0.5, 1.0][r.below(4) as usize]).collect();
        weights[0] = 1.0;
        weights[len - 1] = 0.0;
        Row { ids, weights, sample }
    }

    /// Rows of the reference data: right-padded, with -100 where there is nothing to predict.
    pub fn reference(tensors: &std::collections::BTreeMap<String, support::Tensor>) -> Vec<Row> {
        let (ids, mask, labels) = (&tensors["input_ids"], tensors["attention_mask"].i64(), tensors["labels"].i64());
        let (rows, width) = (ids.shape[0], ids.shape[1]);
        let ids = ids.i64();
        (0..rows)
            .map(|row| {
                let at = row * width;
                let len = mask[at..at + width].iter().filter(|m| **m != 0).count();
                assert!(mask[at..at + len].iter().all(|m| *m != 0), "row {row} is not right-padded");
                let weight = |p: usize| if p + 1 < len && labels[at + p + 1] != -100 { 1.0 } else { 0.0 };
                for p in 1..len {
                    let label = labels[at + p];
                    assert!(label == -100 || label == ids[at + p], "row {row}: the label at {p} is another token");
                }
                Row {
                    ids: ids[at..at + len].iter().map(|i| *i as u32).collect(),
                    weights: (0..len).map(weight).collect(),
                    sample: row as u64,
                }
            })
            .collect()
    }
}

/// Rows packed into one micro-batch.
pub fn pack(rows: &[Row]) -> HostBatch {
    let mut batch = HostBatch { cu_seqlens: vec![0], ..HostBatch::default() };
    for row in rows {
        batch.ids.extend(&row.ids);
        batch.targets.extend(row.ids.iter().skip(1).chain([&0]));
        batch.weights.extend(&row.weights);
        batch.positions.extend(0..row.ids.len() as u32);
        batch.cu_seqlens.push(batch.ids.len() as u32);
        batch.samples.push(row.sample);
    }
    batch
}

pub fn total_weight(rows: &[Row]) -> f64 {
    rows.iter().flat_map(|r| &r.weights).map(|w| f64::from(*w)).sum()
}

/// The folders `model/<name>` that have `model/<name>_goldens`.
pub fn reference_models() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(support::reference_file("model"))
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok()?.strip_suffix("_goldens").map(String::from))
        .collect();
    names.sort();
    assert!(!names.is_empty(), "no goldens in model/");
    names
}

/// A model folder of the reference set as it is stored.
pub fn reference_weights(path: &str) -> (ModelConfig, ModelWeights) {
    let files = ModelFiles::dir(support::reference_file(path));
    let config = ModelConfig::read(&files).unwrap();
    let checkpoint = Checkpoint::open(&files).unwrap();
    let weights = load_weights(&checkpoint, &config, LoadOptions { quantize: Quantize::AsStored, ..LoadOptions::default() }).unwrap();
    (config, weights)
}

pub fn reference_model(path: &str) -> Arc<Model<Cpu>> {
    let (config, weights) = reference_weights(path);
    Model::new(cpu(2), &config, &weights, WeightPlan::Unpacked).unwrap()
}

/// A PEFT adapter of the reference set.
pub fn reference_adapter(path: &str) -> HostAdapter {
    HostAdapter::read(&ModelFiles::dir(support::reference_file(path))).unwrap()
}

/// Tensors under PEFT's names as the engine names them: without `base_model.model.` in front.
pub fn peft_names(tensors: std::collections::BTreeMap<String, support::Tensor>) -> std::collections::BTreeMap<String, Vec<f32>> {
    tensors
        .into_iter()
        .map(|(name, t)| (name.strip_prefix("base_model.model.").unwrap_or_else(|| panic!("{name}")).to_string(), t.f32()))
        .collect()
}
