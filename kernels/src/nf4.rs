//! NF4 with double quantization, byte for byte as bitsandbytes stores it.
//!
//! A weight is flattened and cut into blocks (of 64 by default, across rows). A block keeps one scale, its largest absolute value, and per
//! value the index of the nearest of 16 code points, the quantiles of a normal distribution scaled to `[-1, 1]` (Dettmers et al. 2023,
//! "QLoRA", section 3). Two indices share a byte, the first in the high nibble. Double quantization stores the scales themselves as 8-bit
//! codes of the signed dynamic map ([`crate::blockwise8`]), in blocks of 256, after subtracting their mean:
//! `scale = map[code] * nested_absmax + offset`.
//!
//! Dequantized values are `code point * scale` in f32, rounded to nearest even where a 16-bit type is asked for.

use crate::blockwise8::{self, Map, Rounding};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// The 16 code points of NF4, ascending: the rounded constants that bitsandbytes publishes, which stored files repeat as `quant_map`.
pub const NF4_CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Values per scale unless something else is asked for.
pub const BLOCKSIZE: usize = 64;
/// Scales per nested scale unless something else is asked for.
pub const NESTED_BLOCKSIZE: usize = 256;

/// The smallest divisor that a block is scaled by: keeps blocks of zeros and subnormals finite.
const SMALLEST_SCALE: f32 = 1e-38;
/// Values that one task of the thread pool works on; a multiple of every block size in use.
const TASK: usize = 1 << 15;

/// A floating-point type that weights are stored or computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE 754 binary16.
    F16,
}

impl FloatType {
    /// Size of one value in bytes.
    pub fn size(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::Bf16 | FloatType::F16 => 2,
        }
    }
    /// The name that PyTorch and Hugging Face configurations use.
    pub fn torch_name(self) -> &'static str {
        match self {
            FloatType::F32 => "float32",
            FloatType::Bf16 => "bfloat16",
            FloatType::F16 => "float16",
        }
    }
}

/// A value that converts to and from f32, rounding to nearest even.
pub trait Element: Copy + Default + Send + Sync + 'static {
    /// The type's name as a value.
    const TYPE: FloatType;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounded to nearest even.
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const TYPE: FloatType = FloatType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }
}
impl Element for bf16 {
    const TYPE: FloatType = FloatType::Bf16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
}
impl Element for f16 {
    const TYPE: FloatType = FloatType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }
}

/// What is wrong with an NF4 tensor or a request to it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Nf4Error {
    /// A block size that no peer writes.
    #[error("{what} is {blocksize}; it must be a power of two in 2..=65536")]
    BlockSize {
        /// Which block size.
        what: &'static str,
        /// What was asked for.
        blocksize: usize,
    },
    /// The product of the dimensions does not fit in memory.
    #[error("shape {0:?} has more values than memory can hold")]
    Overflow(Vec<usize>),
    /// A part has the wrong length for the shape.
    #[error("{what} has {got} entries; shape {shape:?} needs {need}")]
    Length {
        /// Which part.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The right length.
        need: usize,
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// NaN or an infinity, in a weight to quantize or in a stored scale or code book.
    #[error("{what}: entry {index} is {value}; only finite values can be quantized")]
    NotFinite {
        /// Which part.
        what: &'static str,
        /// Where.
        index: usize,
        /// The value.
        value: f32,
    },
    /// A range outside of the tensor.
    #[error("{what} {start}..{end} is outside of 0..{limit}")]
    Range {
        /// Rows or values.
        what: &'static str,
        /// First.
        start: usize,
        /// One past the last.
        end: usize,
        /// The size.
        limit: usize,
    },
}

/// The scales of the blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// One f32 per block.
    Plain(Vec<f32>),
    /// One 8-bit code per block (double quantization).
    Nested(NestedAbsmax),
}

/// Scales under double quantization: `code[codes[i]] * absmax[i / blocksize] + offset`.
#[derive(Clone, Debug, PartialEq)]
pub struct NestedAbsmax {
    /// One code per block of weights.
    pub codes: Vec<u8>,
    /// One scale per `blocksize` codes.
    pub absmax: Vec<f32>,
    /// The mean that was subtracted before quantizing.
    pub offset: f32,
    /// What the codes mean.
    pub code: Box<[f32; 256]>,
    /// Codes per nested scale.
    pub blocksize: usize,
}

/// How [`Nf4::quantize`] stores its scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoubleQuant {
    /// f32 scales.
    No,
    /// 8-bit scales, in nested blocks of this many.
    Yes {
        /// Scales per nested scale; [`NESTED_BLOCKSIZE`] is what every peer uses.
        blocksize: usize,
        /// How codes are chosen.
        rounding: Rounding,
    },
}

impl Default for DoubleQuant {
    fn default() -> Self {
        DoubleQuant::Yes { blocksize: NESTED_BLOCKSIZE, rounding: Rounding::Nearest }
    }
}

/// An NF4 tensor whose parts are known to fit together.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4 {
    packed: Vec<u8>,
    absmax: Absmax,
    shape: Vec<usize>,
    blocksize: usize,
    code: [f32; 16],
    dtype: FloatType,
    len: usize,
}

fn count(shape: &[usize]) -> Result<usize, Nf4Error> {
    let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    // Room for f32 values, so that byte sizes computed from `len` cannot overflow later.
    n.filter(|&n| n <= isize::MAX as usize / 8).ok_or_else(|| Nf4Error::Overflow(shape.to_vec()))
}

fn check_blocksize(what: &'static str, blocksize: usize) -> Result<(), Nf4Error> {
    if blocksize.is_power_of_two() && (2..=65536).contains(&blocksize) { Ok(()) } else { Err(Nf4Error::BlockSize { what, blocksize }) }
}

fn check_finite(what: &'static str, values: &[f32]) -> Result<(), Nf4Error> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(Nf4Error::NotFinite { what, index, value: values.get(index).copied().unwrap_or(f32::NAN) }),
    }
}

/// The largest f32 for which the lower of two neighbouring code points is still the nearest: a tie takes the lower index.
fn boundaries(code: &[f32; 16]) -> [f32; 15] {
    std::array::from_fn(|i| ((f64::from(code[i]) + f64::from(code[i + 1])) / 2.0) as f32)
}

impl Nf4 {
    /// Quantizes `values` of the given shape in blocks of `blocksize` over the flattened tensor.
    ///
    /// # Errors
    /// A length that is not the product of `shape`, an unusable block size, or a value that is not finite.
    pub fn quantize<T: Element>(values: &[T], shape: &[usize], blocksize: usize, double: DoubleQuant) -> Result<Self, Nf4Error> {
        let len = count(shape)?;
        check_blocksize("the NF4 block size", blocksize)?;
        if values.len() != len {
            return Err(Nf4Error::Length { what: "the weight", got: values.len(), need: len, shape: shape.to_vec() });
        }
        let bounds = boundaries(&NF4_CODE);
        let mut packed = vec![0u8; len.div_ceil(2)];
        let mut absmax = vec![0f32; len.div_ceil(blocksize)];
        let per_task = (TASK / blocksize).max(1);
        packed
            .par_chunks_mut(per_task * blocksize / 2)
            .zip(absmax.par_chunks_mut(per_task))
            .zip(values.par_chunks(per_task * blocksize))
            .enumerate()
            .try_for_each(|(task, ((packed, absmax), values))| {
                let mut scaled = vec![0f32; blocksize];
                let mut index = vec![0u8; blocksize];
                for (block, ((bytes, absmax), values)) in
                    packed.chunks_mut(blocksize / 2).zip(absmax.iter_mut()).zip(values.chunks(blocksize)).enumerate()
                {
                    quantize_block(values, &bounds, absmax, &mut scaled, &mut index, bytes).map_err(|(at, value)| Nf4Error::NotFinite {
                        what: "the weight",
                        index: (task * per_task + block) * blocksize + at,
                        value,
                    })?;
                }
                Ok(())
            })?;
        let absmax = match double {
            DoubleQuant::No => Absmax::Plain(absmax),
            DoubleQuant::Yes { blocksize, rounding } => {
                check_blocksize("the nested block size", blocksize)?;
                Absmax::Nested(nest(&absmax, blocksize, rounding))
            }
        };
        Ok(Self { packed, absmax, shape: shape.to_vec(), blocksize, code: NF4_CODE, dtype: T::TYPE, len })
    }

    /// Puts together what a file holds.
    ///
    /// # Errors
    /// Parts whose lengths do not follow from `shape` and the block sizes, and code books or scales that are not finite.
    pub fn from_parts(
        packed: Vec<u8>,
        absmax: Absmax,
        shape: &[usize],
        blocksize: usize,
        code: [f32; 16],
        dtype: FloatType,
    ) -> Result<Self, Nf4Error> {
        let len = count(shape)?;
        check_blocksize("the NF4 block size", blocksize)?;
        check_finite("the NF4 code book", &code)?;
        let need = |what, got, need| if got == need { Ok(()) } else { Err(Nf4Error::Length { what, got, need, shape: shape.to_vec() }) };
        need("the packed weight", packed.len(), len.div_ceil(2))?;
        let blocks = len.div_ceil(blocksize);
        match &absmax {
            Absmax::Plain(scales) => {
                need("absmax", scales.len(), blocks)?;
                check_finite("absmax", scales)?;
            }
            Absmax::Nested(nested) => {
                check_blocksize("the nested block size", nested.blocksize)?;
                need("absmax", nested.codes.len(), blocks)?;
                need("nested_absmax", nested.absmax.len(), blocks.div_ceil(nested.blocksize))?;
                check_finite("nested_absmax", &nested.absmax)?;
                check_finite("nested_offset", &[nested.offset])?;
                check_finite("the nested code book", nested.code.as_slice())?;
            }
        }
        Ok(Self { packed, absmax, shape: shape.to_vec(), blocksize, code, dtype, len })
    }

    /// Two indices per byte, the first in the high nibble.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }
    /// The scales as stored.
    pub fn absmax(&self) -> &Absmax {
        &self.absmax
    }
    /// The shape of the dequantized tensor; `[out, in]` for a linear weight.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// How many values the tensor has.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Values per scale.
    pub fn blocksize(&self) -> usize {
        self.blocksize
    }
    /// The code points.
    pub fn code(&self) -> &[f32; 16] {
        &self.code
    }
    /// The type that the weight had before it was quantized.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }
    /// The size of the first dimension; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }
    /// Values per row of the first dimension.
    pub fn cols(&self) -> usize {
        self.len.checked_div(self.rows()).unwrap_or(0)
    }
    /// Bytes held: packed values and scales.
    pub fn bytes(&self) -> usize {
        let scales = match &self.absmax {
            Absmax::Plain(s) => s.len() * 4,
            Absmax::Nested(n) => n.codes.len() + n.absmax.len() * 4 + 4 + 1024,
        };
        self.packed.len() + scales + 64
    }

    /// One f32 scale per block, whatever form they are stored in.
    pub fn scales(&self) -> Vec<f32> {
        (0..self.len.div_ceil(self.blocksize)).map(|b| self.scale(b)).collect()
    }

    #[inline]
    fn scale(&self, block: usize) -> f32 {
        match &self.absmax {
            Absmax::Plain(scales) => scales[block],
            Absmax::Nested(n) => n.code[usize::from(n.codes[block])] * n.absmax[block / n.blocksize] + n.offset,
        }
    }

    /// All values, as f32, bf16 or f16.
    pub fn dequantize<T: Element>(&self) -> Vec<T> {
        let mut out = vec![T::default(); self.len];
        self.fill(0, &mut out);
        out
    }

    /// All values into `out`, which must have exactly [`Self::len`] entries.
    ///
    /// # Errors
    /// A buffer of another length.
    pub fn dequantize_into<T: Element>(&self, out: &mut [T]) -> Result<(), Nf4Error> {
        self.dequantize_range(0..self.len, out)
    }

    /// The values of some rows of the first dimension.
    ///
    /// # Errors
    /// Rows that do not exist, or a buffer of another length.
    pub fn dequantize_rows<T: Element>(&self, rows: Range<usize>, out: &mut [T]) -> Result<(), Nf4Error> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(Nf4Error::Range { what: "rows", start: rows.start, end: rows.end, limit: self.rows() });
        }
        self.dequantize_range(rows.start * self.cols()..rows.end * self.cols(), out)
    }

    /// Some values of the flattened tensor.
    ///
    /// # Errors
    /// Values that do not exist, or a buffer of another length.
    pub fn dequantize_range<T: Element>(&self, range: Range<usize>, out: &mut [T]) -> Result<(), Nf4Error> {
        if range.start > range.end || range.end > self.len {
            return Err(Nf4Error::Range { what: "values", start: range.start, end: range.end, limit: self.len });
        }
        if out.len() != range.len() {
            return Err(Nf4Error::Length { what: "the output", got: out.len(), need: range.len(), shape: self.shape.clone() });
        }
        self.fill(range.start, out);
        Ok(())
    }

    /// Writes the values from `start` on; the caller has checked that they exist.
    fn fill<T: Element>(&self, start: usize, out: &mut [T]) {
        let pairs = self.pairs();
        if out.len() <= TASK {
            return self.fill_serial(&pairs, start, out);
        }
        out.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| self.fill_serial(&pairs, start + i * TASK, out));
    }

    /// The two code points of every byte: one load serves two values.
    fn pairs(&self) -> Box<[[f32; 2]; 256]> {
        Box::new(std::array::from_fn(|byte| [self.code[byte >> 4], self.code[byte & 15]]))
    }

    fn fill_serial<T: Element>(&self, pairs: &[[f32; 2]; 256], start: usize, out: &mut [T]) {
        let mut at = start;
        let mut out = out;
        while !out.is_empty() {
            let block = at / self.blocksize;
            let take = ((block + 1) * self.blocksize - at).min(out.len());
            let (now, later) = out.split_at_mut(take);
            self.fill_block(pairs, self.scale(block), at, now);
            out = later;
            at += take;
        }
    }

    /// Values that share one scale. Block sizes are even, so a byte never straddles two blocks.
    #[inline]
    fn fill_block<T: Element>(&self, pairs: &[[f32; 2]; 256], scale: f32, start: usize, out: &mut [T]) {
        let (head, body) = out.split_at_mut((start % 2).min(out.len()));
        if let Some(first) = head.first_mut() {
            *first = T::from_f32(pairs[usize::from(self.packed[start / 2])][1] * scale);
        }
        let bytes = &self.packed[start.div_ceil(2)..];
        let (even, odd) = body.as_chunks_mut::<2>();
        for (two, &byte) in even.iter_mut().zip(bytes) {
            let pair = pairs[usize::from(byte)];
            *two = [T::from_f32(pair[0] * scale), T::from_f32(pair[1] * scale)];
        }
        if let ([last], Some(&byte)) = (odd, bytes.get(even.len())) {
            *last = T::from_f32(pairs[usize::from(byte)][0] * scale);
        }
    }
}

/// Quantizes one block; on a value that is not finite, says which.
fn quantize_block<T: Element>(
    values: &[T],
    bounds: &[f32; 15],
    absmax: &mut f32,
    scaled: &mut [f32],
    index: &mut [u8],
    bytes: &mut [u8],
) -> Result<(), (usize, f32)> {
    let (scaled, index) = (&mut scaled[..values.len()], &mut index[..values.len()]);
    let mut largest = 0f32;
    let mut poison = 0f32;
    for (s, v) in scaled.iter_mut().zip(values) {
        *s = v.to_f32();
        largest = largest.max(s.abs());
        // Stays 0 while everything is finite, and becomes NaN otherwise; `max` alone would lose a NaN.
        poison += *s * 0.0;
    }
    if poison != 0.0 || poison.is_nan() {
        let at = scaled.iter().position(|s| !s.is_finite()).unwrap_or(0);
        return Err((at, scaled[at]));
    }
    *absmax = largest;
    let divisor = largest.max(SMALLEST_SCALE);
    for s in scaled.iter_mut() {
        *s /= divisor;
    }
    // The index is the number of boundaries below the value: branch-free, so that it vectorises.
    index.fill(0);
    for bound in bounds {
        for (i, s) in index.iter_mut().zip(scaled.iter()) {
            *i += u8::from(*s > *bound);
        }
    }
    let (two, one) = index.as_chunks::<2>();
    for (byte, [high, low]) in bytes.iter_mut().zip(two) {
        *byte = high << 4 | low;
    }
    if let ([high], Some(byte)) = (one, bytes.get_mut(two.len())) {
        // The missing partner of an odd length is stored as the code of zero.
        *byte = high << 4 | 7;
    }
    Ok(())
}

/// Double quantization of the scales.
fn nest(scales: &[f32], blocksize: usize, rounding: Rounding) -> NestedAbsmax {
    let sum: f64 = scales.iter().map(|&s| f64::from(s)).sum();
    let offset = if scales.is_empty() { 0.0 } else { (sum / scales.len() as f64) as f32 };
    let centred: Vec<f32> = scales.iter().map(|s| s - offset).collect();
    let map = Map::signed();
    let quantized = blockwise8::quantize(&centred, map, blocksize, rounding);
    NestedAbsmax { codes: quantized.codes, absmax: quantized.absmax, offset, code: Box::new(*map.code()), blocksize }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn code_points_are_the_published_constants() {
        // The middle of the table and both ends; the whole table is compared with files that bitsandbytes wrote in tests/reference_quant.rs.
        assert_eq!(NF4_CODE[7], 0.0);
        assert_eq!((NF4_CODE[0], NF4_CODE[15]), (-1.0, 1.0));
        assert!(NF4_CODE.windows(2).all(|w| w[0] < w[1]));
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let good = Nf4::quantize(&[0.5f32; 130], &[2, 65], 64, DoubleQuant::default()).unwrap();
        let Absmax::Nested(nested) = good.absmax().clone() else { panic!() };
        let make = |packed: Vec<u8>, absmax, shape: &[usize], blocksize| {
            Nf4::from_parts(packed, absmax, shape, blocksize, NF4_CODE, FloatType::F32)
        };
        assert!(make(good.packed().to_vec(), Absmax::Nested(nested.clone()), &[2, 65], 64).is_ok());
        assert!(matches!(
            make(vec![0; 64], Absmax::Nested(nested.clone()), &[2, 65], 64),
            Err(Nf4Error::Length { what: "the packed weight", need: 65, .. })
        ));
        assert!(matches!(
            make(vec![0; 65], Absmax::Plain(vec![1.0; 2]), &[2, 65], 64),
            Err(Nf4Error::Length { what: "absmax", need: 3, .. })
        ));
        assert!(matches!(
            make(vec![0; 65], Absmax::Plain(vec![1.0, f32::NAN, 1.0]), &[2, 65], 64),
            Err(Nf4Error::NotFinite { index: 1, .. })
        ));
        assert!(matches!(make(vec![0; 65], Absmax::Plain(vec![1.0; 3]), &[2, 65], 63), Err(Nf4Error::BlockSize { .. })));
        assert!(matches!(make(vec![], Absmax::Plain(vec![]), &[usize::MAX, 2], 64), Err(Nf4Error::Overflow(_))));
        let bad = NestedAbsmax { absmax: vec![], ..nested };
        assert!(matches!(make(vec![0; 65], Absmax::Nested(bad), &[2, 65], 64), Err(Nf4Error::Length { what: "nested_absmax", .. })));
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named() {
        let mut weight = vec![0.25f32; 40_000];
        weight[39_001] = f32::INFINITY;
        let error = Nf4::quantize(&weight, &[200, 200], 64, DoubleQuant::No).unwrap_err();
        assert_eq!(error, Nf4Error::NotFinite { what: "the weight", index: 39_001, value: f32::INFINITY });
        weight[39_001] = f32::NAN;
        assert!(matches!(Nf4::quantize(&weight, &[200, 200], 64, DoubleQuant::No), Err(Nf4Error::NotFinite { index: 39_001, .. })));
    }

    proptest! {
        #[test]
        fn every_range_is_a_piece_of_the_whole(len in 1usize..400, block in 1u32..9, cut in (0.0f64..1.0, 0.0f64..1.0), seed in any::<u32>()) {
            let values: Vec<f32> = (0..len as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed) as f32 / u32::MAX as f32 - 0.5) * 3.0).collect();
            let q = Nf4::quantize(&values, &[len], 1 << block, DoubleQuant::default()).unwrap();
            let whole: Vec<f32> = q.dequantize();
            let (a, b) = ((cut.0 * len as f64) as usize, (cut.1 * len as f64) as usize);
            let range = a.min(b)..a.max(b);
            let mut part = vec![0f32; range.len()];
            q.dequantize_range(range.clone(), &mut part).unwrap();
            prop_assert_eq!(&part, &whole[range]);
        }

        #[test]
        fn the_chosen_code_is_the_nearest(values in proptest::collection::vec(-4.0f32..4.0, 1..300)) {
            let q = Nf4::quantize(&values, &[values.len()], 64, DoubleQuant::No).unwrap();
            let Absmax::Plain(scales) = q.absmax() else { panic!() };
            for (i, (v, d)) in values.iter().zip(q.dequantize::<f32>()).enumerate() {
                let scale = scales[i / 64];
                let best = NF4_CODE.iter().map(|c| (c * scale - v).abs()).fold(f32::INFINITY, f32::min);
                prop_assert!((d - v).abs() <= best + 1e-6 * scale, "{v} became {d}, {best} was possible");
            }
        }
    }

    #[test]
    fn large_tensors_take_the_parallel_way_with_the_same_result() {
        let len = 3 * TASK + 77;
        let values: Vec<f32> = (0..len).map(|i| ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) * (1.0 + (i % 5) as f32)).collect();
        let q = Nf4::quantize(&values, &[len], 64, DoubleQuant::default()).unwrap();
        let mut serial = vec![0f32; len];
        q.fill_serial(&q.pairs(), 0, &mut serial);
        assert_eq!(q.dequantize::<f32>(), serial);
        let mut shifted = vec![bf16::ZERO; len - 33];
        q.dequantize_range(33..len, &mut shifted).unwrap();
        assert!(shifted.iter().zip(&serial[33..]).all(|(a, b)| *a == bf16::from_f32(*b)));
    }

    #[test]
    fn rows_are_rows() {
        let values: Vec<f32> = (0..6 * 50).map(|i| (i as f32).sin()).collect();
        let q = Nf4::quantize(&values, &[6, 50], 64, DoubleQuant::default()).unwrap();
        let whole: Vec<f32> = q.dequantize();
        let mut rows = vec![0f32; 100];
        q.dequantize_rows(3..5, &mut rows).unwrap();
        assert_eq!(rows, whole[150..250]);
        assert!(q.dequantize_rows(5..7, &mut rows).is_err());
        assert!(q.dequantize_rows(0..1, &mut rows).is_err());
    }
}
