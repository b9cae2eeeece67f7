//! Operands of matrix products: row-major matrices whose rows may lie further apart than they are long, and the checks that every product shares.

use crate::launch::fail;
use crate::memory::{Buffer, Floats, Tensor};
use crate::{CudaError, Result};
use half::bf16;

/// Whether an operand is taken as it is stored or transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// As stored.
    N,
    /// Transposed.
    T,
}

/// A row-major bf16 operand: `rows` rows of `cols` values, `stride` values apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    pub(crate) ptr: u64,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl Matrix {
    /// The first `rows` rows of a tensor.
    ///
    /// # Errors
    /// Rows that it has not got.
    pub fn tensor(t: &Tensor, rows: usize) -> Result<Self> {
        Self::columns(t, rows, 0, t.cols())
    }

    /// The columns `from..from + cols` of the first `rows` rows of a tensor.
    ///
    /// # Errors
    /// Rows or columns that it has not got.
    pub fn columns(t: &Tensor, rows: usize, from: usize, cols: usize) -> Result<Self> {
        if rows > t.rows() {
            return Err(fail("matrix", "the tensor's rows", t.rows(), format_args!("at least {rows}")));
        }
        if from.checked_add(cols).is_none_or(|end| end > t.cols()) {
            return Err(fail("matrix", "the tensor's columns", t.cols(), format_args!("at least {from} + {cols}")));
        }
        Ok(Self { ptr: t.ptr() + 2 * from as u64, rows, cols, stride: t.stride() })
    }

    /// A whole matrix without gaps in a buffer, from the value `at` on.
    ///
    /// # Errors
    /// Values past its end.
    pub fn buffer(buffer: &Buffer<bf16>, at: usize, rows: usize, cols: usize) -> Result<Self> {
        within(buffer.len(), at, rows, cols)?;
        Ok(Self { ptr: buffer.ptr() + 2 * at as u64, rows, cols, stride: cols })
    }
}

/// A row-major fp8 (e4m3) operand: `rows` rows of `cols` bytes, `stride` bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix8 {
    pub(crate) ptr: u64,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl Matrix8 {
    /// A whole matrix in a buffer, from the value `at` on.
    ///
    /// # Errors
    /// Values past its end.
    pub fn buffer(buffer: &Buffer<u8>, at: usize, rows: usize, cols: usize) -> Result<Self> {
        within(buffer.len(), at, rows, cols)?;
        Ok(Self { ptr: buffer.ptr() + at as u64, rows, cols, stride: cols })
    }

    /// The first columns of rows that are `stride` bytes apart.
    ///
    /// # Errors
    /// Values past its end; more columns than a row has.
    pub fn columns(buffer: &Buffer<u8>, rows: usize, cols: usize, stride: usize) -> Result<Self> {
        within(buffer.len(), 0, rows, stride)?;
        if cols > stride {
            return Err(fail("matrix", "the columns", cols, format_args!("at most {stride}")));
        }
        Ok(Self { ptr: buffer.ptr(), rows, cols, stride })
    }
}

/// The type of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
}

/// Where a product goes: row-major, `rows` rows of `cols` values, `stride` values apart.
#[derive(Debug)]
pub struct Out {
    pub(crate) ptr: u64,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
    pub(crate) dtype: Float,
}

impl Out {
    /// The first `rows` rows of a tensor.
    ///
    /// # Errors
    /// Rows that it has not got.
    pub fn tensor(t: &mut Tensor, rows: usize) -> Result<Self> {
        let cols = t.cols();
        Self::columns(t, rows, 0, cols)
    }

    /// The columns `from..from + cols` of the first `rows` rows of a tensor.
    ///
    /// # Errors
    /// Rows or columns that it has not got.
    pub fn columns(t: &mut Tensor, rows: usize, from: usize, cols: usize) -> Result<Self> {
        let Matrix { ptr, rows, cols, stride } = Matrix::columns(t, rows, from, cols)?;
        Ok(Self { ptr, rows, cols, stride, dtype: Float::Bf16 })
    }

    /// A whole f32 matrix without gaps, from the value `at` on.
    ///
    /// # Errors
    /// Values past the buffer's end.
    pub fn floats(buffer: &mut Floats, at: usize, rows: usize, cols: usize) -> Result<Self> {
        within(buffer.len(), at, rows, cols)?;
        Ok(Self { ptr: buffer.ptr() + 4 * at as u64, rows, cols, stride: cols, dtype: Float::F32 })
    }
}

fn within(len: usize, at: usize, rows: usize, cols: usize) -> Result<()> {
    match rows.checked_mul(cols).and_then(|n| n.checked_add(at)) {
        Some(end) if end <= len => Ok(()),
        _ => Err(fail("matrix", "the buffer", len, format_args!("at least {at} + {rows} x {cols}"))),
    }
}

/// An error unless `op(A) [m, k]`, `op(B) [k, n]` and `C [m, n]` lie within their matrices and rows start at 16 bytes (those of an f32
/// result: at 8).
#[expect(clippy::too_many_arguments, reason = "a matrix product")]
pub(crate) fn check(a: &Matrix, op_a: Op, b: &Matrix, op_b: Op, c: &Out, m: usize, n: usize, k: usize) -> Result<()> {
    let op = "gemm";
    let stored = |of: Op, rows: usize, cols: usize| if of == Op::N { (rows, cols) } else { (cols, rows) };
    for (what, x, (rows, cols)) in [("A", a, stored(op_a, m, k)), ("B", b, stored(op_b, k, n))] {
        inside(op, what, (x.rows, x.cols), (rows, cols))?;
        if !x.stride.is_multiple_of(8) || !x.ptr.is_multiple_of(16) || x.stride < cols {
            return Err(fail(op, what, x.stride, "a stride and an offset that are multiples of 8"));
        }
    }
    inside(op, "C", (c.rows, c.cols), (m, n))?;
    let (values, bytes) = if c.dtype == Float::F32 { (2, 8) } else { (8, 16) };
    if !c.stride.is_multiple_of(values) || !c.ptr.is_multiple_of(bytes) || c.stride < n {
        return Err(fail(op, "C", c.stride, format_args!("a stride and an offset that are multiples of {values}")));
    }
    small(op, [m, n, k, a.stride, b.stride, c.stride])
}

/// An error unless a matrix has what an operation reads or writes of it.
pub(crate) fn inside(op: &'static str, what: &'static str, has: (usize, usize), needs: (usize, usize)) -> Result<()> {
    if has.0 < needs.0 || has.1 < needs.1 {
        return Err(CudaError::Shape {
            op,
            what,
            got: has.0.min(needs.0) * has.1.min(needs.1),
            need: format!("{} x {}", needs.0, needs.1),
        });
    }
    Ok(())
}

/// An error unless sizes fit 31 bits.
pub(crate) fn small<const N: usize>(op: &'static str, sizes: [usize; N]) -> Result<()> {
    match sizes.iter().find(|&&s| i32::try_from(s).is_err()) {
        Some(&s) => Err(fail(op, "a size", s, "less than 2^31")),
        None => Ok(()),
    }
}
