//! The operations trait: everything that a Qwen3 QLoRA engine asks of a device.
//!
//! The decoder layer, its backward and generation are written once over [`Ops`] (in `trainer-engine`); a backend is one implementation of
//! it. The CPU backend ([`crate::cpu::Cpu`]) computes in f32 and is the reference of every other.
//!
//! Conventions:
//! - Matrices are row-major; a linear weight is `[out, in]` and maps `x [n, in]` to `x Wᵀ [n, out]`, as in PyTorch.
//! - `n` is the number of token rows in use; buffers may be larger. Outputs are overwritten unless a parameter is called `*_acc`.
//! - All buffers are made before the first step and reused, so that a backend can keep them in one planned arena.
//! - Every reduction has a fixed order that depends neither on the number of threads nor on timing: the same call gives the same bits.
//! - A sequence is a run of rows given by `cu_seqlens`; positions restart in each, and no operation mixes rows of different sequences.

mod types;

pub use types::{
    AdamWItem, AttentionShape, Dropout, HostBatch, HostLinear, HostMatrix, LoraGrads, LoraMember, MatrixSource, OpsError, Random, Rates,
    ReadMatrix, Result, ScratchNeed, WeightPlan,
};

use crate::adamw::{AdamWConfig, OptimizerState};
use crate::nf4::{DoubleQuant, Nf4};
use crate::sampling::Draw;

/// The operations. See the module's conventions.
pub trait Ops: Send + Sync {
    /// Activations in the compute type, `[rows, cols]`.
    type Tensor: Send + Sync;
    /// Per-row statistics in f32 (reciprocal norms, log-sum-exps), `[rows, cols]`.
    type Stats: Send + Sync;
    /// Trained values or their gradients, f32 (or the backend's adapter type), any shape, flat.
    type Param: Send + Sync;
    /// A group of frozen projections with one input; member outputs lie side by side in a row of the result.
    type Group: Send + Sync;
    /// A dense `[rows, cols]` table: the embedding, which may also serve as the output head.
    type Table: Send + Sync;
    /// A frozen vector in f32 (norm weights).
    type Vector: Send + Sync;
    /// A batch on the device.
    type Batch: Send + Sync;
    /// Keys and values of all layers, `[slots, length, kv_width]` each.
    type Cache: Send + Sync;
    /// Optimizer state of one parameter.
    type State: Send + Sync;
    /// Activations that wait outside of the device's memory.
    type Offloaded: Send + Sync;
    /// Operations that were recorded, to be run again by one call.
    type Recording: Send;

    /// The backend's name for banners and locks, such as `cpu-f32`, with whatever decides its bits (instruction set).
    fn describe(&self) -> String;

    /// Bytes of one activation value: what memory plans multiply with.
    fn element_bytes(&self) -> usize {
        size_of::<f32>()
    }

    // --- planning ----------------------------------------------------------------------------------------------------------------------

    /// Bytes that [`Ops::group`] holds for these members (output and input features). Packed weights are taken to be NF4 with double quantization.
    fn group_bytes(&self, members: &[(usize, usize)], plan: WeightPlan, ranks: usize) -> u64 {
        let _ = ranks;
        let values: u64 = members.iter().map(|(out, inner)| (*out as u64).saturating_mul(*inner as u64)).sum();
        match plan {
            WeightPlan::Unpacked => values.saturating_mul(self.element_bytes() as u64),
            WeightPlan::Packed => values.div_ceil(2) + values.div_ceil(64) + values.div_ceil(64 * 256) * 4,
        }
    }

    /// Bytes of buffers that the backend makes for itself, by what they are for.
    fn scratch_bytes(&self, need: &ScratchNeed) -> Vec<(&'static str, u64)> {
        let _ = need;
        Vec::new()
    }

    /// Bytes that the device can still give; None where nothing is known or nothing is scarce.
    fn memory_available(&self) -> Option<u64> {
        None
    }

    /// Whether it is faster, or takes less host memory, to give this backend matrices in bf16 unread ([`HostMatrix::Stored`]).
    fn reads_weights(&self) -> bool {
        false
    }

    /// What was chosen so far by a library that has several ways to compute the same thing, each with other last bits: problem and choice, in the
    /// order of the problems. Each is a text of the backend's own.
    fn choices(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Takes these choices from now on ([`Ops::choices`] of another run).
    ///
    /// # Errors
    /// A choice that this machine's library does not know.
    fn choose(&self, choices: &[(String, String)]) -> Result<()> {
        match choices.first() {
            None => Ok(()),
            Some((problem, _)) => Err(OpsError::Device(format!("{} has no choice of algorithms, as for {problem}", self.describe()))),
        }
    }

    /// Takes the memory of a plan in one piece, so that nothing is allocated later.
    fn reserve(&self, bytes: u64) -> Result<()> {
        let _ = bytes;
        Ok(())
    }

    /// What the device can sustain, where predictions make sense.
    fn rates(&self) -> Option<Rates> {
        None
    }

    /// How many positions' logits may exist at the same time in the loss: a matter of memory and speed.
    fn set_loss_rows(&self, rows: usize) {
        let _ = rows;
    }

    // --- buffers -------------------------------------------------------------------------------------------------------------------

    /// A zeroed activation buffer.
    fn tensor(&self, rows: usize, cols: usize) -> Result<Self::Tensor>;
    /// A zeroed input of a group with adapters, `[rows, cols]`, and the buffer between A and B that goes with it, `[rows, ranks]`. A backend may lay
    /// them side by side, so that `[x | mid]` is one operand. `ranks` is the sum of the members' ranks, each rounded up to eight.
    fn tensor_with_mid(&self, rows: usize, cols: usize, ranks: usize) -> Result<(Self::Tensor, Self::Tensor)> {
        Ok((self.tensor(rows, cols)?, self.tensor(rows, ranks)?))
    }
    /// Columns that [`Ops::tensor_with_mid`] adds to `cols`, gaps included: what memory plans count.
    fn mid_columns(&self, cols: usize, ranks: usize) -> usize {
        let _ = cols;
        ranks
    }
    /// A zeroed statistics buffer.
    fn stats(&self, rows: usize, cols: usize) -> Result<Self::Stats>;
    /// Copies the first `n * cols` values out as f32.
    fn read_tensor(&self, n: usize, t: &Self::Tensor) -> Result<Vec<f32>>;
    /// Fills the first rows of `t`.
    fn write_tensor(&self, values: &[f32], t: &mut Self::Tensor) -> Result<()>;
    /// Sets the first `n` rows of `t` to zero.
    fn zero(&self, n: usize, t: &mut Self::Tensor) -> Result<()>;
    /// Copies the first `n` rows of `from` into `to`; both have the same width.
    fn copy(&self, n: usize, from: &Self::Tensor, to: &mut Self::Tensor) -> Result<()>;
    /// Copies what [`Ops::linear`] left between A and B, `ranks` columns as in [`Ops::tensor_with_mid`], to another such buffer.
    fn copy_mid(&self, n: usize, ranks: usize, from: &Self::Tensor, to: &mut Self::Tensor) -> Result<()>;
    /// A parameter with the given values.
    fn param(&self, values: &[f32]) -> Result<Self::Param>;
    /// A parameter's values.
    fn read_param(&self, p: &Self::Param) -> Result<Vec<f32>>;
    /// Overwrites a parameter.
    fn write_param(&self, values: &[f32], p: &mut Self::Param) -> Result<()>;
    /// Sets a parameter (a gradient) to zero.
    fn zero_param(&self, p: &mut Self::Param) -> Result<()>;
    /// Sets many parameters to zero.
    fn zero_params(&self, params: &mut [&mut Self::Param]) -> Result<()> {
        params.iter_mut().try_for_each(|p| self.zero_param(p))
    }
    /// Puts a group of frozen projections on the device. `ranks` is the sum of the ranks that its members' adapters will have, each rounded up
    /// to eight: a backend may leave room for them beside the weights. Other ranks must work too.
    fn group(&self, members: &[HostLinear<'_>], plan: WeightPlan, ranks: usize) -> Result<Self::Group>;
    /// A group of frozen projections with random weights, normal with mean 0, for measurements: the same for the same seed. `members` are output and
    /// input features; with `nf4` the weights are quantized with double quantization, as [`Ops::group`] would hold such a checkpoint.
    fn random_group(&self, members: &[(usize, usize)], random: Random, plan: WeightPlan, ranks: usize) -> Result<Self::Group> {
        let mut quantized = Vec::new();
        let mut dense = Vec::new();
        for (&(out, inner), member) in members.iter().zip(0u64..) {
            let len = out.checked_mul(inner).ok_or(OpsError::Memory { what: "random weights".into(), bytes: u64::MAX })?;
            let values = crate::rng::normal(random.seed.wrapping_add(member), random.deviation, len);
            if random.nf4 {
                let nf4 = Nf4::quantize(&values, &[out, inner], 64, DoubleQuant::default());
                quantized.push(nf4.map_err(|e| OpsError::Device(e.to_string()))?);
            } else {
                dense.push(values);
            }
        }
        let matrices = quantized.iter().map(HostMatrix::Nf4).chain(dense.iter().map(|v| HostMatrix::F32(v)));
        let linears: Vec<HostLinear<'_>> = matrices
            .zip(members)
            .map(|(weight, &(out_features, in_features))| HostLinear { weight, out_features, in_features, bias: None })
            .collect();
        self.group(&linears, plan, ranks)
    }
    /// Puts a dense table on the device.
    fn table(&self, weight: HostMatrix<'_>, rows: usize, cols: usize) -> Result<Self::Table>;
    /// A table of random values, as [`Ops::random_group`] makes them.
    fn random_table(&self, rows: usize, cols: usize, random: Random) -> Result<Self::Table> {
        let len = rows.checked_mul(cols).ok_or(OpsError::Memory { what: "random values".into(), bytes: u64::MAX })?;
        self.table(HostMatrix::F32(&crate::rng::normal(random.seed, random.deviation, len)), rows, cols)
    }
    /// A table that is only ever looked up ([`Ops::embed`]) and may therefore lie in host memory.
    fn lookup_table(&self, weight: HostMatrix<'_>, rows: usize, cols: usize) -> Result<Self::Table> {
        self.table(weight, rows, cols)
    }
    /// [`Ops::lookup_table`] with random values.
    fn random_lookup_table(&self, rows: usize, cols: usize, random: Random) -> Result<Self::Table> {
        self.random_table(rows, cols, random)
    }
    /// Bytes of the device's memory that [`Ops::lookup_table`] takes.
    fn lookup_table_bytes(&self, rows: usize, cols: usize) -> u64 {
        (rows as u64).saturating_mul(cols as u64).saturating_mul(self.element_bytes() as u64)
    }
    /// Room for activations outside of the device's memory.
    fn offloaded(&self, rows: usize, cols: usize) -> Result<Self::Offloaded>;
    /// Begins to copy the first `n` rows of `from` out. `from` must not be overwritten before [`Ops::settle`].
    fn offload(&self, n: usize, from: &Self::Tensor, to: &mut Self::Offloaded) -> Result<()>;
    /// Begins to copy `n` rows back. `to` must not be touched before [`Ops::settle`].
    fn fetch(&self, n: usize, from: &mut Self::Offloaded, to: &mut Self::Tensor) -> Result<()>;
    /// Makes everything that follows wait for the last copy out or back.
    fn settle(&self, of: &Self::Offloaded) -> Result<()>;
    /// Puts a vector on the device.
    fn vector(&self, values: &[f32]) -> Result<Self::Vector>;
    /// Puts a batch on the device; checks ids against nothing (the operations do).
    fn batch(&self, batch: &HostBatch) -> Result<Self::Batch>;

    // --- forward and backward ------------------------------------------------------------------------------------------------------

    /// `out[i] = table[ids[i]]`.
    fn embed(&self, batch: &Self::Batch, table: &Self::Table, out: &mut Self::Tensor) -> Result<()>;

    /// `out = x * rstd * weight` per row with `rstd = 1 / sqrt(mean(x²) + eps)`, which is kept (Zhang & Sennrich 2019).
    fn rms_norm(
        &self,
        n: usize,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
        rstd: &mut Self::Stats,
    ) -> Result<()>;

    /// `x_acc += delta`, then [`Ops::rms_norm`] of the sum: one pass over both.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    fn add_rms_norm(
        &self,
        n: usize,
        x_acc: &mut Self::Tensor,
        delta: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
        rstd: &mut Self::Stats,
    ) -> Result<()>;

    /// `sum = x + delta`, then [`Ops::rms_norm`] of the sum: as [`Ops::add_rms_norm`], but `x` stays as it is.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    fn add_rms_norm_into(
        &self,
        n: usize,
        x: &Self::Tensor,
        delta: &Self::Tensor,
        sum: &mut Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
        rstd: &mut Self::Stats,
    ) -> Result<()> {
        self.copy(n, x, sum)?;
        self.add_rms_norm(n, sum, delta, weight, eps, out, rstd)
    }

    /// Adds the gradient of [`Ops::rms_norm`] with respect to `x`, given `dy = d out`, to `dx_acc`.
    fn rms_norm_backward(
        &self,
        n: usize,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        weight: &Self::Vector,
        rstd: &Self::Stats,
        dx_acc: &mut Self::Tensor,
    ) -> Result<()>;

    /// `x_acc += delta`.
    fn add(&self, n: usize, x_acc: &mut Self::Tensor, delta: &Self::Tensor) -> Result<()>;

    /// The projections of a group with their adapters (Hu et al. 2021): member i's columns of `out` are
    /// `x Wᵢᵀ + biasᵢ + scaleᵢ (dropᵢ(x) Aᵢᵀ) Bᵢᵀ`. `lora` has one entry per member. `mid` keeps `dropᵢ(x) Aᵢᵀ` side by side; it has
    /// at least `Σ ceil(rankᵢ / 8) * 8` columns, and how they are used is the backend's affair.
    #[expect(clippy::too_many_arguments, reason = "base and adapter are one operation, so that a backend can fuse them")]
    fn linear(
        &self,
        batch: &Self::Batch,
        n: usize,
        x: &Self::Tensor,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        dropout: Option<Dropout>,
        out: &mut Self::Tensor,
        mid: &mut Self::Tensor,
    ) -> Result<()>;

    /// Backward of [`Ops::linear`]: overwrites `dx` (skipped when None: the first layer's input is frozen) and accumulates the adapters' gradients.
    /// `dmid` is scratch as large as `mid`.
    #[expect(clippy::too_many_arguments, reason = "base and adapter are one operation, so that a backend can fuse them")]
    fn linear_backward(
        &self,
        batch: &Self::Batch,
        n: usize,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        mid: &Self::Tensor,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        dropout: Option<Dropout>,
        grads: &mut [Option<LoraGrads<'_, Self::Param>>],
        dmid: &mut Self::Tensor,
        dx: Option<&mut Self::Tensor>,
    ) -> Result<()>;

    /// Normalises each head of q and k (RMSNorm with the head-sized weights) and rotates them (RoPE, half-split form, Su et al. 2021) by their
    /// positions: reads `q | k` of `qkv`, writes `qk`. `rstd` keeps the reciprocal norms, `[n, heads + kv_heads]`.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    fn qk_norm_rope(
        &self,
        batch: &Self::Batch,
        n: usize,
        shape: AttentionShape,
        qkv: &Self::Tensor,
        q_weight: &Self::Vector,
        k_weight: &Self::Vector,
        eps: f32,
        theta: f64,
        qk: &mut Self::Tensor,
        rstd: &mut Self::Stats,
    ) -> Result<()>;

    /// Backward of [`Ops::qk_norm_rope`]: from `dqk` writes the `q | k` columns of `dqkv`, leaving its `v` columns alone.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    fn qk_norm_rope_backward(
        &self,
        batch: &Self::Batch,
        n: usize,
        shape: AttentionShape,
        dqk: &Self::Tensor,
        qkv: &Self::Tensor,
        q_weight: &Self::Vector,
        k_weight: &Self::Vector,
        rstd: &Self::Stats,
        theta: f64,
        dqkv: &mut Self::Tensor,
    ) -> Result<()>;

    /// Causal grouped-query attention inside each sequence, scaled by `1 / sqrt(head_dim)`: q and k from `qk`, v from the last columns of `qkv`;
    /// `out [n, q_width]`; `lse [n, heads]` keeps the log-sum-exps (Dao 2023).
    #[expect(clippy::too_many_arguments, reason = "the fused projection and what was rotated of it are two buffers")]
    fn attention(
        &self,
        batch: &Self::Batch,
        n: usize,
        shape: AttentionShape,
        qk: &Self::Tensor,
        qkv: &Self::Tensor,
        out: &mut Self::Tensor,
        lse: &mut Self::Stats,
    ) -> Result<()>;

    /// Backward of [`Ops::attention`]: writes `dqk` and the `v` columns of `dqkv`. Probabilities are recomputed from `lse`.
    #[expect(clippy::too_many_arguments, reason = "the backward needs the forward's inputs and outputs")]
    fn attention_backward(
        &self,
        batch: &Self::Batch,
        n: usize,
        shape: AttentionShape,
        dout: &Self::Tensor,
        out: &Self::Tensor,
        qk: &Self::Tensor,
        qkv: &Self::Tensor,
        lse: &Self::Stats,
        dqk: &mut Self::Tensor,
        dqkv: &mut Self::Tensor,
    ) -> Result<()>;

    /// `out = silu(gate) * up` with `gate_up = gate | up`, `[n, 2 * width]` (Shazeer 2020).
    fn swiglu(&self, n: usize, width: usize, gate_up: &Self::Tensor, out: &mut Self::Tensor) -> Result<()>;

    /// Backward of [`Ops::swiglu`]: the gradients of gate and up take their places in `gate_up`.
    fn swiglu_backward(&self, n: usize, width: usize, dout: &Self::Tensor, gate_up: &mut Self::Tensor) -> Result<()>;

    /// Weighted cross-entropy over the whole vocabulary, in chunks of positions so that all logits never exist at once; positions of weight 0
    /// are skipped. Returns `Σ weight * loss` per sequence, not normalised. With `dhidden`, also writes the gradient of
    /// `Σ weight * loss * grad_scale` with respect to `hidden` (zero rows where the weight is 0).
    fn cross_entropy(
        &self,
        batch: &Self::Batch,
        n: usize,
        hidden: &Self::Tensor,
        head: &Self::Table,
        grad_scale: f32,
        dhidden: Option<&mut Self::Tensor>,
    ) -> Result<Vec<f64>>;

    // --- generation ----------------------------------------------------------------------------------------------------------------

    /// Whether a token's results have the same bits however its sequence is cut into calls: at once by [`Ops::attention`] or piece by piece through the
    /// cache. A cache may then serve another sequence with the same beginning.
    fn cuts_freely(&self) -> bool {
        false
    }

    /// An empty key/value cache for `layers` layers and `slots` sequences of up to `length` tokens.
    fn cache(&self, layers: usize, slots: usize, length: usize, shape: AttentionShape) -> Result<Self::Cache>;

    /// Writes the batch's rotated keys and its values into `layer` of the cache at `slots` and `positions`.
    #[expect(clippy::too_many_arguments, reason = "a cache needs to be told where it is written")]
    fn cache_append(
        &self,
        batch: &Self::Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Self::Tensor,
        qkv: &Self::Tensor,
        cache: &mut Self::Cache,
    ) -> Result<()>;

    /// [`Ops::qk_norm_rope`], [`Ops::cache_append`] and [`Ops::attention_cached`] in one: `qk` is room that may be used.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    fn attention_appended(
        &self,
        batch: &Self::Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qkv: &Self::Tensor,
        q_weight: &Self::Vector,
        k_weight: &Self::Vector,
        eps: f32,
        theta: f64,
        qk: &mut Self::Tensor,
        rstd: &mut Self::Stats,
        cache: &mut Self::Cache,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.qk_norm_rope(batch, n, shape, qkv, q_weight, k_weight, eps, theta, qk, rstd)?;
        self.cache_append(batch, n, layer, shape, qk, qkv, cache)?;
        self.attention_cached(batch, n, layer, shape, qk, cache, out)
    }

    /// Whether [`Ops::norm_linear`], [`Ops::norm_linear_swiglu`] and [`Ops::linear_add`] are faster for `n` rows than their parts in other groupings.
    fn folds_norms(&self, n: usize) -> bool {
        let _ = n;
        false
    }

    /// [`Ops::rms_norm`] of `x` and [`Ops::linear`] of its result without dropout, to the same bits; `h` and `rstd` are room that may be used.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    fn norm_linear(
        &self,
        batch: &Self::Batch,
        n: usize,
        x: &Self::Tensor,
        norm: &Self::Vector,
        eps: f32,
        h: &mut Self::Tensor,
        rstd: &mut Self::Stats,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        out: &mut Self::Tensor,
        mid: &mut Self::Tensor,
    ) -> Result<()> {
        self.rms_norm(n, x, norm, eps, h, rstd)?;
        self.linear(batch, n, h, w, lora, None, out, mid)
    }

    /// [`Ops::rms_norm`] of `x` and [`Ops::linear_swiglu`] of its result, to the same bits; `h`, `rstd` and `gate_up` are room that may be used.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    fn norm_linear_swiglu(
        &self,
        batch: &Self::Batch,
        n: usize,
        width: usize,
        x: &Self::Tensor,
        norm: &Self::Vector,
        eps: f32,
        h: &mut Self::Tensor,
        rstd: &mut Self::Stats,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        gate_up: &mut Self::Tensor,
        mid: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.rms_norm(n, x, norm, eps, h, rstd)?;
        self.linear_swiglu(batch, n, width, h, w, lora, gate_up, mid, out)
    }

    /// [`Ops::linear`] without dropout and [`Ops::add`] of its result to `x_acc`, to the same bits; `delta` is room that may be used.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    fn linear_add(
        &self,
        batch: &Self::Batch,
        n: usize,
        x: &Self::Tensor,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        delta: &mut Self::Tensor,
        mid: &mut Self::Tensor,
        x_acc: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(batch, n, x, w, lora, None, delta, mid)?;
        self.add(n, x_acc, delta)
    }

    /// [`Ops::linear`] of a group of gate and up without dropout, and [`Ops::swiglu`] of its result. `gate_up`, `[n, 2 * width]`, may be left as it is.
    #[expect(clippy::too_many_arguments, reason = "a fused operation has the arguments of all of its parts")]
    fn linear_swiglu(
        &self,
        batch: &Self::Batch,
        n: usize,
        width: usize,
        x: &Self::Tensor,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        gate_up: &mut Self::Tensor,
        mid: &mut Self::Tensor,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.linear(batch, n, x, w, lora, None, gate_up, mid)?;
        self.swiglu(n, width, gate_up, out)
    }

    /// Attention of the batch's queries to everything that the cache holds of their slot up to and including their own position.
    #[expect(clippy::too_many_arguments, reason = "a cache needs to be told where it is read")]
    fn attention_cached(
        &self,
        batch: &Self::Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Self::Tensor,
        cache: &Self::Cache,
        out: &mut Self::Tensor,
    ) -> Result<()>;

    /// Copies rows of `from` (by index) to the first rows of `to`: picks the positions whose logits are wanted.
    fn gather(&self, rows: &[u32], from: &Self::Tensor, to: &mut Self::Tensor) -> Result<()>;

    /// Logits of the first `n` rows of `hidden`, in host memory as f32, `[n, vocabulary]`.
    fn logits(&self, n: usize, hidden: &Self::Tensor, head: &Self::Table) -> Result<Vec<f32>>;

    /// Chooses the likeliest token of each of the first `n` rows of `hidden`, the lowest of equals, where the logits are; [`Ops::chosen`] gives them.
    /// False, and nothing done, where the backend leaves the choice to the caller ([`Ops::logits`]).
    fn greedy(&self, n: usize, hidden: &Self::Tensor, head: &Self::Table) -> Result<bool> {
        let _ = (n, hidden, head);
        Ok(false)
    }

    /// Puts in place what [`Ops::draw`] goes by, row by row; their penalties must be off. False, and nothing done, where the backend would not draw just what
    /// [`Sampler`](crate::sampling::Sampler) draws from the same logits, or leaves drawing to the caller.
    fn set_draws(&self, draws: &[Draw]) -> Result<bool> {
        let _ = draws;
        Ok(false)
    }

    /// Draws the next token of each of the first `n` rows of `hidden` as [`Ops::set_draws`] said, where the logits are; [`Ops::chosen`] gives them.
    /// False, and nothing done, where the backend leaves that to the caller.
    fn draw(&self, n: usize, hidden: &Self::Tensor, head: &Self::Table) -> Result<bool> {
        let _ = (n, hidden, head);
        Ok(false)
    }

    /// What the last [`Ops::greedy`] or [`Ops::draw`] chose; None for a row whose logits are not all numbers, or that the caller has to draw from.
    fn chosen(&self, n: usize) -> Result<Vec<Option<u32>>> {
        Err(OpsError::Device(format!("no tokens were chosen for {n} rows")))
    }

    /// Runs `work` in a way that records its operations, for [`Ops::replay`] on the same buffers; it must not read anything back. Whether it also
    /// computes is not said: results may be used only after a replay. None, and `work` may not have run, where a backend does not record.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Option<Self::Recording>> {
        let _ = work;
        Ok(None)
    }

    /// Runs recorded operations again; false, and nothing done, if buffers that they used are no longer there.
    fn replay(&self, recording: &mut Self::Recording) -> Result<bool> {
        let _ = recording;
        Ok(false)
    }

    /// Puts other ids and positions into a batch that recorded operations use; false, and nothing done, if they do not fit what was recorded. The
    /// sequences and slots must be the same.
    fn refill(&self, host: &HostBatch, batch: &mut Self::Batch) -> Result<bool> {
        let _ = (host, batch);
        Ok(false)
    }

    // --- the optimizer -------------------------------------------------------------------------------------------------------------

    /// `Σ g²` over all gradients, each tensor summed in f64 in a fixed order, tensors in the given order.
    fn grad_norm_sq(&self, grads: &[&Self::Param]) -> Result<f64>;

    /// A fresh optimizer state for a parameter of `len` values.
    fn state(&self, len: usize, config: &AdamWConfig) -> Result<Self::State>;
    /// The state in host memory, for a checkpoint.
    fn read_state(&self, state: &Self::State) -> Result<OptimizerState>;
    /// A state from a checkpoint.
    fn write_state(&self, host: &OptimizerState) -> Result<Self::State>;

    /// One AdamW step (Loshchilov & Hutter 2019; 8-bit: Dettmers et al. 2022) with the gradient multiplied by `grad_scale` (clipping).
    /// `step` counts from 1.
    #[expect(clippy::too_many_arguments, reason = "a step has a parameter, its gradient, its state and four numbers")]
    fn adamw(
        &self,
        param: &mut Self::Param,
        grad: &Self::Param,
        state: &mut Self::State,
        config: &AdamWConfig,
        lr: f32,
        grad_scale: f32,
        step: u64,
    ) -> Result<()>;

    /// [`Ops::adamw`] on many parameters.
    fn adamw_all(
        &self,
        items: &mut [AdamWItem<'_, Self::Param, Self::State>],
        config: &AdamWConfig,
        lr: f32,
        grad_scale: f32,
        step: u64,
    ) -> Result<()> {
        items.iter_mut().try_for_each(|item| self.adamw(item.param, item.grad, item.state, config, lr, grad_scale, step))
    }
}
