//! Whole training runs against torch, transformers, PEFT and bitsandbytes: losses, gradient norms, clipping and the adapters that come out.

mod common;

use std::collections::BTreeMap;

use common::*;
use serde_json::Value;
use trainer_engine::*;
use trainer_kernels::adamw::{AdamWConfig, StateBits};
use trainer_kernels::cpu::Cpu;
use trainer_test_support as support;

/// A run of the reference set, with whatever settings its curve.json has.
struct Run {
    trainer: Trainer<Cpu>,
    rows: Vec<Row>,
    curve: Value,
    batch: usize,
    accumulation: usize,
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("not a number: {v}"))
}

impl Run {
    fn new(curve_file: &str, model: &str, adapter: &str, rows: &str, bits: StateBits, recompute: Recompute) -> Run {
        let curve = support::json(curve_file);
        let settings = &curve["settings"];
        let model = reference_model(model);
        let host = reference_adapter(adapter);
        assert_eq!(host.config.r as u64, settings["r"].as_u64().unwrap(), "adapter and settings disagree");
        let adapter = Adapter::load(&model, &host).unwrap();
        let rows = Row::reference(&support::tensors(rows));
        let batch = settings["batch"].as_u64().unwrap() as usize;
        let optimizer = AdamWConfig {
            beta1: number(&settings["betas"][0]),
            beta2: number(&settings["betas"][1]),
            eps: number(&settings["eps"]),
            weight_decay: number(&settings["weight_decay"]),
            bits,
            ..AdamWConfig::default()
        };
        let longest = rows.iter().map(|r| r.ids.len()).max().unwrap();
        let max_grad_norm = settings["max_grad_norm"].as_f64().filter(|n| *n > 0.0);
        let options = TrainOptions {
            max_tokens: batch * longest,
            recompute,
            optimizer,
            max_grad_norm,
            seed: 3407,
            loss_rows: LOSS_ROWS,
            offload: false,
        };
        let trainer = Trainer::new(model, adapter, options).unwrap();
        let accumulation = settings["accumulation"].as_u64().unwrap() as usize;
        Run { trainer, rows, curve, batch, accumulation }
    }

    /// The learning rate of a step, which must also be what the file says.
    fn lr(&self, step: &Value) -> f64 {
        let settings = &self.curve["settings"];
        let name = settings["schedule"].as_str().unwrap();
        let schedule = match name.split_whitespace().next().unwrap() {
            "linear" => Schedule::Linear,
            "cosine" => Schedule::Cosine,
            "constant" => Schedule::Constant,
            other => panic!("unknown schedule {other}"),
        };
        let (total, warmup) = (settings["total_steps"].as_u64().unwrap(), settings["warmup_steps"].as_u64().unwrap());
        let lr = schedule::lr(schedule, step["step"].as_u64().unwrap(), total, warmup, number(&settings["lr"]));
        assert!((lr - number(&step["lr"])).abs() <= 1e-12, "step {}: learning rate {lr}, not {}", step["step"], step["lr"]);
        lr
    }

    /// Takes one step; losses and norms must be those of the file.
    fn step(&mut self, step: &Value, loss_tolerance: f64, norm_tolerance: f64) {
        let number_of_step = step["step"].as_u64().unwrap() as usize;
        let per_step = self.batch * self.accumulation;
        let rows = self.rows[(number_of_step - 1) * per_step..][..per_step].to_vec();
        let weight = total_weight(&rows);
        if let Some(items) = step.get("num_items_in_batch") {
            assert_eq!(weight, number(items), "step {number_of_step}: target tokens");
        }
        let mut shares = Vec::new();
        for micro in rows.chunks(self.batch) {
            let loss = self.trainer.train_micro_batch(&pack(micro), (1.0 / weight) as f32).unwrap();
            shares.push(loss.sum() / weight);
        }
        if let Some(expected) = step.get("micro_losses").and_then(Value::as_array) {
            assert_eq!(shares.len(), expected.len());
            for (share, expected) in shares.iter().zip(expected) {
                let difference = (share - number(expected)).abs();
                assert!(difference < loss_tolerance, "step {number_of_step}: a micro-batch's loss differs by {difference}");
            }
        }
        let difference = (shares.iter().sum::<f64>() - number(&step["loss"])).abs();
        assert!(difference < loss_tolerance, "step {number_of_step}: loss differs by {difference}");
        let lr = self.lr(step);
        let report = self.trainer.optimizer_step(lr).unwrap();
        assert_eq!(report.step as usize, number_of_step);
        let difference = (report.grad_norm - number(&step["grad_norm"])).abs();
        assert!(difference < norm_tolerance, "step {number_of_step}: gradient norm differs by {difference}");
        if let Some(clipped) = step.get("clipped").and_then(Value::as_bool) {
            assert_eq!(report.clip < 1.0, clipped, "step {number_of_step}: clip factor {}", report.clip);
        }
    }

    fn check_adapter(&self, what: &str, goldens: BTreeMap<String, Vec<f32>>, tolerance: f32) {
        let state = self.trainer.state().unwrap();
        assert_eq!(state.parameters.keys().collect::<Vec<_>>(), goldens.keys().collect::<Vec<_>>(), "{what}");
        for (name, golden) in &goldens {
            let difference = support::max_abs_diff(&state.parameters[name], golden);
            assert!(difference < tolerance, "{what}: {name} differs by {difference}");
        }
    }
}

fn adapter_file(path: &str) -> BTreeMap<String, Vec<f32>> {
    peft_names(support::tensors(path))
}

#[test]
fn reference_training_curves() {
    let mut seen = 0;
    for name in reference_models() {
        let folder = format!("model/{name}_goldens");
        if !support::reference().join(&folder).join("train/curve.json").is_file() {
            continue;
        }
        seen += 1;
        for recompute in [Recompute::None, Recompute::All] {
            let mut run = Run::new(
                &format!("{folder}/train/curve.json"),
                &format!("model/{name}"),
                &format!("{folder}/adapter_init"),
                &format!("{folder}/train/rows.safetensors"),
                StateBits::ThirtyTwo,
                recompute,
            );
            let steps = run.curve["steps"].as_array().unwrap().clone();
            let mut snapshots = 0;
            for step in &steps {
                run.step(step, 1e-4, 1e-4);
                let snapshot = format!("{folder}/train/adapter_step_{}.safetensors", step["step"]);
                if support::reference().join(&snapshot).is_file() {
                    run.check_adapter(&snapshot, adapter_file(&snapshot), 2e-5);
                    snapshots += 1;
                }
            }
            assert!(snapshots > 0, "{name}: no snapshots of the adapter");
            let end = format!("{folder}/train/adapter_final/adapter_model.safetensors");
            run.check_adapter(&end, adapter_file(&end), 2e-5);
            let rows = Row::reference(&support::tensors(&format!("{folder}/forward.safetensors")));
            let mut loss = MicroLoss::default();
            for row in &rows {
                let one = run.trainer.loss(&pack(std::slice::from_ref(row))).unwrap();
                loss.sums.extend(one.sums);
                loss.weights.extend(one.weights);
            }
            let difference = (loss.sum() / loss.weight() - number(&run.curve["after"]["loss_on_forward_batch"])).abs();
            assert!(difference < 1e-4, "{name}: loss after training differs by {difference}");
        }
    }
    assert!(seen > 0, "no training curves");
}

#[test]
fn reference_adamw8bit_training() {
    let curve = support::json("quant/adamw8bit_train/curve.json");
    let rows = curve["settings"]["rows"].as_str().unwrap().split(',').next().unwrap().to_string();
    let model = format!("model/{}", rows.split('/').nth(1).unwrap().strip_suffix("_goldens").unwrap());
    let folder = "quant/adamw8bit_train";
    let mut run =
        Run::new(&format!("{folder}/curve.json"), &model, &format!("{folder}/adapter_init"), &rows, StateBits::Eight, Recompute::None);
    for step in curve["steps"].as_array().unwrap() {
        run.step(step, 2e-4, 2e-4);
    }
    let end = format!("{folder}/adapter_final/adapter_model.safetensors");
    run.check_adapter(&end, adapter_file(&end), 2e-3);
}
