//! Linear layers of few rows, for generation: straight from packed weights, with their adapters.

use super::{DeviceNf4, blocks, fail, grid, launch_early, least, product, rows};
use crate::Result;
use crate::device::Device;
use crate::memory::{Floats, Tensor};

/// The most rows (tokens) of the small linear layers.
pub const MOST_SMALL_ROWS: usize = 64;
/// Members of a launch.
const MOST_MEMBERS: usize = 4;
/// Words of eight bytes of a member as the kernels lay it out.
const WORDS: usize = 13;
/// Warps of a block.
const WARPS: usize = 8;
/// Bytes of the look-up table.
const TABLE: usize = 32 << 10;
/// The most static shared memory of these kernels, with what the system keeps of each block.
const STATIC: usize = 5 << 10;

/// The adapter of a projection as generation uses it: `scale * B (A x)`.
#[derive(Clone, Copy)]
pub struct SmallLora<'a> {
    /// `[rank, in]`.
    pub a: &'a Floats,
    /// `[out, rank]`.
    pub b: &'a Floats,
    /// Rank, at least 1.
    pub rank: usize,
    /// `alpha / rank`, or what the recipe says.
    pub scale: f32,
}

/// One projection of a group that shares its input.
#[derive(Clone, Copy)]
pub struct SmallMember<'a> {
    /// The weight, `[out, in]`.
    pub weight: &'a DeviceNf4,
    /// The first column of its output.
    pub column: usize,
    /// Its adapter.
    pub lora: Option<SmallLora<'a>>,
    /// Its bias, `[out]`.
    pub bias: Option<&'a Floats>,
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn small(op: &'static str, what: &'static str, v: usize) -> Result<u32> {
    u32::try_from(v).ok().filter(|&v| v <= i32::MAX as u32).ok_or_else(|| fail(op, what, v, "less than 2^31"))
}

/// Whether the tensor cores' kernel serves a weight: blocks of scales must not straddle its steps of 64 values.
fn regular(w: &DeviceNf4) -> bool {
    w.cols.is_multiple_of(64) && w.block_shift >= 6
}

/// Shared memory of a block of `tile` rows by `tokens` columns with `steps` steps of 64 values.
fn shared(tile: usize, tokens: usize, steps: usize) -> usize {
    let stride = (steps + 27) / 32 * 32 + 4;
    (TABLE + tile * stride * 4).max(WARPS * tokens.min(32) * tile * 4)
}

/// A group's checked arguments.
struct Group {
    words: [u64; MOST_MEMBERS * WORDS],
    tiles: usize,
    ranks: usize,
    x_stride: u32,
    n: u32,
}

impl Device {
    /// The projections of a group for `n` rows, 1 to [`MOST_SMALL_ROWS`]: columns from `column` on of `out` get
    /// `x Wᵀ + bias + scale (x Aᵀ) Bᵀ` for each of up to four members, which have the same input width. Every weight is read once and stays
    /// packed; sums are in f32; code points, `x Aᵀ` and B are rounded to bf16. A row's result depends on that row alone, bit for bit.
    /// `mid` is scratch of `n * Σ rank` values (f32), which get `x Aᵀ`.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn nf4_linear(&self, n: usize, x: &Tensor, members: &[SmallMember<'_>], mid: &mut Floats, out: &mut Tensor) -> Result<()> {
        self.nf4_linear_tiled(n, x, members, mid, out, None)
    }

    /// [`Self::nf4_linear`] with 16 or 32 weight rows in a block, for measurements; the result is the same. Only up to eight rows have the choice.
    ///
    /// # Errors
    /// Buffers that do not fit.
    #[doc(hidden)]
    pub fn nf4_linear_tiled(
        &self,
        n: usize,
        x: &Tensor,
        members: &[SmallMember<'_>],
        mid: &mut Floats,
        out: &mut Tensor,
        tile: Option<usize>,
    ) -> Result<()> {
        let op = "nf4_linear";
        if n == 0 || members.is_empty() {
            return Ok(());
        }
        let cols = members.first().map_or(0, |m| m.weight.cols);
        least(op, "the output's rows", out.rows(), Some(n))?;
        for m in members {
            least(op, "the output's columns", out.cols(), m.column.checked_add(m.weight.rows))?;
        }
        let steps = cols / 64;
        let fits = |tile: usize, tokens: usize| shared(tile, tokens, steps) + STATIC <= self.shared_limit() as usize;
        let total: usize = members.iter().map(|m| m.weight.rows).sum();
        let fast = members.iter().all(|m| regular(m.weight));
        // Larger tiles share the input and the tables among more rows, as long as there is a block for every multiprocessor.
        let tall = tile.map_or(total >= 64 * self.multiprocessors() as usize, |t| t > 16);
        let (name, tile, tokens) = match n {
            _ if !fast => ("nf4_small_any", WARPS, 0),
            1..=8 if (!tall || !fits(32, 8)) && fits(16, 8) => ("nf4_small_1_1", 16, 8),
            1..=8 if fits(32, 8) => ("nf4_small_2_1", 32, 8),
            9..=16 if fits(32, 16) => ("nf4_small_2_2", 32, 16),
            17..=32 if fits(32, 32) => ("nf4_small_2_4", 32, 32),
            33..=64 if fits(32, 64) => ("nf4_small_2_8", 32, 64),
            _ => ("nf4_small_any", WARPS, 0),
        };
        let group = self.group(op, n, x, members, tile, tile)?;
        self.small_mid(op, &group, n, x, members, mid)?;
        let mut config = grid(blocks(op, group.tiles, 1)?, 1, 256);
        let steps = if tokens == 0 { cols / 8 } else { steps };
        config.shared_mem_bytes = if tokens == 0 { 0 } else { small(op, "the input", shared(tile, tokens, steps))? };
        let (mid, ranks) = (if group.ranks > 0 { mid.ptr() } else { 0 }, small(op, "the ranks", group.ranks)?);
        let stride = small(op, "the output's stride", out.stride())?;
        let steps = small(op, "the input", steps)?;
        launch_early!(self, name, config, group.words.as_slice(), x.ptr(), group.x_stride, group.n, steps, mid, ranks, out.ptr(), stride);
        Ok(())
    }

    /// Whether [`Self::nf4_swiglu`] takes these weights.
    pub fn nf4_swiglu_fits(&self, n: usize, gate: &DeviceNf4, up: &DeviceNf4) -> bool {
        let tokens = n.next_power_of_two().max(8);
        let tile = if tokens == 8 { 16 } else { 32 };
        regular(gate)
            && regular(up)
            && (gate.rows, gate.cols) == (up.rows, up.cols)
            && gate.host_code == up.host_code
            && shared(tile, tokens, gate.cols / 64) + STATIC <= self.shared_limit() as usize
    }

    /// `silu(gate) * up` of both projections (with adapters and biases, as in [`Self::nf4_linear`]; their columns are ignored) in one launch:
    /// `out [n, rows of gate]`. Gate and up stay in f32 until the product is rounded.
    ///
    /// # Errors
    /// Buffers that do not fit, and weights for which [`Self::nf4_swiglu_fits`] is false.
    pub fn nf4_swiglu(
        &self,
        n: usize,
        x: &Tensor,
        gate: SmallMember<'_>,
        up: SmallMember<'_>,
        mid: &mut Floats,
        out: &mut Tensor,
    ) -> Result<()> {
        self.nf4_swiglu_tiled(n, x, gate, up, mid, out, None)
    }

    /// [`Self::nf4_swiglu`] with 16 or 32 weight rows in a block, for measurements.
    ///
    /// # Errors
    /// As [`Self::nf4_swiglu`].
    #[doc(hidden)]
    #[expect(clippy::too_many_arguments, reason = "the fused operation's own arguments and one for measuring")]
    pub fn nf4_swiglu_tiled(
        &self,
        n: usize,
        x: &Tensor,
        gate: SmallMember<'_>,
        up: SmallMember<'_>,
        mid: &mut Floats,
        out: &mut Tensor,
        tile: Option<usize>,
    ) -> Result<()> {
        let op = "nf4_swiglu";
        if n == 0 {
            return Ok(());
        }
        if !self.nf4_swiglu_fits(n, gate.weight, up.weight) {
            return Err(fail(
                op,
                "the input width",
                gate.weight.cols,
                "a multiple of 64, with blocks of at least 64 and two weights of one shape",
            ));
        }
        let width = gate.weight.rows;
        rows(op, "the output", out, n, width)?;
        let steps = gate.weight.cols / 64;
        let fits = |tile: usize, tokens: usize| shared(tile, tokens, steps) + STATIC <= self.shared_limit() as usize;
        let tall = tile.map_or(2 * width >= 64 * self.multiprocessors() as usize, |t| t > 16) && fits(32, 8);
        let (name, tile, tokens) = match n {
            1..=8 if !tall => ("nf4_swiglu_1_1", 16, 8),
            1..=8 => ("nf4_swiglu_2_1", 32, 8),
            9..=16 => ("nf4_swiglu_2_2", 32, 16),
            17..=32 => ("nf4_swiglu_2_4", 32, 32),
            _ => ("nf4_swiglu_2_8", 32, 64),
        };
        let members = [gate, up];
        let group = self.group(op, n, x, &members, tile, tile / 2)?;
        self.small_mid(op, &group, n, x, &members, mid)?;
        let mut config = grid(blocks(op, width, tile / 2)?, 1, 256);
        config.shared_mem_bytes = small(op, "the input", shared(tile, tokens, steps))?;
        let (mid, ranks) = (if group.ranks > 0 { mid.ptr() } else { 0 }, small(op, "the ranks", group.ranks)?);
        let stride = small(op, "the output's stride", out.stride())?;
        let steps = small(op, "the input", steps)?;
        launch_early!(self, name, config, group.words.as_slice(), x.ptr(), group.x_stride, group.n, steps, mid, ranks, out.ptr(), stride);
        Ok(())
    }

    /// Checks the members' sizes and lays them out for the kernels, `tile` weight rows to a block (`rows_of_each` of each member of a pair).
    fn group(
        &self,
        op: &'static str,
        n: usize,
        x: &Tensor,
        members: &[SmallMember<'_>],
        tile: usize,
        rows_of_each: usize,
    ) -> Result<Group> {
        if n > MOST_SMALL_ROWS {
            return Err(fail(op, "the number of rows", n, format_args!("at most {MOST_SMALL_ROWS}")));
        }
        if members.len() > MOST_MEMBERS {
            return Err(fail(op, "the number of members", members.len(), format_args!("at most {MOST_MEMBERS}")));
        }
        let cols = members.first().map_or(0, |m| m.weight.cols);
        let x_stride = small(op, "the input's stride", 8 * rows(op, "x", x, n, cols)? as usize)?;
        let mut group = Group { words: [0; MOST_MEMBERS * WORDS], tiles: 0, ranks: 0, x_stride, n: small(op, "the number of rows", n)? };
        for (m, words) in members.iter().zip(group.words.chunks_exact_mut(WORDS)) {
            let w = m.weight;
            if w.cols != cols || cols == 0 || w.rows == 0 {
                return Err(fail(op, "a member's input", w.cols, format_args!("{cols}, and not empty")));
            }
            if let Some(bias) = m.bias {
                least(op, "a bias", bias.len(), Some(w.rows))?;
            }
            let (mut b, mut rank, mut scale) = (0, 0, 0.0);
            if let Some(lora) = m.lora {
                least(op, "A", lora.a.len(), product(&[lora.rank, cols]))?;
                least(op, "B", lora.b.len(), product(&[w.rows, lora.rank]))?;
                (b, rank, scale) = (lora.b.ptr(), lora.rank, lora.scale);
            }
            let tiles = w.rows.div_ceil(rows_of_each);
            debug_assert!(rows_of_each <= tile);
            let fields = [
                w.packed.ptr(),
                w.code.ptr(),
                w.codes_ptr(),
                w.map.ptr(),
                w.absmax.ptr(),
                if rank > 0 { b } else { 0 },
                m.bias.map_or(0, Floats::ptr),
                (cols / 2) as u64,
                pair(w.offset.to_bits(), f32::to_bits(scale)),
                pair(w.block_shift as u32, w.nested_shift as u32),
                pair(small(op, "a member's rows", w.rows)?, small(op, "a column", m.column)?),
                pair(small(op, "a rank", rank)?, small(op, "the ranks", group.ranks)?),
                pair(small(op, "the tiles", tiles)?, 0),
            ];
            words.copy_from_slice(&fields);
            group.tiles += tiles;
            group.ranks += rank;
        }
        Ok(group)
    }

    /// `mid = x Aᵀ` of all members that have an adapter.
    fn small_mid(
        &self,
        op: &'static str,
        group: &Group,
        n: usize,
        x: &Tensor,
        members: &[SmallMember<'_>],
        mid: &mut Floats,
    ) -> Result<()> {
        if group.ranks == 0 {
            return Ok(());
        }
        least(op, "the scratch", mid.len(), product(&[n, group.ranks]))?;
        let mut words = [0u64; 2 * MOST_MEMBERS];
        let adapters = members.iter().filter_map(|m| m.lora).filter(|l| l.rank > 0);
        for (lora, words) in adapters.zip(words.chunks_exact_mut(2)) {
            words.copy_from_slice(&[lora.a.ptr(), pair(small(op, "a rank", lora.rank)?, 0)]);
        }
        let mut config = grid(blocks(op, group.ranks, 1)?, 1, 256);
        config.grid_dim.1 = blocks(op, n, 8)?;
        let (groups, stride) = (small(op, "the input", x.cols() / 8)?, small(op, "the ranks", group.ranks)?);
        launch_early!(self, "lora_mid", config, words.as_slice(), x.ptr(), group.x_stride, group.n, groups, mid.ptr(), stride);
        Ok(())
    }

    /// `out = x weightᵀ` in f32, `[n, rows of weight]`, for 1 to [`MOST_SMALL_ROWS`] rows and a dense weight: the logits of an output head.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn bf16_linear_small(&self, n: usize, x: &Tensor, weight: &Tensor, out: &mut Floats) -> Result<()> {
        let op = "bf16_linear_small";
        if n > MOST_SMALL_ROWS {
            return Err(fail(op, "the number of rows", n, format_args!("at most {MOST_SMALL_ROWS}")));
        }
        let (features, cols) = (weight.rows(), weight.cols());
        if n == 0 || features == 0 {
            return Ok(());
        }
        let x_stride = small(op, "the input's stride", 8 * rows(op, "x", x, n, cols)? as usize)?;
        rows(op, "the weight", weight, features, cols)?;
        least(op, "the output", out.len(), product(&[n, features]))?;
        if cols == 0 || !cols.is_multiple_of(8) {
            return Err(fail(op, "the input width", cols, "a positive multiple of 8"));
        }
        let (name, tile, tokens) = match n {
            _ if !cols.is_multiple_of(64) => ("bf16_small_any", WARPS, 0),
            1..=8 => ("bf16_small_1", 16, 8),
            9..=16 => ("bf16_small_2", 16, 16),
            17..=32 => ("bf16_small_4", 32, 32),
            _ => ("bf16_small_8", 32, 32),
        };
        let mut words = [0u64; MOST_MEMBERS * WORDS];
        let tiles = features.div_ceil(tile);
        let fields = [(0, weight.ptr()), (7, 2 * weight.stride() as u64), (10, pair(small(op, "the output", features)?, 0))];
        for (at, value) in fields.into_iter().chain([(12, pair(small(op, "the output", tiles)?, 0))]) {
            if let Some(word) = words.get_mut(at) {
                *word = value;
            }
        }
        let mut config = grid(blocks(op, tiles, 1)?, 1, 256);
        config.shared_mem_bytes = small(op, "the tile", WARPS * tokens * tile * 4)?;
        let steps = small(op, "the input", if tokens == 0 { cols / 8 } else { cols / 64 })?;
        let (n, stride) = (small(op, "the number of rows", n)?, small(op, "the output", features)?);
        launch_early!(self, name, config, words.as_slice(), x.ptr(), x_stride, n, steps, 0u64, 0u32, out.ptr(), stride);
        Ok(())
    }
}
