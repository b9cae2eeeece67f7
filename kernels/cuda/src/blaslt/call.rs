//! What a product is, to the library: the problem that its plan depends on, and one call of it.

use crate::Result;
use crate::launch::{fail, least};
use crate::matrix::{Float, Matrix, Matrix8, Op, Out, check, inside, small};
use crate::memory::Floats;
use std::fmt;

/// Scales of an fp8 product; a value is its byte times its scale.
#[derive(Clone, Copy)]
pub enum Scales<'a> {
    /// One for each operand (the first value of each buffer).
    Tensor {
        /// Of A.
        a: &'a Floats,
        /// Of B.
        b: &'a Floats,
    },
    /// One for each row of the stored operands. Hopper only (cublasLt's outer vectors).
    Rows {
        /// `[m]`.
        a: &'a Floats,
        /// `[n]`.
        b: &'a Floats,
    },
}

/// What the operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Input {
    Bf16,
    /// e4m3, with scales per row or per tensor, with or without sums in fewer bits between promotions.
    E4m3 {
        rows: bool,
        fast: bool,
    },
}

/// A problem: everything that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub input: Input,
    pub op_a: Op,
    pub op_b: Op,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub strides: [usize; 3],
    /// Largest power of two, up to 256, that the addresses of A, B and C are multiples of.
    pub align: [u32; 3],
    pub out: Float,
    pub accumulate: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let input = match self.input {
            Input::Bf16 => "bf16",
            Input::E4m3 { rows: false, fast: false } => "e4m3",
            Input::E4m3 { rows: false, fast: true } => "e4m3-fast",
            Input::E4m3 { rows: true, fast: false } => "e4m3-rows",
            Input::E4m3 { rows: true, fast: true } => "e4m3-rows-fast",
        };
        let out = if self.out == Float::F32 { "f32" } else { "bf16" };
        let ([a, b, c], [x, y, z]) = (self.strides, self.align);
        let sum = if self.accumulate { "+=" } else { "=" };
        write!(
            f,
            "{out} {sum} {input} {:?}{:?} {}x{}x{} strides {a} {b} {c} aligned {x} {y} {z}",
            self.op_a, self.op_b, self.m, self.n, self.k
        )
    }
}

/// A call: the problem and its addresses.
pub(super) struct Call {
    pub problem: Problem,
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub scales: Option<(u64, u64)>,
    pub alpha: f32,
    pub beta: f32,
}

/// The largest power of two, up to 256, that an address is a multiple of.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

#[expect(clippy::too_many_arguments, reason = "a matrix product")]
pub(super) fn bf16(
    a: &Matrix,
    op_a: Op,
    b: &Matrix,
    op_b: Op,
    c: &Out,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    beta: f32,
) -> Result<Option<Call>> {
    check(a, op_a, b, op_b, c, m, n, k)?;
    let problem = Problem {
        input: Input::Bf16,
        op_a,
        op_b,
        m,
        n,
        k,
        strides: [a.stride, b.stride, c.stride],
        align: [a.ptr, b.ptr, c.ptr].map(alignment),
        out: c.dtype,
        accumulate: beta != 0.0,
    };
    let call = Call { problem, a: a.ptr, b: b.ptr, c: c.ptr, scales: None, alpha, beta };
    Ok((m > 0 && n > 0).then_some(call))
}

#[expect(clippy::too_many_arguments, reason = "a matrix product")]
pub(super) fn fp8(
    a: &Matrix8,
    b: &Matrix8,
    scales: Scales<'_>,
    fast: bool,
    c: &Out,
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    beta: f32,
) -> Result<Option<Call>> {
    let op = "gemm_fp8";
    inside(op, "A", (a.rows, a.cols), (m, k))?;
    inside(op, "B", (b.rows, b.cols), (n, k))?;
    inside(op, "C", (c.rows, c.cols), (m, n))?;
    for (what, x) in [("A", a), ("B", b)] {
        if !x.stride.is_multiple_of(16) || !x.ptr.is_multiple_of(16) || x.stride < x.cols {
            return Err(fail(op, what, x.stride, "a stride and an offset that are multiples of 16"));
        }
    }
    small(op, [m, n, k, a.stride, b.stride, c.stride])?;
    let (rows, x, y) = match scales {
        Scales::Tensor { a, b } => (false, a, b),
        Scales::Rows { a, b } => (true, a, b),
    };
    least(op, "the scales of A", x.len(), Some(if rows { m } else { 1 }))?;
    least(op, "the scales of B", y.len(), Some(if rows { n } else { 1 }))?;
    let problem = Problem {
        input: Input::E4m3 { rows, fast },
        op_a: Op::N,
        op_b: Op::T,
        m,
        n,
        k,
        strides: [a.stride, b.stride, c.stride],
        align: [a.ptr, b.ptr, c.ptr].map(alignment),
        out: c.dtype,
        accumulate: beta != 0.0,
    };
    let call = Call { problem, a: a.ptr, b: b.ptr, c: c.ptr, scales: Some((x.ptr(), y.ptr())), alpha, beta };
    Ok((m > 0 && n > 0).then_some(call))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_that_need_other_plans_have_other_texts() {
        let base = Problem {
            input: Input::Bf16,
            op_a: Op::N,
            op_b: Op::T,
            m: 1,
            n: 2,
            k: 3,
            strides: [8, 8, 8],
            align: [256; 3],
            out: Float::Bf16,
            accumulate: false,
        };
        let others = [
            Problem { input: Input::E4m3 { rows: true, fast: false }, ..base },
            Problem { op_a: Op::T, ..base },
            Problem { n: 3, ..base },
            Problem { strides: [8, 16, 8], ..base },
            Problem { align: [256, 256, 16], ..base },
            Problem { out: Float::F32, ..base },
            Problem { accumulate: true, ..base },
        ];
        for other in others {
            assert_ne!(base.to_string(), other.to_string());
        }
        assert_eq!([256u64, 16, 48, 4096].map(alignment), [256, 16, 16, 256]);
    }
}
