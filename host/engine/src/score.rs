//! Log-likelihoods of given continuations.

use trainer_kernels::ops::Ops;

use crate::adapter::Adapter;
use crate::error::Result;
use crate::generate::{Generator, Piece, RequestError};

/// A continuation to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreRequest {
    /// The caller's name for it.
    pub id: u64,
    /// What comes before; at least one token.
    pub prompt_ids: Vec<u32>,
    /// What is scored.
    pub continuation_ids: Vec<u32>,
}

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// `Σ ln p(token | everything before)`.
    pub sum_logprob: f64,
    /// Tokens of the continuation.
    pub tokens: usize,
    /// Whether each token is the most likely one there (the lowest id among equals).
    pub is_greedy: bool,
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreResult {
    /// The request's name.
    pub id: u64,
    /// The score, or why there is none.
    pub score: std::result::Result<Score, RequestError>,
}

impl<O: Ops> Generator<O> {
    /// Scores continuations, several in a forward pass; results are in the order of the requests and do not depend on each other.
    ///
    /// # Errors
    /// Only what concerns all requests: a failing backend. What is wrong with one request is in its result.
    pub fn score(&mut self, adapter: Option<&Adapter<O>>, requests: &[ScoreRequest]) -> Result<Vec<ScoreResult>> {
        let model = self.model().clone();
        self.buffers.fit(model.ops(), model.dims(), adapter)?;
        let limit = self.options().prefill_tokens;
        let mut sequences = Vec::with_capacity(requests.len());
        for request in requests {
            sequences.push(self.sequence(request));
        }
        let mut scores: Vec<_> = sequences
            .iter()
            .zip(requests)
            .map(|(s, r)| {
                let score = Score { sum_logprob: 0.0, tokens: r.continuation_ids.len(), is_greedy: true };
                s.as_ref().map(|_| score).map_err(Clone::clone)
            })
            .collect();
        let mut queue = sequences.iter().zip(requests).zip(&mut scores).filter_map(|((s, r), score)| match (s, score) {
            // The last token's successor is not asked for, so its own row is not needed either.
            (Ok(ids), Ok(score)) if score.tokens > 0 => Some((ids.get(..ids.len() - 1)?, r, score)),
            _ => None,
        });
        let mut next = queue.next();
        while let Some((first, request, score)) = next.take() {
            if first.len() > limit {
                // Too long for one pass: through the cache, piece by piece.
                for (i, ids) in first.chunks(limit).enumerate() {
                    let start = i * limit;
                    self.pass(adapter, &[Piece { slot: 0, start, ids }])?;
                    self.add(&mut [(0, start, ids.len(), request, &mut *score)])?;
                }
                next = queue.next();
                continue;
            }
            let mut pieces = vec![Piece { slot: 0, start: 0, ids: first }];
            let mut total = first.len();
            let mut members = vec![(0, 0, first.len(), request, score)];
            for (ids, request, score) in queue.by_ref() {
                if total + ids.len() > limit || pieces.len() == self.options().slots {
                    next = Some((ids, request, score));
                    break;
                }
                members.push((total, 0, ids.len(), request, score));
                total += ids.len();
                pieces.push(Piece { slot: pieces.len() as u32, start: 0, ids });
            }
            self.pass(adapter, &pieces)?;
            self.add(&mut members)?;
            if next.is_none() {
                next = queue.next();
            }
        }
        drop(queue);
        Ok(requests.iter().zip(scores).map(|(r, score)| ScoreResult { id: r.id, score }).collect())
    }

    /// Prompt and continuation, if they can be scored.
    fn sequence(&self, request: &ScoreRequest) -> std::result::Result<Vec<u32>, RequestError> {
        if request.prompt_ids.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        let ids: Vec<u32> = request.prompt_ids.iter().chain(&request.continuation_ids).copied().collect();
        let limit = self.options().cache_length;
        if ids.len() - 1 > limit {
            return Err(RequestError::TooLong { tokens: ids.len(), limit });
        }
        let vocabulary = self.model().dims().vocab;
        match ids.iter().enumerate().find(|(_, id)| **id as usize >= vocabulary) {
            Some((position, id)) => Err(RequestError::UnknownToken { position, id: *id, vocabulary }),
            None => Ok(ids),
        }
    }

    /// Adds what the last pass says about the continuations. A member is its first row in the pass, the position of that row in its sequence, its number of
    /// rows, the request, and the score.
    fn add(&mut self, members: &mut [(usize, usize, usize, &ScoreRequest, &mut Score)]) -> Result<()> {
        let vocabulary = self.model().dims().vocab;
        let chunk_rows = self.buffers.last_rows;
        let mut wanted = Vec::new();
        for (member, (row, start, len, request, _)) in members.iter().enumerate() {
            // The row of position p predicts the token at p + 1.
            let first_target = request.prompt_ids.len() - 1;
            for p in first_target.max(*start)..start + len {
                let Some(target) = request.continuation_ids.get(p - first_target) else { break };
                wanted.push((member, (row + p - start) as u32, *target));
            }
        }
        for chunk in wanted.chunks(chunk_rows) {
            let rows: Vec<u32> = chunk.iter().map(|w| w.1).collect();
            let logits = self.logits(&rows)?;
            for ((member, _, target), logits) in chunk.iter().zip(logits.chunks_exact(vocabulary)) {
                if let Some((.., score)) = members.get_mut(*member) {
                    let (logprob, best) = log_probability(logits, *target);
                    score.sum_logprob += logprob;
                    score.is_greedy &= best == Some(*target);
                }
            }
        }
        Ok(())
    }
}

/// `ln softmax(logits)[target]` in f64, and the best token.
fn log_probability(logits: &[f32], target: u32) -> (f64, Option<u32>) {
    let mut best = None;
    let mut max = f32::NEG_INFINITY;
    for (id, value) in logits.iter().enumerate() {
        if *value > max {
            (max, best) = (*value, Some(id as u32));
        }
    }
    let sum: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    let value = logits.get(target as usize).map_or(f64::NAN, |v| f64::from(v - max));
    (value - sum.ln(), best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_a_softmax() {
        let logits = [1.0f32, 3.0, 3.0, -2.0];
        let total: f64 = logits.iter().map(|v| f64::from(*v).exp()).sum();
        for (id, logit) in logits.iter().enumerate() {
            let (logprob, best) = log_probability(&logits, id as u32);
            assert!((logprob - (f64::from(*logit) - total.ln())).abs() < 1e-12);
            assert_eq!(best, Some(1));
        }
        assert!(log_probability(&[1e30, 0.0], 1).0 < -1e29);
    }
}
