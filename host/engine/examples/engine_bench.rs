//! Speed of training and of generation on a model folder, in tokens per second: `engine_bench [MODEL_FOLDER] [THREADS]`.
//!
//! Training: the main job's steps (2 x 4 samples of 300 random tokens, r = 32 on all projections, NF4, 8-bit AdamW). Generation: greedy, 300 requests.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use trainer_engine::*;
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels::ops::{HostBatch, WeightPlan};
use trainer_kernels::rng::philox4x32_10;
use trainer_kernels::sampling::SamplingParams;
use trainer_model::{AdapterConfig, Checkpoint, LoadOptions, ModelConfig, ModelFiles, load_weights};

const LENGTH: usize = 300;

fn ids(stream: u32, len: usize, vocab: usize) -> Vec<u32> {
    (0..len).map(|i| philox4x32_10([i as u32, stream, 0, 0], [1, 2])[0] % vocab as u32).collect()
}

fn batch(first: u32, samples: u32, vocab: usize) -> HostBatch {
    let mut batch = HostBatch { cu_seqlens: vec![0], ..HostBatch::default() };
    for sample in first..first + samples {
        let ids = ids(sample, LENGTH + 1, vocab);
        batch.ids.extend(&ids[..LENGTH]);
        batch.targets.extend(&ids[1..]);
        batch.weights.extend((0..LENGTH).map(|p| if p + 1 < LENGTH { 1.0 } else { 0.0 }));
        batch.positions.extend(0..LENGTH as u32);
        batch.cu_seqlens.push(batch.ids.len() as u32);
        batch.samples.push(u64::from(sample));
    }
    batch
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../nano/assets/model")), PathBuf::from);
    let threads = args.next().map(|t| t.parse()).transpose()?.unwrap_or(0);
    let files = ModelFiles::dir(folder);
    let config = ModelConfig::read(&files)?;
    let weights = load_weights(&Checkpoint::open(&files)?, &config, LoadOptions::default())?;
    let ops = Arc::new(Cpu::new(CpuOptions { threads })?);
    let model = Model::new(ops.clone(), &config, &weights, WeightPlan::Unpacked)?;
    let mut lora = AdapterConfig::default();
    (lora.r, lora.alpha) = (32, 32.0);

    for (recompute, per_micro) in [(Recompute::None, 2), (Recompute::None, 8), (Recompute::All, 2)] {
        let adapter = Adapter::init(&model, lora.clone(), 3407)?;
        let options = TrainOptions {
            max_tokens: per_micro * LENGTH,
            recompute: recompute.clone(),
            optimizer: AdamWConfig::default(),
            max_grad_norm: Some(1.0),
            seed: 3407,
            loss_rows: LOSS_ROWS,
            offload: false,
        };
        let mut trainer = Trainer::new(model.clone(), adapter, options)?;
        let steps = 6;
        let (mut seconds, mut optimizer) = (0.0, 0.0);
        for step in 0..=steps {
            let start = Instant::now();
            for micro in 0..8 / per_micro {
                let batch = batch((step * 8 + micro * per_micro) as u32, per_micro as u32, config.vocab_size);
                trainer.train_micro_batch(&batch, 1.0 / (8.0 * (LENGTH - 1) as f32))?;
            }
            let before = Instant::now();
            trainer.optimizer_step(2e-3)?;
            // The first step warms up.
            if step > 0 {
                seconds += start.elapsed().as_secs_f64();
                optimizer += before.elapsed().as_secs_f64();
            }
        }
        println!(
            "training, {per_micro} x {LENGTH} tokens a micro-batch, recompute {recompute:?}: {:.0} tokens/s, {:.1} ms of optimizer a step, {:.1} MiB",
            (steps * 8 * LENGTH) as f64 / seconds,
            1e3 * optimizer / steps as f64,
            trainer.memory().total() as f64 / 1048576.0
        );
    }

    let adapter = Adapter::init(&model, lora, 3407)?;
    let merged = Model::merged(ops, &config, &weights, &adapter.to_host(&model)?)?;
    let requests = |prompt: usize| -> Vec<GenRequest> {
        (0..300)
            .map(|i| GenRequest {
                id: i,
                prompt_ids: ids(i as u32, prompt + (i as usize * 13) % 40, config.vocab_size),
                params: SamplingParams::greedy(),
                seed: 1,
                sample: i,
                max_new_tokens: 120 + (i as usize * 29) % 100,
                ..GenRequest::default()
            })
            .collect()
    };
    for slots in [1, 32, 100, 300] {
        for (name, model, adapter) in [("unmerged", &model, Some(&adapter)), ("merged", &merged, None)] {
            let mut generator = Generator::new(model.clone(), GenOptions { slots, cache_length: 512, prefill_tokens: 1024 })?;
            let mut requests = requests(60);
            requests.truncate(if slots == 1 { 4 } else { 300 });
            let start = Instant::now();
            let results = generator.generate(adapter, requests, &mut |_| ControlFlow::Continue(()))?;
            let tokens: usize = results.iter().map(|r| r.ids.len()).sum();
            println!("generation, {slots} slots, {name}: {:.0} tokens/s", tokens as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}
