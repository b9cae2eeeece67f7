//! Samples to micro-batches without padding: sequences lie one after another, `cu_seqlens` says where each begins.
//!
//! A step is always batch x accumulation samples. Packing only arranges them, so the loss of a step does not depend on it.

use crate::error::DataError;

/// One training text as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Loss weight of each token AS TARGET: `weights[i]` weighs predicting `ids[i]` from those before it. As long as `ids`.
    /// `weights[0]` is never used, since nothing predicts the first token.
    pub weights: Vec<f32>,
    /// Index of the source in the recipe.
    pub source: u32,
    /// The file it comes from.
    pub file: std::sync::Arc<str>,
    /// Line or row in the file, from 1.
    pub row: u64,
    /// Global number of the draw, from 0. Samples of one conversation share it.
    pub draw: u64,
    /// Global number of the sample, from 0.
    pub index: u64,
}

impl Sample {
    /// How much weight the sample adds to the step's normalisation: the summed weight of all its predicted tokens.
    pub fn target_weight(&self) -> f64 {
        self.weights.iter().skip(1).map(|&w| f64::from(w)).sum()
    }
}

/// Sequences of a micro-batch, one after another, T tokens in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Token ids, shape (T).
    pub ids: Vec<u32>,
    /// The token that each position predicts: the next of the same sequence; 0, with weight 0, at a sequence's last position. Shape (T).
    pub targets: Vec<u32>,
    /// Weight of predicting `targets`; 0 at the last position of each sequence. Shape (T).
    pub weights: Vec<f32>,
    /// Position in its own sequence, from 0. Shape (T).
    pub positions: Vec<u32>,
    /// Where each sequence begins, and T at the end. Shape (sequences + 1).
    pub cu_seqlens: Vec<u32>,
    /// The global number of each sequence's sample: the key of its dropout. Shape (sequences).
    pub sample_index: Vec<u64>,
    /// The source of each sequence, for per-source losses. Shape (sequences).
    pub source: Vec<u32>,
}

impl MicroBatch {
    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// How many sequences there are.
    pub fn sequences(&self) -> usize {
        self.sample_index.len()
    }

    /// The longest sequence, in tokens.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens.windows(2).map(|w| w.last().zip(w.first()).map_or(0, |(b, a)| b.saturating_sub(*a) as usize)).max().unwrap_or(0)
    }

    /// Its share of the step's normalisation: the summed weight of all predictions.
    pub fn target_weight(&self) -> f64 {
        self.weights.iter().map(|&w| f64::from(w)).sum()
    }

    /// Appends a sample as a sequence of its own.
    fn push(&mut self, sample: &Sample) -> Result<(), DataError> {
        let refuse = |message: String| Err(DataError::Pack(format!("sample {} ({}:{}) {message}", sample.index, sample.file, sample.row)));
        let length = sample.ids.len();
        if length == 0 || sample.weights.len() != length {
            return refuse(format!("has {length} tokens and {} weights; both must be equal and above 0", sample.weights.len()));
        }
        let total = self.ids.len().checked_add(length).and_then(|n| u32::try_from(n).ok());
        let Some(total) = total else { return refuse("makes the micro-batch longer than 2^32 tokens".to_owned()) };
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        self.ids.extend_from_slice(&sample.ids);
        self.targets.extend(sample.ids.iter().skip(1).copied().chain([0]));
        self.weights.extend(sample.weights.iter().skip(1).copied().chain([0.0]));
        self.positions.extend((0..total).take(length));
        self.cu_seqlens.push(total);
        self.sample_index.push(sample.index);
        self.source.push(sample.source);
        Ok(())
    }
}

/// Puts samples together, in order, until the next would make a micro-batch longer than `max_tokens`: nothing is padded, cut or moved. A
/// sample longer than `max_tokens` by itself is an error.
pub fn pack(samples: &[Sample], max_tokens: usize) -> Result<Vec<MicroBatch>, DataError> {
    let mut out: Vec<MicroBatch> = Vec::new();
    for sample in samples {
        let length = sample.ids.len();
        if length > max_tokens {
            let message =
                format!("sample {} ({}:{}) has {length} tokens, a micro-batch holds {max_tokens}", sample.index, sample.file, sample.row);
            return Err(DataError::Pack(message));
        }
        match out.last_mut() {
            Some(last) if last.tokens().saturating_add(length) <= max_tokens => last.push(sample)?,
            _ => {
                let mut batch = MicroBatch::default();
                batch.push(sample)?;
                out.push(batch);
            }
        }
    }
    Ok(out)
}

/// Micro-batches of `batch` samples each (the last may have fewer), in order: the unpacked form, still without padding.
pub fn batches(samples: &[Sample], batch: usize) -> Result<Vec<MicroBatch>, DataError> {
    if batch == 0 {
        return Err(DataError::Pack("a micro-batch must have at least 1 sample".to_owned()));
    }
    samples
        .chunks(batch)
        .map(|chunk| {
            let mut out = MicroBatch::default();
            chunk.iter().try_for_each(|sample| out.push(sample))?;
            Ok(out)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(index: u64, ids: Vec<u32>) -> Sample {
        let weights = ids.iter().map(|&i| (i % 5) as f32 / 4.0).collect();
        Sample { ids, weights, source: (index % 3) as u32, file: "f.jsonl".into(), row: index + 1, draw: index, index }
    }

    /// Everything that a micro-batch must say about its samples, checked against them.
    fn check(batches: &[MicroBatch], samples: &[Sample]) -> Result<(), TestCaseError> {
        let mut rest = samples.iter();
        for b in batches {
            prop_assert_eq!(b.cu_seqlens.first(), Some(&0));
            prop_assert_eq!(*b.cu_seqlens.last().unwrap() as usize, b.tokens());
            prop_assert_eq!(b.cu_seqlens.len(), b.sequences() + 1);
            prop_assert!([b.targets.len(), b.weights.len(), b.positions.len()].iter().all(|&n| n == b.tokens()));
            for (i, w) in b.cu_seqlens.windows(2).enumerate() {
                let range = w[0] as usize..w[1] as usize;
                let s = rest.next().unwrap();
                let n = s.ids.len();
                prop_assert_eq!(&b.ids[range.clone()], &s.ids[..]);
                prop_assert_eq!(&b.targets[range.clone()][..n - 1], &s.ids[1..]);
                prop_assert_eq!(&b.weights[range.clone()][..n - 1], &s.weights[1..]);
                prop_assert_eq!((b.targets[range.end - 1], b.weights[range.end - 1]), (0, 0.0));
                prop_assert_eq!(&b.positions[range], &(0..n as u32).collect::<Vec<_>>()[..]);
                prop_assert_eq!((b.sample_index[i], b.source[i]), (s.index, s.source));
            }
        }
        prop_assert!(rest.next().is_none());
        let total: f64 = batches.iter().map(MicroBatch::target_weight).sum();
        prop_assert!((total - samples.iter().map(Sample::target_weight).sum::<f64>()).abs() < 1e-9);
        Ok(())
    }

    proptest! {
        #[test]
        fn nothing_is_lost_moved_or_padded(texts in prop::collection::vec(prop::collection::vec(1u32..1000, 1..30), 0..40), budget in 30usize..100, batch in 1usize..9) {
            let samples: Vec<Sample> = texts.into_iter().enumerate().map(|(i, ids)| sample(i as u64, ids)).collect();
            let packed = pack(&samples, budget).unwrap();
            check(&packed, &samples)?;
            prop_assert!(packed.iter().all(|b| b.tokens() <= budget && b.sequences() > 0));
            // Greedy: the first sample of each micro-batch did not fit the one before.
            for w in packed.windows(2) {
                prop_assert!(w[0].tokens() + w[1].cu_seqlens[1] as usize > budget);
            }
            let plain = batches(&samples, batch).unwrap();
            check(&plain, &samples)?;
            prop_assert!(plain.iter().rev().skip(1).all(|b| b.sequences() == batch));
        }
    }

    #[test]
    fn refusals_say_which_sample() {
        let long = sample(7, vec![1; 10]);
        assert!(pack(std::slice::from_ref(&long), 9).unwrap_err().to_string().contains("f.jsonl:8"));
        assert!(batches(&[sample(0, vec![])], 1).is_err());
        assert!(batches(&[long], 0).is_err());
    }
}
