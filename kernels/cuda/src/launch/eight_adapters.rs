//! Adapters inside fp8 products: see `eight_adapters.cu`.

use super::{Eight, blocks, fail, grid, launch_early, least, product, rows, vectors};
use crate::Result;
use crate::device::Device;
use crate::matrix::Matrix;
use crate::memory::{Buffer, Floats, Tensor};

/// Bytes that adapters of so many ranks take beside each row: three parts of each, in pieces of 16.
pub fn beside_eight(ranks: usize) -> usize {
    ranks.saturating_mul(3).next_multiple_of(16)
}

/// Values that [`Device::adapter_factors`] needs beside its results.
pub fn factor_counts(ranks: usize) -> usize {
    ranks.saturating_mul(4) + ranks.div_ceil(8)
}

/// Which product: its weights' adapters are `s B` or A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `x Wᵀ`, with mid and `s B`.
    Forward,
    /// `dy W`, with dmid and A.
    Backward,
}

impl Side {
    /// Where its factors are.
    fn factors(self, op: &'static str, ranks: usize, factors: &Floats) -> Result<u64> {
        least(op, "the factors", factors.len(), product(&[2, ranks]))?;
        Ok(factors.ptr() + if self == Side::Forward { 0 } else { 4 * ranks as u64 })
    }
}

/// Ranks in vectors of eight, and whether the three parts leave half a piece of 16 to clear.
fn narrow(op: &'static str, ranks: usize) -> Result<(u32, u32)> {
    let v = vectors(op, "the ranks", ranks)?;
    if v > 65535 {
        return Err(fail(op, "the ranks", ranks, "at most 65535 * 8"));
    }
    Ok((v, u32::from(!(3 * ranks).is_multiple_of(16))))
}

/// The stride in vectors of eight of a matrix of `rows` times `cols`.
fn inside(op: &'static str, what: &'static str, m: &Matrix, rows: usize, cols: usize) -> Result<u32> {
    least(op, what, m.rows, Some(rows))?;
    least(op, what, m.cols, Some(cols))?;
    vectors(op, what, m.stride)
}

impl Device {
    /// The factors of each rank forward, then those backward, `[2, ranks]`, for adapters `outs` (`s B`, `[out, ranks]`) and `ins` (A, `[ranks, in]`) beside
    /// weights with scales of rows and of columns. `counts` holds [`factor_counts`] zeros, before and after.
    ///
    /// # Errors
    /// Buffers that do not fit; ranks or inputs that are no multiple of 8.
    pub fn adapter_factors(
        &self,
        outs: Matrix,
        ins: Matrix,
        row_scales: &Floats,
        column_scales: &Floats,
        counts: &mut Floats,
        factors: &mut Floats,
    ) -> Result<()> {
        let op = "adapter_factors";
        let (out, ranks, inner) = (outs.rows, outs.cols, ins.cols);
        let (v, _) = narrow(op, ranks)?;
        let (so, si) = (inside(op, "B", &outs, out, ranks)?, inside(op, "A", &ins, ranks, inner)?);
        least(op, "the scales of rows", row_scales.len(), Some(out))?;
        least(op, "the scales of columns", column_scales.len(), Some(inner))?;
        Side::Backward.factors(op, ranks, factors)?;
        least(op, "the counts", counts.len(), Some(factor_counts(ranks)))?;
        let (Ok(out), Ok(r)) = (u32::try_from(out), u32::try_from(ranks)) else {
            return Err(fail(op, "the outputs", out, "less than 2^32"));
        };
        let inner = vectors(op, "the inputs", inner)?;
        let (rows, columns) = (row_scales.ptr(), column_scales.ptr());
        let (most, counters) = (counts.ptr(), counts.ptr() + 16 * ranks as u64);
        launch_early!(self, op, grid(v, 16, 256), outs.ptr, so, ins.ptr, si, out, inner, rows, columns, r, most, counters, factors.ptr());
        Ok(())
    }

    /// `s B` (`outs`, `[out, ranks]`) in e4m3 behind the first `width` of each of the rows of weights, `stride` bytes apart.
    ///
    /// # Errors
    /// Buffers that do not fit; ranks, a width or a stride that are no multiples of 8.
    pub fn adapter_outs_eight(
        &self,
        outs: Matrix,
        scales: &Floats,
        factors: &Floats,
        to: &Buffer<u8>,
        width: usize,
        stride: usize,
    ) -> Result<()> {
        let op = "adapter_outs_8";
        let (out, ranks) = (outs.rows, outs.cols);
        let (v, pad) = narrow(op, ranks)?;
        let so = inside(op, "B", &outs, out, ranks)?;
        let (to, apart) = behind(op, to, scales, out, width, ranks, stride)?;
        let by = Side::Forward.factors(op, ranks, factors)?;
        let config = grid(blocks(op, out.saturating_mul(v as usize), 256)?, 1, 256);
        launch_early!(self, op, config, outs.ptr, so, u32::try_from(out).unwrap_or(0), v, scales.ptr(), by, to, apart, pad);
        Ok(())
    }

    /// A (`ins`, `[ranks, in]`), transposed, in e4m3 behind the first `width` of each of the rows of transposed weights, `stride` bytes apart.
    ///
    /// # Errors
    /// Buffers that do not fit; ranks, inputs, a width or a stride that are no multiples of 8.
    pub fn adapter_ins_eight(
        &self,
        ins: Matrix,
        scales: &Floats,
        factors: &Floats,
        to: &Buffer<u8>,
        width: usize,
        stride: usize,
    ) -> Result<()> {
        let op = "adapter_ins_8";
        let (ranks, inner) = (ins.rows, ins.cols);
        let (v, pad) = narrow(op, ranks)?;
        let si = inside(op, "A", &ins, ranks, inner)?;
        let (to, apart) = behind(op, to, scales, inner, width, ranks, stride)?;
        let by = Side::Backward.factors(op, ranks, factors)?;
        let config = grid(blocks(op, inner, 256)?, v, 256);
        launch_early!(self, op, config, ins.ptr, si, u32::try_from(inner).unwrap_or(0), v, scales.ptr(), by, to, apart, pad);
        Ok(())
    }

    /// The first `n` rows of `mid` (`ranks` columns) in e4m3 behind those of `x` in `eight`, which get larger scales where mid needs them.
    ///
    /// # Errors
    /// Buffers that do not fit; ranks or a width that are no multiples of 8.
    pub fn adapter_mid_eight(&self, n: usize, mid: Matrix, side: Side, factors: &Floats, x: &Tensor, eight: &mut Eight) -> Result<()> {
        let op = "adapter_mid_8";
        let (width, ranks) = (x.cols(), mid.cols);
        let (v, pad) = narrow(op, ranks)?;
        let (sm, sx) = (inside(op, "mid", &mid, n, ranks)?, rows(op, "x", x, n, width)?);
        least(op, "the room beside rows", eight.beside(), Some(beside_eight(ranks)))?;
        let by = side.factors(op, ranks, factors)?;
        let (values, scales, stride) = eight.ptrs(op, n, width)?;
        let wide = vectors(op, "the width", width)?;
        let lanes = v.next_power_of_two().min(32);
        if n > 0 {
            let config = grid(blocks(op, n.saturating_mul(lanes as usize), 128)?, 1, 128);
            let n = u32::try_from(n).map_err(|_| fail(op, "the rows", n, "less than 2^32"))?;
            launch_early!(self, op, config, mid.ptr, sm, n, v, lanes, by, x.ptr(), sx, wide, scales, values, stride, pad);
        }
        Ok(())
    }
}

/// The address of what lies behind the first `width` of each of `n` rows, and the stride in vectors.
fn behind(op: &'static str, to: &Buffer<u8>, scales: &Floats, n: usize, width: usize, ranks: usize, stride: usize) -> Result<(u64, u32)> {
    least(op, "the scales", scales.len(), Some(n))?;
    least(op, "the bytes", to.len(), product(&[n, stride]))?;
    least(op, "the stride", stride, width.checked_add(beside_eight(ranks)))?;
    vectors(op, "the width", width)?;
    Ok((to.ptr() + width as u64, vectors(op, "the stride", stride)?))
}
