//! Adapters beside the matrix products: their weights in the extended matrix, dropout, biases.

use super::{blocks, fail, grid, launch, least, product, rows, vectors};
use crate::Result;
use crate::device::{Arg, Device};
use crate::memory::{Buffer, Floats, Tensor};
use trainer_kernels::ops::Dropout;
use trainer_kernels::rng::{Purpose, stream_key};

/// The most projections of a group that [`Device::lora_pack`] takes.
pub const MOST_PARTS: usize = 4;

/// The adapter of one projection of a group, and its place in the extended matrix.
#[derive(Clone, Copy)]
pub struct LoraPart<'a> {
    /// `[rank, in]`.
    pub a: &'a Floats,
    /// `[out, rank]`.
    pub b: &'a Floats,
    /// Rank.
    pub rank: usize,
    /// What B is multiplied by.
    pub scale: f32,
    /// The projection's first row.
    pub out_start: usize,
    /// Its rows.
    pub out: usize,
    /// The adapter's first row below the frozen weight, and its first column beside it.
    pub rank_start: usize,
}

/// Rows that a mask depends on: for each the number of its sample and its position in the sequence.
#[derive(Clone, Copy)]
pub struct MaskRows<'a> {
    /// Per row: the global sample number.
    pub samples: &'a Buffer<u64>,
    /// Per row: the position.
    pub positions: &'a Buffer<u32>,
}

impl Device {
    /// Writes the adapters of a group into its extended matrix, rounded to bf16. With `R = width` that matrix has `out + R` rows of `in_features + R`
    /// columns: above left the frozen weight, which is left alone; above right `scale * B` of each part in its own rows and columns and zeros elsewhere;
    /// below left each A in its own rows, below right zeros. Ranks need not fill `R`; `extended` may be the left one of two tensors that share rows as
    /// long as its rows have room for `R` more columns.
    ///
    /// # Errors
    /// More than [`MOST_PARTS`] parts, sizes that are no multiples of 8 (all but ranks and rows), parts that overlap or stick out, or buffers that do not fit.
    pub fn lora_pack(&self, parts: &[LoraPart<'_>], out: usize, in_features: usize, width: usize, extended: &mut Tensor) -> Result<()> {
        let op = "lora_pack";
        let columns = in_features.saturating_add(width);
        let stride = rows(op, "the extended matrix", extended, 0, extended.cols())?;
        least(op, "the extended matrix", extended.rows(), out.checked_add(width))?;
        // Columns behind the tensor's own may belong to a neighbour in the same rows, but never to the next row.
        let start = extended.offset() % extended.stride().max(1);
        least(op, "the extended matrix's row", extended.stride(), start.checked_add(columns))?;
        least(
            op,
            "the extended matrix",
            extended.buffer().len(),
            extended.offset().checked_add((out + width - 1) * extended.stride() + columns),
        )?;
        let outs = extended.ptr() + 2 * in_features as u64;
        let ins = extended.ptr() + 2 * (out * extended.stride()) as u64;
        self.pack(op, parts, [out, in_features, width, columns], (outs, stride), (ins, stride))
    }

    /// As [`Self::lora_pack`], but `scale * B`, `[out, width]`, and A, `[width, in_features]`, go to matrices of their own.
    ///
    /// # Errors
    /// As [`Self::lora_pack`].
    pub fn lora_pack_apart(&self, parts: &[LoraPart<'_>], outs: &mut Tensor, ins: &mut Tensor) -> Result<()> {
        let op = "lora_pack_apart";
        let (out, width, in_features) = (outs.rows(), outs.cols(), ins.cols());
        let to = (outs.ptr(), rows(op, "B", outs, out, width)?);
        let below = (ins.ptr(), rows(op, "A", ins, width, in_features)?);
        self.pack(op, parts, [out, in_features, width, in_features], to, below)
    }

    /// Launches the kernel: `[out, in, width, columns below]` and where B and A go, with strides in vectors.
    fn pack(&self, op: &'static str, parts: &[LoraPart<'_>], sizes: [usize; 4], outs: (u64, u32), ins: (u64, u32)) -> Result<()> {
        let [out, in_features, width, columns] = sizes;
        if parts.len() > MOST_PARTS {
            return Err(fail(op, "the group", parts.len(), format_args!("at most {MOST_PARTS} members with adapters")));
        }
        let (in_vectors, narrow, wide) =
            (vectors(op, "the input", in_features)?, vectors(op, "the adapters' width", width)?, vectors(op, "the columns", columns)?);
        let total = out as u64 * u64::from(narrow) + width as u64 * u64::from(wide);
        if u32::try_from(total.saturating_mul(8)).is_err() {
            return Err(fail(op, "the adapters", total as usize, "less than 2^29 vectors"));
        }
        let narrowed = |n: usize| u32::try_from(n).map_err(|_| fail(op, "a size", n, "less than 2^32"));
        let mut args: Vec<Arg<'_>> = Vec::with_capacity(36);
        for (i, p) in parts.iter().enumerate() {
            least(op, "lora A", p.a.len(), product(&[p.rank, in_features]))?;
            least(op, "lora B", p.b.len(), product(&[p.out, p.rank]))?;
            least(op, "the extended matrix's rows", out, p.out_start.checked_add(p.out))?;
            least(op, "the adapters' width", width, p.rank_start.checked_add(p.rank))?;
            let apart = |q: &LoraPart<'_>| p.rank_start + p.rank <= q.rank_start || q.rank_start + q.rank <= p.rank_start;
            if !parts.iter().take(i).all(apart) {
                return Err(fail(op, "an adapter's first column", p.rank_start, "columns of its own"));
            }
            let [rank, out_start, out, rank_start] = [p.rank, p.out_start, p.out, p.rank_start].map(narrowed);
            let part: [Arg<'_>; 7] =
                [p.a.ptr().into(), p.b.ptr().into(), rank?.into(), p.scale.into(), out_start?.into(), out?.into(), rank_start?.into()];
            args.extend(part);
        }
        let none: [Arg<'_>; 7] = [0u64.into(), 0u64.into(), 0u32.into(), 0f32.into(), 0u32.into(), 0u32.into(), 0u32.into()];
        args.extend((parts.len()..MOST_PARTS).flat_map(|_| none));
        let places: [Arg<'_>; 8] = [
            outs.0.into(),
            outs.1.into(),
            ins.0.into(),
            ins.1.into(),
            narrowed(out)?.into(),
            (8 * in_vectors).into(),
            (8 * narrow).into(),
            wide.into(),
        ];
        args.extend(places);
        self.launch("lora_pack", grid(blocks(op, total as usize, 256)?, 1, 256), &args)
    }

    /// `out = x * mask / (1 - p)` with the mask of member `member` of the group: the CPU reference's, bit for bit.
    ///
    /// # Errors
    /// Buffers that do not fit, or a probability outside of `0.0..1.0`.
    pub fn dropout(&self, n: usize, x: &Tensor, mask: MaskRows<'_>, dropout: Dropout, member: u32, out: &mut Tensor) -> Result<()> {
        self.drop_rows("dropout", n, x, mask, dropout, member, out)
    }

    /// `out_acc += x * mask / (1 - p)`; as [`Self::dropout`].
    ///
    /// # Errors
    /// Buffers that do not fit, or a probability outside of `0.0..1.0`.
    pub fn dropout_add(&self, n: usize, x: &Tensor, mask: MaskRows<'_>, dropout: Dropout, member: u32, out_acc: &mut Tensor) -> Result<()> {
        self.drop_rows("dropout_add", n, x, mask, dropout, member, out_acc)
    }

    #[expect(clippy::too_many_arguments, reason = "a mask depends on everything that identifies an element")]
    fn drop_rows(
        &self,
        op: &'static str,
        n: usize,
        x: &Tensor,
        mask: MaskRows<'_>,
        dropout: Dropout,
        member: u32,
        out: &mut Tensor,
    ) -> Result<()> {
        if !(0.0..1.0).contains(&dropout.p) {
            return Err(fail(op, "the probability", 1, "at least 0 and below 1"));
        }
        let v = vectors(op, "the width", x.cols())?;
        let (sx, so) = (rows(op, "x", x, n, x.cols())?, rows(op, "the output", out, n, x.cols())?);
        least(op, "the samples", mask.samples.len(), Some(n))?;
        least(op, "the positions", mask.positions.len(), Some(n))?;
        if n == 0 {
            return Ok(());
        }
        let [low, high] = stream_key(dropout.seed, Purpose::Dropout);
        // p < 1, so the product is below 2^32.
        let threshold = (f64::from(dropout.p) * 4_294_967_296.0) as u32;
        let config = grid(blocks(op, n, 1)?, 1, v.next_multiple_of(32).min(256));
        launch!(
            self,
            op,
            config,
            x.ptr(),
            sx,
            mask.samples.ptr(),
            mask.positions.ptr(),
            low,
            high,
            dropout.step,
            dropout.module.wrapping_add(member),
            threshold,
            1.0 / (1.0 - dropout.p),
            v,
            out.ptr(),
            so
        );
        Ok(())
    }

    /// Checks columns of a tensor that a bias belongs to; gives their first address, the stride and the number of columns, in vectors.
    fn columns(op: &'static str, n: usize, t: &Tensor, column: usize, len: usize) -> Result<(u64, u32, u32)> {
        let stride = rows(op, "the tensor", t, n, t.cols())?;
        least(op, "the tensor's columns", t.cols(), column.checked_add(len))?;
        if !column.is_multiple_of(8) {
            return Err(fail(op, "the first column", column, "a multiple of 8"));
        }
        Ok((t.ptr() + 2 * column as u64, stride, vectors(op, "the bias", len)?))
    }

    /// Adds `bias` to the columns of the first `n` rows from `column` on.
    ///
    /// # Errors
    /// Columns that do not fit, or that are no multiples of 8.
    pub fn add_bias(&self, n: usize, out: &mut Tensor, bias: &Floats, column: usize) -> Result<()> {
        let op = "add_bias";
        let (to, stride, v) = Self::columns(op, n, out, column, bias.len())?;
        let total = n as u64 * u64::from(v);
        if u32::try_from(total).is_err() {
            return Err(fail(op, "the rows", n, "less than 2^35 values"));
        }
        if total > 0 {
            launch!(self, op, grid(blocks(op, total as usize, 256)?, 1, 256), to, stride, bias.ptr(), v, total);
        }
        Ok(())
    }

    /// Adds the sums over the first `n` rows of the `acc.len()` columns from `column` on to `acc`, in an order that depends on `n` alone.
    ///
    /// # Errors
    /// Columns that do not fit, or that are no multiples of 8.
    pub fn bias_grad(&self, n: usize, dy: &Tensor, column: usize, acc: &mut Floats) -> Result<()> {
        let op = "bias_grad";
        let (from, stride, v) = Self::columns(op, n, dy, column, acc.len())?;
        let n = u32::try_from(n).ok().filter(|n| *n <= u32::MAX - 32).ok_or_else(|| fail(op, "the rows", n, "less than 2^32 - 32"))?;
        if n > 0 {
            launch!(self, op, grid(v.div_ceil(8), 1, 256), from, stride, v, n, acc.ptr());
        }
        Ok(())
    }
}
