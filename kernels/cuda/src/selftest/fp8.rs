//! Rounding to e4m3, bit for bit, alone and beside other kernels; and frozen products in it, through the backend.

use super::{BF16, CheckError, Checks, Outcome};
use crate::backend::{Cuda, CudaOptions, Group, Param, Precision, Products};
use crate::compile::Arch;
use crate::launch::{Eight, LONGEST_EIGHT};
use crate::memory::{Buffer, Tensor};
use half::bf16;
use trainer_kernels::nf4::{DoubleQuant, Nf4};
use trainer_kernels::ops::{AttentionShape, HostBatch, HostLinear, HostMatrix, LoraGrads, LoraMember, Ops, WeightPlan};

/// Relative error of a product of exactly these operands: Hopper's sums of about 14 bits, the adapters' share and the result in bf16.
const SUM: f64 = 6e-3;
/// Relative error of a product whose operands are rounded to e4m3: up to 1/16 each, 2.4 % in the mean, so 3.5 % of both.
const ROUNDED: f64 = 0.05;
/// Relative error of adapters' gradients behind a `mid` and a `dmid` that are rounded to bf16.
const GRADIENT: f64 = 6e-3;

/// The nearest e4m3, to even, saturating.
fn round(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let a = x.abs().min(448.0);
    if x.is_nan() {
        return 0x7f;
    }
    if a < 2f32.powi(-6) {
        return sign | (a * 512.0).round_ties_even() as u8;
    }
    let bits = a.to_bits();
    sign | (((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - 960) as u8
}

fn value(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-9),
        15 if byte & 7 == 7 => f32::NAN,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Rows with their scales, as the kernels round them.
fn rows(cols: usize, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut scales) = (Vec::new(), Vec::new());
    for row in values.chunks_exact(cols) {
        let scale = row.iter().fold(0f32, |m, v| m.max(v.abs())).max(2f32.powi(-100)) / 448.0;
        let by = 1.0 / scale;
        bytes.extend(row.iter().map(|v| round(v * by)));
        scales.push(scale);
    }
    (bytes, scales)
}

/// What the rounded rows stand for.
fn rounded(cols: usize, values: &[f32]) -> Vec<f32> {
    let (bytes, scales) = rows(cols, values);
    bytes.chunks_exact(cols).zip(scales).flat_map(|(row, s)| row.iter().map(move |b| value(*b) * s).collect::<Vec<_>>()).collect()
}

/// As [`rounded`], but no row's scale is that of less than 1/256 of the largest of all.
fn rounded_weights(cols: usize, values: &[f32]) -> Vec<f32> {
    let largest = |values: &[f32]| values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let least = largest(values) / 256.0;
    let row = |row: &[f32]| {
        let scale = largest(row).max(least).max(2f32.powi(-100)) / 448.0;
        row.iter().map(|v| value(round(v * (1.0 / scale))) * scale).collect::<Vec<_>>()
    };
    values.chunks_exact(cols).flat_map(row).collect()
}

fn transposed(cols: usize, values: &[f32]) -> Vec<f32> {
    (0..cols).flat_map(|c| values.iter().skip(c).step_by(cols).copied().collect::<Vec<_>>()).collect()
}

/// `a [m, k] b[n, k]ᵀ`.
fn product(k: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    a.chunks_exact(k).flat_map(|x| b.chunks_exact(k).map(|y| x.iter().zip(y).map(|(x, y)| x * y).sum()).collect::<Vec<f32>>()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.iter().copied().map(f32::from).collect()
}

impl Checks<'_> {
    pub(super) fn all_fp8(&mut self) -> Outcome<()> {
        self.all_products8()?;
        for n in [1, 127, 2049] {
            for width in [8, 136, 1024, 4096] {
                self.check_rows8(n, width)?;
            }
        }
        self.check_rows8(3, 24576)?;
        self.check_rows8(2, 40000)?;
        for (n, width) in [(1, 16), (127, 208), (2049, 1024), (65, 12288), (5, 16384), (3, 32768)] {
            self.check_fused8(n, width)?;
        }
        for n in [1, 127, 2049] {
            for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 64), (5, 5, 32), (32, 8, 128), (120, 8, 128)] {
                if n > 127 && heads > 5 {
                    continue;
                }
                self.check_rope8(n, AttentionShape { heads, kv_heads, head_dim })?;
            }
        }
        for (n, cols) in [(16, 8), (144, 200), (528, 1032), (1008, 2568)] {
            self.check_weights8(n, cols)?;
        }
        Ok(())
    }

    /// Through the backend.
    fn all_products8(&mut self) -> Outcome<()> {
        if self.device.arch() != Arch::Sm90a {
            tracing::warn!("products in fp8 are not checked: this card has none with scales by row");
            return Ok(());
        }
        if matches!(Products::open(self.device, &CudaOptions::default())?, Products::Own) {
            tracing::warn!("products in fp8 are not checked: they are cublasLt's, and it is not in use");
            return Ok(());
        }
        let options = CudaOptions { ordinal: self.device.context().ordinal(), precision: Precision::Fp8, ..CudaOptions::default() };
        let cuda = Cuda::open(options)?;
        for n in [1, 65, 127, 1030] {
            self.check_linear8(&cuda, n, &[(48, 8), (16, 0), (32, 16)], 208, (1.0, 1.0), false)?;
        }
        self.check_linear8(&cuda, 300, &[(512, 32), (512, 32)], 1024, (1.0, 1.0), false)?;
        self.check_linear8(&cuda, 300, &[(256, 264)], 512, (1.0, 1.0), false)?;
        self.check_linear8(&cuda, 127, &[(256, 0)], 512, (1.0, 1.0), false)?;
        // Results that are nearly all the adapters', and adapters that have hardly begun.
        for sizes in [(2f32.powi(-3), 1.0), (2f32.powi(-10), 1.0), (1.0, 2f32.powi(-9)), (2f32.powi(-6), 16.0)] {
            self.check_linear8(&cuda, 127, &[(48, 8), (16, 0), (32, 16)], 208, sizes, false)?;
        }
        // Rows and columns of weights that are zero or next to it.
        self.check_linear8(&cuda, 127, &[(48, 8), (16, 0), (32, 16)], 208, (1.0, 1.0), true)?;
        // Ranks that are no whole vectors stay in 16 bits, and so do groups whose sizes are no multiple of 16.
        self.check_linear8(&cuda, 127, &[(48, 4), (32, 12)], 208, (1.0, 1.0), false)?;
        self.check_linear8(&cuda, 127, &[(24, 8)], 64, (1.0, 1.0), false)
    }

    /// Room full of rubbish.
    fn rubbish8(&self, n: usize, width: usize) -> Outcome<Eight> {
        let mut eight = self.device.eight(n * width, n, 0, "rubbish")?;
        let (bytes, scales) = eight.parts();
        bytes.fill_bytes(0xff)?;
        scales.fill_bytes(0xff)?;
        Ok(eight)
    }

    fn note_rows8(&mut self, kernel: &str, shape: &str, got: &Eight, cols: usize, of: &[f32]) -> Outcome<()> {
        let (bytes, scales) = rows(cols, of);
        self.note(kernel, shape, &floats(&got.values().read()?), &floats(&bytes), 0.0);
        self.note(&format!("{kernel} scales"), shape, &got.scales().read()?, &scales, 0.0);
        Ok(())
    }

    fn check_rows8(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(n * width) {
            return Ok(());
        }
        let mut values = self.random.values(n * width);
        // Rows of zeros, of tiny, huge and wide-ranging numbers.
        for (i, row) in values.chunks_exact_mut(width).enumerate() {
            match i % 7 {
                2 => row.fill(-0.0),
                3 => row.iter_mut().for_each(|v| *v *= 2f32.powi(-120)),
                4 => row.iter_mut().for_each(|v| *v *= 2f32.powi(120)),
                5 => row.iter_mut().enumerate().for_each(|(c, v)| *v *= 2f32.powi(-((c % 40) as i32))),
                _ => {}
            }
        }
        let (x, _gap) = self.apart(width, 24, &values)?;
        let mut got = self.rubbish8(n, width)?;
        self.device.eight_rows(n, &x, None, &mut got)?;
        self.note_rows8("eight_rows", &format!("{n}x{width}"), &got, width, &values)
    }

    /// Kernels that round what they make give the same as rounding it afterwards, and the same result as without.
    fn check_fused8(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(2 * n * width) {
            return Ok(());
        }
        if width <= LONGEST_EIGHT {
            self.check_norms8(n, width)?;
        }
        let (d, shape) = (self.device, format!("{n}x{width}"));
        let dy = d.tensor(width, &self.random.values(n * width))?;
        let gate_up = d.tensor(2 * width, &self.random.values(2 * n * width))?;
        let (mut plain, mut both, mut eight) = (self.poison(n, width)?, self.poison(n, width)?, self.rubbish8(n, width)?);
        d.swiglu(n, width, &gate_up, &mut plain)?;
        d.swiglu_eight(n, width, &gate_up, &mut both, &mut eight)?;
        self.note_fused8("swiglu_8", &shape, n, &plain, &both, &eight)?;

        let (mut plain, mut both, mut eight) = (self.poison(n, 2 * width)?, self.poison(n, 2 * width)?, self.rubbish8(n, 2 * width)?);
        d.swiglu_backward(n, width, &dy, &gate_up, &mut plain)?;
        d.swiglu_backward_eight(n, width, &dy, &gate_up, &mut both, &mut eight)?;
        self.note_fused8("swiglu_backward_8", &shape, n, &plain, &both, &eight)
    }

    fn check_rope8(&mut self, n: usize, shape: AttentionShape) -> Outcome<()> {
        let (d, wide, name) = (self.device, shape.qkv_width(), format!("{n} rows {}/{}x{}", shape.heads, shape.kv_heads, shape.head_dim));
        let positions = d.upload(&(0..n as u32).rev().collect::<Vec<_>>(), "positions")?;
        let angles = d.angles(n, shape.head_dim, 1e6)?;
        let (qkv, dqk) =
            (d.tensor(wide, &self.random.values(n * wide))?, d.tensor(shape.qk_width(), &self.random.values(n * shape.qk_width()))?);
        let [qw, kw] = [shape.head_dim; 2].map(|len| self.random.values(len));
        let (qw, kw) = (d.floats(&qw)?, d.floats(&kw)?);
        let rstd = d.floats(&self.random.values(n * (shape.heads + shape.kv_heads)))?;
        // The gradient of v is the largest of a row in some, that of q and k in others.
        let before: Vec<f32> = self.random.values(n * wide).iter().enumerate().map(|(i, v)| v * [0.1, 100.0][i / wide % 2]).collect();
        let ((mut plain, _), (mut both, _), mut eight) =
            (self.apart(wide, 64, &before)?, self.apart(wide, 64, &before)?, self.rubbish8(n, wide)?);
        d.qk_norm_rope_backward(n, &positions, &angles, shape, &dqk, &qkv, &qw, &kw, &rstd, &mut plain)?;
        d.qk_norm_rope_backward_eight(n, &positions, &angles, shape, &dqk, &qkv, &qw, &kw, &rstd, &mut both, &mut eight)?;
        self.note_fused8("qk_norm_rope_backward_8", &name, n, &plain, &both, &eight)
    }

    fn check_norms8(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(n * width) {
            return Ok(());
        }
        let (d, eps, shape) = (self.device, 1e-6, format!("{n}x{width}"));
        let [x, delta, dy, before] = std::array::from_fn(|_| self.random.values(n * width));
        let weight = d.floats(&self.random.values(width))?;
        let (x, delta, dy) = (d.tensor(width, &x)?, d.tensor(width, &delta)?, d.tensor(width, &dy)?);
        let (mut rstd, mut eight) = (self.poison_floats(n)?, self.rubbish8(n, width)?);
        let (mut plain, mut both) = (self.poison(n, width)?, self.poison(n, width)?);
        d.rms_norm(n, &x, &weight, eps, &mut plain, &mut rstd)?;
        d.rms_norm_eight(n, &x, &weight, eps, &mut both, &mut rstd, Some(&mut eight))?;
        self.note_fused8("rms_norm_8", &shape, n, &plain, &both, &eight)?;

        let (mut sum, mut eight) = (self.poison(n, width)?, self.rubbish8(n, width)?);
        d.add_rms_norm(n, &x, &delta, &mut sum, &weight, eps, &mut plain, &mut rstd)?;
        d.add_rms_norm_eight(n, &x, &delta, &mut sum, &weight, eps, &mut both, &mut rstd, Some(&mut eight))?;
        self.note_fused8("add_rms_norm_8", &shape, n, &plain, &both, &eight)?;

        let (mut plain, mut both, mut eight) = (d.tensor(width, &before)?, d.tensor(width, &before)?, self.rubbish8(n, width)?);
        d.rms_norm_backward(n, &dy, &x, &weight, &rstd, &mut plain)?;
        d.rms_norm_backward_eight(n, &dy, &x, &weight, &rstd, &mut both, Some(&mut eight))?;
        self.note_fused8("rms_norm_backward_8", &shape, n, &plain, &both, &eight)
    }

    fn note_fused8(&mut self, kernel: &str, shape: &str, n: usize, plain: &Tensor, both: &Tensor, eight: &Eight) -> Outcome<()> {
        let (plain, both) = (self.device.read_tensor(n, plain)?, self.device.read_tensor(n, both)?);
        self.note(&format!("{kernel} result"), shape, &both, &plain, 0.0);
        self.note_rows8(kernel, shape, eight, plain.len() / n, &plain)
    }

    /// Weights and their transposes, from NF4 and from bf16, into the middle of a larger matrix.
    fn check_weights8(&mut self, n: usize, cols: usize) -> Outcome<()> {
        if self.large(n * cols) {
            return Ok(());
        }
        let d = self.device;
        let w = Nf4::quantize(&self.random.values(n * cols), &[n, cols], 64, DoubleQuant::default())
            .map_err(|e| CheckError::Other(e.to_string()))?;
        let values: Vec<f32> = w.dequantize::<bf16>().into_iter().map(bf16::to_f32).collect();
        let (card, dense) = (d.nf4(&w)?, self.apart(cols, 8, &values)?.0);
        let shape = format!("{n}x{cols}");
        let (bytes, scales) = rows(cols, &values);
        let rubbish = |len: usize| -> Outcome<Buffer<u8>> {
            let mut b = d.buffer(len, "rubbish")?;
            b.fill_bytes(0xff)?;
            Ok(b)
        };
        let first = 32;
        let all_scales: Vec<f32> = vec![f32::NAN; first].into_iter().chain(scales).collect();
        let mut got = rubbish((first + n) * cols)?;
        d.nf4_eight(&card, &d.floats(&all_scales)?, &mut got, first, cols)?;
        let want: Vec<u8> = vec![0xff; first * cols].into_iter().chain(bytes).collect();
        self.note("nf4_eight", shape.clone(), &floats(&got.read()?), &floats(&want), 0.0);

        let (bytes, scales) = rows(n, &transposed(cols, &values));
        let mut card_scales = self.poison_floats(cols)?;
        let mut smallest = self.poison_floats(1)?;
        d.eight_column_scales(&dense, &mut card_scales, &mut smallest)?;
        self.note("eight_column_scales", shape.clone(), &card_scales.read()?, &scales, 0.0);
        let stride = n + 2 * first;
        let want: Vec<u8> = bytes.chunks_exact(n).flat_map(|row| [vec![0xff; first], row.to_vec(), vec![0xff; first]].concat()).collect();
        for kernel in ["nf4_eight_transposed", "eight_transposed"] {
            let mut got = rubbish(cols * stride)?;
            match kernel {
                "eight_transposed" => d.eight_transposed(&dense, &card_scales, &mut got, first, stride)?,
                _ => d.nf4_eight_transposed(&card, &card_scales, &mut got, first, stride)?,
            }
            self.note(kernel, shape.clone(), &floats(&got.read()?), &floats(&want), 0.0);
        }
        Ok(())
    }

    /// A group with adapters, `parts` of (outputs, rank), forward and backward. `sizes`: what weights and adapters are multiplied by; `holes`: some rows and
    /// columns of the weights are next to zero.
    fn check_linear8(
        &mut self,
        cuda: &Cuda,
        n: usize,
        parts: &[(usize, usize)],
        inner: usize,
        sizes: (f32, f32),
        holes: bool,
    ) -> Outcome<()> {
        if self.large(n.max(inner) * parts.iter().map(|p| p.0).sum::<usize>()) {
            return Ok(());
        }
        let (outer, ranks) = (parts.iter().map(|p| p.0).sum::<usize>(), parts.iter().map(|p| p.1.next_multiple_of(8)).sum::<usize>());
        let shape = format!("{n}, {inner} to {parts:?} {sizes:?}{}", if holes { " holes" } else { "" });
        let fits = parts.iter().all(|p| p.0.is_multiple_of(16)) && inner.is_multiple_of(16);
        let scale = 0.5;
        let (mut weights, mut dense) = (Vec::new(), Vec::new());
        for &(out, _) in parts {
            let mut values: Vec<f32> = self.random.values(out * inner).into_iter().map(|v| sizes.0 * v).collect();
            if holes {
                for (row, values) in values.chunks_exact_mut(inner).enumerate() {
                    let all = [0.0, 1e-6].get(row).copied().unwrap_or(1.0);
                    values.iter_mut().enumerate().for_each(|(c, v)| *v *= if c / 64 == 1 { 0.0 } else { all });
                }
            }
            let w = Nf4::quantize(&values, &[out, inner], 64, DoubleQuant::default()).map_err(|e| CheckError::Other(e.to_string()))?;
            dense.extend(w.dequantize::<bf16>().into_iter().map(bf16::to_f32));
            weights.push(w);
        }
        let linears: Vec<HostLinear<'_>> = weights
            .iter()
            .zip(parts)
            .map(|(w, p)| HostLinear { weight: HostMatrix::Nf4(w), out_features: p.0, in_features: inner, bias: None })
            .collect();
        let small = |values: Vec<f32>| -> Vec<f32> { values.into_iter().map(|v| bf16::from_f32(sizes.1 * v / 8.0).to_f32()).collect() };
        let a: Vec<Vec<f32>> = parts.iter().map(|p| small(self.random.values(p.1 * inner))).collect();
        let b: Vec<Vec<f32>> = parts.iter().map(|p| small(self.random.values(p.0 * p.1))).collect();
        let (x, dy) = (self.random.values(n * inner), self.random.values(n * outer));
        // References: with operands as they are, and as they are rounded.
        let mut adapters = (vec![0f32; n * outer], vec![0f32; n * inner]);
        let (mut want_a, mut want_b, mut column) = (Vec::new(), Vec::new(), 0);
        for ((&(out, rank), a), b) in parts.iter().zip(&a).zip(&b) {
            if rank == 0 {
                column += out;
                continue;
            }
            let mid = product(inner, &x, a);
            let part: Vec<f32> = dy.chunks_exact(outer).flat_map(|row| row.iter().skip(column).take(out).copied()).collect();
            let dmid: Vec<f32> = product(out, &part, &transposed(rank, b)).iter().map(|v| scale * v).collect();
            for (to, from) in adapters.0.chunks_exact_mut(outer).zip(product(rank, &mid, b).chunks_exact(out)) {
                to.iter_mut().skip(column).zip(from).for_each(|(t, f)| *t += scale * f);
            }
            adapters.1.iter_mut().zip(product(rank, &dmid, &transposed(inner, a))).for_each(|(t, f)| *t += f);
            want_a.extend(product(n, &transposed(rank, &dmid), &transposed(inner, &x)));
            want_b.extend(product(n, &transposed(out, &part), &transposed(rank, &mid)).iter().map(|v| scale * v));
            column += out;
        }
        let add = |values: Vec<f32>, with: &[f32]| -> Vec<f32> { values.iter().zip(with).map(|(v, w)| v + w).collect() };
        let columns = transposed(inner, &dense);
        let exact = (add(product(inner, &x, &dense), &adapters.0), add(product(outer, &dy, &columns), &adapters.1));
        let near = (
            add(product(inner, &rounded(inner, &x), &rounded_weights(inner, &dense)), &adapters.0),
            add(product(outer, &rounded(outer, &dy), &rounded_weights(outer, &columns)), &adapters.1),
        );
        let batch = cuda.batch(&HostBatch {
            ids: vec![0; n],
            targets: vec![0; n],
            weights: vec![1.0; n],
            positions: (0..n as u32).collect(),
            cu_seqlens: vec![0, n as u32],
            samples: vec![0],
            slots: Vec::new(),
        })?;
        let params = |values: &[Vec<f32>]| values.iter().map(|v| cuda.param(v)).collect::<Result<Vec<Param>, _>>();
        let (card_a, card_b) = (params(&a)?, params(&b)?);
        let members = || -> Vec<Option<LoraMember<'_, Param>>> {
            let member = |((p, a), b): ((&(usize, usize), _), _)| (p.1 > 0).then_some(LoraMember { a, b, rank: p.1, scale, bias: None });
            parts.iter().zip(&card_a).zip(&card_b).map(member).collect()
        };
        let mut results: Vec<[Vec<f32>; 4]> = Vec::new();
        for plan in [WeightPlan::Unpacked, WeightPlan::Packed] {
            let group: Group = cuda.group(&linears, plan, ranks)?;
            let ((mut card_x, mut mid), (mut card_dy, mut dmid)) =
                (cuda.tensor_with_mid(n, inner, ranks)?, cuda.tensor_with_mid(n, outer, ranks)?);
            let (mut out, mut dx) = (cuda.tensor(n, outer)?, cuda.tensor(n, inner)?);
            cuda.write_tensor(&x, &mut card_x)?;
            cuda.write_tensor(&dy, &mut card_dy)?;
            cuda.write_tensor(&vec![f32::NAN; n * outer], &mut out)?;
            cuda.write_tensor(&vec![f32::NAN; n * inner], &mut dx)?;
            cuda.linear(&batch, n, &card_x, &group, &members(), None, &mut out, &mut mid)?;
            let zeros = |values: &[Vec<f32>]| params(&values.iter().map(|v| vec![0.0; v.len()]).collect::<Vec<_>>());
            let (mut da, mut db) = (zeros(&a)?, zeros(&b)?);
            let mut grads: Vec<Option<LoraGrads<'_, Param>>> = parts
                .iter()
                .zip(da.iter_mut().zip(&mut db))
                .map(|(p, (a_acc, b_acc))| (p.1 > 0).then_some(LoraGrads { a_acc, b_acc, bias_acc: None }))
                .collect();
            cuda.linear_backward(&batch, n, &card_dy, &card_x, &mid, &group, &members(), None, &mut grads, &mut dmid, Some(&mut dx))?;
            let all = |params: &[Param]| -> Outcome<Vec<f32>> {
                let mut values = Vec::new();
                for p in params {
                    values.extend(cuda.read_param(p)?);
                }
                Ok(values)
            };
            results.push([cuda.read_tensor(n, &out)?, cuda.read_tensor(n, &dx)?, all(&da)?, all(&db)?]);
        }
        let [kept, packed] = &results[..] else { return Ok(()) };
        if fits {
            self.note("fp8 linear, operands rounded", shape.clone(), &kept[0], &near.0, SUM);
            self.note("fp8 linear backward, rounded", shape.clone(), &kept[1], &near.1, SUM);
        }
        let tolerance = if fits { ROUNDED } else { BF16 };
        self.note("fp8 linear", shape.clone(), &kept[0], &exact.0, tolerance);
        self.note("fp8 linear backward", shape.clone(), &kept[1], &exact.1, tolerance);
        self.note("fp8 linear dA", shape.clone(), &kept[2], &want_a, GRADIENT);
        self.note("fp8 linear dB", shape.clone(), &kept[3], &want_b, GRADIENT);
        for (what, kept, packed) in [("out", &kept[0], &packed[0]), ("dx", &kept[1], &packed[1])] {
            self.note(&format!("fp8 linear packed {what}"), shape.clone(), packed, kept, 0.0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_goes_to_the_nearest_value_and_ties_to_even() {
        let values: Vec<f32> = (0..=0x7e).map(value).collect();
        assert_eq!(values.last(), Some(&448.0));
        for (i, pair) in values.windows(2).enumerate() {
            let &[low, high] = pair else { continue };
            let (low_byte, high_byte) = (i as u8, i as u8 + 1);
            let middle = (low + high) / 2.0;
            let even = if low_byte.is_multiple_of(2) { low_byte } else { high_byte };
            assert_eq!([round(low), round(high), round(middle)], [low_byte, high_byte, even], "{low} {high}");
            assert_eq!([round(middle.next_down()), round(middle.next_up())], [low_byte, high_byte], "{low} {high}");
            assert_eq!(round(-high), 0x80 | high_byte);
        }
        assert_eq!([round(1e9), round(f32::INFINITY), round(-460.0), round(f32::NAN)], [0x7e, 0x7e, 0xfe, 0x7f]);
    }

    #[test]
    fn rows_of_zeros_have_a_scale() {
        let (bytes, scales) = rows(2, &[0.0, -0.0, 3.5, -7.0]);
        assert_eq!(bytes, [0, 0x80, 0x76, 0xfe]);
        assert!(scales[0] > 0.0 && scales[0].is_normal());
        assert_eq!(scales[1], 7.0 / 448.0);
    }
}
