//! Log-probabilities of tokens: of the model's own distribution, before temperature, penalties and cuts.

/// A token's log-probability, and those of the likeliest tokens at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token.
    pub id: u32,
    /// `ln p(token | everything before)`.
    pub logprob: f64,
    /// As many of the likeliest tokens as were asked for, with their log-probabilities, the lower id first among equals.
    pub top: Vec<(u32, f64)>,
}

impl TokenLogprobs {
    /// Those of token `id`, given the logits at its place, with `count` alternatives.
    pub(crate) fn new(logits: &[f32], id: u32, count: usize) -> Self {
        let softmax = LogSoftmax::new(logits);
        let top = likeliest(logits, count).into_iter().map(|(id, logit)| (id, softmax.of(logit))).collect();
        TokenLogprobs { id, logprob: logits.get(id as usize).map_or(f64::NAN, |logit| softmax.of(*logit)), top }
    }
}

/// `ln softmax` of a row of logits. The sum is taken in f64 by ascending id, so that it depends on nothing but the logits.
pub(crate) struct LogSoftmax {
    max: f32,
    /// The likeliest token, the lowest id among equals.
    pub best: Option<u32>,
    ln_sum: f64,
}

impl LogSoftmax {
    pub fn new(logits: &[f32]) -> Self {
        let (mut best, mut max) = (None, f32::NEG_INFINITY);
        for (id, value) in logits.iter().enumerate() {
            if *value > max {
                (max, best) = (*value, Some(id as u32));
            }
        }
        let sum: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
        LogSoftmax { max, best, ln_sum: sum.ln() }
    }

    /// The log-probability of a token with this logit.
    pub fn of(&self, logit: f32) -> f64 {
        f64::from(logit - self.max) - self.ln_sum
    }
}

/// The `count` largest logits with their ids, largest first, the lower id first among equals.
fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let count = count.min(logits.len());
    if count == 0 {
        return Vec::new();
    }
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    // What cannot be among them is thrown out now and then, so that a large vocabulary is read once and never sorted.
    let limit = count.saturating_mul(4).max(256);
    let mut kept: Vec<(u32, f32)> = Vec::with_capacity(limit.min(logits.len()));
    let mut least = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        if kept.len() < count || logit > least {
            kept.push((id, logit));
        }
        if kept.len() >= limit {
            kept.select_nth_unstable_by(count - 1, order);
            kept.truncate(count);
            least = kept.iter().map(|k| k.1).fold(f32::INFINITY, f32::min);
        }
    }
    kept.sort_unstable_by(order);
    kept.truncate(count);
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn log_probabilities_are_those_of_a_softmax() {
        let logits = [1.0f32, 3.0, 3.0, -2.0];
        let total: f64 = logits.iter().map(|v| f64::from(*v).exp()).sum();
        for (id, logit) in (0..).zip(logits) {
            let all = TokenLogprobs::new(&logits, id, 3);
            assert!((all.logprob - (f64::from(logit) - total.ln())).abs() < 1e-12);
            assert_eq!(all.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0]);
            assert_eq!(all.top[0].1, all.top[1].1);
        }
        assert_eq!(LogSoftmax::new(&logits).best, Some(1));
        assert!(LogSoftmax::new(&[1e30, 0.0]).of(0.0) < -1e29);
        assert!(TokenLogprobs::new(&logits, 4, 0).logprob.is_nan());
        assert_eq!(
            TokenLogprobs::new(&[f32::NEG_INFINITY, 0.0], 0, 9),
            TokenLogprobs { id: 0, logprob: f64::NEG_INFINITY, top: vec![(1, 0.0), (0, f64::NEG_INFINITY)] }
        );
    }

    proptest! {
        #[test]
        fn the_likeliest_are_the_first_of_a_sorted_list(values in prop::collection::vec(-20i8..20, 0..2000), count in 0usize..40) {
            let logits: Vec<f32> = values.iter().map(|v| f32::from(*v)).collect();
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            sorted.truncate(count);
            prop_assert_eq!(likeliest(&logits, count), sorted);
        }
    }
}
