//! Flags of `trainer export`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use trainer_export::GgufQuant;
use trainer_model::FloatType;

const EXAMPLES: &str = "\
Examples:
  trainer export adapter --run runs/NAME --out math-adapter
  trainer export merged-16bit --run runs/NAME --base models/Qwen3-8B --out math-16bit
  trainer export gguf --run runs/NAME --quant q4_k_m --out math-gguf && ollama create math -f math-gguf/Modelfile";

/// `trainer export`
#[derive(Debug, Subcommand)]
#[command(after_help = EXAMPLES)]
pub enum ExportCommand {
    /// The adapter by itself, for PEFT, vLLM and this program.
    Adapter(ExportArgs),
    /// Base and adapter as one checkpoint in 16 bits.
    #[command(name = "merged-16bit")]
    Merged16(MergedArgs),
    /// Base and adapter as one checkpoint in bitsandbytes' 4 bits.
    #[command(name = "merged-4bit")]
    Merged4(MergedArgs),
    /// Base and adapter as a GGUF file for llama.cpp and Ollama.
    Gguf(GgufArgs),
}

/// What is exported and where to.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run directory: its model, its final adapter and its lock.
    #[arg(long, value_name = "DIR", required_unless_present = "model", conflicts_with_all = ["model", "adapter"])]
    pub run: Option<PathBuf>,
    /// A model in place of a run: nano, a folder, or a GGUF file.
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// A PEFT adapter folder on top of --model.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub adapter: Option<PathBuf>,
    /// The run's adapter of the step that was best by eval.best, in place of the last one.
    #[arg(long, requires = "run")]
    pub best: bool,
    /// The unquantized weights of the same model, to merge into where the run's own are in 4 bits.
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// The folder to write, which must be new or empty (for gguf: or a file ending in .gguf).
    #[arg(long, value_name = "PATH")]
    pub out: PathBuf,
    /// Bytes of a file at the most, in GB; larger checkpoints are cut into several.
    #[arg(long, value_name = "GB", default_value_t = 5.0, value_parser = gigabytes)]
    pub shard_size: f64,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer export merged-16bit`, `trainer export merged-4bit`
#[derive(Debug, Args)]
pub struct MergedArgs {
    /// What and where to.
    #[command(flatten)]
    pub export: ExportArgs,
    /// The type of what is not in 4 bits.
    #[command(flatten)]
    pub dtype: DtypeArgs,
}

/// The type of dense weights in what is written.
#[derive(Clone, Copy, Debug, Args)]
pub struct DtypeArgs {
    /// The type of weights that are not in 4 bits: bf16, f16 or f32. Absent: as the model has them in 16 bits; bf16 for a model in 32.
    #[arg(long, value_name = "TYPE", hide_possible_values = true)]
    pub dtype: Option<DtypeArg>,
}

/// See [`DtypeArgs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// float32.
    F32,
}

impl DtypeArgs {
    /// The same for the library.
    pub fn get(self) -> Option<FloatType> {
        self.dtype.map(|dtype| match dtype {
            DtypeArg::Bf16 => FloatType::Bf16,
            DtypeArg::F16 => FloatType::F16,
            DtypeArg::F32 => FloatType::F32,
        })
    }
}

/// `trainer export gguf`
#[derive(Debug, Args)]
pub struct GgufArgs {
    /// What and where to.
    #[command(flatten)]
    pub export: ExportArgs,
    /// How matrices are stored.
    #[arg(long, value_name = "TYPE", default_value = "q8_0")]
    pub quant: Quant,
}

/// How matrices are stored in a GGUF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Quant {
    /// 16-bit floats.
    F16,
    /// 16-bit floats of f32's range.
    Bf16,
    /// Eight bits in blocks of 32.
    #[value(name = "q8_0")]
    Q8,
    /// Four bits in blocks of 256, six for the tensors that matter most.
    #[value(name = "q4_k_m")]
    Q4,
}

impl Quant {
    /// The same for the library.
    pub fn get(self) -> GgufQuant {
        match self {
            Self::F16 => GgufQuant::F16,
            Self::Bf16 => GgufQuant::Bf16,
            Self::Q8 => GgufQuant::Q8_0,
            Self::Q4 => GgufQuant::Q4KM,
        }
    }
}

/// A size of a file.
pub fn gigabytes(text: &str) -> Result<f64, String> {
    text.parse::<f64>().ok().filter(|gb| (1e-6..=1e6).contains(gb)).ok_or_else(|| "a number of GB, such as 5".to_string())
}
