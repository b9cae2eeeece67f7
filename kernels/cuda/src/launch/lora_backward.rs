//! The thin products of adapters over `dy`, in one pass: the gradient of what lies between A and B, and that of B. Partial
//! sums lie in the caller's scratch and are added in a fixed order.

use super::lora_gemm::{MEMBERS, TOKENS, config, rank_of, run_of};
use super::{blocks, fail, launch_early, least, rows};
use crate::Result;
use crate::device::{Arg, Device};
use crate::matrix::{Matrix, inside, small};
use crate::memory::{Floats, Tensor};

/// Outputs of a portable block's tile.
const OUTS: usize = 256;

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
}

impl BackwardKernel {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Short, Self::Long, Self::Deep, Self::Wide];

    fn parts(self) -> BackwardParts {
        // Name, ranks, blocks of 256 outputs, tiles of dy in shared memory.
        let portable = |name, ranks: usize, halves: usize, stages: usize| {
            let sums = if halves == 2 { 4 * TOKENS * ranks } else { 0 };
            let shared = 2 * (halves * OUTS * ranks + stages * TOKENS * OUTS + 2 * TOKENS * ranks) + sums;
            BackwardParts { name, ranks, outs: halves * OUTS, shared }
        };
        match self {
            Self::Short => portable("lora_backward_32_1", 32, 1, 2),
            Self::Long => portable("lora_backward_32_2", 32, 2, 2),
            Self::Deep => portable("lora_backward_32_2_deep", 32, 2, 3),
            Self::Wide => portable("lora_backward_64_1", 64, 1, 2),
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

    /// The plan of the backward for `n` tokens, members of these outputs, and their rank.
    pub fn lora_backward_plan(&self, n: usize, outs: &[usize], rank: usize) -> BackwardPlan {
        use BackwardKernel::{Deep, Long, Short, Wide};
        let fits = |kernel: BackwardKernel| self.shared_limit() as usize >= kernel.parts().shared;
        let large = n.saturating_mul(outs.iter().sum()) >= LARGE;
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
        let runs = n.div_ceil(run_of(self, n, across, plan.times, TOKENS));
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
            let run = run_of(self, n, across, plan.times, TOKENS);
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
                let mut args: Vec<Arg<'_>> = Vec::with_capacity(28);
                args.extend([Arg::from(dy.ptr()), sy.into(), mid.ptr().into(), sm.into(), n32.into(), part32.into(), run32.into()]);
                args.extend([a.out, b.out, c.out, a.mid, b.mid, c.mid, a.dy, b.dy, c.dy].map(Arg::from));
                args.extend([a.b, b.b, c.b].map(Arg::from));
                args.extend([a.stride, b.stride, c.stride].map(Arg::from));
                args.extend([scratch.ptr(), part_b].map(Arg::from));
                self.launch_early(parts.name, grid, &args)?;
                let sizes = SumSizes { n: n32, rank: part32, per: parts.outs as u32, runs, db_stride: rank as u32, members: group.len() };
                self.backward_sum(&sizes, (scratch.ptr(), part_b), (dmid.ptr(), sd), s)?;
            }
        }
        Ok(())
    }
}
