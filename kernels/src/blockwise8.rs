//! Blockwise 8-bit quantization with dynamic maps.
//!
//! A tensor is cut into blocks; each keeps its largest absolute value, and per value the index of one of 256 code points in `[-1, 1]`. The
//! code points of a *dynamic* map (Dettmers 2016, "8-bit approximations for parallelism in deep learning", section 2; Dettmers et al. 2022,
//! "8-bit optimizers via block-wise quantization") spend their bits on seven decades: the fewer leading zeros, the more linear steps. The
//! signed map serves the first moment of Adam and the scales of NF4, the unsigned one the second moment.

use std::sync::LazyLock;

/// Decades that a dynamic map spans.
const DECADES: i32 = 7;

/// How a value finds its code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// The nearest code point, the lower one on a tie; what bitsandbytes' device-independent and GPU kernels do.
    #[default]
    Nearest,
    /// As bitsandbytes' CPU kernel (0.50): the value is first rounded to one of 65,536 even steps over `[-1, 1]`, whose nearest code point
    /// was tabulated. No step falls on 0, so values small beside their block's largest come back coarser than nearest, and zeros come back
    /// as about 2e-5 of it. Only of use to reproduce files that were quantized on a CPU.
    CpuTable,
}

/// A code book of 256 ascending values with what is needed to search it quickly.
#[derive(Debug)]
pub struct Map {
    code: [f32; 256],
    /// Between code points `i` and `i + 1`: the largest value that still takes `i`. The last one is infinite, so that a search ends there.
    bounds: [f32; 256],
    /// For the upper 16 bits of an f32 in `[-1, 1]`: the code of the lowest value with these bits. Only bit patterns up to 1.0, negative
    /// ones after the positive ones.
    start: Box<[u8]>,
    /// The code of each of the 65,536 steps of [`Rounding::CpuTable`].
    table: Box<[u8]>,
}

/// Upper 16 bits of 1.0f32.
const ONE: usize = 0x3F80;

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(dynamic_code(true)));
static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(dynamic_code(false)));

impl Map {
    /// The map for values of either sign.
    pub fn signed() -> &'static Map {
        &SIGNED
    }
    /// The map for values that are never negative: one more bit for them.
    pub fn unsigned() -> &'static Map {
        &UNSIGNED
    }
    /// The code points, ascending, within `[-1, 1]`.
    pub fn code(&self) -> &[f32; 256] {
        &self.code
    }
    /// Between code points `i` and `i + 1`: the largest value that still takes `i`. The last one is infinite.
    pub fn bounds(&self) -> &[f32; 256] {
        &self.bounds
    }

    fn new(code: [f32; 256]) -> Self {
        let bounds: [f32; 256] = std::array::from_fn(|i| code.get(i + 1).map_or(f32::INFINITY, |next| 0.5 * (code[i] + next)));
        let search = |value: f32| bounds.partition_point(|&b| value > b) as u8;
        // The value of least magnitude with the given upper bits is the lowest positive one; for negative values it is the largest
        // magnitude that is lowest.
        let positive = (0..=ONE as u32).map(|high| search(f32::from_bits(high << 16)));
        let negative = (0..=ONE as u32).map(|high| search(f32::from_bits(0x8000_0000 | high << 16 | 0xFFFF)));
        let start = positive.chain(negative).collect();
        let steps = CPU_STEPS as f32;
        let table = (0..=CPU_STEPS).map(|i| search(-1.0 + (2.0 * i as f32) / steps)).collect();
        Self { code, bounds, start, table }
    }

    /// The code of the nearest code point, the lower one on a tie. Values outside of `[-1, 1]` count as the nearer end, NaN as 0.
    #[inline]
    pub fn nearest(&self, value: f32) -> u8 {
        let value = if value.is_nan() { 0.0 } else { value.clamp(-1.0, 1.0) };
        let bits = value.to_bits();
        let high = (bits >> 16) as usize;
        let slot = if bits >> 31 == 0 { high } else { (high & 0x7FFF) + ONE + 1 };
        let mut code = self.start[slot];
        // A bucket of equal upper bits holds a few boundaries at most.
        while value > self.bounds[usize::from(code)] {
            code += 1;
        }
        code
    }

    /// The code by the CPU kernel's table, of a value in `[-1, 1]`.
    #[inline]
    fn tabulated(&self, value: f32) -> u8 {
        let step = (value.clamp(-1.0, 1.0) + 1.0) * 0.5 * CPU_STEPS as f32 + 0.5;
        self.table[(step as usize).min(CPU_STEPS)]
    }

    /// The code of a normalised value.
    #[inline]
    pub fn encode(&self, value: f32, rounding: Rounding) -> u8 {
        match rounding {
            Rounding::Nearest => self.nearest(value),
            Rounding::CpuTable => self.tabulated(value),
        }
    }
}

const CPU_STEPS: usize = 65_535;

/// The code points of the dynamic map with 7 exponent bits, ascending.
///
/// Decade `i` of seven covers `10^(i-6) * [0.1, 1]` in `2^i` (signed) or `2^(i+1)` (unsigned) equal steps whose middles are code points;
/// then 0 and 1. The arithmetic is that of the peers, in f32 with a fused multiply-add in the interpolation from either end, so that the
/// result equals the stored maps bit for bit.
fn dynamic_code(signed: bool) -> [f32; 256] {
    let mut values = Vec::with_capacity(256);
    for decade in 0..DECADES {
        let steps = 1usize << (if signed { decade } else { decade + 1 });
        let ends: Vec<f32> = linspace(0.1, 1.0, steps + 1);
        let magnitude = 10f64.powi(decade - (DECADES - 1)) as f32;
        for pair in ends.windows(2) {
            let value = magnitude * ((pair[0] + pair[1]) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    let mut code = [0f32; 256];
    for (slot, value) in code.iter_mut().zip(values) {
        *slot = value;
    }
    code
}

/// `count` evenly spaced f32 from `first` to `last`, computed from the nearer end.
fn linspace(first: f32, last: f32, count: usize) -> Vec<f32> {
    let step = (last - first) / (count - 1) as f32;
    (0..count).map(|i| if i < count / 2 { step.mul_add(i as f32, first) } else { (-step).mul_add((count - 1 - i) as f32, last) }).collect()
}

/// A tensor in 8-bit blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Blockwise8 {
    /// One code per value.
    pub codes: Vec<u8>,
    /// The largest absolute value of each block.
    pub absmax: Vec<f32>,
}

/// Quantizes `values` in blocks of `blocksize` (at least 1), the last of which may be shorter.
pub fn quantize(values: &[f32], map: &Map, blocksize: usize, rounding: Rounding) -> Blockwise8 {
    let blocksize = blocksize.max(1);
    let mut codes = vec![0u8; values.len()];
    let absmax = values
        .chunks(blocksize)
        .zip(codes.chunks_mut(blocksize))
        .map(|(values, codes)| quantize_block(values, map, rounding, codes))
        .collect();
    Blockwise8 { codes, absmax }
}

/// Quantizes one block into `codes` (as long as `values`) and gives its scale.
#[inline]
pub fn quantize_block(values: &[f32], map: &Map, rounding: Rounding, codes: &mut [u8]) -> f32 {
    let absmax = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let inverse = 1.0 / absmax;
    if absmax == 0.0 {
        // The CPU kernel writes code 0 whatever it means; it comes back as 0 all the same, because the scale is 0.
        let zero = if rounding == Rounding::CpuTable { 0 } else { map.nearest(0.0) };
        codes.fill(zero);
    } else if inverse.is_finite() {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = map.encode(value * inverse, rounding);
        }
    } else {
        // The reciprocal of a subnormal scale overflows; the quotient does not.
        for (code, value) in codes.iter_mut().zip(values) {
            *code = map.encode(value / absmax, rounding);
        }
    }
    absmax
}

/// Gives back the values into `out`: as many as there are codes and room, `code[codes[i]] * absmax[i / blocksize]`.
pub fn dequantize(codes: &[u8], absmax: &[f32], code: &[f32; 256], blocksize: usize, out: &mut [f32]) {
    for ((codes, out), &scale) in codes.chunks(blocksize.max(1)).zip(out.chunks_mut(blocksize.max(1))).zip(absmax) {
        dequantize_block(codes, scale, code, out);
    }
}

/// Gives back the values of one block.
#[inline]
pub fn dequantize_block(codes: &[u8], scale: f32, code: &[f32; 256], out: &mut [f32]) {
    for (out, &c) in out.iter_mut().zip(codes) {
        *out = code[usize::from(c)] * scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn maps_are_strictly_ascending_and_reach_their_ends() {
        for map in [Map::signed(), Map::unsigned()] {
            assert!(map.code().windows(2).all(|w| w[0] < w[1]));
            assert_eq!(map.code()[255], 1.0);
            assert_eq!(map.code()[usize::from(map.nearest(0.0))], 0.0);
            assert_eq!(map.nearest(f32::INFINITY), 255);
            assert_eq!(map.nearest(f32::NEG_INFINITY), 0);
            assert_eq!(map.nearest(-0.0), map.nearest(0.0));
            assert_eq!(map.code()[usize::from(map.nearest(f32::NAN))], 0.0);
            for (i, &c) in map.code().iter().enumerate() {
                assert_eq!(usize::from(map.nearest(c)), i);
            }
        }
        assert_eq!(Map::unsigned().code()[0], 0.0);
    }

    #[test]
    fn the_bucketed_search_equals_the_plain_one_at_and_around_every_boundary() {
        for map in [Map::signed(), Map::unsigned()] {
            for &bound in &map.bounds[..255] {
                for value in [bound.next_down(), bound, bound.next_up()] {
                    let plain = map.bounds.partition_point(|&b| value > b);
                    assert_eq!(usize::from(map.nearest(value)), plain, "{value:e}");
                }
            }
        }
    }

    #[test]
    fn zeros_and_subnormals_survive() {
        let zeros = quantize(&[0.0; 300], Map::signed(), 256, Rounding::Nearest);
        assert_eq!(zeros.absmax, [0.0, 0.0]);
        let mut out = [1f32; 300];
        dequantize(&zeros.codes, &zeros.absmax, Map::signed().code(), 256, &mut out);
        assert!(out.iter().all(|v| *v == 0.0));
        let tiny = [1e-42f32, -5e-43, 0.0];
        let q = quantize(&tiny, Map::signed(), 256, Rounding::Nearest);
        assert_eq!(q.codes[0], 255);
        assert_eq!(Map::signed().code()[usize::from(q.codes[2])], 0.0);
    }

    proptest! {
        #[test]
        fn nearest_is_nearest(value in prop_oneof![-1.0f32..=1.0, -1e-3f32..1e-3, -1e-6f32..1e-6]) {
            for map in [Map::signed(), Map::unsigned()] {
                let got = map.code()[usize::from(map.nearest(value))];
                let best = map.code().iter().map(|c| (f64::from(*c) - f64::from(value)).abs()).fold(f64::INFINITY, f64::min);
                let distance = (f64::from(got) - f64::from(value)).abs();
                // Midpoints are rounded to f32.
                prop_assert!(distance <= best + f64::from(f32::EPSILON) * f64::from(got.abs().max(value.abs())));
            }
        }
    }
}
