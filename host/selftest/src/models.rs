//! Hidden states, logits, losses, gradients and greedy tokens against transformers and PEFT, for every model of the reference data.

use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::Value;
use trainer_engine::{Adapter, GenOptions, GenRequest, GenResult, Generator, LOSS_ROWS, Model, Recompute, TrainOptions, Trainer};
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::ops::{Ops, WeightPlan};
use trainer_kernels::sampling::SamplingParams;
use trainer_model::AdapterConfig;

use crate::files::Tensors;
use crate::rows::{Row, last, pack, rows, total_weight, unpadded};
use crate::{Checks, Context, Measure, Result};

/// More tokens than the rows of any file have together.
const MOST_TOKENS: usize = 4096;

impl<O: Ops> Checks<'_, O> {
    pub(crate) fn model(&self, path: &str, plan: WeightPlan) -> Result<Arc<Model<O>>> {
        let (config, weights) = self.files.weights(path, self.ops.reads_weights())?;
        Model::new(self.ops.clone(), &config, &weights, plan).of(path)
    }

    /// Whichever form of logits a file has: of all positions, or of the last of each row.
    fn logits(&mut self, name: &str, goldens: &Tensors, logits: &[f32], rows: &[Row], vocab: usize) -> Result<()> {
        let (got, want) = match goldens.all.get("logits") {
            Some(all) => (logits.to_vec(), unpadded(all, rows)),
            None => (last(logits, rows, vocab), goldens.get("last_logits")?.f32()),
        };
        let tolerances = self.tolerances;
        self.largest(format!("{name}: logits"), &got, &want, tolerances.logits);
        self.relative_norm(format!("{name}: logits"), &got, &want, tolerances.logits_norm);
        Ok(())
    }

    fn trainer(&self, model: &Arc<Model<O>>, adapter: Adapter<O>) -> Result<Trainer<O>> {
        let options = TrainOptions {
            max_tokens: MOST_TOKENS,
            recompute: Recompute::None,
            optimizer: AdamWConfig::default(),
            max_grad_norm: None,
            seed: 1,
            offload: false,
            loss_rows: LOSS_ROWS,
        };
        Trainer::new(model.clone(), adapter, options).of("training buffers")
    }

    /// The loss of rows in the training forward, under an adapter.
    fn loss(&self, model: &Arc<Model<O>>, adapter: Adapter<O>, rows: &[Row]) -> Result<f64> {
        let loss = self.trainer(model, adapter)?.loss(&pack(rows)).of("loss")?;
        Ok(loss.sum() / loss.weight())
    }

    /// Forward without an adapter: hidden states, logits, loss; and the partly quantized checkpoint.
    pub fn forward(&mut self) -> Result<()> {
        for name in self.files.models()? {
            for plan in [WeightPlan::Unpacked, WeightPlan::Packed] {
                let what = format!("{name}, {plan:?}");
                let model = self.model(&format!("model/{name}"), plan)?;
                let path = format!("model/{name}_goldens/forward.safetensors");
                let goldens = self.files.tensors(&path)?;
                let rows = rows(&self.files, &path, &goldens)?;
                let states = model.hidden_states(None, &pack(&rows)).of(&what)?;
                for (key, tensor) in &goldens.all {
                    let computed = match key.strip_prefix("hidden.") {
                        None => continue,
                        Some("embedding") => Some(&states.embedding),
                        Some("final_norm") => Some(&states.final_norm),
                        Some(layer) => layer.strip_prefix("layer_").and_then(|l| states.layers.get(l.parse::<usize>().ok()?)),
                    };
                    let tolerance = self.tolerances.logits;
                    self.largest(format!("{what}: {key}"), computed.map_or(&[], Vec::as_slice), &unpadded(tensor, &rows), tolerance);
                }
                self.logits(&what, &goldens, &states.logits, &rows, model.dims().vocab)?;
                // The training forward is another path than the one above. A fresh adapter (B = 0) changes nothing.
                let loss = self.loss(&model, Adapter::init(&model, small_adapter(), 5).of(&what)?, &rows)?;
                self.relative(format!("{what}: loss"), loss, goldens.number("loss")?, self.tolerances.loss);
            }
        }
        self.partly_quantized()
    }

    fn partly_quantized(&mut self) -> Result<()> {
        let path = "quant/dynamic_nf4_bf16_forward.safetensors";
        let goldens = self.files.tensors(path)?;
        let rows = rows(&self.files, path, &goldens)?;
        for plan in [WeightPlan::Unpacked, WeightPlan::Packed] {
            let what = format!("partly quantized, {plan:?}");
            let model = self.model("quant/dynamic_nf4_bf16", plan)?;
            let states = model.hidden_states(None, &pack(&rows)).of(&what)?;
            let want = unpadded(goldens.get("logits_f32")?, &rows);
            let tolerances = self.tolerances;
            self.largest(format!("{what}: logits"), &states.logits, &want, tolerances.logits);
            self.relative_norm(format!("{what}: logits"), &states.logits, &want, tolerances.logits_norm);
            let loss = self.loss(&model, Adapter::init(&model, small_adapter(), 5).of(&what)?, &rows)?;
            self.relative(format!("{what}: loss"), loss, goldens.number("loss_f32")?, tolerances.loss);
        }
        Ok(())
    }

    /// Forward and gradients with an adapter, in one micro-batch and row by row; the adapter folded in; the adapter after training.
    pub fn lora(&mut self) -> Result<()> {
        for name in self.files.models()? {
            let folder = format!("model/{name}_goldens");
            let model = self.model(&format!("model/{name}"), WeightPlan::Unpacked)?;
            let path = format!("{folder}/forward.safetensors");
            let rows = rows(&self.files, &path, &self.files.tensors(&path)?)?;
            let goldens = self.files.tensors(&format!("{folder}/lora_forward.safetensors"))?;
            let host = self.files.adapter(&format!("{folder}/adapter_init"))?;
            let load = |model: &Model<O>| Adapter::load(model, &host).of(&name);
            let states = model.hidden_states(Some(&load(&model)?), &pack(&rows)).of(&name)?;
            self.logits(&format!("{name} with adapter"), &goldens, &states.logits, &rows, model.dims().vocab)?;
            let (config, weights) = self.files.weights(&format!("model/{name}"), self.ops.reads_weights())?;
            let merged = Model::merged(self.ops.clone(), &config, &weights, &host).of(&name)?;
            let states = merged.hidden_states(None, &pack(&rows)).of(&name)?;
            self.logits(&format!("{name} merged"), &goldens, &states.logits, &rows, merged.dims().vocab)?;
            let gradients = self.files.tensors(&format!("{folder}/lora_grads.safetensors"))?.peft();
            for rows_at_once in [rows.len().max(1), 1] {
                let what = if rows_at_once == 1 { format!("{name}, row by row") } else { format!("{name}, packed") };
                let mut trainer = self.trainer(&model, load(&model)?)?;
                let scale = (1.0 / total_weight(&rows)) as f32;
                let mut sum = 0.0;
                for chunk in rows.chunks(rows_at_once) {
                    sum += trainer.train_micro_batch(&pack(chunk), scale).of(&what)?.sum();
                }
                self.relative(format!("{what}: loss"), sum / total_weight(&rows), goldens.number("loss")?, self.tolerances.loss);
                let computed = trainer.gradients().of(&what)?;
                self.note(format!("{what}: trained tensors"), Measure::Count, missing(&computed, &gradients), 0.0);
                for (tensor, want) in &gradients {
                    let got = computed.get(tensor).map_or(&[][..], Vec::as_slice);
                    self.relative_norm(format!("{what}: gradient of {tensor}"), got, want, self.tolerances.gradient);
                }
            }
            if self.files.exists(&format!("{folder}/train/final_forward.safetensors")) {
                let what = format!("{name} after training");
                let goldens = self.files.tensors(&format!("{folder}/train/final_forward.safetensors"))?;
                let trained = self.files.adapter(&format!("{folder}/train/adapter_final"))?;
                let adapter = Adapter::load(&model, &trained).of(&what)?;
                let states = model.hidden_states(Some(&adapter), &pack(&rows)).of(&what)?;
                self.logits(&what, &goldens, &states.logits, &rows, model.dims().vocab)?;
                let loss = self.loss(&model, adapter, &rows)?;
                self.relative(format!("{what}: loss"), loss, goldens.number("loss")?, self.tolerances.loss);
            }
        }
        Ok(())
    }

    /// Greedy tokens with the key/value cache: all prompts together, one after the other, and prompts in pieces. Where a token differs, what counts
    /// is by how much the reference preferred its own.
    pub fn greedy(&mut self) -> Result<()> {
        for name in self.files.models()? {
            let model = self.model(&format!("model/{name}"), WeightPlan::Unpacked)?;
            let path = format!("model/{name}_goldens/greedy.json");
            let json = self.files.json(&path)?;
            let cases = self.files.list(&path, &json)?;
            let ids = |case: &Value, key: &str| -> Vec<u32> {
                let list = case.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                list.iter().filter_map(|i| u32::try_from(i.as_u64()?).ok()).collect()
            };
            for (slots, prefill_tokens) in [(8, 512), (1, 512), (2, 7)] {
                let requests: Vec<GenRequest> = cases
                    .iter()
                    .zip(0u64..)
                    .map(|(case, id)| greedy(id, ids(case, "prompt_ids"), ids(case, "generated_ids").len()))
                    .collect();
                let mut generator = Generator::new(model.clone(), GenOptions { slots, cache_length: 512, prefill_tokens }).of(&name)?;
                let results = generator.generate(None, requests, &mut |_| ControlFlow::Continue(())).of(&name)?;
                for (i, (result, case)) in results.iter().zip(cases).enumerate() {
                    let margin = margin(result, &ids(case, "generated_ids"), case);
                    let what = format!("{name}: prompt {i}, {slots} slots, prefill of {prefill_tokens}");
                    self.note(what, Measure::Margin, margin, self.tolerances.margin);
                }
            }
        }
        Ok(())
    }
}

/// How many names are in one of two maps only.
pub(crate) fn missing<T>(a: &std::collections::BTreeMap<String, T>, b: &std::collections::BTreeMap<String, T>) -> f64 {
    let only = |a: &std::collections::BTreeMap<String, T>, b: &std::collections::BTreeMap<String, T>| {
        a.keys().filter(|k| !b.contains_key(*k)).count()
    };
    (only(a, b) + only(b, a)) as f64
}

/// The reference's margin between its best and second logit at the first token that differs; 0 where none does.
fn margin(result: &GenResult, want: &[u32], case: &Value) -> f64 {
    let differs = result.ids.iter().zip(want).position(|(a, b)| a != b);
    let differs = differs.or((result.ids.len() != want.len()).then_some(result.ids.len().min(want.len())));
    match differs {
        None => 0.0,
        Some(at) => case.pointer(&format!("/margin_top1_top2/{at}")).and_then(Value::as_f64).unwrap_or(f64::INFINITY),
    }
}

fn greedy(id: u64, prompt_ids: Vec<u32>, max_new_tokens: usize) -> GenRequest {
    let params = SamplingParams::greedy();
    GenRequest { id, prompt_ids, params, sample: id, max_new_tokens, ..GenRequest::default() }
}

/// Settings of rank 2 on all projections.
fn small_adapter() -> AdapterConfig {
    let mut config = AdapterConfig::default();
    (config.r, config.alpha) = (2, 4.0);
    config
}
