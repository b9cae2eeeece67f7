//! Whole training runs against torch, transformers, PEFT and bitsandbytes: losses, gradient norms and the adapters that come out.

use std::collections::BTreeMap;

use serde_json::Value;
use trainer_engine::{Adapter, LOSS_ROWS, Recompute, Schedule, TrainOptions, Trainer, schedule};
use trainer_kernels::adamw::{AdamWConfig, StateBits};
use trainer_kernels::ops::{Ops, WeightPlan};

use crate::models::missing;
use crate::rows::{Row, pack, rows, total_weight};
use crate::{Checks, Context, Measure, Result, relative_norm};

/// What a run is made of.
struct Run<'a> {
    name: String,
    curve: &'a str,
    model: &'a str,
    adapter: &'a str,
    rows: &'a str,
    end: &'a str,
    bits: StateBits,
    recompute: Recompute,
    /// The adapter's tolerance where the backend computes in f32.
    adapter_tolerance: f64,
    /// The curve's and the norms' tolerances where the backend computes in f32, relative.
    curve_tolerance: f64,
}

impl<O: Ops> Checks<'_, O> {
    /// The twenty steps of each model that has them, with activations kept and computed again; ten steps with 8-bit states.
    pub fn curves(&mut self) -> Result<()> {
        for name in self.files.models()? {
            let folder = format!("model/{name}_goldens");
            let curve = format!("{folder}/train/curve.json");
            if !self.files.exists(&curve) {
                continue;
            }
            for recompute in [Recompute::None, Recompute::All] {
                let how = if recompute == Recompute::None { "kept" } else { "recomputed" };
                self.curve(&Run {
                    name: format!("{name}, activations {how}"),
                    curve: &curve,
                    model: &format!("model/{name}"),
                    adapter: &format!("{folder}/adapter_init"),
                    rows: &format!("{folder}/train/rows.safetensors"),
                    end: &format!("{folder}/train/adapter_final/adapter_model.safetensors"),
                    bits: StateBits::ThirtyTwo,
                    recompute,
                    adapter_tolerance: 2e-5,
                    curve_tolerance: 1.25e-5,
                })?;
            }
        }
        let folder = "quant/adamw8bit_train";
        let curve = format!("{folder}/curve.json");
        let json = self.files.json(&curve)?;
        // `model/NAME_goldens/train/rows.safetensors, in order, ...`
        let rows = json.pointer("/settings/rows").and_then(Value::as_str).and_then(|r| r.split(',').next()).unwrap_or_default();
        let model = rows.split('/').nth(1).and_then(|m| m.strip_suffix("_goldens")).unwrap_or_default();
        self.curve(&Run {
            name: format!("{model}, 8-bit states"),
            curve: &curve,
            model: &format!("model/{model}"),
            adapter: &format!("{folder}/adapter_init"),
            rows,
            end: &format!("{folder}/adapter_final/adapter_model.safetensors"),
            bits: StateBits::Eight,
            recompute: Recompute::None,
            adapter_tolerance: 2e-3,
            curve_tolerance: 2.5e-5,
        })
    }

    fn curve(&mut self, run: &Run<'_>) -> Result<()> {
        let json = self.files.json(run.curve)?;
        let settings = json.get("settings").cloned().unwrap_or_default();
        let number = |key: &str| self.files.float(run.curve, &settings, key);
        let size = |key: &str| self.files.size(run.curve, &settings, key);
        let beta = |i: usize| {
            let beta = settings.pointer(&format!("/betas/{i}")).and_then(Value::as_f64);
            beta.ok_or_else(|| self.files.error(run.curve, "there are no betas"))
        };
        let optimizer = AdamWConfig {
            beta1: beta(0)?,
            beta2: beta(1)?,
            eps: number("eps")?,
            weight_decay: number("weight_decay")?,
            bits: run.bits,
            ..AdamWConfig::default()
        };
        let (batch, accumulation) = (size("batch")?, size("accumulation")?);
        let (total, warmup, base) = (size("total_steps")? as u64, size("warmup_steps")? as u64, number("lr")?);
        let max_grad_norm = Some(number("max_grad_norm")?).filter(|n| *n > 0.0);
        let schedule = match self.files.text(run.curve, &settings, "schedule")?.split_whitespace().next() {
            Some("linear") => Schedule::Linear,
            Some("cosine") => Schedule::Cosine,
            _ => Schedule::Constant,
        };
        let rows: Vec<Row> = rows(&self.files, run.rows, &self.files.tensors(run.rows)?)?;
        let longest = rows.iter().map(|r| r.ids.len()).max().unwrap_or(0);
        let model = self.model(run.model, WeightPlan::Unpacked)?;
        let adapter = Adapter::load(&model, &self.files.adapter(run.adapter)?).of(&run.name)?;
        let recompute = run.recompute.clone();
        let options = TrainOptions {
            max_tokens: batch * longest,
            recompute,
            optimizer,
            max_grad_norm,
            seed: 3407,
            loss_rows: LOSS_ROWS,
            offload: false,
        };
        let mut trainer = Trainer::new(model, adapter, options).of(&run.name)?;
        let steps = json.get("steps").cloned().unwrap_or_default();
        // The largest errors over the run: a line for each step of each would bury everything else.
        let (mut loss_error, mut norm_error) = (0f64, 0f64);
        let per_step = batch * accumulation;
        for (step, rows) in self.files.list(run.curve, &steps)?.iter().zip(rows.chunks(per_step.max(1))) {
            let weight = total_weight(rows);
            let mut sum = 0.0;
            for micro in rows.chunks(batch.max(1)) {
                sum += trainer.train_micro_batch(&pack(micro), (1.0 / weight) as f32).of(&run.name)?.sum();
            }
            let number = self.files.size(run.curve, step, "step")? as u64;
            let report = trainer.optimizer_step(schedule::lr(schedule, number, total, warmup, base)).of(&run.name)?;
            let relative = |got: f64, key: &str| -> Result<f64> {
                let want = self.files.float(run.curve, step, key)?;
                Ok((got - want).abs() / want.abs())
            };
            loss_error = loss_error.max(relative(sum / weight, "loss")?);
            norm_error = norm_error.max(relative(report.grad_norm, "grad_norm")?);
        }
        let exact = self.ops.element_bytes() >= 4;
        let (curve, norm) =
            if exact { (run.curve_tolerance, 5.0 * run.curve_tolerance) } else { (self.tolerances.curve, self.tolerances.norm) };
        self.note(format!("{}: losses of {} steps", run.name, trainer.step()), Measure::Relative, loss_error, curve);
        self.note(format!("{}: gradient norms", run.name), Measure::Relative, norm_error, norm);
        self.note(format!("{}: steps", run.name), Measure::Count, (total as f64 - trainer.step() as f64).abs(), 0.0);
        let want = self.files.tensors(run.end)?.peft();
        let got = trainer.state().of(&run.name)?.parameters;
        self.note(format!("{}: trained tensors", run.name), Measure::Count, missing(&got, &want), 0.0);
        if exact {
            let worst =
                want.iter().map(|(name, want)| crate::largest(got.get(name).map_or(&[][..], Vec::as_slice), want)).fold(0.0, f64::max);
            self.note(format!("{}: adapter", run.name), Measure::Largest, worst, run.adapter_tolerance);
        } else {
            let (got, want) = (flat(&got), flat(&want));
            self.note(format!("{}: adapter", run.name), Measure::RelativeNorm, relative_norm(&got, &want), self.tolerances.adapter);
        }
        Ok(())
    }
}

/// All tensors in the order of their names.
fn flat(tensors: &BTreeMap<String, Vec<f32>>) -> Vec<f32> {
    tensors.values().flatten().copied().collect()
}
