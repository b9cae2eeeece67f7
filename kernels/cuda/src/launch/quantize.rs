//! NF4 quantization on the card, and synthetic weights.

use super::adamw::tree;
use super::{DeviceNf4, blocks, fail, grid, launch, least, product, rows, vectors};
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats, Tensor};
use half::bf16;
use trainer_kernels::blockwise8::{Map, Rounding};
use trainer_kernels::nf4::{Absmax, BLOCKSIZE, DoubleQuant, FloatType, NESTED_BLOCKSIZE, NF4_CODE, NestedAbsmax, Nf4, Nf4Error};
use trainer_kernels::rng::{Purpose, stream_key};

/// A weight to quantize.
#[derive(Clone, Copy)]
pub enum QuantSource<'a> {
    /// bf16, all of its rows and columns.
    Bf16(&'a Tensor),
    /// f32, row by row without gaps.
    F32(&'a Floats),
}

/// A weight that is being quantized, piece by piece.
pub struct Nf4Pieces {
    packed: Buffer<u8>,
    scales: Floats,
    bounds: Floats,
    /// The lowest index of a value that is not finite.
    broken: Buffer<u64>,
    rows: usize,
    cols: usize,
    double: bool,
}

impl Nf4Pieces {
    fn len(&self) -> usize {
        self.rows * self.cols
    }
}

impl Device {
    /// Quantizes a weight of `rows` rows and `cols` columns in blocks of 64, bit for bit as [`Nf4::quantize`]. Of the weight nothing but its scales
    /// passes through the host: the mean that double quantization subtracts is the CPU's sum, in its order.
    ///
    /// # Errors
    /// Columns that are no multiple of 8, a source of another size, a value that is not finite, double quantization other than in blocks of 256 with
    /// codes rounded to the nearest, or no memory.
    pub fn quantize_nf4(&self, source: QuantSource<'_>, rows: usize, cols: usize, double: DoubleQuant) -> Result<DeviceNf4> {
        let op = "quantize_nf4";
        let pieces = self.nf4_pieces(rows, cols, double)?;
        let (name, from, stride) = match source {
            QuantSource::Bf16(t) => ("nf4_quantize_bf16", t.ptr(), super::rows(op, "the weight", t, rows, cols)?),
            QuantSource::F32(x) => {
                least(op, "the weight", x.len(), Some(pieces.len()))?;
                ("nf4_quantize_f32", x.ptr(), vectors(op, "the number of columns", cols)?)
            }
        };
        self.quantize_vectors(name, &pieces, 0, from, cols / 8, stride, pieces.len() / 8)?;
        self.nf4_whole(pieces)?.map_err(|index| {
            let value = match source {
                QuantSource::Bf16(t) => {
                    let (mut value, at) = ([bf16::NAN], t.offset() + index / cols * t.stride() + index % cols);
                    t.buffer().read_at(at, &mut value).map(|()| value[0].to_f32())
                }
                QuantSource::F32(x) => {
                    let mut value = [f32::NAN];
                    x.read_at(index, &mut value).map(|()| value[0])
                }
            };
            value.map_or_else(|e| e, |value| Nf4Error::NotFinite { what: "the weight", index, value }.into())
        })
    }

    /// Begins to quantize a weight that comes in pieces: [`Device::quantize_piece`] takes them, [`Device::nf4_whole`] ends it.
    ///
    /// # Errors
    /// As [`Device::quantize_nf4`].
    pub fn nf4_pieces(&self, rows: usize, cols: usize, double: DoubleQuant) -> Result<Nf4Pieces> {
        let op = "quantize_nf4";
        vectors(op, "the number of columns", cols)?;
        let len = product(&[rows, cols]).ok_or_else(|| fail(op, "the weight", rows, "less"))?;
        let double = match double {
            DoubleQuant::No => false,
            DoubleQuant::Yes { blocksize: NESTED_BLOCKSIZE, rounding: Rounding::Nearest } => true,
            DoubleQuant::Yes { blocksize, .. } => {
                return Err(fail(op, "the nested block size", blocksize, "256, with codes rounded to the nearest"));
            }
        };
        let bounds: [f32; 15] = std::array::from_fn(|i| {
            let code = |i: usize| NF4_CODE.get(i).copied().map_or(f64::INFINITY, f64::from);
            ((code(i) + code(i + 1)) / 2.0) as f32
        });
        Ok(Nf4Pieces {
            packed: self.buffer(len / 2, "NF4 values")?,
            scales: self.buffer(len.div_ceil(BLOCKSIZE), "NF4 scales")?,
            bounds: self.floats(&bounds)?,
            broken: self.upload(&[u64::MAX], "the place of a value that is not finite")?,
            rows,
            cols,
            double,
        })
    }

    /// Quantizes the first `len` values of a buffer, which are those from `first` on of the weight.
    ///
    /// # Errors
    /// A `first` that is no multiple of 64, a `len` that is none of 8, values that the buffer or the weight has not got.
    pub fn quantize_piece(&self, pieces: &Nf4Pieces, first: usize, from: &Buffer<bf16>, len: usize) -> Result<()> {
        let op = "quantize_nf4";
        if !first.is_multiple_of(BLOCKSIZE) || first.checked_add(len).is_none_or(|end| end > pieces.len()) {
            return Err(fail(op, "the first value", first, format_args!("a multiple of 64, {len} before the weight's end")));
        }
        least(op, "a piece of the weight", from.len(), Some(len))?;
        let row = vectors(op, "a piece of the weight", len)?;
        self.quantize_vectors("nf4_quantize_bf16", pieces, first / 8, from.ptr(), len / 8, row, len / 8)
    }

    /// `count` vectors of eight values from the vector `first` of the weight on, in rows of `row` vectors that are `stride` apart.
    #[expect(clippy::too_many_arguments, reason = "what the kernel takes")]
    fn quantize_vectors(
        &self,
        name: &'static str,
        pieces: &Nf4Pieces,
        first: usize,
        from: u64,
        row: usize,
        stride: u32,
        count: usize,
    ) -> Result<()> {
        let op = "quantize_nf4";
        if count == 0 {
            return Ok(());
        }
        let row = u32::try_from(row).map_err(|_| fail(op, "a row", row, "less than 2^32 vectors"))?;
        let Nf4Pieces { packed, scales, bounds, broken, .. } = pieces;
        let config = grid(blocks(op, count, 256)?, 1, 256);
        let (count, first, stride) = (count as u64, first as u64, u64::from(stride));
        launch!(self, name, config, from, row, stride, count, first, bounds.ptr(), packed.ptr(), scales.ptr(), broken.ptr());
        Ok(())
    }

    /// The weight whose pieces have all been quantized, or the index of the first value that is not finite. Waits for everything launched so far.
    ///
    /// # Errors
    /// No memory, or the driver's.
    pub fn nf4_whole(&self, pieces: Nf4Pieces) -> Result<std::result::Result<DeviceNf4, usize>> {
        let op = "quantize_nf4";
        let len = pieces.len();
        let Nf4Pieces { packed, scales, broken, rows, cols, double, .. } = pieces;
        let mut first = [u64::MAX];
        broken.read_at(0, &mut first)?;
        if let Some(index) = usize::try_from(first[0]).ok().filter(|&i| i < len) {
            return Ok(Err(index));
        }
        let (codes, map, absmax, offset) = if double {
            let sum: f64 = scales.read()?.iter().map(|&s| f64::from(s)).sum();
            let offset = if scales.is_empty() { 0.0 } else { (sum / scales.len() as f64) as f32 };
            let codes = self.buffer(scales.len(), "NF4 scales")?;
            let nested: Floats = self.buffer(scales.len().div_ceil(NESTED_BLOCKSIZE), "NF4 scales")?;
            let tree = self.floats(&tree(Map::signed()))?;
            if !scales.is_empty() {
                let config = grid(blocks(op, nested.len(), 8)?, 1, 256);
                launch!(self, "nest_scales", config, scales.ptr(), scales.len() as u64, offset, tree.ptr(), codes.ptr(), nested.ptr());
            }
            (codes, self.floats(Map::signed().code())?, nested, offset)
        } else {
            (self.buffer(1, "NF4 scales")?, self.floats(&[0f32; 256])?, scales, 0.0)
        };
        Ok(Ok(DeviceNf4 {
            packed,
            code: self.floats(&NF4_CODE)?,
            host_code: NF4_CODE,
            fit: super::nf4::fit(&NF4_CODE),
            codes,
            map,
            absmax,
            nested: double,
            offset,
            block_shift: BLOCKSIZE.trailing_zeros() as i32,
            nested_shift: if double { NESTED_BLOCKSIZE.trailing_zeros() as i32 } else { 0 },
            rows,
            cols,
        }))
    }

    /// A weight as the host knows it. `dtype` is the type that it had before it was quantized. Waits for everything launched so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_nf4(&self, w: &DeviceNf4, dtype: FloatType) -> Result<Nf4> {
        let mut code = [0f32; 16];
        w.code.read_at(0, &mut code)?;
        let absmax = if w.nested {
            let mut map = Box::new([0f32; 256]);
            w.map.read_at(0, map.as_mut_slice())?;
            let blocksize = 1 << w.nested_shift;
            Absmax::Nested(NestedAbsmax { codes: w.codes.read()?, absmax: w.absmax.read()?, offset: w.offset, code: map, blocksize })
        } else {
            Absmax::Plain(w.absmax.read()?)
        };
        Ok(Nf4::from_parts(w.packed.read()?, absmax, &[w.rows, w.cols], 1 << w.block_shift, code, dtype)?)
    }

    /// Fills a tensor with normal values of deviation `std` around 0, each a function of seed, row and column: synthetic weights for benchmarks. The
    /// tensor's first row counts as the row `first`.
    ///
    /// # Errors
    /// Columns that are no multiple of 8.
    pub fn random_normal(&self, seed: u64, std: f32, first: usize, out: &mut Tensor) -> Result<()> {
        let op = "random_normal";
        let v = vectors(op, "the columns", out.cols())?;
        let stride = rows(op, "the output", out, out.rows(), out.cols())?;
        let total = out.rows() * (out.cols() / 8);
        if total > 0 {
            let [low, high] = stream_key(seed, Purpose::Init);
            let config = grid(blocks(op, total, 256)?, 1, 256);
            launch!(self, op, config, low, high, std, first as u64, v, total as u64, out.ptr(), u64::from(stride));
        }
        Ok(())
    }
}
