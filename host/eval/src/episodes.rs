//! All answers of an evaluation at once: the engine decodes as many as it has slots for, and whatever is not decoding (taking outputs apart, tools,
//! rendering the next turn) happens on threads beside it, so that a slow tool holds up its own episode only.
//!
//! What an answer is does not depend on any of this: decoding does not depend on what else is in the batch, every turn draws from a random stream of its
//! own, and an episode sees only its own tools.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trainer_engine::{Cancel, Feed, Finish as EngineFinish, GenEvent, GenRequest};
use trainer_kernels::ops::Ops;
use trainer_plugin_host::template::{Piece as TemplatePiece, PromptRequest};
use trainer_tools::{End, Episode, Next, Turn, TurnEnd, turn_seed};

use crate::answers::{AnswerRecord, Finished, cut_at_stop, finish, turn_end};
use crate::error::EvalError;
use crate::evaluate::{Decoding, Progress, Subject, generator};
use crate::journal::{AnswerKey, Journal};
use crate::prompts::{encode_prompt, template_piece};

/// Threads beside the engine. They mostly wait: for outputs, or for a tool's network.
const THREADS: usize = 8;
/// How often an idle engine looks whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(100);

/// One answer to be had.
pub(crate) struct Job {
    /// Which it is.
    pub key: AnswerKey,
    /// The number of its question: with `repeat` the key of its random stream.
    pub sample: u64,
    /// Which of several answers.
    pub repeat: u32,
    /// The first turn's prompt.
    pub prompt_ids: Vec<u32>,
    /// The longest turn.
    pub max_new_tokens: usize,
    /// Strings at which a turn ends.
    pub stop: Vec<String>,
    /// Qwen3's switch.
    pub enable_thinking: Option<bool>,
    /// The conversation.
    pub episode: Episode,
}

/// An answer that is being had.
struct Open {
    job: Job,
    record: AnswerRecord,
    turn: u64,
}

/// A turn to decode.
struct Prompt {
    index: usize,
    turn: u64,
    ids: Vec<u32>,
}

/// A decoded turn.
struct Output {
    index: usize,
    ids: Vec<u32>,
    finish: EngineFinish,
    /// Whether the episode's time was up meanwhile.
    timed_out: bool,
}

#[derive(Default)]
struct Board {
    ready: VecDeque<Prompt>,
    results: Vec<Option<AnswerRecord>>,
    done: usize,
    failed: Option<EvalError>,
}

/// What engine and threads share.
struct Shared {
    board: Mutex<Board>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has all answers given, in the order of the jobs. `before` answers are there already and count as progress.
pub(crate) fn answer_all<O: Ops>(
    subject: &Subject<'_, O>,
    decoding: &Decoding,
    jobs: Vec<Job>,
    before: usize,
    journal: Option<&Journal>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<AnswerRecord>, EvalError> {
    let total = jobs.len();
    if total == 0 {
        return Ok(Vec::new());
    }
    let first = jobs.iter().map(|j| j.prompt_ids.len().saturating_add(j.max_new_tokens)).max().unwrap_or(0);
    let more = if jobs.iter().any(|j| j.episode.has_tools()) { decoding.max_context } else { 0 };
    let mut generator = generator(subject, total, first.max(more))?;
    let mut board = Board { results: (0..total).map(|_| None).collect(), ..Board::default() };
    board.ready = jobs.iter().enumerate().map(|(index, job)| Prompt { index, turn: 0, ids: job.prompt_ids.clone() }).collect();
    let shared = Shared { board: Mutex::new(board), wake: Condvar::new() };
    let settings: Vec<usize> = jobs.iter().map(|j| j.max_new_tokens).collect();
    let keys: Vec<(u64, u32)> = jobs.iter().map(|j| (j.sample, j.repeat)).collect();
    let open: Vec<Mutex<Option<Open>>> =
        jobs.into_iter().map(|job| Mutex::new(Some(Open { job, record: AnswerRecord::default(), turn: 0 }))).collect();
    let (outputs, inbox) = channel();
    let inbox = Mutex::new(inbox);
    let mut feed = Conductor {
        shared: &shared,
        outputs,
        open: &open,
        settings: &settings,
        keys: &keys,
        clocks: vec![Clock::default(); total],
        decoding,
        stop_ids: subject.stop_ids,
        writing: (0..total).map(|_| Vec::new()).collect(),
        before,
        tokens: 0,
        stopped: false,
        progress,
    };
    let (served, stopped) = std::thread::scope(|scope| {
        for _ in 0..THREADS.min(total) {
            scope.spawn(|| work(subject, &shared, &open, &inbox, journal));
        }
        let served = generator.serve(&[subject.adapter], &mut feed);
        let stopped = feed.stopped;
        // The threads end when nothing can come any more.
        drop(feed);
        (served, stopped)
    });
    let board = shared.board.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = board.failed {
        return Err(e);
    }
    served?;
    if stopped {
        return Err(EvalError::Stopped);
    }
    Ok(board.results.into_iter().map(|r| r.unwrap_or_else(|| AnswerRecord::failed("the engine gave no answer"))).collect())
}

/// When a job's time is up.
#[derive(Clone, Copy, Default)]
struct Clock {
    deadline: Option<Instant>,
    /// In a replay: after how many tokens of the present turn.
    cut: Option<u64>,
}

/// The engine's side.
struct Conductor<'a> {
    shared: &'a Shared,
    outputs: Sender<Output>,
    /// By job: its episode, unless a thread has it.
    open: &'a [Mutex<Option<Open>>],
    /// By job: the longest turn.
    settings: &'a [usize],
    /// By job: sample and repeat.
    keys: &'a [(u64, u32)],
    /// By job.
    clocks: Vec<Clock>,
    decoding: &'a Decoding,
    stop_ids: &'a [u32],
    /// By job: what the present turn has so far.
    writing: Vec<Vec<u32>>,
    before: usize,
    tokens: u64,
    stopped: bool,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl Conductor<'_> {
    /// Starts a job's clock with its first turn, and asks where the turn is to be cut: the longest turn that follows.
    fn start(&mut self, index: usize, turn: u64) -> usize {
        let longest = self.settings.get(index).copied().unwrap_or(0);
        let (Some(place), Some(clock)) = (self.open.get(index), self.clocks.get_mut(index)) else { return longest };
        let mut open = place.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = open.as_mut() else { return longest };
        if turn == 0 {
            open.job.episode.begin();
        }
        *clock = Clock { deadline: open.job.episode.deadline(), cut: open.job.episode.cut() };
        clock.cut.and_then(|n| usize::try_from(n).ok()).map_or(longest, |cut| cut.min(longest))
    }

    /// Tells how far it is; false if it is to end.
    fn goes_on(&mut self, done: usize) -> bool {
        let total = self.keys.len() + self.before;
        let told = Progress { done: done + self.before, total, tokens: self.tokens };
        if (self.progress)(told).is_break() {
            self.stopped = true;
        }
        !self.stopped
    }
}

impl Feed for Conductor<'_> {
    fn next(&mut self) -> Option<GenRequest> {
        let Prompt { index, turn, ids } = self.shared.lock().ready.pop_front()?;
        let (sample, repeat) = self.keys.get(index).copied()?;
        let max_new_tokens = self.start(index, turn);
        Some(GenRequest {
            id: index as u64,
            prompt_ids: ids,
            params: self.decoding.params,
            seed: turn_seed(self.decoding.seed, turn),
            sample,
            repeat,
            max_new_tokens,
            stop_ids: self.stop_ids.to_vec(),
            ..GenRequest::default()
        })
    }

    fn idle(&mut self) -> bool {
        loop {
            let mut board = self.shared.lock();
            if board.failed.is_some() || board.done == board.results.len() {
                return false;
            }
            if board.ready.is_empty() {
                let waited = self.shared.wake.wait_timeout(board, LOOK);
                board = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            let (done, ready) = (board.done, !board.ready.is_empty());
            drop(board);
            if !self.goes_on(done) {
                return false;
            }
            if ready {
                return true;
            }
        }
    }

    fn event(&mut self, event: GenEvent<'_>) -> ControlFlow<Cancel> {
        let index = usize::try_from(event.id).unwrap_or(usize::MAX);
        let Some(writing) = self.writing.get_mut(index) else { return ControlFlow::Break(Cancel::Request) };
        if let Some(token) = event.token {
            writing.push(token);
            self.tokens += 1;
        }
        let clock = self.clocks.get(index).copied().unwrap_or_default();
        let (finish, timed_out) = match event.finish {
            Some(EngineFinish::Length) => (EngineFinish::Length, clock.cut == Some(writing.len() as u64)),
            Some(finish) => (finish.clone(), false),
            // At a token, so that a replay can be cut after it.
            None if event.token.is_some() && clock.deadline.is_some_and(|end| Instant::now() >= end) => (EngineFinish::Cancelled, true),
            None => return ControlFlow::Continue(()),
        };
        let output = Output { index, ids: std::mem::take(writing), finish, timed_out };
        // Threads take outputs until the last one is done, so this fails only after one of them has.
        let sent = self.outputs.send(output).is_ok();
        let board = self.shared.lock();
        let (done, failed) = (board.done, board.failed.is_some());
        drop(board);
        if !sent || failed || !self.goes_on(done) {
            return ControlFlow::Break(Cancel::All);
        }
        if event.finish.is_none() { ControlFlow::Break(Cancel::Request) } else { ControlFlow::Continue(()) }
    }
}

/// A thread's side: takes outputs until there are no more.
fn work<O: Ops>(
    subject: &Subject<'_, O>,
    shared: &Shared,
    open: &[Mutex<Option<Open>>],
    inbox: &Mutex<Receiver<Output>>,
    journal: Option<&Journal>,
) {
    loop {
        let received = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(output) = received else { return };
        let index = output.index;
        let Some(place) = open.get(index) else { continue };
        let Some(mut this) = place.lock().unwrap_or_else(PoisonError::into_inner).take() else { continue };
        let next = advance(subject, &mut this, output);
        match next {
            Ok(Some(ids)) => {
                let turn = this.turn;
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(this);
                shared.lock().ready.push_back(Prompt { index, turn, ids });
            }
            Ok(None) => {
                let Open { job, mut record, .. } = this;
                if !job.episode.conversation().tools.is_empty() || job.episode.transcript().timed_out.is_some() {
                    record.transcript = Some(job.episode.into_transcript());
                }
                let kept = journal.map_or(Ok(()), |j| j.add(job.key, &record));
                let mut board = shared.lock();
                if let Some(result) = board.results.get_mut(index) {
                    *result = Some(record);
                }
                board.done += 1;
                if let Err(e) = kept {
                    board.failed.get_or_insert(e);
                }
            }
            Err(e) => {
                shared.lock().failed.get_or_insert(e);
            }
        }
        shared.wake.notify_all();
    }
}

/// Takes a turn. The prompt of the next, or none where the answer is complete.
fn advance<O: Ops>(subject: &Subject<'_, O>, this: &mut Open, output: Output) -> Result<Option<Vec<u32>>, EvalError> {
    let Open { job, record, turn } = this;
    if let EngineFinish::Refused(why) = &output.finish {
        if *turn == 0 {
            record.failed = Some(why.to_string());
        } else {
            // The conversation has outgrown the context.
            job.episode.stop(End::Context);
            record.finish = Finished::Limit;
        }
        return Ok(None);
    }
    let mut raw = subject.tokenizer.decode(&output.ids, false);
    let mut end = if output.timed_out { TurnEnd::Time } else { turn_end(&output.finish) };
    let pieces = if cut_at_stop(&mut raw, &job.stop) {
        if !output.timed_out {
            end = TurnEnd::Stop;
        }
        vec![TemplatePiece::Text(raw.clone())]
    } else {
        subject.tokenizer.decode_pieces(&output.ids).into_iter().map(template_piece).collect()
    };
    let tokens = output.ids.len() as u64;
    let parts = match subject.template.parse(&[pieces])?.into_iter().next() {
        Some(Ok(parts)) => parts,
        Some(Err(e)) => {
            record.add(&raw, &[], Some(tokens));
            record.failed = Some(e.to_string());
            return Ok(None);
        }
        None => Vec::new(),
    };
    record.add(&raw, &parts, Some(tokens));
    match job.episode.take(Turn { parts, tokens, end })? {
        Next::End => {
            if let Some(end) = job.episode.end() {
                record.finish = finish(end);
                if let End::Failed(why) = end {
                    record.failed = Some(why.clone());
                }
            }
            Ok(None)
        }
        Next::Prompt => {
            *turn += 1;
            let request = PromptRequest {
                conversation: job.episode.conversation().clone(),
                add_generation_prompt: true,
                enable_thinking: job.enable_thinking,
            };
            match subject.prompts.render(&[request])?.into_iter().next() {
                Some(Ok(rendered)) => {
                    let place = job.key.1.clone();
                    let ids = encode_prompt(subject.tokenizer, &rendered).map_err(|source| EvalError::Text { place, source })?;
                    record.more_prompt_tokens = record.more_prompt_tokens.saturating_add(ids.len() as u64);
                    Ok(Some(ids))
                }
                Some(Err(e)) => {
                    record.failed = Some(format!("the chat template cannot render turn {}: {e}", *turn + 1));
                    Ok(None)
                }
                None => {
                    record.failed = Some("the chat template gave nothing".to_owned());
                    Ok(None)
                }
            }
        }
    }
}
