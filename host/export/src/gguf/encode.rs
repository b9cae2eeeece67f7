//! f32 values to ggml's blocks, choice for choice as ggml's reference quantizers without an importance matrix (`ggml-quants.c`:
//! `quantize_row_q8_0_ref`, `quantize_row_q5_0_ref`, `quantize_row_q4_K_ref`, `quantize_row_q6_K_ref`).

use half::{bf16, f16};
use rayon::prelude::*;
use trainer_model::gguf::GgmlType;

/// Values of a block of the K types.
const SUPER: usize = 256;
/// Below this a group of values is all zeros.
const SMALLEST: f32 = 1e-15;

/// The blocks of values. Rows are whole blocks, so they need no separation.
///
/// # Errors
/// A number of values that is not whole blocks, values that f16 cannot hold, or a type that is only read.
pub fn pack(kind: GgmlType, values: &[f32]) -> Result<Vec<u8>, String> {
    let (block, size) = kind.block();
    if !values.len().is_multiple_of(block) {
        return Err(format!("has {} values, which are no whole blocks of {block}", values.len()));
    }
    if kind == GgmlType::F16
        && let Some(at) = values.par_iter().position_first(|v| !f16::from_f32(*v).is_finite())
    {
        return Err(format!("value {at} is {}, which f16 cannot hold; choose bf16", values.get(at).copied().unwrap_or_default()));
    }
    let encode: fn(&[f32], &mut [u8]) = match kind {
        GgmlType::F32 => |x, out| each(x, out, |v| v.to_le_bytes()),
        GgmlType::F16 => |x, out| each(x, out, |v| f16::from_f32(v).to_le_bytes()),
        GgmlType::BF16 => |x, out| each(x, out, |v| bf16::from_f32(v).to_le_bytes()),
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q6_K => q6_k,
        other => return Err(format!("{other} is read, but not written")),
    };
    let mut out = vec![0u8; values.len() / block * size];
    out.par_chunks_mut(size).zip(values.par_chunks(block)).for_each(|(out, values)| encode(values, out));
    Ok(out)
}

fn each<const N: usize>(x: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    out.chunks_exact_mut(N).zip(x).for_each(|(out, v)| out.copy_from_slice(&bytes(*v)));
}

/// Rounds half to even, as ggml's `nearest_int`.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

fn put_f16(out: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    if let Some(place) = out.get_mut(at..at + 2) {
        place.copy_from_slice(&half.to_le_bytes());
    }
    half.to_f32()
}

fn set(out: &mut [u8], at: usize, change: impl FnOnce(&mut u8)) {
    if let Some(byte) = out.get_mut(at) {
        change(byte);
    }
}

fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The largest in absolute value, with its sign; the first of equals.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |best, v| if v.abs() > best.abs() { *v } else { best })
}

fn q8_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x).abs() / 127.0;
    let id = inverse(d);
    put_f16(out, 0, d);
    for (byte, v) in out.iter_mut().skip(2).zip(x) {
        *byte = (v * id).round() as i8 as u8;
    }
}

fn q5_0(x: &[f32], out: &mut [u8]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    put_f16(out, 0, d);
    let mut high = 0u32;
    for (i, v) in x.iter().enumerate() {
        let code = ((v * id + 16.5) as i32).clamp(0, 31) as u8;
        set(out, 6 + i % 16, |byte| *byte |= (code & 15) << (4 * (i / 16)));
        high |= u32::from(code >> 4) << i;
    }
    for (i, byte) in high.to_le_bytes().into_iter().enumerate() {
        set(out, 2 + i, |place| *place = byte);
    }
}

/// What a group of values was fitted with.
#[derive(Clone, Copy, Default)]
struct Fit {
    scale: f32,
    /// The negated minimum.
    min: f32,
    /// The inverse scale and the minimum from which the codes were made that gave these; the first is 0 for a group without codes.
    inverse: f32,
    from: f32,
}

/// Scale and negated minimum of a group of 32 with codes up to `limit`, near the least squares that `weights` weigh (`make_qkx2_quants`).
fn scale_and_minimum(x: &[f32], weights: &[f32], limit: f32) -> Fit {
    const STEPS: u8 = 20;
    let mut min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum_w, mut sum_x) = (0f32, 0f32);
    for (v, w) in x.iter().zip(weights) {
        sum_w += w;
        sum_x += w * v;
    }
    min = min.min(0.0);
    if max == min {
        return Fit { min: -min, ..Fit::default() };
    }
    let code = |inverse: f32, min: f32, v: f32| (nearest(inverse * (v - min)) as f32).clamp(0.0, limit);
    let error = |scale: f32, min: f32, codes: &dyn Fn(f32) -> f32| -> f32 {
        x.iter().zip(weights).fold(0f32, |sum, (v, w)| {
            let diff = scale * codes(*v) + min - v;
            sum + w * (diff * diff)
        })
    };
    let (low, start) = (min, limit / (max - min));
    let mut scale = 1.0 / start;
    let mut made_by = (start, low);
    let mut best = error(scale, min, &|v| code(start, low, v));
    for step in 0..=STEPS {
        // ggml goes on from the best minimum so far.
        let from = min;
        let tried = (-1.0 + 0.1 * f32::from(step) + limit) / (max - from);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for (v, w) in x.iter().zip(weights) {
            let l = code(tried, from, *v);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this = error(this_scale, this_min, &|v| code(tried, from, v));
            if this < best {
                (best, scale, min) = (this, this_scale, this_min);
                made_by = (tried, from);
            }
        }
    }
    Fit { scale, min: -min, inverse: made_by.0, from: made_by.1 }
}

fn q4_k(x: &[f32], out: &mut [u8]) {
    const GROUPS: usize = SUPER / 32;
    let mut fits = [Fit::default(); GROUPS];
    for (x, fit) in x.chunks_exact(32).zip(&mut fits) {
        let mean = (x.iter().fold(0f32, |sum, v| sum + v * v) / 32.0).sqrt();
        let weights: Vec<f32> = x.iter().map(|v| mean + v.abs()).collect();
        *fit = scale_and_minimum(x, &weights, 15.0);
    }
    // Of zeros the first, which is the positive one.
    let most = |value: fn(&Fit) -> f32| fits.iter().map(value).fold(0f32, |most, v| if v > most { v } else { most });
    let (max_scale, max_min) = (most(|f| f.scale), most(|f| f.min));
    let into_six = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inv_scale, inv_min) = (into_six(max_scale), into_six(max_min));
    let six = |x: f32| nearest(x).clamp(0, 63) as u8;
    let mut sixes = [(0u8, 0u8); GROUPS];
    for ((j, both), fit) in sixes.iter_mut().enumerate().zip(fits) {
        let (ls, lm) = (six(inv_scale * fit.scale), six(inv_min * fit.min));
        *both = (ls, lm);
        if j < 4 {
            set(out, 4 + j, |b| *b |= ls);
            set(out, 8 + j, |b| *b |= lm);
        } else {
            set(out, 8 + j, |b| *b = (ls & 15) | (lm & 15) << 4);
            set(out, j, |b| *b |= (ls >> 4) << 6);
            set(out, 4 + j, |b| *b |= (lm >> 4) << 6);
        }
    }
    let d = put_f16(out, 0, max_scale / 63.0);
    let dmin = put_f16(out, 2, max_min / 63.0);
    for (((j, x), (ls, lm)), fit) in x.chunks_exact(32).enumerate().zip(sixes).zip(fits) {
        let (scale, min) = (d * f32::from(ls), dmin * f32::from(lm));
        for (i, v) in x.iter().enumerate() {
            // Where six bits made the scale vanish, ggml leaves the codes of the fit, which then mean nothing.
            let code = if scale == 0.0 { nearest(fit.inverse * (v - fit.from)) } else { nearest((v + min) / scale) };
            let code = code.clamp(0, 15) as u8;
            set(out, 16 + j / 2 * 32 + i, |b| *b |= code << (4 * (j % 2)));
        }
    }
}

/// Scale of a group of 16 with codes in `-limit..limit`, near the least squares that squares weigh (`make_qx_quants`), with the inverse scale from which
/// the codes were made that gave it; none for a group of zeros.
fn symmetric_scale(x: &[f32], limit: f32) -> (f32, Option<f32>) {
    let max = extreme(x);
    if max.abs() < SMALLEST {
        return (0.0, None);
    }
    let sums = |inverse: f32| {
        x.iter().fold((0f32, 0f32), |(xl, l2), v| {
            let l = (nearest(inverse * v) as f32).clamp(-limit, limit - 1.0);
            let w = v * v;
            (xl + w * v * l, l2 + w * l * l)
        })
    };
    let mut made_by = -limit / max;
    let (xl, l2) = sums(made_by);
    let mut scale = if l2 == 0.0 { 0.0 } else { xl / l2 };
    let mut best = scale * xl;
    for step in (-9i8..=9).filter(|s| *s != 0) {
        let inverse = -(limit + 0.1 * f32::from(step)) / max;
        let (xl, l2) = sums(inverse);
        if l2 > 0.0 && xl * xl > best * l2 {
            scale = xl / l2;
            best = scale * xl;
            made_by = inverse;
        }
    }
    (scale, Some(made_by))
}

fn q6_k(x: &[f32], out: &mut [u8]) {
    let mut fits = [(0f32, None); SUPER / 16];
    for (x, fit) in x.chunks_exact(16).zip(&mut fits) {
        *fit = symmetric_scale(x, 32.0);
    }
    let max = extreme(&fits.map(|fit| fit.0));
    if max.abs() < SMALLEST {
        return;
    }
    let inverse = -128.0 / max;
    let d = put_f16(out, 208, 1.0 / inverse);
    for ((j, x), (scale, made_by)) in x.chunks_exact(16).enumerate().zip(fits) {
        let short = nearest(inverse * scale).min(127) as i8;
        set(out, 192 + j, |b| *b = short as u8);
        let step = d * f32::from(short);
        for (i, v) in x.iter().enumerate() {
            let code = match made_by {
                // Where eight bits made the scale vanish, ggml leaves the codes of the fit; zeros have no codes at all.
                Some(inverse) if step == 0.0 => nearest(inverse * v),
                None if step == 0.0 => -32,
                _ => nearest(v / step),
            };
            let code = (code.clamp(-32, 31) + 32) as u8;
            let at = 16 * j + i;
            let (half, place) = (at / 128, at % 128);
            set(out, half * 64 + place % 64, |b| *b |= (code & 15) << (4 * (place / 64)));
            set(out, 128 + half * 32 + place % 32, |b| *b |= (code >> 4) << (2 * (place / 32)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bits lost to a type, as the root of the mean square error over that of the values.
    fn error(kind: GgmlType, values: &[f32]) -> f64 {
        let again = kind.unpack(&pack(kind, values).unwrap()).unwrap();
        let square = |x: f64| x * x;
        let lost: f64 = values.iter().zip(&again).map(|(a, b)| square(f64::from(a - b))).sum();
        let whole: f64 = values.iter().map(|v| square(f64::from(*v))).sum();
        (lost / whole.max(1e-30)).sqrt()
    }

    fn waves(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * (1.0 + (i as f32 / 97.0).sin())).collect()
    }

    /// Values of one sign have no minimum, and zero has no sign, as ggml has it.
    #[test]
    fn a_minimum_of_zero_is_positive() {
        assert_eq!(pack(GgmlType::Q4_K, &[0.25; 256]).unwrap().get(2..4), Some(&[0, 0][..]));
    }

    #[test]
    fn what_is_packed_comes_back_as_near_as_its_bits_allow() {
        let values = waves(2048);
        for (kind, most) in [
            (GgmlType::F32, 0.0),
            (GgmlType::F16, 3e-4),
            (GgmlType::BF16, 3e-3),
            (GgmlType::Q8_0, 6e-3),
            (GgmlType::Q6_K, 2e-2),
            (GgmlType::Q5_0, 4e-2),
            (GgmlType::Q4_K, 8e-2),
        ] {
            let lost = error(kind, &values);
            assert!(lost <= most && (lost > most / 20.0 || most == 0.0), "{kind}: {lost}");
        }
        assert!(pack(GgmlType::Q8_0, &values[..33]).is_err() && pack(GgmlType::Q2_K, &values).is_err());
        assert!(pack(GgmlType::F16, &[1e6]).unwrap_err().contains("bf16"));
    }

    #[test]
    fn zeros_stay_zeros() {
        for kind in [GgmlType::Q8_0, GgmlType::Q5_0, GgmlType::Q4_K, GgmlType::Q6_K] {
            assert_eq!(kind.unpack(&pack(kind, &[0.0; 256]).unwrap()).unwrap(), [0.0; 256]);
        }
    }

    proptest! {
        /// Any finite values: no panic, and nothing that is not finite comes back. Values far below those of weights have scales that f16 cannot hold.
        #[test]
        fn any_values_can_be_packed(seed in any::<u64>(), magnitude in -30i32..4) {
            let scale = 2f32.powi(magnitude);
            let values: Vec<f32> = (0..256u64).map(|i| {
                let x = seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                ((x >> 40) as f32 / 8_388_608.0 - 1.0) * scale
            }).collect();
            for kind in [GgmlType::Q8_0, GgmlType::Q5_0, GgmlType::Q4_K, GgmlType::Q6_K] {
                let again = kind.unpack(&pack(kind, &values).unwrap()).unwrap();
                prop_assert!(again.iter().all(|v| v.is_finite()));
                let worst = values.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                prop_assert!(magnitude < -4 || worst <= 0.2 * scale, "{} {}", kind, worst);
            }
        }
    }
}
