//! What can end a run.

/// An error of a run. What is on disk then is a run that can be resumed once the cause is mended.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The mix is used up before the last step.
    #[error("the data ended before step {step} of {total}; lower train.max_steps, or use a mixing policy that starts over")]
    OutOfData {
        /// The step that could not begin.
        step: u64,
        /// Steps in the run.
        total: u64,
    },
    /// The data or a plugin ended the run; what was done is kept.
    #[error("{source}\n  a checkpoint of step {step} is written; when the cause is mended, continue with: trainer run --resume {dir}", dir = dir.display())]
    Resumable {
        /// The last complete step.
        step: u64,
        /// The run directory.
        dir: std::path::PathBuf,
        /// What ended the run.
        source: Box<TrainError>,
    },
    /// A step without a target.
    #[error("step {step} has no token with a loss weight; see data.train_on and the weights that the template gives")]
    NothingToLearn {
        /// The step.
        step: u64,
    },
    /// The length of the run cannot be told.
    #[error(
        "train.epochs = {epochs} needs a mixing policy that knows how long an epoch is, and {mixer} does not; set train.max_steps instead"
    )]
    NoEpoch {
        /// What the recipe says.
        epochs: f64,
        /// The policy.
        mixer: String,
    },
    /// What is watched is not among what was measured.
    #[error("{key} = {metric:?} is not a number of the evaluation; there are {}", known.join(", "))]
    NotMeasured {
        /// The recipe's key.
        key: &'static str,
        /// What it names.
        metric: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A number without a direction.
    #[error("{key} = {metric:?}: the metric does not say whether more is better; set {key_mode} to \"max\" or \"min\"", key_mode = key.replace(".metric", ".mode"))]
    NoDirection {
        /// The recipe's key.
        key: &'static str,
        /// What it names.
        metric: String,
    },
    /// A checkpoint that is whole but not of this program's form.
    #[error("the checkpoint of step {step} does not fit this program: {message}")]
    State {
        /// Its step.
        step: u64,
        /// What does not fit.
        message: String,
    },
    /// The final adapter could not be brought into PEFT's form.
    #[error("the adapter cannot be written: {0}")]
    Adapter(String),
    /// From putting the parts together.
    #[error(transparent)]
    Runtime(#[from] trainer_runtime::RuntimeError),
    /// From the recipe.
    #[error(transparent)]
    Config(#[from] trainer_config::ConfigError),
    /// From the data.
    #[error(transparent)]
    Data(#[from] trainer_data::DataError),
    /// From the engine.
    #[error(transparent)]
    Engine(#[from] trainer_engine::EngineError),
    /// From an evaluation.
    #[error(transparent)]
    Eval(#[from] trainer_eval::EvalError),
    /// From the model's files.
    #[error(transparent)]
    Model(#[from] trainer_model::ModelError),
    /// From a plugin.
    #[error(transparent)]
    Plugin(#[from] trainer_plugin_host::PluginError),
    /// From the tokenizer.
    #[error(transparent)]
    Text(#[from] trainer_text::TextError),
    /// From the run directory.
    #[error(transparent)]
    RunDir(#[from] crate::rundir::RunDirError),
    /// From the lock.
    #[error(transparent)]
    Lock(#[from] crate::lock::LockError),
    /// From a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::CheckpointError),
    /// From the metrics.
    #[error(transparent)]
    Metrics(#[from] crate::metrics::MetricsError),
}
