//! The flags of every command, one definition that feeds parser and help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::tracking::ReportTo;

/// Below the list of commands.
const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 an error, which is told on standard error; 2 a command line that is not understood; 130 interrupted (a run then has a checkpoint \
and says how to continue).";

const RUN_EXAMPLES: &str = "\
Examples:
  trainer run --plugin math_mix                            the main job, on the embedded model and data
  trainer run recipe.toml --set train.learning_rate=1e-4   a recipe with one setting changed
  trainer run recipe.toml --report-to tensorboard,mlflow   followed by two trackers
  trainer run --resume runs/NAME                           go on after Ctrl-C or a power cut, to the same bytes";

const EVAL_EXAMPLES: &str = "\
Examples:
  trainer eval --run runs/NAME --json report.json
  trainer eval --model models/Qwen3-0.6B --data test.jsonl --plugin math_equal";

const GENERATE_EXAMPLES: &str = "\
Example:
  trainer generate --model nano --adapter runs/NAME/adapter --chat --prompt \"What is 3 + 4?\"";

const CHAT_EXAMPLES: &str = "\
Examples:
  trainer chat --model nano --plugin calculator
  trainer chat --run runs/NAME --system \"Answer briefly.\"
  trainer chat --replay conversation.json --show-prompts   the exact prompts of a conversation that was written down";

const SERVE_EXAMPLES: &str = "\
Examples:
  trainer serve --model nano                                          http://127.0.0.1:8000/v1
  trainer serve --model models/Qwen3-0.6B --adapter math=runs/NAME/adapter --slots 64 --context 8192
  TRAINER_KEY=... trainer serve --host 0.0.0.0 --api-key env:TRAINER_KEY";

const RUNS_EXAMPLES: &str = "\
Examples:
  trainer runs list                          the runs below ./runs
  trainer runs compare runs/A runs/B --json
  trainer runs rm runs/A --dry-run";

const DASHBOARD_EXAMPLES: &str = "\
Examples:
  trainer dashboard                    the runs below ./runs, at http://127.0.0.1:7860/
  trainer dashboard runs/NAME --port 0 one run, at a free port
  ssh -L 7860:127.0.0.1:7860 gpu-box   from elsewhere, without opening it to a network";

const PREPARE_EXAMPLES: &str = "\
Examples:
  trainer data prepare recipe.toml
  trainer run recipe.toml                             uses it; --set data.cache=off does not
  trainer run recipe.toml --set data.cache=prepare    prepares what is missing and runs";

const CLEAN_EXAMPLES: &str = "\
Examples:
  trainer data clean --dry-run           lists what there is
  trainer data clean                     removes what no run can use any more
  trainer data clean --older-than 30d    and what was not used for a month";

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
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArgs),
    /// Evaluate a run, or a model on data, with metric plugins.
    #[command(after_help = EVAL_EXAMPLES)]
    Eval(EvalArgs),
    /// Generate text from a prompt.
    #[command(after_help = GENERATE_EXAMPLES)]
    Generate(GenerateArgs),
    /// Talk with a model in the terminal; it can call tools of plugins.
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(ChatArgs),
    /// Serve a model and its adapters with OpenAI's HTTP interface: chat and plain completions, streaming, tools, log-probabilities.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// List, show, compare and remove runs.
    #[command(subcommand, after_help = RUNS_EXAMPLES)]
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
    #[command(after_help = DASHBOARD_EXAMPLES)]
    Dashboard(DashboardArgs),
    /// Fetch models.
    #[command(subcommand)]
    Model(crate::commands::model::ModelCommand),
    /// Send results to a hub.
    #[command(subcommand)]
    Hub(crate::commands::hub::HubCommand),
    /// Look at plugins.
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
    /// PLUGIN:network=10.0.0.0/8 for addresses beyond the public internet. May be repeated.
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
    /// What computes: auto, cpu, cuda or cuda:N (device.backend).
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads (device.threads). Never changes a result.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `trainer run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// The run directory (output.dir). Absent: runs/<date-time>-<mixing plugin>.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Continue the run in this directory, by its own recipe, to the same bytes as if it had never stopped.
    // A group that holds another one has no members for clap, so the flags of `over` are named one by one.
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "recipe", "plugin", "GrantArgs", "set", "max_steps", "seed", "max_bad_rows", "device", "threads", "out", "locked", "dry_run",
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

/// `trainer eval`
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A run directory: its recipe, model and final adapter.
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    pub run: Option<PathBuf>,
    /// A model: nano, a folder, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
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

/// `trainer generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A model: nano, a folder, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,
    /// A PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// The text to continue; special tokens in it count. With --chat, a user's message, in which they do not.
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// Put the prompt through the chat template.
    #[arg(long)]
    pub chat: bool,
    /// A system message before the user's (with --chat).
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// Qwen3's thinking switch (with --chat). Absent: not passed, which means on.
    #[arg(long, value_name = "true|false", requires = "chat")]
    pub enable_thinking: Option<bool>,
    /// The longest answer, in tokens.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_new_tokens: usize,
    /// 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f32,
    /// Only among the k likeliest tokens; 0 turns it off.
    #[arg(long, value_name = "K", default_value_t = 20)]
    pub top_k: usize,
    /// Only among the likeliest tokens that together reach this probability.
    #[arg(long, value_name = "P", default_value_t = 0.8)]
    pub top_p: f32,
    /// Only among tokens with at least this share of the likeliest one's probability.
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Makes tokens that were seen less likely; 1 turns it off.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// The seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 3407)]
    pub seed: u64,
    /// Hold the weights as the checkpoint stores them (as-stored), in NF4 (nf4) or unquantized (none).
    #[arg(long, value_name = "HOW", default_value = "as-stored")]
    pub quantization: String,
    /// What computes: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Print one JSON object (prompt ids, new ids, text, finish) in place of streaming: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer chat`
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// A model: nano, a folder, or one on a hub (org/name, hf://org/name@revision, ms://org/name).
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,
    /// A PEFT adapter folder.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A run: its model, template and adapter.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "adapter"])]
    pub run: Option<PathBuf>,
    /// A component file, or the name of an official plugin: tools that the model may call, or the chat template. May be repeated.
    #[arg(long, value_name = "FILE|NAME")]
    pub plugin: Vec<String>,
    /// What plugins may do.
    #[command(flatten)]
    pub grants: GrantArgs,
    /// The system message.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["load", "replay"])]
    pub system: Option<String>,
    /// Qwen3's thinking switch. Absent: not passed, which means on.
    #[arg(long, value_name = "true|false")]
    pub enable_thinking: Option<bool>,
    /// Go on with a conversation from a file, as /save writes it.
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    pub load: Option<PathBuf>,
    /// Show a conversation from a file turn by turn, then go on with it.
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Only show the exact prompts of the replayed conversation.
    #[arg(long, requires = "replay")]
    pub show_prompts: bool,
    /// The same as one JSON object, with tokens: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", requires = "replay")]
    pub json: Option<PathBuf>,
    /// The most turns of the model after a question.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_turns: u32,
    /// The most calls of tools after a question.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    pub max_calls: u32,
    /// The most tokens of the conversation; the model's own limit if that is less.
    #[arg(long, value_name = "N", default_value_t = 8192)]
    pub max_context: usize,
    /// The longest answer, in tokens.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_new_tokens: usize,
    /// 0 is greedy.
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f64,
    /// Only among the k likeliest tokens; 0 turns it off.
    #[arg(long, value_name = "K", default_value_t = 20)]
    pub top_k: usize,
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
    /// Hold the weights as the checkpoint stores them (as-stored), in NF4 (nf4) or unquantized (none). Absent: as stored, or as the run held them.
    #[arg(long, value_name = "HOW")]
    pub quantization: Option<String>,
    /// What computes: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `trainer serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A model: nano, a folder, or one on a hub (org/name, hf://org/name@revision, ms://org/name). Its name for clients is the folder's.
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,
    /// A PEFT adapter folder, served as a model of this name beside the base. May be repeated.
    #[arg(long, value_name = "NAME=DIR")]
    pub adapter: Vec<String>,
    /// A chat template in place of the default: a component file, or the name of an official plugin. May be repeated.
    #[arg(long, value_name = "FILE|NAME")]
    pub plugin: Vec<String>,
    /// The port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// The address to listen on.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Require this key of every request: env:NAME or file:PATH. Never the key itself, which others could read in the list of processes.
    #[arg(long, value_name = "env:NAME|file:PATH")]
    pub api_key: Option<String>,
    /// Without a key: answer also requests for this name, besides addresses and localhost. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
    /// Sequences generated at the same time. Never changes an answer on the CPU.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub slots: u32,
    /// The most tokens of a sequence, prompt and answer together. Absent: what the model was made for, at most 4096.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub context: Option<u32>,
    /// Answers that may wait for a slot; beyond, requests are refused with 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub queue: u32,
    /// Open connections; beyond, clients wait to be let in.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_connections: u32,
    /// The largest request in bytes.
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1024..=1 << 30))]
    pub max_request_bytes: u32,
    /// Seconds that an answer may take, from its request to its end.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub request_timeout: u32,
    /// Seconds that running answers have to finish after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub shutdown_timeout: u32,
    /// Hold the weights as the checkpoint stores them (as-stored), in NF4 (nf4) or unquantized (none).
    #[arg(long, value_name = "HOW", default_value = "as-stored")]
    pub quantization: String,
    /// What computes: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads. Never changes an answer.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// `trainer plugin`
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// What a component is: name, version, kinds, imports, needs, settings, size and digest.
    Inspect {
        /// A component file, or the name of an official plugin.
        plugin: String,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// The official plugins.
    List {
        /// Only those of a kind (dataset-formatter or formatter, chat-template or template, mixing-policy or policy, tool-executor or tool,
        /// eval-metric or metric).
        #[arg(long, value_name = "KIND")]
        kind: Option<trainer_plugin_host::Kind>,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
}

/// `trainer runs`
#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// The runs below a folder, the newest first.
    List {
        /// The folder.
        #[arg(default_value = "runs")]
        dir: PathBuf,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// One run: where it stands, losses, speed, evaluations.
    Show {
        /// The run directory.
        run: PathBuf,
        /// With recipe, lock and sample answers, as one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Runs side by side: what differs in recipe and lock, losses, evaluations.
    Compare {
        /// The run directories.
        #[arg(required = true, num_args = 2.., value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Remove runs with their adapters and checkpoints. One that is running is refused.
    Rm {
        /// The run directories.
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `trainer dashboard`
#[derive(Debug, Args)]
pub struct DashboardArgs {
    /// A run directory, or a folder with runs below it.
    #[arg(default_value = "runs")]
    pub dir: PathBuf,
    /// The port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 7860)]
    pub port: u16,
    /// The address to listen on. Everybody who reaches it can read the runs.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Answer also requests for this name, besides addresses and localhost. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
}

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

/// `trainer preview`
#[derive(Debug, Args)]
pub struct PreviewArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// How many rows, in the order in which the run draws them.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub rows: u64,
    /// Only rows of this source.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Only this row, numbered as in errors: the line of a text file or the row of a table, from 1; FILE:ROW where the source has several files.
    #[arg(long, value_name = "ROW")]
    pub row: Option<String>,
    /// As one page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer data`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Go through all rows and count: lengths, targets, what is left out and why, duplicates, and the mix as it will be drawn.
    Stat(DataStatArgs),
    /// Format, render and tokenize all rows once and keep the result on disk, so that runs need not. Results stay the same.
    #[command(after_help = PREPARE_EXAMPLES)]
    Prepare(DataPrepareArgs),
    /// Remove prepared data: what no run can use any more, or more with --older-than and --all.
    #[command(after_help = CLEAN_EXAMPLES)]
    Clean(DataCleanArgs),
}

/// `trainer data prepare`
#[derive(Debug, Args)]
pub struct DataPrepareArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer data clean`
#[derive(Debug, Args)]
pub struct DataCleanArgs {
    /// Also what was last used longer ago than this, such as 30d, 12h or 90m.
    #[arg(long, value_name = "TIME", value_parser = crate::commands::data::clean::age)]
    pub older_than: Option<std::time::Duration>,
    /// Everything.
    #[arg(long, conflicts_with = "older_than")]
    pub all: bool,
    /// Only list: what there is, and what would be removed.
    #[arg(long)]
    pub dry_run: bool,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer data stat`
#[derive(Debug, Args)]
pub struct DataStatArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
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
    /// Tokens of each prompt (decode, default 128).
    #[arg(long, value_name = "N", requires = "shape")]
    pub prompt: Option<usize>,
    /// New tokens of each answer (decode, default 256).
    #[arg(long, value_name = "N", requires = "shape")]
    pub new: Option<usize>,
    /// What computes: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Compute threads.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}
