//! `trainer selftest`, `trainer bench`

use std::path::PathBuf;

use clap::Args;

use super::DeviceArgs;

/// `trainer selftest`
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Which checks: groups of kernels (with a card) or of reference data (ref-...). Absent: all.
    #[arg(value_name = "GROUP")]
    pub groups: Vec<String>,
    /// What is checked: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// A folder of reference data, such as tests/reference of the source tree: holds the whole engine against what the Python packages compute.
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// The seed of the kernels' random inputs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Leave out the kernels' larger shapes: for a quick look, and under compute-sanitizer.
    #[arg(long)]
    pub quick: bool,
    /// Compute threads.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Every comparison as one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Which parts: train, decode, data, plugins. Absent: all.
    pub parts: Vec<String>,
    /// Measure train or decode with random weights of this shape instead of the main job: nano, 0.6b, 1.7b, 4b, 8b, 14b or 32b.
    #[arg(long, value_name = "SHAPE")]
    pub shape: Option<String>,
    /// Sequences in a micro-batch (train, default 2), or answers at once (decode, default 1).
    #[arg(long, value_name = "N", requires = "shape")]
    pub batch: Option<usize>,
    /// Micro-batches in a step (default 4).
    #[arg(long, value_name = "N", requires = "shape")]
    pub accum: Option<usize>,
    /// Tokens of a sequence (default 2048).
    #[arg(long, value_name = "N", requires = "shape")]
    pub seq: Option<usize>,
    /// Optimizer steps, the first two of which are not counted (default 8).
    #[arg(long, value_name = "N", requires = "shape")]
    pub steps: Option<usize>,
    /// How memory is traded for speed: auto, fastest or smallest (device.plan).
    #[arg(long, value_name = "PLAN", requires = "shape")]
    pub plan: Option<String>,
    /// The memory in GiB that the plan may fill (device.memory_limit).
    #[arg(long, value_name = "GIB", requires = "shape")]
    pub memory_limit: Option<f64>,
    /// What large products are computed in on a card: bf16 or fp8.
    #[arg(long, value_name = "TYPE", requires = "shape")]
    pub precision: Option<String>,
    /// Take so many rows through the data path, on all cores, in place of the short measurements (data).
    #[arg(long, value_name = "N", conflicts_with = "shape", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    pub rows: Option<u64>,
    /// Rows that think so many times as long, as those of real data sets do (data with --rows, plugins).
    #[arg(long, value_name = "N", conflicts_with = "shape", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub times: u16,
    /// The tokenizer of the model in this folder in place of nano's (data with --rows).
    #[arg(long, value_name = "DIR", requires = "rows")]
    pub tokenizer: Option<PathBuf>,
    /// Tokens of each prompt (decode, default 128).
    #[arg(long, value_name = "N", requires = "shape")]
    pub prompt: Option<usize>,
    /// New tokens of each answer (decode, default 256).
    #[arg(long, value_name = "N", requires = "shape")]
    pub new: Option<usize>,
    /// Draw tokens with the settings that Qwen3 comes with (temperature 0.6, top-k 20, top-p 0.95) instead of taking the likeliest (decode).
    #[arg(long, requires = "shape")]
    pub sample: bool,
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}
