//! The parts of a run, put together from its recipe: what training, evaluation and the sample answer share.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use trainer_config::{DataPath, Length, Optimizer, Quantization, Recipe, Recompute as RecomputeSetting, Schedule as ScheduleSetting};
use trainer_data::{MicroBatch, Pipeline, PipelineState, Sample, Source, batches, pack};
use trainer_engine::{Adapter, Keep, MemoryPlan, Model, ModelOptions, Recompute, Schedule, TrainOptions, Trainer};
use trainer_eval::{Candidate, Panel, Progress, Question, Report, Speaker, conversation, generate_one};
use trainer_kernels::adamw::{AdamWConfig, StateBits};
use trainer_kernels::ops::Ops;
use trainer_kernels::sampling::SamplingParams;
use trainer_model::{AdapterBias, AdapterConfig, ModelConfig, ModelDigest, ModelFiles};
use trainer_plugin_host::mixing::{MixerSetup, Source as MixSource};
use trainer_plugin_host::{Kind, Plugin};
use trainer_runtime::{
    Base, DataParts, DeviceInfo, DeviceKind, Machine, PlanChoice, PlanRequest, Planned, Plugins, adapter_digest, choose_plan,
    compiler_command, default_workers, limit_in_bytes, load_base, model_files, open_sources, pipeline_spec, plan_again, source_digest,
};

use crate::error::TrainError;
use crate::events::{Banner, Event, PluginInfo, SourceInfo, When};
use crate::lock::{Lock, LockError, MachineLock, ModelLock, PlanLock, PluginLock, ProductsLock, Recorded, SourceLock, VERSION, libraries};

/// Tokens that samples are packed to on the CPU where the recipe packs: enough rows for the matrix kernels to be efficient, few enough to stay
/// in cache.
const PACKED_TOKENS: usize = 2048;
/// The same on a card, at the least: what the longest sample needs is there for packing too.
const PACKED_TOKENS_ON_CARD: usize = 4096;

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
}

impl<O: Ops> Assembly<O> {
    /// Loads everything that the recipe names for a device that was opened, and computes plan and lock. Nothing is written. On the machine of
    /// `before`, the lock of a run that is repeated or goes on, its plan is taken over instead of what would be chosen now. `load` puts the model on
    /// the device at once, while its files are hashed for the lock.
    ///
    /// # Errors
    /// Whatever of the recipe cannot be had, or does not fit the device's memory.
    pub fn new(
        recipe: Recipe,
        ops: Arc<O>,
        threads: usize,
        device: DeviceInfo,
        before: Option<&Lock>,
        load: bool,
    ) -> Result<Self, TrainError> {
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
        let evaluates = (recipe.eval.before || recipe.eval.after) && !recipe.eval.metrics.is_empty();
        let panel = if evaluates { Some(Panel::new(&recipe, &mut plugins)?) } else { None };
        let sources = open_sources(&recipe)?;
        let loaded: Vec<Arc<Plugin>> = plugins.loaded().cloned().collect();
        let planned = choose(ops.as_ref(), &recipe, &base.config, &device, plan.and_then(|p| p.memory.as_ref()))?;
        let keeps = planned.keeps(base.config.num_hidden_layers);
        let epoch = mixer.mixer(&mixer_setup(&recipe, &sources), None)?.epoch_length()?;
        let steps = steps(&recipe, epoch)?;
        let model = if load { Some(put_on_device(&ops, &recipe, &base, &planned)?) } else { None };
        let lock = Lock {
            version: VERSION,
            trainer: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: recipe.identity(),
            model: ModelLock::new(base.digest.get()?.files.iter().map(|f| (f.name.clone(), f.sha256.clone())).collect()),
            tokenizer: base.tokenizer.digest().to_owned(),
            adapter_from: recipe.adapter.from.as_deref().map(adapter_files).transpose()?,
            data: recipe.data.sources.iter().zip(&sources).map(|(s, source)| source_lock(&s.name, &s.path, source)).collect(),
            eval_data: panel.as_ref().map(|p| SourceLock {
                name: "eval".to_owned(),
                path: p.rows.data.path.clone(),
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
                model: base.name.clone(),
                device: device.name.clone(),
                driver: device.driver.clone(),
            },
        };
        Ok(Self { base, ops, threads, device, mixer, speaker, formatters, sources, panel, plugins: loaded, planned, model, lock, recipe })
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

    /// Tries the chat template's training form on a probe and gives warnings.
    ///
    /// # Errors
    /// The template is caught at a wrong claim.
    pub fn check_template(&self) -> Result<Vec<String>, TrainError> {
        Ok(self.speaker.check_training()?)
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

    /// The stream of samples, from the beginning or from a state.
    ///
    /// # Errors
    /// Data or plugins that do not fit the state.
    pub fn pipeline(&self, state: Option<&PipelineState>) -> Result<Pipeline, TrainError> {
        let recipe = &self.recipe;
        let parts = DataParts {
            mixer: &self.mixer,
            formatters: &self.formatters,
            sources: &self.sources,
            template: &self.speaker.template,
            tokenizer: &self.base.tokenizer,
        };
        let spec = pipeline_spec(recipe, &parts)?;
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
            return Ok(Candidate { model: work.model.clone(), base, live: None, adapter: None });
        }
        let adapter = self.peft_adapter(work)?;
        let digest = Some(adapter_digest(&adapter)?);
        if self.device.kind != DeviceKind::Cpu {
            return Ok(Candidate { model: work.model.clone(), base, live: Some(work.trainer.adapter()), adapter: digest });
        }
        let model = Model::merged(self.ops.clone(), &base.config, &base.weights, &adapter)?;
        Ok(Candidate { model, base, live: None, adapter: digest })
    }

    /// Evaluates the base or the trained model and writes the report; none if the recipe has nothing to evaluate.
    ///
    /// # Errors
    /// See [`trainer_eval::EvalError`].
    pub fn evaluate(
        &self,
        work: &Work<O>,
        when: When,
        folder: &Path,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Option<Report>, TrainError> {
        let Some(panel) = &self.panel else { return Ok(None) };
        Ok(Some(panel.judge(&self.candidate(work, when)?, &self.speaker, folder, when.name(), progress)?.report))
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
        grants: Vec::new(),
    }
}

fn plugin_lock(plugin: &Arc<Plugin>, recipe: &Recipe) -> PluginLock {
    let manifest = plugin.manifest();
    let name = manifest.name.as_str();
    let mut settings = BTreeMap::new();
    let mut add = |usage: String, value: trainer_config::Settings| settings.insert(usage, serde_json::Value::Object(value));
    if recipe.mix.plugin.as_str() == name {
        add("mix".into(), recipe.settings_of(&recipe.mix.plugin, &recipe.mix.settings));
    }
    if recipe.template.plugin.as_str() == name {
        add("template".into(), recipe.settings_of(&recipe.template.plugin, &recipe.template.settings));
    }
    for s in recipe.data.sources.iter().filter(|s| s.formatter.as_str() == name) {
        add(format!("data.{}", s.name), recipe.settings_of(&s.formatter, &s.settings));
    }
    for metric in recipe.eval.metrics.iter().filter(|m| m.as_str() == name) {
        add("eval".into(), recipe.metric_settings(metric));
    }
    for tools in recipe.eval.tools.iter().filter(|t| t.as_str() == name) {
        add("tools".into(), recipe.settings_of(tools, &trainer_config::Settings::new()));
    }
    PluginLock {
        version: manifest.version.clone(),
        sha256: plugin.digest().to_owned(),
        kinds: plugin.kinds().iter().map(|k| (k.kind.to_string(), k.version.to_string())).collect(),
        grants: Vec::new(),
        limits: deciding_limits(plugin),
        settings,
    }
}

/// A plugin's limits without those that only depend on the machine.
fn deciding_limits(plugin: &Plugin) -> serde_json::Value {
    let mut limits = serde_json::to_value(plugin.limits()).unwrap_or_default();
    if let Some(map) = limits.as_object_mut() {
        map.retain(|key, _| !Recipe::TIMING_LIMITS.contains(&key.as_str()));
    }
    limits
}

fn source_lock(name: &str, path: &DataPath, source: &Source) -> SourceLock {
    SourceLock { name: name.to_owned(), path: path.to_string(), sha256: source_digest(source), rows: Some(source.len()) }
}

fn mixer_setup(recipe: &Recipe, sources: &[Arc<Source>]) -> MixerSetup {
    MixerSetup {
        settings: serde_json::Value::Object(recipe.settings_of(&recipe.mix.plugin, &recipe.mix.settings)),
        sources: sources
            .iter()
            .map(|s| MixSource { name: s.name().to_owned(), length: Some(s.mix_length()), random_access: s.random_access() })
            .collect(),
        seed: recipe.train.seed,
        feedback_lag: recipe.mix.feedback_lag,
    }
}

fn steps(recipe: &Recipe, epoch: Option<u64>) -> Result<u64, TrainError> {
    match (recipe.length(), epoch) {
        (Length::Steps(n), _) => Ok(n),
        (Length::Epochs(epochs), Some(draws)) => {
            let samples = (epochs * draws as f64).ceil();
            Ok(((samples / recipe.samples_per_step().max(1) as f64).ceil() as u64).max(1))
        }
        (Length::Epochs(epochs), None) => Err(TrainError::NoEpoch { epochs, mixer: recipe.mix.plugin.to_string() }),
    }
}

fn adapter_config(recipe: &Recipe) -> AdapterConfig {
    let a = &recipe.adapter;
    let mut config = AdapterConfig::default();
    config.r = a.r as usize;
    config.alpha = a.alpha;
    config.dropout = a.dropout;
    config.rslora = a.rslora;
    config.bias = match a.bias {
        trainer_config::Bias::None => AdapterBias::None,
        trainer_config::Bias::All => AdapterBias::All,
        trainer_config::Bias::LoraOnly => AdapterBias::LoraOnly,
    };
    config.target_modules = a.targets.iter().map(ToString::to_string).collect();
    config.rank_pattern = a.rank_pattern.iter().map(|(name, r)| (name.clone(), *r as usize)).collect();
    config.alpha_pattern = a.alpha_pattern.iter().map(|(name, alpha)| (name.clone(), *alpha)).collect();
    config
}

fn optimizer(recipe: &Recipe) -> AdamWConfig {
    let t = &recipe.train;
    let [beta1, beta2] = t.betas;
    let bits = match t.optimizer {
        Optimizer::AdamW8bit => StateBits::Eight,
        Optimizer::AdamW => StateBits::ThirtyTwo,
    };
    AdamWConfig { beta1, beta2, eps: t.eps, weight_decay: t.weight_decay, bits, ..AdamWConfig::default() }
}

/// What the recipe fixes about recomputation.
fn recompute(recipe: &Recipe) -> Option<Recompute> {
    match recipe.train.recompute {
        RecomputeSetting::All => Some(Recompute::All),
        RecomputeSetting::None => Some(Recompute::None),
        RecomputeSetting::Auto => None,
    }
}

/// How a run of a recipe would use a device, from the model's configuration alone: nothing is loaded.
///
/// # Errors
/// A model whose configuration cannot be read, or a run that does not fit.
pub fn plan_run<O: Ops>(ops: &O, recipe: &Recipe, device: &DeviceInfo) -> Result<(ModelConfig, Planned), TrainError> {
    let config = ModelConfig::read(&model_files(&recipe.model.source))?;
    let planned = choose(ops, recipe, &config, device, None)?;
    Ok((config, planned))
}

/// The plan for a recipe: the longest sample must fit, and a packed micro-batch where memory allows; or the one that was chosen before.
fn choose<O: Ops>(
    ops: &O,
    recipe: &Recipe,
    config: &ModelConfig,
    device: &DeviceInfo,
    before: Option<&PlanChoice>,
) -> Result<Planned, TrainError> {
    let longest = recipe.data.max_seq_length;
    let request = PlanRequest {
        config,
        adapter: &adapter_config(recipe),
        optimizer: optimizer(recipe),
        longest,
        packed: match device.kind {
            DeviceKind::Cpu => PACKED_TOKENS,
            DeviceKind::Cuda => PACKED_TOKENS_ON_CARD.max(longest),
        },
        sequence: longest,
        recompute: recompute(recipe),
        goal: recipe.device.plan,
        limit: limit_in_bytes(&recipe.device),
    };
    Ok(match before {
        Some(before) => plan_again(ops, &request, before)?,
        None => choose_plan(ops, &request)?,
    })
}

/// What else of the plan decides bits, or on a card the speed.
fn algorithms(planned: &Planned, keeps: &[Keep], kind: DeviceKind) -> BTreeMap<String, String> {
    let packed = ("packed micro-batch".to_owned(), format!("{} tokens", planned.packed));
    let mut all = BTreeMap::from([packed]);
    let mut add = |name: &str, text: String| all.insert(name.to_owned(), text);
    match kind {
        DeviceKind::Cpu => add("evaluation", "merged adapter".to_owned()),
        DeviceKind::Cuda => {
            let count = |keep: Keep| keeps.iter().filter(|k| **k == keep).count();
            let (whole, lean, input) = (count(Keep::All), count(Keep::Lean), count(Keep::Input));
            add("kept activations", format!("all of {whole} layers, products of {lean}, inputs of {input}"));
            add("layer inputs", if planned.choice.offload { "in host memory" } else { "on the card" }.to_owned());
            add("loss", format!("{} positions at a time", planned.choice.loss_rows));
            add("evaluation", "adapter beside the weights".to_owned())
        }
    };
    all
}

fn weights_name<O: Ops>(recipe: &Recipe, planned: &Planned, ops: &O) -> String {
    let how = planned.weights_text(ops);
    match recipe.model.quantization {
        Quantization::Nf4 => format!("nf4 (double-quantized), {how}"),
        Quantization::None if ops.element_bytes() == 4 => "f32".to_owned(),
        Quantization::None => "bf16".to_owned(),
        Quantization::AsStored => format!("as stored, {how}"),
    }
}

/// Digests of the files of an adapter to start from.
fn adapter_files(folder: &Path) -> Result<BTreeMap<String, String>, TrainError> {
    Ok(ModelDigest::of(&ModelFiles::dir(folder))?.files.into_iter().map(|f| (f.name, f.sha256)).collect())
}
