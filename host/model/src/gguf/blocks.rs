//! Values in blocks, as ggml stores them (`ggml-common.h`, `ggml-quants.c`): unpacking to f32.
//!
//! A block has one or two f16 scales, and for the K types of 256 values smaller scales for groups of 16 or 32. A group's values are
//! `scale * code` or `scale * code - minimum`.

use half::{bf16, f16};
use rayon::prelude::*;
use std::fmt;

/// Values of a block of the K types.
const SUPER: usize = 256;

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(non_camel_case_types, missing_docs, reason = "the names of the format")]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl GgmlType {
    /// For messages.
    pub(crate) const KNOWN: &'static str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and Q2_K to Q6_K are";

    const NUMBERS: [(Self, u32); 13] = [
        (Self::F32, 0),
        (Self::F16, 1),
        (Self::Q4_0, 2),
        (Self::Q4_1, 3),
        (Self::Q5_0, 6),
        (Self::Q5_1, 7),
        (Self::Q8_0, 8),
        (Self::Q2_K, 10),
        (Self::Q3_K, 11),
        (Self::Q4_K, 12),
        (Self::Q5_K, 13),
        (Self::Q6_K, 14),
        (Self::BF16, 30),
    ];

    /// The type of a number in the file.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::NUMBERS.into_iter().find(|(_, n)| *n == number).map(|(kind, _)| kind)
    }

    /// Its number in the file.
    pub fn number(self) -> u32 {
        Self::NUMBERS.into_iter().find(|(kind, _)| *kind == self).map_or(0, |(_, n)| n)
    }

    /// Values of a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (SUPER, 84),
            Self::Q3_K => (SUPER, 110),
            Self::Q4_K => (SUPER, 144),
            Self::Q5_K => (SUPER, 176),
            Self::Q6_K => (SUPER, 210),
        }
    }

    /// The values of whole blocks.
    ///
    /// # Errors
    /// Bytes that are not whole blocks.
    pub fn unpack(self, bytes: &[u8]) -> Result<Vec<f32>, String> {
        let (values, size) = self.block();
        if !bytes.len().is_multiple_of(size) {
            return Err(format!("has {} bytes, which are no whole blocks of {size}", bytes.len()));
        }
        let mut out = vec![0f32; bytes.len() / size * values];
        out.par_chunks_mut(values).zip(bytes.par_chunks(size)).for_each(|(out, block)| self.unpack_block(block, out));
        Ok(out)
    }

    fn unpack_block(self, block: &[u8], out: &mut [f32]) {
        // The slices have the sizes of `block()`; a reader beyond them sees zeros rather than ending the process.
        let b = Block(block);
        match self {
            Self::F32 => fill(out, |_| f32::from_le_bytes([b.at(0), b.at(1), b.at(2), b.at(3)])),
            Self::F16 => fill(out, |_| b.f16(0)),
            Self::BF16 => fill(out, |_| bf16::from_le_bytes([b.at(0), b.at(1)]).to_f32()),
            Self::Q8_0 => fill(out, |i| b.f16(0) * f32::from(b.at(2 + i) as i8)),
            Self::Q4_0 => fill(out, |i| b.f16(0) * (f32::from(b.nibble(2, i)) - 8.0)),
            Self::Q4_1 => fill(out, |i| b.f16(0) * f32::from(b.nibble(4, i)) + b.f16(2)),
            Self::Q5_0 => fill(out, |i| b.f16(0) * (f32::from(b.nibble(6, i) | b.fifth(2, i)) - 16.0)),
            Self::Q5_1 => fill(out, |i| b.f16(0) * f32::from(b.nibble(8, i) | b.fifth(4, i)) + b.f16(2)),
            Self::Q2_K => {
                let (d, min) = (b.f16(80), b.f16(82));
                fill(out, |i| {
                    // Codes of two bits: 128 values share 32 bytes, 32 at each shift.
                    let code = b.at(16 + i / 128 * 32 + i % 32) >> (2 * (i % 128 / 32)) & 3;
                    let scale = b.at(i / 16);
                    d * f32::from(scale & 15) * f32::from(code) - min * f32::from(scale >> 4)
                });
            }
            Self::Q3_K => {
                let d = b.f16(108);
                fill(out, |i| {
                    let low = b.at(32 + i / 128 * 32 + i % 32) >> (2 * (i % 128 / 32)) & 3;
                    let high = b.at(i % 32) >> (i / 32) & 1;
                    let code = i16::from(low) - if high == 0 { 4 } else { 0 };
                    d * f32::from(i16::from(b.six_bits(96, i / 16)) - 32) * f32::from(code)
                });
            }
            Self::Q4_K => {
                let (d, min) = (b.f16(0), b.f16(2));
                fill(out, |i| {
                    let (scale, minimum) = b.scale_min(4, i / 32);
                    let code = b.at(16 + i / 64 * 32 + i % 32) >> (4 * (i / 32 % 2)) & 15;
                    d * f32::from(scale) * f32::from(code) - min * f32::from(minimum)
                });
            }
            Self::Q5_K => {
                let (d, min) = (b.f16(0), b.f16(2));
                fill(out, |i| {
                    let (scale, minimum) = b.scale_min(4, i / 32);
                    let low = b.at(48 + i / 64 * 32 + i % 32) >> (4 * (i / 32 % 2)) & 15;
                    let high = b.at(16 + i % 32) >> (i / 32) & 1;
                    d * f32::from(scale) * f32::from(low | high << 4) - min * f32::from(minimum)
                });
            }
            Self::Q6_K => {
                let d = b.f16(208);
                fill(out, |i| {
                    let (half, place) = (i / 128, i % 128);
                    let low = b.at(half * 64 + place % 64) >> (4 * (place / 64)) & 15;
                    let high = b.at(128 + half * 32 + place % 32) >> (2 * (place / 32)) & 3;
                    d * f32::from(b.at(192 + i / 16) as i8) * (f32::from(low | high << 4) - 32.0)
                });
            }
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn fill(out: &mut [f32], value: impl Fn(usize) -> f32) {
    out.iter_mut().enumerate().for_each(|(i, out)| *out = value(i));
}

/// The bytes of a block.
struct Block<'a>(&'a [u8]);

impl Block<'_> {
    #[inline(always)]
    fn at(&self, i: usize) -> u8 {
        self.0.get(i).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn f16(&self, i: usize) -> f32 {
        f16::from_le_bytes([self.at(i), self.at(i + 1)]).to_f32()
    }

    /// Code `i` of 32: the first 16 are in the low halves of the bytes from `start` on.
    #[inline(always)]
    fn nibble(&self, start: usize, i: usize) -> u8 {
        self.at(start + i % 16) >> (4 * (i / 16)) & 15
    }

    /// Bit `i` of 32 from `start` on, as the fifth bit of a code.
    #[inline(always)]
    fn fifth(&self, start: usize, i: usize) -> u8 {
        (self.at(start + i / 8) >> (i % 8) & 1) << 4
    }

    /// Scale and minimum `j` of eight, six bits each, in twelve bytes.
    #[inline(always)]
    fn scale_min(&self, start: usize, j: usize) -> (u8, u8) {
        if j < 4 {
            return (self.at(start + j) & 63, self.at(start + j + 4) & 63);
        }
        let (both, scale, min) = (self.at(start + j + 4), self.at(start + j - 4), self.at(start + j));
        ((both & 15) | (scale >> 6) << 4, (both >> 4) | (min >> 6) << 4)
    }

    /// Scale `j` of sixteen, six bits each, in twelve bytes: the low four bits in eight, the high two in four.
    #[inline(always)]
    fn six_bits(&self, start: usize, j: usize) -> u8 {
        let low = self.at(start + j % 8) >> (4 * (j / 8)) & 15;
        let high = self.at(start + 8 + j % 4) >> (2 * (j / 4)) & 3;
        low | high << 4
    }
}
