//! Training: micro-batches accumulate gradients, an optimizer step applies them, and the whole state can be written down and taken up again.

use std::collections::BTreeMap;
use std::sync::Arc;

use trainer_kernels::adamw::{AdamWConfig, OptimizerState, clip_factor};
use trainer_kernels::ops::{AdamWItem, HostBatch, Ops};

use crate::adapter::{Adapter, Gradients, sites};
use crate::decoder::{Pass, StepDropout};
use crate::error::{EngineError, OpsContext, Result};
use crate::model::Model;
use crate::plan::{MemoryPlan, PlanOptions, plan};
use crate::workspace::{Layout, Parts, Recompute, Workspace};

/// What does not change during a run.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// The most tokens in a micro-batch.
    pub max_tokens: usize,
    /// Which layers are computed again in the backward.
    pub recompute: Recompute,
    /// Whether layer inputs wait outside of the device's memory from forward to backward.
    pub offload: bool,
    /// The optimizer.
    pub optimizer: AdamWConfig,
    /// Gradients of a larger norm are scaled down to it; `None`: never.
    pub max_grad_norm: Option<f64>,
    /// The run's seed: of the dropout.
    pub seed: u64,
    /// Positions whose logits exist at the same time in the loss, on backends where that is a choice: a matter of memory and speed.
    pub loss_rows: usize,
}

/// What [`TrainOptions::loss_rows`] is where nothing else is said.
pub const LOSS_ROWS: usize = 1024;

/// The losses of one micro-batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroLoss {
    /// Per sequence: `Σ weight * loss` over its tokens, in nats, not normalised.
    pub sums: Vec<f64>,
    /// Per sequence: `Σ weight`.
    pub weights: Vec<f64>,
}

impl MicroLoss {
    /// `Σ weight * loss` of the whole micro-batch. Added up over a step and divided by the step's weights, it is the step's loss.
    pub fn sum(&self) -> f64 {
        self.sums.iter().sum()
    }

    /// `Σ weight` of the whole micro-batch.
    pub fn weight(&self) -> f64 {
        self.weights.iter().sum()
    }
}

/// What an optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// The norm of all gradients before clipping.
    pub grad_norm: f64,
    /// What the gradients were multiplied by: 1, or less where they were clipped.
    pub clip: f64,
    /// The learning rate used.
    pub lr: f64,
}

/// Everything that decides how training goes on: plain data for a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrainState {
    /// Optimizer steps done.
    pub step: u64,
    /// Trained values by name: `<module>.lora_A.weight`, `<module>.lora_B.weight`, `<module>.bias`.
    pub parameters: BTreeMap<String, Vec<f32>>,
    /// The optimizer's state of each, under the same names.
    pub optimizer: BTreeMap<String, OptimizerState>,
}

/// A model with an adapter in training.
pub struct Trainer<O: Ops> {
    model: Arc<Model<O>>,
    adapter: Adapter<O>,
    gradients: Gradients<O>,
    /// In the order of [`Trainer::names`].
    states: Vec<O::State>,
    workspace: Workspace<O>,
    options: TrainOptions,
    plan: MemoryPlan,
    step: u64,
    /// Micro-batches since the last optimizer step.
    pending: usize,
}

impl<O: Ops> Trainer<O> {
    /// Allocates everything that training needs.
    ///
    /// # Errors
    /// Settings out of range, sizes that overflow, or memory that the backend cannot give.
    pub fn new(model: Arc<Model<O>>, adapter: Adapter<O>, options: TrainOptions) -> Result<Self> {
        if let Err(e) = options.optimizer.validate() {
            return Err(EngineError::State(e.to_string()));
        }
        if let Some(norm) = options.max_grad_norm
            && (norm.is_nan() || norm <= 0.0)
        {
            return Err(EngineError::Setting {
                name: "max_grad_norm",
                value: norm.to_string(),
                expected: "a positive number, or none at all",
            });
        }
        let plan = plan(
            model.ops(),
            model.config(),
            Some(adapter.config()),
            &PlanOptions {
                max_tokens: options.max_tokens,
                recompute: options.recompute.clone(),
                offload: options.offload,
                host_embedding: model.host_embedding(),
                optimizer: Some(options.optimizer),
                weights: model.weight_plan(),
                loss_rows: options.loss_rows,
                generation: None,
            },
        )?;
        model.ops().set_loss_rows(options.loss_rows);
        let sites = sites(adapter.config(), model.dims())?;
        let layout = Layout::new(model.dims(), &sites, &options.recompute, options.offload)?;
        let gradients = Gradients::new(model.ops(), &adapter)?;
        let mut states = Vec::new();
        for lora in adapter.loras.iter().flatten() {
            for (_, len) in lora.lengths() {
                states.push(model.ops().state(len, &options.optimizer).at(|| format!("optimizer state of {}", lora.module.name))?);
            }
        }
        let workspace = Workspace::new(model.ops(), model.dims(), layout, options.max_tokens)?;
        tracing::debug!(bytes = plan.total(), "training buffers allocated");
        Ok(Trainer { model, adapter, gradients, states, workspace, options, plan, step: 0, pending: 0 })
    }

    /// Forward and backward of one micro-batch: adds its gradients to those of the step. `inv_total_weight` is 1 / the sum of the target weights of
    /// ALL micro-batches of the step, so that the step's gradient is that of its weighted mean loss however it is divided.
    ///
    /// # Errors
    /// A batch that does not fit (nothing is changed then), or whose loss is not a number (the step's gradients are dropped).
    pub fn train_micro_batch(&mut self, batch: &HostBatch, inv_total_weight: f32) -> Result<MicroLoss> {
        if !(inv_total_weight.is_finite() && inv_total_weight > 0.0) {
            let text = format!("the step's target weight is {}: a step needs at least one token to learn", 1.0 / inv_total_weight);
            return Err(EngineError::Batch(text));
        }
        let weights = check(batch, self.workspace.tokens)?;
        if self.pending == 0 {
            self.gradients.zero(self.model.ops())?;
        }
        let dropout = self.dropout()?;
        let device = self.model.ops().batch(batch).at(|| "micro-batch".into())?;
        let pass = Pass { model: &self.model, adapter: &self.adapter, batch: &device, n: batch.ids.len(), dropout };
        pass.forward(&mut self.workspace)?;
        let sums = pass.loss(&mut self.workspace, Some(inv_total_weight))?;
        if let Some(value) = sums.iter().find(|s| !s.is_finite()) {
            self.pending = 0;
            return Err(EngineError::NotFinite { step: self.step + 1, what: "loss", value: *value });
        }
        pass.backward(&mut self.workspace, &mut self.gradients)?;
        self.pending += 1;
        Ok(MicroLoss { sums, weights })
    }

    /// The losses of a micro-batch without dropout and without learning from it.
    ///
    /// # Errors
    /// A batch that does not fit.
    pub fn loss(&mut self, batch: &HostBatch) -> Result<MicroLoss> {
        let weights = check(batch, self.workspace.tokens)?;
        let device = self.model.ops().batch(batch).at(|| "micro-batch".into())?;
        let pass = Pass { model: &self.model, adapter: &self.adapter, batch: &device, n: batch.ids.len(), dropout: None };
        pass.forward(&mut self.workspace)?;
        let sums = pass.loss(&mut self.workspace, None)?;
        Ok(MicroLoss { sums, weights })
    }

    fn dropout(&self) -> Result<Option<StepDropout>> {
        let p = self.adapter.config().dropout as f32;
        if p == 0.0 {
            return Ok(None);
        }
        let step = u32::try_from(self.step + 1).map_err(|_| EngineError::Overflow("the number of optimizer steps"))?;
        Ok(Some(StepDropout { p, seed: self.options.seed, step }))
    }

    /// Clips the accumulated gradients by their global norm (as `torch.nn.utils.clip_grad_norm_`) and takes one AdamW step on every trained tensor.
    ///
    /// # Errors
    /// Without a micro-batch since the last step, or with a norm that is not a number: the adapter is then as before, the gradients are dropped.
    pub fn optimizer_step(&mut self, lr: f64) -> Result<StepReport> {
        let step = self.step + 1;
        if self.pending == 0 {
            return Err(EngineError::NoGradient { step });
        }
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(EngineError::Setting { name: "learning rate", value: lr.to_string(), expected: "a number, at least 0" });
        }
        let ops = self.model.ops();
        self.pending = 0;
        let gradients: Vec<&O::Param> = self.gradients.loras.iter().flatten().flat_map(|l| l.tensors().map(|t| t.1)).collect();
        let grad_norm = ops.grad_norm_sq(&gradients).at(|| "gradient norm".into())?.sqrt();
        if !grad_norm.is_finite() {
            return Err(EngineError::NotFinite { step, what: "gradient norm", value: grad_norm });
        }
        let clip = self.options.max_grad_norm.map_or(1.0, |max| clip_factor(grad_norm, max));
        let values = self.adapter.loras.iter_mut().flatten().flat_map(|l| l.tensors_mut().map(|t| t.1));
        let mut items: Vec<AdamWItem<'_, O::Param, O::State>> =
            values.zip(gradients).zip(&mut self.states).map(|((param, grad), state)| AdamWItem { param, grad, state }).collect();
        ops.adamw_all(&mut items, &self.options.optimizer, lr as f32, clip as f32, step).at(|| format!("AdamW, step {step}"))?;
        self.step = step;
        Ok(StepReport { step, grad_norm, clip, lr })
    }

    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model<O>> {
        &self.model
    }

    /// The adapter as it is now.
    pub fn adapter(&self) -> &Adapter<O> {
        &self.adapter
    }

    /// Gives back the adapter and frees everything else.
    pub fn into_adapter(self) -> Adapter<O> {
        self.adapter
    }

    /// The accumulated gradients of the step, by the names of [`TrainState::parameters`].
    ///
    /// # Errors
    /// From the backend.
    pub fn gradients(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        read_all(self.model.ops(), &self.gradients.loras)
    }

    /// What is held, by part.
    pub fn memory(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Bytes of the workspace as it was allocated, by part.
    pub fn workspace_bytes(&self) -> &Parts {
        &self.workspace.parts
    }

    /// The names of all trained tensors, in the order of their optimizer steps.
    fn names(&self) -> Vec<String> {
        let loras = self.adapter.loras.iter().flatten();
        loras.flat_map(|l| l.tensors().map(|(end, _)| format!("{}.{end}", l.module.name))).collect()
    }

    /// Everything that decides how training goes on, exactly.
    ///
    /// # Errors
    /// Between the micro-batches of a step, whose gradients no checkpoint holds; from the backend.
    pub fn state(&self) -> Result<TrainState> {
        if self.pending > 0 {
            let text = format!("step {} is under way ({} micro-batches): its gradients cannot be saved", self.step + 1, self.pending);
            return Err(EngineError::State(text));
        }
        let mut optimizer = BTreeMap::new();
        for (name, state) in self.names().into_iter().zip(&self.states) {
            let host = self.model.ops().read_state(state).at(|| format!("optimizer state of {name}"))?;
            optimizer.insert(name, host);
        }
        Ok(TrainState { step: self.step, parameters: read_all(self.model.ops(), &self.adapter.loras)?, optimizer })
    }

    /// Takes up a state from a checkpoint of the same adapter settings and optimizer. Training then goes on bit for bit as if never interrupted.
    ///
    /// # Errors
    /// [`EngineError::State`] for a state with other tensors, lengths or forms of moments; nothing is changed then.
    pub fn load_state(&mut self, state: &TrainState) -> Result<()> {
        let names = self.names();
        let unknown = |name: &&String| !names.contains(name);
        if let Some(name) = state.parameters.keys().chain(state.optimizer.keys()).find(unknown) {
            return Err(EngineError::State(format!("{name} is not trained here")));
        }
        let lengths: Vec<usize> = self.adapter.loras.iter().flatten().flat_map(|l| l.lengths().map(|t| t.1)).collect();
        let ops = self.model.ops();
        let mut states = Vec::with_capacity(names.len());
        let mut values = Vec::with_capacity(names.len());
        for (name, len) in names.iter().zip(&lengths) {
            let value = state.parameters.get(name).ok_or_else(|| EngineError::State(format!("{name} is missing")))?;
            if value.len() != *len {
                return Err(EngineError::State(format!("{name} has {} values where the adapter has {len}", value.len())));
            }
            let moments = state.optimizer.get(name).ok_or_else(|| EngineError::State(format!("optimizer state of {name} is missing")))?;
            moments.validate(*len).map_err(|e| EngineError::State(format!("optimizer state of {name}: {e}")))?;
            let fresh = OptimizerState::new(
                0,
                &AdamWConfig { min_8bit_size: 0, bits: self.options.optimizer.bits_for(*len), ..self.options.optimizer },
            );
            if std::mem::discriminant(moments) != std::mem::discriminant(&fresh) {
                let bits = self.options.optimizer.bits_for(*len);
                return Err(EngineError::State(format!(
                    "optimizer state of {name} is not in the form that the settings ask for ({bits:?})"
                )));
            }
            states.push(ops.write_state(moments).at(|| format!("optimizer state of {name}"))?);
            values.push(value);
        }
        let params = self.adapter.loras.iter_mut().flatten().flat_map(|l| l.tensors_mut().map(|t| t.1));
        for ((param, value), name) in params.zip(values).zip(&names) {
            ops.write_param(value, param).at(|| name.clone())?;
        }
        self.states = states;
        self.step = state.step;
        self.pending = 0;
        Ok(())
    }
}

fn read_all<O: Ops>(ops: &O, loras: &[Option<crate::adapter::Lora<O::Param>>]) -> Result<BTreeMap<String, Vec<f32>>> {
    let mut all = BTreeMap::new();
    for lora in loras.iter().flatten() {
        for (end, param) in lora.tensors() {
            let name = format!("{}.{end}", lora.module.name);
            let values = ops.read_param(param).at(|| format!("reading {name}"))?;
            all.insert(name, values);
        }
    }
    Ok(all)
}

/// Checks what no operation would notice, and adds up the weights of each sequence.
fn check(batch: &HostBatch, limit: usize) -> Result<Vec<f64>> {
    let n = batch.ids.len();
    let bad = |text: String| Err(EngineError::Batch(text));
    if n == 0 {
        return bad("no tokens".into());
    }
    if n > limit {
        return Err(EngineError::TooManyTokens { tokens: n, limit });
    }
    for (name, len) in [("targets", batch.targets.len()), ("weights", batch.weights.len()), ("positions", batch.positions.len())] {
        if len != n {
            return bad(format!("{len} {name} for {n} tokens"));
        }
    }
    let sequences = batch.cu_seqlens.len().saturating_sub(1);
    let ends = batch.cu_seqlens.first() == Some(&0) && batch.cu_seqlens.last().map(|&e| e as usize) == Some(n);
    if !ends || batch.cu_seqlens.windows(2).any(|w| w[0] >= w[1]) {
        return bad(format!("cu_seqlens must rise from 0 to {n}, one step per sequence"));
    }
    if batch.samples.len() != sequences {
        return bad(format!("{} sample numbers for {sequences} sequences", batch.samples.len()));
    }
    if let Some(i) = batch.weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        return bad(format!("the weight of token {i} is {}", batch.weights[i]));
    }
    let mut rest = batch.weights.as_slice();
    let mut sums = Vec::with_capacity(sequences);
    for pair in batch.cu_seqlens.windows(2) {
        let (sequence, after) = rest.split_at_checked((pair[1] - pair[0]) as usize).unwrap_or((rest, &[]));
        if sequence.last().is_some_and(|w| *w != 0.0) {
            return bad(format!("the last token of sequence {} has a weight, but no next token to predict", sums.len()));
        }
        sums.push(sequence.iter().map(|w| f64::from(*w)).sum());
        rest = after;
    }
    Ok(sums)
}
