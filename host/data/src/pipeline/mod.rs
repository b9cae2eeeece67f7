//! The pipeline: decisions of the mixing policy to samples, in order whatever the number of threads.
//!
//! The sequence of samples is that of the policy's decisions with the rows that give none left out: a skipped or bad row is replaced by
//! the decision after it. Threads compute what each draw gives; nothing they do can change the order, what is counted, or the state.

mod decide;
pub(crate) mod pool;
mod spec;
mod state;
mod trace;
pub(crate) mod worker;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

pub use self::spec::{FeedbackPlan, NoTarget, PipelineSpec, SourceInput, TooLong, TrainOn, TruncationSide};
pub use self::state::{Counters, PendingFeedback, PipelineState, SourcePosition};
pub use self::trace::{Fate, RowTrace, SampleTrace, Tracer};

use self::decide::{Decider, Standing};
use self::pool::Pool;
use self::worker::{Failure, Outcome, Stages};
use crate::error::{DataError, MaxBadRows};
use crate::pack::Sample;
use crate::source::RowView;
use crate::stages::SourceLoss;

/// The format of `PipelineState`.
const STATE_VERSION: u32 = 1;
/// Draws without a sample that end a run over very short sources.
const BARREN_SHORTEST: u64 = 1_000;

/// A stream of samples that can be stopped and continued at any of them.
///
/// Memory is bounded by `read_ahead` draws (and the caches of the sources). Dropping it stops and joins its threads.
pub struct Pipeline {
    seed: u64,
    data: String,
    read_ahead: u64,
    block: u64,
    batch: usize,
    bad_examples: usize,
    max_bad_rows: u64,
    barren_limit: u64,
    feedback: Option<FeedbackPlan>,
    decider: Decider,
    pool: Pool,
    /// Batches submitted, and the number of the next to be consumed.
    submitted: u64,
    consumed: u64,
    finished: BTreeMap<u64, Vec<Outcome>>,
    /// Outcomes in order, the next to be handed out first.
    ready: VecDeque<Outcome>,
    /// Samples of all draws whose outcome is known.
    produced: u64,
    cursor: Cursor,
    waited: Duration,
    /// What went wrong while reading ahead, for when the samples before it have been handed out.
    deferred: Option<DataError>,
    failed: bool,
}

/// What moves as samples are handed out.
#[derive(Clone, Debug, Default)]
struct Cursor {
    draws: u64,
    within: u32,
    barren: u64,
    counters: Counters,
}

impl Pipeline {
    /// Begins at the first draw. Errors: settings that make no sense, a policy that refuses its setup.
    pub fn new(spec: PipelineSpec) -> Result<Self, DataError> {
        Self::build(spec, None)
    }

    /// Continues after the samples handed out when `state` was taken; the spec must be the same except for `workers`, `read_ahead` and
    /// `format_batch`, which change nothing. Errors: a state of other data or of another seed, and those of `new`.
    pub fn resume(spec: PipelineSpec, state: &PipelineState) -> Result<Self, DataError> {
        Self::build(spec, Some(state))
    }

    fn build(spec: PipelineSpec, state: Option<&PipelineState>) -> Result<Self, DataError> {
        spec.check()?;
        let data = describe(&spec);
        if let Some(state) = state {
            check_state(&spec, state, &data)?;
        }
        let resume = state.map(|s| {
            let (mixer, sources) = (s.mixer.clone(), s.sources.clone());
            (Standing { draws: s.draws, mixer, sources, step: s.step, round_left: s.round_left }, s.feedback.clone())
        });
        let cursor = state.map_or_else(Cursor::default, |s| Cursor {
            draws: s.draws,
            within: s.within,
            barren: s.barren,
            counters: s.counters.clone(),
        });
        let prepared = spec.prepared.as_ref().map(|store| store.find(&spec)).unwrap_or_default();
        let ready: Vec<bool> = prepared.iter().map(Option::is_some).collect();
        let decider = Decider::new(spec.mixer.clone(), &spec.sources, &ready, spec.seed, spec.feedback, spec.max_draws, resume)?;
        let workers = spec.worker_count();
        let pool = Pool::new(Stages::new(&spec).with_prepared(prepared), workers)?;
        let rows = spec.sources.iter().fold(0u64, |sum, s| sum.saturating_add(s.source.len()));
        // With the read-ahead below a batch, one batch must still not hold all of it, or the threads would take turns.
        let fair = spec.read_ahead.div_ceil(workers.max(1));
        Ok(Self {
            seed: spec.seed,
            data,
            read_ahead: spec.read_ahead as u64,
            block: (spec.format_batch.max(64)).min(spec.read_ahead) as u64,
            batch: spec.format_batch.min(fair).max(1),
            bad_examples: spec.bad_examples,
            max_bad_rows: spec.max_bad_rows,
            barren_limit: if spec.may_be_barren { u64::MAX } else { rows.saturating_mul(2).max(BARREN_SHORTEST) },
            feedback: spec.feedback,
            decider,
            pool,
            submitted: 0,
            consumed: 0,
            finished: BTreeMap::new(),
            ready: VecDeque::new(),
            produced: cursor.counters.samples.saturating_sub(u64::from(cursor.within)),
            cursor,
            waited: Duration::ZERO,
            deferred: None,
            failed: false,
        })
    }

    /// The next `n` samples; fewer only at the end of the data. Blocks until they are there.
    ///
    /// Errors: a bad row beyond `max_bad_rows`, an unreadable file, a failing plugin, under feedback a step asked for before the
    /// feedback it depends on. An error ends the pipeline; its state is then that before the call.
    pub fn next_samples(&mut self, n: usize) -> Result<Vec<Sample>, DataError> {
        if self.failed {
            return Err(DataError::Settings("the data pipeline has failed before; resume from its state".to_owned()));
        }
        let mut out = Vec::with_capacity(n.min(1 << 16));
        let saved = self.cursor.clone();
        match self.collect(n, &mut out) {
            Ok(()) => {
                self.decider.prune(self.cursor.draws);
                // Gives the threads work for the time in which the samples are trained on.
                self.pump();
                Ok(out)
            }
            Err(error) => {
                self.failed = true;
                self.cursor = saved;
                Err(error)
            }
        }
    }

    fn collect(&mut self, n: usize, out: &mut Vec<Sample>) -> Result<(), DataError> {
        while out.len() < n {
            let Some(outcome) = self.ready.front_mut() else {
                if !self.refill()? {
                    break;
                }
                continue;
            };
            let (source, file, row) = (outcome.source, outcome.file.clone(), outcome.row);
            let cursor = &mut self.cursor;
            match &mut outcome.result {
                Ok(parts) => {
                    // Samples handed out before are counted but not given again.
                    let mut seen = 0u32;
                    for part in parts.iter_mut() {
                        let Ok(part) = part else { continue };
                        seen = seen.saturating_add(1);
                        if seen <= cursor.within {
                            continue;
                        }
                        if out.len() == n {
                            break;
                        }
                        let counters = &mut cursor.counters;
                        let prepared = std::mem::take(part);
                        let sample = Sample {
                            ids: prepared.ids,
                            weights: prepared.weights,
                            source,
                            file: file.clone(),
                            row,
                            draw: cursor.draws,
                            index: counters.samples,
                        };
                        counters.samples += 1;
                        counters.tokens = counters.tokens.saturating_add(sample.ids.len() as u64);
                        let targets = sample.weights.iter().skip(1).filter(|&&w| w > 0.0).count() as u64;
                        counters.target_tokens = counters.target_tokens.saturating_add(targets);
                        counters.truncated += u64::from(prepared.truncated);
                        cursor.within = seen;
                        cursor.barren = 0;
                        out.push(sample);
                    }
                    // The last call's share ends inside this draw.
                    if parts.iter().filter(|p| p.is_ok()).count() as u64 > u64::from(cursor.within) {
                        break;
                    }
                    if cursor.within == 0 {
                        cursor.barren += 1;
                    }
                }
                Err(_) => cursor.barren += 1,
            }
            let Some(outcome) = self.ready.pop_front() else { break };
            self.close(outcome)?;
        }
        Ok(())
    }

    /// Counts a draw whose samples have all been handed out, and moves past it.
    fn close(&mut self, outcome: Outcome) -> Result<(), DataError> {
        let cursor = &mut self.cursor;
        cursor.draws += 1;
        cursor.within = 0;
        cursor.counters.rows += 1;
        cursor.counters.formatted += u64::from(outcome.formatted);
        match outcome.result {
            Ok(parts) => parts.iter().filter_map(|p| p.as_ref().err()).for_each(|reason| cursor.counters.skip(reason)),
            Err(Failure::Skip(reason)) => cursor.counters.skip(&reason),
            Err(Failure::Bad(row)) => {
                let count = cursor.counters.bad_rows().saturating_add(1);
                if count > self.max_bad_rows {
                    return Err(DataError::BadRows { row: Box::new(row), count, max: MaxBadRows(self.max_bad_rows) });
                }
                tracing::warn!(%row, "bad row");
                cursor.counters.bad(row, self.bad_examples);
            }
            Err(Failure::Fatal(error)) => return Err(error),
        }
        if cursor.barren >= self.barren_limit {
            let counters = &cursor.counters;
            let bad = counters.bad.iter().map(|(kind, n)| (*n, kind.to_string()));
            let mut reasons: Vec<(u64, String)> = counters.skipped.iter().map(|(r, n)| (*n, r.clone())).chain(bad).collect();
            reasons.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
            let reasons = reasons.iter().take(5).map(|(n, r)| format!("{r}: {n}")).collect::<Vec<_>>().join(", ");
            return Err(DataError::Barren { draws: cursor.barren, reasons });
        }
        Ok(())
    }

    /// Makes `ready` hold something; false at the end of the data.
    fn refill(&mut self) -> Result<bool, DataError> {
        loop {
            self.pump();
            if !self.ready.is_empty() {
                return Ok(true);
            }
            if self.outstanding() == 0 {
                if let Some(error) = self.deferred.take() {
                    return Err(error);
                }
                if self.decider.ended {
                    return Ok(false);
                }
                let step = self.fill_step();
                if let Some(awaited) = self.decider.awaits(step) {
                    let lag = self.feedback.map_or(0, |f| f.lag);
                    let message = format!(
                        "the samples of step {step} depend on the feedback of step {awaited} (lag {lag}), which has not been given"
                    );
                    return Err(DataError::Feedback(message));
                }
                continue;
            }
            let start = Instant::now();
            let received = self.pool.receive();
            self.waited = self.waited.saturating_add(start.elapsed());
            let (number, outcomes) = received?;
            self.produced = self.produced.saturating_add(outcomes.iter().map(Outcome::samples).sum());
            self.finished.insert(number, outcomes);
            while let Some(outcomes) = self.finished.remove(&self.consumed) {
                self.ready.extend(outcomes);
                self.consumed += 1;
            }
        }
    }

    /// Batches that have been submitted and not received.
    fn outstanding(&self) -> u64 {
        self.submitted - self.consumed - self.finished.len() as u64
    }

    /// Decides and submits as far as the read-ahead and the feedback allow.
    fn pump(&mut self) {
        if self.deferred.is_none()
            && let Err(error) = self.try_pump()
        {
            self.deferred = Some(error);
        }
    }

    fn try_pump(&mut self) -> Result<(), DataError> {
        while !self.decider.ended {
            let (n, step) = match self.feedback {
                None => {
                    let room = self.read_ahead.saturating_sub(self.decider.decided.saturating_sub(self.cursor.draws));
                    if room < self.block {
                        return Ok(());
                    }
                    (self.block, 0)
                }
                Some(_) if self.decider.round_left > 0 => (self.decider.round_left, self.decider.step),
                Some(plan) => {
                    // Whether the step is full is known only when all of its outcomes are.
                    let ahead = self.produced.saturating_sub(self.cursor.counters.samples);
                    if self.outstanding() > 0 || ahead >= self.read_ahead {
                        return Ok(());
                    }
                    let step = self.fill_step();
                    if self.decider.awaits(step).is_some() {
                        return Ok(());
                    }
                    (step.saturating_mul(u64::from(plan.samples_per_step)).saturating_sub(self.produced), step)
                }
            };
            let mut tasks = self.decider.decide(n, step)?.into_iter();
            loop {
                let batch: Vec<_> = tasks.by_ref().take(self.batch).collect();
                if batch.is_empty() {
                    break;
                }
                self.pool.submit(self.submitted, batch)?;
                self.submitted += 1;
            }
        }
        Ok(())
    }

    /// Under feedback: the first step that has fewer samples than it needs, counting all whose outcome is known.
    fn fill_step(&self) -> u64 {
        let per = self.feedback.map_or(1, |f| u64::from(f.samples_per_step).max(1));
        (self.produced / per).saturating_add(1)
    }

    /// Tells the policy what training saw in `step` (from 1, each step once, in order). See `FeedbackPlan`.
    pub fn feedback(&mut self, step: u64, sources: &[SourceLoss]) -> Result<(), DataError> {
        let plan = self.feedback.ok_or_else(|| DataError::Feedback("the run was set up without it (`feedback`)".to_owned()))?;
        if step.saturating_mul(u64::from(plan.samples_per_step)) > self.cursor.counters.samples {
            return Err(DataError::Feedback(format!("step {step} was given before all of its samples were handed out")));
        }
        self.decider.give(PendingFeedback { step, sources: sources.to_vec() })
    }

    /// The state after the samples handed out so far. It asks the policy again for what it decided since its last snapshot.
    pub fn state(&mut self) -> Result<PipelineState, DataError> {
        let (standing, feedback) = self.decider.standing(self.cursor.draws)?;
        Ok(PipelineState {
            version: STATE_VERSION,
            seed: self.seed,
            data: self.data.clone(),
            draws: standing.draws,
            within: self.cursor.within,
            mixer: standing.mixer,
            sources: standing.sources,
            step: standing.step,
            round_left: standing.round_left,
            barren: self.cursor.barren,
            feedback,
            counters: self.cursor.counters.clone(),
        })
    }

    /// What has been counted, as of the samples handed out.
    pub fn counters(&self) -> &Counters {
        &self.cursor.counters
    }

    /// How many draws make one pass over the mix, if the policy has such a thing.
    pub fn epoch_length(&mut self) -> Result<Option<u64>, DataError> {
        self.decider.epoch_length()
    }

    /// How long `next_samples` has waited for threads (or, without threads, worked).
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

/// What must be equal for a state to be continued: the sources' names, row counts and file digests.
fn describe(spec: &PipelineSpec) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write;
    let mut text = String::new();
    for input in &spec.sources {
        let mut hash = Sha256::new();
        for file in input.source.files() {
            hash.update(file.sha256.as_bytes());
            hash.update(format!("{:?}", file.format));
        }
        hash.update(format!("{:?}{:?}", input.source.order(), input.source.access()));
        // What never stood in a recipe is not in the digest, so that older states stay readable.
        if *input.source.view() != RowView::default() {
            hash.update(serde_json::to_string(input.source.view()).unwrap_or_default());
        }
        let digest = hash.finalize().iter().take(8).fold(String::new(), |mut t, b| {
            let _ = write!(t, "{b:02x}");
            t
        });
        let length = input.source.len();
        let _ = writeln!(text, "{} {length} {digest}", input.source.name());
    }
    text
}

fn check_state(spec: &PipelineSpec, state: &PipelineState, data: &str) -> Result<(), DataError> {
    let refuse = |message: String| Err(DataError::State(message));
    if state.version != STATE_VERSION {
        return refuse(format!("the state has format {}, this program reads {STATE_VERSION}", state.version));
    }
    if state.seed != spec.seed {
        return refuse(format!("the run's seed was {}, now it is {}", state.seed, spec.seed));
    }
    if state.data != data {
        return refuse(format!("the data has changed: it was\n{}and is now\n{data}(name, rows, digest of each source)", state.data));
    }
    let known = |i: usize| spec.sources.get(i).map(|s| s.source.len());
    if state.sources.len() != spec.sources.len() || state.sources.iter().enumerate().any(|(i, p)| known(i).is_some_and(|n| p.next > n)) {
        return refuse("the positions in it do not fit the sources; the file is damaged".to_owned());
    }
    if u64::from(state.within) > state.counters.samples || state.counters.rows != state.draws {
        return refuse("its counts contradict each other; the file is damaged".to_owned());
    }
    if state.draws > 0 && (state.step == 0) != spec.feedback.is_none() {
        return refuse("the run was started with another `feedback` setting".to_owned());
    }
    Ok(())
}
