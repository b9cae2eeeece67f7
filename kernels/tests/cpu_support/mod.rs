//! What the tests of the CPU backend share: random values, batches and the operations in f64.
#![allow(dead_code, reason = "each test file uses a part")]

use trainer_kernels::cpu::{Batch, Cpu, CpuOptions, InstructionSet, Tensor};
use trainer_kernels::ops::{AttentionShape, HostBatch, Ops};

/// Uniform values in `-1..1`, exactly representable in f32.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn word(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.word() as usize % n
    }
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.word() >> 8) as f32 / (1u32 << 23) as f32 - 1.0).collect()
    }
    /// Values around `center`.
    pub fn around(&mut self, n: usize, center: f32, spread: f32) -> Vec<f32> {
        self.values(n).into_iter().map(|v| center + spread * v).collect()
    }
}

pub fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads }).unwrap()
}

/// A backend for each set of instructions that this processor has.
pub fn all_sets(threads: usize) -> Vec<Cpu> {
    let sets = [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable];
    sets.into_iter().filter_map(|set| Cpu::with_instruction_set(CpuOptions { threads }, set).ok()).collect()
}

pub fn host_batch(lens: &[usize], vocabulary: usize, random: &mut Random) -> HostBatch {
    let n: usize = lens.iter().sum();
    let mut host = HostBatch { cu_seqlens: vec![0], ..HostBatch::default() };
    host.ids = (0..n).map(|_| random.below(vocabulary) as u32).collect();
    host.targets = (0..n).map(|_| random.below(vocabulary) as u32).collect();
    for (i, &len) in lens.iter().enumerate() {
        host.positions.extend(0..len as u32);
        // Some positions do not count, others count differently.
        host.weights.extend((0..len).map(|p| if p + 1 == len || p % 5 == 2 { 0.0 } else { 0.25 + (p % 3) as f32 * 0.5 }));
        host.cu_seqlens.push(host.positions.len() as u32);
        host.samples.push(1000 + 77 * i as u64);
        host.slots.push(i as u32);
    }
    host
}

pub fn batch(cpu: &Cpu, host: &HostBatch) -> Batch {
    cpu.batch(host).unwrap()
}

pub fn tensor(cpu: &Cpu, values: &[f32], cols: usize) -> Tensor {
    // Larger than needed, and full of garbage.
    let rows = values.len() / cols;
    let mut t = cpu.tensor(rows + 3, cols).unwrap();
    cpu.write_tensor(&vec![f32::NAN; (rows + 3) * cols], &mut t).unwrap();
    cpu.write_tensor(values, &mut t).unwrap();
    t
}

pub fn garbage(cpu: &Cpu, n: usize, cols: usize) -> Tensor {
    tensor(cpu, &vec![f32::NAN; n * cols], cols)
}

pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// |a - b| / |b|.
pub fn relative(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let d: f64 = a.iter().zip(b).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum();
    let n: f64 = b.iter().map(|y| y.powi(2)).sum();
    d.sqrt() / n.sqrt().max(1e-30)
}

#[track_caller]
pub fn close(what: &str, a: &[f32], b: &[f64], tolerance: f64) {
    let r = relative(a, b);
    assert!(r < tolerance, "{what}: relative difference {r:.2e}, allowed {tolerance:.0e}");
}

#[track_caller]
pub fn same_bits(what: &str, a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!(x.to_bits() == y.to_bits(), "{what}: element {i} is {x:e} and {y:e}");
    }
}

/// Compares a gradient with central differences of `f` in f64: along random directions, which meet every element, and at single elements.
#[track_caller]
pub fn check_gradient(what: &str, at: &[f64], gradient: &[f32], random: &mut Random, f: &dyn Fn(&[f64]) -> f64) {
    assert_eq!(at.len(), gradient.len(), "{what}");
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 0.0 && norm.is_finite(), "{what}: the gradient's norm is {norm}");
    let difference = |direction: &[f64], h: f64| {
        let moved = |h: f64| f(&at.iter().zip(direction).map(|(x, d)| x + h * d).collect::<Vec<_>>());
        // Fourth order.
        (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h)
    };
    for k in 0..6 {
        let mut direction = wide(&random.values(at.len()));
        // Half of the directions lean on the gradient itself, so that the derivative is not small by chance.
        if k % 2 == 0 {
            direction.iter_mut().zip(gradient).for_each(|(d, g)| *d = *d * 0.1 + f64::from(*g).signum());
        }
        let size = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
        direction.iter_mut().for_each(|d| *d /= size);
        let want = difference(&direction, 1e-3);
        let got: f64 = direction.iter().zip(gradient).map(|(d, g)| d * f64::from(*g)).sum();
        assert!((got - want).abs() < 2e-6 * norm, "{what}: derivative along direction {k} is {got}, by differences {want} (norm {norm})");
    }
    for _ in 0..12 {
        let i = random.below(at.len());
        let mut direction = vec![0.0; at.len()];
        direction[i] = 1.0;
        let want = difference(&direction, 1e-3);
        let got = f64::from(gradient[i]);
        assert!((got - want).abs() < 1e-6 * norm.max(1e-3), "{what}: derivative {i} is {got}, by differences {want} (norm {norm})");
    }
}

/// Σ a b.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

// --- the operations in f64, written from their definitions -----------------------------------------------------------------------------

pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let w = weight.len();
    x.chunks(w)
        .flat_map(|row| {
            let r = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / w as f64 + eps).sqrt();
            row.iter().zip(weight).map(move |(v, w)| v * r * w).collect::<Vec<_>>()
        })
        .collect()
}

/// One projection with its adapter, in f64.
pub struct Linear64 {
    pub w: Vec<f64>,
    pub bias: Option<Vec<f64>>,
    pub a: Vec<f64>,
    pub b: Vec<f64>,
    pub rank: usize,
    pub scale: f64,
    pub out: usize,
}

/// `masked(i)` is the input that member `i`'s adapter sees.
pub fn linear(x: &[f64], inner: usize, members: &[Linear64], masked: &dyn Fn(usize, &[f64]) -> Vec<f64>) -> Vec<f64> {
    let rows = x.len() / inner;
    let total: usize = members.iter().map(|m| m.out).sum();
    let mut y = vec![0.0; rows * total];
    let mut column = 0;
    for (i, m) in members.iter().enumerate() {
        let dropped = masked(i, x);
        for r in 0..rows {
            let (x, d) = (&x[r * inner..(r + 1) * inner], &dropped[r * inner..(r + 1) * inner]);
            let mid: Vec<f64> = (0..m.rank).map(|k| dot(d, &m.a[k * inner..(k + 1) * inner])).collect();
            for o in 0..m.out {
                let mut v = dot(x, &m.w[o * inner..(o + 1) * inner]) + m.scale * dot(&mid, &m.b[o * m.rank..(o + 1) * m.rank]);
                v += m.bias.as_ref().map_or(0.0, |b| b[o]);
                y[r * total + column + o] = v;
            }
        }
        column += m.out;
    }
    y
}

pub fn qk_norm_rope(qkv: &[f64], positions: &[u32], shape: AttentionShape, qw: &[f64], kw: &[f64], eps: f64, theta: f64) -> Vec<f64> {
    let (dim, half) = (shape.head_dim, shape.head_dim / 2);
    let mut out = Vec::new();
    for (row, &position) in qkv.chunks(shape.qkv_width()).zip(positions) {
        for h in 0..shape.heads + shape.kv_heads {
            let x = rms_norm(&row[h * dim..(h + 1) * dim], if h < shape.heads { qw } else { kw }, eps);
            let angle = |i: usize| f64::from(position) * theta.powf(-2.0 * i as f64 / dim as f64);
            out.extend((0..half).map(|i| x[i] * angle(i).cos() - x[i + half] * angle(i).sin()));
            out.extend((0..half).map(|i| x[i + half] * angle(i).cos() + x[i] * angle(i).sin()));
        }
    }
    out
}

/// Attention from `qk` and separate `v [n, kv_width]`.
pub fn attention(qk: &[f64], v: &[f64], cu: &[u32], shape: AttentionShape) -> Vec<f64> {
    let (dim, qkw, kvw, qw) = (shape.head_dim, shape.qk_width(), shape.kv_width(), shape.q_width());
    let mut out = vec![0.0; v.len() / kvw * qw];
    for span in cu.windows(2) {
        let (start, end) = (span[0] as usize, span[1] as usize);
        for i in start..end {
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads);
                let q = &qk[i * qkw + h * dim..][..dim];
                let scores: Vec<f64> = (start..=i).map(|j| dot(q, &qk[j * qkw + qw + kv * dim..][..dim]) / (dim as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let e: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                let total: f64 = e.iter().sum();
                for (j, e) in (start..=i).zip(&e) {
                    for d in 0..dim {
                        out[i * qw + h * dim + d] += e / total * v[j * kvw + kv * dim + d];
                    }
                }
            }
        }
    }
    out
}

pub fn swiglu(gate_up: &[f64], width: usize) -> Vec<f64> {
    gate_up.chunks(2 * width).flat_map(|r| (0..width).map(|i| r[i] / (1.0 + (-r[i]).exp()) * r[width + i]).collect::<Vec<_>>()).collect()
}

/// Σ weight * loss per sequence.
pub fn cross_entropy(hidden: &[f64], head: &[f64], cols: usize, host: &HostBatch) -> Vec<f64> {
    let loss = |row: usize| {
        let logits: Vec<f64> = head.chunks(cols).map(|w| dot(&hidden[row * cols..(row + 1) * cols], w)).collect();
        let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln() - logits[host.targets[row] as usize]
    };
    let rows = |s: &[u32]| s[0] as usize..s[1] as usize;
    let weighted = |r: usize| if host.weights[r] == 0.0 { 0.0 } else { f64::from(host.weights[r]) * loss(r) };
    host.cu_seqlens.windows(2).map(|s| rows(s).map(weighted).sum()).collect()
}

/// Columns `from..from + count` of a matrix.
pub fn columns<T: Copy>(x: &[T], width: usize, from: usize, count: usize) -> Vec<T> {
    x.chunks(width).flat_map(|r| r[from..from + count].to_vec()).collect()
}
