//! Times of the CPU backend's operations at the nano model's shape, and what they add up to.
//!
//! `cargo run --release -p trainer-kernels --example cpu_bench [threads] [tokens]`

use std::time::Instant;
use trainer_kernels::cpu::{Batch, Cpu, CpuOptions, Group, InstructionSet, Param};
use trainer_kernels::ops::{AttentionShape, HostBatch, HostLinear, HostMatrix, LoraGrads, LoraMember, Ops, WeightPlan};

const HIDDEN: usize = 192;
const LAYERS: usize = 6;
const SHAPE: AttentionShape = AttentionShape { heads: 3, kv_heads: 1, head_dim: 64 };
const INTER: usize = 512;
const VOCABULARY: usize = 2560;
const RANK: usize = 32;
const EPS: f32 = 1e-6;
const THETA: f64 = 1e6;

fn noise(n: usize) -> Vec<f32> {
    let mut x = 0x9E37_79B9u32 ^ n as u32;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        ((x >> 8) as f32 / (1u32 << 23) as f32 - 1.0) * 0.1
    };
    (0..n).map(next).collect()
}

/// A group of projections with its adapters and their gradients.
struct Projection {
    group: Group,
    inner: usize,
    outs: Vec<usize>,
    a: Vec<Param>,
    b: Vec<Param>,
    da: Vec<Param>,
    db: Vec<Param>,
}

impl Projection {
    fn new(cpu: &Cpu, inner: usize, outs: &[usize], plan: WeightPlan) -> Self {
        let weights: Vec<Vec<f32>> = outs.iter().map(|o| noise(o * inner)).collect();
        let members: Vec<_> = weights
            .iter()
            .zip(outs)
            .map(|(w, &out)| HostLinear { weight: HostMatrix::F32(w), out_features: out, in_features: inner, bias: None })
            .collect();
        let make = |len: usize| cpu.param(&noise(len)).unwrap();
        Projection {
            group: cpu.group(&members, plan, 0).unwrap(),
            inner,
            outs: outs.to_vec(),
            a: outs.iter().map(|_| make(RANK * inner)).collect(),
            b: outs.iter().map(|o| make(RANK * o)).collect(),
            da: outs.iter().map(|_| make(RANK * inner)).collect(),
            db: outs.iter().map(|o| make(RANK * o)).collect(),
        }
    }

    fn lora(&self, on: bool) -> Vec<Option<LoraMember<'_, Param>>> {
        self.a.iter().zip(&self.b).map(|(a, b)| on.then_some(LoraMember { a, b, rank: RANK, scale: 1.0, bias: None })).collect()
    }

    /// Multiply-adds of a token in the forward.
    fn work(&self) -> usize {
        self.outs.iter().map(|o| self.inner * o + RANK * (self.inner + o)).sum()
    }

    fn out(&self) -> usize {
        self.outs.iter().sum()
    }
}

/// Median seconds of a call.
fn time(mut f: impl FnMut()) -> f64 {
    (0..3).for_each(|_| f());
    let mut times: Vec<f64> = (0..31)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

struct Report {
    total: f64,
}

impl Report {
    fn line(&mut self, name: &str, count: usize, seconds: f64, flops: f64) {
        self.total += seconds * count as f64;
        let rate = if flops > 0.0 { format!("{:8.1} GFLOP/s", flops / seconds / 1e9) } else { String::new() };
        println!("{name:<28} {:9.1} us x {count:<3} = {:8.2} ms {rate}", seconds * 1e6, seconds * 1e3 * count as f64);
    }
}

fn batch(cpu: &Cpu, lens: &[usize], positions: Option<u32>) -> Batch {
    let n: usize = lens.iter().sum();
    let mut host =
        HostBatch { ids: (0..n as u32).map(|i| i * 7 % VOCABULARY as u32).collect(), cu_seqlens: vec![0], ..HostBatch::default() };
    for (i, &len) in lens.iter().enumerate() {
        host.positions.extend((0..len as u32).map(|p| positions.unwrap_or(0) + p));
        host.cu_seqlens.push(host.positions.len() as u32);
        host.samples.push(i as u64);
        host.slots.push(i as u32);
    }
    host.targets = host.ids.clone();
    host.weights = vec![1.0; n];
    cpu.batch(&host).unwrap()
}

fn training(cpu: &Cpu, n: usize, plan: WeightPlan) {
    let lens = [n / 2 + 13, n - n / 2 - 13];
    let batch = batch(cpu, &lens, None);
    let mut qkv_p = Projection::new(cpu, HIDDEN, &[SHAPE.q_width(), SHAPE.kv_width(), SHAPE.kv_width()], plan);
    let mut o_p = Projection::new(cpu, SHAPE.q_width(), &[HIDDEN], plan);
    let mut gate_up_p = Projection::new(cpu, HIDDEN, &[INTER, INTER], plan);
    let mut down_p = Projection::new(cpu, INTER, &[HIDDEN], plan);
    let tensor = |cols: usize| {
        let mut t = cpu.tensor(n, cols).unwrap();
        cpu.write_tensor(&noise(n * cols), &mut t).unwrap();
        t
    };
    let (mut x, y, mut normed) = (tensor(HIDDEN), tensor(HIDDEN), tensor(HIDDEN));
    let (mut qkv, mut qk, mut attn) = (tensor(SHAPE.qkv_width()), tensor(SHAPE.qk_width()), tensor(SHAPE.q_width()));
    let (mut dqkv, mut dqk, dattn) = (tensor(SHAPE.qkv_width()), tensor(SHAPE.qk_width()), tensor(SHAPE.q_width()));
    let (mut gu, mut act, dact) = (tensor(2 * INTER), tensor(INTER), tensor(INTER));
    let (mut rstd, mut qk_rstd, mut lse) = (cpu.stats(n, 1).unwrap(), cpu.stats(n, 4).unwrap(), cpu.stats(n, SHAPE.heads).unwrap());
    let weight = cpu.vector(&vec![1.0; HIDDEN]).unwrap();
    let head_weight = cpu.vector(&vec![1.0; SHAPE.head_dim]).unwrap();
    let table = cpu.table(HostMatrix::F32(&noise(VOCABULARY * HIDDEN)), VOCABULARY, HIDDEN).unwrap();
    let mut r = Report { total: 0.0 };
    let flops = |work: usize| 2.0 * (work * n) as f64;

    let t = time(|| cpu.embed(&batch, &table, &mut x).unwrap());
    r.line("embed", 1, t, 0.0);
    let t = time(|| cpu.add_rms_norm(n, &mut x, &y, &weight, EPS, &mut normed, &mut rstd).unwrap());
    r.line("add_rms_norm", 2 * LAYERS, t, 0.0);
    for (name, p) in [("qkv", &mut qkv_p), ("o", &mut o_p), ("gate_up", &mut gate_up_p), ("down", &mut down_p)] {
        let input = tensor(p.inner);
        let mut dinput = tensor(p.inner);
        let mut out = tensor(p.out());
        let mut mid = tensor(RANK * p.outs.len());
        let mut dmid = tensor(RANK * p.outs.len());
        let t = time(|| cpu.linear(&batch, n, &input, &p.group, &p.lora(true), None, &mut out, &mut mid).unwrap());
        r.line(&format!("linear {name}"), LAYERS, t, flops(p.work()));
        let work = 2 * p.work() - p.inner * p.out() + RANK * (p.inner * p.outs.len() + p.out());
        let t = time(|| {
            let (a, b) = (&p.a, &p.b);
            let lora: Vec<_> = a.iter().zip(b).map(|(a, b)| Some(LoraMember { a, b, rank: RANK, scale: 1.0, bias: None })).collect();
            let mut grads: Vec<_> =
                p.da.iter_mut().zip(&mut p.db).map(|(a, b)| Some(LoraGrads { a_acc: a, b_acc: b, bias_acc: None })).collect();
            cpu.linear_backward(&batch, n, &out, &input, &mid, &p.group, &lora, None, &mut grads, &mut dmid, Some(&mut dinput)).unwrap();
        });
        r.line(&format!("linear {name} backward"), LAYERS, t, flops(work));
    }
    let t = time(|| cpu.qk_norm_rope(&batch, n, SHAPE, &qkv, &head_weight, &head_weight, EPS, THETA, &mut qk, &mut qk_rstd).unwrap());
    r.line("qk_norm_rope", LAYERS, t, 0.0);
    let pairs: usize = lens.iter().map(|l| l * (l + 1) / 2).sum::<usize>() * SHAPE.heads * SHAPE.head_dim;
    let t = time(|| cpu.attention(&batch, n, SHAPE, &qk, &qkv, &mut attn, &mut lse).unwrap());
    r.line("attention", LAYERS, t, 4.0 * pairs as f64);
    let t = time(|| cpu.swiglu(n, INTER, &gu, &mut act).unwrap());
    r.line("swiglu", LAYERS, t, 0.0);
    let t = time(|| {
        cpu.cross_entropy(&batch, n, &normed, &table, 1.0, Some(&mut x)).unwrap();
    });
    r.line("cross_entropy", 1, t, flops(2 * HIDDEN * VOCABULARY));
    let t = time(|| cpu.swiglu_backward(n, INTER, &dact, &mut gu).unwrap());
    r.line("swiglu_backward", LAYERS, t, 0.0);
    let t = time(|| cpu.attention_backward(&batch, n, SHAPE, &dattn, &attn, &qk, &qkv, &lse, &mut dqk, &mut dqkv).unwrap());
    r.line("attention_backward", LAYERS, t, 10.0 * pairs as f64);
    let t =
        time(|| cpu.qk_norm_rope_backward(&batch, n, SHAPE, &dqk, &qkv, &head_weight, &head_weight, &qk_rstd, THETA, &mut dqkv).unwrap());
    r.line("qk_norm_rope_backward", LAYERS, t, 0.0);
    let t = time(|| cpu.rms_norm_backward(n, &y, &normed, &weight, &rstd, &mut x).unwrap());
    r.line("rms_norm_backward", 2 * LAYERS, t, 0.0);
    cpu.write_tensor(&noise(n * 2 * INTER), &mut gu).unwrap();
    cpu.write_tensor(&noise(n * SHAPE.qkv_width()), &mut qkv).unwrap();
    println!("training, {n} tokens, {plan:?}: {:.2} ms = {:.0} tokens/s\n", r.total * 1e3, n as f64 / r.total);
}

fn decoding(cpu: &Cpu, n: usize, context: u32) {
    let prompt: Vec<usize> = vec![1; n];
    let batch = batch(cpu, &prompt, Some(context - 1));
    let plan = WeightPlan::Unpacked;
    let groups = [
        ("qkv", Projection::new(cpu, HIDDEN, &[SHAPE.q_width(), SHAPE.kv_width(), SHAPE.kv_width()], plan)),
        ("o", Projection::new(cpu, SHAPE.q_width(), &[HIDDEN], plan)),
        ("gate_up", Projection::new(cpu, HIDDEN, &[INTER, INTER], plan)),
        ("down", Projection::new(cpu, INTER, &[HIDDEN], plan)),
    ];
    let mut r = Report { total: 0.0 };
    for (name, p) in &groups {
        let (x, mut out, mut mid) =
            (cpu.tensor(n, p.inner).unwrap(), cpu.tensor(n, p.out()).unwrap(), cpu.tensor(n, RANK * p.outs.len()).unwrap());
        let work = 2.0 * (p.work() * n) as f64;
        let t = time(|| cpu.linear(&batch, n, &x, &p.group, &p.lora(true), None, &mut out, &mut mid).unwrap());
        r.line(&format!("linear {name}"), LAYERS, t, work);
    }
    let mut cache = cpu.cache(LAYERS, n, context as usize + 1, SHAPE).unwrap();
    let (qk, qkv) = (cpu.tensor(n, SHAPE.qk_width()).unwrap(), cpu.tensor(n, SHAPE.qkv_width()).unwrap());
    let mut out = cpu.tensor(n, SHAPE.q_width()).unwrap();
    let mut layer = 0;
    let t = time(|| cpu.cache_append(&batch, n, layer, SHAPE, &qk, &qkv, &mut cache).unwrap());
    r.line("cache_append", LAYERS, t, 0.0);
    // Another layer each time, so that the cache is read from where it would be.
    let t = time(|| {
        layer = (layer + 1) % LAYERS;
        cpu.attention_cached(&batch, n, layer, SHAPE, &qk, &cache, &mut out).unwrap()
    });
    r.line("attention_cached", LAYERS, t, 4.0 * (n * context as usize * SHAPE.q_width()) as f64);
    let table = cpu.table(HostMatrix::F32(&noise(VOCABULARY * HIDDEN)), VOCABULARY, HIDDEN).unwrap();
    let hidden = cpu.tensor(n, HIDDEN).unwrap();
    let t = time(|| {
        cpu.logits(n, &hidden, &table).unwrap();
    });
    r.line("logits", 1, t, 2.0 * (n * HIDDEN * VOCABULARY) as f64);
    println!("decoding, {n} sequences at position {context}: {:.2} ms = {:.0} tokens/s\n", r.total * 1e3, n as f64 / r.total);
}

fn main() {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>().expect("a number"));
    let threads = args.next().unwrap_or(2);
    let tokens = args.next().unwrap_or(300).max(40);
    for set in [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable] {
        let Ok(cpu) = Cpu::with_instruction_set(CpuOptions { threads }, set) else { continue };
        println!("--- {} {}, {threads} threads", cpu.describe(), cpu.instructions());
        training(&cpu, tokens, WeightPlan::Unpacked);
        if set == InstructionSet::Avx512 {
            training(&cpu, tokens, WeightPlan::Packed);
        }
        decoding(&cpu, 100, 150);
        decoding(&cpu, 1, 150);
    }
}
