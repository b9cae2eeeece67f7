//! The thin products of adapters at memory speed: `mid = x Aᵀ`, and the backward that reads `dy` once and `x` once.
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
const MEMBERS: usize = 3;
/// Outputs, and columns of x, of a block's tile.
const OUTS: usize = 256;
const COLUMNS: usize = 128;
/// Tokens of a step.
const TOKENS: usize = 64;

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
        if width < 2048 && rank <= 96 { Self { tokens: 32, slices: 1 } } else { Self { tokens: 128, slices: (width / 1024).clamp(1, 8) } }
    }
}

/// One projection in [`Device::lora_backward`].
pub struct LoraOut<'a> {
    /// First column of `dy`.
    pub dy_from: usize,
    /// Output features.
    pub out: usize,
    /// First column of `mid` and `dmid`.
    pub mid_from: usize,
    /// Rank; a multiple of 8.
    pub rank: usize,
    /// `scale * B`, `[out, rank]`.
    pub b: Matrix,
    /// The gradient of B, `[out, rank]`, added to.
    pub db: &'a mut Floats,
    /// `alpha / rank`.
    pub scale: f32,
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

fn rank_of(op: &'static str, rank: usize) -> Result<u32> {
    if rank == 0 || !rank.is_multiple_of(8) {
        return Err(fail(op, "the rank", rank, "a positive multiple of 8"));
    }
    u32::try_from(rank).map_err(|_| fail(op, "the rank", rank, "less than 2^32"))
}

/// Tokens of a run, so that `across` blocks times the runs fill the card once; whole steps.
fn run_of(device: &Device, n: usize, across: usize) -> usize {
    let runs = (device.multiprocessors() as usize).div_ceil(across.max(1)).max(1);
    n.div_ceil(runs).next_multiple_of(TOKENS).max(TOKENS)
}

/// A launch of 256 threads a block.
fn config(x: u32, y: u32, shared_mem_bytes: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (256, 1, 1), shared_mem_bytes: shared_mem_bytes as u32 }
}

/// A member of a launch over dy: one slice of the ranks of a projection.
#[derive(Clone, Copy, Default)]
struct Slot {
    out: u32,
    mid: u32,
    dy: u32,
    stride: u32,
    b: u64,
    db: u64,
    scale: f32,
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

    /// [`Self::lora_mid`] with a plan of the caller's, for measurements.
    ///
    /// # Errors
    /// As [`Self::lora_mid`]; plans that there is no kernel for.
    pub fn lora_mid_as(&self, plan: MidPlan, n: usize, x: &Tensor, a: Matrix, mid: &mut Tensor, scratch: &mut Floats) -> Result<()> {
        let op = "lora_mid";
        let (width, rank) = (x.cols(), a.rows);
        rank_of(op, rank)?;
        let (sx, so) = (8 * rows(op, "x", x, n, width)?, 8 * rows(op, "mid", mid, n, mid.cols())?);
        inside(op, "A", (a.rows, a.cols), (rank, width))?;
        inside(op, "mid", (mid.rows(), mid.cols()), (n, rank))?;
        if !width.is_multiple_of(8) || !a.stride.is_multiple_of(8) || !a.ptr.is_multiple_of(16) {
            return Err(fail(op, "the width", width, "a width, a stride of A and an offset that are multiples of 8"));
        }
        small(op, [n, width, a.stride])?;
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
            let grid = config(blocks(op, n, plan.tokens)?, slices as u32, 3 * 2 * chunk * (plan.tokens + padded));
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

    /// Which kernel serves a rank in the backward: its name, the ranks of a launch and blocks of 256 outputs that one block of threads takes.
    fn backward_kernel(&self, rank: usize) -> (&'static str, usize, usize) {
        let shared = |ranks, blocks| self.shared_limit() as usize >= backward_shared(ranks, blocks);
        if rank > 32 && shared(64, 1) {
            ("lora_backward_64_1", 64, 1)
        } else if shared(32, 2) {
            ("lora_backward_32_2", 32, 2)
        } else {
            ("lora_backward_32_1", 32, 1)
        }
    }

    /// Floats of scratch for one launch over members of equal rank.
    fn backward_scratch(&self, n: usize, outs: &[usize], rank: usize) -> [usize; 2] {
        let (_, ranks, halves) = self.backward_kernel(rank);
        let part = rank.min(ranks);
        let across: usize = outs.iter().map(|o| o.div_ceil(halves * OUTS)).sum();
        let runs = n.div_ceil(run_of(self, n, across));
        [across * n * part, runs * outs.iter().sum::<usize>() * part]
    }

    /// Bytes of scratch that [`Self::lora_backward`] needs for `n` tokens and members of these outputs and ranks.
    pub fn lora_backward_scratch_bytes(&self, n: usize, members: &[(usize, usize)]) -> usize {
        let launch = |group: &[(usize, usize)]| {
            let outs: Vec<usize> = group.iter().map(|m| m.0).collect();
            4 * self.backward_scratch(n, &outs, group.first().map_or(0, |m| m.1)).iter().sum::<usize>()
        };
        members.chunk_by(|a, b| a.1 == b.1).flat_map(|g| g.chunks(MEMBERS)).map(launch).max().unwrap_or(0)
    }

    /// The adapters' gradients behind `dy [n, Σ out]`, in one pass over it: of each member the columns `mid_from..mid_from + rank` of `dmid`
    /// become `dyᵢ (scale B)`, and `dB += scale dyᵢᵀ midᵢ`.
    ///
    /// # Errors
    /// Buffers or sizes that do not fit.
    pub fn lora_backward(
        &self,
        n: usize,
        dy: &Tensor,
        mid: &Tensor,
        members: &mut [LoraOut<'_>],
        dmid: &mut Tensor,
        scratch: &mut Floats,
    ) -> Result<()> {
        let op = "lora_backward";
        let sy = 8 * rows(op, "dy", dy, n, dy.cols())?;
        let (sm, sd) = (8 * rows(op, "mid", mid, n, mid.cols())?, 8 * rows(op, "dmid", dmid, n, dmid.cols())?);
        for m in members.iter() {
            rank_of(op, m.rank)?;
            inside(op, "B", (m.b.rows, m.b.cols), (m.out, m.rank))?;
            least(op, "dy", dy.cols(), m.dy_from.checked_add(m.out))?;
            least(op, "mid", mid.cols().min(dmid.cols()), m.mid_from.checked_add(m.rank))?;
            least(op, "dB", m.db.len(), super::product(&[m.out, m.rank]))?;
            if [m.out, m.dy_from, m.mid_from, m.b.stride].iter().any(|v| !v.is_multiple_of(8)) || !m.b.ptr.is_multiple_of(16) || m.out == 0
            {
                return Err(fail(op, "a member's outputs", m.out, "outputs, columns and a stride of B that are multiples of 8"));
            }
            small(op, [n, m.out, m.dy_from, m.mid_from, m.b.stride])?;
        }
        if n == 0 {
            return Ok(());
        }
        for group in members.chunk_by_mut(|a, b| a.rank == b.rank).flat_map(|g| g.chunks_mut(MEMBERS)) {
            let rank = group.first().map_or(0, |m| m.rank);
            let (name, ranks, halves) = self.backward_kernel(rank);
            let outs: Vec<usize> = group.iter().map(|m| m.out).collect();
            let [mids, bs] = self.backward_scratch(n, &outs, rank);
            least(op, "scratch", scratch.len(), mids.checked_add(bs))?;
            let across: usize = outs.iter().map(|o| o.div_ceil(halves * OUTS)).sum();
            let run = run_of(self, n, across);
            let (runs, part_b) = (n.div_ceil(run) as u32, scratch.ptr() + 4 * mids as u64);
            for from in (0..rank).step_by(ranks) {
                let part = (rank - from).min(ranks);
                let mut s = [Slot::default(); MEMBERS];
                for (slot, m) in s.iter_mut().zip(group.iter()) {
                    let at = from as u64;
                    let (mid, dy) = ((m.mid_from + from) as u32, m.dy_from as u32);
                    let (b, db) = (m.b.ptr + 2 * at, m.db.ptr() + 4 * at);
                    *slot = Slot { out: m.out as u32, mid, dy, stride: m.b.stride as u32, b, db, scale: m.scale };
                }
                let [a, b, c] = s;
                let (n32, part32, run32) = (n as u32, part as u32, run as u32);
                let grid = config(blocks(op, across, 1)?, runs, backward_shared(ranks, halves));
                launch!(
                    self,
                    name,
                    grid,
                    dy.ptr(),
                    sy,
                    mid.ptr(),
                    sm,
                    n32,
                    part32,
                    run32,
                    a.out,
                    b.out,
                    c.out,
                    a.mid,
                    b.mid,
                    c.mid,
                    a.dy,
                    b.dy,
                    c.dy,
                    a.b,
                    b.b,
                    c.b,
                    a.stride,
                    b.stride,
                    c.stride,
                    scratch.ptr(),
                    part_b
                );
                let values = part * (n * group.len() + outs.iter().sum::<usize>());
                let (grid, per) = (config(blocks(op, values, 1024)?, 1, 0), (halves * OUTS) as u32);
                launch!(
                    self,
                    "lora_backward_sum",
                    grid,
                    scratch.ptr(),
                    part_b,
                    n32,
                    part32,
                    per,
                    runs,
                    a.out,
                    b.out,
                    c.out,
                    dmid.ptr(),
                    sd,
                    a.mid,
                    b.mid,
                    c.mid,
                    a.db,
                    b.db,
                    c.db,
                    rank as u32,
                    a.scale,
                    b.scale,
                    c.scale,
                    group.len() as u32
                );
            }
        }
        Ok(())
    }

    /// Bytes of scratch that [`Self::lora_da`] needs for `n` tokens and members of these ranks, together.
    pub fn lora_da_scratch_bytes(&self, n: usize, width: usize, ranks: usize) -> usize {
        let run = run_of(self, n, width.div_ceil(COLUMNS));
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
        let run = run_of(self, n, width.div_ceil(COLUMNS));
        let runs = n.div_ceil(run);
        for (first, parts) in launches.iter().filter(|_| n > 0) {
            let rank: usize = parts.iter().map(|p| p.0).sum();
            least(op, "scratch", scratch.len(), super::product(&[runs, rank, width]))?;
            let (name, padded) = match rank {
                0..=32 => ("lora_da_32", 32),
                33..=64 => ("lora_da_64", 64),
                65..=96 => ("lora_da_96", 96),
                _ => ("lora_da_128", 128),
            };
            let grid = config(blocks(op, width, COLUMNS)?, runs as u32, 3 * 2 * TOKENS * (COLUMNS + padded));
            let (rank32, width32, run32) = (rank as u32, width as u32, run as u32);
            let at = dmid.ptr() + 2 * *first as u64;
            launch!(self, name, grid, at, sd, rank32, x.ptr(), sx, n as u32, width32, run32, scratch.ptr());
            let part = |i: usize| parts.get(i).map_or((0, 0), |p| (p.0 as u32, p.1));
            let ([a, b, c], grid) = ([part(0), part(1), part(2)], config(blocks(op, rank * width, 1024)?, 1, 0));
            launch!(self, "lora_da_sum", grid, scratch.ptr(), runs as u32, width32, a.0, b.0, c.0, a.1, b.1, c.1);
        }
        Ok(())
    }
}

/// Shared memory of the backward: B of its outputs, two tiles of dy, two of mid.
fn backward_shared(ranks: usize, halves: usize) -> usize {
    2 * (halves * OUTS * ranks + 2 * TOKENS * OUTS + 2 * TOKENS * ranks)
}
