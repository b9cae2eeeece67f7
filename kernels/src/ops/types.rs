//! What the operations work on: sizes, matrices of the model file, batches, adapters, errors.

use half::bf16;

use crate::nf4::{DoubleQuant, Nf4};

/// What can go wrong in a backend.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    /// A buffer or a matrix does not have the size that an operation needs: a bug in the caller or a broken model file.
    #[error("{op}: {what} has {got} elements where {need} are needed")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Its size.
        got: usize,
        /// The least size.
        need: usize,
    },
    /// An index (token id, target, cache slot, position) is out of range.
    #[error("{op}: {what} {index} is out of range (limit {limit})")]
    Index {
        /// The operation.
        op: &'static str,
        /// What the index counts.
        what: &'static str,
        /// The index.
        index: u64,
        /// The first value that is too large.
        limit: u64,
    },
    /// Memory could not be had.
    #[error("no memory for {what}: {bytes} bytes")]
    Memory {
        /// What it was for.
        what: String,
        /// How much.
        bytes: u64,
    },
    /// The device or its driver failed.
    #[error("{0}")]
    Device(String),
    /// A matrix cannot be read from where it lies, or what is read is no weight.
    #[error("{0}")]
    Source(String),
}

/// Shorthand for results of operations.
pub type Result<T> = std::result::Result<T, OpsError>;

/// The sizes that the operations need to know about a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Size of one head; even.
    pub head_dim: usize,
}

impl AttentionShape {
    /// Width of the queries: `heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Width of the keys, and of the values: `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Width of a row of the fused projection, `q | k | v`.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }
    /// Width of a row of rotated queries and keys, `q | k`.
    pub fn qk_width(&self) -> usize {
        self.q_width() + self.kv_width()
    }
}

/// A frozen matrix in bf16 that is read when it is needed: one that lies in a file, so that host memory never holds all of it.
pub trait MatrixSource: std::fmt::Debug + Send + Sync {
    /// How messages call it: file and tensor.
    fn name(&self) -> String;
    /// How many values it has.
    fn len(&self) -> usize;
    /// Whether it has none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `out` with the values from `first` on, on as many threads as pay.
    ///
    /// # Errors
    /// Why it cannot be read, with its name.
    fn read(&self, first: usize, out: &mut [bf16]) -> std::result::Result<(), String>;
}

/// A matrix of a [`MatrixSource`], read and in the form that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum ReadMatrix {
    /// NF4 blocks.
    Nf4(Nf4),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

impl ReadMatrix {
    /// Reads a matrix of `out` rows and `inner` columns and quantizes it in blocks of 64 where asked to.
    ///
    /// # Errors
    /// A source that cannot be read or has other values than that; a value that cannot be quantized.
    pub fn new(source: &dyn MatrixSource, out: usize, inner: usize, quantize: Option<DoubleQuant>) -> Result<Self> {
        let need = out.saturating_mul(inner);
        if source.len() != need {
            return Err(OpsError::Shape { op: "read", what: "a frozen weight", got: source.len(), need });
        }
        let mut values = vec![bf16::ZERO; need];
        source.read(0, &mut values).map_err(OpsError::Source)?;
        let Some(double) = quantize else { return Ok(Self::Bf16(values)) };
        let quantized = Nf4::quantize(&values, &[out, inner], crate::nf4::BLOCKSIZE, double);
        Ok(Self::Nf4(quantized.map_err(|e| OpsError::Source(format!("{}: {e}", source.name())))?))
    }

    /// The matrix, for a backend.
    pub fn matrix(&self) -> HostMatrix<'_> {
        match self {
            Self::Nf4(w) => HostMatrix::Nf4(w),
            Self::Bf16(w) => HostMatrix::Bf16(w),
        }
    }
}

/// A frozen matrix as the model file holds it, `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub enum HostMatrix<'a> {
    /// NF4 blocks, plain or double-quantized.
    Nf4(&'a Nf4),
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// bfloat16 that is still to be read. [`ReadMatrix`] is what it then is.
    Stored {
        /// Where it lies.
        source: &'a dyn MatrixSource,
        /// How it is quantized once it has been read, to NF4 in blocks of 64, bit for bit as [`Nf4::quantize`] does; None: not at all.
        quantize: Option<DoubleQuant>,
    },
}

impl HostMatrix<'_> {
    /// How many values it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Nf4(w) => w.len(),
            Self::F32(w) => w.len(),
            Self::Bf16(w) => w.len(),
            Self::Stored { source, .. } => source.len(),
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One projection of a group that shares its input.
#[derive(Clone, Copy, Debug)]
pub struct HostLinear<'a> {
    /// The weight, `[out, in]`.
    pub weight: HostMatrix<'a>,
    /// Output features.
    pub out_features: usize,
    /// Input features.
    pub in_features: usize,
    /// The frozen bias, `[out]`, if the model has one.
    pub bias: Option<&'a [f32]>,
}

/// How a backend holds frozen weights between uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightPlan {
    /// As dense matrices of the compute type, unpacked once.
    Unpacked,
    /// As stored; unpacked for each use into a shared buffer.
    Packed,
}

/// Random weights for measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Random {
    /// What they are a function of.
    pub seed: u64,
    /// Standard deviation.
    pub deviation: f32,
    /// Whether projections are quantized.
    pub nf4: bool,
}

/// Rows of one micro-batch (training) or one forward call (generation), in host memory.
#[derive(Clone, Debug, Default)]
pub struct HostBatch {
    /// Token ids, `[n]`.
    pub ids: Vec<u32>,
    /// The id that each position should predict, `[n]`, or empty when there is no loss. Ignored where the weight is 0.
    pub targets: Vec<u32>,
    /// Loss weight of each position's prediction, `[n]`, or empty; 0 at the last position of a sequence.
    pub weights: Vec<f32>,
    /// Positions within the sequence, `[n]`.
    pub positions: Vec<u32>,
    /// First row of each sequence, then `n`: `[sequences + 1]`.
    pub cu_seqlens: Vec<u32>,
    /// Per sequence: the global sample number (training; part of the dropout stream), `[sequences]`, or empty.
    pub samples: Vec<u64>,
    /// Per sequence: the key/value cache slot (generation), `[sequences]`, or empty.
    pub slots: Vec<u32>,
}

/// The dropout of one LoRA module in one step. The mask of an element is a pure function of seed, step, sample, position, module and
/// feature, so it survives recomputation, resumption and packing.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// Probability of dropping, in `0.0..1.0`.
    pub p: f32,
    /// The run's seed.
    pub seed: u64,
    /// The optimizer step, from 1.
    pub step: u32,
    /// Number of the first module of the group in the whole model; member `i` has `module + i`.
    pub module: u32,
}

/// The adapter of one projection.
pub struct LoraMember<'a, P> {
    /// `[rank, in]`.
    pub a: &'a P,
    /// `[out, rank]`.
    pub b: &'a P,
    /// Rank.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA (Kalajdzievski 2023).
    pub scale: f32,
    /// A trained bias, `[out]`, used in place of the frozen one.
    pub bias: Option<&'a P>,
}

/// Where the gradients of one projection's adapter are accumulated.
pub struct LoraGrads<'a, P> {
    /// d loss / d A, `[rank, in]`.
    pub a_acc: &'a mut P,
    /// d loss / d B, `[out, rank]`.
    pub b_acc: &'a mut P,
    /// d loss / d bias, `[out]`.
    pub bias_acc: Option<&'a mut P>,
}

/// One parameter of an optimizer step.
pub struct AdamWItem<'a, P, S> {
    /// The trained values.
    pub param: &'a mut P,
    /// Their accumulated gradient.
    pub grad: &'a P,
    /// The optimizer's state.
    pub state: &'a mut S,
}

/// What a backend's own buffers depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct ScratchNeed {
    /// The most token rows of a call.
    pub tokens: usize,
    /// Every kind of group: its members' output features and ranks, and its input features.
    pub groups: Vec<(Vec<(usize, usize)>, usize)>,
    /// Output features, input features and ranks of the group with the largest matrix.
    pub largest_group: (usize, usize, usize),
    /// How frozen weights are held.
    pub plan: WeightPlan,
    /// Heads.
    pub attention: AttentionShape,
    /// Rows of the output head.
    pub vocab: usize,
    /// Columns of the output head.
    pub hidden: usize,
    /// Positions whose logits exist at the same time in the loss.
    pub loss_rows: usize,
    /// Whether there is a backward.
    pub training: bool,
    /// Whether adapters drop out.
    pub dropout: bool,
}

/// What a device can sustain, for predictions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Operations per second of large matrix products.
    pub products: f64,
    /// The same of products with frozen weights, where the backend computes them in another format; what brings operands into it is counted in.
    pub frozen: f64,
    /// Operations per second of attention, those above the diagonal not counted.
    pub attention: f64,
    /// Bytes per second of memory traffic.
    pub bytes: f64,
}
