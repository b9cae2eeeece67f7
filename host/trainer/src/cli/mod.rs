//! The flags of every command, one definition that feeds parser and help.

mod check;
mod data;
mod eval;
mod plugin;
mod run;
mod runs;
mod serve;
mod talk;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use trainer_kernels::sampling::SamplingParams;
use trainer_tools::Limits;

pub use self::check::{BenchArgs, SelftestArgs};
pub use self::data::{DataCleanArgs, DataCommand, DataPrepareArgs, DataStatArgs, PreviewArgs};
pub use self::eval::EvalArgs;
pub use self::plugin::{PluginBenchArgs, PluginBuildArgs, PluginCommand, PluginNewArgs, PluginRunArgs, PluginTestArgs};
pub use self::run::{PlanArgs, RunArgs};
pub use self::runs::{DashboardArgs, RunsCommand};
pub use self::serve::ServeArgs;
pub use self::talk::{ChatArgs, GenerateArgs};
use crate::commands::export::args::ExportCommand;
use crate::commands::hub::HubCommand;
use crate::commands::model::args::ModelCommand;
use crate::commands::toml_string;

/// Below the list of commands.
const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 an error, which is told on standard error; 2 a command line that is not understood; 130 interrupted (a run then has a checkpoint \
and says how to continue).";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  trainer completions bash > ~/.local/share/bash-completion/completions/trainer
  trainer completions zsh > ~/.zfunc/_trainer
  trainer completions fish > ~/.config/fish/completions/trainer.fish";

/// Fine-tune Qwen3 with QLoRA; data, mixing, templates, tools and metrics are sandboxed WebAssembly plugins.
#[derive(Debug, Parser)]
#[command(name = "trainer", version, max_term_width = 110, infer_subcommands = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// More log lines on standard error: -v info, -vv debug, -vvv trace (or set TRAINER_LOG, in tracing's filter syntax).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// How log lines look: text, or json, one object a line, for programs that collect logs. With json, a run's progress is among them, and not on
    /// standard output.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", hide_possible_values = true)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fine-tune: the main job. Without a recipe: 30 steps on the embedded nano model and its data.
    #[command(after_help = run::RUN_EXAMPLES)]
    Run(RunArgs),
    /// Evaluate a run, or a model on data, with metric plugins.
    #[command(after_help = eval::EVAL_EXAMPLES)]
    Eval(EvalArgs),
    /// Generate text from a prompt.
    #[command(after_help = talk::GENERATE_EXAMPLES)]
    Generate(GenerateArgs),
    /// Talk with a model in the terminal; it can call tools of plugins.
    #[command(after_help = talk::CHAT_EXAMPLES)]
    Chat(ChatArgs),
    /// Serve a model and its adapters with OpenAI's HTTP interface: chat and plain completions, streaming, tools, log-probabilities.
    #[command(after_help = serve::SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// List, show, compare and remove runs.
    #[command(subcommand, after_help = runs::RUNS_EXAMPLES)]
    Runs(RunsCommand),
    /// Write a run as one HTML file that needs nothing else: charts, evaluations, sample answers, recipe and lock.
    Report {
        /// The run directory.
        run: PathBuf,
        /// The file. Absent: report.html in the run directory.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Show a local page with live charts of one run or several. It only reads.
    #[command(after_help = runs::DASHBOARD_EXAMPLES)]
    Dashboard(DashboardArgs),
    /// Fetch models, look at them and convert them.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Send results to a hub.
    #[command(subcommand)]
    Hub(HubCommand),
    /// Write a trained model for other programs: an adapter, a merged checkpoint, a GGUF file.
    #[command(subcommand)]
    Export(ExportCommand),
    /// Write plugins, test and measure them, and look at them.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Measure this machine: training and decoding speed, the data path, plugin overheads.
    Bench(BenchArgs),
    /// Show what this machine offers: processor, cards, driver, libraries; what is missing and how to get it.
    Doctor {
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Check a device: every kernel against its reference on the CPU, and whole models against reference data.
    Selftest(SelftestArgs),
    /// Show every token that training will see, with its loss weight, before it does.
    Preview(PreviewArgs),
    /// Look at the training data as a whole.
    #[command(subcommand)]
    Data(DataCommand),
    /// Show how a run would use the device's memory, part by part.
    Plan(PlanArgs),
    /// Print completions for a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write a man page for each command.
    Man {
        /// The folder.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// The template child: reads conversations, writes texts. Not for people.
    #[command(name = trainer_jinja::SUBCOMMAND, hide = true, disable_help_flag = true)]
    RenderTemplate {
        /// Passed through.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// The compiler child: reads a component, writes machine code. Not for people.
    #[command(name = trainer_plugin_host::COMPILER_SUBCOMMAND, hide = true, disable_help_flag = true)]
    CompileComponent {
        /// Passed through.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

/// Flags that grant plugins what they ask for, shared by every command that loads plugins.
#[derive(Clone, Debug, Default, Args)]
pub struct GrantArgs {
    /// Let a plugin do more than compute: PLUGIN:http=https://HOST for requests that read, 'PLUGIN:http=GET,POST https://HOST' for others,
    /// PLUGIN:network=10.0.0.0/8 for addresses beyond the public internet, PLUGIN:clock and PLUGIN:random for this machine's. May be repeated.
    #[arg(long, value_name = "PLUGIN:GRANT")]
    pub grant: Vec<String>,
    /// Lend a plugin a secret for the server that it was granted, without showing it: PLUGIN:KEY=env:NAME, or file:PATH. May be repeated.
    #[arg(long, value_name = "PLUGIN:KEY=SOURCE")]
    pub secret: Vec<String>,
}

/// Flags that change the recipe, shared by commands.
#[derive(Clone, Debug, Default, Args)]
pub struct RecipeArgs {
    /// A component file, or the name of an official plugin (math_mix, sharegpt, qwen3_chat, boxed_answer, calculator, weather, ...). It takes the place of
    /// the recipe's plugin for every kind that it exports. May be repeated.
    #[arg(long, value_name = "FILE|NAME")]
    pub plugin: Vec<String>,
    /// What plugins may do.
    #[command(flatten)]
    pub grants: GrantArgs,
    /// Set one key of the recipe, such as train.learning_rate=1e-3. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The number of optimizer steps (train.max_steps).
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// The seed (train.seed).
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How many bad rows a run survives (data.max_bad_rows).
    #[arg(long, value_name = "N")]
    pub max_bad_rows: Option<u64>,
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Flags that choose what computes, shared by every command that does.
#[derive(Clone, Debug, Default, Args)]
pub struct DeviceArgs {
    /// What computes: auto, cpu, cuda or cuda:N (device.backend).
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads (device.threads). Never changes a result.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

impl DeviceArgs {
    /// The keys of the recipe that they set.
    pub fn overrides(&self) -> impl Iterator<Item = (&'static str, String)> {
        let backend = self.device.as_deref().map(|d| ("device.backend", toml_string(d)));
        backend.into_iter().chain(self.threads.map(|n| ("device.threads", n.to_string())))
    }
}

/// Flags that say how tokens are drawn.
#[derive(Clone, Debug, Args)]
pub struct SamplingArgs {
    /// 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f64,
    /// Only among the k likeliest tokens; 0 turns it off.
    #[arg(long, value_name = "K", default_value_t = 20)]
    pub top_k: u32,
    /// Only among the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "P", default_value_t = 0.8)]
    pub top_p: f64,
    /// Only among tokens with at least this share of the likeliest one's probability.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f64,
    /// Makes tokens that were seen less likely; 1 turns it off.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repetition_penalty: f64,
    /// The seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 3407)]
    pub seed: u64,
}

impl SamplingArgs {
    /// How tokens are drawn.
    pub fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            ..SamplingParams::default()
        }
    }
}

/// Flags that limit how long a model may go on calling tools.
#[derive(Clone, Debug, Args)]
pub struct ToolLimitArgs {
    /// The most turns of the model after a question.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_turns: u32,
    /// The most calls of tools after a question.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub max_calls: u32,
}

impl ToolLimitArgs {
    /// With the other limits as they are.
    pub fn limits(&self) -> Limits {
        Limits { turns: self.max_turns, calls: self.max_calls, ..Limits::default() }
    }
}
