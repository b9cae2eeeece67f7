//! `trainer eval`

use std::path::PathBuf;

use clap::Args;

use super::{GrantArgs, TemplateArgs};

pub(super) const EVAL_EXAMPLES: &str = "\
Examples:
  trainer eval --run runs/NAME --json report.json
  trainer eval --model models/Qwen3-0.6B --data test.jsonl --plugin math_equal";

/// `trainer eval`
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run directory: its recipe, model and final adapter.
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    pub run: Option<PathBuf>,
    /// A model: nano, a folder, a GGUF file, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// A PEFT adapter folder on top of --model.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub adapter: Option<PathBuf>,
    /// Score outputs that are given, without a model: {"id", "text"} a line, for the rows of the same id.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["run", "model", "device"])]
    pub predictions: Option<PathBuf>,
    /// Other rows: a file, folder, glob or builtin:NAME.
    #[arg(long, value_name = "FILE")]
    pub data: Option<String>,
    /// Plugins by what they are: metrics and a chat template in place of the recipe's own, tools for the model to call. File or name. May be repeated.
    #[arg(long, value_name = "FILE|NAME", visible_alias = "metric")]
    pub plugin: Vec<String>,
    /// What plugins may do.
    #[command(flatten)]
    pub grants: GrantArgs,
    /// Where prompts come from.
    #[command(flatten)]
    pub template: TemplateArgs,
    /// Answers per row, for pass@k (eval.repeats); needs a temperature, as by --set eval.temperature=0.7.
    #[arg(long, value_name = "K")]
    pub repeats: Option<u32>,
    /// Keep all tool traffic on a tape.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "predictions"])]
    pub record: Option<PathBuf>,
    /// Answer tool calls from a tape: no tool runs, nothing reaches a network.
    #[arg(long, value_name = "FILE", conflicts_with = "predictions")]
    pub replay: Option<PathBuf>,
    /// At most this many rows.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// The folder for report and per-sample results. Absent: <run>/eval, or runs/<date-time>-eval. An evaluation that was stopped goes on when it is
    /// given the same folder again.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Also a page with transcripts, filters and charts that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Also a report in JUnit's XML: a test case for each row, failed where a yes-or-no score says no.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Set one key of the recipe. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// What computes: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Print the report as one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}
