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
const WORDS: usize = 16;
/// Warps of a block.
const WARPS: usize = 8;
/// Bytes of the look-up table.
const TABLE: usize = 32 << 10;
/// The word of the first member's tiles and of the blocks that compute units.
const WORKERS: usize = 13;
/// Bytes of the tables of scales.
const MAPS: usize = 4 << 10;
/// Most values of a row that a kernel normalises itself.
pub const LONGEST_NORM: usize = 8192;
/// Values of k of a unit of the adapters' first product.
const SEGMENT: usize = 512;

/// Values of the scratch of [`Device::nf4_linear`] and [`Device::nf4_swiglu`] for `n` rows of `cols` values and adapters of `ranks` in all.
pub fn small_scratch(n: usize, cols: usize, ranks: usize) -> usize {
    cols.div_ceil(SEGMENT).saturating_mul(n).saturating_mul(ranks)
}

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

/// Whether the tensor cores' kernel serves a weight: its steps are four blocks of 64 values, which scales must not straddle, and it counts bytes
/// and blocks in 32 bits.
fn regular(w: &DeviceNf4) -> bool {
    w.cols.is_multiple_of(256) && w.block_shift >= 6 && product(&[w.rows, w.cols]).is_some_and(|n| n < 1 << 32)
}

/// A kernel of the tensor cores.
#[derive(Clone, Copy)]
struct Shape {
    plain: &'static str,
    swiglu: &'static str,
    /// Weight rows of a block's tile.
    tile: usize,
    /// Blocks that a multiprocessor holds.
    resident: u32,
    /// Bytes of shared memory beside `x Aᵀ`.
    shared: usize,
}

/// Kernels in whose shared memory the input has a place too (`nf4_few.cu`), for 9 to 32 rows, by the tile's weight rows: up to 16 rows, then up to 32.
const FEW: [(usize, [&str; 2], [&str; 2]); 3] = [
    (32, ["nf4_few_2_2", "nf4_few_swiglu_2_2"], ["nf4_few_2_4", "nf4_few_swiglu_2_4"]),
    (48, ["nf4_few_3_2", ""], ["nf4_few_3_4", ""]),
    (64, ["nf4_few_4_2", "nf4_few_swiglu_4_2"], ["nf4_few_4_4", "nf4_few_swiglu_4_4"]),
];
/// Bytes of their look-up table and the input on its way.
const FEW_TABLE: usize = 128 << 10;
/// Bytes of a weight row on its way in them, for all warps.
const FEW_WEIGHTS: usize = WARPS * 3 * 32;

/// The kernels of [`FEW`] that serve, the best first: a round of tiles over the card takes about as long as its weight rows and the input, which is
/// about 16 rows' worth.
fn few(n: usize, features: usize, multiprocessors: u32, wanted: Option<usize>, swiglu: bool) -> Vec<Shape> {
    let cost = |tile: usize| features.div_ceil(tile * multiprocessors.max(1) as usize) * (tile + 16);
    let mut shapes: Vec<Shape> = FEW
        .iter()
        .filter(|(tile, ..)| (9..=32).contains(&n) && wanted.is_none_or(|w| w == *tile))
        .map(|&(tile, upto16, upto32)| {
            let [plain, swiglu] = if n <= 16 { upto16 } else { upto32 };
            Shape { plain, swiglu, tile, resident: 1, shared: FEW_TABLE + sums(tile) + FEW_WEIGHTS * tile }
        })
        .filter(|shape| !swiglu || !shape.swiglu.is_empty())
        .collect();
    shapes.sort_by_key(|shape| cost(shape.tile));
    shapes
}

/// The kernel for `n` rows and `features` outputs. Larger tiles share the input among more rows, as long as there are tiles enough for every
/// multiprocessor; `wanted` is for measurements.
fn shape(n: usize, features: usize, multiprocessors: u32, wanted: Option<usize>, swiglu: bool) -> Shape {
    let (sm, swiglu_free) = (multiprocessors as usize, !swiglu && multiprocessors > 2);
    let enough = |tile: usize, each: usize| wanted.map_or(features >= tile * each * multiprocessors as usize, |w| w >= tile);
    let (plain, swiglu, tile, resident) = match n {
        0..=8 if wanted.is_some() && enough(32, 2) => ("nf4_small_2_1", "nf4_swiglu_2_1", 32, 2),
        0..=8 => ("nf4_small_1_1", "nf4_swiglu_1_1", 16, 2),
        9..=16 => ("nf4_small_2_2", "nf4_swiglu_2_2", 32, 1),
        // One round of tiles where that is what 48 rows give.
        17..=32 if swiglu_free && wanted.map_or((32 * sm + 1..=48 * sm - 96).contains(&features), |w| w == 48) => {
            ("nf4_small_3_4", "", 48, 1)
        }
        17..=32 if enough(64, 2) => ("nf4_small_4_4", "nf4_swiglu_4_4", 64, 1),
        17..=32 => ("nf4_small_2_4", "nf4_swiglu_2_4", 32, 1),
        _ => ("nf4_small_2_8", "nf4_swiglu_2_8", 32, 1),
    };
    // The smallest tiles' weights pass through shared memory, in the gaps of a table twice as large.
    let table = if tile == 16 { 2 * TABLE } else { TABLE };
    Shape { plain, swiglu, tile, resident, shared: table + sums(tile) }
}

/// Shared memory of the sums of a tile's warps, twice.
fn sums(tile: usize) -> usize {
    2 * WARPS * 8 * (tile + 4) * 4
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
    /// `mid` is scratch of [`small_scratch`] values, which get parts of `x Aᵀ`.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn nf4_linear(&self, n: usize, x: &Tensor, members: &[SmallMember<'_>], mid: &mut Floats, out: &mut Tensor) -> Result<()> {
        self.nf4_linear_tiled(n, x, members, mid, out, None)
    }

    /// [`Self::nf4_linear`] with 16, 32, 48 or 64 weight rows in a block, for measurements; the result is the same. Up to eight rows have the choice of 16
    /// and 32, up to 32 rows of 32 and more.
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
        let total: usize = members.iter().map(|m| m.weight.rows).sum();
        let fast = members.iter().all(|m| regular(m.weight))
            && members.iter().zip(members.iter().skip(1)).all(|(a, b)| a.weight.host_code == b.weight.host_code);
        let ranks: usize = members.iter().filter_map(|m| m.lora).map(|l| l.rank).sum();
        let shape = self.shape(n, total, ranks, tile, false);
        if fast && self.ranks_fit(n, shape, ranks) {
            let group = self.group(op, n, x, members, shape.tile, false)?;
            return self.small(op, shape.plain, shape, &group, group.tiles, cols / 64, x, mid, out, None);
        }
        let group = self.group(op, n, x, members, WARPS, false)?;
        self.small_mid(op, &group, n, x, members, mid)?;
        let config = grid(blocks(op, group.tiles, 1)?, 1, 256);
        let (mid, ranks) = (if group.ranks > 0 { mid.ptr() } else { 0 }, small(op, "the ranks", group.ranks)?);
        let (stride, groups) = (small(op, "the output's stride", out.stride())?, small(op, "the input", cols / 8)?);
        let words = group.words.as_slice();
        launch_early!(self, "nf4_small_any", config, words, x.ptr(), group.x_stride, group.n, groups, mid, ranks, out.ptr(), stride);
        Ok(())
    }

    /// The kernel of the tensor cores for `n` rows, `features` outputs and adapters of `ranks` in all, where the card has room for one.
    fn shape(&self, n: usize, features: usize, ranks: usize, wanted: Option<usize>, swiglu: bool) -> Shape {
        let mut shapes = few(n, features, self.multiprocessors(), wanted, swiglu).into_iter();
        let plain = || shape(n, features, self.multiprocessors(), wanted, swiglu);
        shapes.find(|shape| self.prefers(shape.plain) && self.ranks_fit(n, *shape, ranks)).unwrap_or_else(plain)
    }

    /// Shared memory of a kernel of the tensor cores.
    fn shared_bytes(n: usize, shape: Shape, ranks: usize) -> usize {
        (2 * n).saturating_mul(ranks).saturating_add(shape.shared)
    }

    /// Whether `x Aᵀ` of so many ranks has room in shared memory.
    fn ranks_fit(&self, n: usize, shape: Shape, ranks: usize) -> bool {
        Self::shared_bytes(n, shape, ranks) + MAPS <= self.shared_limit() as usize
    }

    /// Launches a kernel of the tensor cores: as many blocks as the card holds, each for several tiles.
    #[expect(clippy::too_many_arguments, reason = "what both operations have in common")]
    fn small(
        &self,
        op: &'static str,
        name: &'static str,
        shape: Shape,
        group: &Group,
        tiles: usize,
        steps: usize,
        x: &Tensor,
        mid: &Floats,
        out: &mut Tensor,
        norm: Option<(&Floats, f32)>,
    ) -> Result<()> {
        let n = group.n as usize;
        if group.ranks > 0 {
            least(op, "the scratch", mid.len(), Some(small_scratch(n, 64 * steps, group.ranks)))?;
        }
        let bytes = Self::shared_bytes(n, shape, group.ranks) + if norm.is_some() { 2 * n * 64 * steps } else { 0 };
        // Each block of a multiprocessor has a kilobyte beside its own.
        let resident = if 2 * (bytes + MAPS + 1024) <= self.shared_limit() as usize + 1024 { shape.resident } else { 1 };
        let mut config = grid(blocks(op, tiles, 1)?.min(resident * self.multiprocessors()), 1, 256);
        config.shared_mem_bytes = small(op, "the tile", bytes)?;
        let (mid, ranks) = (if group.ranks > 0 { mid.ptr() } else { 0 }, small(op, "the ranks", group.ranks)?);
        let (stride, steps) = (small(op, "the output's stride", out.stride())?, small(op, "the input", steps)?);
        let mut words = group.words;
        let units = group.ranks.div_ceil(16) * n.div_ceil(8) * (64 * steps as usize).div_ceil(SEGMENT);
        if group.ranks > 0 && units > self.multiprocessors() as usize {
            // More than one for some block: a launch of their own does them all at once.
            if let Some(tiles_and_workers) = words.get_mut(WORKERS) {
                *tiles_and_workers &= u64::from(u32::MAX);
            }
            let (config, words) = (grid(blocks(op, units, 1)?, 1, 256), words.as_slice());
            launch_early!(self, "nf4_ranks", config, words, x.ptr(), group.x_stride, group.n, steps, mid, ranks);
        }
        let words = words.as_slice();
        match norm {
            None => launch_early!(self, name, config, words, x.ptr(), group.x_stride, group.n, steps, mid, ranks, out.ptr(), stride),
            Some((weight, eps)) => {
                least(op, "the norm's weight", weight.len(), Some(64 * steps as usize))?;
                let norm = weight.ptr();
                launch_early!(self, name, config, words, x.ptr(), group.x_stride, group.n, steps, mid, ranks, out.ptr(), stride, norm, eps);
            }
        }
        Ok(())
    }

    /// Whether [`Self::nf4_norm_linear`], [`Self::nf4_norm_swiglu`] and [`Self::nf4_linear_add`] take these members for `n` rows: one row alone, of
    /// at most 8192 values where it is normalised.
    pub fn nf4_folds(&self, n: usize, members: &[SmallMember<'_>]) -> bool {
        let ranks: usize = members.iter().filter_map(|m| m.lora).map(|l| l.rank).sum();
        let Some(cols) = members.first().map(|m| m.weight.cols) else { return false };
        let shape = shape(n, 0, self.multiprocessors(), None, false);
        n == 1
            && members.iter().all(|m| regular(m.weight) && m.weight.cols == cols)
            && members.iter().zip(members.iter().skip(1)).all(|(a, b)| a.weight.host_code == b.weight.host_code)
            && Self::shared_bytes(n, shape, ranks) + 2 * n * cols + 8192 <= self.shared_limit() as usize
    }

    /// [`Self::nf4_linear`] of the RMSNorm of `x`, to the bits of [`Self::rms_norm`] before it.
    ///
    /// # Errors
    /// Buffers that do not fit, and members for which [`Self::nf4_folds`] is false.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    pub fn nf4_norm_linear(
        &self,
        n: usize,
        x: &Tensor,
        norm: &Floats,
        eps: f32,
        members: &[SmallMember<'_>],
        mid: &mut Floats,
        out: &mut Tensor,
    ) -> Result<()> {
        let op = "nf4_norm_linear";
        self.check_norm(op, n, norm, members)?;
        least(op, "the output's rows", out.rows(), Some(n))?;
        for m in members {
            least(op, "the output's columns", out.cols(), m.column.checked_add(m.weight.rows))?;
        }
        let (shape, cols) = (shape(n, 0, self.multiprocessors(), None, false), norm.len());
        let group = self.group(op, n, x, members, shape.tile, false)?;
        self.small(op, "nf4_norm_small", shape, &group, group.tiles, cols / 64, x, mid, out, Some((norm, eps)))
    }

    /// [`Self::nf4_swiglu`] of the RMSNorm of `x`, to the bits of [`Self::rms_norm`] before it.
    ///
    /// # Errors
    /// Buffers that do not fit, and members for which [`Self::nf4_folds`] is false.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    pub fn nf4_norm_swiglu(
        &self,
        n: usize,
        x: &Tensor,
        norm: &Floats,
        eps: f32,
        gate: SmallMember<'_>,
        up: SmallMember<'_>,
        mid: &mut Floats,
        out: &mut Tensor,
    ) -> Result<()> {
        let (op, members) = ("nf4_norm_swiglu", [gate, up]);
        self.check_norm(op, n, norm, &members)?;
        if gate.weight.rows != up.weight.rows {
            return Err(fail(op, "up's outputs", up.weight.rows, gate.weight.rows));
        }
        rows(op, "the output", out, n, gate.weight.rows)?;
        let (shape, cols) = (shape(n, 0, self.multiprocessors(), None, false), norm.len());
        let group = self.group(op, n, x, &members, shape.tile / 2, false)?;
        self.small(op, "nf4_norm_swiglu", shape, &group, group.tiles / 2, cols / 64, x, mid, out, Some((norm, eps)))
    }

    /// `sum += ` [`Self::nf4_linear`] of one member, to the bits of that and [`Self::add`] after it.
    ///
    /// # Errors
    /// Buffers that do not fit, and a member for which [`Self::nf4_folds`] is false.
    pub fn nf4_linear_add(&self, n: usize, x: &Tensor, member: SmallMember<'_>, mid: &mut Floats, sum: &mut Tensor) -> Result<()> {
        let (op, members) = ("nf4_linear_add", [member]);
        self.check_folds(op, n, &members)?;
        rows(op, "the sum", sum, n, member.weight.rows)?;
        let shape = shape(n, 0, self.multiprocessors(), None, false);
        let member = [SmallMember { column: 0, ..member }];
        let group = self.group(op, n, x, &member, shape.tile, true)?;
        self.small(op, shape.plain, shape, &group, group.tiles, member[0].weight.cols / 64, x, mid, sum, None)
    }

    fn check_norm(&self, op: &'static str, n: usize, norm: &Floats, members: &[SmallMember<'_>]) -> Result<()> {
        if norm.len() > LONGEST_NORM || members.iter().any(|m| m.weight.cols != norm.len()) {
            return Err(fail(op, "the norm's weight", norm.len(), format_args!("as many as the input's columns, at most {LONGEST_NORM}")));
        }
        self.check_folds(op, n, members)
    }

    fn check_folds(&self, op: &'static str, n: usize, members: &[SmallMember<'_>]) -> Result<()> {
        if self.nf4_folds(n, members) {
            return Ok(());
        }
        Err(fail(op, "the number of rows", n, "1, with weights and ranks that the kernel takes"))
    }

    /// Whether [`Self::nf4_swiglu`] takes these weights for `n` rows with adapters of `ranks` in all.
    pub fn nf4_swiglu_fits(&self, n: usize, gate: &DeviceNf4, up: &DeviceNf4, ranks: usize) -> bool {
        n <= MOST_SMALL_ROWS
            && self.ranks_fit(n, self.shape(n, 2 * gate.rows, ranks, None, true), ranks)
            && regular(gate)
            && regular(up)
            && (gate.rows, gate.cols) == (up.rows, up.cols)
            && gate.host_code == up.host_code
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
        let ranks: usize = [gate, up].iter().filter_map(|m| m.lora).map(|l| l.rank).sum();
        if !self.nf4_swiglu_fits(n, gate.weight, up.weight, ranks) {
            return Err(fail(
                op,
                "the input width",
                gate.weight.cols,
                "a multiple of 256, with blocks of at least 64, two weights of one shape and ranks that fit",
            ));
        }
        let width = gate.weight.rows;
        rows(op, "the output", out, n, width)?;
        let members = [gate, up];
        let shape = self.shape(n, 2 * width, ranks, tile, true);
        let group = self.group(op, n, x, &members, shape.tile / 2, false)?;
        self.small(op, shape.swiglu, shape, &group, group.tiles / 2, gate.weight.cols / 64, x, mid, out, None)
    }

    /// Checks the members' sizes and lays them out for the kernels, `tile` rows of a member to a tile. `add`: to what the output holds.
    fn group(&self, op: &'static str, n: usize, x: &Tensor, members: &[SmallMember<'_>], tile: usize, add: bool) -> Result<Group> {
        if n > MOST_SMALL_ROWS {
            return Err(fail(op, "the number of rows", n, format_args!("at most {MOST_SMALL_ROWS}")));
        }
        if members.len() > MOST_MEMBERS {
            return Err(fail(op, "the number of members", members.len(), format_args!("at most {MOST_MEMBERS}")));
        }
        let cols = members.first().map_or(0, |m| m.weight.cols);
        let x_stride = small(op, "the input's stride", 8 * rows(op, "x", x, n, cols)? as usize)?;
        small(op, "the input", n * x_stride as usize)?;
        let mut group = Group { words: [0; MOST_MEMBERS * WORDS], tiles: 0, ranks: 0, x_stride, n: small(op, "the number of rows", n)? };
        for (m, words) in members.iter().zip(group.words.chunks_exact_mut(WORDS)) {
            let w = m.weight;
            if w.cols != cols || cols == 0 || w.rows == 0 {
                return Err(fail(op, "a member's input", w.cols, format_args!("{cols}, and not empty")));
            }
            if let Some(bias) = m.bias {
                least(op, "a bias", bias.len(), Some(w.rows))?;
            }
            let (mut a, mut b, mut rank, mut scale) = (0, 0, 0, 0.0);
            if let Some(lora) = m.lora {
                least(op, "A", lora.a.len(), product(&[lora.rank, cols]))?;
                least(op, "B", lora.b.len(), product(&[w.rows, lora.rank]))?;
                (a, b, rank, scale) = (lora.a.ptr(), lora.b.ptr(), lora.rank, lora.scale);
            }
            let tiles = w.rows.div_ceil(tile);
            let fields = [
                w.packed.ptr(),
                w.code.ptr(),
                w.codes_ptr(),
                w.map.ptr(),
                w.absmax.ptr(),
                if rank > 0 { b } else { 0 },
                a,
                m.bias.map_or(0, Floats::ptr),
                (cols / 2) as u64,
                pair(w.offset.to_bits(), f32::to_bits(scale)),
                pair(w.block_shift as u32, w.nested_shift as u32),
                pair(small(op, "a member's rows", w.rows)?, small(op, "a column", m.column)?),
                pair(small(op, "a rank", rank)?, small(op, "the ranks", group.ranks)?),
                pair(small(op, "the tiles", tiles)?, self.multiprocessors()),
                pair(u32::from(add), 0),
                pair(w.fit.to_bits(), (1.0 / w.fit).to_bits()),
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
        let mut config = grid(blocks(op, group.ranks, 16)?, 1, 1024);
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
        small(op, "the input", n * x_stride as usize)?;
        let counted = product(&[features, 2 * weight.stride()]).is_some_and(|n| n < 1 << 32);
        let (name, tile, resident) = match n {
            _ if !(cols.is_multiple_of(256) && counted) => ("bf16_small_any", WARPS, u32::MAX),
            1..=8 => ("bf16_small_1", 16, 2),
            9..=16 => ("bf16_small_2", 16, 2),
            17..=32 => ("bf16_small_4", 32, 1),
            _ => ("bf16_small_8", 32, 1),
        };
        let (mut words, tiles, any) = ([0u64; MOST_MEMBERS * WORDS], features.div_ceil(tile), tile == WARPS);
        let fields = [
            (0, weight.ptr()),
            (8, 2 * weight.stride() as u64),
            (11, pair(small(op, "the output", features)?, 0)),
            (13, pair(small(op, "the output", tiles)?, 0)),
        ];
        for (at, value) in fields {
            if let Some(word) = words.get_mut(at) {
                *word = value;
            }
        }
        let mut config = grid(blocks(op, tiles, 1)?.min(resident.saturating_mul(self.multiprocessors())), 1, 256);
        config.shared_mem_bytes = if any { 0 } else { small(op, "the tile", sums(tile))? };
        let steps = small(op, "the input", if any { cols / 8 } else { cols / 64 })?;
        let (n, stride) = (small(op, "the number of rows", n)?, small(op, "the output", features)?);
        launch_early!(self, name, config, words.as_slice(), x.ptr(), x_stride, n, steps, 0u64, 0u32, out.ptr(), stride);
        Ok(())
    }
}
