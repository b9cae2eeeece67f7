//! The CPU backend's gradients against candle's autograd in f64. Only candle's primitive operations are used: its `rms_norm`, `rope` and
//! `softmax_last_dim` silently stop gradients.

mod cpu_support;

use candle_core::{D, DType, Device, Tensor, Var};
use cpu_support::*;
use trainer_kernels::ops::{AttentionShape, HostLinear, HostMatrix, LoraGrads, LoraMember, Ops, WeightPlan};

type R<T> = candle_core::Result<T>;

fn var(x: &[f32], shape: (usize, usize)) -> Var {
    Var::from_tensor(&constant(x, shape)).unwrap()
}

fn constant(x: &[f32], shape: (usize, usize)) -> Tensor {
    Tensor::from_vec(wide(x), shape, &Device::Cpu).unwrap()
}

/// Values as f64.
fn out(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The gradient of `Σ y * dy`.
fn gradient(y: &Tensor, dy: &Tensor, of: &Var) -> Vec<f64> {
    let grads = y.mul(dy).unwrap().sum_all().unwrap().backward().unwrap();
    out(grads.get(of).expect("candle has a gradient"))
}

fn norm(x: &Tensor, weight: &Tensor, eps: f64) -> R<Tensor> {
    let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / x.dim(D::Minus1)? as f64)?;
    x.broadcast_div(&(mean + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Softmax over the last dimension of `scores + mask`, from primitives.
fn softmax(scores: &Tensor) -> R<Tensor> {
    let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// `[n, heads * dim]` normalised per head and rotated.
fn norm_rope(x: &Tensor, heads: usize, dim: usize, weight: &Tensor, eps: f64, cos: &Tensor, sin: &Tensor) -> R<Tensor> {
    let n = x.dim(0)?;
    let x = norm(&x.reshape((n, heads, dim))?, weight, eps)?;
    let (a, b) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
    let (cos, sin) = (cos.reshape((n, 1, dim / 2))?, sin.reshape((n, 1, dim / 2))?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)?.reshape((n, heads * dim))
}

fn attend(qk: &Tensor, v: &Tensor, cu: &[u32], shape: AttentionShape) -> R<Tensor> {
    let dim = shape.head_dim;
    let mut sequences = Vec::new();
    for span in cu.windows(2) {
        let (start, len) = (span[0] as usize, (span[1] - span[0]) as usize);
        let mask: Vec<f64> = (0..len * len).map(|k| if k % len > k / len { f64::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (len, len), &Device::Cpu)?;
        let mut heads = Vec::new();
        for h in 0..shape.heads {
            let kv = h / (shape.heads / shape.kv_heads);
            let part = |t: &Tensor, column: usize| t.narrow(0, start, len)?.narrow(1, column, dim)?.contiguous();
            let (q, k, v) = (part(qk, h * dim)?, part(qk, shape.q_width() + kv * dim)?, part(v, kv * dim)?);
            let scores = ((q.matmul(&k.t()?.contiguous()?)? / (dim as f64).sqrt())? + &mask)?;
            heads.push(softmax(&scores)?.matmul(&v)?);
        }
        sequences.push(Tensor::cat(&heads, 1)?);
    }
    Tensor::cat(&sequences, 0)
}

#[test]
fn norm_and_swiglu_agree_with_autograd() {
    let cpu = cpu(2);
    let mut random = Random::new(21);
    let (n, width) = (45, 70);
    let (x, dy, w) = (random.values(n * width), random.values(n * width), random.around(width, 1.0, 0.5));
    let xv = var(&x, (n, width));
    let y = norm(&xv, &constant(&w, (1, width)), 1e-6).unwrap();
    let want = gradient(&y, &constant(&dy, (n, width)), &xv);
    let weight = cpu.vector(&w).unwrap();
    let (mut o, mut rstd) = (garbage(&cpu, n, width), garbage(&cpu, n, 1));
    let xt = tensor(&cpu, &x, width);
    cpu.rms_norm(n, &xt, &weight, 1e-6, &mut o, &mut rstd).unwrap();
    close("rms_norm", &cpu.read_tensor(n, &o).unwrap(), &out(&y), 3e-7);
    let mut dx = tensor(&cpu, &vec![0.0; n * width], width);
    cpu.rms_norm_backward(n, &tensor(&cpu, &dy, width), &xt, &weight, &rstd, &mut dx).unwrap();
    close("rms_norm: dx", &cpu.read_tensor(n, &dx).unwrap(), &want, 5e-7);

    let gu = random.around(n * 2 * width, 0.0, 5.0);
    let gv = var(&gu, (n, 2 * width));
    let (g, u) = (gv.narrow(1, 0, width).unwrap(), gv.narrow(1, width, width).unwrap());
    let sigmoid = (g.neg().unwrap().exp().unwrap() + 1.0).unwrap().recip().unwrap();
    let y = g.mul(&sigmoid).unwrap().mul(&u).unwrap();
    let want = gradient(&y, &constant(&dy, (n, width)), &gv);
    let mut gt = tensor(&cpu, &gu, 2 * width);
    cpu.swiglu(n, width, &gt, &mut o).unwrap();
    close("swiglu", &cpu.read_tensor(n, &o).unwrap(), &out(&y), 3e-7);
    cpu.swiglu_backward(n, width, &tensor(&cpu, &dy, width), &mut gt).unwrap();
    close("swiglu: dx", &cpu.read_tensor(n, &gt).unwrap(), &want, 5e-7);
}

#[test]
fn linear_with_adapter_agrees_with_autograd() {
    let cpu = cpu(2);
    for (n, inner, o, rank) in [(45, 70, 33, 5), (130, 192, 64, 32), (3, 16, 100, 64)] {
        let mut random = Random::new(o as u64);
        let (x, dy, w) = (random.values(n * inner), random.values(n * o), random.values(o * inner));
        let (a, b) = (random.values(rank * inner), random.values(o * rank));
        let (xv, av, bv) = (var(&x, (n, inner)), var(&a, (rank, inner)), var(&b, (o, rank)));
        let t = |t: &Tensor| t.t().unwrap().contiguous().unwrap();
        let base = xv.matmul(&t(&constant(&w, (o, inner)))).unwrap();
        let y = (base + (xv.matmul(&t(&av)).unwrap().matmul(&t(&bv)).unwrap() * 0.5).unwrap()).unwrap();
        let dyc = constant(&dy, (n, o));

        let host = host_batch(&[n], 10, &mut random);
        let batch = batch(&cpu, &host);
        let group = cpu
            .group(&[HostLinear { weight: HostMatrix::F32(&w), out_features: o, in_features: inner, bias: None }], WeightPlan::Unpacked, 0)
            .unwrap();
        let (ap, bp) = (cpu.param(&a).unwrap(), cpu.param(&b).unwrap());
        let lora = [Some(LoraMember { a: &ap, b: &bp, rank, scale: 0.5, bias: None })];
        let (mut got, mut mid, mut dmid, mut dx) =
            (garbage(&cpu, n, o), garbage(&cpu, n, rank), garbage(&cpu, n, rank), garbage(&cpu, n, inner));
        let xt = tensor(&cpu, &x, inner);
        cpu.linear(&batch, n, &xt, &group, &lora, None, &mut got, &mut mid).unwrap();
        close("linear", &cpu.read_tensor(n, &got).unwrap(), &out(&y), 5e-7);
        let (mut da, mut db) = (cpu.param(&vec![0.0; a.len()]).unwrap(), cpu.param(&vec![0.0; b.len()]).unwrap());
        let mut grads = [Some(LoraGrads { a_acc: &mut da, b_acc: &mut db, bias_acc: None })];
        cpu.linear_backward(&batch, n, &tensor(&cpu, &dy, o), &xt, &mid, &group, &lora, None, &mut grads, &mut dmid, Some(&mut dx))
            .unwrap();
        close("linear: dx", &cpu.read_tensor(n, &dx).unwrap(), &gradient(&y, &dyc, &xv), 1e-6);
        close("linear: dA", &cpu.read_param(&da).unwrap(), &gradient(&y, &dyc, &av), 1e-6);
        close("linear: dB", &cpu.read_param(&db).unwrap(), &gradient(&y, &dyc, &bv), 1e-6);
    }
}

#[test]
fn rotated_attention_agrees_with_autograd() {
    let cpu = cpu(2);
    let (theta, eps) = (1e4f64, 1e-6);
    for shape in [AttentionShape { heads: 3, kv_heads: 1, head_dim: 64 }, AttentionShape { heads: 4, kv_heads: 2, head_dim: 10 }] {
        let mut random = Random::new(shape.head_dim as u64);
        let host = host_batch(&[70, 1, 38], 10, &mut random);
        let (n, dim, width) = (host.ids.len(), shape.head_dim, shape.qkv_width());
        let (qkv, dout) = (random.values(n * width), random.values(n * shape.q_width()));
        let (qw, kw) = (random.around(dim, 1.0, 0.5), random.around(dim, 1.0, 0.5));
        let angle = |p: u32, i: usize| f64::from(p) * theta.powf(-2.0 * i as f64 / dim as f64);
        let table = |f: fn(f64) -> f64| {
            let v: Vec<f64> = host.positions.iter().flat_map(|&p| (0..dim / 2).map(move |i| f(angle(p, i)))).collect();
            Tensor::from_vec(v, (n, dim / 2), &Device::Cpu).unwrap()
        };
        let (cos, sin) = (table(f64::cos), table(f64::sin));
        let x = var(&qkv, (n, width));
        let q = norm_rope(
            &x.narrow(1, 0, shape.q_width()).unwrap().contiguous().unwrap(),
            shape.heads,
            dim,
            &constant(&qw, (1, dim)),
            eps,
            &cos,
            &sin,
        )
        .unwrap();
        let k = x.narrow(1, shape.q_width(), shape.kv_width()).unwrap().contiguous().unwrap();
        let k = norm_rope(&k, shape.kv_heads, dim, &constant(&kw, (1, dim)), eps, &cos, &sin).unwrap();
        let qk = Tensor::cat(&[q, k], 1).unwrap();
        let y = attend(&qk, &x.narrow(1, shape.qk_width(), shape.kv_width()).unwrap(), &host.cu_seqlens, shape).unwrap();
        let want = gradient(&y, &constant(&dout, (n, shape.q_width())), &x);

        let b = batch(&cpu, &host);
        let (qv, kv) = (cpu.vector(&qw).unwrap(), cpu.vector(&kw).unwrap());
        let xt = tensor(&cpu, &qkv, width);
        let (mut qkt, mut rstd) = (garbage(&cpu, n, shape.qk_width()), garbage(&cpu, n, shape.heads + shape.kv_heads));
        let (mut att, mut lse) = (garbage(&cpu, n, shape.q_width()), garbage(&cpu, n, shape.heads));
        cpu.qk_norm_rope(&b, n, shape, &xt, &qv, &kv, eps as f32, theta, &mut qkt, &mut rstd).unwrap();
        close("qk_norm_rope", &cpu.read_tensor(n, &qkt).unwrap(), &out(&qk), 5e-7);
        cpu.attention(&b, n, shape, &qkt, &xt, &mut att, &mut lse).unwrap();
        close("attention", &cpu.read_tensor(n, &att).unwrap(), &out(&y), 1e-6);
        let (mut dqk, mut dqkv) = (garbage(&cpu, n, shape.qk_width()), garbage(&cpu, n, width));
        cpu.attention_backward(&b, n, shape, &tensor(&cpu, &dout, shape.q_width()), &att, &qkt, &xt, &lse, &mut dqk, &mut dqkv).unwrap();
        cpu.qk_norm_rope_backward(&b, n, shape, &dqk, &xt, &qv, &kv, &rstd, theta, &mut dqkv).unwrap();
        close("attention: dqkv", &cpu.read_tensor(n, &dqkv).unwrap(), &want, 2e-6);
    }
}

#[test]
fn embedding_and_cross_entropy_agree_with_autograd() {
    let cpu = cpu(2);
    let (vocabulary, cols) = (1664, 40);
    let mut random = Random::new(31);
    let host = host_batch(&[50, 1, 77], vocabulary, &mut random);
    let n = host.ids.len();
    let head = random.values(vocabulary * cols);
    let table = cpu.table(HostMatrix::F32(&head), vocabulary, cols).unwrap();
    let head = constant(&head, (vocabulary, cols));
    let ids = Tensor::from_vec(host.ids.clone(), n, &Device::Cpu).unwrap();
    let embedded = out(&head.index_select(&ids, 0).unwrap());
    let b = batch(&cpu, &host);
    let mut x = garbage(&cpu, n, cols);
    cpu.embed(&b, &table, &mut x).unwrap();
    close("embed", &cpu.read_tensor(n, &x).unwrap(), &embedded, 1e-12);

    let hidden = random.around(n * cols, 0.0, 2.0);
    let hv = var(&hidden, (n, cols));
    let logits = hv.matmul(&head.t().unwrap().contiguous().unwrap()).unwrap();
    let top = logits.max_keepdim(1).unwrap().detach();
    let sums = logits.broadcast_sub(&top).unwrap().exp().unwrap().sum_keepdim(1).unwrap().log().unwrap();
    let targets = Tensor::from_vec(host.targets.clone(), (n, 1), &Device::Cpu).unwrap();
    let losses = ((sums + top).unwrap() - logits.gather(&targets, 1).unwrap()).unwrap();
    let weights = constant(&host.weights, (n, 1));
    let want_loss = out(&losses.mul(&weights).unwrap());
    let scale = 0.125;
    let want = gradient(&losses, &(weights * scale).unwrap(), &hv);
    let mut dh = garbage(&cpu, n, cols);
    let got = cpu.cross_entropy(&b, n, &tensor(&cpu, &hidden, cols), &table, scale as f32, Some(&mut dh)).unwrap();
    for (s, got) in host.cu_seqlens.windows(2).zip(got) {
        let want: f64 = want_loss[s[0] as usize..s[1] as usize].iter().sum();
        assert!((got - want).abs() <= 1e-6 * want.abs(), "{got} {want}");
    }
    close("cross_entropy: dhidden", &cpu.read_tensor(n, &dh).unwrap(), &want, 1e-6);
}
