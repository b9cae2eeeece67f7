//! Generation: linear layers of few rows, the key/value cache and attention to it, recorded launches.

use super::{BF16, CheckError, Checks, Outcome};
use crate::launch::{SmallLora, SmallMember};
use crate::memory::{Floats, Tensor};
use half::bf16;
use trainer_kernels::nf4::{DoubleQuant, Nf4};
use trainer_kernels::ops::{AttentionShape, HostBatch, Ops};

/// Relative error of logits in f32 from bf16 inputs: the order of the sum alone.
const SUM: f64 = 1e-5;

/// One projection of a check: the weight in both forms and its adapter.
struct Projection {
    rows: usize,
    weight: crate::launch::DeviceNf4,
    dense: Vec<f32>,
    rank: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    bias: Vec<f32>,
    card: Option<(Floats, Floats)>,
    card_bias: Option<Floats>,
}

const SCALE: f32 = 0.5;

impl Projection {
    fn member(&self, column: usize) -> SmallMember<'_> {
        let lora = self.card.as_ref().map(|(a, b)| SmallLora { a, b, rank: self.rank, scale: SCALE });
        SmallMember { weight: &self.weight, column, lora, bias: self.card_bias.as_ref() }
    }

    /// The reference: `[n, rows]`.
    fn reference(&self, n: usize, x: &[f32], cols: usize) -> Vec<f32> {
        let mut y = product(n, x, &self.dense, cols, self.rows);
        if self.rank > 0 {
            let mid = product(n, x, &self.a, cols, self.rank);
            let low = product(n, &mid, &self.b, self.rank, self.rows);
            y.iter_mut().zip(low).for_each(|(y, v)| *y += SCALE * v);
        }
        if !self.bias.is_empty() {
            y.chunks_mut(self.rows).for_each(|y| y.iter_mut().zip(&self.bias).for_each(|(y, b)| *y += b));
        }
        y
    }
}

/// `x wᵀ` with sums in f64.
fn product(n: usize, x: &[f32], w: &[f32], cols: usize, rows: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(n * rows);
    for x in x.chunks_exact(cols.max(1)).take(n) {
        out.extend(w.chunks_exact(cols.max(1)).take(rows).map(|w| {
            let mut sums = [0f64; 8];
            for (x, w) in x.chunks(8).zip(w.chunks(8)) {
                sums.iter_mut().zip(x.iter().zip(w)).for_each(|(s, (x, w))| *s += f64::from(*x) * f64::from(*w));
            }
            sums.iter().sum::<f64>() as f32
        }));
    }
    out
}

fn columns(values: &[f32], width: usize, from: usize, to: usize) -> Vec<f32> {
    values.chunks(width).flat_map(|row| row.get(from..to).unwrap_or(&[]).to_vec()).collect()
}

impl Checks<'_> {
    pub(super) fn all_decode(&mut self) -> Outcome<()> {
        for (cols, blocksize, double) in [
            (256, 64, DoubleQuant::default()),
            (1088, 64, DoubleQuant::default()),
            (4096, 64, DoubleQuant::default()),
            (1024, 64, DoubleQuant::No),
            (192, 64, DoubleQuant::No),
            (1536, 256, DoubleQuant::default()),
            (200, 64, DoubleQuant::default()),
            (128, 32, DoubleQuant::No),
        ] {
            self.check_small(cols, blocksize, double)?;
        }
        for cols in [64, 136, 1088, 4096] {
            self.check_head(cols)?;
        }
        for (heads, kv_heads, head_dim) in [(4, 2, 128), (5, 1, 64), (8, 8, 32), (16, 2, 128)] {
            self.check_cached(AttentionShape { heads, kv_heads, head_dim })?;
        }
        for head_dim in [32, 128] {
            self.check_long(AttentionShape { heads: 3, kv_heads: 1, head_dim })?;
        }
        Ok(())
    }

    /// One row far behind in a long sequence: more parts than are combined at once.
    fn check_long(&mut self, shape: AttentionShape) -> Outcome<()> {
        if self.large(8500 * shape.qkv_width()) {
            return Ok(());
        }
        let (d, n, length) = (self.device, 8500, 9000);
        let (qk, qkv) = (self.random.values(n * shape.qk_width()), self.random.values(n * shape.qkv_width()));
        let positions: Vec<u32> = (0..n as u32).collect();
        let host = |positions: &[u32]| HostBatch {
            ids: vec![0; positions.len()],
            positions: positions.to_vec(),
            cu_seqlens: vec![0, positions.len() as u32],
            slots: vec![0],
            ..HostBatch::default()
        };
        let (mut cache, mut cpu_cache) = (d.kv_cache(1, 1, length, shape)?, self.cpu.cache(1, 1, length, shape)?);
        let (card_qk, card_qkv) = (d.tensor(shape.qk_width(), &qk)?, d.tensor(shape.qkv_width(), &qkv)?);
        let slots = d.upload(&vec![0u32; n], "slots")?;
        d.cache_append(n, 0, &d.upload(&positions, "positions")?, &slots, shape, &card_qk, &card_qkv, &mut cache)?;
        let (cpu_qk, cpu_qkv) = (self.host(n, shape.qk_width(), &qk)?, self.host(n, shape.qkv_width(), &qkv)?);
        self.cpu.cache_append(&self.cpu.batch(&host(&positions))?, n, 0, shape, &cpu_qk, &cpu_qkv, &mut cpu_cache)?;
        let last = [n as u32 - 1];
        let (mut out, mut cpu_out) = (self.poison(1, shape.q_width())?, self.cpu.tensor(1, shape.q_width())?);
        let mut scratch = d.cached_scratch(1, length, shape)?;
        d.attention_cached(1, 0, shape, &card_qk, &cache, &d.upload(&last, "a position")?, &slots, length, &mut scratch, &mut out)?;
        self.cpu.attention_cached(&self.cpu.batch(&host(&last))?, 1, 0, shape, &cpu_qk, &cpu_cache, &mut cpu_out)?;
        let what = format!("{}/{}x{} at {n}", shape.heads, shape.kv_heads, shape.head_dim);
        self.note("attention_cached", what, &d.read_tensor(1, &out)?, &self.cpu.read_tensor(1, &cpu_out)?, BF16);
        Ok(())
    }

    fn projection(
        &mut self,
        rows: usize,
        cols: usize,
        rank: usize,
        bias: bool,
        blocksize: usize,
        double: DoubleQuant,
    ) -> Outcome<Projection> {
        let w = Nf4::quantize(&self.random.values(rows * cols), &[rows, cols], blocksize, double)
            .map_err(|e| CheckError::Other(e.to_string()))?;
        let (a, b) = (self.random.values(rank * cols), self.random.values(rows * rank));
        let bias = if bias { self.random.values(rows) } else { Vec::new() };
        let card = if rank > 0 { Some((self.device.floats(&a)?, self.device.floats(&b)?)) } else { None };
        let card_bias = if bias.is_empty() { None } else { Some(self.device.floats(&bias)?) };
        Ok(Projection { rows, weight: self.device.nf4(&w)?, dense: w.dequantize::<f32>(), rank, a, b, bias, card, card_bias })
    }

    fn check_small(&mut self, cols: usize, blocksize: usize, double: DoubleQuant) -> Outcome<()> {
        if self.large(256 * cols) {
            return Ok(());
        }
        let d = self.device;
        let members = [
            self.projection(104, cols, 16, false, blocksize, double)?,
            self.projection(24, cols, 0, true, blocksize, double)?,
            self.projection(56, cols, 5, false, blocksize, double)?,
        ];
        let starts = [0, 112, 136];
        let (width, most) = (192, 64);
        let x = self.random.values(most * cols);
        let (card_x, _gap) = self.apart(cols, 8, &x)?;
        let small: Vec<SmallMember<'_>> = members.iter().zip(starts).map(|(m, start)| m.member(start)).collect();
        let kind = format!("{cols} block {blocksize}{}", if double == DoubleQuant::No { "" } else { " dq" });
        let (mut mid, mut first) = (self.poison_floats(crate::launch::small_scratch(most, cols, 24))?, Vec::new());
        for n in [1, 3, 8, 9, 16, 17, 32, 33, 64] {
            let (mut out, _gap) = self.apart(width, 64, &vec![f32::NAN; n * width])?;
            d.nf4_linear(n, &card_x, &small, &mut mid, &mut out)?;
            let got = d.read_tensor(n, &out)?;
            for (m, start) in members.iter().zip(starts) {
                let want = m.reference(n, &x, cols);
                let what = format!("{n}x{kind} to {} rank {}", m.rows, m.rank);
                self.note("nf4_linear", what, &columns(&got, width, start, start + m.rows), &want, BF16);
            }
            // What belongs to no member stays, and the first row is the same in every batch.
            let gap = columns(&got, width, 104, 112);
            let kept = if gap.iter().all(|v| v.is_nan()) { got.get(..104).unwrap_or(&[]) } else { &[] };
            if n == 1 {
                first = got.get(..104).unwrap_or(&[]).to_vec();
            }
            self.note("nf4_linear, alone or not", format!("{n}x{kind}"), kept, &first, 0.0);
            for tile in [16, 32, 48, 64] {
                let (mut out, _gap) = self.apart(width, 64, &vec![f32::NAN; n * width])?;
                d.nf4_linear_tiled(n, &card_x, &small, &mut mid, &mut out, Some(tile))?;
                let again = columns(&d.read_tensor(n, &out)?, width, 112, 192);
                self.note("nf4_linear, other tiles", format!("{n}x{kind}"), &again, &columns(&got, width, 112, 192), 0.0);
            }
        }
        // One row with its norm before or the residual stream after: the bits of separate kernels.
        let norm_weight = d.floats(&self.random.values(cols))?;
        if d.nf4_folds(1, &small) {
            let (mut h, mut rstd) = (self.poison(1, cols)?, self.poison_floats(1)?);
            d.rms_norm(1, &card_x, &norm_weight, 1e-6, &mut h, &mut rstd)?;
            let (mut apart, mut folded) = (self.poison(1, width)?, self.poison(1, width)?);
            d.nf4_linear(1, &h, &small, &mut mid, &mut apart)?;
            d.nf4_norm_linear(1, &card_x, &norm_weight, 1e-6, &small, &mut mid, &mut folded)?;
            let (got, want) = (d.read_tensor(1, &folded)?, d.read_tensor(1, &apart)?);
            self.note("nf4_norm_linear", kind.clone(), got.get(..104).unwrap_or(&[]), want.get(..104).unwrap_or(&[]), 0.0);
            let stream = self.random.values(104);
            let (mut delta, mut apart, mut folded) = (self.poison(1, 104)?, d.tensor(104, &stream)?, d.tensor(104, &stream)?);
            d.nf4_linear(1, &card_x, &[members[0].member(0)], &mut mid, &mut delta)?;
            d.add(1, &mut apart, &delta)?;
            d.nf4_linear_add(1, &card_x, members[0].member(0), &mut mid, &mut folded)?;
            self.note("nf4_linear_add", kind.clone(), &d.read_tensor(1, &folded)?, &d.read_tensor(1, &apart)?, 0.0);
        }
        // Without adapters, no scratch is needed; recorded, the result is the same.
        let plain = [SmallMember { lora: None, ..members[0].member(0) }];
        let (mut none, mut out) = (d.floats(&[])?, self.poison(5, 104)?);
        let want = product(5, &x, &members[0].dense, cols, 104);
        let mut graph = d.capture(|| d.nf4_linear(5, &card_x, &plain, &mut none, &mut out))?;
        let before = d.read_tensor(5, &out)?.iter().all(|v| v.is_nan());
        graph.launch()?;
        let got = d.read_tensor(5, &out)?;
        self.note("nf4_linear, recorded", format!("5x{kind}"), if before { &got } else { &[] }, &want, BF16);
        let (gate, up) =
            (self.projection(104, cols, 16, true, blocksize, double)?, self.projection(104, cols, 8, false, blocksize, double)?);
        if !d.nf4_swiglu_fits(1, &gate.weight, &up.weight, 24) {
            let irregular = !cols.is_multiple_of(256) || blocksize < 64;
            let outcome: &[f32] = if irregular { &[1.0] } else { &[] };
            self.note("nf4_swiglu is refused", kind, outcome, &[1.0], 0.0);
            return Ok(());
        }
        // Gates of about the size that makes the activation curved.
        let x: Vec<f32> = x.iter().map(|v| bf16::from_f32(v * 2.0 / (cols as f32).sqrt()).to_f32()).collect();
        let card_x = d.tensor(cols, &x)?;
        let (mut h, mut rstd) = (self.poison(1, cols)?, self.poison_floats(1)?);
        d.rms_norm(1, &card_x, &norm_weight, 1e-6, &mut h, &mut rstd)?;
        let (mut apart, mut folded) = (self.poison(1, 104)?, self.poison(1, 104)?);
        d.nf4_swiglu(1, &h, gate.member(0), up.member(0), &mut mid, &mut apart)?;
        d.nf4_norm_swiglu(1, &card_x, &norm_weight, 1e-6, gate.member(0), up.member(0), &mut mid, &mut folded)?;
        self.note("nf4_norm_swiglu", kind.clone(), &d.read_tensor(1, &folded)?, &d.read_tensor(1, &apart)?, 0.0);
        for n in [1, 8, 13, 32, 50] {
            let (g, u) = (gate.reference(n, &x, cols), up.reference(n, &x, cols));
            let want: Vec<f32> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let mut got = Vec::new();
            for tile in [16, 32, 64] {
                let (mut out, _gap) = self.apart(104, 8, &vec![f32::NAN; n * 104])?;
                d.nf4_swiglu_tiled(n, &card_x, gate.member(0), up.member(0), &mut mid, &mut out, Some(tile))?;
                let now = d.read_tensor(n, &out)?;
                if tile == 16 {
                    // Both factors carry the rounding of the code points, of B and of `x Aᵀ`, and the adapters are as large as the base here:
                    // 4.2e-3 was seen in a row of 104 values.
                    self.note("nf4_swiglu", format!("{n}x{kind}"), &now, &want, 6e-3);
                    got = now;
                } else {
                    self.note("nf4_swiglu, other tiles", format!("{n}x{kind}"), &now, &got, 0.0);
                }
            }
        }
        Ok(())
    }

    fn check_head(&mut self, cols: usize) -> Outcome<()> {
        if self.large(333 * cols) {
            return Ok(());
        }
        let (d, features) = (self.device, 333);
        let w = self.random.values(features * cols);
        let x = self.random.values(64 * cols);
        let ((weight, _gap), card_x) = (self.apart(cols, 8, &w)?, d.tensor(cols, &x)?);
        let mut first = Vec::new();
        for n in [1, 8, 11, 29, 64] {
            let mut out = self.poison_floats(n * features)?;
            d.bf16_linear_small(n, &card_x, &weight, &mut out)?;
            let got = out.read()?;
            self.note("bf16_linear_small", format!("{n}x{cols} to {features}"), &got, &product(n, &x, &w, cols, features), SUM);
            if n == 1 {
                first.clone_from(&got);
            }
            self.note("bf16_linear_small, alone or not", format!("{n}x{cols}"), got.get(..features).unwrap_or(&[]), &first, 0.0);
        }
        Ok(())
    }

    fn check_cached(&mut self, shape: AttentionShape) -> Outcome<()> {
        let (d, layers, slots, length, eps, theta) = (self.device, 2, 4, 333, 1e-6, 1e6);
        let name = format!("{}/{}x{}", shape.heads, shape.kv_heads, shape.head_dim);
        let before = d.arena().usage().in_use;
        let (mut cache, mut cpu_cache) = (d.kv_cache(layers, slots, length, shape)?, self.cpu.cache(layers, slots, length, shape)?);
        let mut fused = d.kv_cache(layers, slots, length, shape)?;
        let mut rotated_here = d.kv_cache(layers, slots, length, shape)?;
        let bytes = (d.arena().usage().in_use - before) as f32 / 3.0;
        let said = crate::launch::kv_cache_bytes(layers, slots, length, shape).unwrap_or(0) as f32;
        self.note("kv_cache_bytes", name.clone(), &[said], &[bytes], 0.0);
        let (qw, kw) = (self.random.values(shape.head_dim), self.random.values(shape.head_dim));
        let (card_qw, card_kw) = (d.floats(&qw)?, d.floats(&kw)?);
        let (cpu_qw, cpu_kw) = (self.cpu.vector(&qw)?, self.cpu.vector(&kw)?);
        let angles = d.angles(length, shape.head_dim, theta)?;
        // Per call: (slot, first position, rows). Prompts, continuations of several rows, single rows, slots in any order, one left empty.
        let calls: [&[(u32, u32, u32)]; 5] = [
            &[(2, 0, 130), (0, 0, 1), (3, 0, 7)],
            &[(3, 7, 121), (2, 130, 1)],
            &[(0, 1, 1), (3, 128, 1), (2, 131, 1)],
            &[(2, 132, 5), (3, 129, 203), (0, 2, 2)],
            &[(3, 332, 1)],
        ];
        for (call, sequences) in calls.iter().enumerate() {
            let layer = call % layers;
            let n: usize = sequences.iter().map(|s| s.2 as usize).sum();
            let positions: Vec<u32> = sequences.iter().flat_map(|&(_, start, rows)| start..start + rows).collect();
            let of_rows: Vec<u32> = sequences.iter().flat_map(|&(slot, _, rows)| std::iter::repeat_n(slot, rows as usize)).collect();
            let cu_seqlens: Vec<u32> = std::iter::once(0)
                .chain(sequences.iter().scan(0, |sum, s| {
                    *sum += s.2;
                    Some(*sum)
                }))
                .collect();
            let host = HostBatch {
                ids: vec![0; n],
                positions: positions.clone(),
                cu_seqlens,
                slots: sequences.iter().map(|s| s.0).collect(),
                ..HostBatch::default()
            };
            let batch = self.cpu.batch(&host)?;
            let (card_positions, card_slots) = (d.upload(&positions, "positions")?, d.upload(&of_rows, "slots")?);
            let qkv = self.random.values(n * shape.qkv_width());
            let (card_qkv, cpu_qkv) = (d.tensor(shape.qkv_width(), &qkv)?, self.host(n, shape.qkv_width(), &qkv)?);
            // The reference's rotation, rounded as the card stores it, feeds both sides.
            let (mut cpu_qk, mut cpu_rstd) = (self.cpu.tensor(n, shape.qk_width())?, self.cpu.stats(n, shape.heads + shape.kv_heads)?);
            self.cpu.qk_norm_rope(&batch, n, shape, &cpu_qkv, &cpu_qw, &cpu_kw, eps, theta, &mut cpu_qk, &mut cpu_rstd)?;
            let rotated: Vec<f32> = self.cpu.read_tensor(n, &cpu_qk)?.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
            self.cpu.write_tensor(&rotated, &mut cpu_qk)?;
            let (qk, _gap) = self.apart(shape.qk_width(), 8, &rotated)?;
            let mut scratch = d.cached_scratch(n, length, shape)?;
            let what = format!("{name} {n} rows");
            // Both layers hold what was appended, so that every call reads what earlier calls wrote.
            for layer in 0..layers {
                d.cache_append(n, layer, &card_positions, &card_slots, shape, &qk, &card_qkv, &mut cache)?;
                self.cpu.cache_append(&batch, n, layer, shape, &cpu_qk, &cpu_qkv, &mut cpu_cache)?;
            }
            let mut cpu_out = self.cpu.tensor(n, shape.q_width())?;
            self.cpu.attention_cached(&batch, n, layer, shape, &cpu_qk, &cpu_cache, &mut cpu_out)?;
            let want = self.cpu.read_tensor(n, &cpu_out)?;
            let longest = positions.iter().max().map_or(1, |p| *p as usize + 1);
            let mut got = Vec::new();
            // Twice with one scratch: its counters come back to zero; and with a grid for more than is there.
            for reach in [longest, length] {
                let (mut out, _gap) = self.apart(shape.q_width(), 64, &vec![f32::NAN; n * shape.q_width()])?;
                d.attention_cached(n, layer, shape, &qk, &cache, &card_positions, &card_slots, reach, &mut scratch, &mut out)?;
                let now = d.read_tensor(n, &out)?;
                if reach == longest {
                    self.note("attention_cached", what.clone(), &now, &want, BF16);
                    got = now;
                } else {
                    self.note("attention_cached, larger grid", what.clone(), &now, &got, 0.0);
                }
            }
            // The last row alone.
            let row = n - 1;
            let alone = d.tensor(shape.qk_width(), rotated.get(row * shape.qk_width()..).unwrap_or(&[]))?;
            let (position, slot) =
                (d.upload(positions.get(row..).unwrap_or(&[]), "a position")?, d.upload(of_rows.get(row..).unwrap_or(&[]), "a slot")?);
            let mut out = self.poison(1, shape.q_width())?;
            d.attention_cached(1, layer, shape, &alone, &cache, &position, &slot, length, &mut scratch, &mut out)?;
            self.note(
                "attention_cached, alone",
                what.clone(),
                &d.read_tensor(1, &out)?,
                got.get(row * shape.q_width()..).unwrap_or(&[]),
                0.0,
            );
            // The fused rotation, its queries and what it put into the cache.
            let mut q = self.poison(n, shape.q_width())?;
            for layer in 0..layers {
                d.qk_norm_rope_append(
                    n,
                    layer,
                    &card_positions,
                    &card_slots,
                    &angles,
                    shape,
                    &card_qkv,
                    &card_qw,
                    &card_kw,
                    eps,
                    &mut q,
                    &mut fused,
                )?;
            }
            let queries = columns(&rotated, shape.qk_width(), 0, shape.q_width());
            self.note("qk_norm_rope_append", what.clone(), &d.read_tensor(n, &q)?, &queries, BF16);
            let mut out: Tensor = self.poison(n, shape.q_width())?;
            d.attention_cached(n, layer, shape, &q, &fused, &card_positions, &card_slots, length, &mut scratch, &mut out)?;
            let got = d.read_tensor(n, &out)?;
            // Queries and keys may be rounded to either side of a tie.
            self.note("attention to the fused cache", what.clone(), &got, &want, 4e-3);
            // All in one, where each slot has one row; what it leaves in the cache shows in later calls.
            let mut out: Tensor = self.poison(n, shape.q_width())?;
            for layer in 0..layers {
                let (at, of, cache) = (&card_positions, &card_slots, &mut rotated_here);
                if n == sequences.len() {
                    let (q, k, parts) = (&card_qw, &card_kw, &mut scratch);
                    d.attention_rotated(n, layer, shape, &card_qkv, &angles, q, k, eps, cache, at, of, length, parts, &mut out)?;
                } else {
                    d.qk_norm_rope_append(n, layer, at, of, &angles, shape, &card_qkv, &card_qw, &card_kw, eps, &mut q, cache)?;
                }
            }
            if n == sequences.len() {
                self.note("attention_rotated", what, &d.read_tensor(n, &out)?, &got, 0.0);
            }
        }
        Ok(())
    }
}
