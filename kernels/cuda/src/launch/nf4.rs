//! NF4 weights on the card, and unpacking them.

use super::{blocks, fail, grid, launch, least, product, vectors};
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats, Tensor};
use half::bf16;
use trainer_kernels::nf4::{Absmax, Nf4};

/// An NF4 weight on the card, as stored, `[rows, cols]`.
pub struct DeviceNf4 {
    pub(crate) packed: Buffer<u8>,
    pub(crate) code: Floats,
    /// The same code points, in host memory.
    pub(crate) host_code: [f32; 16],
    /// The code points times this are near to bf16 values: what a kernel that multiplies them in bf16 loses is least.
    pub(crate) fit: f32,
    /// Codes of the scales; one unused entry when the scales are plain.
    pub(crate) codes: Buffer<u8>,
    pub(crate) map: Floats,
    pub(crate) absmax: Floats,
    pub(crate) nested: bool,
    pub(crate) offset: f32,
    pub(crate) block_shift: i32,
    pub(crate) nested_shift: i32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl DeviceNf4 {
    /// Bytes that unpacking reads: packed values and scales.
    pub fn bytes(&self) -> usize {
        self.packed.bytes() + self.absmax.bytes() + if self.nested { self.codes.bytes() } else { 0 }
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The address of the scales' codes; null says that the scales are plain.
    pub(crate) fn codes_ptr(&self) -> u64 {
        if self.nested { self.codes.ptr() } else { 0 }
    }
}

/// The factor in `1.0..2.0` (a multiple of 1/512) by which code points lose the least when they are rounded to bf16.
pub(super) fn fit(code: &[f32; 16]) -> f32 {
    let loss = |f: f32| -> f64 { code.iter().map(|&c| f64::from(bf16::from_f32(c * f).to_f32() / f - c).powi(2)).sum() };
    let factors = (0..512u16).map(|i| 1.0 + f32::from(i) / 512.0);
    factors.map(|f| (loss(f), f)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |best| best.1)
}

impl Device {
    /// Puts an NF4 matrix on the card.
    ///
    /// # Errors
    /// A tensor whose rows are not whole groups of eight values, blocks of fewer than eight, or the driver's.
    pub fn nf4(&self, w: &Nf4) -> Result<DeviceNf4> {
        let (rows, cols) = (w.rows(), w.cols());
        if !cols.is_multiple_of(8) {
            return Err(fail("nf4", "the number of columns", cols, "a multiple of 8"));
        }
        if w.blocksize() < 8 {
            return Err(fail("nf4", "the block size", w.blocksize(), "a multiple of 8"));
        }
        let (codes, map, absmax, offset, nested_size, nested) = match w.absmax() {
            Absmax::Plain(scales) => (self.buffer(1, "NF4 scales")?, self.floats(&[0f32; 256])?, self.floats(scales)?, 0.0, 1, false),
            Absmax::Nested(n) => {
                let map = self.floats(n.code.as_slice())?;
                (self.upload(&n.codes, "NF4 scales")?, map, self.floats(&n.absmax)?, n.offset, n.blocksize, true)
            }
        };
        // Block sizes are powers of two up to 65536 (checked by `Nf4`).
        let shift = |size: usize| size.trailing_zeros() as i32;
        Ok(DeviceNf4 {
            packed: self.upload(w.packed(), "NF4 values")?,
            code: self.floats(w.code().as_slice())?,
            host_code: *w.code(),
            fit: fit(w.code()),
            codes,
            map,
            absmax,
            nested,
            offset,
            block_shift: shift(w.blocksize()),
            nested_shift: shift(nested_size),
            rows,
            cols,
        })
    }

    /// All values of `w`, bit for bit as the CPU reference rounds them, into rows of `out` from `first_row` on.
    ///
    /// # Errors
    /// A tensor that does not fit.
    pub fn nf4_unpack(&self, w: &DeviceNf4, out: &mut Tensor, first_row: usize) -> Result<()> {
        let op = "nf4_unpack";
        let n = first_row.checked_add(w.rows).ok_or_else(|| fail(op, "the first row", first_row, "less"))?;
        let stride = super::rows(op, "the output", out, n, w.cols)?;
        let v = vectors(op, "the columns", w.cols)?;
        let words = (w.rows * w.cols / 8) as u64;
        if words == 0 {
            return Ok(());
        }
        let config = grid(blocks(op, words as usize, 1024)?, 1, 256);
        let to = out.ptr() + 2 * (first_row * out.stride()) as u64;
        launch!(
            self,
            "nf4_unpack",
            config,
            w.packed.ptr(),
            w.code.ptr(),
            w.codes_ptr(),
            w.map.ptr(),
            w.absmax.ptr(),
            w.offset,
            w.block_shift,
            w.nested_shift,
            words,
            v,
            stride,
            to
        );
        Ok(())
    }

    /// The transpose of `w`, `[cols, rows]`, without gaps between rows.
    ///
    /// # Errors
    /// A buffer that is too small, or rows that are no multiple of 8.
    pub fn nf4_unpack_transposed(&self, w: &DeviceNf4, out: &mut Tensor) -> Result<()> {
        let op = "nf4_unpack_transposed";
        let stride = super::rows(op, "the output", out, w.cols, w.rows)?;
        least(op, "the output", out.rows(), product(&[w.cols]))?;
        if w.rows * w.cols == 0 {
            return Ok(());
        }
        if stride != vectors(op, "the number of rows", w.rows)? {
            return Err(fail(op, "the output's stride", out.stride(), "the number of its columns"));
        }
        let (rows, cols) = match (u32::try_from(w.rows), u32::try_from(w.cols)) {
            (Ok(rows), Ok(cols)) if rows.div_ceil(64) <= 65535 => (rows, cols),
            _ => return Err(fail(op, "the number of rows", w.rows, "at most 4194240")),
        };
        let config = grid(cols.div_ceil(64), rows.div_ceil(64), 256);
        launch!(
            self,
            "nf4_unpack_transposed",
            config,
            w.packed.ptr(),
            w.code.ptr(),
            w.codes_ptr(),
            w.map.ptr(),
            w.absmax.ptr(),
            w.offset,
            w.block_shift,
            w.nested_shift,
            rows,
            cols,
            out.ptr()
        );
        Ok(())
    }
}
