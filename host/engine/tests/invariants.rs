//! What must not change: recomputation, threads, packing, accumulation and interruption.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::*;
use trainer_engine::*;
use trainer_kernels::adamw::{AdamWConfig, StateBits};
use trainer_kernels::cpu::Cpu;
use trainer_kernels::ops::WeightPlan;
use trainer_model::{AdapterBias, AdapterConfig};
use trainer_test_support::relative_norm;

type Tensors = BTreeMap<String, Vec<f32>>;

fn options(recompute: Recompute) -> TrainOptions {
    TrainOptions {
        max_tokens: 200,
        recompute,
        optimizer: AdamWConfig::default(),
        max_grad_norm: Some(1.0),
        seed: 11,
        loss_rows: LOSS_ROWS,
        offload: false,
    }
}

fn trainer(model: &Arc<Model<Cpu>>, config: &AdapterConfig, recompute: Recompute) -> Trainer<Cpu> {
    Trainer::new(model.clone(), adapter(model, config.clone(), 21), options(recompute)).unwrap()
}

fn rows(count: usize, tiny: &Tiny) -> Vec<Row> {
    let mut r = Random::new(31);
    (0..count).map(|i| Row::random(&mut r, 3 + (i * 7) % 19, tiny.vocab, 1000 + i as u64)).collect()
}

/// Gradients and loss of a step over `rows`, `at_once` of them in a micro-batch.
fn gradients(trainer: &mut Trainer<Cpu>, rows: &[Row], at_once: usize) -> (Tensors, Vec<f64>) {
    let scale = (1.0 / total_weight(rows)) as f32;
    let losses = rows.chunks(at_once).flat_map(|chunk| trainer.train_micro_batch(&pack(chunk), scale).unwrap().sums).collect();
    (trainer.gradients().unwrap(), losses)
}

fn assert_close(a: &Tensors, b: &Tensors, what: &str) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
    for (name, values) in a {
        let difference = relative_norm(values, &b[name]);
        assert!(difference < 1e-5, "{what}: {name} differs by {difference}");
    }
}

/// Adapters that take different ways through the engine.
fn configs() -> Vec<(&'static str, Tiny, AdapterConfig)> {
    let plain = Tiny::default();
    let mut dropout = lora(5);
    dropout.dropout = 0.2;
    let mut upper = lora(3);
    upper.target_modules = vec!["model.layers.1.mlp.down_proj".into(), "model.layers.2.self_attn.k_proj".into()];
    let mut patterns = lora(4);
    (patterns.rslora, patterns.dropout) = (true, 0.1);
    patterns.rank_pattern = vec![("k_proj".into(), 7), ("layers.1.mlp.up_proj".into(), 2)];
    patterns.alpha_pattern = vec![("o_proj".into(), 3.0)];
    let mut biases = lora(4);
    biases.bias = AdapterBias::LoraOnly;
    biases.target_modules = vec!["q_proj".into(), "o_proj".into(), "gate_proj".into()];
    let mut all_biases = biases.clone();
    all_biases.bias = AdapterBias::All;
    vec![
        ("plain", plain, lora(4)),
        ("dropout", plain, dropout),
        ("only upper layers", Tiny { layers: 4, ..plain }, upper),
        ("patterns", Tiny { tied: false, nf4: true, ..plain }, patterns),
        ("trained biases", Tiny { bias: true, ..plain }, biases),
        ("all biases", Tiny { bias: true, ..plain }, all_biases),
    ]
}

#[test]
fn recomputed_layers_give_the_same_bits() {
    for (name, tiny, config) in configs() {
        let model = tiny.model(1, 2);
        let rows = rows(6, &tiny);
        let kept = gradients(&mut trainer(&model, &config, Recompute::None), &rows, 3);
        assert!(kept.0.values().flatten().any(|g| *g != 0.0), "{name}: no gradient at all");
        let mixed = |choices: &[Keep]| Recompute::Each(choices.iter().copied().cycle().take(tiny.layers).collect());
        for recompute in [
            Recompute::All,
            Recompute::Layers(vec![1]),
            Recompute::Layers(vec![0, 2]),
            mixed(&[Keep::Lean, Keep::Lean, Keep::Lean]),
            mixed(&[Keep::Lean, Keep::Input, Keep::All]),
            mixed(&[Keep::All, Keep::Lean, Keep::Input]),
            mixed(&[Keep::Input, Keep::All, Keep::Lean]),
        ] {
            let again = gradients(&mut trainer(&model, &config, recompute.clone()), &rows, 3);
            assert_eq!(kept, again, "{name}, {recompute:?}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let tiny = Tiny { hidden: 96, intermediate: 160, vocab: 300, ..Tiny::default() };
    for (name, _, config) in configs().into_iter().take(2) {
        let run = |threads: usize| {
            let model = tiny.model(2, threads);
            let mut trainer = trainer(&model, &config, Recompute::None);
            for step in 0..3 {
                gradients(&mut trainer, &rows(8, &tiny), 8);
                trainer.optimizer_step(1e-3 * f64::from(step)).unwrap();
            }
            trainer.state().unwrap()
        };
        let one = run(1);
        assert_eq!(one, run(2), "{name}");
        assert_eq!(one, run(3), "{name}");
    }
}

#[test]
fn packing_and_accumulation_change_nothing_but_rounding() {
    for (name, tiny, config) in configs() {
        let model = tiny.model(3, 2);
        let rows = rows(8, &tiny);
        let one = gradients(&mut trainer(&model, &config, Recompute::None), &rows, 1);
        for at_once in [2, 4, 8] {
            let packed = gradients(&mut trainer(&model, &config, Recompute::None), &rows, at_once);
            assert_close(&packed.0, &one.0, &format!("{name}, {at_once} rows at once"));
            for (a, b) in packed.1.iter().zip(&one.1) {
                assert!((a - b).abs() <= 1e-5 * b.abs(), "{name}: losses {a} and {b}");
            }
        }
    }
}

#[test]
fn samples_in_another_order_keep_their_dropout() {
    let (_, tiny, config) = configs().into_iter().find(|c| c.0 == "dropout").unwrap();
    let model = tiny.model(3, 2);
    let mut rows = rows(6, &tiny);
    let there = gradients(&mut trainer(&model, &config, Recompute::None), &rows, 6);
    rows.reverse();
    let back = gradients(&mut trainer(&model, &config, Recompute::All), &rows, 2);
    assert_close(&back.0, &there.0, "reversed");
    // Another sample number is another mask, another step too.
    rows.iter_mut().for_each(|r| r.sample += 100);
    let mut other = trainer(&model, &config, Recompute::None);
    let renumbered = gradients(&mut other, &rows, 6);
    let apart = |a: &Tensors, b: &Tensors| a.iter().map(|(name, values)| relative_norm(values, &b[name])).fold(0.0, f64::max);
    assert!(apart(&renumbered.0, &there.0) > 1e-2, "the mask does not depend on the sample");
    other.optimizer_step(0.0).unwrap();
    let next = gradients(&mut other, &rows, 6);
    assert!(apart(&next.0, &renumbered.0) > 1e-2, "the mask does not depend on the step");
}

#[test]
fn packed_weights_give_the_bits_of_unpacked_ones() {
    let tiny = Tiny { nf4: true, ..Tiny::default() };
    let rows = rows(5, &tiny);
    let run = |plan| {
        let model = Model::new(cpu(2), &tiny.config(), &tiny.weights(4), plan).unwrap();
        gradients(&mut trainer(&model, &lora(4), Recompute::None), &rows, 5)
    };
    assert_eq!(run(WeightPlan::Unpacked), run(WeightPlan::Packed));
}

#[test]
fn a_resumed_run_is_an_uninterrupted_one() {
    for bits in [StateBits::Eight, StateBits::ThirtyTwo] {
        for (name, tiny, config) in configs() {
            let model = tiny.model(5, 2);
            let mut options = options(Recompute::None);
            // Some tensors in 8 bits, some in 32.
            options.optimizer = AdamWConfig { bits, min_8bit_size: 200, ..AdamWConfig::default() };
            let start = || Trainer::new(model.clone(), adapter(&model, config.clone(), 21), options.clone()).unwrap();
            let step = |trainer: &mut Trainer<Cpu>, number: u64| {
                let rows: Vec<Row> = rows(4, &tiny).into_iter().map(|r| Row { sample: r.sample + 10 * number, ..r }).collect();
                gradients(trainer, &rows, 2);
                trainer.optimizer_step(1e-3 / number as f64).unwrap()
            };
            let mut whole = start();
            let reports: Vec<_> = (1..=5).map(|n| step(&mut whole, n)).collect();
            let mut first = start();
            (1..=2).for_each(|n| assert_eq!(step(&mut first, n), reports[n as usize - 1]));
            let saved = first.state().unwrap();
            let mut second = start();
            second.load_state(&saved).unwrap();
            assert_eq!(second.step(), 2);
            assert_eq!(second.state().unwrap(), saved, "{name}: a state does not survive");
            (3..=5).for_each(|n| assert_eq!(step(&mut second, n), reports[n as usize - 1], "{name}, step {n}"));
            assert_eq!(second.state().unwrap(), whole.state().unwrap(), "{name}");
            let (a, b) = (second.adapter().to_host(&model).unwrap(), whole.adapter().to_host(&model).unwrap());
            assert_eq!(a, b);
        }
    }
}

#[test]
fn states_of_another_adapter_are_refused_and_change_nothing() {
    let tiny = Tiny::default();
    let model = tiny.model(5, 1);
    let mut trainer = trainer(&model, &lora(4), Recompute::None);
    let state = trainer.state().unwrap();
    let name = state.parameters.keys().next().unwrap().clone();
    let mut missing = state.clone();
    missing.optimizer.remove(&name);
    let mut short = state.clone();
    short.parameters.get_mut(&name).unwrap().pop();
    let mut foreign = state.clone();
    foreign.parameters.insert("model.layers.9.mlp.up_proj.lora_A.weight".into(), vec![0.0]);
    for bad in [missing, short, foreign, TrainState::default()] {
        let error = trainer.load_state(&bad).unwrap_err();
        assert!(matches!(error, EngineError::State(_)), "{error}");
        assert_eq!(trainer.state().unwrap(), state);
    }
    gradients(&mut trainer, &rows(2, &tiny), 2);
    let error = trainer.state().unwrap_err().to_string();
    assert!(error.contains("step 1 is under way"), "{error}");
}

#[test]
fn gradients_are_those_of_finite_differences() {
    // Central differences of the f32 loss: coarse, but through the whole engine, with every kind of trained tensor.
    for (name, tiny, mut config) in configs() {
        config.dropout = 0.0;
        let model = tiny.model(6, 2);
        let rows = rows(3, &tiny);
        let mut trainer = trainer(&model, &config, Recompute::None);
        let (gradients, _) = gradients(&mut trainer, &rows, 3);
        trainer.optimizer_step(0.0).unwrap();
        let state = trainer.state().unwrap();
        let mut loss_at = |change: &dyn Fn(&mut Tensors)| {
            let mut moved = state.clone();
            change(&mut moved.parameters);
            trainer.load_state(&moved).unwrap();
            trainer.loss(&pack(&rows)).unwrap().sum() / total_weight(&rows)
        };
        for (tensor, gradient) in &gradients {
            // Along the gradient itself, so that the difference is as large as it can be.
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(norm > 1e-6, "{name}: the gradient of {tensor} is {norm}");
            let step = 3e-3 / norm;
            let mut ends = [1.0, -1.0].map(|sign| {
                loss_at(&|parameters| {
                    let values = parameters.get_mut(tensor).unwrap();
                    values.iter_mut().zip(gradient).for_each(|(v, g)| *v += (sign * step * f64::from(*g)) as f32);
                })
            });
            ends[0] -= ends[1];
            let slope = ends[0] / (2.0 * step * norm);
            assert!((slope - norm).abs() < 2e-2 * norm + 2e-4, "{name}: {tensor} has slope {slope}, gradient {norm}");
        }
    }
}

#[test]
fn broken_batches_are_refused() {
    let tiny = Tiny::default();
    let model = tiny.model(7, 1);
    let mut trainer = trainer(&model, &lora(2), Recompute::None);
    let good = pack(&rows(3, &tiny));
    let n = good.ids.len();
    assert!(matches!(trainer.optimizer_step(1e-3), Err(EngineError::NoGradient { step: 1 })));
    let change = |f: &dyn Fn(&mut trainer_kernels::ops::HostBatch)| {
        let mut batch = good.clone();
        f(&mut batch);
        batch
    };
    let broken = [
        change(&|b| *b = Default::default()),
        change(&|b| b.ids[1] = tiny.vocab as u32),
        change(&|b| b.weights.truncate(n - 1)),
        change(&|b| b.targets.clear()),
        change(&|b| b.targets[0] = u32::MAX),
        change(&|b| b.positions.push(0)),
        change(&|b| b.weights[0] = f32::NAN),
        change(&|b| b.weights[0] = -1.0),
        change(&|b| b.weights[n - 1] = 1.0),
        change(&|b| b.cu_seqlens = vec![0]),
        change(&|b| b.cu_seqlens[1] = b.cu_seqlens[2]),
        change(&|b| *b.cu_seqlens.last_mut().unwrap() += 1),
        change(&|b| b.samples.clear()),
    ];
    for (i, batch) in broken.iter().enumerate() {
        assert!(trainer.train_micro_batch(batch, 0.1).is_err(), "broken batch {i} was accepted");
    }
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(trainer.train_micro_batch(&good, scale).is_err());
    }
    let long = pack(&rows(60, &tiny));
    assert!(matches!(trainer.train_micro_batch(&long, 0.1), Err(EngineError::TooManyTokens { limit: 200, .. })));
    // Afterwards everything still works.
    trainer.train_micro_batch(&good, 0.1).unwrap();
    assert!(trainer.optimizer_step(f64::NAN).is_err());
    trainer.optimizer_step(1e-3).unwrap();
}

#[test]
fn adapters_that_cannot_be_are_refused() {
    let tiny = Tiny::default();
    let model = tiny.model(8, 1);
    let refused = |change: &dyn Fn(&mut AdapterConfig), text: &str| {
        let mut config = lora(4);
        change(&mut config);
        let error = Adapter::init(&model, config, 1).err().expect("accepted").to_string();
        assert!(error.contains(text), "{error}");
    };
    refused(&|c| c.r = 0, "rank 0");
    refused(&|c| c.r = usize::MAX, "rank");
    refused(&|c| c.dropout = 1.0, "dropout 1");
    refused(&|c| c.dropout = f64::NAN, "dropout");
    refused(&|c| c.alpha = f64::INFINITY, "alpha");
    refused(&|c| c.target_modules = vec!["q_porj".into()], "q_porj");
    refused(&|c| c.target_modules.clear(), "no target");
    refused(&|c| c.rank_pattern = vec![("nothing".into(), 3)], "nothing");
    let mut host = adapter(&model, lora(4), 1).to_host(&model).unwrap();
    let name = host.modules.keys().next().unwrap().clone();
    let a = std::mem::take(&mut host.modules.get_mut(&name).unwrap().a);
    let error = Adapter::load(&model, &host).err().unwrap().to_string();
    assert!(error.contains(&name) && error.contains("lora_A has 0 values"), "{error}");
    host.modules.get_mut(&name).unwrap().a = a.iter().map(|_| f32::NAN).collect();
    assert!(Adapter::load(&model, &host).err().unwrap().to_string().contains("NaN"));
    host.modules.remove(&name);
    assert!(Adapter::load(&model, &host).err().unwrap().to_string().contains("missing"));
}

#[test]
fn a_fresh_adapter_changes_nothing_and_counts_its_parameters() {
    let tiny = Tiny::default();
    let model = tiny.model(9, 2);
    let fresh = Adapter::init(&model, lora(4), 3).unwrap();
    let batch = pack(&rows(3, &tiny));
    assert_eq!(model.hidden_states(Some(&fresh), &batch).unwrap(), model.hidden_states(None, &batch).unwrap());
    let host = fresh.to_host(&model).unwrap();
    let values: usize = host.modules.values().map(|m| m.a.len() + m.b.len()).sum();
    assert_eq!(fresh.parameters(), values as u64);
    assert_eq!(trained_parameters(&lora(4), model.dims()).unwrap(), values as u64);
    assert_eq!(model.parameters(), tiny.config().parameters());
    let share = fresh.share(&model);
    assert!((share - values as f64 / (values as f64 + model.parameters() as f64)).abs() < 1e-12);
    // B and the biases start where PEFT has them; the same seed gives the same adapter, another seed another.
    assert!(host.modules.values().all(|m| m.b.iter().all(|v| *v == 0.0)));
    assert_eq!(host, Adapter::init(&model, lora(4), 3).unwrap().to_host(&model).unwrap());
    assert_ne!(host, Adapter::init(&model, lora(4), 4).unwrap().to_host(&model).unwrap());
}

/// Inputs that wait outside of the device's memory come back as they were, for every number of layers around the size of the ring of buffers, with
/// several micro-batches and a forward without a backward in between.
#[test]
fn offloaded_inputs_give_the_same_bits() {
    for layers in 1..=7 {
        let tiny = Tiny { layers, ..Tiny::default() };
        let model = tiny.model(1, 2);
        let rows = rows(6, &tiny);
        for first in [0, layers / 2] {
            let mut config = lora(3);
            config.target_modules = (first..layers).map(|l| format!("layers.{l}.mlp.down_proj")).collect();
            let run = |offload: bool, recompute: Recompute| {
                let host = Adapter::init(&model, config.clone(), 5).unwrap();
                let mut trainer = Trainer::new(model.clone(), host, TrainOptions { offload, ..options(recompute) }).unwrap();
                trainer.loss(&pack(&rows[..2])).unwrap();
                gradients(&mut trainer, &rows, 2)
            };
            let plain = run(false, Recompute::None);
            assert_eq!(plain, run(true, Recompute::None), "{layers} layers from {first}");
            assert_eq!(plain, run(true, Recompute::All), "{layers} layers from {first}");
        }
    }
}
