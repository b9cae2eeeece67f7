//! Hidden states, logits, losses, gradients and greedy tokens against transformers and PEFT, for every model of the reference set.

mod common;

use std::ops::ControlFlow;

use common::*;
use trainer_engine::*;
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::cpu::Cpu;
use trainer_kernels::ops::WeightPlan;
use trainer_kernels::sampling::SamplingParams;
use trainer_test_support as support;

const LOGITS: f32 = 1e-4;
const LOSS: f64 = 1e-5;
const GRADIENT: f64 = 1e-4;

/// The stored values at the real positions of right-padded rows, in packed order.
fn unpadded(t: &support::Tensor, rows: &[Row]) -> Vec<f32> {
    let (width, size) = (t.shape[1], t.shape[2]);
    let values = t.f32();
    rows.iter().enumerate().flat_map(|(i, row)| values[i * width * size..][..row.ids.len() * size].to_vec()).collect()
}

/// The computed logits at each row's last position.
fn last(logits: &[f32], rows: &[Row], vocab: usize) -> Vec<f32> {
    let mut end = 0;
    rows.iter()
        .flat_map(|row| {
            end += row.ids.len();
            logits[(end - 1) * vocab..end * vocab].to_vec()
        })
        .collect()
}

/// Whichever form of logits the file has: of all positions, or of the last of each row.
fn check_logits(what: &str, goldens: &std::collections::BTreeMap<String, support::Tensor>, logits: &[f32], rows: &[Row], vocab: usize) {
    let difference = match (goldens.get("logits"), goldens.get("last_logits")) {
        (Some(all), None) => support::max_abs_diff(logits, &unpadded(all, rows)),
        (None, Some(ends)) => support::max_abs_diff(&last(logits, rows, vocab), &ends.f32()),
        other => panic!("{what}: expected logits or last_logits, not {other:?}"),
    };
    assert!(difference < LOGITS, "{what}: logits differ by {difference}");
}

fn trainer(model: &std::sync::Arc<Model<Cpu>>, adapter: Adapter<Cpu>, max_tokens: usize) -> Trainer<Cpu> {
    let options = TrainOptions {
        max_tokens,
        recompute: Recompute::None,
        optimizer: AdamWConfig::default(),
        max_grad_norm: None,
        seed: 1,
        loss_rows: LOSS_ROWS,
        offload: false,
    };
    Trainer::new(model.clone(), adapter, options).unwrap()
}

/// Mean loss per target of packed rows.
fn loss(trainer: &mut Trainer<Cpu>, rows: &[Row]) -> f64 {
    let loss = trainer.loss(&pack(rows)).unwrap();
    assert_eq!(loss.weight(), total_weight(rows));
    loss.sum() / loss.weight()
}

fn stored_loss(goldens: &std::collections::BTreeMap<String, support::Tensor>, name: &str) -> f64 {
    f64::from(goldens[name].f32()[0])
}

#[test]
fn reference_hidden_states_logits_and_loss() {
    for name in reference_models() {
        let model = reference_model(&format!("model/{name}"));
        let goldens = support::tensors(&format!("model/{name}_goldens/forward.safetensors"));
        let rows = Row::reference(&goldens);
        let states = model.hidden_states(None, &pack(&rows)).unwrap();
        let mut seen = 0;
        for (key, tensor) in &goldens {
            let Some(place) = key.strip_prefix("hidden.") else { continue };
            let computed = match place {
                "embedding" => &states.embedding,
                "final_norm" => &states.final_norm,
                layer => &states.layers[layer.strip_prefix("layer_").unwrap().parse::<usize>().unwrap()],
            };
            let difference = support::max_abs_diff(computed, &unpadded(tensor, &rows));
            assert!(difference < LOGITS, "{name}: {key} differs by {difference}");
            seen += 1;
        }
        assert_eq!(seen, model.dims().layers + 1, "{name}: hidden states missing");
        check_logits(&name, &goldens, &states.logits, &rows, model.dims().vocab);
        // The training forward, which computes the loss, is another path than the one above. A fresh adapter (B = 0) changes nothing.
        let mut trainer = trainer(&model, Adapter::init(&model, lora(2), 5).unwrap(), 4096);
        let difference = (loss(&mut trainer, &rows) - stored_loss(&goldens, "loss")).abs();
        assert!(difference < LOSS, "{name}: loss differs by {difference}");
    }
}

#[test]
fn reference_lora_forward_and_gradients() {
    for name in reference_models() {
        let folder = format!("model/{name}_goldens");
        let model = reference_model(&format!("model/{name}"));
        let rows = Row::reference(&support::tensors(&format!("{folder}/forward.safetensors")));
        let goldens = support::tensors(&format!("{folder}/lora_forward.safetensors"));
        let host = reference_adapter(&format!("{folder}/adapter_init"));
        let adapter = Adapter::load(&model, &host).unwrap();
        let states = model.hidden_states(Some(&adapter), &pack(&rows)).unwrap();
        check_logits(&name, &goldens, &states.logits, &rows, model.dims().vocab);
        let gradients = peft_names(support::tensors(&format!("{folder}/lora_grads.safetensors")));
        // In one micro-batch, and row by row.
        for rows_at_once in [rows.len(), 1] {
            let adapter = Adapter::load(&model, &host).unwrap();
            let mut trainer = trainer(&model, adapter, 4096);
            let scale = (1.0 / total_weight(&rows)) as f32;
            let sum: f64 = rows.chunks(rows_at_once).map(|chunk| trainer.train_micro_batch(&pack(chunk), scale).unwrap().sum()).sum();
            let difference = (sum / total_weight(&rows) - stored_loss(&goldens, "loss")).abs();
            assert!(difference < LOSS, "{name}: loss with adapter differs by {difference}");
            let computed = trainer.gradients().unwrap();
            assert_eq!(computed.keys().collect::<Vec<_>>(), gradients.keys().collect::<Vec<_>>(), "{name}: other trained tensors");
            for (tensor, golden) in &gradients {
                let difference = support::relative_norm(&computed[tensor], golden);
                assert!(difference < GRADIENT, "{name}: gradient of {tensor} differs by {difference} ({rows_at_once} rows at once)");
            }
        }
    }
}

#[test]
fn reference_greedy_tokens() {
    for name in reference_models() {
        let model = reference_model(&format!("model/{name}"));
        let goldens = support::json(&format!("model/{name}_goldens/greedy.json"));
        let ids = |v: &serde_json::Value| -> Vec<u32> { v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect() };
        let expected: Vec<Vec<u32>> = goldens.as_array().unwrap().iter().map(|g| ids(&g["generated_ids"])).collect();
        assert!(!expected.is_empty());
        let requests = || -> Vec<GenRequest> {
            let goldens = goldens.as_array().unwrap().iter().zip(&expected).enumerate();
            goldens.map(|(i, (g, expected))| greedy(i as u64, ids(&g["prompt_ids"]), expected.len())).collect()
        };
        // All together; one after the other; prompts in pieces.
        for (slots, prefill_tokens) in [(8, 512), (1, 512), (2, 7)] {
            let options = GenOptions { slots, cache_length: 256, prefill_tokens };
            let mut generator = Generator::new(model.clone(), options).unwrap();
            let results = generator.generate(None, requests(), &mut |_| ControlFlow::Continue(())).unwrap();
            for (result, expected) in results.iter().zip(&expected) {
                assert_eq!((&result.ids, &result.finish), (expected, &Finish::Length), "{name}, {slots} slots, prefill {prefill_tokens}");
            }
        }
        // Top logits, by scoring what was generated.
        let mut generator = Generator::new(model.clone(), GenOptions { slots: 4, cache_length: 256, prefill_tokens: 128 }).unwrap();
        for (i, expected) in expected.iter().enumerate() {
            let request = ScoreRequest { id: 0, prompt_ids: ids(&goldens[i]["prompt_ids"]), continuation_ids: expected.clone() };
            let score = generator.score(None, &[request]).unwrap().remove(0).score.unwrap();
            assert!(score.is_greedy && score.tokens == expected.len() && score.sum_logprob < 0.0, "{name}: {score:?}");
        }
    }
}

fn greedy(id: u64, prompt_ids: Vec<u32>, max_new_tokens: usize) -> GenRequest {
    GenRequest { id, prompt_ids, params: SamplingParams::greedy(), sample: id, max_new_tokens, ..GenRequest::default() }
}

#[test]
fn reference_forward_after_training() {
    let mut seen = 0;
    for name in reference_models() {
        let folder = format!("model/{name}_goldens");
        if !support::reference().join(&folder).join("train").is_dir() {
            continue;
        }
        let model = reference_model(&format!("model/{name}"));
        let rows = Row::reference(&support::tensors(&format!("{folder}/forward.safetensors")));
        let goldens = support::tensors(&format!("{folder}/train/final_forward.safetensors"));
        let adapter = Adapter::load(&model, &reference_adapter(&format!("{folder}/train/adapter_final"))).unwrap();
        let states = model.hidden_states(Some(&adapter), &pack(&rows)).unwrap();
        check_logits(&name, &goldens, &states.logits, &rows, model.dims().vocab);
        let difference = (loss(&mut trainer(&model, adapter, 4096), &rows) - stored_loss(&goldens, "loss")).abs();
        assert!(difference < LOSS, "{name}: loss differs by {difference}");
        seen += 1;
    }
    assert!(seen > 0, "no trained adapters");
}

#[test]
fn reference_merged_model_gives_the_adapters_logits() {
    for name in reference_models() {
        let folder = format!("model/{name}_goldens");
        let (config, weights) = reference_weights(&format!("model/{name}"));
        let merged = Model::merged(cpu(2), &config, &weights, &reference_adapter(&format!("{folder}/adapter_init"))).unwrap();
        let rows = Row::reference(&support::tensors(&format!("{folder}/forward.safetensors")));
        let states = merged.hidden_states(None, &pack(&rows)).unwrap();
        let goldens = support::tensors(&format!("{folder}/lora_forward.safetensors"));
        check_logits(&format!("{name}, merged"), &goldens, &states.logits, &rows, merged.dims().vocab);
    }
}

#[test]
fn reference_partly_quantized_checkpoint() {
    let goldens = support::tensors("quant/dynamic_nf4_bf16_forward.safetensors");
    let rows = Row::reference(&goldens);
    for plan in [WeightPlan::Unpacked, WeightPlan::Packed] {
        let (config, weights) = reference_weights("quant/dynamic_nf4_bf16");
        let model = Model::new(cpu(2), &config, &weights, plan).unwrap();
        let states = model.hidden_states(None, &pack(&rows)).unwrap();
        let difference = support::max_abs_diff(&states.logits, &unpadded(&goldens["logits_f32"], &rows));
        assert!(difference < LOGITS, "{plan:?}: logits differ by {difference}");
        let ends = last(&states.logits, &rows, model.dims().vocab);
        let rounded = support::max_abs_diff(&ends, &goldens["last_logits_f32_weights_rounded_to_bf16"].f32());
        assert!(rounded < 0.1, "{plan:?}: logits differ by {rounded} from those of rounded weights");
        let bf16 = support::max_abs_diff(&ends, &goldens["last_logits_bf16"].f32());
        assert!(bf16 < 0.3, "{plan:?}: logits differ by {bf16} from those of a bf16 run");
        let adapter = Adapter::init(&model, lora(2), 5).unwrap();
        let loss = loss(&mut trainer(&model, adapter, 4096), &rows);
        for (key, tolerance) in [("loss_f32", LOSS), ("loss_f32_weights_rounded_to_bf16", 0.1), ("loss_bf16", 0.3)] {
            let difference = (loss - stored_loss(&goldens, key)).abs();
            assert!(difference < tolerance, "{plan:?}: loss differs by {difference} from {key}");
        }
    }
}
