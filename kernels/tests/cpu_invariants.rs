//! What must not change a bit: threads, instructions with a fused multiply-add, packing, the cache. And what must be refused.

mod cpu_support;

use cpu_support::*;
use trainer_kernels::adamw::AdamWConfig;
use trainer_kernels::cpu::{Cpu, CpuOptions, InstructionSet, Param};
use trainer_kernels::nf4::{DoubleQuant, Nf4};
use trainer_kernels::ops::{AttentionShape, Dropout, HostBatch, HostLinear, HostMatrix, LoraGrads, LoraMember, Ops, OpsError, WeightPlan};
use trainer_kernels::rng::{Purpose, philox4x32_10, split, stream_key};

const SHAPE: AttentionShape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 20 };
const HIDDEN: usize = 52;
const INTER: usize = 71;
const VOCABULARY: usize = 1664;

/// One decoder layer, forward and backward, with everything it computes, by name.
struct Layer {
    weights: Vec<Vec<f32>>,
    nf4: Option<Vec<Nf4>>,
    adapters: Vec<(Vec<f32>, Vec<f32>, usize)>,
    norm: Vec<f32>,
    head_norm: Vec<f32>,
    head: Vec<f32>,
    plan: WeightPlan,
    p: f32,
}

/// Projections as (group, out, in).
fn projections() -> Vec<(usize, usize, usize)> {
    let (q, kv) = (SHAPE.q_width(), SHAPE.kv_width());
    vec![(0, q, HIDDEN), (0, kv, HIDDEN), (0, kv, HIDDEN), (1, HIDDEN, q), (2, INTER, HIDDEN), (2, INTER, HIDDEN), (3, HIDDEN, INTER)]
}

impl Layer {
    fn new(plan: WeightPlan, quantized: bool, p: f32) -> Self {
        let mut random = Random::new(77);
        let weights: Vec<Vec<f32>> = projections().iter().map(|(_, o, i)| random.around(o * i, 0.0, 0.2)).collect();
        let quantize = |(w, (_, o, i)): (&Vec<f32>, (usize, usize, usize))| Nf4::quantize(w, &[o, i], 64, DoubleQuant::default()).unwrap();
        let nf4 = quantized.then(|| weights.iter().zip(projections()).map(quantize).collect());
        let adapters = projections()
            .iter()
            .enumerate()
            .map(|(k, (_, o, i))| (random.values((k + 3) * i), random.around(o * (k + 3), 0.0, 0.3), k + 3))
            .collect();
        let (norm, head_norm) = (random.around(HIDDEN, 1.0, 0.3), random.around(SHAPE.head_dim, 1.0, 0.3));
        let head = random.around(VOCABULARY * HIDDEN, 0.0, 0.3);
        Layer { weights, nf4, adapters, norm, head_norm, head, plan, p }
    }

    /// All results, each with its width, or 0 for what is not per row.
    fn run(&self, cpu: &Cpu, host: &HostBatch, x: &[f32]) -> Vec<(String, usize, Vec<f32>)> {
        let n = host.ids.len();
        let b = cpu.batch(host).unwrap();
        let (eps, theta) = (1e-6, 1e4);
        let list = projections();
        let linears: Vec<_> = list
            .iter()
            .enumerate()
            .map(|(k, &(_, out_features, in_features))| {
                let weight = self.nf4.as_ref().map_or(HostMatrix::F32(&self.weights[k]), |nf4| HostMatrix::Nf4(&nf4[k]));
                HostLinear { weight, out_features, in_features, bias: None }
            })
            .collect();
        let spans = [0..3, 3..4, 4..6, 6..7];
        let groups: Vec<_> = spans.iter().map(|s| cpu.group(&linears[s.clone()], self.plan, 0).unwrap()).collect();
        let params: Vec<(Param, Param)> = self.adapters.iter().map(|(a, b, _)| (cpu.param(a).unwrap(), cpu.param(b).unwrap())).collect();
        let lora = |g: usize| -> Vec<_> {
            spans[g]
                .clone()
                .map(|k| Some(LoraMember { a: &params[k].0, b: &params[k].1, rank: self.adapters[k].2, scale: 0.5, bias: None }))
                .collect()
        };
        let dropout = |g: usize| Some(Dropout { p: self.p, seed: 9, step: 3, module: spans[g].start as u32 });
        let ranks = |g: usize| spans[g].clone().map(|k| self.adapters[k].2).sum::<usize>();
        let t = |cols: usize| garbage(cpu, n, cols);
        let (norm, head_norm) = (cpu.vector(&self.norm).unwrap(), cpu.vector(&self.head_norm).unwrap());
        let table = cpu.table(HostMatrix::F32(&self.head), VOCABULARY, HIDDEN).unwrap();

        let mut x = tensor(cpu, x, HIDDEN);
        let (mut h1, mut r1, mut h2, mut r2, mut h3, mut r3) = (t(HIDDEN), t(1), t(HIDDEN), t(1), t(HIDDEN), t(1));
        let mut mids: Vec<_> = (0..4).map(|g| t(ranks(g))).collect();
        let mut dmids: Vec<_> = (0..4).map(|g| t(ranks(g))).collect();
        let (mut qkv, mut qk, mut qkr, mut att, mut lse) =
            (t(SHAPE.qkv_width()), t(SHAPE.qk_width()), t(SHAPE.heads + SHAPE.kv_heads), t(SHAPE.q_width()), t(SHAPE.heads));
        let (mut o, mut gu, mut act, mut down) = (t(HIDDEN), t(2 * INTER), t(INTER), t(HIDDEN));
        cpu.rms_norm(n, &x, &norm, eps, &mut h1, &mut r1).unwrap();
        cpu.linear(&b, n, &h1, &groups[0], &lora(0), dropout(0), &mut qkv, &mut mids[0]).unwrap();
        cpu.qk_norm_rope(&b, n, SHAPE, &qkv, &head_norm, &head_norm, eps, theta, &mut qk, &mut qkr).unwrap();
        cpu.attention(&b, n, SHAPE, &qk, &qkv, &mut att, &mut lse).unwrap();
        cpu.linear(&b, n, &att, &groups[1], &lora(1), dropout(1), &mut o, &mut mids[1]).unwrap();
        let x_in = cpu.read_tensor(n, &x).unwrap();
        cpu.add_rms_norm(n, &mut x, &o, &norm, eps, &mut h2, &mut r2).unwrap();
        let mut x_mid = t(HIDDEN);
        cpu.copy(n, &x, &mut x_mid).unwrap();
        cpu.linear(&b, n, &h2, &groups[2], &lora(2), dropout(2), &mut gu, &mut mids[2]).unwrap();
        cpu.swiglu(n, INTER, &gu, &mut act).unwrap();
        cpu.linear(&b, n, &act, &groups[3], &lora(3), dropout(3), &mut down, &mut mids[3]).unwrap();
        cpu.add_rms_norm(n, &mut x, &down, &norm, eps, &mut h3, &mut r3).unwrap();
        let mut dh = t(HIDDEN);
        let losses = cpu.cross_entropy(&b, n, &h3, &table, 0.01, Some(&mut dh)).unwrap();

        let mut grads: Vec<(Param, Param)> = self
            .adapters
            .iter()
            .map(|(a, b, _)| (cpu.param(&vec![0.0; a.len()]).unwrap(), cpu.param(&vec![0.0; b.len()]).unwrap()))
            .collect();
        let mut backward = |g: usize, dy: &_, x: &_, mid: &_, dmid: &mut _, dx: &mut _| {
            let mut slots: Vec<_> =
                grads[spans[g].clone()].iter_mut().map(|(a, b)| Some(LoraGrads { a_acc: a, b_acc: b, bias_acc: None })).collect();
            cpu.linear_backward(&b, n, dy, x, mid, &groups[g], &lora(g), dropout(g), &mut slots, dmid, Some(dx)).unwrap();
        };
        let mut dx = t(HIDDEN);
        cpu.zero(n, &mut dx).unwrap();
        cpu.rms_norm_backward(n, &dh, &x, &norm, &r3, &mut dx).unwrap();
        let (mut dact, mut dh2, mut datt, mut dqk, mut dqkv, mut dh1) =
            (t(INTER), t(HIDDEN), t(SHAPE.q_width()), t(SHAPE.qk_width()), t(SHAPE.qkv_width()), t(HIDDEN));
        backward(3, &dx, &act, &mids[3], &mut dmids[3], &mut dact);
        cpu.swiglu_backward(n, INTER, &dact, &mut gu).unwrap();
        backward(2, &gu, &h2, &mids[2], &mut dmids[2], &mut dh2);
        cpu.rms_norm_backward(n, &dh2, &x_mid, &norm, &r2, &mut dx).unwrap();
        backward(1, &dx, &att, &mids[1], &mut dmids[1], &mut datt);
        cpu.attention_backward(&b, n, SHAPE, &datt, &att, &qk, &qkv, &lse, &mut dqk, &mut dqkv).unwrap();
        cpu.qk_norm_rope_backward(&b, n, SHAPE, &dqk, &qkv, &head_norm, &head_norm, &qkr, theta, &mut dqkv).unwrap();
        backward(0, &dqkv, &h1, &mids[0], &mut dmids[0], &mut dh1);
        cpu.rms_norm_backward(n, &dh1, &tensor(cpu, &x_in, HIDDEN), &norm, &r1, &mut dx).unwrap();

        let named = [
            ("h1", &h1),
            ("qkv", &qkv),
            ("qk", &qk),
            ("attention", &att),
            ("lse", &lse),
            ("x", &x),
            ("gate_up", &gu),
            ("act", &act),
            ("h3", &h3),
            ("dh", &dh),
            ("dqkv", &dqkv),
            ("dx", &dx),
        ];
        let mut all: Vec<_> = named.iter().map(|(name, t)| (name.to_string(), t.col_count(), cpu.read_tensor(n, t).unwrap())).collect();
        for (k, (a, b)) in grads.iter().enumerate() {
            all.push((format!("dA {k}"), 0, cpu.read_param(a).unwrap()));
            all.push((format!("dB {k}"), 0, cpu.read_param(b).unwrap()));
        }
        all.push(("losses".into(), 0, losses.iter().flat_map(|l| [*l as f32, (*l - f64::from(*l as f32)) as f32]).collect()));
        let logits = cpu.logits(n, &h3, &table).unwrap();
        all.push(("logits".into(), VOCABULARY, logits));
        all
    }
}

fn inputs(lens: &[usize]) -> (HostBatch, Vec<f32>) {
    let mut random = Random::new(5);
    let host = host_batch(lens, VOCABULARY, &mut random);
    let x = random.values(host.ids.len() * HIDDEN);
    (host, x)
}

fn assert_same(what: &str, a: &[(String, usize, Vec<f32>)], b: &[(String, usize, Vec<f32>)]) {
    for ((name, _, a), (_, _, b)) in a.iter().zip(b) {
        assert!(a.iter().all(|v| v.is_finite()), "{what}: {name} is not finite");
        same_bits(&format!("{what}: {name}"), a, b);
    }
}

#[test]
fn threads_and_runs_change_no_bit() {
    let (host, x) = inputs(&[71, 1, 130, 33]);
    for (p, quantized) in [(0.0, false), (0.2, true)] {
        let layer = Layer::new(WeightPlan::Unpacked, quantized, p);
        let one = layer.run(&cpu(1), &host, &x);
        for threads in [2, 3, 5] {
            let many = cpu(threads);
            assert_same(&format!("{threads} threads"), &layer.run(&many, &host, &x), &one);
            assert_same(&format!("{threads} threads, again"), &layer.run(&many, &host, &x), &one);
        }
    }
}

#[test]
fn fused_instructions_change_no_bit_and_others_little() {
    let (host, x) = inputs(&[40, 9]);
    let layer = Layer::new(WeightPlan::Unpacked, false, 0.1);
    let all: Vec<_> = all_sets(2).iter().map(|cpu| (cpu.describe(), cpu.instructions(), layer.run(cpu, &host, &x))).collect();
    for (name, instructions, results) in &all[1..] {
        if *name == all[0].0 {
            assert_same(instructions, results, &all[0].2);
        } else {
            for ((what, _, a), (_, _, b)) in results.iter().zip(&all[0].2).filter(|((what, ..), _)| what != "losses") {
                close(&format!("{instructions}: {what}"), a, &wide(b), 1e-5);
            }
        }
    }
}

#[test]
fn packed_weights_change_no_bit() {
    let (host, x) = inputs(&[50, 17]);
    let cpu = cpu(2);
    for quantized in [false, true] {
        let kept = Layer::new(WeightPlan::Unpacked, quantized, 0.0).run(&cpu, &host, &x);
        let packed = Layer::new(WeightPlan::Packed, quantized, 0.0).run(&cpu, &host, &x);
        assert_same("packed weights", &packed, &kept);
    }
}

/// Each sequence of a packed batch gives the same bits as alone, forward and backward, dropout included.
#[test]
fn packing_changes_no_bit_of_a_row() {
    let lens = [71, 1, 64, 33];
    let (host, x) = inputs(&lens);
    let cpu = cpu(2);
    let layer = Layer::new(WeightPlan::Unpacked, false, 0.25);
    let together = layer.run(&cpu, &host, &x);
    let mut sums: Vec<Vec<f64>> = Vec::new();
    for s in 0..lens.len() {
        let rows = host.cu_seqlens[s] as usize..host.cu_seqlens[s + 1] as usize;
        let alone_host = HostBatch {
            ids: host.ids[rows.clone()].to_vec(),
            targets: host.targets[rows.clone()].to_vec(),
            weights: host.weights[rows.clone()].to_vec(),
            positions: host.positions[rows.clone()].to_vec(),
            cu_seqlens: vec![0, rows.len() as u32],
            samples: vec![host.samples[s]],
            slots: vec![0],
        };
        let alone = layer.run(&cpu, &alone_host, &x[rows.start * HIDDEN..rows.end * HIDDEN]);
        let mut flat = 0;
        for ((name, width, a), (_, _, t)) in alone.iter().zip(&together) {
            if *width > 0 {
                same_bits(&format!("sequence {s}: {name}"), a, &t[rows.start * width..rows.end * width]);
            } else if name == "losses" {
                same_bits("loss", a, &t[2 * s..2 * s + 2]);
            } else {
                if s == 0 {
                    sums.push(vec![0.0; a.len()]);
                }
                sums[flat].iter_mut().zip(a).for_each(|(s, a)| *s += f64::from(*a));
                flat += 1;
            }
        }
    }
    let grads = together.iter().filter(|(name, width, _)| *width == 0 && name != "losses");
    for ((name, _, t), sum) in grads.zip(&sums) {
        close(name, t, sum, 1e-6);
    }
}

#[test]
fn the_cache_changes_no_bit() {
    for shape in [SHAPE, AttentionShape { heads: 3, kv_heads: 1, head_dim: 64 }, AttentionShape { heads: 2, kv_heads: 2, head_dim: 2 }] {
        let cpu = cpu(2);
        let mut random = Random::new(3);
        let lens = [70, 33, 1];
        let host = host_batch(&lens, 10, &mut random);
        let n = host.ids.len();
        let (qk, qkv) = (random.values(n * shape.qk_width()), random.values(n * shape.qkv_width()));
        let (qkt, qkvt) = (tensor(&cpu, &qk, shape.qk_width()), tensor(&cpu, &qkv, shape.qkv_width()));
        let (mut out, mut lse) = (garbage(&cpu, n, shape.q_width()), garbage(&cpu, n, shape.heads));
        cpu.attention(&cpu.batch(&host).unwrap(), n, shape, &qkt, &qkvt, &mut out, &mut lse).unwrap();
        let want = cpu.read_tensor(n, &out).unwrap();
        // Prompts of different lengths at once, then one token of each unfinished sequence per step, in slots in another order.
        let slots = [4u32, 0, 2];
        let mut cache = cpu.cache(2, 5, 71, shape).unwrap();
        let mut done = [0usize; 3];
        let mut step = 0;
        while done != lens {
            let mut part = HostBatch { cu_seqlens: vec![0], ..HostBatch::default() };
            let mut rows = Vec::new();
            for s in 0..3 {
                let count =
                    if step == 0 { [40, 5, 1][s] } else { usize::from(step % 3 != s || lens[s] - done[s] > 30) }.min(lens[s] - done[s]);
                for p in done[s]..done[s] + count {
                    rows.push(host.cu_seqlens[s] as usize + p);
                    part.positions.push(p as u32);
                    part.ids.push(0);
                }
                if count > 0 {
                    part.cu_seqlens.push(rows.len() as u32);
                    part.slots.push(slots[s]);
                }
                done[s] += count;
            }
            step += 1;
            if rows.is_empty() {
                continue;
            }
            let b = cpu.batch(&part).unwrap();
            let take = |x: &[f32], w: usize| rows.iter().flat_map(|r| x[r * w..(r + 1) * w].to_vec()).collect::<Vec<_>>();
            let (q, kv) = (
                tensor(&cpu, &take(&qk, shape.qk_width()), shape.qk_width()),
                tensor(&cpu, &take(&qkv, shape.qkv_width()), shape.qkv_width()),
            );
            let mut got = garbage(&cpu, rows.len(), shape.q_width());
            cpu.cache_append(&b, rows.len(), 1, shape, &q, &kv, &mut cache).unwrap();
            cpu.attention_cached(&b, rows.len(), 1, shape, &q, &cache, &mut got).unwrap();
            same_bits("attention from the cache", &cpu.read_tensor(rows.len(), &got).unwrap(), &take(&want, shape.q_width()));
        }
    }
}

#[test]
fn logits_of_a_row_do_not_depend_on_the_others() {
    let cpu = cpu(2);
    let mut random = Random::new(8);
    let (hidden, head) = (random.values(101 * 48), random.values(1664 * 48));
    let table = cpu.table(HostMatrix::F32(&head), 1664, 48).unwrap();
    let all = cpu.logits(101, &tensor(&cpu, &hidden, 48), &table).unwrap();
    let mut picked = garbage(&cpu, 3, 48);
    cpu.gather(&[100, 0, 57], &tensor(&cpu, &hidden, 48), &mut picked).unwrap();
    let three = cpu.logits(3, &picked, &table).unwrap();
    for (i, row) in [100, 0, 57].into_iter().enumerate() {
        same_bits("logits", &three[i * 1664..(i + 1) * 1664], &all[row * 1664..(row + 1) * 1664]);
    }
}

/// The inputs of the adapters of a group of `members`, as `mid` shows them when A is the identity.
fn dropped(cpu: &Cpu, host: &HostBatch, width: usize, dropout: Dropout, x: &[f32], members: usize) -> Vec<Vec<f32>> {
    let n = host.ids.len();
    let zero = vec![0.0; width];
    let linear = HostLinear { weight: HostMatrix::F32(&zero), out_features: 1, in_features: width, bias: None };
    let group = cpu.group(&vec![linear; members], WeightPlan::Unpacked, 0).unwrap();
    let mut identity = vec![0.0; width * width];
    (0..width).for_each(|i| identity[i * width + i] = 1.0);
    let (a, b) = (cpu.param(&identity).unwrap(), cpu.param(&zero).unwrap());
    let (mut out, mut mid) = (garbage(cpu, n, members), garbage(cpu, n, members * width));
    let lora: Vec<_> = (0..members).map(|_| Some(LoraMember { a: &a, b: &b, rank: width, scale: 1.0, bias: None })).collect();
    cpu.linear(&cpu.batch(host).unwrap(), n, &tensor(cpu, x, width), &group, &lora, Some(dropout), &mut out, &mut mid).unwrap();
    let mid = cpu.read_tensor(n, &mid).unwrap();
    (0..members).map(|i| columns(&mid, members * width, i * width, width)).collect()
}

#[test]
fn dropout_masks_depend_on_what_they_should() {
    let cpu = cpu(2);
    let width = 96;
    let host = host_batch(&[60, 40], 10, &mut Random::new(1));
    let ones = vec![1.0; 100 * width];
    let base = Dropout { p: 0.25, seed: 3407, step: 2, module: 9 };
    let mask = |host: &HostBatch, d: Dropout| dropped(&cpu, host, width, d, &ones, 1).remove(0);
    let reference = mask(&host, base);
    let scale = 1.0f32 / 0.75;
    assert!(reference.iter().all(|v| *v == 0.0 || *v == scale));
    let share = |m: &[f32]| m.iter().filter(|v| **v == 0.0).count() as f64 / m.len() as f64;
    // Five standard deviations of a binomial of 9,600 draws.
    assert!((share(&reference) - 0.25).abs() < 5.0 * (0.25f64 * 0.75 / 9600.0).sqrt(), "{}", share(&reference));
    let differing = |m: &[f32]| m.iter().zip(&reference).filter(|(a, b)| a != b).count() as f64 / m.len() as f64;
    let mut other_sample = host.clone();
    other_sample.samples = host.samples.iter().map(|s| s + (1 << 40)).collect();
    let mut other_position = host.clone();
    other_position.positions.iter_mut().for_each(|p| *p += 1000);
    let others = [
        mask(&host, Dropout { seed: 3408, ..base }),
        mask(&host, Dropout { seed: 3407 | 1 << 50, ..base }),
        mask(&host, Dropout { step: 3, ..base }),
        mask(&host, Dropout { module: 10, ..base }),
        mask(&other_sample, base),
        mask(&other_position, base),
    ];
    for (i, other) in others.iter().enumerate() {
        // Independent masks differ at 2 p (1 - p) of the elements.
        assert!((differing(other) - 0.375).abs() < 5.0 * (0.375f64 * 0.625 / 9600.0).sqrt(), "variant {i}: {}", differing(other));
    }
    let mut other_tokens = host.clone();
    other_tokens.ids.iter_mut().for_each(|id| *id = 9 - *id);
    same_bits("a mask knows no tokens", &mask(&other_tokens, base), &reference);
    assert_eq!(share(&mask(&host, Dropout { p: 0.0, ..base })), 0.0);
    // Members of a group are modules of their own, numbered on.
    let three = dropped(&cpu, &host, width, base, &ones, 3);
    for (i, member) in three.iter().enumerate() {
        same_bits("a member's mask", member, &mask(&host, Dropout { module: base.module + i as u32, ..base }));
    }
    // The stream itself, which a resumed run of a later version must still draw.
    for (row, got) in reference.chunks(width).enumerate() {
        let [low, high] = split(host.samples[usize::from(row >= 60)]);
        let hash = philox4x32_10([low, high, base.step, base.module], stream_key(base.seed, Purpose::Dropout));
        for (feature, got) in got.iter().enumerate() {
            let random = philox4x32_10([feature as u32 / 4, host.positions[row], hash[2], hash[3]], [hash[0], hash[1]])[feature % 4];
            assert_eq!(*got == 0.0, random < 1 << 30, "row {row}, feature {feature}");
        }
    }
}

#[test]
fn optimizer_and_norms() {
    let cpu = cpu(3);
    let mut random = Random::new(4);
    let values: Vec<Vec<f32>> = [1, 100, 40_000, 70_001].iter().map(|n| random.values(*n)).collect();
    let params: Vec<Param> = values.iter().map(|v| cpu.param(v).unwrap()).collect();
    let want: f64 = values.iter().map(|v| wide(v).iter().map(|g| g * g).sum::<f64>()).sum();
    let got = cpu.grad_norm_sq(&params.iter().collect::<Vec<_>>()).unwrap();
    assert!((got - want).abs() < 1e-12 * want);
    let other_threads = cpu_support::cpu(1);
    let params1: Vec<Param> = values.iter().map(|v| other_threads.param(v).unwrap()).collect();
    assert_eq!(other_threads.grad_norm_sq(&params1.iter().collect::<Vec<_>>()).unwrap().to_bits(), got.to_bits());

    let config = AdamWConfig::default();
    let (mut p, g) = (cpu.param(&values[2]).unwrap(), cpu.param(&random.values(40_000)).unwrap());
    let mut state = cpu.state(40_000, &config).unwrap();
    cpu.adamw(&mut p, &g, &mut state, &config, 1e-3, 0.5, 1).unwrap();
    // Through a checkpoint and on: the same as going on directly.
    let mut restored = cpu.write_state(&cpu.read_state(&state).unwrap()).unwrap();
    let mut q = cpu.param(&cpu.read_param(&p).unwrap()).unwrap();
    cpu.adamw(&mut p, &g, &mut state, &config, 1e-3, 0.5, 2).unwrap();
    cpu.adamw(&mut q, &g, &mut restored, &config, 1e-3, 0.5, 2).unwrap();
    same_bits("a restored state", &cpu.read_param(&q).unwrap(), &cpu.read_param(&p).unwrap());
    assert!(cpu.read_param(&p).unwrap().iter().zip(&values[2]).all(|(a, b)| a != b && (a - b).abs() < 0.01));
    cpu.zero_param(&mut p).unwrap();
    assert!(cpu.read_param(&p).unwrap().iter().all(|v| *v == 0.0));
}

/// Long sequences: scores are never held as a whole, and results stay those of the definition.
#[test]
fn a_long_sequence() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 4 };
    let cpu = cpu(2);
    let mut random = Random::new(6);
    let host = host_batch(&[3000], 10, &mut random);
    let (qk, qkv) = (random.values(3000 * 8), random.values(3000 * 12));
    let (mut out, mut lse) = (garbage(&cpu, 3000, 4), garbage(&cpu, 3000, 1));
    cpu.attention(&cpu.batch(&host).unwrap(), 3000, shape, &tensor(&cpu, &qk, 8), &tensor(&cpu, &qkv, 12), &mut out, &mut lse).unwrap();
    let v = columns(&wide(&qkv), 12, 8, 4);
    close("attention", &cpu.read_tensor(3000, &out).unwrap(), &attention(&wide(&qk), &v, &host.cu_seqlens, shape), 2e-6);
}

fn refused<T>(what: &str, result: Result<T, OpsError>) {
    let Err(e) = result else { panic!("{what} was accepted") };
    let text = e.to_string();
    assert!(text.contains(what), "{what}: {text}");
}

#[test]
fn wrong_arguments_are_refused() {
    let cpu = cpu(2);
    let host = host_batch(&[5, 4], 10, &mut Random::new(2));
    let b = cpu.batch(&host).unwrap();
    let with = |f: &dyn Fn(&mut HostBatch)| {
        let mut h = host.clone();
        f(&mut h);
        cpu.batch(&h)
    };
    refused("positions", with(&|h| h.positions.truncate(3)));
    refused("targets", with(&|h| h.targets.truncate(3)));
    refused("weights", with(&|h| h.weights.clear()));
    refused("cu_seqlens", with(&|h| h.cu_seqlens.clear()));
    refused("the first row", with(&|h| h.cu_seqlens[0] = 1));
    refused("a sequence's first row", with(&|h| (h.cu_seqlens, h.samples, h.slots) = (vec![0, 7, 5, 9], vec![], vec![])));
    refused("a sequence's end", with(&|h| h.cu_seqlens[2] = 4_000_000_000));
    refused("the rows of all sequences", with(&|h| h.cu_seqlens[2] = 8));
    refused("samples", with(&|h| h.samples.truncate(1)));
    refused("slots", with(&|h| h.slots.push(0)));

    let table = cpu.table(HostMatrix::F32(&[0.5; 24]), 6, 4).unwrap();
    let mut out = cpu.tensor(9, 4).unwrap();
    refused("token id", cpu.embed(&b, &table, &mut out));
    let hidden = cpu.tensor(9, 4).unwrap();
    refused("target", cpu.cross_entropy(&b, 9, &hidden, &table, 1.0, None));
    refused("the batch", cpu.cross_entropy(&b, 8, &hidden, &table, 1.0, None));
    refused("hidden", cpu.logits(10, &hidden, &table));
    refused("row", cpu.gather(&[9], &hidden, &mut out));
    refused("f32 weight", cpu.table(HostMatrix::F32(&[0.5; 23]), 6, 4));
    refused("no memory", cpu.tensor(usize::MAX / 2, 3));
    refused("no memory", cpu.tensor(1 << 40, 1 << 19));

    let linear = |len: usize| {
        let w = vec![0.0; len];
        cpu.group(&[HostLinear { weight: HostMatrix::F32(&w), out_features: 3, in_features: 4, bias: None }], WeightPlan::Unpacked, 0)
    };
    refused("a frozen weight", linear(11));
    let group = linear(12).unwrap();
    let (a, bb) = (cpu.param(&[0.0; 8]).unwrap(), cpu.param(&[0.0; 5]).unwrap());
    let lora = [Some(LoraMember { a: &a, b: &bb, rank: 2, scale: 1.0, bias: None })];
    let (mut y, mut mid) = (cpu.tensor(9, 3).unwrap(), cpu.tensor(9, 2).unwrap());
    refused("lora B", cpu.linear(&b, 9, &hidden, &group, &lora, None, &mut y, &mut mid));
    let good = cpu.param(&[0.0; 6]).unwrap();
    let lora = [Some(LoraMember { a: &a, b: &good, rank: 2, scale: 1.0, bias: None })];
    let mut small = cpu.tensor(8, 2).unwrap();
    refused("mid", cpu.linear(&b, 9, &hidden, &group, &lora, None, &mut y, &mut small));
    let p = |p| Some(Dropout { p, seed: 1, step: 1, module: 0 });
    for bad in [1.0, -0.1, f32::NAN] {
        refused("probability", cpu.linear(&b, 9, &hidden, &group, &lora, p(bad), &mut y, &mut mid));
    }
    let no_samples = with(&|h| h.samples.clear()).unwrap();
    refused("sample numbers", cpu.linear(&no_samples, 9, &hidden, &group, &lora, p(0.5), &mut y, &mut mid));

    let weight = cpu.vector(&[1.0; 4]).unwrap();
    let mut stats = cpu.stats(8, 1).unwrap();
    refused("rstd", cpu.rms_norm(9, &hidden, &weight, 1e-6, &mut out, &mut stats));
    refused("norm's weight", cpu.rms_norm(9, &hidden, &cpu.vector(&[]).unwrap(), 1e-6, &mut out, &mut stats));

    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 2 };
    for bad in [
        AttentionShape { head_dim: 3, ..shape },
        AttentionShape { head_dim: 0, ..shape },
        AttentionShape { kv_heads: 0, ..shape },
        AttentionShape { heads: 3, kv_heads: 2, ..shape },
    ] {
        refused("head", cpu.cache(1, 1, 1, bad));
    }
    refused("no memory", cpu.cache(1, usize::MAX, 3, shape));
    let mut cache = cpu.cache(1, 2, 4, shape).unwrap();
    let (qk, qkv) = (cpu.tensor(9, 6).unwrap(), cpu.tensor(9, 8).unwrap());
    refused("position 4", cpu.cache_append(&b, 9, 0, shape, &qk, &qkv, &mut cache));
    let mut cache = cpu.cache(1, 1, 5, shape).unwrap();
    refused("cache slot 1", cpu.cache_append(&b, 9, 0, shape, &qk, &qkv, &mut cache));
    let mut cache = cpu.cache(1, 2, 5, shape).unwrap();
    refused("layer", cpu.cache_append(&b, 9, 1, shape, &qk, &qkv, &mut cache));
    let head_norm = cpu.vector(&[1.0; 2]).unwrap();
    let far = with(&|h| h.positions[3] = u32::MAX).unwrap();
    let (mut qk_out, mut qk_rstd) = (cpu.tensor(9, 6).unwrap(), cpu.stats(9, 3).unwrap());
    refused("position", cpu.qk_norm_rope(&far, 9, shape, &qkv, &head_norm, &head_norm, 1e-6, 1e4, &mut qk_out, &mut qk_rstd));
    refused("rotary", cpu.qk_norm_rope(&b, 9, shape, &qkv, &head_norm, &head_norm, 1e-6, f64::NAN, &mut qk_out, &mut qk_rstd));
    assert!(Cpu::with_instruction_set(CpuOptions { threads: 1 }, InstructionSet::Portable).is_ok());
}

#[test]
fn empty_batches_are_no_error() {
    let cpu = cpu(2);
    let host = HostBatch { cu_seqlens: vec![0], ..HostBatch::default() };
    let b = cpu.batch(&host).unwrap();
    let table = cpu.table(HostMatrix::F32(&[0.5; 24]), 6, 4).unwrap();
    let mut t = cpu.tensor(2, 4).unwrap();
    cpu.embed(&b, &table, &mut t).unwrap();
    let hidden = cpu.tensor(2, 4).unwrap();
    assert!(cpu.cross_entropy(&b, 0, &hidden, &table, 1.0, Some(&mut t)).unwrap().is_empty());
    assert!(cpu.logits(0, &hidden, &table).unwrap().is_empty());
}
