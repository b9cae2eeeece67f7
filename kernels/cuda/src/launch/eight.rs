//! Rows and frozen weights rounded to e4m3 with a scale for each row: the operands of fp8 products.

use super::{DeviceNf4, blocks, fail, grid, launch, launch_early, least, product, rows, vectors};
use crate::Result;
use crate::device::Device;
use crate::matrix::Matrix8;
use crate::memory::{Buffer, Floats, Tensor};

/// Rows of e4m3 and a scale for each: a value is its byte times its row's scale.
pub struct Eight {
    values: Buffer<u8>,
    scales: Floats,
    beside: usize,
}

/// Bytes from row to row of `width` values with room for `beside` more.
pub fn stride_eight(width: usize, beside: usize) -> usize {
    // Whole lines, as the library's tiles.
    if beside == 0 { width } else { width.saturating_add(beside).next_multiple_of(128) }
}

impl Eight {
    /// The first `rows` rows of `width` values, with `more` of what lies beside them, as an operand.
    ///
    /// # Errors
    /// More than there is room for.
    pub fn matrix(&self, rows: usize, width: usize, more: usize) -> Result<Matrix8> {
        Matrix8::columns(&self.values, rows, width + more, self.stride(width))
    }

    /// Bytes from row to row of `width` values.
    pub fn stride(&self, width: usize) -> usize {
        stride_eight(width, self.beside)
    }

    /// Bytes beside each row that there is room for.
    pub fn beside(&self) -> usize {
        self.beside
    }

    /// The bytes.
    pub fn values(&self) -> &Buffer<u8> {
        &self.values
    }

    /// The scales.
    pub fn scales(&self) -> &Floats {
        &self.scales
    }

    /// Whether there is room for `n` rows of `width` values.
    pub fn holds(&self, n: usize, width: usize) -> bool {
        self.room("room", n, width).is_ok()
    }

    /// An error unless it does.
    fn room(&self, op: &'static str, n: usize, width: usize) -> Result<()> {
        least(op, "the bytes", self.values.len(), product(&[n, self.stride(width)]))?;
        least(op, "the scales", self.scales.len(), Some(n))
    }

    /// The parts.
    pub(crate) fn parts(&mut self) -> (&mut Buffer<u8>, &mut Floats) {
        (&mut self.values, &mut self.scales)
    }

    /// The scales alone.
    pub(crate) fn into_scales(self) -> Floats {
        self.scales
    }

    /// Addresses for a kernel that writes `n` rows of `width` values, and their stride in vectors of eight bytes.
    pub(crate) fn ptrs(&mut self, op: &'static str, n: usize, width: usize) -> Result<(u64, u64, u32)> {
        self.room(op, n, width)?;
        Ok((self.values.ptr(), self.scales.ptr(), vectors(op, "the stride", self.stride(width))?))
    }
}

/// The transpose's rows start at multiples of this many bytes.
const PIECE: usize = 16;

impl Device {
    /// Room for `values` bytes in all and `rows` scales, with unspecified contents. Rows have `beside` bytes beside their values.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn eight(&self, values: usize, rows: usize, beside: usize, what: &str) -> Result<Eight> {
        Ok(Eight { values: self.buffer(values, what)?, scales: self.buffer(rows, what)?, beside })
    }

    /// The first `n` rows of `x` in e4m3, each with its largest magnitude / 448 as its scale. `smallest`: rows of no larger magnitude get the scale of the
    /// first value there.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn eight_rows(&self, n: usize, x: &Tensor, smallest: Option<&Floats>, out: &mut Eight) -> Result<()> {
        let op = "eight_rows";
        let v = vectors(op, "the width", x.cols())?;
        let from = rows(op, "x", x, n, x.cols())?;
        let (values, scales, stride) = out.ptrs(op, n, x.cols())?;
        least(op, "the smallest magnitude", smallest.map_or(1, Buffer::len), Some(1))?;
        if n > 0 {
            let config = grid(blocks(op, n, 1)?, 1, v.div_ceil(2).next_multiple_of(32).clamp(32, 1024));
            launch_early!(self, op, config, x.ptr(), from, v, smallest.map_or(0, Buffer::ptr), values, scales, stride);
        }
        Ok(())
    }

    /// The scales of the transpose of a matrix, `[rows, cols]`: of each column the largest magnitude / 448, or of 1/256 of the largest of all if that is
    /// more, which goes to `smallest` for [`Self::eight_rows`].
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn eight_column_scales(&self, x: &Tensor, scales: &mut Floats, smallest: &mut Floats) -> Result<()> {
        let op = "eight_column_scales";
        let (n, cols) = (x.rows(), x.cols());
        let v = vectors(op, "the width", cols)?;
        let stride = rows(op, "x", x, n, cols)?;
        least(op, "the scales", scales.len(), Some(cols))?;
        least(op, "the smallest magnitude", smallest.len(), Some(1))?;
        let down = u32::try_from(n.div_ceil(256)).ok().filter(|d| *d <= 65535);
        let (Some(down), Ok(n), Ok(cols)) = (down, u32::try_from(n), u32::try_from(cols)) else {
            return Err(fail(op, "the rows", n, "at most 256 * 65535"));
        };
        scales.fill_bytes(0)?;
        if n > 0 {
            launch!(self, "largest_of_columns", grid(v.div_ceil(32), down, 256), x.ptr(), stride, n, v, scales.ptr());
        }
        launch!(self, "scales_from_largest", grid(1, 1, 1024), scales.ptr(), cols, smallest.ptr());
        Ok(())
    }

    /// The transpose of `x [rows, cols]` in e4m3 with a given scale for each column, into the columns from `first` on of rows of `stride` bytes.
    ///
    /// # Errors
    /// Buffers that do not fit; rows, a first column or a stride that are no multiple of 16.
    pub fn eight_transposed(&self, x: &Tensor, scales: &Floats, out: &mut Buffer<u8>, first: usize, stride: usize) -> Result<()> {
        let op = "eight_transposed";
        vectors(op, "the columns", x.cols())?;
        let from = rows(op, "x", x, x.rows(), x.cols())?;
        let (n, cols, to, stride) = transpose(op, x.rows(), x.cols(), scales, out, first, stride)?;
        if n > 0 {
            let config = grid(cols.div_ceil(64), n.div_ceil(128), 256);
            launch!(self, "bf16_eight_transposed", config, x.ptr(), from, n, cols, scales.ptr(), to, stride);
        }
        Ok(())
    }

    /// `w` in e4m3 into rows of `out`, `stride` bytes apart, from `first_row` on, with the scales of those rows, which lie in the same places of `scales`.
    ///
    /// # Errors
    /// Buffers that do not fit; a stride that is no multiple of 8.
    pub fn nf4_eight(&self, w: &DeviceNf4, scales: &Floats, out: &mut Buffer<u8>, first_row: usize, stride: usize) -> Result<()> {
        let op = "nf4_eight";
        let n = first_row.checked_add(w.rows).ok_or_else(|| fail(op, "the first row", first_row, "less"))?;
        least(op, "the bytes", out.len(), product(&[n, stride]))?;
        least(op, "the stride", stride, Some(w.cols))?;
        least(op, "the scales", scales.len(), Some(n))?;
        let apart = vectors(op, "the stride", stride)?;
        let v = vectors(op, "the columns", w.cols)?;
        let words = w.rows * w.cols / 8;
        if u32::try_from(words).is_err() {
            return Err(fail(op, "the values", words, "less than 2^35"));
        }
        if words == 0 {
            return Ok(());
        }
        let (to, scales) = (out.ptr() + (first_row * stride) as u64, scales.ptr() + 4 * first_row as u64);
        launch!(
            self,
            op,
            grid(blocks(op, words, 1024)?, 1, 256),
            w.packed.ptr(),
            w.code.ptr(),
            w.codes_ptr(),
            w.map.ptr(),
            w.absmax.ptr(),
            w.offset,
            w.block_shift,
            w.nested_shift,
            words as u64,
            v,
            scales,
            to,
            apart
        );
        Ok(())
    }

    /// The transpose of `w` in e4m3 with a given scale for each column of `w`, into the columns from `first` on of rows of `stride` bytes.
    ///
    /// # Errors
    /// Buffers that do not fit; rows, a first column or a stride that are no multiple of 16.
    pub fn nf4_eight_transposed(&self, w: &DeviceNf4, scales: &Floats, out: &mut Buffer<u8>, first: usize, stride: usize) -> Result<()> {
        let op = "nf4_eight_transposed";
        vectors(op, "the columns", w.cols)?;
        let (n, cols, to, stride) = transpose(op, w.rows, w.cols, scales, out, first, stride)?;
        if n > 0 {
            launch!(
                self,
                op,
                grid(cols.div_ceil(64), n.div_ceil(128), 256),
                w.packed.ptr(),
                w.code.ptr(),
                w.codes_ptr(),
                w.map.ptr(),
                w.absmax.ptr(),
                w.offset,
                w.block_shift,
                w.nested_shift,
                n,
                cols,
                scales.ptr(),
                to,
                stride
            );
        }
        Ok(())
    }
}

/// Checks of a transpose: rows and columns of the source, where it goes and the stride.
fn transpose(
    op: &'static str,
    n: usize,
    cols: usize,
    scales: &Floats,
    out: &Buffer<u8>,
    first: usize,
    stride: usize,
) -> Result<(u32, u32, u64, u32)> {
    if [n, first, stride].iter().any(|v| !v.is_multiple_of(PIECE)) {
        return Err(fail(op, "the rows", n, "rows, a first column and a stride that are multiples of 16"));
    }
    least(op, "the stride", stride, first.checked_add(n))?;
    least(op, "the bytes", out.len(), product(&[cols, stride]))?;
    least(op, "the scales", scales.len(), Some(cols))?;
    match (u32::try_from(n), u32::try_from(cols), u32::try_from(stride)) {
        (Ok(n), Ok(cols), Ok(stride)) if n.div_ceil(128) <= 65535 => Ok((n, cols, out.ptr() + first as u64, stride)),
        _ => Err(fail(op, "the rows", n, "at most 128 * 65535")),
    }
}
