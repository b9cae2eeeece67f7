//! `trainer run`, `trainer plan`

use std::path::PathBuf;

use clap::Args;

use super::RecipeArgs;
use crate::tracking::ReportTo;

pub(super) const RUN_EXAMPLES: &str = "\
Examples:
  trainer run --plugin math_mix                            the main job, on the embedded model and data
  trainer run recipe.toml --set train.learning_rate=1e-4   a recipe with one setting changed
  trainer run recipe.toml --report-to tensorboard,mlflow   followed by two trackers
  trainer run --resume runs/NAME                           go on after Ctrl-C or a power cut, to the same bytes";

/// `trainer run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// A model: nano, a folder, a GGUF file, or one on a hub (model.source).
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Train on from a PEFT adapter (adapter.from), in its shape: rank, alpha, targets and so on are its own. Settings by --set come on top.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The run directory (output.dir). Absent: runs/<date-time>-<mixing plugin>.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue the run in this directory, by its own recipe, to the same bytes as if it had never stopped.
    // A group that holds another one has no members for clap, so the flags of `over` are named one by one.
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "recipe", "plugin", "model", "adapter", "GrantArgs", "set", "max_steps", "seed", "max_bad_rows", "device", "threads", "out", "locked", "dry_run",
    ])]
    pub resume: Option<PathBuf>,
    /// Refuse to start unless everything that this lock file pins is the same.
    #[arg(long, value_name = "FILE")]
    pub locked: Option<PathBuf>,
    /// Let trackers follow the run: tensorboard, mlflow, wandb, several separated by commas, or none (track.report_to). With --resume, those that
    /// are named get what they lack.
    #[arg(long, value_name = "LIST")]
    pub report_to: Option<ReportTo>,
    /// Print errors and warnings only.
    #[arg(long, short)]
    pub quiet: bool,
    /// Print the resolved recipe and the plan, and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// Also write the run's summary as one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// The memory in GiB that the plan may fill (device.memory_limit).
    #[arg(long, value_name = "GIB")]
    pub memory_limit: Option<f64>,
    /// How memory is traded for speed: auto, fastest or smallest (device.plan).
    #[arg(long, value_name = "PLAN")]
    pub plan: Option<String>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}
