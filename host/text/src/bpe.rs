//! Byte-pair encoding of one word.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::TextError;
use crate::spec::invalid;
use crate::vocab::{TokenTable, char_to_byte};

/// A rank that no merge has.
const NO_MERGE: u32 = u32::MAX;

/// Words of at most this many bytes are merged by repeatedly looking for the smallest rank; longer ones through a heap, so that the time
/// grows as n log n.
const SHORT: usize = 48;

/// Whether a word that is also a token encodes to just that token. Found out at its first use; no result depends on when.
const UNKNOWN: u8 = 0;
const WHOLE: u8 = 1;
const SPLIT: u8 = 2;

/// A byte-level BPE model: merges by rank, the leftmost first among equals.
#[derive(Debug)]
pub(crate) struct Bpe {
    /// The token of each byte.
    bytes: Box<[u32; 256]>,
    merges: Merges,
    words: Words,
    /// By id; see [`UNKNOWN`].
    whole: Vec<AtomicU8>,
}

/// Buffers that are kept between words.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    ids: Vec<u32>,
    ranks: Vec<(u32, u32)>,
    long: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A symbol of a long word, linked to its neighbours.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    id: u32,
    prev: u32,
    next: u32,
    /// The merge with the next symbol.
    rank: u32,
    merged: u32,
}

const NONE: u32 = u32::MAX;

impl Bpe {
    /// Builds the model. `table` must hold `vocab` already.
    pub fn new(vocab: &[(String, u32)], merges: &[(String, String)], table: &TokenTable) -> Result<Self, TextError> {
        let mut words = Words::with_capacity(vocab.len());
        let mut bytes = Box::new([NONE; 256]);
        for (token, id) in vocab {
            // A token with a character that stands for no byte can never come out of merges.
            if !token.chars().all(|c| char_to_byte(c).is_some()) {
                continue;
            }
            let key = table.get(*id).unwrap_or_default();
            if key.is_empty() {
                return Err(invalid("a token of the vocabulary is empty"));
            }
            if words.find(key, table).is_some() {
                return Err(invalid(format!("the token {token:?} is listed twice")));
            }
            words.insert(key, *id);
            if let [b] = key {
                bytes[*b as usize] = *id;
            }
        }
        if let Some(b) = bytes.iter().position(|id| *id == NONE) {
            return Err(invalid(format!("the vocabulary has no token for the byte 0x{b:02x}; a byte-level vocabulary has one for each")));
        }
        let mut pairs = Merges::with_capacity(merges.len());
        let mut joined = Vec::new();
        for (rank, (a, b)) in merges.iter().enumerate() {
            joined.clear();
            let find = |token: &str, joined: &mut Vec<u8>| {
                let start = joined.len();
                joined.extend(token.chars().map_while(char_to_byte));
                words.find(joined.get(start..).unwrap_or_default(), table)
            };
            let (left, right) = (find(a, &mut joined), find(b, &mut joined));
            let rank = u32::try_from(rank).ok().filter(|r| *r != NO_MERGE);
            match (left, right, words.find(&joined, table), rank) {
                (Some(left), Some(right), Some(merged), Some(rank)) => pairs.insert(left, right, rank, merged),
                _ => return Err(invalid(format!("merge {}: {a:?}, {b:?} or what they make together is no token", joined_rank(rank)))),
            }
        }
        let whole = std::iter::repeat_with(|| AtomicU8::new(UNKNOWN)).take(table.len()).collect();
        Ok(Self { bytes, merges: pairs, words, whole })
    }

    /// The tokens that encoding text can give: the bytes and the results of merges.
    pub fn reachable(&self) -> HashSet<u32> {
        let merged = self.merges.slots.iter().filter(|s| s.pair != EMPTY).map(|s| s.merged);
        self.bytes.iter().copied().chain(merged).collect()
    }

    /// Gives the tokens of a word in order.
    #[inline]
    pub fn encode(&self, word: &[u8], table: &TokenTable, scratch: &mut Scratch, mut emit: impl FnMut(u32)) {
        let token = self.words.find(word, table);
        let state = token.and_then(|id| self.whole.get(id as usize));
        if let (Some(id), Some(state)) = (token, state) {
            match state.load(Ordering::Relaxed) {
                WHOLE => return emit(id),
                SPLIT => {}
                _ => {
                    let mut ids = Vec::new();
                    self.merge(word, scratch, |id| ids.push(id));
                    state.store(if ids == [id] { WHOLE } else { SPLIT }, Ordering::Relaxed);
                    return ids.into_iter().for_each(emit);
                }
            }
        }
        self.merge(word, scratch, emit);
    }

    fn merge(&self, word: &[u8], scratch: &mut Scratch, emit: impl FnMut(u32)) {
        if word.len() <= SHORT { self.merge_short(word, scratch, emit) } else { self.merge_long(word, scratch, emit) }
    }

    fn merge_short(&self, word: &[u8], scratch: &mut Scratch, emit: impl FnMut(u32)) {
        let Scratch { ids, ranks, .. } = scratch;
        ids.clear();
        ids.extend(word.iter().map(|b| self.bytes[*b as usize]));
        // ranks[i] is the merge of ids[i] and ids[i + 1]; the last has none.
        ranks.clear();
        ranks.extend(ids.windows(2).map(|p| self.merges.find(p[0], p[1])));
        ranks.push((NO_MERGE, 0));
        loop {
            let mut best = (NO_MERGE, 0);
            let mut at = 0;
            for (i, r) in ranks.iter().enumerate() {
                if r.0 < best.0 {
                    best = *r;
                    at = i;
                }
            }
            if best.0 == NO_MERGE {
                break;
            }
            // A merge at `at` has a symbol behind it, and at + 1 < ids.len() == ranks.len().
            ids[at] = best.1;
            ids.remove(at + 1);
            ranks.remove(at + 1);
            ranks[at] = ids.get(at + 1).map_or((NO_MERGE, 0), |next| self.merges.find(ids[at], *next));
            if at > 0 {
                ranks[at - 1] = self.merges.find(ids[at - 1], ids[at]);
            }
        }
        ids.iter().copied().for_each(emit);
    }

    fn merge_long(&self, word: &[u8], scratch: &mut Scratch, mut emit: impl FnMut(u32)) {
        let Scratch { long, heap, .. } = scratch;
        long.clear();
        heap.clear();
        // A text has at most 256 MiB, so positions fit.
        for (i, b) in word.iter().enumerate() {
            let i = i as u32;
            long.push(Symbol { id: self.bytes[*b as usize], prev: i.wrapping_sub(1), next: i + 1, rank: NO_MERGE, merged: 0 });
        }
        if let Some(last) = long.last_mut() {
            last.next = NONE;
        }
        for i in 0..long.len() {
            self.rank(long, heap, i);
        }
        while let Some(Reverse((rank, at))) = heap.pop() {
            let at = at as usize;
            let Symbol { next, merged, rank: current, .. } = long[at];
            // Every pair has a rank of its own, so another rank means that this entry is stale.
            if current != rank || next == NONE {
                continue;
            }
            let after = long[next as usize].next;
            long[next as usize].rank = NO_MERGE;
            long[at].id = merged;
            long[at].next = after;
            if after != NONE {
                long[after as usize].prev = at as u32;
            }
            self.rank(long, heap, at);
            let prev = long[at].prev;
            if prev != NONE {
                self.rank(long, heap, prev as usize);
            }
        }
        let mut at = 0;
        while let Some(symbol) = long.get(at as usize) {
            emit(symbol.id);
            at = symbol.next;
        }
    }

    /// Looks up the merge of a symbol with the next one, and queues it.
    fn rank(&self, long: &mut [Symbol], heap: &mut BinaryHeap<Reverse<(u32, u32)>>, at: usize) {
        let next = long[at].next;
        let (rank, merged) = if next == NONE { (NO_MERGE, 0) } else { self.merges.find(long[at].id, long[next as usize].id) };
        long[at].rank = rank;
        long[at].merged = merged;
        if rank != NO_MERGE {
            heap.push(Reverse((rank, at as u32)));
        }
    }
}

fn joined_rank(rank: Option<u32>) -> String {
    rank.map_or_else(|| "beyond 4 billion".into(), |r| (u64::from(r) + 1).to_string())
}

/// A pair that no slot holds: no id is this large.
const EMPTY: u64 = u64::MAX;

/// Pairs of ids to rank and result: open addressing, at most two thirds full.
#[derive(Debug)]
struct Merges {
    slots: Vec<Slot>,
    shift: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    pair: u64,
    rank: u32,
    merged: u32,
}

impl Merges {
    fn with_capacity(n: usize) -> Self {
        let bits = table_bits(n);
        Self { slots: vec![Slot { pair: EMPTY, rank: NO_MERGE, merged: 0 }; 1 << bits], shift: 64 - bits }
    }

    fn slot(&self, pair: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = (mix(pair) >> self.shift) as usize;
        while self.slots[at].pair != pair && self.slots[at].pair != EMPTY {
            at = (at + 1) & mask;
        }
        at
    }

    /// A pair given twice has the later rank, as in `tokenizers`.
    fn insert(&mut self, left: u32, right: u32, rank: u32, merged: u32) {
        let pair = pack(left, right);
        let at = self.slot(pair);
        self.slots[at] = Slot { pair, rank, merged };
    }

    /// Rank and result of a merge; `NO_MERGE` if there is none.
    #[inline]
    fn find(&self, left: u32, right: u32) -> (u32, u32) {
        let slot = &self.slots[self.slot(pack(left, right))];
        (slot.rank, slot.merged)
    }
}

fn pack(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Tokens by their bytes: open addressing over ids, at most two thirds full. The bytes themselves are in the [`TokenTable`].
#[derive(Debug)]
struct Words {
    /// Upper half of the hash, and the id; the id is `NONE` in an empty slot.
    slots: Vec<(u32, u32)>,
    shift: u32,
    longest: usize,
}

impl Words {
    fn with_capacity(n: usize) -> Self {
        let bits = table_bits(n);
        Self { slots: vec![(0, NONE); 1 << bits], shift: 64 - bits, longest: 0 }
    }

    fn insert(&mut self, word: &[u8], id: u32) {
        let hash = hash(word);
        let mask = self.slots.len() - 1;
        let mut at = (hash >> self.shift) as usize;
        while self.slots[at].1 != NONE {
            at = (at + 1) & mask;
        }
        self.slots[at] = (hash as u32, id);
        self.longest = self.longest.max(word.len());
    }

    #[inline]
    fn find(&self, word: &[u8], table: &TokenTable) -> Option<u32> {
        if word.len() > self.longest {
            return None;
        }
        let hash = hash(word);
        let mask = self.slots.len() - 1;
        let mut at = (hash >> self.shift) as usize;
        loop {
            let (tag, id) = self.slots[at];
            if id == NONE {
                return None;
            }
            if tag == hash as u32 && table.get(id) == Some(word) {
                return Some(id);
            }
            at = (at + 1) & mask;
        }
    }
}

/// The size of a table for `n` entries as a power of two, at most two thirds full.
fn table_bits(n: usize) -> u32 {
    (n + n / 2 + 2).next_power_of_two().trailing_zeros()
}

/// Spreads all bits over the upper half (the finalizer of SplitMix64).
#[inline]
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[inline]
fn hash(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut h = bytes.len() as u64;
    for c in chunks {
        h = mix(h ^ u64::from_le_bytes(*c));
    }
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    mix(h ^ u64::from_le_bytes(last).wrapping_add(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A small model whose merges overlap: every string of a and b of up to 5 letters can be a token.
    fn model(merges: &[(&str, &str)]) -> (Bpe, TokenTable) {
        let mut vocab: Vec<(String, u32)> = Vec::new();
        for c in (0..0x400).filter_map(char::from_u32).filter(|c| char_to_byte(*c).is_some()) {
            vocab.push((c.to_string(), vocab.len() as u32));
        }
        let mut pairs = Vec::new();
        for (a, b) in merges {
            let joined = format!("{a}{b}");
            if !vocab.iter().any(|(t, _)| *t == joined) {
                vocab.push((joined, vocab.len() as u32));
            }
            pairs.push((a.to_string(), b.to_string()));
        }
        let mut table = TokenTable::default();
        for (t, id) in &vocab {
            table.insert(*id, t).unwrap();
        }
        (Bpe::new(&vocab, &pairs, &table).unwrap(), table)
    }

    /// The definition: merge the pair of the smallest rank, the leftmost first, until there is none.
    fn by_definition(bpe: &Bpe, word: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = word.iter().map(|b| bpe.bytes[*b as usize]).collect();
        while let Some((_, i)) = (1..ids.len()).map(|i| (bpe.merges.find(ids[i - 1], ids[i]).0, i)).min().filter(|m| m.0 != NO_MERGE) {
            ids[i - 1] = bpe.merges.find(ids[i - 1], ids[i]).1;
            ids.remove(i);
        }
        ids
    }

    const MERGES: [(&str, &str); 12] = [
        ("b", "b"),
        ("a", "a"),
        ("a", "b"),
        ("aa", "b"),
        ("a", "ab"),
        ("bb", "a"),
        ("aa", "aa"),
        ("ab", "ab"),
        ("c", "a"),
        ("b", "ca"),
        ("abab", "abab"),
        ("aab", "bca"),
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn both_ways_of_merging_follow_the_definition(word in prop::collection::vec(prop::sample::select(b"aaabbc".to_vec()), 0..130)) {
            let (bpe, table) = model(&MERGES);
            let want = by_definition(&bpe, &word);
            let mut scratch = Scratch::default();
            let mut short = Vec::new();
            bpe.merge_short(&word, &mut scratch, |id| short.push(id));
            prop_assert_eq!(&short, &want);
            let mut long = Vec::new();
            bpe.merge_long(&word, &mut scratch, |id| long.push(id));
            prop_assert_eq!(&long, &want);
            // Twice: the second time the word's state is known.
            for _ in 0..2 {
                let mut all = Vec::new();
                bpe.encode(&word, &table, &mut scratch, |id| all.push(id));
                prop_assert_eq!(&all, &want);
            }
        }
    }

    /// "ca" would merge before "b"+"ca" can; a token need not be what its own text encodes to.
    #[test]
    fn a_token_that_its_merges_do_not_reach_is_not_given_whole() {
        let (bpe, table) = model(&[("b", "c"), ("c", "d"), ("b", "cd")]);
        let whole = bpe.words.find(b"bcd", &table).unwrap();
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            let mut ids = Vec::new();
            bpe.encode(b"bcd", &table, &mut scratch, |id| ids.push(id));
            assert_eq!(ids.len(), 2);
            assert!(!ids.contains(&whole));
        }
    }

    #[test]
    fn a_long_word_takes_no_quadratic_time() {
        let (bpe, table) = model(&MERGES);
        let word = b"ab".repeat(1 << 20);
        let mut n = 0;
        bpe.encode(&word, &table, &mut Scratch::default(), |_| n += 1);
        assert_eq!(n, word.len() / 8);
    }

    #[test]
    fn broken_models_are_refused() {
        let vocab = [("a".to_owned(), 0)];
        let mut table = TokenTable::default();
        table.insert(0, "a").unwrap();
        let e = Bpe::new(&vocab, &[], &table).unwrap_err().to_string();
        assert!(e.contains("no token for the byte 0x00"), "{e}");
        let twice = [("a".to_owned(), 0), ("a".to_owned(), 0)];
        let e = Bpe::new(&twice, &[], &table).unwrap_err().to_string();
        assert!(e.contains("listed twice"), "{e}");
    }
}
