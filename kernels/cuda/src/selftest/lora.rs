//! The extended matrix, dropout masks and biases.

use super::{CheckError, Checks, F32, Outcome};
use crate::launch::{LoraPart, MaskRows};
use crate::memory::Tensor;
use half::bf16;
use trainer_kernels::ops::Dropout;
use trainer_kernels::rng::{Purpose, philox4x32_10, split, stream_key};

impl Checks<'_> {
    pub(super) fn all_lora(&mut self) -> Outcome<()> {
        // Rows of the projections, the ranks of their adapters (0: none), input, width.
        self.check_pack(&[4], &[3], 8, 8)?;
        self.check_pack(&[64, 16, 16], &[16, 16, 16], 136, 48)?;
        self.check_pack(&[127, 31, 33], &[5, 0, 11], 64, 24)?;
        self.check_pack(&[256, 256], &[8, 64], 1024, 128)?;
        self.check_pack(&[8, 8, 8, 8], &[4, 4, 4, 4], 8, 16)?;
        self.check_pack(&[40], &[0], 16, 8)?;
        for (n, width) in [(1, 8), (127, 136), (2049, 1024), (5, 4096)] {
            for p in [0.0, 0.1, 0.999] {
                self.check_dropout(n, width, p)?;
            }
            self.check_bias(n, width)?;
        }
        Ok(())
    }

    fn check_pack(&mut self, outs: &[usize], ranks: &[usize], inner: usize, width: usize) -> Outcome<()> {
        let d = self.device;
        let (out, rank_sum): (usize, usize) = (outs.iter().sum(), ranks.iter().sum());
        let (total, columns) = (out + width, inner + width);
        let frozen = self.random.values(out * inner);
        let mut want = vec![0f32; total * columns];
        for (to, from) in want.chunks_mut(columns).zip(frozen.chunks(inner)) {
            to.iter_mut().zip(from).for_each(|(t, f)| *t = *f);
        }
        let (mut buffers, mut row, mut column) = (Vec::new(), 0, 0);
        for (i, (&o, &r)) in outs.iter().zip(ranks).enumerate() {
            let scale = 0.3 + i as f32;
            // Not exact in bf16, so that rounding is seen.
            let a: Vec<f32> = self.random.values(r * inner).into_iter().map(|x| x * 1.001).collect();
            let b: Vec<f32> = self.random.values(r * o).into_iter().map(|x| x * 1.001).collect();
            for (j, a) in a.chunks(inner).enumerate() {
                for (k, &v) in a.iter().enumerate() {
                    want[(out + column + j) * columns + k] = bf16::from_f32(v).to_f32();
                }
            }
            for (j, b) in b.chunks(r.max(1)).enumerate() {
                for (k, &v) in b.iter().enumerate() {
                    want[(row + j) * columns + inner + column + k] = bf16::from_f32(scale * v).to_f32();
                }
            }
            if r > 0 {
                buffers.push((d.floats(&a)?, d.floats(&b)?, r, scale, row, o, column));
            }
            (row, column) = (row + o, column + r);
        }
        let parts: Vec<_> = buffers
            .iter()
            .map(|(a, b, rank, scale, out_start, out, rank_start)| LoraPart {
                a,
                b,
                rank: *rank,
                scale: *scale,
                out_start: *out_start,
                out: *out,
                rank_start: *rank_start,
            })
            .collect();
        let mut before = vec![f32::NAN; total * columns];
        for (to, from) in before.chunks_mut(columns).zip(frozen.chunks(inner)) {
            to.iter_mut().zip(from).for_each(|(t, f)| *t = *f);
        }
        let shape = format!("{outs:?} ranks {ranks:?} in {inner} width {width}");
        let (mut whole, gap) = self.apart(columns, 8, &before)?;
        d.lora_pack(&parts, out, inner, width, &mut whole)?;
        self.note("lora_pack", shape.clone(), &d.read_tensor(total, &whole)?, &want, 0.0);
        let untouched = d.read_tensor(total, &gap)?.iter().all(|v| v.is_nan());
        // As the left one of two tensors.
        let (mut left, mut right) = Tensor::pair(d.arena(), total, inner, width, columns + 16, "an extended matrix")?;
        let halves = |side: usize| {
            move |row: &[f32]| {
                if side == 0 { row.iter().take(inner).copied().collect::<Vec<_>>() } else { row.iter().skip(inner).copied().collect() }
            }
        };
        d.write_tensor(&before.chunks(columns).flat_map(halves(0)).collect::<Vec<_>>(), &mut left)?;
        d.write_tensor(&before.chunks(columns).flat_map(halves(1)).collect::<Vec<_>>(), &mut right)?;
        d.lora_pack(&parts, out, inner, width, &mut left)?;
        let got: Vec<f32> = d.read_tensor(total, &left)?.into_iter().chain(d.read_tensor(total, &right)?).collect();
        let want: Vec<f32> = want.chunks(columns).flat_map(halves(0)).chain(want.chunks(columns).flat_map(halves(1))).collect();
        self.note("lora_pack of a pair", shape, &got, &want, 0.0);
        let refused = d.lora_pack(&parts, out + 1, inner, width, &mut left).is_err()
            && d.lora_pack(&parts, out, inner + 24, width, &mut left).is_err()
            && (rank_sum <= 8 || d.lora_pack(&parts, out, inner, 8, &mut left).is_err());
        if !untouched || !refused {
            return Err(CheckError::Other("lora_pack wrote beside its matrix, or took one that is too small".into()));
        }
        Ok(())
    }

    /// The CPU's `Mask::row`, which is private: the same definition again, from the generator up.
    fn dropped(x: &[f32], dropout: &Dropout, member: u32, sample: u64, position: u32) -> Vec<f32> {
        let [low, high] = split(sample);
        let hash = philox4x32_10([low, high, dropout.step, dropout.module + member], stream_key(dropout.seed, Purpose::Dropout));
        let threshold = (f64::from(dropout.p) * 4_294_967_296.0) as u32;
        let of_four = |(i, x): (usize, &[f32])| {
            let random = philox4x32_10([i as u32, position, hash[2], hash[3]], [hash[0], hash[1]]);
            x.iter().zip(random).map(|(x, r)| if r < threshold { 0.0 } else { x * (1.0 / (1.0 - dropout.p)) }).collect::<Vec<_>>()
        };
        x.chunks(4).enumerate().flat_map(of_four).collect()
    }

    fn check_dropout(&mut self, n: usize, width: usize, p: f32) -> Outcome<()> {
        if self.large(n * width) {
            return Ok(());
        }
        let d = self.device;
        let [x, before] = std::array::from_fn(|_| self.random.values(n * width));
        let samples: Vec<u64> = (0..n).map(|_| self.random.bits()).collect();
        let positions: Vec<u32> = (0..n).map(|_| self.random.below(50_000) as u32).collect();
        let dropout = Dropout { p, seed: self.random.bits(), step: 1 + self.random.below(9000) as u32, module: 17 };
        let (member, round) = (2, |v: f32| bf16::from_f32(v).to_f32());
        let kept: Vec<f32> = (x.chunks(width).zip(&samples).zip(&positions))
            .flat_map(|((x, &sample), &position)| Self::dropped(x, &dropout, member, sample, position))
            .collect();
        let (samples, positions) = (d.upload(&samples, "samples")?, d.upload(&positions, "positions")?);
        let mask = MaskRows { samples: &samples, positions: &positions };
        let ((card, _gap), (mut out, _other)) = (self.apart(width, 8, &x)?, self.apart(width, 16, &vec![f32::NAN; n * width])?);
        d.dropout(n, &card, mask, dropout, member, &mut out)?;
        let want: Vec<f32> = kept.iter().map(|&v| round(v)).collect();
        self.note("dropout", format!("{n}x{width} p {p}"), &d.read_tensor(n, &out)?, &want, 0.0);
        let (mut out, _other) = self.apart(width, 16, &before)?;
        d.dropout_add(n, &card, mask, dropout, member, &mut out)?;
        let want: Vec<f32> = kept.iter().zip(&before).map(|(k, b)| round(b + k)).collect();
        self.note("dropout_add", format!("{n}x{width} p {p}"), &d.read_tensor(n, &out)?, &want, 0.0);
        if d.dropout(n, &card, mask, Dropout { p: 1.0, ..dropout }, member, &mut out).is_ok() {
            return Err(CheckError::Other("a dropout of everything was accepted".into()));
        }
        Ok(())
    }

    fn check_bias(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(n * width) {
            return Ok(());
        }
        let (d, column) = (self.device, 16);
        let all = width + 40;
        let x = self.random.values(n * all);
        let bias = self.random.values(width);
        let (mut out, _gap) = self.apart(all, 8, &x)?;
        d.add_bias(n, &mut out, &d.floats(&bias)?, column)?;
        let mut want = x.clone();
        for row in want.chunks_mut(all) {
            row.iter_mut().skip(column).zip(&bias).for_each(|(w, b)| *w = bf16::from_f32(*w + b).to_f32());
        }
        self.note("add_bias", format!("{n}x{width}"), &d.read_tensor(n, &out)?, &want, 0.0);
        let (dy, _gap) = self.apart(all, 8, &x)?;
        let mut acc = d.floats(&bias)?;
        d.bias_grad(n, &dy, column, &mut acc)?;
        let sum = |c: usize| x.iter().skip(column + c).step_by(all).map(|&v| f64::from(v)).sum::<f64>();
        let want: Vec<f32> = bias.iter().enumerate().map(|(c, b)| (f64::from(*b) + sum(c)) as f32).collect();
        self.note("bias_grad", format!("{n}x{width}"), &acc.read()?, &want, F32);
        Ok(())
    }
}
