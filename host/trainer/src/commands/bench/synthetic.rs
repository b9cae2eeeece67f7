//! Training and decoding of models with random weights: the shapes of the Qwen3 family without a checkpoint.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Result, bail};
use serde::Serialize;
use trainer_config::{Device, DevicePlan, Precision};
use trainer_engine::synthetic::{SHAPES, shape};
use trainer_engine::{
    Adapter, Dims, GenOptions, GenRequest, Generator, Keep, Model, ModelOptions, TrainOptions, Trainer, trained_parameters,
};
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::ops::{HostBatch, Ops, WeightPlan};
use trainer_kernels::rng::philox4x32_10;
use trainer_kernels::sampling::SamplingParams;
use trainer_model::{AdapterConfig, ModelConfig, ModelFiles};
use trainer_runtime::{
    DeviceInfo, DeviceKind, Gauge, PlanRequest, Planned, choose_plan, inference_weights, limit_in_bytes, open_device_as, with_ops,
};
use trainer_train::rundir::utc;

use super::breakdown::{Row, Step};
use super::figure::median;
use crate::cli::BenchArgs;
use crate::clock;
use crate::output::{json_on_stdout, write_json};

/// Steps that are not counted.
const WARM_UP: usize = 2;
/// Measurements of decoding after the one that warms up.
const TIMES: usize = 3;
/// Prompt tokens in one forward pass.
const MOST_PREFILL: usize = 8192;
/// What the peers' figures were measured with: rank and alpha on all seven projections.
const RANK: usize = 32;
/// Large products that an H100 sustains in bf16, in TFLOP/s: what the floor is computed with (docs/src/bench.md).
const H100_TFLOPS: f64 = 690.0;

/// Operations that training a token cannot do without.
#[derive(Clone, Copy, Debug, Serialize)]
struct Work {
    /// Values of the frozen matrices that a token is multiplied with, the output head included.
    frozen_parameters: u64,
    /// Trained values.
    lora_parameters: u64,
    /// Floating-point operations for each token: 4 for a frozen value (forward, and the gradient of the input), 6 for a trained one (also its own
    /// gradient), and three times the forward of causal attention. Recomputation does not count.
    flops_per_token: f64,
}

impl Work {
    fn of(dims: &Dims, lora: u64, sequence: usize) -> Self {
        let linear: u64 = dims.modules().iter().map(|m| m.out_features as u64 * m.in_features as u64).sum();
        let frozen = linear + dims.vocab as u64 * dims.hidden as u64;
        // Two products of 2 * S * width operations for each token, of which the causal mask leaves half.
        let attention = dims.layers as f64 * 2.0 * sequence as f64 * dims.attention.q_width() as f64;
        let flops_per_token = 4.0 * frozen as f64 + 6.0 * lora as f64 + 3.0 * attention;
        Self { frozen_parameters: frozen, lora_parameters: lora, flops_per_token }
    }
}

/// A plan as JSON.
#[derive(Serialize)]
struct PlanOut {
    goal: String,
    /// `unpacked` once, or `packed`: for each use.
    weights: &'static str,
    /// Layers that keep everything, their products, their input alone.
    layers_keeping_all: usize,
    layers_keeping_products: usize,
    layers_keeping_inputs: usize,
    /// Whether layer inputs wait in host memory, and the embedding lies there.
    offload: bool,
    loss_rows: usize,
    max_tokens: usize,
    limit: Option<u64>,
    /// Bytes by part.
    parts: BTreeMap<String, u64>,
}

impl PlanOut {
    fn of(planned: &Planned, goal: DevicePlan, layers: usize) -> Self {
        let keeps = planned.keeps(layers);
        let count = |keep: Keep| keeps.iter().filter(|k| **k == keep).count();
        Self {
            goal: goal.to_string(),
            weights: weights_name(planned.choice.weights),
            layers_keeping_all: count(Keep::All),
            layers_keeping_products: count(Keep::Lean),
            layers_keeping_inputs: count(Keep::Input),
            offload: planned.choice.offload,
            loss_rows: planned.choice.loss_rows,
            max_tokens: planned.max_tokens,
            limit: planned.limit,
            parts: planned.choice.memory.parts.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
        }
    }
}

fn weights_name(weights: WeightPlan) -> &'static str {
    match weights {
        WeightPlan::Unpacked => "unpacked",
        WeightPlan::Packed => "packed",
    }
}

/// What every measurement says of itself.
#[derive(Serialize)]
struct Header {
    trainer: &'static str,
    /// UTC.
    date: String,
    shape: String,
    device: DeviceInfo,
    driver: Option<String>,
    backend: String,
    precision: &'static str,
    threads: usize,
}

/// Training, as JSON.
#[derive(Serialize)]
struct TrainOut {
    #[serde(flatten)]
    header: Header,
    batch: usize,
    accumulation: usize,
    sequence: usize,
    steps: usize,
    warm_up_steps: usize,
    tokens_per_step: usize,
    /// Of the median step after the warm-up.
    tokens_per_second: f64,
    step_seconds: Vec<f64>,
    /// Mean loss of each step.
    loss: Vec<f64>,
    grad_norm: Vec<f64>,
    peak_bytes_arena: Option<u64>,
    peak_bytes_driver: Option<u64>,
    predicted_peak_bytes: u64,
    predicted_tokens_per_second: Option<f64>,
    #[serde(flatten)]
    work: Work,
    useful_tflops: f64,
    floor_tflops: Option<f64>,
    share_of_floor: Option<f64>,
    /// From the start of the process to the end of the first optimizer step.
    seconds_to_first_step: f64,
    /// From the start of the process until the model is on the device.
    seconds_to_model: f64,
    plan: PlanOut,
    /// The kernels of one more step, the longest first; empty where the backend does not tell.
    breakdown: Vec<Row>,
}

/// Decoding, as JSON.
#[derive(Serialize)]
struct DecodeOut {
    #[serde(flatten)]
    header: Header,
    batch: usize,
    prompt: usize,
    new: usize,
    /// How tokens were drawn.
    sampling: SamplingParams,
    weights: &'static str,
    /// New tokens over the whole time, prefill included; the median.
    tokens_per_second: f64,
    /// Tokens that came after the prefill over the time that they took; the median.
    decode_tokens_per_second: f64,
    prefill_seconds: Vec<f64>,
    seconds: Vec<f64>,
    peak_bytes_arena: Option<u64>,
    peak_bytes_driver: Option<u64>,
}

/// Settings that were checked.
struct Settings {
    shape: String,
    config: ModelConfig,
    goal: DevicePlan,
    limit: Option<u64>,
}

/// Runs `trainer bench train --shape ...` or `trainer bench decode --shape ...`.
pub fn run(args: &BenchArgs, shape_name: &str) -> Result<ExitCode> {
    let mut more: Vec<(&str, String)> = Vec::new();
    more.extend(args.device.overrides());
    more.extend(args.plan.as_deref().map(|p| ("device.plan", super::super::toml_string(p))));
    more.extend(args.memory_limit.map(|gib| ("device.memory_limit", gib.to_string())));
    let device: Device = super::super::recipe_with(&[], &more)?.device;
    let settings =
        Settings { shape: shape_name.to_owned(), config: config(shape_name)?, goal: device.plan, limit: limit_in_bytes(&device) };
    let asked = asked_precision(args.precision.as_deref())?;
    let open = open_device_as(&device, asked.unwrap_or(Precision::Bf16))?;
    let precision = precision(asked, open.info.kind)?;
    let header = |backend: String| Header {
        trainer: env!("CARGO_PKG_VERSION"),
        date: utc(SystemTime::now()),
        shape: settings.shape.clone(),
        driver: open.info.driver.clone(),
        device: open.info.clone(),
        backend,
        precision,
        threads: open.threads,
    };
    match args.parts.as_slice() {
        [part] if part == "train" => {
            with_ops!(&open.backend, ops => train(ops, &settings, args, header(ops.describe())))
        }
        [part] if part == "decode" => {
            with_ops!(&open.backend, ops => decode(ops, &settings, args, header(ops.describe())))
        }
        _ => bail!("--shape measures one part: trainer bench train --shape {shape_name}, or trainer bench decode --shape {shape_name}"),
    }
}

fn config(name: &str) -> Result<ModelConfig> {
    if name == "nano" {
        return Ok(ModelConfig::read(&ModelFiles::Embedded(trainer_nano::MODEL_FILES))?);
    }
    match shape(name) {
        Some(config) => Ok(config),
        None => bail!("there is no shape {name}; there are nano, {}", SHAPES.join(", ")),
    }
}

fn asked_precision(asked: Option<&str>) -> Result<Option<Precision>> {
    match asked {
        None => Ok(None),
        Some("bf16") => Ok(Some(Precision::Bf16)),
        Some("fp8") => Ok(Some(Precision::Fp8)),
        Some(p) => bail!("--precision is bf16 or fp8, not {p}"),
    }
}

/// What the device computes in.
fn precision(asked: Option<Precision>, kind: DeviceKind) -> Result<&'static str> {
    match (kind, asked) {
        (DeviceKind::Cpu, None) => Ok("f32"),
        (DeviceKind::Cpu, Some(p)) => bail!("the CPU computes in f32, not in {p}; leave --precision out"),
        (DeviceKind::Cuda, None | Some(Precision::Bf16)) => Ok("bf16"),
        (DeviceKind::Cuda, Some(Precision::Fp8)) => Ok("fp8"),
    }
}

fn adapter() -> AdapterConfig {
    let mut config = AdapterConfig::default();
    (config.r, config.alpha) = (RANK, RANK as f64);
    config
}

/// Random ids that fill every position of `batch` sequences; each predicts the next.
fn random_batch(batch: usize, sequence: usize, vocab: usize, step: usize, micro: usize) -> HostBatch {
    let n = batch * sequence;
    let word = |i: usize| philox4x32_10([i as u32, micro as u32, step as u32, 0], [0x5eed, 1])[0];
    let ids: Vec<u32> = (0..n).map(|i| word(i) % vocab as u32).collect();
    HostBatch {
        targets: ids.iter().skip(1).chain([&0]).copied().collect(),
        weights: (0..n).map(|i| if i % sequence + 1 == sequence { 0.0 } else { 1.0 }).collect(),
        positions: (0..n).map(|i| (i % sequence) as u32).collect(),
        cu_seqlens: (0..=batch).map(|i| (i * sequence) as u32).collect(),
        samples: (0..batch).map(|i| (micro * batch + i) as u64).collect(),
        slots: Vec::new(),
        ids,
    }
}

fn train<O: Ops + Gauge>(ops: &Arc<O>, settings: &Settings, args: &BenchArgs, header: Header) -> Result<ExitCode> {
    let (batch, accumulation, sequence) = (args.batch.unwrap_or(2), args.accum.unwrap_or(4), args.seq.unwrap_or(2048));
    let steps = args.steps.unwrap_or(8);
    if batch == 0 || accumulation == 0 || sequence < 2 || steps <= WARM_UP {
        bail!("--batch and --accum are at least 1, --seq at least 2, --steps more than the {WARM_UP} of the warm-up");
    }
    let Some(max_tokens) = batch.checked_mul(sequence).filter(|n| *n <= 1 << 24) else { bail!("a micro-batch has at most 2^24 tokens") };
    let config = &settings.config;
    let lora = adapter();
    let optimizer = AdamWConfig::default();
    let (limit, goal) = (settings.limit, settings.goal);
    let (longest, packed, recompute, evaluation) = (max_tokens, max_tokens, None, None);
    let request = PlanRequest { config, adapter: &lora, optimizer, longest, packed, sequence, recompute, goal, limit, evaluation };
    let planned = choose_plan(ops.as_ref(), &request)?;
    let choice = &planned.choice;
    choice.reserve(ops.as_ref(), planned.limit)?;
    let how = ModelOptions { weights: choice.weights, adapter: Some(&lora), host_embedding: choice.offload };
    let model = Model::synthetic(ops.clone(), config, &how, true, 1)?;
    let dims = *model.dims();
    ops.synchronize()?;
    let seconds_to_model = clock::since_start();
    let work = Work::of(&dims, trained_parameters(&lora, &dims)?, sequence);
    let adapter = Adapter::init(&model, lora, 3407)?;
    let options = TrainOptions {
        max_tokens,
        recompute: choice.recompute.clone(),
        offload: choice.offload,
        optimizer,
        max_grad_norm: Some(1.0),
        seed: 3407,
        loss_rows: choice.loss_rows,
    };
    let mut trainer = Trainer::new(model, adapter, options)?;
    let quiet = json_on_stdout(args.json.as_deref());
    let weight = (batch * accumulation * (sequence - 1)) as f64;
    let tokens_per_step = max_tokens * accumulation;
    let (mut step_seconds, mut losses, mut norms, mut first) = (Vec::new(), Vec::new(), Vec::new(), None);
    for step in 0..steps {
        let began = Instant::now();
        let mut loss = 0.0;
        for micro in 0..accumulation {
            let rows = random_batch(batch, sequence, dims.vocab, step, micro);
            loss += trainer.train_micro_batch(&rows, (1.0 / weight) as f32)?.sum() / weight;
        }
        let report = trainer.optimizer_step(2e-4)?;
        ops.synchronize()?;
        let seconds = began.elapsed().as_secs_f64();
        first.get_or_insert_with(clock::since_start);
        if !quiet {
            let speed = tokens_per_step as f64 / seconds;
            say!("step {}/{steps}  loss {loss:.4}  grad {:.4}  {seconds:.3} s  {speed:.0} tokens/s", step + 1, report.grad_norm);
        }
        step_seconds.push(seconds);
        losses.push(loss);
        norms.push(report.grad_norm);
    }
    // One step more, which is not among the timed ones: events around each launch cost time.
    let mut breakdown = Vec::new();
    if ops.profile_start() {
        for micro in 0..accumulation {
            trainer.train_micro_batch(&random_batch(batch, sequence, dims.vocab, steps, micro), (1.0 / weight) as f32)?;
        }
        trainer.optimizer_step(2e-4)?;
        let step = Step { dims: &dims, tokens: max_tokens, sequence, trained: work.lora_parameters };
        breakdown = step.rows(&ops.profile_stop()?);
    }
    let tokens_per_second = tokens_per_step as f64 / median(step_seconds.get(WARM_UP..).unwrap_or_default()).max(1e-12);
    let useful_tflops = tokens_per_second * work.flops_per_token / 1e12;
    let floor_tflops = floor(&header.device, ops.as_ref());
    let used = ops.memory_use();
    let out = TrainOut {
        batch,
        accumulation,
        sequence,
        steps,
        warm_up_steps: WARM_UP,
        tokens_per_step,
        tokens_per_second,
        step_seconds,
        loss: losses,
        grad_norm: norms,
        peak_bytes_arena: used.arena,
        peak_bytes_driver: used.system,
        predicted_peak_bytes: planned.choice.memory.total(),
        predicted_tokens_per_second: planned.tokens_per_second(),
        work,
        useful_tflops,
        floor_tflops,
        share_of_floor: floor_tflops.map(|f| useful_tflops / f),
        seconds_to_first_step: first.unwrap_or_default(),
        seconds_to_model,
        plan: PlanOut::of(&planned, goal, dims.layers),
        breakdown,
        header,
    };
    if let Some(target) = &args.json {
        write_json(target, &out)?;
    }
    if !quiet {
        let gib = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), |b| format!("{:.2} GiB", b as f64 / f64::from(1 << 30)));
        say!("{:.0} tokens/s, {useful_tflops:.1} useful TFLOP/s", out.tokens_per_second);
        say!(
            "peak {} in the arena, {} by the system, {} planned",
            gib(out.peak_bytes_arena),
            gib(out.peak_bytes_driver),
            gib(Some(out.predicted_peak_bytes))
        );
        say!("{:.2} s from the start of the process to the end of the first step", out.seconds_to_first_step);
    }
    Ok(ExitCode::SUCCESS)
}

/// What the card could do if it did nothing but large products, in TFLOP/s; none for the CPU.
fn floor<O: Ops>(device: &DeviceInfo, ops: &O) -> Option<f64> {
    let hopper = ["H100", "H200"].iter().any(|name| device.name.contains(name));
    if hopper { Some(H100_TFLOPS) } else { ops.rates().map(|r| r.products / 1e12) }
}

fn decode<O: Ops + Gauge>(ops: &Arc<O>, settings: &Settings, args: &BenchArgs, header: Header) -> Result<ExitCode> {
    let (batch, prompt, new) = (args.batch.unwrap_or(1), args.prompt.unwrap_or(128), args.new.unwrap_or(256));
    if batch == 0 || prompt == 0 || new < 2 {
        bail!("--batch and --prompt are at least 1, --new at least 2");
    }
    let config = &settings.config;
    let lora = adapter();
    let weights = match (settings.goal, header.device.kind) {
        (DevicePlan::Fastest, _) => WeightPlan::Unpacked,
        (DevicePlan::Smallest, _) | (DevicePlan::Auto, DeviceKind::Cuda) => WeightPlan::Packed,
        (DevicePlan::Auto, DeviceKind::Cpu) => inference_weights(ops.as_ref(), config),
    };
    let how = ModelOptions { weights, adapter: Some(&lora), host_embedding: false };
    let model = Model::synthetic(ops.clone(), config, &how, true, 1)?;
    let vocab = model.dims().vocab;
    let adapter = Adapter::init(&model, lora, 3407)?;
    let options = GenOptions { slots: batch, cache_length: prompt + new, prefill_tokens: batch.saturating_mul(prompt).min(MOST_PREFILL) };
    let mut generator = Generator::new(model, options)?;
    let params = if args.sample {
        SamplingParams { temperature: 0.6, top_k: 20, top_p: 0.95, ..SamplingParams::default() }
    } else {
        SamplingParams::greedy()
    };
    let requests: Vec<GenRequest> = (0..batch)
        .map(|i| GenRequest {
            id: i as u64,
            prompt_ids: random_batch(1, prompt, vocab, 0, i).ids,
            params,
            sample: i as u64,
            max_new_tokens: new,
            ..GenRequest::default()
        })
        .collect();
    let (mut seconds, mut prefill_seconds, mut speeds, mut decode_speeds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for time in 0..=TIMES {
        // The prefill is over when every answer has its first token; the others' later ones may have come by then.
        let (began, mut tokens, mut begun, mut prefilled) = (Instant::now(), 0usize, vec![false; batch], None);
        let results = generator.generate(Some(&adapter), requests.clone(), &mut |event| {
            tokens += usize::from(event.token.is_some());
            if let Some(begun) = usize::try_from(event.id).ok().and_then(|i| begun.get_mut(i)) {
                *begun = true;
            }
            if prefilled.is_none() && begun.iter().all(|b| *b) {
                prefilled = Some((began.elapsed().as_secs_f64(), tokens));
            }
            ControlFlow::Continue(())
        })?;
        let total = began.elapsed().as_secs_f64();
        if let Some(short) = results.iter().find(|r| r.ids.len() != new) {
            bail!("answer {} ended after {} of {new} tokens: {:?}", short.id, short.ids.len(), short.finish);
        }
        if time > 0 {
            let (prefill, before) = prefilled.unwrap_or_default();
            seconds.push(total);
            prefill_seconds.push(prefill);
            speeds.push((batch * new) as f64 / total.max(1e-12));
            decode_speeds.push((batch * new - before) as f64 / (total - prefill).max(1e-12));
        }
    }
    let used = ops.memory_use();
    let out = DecodeOut {
        header,
        batch,
        prompt,
        new,
        sampling: params,
        weights: weights_name(weights),
        tokens_per_second: median(&speeds),
        decode_tokens_per_second: median(&decode_speeds),
        prefill_seconds,
        seconds,
        peak_bytes_arena: used.arena,
        peak_bytes_driver: used.system,
    };
    if let Some(target) = &args.json {
        write_json(target, &out)?;
    }
    if !json_on_stdout(args.json.as_deref()) {
        let (all, only) = (out.tokens_per_second, out.decode_tokens_per_second);
        say!("{all:.1} tokens/s with the prefill, {only:.1} without, batch {batch}, weights {}", out.weights);
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn useful_work_is_that_of_the_peers_table() {
        // 690 TFLOP/s over the work of a token is the table's floor: 21,200 tokens/s at 2048 and 18,100 at 8192; 215,000 for 0.6B.
        for (name, sequence, floor) in [("8b", 2048, 21_200.0), ("8b", 8192, 18_100.0), ("0.6b", 2048, 215_000.0)] {
            let dims = Dims::new(&config(name).unwrap()).unwrap();
            let lora = trained_parameters(&adapter(), &dims).unwrap();
            let speed = H100_TFLOPS * 1e12 / Work::of(&dims, lora, sequence).flops_per_token;
            assert!((speed / floor - 1.0).abs() < 0.01, "{name} at {sequence}: {speed}");
        }
        let dims = Dims::new(&config("8b").unwrap()).unwrap();
        assert_eq!(trained_parameters(&adapter(), &dims).unwrap(), 87_293_952);
    }

    #[test]
    fn ids_fill_every_position_and_repeat() {
        let batch = random_batch(2, 5, 7, 3, 1);
        assert_eq!(batch.weights, [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
        assert_eq!((batch.cu_seqlens.as_slice(), batch.samples.as_slice()), (&[0, 5, 10][..], &[2, 3][..]));
        assert!(batch.ids.iter().all(|id| *id < 7));
        assert_eq!(batch.ids, random_batch(2, 5, 7, 3, 1).ids);
        assert_ne!(batch.ids, random_batch(2, 5, 7, 4, 1).ids);
    }

    #[test]
    fn what_cannot_be_measured_is_said() {
        assert!(config("7b").unwrap_err().to_string().contains("0.6b"));
        assert!(precision(Some(Precision::Bf16), DeviceKind::Cpu).is_err());
        assert!(asked_precision(Some("fp16")).is_err());
        assert_eq!(precision(None, DeviceKind::Cpu).unwrap(), "f32");
        assert_eq!(precision(asked_precision(Some("fp8")).unwrap(), DeviceKind::Cuda).unwrap(), "fp8");
    }
}
