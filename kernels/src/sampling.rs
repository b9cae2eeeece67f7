//! From logits to a token: repetition penalty, temperature, top-k, top-p and min-p, in the order of transformers' `generate()`; after the repetition
//! penalty, what OpenAI's interface adds to single scores: logit bias, frequency and presence penalty.
//!
//! The arithmetic follows its logits processors: scores and probabilities in f32, sums of probabilities in f64 rounded to f32 where they are compared.
//! Candidates are selected, not sorted, so a vocabulary of 150,000 entries costs little more than reading it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rng::{Purpose, join, philox4x32_10, split, stream_key, uniform_f64};

/// How to sample. The default changes nothing: plain softmax.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingParams {
    /// Divides positive and multiplies negative scores of tokens that occurred before (Keskar et al. 2019). Over 0; 1 is off.
    pub repetition_penalty: f64,
    /// Taken from the score of every token of the answer so far. At most 100 either way; 0 is off, and is left out where settings are written down.
    #[serde(skip_serializing_if = "is_zero")]
    pub presence_penalty: f64,
    /// The same, as many times as the token occurs in the answer.
    #[serde(skip_serializing_if = "is_zero")]
    pub frequency_penalty: f64,
    /// Divides the scores. 0 takes the best token, the lowest id among equals, and leaves the rest without effect but for the penalties.
    pub temperature: f64,
    /// Keeps the tokens whose score is not below the k-th best, so more than k where scores are equal. 0 is off.
    pub top_k: u32,
    /// Keeps the smallest set of best tokens whose probability reaches this (Holtzman et al. 2020), at least one. In [0, 1]; 1 is off.
    pub top_p: f64,
    /// Drops tokens less probable than this share of the best one's probability (Nguyen et al. 2024). In [0, 1]; 0 is off.
    pub min_p: f64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// The most that a bias or one of the additive penalties may add or take away.
pub const MOST_BIAS: f64 = 100.0;

impl Default for SamplingParams {
    fn default() -> Self {
        Self { repetition_penalty: 1.0, presence_penalty: 0.0, frequency_penalty: 0.0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl SamplingParams {
    /// The best token at every step.
    #[must_use]
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the scores do not depend on what was said before.
    #[must_use]
    pub fn has_no_penalties(&self) -> bool {
        self.repetition_penalty == 1.0 && self.presence_penalty == 0.0 && self.frequency_penalty == 0.0
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting outside of its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let additive = |x: f64| (-MOST_BIAS..=MOST_BIAS).contains(&x);
        let checks = [
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty <= 1e6,
                "over 0 and at most 1e6",
            ),
            ("presence_penalty", self.presence_penalty, additive(self.presence_penalty), "from -100 to 100"),
            ("frequency_penalty", self.frequency_penalty, additive(self.frequency_penalty), "from -100 to 100"),
            ("temperature", self.temperature, (0.0..=1e6).contains(&self.temperature), "from 0 to 1e6"),
            ("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "from 0 to 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
        ];
        match checks.into_iter().find(|c| !c.2) {
            Some((name, value, _, range)) => Err(SamplingError::Setting { name, value, range }),
            None => Ok(()),
        }
    }
}

/// What the next token of a row of logits is drawn by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Settings.
    pub params: SamplingParams,
    /// The number in [0, 1) that decides.
    pub uniform: f64,
}

/// Why no token can be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// A setting outside of its range.
    #[error("{name} is {value}; it must be {range}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        range: &'static str,
    },
    /// A logit that is NaN or +infinity.
    #[error("the logit of token {id} is {value}: the model's output is broken")]
    BadLogit {
        /// The token.
        id: usize,
        /// Its logit.
        value: f32,
    },
    /// No token has a logit over -infinity, or there are no logits.
    #[error("none of the {vocabulary} tokens can be drawn: all their logits are -infinity")]
    Nothing {
        /// How many logits there are.
        vocabulary: usize,
    },
    /// A token of the history, or with a bias, that the model does not have.
    #[error("token {id} of the history or of a bias is outside of the vocabulary of {vocabulary}")]
    History {
        /// The token.
        id: u32,
        /// How many logits there are.
        vocabulary: usize,
    },
}

/// Where a draw stands, so that it depends on nothing else: not on the batch, the threads or what other samples drew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DrawStream {
    /// The seed of the run.
    pub seed: u64,
    /// Which sample of the data.
    pub sample: u64,
    /// Which of several answers to it.
    pub repeat: u32,
}

impl DrawStream {
    /// The number in [0, 1) for the token at `position` of the answer.
    #[must_use]
    pub fn uniform(&self, position: u32) -> f64 {
        let [sample_low, sample_high] = split(self.sample);
        let words = philox4x32_10([position, self.repeat, sample_low, sample_high], stream_key(self.seed, Purpose::Sampling));
        uniform_f64(join(words[0], words[1]))
    }
}

/// A token that can be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    /// Its id.
    id: u32,
    /// Its processed score.
    score: f32,
    /// exp(score - best score).
    weight: f32,
}

/// What penalties and biases are about. A list of tokens alone is a prompt without an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'a> {
    /// The prompt and the answer so far, for the repetition penalty.
    pub history: &'a [u32],
    /// How many tokens of it are the prompt: the other additive penalties are about the answer.
    pub prompt: usize,
    /// What is added to the scores of single tokens.
    pub bias: &'a [(u32, f32)],
}

impl<'a, T: AsRef<[u32]> + ?Sized> From<&'a T> for Said<'a> {
    fn from(history: &'a T) -> Self {
        let history = history.as_ref();
        Self { history, prompt: history.len(), bias: &[] }
    }
}

/// Processes logits and draws tokens; keeps its buffers between calls.
#[derive(Clone, Debug, Default)]
pub struct Sampler {
    scores: Vec<f32>,
    /// After [`Sampler::process`]: what is left, by ascending id.
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler with empty buffers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Draws a token by `stream` at `position`, given what was said so far.
    ///
    /// # Errors
    /// Settings out of range, logits that are NaN or +infinity, or nothing to draw from.
    pub fn sample<'a>(
        &mut self,
        logits: &[f32],
        said: impl Into<Said<'a>>,
        params: &SamplingParams,
        stream: &DrawStream,
        position: u32,
    ) -> Result<u32, SamplingError> {
        self.process(logits, said.into(), params)?;
        if let [only] = self.candidates.as_slice() {
            return Ok(only.id);
        }
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let target = stream.uniform(position) * total;
        let mut reached = 0.0;
        // Rounding cannot carry the target to the total, but were it to, the last token with any probability is right.
        let mut drawn = None;
        for c in self.candidates.iter().filter(|c| c.weight > 0.0) {
            reached += f64::from(c.weight);
            drawn = Some(c.id);
            if reached > target {
                break;
            }
        }
        drawn.ok_or(SamplingError::Nothing { vocabulary: logits.len() })
    }

    /// The probabilities of the tokens that can be drawn, by ascending id.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn distribution<'a>(
        &mut self,
        logits: &[f32],
        said: impl Into<Said<'a>>,
        params: &SamplingParams,
    ) -> Result<Vec<(u32, f32)>, SamplingError> {
        self.process(logits, said.into(), params)?;
        let total = total_weight(&self.candidates);
        Ok(self.candidates.iter().map(|c| (c.id, c.weight / total)).collect())
    }

    fn process(&mut self, logits: &[f32], said: Said<'_>, params: &SamplingParams) -> Result<(), SamplingError> {
        params.validate()?;
        let nothing = SamplingError::Nothing { vocabulary: logits.len() };
        self.penalise(logits, said.history, params.repetition_penalty as f32)?;
        self.add(said, params)?;
        let candidates = &mut self.candidates;
        candidates.clear();
        let best = argmax(&self.scores).ok_or_else(|| nothing.clone())?;
        let temperature = params.temperature as f32;
        if temperature != 1.0 {
            // A tiny temperature carries the best score to infinity; its limit is the best token, as for 0.
            if temperature == 0.0 || self.scores.get(best as usize).is_none_or(|s| !(s / temperature).is_finite()) {
                candidates.push(Candidate { id: best, score: 0.0, weight: 1.0 });
                return Ok(());
            }
            self.scores.iter_mut().for_each(|s| *s /= temperature);
        }
        match params.top_k as usize {
            k if k > 0 && k < self.scores.len() => select_top_k(&self.scores, k, candidates),
            _ => candidates.extend(finite(&self.scores)),
        }
        let top = candidates.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.score));
        candidates.iter_mut().for_each(|c| c.weight = (c.score - top).exp());
        if params.top_p < 1.0 {
            keep_top_p(candidates, params.top_p);
        }
        if params.min_p > 0.0 {
            let total = total_weight(candidates);
            let least = params.min_p as f32 * (1.0 / total);
            candidates.retain(|c| c.weight / total >= least || c.score == top);
        }
        candidates.sort_unstable_by_key(|c| c.id);
        Ok(())
    }

    /// Copies the logits and applies the repetition penalty, once per token however often it occurred.
    fn penalise(&mut self, logits: &[f32], history: &[u32], penalty: f32) -> Result<(), SamplingError> {
        let bad = |x: &f32| x.is_nan() || *x == f32::INFINITY;
        if let Some((id, value)) = logits.iter().enumerate().find(|(_, x)| bad(x)) {
            return Err(SamplingError::BadLogit { id, value: *value });
        }
        self.scores.clear();
        self.scores.extend_from_slice(logits);
        if penalty == 1.0 {
            return Ok(());
        }
        for &id in history {
            match (self.scores.get_mut(id as usize), logits.get(id as usize)) {
                // From the logit, not from the score: so a second occurrence changes nothing.
                (Some(score), Some(&x)) => *score = (if x < 0.0 { x * penalty } else { x / penalty }).min(f32::MAX),
                _ => return Err(SamplingError::History { id, vocabulary: logits.len() }),
            }
        }
        Ok(())
    }

    /// Adds biases and takes away the penalties of the answer's tokens.
    fn add(&mut self, said: Said<'_>, params: &SamplingParams) -> Result<(), SamplingError> {
        let vocabulary = self.scores.len();
        let mut add = |id: u32, amount: f32| match self.scores.get_mut(id as usize) {
            Some(score) => {
                *score = (*score + amount).min(f32::MAX);
                Ok(())
            }
            None => Err(SamplingError::History { id, vocabulary }),
        };
        for (id, bias) in said.bias {
            if !(-MOST_BIAS..=MOST_BIAS).contains(&f64::from(*bias)) {
                let (name, value, range) = ("logit_bias", f64::from(*bias), "from -100 to 100");
                return Err(SamplingError::Setting { name, value, range });
            }
            add(*id, *bias)?;
        }
        if params.presence_penalty == 0.0 && params.frequency_penalty == 0.0 {
            return Ok(());
        }
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for id in said.history.get(said.prompt..).unwrap_or_default() {
            *counts.entry(*id).or_default() += 1;
        }
        for (id, count) in counts {
            add(id, -(params.presence_penalty + params.frequency_penalty * f64::from(count)) as f32)?;
        }
        Ok(())
    }
}

/// The probability of every token after all processing; zero for those that cannot be drawn.
///
/// # Errors
/// As [`Sampler::sample`].
pub fn probabilities<'a>(logits: &[f32], said: impl Into<Said<'a>>, params: &SamplingParams) -> Result<Vec<f32>, SamplingError> {
    let mut all = vec![0.0; logits.len()];
    for (id, p) in Sampler::new().distribution(logits, said, params)? {
        if let Some(slot) = all.get_mut(id as usize) {
            *slot = p;
        }
    }
    Ok(all)
}

/// The best token, the lowest id among equals; none if all scores are -infinity.
fn argmax(scores: &[f32]) -> Option<u32> {
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if best == f32::NEG_INFINITY {
        return None;
    }
    scores.iter().position(|s| *s == best).and_then(|i| u32::try_from(i).ok())
}

/// All tokens that are not impossible.
fn finite(scores: &[f32]) -> impl Iterator<Item = Candidate> + '_ {
    (0..).zip(scores).filter(|(_, s)| **s > f32::NEG_INFINITY).map(|(id, &score)| Candidate { id, score, weight: 0.0 })
}

fn total_weight(candidates: &[Candidate]) -> f32 {
    candidates.iter().map(|c| f64::from(c.weight)).sum::<f64>() as f32
}

/// Best first; the lower id first among equals, so that a cut between equals is the same everywhere.
fn best_first(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

/// Keeps the tokens that are not below the k-th best score, `k` from 1: one pass that collects what reaches the k-th best so far and now and then
/// throws out what no longer does.
fn select_top_k(scores: &[f32], k: usize, out: &mut Vec<Candidate>) {
    fn prune(out: &mut Vec<Candidate>, k: usize) -> f32 {
        let (_, kth, _) = out.select_nth_unstable_by(k - 1, best_first);
        let kth = kth.score;
        out.retain(|c| c.score >= kth);
        kth
    }
    let mut limit = k.saturating_mul(4).max(256);
    let mut least = f32::NEG_INFINITY;
    for (id, &score) in (0..).zip(scores) {
        if score >= least && score > f32::NEG_INFINITY {
            out.push(Candidate { id, score, weight: 0.0 });
            if out.len() >= limit {
                least = prune(out, k);
                // Equal scores are all kept, and must not be looked through again at every push.
                limit = limit.max(out.len().saturating_mul(2));
            }
        }
    }
    if out.len() > k {
        prune(out, k);
    }
}

/// Keeps the best tokens up to a probability of `top_p`. transformers sums from the least probable up and drops what stays within
/// `1 - top_p`; summing from the best down instead touches only the tokens that are kept.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    let total = total_weight(candidates);
    let mass: f64 = candidates.iter().map(|c| f64::from(c.weight / total)).sum();
    let dropped = (1.0 - top_p) as f32;
    let mut before = 0.0;
    let mut sorted = 0;
    let mut chunk = 256;
    while sorted < candidates.len() {
        let rest = candidates.get_mut(sorted..).unwrap_or_default();
        let rest = if chunk < rest.len() {
            rest.select_nth_unstable_by(chunk - 1, best_first);
            rest.split_at_mut(chunk).0
        } else {
            rest
        };
        rest.sort_unstable_by(best_first);
        for (i, c) in rest.iter().enumerate() {
            if sorted + i > 0 && (mass - before) as f32 <= dropped {
                candidates.truncate(sorted + i);
                return;
            }
            before += f64::from(c.weight / total);
        }
        sorted += rest.len();
        chunk *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use trainer_test_support as reference;

    const NONE: &[u32] = &[];

    fn params(value: &serde_json::Value) -> SamplingParams {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn reference_sampling_probabilities() {
        let tensors = reference::tensors("sampling/sampling.safetensors");
        let cases = reference::jsonl("sampling/cases.jsonl");
        let mut largest = 0.0;
        let mut seen = std::collections::BTreeSet::new();
        for case in &cases {
            let id = case["id"].as_str().unwrap();
            let logits = tensors[&format!("logits.{}", case["logits"].as_str().unwrap())].f32();
            let key = format!("probs.{id}");
            let mut want = tensors[&key].f32();
            let history: Vec<u32> = serde_json::from_value(case["history"].clone()).unwrap();
            let mut got = probabilities(&logits, &history, &params(&case["params"])).unwrap();
            if case["equal_logits_present"].as_bool().unwrap() {
                want.sort_by(f32::total_cmp);
                got.sort_by(f32::total_cmp);
            }
            let diff = reference::max_abs_diff(&got, &want);
            assert!(diff <= 2e-6, "{id}: differs by {diff}; {}", case["params"]);
            assert_eq!(got.iter().filter(|p| **p > 0.0).count() as u64, case["kept"].as_u64().unwrap(), "{id}: {}", case["params"]);
            largest = f32::max(largest, diff);
            seen.insert(key);
        }
        let stored = tensors.keys().filter(|k| k.starts_with("probs.")).count();
        assert_eq!(seen.len(), stored, "every stored distribution has a case");
        println!("{} cases, largest difference {largest:e}", cases.len());
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let p = SamplingParams { top_p: 1.5, ..Default::default() };
        assert_eq!(p.validate().unwrap_err().to_string(), "top_p is 1.5; it must be from 0 to 1");
        for p in [
            SamplingParams { temperature: -1.0, ..Default::default() },
            SamplingParams { temperature: f64::NAN, ..Default::default() },
            SamplingParams { repetition_penalty: 0.0, ..Default::default() },
            SamplingParams { min_p: -0.1, ..Default::default() },
        ] {
            assert!(probabilities(&[0.0], NONE, &p).is_err(), "{p:?}");
        }
        assert!(serde_json::from_str::<SamplingParams>(r#"{"top_q": 1}"#).unwrap_err().to_string().contains("top_q"));
    }

    #[test]
    fn broken_logits_are_errors() {
        let p = SamplingParams::default();
        let e = probabilities(&[0.0, f32::NAN], NONE, &p).unwrap_err();
        assert!(matches!(e, SamplingError::BadLogit { id: 1, .. }), "{e}");
        assert!(matches!(probabilities(&[f32::INFINITY], NONE, &p), Err(SamplingError::BadLogit { id: 0, .. })));
        assert_eq!(probabilities(&[f32::NEG_INFINITY; 3], NONE, &p), Err(SamplingError::Nothing { vocabulary: 3 }));
        assert_eq!(probabilities(&[], NONE, &SamplingParams::greedy()), Err(SamplingError::Nothing { vocabulary: 0 }));
        let penalty = SamplingParams { repetition_penalty: 1.1, ..p };
        assert_eq!(probabilities(&[0.0; 3], &[7_u32], &penalty), Err(SamplingError::History { id: 7, vocabulary: 3 }));
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals_after_the_penalty() {
        let p = probabilities(&[1.0, 3.0, 3.0], NONE, &SamplingParams::greedy()).unwrap();
        assert_eq!(p, [0.0, 1.0, 0.0]);
        let penalty = SamplingParams { repetition_penalty: 1.5, ..SamplingParams::greedy() };
        assert_eq!(probabilities(&[1.0, 3.0, 2.5], &[1_u32, 1], &penalty).unwrap(), [0.0, 0.0, 1.0]);
        // A temperature at which scores overflow is greedy too, also from below zero.
        let tiny = SamplingParams { temperature: 1e-40, ..Default::default() };
        assert_eq!(probabilities(&[1.0, 3.0, 2.5], NONE, &tiny).unwrap(), [0.0, 1.0, 0.0]);
        assert_eq!(probabilities(&[-1.0, -3.0], NONE, &tiny).unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn additive_penalties_are_about_the_answer_and_biases_about_any_token() {
        let greedy = SamplingParams::greedy();
        let best = |params: SamplingParams, said: Said<'_>| {
            let p = probabilities(&[1.0, 3.0, 2.5], said, &params).unwrap();
            p.iter().position(|x| *x == 1.0).unwrap()
        };
        let said = |history, prompt, bias| Said { history, prompt, bias };
        let presence = SamplingParams { presence_penalty: 0.6, ..greedy };
        let frequency = SamplingParams { frequency_penalty: 0.3, ..greedy };
        assert_eq!(best(presence, said(&[1, 1, 1], 3, &[])), 1, "a prompt's tokens are let be");
        assert_eq!(best(presence, said(&[1, 1, 1], 2, &[])), 2);
        assert_eq!((best(frequency, said(&[1], 0, &[])), best(frequency, said(&[1, 1], 0, &[]))), (1, 2), "each occurrence counts");
        assert_eq!(best(greedy, said(&[], 0, &[(0, 2.5)])), 0);
        assert_eq!(best(greedy, said(&[], 0, &[(1, -100.0)])), 2);
        assert!(!presence.has_no_penalties() && greedy.has_no_penalties());
        // log(p) moves by exactly what is added, so ratios do.
        let all = SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingParams::default() };
        let (with, without) = (
            probabilities(&[0.1, 0.2, 0.3], said(&[2, 0, 0], 1, &[(1, 0.75)]), &all).unwrap(),
            probabilities(&[0.1, 0.2, 0.3], NONE, &SamplingParams::default()).unwrap(),
        );
        for (a, b, moved) in [(0, 2, -1.0_f32), (1, 2, 0.75)] {
            assert!(((with[a] / with[b]) / (without[a] / without[b]) - moved.exp()).abs() < 1e-5, "{a} {b}");
        }
        let error = |said: Said<'_>| probabilities(&[0.0; 3], said, &all).unwrap_err();
        assert_eq!(error(said(&[], 0, &[(3, 1.0)])), SamplingError::History { id: 3, vocabulary: 3 });
        assert_eq!(error(said(&[], 0, &[(1, 101.0)])).to_string(), "logit_bias is 101; it must be from -100 to 100");
        assert!(SamplingParams { presence_penalty: f64::NAN, ..greedy }.validate().is_err());
        assert!(!serde_json::to_string(&greedy).unwrap().contains("presence"), "what is off is not written down");
    }

    /// What the module does by selection, done by sorting everything.
    fn by_sorting(logits: &[f32], p: &SamplingParams) -> Vec<f32> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let scores: Vec<f32> = logits.iter().map(|x| x / p.temperature as f32).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        if p.top_k > 0 && (p.top_k as usize) < order.len() {
            let kth = scores[order[p.top_k as usize - 1]];
            order.retain(|i| scores[*i] >= kth);
        }
        let softmax = |order: &[usize]| -> Vec<f32> {
            let top = scores[order[0]];
            let sum: f64 = order.iter().map(|i| f64::from((scores[*i] - top).exp())).sum();
            order.iter().map(|i| (scores[*i] - top).exp() / sum as f32).collect()
        };
        let probs = softmax(&order);
        if p.top_p < 1.0 {
            let mut keep = order.len();
            let mut sum = 0.0;
            for i in (1..order.len()).rev() {
                sum += f64::from(probs[i]);
                if sum as f32 <= (1.0 - p.top_p) as f32 {
                    keep = i;
                }
            }
            order.truncate(keep);
        }
        let probs = softmax(&order);
        let keep = probs.iter().filter(|x| **x >= p.min_p as f32 * probs[0]).count().max(1);
        order.truncate(keep);
        let mut out = vec![0.0; logits.len()];
        for (i, x) in order.iter().zip(softmax(&order)) {
            out[*i] = x;
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]
        #[test]
        fn selecting_is_sorting(
            logits in prop_oneof![
                prop::collection::vec((-40i32..40).prop_map(|x| x as f32 / 4.0), 1..700),
                prop::collection::vec(-20f32..20.0, 1..3000),
            ],
            temperature in prop_oneof![Just(1.0), 0.2f64..3.0], top_k in prop_oneof![Just(0u32), 1u32..400],
            top_p in prop_oneof![Just(1.0), 0.0f64..1.0], min_p in prop_oneof![Just(0.0), 0.0f64..1.0],
        ) {
            let p = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
            let (got, want) = (probabilities(&logits, NONE, &p).unwrap(), by_sorting(&logits, &p));
            for (id, (a, b)) in got.iter().zip(&want).enumerate() {
                prop_assert!((a - b).abs() <= 1e-6, "{} {} {}", id, a, b);
            }
        }
    }

    #[test]
    fn draws_follow_the_distribution_and_nothing_else() {
        let logits = [1.0, 2.0, 0.5, -1.0, 2.5, f32::NEG_INFINITY];
        let p = SamplingParams { temperature: 0.9, ..Default::default() };
        let want = probabilities(&logits, NONE, &p).unwrap();
        const N: u32 = 40_000;
        let mut counts = [0u32; 6];
        let mut sampler = Sampler::new();
        let stream = DrawStream { seed: 3407, sample: 11, repeat: 2 };
        for position in 0..N {
            counts[sampler.sample(&logits, NONE, &p, &stream, position).unwrap() as usize] += 1;
        }
        for (c, w) in counts.iter().zip(&want) {
            let error = (f64::from(*w) * (1.0 - f64::from(*w)) / f64::from(N)).sqrt();
            assert!((f64::from(*c) / f64::from(N) - f64::from(*w)).abs() <= 4.5 * error, "{counts:?} {want:?}");
        }
        // A draw is a function of its place: a fresh sampler in any order gives the same.
        for position in [77, 3, 0] {
            let again = Sampler::new().sample(&logits, NONE, &p, &stream, position).unwrap();
            assert_eq!(again, sampler.sample(&logits, NONE, &p, &stream, position).unwrap());
        }
        // Each part of the place matters.
        let u = stream.uniform(5);
        assert_ne!(u, stream.uniform(6));
        for other in [
            DrawStream { seed: 1, ..stream },
            DrawStream { sample: 12, ..stream },
            DrawStream { sample: 11 + (1 << 32), ..stream },
            DrawStream { repeat: 3, ..stream },
        ] {
            assert_ne!(u, other.uniform(5));
        }
    }

    /// `cargo test --release -p trainer-kernels -- --ignored --nocapture speed_of_sampling`
    #[test]
    #[ignore = "prints timings"]
    fn speed_of_sampling() {
        let stream = DrawStream { seed: 1, sample: 2, repeat: 3 };
        let logits: Vec<f32> =
            (0..151_936).map(|i| ((stream.uniform(i) + stream.uniform(i + 200_000) + stream.uniform(i + 400_000)) * 8.0) as f32).collect();
        let history: Vec<u32> = (0..2_000).collect();
        let usual = SamplingParams { temperature: 0.7, top_k: 20, top_p: 0.8, ..Default::default() };
        let mut sampler = Sampler::new();
        for (name, p) in [
            ("greedy", SamplingParams::greedy()),
            ("temperature 0.7, top-k 20, top-p 0.8", usual),
            ("the same with a penalty", SamplingParams { repetition_penalty: 1.05, ..usual }),
            ("top-p 0.9", SamplingParams { top_p: 0.9, ..Default::default() }),
            ("plain softmax", SamplingParams::default()),
        ] {
            let started = std::time::Instant::now();
            let mut sum = 0u64;
            for position in 0..200 {
                sum += u64::from(sampler.sample(&logits, &history, &p, &stream, position).unwrap());
            }
            println!("{name}: {:.0} us ({sum})", started.elapsed().as_secs_f64() * 1e6 / 200.0);
        }
    }
}
