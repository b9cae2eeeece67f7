//! The training run: evaluate, train, checkpoint, answer, evaluate, and leave everything in the run directory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime};

use serde::Serialize;
use trainer_config::Recipe;
use trainer_data::{Pipeline, Sample, SourceLoss};
use trainer_engine::schedule::lr;
use trainer_eval::Report;
use trainer_kernels::ops::Ops;
use trainer_runs::records::SampleAnswer;
use trainer_runtime::{CardWatch, open_device_as, with_ops};

use crate::assemble::{Assembly, Work, host_batch};
use crate::best;
use crate::error::TrainError;
use crate::events::{Event, StepInfo, When};
use crate::files::{FileError, resident_memory};
use crate::lock::Lock;
use crate::metrics::{EvalMetrics, Evals, Metrics, SourceMetrics, StepMetrics, Timings, read_journal, step_timings};
use crate::rundir::{RunDir, RunDirError, default_path};
use crate::state;
use crate::watch::{self, BestStep};

/// What to run.
pub enum Start {
    /// A new run of this recipe, in this directory if given.
    Fresh {
        /// Resolved and checked.
        recipe: Box<Recipe>,
        /// The run directory.
        dir: Option<PathBuf>,
        /// A lock that must hold.
        locked: Option<PathBuf>,
    },
    /// A run to continue.
    Resume(PathBuf),
}

/// What a run leaves.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// The run directory.
    pub dir: PathBuf,
    /// Whether training is complete, early stopping included; false after Ctrl-C.
    pub complete: bool,
    /// Optimizer steps done.
    pub steps: u64,
    /// Step and loss.
    pub losses: Vec<(u64, f64)>,
    /// Training tokens per second, over the steps of this process.
    pub tokens_per_second: f64,
    /// The share of those steps' time in which training waited for data.
    pub data_wait_share: f64,
    /// The numbers of the evaluations during training, by step.
    pub evaluations: Vec<EvalMetrics>,
    /// The step that was best, where the recipe asks for it.
    pub best: Option<BestStep>,
    /// Why the run ended before its last step.
    pub stopped_early: Option<String>,
    /// The evaluation before training.
    pub before: Option<Report>,
    /// The evaluation after training.
    pub after: Option<Report>,
    /// The sample answer.
    pub sample: Option<String>,
    /// Rows and samples left out, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Bad rows.
    pub bad_rows: u64,
    /// Samples that were cut to `data.max_seq_length`.
    pub truncated: u64,
    /// What was written, relative to the directory, and what it is.
    pub files: Vec<(PathBuf, &'static str)>,
}

/// Runs to the end, or until `stop` is set: then a checkpoint is written and the summary says that the run is not complete.
///
/// # Errors
/// Anything that keeps the run from going on; what is on disk then is a run that can be resumed after mending the cause.
pub fn run(start: Start, stop: &AtomicBool, on_event: &mut dyn FnMut(Event<'_>)) -> Result<RunSummary, TrainError> {
    let (recipe, origin) = match start {
        Start::Fresh { recipe, dir, locked } => {
            let expected = locked.as_deref().map(Lock::load).transpose()?;
            let dir =
                dir.or_else(|| recipe.output.dir.clone()).unwrap_or_else(|| default_path(recipe.mix.plugin.as_str(), SystemTime::now()));
            (*recipe, Origin::Fresh { dir, expected: expected.map(Box::new) })
        }
        Start::Resume(path) => {
            let dir = RunDir::open(&path)?;
            (Recipe::load(&dir.recipe_path())?, Origin::Resumed(dir))
        }
    };
    let open = open_device_as(&recipe.device, recipe.train.precision)?;
    let card = CardWatch::of(&open);
    let before = match &origin {
        Origin::Fresh { expected, .. } => expected.as_deref().cloned(),
        Origin::Resumed(dir) => Some(dir.lock()?),
    };
    with_ops!(open.backend, ops => {
        start_on(Assembly::new(recipe, ops, open.threads, open.info, before.as_ref(), true)?, origin, card, stop, on_event)?.go(on_event)
    })
}

/// Where a run comes from.
enum Origin {
    /// It begins, in a new directory.
    Fresh { dir: PathBuf, expected: Option<Box<Lock>> },
    /// It goes on in this directory.
    Resumed(RunDir),
}

fn start_on<'a, O: Ops>(
    assembly: Assembly<O>,
    origin: Origin,
    card: CardWatch,
    stop: &'a AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Run<'a, O>, TrainError> {
    match origin {
        Origin::Fresh { dir, expected } => {
            if let Some(expected) = expected {
                expected.check(assembly.lock())?;
            }
            assembly.take_products()?;
            let dir = RunDir::create(&dir, &assembly.recipe().to_toml()?, assembly.lock())?;
            Run::new(assembly, dir, card, false, stop, on_event)
        }
        Origin::Resumed(dir) => {
            dir.lock()?.check(assembly.lock())?;
            assembly.take_products()?;
            Run::new(assembly, dir, card, true, stop, on_event)
        }
    }
}

/// A run in progress.
struct Run<'a, O: Ops> {
    assembly: Assembly<O>,
    dir: RunDir,
    work: Work<O>,
    pipeline: Pipeline,
    metrics: Metrics,
    timings: Timings,
    /// None for a run that does not evaluate during training.
    evals: Option<Evals>,
    /// What is in `evals`.
    measured: Vec<EvalMetrics>,
    losses: Vec<(u64, f64)>,
    card: CardWatch,
    stop: &'a AtomicBool,
    resumed_after: Option<u64>,
    tokens: u64,
    seconds: f64,
    waited: f64,
}

impl<'a, O: Ops> Run<'a, O> {
    fn new(
        assembly: Assembly<O>,
        dir: RunDir,
        card: CardWatch,
        resumed: bool,
        stop: &'a AtomicBool,
        on_event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, TrainError> {
        let mut preparing = |source: &str, done: u64, total: u64| {
            on_event(Event::Preparing { source, done, total });
            !stop.load(Ordering::Relaxed)
        };
        let mut work = assembly.work()?;
        let keep = assembly.recipe().train.keep_checkpoints;
        let checkpoint = if resumed { dir.checkpoints(keep)?.read_newest()? } else { None };
        let mut metrics = Metrics::open(&dir.metrics_path())?;
        let mut timings = Timings::open(&dir.timings_path())?;
        let (mut evals, mut measured) = (None, Vec::new());
        if assembly.recipe().eval.every > 0 {
            let mut journal = Evals::open(&dir.evals_path())?;
            journal.truncate_after_step(checkpoint.as_ref().map_or(0, |c| c.step))?;
            measured = read_journal(&dir.evals_path())?;
            best::restore(&dir, best::at(&measured, u64::MAX))?;
            evals = Some(journal);
        }
        let (pipeline, resumed_after) = match &checkpoint {
            Some(c) => {
                work.trainer.load_state(&state::train_state(c))?;
                let pipeline = assembly.pipeline(Some(&state::pipeline_state(c)?), &mut preparing)?;
                metrics.truncate_to(c.metrics_bytes)?;
                timings.truncate_after_step(c.step)?;
                keep_samples(&dir, c.step, None)?;
                (pipeline, Some(c.step))
            }
            None => {
                metrics.truncate_to(0)?;
                timings.truncate_after_step(0)?;
                keep_samples(&dir, 0, None)?;
                (assembly.pipeline(None, &mut preparing)?, resumed.then_some(0))
            }
        };
        let losses = read_journal::<StepMetrics>(&dir.metrics_path())?.into_iter().map(|m| (m.step, m.loss)).collect();
        let (tokens, seconds, waited) = (0, 0.0, 0.0);
        Ok(Self {
            assembly,
            dir,
            work,
            pipeline,
            metrics,
            timings,
            evals,
            measured,
            losses,
            card,
            stop,
            resumed_after,
            tokens,
            seconds,
            waited,
        })
    }

    fn go(mut self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<RunSummary, TrainError> {
        let total = self.assembly.steps();
        let banner = self.assembly.banner(&self.work, &mut self.pipeline, self.dir.root(), self.resumed_after)?;
        on_event(Event::Ready(&banner));
        for warning in self.assembly.warnings()? {
            on_event(Event::Warning(&warning));
        }
        let before = self.evaluate(When::Before, on_event)?;
        if let Some(report) = &before {
            // What is not there now will not be there later.
            watch::check(&self.assembly.recipe().eval, report)?;
        }
        while self.ended().is_none() && !self.stopping() {
            let done = self.work.trainer.step();
            if self.is_due(done, total) {
                if let Err(error) = self.measure(done, on_event) {
                    return Err(self.salvage(error, on_event));
                }
                if self.ended().is_some() || !self.stopping() && self.checkpoint_is_due(done, total) {
                    self.checkpoint(on_event)?;
                }
                continue;
            }
            if done >= total {
                break;
            }
            let info = match self.step(total) {
                Ok(info) => info,
                Err(error) => return Err(self.salvage(error, on_event)),
            };
            on_event(Event::Step(&info));
            let every = self.assembly.recipe().sample.every;
            if every > 0 && info.step.is_multiple_of(every) && info.step != total {
                self.sample(info.step, on_event)?;
            }
            // Where an evaluation is to come first, the checkpoint holds its outcome.
            if !self.is_due(info.step, total) && self.checkpoint_is_due(info.step, total) {
                self.checkpoint(on_event)?;
            }
        }
        let steps = self.work.trainer.step();
        let stopped_early = self.ended().filter(|_| steps < total).map(str::to_owned);
        let mut summary = RunSummary {
            dir: self.dir.root().to_owned(),
            complete: self.ended().is_some() || steps >= total && !self.is_due(steps, total),
            steps,
            losses: std::mem::take(&mut self.losses),
            tokens_per_second: if self.seconds > 0.0 { self.tokens as f64 / self.seconds } else { 0.0 },
            data_wait_share: if self.seconds > 0.0 { self.waited / self.seconds } else { 0.0 },
            best: watch::best(&self.assembly.recipe().eval, &self.measured),
            evaluations: self.measured.clone(),
            stopped_early,
            before,
            after: None,
            sample: None,
            skipped: self.pipeline.counters().skipped.clone(),
            bad_rows: self.pipeline.counters().bad_rows(),
            truncated: self.pipeline.counters().truncated,
            files: Vec::new(),
        };
        if !summary.complete {
            self.checkpoint(on_event)?;
            summary.files = self.files();
            return Ok(summary);
        }
        self.install_adapter("adapter")?;
        on_event(Event::Trained { losses: &summary.losses });
        summary.sample = self.sample(steps, on_event)?;
        summary.after = self.evaluate(When::After, on_event)?;
        summary.complete = !self.stopping() || summary.after.is_some() || !self.assembly.recipe().eval.after;
        summary.files = self.files();
        Ok(summary)
    }

    /// Why early stopping ended the run, if it did.
    fn ended(&self) -> Option<&str> {
        self.measured.last()?.stopped.as_deref()
    }

    /// Whether an evaluation is to follow a step and has not been made.
    fn is_due(&self, step: u64, total: u64) -> bool {
        let every = self.assembly.recipe().eval.every;
        let wanted = every > 0 && step > 0 && (step.is_multiple_of(every) || step == total);
        wanted && self.measured.last().is_none_or(|e| e.step < step)
    }

    fn checkpoint_is_due(&self, step: u64, total: u64) -> bool {
        let every = self.assembly.recipe().train.checkpoint_every;
        step == total || (every > 0 && step.is_multiple_of(every))
    }

    /// Evaluates after a step, unless the user wants no more, and notes what it means for the run.
    fn measure(&mut self, step: u64, on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let when = When::Step(step);
        let adapter = self.assembly.adapter_digest(&self.work)?;
        // A killed run may have made it already; of the same adapter it is the same.
        let made = read_report(&self.dir.eval_path().join(format!("{}.json", when.name())));
        let report = match made.filter(|r| r.adapter.as_ref().is_some_and(|a| a.sha256 == adapter)) {
            Some(report) => {
                on_event(Event::Evaluated { when, report: &report });
                report
            }
            None => match self.report(when, on_event)? {
                Some(report) => report,
                None => return Ok(()),
            },
        };
        let line = watch::measured(&self.assembly.recipe().eval, &self.measured, step, &report, &adapter)?;
        if line.best {
            // Before the line that says so.
            if let Some(before) = best::at(&self.measured, step) {
                best::set_aside(&self.dir, before.step)?;
            }
            self.install_adapter(best::NAME)?;
        }
        self.evals.as_mut().map(|evals| evals.append(&line)).transpose()?;
        on_event(Event::Measured(&line));
        self.measured.push(line);
        Ok(())
    }

    /// Keeps what is done where the data or a plugin ended the run: the pipeline then stands where it stood before the failed step, so a
    /// checkpoint of the last step continues exactly once the cause is mended. After other errors the last checkpoint on disk has to do.
    fn salvage(&mut self, error: TrainError, on_event: &mut dyn FnMut(Event<'_>)) -> TrainError {
        let may = matches!(
            error,
            TrainError::Data(_)
                | TrainError::Eval(_)
                | TrainError::Plugin(_)
                | TrainError::NotMeasured { .. }
                | TrainError::NoDirection { .. }
        );
        if !may || self.work.trainer.step() == 0 {
            return error;
        }
        match self.checkpoint(on_event) {
            Ok(()) => TrainError::Resumable { step: self.work.trainer.step(), dir: self.dir.root().to_owned(), source: Box::new(error) },
            Err(second) => {
                tracing::warn!("no checkpoint could be written either: {second}");
                error
            }
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One optimizer step: always batch x accumulation samples, however they are packed.
    fn step(&mut self, total: u64) -> Result<StepInfo, TrainError> {
        let began = Instant::now();
        let waited = self.pipeline.waited();
        let recipe = self.assembly.recipe();
        let step = self.work.trainer.step() + 1;
        let samples = self.pipeline.next_samples(recipe.train.batch.saturating_mul(recipe.train.accumulation))?;
        if samples.is_empty() {
            return Err(TrainError::OutOfData { step, total });
        }
        let waited = self.pipeline.waited().saturating_sub(waited);
        let target_weight: f64 = samples.iter().map(Sample::target_weight).sum();
        if target_weight <= 0.0 {
            return Err(TrainError::NothingToLearn { step });
        }
        let inverse = (1.0 / target_weight) as f32;
        let mut sources: BTreeMap<u32, SourceLoss> = BTreeMap::new();
        let mut loss = 0.0;
        for micro in self.work.micro_batches(&samples)? {
            let source_of = micro.source.clone();
            let result = self.work.trainer.train_micro_batch(&host_batch(micro), inverse)?;
            for ((source, sum), weight) in source_of.iter().zip(&result.sums).zip(&result.weights) {
                let entry = sources.entry(*source).or_insert(SourceLoss { source: *source, loss: 0.0, weight: 0.0, samples: 0 });
                entry.loss += sum;
                entry.weight += weight;
                entry.samples += 1;
                loss += sum;
            }
        }
        let train = &self.assembly.recipe().train;
        let rate = lr(self.assembly.schedule(), step, total, train.warmup_steps, train.learning_rate);
        let report = self.work.trainer.optimizer_step(rate)?;
        let sources: Vec<SourceLoss> = sources.into_values().collect();
        if self.assembly.recipe().mix.feedback_lag > 0 {
            self.pipeline.feedback(step, &sources)?;
        }
        let tokens: u64 = samples.iter().map(|s| s.ids.len() as u64).sum();
        let info = StepInfo {
            step,
            total,
            loss: loss / target_weight,
            lr: rate,
            grad_norm: report.grad_norm,
            tokens,
            time: began.elapsed(),
            waited,
            memory: resident_memory(),
            card: self.card.take(),
        };
        self.record(&info, target_weight, &sources)?;
        Ok(info)
    }

    /// What repeats goes to metrics.jsonl, what does not to timings.jsonl.
    fn record(&mut self, info: &StepInfo, target_weight: f64, sources: &[SourceLoss]) -> Result<(), TrainError> {
        let names = &self.assembly.recipe().data.sources;
        let sources = sources
            .iter()
            .map(|s| SourceMetrics {
                name: names.get(s.source as usize).map(|n| n.name.clone()).unwrap_or_default(),
                loss: if s.weight > 0.0 { s.loss / s.weight } else { 0.0 },
                target_weight: s.weight,
                samples: u64::from(s.samples),
            })
            .collect();
        self.metrics.append(&StepMetrics {
            step: info.step,
            loss: info.loss,
            lr: info.lr,
            grad_norm: info.grad_norm,
            tokens: info.tokens,
            target_weight,
            sources,
        })?;
        let seconds = info.time.as_secs_f64();
        self.timings.append(&step_timings(info, SystemTime::now()))?;
        self.losses.push((info.step, info.loss));
        self.tokens += info.tokens;
        self.seconds += seconds;
        self.waited += info.waited.as_secs_f64();
        Ok(())
    }

    fn checkpoint(&mut self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let metrics_bytes = self.metrics.sync()?;
        self.timings.sync()?;
        self.evals.as_mut().map(Evals::sync).transpose()?;
        if let Some(lock) = self.assembly.grown_lock() {
            lock.save(&self.dir.lock_path())?;
        }
        let train = self.work.trainer.state()?;
        let step = train.step;
        let data = self.pipeline.state()?;
        let recipe = &self.assembly.recipe().train;
        let checkpoints = self.dir.checkpoints(recipe.keep_checkpoints)?;
        checkpoints.write(&state::checkpoint(train, &data, recipe.seed, metrics_bytes)?)?;
        best::prune(&self.dir, &self.measured, &checkpoints.steps()?)?;
        on_event(Event::Checkpoint { step });
        Ok(())
    }

    /// Evaluates once per run: a report that is already there is kept, so that a resumed run does not repeat the work.
    fn evaluate(&mut self, when: When, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Option<Report>, TrainError> {
        let eval = &self.assembly.recipe().eval;
        if eval.metrics.is_empty() || !(if when == When::Before { eval.before } else { eval.after }) || self.stopping() {
            return Ok(None);
        }
        let folder = self.dir.eval_path();
        if let Some(report) = read_report(&folder.join(format!("{}.json", when.name()))) {
            on_event(Event::Evaluated { when, report: &report });
            return Ok(Some(report));
        }
        if when == When::After
            && let Some(report) = self.last_measured()?
        {
            on_event(Event::Evaluated { when, report: &report });
            return Ok(Some(report));
        }
        self.report(when, on_event)
    }

    /// The evaluation after the last step, where there was one, as that after training: it is of the same adapter on the same rows.
    fn last_measured(&self) -> Result<Option<Report>, TrainError> {
        let step = self.work.trainer.step();
        if self.measured.last().is_none_or(|e| e.step != step) {
            return Ok(None);
        }
        let name = When::Step(step).name();
        let folder = self.dir.eval_path();
        let samples = folder.join(format!("{name}.samples.jsonl"));
        let (Some(mut report), Ok(samples)) = (read_report(&folder.join(format!("{name}.json"))), std::fs::read(samples)) else {
            return Ok(None);
        };
        report.samples = self.dir.write("eval/after.samples.jsonl", &samples)?;
        let mut text = serde_json::to_vec_pretty(&report).map_err(|e| TrainError::State { step, message: e.to_string() })?;
        text.push(b'\n');
        self.dir.write("eval/after.json", &text)?;
        Ok(Some(report))
    }

    /// Makes an evaluation; none if the user wants no more meanwhile.
    fn report(&mut self, when: When, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Option<Report>, TrainError> {
        let folder = self.dir.eval_path();
        let stop = self.stop;
        let result = self.assembly.evaluate(&mut self.work, when, &folder, &mut |p| {
            on_event(Event::Evaluating { when, done: p.done, total: p.total });
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match result {
            Ok(report) => {
                if let Some(report) = &report {
                    on_event(Event::Evaluated { when, report });
                }
                Ok(report)
            }
            Err(TrainError::Eval(trainer_eval::EvalError::Stopped)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Streams a sample answer and keeps it.
    fn sample(&self, step: u64, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Option<String>, TrainError> {
        let Some(text) = self.assembly.sample(&self.work, on_event)? else { return Ok(None) };
        let prompt = self.assembly.recipe().sample.prompt.clone();
        keep_samples(&self.dir, step.saturating_sub(1), Some(SampleAnswer { step, prompt, text: text.clone() }))?;
        on_event(Event::SampleKept { step });
        Ok(Some(text))
    }

    /// Puts the adapter as it is now into the run directory.
    fn install_adapter(&self, name: &str) -> Result<(), TrainError> {
        let adapter = self.assembly.peft_adapter(&self.work)?;
        self.dir.install(name, |folder| adapter.write(folder).map_err(TrainError::from))?;
        Ok(())
    }

    fn files(&self) -> Vec<(PathBuf, &'static str)> {
        let all = [
            ("recipe.toml", "every setting, resolved"),
            ("lock.json", "digests of everything that decides the result"),
            ("metrics.jsonl", "loss, learning rate and gradient norm of each step"),
            ("timings.jsonl", "how long each step took"),
            ("evals.jsonl", "the numbers of the evaluations during training"),
            ("samples.jsonl", "the sample answers"),
            ("checkpoints", "for trainer run --resume"),
            ("adapter", "the LoRA adapter, in PEFT's format"),
            ("adapter-best", "that of the step that was best"),
            ("eval/before.json", "the evaluation before training"),
            ("eval/after.json", "the evaluation after training"),
        ];
        all.into_iter().map(|(path, what)| (PathBuf::from(path), what)).filter(|(path, _)| self.dir.root().join(path).exists()).collect()
    }
}

/// Keeps the sample answers up to a step, and adds one.
fn keep_samples(dir: &RunDir, step: u64, more: Option<SampleAnswer>) -> Result<(), TrainError> {
    let path = dir.samples_path();
    let old: Vec<SampleAnswer> = trainer_runs::read_lines(&path).map_err(FileError::at("read", &path)).map_err(RunDirError::from)?;
    let kept: Vec<_> = old.iter().filter(|s| s.step <= step).collect();
    if kept.len() == old.len() && more.is_none() {
        return Ok(());
    }
    let mut text = String::new();
    for sample in kept.into_iter().chain(&more) {
        text.push_str(&serde_json::to_string(sample).map_err(|e| RunDirError::from(FileError::at("write", &path)(e.into())))?);
        text.push('\n');
    }
    dir.write("samples.jsonl", text.as_bytes())?;
    Ok(())
}

/// A report that is whole; anything else is made again.
fn read_report(path: &Path) -> Option<Report> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
