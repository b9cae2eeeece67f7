//! Attention inside sequences, forward and backward.

use super::{Checks, Outcome};
use crate::launch::Sequences;
use crate::memory::{Floats, Tensor};
use trainer_kernels::ops::{AttentionShape, HostBatch, Ops};

/// Relative error of a product of probabilities that were rounded to bf16 (half a unit of 2⁻⁸ each, uniform: 0.0017), rounded once more.
const ROUNDED: f64 = 4e-3;
/// Relative error of the gradients of q and k: `p (dp - delta)` is rounded to bf16, and `delta` comes from the rounded output: where `dp`
/// and `delta` nearly cancel (short sequences) its error counts for more.
const CANCELLED: f64 = 8e-3;

/// What a backward reads and writes.
struct Results {
    out: Vec<f32>,
    dqk: Vec<f32>,
    dv: Vec<f32>,
}

impl Checks<'_> {
    pub(super) fn all_attention(&mut self) -> Outcome<()> {
        let shape = |heads, kv_heads, head_dim| AttentionShape { heads, kv_heads, head_dim };
        for lengths in [&[1][..], &[127], &[128, 128], &[5, 64, 130, 1, 300], &[513]] {
            for shape in [shape(4, 2, 32), shape(3, 1, 64), shape(32, 8, 128), shape(16, 8, 128), shape(2, 2, 128)] {
                self.check_attention(lengths, shape)?;
            }
        }
        for shape in [shape(4, 2, 32), shape(3, 1, 64), shape(2, 1, 128), shape(4, 1, 128)] {
            self.check_attention(&[2049], shape)?;
        }
        for shape in [shape(3, 1, 64), shape(8, 2, 128)] {
            self.check_attention_alone(&[300, 1, 1030, 129, 700], shape)?;
        }
        Ok(())
    }

    /// Forward and backward on the card. Values that are not to be read or written are NaN.
    fn attention_on_card(
        &self,
        lengths: &[usize],
        shape: AttentionShape,
        qk: &[f32],
        v: &[f32],
        dout: &[f32],
        gap: usize,
    ) -> Outcome<Results> {
        let (d, n) = (self.device, lengths.iter().sum::<usize>());
        let (q_width, qk_width, width) = (shape.q_width(), shape.qk_width(), shape.qkv_width());
        let seqs: Sequences = d.sequences(&ends(lengths))?;
        let mut qkv = vec![f32::NAN; n * width];
        for (row, v) in qkv.chunks_exact_mut(width).zip(v.chunks_exact(shape.kv_width())) {
            row[qk_width..].copy_from_slice(v);
        }
        let (qk, _a) = self.apart(qk_width, gap, qk)?;
        let (qkv, _b) = self.apart(width, gap, &qkv)?;
        let (dout, _c) = self.apart(q_width, gap, dout)?;
        let (mut out, mut out_gap) = self.apart(q_width, gap, &vec![f32::NAN; n * q_width])?;
        let (mut dqk, dqk_gap) = self.apart(qk_width, gap, &vec![f32::NAN; n * qk_width])?;
        let (mut dqkv, dqkv_gap) = self.apart(width, gap, &vec![f32::NAN; n * width])?;
        let mut lse: Floats = self.poison_floats(n * shape.heads)?;
        let mut scratch = d.attention_scratch(n, shape)?;
        d.attention(n, &seqs, shape, &qk, &qkv, &mut out, &mut lse)?;
        d.attention_backward(n, &seqs, shape, &dout, &out, &qk, &qkv, &lse, &mut scratch, &mut dqk, &mut dqkv)?;
        let untouched = |t: &Tensor| -> Outcome<bool> { Ok(d.read_tensor(n, t)?.iter().all(|x| x.is_nan())) };
        let all = d.read_tensor(n, &dqkv)?;
        let mut fine = all.chunks_exact(width).all(|row| row[..qk_width].iter().all(|x| x.is_nan()));
        for t in [&mut out_gap, &mut { dqk_gap }, &mut { dqkv_gap }] {
            fine &= untouched(t)?;
        }
        let dv = if fine { all.chunks_exact(width).flat_map(|row| row[qk_width..].to_vec()).collect() } else { Vec::new() };
        Ok(Results { out: d.read_tensor(n, &out)?, dqk: d.read_tensor(n, &dqk)?, dv })
    }

    fn check_attention(&mut self, lengths: &[usize], shape: AttentionShape) -> Outcome<()> {
        if self.large(lengths.iter().sum::<usize>() * shape.qkv_width()) {
            return Ok(());
        }
        let n = lengths.iter().sum::<usize>();
        let (q_width, qk_width, width) = (shape.q_width(), shape.qk_width(), shape.qkv_width());
        let (qk, v, dout) = (self.random.values(n * qk_width), self.random.values(n * shape.kv_width()), self.random.values(n * q_width));
        let got = self.attention_on_card(lengths, shape, &qk, &v, &dout, 64)?;
        let again = self.attention_on_card(lengths, shape, &qk, &v, &dout, 8)?;

        let positions = lengths.iter().flat_map(|&l| 0..l as u32).collect();
        let batch = self.cpu.batch(&HostBatch { ids: vec![0; n], positions, cu_seqlens: ends(lengths), ..HostBatch::default() })?;
        let mut qkv = vec![0.0; n * width];
        for (row, v) in qkv.chunks_exact_mut(width).zip(v.chunks_exact(shape.kv_width())) {
            row[qk_width..].copy_from_slice(v);
        }
        let (qk, qkv, dout) = (self.host(n, qk_width, &qk)?, self.host(n, width, &qkv)?, self.host(n, q_width, &dout)?);
        let (mut out, mut lse) = (self.cpu.tensor(n, q_width)?, self.cpu.stats(n, shape.heads)?);
        let (mut dqk, mut dqkv) = (self.cpu.tensor(n, qk_width)?, self.cpu.tensor(n, width)?);
        self.cpu.attention(&batch, n, shape, &qk, &qkv, &mut out, &mut lse)?;
        self.cpu.attention_backward(&batch, n, shape, &dout, &out, &qk, &qkv, &lse, &mut dqk, &mut dqkv)?;
        let want = Results {
            out: self.cpu.read_tensor(n, &out)?,
            dqk: self.cpu.read_tensor(n, &dqk)?,
            dv: self.cpu.read_tensor(n, &dqkv)?.chunks_exact(width).flat_map(|row| row[qk_width..].to_vec()).collect(),
        };

        let name = format!("{lengths:?} {}/{}x{}", shape.heads, shape.kv_heads, shape.head_dim);
        self.note("attention", name.clone(), &got.out, &want.out, ROUNDED);
        let part =
            |dqk: &[f32], from: usize, to: usize| dqk.chunks_exact(qk_width).flat_map(|row| row[from..to].to_vec()).collect::<Vec<_>>();
        if n > 1 {
            self.note("attention_backward dq", name.clone(), &part(&got.dqk, 0, q_width), &part(&want.dqk, 0, q_width), CANCELLED);
            self.note(
                "attention_backward dk",
                name.clone(),
                &part(&got.dqk, q_width, qk_width),
                &part(&want.dqk, q_width, qk_width),
                CANCELLED,
            );
        } else {
            // One key: the gradient is zero but for the rounding of the output in delta.
            let largest = got.dqk.iter().fold(0.0f32, |m, x| if x.is_nan() { f32::INFINITY } else { m.max(x.abs()) });
            self.note("attention_backward dqk", name.clone(), &[1.0 + largest.min(10.0)], &[1.0], 0.1);
        }
        self.note("attention_backward dv", name.clone(), &got.dv, &want.dv, ROUNDED);
        self.note("attention twice", name.clone(), &again.out, &got.out, 0.0);
        self.note("attention_backward twice", name.clone(), &again.dqk, &got.dqk, 0.0);
        self.note("attention_backward twice dv", name, &again.dv, &got.dv, 0.0);
        Ok(())
    }

    /// Each sequence of a pack gives the same bits alone.
    fn check_attention_alone(&mut self, lengths: &[usize], shape: AttentionShape) -> Outcome<()> {
        if self.large(lengths.iter().sum::<usize>() * shape.qkv_width()) {
            return Ok(());
        }
        let n = lengths.iter().sum::<usize>();
        let widths = [shape.qk_width(), shape.kv_width(), shape.q_width()];
        let [qk, v, dout] = widths.map(|w| self.random.values(n * w));
        let pack = self.attention_on_card(lengths, shape, &qk, &v, &dout, 8)?;
        let mut first = 0;
        for &len in lengths {
            let part = |values: &[f32], width: usize| values[first * width..(first + len) * width].to_vec();
            let (qk, v, dout) = (part(&qk, widths[0]), part(&v, widths[1]), part(&dout, widths[2]));
            let alone = self.attention_on_card(&[len], shape, &qk, &v, &dout, 8)?;
            let name = format!("{len} of {lengths:?} {}/{}x{}", shape.heads, shape.kv_heads, shape.head_dim);
            self.note("attention alone", name.clone(), &alone.out, &part(&pack.out, widths[2]), 0.0);
            self.note("attention_backward alone", name.clone(), &alone.dqk, &part(&pack.dqk, widths[0]), 0.0);
            self.note("attention_backward alone dv", name, &alone.dv, &part(&pack.dv, widths[1]), 0.0);
            first += len;
        }
        Ok(())
    }
}

/// First rows of sequences, then the number of rows.
fn ends(lengths: &[usize]) -> Vec<u32> {
    let sums = lengths.iter().scan(0u32, |sum, &l| {
        *sum += l as u32;
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}
