//! Times what surrounds the matrix products of a training step: the loss, the optimizer, adapters, quantization. Prints a line per kernel with the
//! share of the rate at which the card copies memory.
//!
//!     step_bench

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use half::bf16;
use std::error::Error;
use trainer_kernels::adamw::{AdamWConfig, StateBits};
use trainer_kernels::nf4::DoubleQuant;
use trainer_kernels::ops::Dropout;
use trainer_kernels::sampling::{Draw, SamplingParams};
use trainer_kernels_cuda::archive::Archive;
use trainer_kernels_cuda::code::Code;
use trainer_kernels_cuda::device::Device;
use trainer_kernels_cuda::launch::{AdamwEntry, LoraPart, MaskRows, QuantSource, RowSet, draw_words};
use trainer_kernels_cuda::memory::{Buffer, Tensor};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Buffer sets that launches rotate among, so that none finds its inputs in the cache.
const SETS: usize = 4;
/// Samples that the median is taken of.
const SAMPLES: usize = 21;

/// The median microseconds of a launch; `launch` gets the number of the buffer set.
fn time(device: &Device, batch: usize, mut launch: impl FnMut(usize) -> Outcome<()>) -> Outcome<f64> {
    let stream = device.stream();
    let mut samples = Vec::with_capacity(SAMPLES);
    for sample in 0..SAMPLES + 3 {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        (0..batch).try_for_each(|i| launch(i % SETS))?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        end.synchronize()?;
        if sample >= 3 {
            samples.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / batch as f64);
        }
    }
    samples.sort_by(f64::total_cmp);
    samples.get(SAMPLES / 2).copied().ok_or_else(|| "no samples".into())
}

struct Bench {
    device: Device,
    /// Bytes per microsecond that a copy reads and writes.
    ceiling: f64,
}

impl Bench {
    fn row(&self, kernel: &str, shape: &str, bytes: usize, us: f64) {
        let floor = bytes as f64 / self.ceiling;
        println!("{kernel:24} {shape:36} {us:9.1} us {:6.3} TB/s, {:5.1} % of the copy rate", bytes as f64 / us / 1e6, 100.0 * floor / us);
    }

    fn normal(&self, rows: usize, cols: usize) -> Outcome<Tensor> {
        let mut t = Tensor::new(self.device.arena(), rows, cols, "a benchmark")?;
        self.device.random_normal(7, 1.0, 0, &mut t)?;
        Ok(t)
    }

    fn sets<T>(&self, mut make: impl FnMut() -> Outcome<T>) -> Outcome<Vec<T>> {
        (0..SETS).map(|_| make()).collect()
    }

    fn loss(&self) -> Outcome<()> {
        let (d, vocab) = (&self.device, 151_936);
        for rows in [512, 2048] {
            let mut logits: Buffer<f32> = d.buffer(rows * vocab, "logits")?;
            let noise: Vec<f32> = (0..vocab).map(|i| ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) * 20.0).collect();
            (0..rows).try_for_each(|r| logits.write_at(r * vocab, &noise))?;
            let mut dlogits: Buffer<bf16> = d.buffer(rows * vocab, "their gradient")?;
            let (targets, factors, mut losses) = (d.zeros(rows, "targets")?, d.floats(&vec![1.0; rows])?, d.floats(&vec![0.0; rows])?);
            let us =
                time(d, 4, |_| Ok(d.cross_entropy_rows(rows, vocab, &logits, &targets, &factors, 0, &mut losses, Some(&mut dlogits))?))?;
            self.row("cross_entropy_rows", &format!("{rows}x{vocab}, as 10 bytes"), rows * vocab * 10, us);
            let us = time(d, 4, |_| Ok(d.cross_entropy_rows(rows, vocab, &logits, &targets, &factors, 0, &mut losses, None)?))?;
            self.row("  without gradient", &format!("{rows}x{vocab}"), rows * vocab * 4, us);
            for n in [1, 64, 512] {
                let mut out = d.zeros(n, "tokens")?;
                let us = time(d, 20, |_| Ok(d.logits_argmax(n, vocab, &logits, &mut out)?))?;
                self.row("logits_argmax", &format!("{n}x{vocab}"), n * vocab * 4, us);
            }
        }
        let logits: Vec<f32> = (0..64 * vocab).map(|i| ((i * 7919 % 100_003) as f32 / 100_003.0 - 0.5).powi(5) * 900.0).collect();
        let (logits, mut out) = (d.floats(&logits)?, d.zeros(64, "tokens")?);
        for n in [1, 64] {
            for (name, temperature, top_k, top_p) in
                [("t 0.6 k 20 p 0.95", 0.6, 20, 0.95), ("t 1", 1.0, 0, 1.0), ("t 1 p 0.95", 1.0, 0, 0.95)]
            {
                let params = SamplingParams { temperature, top_k, top_p, ..SamplingParams::default() };
                let mut draws = Vec::new();
                for i in 0..64 {
                    draws.extend(draw_words(&Draw { params, uniform: f64::from(i) / 64.0 })?);
                }
                let draws = d.upload(&draws, "draws")?;
                let us = time(d, 10, |_| Ok(d.sample_rows(n, vocab, &logits, &draws, &mut out)?))?;
                self.row("sample_rows", &format!("{n}x{vocab} {name}"), n * vocab * 4, us);
            }
        }
        let (n, width) = (4096, 4096);
        let from = self.sets(|| self.normal(2 * n, width))?;
        let mut to = self.sets(|| self.normal(n, width))?;
        let numbers = d.upload(&(0..n as u32).map(|i| 2 * i).collect::<Vec<_>>(), "row numbers")?;
        let set = RowSet { rows: &numbers, first: 0, count: n, largest: 2 * n as u32 - 1 };
        let us = time(d, 20, |i| Ok(d.gather_rows(set, &from[i], &mut to[i])?))?;
        self.row("gather_rows", "4096x4096", 4 * n * width, us);
        Ok(())
    }

    /// The adapters of Qwen3-8B at rank 16.
    fn optimizer(&self) -> Outcome<()> {
        let (d, rank) = (&self.device, 16);
        let shapes = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 12288), (4096, 12288), (12288, 4096)];
        for bits in [StateBits::Eight, StateBits::ThirtyTwo] {
            let config = AdamWConfig { bits, ..AdamWConfig::default() };
            let mut parts = Vec::new();
            for (inner, out) in (0..36).flat_map(|_| shapes) {
                for len in [inner * rank, out * rank] {
                    let values: Vec<f32> = (0..len).map(|i| ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) * 0.01).collect();
                    parts.push((d.floats(&values)?, d.floats(&values)?, d.state(len, &config)?));
                }
            }
            let entries: Vec<_> = parts.iter().map(|(param, grad, state)| AdamwEntry { param, grad, state }).collect();
            let list = d.adamw_list(&entries)?;
            let (n, shape) = (list.values(), format!("{} parameters, {bits:?}", list.values()));
            let mut step = 0;
            let us = time(d, 4, |_| {
                step += 1;
                Ok(d.adamw(&list, &config, 1e-4, 1.0, step)?)
            })?;
            self.row("adamw", &shape, n * if bits == StateBits::Eight { 16 } else { 28 }, us);
            if bits == StateBits::Eight {
                let us = time(d, 4, |_| Ok(d.grad_norm_sq(&list).map(|_| ())?))?;
                self.row("grad_norm_sq, with wait", &shape, n * 4, us);
                let us = time(d, 4, |_| Ok(d.zero_grads(&list)?))?;
                self.row("zero_grads", &shape, n * 4, us);
            }
        }
        Ok(())
    }

    fn adapters(&self) -> Outcome<()> {
        let d = &self.device;
        for (name, inner, outs, width) in
            [("qkv", 4096, vec![4096, 1024, 1024], 48), ("gate_up", 4096, vec![12288, 12288], 32), ("down", 12288, vec![4096], 16)]
        {
            let rank = width / outs.len();
            let out: usize = outs.iter().sum();
            let mut pairs = Vec::new();
            for &o in &outs {
                pairs.push((d.floats(&vec![0.1; rank * inner])?, d.floats(&vec![0.1; rank * o])?, o));
            }
            let mut start = 0;
            let parts: Vec<_> = pairs
                .iter()
                .enumerate()
                .map(|(i, (a, b, o))| {
                    start += o;
                    LoraPart { a, b, rank, scale: 2.0, out_start: start - o, out: *o, rank_start: i * rank }
                })
                .collect();
            let mut extended = self.sets(|| self.normal(out + width, inner + width))?;
            let us = time(d, 20, |i| Ok(d.lora_pack(&parts, out, inner, width, &mut extended[i])?))?;
            let read: usize = parts.iter().map(|p| 4 * rank * (inner + p.out)).sum();
            self.row("lora_pack", &format!("{name} in {inner} out {out} width {width}"), read + 2 * width * (inner + out + width), us);
        }
        let (n, width) = (4096, 4096);
        let x = self.sets(|| self.normal(n, width))?;
        let mut out = self.sets(|| self.normal(n, width))?;
        let (samples, positions) = (d.zeros(n, "samples")?, d.zeros(n, "positions")?);
        let mask = MaskRows { samples: &samples, positions: &positions };
        let dropout = Dropout { p: 0.05, seed: 3, step: 1, module: 0 };
        let us = time(d, 20, |i| Ok(d.dropout(n, &x[i], mask, dropout, 0, &mut out[i])?))?;
        self.row("dropout", "4096x4096", 4 * n * width, us);
        let us = time(d, 20, |i| Ok(d.dropout_add(n, &x[i], mask, dropout, 0, &mut out[i])?))?;
        self.row("dropout_add", "4096x4096", 6 * n * width, us);
        let (bias, mut acc) = (d.floats(&vec![0.1; width])?, d.floats(&vec![0.0; width])?);
        let us = time(d, 20, |i| Ok(d.add_bias(n, &mut out[i], &bias, 0)?))?;
        self.row("add_bias", "4096x4096", 4 * n * width, us);
        let us = time(d, 20, |i| Ok(d.bias_grad(n, &x[i], 0, &mut acc)?))?;
        self.row("bias_grad", "4096x4096", 2 * n * width, us);
        Ok(())
    }

    fn quantize(&self) -> Outcome<()> {
        let (d, rows, cols) = (&self.device, 12288, 4096);
        let mut w = self.normal(rows, cols)?;
        let us = time(d, 4, |_| Ok(d.random_normal(7, 0.02, 0, &mut w)?))?;
        self.row("random_normal", "12288x4096", 2 * rows * cols, us);
        let us = time(d, 1, |_| Ok(d.quantize_nf4(QuantSource::Bf16(&w), rows, cols, DoubleQuant::default()).map(|_| ())?))?;
        self.row("quantize_nf4, whole call", "12288x4096", 5 * rows * cols / 2, us);
        let us = time(d, 1, |_| Ok(d.quantize_nf4(QuantSource::Bf16(&w), rows, cols, DoubleQuant::No).map(|_| ())?))?;
        self.row("  plain scales", "12288x4096", 5 * rows * cols / 2, us);
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let device = Device::open(0, &Code::with(Archive::embedded()?, None))?;
    let bytes = 1usize << 30;
    let (from, mut to) = (Tensor::new(device.arena(), 1024, bytes / 2048, "a")?, Tensor::new(device.arena(), 1024, bytes / 2048, "b")?);
    let us = time(&device, 10, |_| Ok(device.copy_tensor(1024, &from, &mut to)?))?;
    drop((from, to));
    let bench = Bench { ceiling: 2.0 * bytes as f64 / us, device };
    println!("copy {:.3} TB/s", bench.ceiling / 1e6);
    bench.loss()?;
    bench.optimizer()?;
    bench.adapters()?;
    bench.quantize()
}
