//! A counter-based generator: the i-th number depends on the seed and i alone, so there is no state to save.

/// The output function of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators").
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The number at `counter` of the sequence of `seed`.
pub fn at(seed: u64, counter: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(counter.wrapping_mul(GOLDEN)))
}

/// A number below `bound`, from a random word: the high half of the product (Lemire 2019), whose bias is below `bound / 2^64`.
pub fn below(word: u64, bound: u64) -> u64 {
    ((u128::from(word) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spread_evenly() {
        for seed in [0, 1, 3407, u64::MAX] {
            let mut counts = [0u32; 10];
            for i in 0..10_000 {
                counts[below(at(seed, i), 10) as usize] += 1;
            }
            // Ten standard deviations of a binomial count would be 300.
            assert!(counts.iter().all(|c| c.abs_diff(1_000) < 300), "seed {seed}: {counts:?}");
        }
        assert_ne!(at(1, 0), at(2, 0));
        assert_eq!(below(u64::MAX, 7), 6);
        assert_eq!(below(0, 7), 0);
    }
}
