//! The parts of a run, put together from its recipe: what training, evaluation and the sample answer share.

mod choose;
mod locked;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use trainer_config::{DataCache, HELD_OUT_LOSS, ModelSource, Recipe, Schedule as ScheduleSetting};
use trainer_data::{MicroBatch, Pipeline, PipelineState, PrepareProgress, Sample, Source, batches, each_sample, pack, prepare};
use trainer_engine::{Adapter, Keep, MemoryPlan, Model, ModelOptions, Schedule, TrainOptions, Trainer};
use trainer_eval::{Candidate, Panel, Progress, Question, Report, Speaker, conversation, generate_one};
use trainer_kernels::ops::{HostBatch, Ops};
use trainer_kernels::sampling::SamplingParams;
use trainer_model::ModelFiles;
use trainer_plugin_host::{Kind, Plugin};
use trainer_runtime::{
    Base, DataParts, DeviceInfo, DeviceKind, Machine, Planned, Plugins, adapter_digest, compiler_command, default_workers, hub_pins,
    load_base, open_held_out, open_sources, pin_hub_names, pin_plugins, pipeline_spec,
};

use choose::{adapter_config, choose, mixer_setup, optimizer, steps};
use locked::{adapter_files, algorithms, pinned, plugin_lock, source_lock, weights_name};

pub use choose::plan_run;

use crate::error::TrainError;
use crate::events::{Banner, Event, PluginInfo, SourceInfo, When};
use crate::lock::{Lock, LockError, MachineLock, ModelLock, PlanLock, ProductsLock, Recorded, SourceLock, VERSION, libraries};

/// Held-out samples whose loss is computed together.
const HELD_OUT_SAMPLES: usize = 64;

/// Everything that a recipe names, loaded.
pub struct Assembly<O: Ops> {
    recipe: Recipe,
    base: Base,
    ops: Arc<O>,
    threads: usize,
    device: DeviceInfo,
    mixer: Arc<Plugin>,
    speaker: Speaker,
    formatters: Vec<Arc<Plugin>>,
    sources: Vec<Arc<Source>>,
    /// What sources hold out, with each one's place in the recipe.
    held_out: Vec<(usize, Arc<Source>)>,
    panel: Option<Panel>,
    plugins: Vec<Arc<Plugin>>,
    planned: Planned,
    /// The model on the device, if it is there already.
    model: Option<Arc<Model<O>>>,
    lock: Lock,
}

/// The model on the device, in training.
pub struct Work<O: Ops> {
    /// The trainer.
    pub trainer: Trainer<O>,
    model: Arc<Model<O>>,
    /// Tokens that samples are packed to; none: one sample at a time.
    packing: Option<usize>,
}

impl<O: Ops> Work<O> {
    /// A step's samples as micro-batches.
    ///
    /// # Errors
    /// A sample that does not fit.
    pub fn micro_batches(&self, samples: &[Sample]) -> Result<Vec<MicroBatch>, TrainError> {
        Ok(match self.packing {
            Some(tokens) => pack(samples, tokens)?,
            None => batches(samples, 1)?,
        })
    }

    /// Adds the losses of samples, without learning from them, and their target weights.
    fn add_loss(&mut self, samples: &[Sample], sum: &mut f64, weight: &mut f64) -> Result<(), TrainError> {
        for micro in self.micro_batches(samples)? {
            let losses = self.trainer.loss(&host_batch(micro))?;
            *sum += losses.sums.iter().sum::<f64>();
            *weight += losses.weights.iter().sum::<f64>();
        }
        Ok(())
    }
}

/// A micro-batch as the engine takes it.
pub(crate) fn host_batch(micro: MicroBatch) -> HostBatch {
    HostBatch {
        ids: micro.ids,
        targets: micro.targets,
        weights: micro.weights,
        positions: micro.positions,
        cu_seqlens: micro.cu_seqlens,
        samples: micro.sample_index,
        slots: Vec::new(),
    }
}

impl<O: Ops> Assembly<O> {
    /// Loads everything that the recipe names for a device that was opened, and computes plan and lock. Nothing is written. On the machine of
    /// `before`, the lock of a run that is repeated or goes on, its plan is taken over instead of what would be chosen now. `load` puts the model on
    /// the device at once, while its files are hashed for the lock.
    ///
    /// # Errors
    /// Whatever of the recipe cannot be had, or does not fit the device's memory.
    pub fn new(
        mut recipe: Recipe,
        ops: Arc<O>,
        threads: usize,
        device: DeviceInfo,
        before: Option<&Lock>,
        load: bool,
    ) -> Result<Self, TrainError> {
        if let Some(before) = before {
            pin_hub_names(&mut recipe, &before.recorded.hub);
            pin_plugins(&mut recipe, &before.plugin_digests());
        }
        let machine = MachineLock::of(ops.describe(), &device);
        let plan = before.filter(|lock| lock.machine == machine).map(|lock| &lock.plan);
        let base = load_base(&recipe.model.source, recipe.model.quantization, ops.reads_weights())?;
        let mut plugins = Plugins::new(&recipe, compiler_command()?)?;
        let mixer = plugins.get("mix.plugin", &recipe.mix.plugin, Kind::MixingPolicy)?;
        let mut formatters = Vec::new();
        for source in &recipe.data.sources {
            formatters.push(plugins.get(&format!("data.sources.{}.formatter", source.name), &source.formatter, Kind::DatasetFormatter)?);
        }
        let speaker = Speaker::new(&recipe, &base, &mut plugins)?;
        let evaluates = recipe.eval.every > 0 || (recipe.eval.before || recipe.eval.after) && !recipe.eval.metrics.is_empty();
        let mut panel = if evaluates { Some(Panel::new(&recipe, &mut plugins)?) } else { None };
        let sources = open_sources(&recipe)?;
        let held_out = if evaluates { open_held_out(&recipe)? } else { Vec::new() };
        let loaded: Vec<Arc<Plugin>> = plugins.loaded().cloned().collect();
        let calls_tools = panel.as_ref().is_some_and(Panel::calls_tools);
        let planned = choose(ops.as_ref(), &recipe, &base.config, &device, calls_tools, plan.and_then(|p| p.memory.as_ref()))?;
        if let (Some(panel), Some(g)) = (&mut panel, planned.generation) {
            panel.cache_tokens = Some(g.slots.saturating_mul(g.cache_length));
        }
        let keeps = planned.keeps(base.config.num_hidden_layers);
        let epoch = mixer.mixer(&mixer_setup(&recipe, &sources), None)?.epoch_length()?;
        let steps = steps(&recipe, epoch)?;
        let pins = hub_pins(&recipe);
        let model = if load { Some(put_on_device(&ops, &recipe, &base, &planned)?) } else { None };
        let lock = Lock {
            version: VERSION,
            trainer: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: recipe.identity(),
            model: ModelLock::new(base.digest.get()?.files.iter().map(|f| (f.name.clone(), f.sha256.clone())).collect()),
            tokenizer: base.tokenizer.digest().to_owned(),
            adapter_from: recipe.adapter.from.as_deref().map(adapter_files).transpose()?,
            data: recipe.data.sources.iter().zip(&sources).map(|(s, source)| source_lock(&s.name, &s.path, source, &pins)).collect(),
            eval_data: panel.as_ref().map(|p| SourceLock {
                name: "eval".to_owned(),
                path: pinned(&pins, p.rows.data.path.clone()),
                sha256: p.rows.sha256.clone(),
                rows: p.rows.length,
            }),
            plugins: loaded.iter().map(|p| (p.manifest().name.clone(), plugin_lock(p, &recipe))).collect(),
            plan: PlanLock {
                micro_batch: recipe.train.batch,
                accumulation: recipe.train.accumulation,
                packing: recipe.data.packing,
                max_tokens: planned.max_tokens,
                recompute: keeps.iter().map(|k| *k != Keep::All).collect(),
                weights: weights_name(&recipe, &planned, ops.as_ref()),
                steps,
                algorithms: algorithms(&planned, &keeps, device.kind),
                memory: Some(planned.choice(base.config.num_hidden_layers)),
                products: plan.map(|p| p.products.clone()).unwrap_or_default(),
            },
            machine,
            libraries: libraries(),
            recorded: Recorded {
                started: crate::rundir::utc(std::time::SystemTime::now()),
                threads,
                workers: recipe.data.workers.or_else(default_workers),
                model: pinned(&pins, if let ModelSource::Hub(repo) = &recipe.model.source { repo.to_string() } else { base.name.clone() }),
                device: device.name.clone(),
                driver: device.driver.clone(),
                hub: pins,
            },
        };
        let plugins = loaded;
        Ok(Self { base, ops, threads, device, mixer, speaker, formatters, sources, held_out, panel, plugins, planned, model, lock, recipe })
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The lock.
    pub fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Makes the device take the algorithms in the lock, once it is known to be that of this run.
    ///
    /// # Errors
    /// An algorithm that the device's library does not know.
    pub fn take_products(&self) -> Result<(), TrainError> {
        let choices = self.lock.plan.products.choices().ok_or(LockError::Products)?;
        Ok(self.ops.choose(&choices).map_err(trainer_runtime::RuntimeError::from)?)
    }

    /// The lock with the algorithms chosen since; none if there are no others.
    pub fn grown_lock(&mut self) -> Option<&Lock> {
        let products = ProductsLock::new(self.ops.choices());
        if products.is_empty() || products == self.lock.plan.products {
            return None;
        }
        self.lock.plan.products = products;
        Some(&self.lock)
    }

    /// Optimizer steps in the run.
    pub fn steps(&self) -> u64 {
        self.lock.plan.steps
    }

    /// The memory plan.
    pub fn memory(&self) -> &MemoryPlan {
        &self.planned.choice.memory
    }

    /// What was chosen where the recipe leaves it open.
    pub fn planned(&self) -> &Planned {
        &self.planned
    }

    /// What computes.
    pub fn device(&self) -> &DeviceInfo {
        &self.device
    }

    /// The schedule of the learning rate.
    pub fn schedule(&self) -> Schedule {
        match self.recipe.train.schedule {
            ScheduleSetting::Linear => Schedule::Linear,
            ScheduleSetting::Cosine => Schedule::Cosine,
            ScheduleSetting::Constant => Schedule::Constant,
        }
    }

    /// Tries the chat template's training form on a probe and looks for what tools were not granted; gives warnings.
    ///
    /// # Errors
    /// The template is caught at a wrong claim.
    pub fn warnings(&self) -> Result<Vec<String>, TrainError> {
        let mut warnings = self.speaker.check_training()?;
        warnings.extend(self.panel.iter().flat_map(Panel::ungranted));
        Ok(warnings)
    }

    /// The model on the device with its adapter, ready to train.
    ///
    /// # Errors
    /// Memory, or an adapter to start from that does not fit.
    pub fn work(&self) -> Result<Work<O>, TrainError> {
        let choice = &self.planned.choice;
        let config = adapter_config(&self.recipe);
        let model = match &self.model {
            Some(model) => model.clone(),
            None => put_on_device(&self.ops, &self.recipe, &self.base, &self.planned)?,
        };
        let adapter = match &self.recipe.adapter.from {
            None => Adapter::init(&model, config.clone(), self.recipe.train.seed)?,
            Some(folder) => {
                let mut host = trainer_model::Adapter::read(&ModelFiles::dir(folder))?;
                // The values are the folder's, what is done with them is the recipe's; the engine refuses shapes that do not fit.
                host.config = config.clone();
                Adapter::load(&model, &host)?
            }
        };
        let options = TrainOptions {
            max_tokens: self.planned.max_tokens,
            recompute: choice.recompute.clone(),
            offload: choice.offload,
            loss_rows: choice.loss_rows,
            optimizer: optimizer(&self.recipe),
            max_grad_norm: (self.recipe.train.max_grad_norm > 0.0).then_some(self.recipe.train.max_grad_norm),
            seed: self.recipe.train.seed,
        };
        let packing = self.recipe.data.packing.then_some(self.planned.packed);
        Ok(Work { trainer: Trainer::new(model.clone(), adapter, options)?, model, packing })
    }

    /// The stream of samples, from the beginning or from a state. Where the recipe says so, what is not yet prepared is; `preparing` is told source, rows
    /// done and rows in all, and ends it early with false.
    ///
    /// # Errors
    /// Data or plugins that do not fit the state.
    pub fn pipeline(
        &self,
        state: Option<&PipelineState>,
        preparing: &mut dyn FnMut(&str, u64, u64) -> bool,
    ) -> Result<Pipeline, TrainError> {
        let recipe = &self.recipe;
        let parts = DataParts {
            mixer: &self.mixer,
            formatters: &self.formatters,
            sources: &self.sources,
            template: &self.speaker.template,
            tokenizer: &self.base.tokenizer,
        };
        let spec = pipeline_spec(recipe, &parts)?;
        if let (DataCache::Prepare, Some(store)) = (recipe.data.cache, &spec.prepared) {
            for (i, source) in self.sources.iter().enumerate() {
                let mut go_on = true;
                prepare(&spec, i, store, &mut |p| {
                    let done = if let PrepareProgress::Rows(done) = p { done } else { 0 };
                    go_on = preparing(source.name(), done, source.len());
                    if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
                if !go_on {
                    break;
                }
            }
        }
        Ok(match state {
            Some(state) => Pipeline::resume(spec, state)?,
            None => Pipeline::new(spec)?,
        })
    }

    /// The trained adapter in PEFT's form.
    ///
    /// # Errors
    /// It cannot be read from the device.
    pub fn peft_adapter(&self, work: &Work<O>) -> Result<trainer_model::Adapter, TrainError> {
        let mut adapter = work.trainer.adapter().to_host(&work.model)?;
        adapter.config.base_model = Some(self.base.name.clone());
        Ok(adapter)
    }

    /// The model that evaluation and generation use: on the CPU the adapter is folded into dense weights, which decode faster; on a card, whose
    /// memory a second model may not fit, it stays beside them.
    fn candidate<'a>(&'a self, work: &'a Work<O>, when: When) -> Result<Candidate<'a, O>, TrainError> {
        let base = &self.base;
        if when == When::Before {
            return Ok(Candidate { model: work.model.clone(), base, live: None, adapter: None, measured: Vec::new() });
        }
        let adapter = self.peft_adapter(work)?;
        let digest = Some(adapter_digest(&adapter)?);
        if self.device.kind != DeviceKind::Cpu {
            let live = Some(work.trainer.adapter());
            return Ok(Candidate { model: work.model.clone(), base, live, adapter: digest, measured: Vec::new() });
        }
        let model = Model::merged(self.ops.clone(), &base.config, &base.weights, &adapter)?;
        Ok(Candidate { model, base, live: None, adapter: digest, measured: Vec::new() })
    }

    /// Evaluates the base or the trained model, as it is now, and writes the report; none if the recipe has nothing to evaluate. Where sources hold
    /// rows out, their loss is in it.
    ///
    /// # Errors
    /// See [`trainer_eval::EvalError`].
    pub fn evaluate(
        &self,
        work: &mut Work<O>,
        when: When,
        folder: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<Report>, TrainError> {
        let Some(panel) = &self.panel else { return Ok(None) };
        let loss = self.held_out_loss(work)?;
        let mut candidate = self.candidate(work, when)?;
        candidate.measured.extend(loss.map(|loss| (HELD_OUT_LOSS.to_owned(), loss, false)));
        Ok(Some(panel.judge(&candidate, &self.speaker, folder, &when.name(), progress)?.report))
    }

    /// SHA-256 of the adapter as it is now, as reports have it.
    ///
    /// # Errors
    /// It cannot be read from the device.
    pub fn adapter_digest(&self, work: &Work<O>) -> Result<String, TrainError> {
        Ok(adapter_digest(&self.peft_adapter(work)?)?)
    }

    /// The loss on the rows that sources hold out, in nats per target token: that of training, without dropout. None where no source holds rows out.
    fn held_out_loss(&self, work: &mut Work<O>) -> Result<Option<f64>, TrainError> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        // The recipe of these sources alone, so that each goes with its own settings.
        let mut recipe = self.recipe.clone();
        recipe.data.sources = self.held_out.iter().filter_map(|(i, _)| self.recipe.data.sources.get(*i).cloned()).collect();
        let formatters: Vec<Arc<Plugin>> = self.held_out.iter().filter_map(|(i, _)| self.formatters.get(*i).cloned()).collect();
        let sources: Vec<Arc<Source>> = self.held_out.iter().map(|(_, source)| source.clone()).collect();
        let (mixer, template, tokenizer) = (&self.mixer, &self.speaker.template, &self.base.tokenizer);
        let parts = DataParts { mixer, formatters: &formatters, sources: &sources, template, tokenizer };
        let spec = pipeline_spec(&recipe, &parts)?;
        let (mut sum, mut weight) = (0.0, 0.0);
        for (place, setting) in recipe.data.sources.iter().enumerate() {
            let mut waiting: Vec<Sample> = Vec::with_capacity(HELD_OUT_SAMPLES);
            let mut failed = None;
            let counters = each_sample(&spec, place, &mut |sample| {
                waiting.push(sample.clone());
                if waiting.len() == HELD_OUT_SAMPLES && failed.is_none() {
                    failed = work.add_loss(&waiting, &mut sum, &mut weight).err();
                    waiting.clear();
                } else if failed.is_some() {
                    waiting.clear();
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            if !waiting.is_empty() {
                work.add_loss(&waiting, &mut sum, &mut weight)?;
            }
            if counters.bad_rows() > 0 {
                tracing::warn!(
                    source = setting.name,
                    bad = counters.bad_rows(),
                    "held-out rows that are bad are left out of {HELD_OUT_LOSS}"
                );
            }
        }
        if weight <= 0.0 {
            tracing::warn!("the rows held out have no token with a loss weight, so there is no {HELD_OUT_LOSS}");
            return Ok(None);
        }
        Ok(Some(sum / weight))
    }

    /// Streams the sample answer of the trained model.
    ///
    /// # Errors
    /// The template or the engine fails.
    pub fn sample(&self, work: &Work<O>, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Option<String>, TrainError> {
        let s = &self.recipe.sample;
        if s.prompt.is_empty() {
            return Ok(None);
        }
        let prompt_ids = self.speaker.prompt(&self.base, conversation(&[("user", &s.prompt)]), s.enable_thinking.get())?;
        let question = Question {
            prompt_ids,
            params: SamplingParams {
                temperature: s.temperature,
                top_k: u32::try_from(s.top_k).unwrap_or(u32::MAX),
                top_p: s.top_p,
                min_p: s.min_p,
                repetition_penalty: s.repetition_penalty,
                ..SamplingParams::default()
            },
            seed: self.recipe.train.seed,
            max_new_tokens: s.max_new_tokens,
            stop_ids: self.speaker.stop_ids.clone(),
            skip_special: true,
        };
        on_event(Event::SamplePrompt(&s.prompt));
        let candidate = self.candidate(work, When::After)?;
        let answer = generate_one(candidate.model, candidate.live, &self.base, question, &mut |text| {
            on_event(Event::SampleText(text));
            ControlFlow::Continue(())
        })?;
        on_event(Event::SampleEnd);
        Ok(Some(answer.text))
    }

    /// What the run is about to do.
    ///
    /// # Errors
    /// The mixing policy fails.
    pub fn banner(&self, work: &Work<O>, pipeline: &mut Pipeline, dir: &Path, resumed_after: Option<u64>) -> Result<Banner, TrainError> {
        let recipe = &self.recipe;
        Ok(Banner {
            trainer: env!("CARGO_PKG_VERSION").to_owned(),
            backend: self.ops.describe(),
            threads: self.threads,
            device: self.device.clone(),
            machine: Machine::this(),
            model: self.base.name.clone(),
            quantization: weights_name(recipe, &self.planned, self.ops.as_ref()),
            parameters: work.model.parameters(),
            trainable: work.trainer.adapter().parameters(),
            plugins: self.plugins.iter().map(plugin_info).collect(),
            sources: recipe
                .data
                .sources
                .iter()
                .zip(&self.sources)
                .map(|(s, source)| SourceInfo {
                    name: s.name.clone(),
                    path: s.path.to_string(),
                    rows: Some(source.len()),
                    formatter: s.formatter.to_string(),
                })
                .collect(),
            mixer: recipe.mix.plugin.to_string(),
            epoch: pipeline.epoch_length()?,
            batch: recipe.train.batch,
            accumulation: recipe.train.accumulation,
            steps: self.steps(),
            memory: self.planned.choice.memory.parts.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect(),
            dir: dir.to_owned(),
            resumed_after,
        })
    }
}

/// Takes the memory that was planned, and puts the model there.
fn put_on_device<O: Ops>(ops: &Arc<O>, recipe: &Recipe, base: &Base, planned: &Planned) -> Result<Arc<Model<O>>, TrainError> {
    let began = Instant::now();
    let choice = &planned.choice;
    choice.reserve(ops.as_ref(), planned.limit)?;
    let how = ModelOptions { weights: choice.weights, adapter: Some(&adapter_config(recipe)), host_embedding: choice.offload };
    let model = Model::with_options(ops.clone(), &base.config, &base.weights, &how)?;
    tracing::debug!(ms = began.elapsed().as_millis(), "put {} on the device", base.name);
    Ok(model)
}

fn plugin_info(plugin: &Arc<Plugin>) -> PluginInfo {
    let manifest = plugin.manifest();
    PluginInfo {
        name: manifest.name.clone(),
        version: manifest.version.clone(),
        sha256: plugin.digest().to_owned(),
        kinds: plugin.kinds().iter().map(|k| format!("{}@{}", k.kind, k.version)).collect(),
        grants: plugin.grants().to_vec(),
    }
}
