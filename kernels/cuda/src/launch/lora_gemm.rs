//! The thin products of adapters over `x` at memory speed: `mid = x Aᵀ`, and the gradient of A.
//!
//! Partial sums lie in scratch that the caller makes once ([`Device::lora_mid_scratch_bytes`] and its kin) and are added in a fixed order.

use super::{blocks, fail, launch, least, rows};
use crate::Result;
use crate::device::Device;
use crate::matrix::{Matrix, inside, small};
use crate::memory::{Floats, Tensor};
use cudarc::driver::LaunchConfig;

/// The most ranks of one launch over x.
const RANKS: usize = 128;
/// Members of one launch.
pub(super) const MEMBERS: usize = 3;
/// Columns of x of a block's tile.
const COLUMNS: usize = 128;
/// Tokens of a step.
pub(super) const TOKENS: usize = 64;
/// How `mid` is computed; a function of width and rank alone, so that a row's result depends on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MidPlan {
    /// Tokens of a block: 32 or 128.
    pub tokens: usize,
    /// Slices of the width, summed by a second launch if there are several.
    pub slices: usize,
}

impl MidPlan {
    /// The plan for a width and a rank.
    pub fn new(width: usize, rank: usize) -> Self {
        // A block of few tokens needs no second launch but reads all of A for them.
        if rank <= 64 || width < 2048 && rank <= 96 {
            Self { tokens: 32, slices: 1 }
        } else {
            Self { tokens: 128, slices: (width / 1024).clamp(1, 8) }
        }
    }
}

/// One projection in [`Device::lora_da`].
pub struct LoraIn<'a> {
    /// First column of `dmid`.
    pub mid_from: usize,
    /// Rank; a multiple of 8.
    pub rank: usize,
    /// The gradient of A, `[rank, width]`, added to.
    pub da: &'a mut Floats,
}

pub(super) fn rank_of(op: &'static str, rank: usize) -> Result<u32> {
    if rank == 0 || !rank.is_multiple_of(8) {
        return Err(fail(op, "the rank", rank, "a positive multiple of 8"));
    }
    u32::try_from(rank).map_err(|_| fail(op, "the rank", rank, "less than 2^32"))
}

/// Tokens of a run, so that `across` blocks times the runs fill the card so many times; a multiple of `step`.
pub(super) fn run_of(device: &Device, n: usize, across: usize, times: usize, step: usize) -> usize {
    let runs = (device.multiprocessors() as usize * times / across.max(1)).max(1);
    n.div_ceil(runs).next_multiple_of(step).max(step)
}

/// Shared memory of as many stages as the kernels keep.
fn stages(bytes: usize) -> usize {
    bytes * (98304 / bytes).min(6)
}

/// A launch of 256 threads a block.
pub(super) fn config(x: u32, y: u32, shared_mem_bytes: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (256, 1, 1), shared_mem_bytes: shared_mem_bytes as u32 }
}

impl Device {
    /// Bytes of scratch that [`Self::lora_mid`] needs for `n` tokens.
    pub fn lora_mid_scratch_bytes(&self, n: usize, width: usize, rank: usize) -> usize {
        let plan = MidPlan::new(width, rank.min(RANKS));
        if plan.slices == 1 { 0 } else { 4 * plan.slices * n * rank.min(RANKS) }
    }

    /// The first columns of `mid [n, ≥ rank]` become `x [n, width] A[rank, width]ᵀ`: the adapters' first half, all members of a group at once.
    ///
    /// # Errors
    /// Buffers or sizes that do not fit.
    pub fn lora_mid(&self, n: usize, x: &Tensor, a: Matrix, mid: &mut Tensor, scratch: &mut Floats) -> Result<()> {
        self.lora_mid_as(MidPlan::new(x.cols(), a.rows.min(RANKS)), n, x, a, mid, scratch)
    }

    /// Strides of x and of mid in values.
    fn check_mid(op: &'static str, n: usize, x: &Tensor, a: Matrix, mid: &Tensor) -> Result<[u32; 2]> {
        let (width, rank) = (x.cols(), a.rows);
        rank_of(op, rank)?;
        let strides = [8 * rows(op, "x", x, n, width)?, 8 * rows(op, "mid", mid, n, mid.cols())?];
        inside(op, "A", (a.rows, a.cols), (rank, width))?;
        inside(op, "mid", (mid.rows(), mid.cols()), (n, rank))?;
        if !width.is_multiple_of(8) || !a.stride.is_multiple_of(8) || !a.ptr.is_multiple_of(16) {
            return Err(fail(op, "the width", width, "a width, a stride of A and an offset that are multiples of 8"));
        }
        small(op, [n, width, a.stride])?;
        Ok(strides)
    }

    /// [`Self::lora_mid`] with a plan of the caller's, for measurements.
    ///
    /// # Errors
    /// As [`Self::lora_mid`]; plans that there is no kernel for.
    pub fn lora_mid_as(&self, plan: MidPlan, n: usize, x: &Tensor, a: Matrix, mid: &mut Tensor, scratch: &mut Floats) -> Result<()> {
        let op = "lora_mid";
        let [sx, so] = Self::check_mid(op, n, x, a, mid)?;
        let (width, rank) = (x.cols(), a.rows);
        let slice = width.div_ceil(plan.slices.max(1)).next_multiple_of(64);
        let slices = width.div_ceil(slice.max(1)).max(1);
        for from in (0..rank).step_by(RANKS) {
            let part = (rank - from).min(RANKS);
            let (name, padded) = match (plan.tokens, part) {
                (32, ..=32) => ("lora_mid_1_32", 32),
                (32, ..=64) => ("lora_mid_1_64", 64),
                (32, ..=96) => ("lora_mid_1_96", 96),
                (128, ..=32) => ("lora_mid_4_32", 32),
                (128, ..=64) => ("lora_mid_4_64", 64),
                (128, ..=96) => ("lora_mid_4_96", 96),
                (128, _) => ("lora_mid_4_128", 128),
                _ => return Err(fail(op, "the tokens of a block", plan.tokens, "32 (rank at most 96) or 128")),
            };
            let partial = slices > 1;
            if partial {
                least(op, "scratch", scratch.len(), super::product(&[slices, n, part]))?;
            }
            let chunk = if plan.tokens == 32 { 128 } else { 64 };
            let grid = config(blocks(op, n, plan.tokens)?, slices as u32, stages(2 * chunk * (plan.tokens + padded)));
            let (a_ptr, out) = (a.ptr + 2 * (from * a.stride) as u64, mid.ptr() + 2 * from as u64);
            if n > 0 {
                let (rank, n, width) = (part as u32, n as u32, width as u32);
                launch!(self, name, grid, x.ptr(), sx, n, width, a_ptr, a.stride as u32, rank, slice as u32, out, so, scratch.ptr());
                if partial {
                    let grid = config(blocks(op, n as usize * part, 1024)?, 1, 0);
                    launch!(self, "lora_sum", grid, scratch.ptr(), slices as u32, n, rank, out, so);
                }
            }
        }
        Ok(())
    }

    /// Bytes of scratch that [`Self::lora_da`] needs for `n` tokens and members of these ranks, together.
    pub fn lora_da_scratch_bytes(&self, n: usize, width: usize, ranks: usize) -> usize {
        let run = run_of(self, n, width.div_ceil(COLUMNS), 1, TOKENS);
        4 * n.div_ceil(run) * ranks.min(RANKS) * width
    }

    /// `dA += dmidᵢ[n, rank]ᵀ x [n, width]` of each member, in one pass over `x` for up to 128 ranks of neighbouring members.
    ///
    /// # Errors
    /// Buffers or sizes that do not fit.
    pub fn lora_da(&self, n: usize, dmid: &Tensor, x: &Tensor, members: &mut [LoraIn<'_>], scratch: &mut Floats) -> Result<()> {
        let op = "lora_da";
        let width = x.cols();
        let (sx, sd) = (8 * rows(op, "x", x, n, width)?, 8 * rows(op, "dmid", dmid, n, dmid.cols())?);
        if width == 0 || !width.is_multiple_of(8) {
            return Err(fail(op, "the width", width, "a positive multiple of 8"));
        }
        small(op, [n, width])?;
        // Launches: runs of neighbouring columns of dmid, as (first column, [(rank, address)]).
        let mut launches: Vec<(usize, Vec<(usize, u64)>)> = Vec::new();
        for m in members.iter() {
            rank_of(op, m.rank)?;
            least(op, "dmid", dmid.cols(), m.mid_from.checked_add(m.rank))?;
            least(op, "dA", m.da.len(), super::product(&[m.rank, width]))?;
            if !m.mid_from.is_multiple_of(8) {
                return Err(fail(op, "a column of dmid", m.mid_from, "a multiple of 8"));
            }
            for from in (0..m.rank).step_by(RANKS) {
                let (at, rank) = (m.mid_from + from, (m.rank - from).min(RANKS));
                let part = (rank, m.da.ptr() + 4 * (from * width) as u64);
                let fits = |(first, parts): &&mut (usize, Vec<(usize, u64)>)| {
                    let sum: usize = parts.iter().map(|p| p.0).sum();
                    first.checked_add(sum) == Some(at) && sum + rank <= RANKS && parts.len() < MEMBERS
                };
                match launches.last_mut().filter(fits) {
                    Some((_, parts)) => parts.push(part),
                    None => launches.push((at, vec![part])),
                }
            }
        }
        let run = run_of(self, n, width.div_ceil(COLUMNS), 1, TOKENS);
        let runs = n.div_ceil(run);
        for (first, parts) in launches.iter().filter(|_| n > 0) {
            let rank: usize = parts.iter().map(|p| p.0).sum();
            let part = |i: usize| parts.get(i).map_or((0, 0), |p| (p.0 as u32, p.1));
            let [a, b, c] = [part(0), part(1), part(2)];
            let at = dmid.ptr() + 2 * *first as u64;
            least(op, "scratch", scratch.len(), super::product(&[runs, rank, width]))?;
            let (name, padded) = match rank {
                ..=32 => ("lora_da_32", 32),
                33..=64 => ("lora_da_64", 64),
                65..=96 => ("lora_da_96", 96),
                _ => ("lora_da_128", 128),
            };
            let grid = config(blocks(op, width, COLUMNS)?, runs as u32, stages(2 * TOKENS * (COLUMNS + padded)));
            let (rank32, width32, run32) = (rank as u32, width as u32, run as u32);
            launch!(self, name, grid, at, sd, rank32, x.ptr(), sx, n as u32, width32, run32, scratch.ptr());
            let grid = config(blocks(op, rank * width, 1024)?, 1, 0);
            launch!(self, "lora_da_sum", grid, scratch.ptr(), runs as u32, width32, a.0, b.0, c.0, a.1, b.1, c.1);
        }
        Ok(())
    }
}
