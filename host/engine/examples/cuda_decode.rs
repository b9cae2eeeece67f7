//! Decoding of a synthetic model on a card: speed, the tokens' fingerprint, and where the time goes.
//!
//!     cuda_decode SHAPE [--batch 1] [--prompt 128] [--new 256] [--rank 32] [--times 3] [--profile]

use std::error::Error;
use std::ops::ControlFlow;
use std::time::Instant;

use trainer_engine::synthetic::shape;
use trainer_engine::{Adapter, GenOptions, GenRequest, Generator, Model, ModelOptions};
use trainer_kernels::ops::WeightPlan;
use trainer_kernels::rng::philox4x32_10;
use trainer_kernels::sampling::SamplingParams;
use trainer_kernels_cuda::backend::{Cuda, CudaOptions};
use trainer_model::AdapterConfig;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let name = args.next().ok_or("which shape?")?;
    let (mut batches, mut prompt, mut new, mut rank, mut times, mut profile) = (Vec::new(), 128usize, 256usize, 32usize, 3usize, false);
    while let Some(arg) = args.next() {
        let mut value = || -> Result<usize, Box<dyn Error>> { Ok(args.next().ok_or("a number is missing")?.parse()?) };
        match arg.as_str() {
            "--batch" => batches.push(value()?),
            "--prompt" => prompt = value()?,
            "--new" => new = value()?,
            "--rank" => rank = value()?,
            "--times" => times = value()?,
            "--profile" => profile = true,
            other => return Err(format!("unknown: {other}").into()),
        }
    }
    let config = shape(&name).ok_or("no such shape")?;
    let ops = std::sync::Arc::new(Cuda::open(CudaOptions::default())?);
    println!("{} {}", ops.card(), trainer_kernels::ops::Ops::describe(ops.as_ref()));
    let mut lora = AdapterConfig::default();
    (lora.r, lora.alpha) = (rank, rank as f64);
    let how = ModelOptions { weights: WeightPlan::Packed, adapter: Some(&lora), host_embedding: false };
    let model = Model::synthetic(ops.clone(), &config, &how, true, 1)?;
    let adapter = Adapter::init(&model, lora, 3407)?;
    for batch in batches {
        let requests: Vec<GenRequest> = (0..batch as u32)
            .map(|id| GenRequest {
                id: id.into(),
                prompt_ids: (0..prompt as u32).map(|i| philox4x32_10([i, id, 0, 0], [7, 7])[0] % config.vocab_size as u32).collect(),
                params: SamplingParams::greedy(),
                sample: id.into(),
                max_new_tokens: new,
                ..GenRequest::default()
            })
            .collect();
        let options = GenOptions { slots: batch, cache_length: prompt + new, prefill_tokens: 4096 };
        let mut generator = Generator::new(model.clone(), options)?;
        for _ in 0..times {
            let start = Instant::now();
            let mut first = 0.0;
            let mut seen = 0usize;
            let results = generator.generate(Some(&adapter), requests.clone(), &mut |_| {
                seen += 1;
                if seen == batch {
                    first = start.elapsed().as_secs_f64();
                }
                ControlFlow::Continue(())
            })?;
            let all = start.elapsed().as_secs_f64();
            let print = |ids: &[u32]| ids.iter().fold(0u64, |h, id| h.wrapping_mul(0x100_0000_01b3) ^ u64::from(*id));
            let tokens = results.iter().map(|r| r.ids.len()).sum::<usize>() as f64;
            println!(
                "batch {batch}: {:.1} tokens/s, {:.1} without the prefill of {:.1} ms; first tokens {:?}; print {:016x} of all {:016x}",
                tokens / all,
                (tokens - batch as f64) / (all - first),
                1e3 * first,
                results.first().map(|r| r.ids.iter().take(8).copied().collect::<Vec<_>>()).unwrap_or_default(),
                results.first().map_or(0, |r| print(&r.ids)),
                results.iter().fold(0, |h, r| h ^ print(&r.ids).rotate_left(r.id as u32 % 61)),
            );
        }
        if profile {
            let few = requests.iter().cloned().map(|r| GenRequest { max_new_tokens: 2, ..r }).collect();
            generator.generate(Some(&adapter), few, &mut |event| {
                if event.token.is_some() {
                    ops.device().profile().start();
                }
                ControlFlow::Continue(())
            })?;
            let timings = ops.device().profile().stop(ops.device().stream())?;
            for t in timings.iter().take(16) {
                println!("{:9.0} us {:6} x {:8.2} us  {}", t.microseconds, t.launches, t.microseconds / t.launches as f64, t.name);
            }
        }
    }
    Ok(())
}
