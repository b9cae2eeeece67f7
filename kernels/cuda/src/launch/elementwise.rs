//! SwiGLU, sums, the embedding gather, and the sum of squares behind the gradient norm.

use super::{Eight, blocks, fail, grid, launch, launch_early, least, rows, vectors};
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats, Tensor};
use cudarc::driver::LaunchConfig;

/// Blocks of the first pass of [`Device::sum_of_squares`]: fixed, so that the order of the sum is too.
const SUM_BLOCKS: u32 = 1024;

/// The most gates of a row that a block of [`Device::swiglu_eight`] holds.
pub const LONGEST_PAIR: usize = 32768;

/// Vectors of a row of gates, and threads.
fn pairs(op: &'static str, width: usize) -> Result<(u32, u32)> {
    if width > LONGEST_PAIR {
        return Err(fail(op, "the width", width, format_args!("at most {LONGEST_PAIR}")));
    }
    let v = vectors(op, "the width", width)?;
    // As few threads as hold the row: several blocks then share a multiprocessor.
    Ok((v, v.div_ceil(4).next_multiple_of(32).clamp(32, 1024)))
}

/// Scratch of [`Device::sum_of_squares`].
pub struct SumScratch(Buffer<f64>);

/// A thread for each vector; the kernels count them in 32 bits.
fn flat(op: &'static str, total: u64) -> Result<LaunchConfig> {
    let total = usize::try_from(total)
        .ok()
        .filter(|t| u32::try_from(*t).is_ok())
        .ok_or_else(|| fail(op, "the work", usize::MAX, "less than 2^35 values"))?;
    Ok(grid(blocks(op, total, 256)?, 1, 256))
}

impl Device {
    /// `out = silu(gate) * up`.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn swiglu(&self, n: usize, width: usize, gate_up: &Tensor, out: &mut Tensor) -> Result<()> {
        let op = "swiglu";
        let v = vectors(op, "the width", width)?;
        let (sx, so) = (rows(op, "gate_up", gate_up, n, 2 * width)?, rows(op, "the output", out, n, width)?);
        let total = n as u64 * u64::from(v);
        if total > 0 {
            launch!(self, op, flat(op, total)?, gate_up.ptr(), sx, v, total, out.ptr(), so);
        }
        Ok(())
    }

    /// Backward of [`Self::swiglu`]: writes `d_gate_up`.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn swiglu_backward(&self, n: usize, width: usize, dout: &Tensor, gate_up: &Tensor, d_gate_up: &mut Tensor) -> Result<()> {
        let op = "swiglu_backward";
        let v = vectors(op, "the width", width)?;
        let (sy, sx) = (rows(op, "dout", dout, n, width)?, rows(op, "gate_up", gate_up, n, 2 * width)?);
        let sd = rows(op, "d_gate_up", d_gate_up, n, 2 * width)?;
        let total = n as u64 * u64::from(v);
        if total > 0 {
            let config = flat(op, total)?;
            launch!(self, op, config, dout.ptr(), sy, gate_up.ptr(), sx, v, total, d_gate_up.ptr(), sd);
        }
        Ok(())
    }

    /// [`Self::swiglu`] that also leaves the result in e4m3.
    ///
    /// # Errors
    /// Buffers or widths that do not fit; rows of more than [`LONGEST_PAIR`] values.
    pub fn swiglu_eight(&self, n: usize, width: usize, gate_up: &Tensor, out: &mut Tensor, eight: &mut Eight) -> Result<()> {
        let op = "swiglu_8";
        let (v, threads) = pairs(op, width)?;
        let (sx, so) = (rows(op, "gate_up", gate_up, n, 2 * width)?, rows(op, "the output", out, n, width)?);
        let (values, scales, stride) = eight.ptrs(op, n, width)?;
        if n > 0 {
            launch_early!(self, op, grid(blocks(op, n, 1)?, 1, threads), gate_up.ptr(), sx, v, out.ptr(), so, values, scales, stride);
        }
        Ok(())
    }

    /// [`Self::swiglu_backward`] that also leaves `d_gate_up` in e4m3.
    ///
    /// # Errors
    /// Buffers or widths that do not fit; rows of more than [`LONGEST_PAIR`] values.
    pub fn swiglu_backward_eight(
        &self,
        n: usize,
        width: usize,
        dout: &Tensor,
        gate_up: &Tensor,
        d_gate_up: &mut Tensor,
        eight: &mut Eight,
    ) -> Result<()> {
        let op = "swiglu_backward_8";
        let (v, threads) = pairs(op, width)?;
        let (sy, sx) = (rows(op, "dout", dout, n, width)?, rows(op, "gate_up", gate_up, n, 2 * width)?);
        let sd = rows(op, "d_gate_up", d_gate_up, n, 2 * width)?;
        let (values, scales, stride) = eight.ptrs(op, n, 2 * width)?;
        if n > 0 {
            let config = grid(blocks(op, n, 1)?, 1, threads);
            launch_early!(self, op, config, dout.ptr(), sy, gate_up.ptr(), sx, v, d_gate_up.ptr(), sd, values, scales, stride);
        }
        Ok(())
    }

    /// `x_acc += delta`.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn add(&self, n: usize, x_acc: &mut Tensor, delta: &Tensor) -> Result<()> {
        let op = "add";
        let v = vectors(op, "the width", x_acc.cols())?;
        let (sx, sd) = (rows(op, "x", x_acc, n, x_acc.cols())?, rows(op, "delta", delta, n, x_acc.cols())?);
        let total = n as u64 * u64::from(v);
        if total > 0 {
            launch!(self, op, flat(op, total)?, x_acc.ptr(), sx, delta.ptr(), sd, v, total);
        }
        Ok(())
    }

    /// `out[i] = table[ids[i]]` for `n` ids. Every id must be a row of the table: the caller has checked the largest.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn embed(&self, n: usize, ids: &Buffer<u32>, largest_id: u32, table: &Tensor, out: &mut Tensor) -> Result<()> {
        rows("embed", "the table", table, 0, table.cols())?;
        self.embed_from(n, ids, largest_id, (table.ptr(), table.rows(), table.cols(), table.stride()), out)
    }

    /// As [`Self::embed`], from a table in pinned host memory without gaps: address, rows and columns are the caller's promise.
    pub(crate) fn embed_pinned(
        &self,
        n: usize,
        ids: &Buffer<u32>,
        largest_id: u32,
        table: (u64, usize, usize),
        out: &mut Tensor,
    ) -> Result<()> {
        let (ptr, rows, cols) = table;
        self.embed_from(n, ids, largest_id, (ptr, rows, cols, cols), out)
    }

    fn embed_from(&self, n: usize, ids: &Buffer<u32>, largest_id: u32, table: (u64, usize, usize, usize), out: &mut Tensor) -> Result<()> {
        let op = "embed";
        let (ptr, table_rows, cols, stride) = table;
        let v = vectors(op, "the width", cols)?;
        least(op, "ids", ids.len(), Some(n))?;
        if n == 0 {
            return Ok(());
        }
        if largest_id as usize >= table_rows {
            return Err(fail(op, "the largest token id", largest_id as usize, format_args!("less than {table_rows}")));
        }
        let (st, so) = (vectors(op, "the table's stride", stride)?, rows(op, "the output", out, n, cols)?);
        let total = n as u64 * u64::from(v);
        launch!(self, op, flat(op, total)?, ids.ptr(), ptr, st, v, total, out.ptr(), so);
        Ok(())
    }

    /// Scratch of [`Self::sum_of_squares`].
    ///
    /// # Errors
    /// The driver's.
    pub fn sum_scratch(&self) -> Result<SumScratch> {
        Ok(SumScratch(self.buffer(SUM_BLOCKS as usize, "scratch of the gradient norm")?))
    }

    /// Adds `Σ g²`, in f64 and in an order that depends on the length alone, to the first entry of `sum_acc`.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn sum_of_squares(&self, g: &Floats, scratch: &mut SumScratch, sum_acc: &mut Buffer<f64>) -> Result<()> {
        least("sum_of_squares", "the sum", sum_acc.len(), Some(1))?;
        launch!(self, "squares_partial", grid(SUM_BLOCKS, 1, 256), g.ptr(), g.len() as u64, scratch.0.ptr());
        launch!(self, "squares_total", grid(1, 1, 32), scratch.0.ptr(), SUM_BLOCKS, sum_acc.ptr());
        Ok(())
    }
}
