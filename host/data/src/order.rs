//! Seeded orders that need no memory: a permutation of `0..n` whose entries can be asked for one by one.

use sha2::{Digest, Sha256};

/// Rounds of the Feistel network. Four suffice for a permutation to look random to statistics; eight cost nothing beside reading a row.
const ROUNDS: usize = 8;
/// The smallest half in bits: narrower networks reach only a few of the possible permutations of a short source.
const MIN_HALF: u32 = 4;

/// A pseudo-random bijection of `0..n` onto itself: a balanced Feistel network over the next larger even number of bits, walked until it
/// lands inside (cycle walking; Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). It takes at most about four rounds of
/// the network on average, except for sources of less than 64 rows.
#[derive(Clone, Debug)]
pub struct Permutation {
    n: u64,
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of a pass over a source: a function of these four alone.
    pub fn new(seed: u64, name: &str, pass: u64, n: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"trainer row order 1\0");
        hash.update(seed.to_le_bytes());
        hash.update(pass.to_le_bytes());
        hash.update(name.as_bytes());
        let digest = hash.finalize();
        let mut key = [0u8; 8];
        let mut state = 0u64;
        for part in digest.chunks_exact(8) {
            key.copy_from_slice(part);
            state = mix(state ^ u64::from_le_bytes(key));
        }
        let keys = std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        });
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        Self { n, half: bits.div_ceil(2).max(MIN_HALF), keys }
    }

    /// Where position `i` of the pass lies in file order; `i` must be below `n`, and any other `i` gives itself.
    pub fn get(&self, i: u64) -> u64 {
        if i >= self.n {
            return i;
        }
        let mut x = i;
        loop {
            x = self.network(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn network(&self, x: u64) -> u64 {
        let mask = (1u64 << self.half) - 1;
        let (mut left, mut right) = (x >> self.half, x & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half | right
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The order of a source that is too large to jump about in: shards (row groups) in random order, cut into windows that fit in memory,
/// and a permutation of the rows within each window. Every shard is read in one window of a pass only.
#[derive(Clone, Debug)]
pub struct ShardedOrder {
    windows: Vec<Window>,
    rows: u64,
}

#[derive(Clone, Debug)]
struct Window {
    /// Position in the pass at which the window begins.
    start: u64,
    order: Permutation,
    /// Position within the window at which each shard begins, and the shard's first row in file order.
    shards: Vec<(u64, u64)>,
}

/// A run of rows that is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// First row in file order.
    pub start: u64,
    /// Number of rows.
    pub rows: u64,
    /// Memory that its rows take, about.
    pub bytes: u64,
}

impl ShardedOrder {
    /// The order of a pass; `shards` partition the source in file order.
    pub fn new(seed: u64, name: &str, pass: u64, shards: &[Shard], window_bytes: u64) -> Self {
        let count = shards.len() as u64;
        let outer = Permutation::new(seed, &format!("{name}\0shards"), pass, count);
        let mut windows: Vec<Window> = Vec::new();
        let mut start = 0u64;
        let mut pending: Vec<(u64, u64)> = Vec::new();
        let (mut rows, mut bytes) = (0u64, 0u64);
        let mut close = |start: &mut u64, rows: &mut u64, bytes: &mut u64, pending: &mut Vec<(u64, u64)>| {
            let label = format!("{name}\0window {}", windows.len());
            let order = Permutation::new(seed, &label, pass, *rows);
            windows.push(Window { start: *start, order, shards: std::mem::take(pending) });
            *start = start.saturating_add(*rows);
            (*rows, *bytes) = (0, 0);
        };
        for i in 0..count {
            let Some(shard) = usize::try_from(outer.get(i)).ok().and_then(|s| shards.get(s)).filter(|s| s.rows > 0) else { continue };
            if rows > 0 && bytes.saturating_add(shard.bytes) > window_bytes {
                close(&mut start, &mut rows, &mut bytes, &mut pending);
            }
            pending.push((rows, shard.start));
            rows = rows.saturating_add(shard.rows);
            bytes = bytes.saturating_add(shard.bytes);
        }
        if rows > 0 {
            close(&mut start, &mut rows, &mut bytes, &mut pending);
        }
        Self { windows, rows: start }
    }

    /// Where position `i` of the pass lies in file order; an `i` past the end gives itself.
    pub fn get(&self, i: u64) -> u64 {
        if i >= self.rows {
            return i;
        }
        let window = self.windows.partition_point(|w| w.start <= i).checked_sub(1).and_then(|w| self.windows.get(w));
        let Some(window) = window else { return i };
        let within = window.order.get(i - window.start);
        let shard = window.shards.partition_point(|(first, _)| *first <= within).checked_sub(1).and_then(|s| window.shards.get(s));
        shard.map_or(i, |(first, row)| row.saturating_add(within - first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_bijection(n: u64, get: impl Fn(u64) -> u64) -> bool {
        let mut seen = vec![false; n as usize];
        (0..n).all(|i| !std::mem::replace(&mut seen[get(i) as usize], true))
    }

    #[test]
    fn every_short_length_is_a_bijection() {
        for n in 0..600 {
            let p = Permutation::new(3407, "maths", 0, n);
            assert!(is_bijection(n, |i| p.get(i)), "n = {n}");
        }
    }

    #[test]
    fn the_largest_lengths_stay_inside() {
        for n in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) + 1, u32::MAX as u64] {
            let p = Permutation::new(1, "x", 2, n);
            let mut seen = std::collections::HashSet::new();
            for i in (0..1000).chain(n - 1000..n) {
                let x = p.get(i);
                assert!(x < n && seen.insert(x));
            }
        }
    }

    #[test]
    fn short_sources_reach_all_their_orders() {
        // All 24 orders of four rows must appear among 2,000 passes, none wildly preferred.
        let mut counts = std::collections::HashMap::new();
        for pass in 0..2000 {
            let p = Permutation::new(7, "four", pass, 4);
            let order: Vec<u64> = (0..4).map(|i| p.get(i)).collect();
            *counts.entry(order).or_insert(0u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&c| (40..=140).contains(&c)), "{counts:?}");
    }

    #[test]
    fn order_looks_random() {
        // The mean displacement of a random permutation is n/3, and neighbours stay neighbours with probability 1/n.
        let n = 10_000u64;
        let p = Permutation::new(3407, "maths", 1, n);
        let mean = (0..n).map(|i| p.get(i).abs_diff(i) as f64).sum::<f64>() / n as f64;
        assert!((mean / n as f64 - 1.0 / 3.0).abs() < 0.02, "{mean}");
        let kept = (1..n).filter(|&i| p.get(i) == p.get(i - 1).wrapping_add(1)).count();
        assert!(kept < 12, "{kept} neighbours kept");
    }

    proptest! {
        #[test]
        fn any_length_is_a_bijection(n in 1u64..20_000, seed: u64, pass: u64, name in ".{0,8}") {
            let p = Permutation::new(seed, &name, pass, n);
            prop_assert!(is_bijection(n, |i| p.get(i)));
        }

        #[test]
        fn seed_name_and_pass_matter(seed: u64, pass in 0u64..1000) {
            let order = |s, name, pass| { let p = Permutation::new(s, name, pass, 1000); (0..1000).map(|i| p.get(i)).collect::<Vec<_>>() };
            let base = order(seed, "a", pass);
            prop_assert_ne!(&base, &order(seed ^ 1, "a", pass));
            prop_assert_ne!(&base, &order(seed, "b", pass));
            prop_assert_ne!(&base, &order(seed, "a", pass + 1));
        }

        #[test]
        fn sharded_order_is_a_bijection_and_local(sizes in prop::collection::vec((0u64..50, 1u64..100), 1..40), seed: u64, window in 1u64..300) {
            let mut start = 0;
            let shards: Vec<Shard> = sizes.iter().map(|&(rows, bytes)| { let s = Shard { start, rows, bytes }; start += rows; s }).collect();
            let order = ShardedOrder::new(seed, "big", 3, &shards, window);
            prop_assert!(is_bijection(start, |i| order.get(i)));
            // Each shard's rows lie within one window: they are never spread over more positions than a window has rows.
            let mut at = vec![0u64; start as usize];
            for i in 0..start { at[order.get(i) as usize] = i; }
            for s in shards.iter().filter(|s| s.rows > 0) {
                let places = &at[s.start as usize..(s.start + s.rows) as usize];
                let window_of = |i: u64| order.windows.partition_point(|w| w.start <= i);
                let first = window_of(places[0]);
                prop_assert!(places.iter().all(|&p| window_of(p) == first));
            }
        }
    }
}
