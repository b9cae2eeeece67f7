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

impl Device {
    /// Quantizes a weight of `rows` rows and `cols` columns in blocks of 64, bit for bit as [`Nf4::quantize`]. Of the weight nothing but its scales
    /// passes through the host: the mean that double quantization subtracts is the CPU's sum, in its order.
    ///
    /// # Errors
    /// Columns that are no multiple of 8, a source of another size, a value that is not finite, double quantization other than in blocks of 256 with
    /// codes rounded to the nearest, or no memory.
    pub fn quantize_nf4(&self, source: QuantSource<'_>, rows: usize, cols: usize, double: DoubleQuant) -> Result<DeviceNf4> {
        let op = "quantize_nf4";
        let v = vectors(op, "the number of columns", cols)?;
        let len = product(&[rows, cols]).ok_or_else(|| fail(op, "the weight", rows, "less"))?;
        let (name, from, stride) = match source {
            QuantSource::Bf16(t) => ("nf4_quantize_bf16", t.ptr(), super::rows(op, "the weight", t, rows, cols)?),
            QuantSource::F32(x) => {
                least(op, "the weight", x.len(), Some(len))?;
                ("nf4_quantize_f32", x.ptr(), v)
            }
        };
        let double = match double {
            DoubleQuant::No => false,
            DoubleQuant::Yes { blocksize: NESTED_BLOCKSIZE, rounding: Rounding::Nearest } => true,
            DoubleQuant::Yes { blocksize, .. } => {
                return Err(fail(op, "the nested block size", blocksize, "256, with codes rounded to the nearest"));
            }
        };
        let packed: Buffer<u8> = self.buffer(len / 2, "NF4 values")?;
        let scales: Floats = self.buffer(len.div_ceil(BLOCKSIZE), "NF4 scales")?;
        let broken = self.upload(&[u64::MAX], "the place of a value that is not finite")?;
        let bounds: [f32; 15] = std::array::from_fn(|i| {
            let code = |i: usize| NF4_CODE.get(i).copied().map_or(f64::INFINITY, f64::from);
            ((code(i) + code(i + 1)) / 2.0) as f32
        });
        let bounds = self.floats(&bounds)?;
        let total = (len / 8) as u64;
        if total > 0 {
            let config = grid(blocks(op, len / 8, 256)?, 1, 256);
            let (to, stride) = (packed.ptr(), u64::from(stride));
            launch!(self, name, config, from, v, stride, total, bounds.ptr(), to, scales.ptr(), broken.ptr());
        }
        let mut first = [u64::MAX];
        broken.read_at(0, &mut first)?;
        if let Some(index) = usize::try_from(first[0]).ok().filter(|&i| i < len) {
            let value = match source {
                QuantSource::Bf16(t) => {
                    let mut value = [bf16::NAN];
                    t.buffer().read_at(t.offset() + index / cols * t.stride() + index % cols, &mut value)?;
                    value[0].to_f32()
                }
                QuantSource::F32(x) => {
                    let mut value = [f32::NAN];
                    x.read_at(index, &mut value)?;
                    value[0]
                }
            };
            return Err(Nf4Error::NotFinite { what: "the weight", index, value }.into());
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
        Ok(DeviceNf4 {
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
        })
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
