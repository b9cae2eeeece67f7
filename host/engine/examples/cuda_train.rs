//! Training steps of a synthetic model on a card: speed, memory, losses, and where the time goes.
//!
//!     cuda_train SHAPE [--batch 2] [--accum 4] [--seq 2048] [--steps 6] [--weights kept|packed] [--keep all|lean|input]
//!         [--precision bf16|fp8] [--profile]

use std::error::Error;
use std::time::Instant;

use trainer_engine::synthetic::shape;
use trainer_engine::{Adapter, Keep, LOSS_ROWS, Model, ModelOptions, Recompute, TrainOptions, Trainer};
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::ops::{HostBatch, WeightPlan};
use trainer_kernels::rng::philox4x32_10;
use trainer_kernels_cuda::backend::{Cuda, CudaOptions, Precision};
use trainer_model::AdapterConfig;

fn main() -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let mut args = std::env::args().skip(1);
    let name = args.next().ok_or("which shape?")?;
    let (mut batch, mut accum, mut seq, mut steps, mut weights, mut keep) =
        (2usize, 4usize, 2048usize, 6usize, WeightPlan::Unpacked, Keep::All);
    let (mut profile, mut loss_rows, mut offload) = (false, LOSS_ROWS, false);
    let mut options = CudaOptions::default();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--batch" => batch = value()?.parse()?,
            "--accum" => accum = value()?.parse()?,
            "--seq" => seq = value()?.parse()?,
            "--steps" => steps = value()?.parse()?,
            "--loss-rows" => loss_rows = value()?.parse()?,
            "--weights" => weights = if value()? == "packed" { WeightPlan::Packed } else { WeightPlan::Unpacked },
            "--keep" => {
                keep = match value()?.as_str() {
                    "lean" => Keep::Lean,
                    "input" => Keep::Input,
                    _ => Keep::All,
                }
            }
            "--precision" => options.precision = if value()? == "fp8" { Precision::Fp8 } else { Precision::Bf16 },
            "--profile" => profile = true,
            "--offload" => offload = true,
            other => return Err(format!("unknown: {other}").into()),
        }
    }
    let config = shape(&name).ok_or("no such shape")?;
    let ops = std::sync::Arc::new(Cuda::open(options)?);
    println!("{} {}: open {:.2} s", ops.card(), trainer_kernels::ops::Ops::describe(ops.as_ref()), began.elapsed().as_secs_f64());
    let mut lora = AdapterConfig::default();
    (lora.r, lora.alpha) = (32, 32.0);
    let how = ModelOptions { weights, adapter: Some(&lora), host_embedding: offload };
    let model = Model::synthetic(ops.clone(), &config, &how, true, 1)?;
    ops.device().synchronize()?;
    println!("model {:.2} s, {:?}", began.elapsed().as_secs_f64(), ops.usage());
    let adapter = Adapter::init(&model, lora, 3407)?;
    let layers = config.num_hidden_layers;
    let mut trainer = Trainer::new(
        model,
        adapter,
        TrainOptions {
            max_tokens: batch * seq,
            recompute: Recompute::Each(vec![keep; layers]),
            optimizer: AdamWConfig::default(),
            max_grad_norm: Some(1.0),
            seed: 3407,
            loss_rows,
            offload,
        },
    )?;
    println!(
        "trainer {:.2} s, {:?}, planned {:.3} GiB",
        began.elapsed().as_secs_f64(),
        ops.usage(),
        trainer.memory().total() as f64 / 1.074e9
    );
    let tokens = batch * accum * seq;
    let weight = (batch * accum * (seq - 1)) as f32;
    for step in 0..steps {
        if profile && step + 1 == steps {
            ops.device().profile().start();
        }
        let start = Instant::now();
        let mut loss = 0.0;
        for micro in 0..accum {
            let n = batch * seq;
            let ids: Vec<u32> =
                (0..n as u32).map(|i| philox4x32_10([i, micro as u32, step as u32, 0], [5, 5])[0] % config.vocab_size as u32).collect();
            let host = HostBatch {
                targets: ids.iter().skip(1).chain([&0]).copied().collect(),
                weights: (0..n).map(|i| if i % seq == seq - 1 { 0.0 } else { 1.0 }).collect(),
                positions: (0..n).map(|i| (i % seq) as u32).collect(),
                cu_seqlens: (0..=batch).map(|i| (i * seq) as u32).collect(),
                samples: (0..batch as u64).collect(),
                slots: Vec::new(),
                ids,
            };
            loss += trainer.train_micro_batch(&host, 1.0 / weight)?.sum() / f64::from(weight);
        }
        let report = trainer.optimizer_step(2e-4)?;
        ops.device().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "step {} loss {loss:.6} norm {:.6} {seconds:.4} s {:.0} tokens/s, {:.2} s since start, peak {:.3} GiB",
            step + 1,
            report.grad_norm,
            tokens as f64 / seconds,
            began.elapsed().as_secs_f64(),
            ops.usage().peak as f64 / 1.073_741_824e9,
        );
    }
    if profile {
        let timings = ops.device().profile().stop(ops.device().stream())?;
        let all: f64 = timings.iter().map(|t| t.microseconds).sum();
        for t in timings.iter().take(60) {
            println!(
                "{:9.0} us {:5.1} % {:6} x {:8.1} us  {}",
                t.microseconds,
                100.0 * t.microseconds / all,
                t.launches,
                t.microseconds / t.launches as f64,
                t.name
            );
        }
        println!("{all:9.0} us in kernels");
    }
    let driver = cudarc_free()?;
    println!("driver: {:.3} GiB used", driver);
    Ok(())
}

fn cudarc_free() -> Result<f64, Box<dyn Error>> {
    let (free, total) = trainer_kernels_cuda::device::memory()?;
    Ok((total - free) as f64 / 1.073_741_824e9)
}
