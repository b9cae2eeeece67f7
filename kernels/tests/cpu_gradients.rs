//! Every operation of the CPU backend, forward and backward, against its definition in f64: values directly, gradients by central differences.

mod cpu_support;

use cpu_support::*;
use trainer_kernels::cpu::{Cpu, Param};
use trainer_kernels::ops::{AttentionShape, Dropout, HostLinear, HostMatrix, LoraGrads, LoraMember, Ops, WeightPlan};

const SHAPES: [AttentionShape; 6] = [
    AttentionShape { heads: 1, kv_heads: 1, head_dim: 2 },
    AttentionShape { heads: 3, kv_heads: 1, head_dim: 6 },
    AttentionShape { heads: 4, kv_heads: 2, head_dim: 16 },
    AttentionShape { heads: 4, kv_heads: 1, head_dim: 34 },
    AttentionShape { heads: 3, kv_heads: 3, head_dim: 64 },
    AttentionShape { heads: 2, kv_heads: 1, head_dim: 128 },
];

#[test]
fn embed_copies_rows() {
    let mut random = Random::new(1);
    for (vocabulary, cols) in [(5, 1), (1664, 33), (70, 192)] {
        let cpu = cpu(2);
        let weights = random.values(vocabulary * cols);
        let half: Vec<half::bf16> = weights.iter().map(|w| half::bf16::from_f32(*w)).collect();
        let host = host_batch(&[3, 1, 40], vocabulary, &mut random);
        for (matrix, values) in
            [(HostMatrix::F32(&weights), weights.clone()), (HostMatrix::Bf16(&half), half.iter().map(|w| w.to_f32()).collect())]
        {
            let table = cpu.table(matrix, vocabulary, cols).unwrap();
            let mut out = garbage(&cpu, 44, cols);
            cpu.embed(&batch(&cpu, &host), &table, &mut out).unwrap();
            let want: Vec<f32> = host.ids.iter().flat_map(|&id| values[id as usize * cols..][..cols].to_vec()).collect();
            same_bits("embed", &cpu.read_tensor(44, &out).unwrap(), &want);
        }
    }
}

#[test]
fn rms_norm_and_its_gradient() {
    for cpu in all_sets(2) {
        for (n, width, eps) in [(1, 1, 1e-3), (37, 33, 1e-6), (70, 192, 1e-5), (3, 1000, 1e-6)] {
            let mut random = Random::new(width as u64);
            let (x, delta, dy, before) =
                (random.values(n * width), random.values(n * width), random.values(n * width), random.values(n * width));
            let w = random.around(width, 1.0, 0.5);
            let weight = cpu.vector(&w).unwrap();
            let (mut out, mut rstd) = (garbage(&cpu, n, width), garbage(&cpu, n, 1));
            let xt = tensor(&cpu, &x, width);
            cpu.rms_norm(n, &xt, &weight, eps, &mut out, &mut rstd).unwrap();
            let eps64 = f64::from(eps);
            close("rms_norm", &cpu.read_tensor(n, &out).unwrap(), &rms_norm(&wide(&x), &wide(&w), eps64), 3e-7);

            let mut sum = tensor(&cpu, &x, width);
            let (mut out2, mut rstd2) = (garbage(&cpu, n, width), garbage(&cpu, n, 1));
            cpu.add_rms_norm(n, &mut sum, &tensor(&cpu, &delta, width), &weight, eps, &mut out2, &mut rstd2).unwrap();
            let plain: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| a + b).collect();
            same_bits("add_rms_norm: the sum", &cpu.read_tensor(n, &sum).unwrap(), &plain);
            close("add_rms_norm", &cpu.read_tensor(n, &out2).unwrap(), &rms_norm(&wide(&plain), &wide(&w), eps64), 3e-7);
            let mut sum = tensor(&cpu, &x, width);
            cpu.add(n, &mut sum, &tensor(&cpu, &delta, width)).unwrap();
            same_bits("add", &cpu.read_tensor(n, &sum).unwrap(), &plain);

            let mut dx = tensor(&cpu, &before, width);
            cpu.rms_norm_backward(n, &tensor(&cpu, &dy, width), &xt, &weight, &rstd, &mut dx).unwrap();
            let dx: Vec<f32> = cpu.read_tensor(n, &dx).unwrap().iter().zip(&before).map(|(a, b)| a - b).collect();
            if width > 1 {
                let f = |x: &[f64]| dot(&rms_norm(x, &wide(&w), eps64), &wide(&dy));
                check_gradient("rms_norm_backward", &wide(&x), &dx, &mut random, &f);
            }
        }
    }
}

/// The adapter input's masks of a group, found by the forward itself: with A the identity and B zero, `mid` is the dropped input.
fn masks(cpu: &Cpu, host: &trainer_kernels::ops::HostBatch, inner: usize, members: usize, dropout: Dropout) -> Vec<Vec<f64>> {
    let n = host.ids.len();
    let zero = vec![0.0; inner];
    let linear = HostLinear { weight: HostMatrix::F32(&zero), out_features: 1, in_features: inner, bias: None };
    let group = cpu.group(&vec![linear; members], WeightPlan::Unpacked, 0).unwrap();
    let mut identity = vec![0.0; inner * inner];
    (0..inner).for_each(|i| identity[i * inner + i] = 1.0);
    let (a, b) = (cpu.param(&identity).unwrap(), cpu.param(&zero).unwrap());
    let lora: Vec<_> = (0..members).map(|_| Some(LoraMember { a: &a, b: &b, rank: inner, scale: 1.0, bias: None })).collect();
    let (mut out, mut mid) = (garbage(cpu, n, members), garbage(cpu, n, members * inner));
    let ones = tensor(cpu, &vec![1.0; n * inner], inner);
    cpu.linear(&batch(cpu, host), n, &ones, &group, &lora, Some(dropout), &mut out, &mut mid).unwrap();
    let mid = wide(&cpu.read_tensor(n, &mid).unwrap());
    (0..members).map(|i| columns(&mid, members * inner, i * inner, inner)).collect()
}

#[test]
fn linear_with_adapters_and_its_gradients() {
    /// Inner size, (outputs, rank or 0 for none) of the members, frozen bias, trained bias, dropout.
    type Case<'a> = (usize, &'a [(usize, usize)], bool, bool, f32);
    let cases: [Case<'_>; 7] = [
        (1, &[(1, 1)], false, false, 0.0),
        (33, &[(20, 4), (7, 1), (5, 3)], false, false, 0.0),
        (48, &[(64, 8), (16, 0), (32, 5)], true, false, 0.0),
        (192, &[(192, 32), (64, 32), (64, 32)], false, false, 0.0),
        (40, &[(100, 64), (31, 16)], true, true, 0.0),
        (24, &[(18, 4), (9, 6)], false, true, 0.3),
        (64, &[(32, 16)], true, false, 0.5),
    ];
    for cpu in all_sets(3) {
        for (case, &(inner, members, frozen_bias, trained_bias, p)) in cases.iter().enumerate() {
            let mut random = Random::new(case as u64 + 10);
            let host = host_batch(&[29, 1, 41], 10, &mut random);
            let n = host.ids.len();
            let b = batch(&cpu, &host);
            let total: usize = members.iter().map(|m| m.0).sum();
            let ranks: usize = members.iter().map(|m| m.1).sum();
            let (x, dy) = (random.values(n * inner), random.values(n * total));
            let scale = 0.75f32;
            let weights: Vec<Vec<f32>> = members.iter().map(|m| random.values(m.0 * inner)).collect();
            let biases: Vec<Vec<f32>> = members.iter().map(|m| random.values(m.0)).collect();
            let trained: Vec<Vec<f32>> = members.iter().map(|m| random.values(m.0)).collect();
            let a: Vec<Vec<f32>> = members.iter().map(|m| random.values(m.1 * inner)).collect();
            let bb: Vec<Vec<f32>> = members.iter().map(|m| random.values(m.1 * m.0)).collect();
            let linears: Vec<_> = members
                .iter()
                .enumerate()
                .map(|(i, m)| HostLinear {
                    weight: HostMatrix::F32(&weights[i]),
                    out_features: m.0,
                    in_features: inner,
                    bias: frozen_bias.then_some(&biases[i][..]),
                })
                .collect();
            let drawn = Dropout { p, seed: 3407, step: 7, module: 5 };
            let dropout = Some(drawn);
            let kept = if p > 0.0 { masks(&cpu, &host, inner, members.len(), drawn) } else { vec![vec![1.0; n * inner]; members.len()] };

            let params = |values: &[Vec<f32>]| -> Vec<Param> { values.iter().map(|v| cpu.param(v).unwrap()).collect() };
            let (ap, bp, tp) = (params(&a), params(&bb), params(&trained));
            let lora: Vec<_> = (0..members.len())
                .map(|i| {
                    (members[i].1 > 0).then(|| LoraMember {
                        a: &ap[i],
                        b: &bp[i],
                        rank: members[i].1,
                        scale,
                        bias: trained_bias.then_some(&tp[i]),
                    })
                })
                .collect();
            let model = |x: &[f64], a: &[Vec<f64>], bb: &[Vec<f64>], trained: &[Vec<f64>]| {
                let members: Vec<Linear64> = (0..members.len())
                    .map(|i| {
                        let bias =
                            if trained_bias && members[i].1 > 0 { Some(trained[i].clone()) } else { frozen_bias.then(|| wide(&biases[i])) };
                        Linear64 {
                            w: wide(&weights[i]),
                            bias,
                            a: a[i].clone(),
                            b: bb[i].clone(),
                            rank: members[i].1,
                            scale: f64::from(scale),
                            out: members[i].0,
                        }
                    })
                    .collect();
                linear(x, inner, &members, &|i, x| x.iter().zip(&kept[i]).map(|(x, m)| x * m).collect())
            };
            let many = |v: &[Vec<f32>]| v.iter().map(|v| wide(v)).collect::<Vec<_>>();
            let (x64, a64, b64, t64) = (wide(&x), many(&a), many(&bb), many(&trained));
            let dy64 = wide(&dy);
            let mut results: Vec<Vec<Vec<f32>>> = Vec::new();
            for plan in [WeightPlan::Unpacked, WeightPlan::Packed] {
                let group = cpu.group(&linears, plan, 0).unwrap();
                let (xt, dyt) = (tensor(&cpu, &x, inner), tensor(&cpu, &dy, total));
                let (mut out, mut mid, mut dmid) =
                    (garbage(&cpu, n, total), garbage(&cpu, n, ranks.max(1)), garbage(&cpu, n, ranks.max(1)));
                cpu.linear(&b, n, &xt, &group, &lora, dropout, &mut out, &mut mid).unwrap();
                let y = cpu.read_tensor(n, &out).unwrap();
                close("linear", &y, &model(&x64, &a64, &b64, &t64), 1e-6);
                // Gradients are added to what is there.
                let start = 0.5f32;
                let grads_of = |v: &[Vec<f32>]| -> Vec<Param> { v.iter().map(|v| cpu.param(&vec![start; v.len()]).unwrap()).collect() };
                let (mut da, mut db, mut dt) = (grads_of(&a), grads_of(&bb), grads_of(&trained));
                let mut grads: Vec<_> = da
                    .iter_mut()
                    .zip(&mut db)
                    .zip(&mut dt)
                    .zip(members)
                    .map(|(((a, b), t), m)| (m.1 > 0).then_some(LoraGrads { a_acc: a, b_acc: b, bias_acc: trained_bias.then_some(t) }))
                    .collect();
                let mut dx = garbage(&cpu, n, inner);
                cpu.linear_backward(&b, n, &dyt, &xt, &mid, &group, &lora, dropout, &mut grads, &mut dmid, Some(&mut dx)).unwrap();
                drop(grads);
                let read = |p: &Param| cpu.read_param(p).unwrap().into_iter().map(|v| v - start).collect::<Vec<f32>>();
                let mut all = vec![y, cpu.read_tensor(n, &dx).unwrap()];
                all.extend(da.iter().chain(&db).chain(&dt).map(read));
                results.push(all);
            }
            for (i, (unpacked, packed)) in results[0].iter().zip(&results[1]).enumerate() {
                same_bits(&format!("case {case}, result {i}: packed and unpacked weights"), packed, unpacked);
            }
            let all = &results[0];
            check_gradient("linear: dx", &x64, &all[1], &mut random, &|x| dot(&model(x, &a64, &b64, &t64), &dy64));
            for i in 0..members.len() {
                let k = members.len();
                if members[i].1 == 0 {
                    assert!(all[2 + i].is_empty() && all[2 + 2 * k + i].iter().all(|g| *g == 0.0));
                    continue;
                }
                let replaced = |list: &[Vec<f64>], v: &[f64]| {
                    list.iter().enumerate().map(|(j, l)| if i == j { v.to_vec() } else { l.clone() }).collect::<Vec<_>>()
                };
                check_gradient("linear: dA", &a64[i], &all[2 + i], &mut random, &|v| {
                    dot(&model(&x64, &replaced(&a64, v), &b64, &t64), &dy64)
                });
                check_gradient("linear: dB", &b64[i], &all[2 + k + i], &mut random, &|v| {
                    dot(&model(&x64, &a64, &replaced(&b64, v), &t64), &dy64)
                });
                if trained_bias {
                    check_gradient("linear: dbias", &t64[i], &all[2 + 2 * k + i], &mut random, &|v| {
                        dot(&model(&x64, &a64, &b64, &replaced(&t64, v)), &dy64)
                    });
                }
            }
        }
    }
}

#[test]
fn qk_norm_rope_and_its_gradient() {
    for cpu in all_sets(2) {
        for shape in SHAPES {
            let mut random = Random::new(shape.head_dim as u64);
            let mut host = host_batch(&[35, 1, 2], 10, &mut random);
            host.positions[35] = 4000;
            let n = host.ids.len();
            let b = batch(&cpu, &host);
            let (theta, eps) = (1e4, 1e-6);
            let (qkv, dqk) = (random.values(n * shape.qkv_width()), random.values(n * shape.qk_width()));
            let (qw, kw) = (random.around(shape.head_dim, 1.0, 0.5), random.around(shape.head_dim, 1.0, 0.5));
            let (qv, kv) = (cpu.vector(&qw).unwrap(), cpu.vector(&kw).unwrap());
            let qkvt = tensor(&cpu, &qkv, shape.qkv_width());
            let (mut qk, mut rstd) = (garbage(&cpu, n, shape.qk_width()), garbage(&cpu, n, shape.heads + shape.kv_heads));
            cpu.qk_norm_rope(&b, n, shape, &qkvt, &qv, &kv, eps, theta, &mut qk, &mut rstd).unwrap();
            let f = |x: &[f64]| qk_norm_rope(x, &host.positions, shape, &wide(&qw), &wide(&kw), f64::from(eps), theta);
            close("qk_norm_rope", &cpu.read_tensor(n, &qk).unwrap(), &f(&wide(&qkv)), 5e-7);
            let mut dqkv = tensor(&cpu, &vec![0.0; n * shape.qkv_width()], shape.qkv_width());
            cpu.qk_norm_rope_backward(&b, n, shape, &tensor(&cpu, &dqk, shape.qk_width()), &qkvt, &qv, &kv, &rstd, theta, &mut dqkv)
                .unwrap();
            let dqkv = cpu.read_tensor(n, &dqkv).unwrap();
            check_gradient("qk_norm_rope", &wide(&qkv), &dqkv, &mut random, &|x| dot(&f(x), &wide(&dqk)));
        }
    }
}

#[test]
fn attention_and_its_gradient() {
    for cpu in all_sets(2) {
        for shape in SHAPES {
            let mut random = Random::new(shape.head_dim as u64 + 50);
            let host = host_batch(&[37, 1, 64, 70], 10, &mut random);
            let n = host.ids.len();
            let b = batch(&cpu, &host);
            let qk = random.values(n * shape.qk_width());
            let (qkv, dout) = (random.values(n * shape.qkv_width()), random.values(n * shape.q_width()));
            let v = columns(&qkv, shape.qkv_width(), shape.qk_width(), shape.kv_width());
            let (qkt, qkvt) = (tensor(&cpu, &qk, shape.qk_width()), tensor(&cpu, &qkv, shape.qkv_width()));
            let (mut out, mut lse) = (garbage(&cpu, n, shape.q_width()), garbage(&cpu, n, shape.heads));
            cpu.attention(&b, n, shape, &qkt, &qkvt, &mut out, &mut lse).unwrap();
            let (qk64, v64, dout64) = (wide(&qk), wide(&v), wide(&dout));
            close("attention", &cpu.read_tensor(n, &out).unwrap(), &attention(&qk64, &v64, &host.cu_seqlens, shape), 1e-6);
            let mut dqk = garbage(&cpu, n, shape.qk_width());
            let marked = vec![0.125; n * shape.qkv_width()];
            let mut dqkv = tensor(&cpu, &marked, shape.qkv_width());
            cpu.attention_backward(&b, n, shape, &tensor(&cpu, &dout, shape.q_width()), &out, &qkt, &qkvt, &lse, &mut dqk, &mut dqkv)
                .unwrap();
            let dqk = cpu.read_tensor(n, &dqk).unwrap();
            let dqkv = cpu.read_tensor(n, &dqkv).unwrap();
            assert!(
                columns(&dqkv, shape.qkv_width(), 0, shape.qk_width()).iter().all(|v| *v == 0.125),
                "the q and k columns belong to others"
            );
            let dv = columns(&dqkv, shape.qkv_width(), shape.qk_width(), shape.kv_width());
            check_gradient("attention: dqk", &qk64, &dqk, &mut random, &|x| dot(&attention(x, &v64, &host.cu_seqlens, shape), &dout64));
            check_gradient("attention: dv", &v64, &dv, &mut random, &|x| dot(&attention(&qk64, x, &host.cu_seqlens, shape), &dout64));
        }
    }
}

#[test]
fn swiglu_and_its_gradient() {
    for cpu in all_sets(2) {
        for (n, width) in [(1, 1), (37, 33), (70, 512)] {
            let mut random = Random::new(width as u64);
            let x = random.around(n * 2 * width, 0.0, 6.0);
            let dout = random.values(n * width);
            let (mut xt, mut out) = (tensor(&cpu, &x, 2 * width), garbage(&cpu, n, width));
            cpu.swiglu(n, width, &xt, &mut out).unwrap();
            close("swiglu", &cpu.read_tensor(n, &out).unwrap(), &swiglu(&wide(&x), width), 3e-7);
            cpu.swiglu_backward(n, width, &tensor(&cpu, &dout, width), &mut xt).unwrap();
            let dx = cpu.read_tensor(n, &xt).unwrap();
            check_gradient("swiglu", &wide(&x), &dx, &mut random, &|x| dot(&swiglu(x, width), &wide(&dout)));
        }
    }
}

#[test]
fn cross_entropy_and_its_gradient() {
    for cpu in all_sets(2) {
        for (lens, vocabulary, cols) in [(&[1, 2][..], 2, 1), (&[60, 1, 81], 1664, 24), (&[40, 133], 77, 48)] {
            let mut random = Random::new(vocabulary as u64);
            let host = host_batch(lens, vocabulary, &mut random);
            let n = host.ids.len();
            let b = batch(&cpu, &host);
            let (hidden, head) = (random.around(n * cols, 0.0, 2.0), random.values(vocabulary * cols));
            let table = cpu.table(HostMatrix::F32(&head), vocabulary, cols).unwrap();
            let ht = tensor(&cpu, &hidden, cols);
            let (h64, w64) = (wide(&hidden), wide(&head));
            let want = cross_entropy(&h64, &w64, cols, &host);
            let alone = cpu.cross_entropy(&b, n, &ht, &table, 1.0, None).unwrap();
            let mut dh = garbage(&cpu, n, cols);
            let scale = 0.03125f32;
            let with = cpu.cross_entropy(&b, n, &ht, &table, scale, Some(&mut dh)).unwrap();
            assert_eq!(alone, with, "the loss does not depend on whether gradients are wanted");
            for (got, want) in with.iter().zip(&want) {
                assert!((got - want).abs() < 1e-6 * want.abs().max(1.0), "{got} {want}");
            }
            let dh = cpu.read_tensor(n, &dh).unwrap();
            for (row, weight) in host.weights.iter().enumerate() {
                assert!(*weight != 0.0 || dh[row * cols..(row + 1) * cols].iter().all(|g| *g == 0.0));
            }
            let f = |x: &[f64]| f64::from(scale) * cross_entropy(x, &w64, cols, &host).iter().sum::<f64>();
            check_gradient("cross_entropy", &h64, &dh, &mut random, &f);

            let logits = cpu.logits(n, &ht, &table).unwrap();
            let want: Vec<f64> = h64.chunks(cols).flat_map(|h| w64.chunks(cols).map(|w| dot(h, w)).collect::<Vec<_>>()).collect();
            close("logits", &logits, &want, 5e-7);
        }
    }
}
