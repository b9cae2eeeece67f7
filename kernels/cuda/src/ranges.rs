//! The bookkeeping of one chunk of device memory: which bytes are free. Plain arithmetic, no device.

use std::collections::BTreeMap;

/// Every piece starts at a multiple of this many bytes: what vector loads, cublasLt and the bulk copy engine ask for.
pub const ALIGNMENT: u64 = 256;

/// The free bytes of a chunk: start to length, never adjacent.
#[derive(Debug)]
pub struct Ranges {
    free: BTreeMap<u64, u64>,
    size: u64,
}

impl Ranges {
    /// All of `size` bytes free.
    pub fn new(size: u64) -> Self {
        let free = if size > 0 { BTreeMap::from([(0, size)]) } else { BTreeMap::new() };
        Self { free, size }
    }

    /// The chunk's bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether nothing is taken.
    pub fn is_unused(&self) -> bool {
        self.free.get(&0) == Some(&self.size)
    }

    /// Takes `bytes` (rounded up to [`ALIGNMENT`]) from the smallest free range that holds them, the first of equals; gives the start.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = rounded(bytes)?;
        let (&start, &length) = self.free.iter().filter(|(_, length)| **length >= bytes).min_by_key(|(_, length)| **length)?;
        self.free.remove(&start);
        if length > bytes {
            self.free.insert(start + bytes, length - bytes);
        }
        Some(start)
    }

    /// Gives back what [`Self::take`] gave, with the same number of bytes.
    pub fn give(&mut self, start: u64, bytes: u64) {
        let Some(mut bytes) = rounded(bytes) else { return };
        let mut start = start;
        if let Some((&before, &length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            self.free.remove(&before);
            (start, bytes) = (before, bytes + length);
        }
        if let Some(length) = self.free.remove(&(start + bytes)) {
            bytes += length;
        }
        self.free.insert(start, bytes);
    }
}

/// `bytes` as a whole number of alignments, at least one.
pub fn rounded(bytes: u64) -> Option<u64> {
    bytes.max(1).checked_next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_never_overlap_and_all_of_them_come_back() {
        let mut ranges = Ranges::new(1 << 20);
        let mut held: Vec<(u64, u64)> = Vec::new();
        let mut state = 12345u64;
        for _ in 0..5000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let r = state >> 33;
            if r.is_multiple_of(3) && !held.is_empty() {
                let (start, bytes) = held.swap_remove(r as usize / 3 % held.len());
                ranges.give(start, bytes);
            } else {
                let bytes = r % 9000;
                if let Some(start) = ranges.take(bytes) {
                    let end = start + rounded(bytes).unwrap();
                    assert!(start.is_multiple_of(ALIGNMENT) && end <= ranges.size());
                    assert!(held.iter().all(|&(s, b)| end <= s || s + rounded(b).unwrap() <= start), "overlap at {start}");
                    held.push((start, bytes));
                }
            }
        }
        assert!(!held.is_empty());
        for (start, bytes) in held {
            ranges.give(start, bytes);
        }
        assert!(ranges.is_unused());
        assert_eq!(ranges.take(1 << 20), Some(0));
        assert_eq!(ranges.take(0), None);
    }

    #[test]
    fn absurd_sizes_are_refused() {
        assert_eq!(Ranges::new(1 << 20).take(u64::MAX), None);
        assert_eq!(Ranges::new(0).take(1), None);
    }
}
