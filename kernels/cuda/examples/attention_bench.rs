//! Times attention, forward and backward, at the shapes of Qwen3.
//!
//!     attention_bench [--portable | --both] [--few]
//!
//! Prints a line per shape and direction: the median time of a launch by device events, and TFLOP/s counting causal products alone
//! (2 S² D H forward, 2.5 times as many backward).

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use std::error::Error;
use trainer_kernels::ops::AttentionShape;
use trainer_kernels_cuda::archive::Archive;
use trainer_kernels_cuda::code::Code;
use trainer_kernels_cuda::device::Device;
use trainer_kernels_cuda::selftest::Random;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Launches between two events.
const BATCH: usize = 5;
/// Samples that the median is taken of.
const SAMPLES: usize = 15;

fn main() -> Outcome<()> {
    let mut device = Device::open(0, &Code::with(Archive::embedded()?, None))?;
    let (mut variants, mut few) = (vec![false], false);
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--portable" => variants = vec![true],
            "--both" => variants = vec![false, true],
            "--few" => few = true,
            _ => return Err("usage: attention_bench [--portable | --both] [--few]".into()),
        }
    }
    let shape = |heads, kv_heads, head_dim| AttentionShape { heads, kv_heads, head_dim };
    let cases: [(&[usize], AttentionShape); 7] = [
        (&[2048; 2], shape(32, 8, 128)),
        (&[2048; 2], shape(32, 32, 128)),
        (&[8192], shape(32, 8, 128)),
        (&[2048; 2], shape(16, 8, 128)),
        (&[4096], shape(64, 8, 128)),
        (&[1700, 90, 1300, 600, 406], shape(32, 8, 128)),
        (&[2048; 4], shape(3, 1, 64)),
    ];
    let most = cases.iter().map(|(l, s)| l.iter().sum::<usize>() * s.qkv_width()).max().unwrap_or(0);
    let values = Random::new(7).values(most);
    for portable in variants {
        device.use_portable_kernels(portable);
        for (lengths, shape) in cases.into_iter().take(if few { 3 } else { cases.len() }) {
            measure(&device, &values, portable, lengths, shape)?;
        }
    }
    Ok(())
}

fn measure(d: &Device, values: &[f32], portable: bool, lengths: &[usize], shape: AttentionShape) -> Outcome<()> {
    let n: usize = lengths.iter().sum();
    let mut ends = vec![0u32];
    for l in lengths {
        ends.push(ends[ends.len() - 1] + *l as u32);
    }
    let seqs = d.sequences(&ends)?;
    let tensor = |cols: usize| -> Outcome<_> { Ok(d.tensor(cols, &values[..n * cols])?) };
    // Two sets in turn: each is larger than the cache.
    let mut sets = Vec::new();
    for _ in 0..2 {
        let (qk, qkv, dout) = (tensor(shape.qk_width())?, tensor(shape.qkv_width())?, tensor(shape.q_width())?);
        let (out, dqk, dqkv) = (tensor(shape.q_width())?, tensor(shape.qk_width())?, tensor(shape.qkv_width())?);
        sets.push((qk, qkv, dout, out, dqk, dqkv, d.floats(&vec![0.0; n * shape.heads])?));
    }
    let mut scratch = d.attention_scratch(n, shape)?;
    let forward = time(d, |i| {
        let (qk, qkv, _, out, _, _, lse) = &mut sets[i % 2];
        Ok(d.attention(n, &seqs, shape, qk, qkv, out, lse)?)
    })?;
    let backward = time(d, |i| {
        let (qk, qkv, dout, out, dqk, dqkv, lse) = &mut sets[i % 2];
        Ok(d.attention_backward(n, &seqs, shape, dout, out, qk, qkv, lse, &mut scratch, dqk, dqkv)?)
    })?;
    let squares: f64 = lengths.iter().map(|&l| (l * l) as f64).sum();
    let flops = 2.0 * squares * (shape.head_dim * shape.heads) as f64;
    let name = if lengths.iter().all(|l| l == &lengths[0]) { format!("{}x{}", lengths.len(), lengths[0]) } else { format!("{lengths:?}") };
    println!(
        "{} {name:30} {:>2}/{:<2}x{:<3} forward {forward:8.1} us {:5.0} TFLOP/s  backward {backward:8.1} us {:5.0} TFLOP/s  both {:8.1} us",
        if portable { "portable" } else { "chosen  " },
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        flops / forward * 1e-6,
        2.5 * flops / backward * 1e-6,
        forward + backward,
    );
    Ok(())
}

/// The median microseconds of a launch.
fn time(device: &Device, mut launch: impl FnMut(usize) -> Outcome<()>) -> Outcome<f64> {
    let stream = device.stream();
    let mut samples = Vec::with_capacity(SAMPLES);
    for sample in 0..SAMPLES + 3 {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        for i in 0..BATCH {
            launch(i)?;
        }
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        end.synchronize()?;
        if sample >= 3 {
            samples.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / BATCH as f64);
        }
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}
