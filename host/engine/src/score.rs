//! Log-likelihoods of given continuations.

use trainer_kernels::ops::Ops;

use crate::adapter::Adapter;
use crate::error::Result;
use crate::generate::{Generator, LogSoftmax, Piece, RequestError};

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
                    let softmax = LogSoftmax::new(logits);
                    score.sum_logprob += logits.get(*target as usize).map_or(f64::NAN, |logit| softmax.of(*logit));
                    score.is_greedy &= softmax.best == Some(*target);
                }
            }
        }
        Ok(())
    }
}
