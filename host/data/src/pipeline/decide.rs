//! Decisions: asks the mixing policy, gives each draw its row, and remembers enough to say what the state was at any draw not yet handed out.

use std::collections::VecDeque;
use std::sync::Arc;

use super::spec::{FeedbackPlan, SourceInput};
use super::state::{PendingFeedback, SourcePosition};
use super::worker::{At, Task};
use crate::error::{DataError, StageError};
use crate::source::{Access, Drawn, Source, Windowed};
use crate::stages::{MixerFactory, MixerSetup, MixerSource, SourceMixer};

/// The state at one draw, to start from or to save.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) draws: u64,
    pub(super) mixer: Vec<u8>,
    pub(super) sources: Vec<SourcePosition>,
    pub(super) step: u64,
    pub(super) round_left: u64,
}

/// Decisions made at once.
struct Block {
    /// The state before them.
    before: Standing,
    /// Feedback given to the policy right before them.
    feedback: Vec<PendingFeedback>,
    /// How many were asked for; fewer may have come, at the end of the data.
    asked: u64,
    step: u64,
    /// For each decision its source, and that source's position after it.
    draws: Vec<(u32, SourcePosition)>,
}

pub(super) struct Decider {
    factory: Arc<dyn MixerFactory>,
    setup: MixerSetup,
    mixer: Box<dyn SourceMixer>,
    sources: Vec<Arc<Source>>,
    streams: Vec<Option<Windowed>>,
    positions: Vec<SourcePosition>,
    plan: Option<FeedbackPlan>,
    max_draws: u64,
    /// Decisions made.
    pub(super) decided: u64,
    /// The policy has come to its end.
    pub(super) ended: bool,
    /// Under feedback: the step being filled, from 1 (0 before the first decision).
    pub(super) step: u64,
    /// Under feedback, after resuming: what is left of a round.
    pub(super) round_left: u64,
    /// Feedback given and not yet pruned, by step.
    received: VecDeque<PendingFeedback>,
    last_given: u64,
    last_applied: u64,
    origin: Standing,
    blocks: VecDeque<Block>,
}

pub(super) fn mixer_error(error: StageError) -> DataError {
    DataError::Mixer(error.to_string())
}

impl Decider {
    /// Streamed sources whose rows are `prepared` are not read: the places of their rows are enough.
    pub(super) fn new(
        factory: Arc<dyn MixerFactory>,
        inputs: &[SourceInput],
        prepared: &[bool],
        seed: u64,
        plan: Option<FeedbackPlan>,
        max_draws: Option<u64>,
        resume: Option<(Standing, Vec<PendingFeedback>)>,
    ) -> Result<Self, DataError> {
        let sources: Vec<Arc<Source>> = inputs.iter().map(|i| Arc::clone(&i.source)).collect();
        let listed = sources.iter().map(|s| MixerSource {
            name: s.name().to_owned(),
            length: Some(s.mix_length()),
            random_access: s.random_access(),
        });
        let setup = MixerSetup { sources: listed.collect(), seed, feedback_lag: plan.map_or(0, |p| p.lag) };
        let snapshot = resume.as_ref().map(|(s, _)| s.mixer.as_slice());
        let mut mixer = factory.open(&setup, snapshot).map_err(mixer_error)?;
        let (origin, pending) = match resume {
            Some(resume) => resume,
            None => {
                let mixer = mixer.snapshot().map_err(mixer_error)?;
                let sources = vec![SourcePosition::default(); sources.len()];
                (Standing { draws: 0, mixer, sources, step: 0, round_left: 0 }, Vec::new())
            }
        };
        let mut streams = Vec::with_capacity(sources.len());
        for (i, (source, position)) in sources.iter().zip(&origin.sources).enumerate() {
            let places = prepared.get(i).copied().unwrap_or(false);
            streams.push(match source.access() {
                Access::Stream { .. } => Some(Windowed::new(Arc::clone(source), seed, position.pass, position.next, places)?),
                Access::Random => None,
            });
        }
        let last_applied = plan.map_or(0, |p| origin.step.saturating_sub(u64::from(p.lag)));
        Ok(Self {
            factory,
            setup,
            mixer,
            sources,
            streams,
            positions: origin.sources.clone(),
            plan,
            max_draws: max_draws.unwrap_or(u64::MAX),
            decided: origin.draws,
            ended: false,
            step: origin.step,
            round_left: origin.round_left,
            last_given: pending.last().map_or(last_applied, |f| f.step),
            last_applied,
            received: pending.into(),
            origin,
            blocks: VecDeque::new(),
        })
    }

    pub(super) fn epoch_length(&mut self) -> Result<Option<u64>, DataError> {
        self.mixer.epoch_length().map_err(mixer_error)
    }

    /// Takes feedback, in the order of steps.
    pub(super) fn give(&mut self, feedback: PendingFeedback) -> Result<(), DataError> {
        if self.plan.is_none() {
            return Err(DataError::Feedback("the run was set up without it (`feedback`)".to_owned()));
        }
        let expected = self.last_given.saturating_add(1);
        if feedback.step != expected {
            return Err(DataError::Feedback(format!("step {} was given, step {expected} is next", feedback.step)));
        }
        self.last_given = feedback.step;
        self.received.push_back(feedback);
        Ok(())
    }

    /// The step whose feedback must come before decisions for `step`, if it has not.
    pub(super) fn awaits(&self, step: u64) -> Option<u64> {
        let due = step.saturating_sub(u64::from(self.plan?.lag));
        (due > self.last_given).then_some(self.last_given.saturating_add(1))
    }

    /// Makes up to `n` decisions for `step` (0 without feedback). Fewer come at the end of the data.
    pub(super) fn decide(&mut self, n: u64, step: u64) -> Result<Vec<Task>, DataError> {
        let n = n.min(self.max_draws.saturating_sub(self.decided)).min(u64::from(u32::MAX));
        if n == 0 || self.ended {
            self.ended = true;
            return Ok(Vec::new());
        }
        let before = Standing {
            draws: self.decided,
            mixer: self.mixer.snapshot().map_err(mixer_error)?,
            sources: self.positions.clone(),
            step: self.step,
            round_left: self.round_left,
        };
        let mut feedback = Vec::new();
        if let Some(plan) = self.plan {
            let due = step.saturating_sub(u64::from(plan.lag));
            for f in self.received.iter().filter(|f| f.step > self.last_applied && f.step <= due) {
                self.mixer.feedback(f.step, &f.sources).map_err(mixer_error)?;
                feedback.push(f.clone());
            }
            self.last_applied = self.last_applied.max(due.min(self.last_given));
        }
        let draws = self.mixer.next(u32::try_from(n).unwrap_or(u32::MAX)).map_err(mixer_error)?;
        if draws.len() as u64 > n {
            return Err(DataError::Mixer(format!("{n} decisions were asked for and {} given", draws.len())));
        }
        self.ended = (draws.len() as u64) < n;
        let (mut tasks, mut made) = (Vec::with_capacity(draws.len()), Vec::with_capacity(draws.len()));
        for draw in draws {
            let count = self.sources.len();
            let refuse = |message: String| DataError::Mixer(message);
            let index = usize::try_from(draw.source).unwrap_or(usize::MAX);
            let (Some(source), Some(stream), Some(position)) =
                (self.sources.get(index), self.streams.get_mut(index), self.positions.get_mut(index))
            else {
                return Err(refuse(format!("it drew from source {}, but there are {count} (counting from 0)", draw.source)));
            };
            let at = match (draw.ordinal, stream) {
                (Some(_), Some(_)) => {
                    return Err(refuse(format!(
                        "it chose a row of source `{}`, which is streamed and cannot be read at random",
                        source.name()
                    )));
                }
                // A source that counts more than once has its rows as often.
                (Some(ordinal), None) if ordinal < source.mix_length().max(source.len()) => At::Ordinal(ordinal % source.len().max(1)),
                (Some(ordinal), None) => {
                    let len = source.mix_length();
                    return Err(refuse(format!("it drew row {ordinal} of source `{}`, which has {len} (counting from 0)", source.name())));
                }
                (None, Some(stream)) => {
                    let (drawn, pass, next) = stream.next()?;
                    *position = SourcePosition { pass, next };
                    match drawn {
                        Drawn::Row(row) => At::Row(row),
                        Drawn::Place(place) => At::Ordinal(place),
                    }
                }
                (None, None) => {
                    if position.next >= source.len() {
                        *position = SourcePosition { pass: position.pass.saturating_add(1), next: 0 };
                    }
                    let ordinal = source.permuted(self.setup.seed, position.pass, position.next);
                    position.next += 1;
                    At::Ordinal(ordinal)
                }
            };
            made.push((draw.source, position.clone()));
            tasks.push(Task { source: draw.source, at });
        }
        self.step = step;
        self.round_left = 0;
        self.decided = self.decided.saturating_add(made.len() as u64);
        self.blocks.push_back(Block { before, feedback, asked: n, step, draws: made });
        Ok(tasks)
    }

    /// Forgets what no state at `draws` or later needs.
    pub(super) fn prune(&mut self, draws: u64) {
        while self.blocks.get(1).is_some_and(|next| next.before.draws < draws) {
            self.blocks.pop_front();
        }
        let applied_there = self.standing_step(draws).saturating_sub(self.plan.map_or(0, |p| u64::from(p.lag)));
        while self.received.front().is_some_and(|f| f.step <= applied_there && f.step <= self.last_applied) {
            self.received.pop_front();
        }
    }

    /// The block that ends at or holds `draws`, not beginning there.
    fn block_of(&self, draws: u64) -> Option<&Block> {
        self.blocks.iter().rev().find(|b| b.before.draws < draws)
    }

    fn standing_step(&self, draws: u64) -> u64 {
        self.block_of(draws).map_or(self.origin.step, |b| b.step)
    }

    /// The state after `draws` decisions, which must lie between what has been handed out and what has been decided: the policy is taken
    /// from the block's snapshot and decides again what was decided since, so the result does not depend on how far ahead it has read.
    pub(super) fn standing(&self, draws: u64) -> Result<(Standing, Vec<PendingFeedback>), DataError> {
        let Some(block) = self.block_of(draws) else {
            if draws == self.origin.draws {
                return Ok((self.origin.clone(), self.pending(self.origin.step)));
            }
            return Err(DataError::State(format!("nothing is known about draw {draws}")));
        };
        let taken = draws - block.before.draws;
        let mut mixer = self.factory.open(&self.setup, Some(&block.before.mixer)).map_err(mixer_error)?;
        for f in &block.feedback {
            mixer.feedback(f.step, &f.sources).map_err(mixer_error)?;
        }
        let again = mixer.next(u32::try_from(taken).unwrap_or(u32::MAX)).map_err(mixer_error)?;
        let same = again.len() as u64 == taken && again.iter().zip(&block.draws).all(|(d, (s, _))| d.source == *s);
        if !same {
            let message = "restored from its own snapshot it decides otherwise than before; such a policy cannot be resumed";
            return Err(DataError::Mixer(message.to_owned()));
        }
        let mut sources = block.before.sources.clone();
        for (source, position) in block.draws.iter().take(again.len()) {
            if let Some(place) = usize::try_from(*source).ok().and_then(|s| sources.get_mut(s)) {
                *place = position.clone();
            }
        }
        let round_left = if self.plan.is_some() { block.asked.saturating_sub(taken) } else { 0 };
        let standing = Standing { draws, mixer: mixer.snapshot().map_err(mixer_error)?, sources, step: block.step, round_left };
        Ok((standing, self.pending(block.step)))
    }

    fn pending(&self, step: u64) -> Vec<PendingFeedback> {
        let applied = step.saturating_sub(self.plan.map_or(0, |p| u64::from(p.lag)));
        self.received.iter().filter(|f| f.step > applied).cloned().collect()
    }
}
