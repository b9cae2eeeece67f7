//! Checks every kernel against the CPU reference on odd shapes and fresh inputs, then times each at the shapes of Qwen3-8B.
//!
//!     cuda_check [--json FILE] [--seed N]
//!
//! Prints a line per check and per measurement; fails if a check does. NVRTC is found as [`trainer_kernels_cuda::nvrtc::Nvrtc::load`] says.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use half::bf16;
use serde_json::{Value, json};
use std::error::Error;
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels::nf4::{DoubleQuant, Nf4};
use trainer_kernels::ops::{AttentionShape, HostBatch, HostMatrix, Ops};
use trainer_kernels_cuda::device::Device;
use trainer_kernels_cuda::launch::Tensor;
use trainer_kernels_cuda::nvrtc::Nvrtc;
use trainer_kernels_cuda::probe::probe;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Relative error of a bf16 result whose inputs are exact: rounding alone gives about 0.0017 (uniform in half a unit of 2⁻⁸).
const BF16: f64 = 3e-3;
/// Relative error of f32 statistics.
const F32: f64 = 1e-5;

fn main() {
    match run() {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(e) => {
            eprintln!("cuda_check: {e}");
            std::process::exit(2);
        }
    }
}

fn run() -> Outcome<bool> {
    let (mut file, mut seed) = (None, 1u64);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--json", Some(v)) => file = Some(v),
            ("--seed", Some(v)) => seed = v.parse()?,
            _ => return Err("usage: cuda_check [--json FILE] [--seed N]".into()),
        }
    }
    let found = probe();
    println!("{}", serde_json::to_string_pretty(&found)?);
    let nvrtc = Nvrtc::load()?;
    let start = std::time::Instant::now();
    let device = Device::open(0, &nvrtc, None)?;
    println!("compiled for {} in {:.0} ms", device.arch().name(), start.elapsed().as_secs_f64() * 1e3);
    let mut checks =
        Checks { device: &device, cpu: Cpu::new(CpuOptions { threads: 0 })?, random: Random(seed), rows: Vec::new(), good: true };
    checks.all()?;
    let (good, rows) = (checks.good, checks.rows);
    let timings = if good { measure(&device, &mut Random(seed + 1))? } else { Value::Null };
    let report = json!({ "probe": found, "arch": device.arch().name(), "seed": seed, "checks": rows, "timings": timings });
    if let Some(file) = file {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)?;
    }
    println!("{}", if good { "all checks passed" } else { "FAILED" });
    Ok(good)
}

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// About normal (the sum of four uniform values, scaled to deviation 1), rounded to bf16.
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let b = self.bits();
                let sum: f32 = (0..4).map(|i| ((b >> (16 * i)) & 0xffff) as f32 / 65536.0 - 0.5).sum();
                bf16::from_f32(sum * 1.732).to_f32()
            })
            .collect()
    }
    fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }
}

struct Checks<'a> {
    device: &'a Device,
    cpu: Cpu,
    random: Random,
    rows: Vec<Value>,
    good: bool,
}

impl Checks<'_> {
    fn note(&mut self, kernel: &str, shape: String, got: &[f32], want: &[f32], tolerance: f64) {
        let (mut error, mut norm, mut most) = (0.0f64, 0.0f64, 0.0f64);
        for (&g, &w) in got.iter().zip(want) {
            let d = f64::from(g) - f64::from(w);
            error += d * d;
            norm += f64::from(w) * f64::from(w);
            most = if d.is_nan() { f64::INFINITY } else { most.max(d.abs()) };
        }
        let relative = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
        // Written so that NaN fails.
        let pass = got.len() == want.len() && relative <= tolerance;
        self.good &= pass;
        println!("{} {kernel:24} {shape:28} relative {relative:.2e} max {most:.2e}", if pass { "ok  " } else { "FAIL" });
        self.rows.push(json!({"kernel": kernel, "shape": shape, "relative": relative, "max": most, "tolerance": tolerance, "pass": pass}));
    }

    /// A buffer of NaN, so that what is not written is seen.
    fn poison(&self, n: usize) -> Outcome<Tensor> {
        Ok(self.device.upload(&vec![f32::NAN; n])?)
    }

    fn host(&self, rows: usize, cols: usize, values: &[f32]) -> Outcome<<Cpu as Ops>::Tensor> {
        let mut t = self.cpu.tensor(rows, cols)?;
        self.cpu.write_tensor(values, &mut t)?;
        Ok(t)
    }

    fn all(&mut self) -> Outcome<()> {
        for (rows, cols) in [(8, 8), (72, 200), (129, 64), (512, 1024), (1000, 2568)] {
            for (blocksize, double) in [(64, DoubleQuant::default()), (64, DoubleQuant::No), (256, DoubleQuant::default())] {
                self.nf4(rows, cols, blocksize, double)?;
            }
        }
        for n in [1, 127, 2049] {
            for width in [8, 136, 1024, 4096] {
                self.norms(n, width)?;
                self.swiglu(n, width)?;
                self.embed(n, width)?;
            }
            for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 64), (32, 8, 128)] {
                self.rope(n, AttentionShape { heads, kv_heads, head_dim })?;
            }
        }
        self.norms(3, 20000)?;
        for n in [1, 127, 1_000_003] {
            self.squares(n)?;
        }
        Ok(())
    }

    fn nf4(&mut self, rows: usize, cols: usize, blocksize: usize, double: DoubleQuant) -> Outcome<()> {
        let w = Nf4::quantize(&self.random.values(rows * cols), &[rows, cols], blocksize, double)?;
        let want: Vec<f32> = w.dequantize::<bf16>().into_iter().map(bf16::to_f32).collect();
        let on_card = self.device.nf4(&w)?;
        let shape = format!("{rows}x{cols} block {blocksize}{}", if double == DoubleQuant::No { "" } else { " dq" });
        let mut out = self.poison(rows * cols)?;
        self.device.nf4_unpack(&on_card, &mut out)?;
        // Bit for bit.
        self.note("nf4_unpack", shape.clone(), &self.device.download(&out)?, &want, 0.0);
        if rows.is_multiple_of(8) {
            let transposed: Vec<f32> = (0..cols).flat_map(|c| want.iter().skip(c).step_by(cols).copied().collect::<Vec<_>>()).collect();
            let mut out = self.poison(rows * cols)?;
            self.device.nf4_unpack_transposed(&on_card, &mut out)?;
            self.note("nf4_unpack_transposed", shape, &self.device.download(&out)?, &transposed, 0.0);
        }
        Ok(())
    }

    fn norms(&mut self, n: usize, width: usize) -> Outcome<()> {
        let (d, eps) = (self.device, 1e-6);
        let [x, delta, dy, before] = std::array::from_fn(|_| self.random.values(n * width));
        let weight = self.random.values(width);
        let shape = format!("{n}x{width}");
        let (card_weight, cpu_weight) = (d.upload_f32(&weight)?, self.cpu.vector(&weight)?);
        let (mut out, mut rstd) = (self.poison(n * width)?, d.upload_f32(&vec![f32::NAN; n])?);
        let (mut cpu_out, mut cpu_rstd) = (self.cpu.tensor(n, width)?, self.cpu.stats(n, 1)?);
        let (card_x, cpu_x) = (d.upload(&x)?, self.host(n, width, &x)?);
        d.rms_norm(n, &card_x, &card_weight, eps, &mut out, &mut rstd)?;
        self.cpu.rms_norm(n, &cpu_x, &cpu_weight, eps, &mut cpu_out, &mut cpu_rstd)?;
        self.note("rms_norm", shape.clone(), &d.download(&out)?, &self.cpu.read_tensor(n, &cpu_out)?, BF16);
        self.note("rms_norm rstd", shape.clone(), &d.download_f32(&rstd)?, &self.cpu.read_tensor(n, &cpu_rstd)?, F32);

        let (card_dy, cpu_dy) = (d.upload(&dy)?, self.host(n, width, &dy)?);
        let (mut card_dx, mut cpu_dx) = (d.upload(&before)?, self.host(n, width, &before)?);
        d.rms_norm_backward(n, &card_dy, &card_x, &card_weight, &rstd, &mut card_dx)?;
        self.cpu.rms_norm_backward(n, &cpu_dy, &cpu_x, &cpu_weight, &cpu_rstd, &mut cpu_dx)?;
        self.note("rms_norm_backward", shape.clone(), &d.download(&card_dx)?, &self.cpu.read_tensor(n, &cpu_dx)?, BF16);

        // The card normalises the sum as stored: the reference is given that sum.
        let sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| bf16::from_f32(a + b).to_f32()).collect();
        let mut card_x = card_x;
        let (mut out, mut rstd) = (self.poison(n * width)?, d.upload_f32(&vec![f32::NAN; n])?);
        d.add_rms_norm(n, &mut card_x, &d.upload(&delta)?, &card_weight, eps, &mut out, &mut rstd)?;
        self.cpu.rms_norm(n, &self.host(n, width, &sum)?, &cpu_weight, eps, &mut cpu_out, &mut cpu_rstd)?;
        self.note("add_rms_norm sum", shape.clone(), &d.download(&card_x)?, &sum, 0.0);
        self.note("add_rms_norm", shape.clone(), &d.download(&out)?, &self.cpu.read_tensor(n, &cpu_out)?, BF16);
        self.note("add_rms_norm rstd", shape, &d.download_f32(&rstd)?, &self.cpu.read_tensor(n, &cpu_rstd)?, F32);
        Ok(())
    }

    fn rope(&mut self, n: usize, shape: AttentionShape) -> Outcome<()> {
        let (d, eps, theta) = (self.device, 1e-6, 1e6);
        let qkv = self.random.values(n * shape.qkv_width());
        let dqk = self.random.values(n * shape.qk_width());
        let before = self.random.values(n * shape.qkv_width());
        let (qw, kw) = (self.random.values(shape.head_dim), self.random.values(shape.head_dim));
        // Two samples in a pack where there is room: positions restart.
        let cut = n / 3;
        let positions: Vec<u32> = (0..cut as u32).chain(0..(n - cut) as u32).collect();
        let cu_seqlens = if cut > 0 { vec![0, cut as u32, n as u32] } else { vec![0, n as u32] };
        let batch = self.cpu.batch(&HostBatch { ids: vec![0; n], positions: positions.clone(), cu_seqlens, ..HostBatch::default() })?;
        let stats = n * (shape.heads + shape.kv_heads);
        let rotation = d.rotation(&positions, shape.head_dim, theta)?;
        let (card_qkv, card_qw, card_kw) = (d.upload(&qkv)?, d.upload_f32(&qw)?, d.upload_f32(&kw)?);
        let (mut qk, mut rstd) = (self.poison(n * shape.qk_width())?, d.upload_f32(&vec![f32::NAN; stats])?);
        d.qk_norm_rope(&rotation, shape, &card_qkv, &card_qw, &card_kw, eps, &mut qk, &mut rstd)?;
        let cpu_qkv = self.host(n, shape.qkv_width(), &qkv)?;
        let (cpu_qw, cpu_kw) = (self.cpu.vector(&qw)?, self.cpu.vector(&kw)?);
        let (mut cpu_qk, mut cpu_rstd) = (self.cpu.tensor(n, shape.qk_width())?, self.cpu.stats(n, shape.heads + shape.kv_heads)?);
        self.cpu.qk_norm_rope(&batch, n, shape, &cpu_qkv, &cpu_qw, &cpu_kw, eps, theta, &mut cpu_qk, &mut cpu_rstd)?;
        let name = format!("{n} rows {}/{}x{}", shape.heads, shape.kv_heads, shape.head_dim);
        self.note("qk_norm_rope", name.clone(), &d.download(&qk)?, &self.cpu.read_tensor(n, &cpu_qk)?, BF16);
        self.note("qk_norm_rope rstd", name.clone(), &d.download_f32(&rstd)?, &self.cpu.read_tensor(n, &cpu_rstd)?, F32);
        // The v columns must stay as they were: both sides begin with the same values.
        let (mut dqkv, mut cpu_dqkv) = (d.upload(&before)?, self.host(n, shape.qkv_width(), &before)?);
        d.qk_norm_rope_backward(&rotation, shape, &d.upload(&dqk)?, &card_qkv, &card_qw, &card_kw, &rstd, &mut dqkv)?;
        let cpu_dqk = self.host(n, shape.qk_width(), &dqk)?;
        self.cpu.qk_norm_rope_backward(&batch, n, shape, &cpu_dqk, &cpu_qkv, &cpu_qw, &cpu_kw, &cpu_rstd, theta, &mut cpu_dqkv)?;
        self.note("qk_norm_rope_backward", name, &d.download(&dqkv)?, &self.cpu.read_tensor(n, &cpu_dqkv)?, BF16);
        Ok(())
    }

    fn swiglu(&mut self, n: usize, width: usize) -> Outcome<()> {
        let d = self.device;
        let (gate_up, dout) = (self.random.values(2 * n * width), self.random.values(n * width));
        let (card, cpu) = (d.upload(&gate_up)?, self.host(n, 2 * width, &gate_up)?);
        let (mut out, mut cpu_out) = (self.poison(n * width)?, self.cpu.tensor(n, width)?);
        d.swiglu(n, width, &card, &mut out)?;
        self.cpu.swiglu(n, width, &cpu, &mut cpu_out)?;
        self.note("swiglu", format!("{n}x{width}"), &d.download(&out)?, &self.cpu.read_tensor(n, &cpu_out)?, BF16);
        let (mut dx, mut cpu_dx) = (self.poison(2 * n * width)?, self.cpu.tensor(n, 2 * width)?);
        d.swiglu_backward(n, width, &d.upload(&dout)?, &card, &mut dx)?;
        self.cpu.swiglu_backward(n, width, &self.host(n, width, &dout)?, &cpu, &mut cpu_dx)?;
        self.note("swiglu_backward", format!("{n}x{width}"), &d.download(&dx)?, &self.cpu.read_tensor(n, &cpu_dx)?, BF16);
        Ok(())
    }

    fn embed(&mut self, n: usize, width: usize) -> Outcome<()> {
        let (d, rows) = (self.device, 301);
        let table = self.random.values(rows * width);
        let ids: Vec<u32> = (0..n).map(|_| self.random.below(rows as u64) as u32).collect();
        let cpu_table = self.cpu.table(HostMatrix::F32(&table), rows, width)?;
        let positions = (0..n as u32).collect();
        let batch = self.cpu.batch(&HostBatch { ids: ids.clone(), positions, cu_seqlens: vec![0, n as u32], ..HostBatch::default() })?;
        let mut want = self.cpu.tensor(n, width)?;
        self.cpu.embed(&batch, &cpu_table, &mut want)?;
        let mut out = self.poison(n * width)?;
        d.embed(&d.ids(&ids)?, width, &d.upload(&table)?, &mut out)?;
        self.note("embed", format!("{n}x{width}"), &d.download(&out)?, &self.cpu.read_tensor(n, &want)?, 0.0);
        if d.embed(&d.ids(&[rows as u32])?, width, &d.upload(&table)?, &mut out).is_ok() {
            return Err("an id outside of the table was accepted".into());
        }
        Ok(())
    }

    fn squares(&mut self, n: usize) -> Outcome<()> {
        let d = self.device;
        let g = self.random.values(n);
        let (mut scratch, mut sum) = (d.sum_scratch()?, d.stream().clone_htod(&[1.0f64])?);
        d.sum_of_squares(&d.upload_f32(&g)?, &mut scratch, &mut sum)?;
        let got = d.stream().clone_dtoh(&sum)?.first().copied().unwrap_or(f64::NAN) - 1.0;
        self.note("sum_of_squares", format!("{n}"), &[got as f32], &[trainer_kernels::adamw::grad_norm_sq(&g) as f32], 1e-6);
        Ok(())
    }
}

/// Buffer sets that launches rotate among, so that none finds its inputs in the cache.
const SETS: usize = 8;
/// Launches between two events.
const BATCH: usize = 40;
/// Samples that the median is taken of.
const SAMPLES: usize = 25;

/// The median microseconds of a launch; `launch` gets the number of the buffer set.
fn time(device: &Device, mut launch: impl FnMut(usize) -> Outcome<()>) -> Outcome<f64> {
    let stream = device.stream();
    let mut samples = Vec::with_capacity(SAMPLES);
    for sample in 0..SAMPLES + 3 {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        (0..BATCH).try_for_each(|i| launch(i % SETS))?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        end.synchronize()?;
        if sample >= 3 {
            samples.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / BATCH as f64);
        }
    }
    samples.sort_by(f64::total_cmp);
    samples.get(SAMPLES / 2).copied().ok_or_else(|| "no samples".into())
}

fn measure(device: &Device, random: &mut Random) -> Outcome<Value> {
    let (n, hidden, inter, shape) = (4096, 4096, 12288, AttentionShape { heads: 32, kv_heads: 8, head_dim: 128 });
    let stream = device.stream();
    let noise = random.values(n * 2 * inter);
    let sets = |len: usize| -> Outcome<Vec<Tensor>> {
        (0..SETS).map(|_| Ok(device.upload(noise.get(..len).ok_or("too little noise")?)?)).collect()
    };
    let mut rows = Vec::new();

    let source = stream.alloc_zeros::<u8>(2 << 30)?;
    let mut target = stream.alloc_zeros::<u8>(2 << 30)?;
    let copy = time(device, |_| Ok(stream.memcpy_dtod(&source, &mut target)?))?;
    let ceiling = (4u64 << 30) as f64 / copy / 1e6;
    println!("copy {ceiling:.3} TB/s");
    drop((source, target));

    let mut row = |kernel: &str, what: String, bytes: usize, us: f64| {
        let (rate, floor) = (bytes as f64 / us / 1e6, bytes as f64 / ceiling / 1e6);
        println!("{kernel:24} {what:20} {us:9.1} us {rate:6.3} TB/s, {:5.1} % of the copy rate", 100.0 * floor / us);
        rows.push(json!({"kernel": kernel, "shape": what, "us": us, "bytes": bytes, "gb_per_s": rate * 1e3, "floor_us": floor, "share_of_floor": floor / us}));
    };

    let values = n * hidden;
    {
        let w = Nf4::quantize(noise.get(..inter * hidden).ok_or("too little noise")?, &[inter, hidden], 64, DoubleQuant::default())?;
        let on_card = (0..SETS).map(|_| Ok(device.nf4(&w)?)).collect::<Outcome<Vec<_>>>()?;
        let mut out = sets(inter * hidden)?;
        let bytes = on_card.first().map_or(0, |w| w.bytes()) + 2 * inter * hidden;
        let us = time(device, |i| Ok(device.nf4_unpack(&on_card[i], &mut out[i])?))?;
        row("nf4_unpack", format!("{inter}x{hidden}"), bytes, us);
        let us = time(device, |i| Ok(device.nf4_unpack_transposed(&on_card[i], &mut out[i])?))?;
        row("nf4_unpack_transposed", format!("{inter}x{hidden}"), bytes, us);
    }
    {
        let (mut a, b, mut c) = (sets(values)?, sets(values)?, sets(values)?);
        let weight = device.upload_f32(noise.get(..hidden).ok_or("too little noise")?)?;
        let mut rstd = device.upload_f32(&vec![1.0; n])?;
        let what = || format!("{n}x{hidden}");
        let us = time(device, |i| Ok(device.rms_norm(n, &b[i], &weight, 1e-6, &mut c[i], &mut rstd)?))?;
        row("rms_norm", what(), 4 * values, us);
        let us = time(device, |i| Ok(device.rms_norm_backward(n, &a[i], &b[i], &weight, &rstd, &mut c[i])?))?;
        row("rms_norm_backward", what(), 8 * values, us);
        let us = time(device, |i| Ok(device.add_rms_norm(n, &mut a[i], &b[i], &weight, 1e-6, &mut c[i], &mut rstd)?))?;
        row("add_rms_norm", what(), 8 * values, us);
        let vocabulary = noise.len() / hidden;
        let table = device.upload(&noise)?;
        let ids = device.ids(&(0..n).map(|_| random.below(vocabulary as u64) as u32).collect::<Vec<_>>())?;
        let us = time(device, |i| Ok(device.embed(&ids, hidden, &table, &mut c[i])?))?;
        row("embed", what(), 4 * values, us);
    }
    {
        let (q, mut dq) = (sets(n * shape.qkv_width())?, sets(n * shape.qkv_width())?);
        let (mut qk, head) = (sets(n * shape.qk_width())?, device.upload_f32(noise.get(..shape.head_dim).ok_or("too little noise")?)?);
        let mut rstd = device.upload_f32(&vec![1.0; n * (shape.heads + shape.kv_heads)])?;
        let positions: Vec<u32> = (0..n as u32).map(|i| i % 2048).collect();
        let rotation = device.rotation(&positions, shape.head_dim, 1e6)?;
        let (stats, width) = (4 * rstd.len(), 2 * n * shape.qk_width());
        let what = || format!("{n} rows 32/8x128");
        let us = time(device, |i| Ok(device.qk_norm_rope(&rotation, shape, &q[i], &head, &head, 1e-6, &mut qk[i], &mut rstd)?))?;
        row("qk_norm_rope", what(), 2 * width + stats, us);
        let us = time(device, |i| Ok(device.qk_norm_rope_backward(&rotation, shape, &qk[i], &q[i], &head, &head, &rstd, &mut dq[i])?))?;
        row("qk_norm_rope_backward", what(), 3 * width + stats, us);
    }
    {
        let (gate_up, mut out, mut dx) = (sets(2 * n * inter)?, sets(n * inter)?, sets(2 * n * inter)?);
        let what = || format!("{n}x{inter}");
        let us = time(device, |i| Ok(device.swiglu(n, inter, &gate_up[i], &mut out[i])?))?;
        row("swiglu", what(), 6 * n * inter, us);
        let us = time(device, |i| Ok(device.swiglu_backward(n, inter, &out[i], &gate_up[i], &mut dx[i])?))?;
        row("swiglu_backward", what(), 10 * n * inter, us);
    }
    {
        // The adapters of rank 32: 87.3 M values, well past the cache.
        let g: CudaSlice<f32> = stream.clone_htod(&noise.iter().copied().take(87_300_000).collect::<Vec<_>>())?;
        let (mut scratch, mut sum) = (device.sum_scratch()?, stream.alloc_zeros::<f64>(1)?);
        let us = time(device, |_| Ok(device.sum_of_squares(&g, &mut scratch, &mut sum)?))?;
        row("sum_of_squares", format!("{}", g.len()), 4 * g.len(), us);
    }
    Ok(json!({"copy_tb_per_s": ceiling, "sets": SETS, "launches_per_sample": BATCH, "samples": SAMPLES, "kernels": rows}))
}
