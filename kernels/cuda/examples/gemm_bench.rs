//! Times matrix products at the shapes of Qwen3-8B: cublasLt's first choice and its best, our own, and the thin ones of adapters.
//!
//!     gemm_bench [copy|lora|gemm|fp8]...
//!
//! Median of samples between device events, over three sets of buffers in turn.

use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use std::error::Error;
use trainer_kernels_cuda::archive::Archive;
use trainer_kernels_cuda::blaslt::{BlasLt, Scales};
use trainer_kernels_cuda::code::Code;
use trainer_kernels_cuda::device::Device;
use trainer_kernels_cuda::launch::{BackwardKernel, BackwardPlan, LoraIn, LoraOut, MidPlan};
use trainer_kernels_cuda::matrix::{Matrix, Matrix8, Op, Out};
use trainer_kernels_cuda::memory::{Buffer, Floats, Tensor};
use trainer_kernels_cuda::selftest::Random;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Sets of buffers: enough that the second-level cache does not hold one until its next turn.
const SETS: usize = 3;
const SAMPLES: usize = 15;
const TOKENS: usize = 4096;

fn time(device: &Device, batch: usize, mut launch: impl FnMut(usize) -> Outcome<()>) -> Outcome<f64> {
    let stream = device.stream();
    let mut samples = Vec::new();
    for sample in 0..SAMPLES + 2 {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        (0..batch).try_for_each(|i| launch(i % SETS))?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        end.synchronize()?;
        if sample >= 2 {
            samples.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / batch as f64);
        }
    }
    samples.sort_by(f64::total_cmp);
    samples.get(SAMPLES / 2).copied().ok_or_else(|| "no samples".into())
}

struct Bench {
    device: Device,
    lt: BlasLt,
    /// Keeps the first choices.
    plain: BlasLt,
    noise: Vec<f32>,
}

fn flops(name: &str, shape: &str, us: f64, work: f64) {
    println!("{name:34} {shape:26} {us:9.1} us {:7.1} TFLOP/s", work / us / 1e6);
}
fn bytes(name: &str, shape: &str, us: f64, moved: usize) {
    println!("{name:34} {shape:26} {us:9.1} us {:7.3} TB/s", moved as f64 / us / 1e6);
}

impl Bench {
    fn tensors(&self, rows: usize, cols: usize) -> Outcome<Vec<Tensor>> {
        (0..SETS)
            .map(|i| {
                let from = i * 8192;
                Ok(self.device.tensor(cols, self.noise.get(from..from + rows * cols).ok_or("too little noise")?)?)
            })
            .collect()
    }

    fn copy(&self) -> Outcome<()> {
        let (from, mut to) = (self.tensors(1, TOKENS * 24576)?, self.tensors(1, TOKENS * 24576)?);
        let us = time(&self.device, 6, |i| Ok(self.device.copy_tensor(1, &from[i], &mut to[i])?))?;
        bytes("copy", "4096x24576", us, 4 * TOKENS * 24576);
        Ok(())
    }

    fn gemm(&self) -> Outcome<()> {
        let (d, lt) = (&self.device, &self.lt);
        let shapes = [
            ("square", Op::N, Op::T, 4096, 4096, 4096, false),
            ("qkv", Op::N, Op::T, TOKENS, 6144, 4096, false),
            ("qkv+r", Op::N, Op::T, TOKENS, 6144, 4096 + 96, false),
            ("o", Op::N, Op::T, TOKENS, 4096, 4096, false),
            ("gate_up", Op::N, Op::T, TOKENS, 24576, 4096, false),
            ("gate_up+r", Op::N, Op::T, TOKENS, 24576, 4096 + 64, false),
            ("down", Op::N, Op::T, TOKENS, 4096, 12288, false),
            ("d qkv", Op::N, Op::N, TOKENS, 4096, 6144, false),
            ("d qkv+r", Op::N, Op::N, TOKENS, 4096, 6144 + 96, false),
            ("d gate_up", Op::N, Op::N, TOKENS, 4096, 24576, false),
            ("d down", Op::N, Op::N, TOKENS, 12288, 4096, false),
            ("dW square", Op::T, Op::N, 4096, 4096, 4096, true),
            ("logits", Op::N, Op::T, 512, 151936, 4096, true),
        ];
        for (name, op_a, op_b, m, n, k, f32) in shapes {
            let stored = |op: Op, r: usize, c: usize| if op == Op::N { (r, c) } else { (c, r) };
            let ((ra, ca), (rb, cb)) = (stored(op_a, m, k), stored(op_b, k, n));
            let sets = if n > 100_000 { 1 } else { SETS };
            let (a, mut cs, mut fs): (_, Vec<Tensor>, Vec<Floats>) = (self.tensors(ra, ca)?, Vec::new(), Vec::new());
            let mut b = Vec::new();
            for i in 0..sets {
                let values: Vec<f32> = self.noise.iter().cycle().skip(1000 * i).take(rb * cb).copied().collect();
                b.push(d.tensor(cb, &values)?);
                if f32 {
                    fs.push(d.zeros(m * n, "C")?);
                } else {
                    cs.push(Tensor::new(d.arena(), m, n, "C")?);
                }
            }
            let (shape, work) = (format!("{m}x{n}x{k}"), 2.0 * (m * n) as f64 * k as f64);
            let batch = if n > 20_000 { 3 } else { 9 };
            for which in ["first", "tuned", "first again", "own"] {
                let mut run = |i: usize, tune: bool| -> Outcome<()> {
                    let (ma, mb) = (Matrix::tensor(&a[i], ra)?, Matrix::tensor(&b[i % sets], rb)?);
                    let c = if f32 { Out::floats(&mut fs[i % sets], 0, m, n)? } else { Out::tensor(&mut cs[i % sets], m)? };
                    if tune {
                        lt.tune(d, ma, op_a, mb, op_b, c, m, n, k, 1.0, 0.0)?;
                    } else if which == "first again" {
                        self.plain.gemm(d, ma, op_a, mb, op_b, c, m, n, k, 1.0, 0.0)?;
                    } else if which == "own" {
                        d.gemm(ma, op_a, mb, op_b, c, m, n, k, 1.0, 0.0)?;
                    } else {
                        lt.gemm(d, ma, op_a, mb, op_b, c, m, n, k, 1.0, 0.0)?;
                    }
                    Ok(())
                };
                if which == "tuned" {
                    run(0, true)?;
                }
                let us = time(d, batch, |i| run(i, false))?;
                flops(&format!("{name} {op_a:?}{op_b:?} {which}"), &shape, us, work);
            }
        }
        Ok(())
    }

    fn fp8(&self) -> Outcome<()> {
        let (d, lt) = (&self.device, &self.lt);
        for (name, m, n, k) in [("qkv", TOKENS, 6144, 4096), ("gate_up", TOKENS, 24576, 4096), ("down", TOKENS, 4096, 12288)] {
            let mut random = Random::new(7);
            let mut data =
                |len: usize| -> Vec<u8> { (0..len).map(|_| (random.bits() as u8 & 0x87) | ((random.below(4) as u8 + 5) << 3)).collect() };
            let (a, b): (Buffer<u8>, Buffer<u8>) = (d.upload(&data(m * k), "A")?, d.upload(&data(n * k), "B")?);
            let (sa, sb) = (d.floats(&vec![0.5; m])?, d.floats(&vec![0.5; n])?);
            let mut c = Tensor::new(d.arena(), m, n, "C")?;
            for (rows, fast) in [(false, false), (false, true), (true, false), (true, true)] {
                let scales = if rows { Scales::Rows { a: &sa, b: &sb } } else { Scales::Tensor { a: &sa, b: &sb } };
                let (ma, mb) = (Matrix8::buffer(&a, 0, m, k)?, Matrix8::buffer(&b, 0, n, k)?);
                for tune in [false, true] {
                    let us = (|| -> Outcome<f64> {
                        if tune {
                            lt.tune_fp8(d, ma, mb, scales, fast, Out::tensor(&mut c, m)?, m, n, k, 1.0, 0.0)?;
                        }
                        time(d, 5, |_| Ok(lt.gemm_fp8(d, ma, mb, scales, fast, Out::tensor(&mut c, m)?, m, n, k, 1.0, 0.0)?))
                    })();
                    let what = format!(
                        "fp8 {name} {}{}{}",
                        if rows { "rows" } else { "tensor" },
                        if fast { " fast" } else { "" },
                        if tune { " tuned" } else { "" }
                    );
                    match us {
                        Ok(us) => flops(&what, &format!("{m}x{n}x{k}"), us, 2.0 * (m * n) as f64 * k as f64),
                        Err(e) => println!("{what}: {e}"),
                    }
                }
            }
        }
        Ok(())
    }

    fn lora(&self) -> Outcome<()> {
        let (d, lt, n) = (&self.device, &self.lt, TOKENS);
        let groups: [(&str, usize, &[usize], usize); 4] = [
            ("qkv", 4096, &[4096, 1024, 1024], 32),
            ("o", 4096, &[4096], 32),
            ("gate_up", 4096, &[12288, 12288], 32),
            ("down", 12288, &[4096], 32),
        ];
        for (name, width, outs, rank) in groups {
            let (ranks, all) = (rank * outs.len(), outs.iter().sum::<usize>());
            let (x, dy, a) = (self.tensors(n, width)?, self.tensors(n, all)?, self.tensors(ranks, width)?);
            let (mut mid, mut dmid) = (self.tensors(n, ranks)?, self.tensors(n, ranks)?);
            let b = outs.iter().map(|&o| self.tensors(o, rank)).collect::<Outcome<Vec<_>>>()?;
            let mut scratch: Floats = d.buffer(64 << 20, "scratch")?;
            let shape = format!("{n}x{width} r {ranks}");
            let moved = 2 * n * width + 2 * ranks * (width + n);
            let mut plans = vec![MidPlan::new(width, ranks)];
            plans.extend([(32, 1), (32, 2), (128, 2), (128, 4), (128, 8)].map(|(tokens, slices)| MidPlan { tokens, slices }));
            for plan in plans {
                let us = time(d, 21, |i| Ok(d.lora_mid_as(plan, n, &x[i], Matrix::tensor(&a[i], ranks)?, &mut mid[i], &mut scratch)?))?;
                bytes(&format!("{name} mid {}/{}", plan.tokens, plan.slices), &shape, us, moved);
            }
            let us = time(d, 21, |i| Ok(d.lora_mid(n, &x[i], Matrix::tensor(&a[i], ranks)?, &mut mid[i], &mut scratch)?))?;
            bytes(&format!("{name} mid as chosen"), &shape, us, moved);
            for tune in [false, true] {
                if tune {
                    lt.tune(
                        d,
                        Matrix::tensor(&x[0], n)?,
                        Op::N,
                        Matrix::tensor(&a[0], ranks)?,
                        Op::T,
                        Out::tensor(&mut mid[0], n)?,
                        n,
                        ranks,
                        width,
                        1.0,
                        0.0,
                    )?;
                }
                let us = time(d, 21, |i| {
                    let (x, a) = (Matrix::tensor(&x[i], n)?, Matrix::tensor(&a[i], ranks)?);
                    Ok(lt.gemm(d, x, Op::N, a, Op::T, Out::tensor(&mut mid[i], n)?, n, ranks, width, 1.0, 0.0)?)
                })?;
                bytes(&format!("{name} mid cublasLt{}", if tune { " tuned" } else { "" }), &shape, us, moved);
            }

            let shape = format!("{n}x{all} r {rank}");
            let moved = 2 * n * all + 4 * n * ranks + 10 * all * rank;
            let mut db = outs.iter().map(|&o| Ok(d.zeros(o * rank, "dB")?)).collect::<Outcome<Vec<Floats>>>()?;
            let mut plans = vec![self.device.lora_backward_plan(n, outs, rank)];
            use BackwardKernel::{Deep, Long};
            for kernel in [Long, Deep] {
                plans.extend([1, 2].map(|times| BackwardPlan { kernel, times }));
            }
            for plan in plans {
                let us = time(d, 21, |i| {
                    let mut members = Vec::new();
                    let (mut dy_from, mut mid_from) = (0, 0);
                    for ((&out, b), db) in outs.iter().zip(&b).zip(&mut db) {
                        members.push(LoraOut { dy_from, out, mid_from, rank, b: Matrix::tensor(&b[i], out)?, db, scale: 1.0 });
                        (dy_from, mid_from) = (dy_from + out, mid_from + rank);
                    }
                    Ok(d.lora_backward_as(Some(plan), n, &dy[i], &mid[i], &mut members, &mut dmid[i], &mut scratch)?)
                })?;
                bytes(&format!("{name} backward over dy {:?} x{}", plan.kernel, plan.times), &shape, us, moved);
            }
            for tune in [false, true] {
                let mut step = |i: usize, tune: bool| -> Outcome<()> {
                    let (mut dy_from, mut mid_from) = (0, 0);
                    for ((&out, b), db) in outs.iter().zip(&b).zip(&mut db) {
                        let dy = Matrix::columns(&dy[i], n, dy_from, out)?;
                        let (mb, mm) = (Matrix::tensor(&b[i], out)?, Matrix::columns(&mid[i], n, mid_from, rank)?);
                        let to = Out::columns(&mut dmid[i], n, mid_from, rank)?;
                        let gradient = Out::floats(db, 0, out, rank)?;
                        if tune {
                            lt.tune(d, dy, Op::N, mb, Op::N, to, n, rank, out, 1.0, 0.0)?;
                            lt.tune(d, dy, Op::T, mm, Op::N, gradient, out, rank, n, 1.0, 1.0)?;
                        } else {
                            lt.gemm(d, dy, Op::N, mb, Op::N, to, n, rank, out, 1.0, 0.0)?;
                            lt.gemm(d, dy, Op::T, mm, Op::N, gradient, out, rank, n, 1.0, 1.0)?;
                        }
                        (dy_from, mid_from) = (dy_from + out, mid_from + rank);
                    }
                    Ok(())
                };
                if tune {
                    step(0, true)?;
                }
                let us = time(d, 21, |i| step(i, false))?;
                bytes(&format!("{name} backward cublasLt{}", if tune { " tuned" } else { "" }), &shape, us, moved);
            }

            let shape = format!("{n}x{width} r {ranks}");
            let moved = 2 * n * width + 2 * n * ranks + 8 * ranks * width;
            let mut da = outs.iter().map(|_| Ok(d.zeros(rank * width, "dA")?)).collect::<Outcome<Vec<Floats>>>()?;
            let us = time(d, 21, |i| {
                let mut members: Vec<LoraIn<'_>> =
                    da.iter_mut().enumerate().map(|(j, da)| LoraIn { mid_from: j * rank, rank, da }).collect();
                Ok(d.lora_da(n, &dmid[i], &x[i], &mut members, &mut scratch)?)
            })?;
            bytes(&format!("{name} dA"), &shape, us, moved);
            let mut whole: Floats = d.zeros(ranks * width, "dA")?;
            for tune in [false, true] {
                let mut step = |i: usize, tune: bool| -> Outcome<()> {
                    let (m, x, c) = (Matrix::tensor(&dmid[i], n)?, Matrix::tensor(&x[i], n)?, Out::floats(&mut whole, 0, ranks, width)?);
                    if tune {
                        lt.tune(d, m, Op::T, x, Op::N, c, ranks, width, n, 1.0, 1.0)?;
                    } else {
                        lt.gemm(d, m, Op::T, x, Op::N, c, ranks, width, n, 1.0, 1.0)?;
                    }
                    Ok(())
                };
                if tune {
                    step(0, true)?;
                }
                let us = time(d, 21, |i| step(i, false))?;
                bytes(&format!("{name} dA cublasLt{}", if tune { " tuned" } else { "" }), &shape, us, moved);
            }
        }
        Ok(())
    }
}

fn main() -> Outcome<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let device = Device::open(0, &Code::with(Archive::embedded()?, None))?;
    let lt = BlasLt::open(&device, 64 << 20)?;
    println!("{}, cublasLt {}", device.arch().name(), lt.version());
    let len = TOKENS * 24576 + 65536;
    let threads = std::thread::available_parallelism()?.get();
    let noise: Vec<f32> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|i| scope.spawn(move || Random::new(i as u64).values(len.div_ceil(threads)))).collect();
        parts.into_iter().flat_map(|p| p.join().unwrap_or_default()).collect()
    });
    let plain = BlasLt::open(&device, 64 << 20)?;
    let bench = Bench { device, lt, plain, noise };
    let on = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    if on("copy") {
        bench.copy()?;
    }
    if on("lora") {
        bench.lora()?;
    }
    if on("gemm") {
        bench.gemm()?;
    }
    if on("fp8") {
        bench.fp8()?;
    }
    Ok(())
}
