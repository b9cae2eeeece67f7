//! What is counted about samples.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use serde::Serialize;
use trainer_config::{Recipe, TooLong};
use trainer_data::{BadRow, Counters, Sample, TruncationSide};

/// The lengths of samples in tokens, before anything is cut off.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: u64,
    /// The mean.
    pub mean: f64,
    /// Half of the samples are no longer than this.
    pub median: u64,
    /// Nine in ten are no longer.
    pub p90: u64,
    /// 99 in 100 are no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// Samples by length, in steps of powers of two.
    pub histogram: Vec<Bar>,
}

/// Samples of `from` to `to` tokens, both included.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Bar {
    /// The shortest length that counts here.
    pub from: u64,
    /// The longest.
    pub to: u64,
    /// How many there are.
    pub samples: u64,
}

/// What is counted about a source, or about all.
#[derive(Debug, Default, Serialize)]
pub struct Figures {
    /// Rows in the files.
    pub rows: u64,
    /// Samples that are trained on.
    pub samples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Those of their tokens that are learned.
    pub target_tokens: u64,
    /// `target_tokens` over `tokens`.
    pub trained_share: f64,
    /// Lengths of all samples that rows give, those that are left out for their length included.
    pub lengths: Lengths,
    /// Samples longer than `max_seq_length`, whatever becomes of them.
    pub too_long: u64,
    /// Samples that are cut.
    pub truncated: u64,
    /// Samples that are left out for their length.
    pub dropped: u64,
    /// Rows and samples that are left out for other reasons, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Bad rows, by kind.
    pub bad: BTreeMap<String, u64>,
    /// The first bad rows.
    pub bad_examples: Vec<BadRow>,
    /// Samples whose tokens are those of an earlier sample of the same source.
    pub duplicates: u64,
    /// Samples whose tokens are those of a sample of another source.
    pub duplicates_across: u64,
}

/// Counts the samples of one source after another.
pub struct Tally {
    limit: usize,
    too_long: TooLong,
    side: TruncationSide,
    hasher: RandomState,
    /// The source in which each text was first seen. A hash of 64 bits stands for the text: among ten million texts, the chance that any
    /// two different ones are taken for equal is one in 370,000.
    seen: HashMap<u64, u32>,
}

/// What is being counted about a source.
#[derive(Default)]
pub struct Count {
    lengths: BTreeMap<usize, u64>,
    figures: Figures,
    no_target: u64,
    too_long_bad: u64,
}

impl Tally {
    /// By the rules of a recipe.
    pub fn new(recipe: &Recipe) -> Self {
        let side = match recipe.data.truncation_side {
            trainer_config::TruncationSide::Right => TruncationSide::Right,
            trainer_config::TruncationSide::Left => TruncationSide::Left,
        };
        let (limit, too_long) = (recipe.data.max_seq_length, recipe.data.too_long);
        Self { limit, too_long, side, hasher: RandomState::new(), seen: HashMap::new() }
    }

    /// A whole sample, before the rule about its length.
    pub fn sample(&mut self, source: u32, sample: &Sample, count: &mut Count) {
        let length = sample.ids.len();
        *count.lengths.entry(length).or_default() += 1;
        let figures = &mut count.figures;
        match self.seen.entry(self.hasher.hash_one(&sample.ids)) {
            std::collections::hash_map::Entry::Vacant(entry) => _ = entry.insert(source),
            std::collections::hash_map::Entry::Occupied(entry) if *entry.get() == source => figures.duplicates += 1,
            std::collections::hash_map::Entry::Occupied(_) => figures.duplicates_across += 1,
        }
        let kept = if length > self.limit {
            figures.too_long += 1;
            match self.too_long {
                TooLong::Error => return count.too_long_bad += 1,
                TooLong::Drop => return figures.dropped += 1,
                TooLong::Truncate => self.side.kept(length, self.limit),
            }
        } else {
            0..length
        };
        let cut = kept.len() < length;
        let targets = sample.weights.get(kept.clone()).unwrap_or_default().iter().skip(1).filter(|w| **w > 0.0).count();
        if targets == 0 {
            count.no_target += 1;
            return;
        }
        figures.samples += 1;
        figures.truncated += u64::from(cut);
        figures.tokens += kept.len() as u64;
        figures.target_tokens += targets as u64;
    }
}

impl Count {
    /// The figures of a source of which all rows were gone through.
    pub fn finish(&mut self, counters: &Counters) -> Figures {
        let mut figures = std::mem::take(&mut self.figures);
        figures.rows = counters.rows;
        figures.skipped.clone_from(&counters.skipped);
        figures.bad = counters.bad.iter().map(|(kind, n)| (kind.to_string(), *n)).collect();
        figures.bad_examples.clone_from(&counters.bad_examples);
        if self.no_target > 0 {
            figures.skipped.insert("no target tokens within max_seq_length".to_owned(), self.no_target);
        }
        if self.too_long_bad > 0 {
            *figures.bad.entry(trainer_data::BadKind::TooLong.to_string()).or_default() += self.too_long_bad;
        }
        figures.trained_share = share(figures.target_tokens, figures.tokens);
        figures.lengths = lengths(&self.lengths);
        figures
    }

    /// Takes in what another has counted.
    pub fn lengths_into(&self, all: &mut BTreeMap<usize, u64>) {
        for (length, n) in &self.lengths {
            *all.entry(*length).or_default() += n;
        }
    }
}

/// All sources together.
pub fn total(parts: &[Figures], all: &BTreeMap<usize, u64>) -> Figures {
    let mut sum = Figures::default();
    for part in parts {
        sum.rows += part.rows;
        sum.samples += part.samples;
        sum.tokens += part.tokens;
        sum.target_tokens += part.target_tokens;
        sum.too_long += part.too_long;
        sum.truncated += part.truncated;
        sum.dropped += part.dropped;
        sum.duplicates += part.duplicates;
        sum.duplicates_across += part.duplicates_across;
        for (reason, n) in &part.skipped {
            *sum.skipped.entry(reason.clone()).or_default() += n;
        }
        for (kind, n) in &part.bad {
            *sum.bad.entry(kind.clone()).or_default() += n;
        }
    }
    sum.trained_share = share(sum.target_tokens, sum.tokens);
    sum.lengths = lengths(all);
    sum
}

/// A part of a whole; 0 of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn lengths(counts: &BTreeMap<usize, u64>) -> Lengths {
    let total: u64 = counts.values().sum();
    let (Some((min, _)), Some((max, _))) = (counts.first_key_value(), counts.last_key_value()) else { return Lengths::default() };
    let sum: f64 = counts.iter().map(|(length, n)| *length as f64 * *n as f64).sum();
    // The shortest length that at least this share of the samples does not exceed.
    let at = |percent: u64| {
        let wanted = (u128::from(total) * u128::from(percent)).div_ceil(100);
        let mut seen = 0u128;
        let found = counts.iter().find(|(_, n)| {
            seen += u128::from(**n);
            seen >= wanted
        });
        found.map_or(0, |(length, _)| *length as u64)
    };
    let mut histogram: Vec<Bar> = Vec::new();
    for (length, n) in counts {
        let length = *length as u64;
        match histogram.last_mut() {
            Some(bar) if length <= bar.to => bar.samples += n,
            _ => {
                let power = length.checked_ilog2().map_or(0, |p| 1u64 << p);
                histogram.push(Bar { from: power, to: power.saturating_mul(2).saturating_sub(1), samples: *n });
            }
        }
    }
    Lengths { min: *min as u64, mean: sum / total as f64, median: at(50), p90: at(90), p99: at(99), max: *max as u64, histogram }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_sorted_list() {
        let counts = BTreeMap::from([(1, 1), (2, 1), (3, 2), (4, 5), (100, 1)]);
        let l = lengths(&counts);
        assert_eq!((l.min, l.median, l.p90, l.p99, l.max), (1, 4, 4, 100, 100));
        assert!((l.mean - 12.9).abs() < 1e-9, "{}", l.mean);
        let bars: Vec<_> = l.histogram.iter().map(|b| (b.from, b.to, b.samples)).collect();
        assert_eq!(bars, [(1, 1, 1), (2, 3, 3), (4, 7, 5), (64, 127, 1)]);
        assert_eq!(lengths(&BTreeMap::new()), Lengths::default());
    }
}
