//! The thin products of adapters over `x` at memory speed: `mid = x Aᵀ`, and the gradient of A.
//!
//! Partial sums lie in scratch that the caller makes once ([`Device::lora_mid_scratch_bytes`] and its kin) and are added in a fixed order.

use super::{blocks, fail, launch, least, rows};
use crate::Result;
use crate::device::{Arg, Device, TensorMap};
use crate::matrix::{Matrix, inside, small};
use crate::memory::{Floats, Tensor};
use cudarc::driver::{LaunchConfig, sys};

/// The most ranks of one launch over x.
const RANKS: usize = 128;
/// Members of one launch.
pub(super) const MEMBERS: usize = 3;
/// Columns of x of a block's tile.
const COLUMNS: usize = 128;
/// Tokens of a step.
pub(super) const TOKENS: usize = 64;
/// Rows and columns of a tile of Hopper's kernels, its bytes, and what their shared memory may begin before a whole kilobyte.
pub(super) const SIDE: usize = 128;
pub(super) const TILE: usize = 2 * SIDE * SIDE;
pub(super) const ALIGN: usize = 1024;
/// Bytes of the barriers of its stages.
pub(super) const BARRIERS: usize = 64;
/// Set to `hopper`, it says that Hopper's own kernels compute the adapters' thin products. Not the default: fed by copies of the threads' own they were right
/// but no faster than the portable ones, and fed by the copy engine they have not been measured.
pub const THIN: &str = "TRAINER_CUDA_THIN";
/// Slices of the width in Hopper's product with A: blocks of a cluster.
const SLICES: u32 = 4;

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
    /// Whether Hopper's own kernel of this name is to be used: see [`THIN`].
    pub(super) fn thin(&self, name: &'static str) -> bool {
        self.prefers(name) && std::env::var_os(THIN).is_some_and(|v| v == "hopper")
    }

    /// Whether [`Self::lora_mid`] is at least as fast as a library's product.
    pub fn has_thin_products(&self) -> bool {
        self.thin("lora_mid_sm90_32")
    }

    /// Bytes of scratch that [`Self::lora_mid`] needs for `n` tokens.
    pub fn lora_mid_scratch_bytes(&self, n: usize, width: usize, rank: usize) -> usize {
        if self.thin("lora_mid_sm90_32") {
            return 0;
        }
        let plan = MidPlan::new(width, rank.min(RANKS));
        if plan.slices == 1 { 0 } else { 4 * plan.slices * n * rank.min(RANKS) }
    }

    /// The first columns of `mid [n, ≥ rank]` become `x [n, width] A[rank, width]ᵀ`: the adapters' first half, all members of a group at once.
    ///
    /// # Errors
    /// Buffers or sizes that do not fit.
    pub fn lora_mid(&self, n: usize, x: &Tensor, a: Matrix, mid: &mut Tensor, scratch: &mut Floats) -> Result<()> {
        if self.thin("lora_mid_sm90_32") {
            return self.lora_mid_cluster(n, x, a, mid);
        }
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

    /// [`Self::lora_mid`] by Hopper's kernel: slices of the width in the blocks of a cluster, whatever `n` is.
    fn lora_mid_cluster(&self, n: usize, x: &Tensor, a: Matrix, mid: &mut Tensor) -> Result<()> {
        let op = "lora_mid";
        let [_, so] = Self::check_mid(op, n, x, a, mid)?;
        let (width, rank) = (x.cols(), a.rows);
        let slice = width.div_ceil(SLICES as usize).next_multiple_of(SIDE) as u32;
        for from in (0..rank).step_by(RANKS) {
            let part = (rank - from).min(RANKS);
            let (name, padded, stages) = match part {
                ..=32 => ("lora_mid_sm90_32", 32, 5),
                33..=64 => ("lora_mid_sm90_64", 64, 4),
                65..=96 => ("lora_mid_sm90_96", 96, 4),
                _ => ("lora_mid_sm90_128", 128, 3),
            };
            if n == 0 {
                return Ok(());
            }
            let grid = config(blocks(op, n, SIDE)?, SLICES, stages * (TILE + 2 * SIDE * padded) + BARRIERS + ALIGN);
            let (a_ptr, out) = (a.ptr + 2 * (from * a.stride) as u64, mid.ptr() + 2 * from as u64);
            let long = tensor_map(x.ptr(), [n, width, x.stride()], WIDE_BOX)?;
            let thin = tensor_map(a_ptr, [part, width, a.stride], (64, padded as u32))?;
            let (n, width, rank) = (n as u32, width as u32, part as u32);
            let args: [Arg<'_>; 8] =
                [(&long).into(), (&thin).into(), n.into(), width.into(), rank.into(), slice.into(), out.into(), so.into()];
            self.launch_cluster(name, grid, SLICES, &args)?;
        }
        Ok(())
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
        if self.thin("lora_da_sm90_32") {
            return 0;
        }
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
            if self.thin("lora_da_sm90_32") {
                self.lora_da_cluster([n, width, rank], (at, sd), (x.ptr(), sx), [a, b, c])?;
                continue;
            }
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

    /// One launch of [`Self::lora_da`] by Hopper's kernel, whose clusters add up the runs: `[n, width, rank]`, addresses and strides of dmid and x, ranks and
    /// gradients of the members.
    fn lora_da_cluster(&self, sizes: [usize; 3], dmid: (u64, u32), x: (u64, u32), members: [(u32, u64); MEMBERS]) -> Result<()> {
        let [n, width, rank] = sizes;
        let across = width.div_ceil(SIDE);
        let (name, padded, stages) = match rank {
            ..=32 => ("lora_da_sm90_32", 32, 5),
            33..=64 => ("lora_da_sm90_64", 64, 4),
            65..=96 => ("lora_da_sm90_96", 96, 4),
            _ => ("lora_da_sm90_128", 128, 3),
        };
        // The most blocks of a cluster that any card takes.
        let runs = (self.multiprocessors() as usize / across.max(1)).clamp(1, 8);
        let runs = if runs.is_power_of_two() { runs } else { runs.next_power_of_two() / 2 };
        let grid = config(blocks("lora_da", across, 1)?, runs as u32, stages * (TILE + 2 * SIDE * padded) + BARRIERS + ALIGN);
        let thin = tensor_map(dmid.0, [n, rank, dmid.1 as usize], THIN_BOX)?;
        let long = tensor_map(x.0, [n, width, x.1 as usize], WIDE_BOX)?;
        let (n, width, [a, b, c]) = (n as u32, width as u32, members);
        let args: [Arg<'_>; 10] = [
            (&thin).into(),
            (&long).into(),
            n.into(),
            width.into(),
            a.0.into(),
            b.0.into(),
            c.0.into(),
            a.1.into(),
            b.1.into(),
            c.1.into(),
        ];
        self.launch_cluster(name, grid, runs as u32, &args)
    }
}

/// Columns and rows of what Hopper's copy engine copies at once: of a long matrix, and of a thin one.
pub(super) const WIDE_BOX: (u32, u32) = (64, 64);
pub(super) const THIN_BOX: (u32, u32) = (32, SIDE as u32);

/// Tells the copy engine of a matrix of `[rows, columns, stride]` values, whose boxes are swizzled over their whole width.
#[expect(unsafe_code, reason = "a call of the driver")]
pub(super) fn tensor_map(ptr: u64, [rows, cols, stride]: [usize; 3], (width, height): (u32, u32)) -> Result<TensorMap> {
    use sys::CUtensorMapSwizzle::{CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_SWIZZLE_128B};
    let mut map = TensorMap(sys::CUtensorMap { opaque: [0; 16] });
    let (sizes, strides) = ([cols as u64, rows as u64], [2 * stride as u64]);
    // SAFETY: the driver reads two sizes, one stride and two pairs of numbers, and writes the map; the address is not followed here. Every access through
    // the map is within `rows` rows of `cols` values, which the caller has checked against the buffer.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map.0,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            ptr as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            [width, height].as_ptr(),
            [1u32, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            if width == 32 { CU_TENSOR_MAP_SWIZZLE_64B } else { CU_TENSOR_MAP_SWIZZLE_128B },
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    status.result()?;
    Ok(map)
}
