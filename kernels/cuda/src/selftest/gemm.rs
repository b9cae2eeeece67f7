//! Matrix products: ours, cublasLt's where it is installed, and the thin ones of adapters.

use super::{Checks, Outcome};
use crate::CudaError;
use crate::backend::{Cuda, CudaOptions};
use crate::blaslt::{BlasLt, Scales};
use crate::launch::{BackwardKernel, BackwardPlan, LoraIn, LoraOut};
use crate::matrix::{Matrix, Matrix8, Op, Out};
use crate::memory::{Floats, Tensor};
use trainer_kernels::ops::{HostBatch, HostLinear, HostMatrix, Ops, WeightPlan};

/// Relative error of a bf16 result: the most that rounding one value gives (2⁻⁸), because the smallest results are only a few values.
const BF16: f64 = 4e-3;
/// Relative error of an f32 sum of exact products: tensor cores cut what does not fit their adders, about 2⁻²² of the largest product each time.
const SUM: f64 = 2e-5;
/// Relative error of fp8 products: Hopper's sums keep about 14 bits, with or without promotion to f32 every few steps.
const FP8: f64 = 5e-3;

/// A stored operand: `[rows, cols]` and its values.
struct Stored {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Stored {
    fn transposed(&self) -> Vec<f32> {
        (0..self.cols).flat_map(|c| self.values.iter().skip(c).step_by(self.cols.max(1)).copied()).collect()
    }
    fn taken(&self, op: Op) -> Vec<f32> {
        if op == Op::N { self.values.clone() } else { self.transposed() }
    }
}

/// `a [m, k] b [k, n]`.
fn product(m: usize, n: usize, k: usize, a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let rows = m.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (out, a) in out.chunks_mut(rows * n).zip(a.chunks(rows * k)) {
            scope.spawn(move || {
                for (row, left) in out.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
                    for (&x, right) in left.iter().zip(b.chunks_exact(n)) {
                        row.iter_mut().zip(right).for_each(|(o, &y)| *o += x * y);
                    }
                }
            });
        }
    });
    out
}

/// The columns `from..from + take` of rows of `cols`.
fn columns(values: &[f32], cols: usize, from: usize, take: usize) -> Vec<f32> {
    values.chunks_exact(cols).flat_map(|row| row.iter().skip(from).take(take).copied()).collect()
}

impl Checks<'_> {
    pub(super) fn all_gemm(&mut self) -> Outcome<()> {
        let lt = match BlasLt::open(self.device, 32 << 20) {
            Ok(lt) => Some(lt),
            Err(e) => {
                tracing::warn!("cublasLt is not checked: {e}");
                None
            }
        };
        let sizes = [(1, 8, 8), (127, 136, 200), (130, 97, 64), (257, 520, 1000), (2049, 2056, 136)];
        for (op_a, op_b) in [(Op::N, Op::T), (Op::N, Op::N), (Op::T, Op::N), (Op::T, Op::T)] {
            for (m, n, k) in sizes {
                let k = if (op_a, op_b) == (Op::T, Op::N) { k - 1 } else { k };
                for (alpha, beta) in [(1.0, 0.0), (0.5, 1.0)] {
                    self.check_gemm(lt.as_ref(), op_a, op_b, [m, n, k], alpha, beta)?;
                }
            }
        }
        // Ours takes any k: what lies behind the last of it is NaN here.
        for (op_a, op_b) in [(Op::N, Op::T), (Op::N, Op::N), (Op::T, Op::N), (Op::T, Op::T)] {
            for (m, n, k) in [(1, 8, 4), (130, 4, 63), (257, 129, 1), (2049, 2056, 65), (127, 136, 12)] {
                self.check_gemm(None, op_a, op_b, [m, n, k], 0.5, 1.0)?;
            }
        }
        self.check_own_group()?;
        if let Some(lt) = &lt {
            self.check_choices(lt)?;
            if self.device.arch() == crate::compile::Arch::Sm90a {
                for (m, n, k) in [(16, 16, 16), (127, 272, 512), (1025, 512, 4096)] {
                    self.check_fp8(lt, m, n, k)?;
                }
            }
        }
        Ok(())
    }

    /// A frozen projection through a backend that was asked for our own products: alone, and while launches are timed, where one span lies in another.
    fn check_own_group(&mut self) -> Outcome<()> {
        let options = CudaOptions { ordinal: self.device.context().ordinal(), own_products: true, ..CudaOptions::default() };
        let cuda = Cuda::open(options)?;
        let (n, inner, outer) = (130, 200, 72);
        let weight = Stored { rows: outer, cols: inner, values: self.random.values(outer * inner) };
        let x = self.random.values(n * inner);
        let want = product(n, outer, inner, &x, &weight.transposed());
        let linear = HostLinear { weight: HostMatrix::F32(&weight.values), out_features: outer, in_features: inner, bias: None };
        let group = cuda.group(&[linear], WeightPlan::Unpacked, 0)?;
        let batch = cuda.batch(&HostBatch {
            ids: vec![0; n],
            targets: vec![0; n],
            weights: vec![1.0; n],
            positions: (0..n as u32).collect(),
            cu_seqlens: vec![0, n as u32],
            samples: vec![0],
            slots: Vec::new(),
        })?;
        let (mut card_x, mut mid) = cuda.tensor_with_mid(n, inner, 0)?;
        cuda.write_tensor(&x, &mut card_x)?;
        for timed in [false, true] {
            let mut out = cuda.tensor(n, outer)?;
            cuda.write_tensor(&vec![f32::NAN; n * outer], &mut out)?;
            if timed {
                cuda.device().profile().start();
            }
            cuda.linear(&batch, n, &card_x, &group, &[None], None, &mut out, &mut mid)?;
            if timed {
                let spans = cuda.device().profile().stop(cuda.device().stream())?;
                let products = spans.iter().filter(|t| t.name.starts_with("product")).map(|t| t.launches).sum::<usize>();
                self.note("own products, timed", format!("{n}x{outer}x{inner}"), &[products as f32], &[1.0], 0.0);
            }
            self.note("own products, a group", format!("{n}x{outer}x{inner}"), &cuda.read_tensor(n, &out)?, &want, BF16);
        }
        Ok(())
    }

    pub(super) fn all_lora_gemm(&mut self) -> Outcome<()> {
        for n in [127, 2049, 1] {
            for (width, rank) in [(64, 8), (1000, 32), (1000, 88), (1064, 128), (2056, 56), (4096, 96), (4096, 160)] {
                self.check_mid(n, width, rank)?;
                self.check_da(n, width, rank)?;
            }
            let groups: [&[(usize, usize)]; 4] =
                [&[(520, 32), (264, 32), (8, 32)], &[(1000, 64)], &[(256, 8), (512, 16), (512, 16)], &[(600, 96)]];
            for members in groups {
                self.check_backward(None, n, members)?;
                for kernel in BackwardKernel::ALL {
                    // The reference takes its time: one run of many tokens for each kernel.
                    for times in (1..=2).take(if n > 1000 { 1 } else { 2 }) {
                        self.check_backward(Some(BackwardPlan { kernel, times }), n, members)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// An operand in rows with a gap of NaN behind them.
    fn operand(&mut self, rows: usize, cols: usize) -> Outcome<(Stored, Tensor)> {
        let values = self.random.values(rows * cols);
        let (tensor, _gap) = self.apart(cols, cols.next_multiple_of(8) - cols + 24, &values)?;
        Ok((Stored { rows, cols, values }, tensor))
    }

    fn check_gemm(&mut self, lt: Option<&BlasLt>, op_a: Op, op_b: Op, [m, n, k]: [usize; 3], alpha: f32, beta: f32) -> Outcome<()> {
        if self.large((m * n).max(n * k).max(k * m)) {
            return Ok(());
        }
        let stored = |op: Op, rows: usize, cols: usize| if op == Op::N { (rows, cols) } else { (cols, rows) };
        let ((ra, ca), (rb, cb)) = (stored(op_a, m, k), stored(op_b, k, n));
        let ((a, card_a), (b, card_b)) = (self.operand(ra, ca)?, self.operand(rb, cb)?);
        let sums = product(m, n, k, &a.taken(op_a), &b.taken(op_b));
        let before = self.random.values(m * n);
        let want: Vec<f32> = sums.iter().zip(&before).map(|(s, c)| alpha * s + if beta == 0.0 { 0.0 } else { beta * c }).collect();
        let (ma, mb) = (Matrix::tensor(&card_a, a.rows)?, Matrix::tensor(&card_b, b.rows)?);
        let d = self.device;
        for name in ["gemm", "cublasLt"] {
            let run = |c: Out| match (name, lt) {
                ("gemm", _) if (op_a, op_b) == (Op::T, Op::T) => Ok(false),
                ("gemm", _) => d.gemm(ma, op_a, mb, op_b, c, m, n, k, alpha, beta).map(|()| true),
                (_, Some(lt)) => lt.gemm(d, ma, op_a, mb, op_b, c, m, n, k, alpha, beta).map(|()| true),
                _ => Ok(false),
            };
            let start = if beta == 0.0 { vec![f32::NAN; m * n] } else { before.clone() };
            let shape = format!("{op_a:?}{op_b:?} {m}x{n}x{k} beta {beta}");
            let (mut c, gap) = self.apart(n, n.next_multiple_of(8) - n + 8, &start)?;
            if run(Out::tensor(&mut c, m)?)? {
                self.note(&format!("{name} bf16"), shape.clone(), &d.read_tensor(m, &c)?, &want, BF16);
                let untouched = d.read_tensor(m, &gap)?.iter().all(|v| v.is_nan());
                self.note(&format!("{name} gap"), shape.clone(), &[f32::from(u8::from(untouched))], &[1.0], 0.0);
            }
            if n.is_multiple_of(2) {
                let mut c = d.floats(&start)?;
                if run(Out::floats(&mut c, 0, m, n)?)? {
                    self.note(&format!("{name} f32"), shape, &c.read()?, &want, SUM);
                }
            }
        }
        Ok(())
    }

    /// A measured choice that was stored and pinned elsewhere gives the same bits.
    fn check_choices(&mut self, lt: &BlasLt) -> Outcome<()> {
        let (m, n, k) = if self.large(512 * 4096) { (256, 128, 1024) } else { (512, 256, 4096) };
        let ((a, card_a), (_, card_b)) = (self.operand(m, k)?, self.operand(n, k)?);
        let (ma, mb) = (Matrix::tensor(&card_a, a.rows)?, Matrix::tensor(&card_b, n)?);
        let other = BlasLt::open(self.device, 32 << 20)?;
        let mut results = Vec::new();
        for (i, lt) in [lt, lt, &other].into_iter().enumerate() {
            let mut c = self.poison_floats(m * n)?;
            if i == 0 {
                lt.tune(self.device, ma, Op::N, mb, Op::T, Out::floats(&mut c, 0, m, n)?, m, n, k, 1.0, 0.0)?;
                other.pin(&lt.choices())?;
            }
            lt.gemm(self.device, ma, Op::N, mb, Op::T, Out::floats(&mut c, 0, m, n)?, m, n, k, 1.0, 0.0)?;
            results.push(c.read()?);
        }
        if let [first, second, third] = &results[..] {
            self.note("cublasLt again", format!("{m}x{n}x{k}"), second, first, 0.0);
            self.note("cublasLt pinned", format!("{m}x{n}x{k}"), third, first, 0.0);
        }
        Ok(())
    }

    fn check_fp8(&mut self, lt: &BlasLt, m: usize, n: usize, k: usize) -> Outcome<()> {
        if self.large((m * n).max(n * k).max(k * m)) {
            return Ok(());
        }
        let d = self.device;
        // Any byte but the two NaNs, of exponents small enough that sums are not one product's.
        let mut bytes = |len: usize| -> Vec<u8> {
            (0..len).map(|_| (self.random.bits() as u8 & 0x87) | ((self.random.below(4) as u8 + 5) << 3)).collect()
        };
        let (a, b) = (bytes(m * k), bytes(n * k));
        let value = |byte: &u8| {
            let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
            (if byte & 0x80 == 0 { 1.0 } else { -1.0 }) * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
        };
        let (x, y): (Vec<f32>, Vec<f32>) = (a.iter().map(value).collect(), b.iter().map(value).collect());
        let sums = product(m, n, k, &x, &Stored { rows: n, cols: k, values: y }.transposed());
        let scales = |len: usize, r: &mut super::Random| -> Vec<f32> { (0..len).map(|_| 0.25 + r.below(1000) as f32 / 500.0).collect() };
        let (sa, sb) = (scales(m, &mut self.random), scales(n, &mut self.random));
        let (card_a, card_b) = (d.upload(&a, "fp8")?, d.upload(&b, "fp8")?);
        let (ma, mb) = (Matrix8::buffer(&card_a, 0, m, k)?, Matrix8::buffer(&card_b, 0, n, k)?);
        let (ca, cb): (Floats, Floats) = (d.floats(&sa)?, d.floats(&sb)?);
        for rows in [false, true] {
            let scales = if rows { Scales::Rows { a: &ca, b: &cb } } else { Scales::Tensor { a: &ca, b: &cb } };
            let at = |values: &[f32], i: usize| values.get(if rows { i } else { 0 }).copied().unwrap_or(f32::NAN);
            let want: Vec<f32> = sums.iter().enumerate().map(|(i, s)| s * at(&sa, i / n) * at(&sb, i % n)).collect();
            for fast in [false, true] {
                let mut c = self.poison(m, n)?;
                let shape = format!("{m}x{n}x{k} rows {rows} fast {fast}");
                match lt.gemm_fp8(d, ma, mb, scales, fast, Out::tensor(&mut c, m)?, m, n, k, 1.0, 0.0) {
                    Ok(()) => self.note("cublasLt fp8", shape, &d.read_tensor(m, &c)?, &want, FP8),
                    // A library that has no such scales says so; the caller then uses scales per tensor.
                    Err(e) if rows => tracing::warn!("{shape}: {e}"),
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }

    fn scratch(&self, bytes: usize) -> Outcome<Floats> {
        self.poison_floats(bytes / 4)
    }

    fn check_mid(&mut self, n: usize, width: usize, rank: usize) -> Outcome<()> {
        if self.large(n.max(rank) * width) {
            return Ok(());
        }
        let d = self.device;
        let ((x, card_x), (a, card_a)) = (self.operand(n, width)?, self.operand(rank, width)?);
        let want = product(n, rank, width, &x.values, &a.transposed());
        let mut scratch = self.scratch(d.lora_mid_scratch_bytes(n, width, rank))?;
        let (mut mid, gap) = self.apart(rank, 8, &vec![f32::NAN; n * rank])?;
        d.lora_mid(n, &card_x, Matrix::tensor(&card_a, rank)?, &mut mid, &mut scratch)?;
        let shape = format!("{n}x{width} rank {rank}");
        self.note("lora_mid", shape.clone(), &d.read_tensor(n, &mid)?, &want, BF16);
        let untouched = d.read_tensor(n, &gap)?.iter().all(|v| v.is_nan());
        self.note("lora_mid gap", shape, &[f32::from(u8::from(untouched))], &[1.0], 0.0);
        Ok(())
    }

    fn check_da(&mut self, n: usize, width: usize, ranks: usize) -> Outcome<()> {
        if self.large(n.max(ranks) * width) {
            return Ok(());
        }
        let d = self.device;
        let ((x, card_x), (dmid, card_dmid)) = (self.operand(n, width)?, self.operand(n, ranks)?);
        // Three members where there is rank enough.
        let third = if ranks >= 24 { ranks / 24 * 8 } else { ranks };
        let parts: Vec<(usize, usize)> =
            if ranks >= 24 { vec![(0, third), (third, third), (2 * third, ranks - 2 * third)] } else { vec![(0, ranks)] };
        let mut scratch = self.scratch(d.lora_da_scratch_bytes(n, width, ranks))?;
        let before = self.random.values(ranks * width);
        let mut card: Vec<Floats> = Vec::new();
        for &(from, rank) in &parts {
            card.push(d.floats(before.get(from * width..(from + rank) * width).unwrap_or_default())?);
        }
        let mut members: Vec<LoraIn<'_>> =
            parts.iter().zip(&mut card).map(|(&(mid_from, rank), da)| LoraIn { mid_from, rank, da }).collect();
        d.lora_da(n, &card_dmid, &card_x, &mut members, &mut scratch)?;
        let sums = product(ranks, width, n, &dmid.transposed(), &x.values);
        let want: Vec<f32> = sums.iter().zip(&before).map(|(s, b)| s + b).collect();
        let mut got = Vec::new();
        for da in &card {
            got.extend(da.read()?);
        }
        self.note("lora_da", format!("{n}x{width} rank {ranks}"), &got, &want, SUM);
        Ok(())
    }

    fn check_backward(&mut self, plan: Option<BackwardPlan>, n: usize, parts: &[(usize, usize)]) -> Outcome<()> {
        if self.large(n * parts.iter().map(|p| p.0).sum::<usize>()) {
            return Ok(());
        }
        let (d, gap, scale) = (self.device, 16, 0.5);
        // Members do not touch each other: what lies between must not matter.
        let (outs, ranks) = (parts.iter().map(|p| p.0 + gap).sum(), parts.iter().map(|p| p.1 + gap).sum());
        let ((dy, card_dy), (mid, card_mid)) = (self.operand(n, outs)?, self.operand(n, ranks)?);
        let (mut b, mut before, mut db, mut places) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut dy_from, mut mid_from) = (0, 0);
        for &(out, rank) in parts {
            b.push(self.operand(out, rank)?);
            before.push(self.random.values(out * rank));
            db.push(d.floats(before.last().map_or(&[][..], |v| v))?);
            places.push((dy_from, mid_from));
            (dy_from, mid_from) = (dy_from + out + gap, mid_from + rank + gap);
        }
        let mut scratch = self.scratch(d.lora_backward_scratch_bytes(plan, n, parts))?;
        let (start, mut results) = (vec![f32::NAN; n * ranks], Vec::new());
        for again in [false, true] {
            let (mut dmid, _gap) = self.apart(ranks, 8, &start)?;
            let mut members = Vec::new();
            for ((((&(out, rank), &(dy_from, mid_from)), (_, b)), db), before) in
                parts.iter().zip(&places).zip(&b).zip(&mut db).zip(&before)
            {
                db.write_at(0, before)?;
                members.push(LoraOut { dy_from, out, mid_from, rank, b: Matrix::tensor(b, out)?, db, scale });
            }
            match d.lora_backward_as(plan, n, &card_dy, &card_mid, &mut members, &mut dmid, &mut scratch) {
                Ok(()) => {}
                // A plan that was asked for may need more shared memory than the card has, or a kernel that it has not got.
                Err(CudaError::Shape { what: "the shared memory of a block", .. } | CudaError::NoKernel { .. }) if plan.is_some() => {
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            }
            let all = d.read_tensor(n, &dmid)?;
            let mut got: Vec<(Vec<f32>, Vec<f32>)> = Vec::new();
            for ((&(_, rank), &(_, mid_from)), db) in parts.iter().zip(&places).zip(&db) {
                got.push((columns(&all, ranks, mid_from, rank), db.read()?));
            }
            let untouched = parts.iter().zip(&places).all(|(p, at)| columns(&all, ranks, at.1 + p.1, gap).iter().all(|v| v.is_nan()));
            if !again {
                self.note("lora_backward gap", format!("{n} rows {parts:?}"), &[f32::from(u8::from(untouched))], &[1.0], 0.0);
            }
            results.push(got);
        }
        for (i, ((&(out, rank), &(dy_from, mid_from)), (b, _))) in parts.iter().zip(&places).zip(&b).enumerate() {
            let shape = format!("{n} rows, {i} of {parts:?} {plan:?}");
            let dy_i = Stored { rows: n, cols: out, values: columns(&dy.values, outs, dy_from, out) };
            let want_mid = product(n, rank, out, &dy_i.values, &b.values);
            let sums = product(out, rank, n, &dy_i.transposed(), &columns(&mid.values, ranks, mid_from, rank));
            let want_b: Vec<f32> = sums.iter().zip(before.get(i).map_or(&[][..], |v| v)).map(|(s, before)| scale * s + before).collect();
            let [first, second] = &results[..] else { return Ok(()) };
            let (Some(first), Some(second)) = (first.get(i), second.get(i)) else { return Ok(()) };
            self.note("lora_backward dmid", shape.clone(), &first.0, &want_mid, BF16);
            self.note("lora_backward dB", shape.clone(), &first.1, &want_b, SUM);
            let same = first == second;
            self.note("lora_backward again", shape, &[f32::from(u8::from(same))], &[1.0], 0.0);
        }
        Ok(())
    }
}
