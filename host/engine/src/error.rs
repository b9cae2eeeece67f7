//! What can go wrong in the engine.

use trainer_kernels::ops::OpsError;

/// Why the engine refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The backend refused or failed.
    #[error("{context}: {source}")]
    Ops {
        /// What the engine was doing.
        context: String,
        /// The backend's reason.
        source: OpsError,
    },
    /// The model's configuration and its weights do not fit each other, or have sizes that no computation can have.
    #[error("model: {0}")]
    Model(String),
    /// The adapter's settings cannot be applied to this model.
    #[error("adapter: {0}")]
    AdapterConfig(String),
    /// An adapter's tensors do not fit its settings or the model.
    #[error("adapter tensor of {module}: {what}")]
    AdapterTensor {
        /// The module's full name, such as `model.layers.0.self_attn.q_proj`.
        module: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// A micro-batch that cannot be computed.
    #[error("micro-batch: {0}")]
    Batch(String),
    /// A micro-batch with more tokens than the workspace was made for.
    #[error(
        "micro-batch of {tokens} tokens, but the workspace holds {limit}: use smaller micro-batches, shorter samples, or a larger token limit"
    )]
    TooManyTokens {
        /// Tokens in the batch.
        tokens: usize,
        /// What was planned.
        limit: usize,
    },
    /// The optimizer step was asked for without any gradient.
    #[error("optimizer step {step}: no micro-batch was trained since the last step, so there is nothing to apply")]
    NoGradient {
        /// The step, from 1.
        step: u64,
    },
    /// A loss or gradient that is not a number: applying it would destroy the adapter.
    #[error(
        "step {step}: the {what} is {value}; the adapter was left as it was. A smaller learning rate, gradient clipping or a look at the data of this step may help"
    )]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// Loss or gradient norm.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// A checkpoint's state that does not belong to this adapter and optimizer.
    #[error("training state: {0}")]
    State(String),
    /// Settings of training, planning or generation that make no sense.
    #[error("{name} = {value}: {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Not even the smallest plan fits.
    #[error(
        "a micro-batch of {tokens} tokens through {layers} layers needs at least {need} bytes ({:.2} GiB), but {budget} ({:.2} GiB) can be had: {}",
        gib(*.need), gib(*.budget), remedy(*.possible)
    )]
    DoesNotFit {
        /// Bytes of the smallest plan.
        need: u64,
        /// Bytes that there are.
        budget: u64,
        /// Layers of the model.
        layers: usize,
        /// Tokens of a micro-batch.
        tokens: usize,
        /// Tokens that would fit; 0 if the model itself does not.
        possible: u64,
    },
    /// Sizes that overflow what a machine can address.
    #[error("the sizes of {0} overflow")]
    Overflow(&'static str),
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

fn remedy(possible: u64) -> String {
    match possible {
        0 => "not even the model fits; a smaller model or a larger card is needed".into(),
        n => format!("train.batch and data.max_seq_length with at most {n} tokens together would fit"),
    }
}

/// Shorthand for results of the engine.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Attaches what was being done to a backend's error.
pub(crate) trait OpsContext<T> {
    /// `context` is only made when there is an error.
    fn at(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> OpsContext<T> for std::result::Result<T, OpsError> {
    fn at(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| EngineError::Ops { context: context(), source })
    }
}
