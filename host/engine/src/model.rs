//! A frozen model on a device.

use std::sync::Arc;

use trainer_kernels::ops::{HostBatch, HostLinear, HostMatrix, Ops, WeightPlan};
use trainer_model::{Adapter as HostAdapter, AdapterConfig, LinearWeight, ModelConfig, ModelWeights};

use crate::adapter::{Adapter, check_tensors, sites};
use crate::error::{EngineError, OpsContext, Result};
use crate::forward::{Buffers, Forward, finish};
use crate::modules::{Dims, Module, PROJECTIONS, Projection};
use crate::workspace::MidWidths;

/// One decoder layer's frozen weights.
pub(crate) struct Layer<O: Ops> {
    pub input_norm: O::Vector,
    pub qkv: O::Group,
    pub q_norm: O::Vector,
    pub k_norm: O::Vector,
    pub o: O::Group,
    pub post_norm: O::Vector,
    pub gate_up: O::Group,
    pub down: O::Group,
}

/// How a model lies on a device.
#[derive(Clone, Copy, Debug)]
pub struct ModelOptions<'a> {
    /// How frozen weights are held.
    pub weights: WeightPlan,
    /// An adapter that there should be room for beside the weights: faster with it, equal otherwise.
    pub adapter: Option<&'a AdapterConfig>,
    /// Whether the embedding, if it is not the output head too, may lie in host memory.
    pub host_embedding: bool,
}

impl Default for ModelOptions<'_> {
    /// Weights unpacked once, no room, all on the device.
    fn default() -> Self {
        Self { weights: WeightPlan::Unpacked, adapter: None, host_embedding: false }
    }
}

/// A frozen Qwen3 model on a device.
pub struct Model<O: Ops> {
    ops: Arc<O>,
    config: ModelConfig,
    dims: Dims,
    plan: WeightPlan,
    host_embedding: bool,
    embedding: O::Table,
    /// `None`: the embedding table.
    head: Option<O::Table>,
    layers: Vec<Layer<O>>,
    final_norm: O::Vector,
    /// By module number: the biases, from which trained ones start.
    biases: Vec<Option<Vec<f32>>>,
    parameters: u64,
}

/// The hidden states and logits of a batch, for tests and tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HiddenStates {
    /// After the embedding, `[n, hidden]`.
    pub embedding: Vec<f32>,
    /// After each layer, `[n, hidden]`.
    pub layers: Vec<Vec<f32>>,
    /// After the final norm, `[n, hidden]`.
    pub final_norm: Vec<f32>,
    /// `[n, vocabulary]`.
    pub logits: Vec<f32>,
}

impl<O: Ops> Model<O> {
    /// Puts a model on a device.
    ///
    /// # Errors
    /// [`EngineError::Model`] where weights do not have the shapes that the configuration gives; [`EngineError::Ops`] from the backend.
    pub fn new(ops: Arc<O>, config: &ModelConfig, weights: &ModelWeights, plan: WeightPlan) -> Result<Arc<Self>> {
        Self::with_options(ops, config, weights, &ModelOptions { weights: plan, ..ModelOptions::default() })
    }

    /// Puts a model on a device as the options say.
    ///
    /// # Errors
    /// As [`Model::new`], and [`EngineError::AdapterConfig`] if the adapter's settings do not fit the model.
    pub fn with_options(ops: Arc<O>, config: &ModelConfig, weights: &ModelWeights, options: &ModelOptions<'_>) -> Result<Arc<Self>> {
        Self::build(ops, config, weights, options, None)
    }

    /// Puts a model on a device with an adapter folded into its weights, `W + scale * B A`, which become dense f32: faster to generate with, and
    /// equal to base and adapter up to rounding.
    ///
    /// # Errors
    /// As [`Model::new`] and [`Adapter::load`].
    pub fn merged(ops: Arc<O>, config: &ModelConfig, weights: &ModelWeights, adapter: &HostAdapter) -> Result<Arc<Self>> {
        let dims = Dims::new(config)?;
        check_tensors(&dims, &sites(&adapter.config, &dims)?, &adapter.modules)?;
        Self::build(ops, config, weights, &ModelOptions::default(), Some(adapter))
    }

    fn build(
        ops: Arc<O>,
        config: &ModelConfig,
        weights: &ModelWeights,
        options: &ModelOptions<'_>,
        merge: Option<&HostAdapter>,
    ) -> Result<Arc<Self>> {
        let dims = Dims::new(config)?;
        let plan = options.weights;
        let sites = options.adapter.map(|config| sites(config, &dims)).transpose()?;
        if weights.layers.len() != dims.layers {
            return Err(EngineError::Model(format!("{} layers of weights, {} in the configuration", weights.layers.len(), dims.layers)));
        }
        let modules = dims.modules();
        let mut layers = Vec::with_capacity(dims.layers);
        let mut biases = Vec::with_capacity(modules.len());
        let vector = |values: &[f32], len: usize, what: &str, layer: usize| {
            check_len(values.len(), len, || format!("layer {layer}, {what}"))?;
            ops.vector(values).at(|| format!("layer {layer}, {what}"))
        };
        for (number, (layer, modules)) in weights.layers.iter().zip(modules.chunks_exact(PROJECTIONS)).enumerate() {
            let all = Projection::ALL.map(|p| match p {
                Projection::Q => &layer.q,
                Projection::K => &layer.k,
                Projection::V => &layer.v,
                Projection::O => &layer.o,
                Projection::Gate => &layer.gate,
                Projection::Up => &layer.up,
                Projection::Down => &layer.down,
            });
            let mut merged = Vec::with_capacity(PROJECTIONS);
            for (weight, module) in all.iter().zip(modules) {
                check_linear(weight, module)?;
                merged.push(merge.map(|adapter| fold(adapter, weight, module)).transpose()?.flatten());
                biases.push(weight.bias().map(<[f32]>::to_vec));
            }
            let hosts: Vec<HostLinear<'_>> = all
                .iter()
                .zip(modules)
                .zip(&merged)
                .map(|((weight, module), dense)| {
                    let trained = merge.and_then(|adapter| adapter.modules.get(&module.name)?.bias.as_deref());
                    HostLinear {
                        weight: dense.as_deref().map_or_else(|| host_matrix(weight), HostMatrix::F32),
                        out_features: module.out_features,
                        in_features: module.in_features,
                        bias: trained.or(weight.bias()),
                    }
                })
                .collect();
            let mids = sites.as_deref().map(|sites| MidWidths::of(sites, number)).unwrap_or_default();
            let group = |range: std::ops::Range<usize>, ranks: usize| {
                let members = hosts.get(range.clone()).unwrap_or_default();
                ops.group(members, plan, ranks).at(|| format!("layer {number}, projections {range:?}"))
            };
            let head_dim = dims.attention.head_dim;
            layers.push(Layer {
                input_norm: vector(&layer.input_norm, dims.hidden, "input_layernorm", number)?,
                post_norm: vector(&layer.post_norm, dims.hidden, "post_attention_layernorm", number)?,
                q_norm: vector(&layer.q_norm, head_dim, "q_norm", number)?,
                k_norm: vector(&layer.k_norm, head_dim, "k_norm", number)?,
                qkv: group(0..3, mids.qkv)?,
                o: group(3..4, mids.o)?,
                gate_up: group(4..6, mids.gate_up)?,
                down: group(6..7, mids.down)?,
            });
        }
        check_len(weights.final_norm.len(), dims.hidden, || "the final norm".into())?;
        let final_norm = ops.vector(&weights.final_norm).at(|| "final norm".into())?;
        let table = |weight: &LinearWeight, what: &str, lookup: bool| {
            check_len(weight.out_features(), dims.vocab, || format!("rows of {what}"))?;
            check_len(weight.in_features(), dims.hidden, || format!("columns of {what}"))?;
            if weight.bias().is_some() {
                return Err(EngineError::Model(format!("{what} has a bias, which Qwen3's has not")));
            }
            let matrix = host_matrix(weight);
            let made = if lookup { ops.lookup_table(matrix, dims.vocab, dims.hidden) } else { ops.table(matrix, dims.vocab, dims.hidden) };
            made.at(|| what.to_string())
        };
        let host_embedding = options.host_embedding && !dims.tied;
        let embedding = table(&weights.embed, "the embedding", host_embedding)?;
        let head = match (dims.tied, &weights.lm_head) {
            (true, _) => None,
            (false, Some(weight)) => Some(table(weight, "the output head", false)?),
            (false, None) => {
                return Err(EngineError::Model("the head is not tied to the embedding, but there are no weights for it".into()));
            }
        };
        Ok(Self::assemble(ops, config, dims, (plan, host_embedding), embedding, head, layers, final_norm, biases))
    }

    #[expect(clippy::too_many_arguments, reason = "a model has these parts")]
    pub(crate) fn assemble(
        ops: Arc<O>,
        config: &ModelConfig,
        dims: Dims,
        (plan, host_embedding): (WeightPlan, bool),
        embedding: O::Table,
        head: Option<O::Table>,
        layers: Vec<Layer<O>>,
        final_norm: O::Vector,
        biases: Vec<Option<Vec<f32>>>,
    ) -> Arc<Self> {
        let parameters = count(&dims);
        Arc::new(Model { ops, config: config.clone(), dims, plan, host_embedding, embedding, head, layers, final_norm, biases, parameters })
    }

    /// The backend.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// The backend, shared.
    pub fn shared_ops(&self) -> Arc<O> {
        Arc::clone(&self.ops)
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Its sizes.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// How frozen weights are held.
    pub fn weight_plan(&self) -> WeightPlan {
        self.plan
    }

    /// Whether the embedding may lie in host memory.
    pub fn host_embedding(&self) -> bool {
        self.host_embedding
    }

    /// Frozen values, the tied head counted once.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// The frozen bias of a module, by number.
    pub fn bias(&self, module: usize) -> Option<&[f32]> {
        self.biases.get(module)?.as_deref()
    }

    pub(crate) fn layers(&self) -> &[Layer<O>] {
        &self.layers
    }

    pub(crate) fn embedding(&self) -> &O::Table {
        &self.embedding
    }

    pub(crate) fn head(&self) -> &O::Table {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    pub(crate) fn final_norm(&self) -> &O::Vector {
        &self.final_norm
    }

    /// Runs a batch without a cache and returns every hidden state and all logits: for tests and for looking inside, not for speed.
    ///
    /// # Errors
    /// A batch that the backend refuses.
    pub fn hidden_states(&self, adapter: Option<&Adapter<O>>, batch: &HostBatch) -> Result<HiddenStates> {
        let n = batch.ids.len();
        let mut buffers = Buffers::new(self.ops(), &self.dims, adapter, n, n)?;
        let device = self.ops.batch(batch).at(|| "batch".into())?;
        let forward = Forward { model: self, adapter, batch: &device, n };
        let mut states = HiddenStates::default();
        let read = |t: &O::Tensor| self.ops.read_tensor(n, t).at(|| "hidden states".into());
        forward.embed(&mut buffers)?;
        states.embedding = read(&buffers.x)?;
        for layer in 0..self.dims.layers {
            forward.layer(layer, &mut buffers, None)?;
            states.layers.push(read(&buffers.x)?);
        }
        let rows: Vec<u32> = (0..n as u32).collect();
        finish(self, &rows, &mut buffers)?;
        states.final_norm = read(&buffers.last)?;
        states.logits = self.ops.logits(n, &buffers.last, self.head()).at(|| "logits".into())?;
        Ok(states)
    }
}

/// Frozen values of a model of these sizes.
pub(crate) fn count(dims: &Dims) -> u64 {
    let tables = if dims.tied { 1 } else { 2 };
    let linears: u64 = dims
        .modules()
        .iter()
        .map(|m| m.out_features as u64 * m.in_features as u64 + if m.has_bias { m.out_features as u64 } else { 0 })
        .sum();
    let norms = dims.layers * 2 * (dims.hidden + dims.attention.head_dim) + dims.hidden;
    tables * dims.vocab as u64 * dims.hidden as u64 + linears + norms as u64
}

fn check_len(got: usize, need: usize, what: impl FnOnce() -> String) -> Result<()> {
    if got == need { Ok(()) } else { Err(EngineError::Model(format!("{}: {got} where the configuration gives {need}", what()))) }
}

fn check_linear(weight: &LinearWeight, module: &Module) -> Result<()> {
    check_len(weight.out_features(), module.out_features, || format!("output features of {}", module.name))?;
    check_len(weight.in_features(), module.in_features, || format!("input features of {}", module.name))?;
    match weight.bias() {
        Some(bias) => check_len(bias.len(), module.out_features, || format!("bias of {}", module.name)),
        None => Ok(()),
    }
}

fn host_matrix(weight: &LinearWeight) -> HostMatrix<'_> {
    match weight {
        LinearWeight::Nf4 { weight, .. } => HostMatrix::Nf4(weight),
        LinearWeight::F32 { values, .. } => HostMatrix::F32(values),
        LinearWeight::Bf16 { values, .. } => HostMatrix::Bf16(values),
        LinearWeight::Stored { tensor, quantize, .. } => HostMatrix::Stored { source: tensor, quantize: *quantize },
    }
}

/// A projection's weight with its adapter folded in; `None` where there is none.
fn fold(adapter: &HostAdapter, weight: &LinearWeight, module: &Module) -> Result<Option<Vec<f32>>> {
    if adapter.modules.get(&module.name).is_none_or(|m| m.rank == 0) {
        return Ok(None);
    }
    let mut values = weight.to_f32().map_err(|e| EngineError::Model(format!("{}: {e}", module.name)))?;
    let merged = adapter.merge(&module.name, &mut values, module.out_features, module.in_features);
    merged.map_err(|e| EngineError::AdapterTensor { module: module.name.clone(), what: e.to_string() })?;
    Ok(Some(values))
}
