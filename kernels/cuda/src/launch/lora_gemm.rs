//! The thin products of adapters at memory speed: `mid = x Aᵀ`, and the backward that reads `dy` once and `x` once.
//!
//! Partial sums lie in scratch that the caller makes once ([`Device::lora_mid_scratch_bytes`] and its kin) and are added in a fixed order.

use super::{blocks, fail, launch, launch_early, least, rows};
use crate::Result;
use crate::device::{Arg, Device};
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
/// Rows and columns of a tile of Hopper's kernels, its bytes, and what their shared memory may begin before a whole kilobyte.
const SIDE: usize = 128;
const TILE: usize = 2 * SIDE * SIDE;
const ALIGN: usize = 1024;
/// Columns of gates, and of ups, of a block of the backward with SwiGLU's.
const SWIGLU_COLUMNS: usize = 512;
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

/// Tokens of a run, so that `across` blocks times the runs fill the card so many times; a multiple of `step`.
fn run_of(device: &Device, n: usize, across: usize, times: usize, step: usize) -> usize {
    let runs = (device.multiprocessors() as usize * times / across.max(1)).max(1);
    n.div_ceil(runs).next_multiple_of(step).max(step)
}

/// Shared memory of as many stages as the kernels keep.
fn stages(bytes: usize) -> usize {
    bytes * (98304 / bytes).min(6)
}

/// A launch of 256 threads a block.
fn config(x: u32, y: u32, shared_mem_bytes: usize) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (256, 1, 1), shared_mem_bytes: shared_mem_bytes as u32 }
}

/// A kernel of the backward over dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackwardKernel {
    /// 32 ranks and 256 outputs of a block: serves every card.
    Short,
    /// 32 ranks and 512 outputs, two blocks on a multiprocessor of Hopper.
    Long,
    /// The same with a third tile on its way, one block on a multiprocessor.
    Deep,
    /// 64 ranks and 256 outputs.
    Wide,
    /// Hopper's own: 32 ranks and 1024 outputs.
    Hopper1024,
    /// Hopper's own: 32 ranks and 512 outputs.
    Hopper512,
    /// The same, two blocks on a multiprocessor.
    Hopper512Pair,
    /// Hopper's own: 64 ranks and 512 outputs.
    HopperWide,
}

/// What a kernel of the backward takes.
struct BackwardParts {
    name: &'static str,
    /// Ranks of a launch.
    ranks: usize,
    /// Outputs of a block.
    outs: usize,
    /// Shared memory of a block: B of its outputs, tiles of dy, two of mid, and, where two halves of the outputs are summed, one of sums.
    shared: usize,
    /// What the tokens of a run are a multiple of.
    tokens: usize,
}

impl BackwardKernel {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Short,
        Self::Long,
        Self::Deep,
        Self::Wide,
        Self::Hopper1024,
        Self::Hopper512,
        Self::Hopper512Pair,
        Self::HopperWide,
    ];

    fn parts(self) -> BackwardParts {
        // Name, ranks, blocks of 256 outputs, tiles of dy in shared memory.
        let portable = |name, ranks: usize, halves: usize, stages: usize| {
            let sums = if halves == 2 { 4 * TOKENS * ranks } else { 0 };
            let shared = 2 * (halves * OUTS * ranks + stages * TOKENS * OUTS + 2 * TOKENS * ranks) + sums;
            BackwardParts { name, ranks, outs: halves * OUTS, shared, tokens: TOKENS }
        };
        let hopper = |name, ranks: usize, outs: usize, stages: usize| {
            let shared = 2 * (outs * ranks + 2 * SIDE * ranks) + stages * TILE + ALIGN;
            BackwardParts { name, ranks, outs, shared, tokens: 16 }
        };
        match self {
            Self::Short => portable("lora_backward_32_1", 32, 1, 2),
            Self::Long => portable("lora_backward_32_2", 32, 2, 2),
            Self::Deep => portable("lora_backward_32_2_deep", 32, 2, 3),
            Self::Wide => portable("lora_backward_64_1", 64, 1, 2),
            Self::Hopper1024 => hopper("lora_backward_sm90_32_8", 32, 1024, 4),
            Self::Hopper512 => hopper("lora_backward_sm90_32_4", 32, 512, 4),
            Self::Hopper512Pair => hopper("lora_backward_sm90_32_4_pair", 32, 512, 2),
            Self::HopperWide => hopper("lora_backward_sm90_64_4", 64, 512, 4),
        }
    }

    /// Blocks of threads along the outputs.
    fn across(self, outs: &[usize]) -> usize {
        outs.iter().map(|o| o.div_ceil(self.parts().outs)).sum()
    }
}

/// How the backward over dy is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackwardPlan {
    /// The kernel.
    pub kernel: BackwardKernel,
    /// Blocks for each multiprocessor.
    pub times: usize,
}

/// Values of dy from which on two blocks share a multiprocessor: below, the partial sums of more runs cost more than they bring.
const LARGE: usize = 40 << 20;

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

/// What a launch that adds up the parts of a backward depends on.
struct SumSizes {
    n: u32,
    rank: u32,
    /// Outputs of a block.
    per: u32,
    runs: u32,
    db_stride: u32,
    members: usize,
}

impl Device {
    /// Adds up the parts of a backward, `(of dmid, of dB)`.
    fn backward_sum(&self, sizes: &SumSizes, parts: (u64, u64), dmid: (u64, u32), slots: [Slot; MEMBERS]) -> Result<()> {
        let [a, b, c] = slots;
        let outs = [a, b, c].iter().map(|s| s.out as usize).sum::<usize>();
        let values = sizes.rank as usize * (sizes.n as usize * sizes.members + outs);
        let grid = config(blocks("lora_backward", values, 1024)?, 1, 0);
        launch_early!(
            self,
            "lora_backward_sum",
            grid,
            parts.0,
            parts.1,
            sizes.n,
            sizes.rank,
            sizes.per,
            sizes.runs,
            a.out,
            b.out,
            c.out,
            dmid.0,
            dmid.1,
            a.mid,
            b.mid,
            c.mid,
            a.db,
            b.db,
            c.db,
            sizes.db_stride,
            a.scale,
            b.scale,
            c.scale,
            sizes.members as u32
        );
        Ok(())
    }

    fn thin(&self, name: &'static str) -> bool {
        self.prefers(name) && std::env::var_os("LORA_OLD").is_none()
    }

    /// Whether [`Self::lora_mid`] is at least as fast as a library's product.
    pub fn has_thin_products(&self) -> bool {
        self.thin("lora_mid_sm90_32") && std::env::var_os("LORA_MID_LT").is_none()
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
        let [sx, so] = Self::check_mid(op, n, x, a, mid)?;
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
            let grid = config(blocks(op, n, SIDE)?, SLICES, stages * (TILE + 2 * SIDE * padded) + ALIGN);
            let (a_ptr, out) = (a.ptr + 2 * (from * a.stride) as u64, mid.ptr() + 2 * from as u64);
            let (n, width, stride, rank) = (n as u32, width as u32, a.stride as u32, part as u32);
            let args: [Arg<'_>; 10] = [
                x.ptr().into(),
                sx.into(),
                n.into(),
                width.into(),
                a_ptr.into(),
                stride.into(),
                rank.into(),
                slice.into(),
                out.into(),
                so.into(),
            ];
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

    /// Whether [`Self::swiglu_lora_mid`] serves an adapter of this rank.
    pub fn fuses_swiglu_mid(&self, rank: usize) -> bool {
        rank > 0 && rank <= 32 && rank.is_multiple_of(8) && self.thin("swiglu_mid_sm90") && std::env::var_os("LORA_NOFUSE").is_none()
    }

    /// [`Self::swiglu`] and [`Self::lora_mid`] of its result, in one pass. Slices of the width are the blocks of a cluster, whatever `n` is.
    ///
    /// # Errors
    /// Buffers or sizes that do not fit; a rank that [`Self::fuses_swiglu_mid`] does not serve.
    pub fn swiglu_lora_mid(&self, n: usize, width: usize, gate_up: &Tensor, a: Matrix, out: &mut Tensor, mid: &mut Tensor) -> Result<()> {
        let op = "swiglu_lora_mid";
        let [so, sm] = Self::check_mid(op, n, out, a, mid)?;
        let sx = 8 * rows(op, "gate_up", gate_up, n, 2 * width)?;
        if !self.fuses_swiglu_mid(a.rows) || out.cols() != width {
            return Err(fail(op, "the rank", a.rows, "a rank of at most 32 that is a multiple of 8, and a result of the width"));
        }
        small(op, [2 * width])?;
        if n == 0 {
            return Ok(());
        }
        let slice = width.div_ceil(SLICES as usize).next_multiple_of(64) as u32;
        let grid = config(blocks(op, n, TOKENS)?, SLICES, 5 * (2 * 128 * TOKENS + 128 * 32) + ALIGN);
        let args: [Arg<'_>; 12] = [
            gate_up.ptr().into(),
            sx.into(),
            (n as u32).into(),
            (width as u32).into(),
            a.ptr.into(),
            (a.stride as u32).into(),
            (a.rows as u32).into(),
            slice.into(),
            out.ptr().into(),
            so.into(),
            mid.ptr().into(),
            sm.into(),
        ];
        self.launch_cluster("swiglu_mid_sm90", grid, SLICES, &args)
    }

    /// The plan of the backward for `n` tokens, members of these outputs, and their rank.
    pub fn lora_backward_plan(&self, n: usize, outs: &[usize], rank: usize) -> BackwardPlan {
        use BackwardKernel::{Deep, Hopper512, Hopper1024, HopperWide, Long, Short, Wide};
        let fits = |kernel: BackwardKernel| self.shared_limit() as usize >= kernel.parts().shared;
        let large = n.saturating_mul(outs.iter().sum()) >= LARGE;
        if self.thin("lora_backward_sm90_32_4") {
            // Of many outputs a block takes more, so that sums over them are of fewer parts.
            let kernel = match (rank > 32, outs.iter().sum::<usize>() >= 16384) {
                (true, _) => HopperWide,
                (false, true) => Hopper1024,
                (false, false) => Hopper512,
            };
            return BackwardPlan { kernel, times: 1 };
        }
        let kernel = match (rank > 32 && fits(Wide), large) {
            (true, _) => Wide,
            (false, false) if fits(Deep) => Deep,
            (false, _) if fits(Long) => Long,
            _ => Short,
        };
        BackwardPlan { kernel, times: if large { 2 } else { 1 } }
    }

    /// Floats of scratch for one launch over members of equal rank: partial sums of dmid and of dB.
    fn backward_scratch(&self, plan: BackwardPlan, n: usize, outs: &[usize], rank: usize) -> [usize; 2] {
        let (part, across) = (rank.min(plan.kernel.parts().ranks), plan.kernel.across(outs));
        let runs = n.div_ceil(run_of(self, n, across, plan.times, plan.kernel.parts().tokens));
        [across * n * part, runs * outs.iter().sum::<usize>() * part]
    }

    /// Bytes of scratch that [`Self::lora_backward`] needs for `n` tokens and members of these outputs and ranks; with a plan,
    /// [`Self::lora_backward_as`].
    pub fn lora_backward_scratch_bytes(&self, plan: Option<BackwardPlan>, n: usize, members: &[(usize, usize)]) -> usize {
        let launch = |group: &[(usize, usize)]| {
            let (outs, rank): (Vec<usize>, usize) = (group.iter().map(|m| m.0).collect(), group.first().map_or(0, |m| m.1));
            let plan = plan.unwrap_or_else(|| self.lora_backward_plan(n, &outs, rank));
            4 * self.backward_scratch(plan, n, &outs, rank).iter().sum::<usize>()
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
        self.lora_backward_as(None, n, dy, mid, members, dmid, scratch)
    }

    /// [`Self::lora_backward`] with a plan of the caller's, for measurements.
    ///
    /// # Errors
    /// As [`Self::lora_backward`]; plans that the card has not got the shared memory for.
    #[expect(clippy::too_many_arguments, reason = "two products that share an operand")]
    pub fn lora_backward_as(
        &self,
        plan: Option<BackwardPlan>,
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
            let outs: Vec<usize> = group.iter().map(|m| m.out).collect();
            let plan = plan.unwrap_or_else(|| self.lora_backward_plan(n, &outs, rank));
            let (parts, across) = (plan.kernel.parts(), plan.kernel.across(&outs));
            let ranks = parts.ranks;
            let [mids, bs] = self.backward_scratch(plan, n, &outs, rank);
            least(op, "scratch", scratch.len(), mids.checked_add(bs))?;
            let run = run_of(self, n, across, plan.times, parts.tokens);
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
                let grid = config(blocks(op, across, 1)?, runs, parts.shared);
                launch_early!(
                    self,
                    parts.name,
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
                let sizes = SumSizes { n: n32, rank: part32, per: parts.outs as u32, runs, db_stride: rank as u32, members: group.len() };
                self.backward_sum(&sizes, (scratch.ptr(), part_b), (dmid.ptr(), sd), s)?;
            }
        }
        Ok(())
    }

    /// Whether [`Self::swiglu_lora_backward`] serves a group of gate and up with these ranks.
    pub fn fuses_swiglu(&self, ranks: [usize; 2]) -> bool {
        let [gate, up] = ranks;
        std::env::var_os("LORA_NOFUSE").is_none() && gate == up && gate > 0 && gate <= 32 && gate.is_multiple_of(8) && self.thin("lora_backward_swiglu_sm90")
    }

    /// Tokens of a run and the blocks along the width.
    fn swiglu_run(&self, n: usize, width: usize) -> (usize, usize) {
        let across = width.div_ceil(SWIGLU_COLUMNS);
        (run_of(self, n, across, 1, 16), across)
    }

    /// Bytes of scratch that [`Self::swiglu_lora_backward`] needs.
    pub fn swiglu_lora_scratch_bytes(&self, n: usize, width: usize, rank: usize) -> usize {
        let (run, across) = self.swiglu_run(n, width);
        4 * 2 * rank * (across * n + n.div_ceil(run) * width)
    }

    /// [`Self::swiglu_backward`] in place and [`Self::lora_backward`] of gate and up, in one pass.
    ///
    /// # Errors
    /// Buffers or sizes that do not fit; members that [`Self::fuses_swiglu`] does not serve.
    #[expect(clippy::too_many_arguments, reason = "two operations that share an operand")]
    pub fn swiglu_lora_backward(
        &self,
        n: usize,
        width: usize,
        dout: &Tensor,
        gate_up: &mut Tensor,
        mid: &Tensor,
        members: &mut [LoraOut<'_>],
        dmid: &mut Tensor,
        scratch: &mut Floats,
    ) -> Result<()> {
        let op = "swiglu_lora_backward";
        let [gate, up] = members else { return Err(fail(op, "the members", members.len(), "gate and up")) };
        if !self.fuses_swiglu([gate.rank, up.rank]) || [gate.dy_from, up.dy_from, gate.out, up.out] != [0, width, width, width] {
            return Err(fail(op, "a member's rank", gate.rank, "equal ranks of at most 32 that are multiples of 8, and as many outputs as the width"));
        }
        let rank = gate.rank;
        let (sy, sx) = (8 * rows(op, "dout", dout, n, width)?, 8 * rows(op, "gate_up", gate_up, n, 2 * width)?);
        let (sm, sd) = (8 * rows(op, "mid", mid, n, mid.cols())?, 8 * rows(op, "dmid", dmid, n, dmid.cols())?);
        let mut slots = [Slot::default(); MEMBERS];
        for (slot, m) in slots.iter_mut().zip([&*gate, &*up]) {
            inside(op, "B", (m.b.rows, m.b.cols), (width, rank))?;
            least(op, "mid", mid.cols().min(dmid.cols()), m.mid_from.checked_add(rank))?;
            least(op, "dB", m.db.len(), super::product(&[width, rank]))?;
            if [width, m.mid_from, m.b.stride].iter().any(|v| !v.is_multiple_of(8)) || !m.b.ptr.is_multiple_of(16) || width == 0 {
                return Err(fail(op, "the width", width, "a width, columns and a stride of B that are multiples of 8"));
            }
            small(op, [n, 2 * width, m.mid_from, m.b.stride])?;
            let (mid, dy) = (m.mid_from as u32, m.dy_from as u32);
            *slot = Slot { out: width as u32, mid, dy, stride: m.b.stride as u32, b: m.b.ptr, db: m.db.ptr(), scale: m.scale };
        }
        least(op, "scratch", scratch.bytes(), Some(self.swiglu_lora_scratch_bytes(n, width, rank)))?;
        if n == 0 {
            return Ok(());
        }
        let (run, across) = self.swiglu_run(n, width);
        let (runs, part_b) = (n.div_ceil(run) as u32, scratch.ptr() + 4 * (2 * across * n * rank) as u64);
        let shared = 2 * 2 * SWIGLU_COLUMNS * 32 + 3 * 3 * TILE / 2 + 2 * 2 * 2 * TOKENS * 32 + ALIGN;
        let grid = config(blocks(op, across, 1)?, runs, shared);
        let ([a, b, _], rank32) = (slots, rank as u32);
        launch_early!(
            self,
            "lora_backward_swiglu_sm90",
            grid,
            dout.ptr(),
            sy,
            gate_up.ptr(),
            sx,
            width as u32,
            mid.ptr(),
            sm,
            n as u32,
            rank32,
            run as u32,
            a.mid,
            b.mid,
            a.b,
            b.b,
            a.stride,
            b.stride,
            scratch.ptr(),
            part_b
        );
        let sizes = SumSizes { n: n as u32, rank: rank32, per: SWIGLU_COLUMNS as u32, runs, db_stride: rank32, members: 2 };
        self.backward_sum(&sizes, (scratch.ptr(), part_b), (dmid.ptr(), sd), slots)
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
        let (name, padded, stages, per) = match rank {
            ..=32 if std::env::var_os("LORA_PAIR").is_some() => ("lora_da_sm90_32_pair", 32, 2, 2),
            ..=32 => ("lora_da_sm90_32", 32, 5, 1),
            33..=64 => ("lora_da_sm90_64", 64, 4, 1),
            65..=96 => ("lora_da_sm90_96", 96, 4, 1),
            _ => ("lora_da_sm90_128", 128, 3, 1),
        };
        // The most blocks of a cluster that any card takes.
        let runs = (self.multiprocessors() as usize * per / across.max(1)).clamp(1, 8);
        let runs = if runs.is_power_of_two() { runs } else { runs.next_power_of_two() / 2 };
        let run = n.div_ceil(runs).next_multiple_of(16) as u32;
        let grid = config(blocks("lora_da", across, 1)?, runs as u32, stages * (TILE + 2 * SIDE * padded) + ALIGN);
        let (n, width, [a, b, c]) = (n as u32, width as u32, members);
        let args: [Arg<'_>; 13] = [
            dmid.0.into(),
            dmid.1.into(),
            x.0.into(),
            x.1.into(),
            n.into(),
            width.into(),
            run.into(),
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
