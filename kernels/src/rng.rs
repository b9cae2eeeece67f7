//! Counter-based random numbers: Philox4x32-10.
//!
//! J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A number is a pure function
//! of a key and a counter, so a dropout mask or a draw depends only on what it is for (seed, step, sample, position, ...), never on the batch, the
//! thread or what was drawn before: it survives recompute, packing and resume.

/// The rounds' multipliers and the key schedule's increments (Weyl sequence), from the paper.
const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words for a counter under a key.
#[inline]
#[must_use]
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let ([mut c0, mut c1, mut c2, mut c3], [mut k0, mut k1]) = (counter, key);
    let mut round = 0;
    while round < 10 {
        let a = MULTIPLIER[0] as u64 * c0 as u64;
        let b = MULTIPLIER[1] as u64 * c2 as u64;
        (c0, c1, c2, c3) = ((b >> 32) as u32 ^ c1 ^ k0, b as u32, (a >> 32) as u32 ^ c3 ^ k1, a as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
        round += 1;
    }
    [c0, c1, c2, c3]
}

/// What a stream of random numbers is for. Equal seeds and counters give unrelated numbers under different purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Which activations LoRA's dropout keeps.
    Dropout,
    /// Which token a sampler draws.
    Sampling,
    /// The first values of adapters.
    Init,
    /// Random weights of measurements.
    Weights,
}

/// The key of a seed for a purpose: different for any two seeds (SplitMix64's finalizer is a bijection).
#[inline]
#[must_use]
pub const fn stream_key(seed: u64, purpose: Purpose) -> [u32; 2] {
    let tag: u64 = match purpose {
        Purpose::Dropout => 0x6472_6F70_6F75_7400,
        Purpose::Sampling => 0x7361_6D70_6C69_6E67,
        Purpose::Init => 0x696E_6974_0000_0000,
        Purpose::Weights => 0x7765_6967_6874_7300,
    };
    let x = seed ^ tag;
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    split(x ^ (x >> 31))
}

/// The two halves of a 64-bit number, low first: for keys and counters.
#[inline]
#[must_use]
pub const fn split(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// A number in [0, 1) with 24 random bits: every value is exact, and 1 is never reached by rounding.
#[inline]
#[must_use]
pub const fn uniform_f32(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

/// A number in [0, 1) with 53 random bits.
#[inline]
#[must_use]
pub const fn uniform_f64(words: u64) -> f64 {
    (words >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Two words as one number, the first being the low half.
#[inline]
#[must_use]
pub const fn join(low: u32, high: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

/// `len` normal values with mean 0 and the given deviation (Box & Muller 1958): a function of the seed and the place.
#[must_use]
pub fn normal(seed: u64, deviation: f32, len: usize) -> Vec<f32> {
    let key = stream_key(seed, Purpose::Weights);
    let mut values = Vec::with_capacity(len.next_multiple_of(4));
    let mut block = 0u64;
    while values.len() < len {
        let [low, high] = split(block);
        let words = philox4x32_10([low, high, 0, 0], key);
        for [a, b] in [[words[0], words[1]], [words[2], words[3]]] {
            // In (0, 1]: the logarithm stays finite.
            let radius = deviation * (-2.0 * (1.0 - uniform_f32(a)).ln()).sqrt();
            let (sin, cos) = (std::f32::consts::TAU * uniform_f32(b)).sin_cos();
            values.extend([radius * cos, radius * sin]);
        }
        block += 1;
    }
    values.truncate(len);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123 (`kat_vectors`): zeros, ones, and digits of pi.
    #[test]
    fn known_answers() {
        const ZERO: [u32; 4] = philox4x32_10([0; 4], [0; 2]);
        assert_eq!(ZERO, [0x6627_E8D5, 0xE169_C58D, 0xBC57_AC4C, 0x9B00_DBD8]);
        assert_eq!(philox4x32_10([u32::MAX; 4], [u32::MAX; 2]), [0x408F_276D, 0x41C8_3B0E, 0xA20B_C7C6, 0x6D54_51FD]);
        assert_eq!(
            philox4x32_10([0x243F_6A88, 0x85A3_08D3, 0x1319_8A2E, 0x0370_7344], [0xA409_3822, 0x299F_31D0]),
            [0xD16C_FE09, 0x94FD_CCEB, 0x5001_E420, 0x2412_6EA1]
        );
    }

    #[test]
    fn uniforms_stay_below_one() {
        assert_eq!((uniform_f32(0), uniform_f64(0)), (0.0, 0.0));
        assert!(uniform_f32(u32::MAX) < 1.0 && uniform_f64(u64::MAX) < 1.0);
        assert_eq!(uniform_f32(1 << 31), 0.5);
        assert_eq!(uniform_f64(1 << 63), 0.5);
        assert_eq!(join(split(0x0123_4567_89AB_CDEF)[0], split(0x0123_4567_89AB_CDEF)[1]), 0x0123_4567_89AB_CDEF);
    }

    /// Mean, variance and the correlation of neighbouring counters lie within four standard errors of those of independent uniforms.
    #[test]
    fn neighbouring_counters_are_independent() {
        const N: u32 = 1 << 18;
        let key = stream_key(3407, Purpose::Dropout);
        let u: Vec<f64> = (0..N).map(|i| f64::from(uniform_f32(philox4x32_10([i, 0, 0, 0], key)[0])) - 0.5).collect();
        let n = f64::from(N);
        let mean = u.iter().sum::<f64>() / n;
        let variance = u.iter().map(|x| x * x).sum::<f64>() / n;
        let neighbours = u.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / n;
        assert!(mean.abs() < 4.0 * (1.0 / 12.0 / n).sqrt(), "{mean}");
        assert!((variance - 1.0 / 12.0).abs() < 4.0 * (1.0 / 180.0 / n).sqrt(), "{variance}");
        assert!(neighbours.abs() < 4.0 / 12.0 / n.sqrt(), "{neighbours}");
    }

    #[test]
    fn normal_values_are_normal_and_do_not_depend_on_how_many_are_asked_for() {
        let values = normal(7, 0.5, 100_001);
        assert_eq!(&normal(7, 0.5, 10), &values[..10]);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.01 && (square - 0.25).abs() < 0.01, "{mean} {square}");
        assert!(values.iter().all(|v| v.is_finite()) && values.iter().any(|v| v.abs() > 1.5));
    }

    #[test]
    fn purposes_and_seeds_have_keys_of_their_own() {
        let keys: std::collections::HashSet<_> =
            (0..1000u64).flat_map(|s| [Purpose::Dropout, Purpose::Sampling, Purpose::Init].map(|p| stream_key(s, p))).collect();
        assert_eq!(keys.len(), 3000);
    }
}
