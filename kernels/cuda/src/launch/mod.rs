//! One launcher per kernel: checks sizes, chooses the grid, launches. What each computes is said in [`trainer_kernels::ops::Ops`].
//!
//! Activations are bf16 tensors whose rows may lie further apart than they are long; statistics, norm weights and angles are f32. Widths and
//! strides are multiples of eight. Launches return before the work is done.

use crate::memory::Tensor;
use crate::{CudaError, Result};
use cudarc::driver::LaunchConfig;

mod adamw;
mod attention;
mod cached;
mod decode;
mod eight;
mod eight_adapters;
mod elementwise;
mod gemm;
mod lora;
mod lora_backward;
mod lora_gemm;
mod loss;
mod nf4;
mod norm;
mod quantize;
mod rope;
mod sampling;

pub use adamw::{AdamwEntry, AdamwList, DeviceState};
pub use attention::{AttentionScratch, Sequences};
pub use cached::{CachedScratch, KvCache, SPLIT, kv_cache_bytes};
pub use decode::{LONGEST_NORM, MOST_SMALL_ROWS, SmallLora, SmallMember, small_scratch};
pub use eight::{Eight, stride_eight};
pub use eight_adapters::{Side, beside_eight, factor_counts};
pub use elementwise::{LONGEST_PAIR, SumScratch};
pub use lora::{LoraPart, MOST_PARTS, MaskRows};
pub use lora_backward::{BackwardKernel, BackwardPlan, LoraOut};
pub use lora_gemm::{LoraIn, MidPlan};
pub use loss::RowSet;
pub use nf4::DeviceNf4;
pub use norm::LONGEST_EIGHT;
pub use quantize::QuantSource;
pub use rope::{Angles, POSITIONS, rounds_heads};
pub use sampling::{BROKEN, DRAW_WORDS, ON_HOST, draw_words};

/// The error of an argument that does not fit.
pub(crate) fn fail(op: &'static str, what: &'static str, got: usize, need: impl std::fmt::Display) -> CudaError {
    CudaError::Shape { op, what, got, need: need.to_string() }
}

/// An error unless there are at least as many values as needed; `need` is None where the product overflowed.
pub(crate) fn least(op: &'static str, what: &'static str, got: usize, need: Option<usize>) -> Result<()> {
    match need {
        Some(need) if got >= need => Ok(()),
        Some(need) => Err(fail(op, what, got, format_args!("at least {need}"))),
        None => Err(fail(op, what, got, "more than memory can hold")),
    }
}

/// An error unless the tensor has at least `n` rows of exactly `cols` values whose rows start at whole vectors of eight. Gives the stride in vectors.
pub(crate) fn rows(op: &'static str, what: &'static str, t: &Tensor, n: usize, cols: usize) -> Result<u32> {
    if t.cols() != cols {
        return Err(fail(op, what, t.cols(), format_args!("{cols} columns")));
    }
    least(op, what, t.rows(), Some(n))?;
    if !t.stride().is_multiple_of(8) || !t.ptr().is_multiple_of(16) {
        return Err(fail(op, what, t.stride(), "a stride and an offset that are multiples of 8"));
    }
    u32::try_from(t.stride() / 8).map_err(|_| fail(op, what, t.stride(), "less than 2^35"))
}

pub(crate) fn product(factors: &[usize]) -> Option<usize> {
    factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f))
}

/// A size as the number of vectors of eight.
pub(crate) fn vectors(op: &'static str, what: &'static str, width: usize) -> Result<u32> {
    if width == 0 || !width.is_multiple_of(8) {
        return Err(fail(op, what, width, "a positive multiple of 8"));
    }
    u32::try_from(width / 8).map_err(|_| fail(op, what, width, "less than 2^35"))
}

/// Blocks that do `items` of work, `per_block` each.
pub(crate) fn blocks(op: &'static str, items: usize, per_block: usize) -> Result<u32> {
    u32::try_from(items.div_ceil(per_block))
        .ok()
        .filter(|&b| b <= i32::MAX as u32)
        .ok_or_else(|| fail(op, "the work", items, "less than 2^31 blocks"))
}

pub(crate) fn grid(x: u32, y: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

/// Launches a kernel: `launch!(device, "name", config, argument, ...)` with numbers of the kernel's own types and device addresses as `u64`.
macro_rules! launch {
    ($device:expr, $name:expr, $config:expr, $($arg:expr),+ $(,)?) => {
        $device.launch($name, $config, &[$($crate::device::Arg::from($arg)),+])?
    };
}
pub(crate) use launch;

/// [`launch`] of a kernel that waits by itself for the one before it.
macro_rules! launch_early {
    ($device:expr, $name:expr, $config:expr, $($arg:expr),+ $(,)?) => {
        $device.launch_early($name, $config, &[$($crate::device::Arg::from($arg)),+])?
    };
}
pub(crate) use launch_early;
