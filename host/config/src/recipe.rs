//! The settings, section by section. The comments here are the text of `docs/src/recipe.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::values::{Count, DataPath, DeviceBackend, ModelSource, PluginName, Scalars, Settings, Thinking};

section! {
    /// The whole recipe. Everything has a default: an empty file is the main job on the embedded nano model.
    pub struct Recipe {
        /// The base model.
        pub model: Model = Model::default();
        /// The LoRA adapter.
        pub adapter: Adapter = Adapter::default();
        /// The training data.
        pub data: Data = Data::default();
        /// The mixing policy.
        pub mix: Mix = Mix::default();
        /// The chat template.
        pub template: Template = Template::default();
        /// The optimization.
        pub train: Train = Train::default();
        /// The evaluation before, during and after training.
        pub eval: Eval = Eval::default();
        /// The sample answer at the end of a run.
        pub sample: Sample = Sample::default();
        /// Plugins by name: where they are, their settings, limits and grants.
        pub plugins: BTreeMap<PluginName, Plugin> = BTreeMap::new();
        /// Where results go.
        pub output: Output = Output::default();
        /// Trackers that follow the run.
        pub track: Track = Track::default();
        /// The hardware.
        pub device: Device = Device::default();
    }
}

section! {
    /// The base model.
    pub struct Model {
        /// `"nano"` for the embedded model, a folder in the Hugging Face layout (`config.json`, `model.safetensors` or shards, `tokenizer.json`), or a model on a hub: `"org/name"`, `"hf://org/name@revision"`, `"ms://org/name"`. A folder that is there wins.
        pub source: ModelSource = ModelSource::Nano;
        /// How the frozen linear weights are held.
        pub quantization: Quantization = Quantization::Nf4;
    }
}

choices! {
    /// How the frozen linear weights are held.
    pub enum Quantization {
        /// 4-bit NormalFloat with double quantization (QLoRA).
        Nf4 = "nf4",
        /// Not quantized, whatever the checkpoint's own type.
        None = "none",
        /// As the checkpoint stores them: 4-bit where it is 4-bit, else unquantized.
        AsStored = "as-stored",
    }
}

section! {
    /// The LoRA adapter; names and meanings are PEFT's.
    pub struct Adapter {
        /// The rank.
        pub r: u32 = 32, |r| (1..=65_536).contains(r), "from 1 to 65536";
        /// The scale's numerator: the update is B·A times alpha/r (alpha/√r with `rslora`).
        pub alpha: f64 = 32.0, |a| a.is_finite() && *a > 0.0, "a finite number greater than 0";
        /// The probability with which an input feature of A is dropped in training.
        pub dropout: f64 = 0.0, |p| (0.0..1.0).contains(p), "at least 0 and less than 1";
        /// Which biases are trained.
        pub bias: Bias = Bias::None;
        /// Rank-stabilized scale: alpha/√r in place of alpha/r.
        pub rslora: bool = false;
        /// The projections that get an adapter.
        pub targets: Vec<Target> = Target::ALL.to_vec(), |t| !t.is_empty(), "at least one projection";
        /// Ranks of single modules over `r`, by module name or its ending, such as `"layers.0.self_attn.q_proj"`.
        pub rank_pattern: BTreeMap<String, u32> = BTreeMap::new(), |m| m.values().all(|r| (1..=65_536).contains(r)), "ranks from 1 to 65536";
        /// Alphas of single modules over `alpha`, named as in `rank_pattern`.
        pub alpha_pattern: BTreeMap<String, f64> = BTreeMap::new(), |m| m.values().all(|a| a.is_finite() && *a > 0.0), "finite numbers greater than 0";
        /// A folder with a PEFT adapter to continue from; its shape must be the one set here. Absent: a fresh adapter.
        pub from: Option<PathBuf> = None;
    }
}

choices! {
    /// Which biases are trained.
    pub enum Bias {
        /// None.
        None = "none",
        /// All of the model's.
        All = "all",
        /// Those of the modules that have an adapter.
        LoraOnly = "lora_only",
    }
}

choices! {
    /// A linear projection of a decoder layer.
    pub enum Target {
        /// The attention's queries.
        Q = "q_proj",
        /// The attention's keys.
        K = "k_proj",
        /// The attention's values.
        V = "v_proj",
        /// The attention's output.
        O = "o_proj",
        /// The gate of the MLP.
        Gate = "gate_proj",
        /// The MLP's input.
        Up = "up_proj",
        /// The MLP's output.
        Down = "down_proj",
    }
}

section! {
    /// The training data.
    pub struct Data {
        /// Which tokens the loss counts.
        pub train_on: TrainOn = TrainOn::Assistant;
        /// The longest sample in tokens.
        pub max_seq_length: usize = 8192, |n| (2..=1 << 24).contains(n), "from 2 to 16777216";
        /// What becomes of a longer sample.
        pub too_long: TooLong = TooLong::Error;
        /// Which end is cut off where a longer sample is truncated. A special token is never cut through.
        pub truncation_side: TruncationSide = TruncationSide::Right;
        /// Whether samples of a micro-batch lie end to end without padding. Results are the same; off is slower and only useful for comparison.
        pub packing: bool = true;
        /// What becomes of text in the data that looks like a special token, such as `<|im_end|>`.
        pub special_tokens: SpecialTokens = SpecialTokens::Plain;
        /// How many bad rows a run survives. Each is reported with file and row.
        pub max_bad_rows: u64 = 0;
        /// Threads that read, format and tokenize ahead: `"auto"` (one less than the cores, at least one), or a number; 0 does it in the training thread. Never changes a result.
        pub workers: Count = Count::Auto, |c| c.within(0, 1024), "\"auto\" or from 0 to 1024";
        /// What becomes of prepared data (`trainer data prepare`). Never changes a result.
        pub cache: DataCache = DataCache::Auto;
        /// The sources, in the order in which the mixing policy sees them. Setting any replaces both defaults.
        pub sources: Vec<Source> = Source::builtin(), |s| !s.is_empty(), "at least one source";
    }
}

choices! {
    /// Which tokens the loss counts.
    pub enum TrainOn {
        /// Those that the model writes at inference: the assistant's words and the stop token after them.
        Assistant = "assistant",
        /// All.
        All = "all",
    }
}

choices! {
    /// What becomes of a sample longer than `max_seq_length`.
    pub enum TooLong {
        /// The run stops and names the row.
        Error = "error",
        /// It is skipped and counted.
        Drop = "drop",
        /// What is too much is cut off and it is counted.
        Truncate = "truncate",
    }
}

choices! {
    /// Which end of a longer sample is cut off.
    pub enum TruncationSide {
        /// The end: the first tokens are kept.
        Right = "right",
        /// The beginning: the last tokens are kept.
        Left = "left",
    }
}

choices! {
    /// What becomes of text in the data that looks like a special token.
    pub enum SpecialTokens {
        /// It is encoded as ordinary text, so data cannot forge a turn.
        Plain = "plain",
        /// It becomes that special token, as most other trainers do.
        Parse = "parse",
    }
}

choices! {
    /// What becomes of prepared data.
    pub enum DataCache {
        /// They are used where there are such for exactly these data, plugins and settings.
        Auto = "auto",
        /// The same, and what is missing is prepared before the run begins.
        Prepare = "prepare",
        /// They are not used.
        Off = "off",
    }
}

section! {
    /// A source of rows.
    pub struct Source {
        /// Its name, unique in the recipe; metrics and the mixing policy refer to it. Required.
        pub name: String = String::new();
        /// A file, a folder, a glob such as `"data/*.parquet"` or `"data/**/train-*.jsonl.gz"`, or `"builtin:math_train"`, `"builtin:chat_train"`, `"builtin:math_test"`, `"builtin:tools_eval"`. Required.
        pub path: DataPath = DataPath::Path(PathBuf::new());
        /// The file format.
        pub format: SourceFormat = SourceFormat::Auto;
        /// Conditions that rows must pass to be taken; see `[[data.sources.filter]]`.
        pub filter: Vec<Filter> = Vec::new();
        /// What the formatter sees: its name for each column, and the column's own or a JSON Pointer, such as `{ problem = "question", solution = "/meta/answer" }`. Without any, rows as they are.
        pub columns: BTreeMap<String, String> = BTreeMap::new();
        /// At most so many rows: the first that pass the filter. Absent: all.
        pub limit: Option<u64> = None, |n| n.is_none_or(|n| n > 0), "at least 1";
        /// How much more often than its rows say the source counts in the mix: the mixing policy sees its number of rows times this.
        pub weight: f64 = 1.0, |w| w.is_finite() && *w > 0.0, "a finite number greater than 0";
        /// The share of its rows that is kept out of training, by a hash of each row's content; `eval.data = "holdout:NAME"` evaluates on them.
        pub holdout: f64 = 0.0, |s| (0.0..1.0).contains(s), "at least 0 and less than 1";
        /// The column, or JSON Pointer, whose value is hashed for `holdout`, so that rows with the same value stay on one side. Absent: the whole row.
        pub holdout_by: Option<String> = None;
        /// Whether a pass over the rows is in random order.
        pub shuffle: bool = true;
        /// Reads the files from the front, in memory that does not depend on their size, and shuffles within windows of so many rows. 0: rows are read at random and shuffled as a whole.
        pub shuffle_window: u32 = 0;
        /// The dataset-formatter plugin that turns its rows into conversations. Required.
        pub formatter: PluginName = PluginName::default();
        /// The formatter's settings for this source, over those in `[plugins.NAME]`.
        pub settings: Settings = Settings::default();
    }
}

impl Source {
    /// The two embedded training sets with their formatters.
    fn builtin() -> Vec<Self> {
        let source = |name: &str, file: &str, formatter: &str| Self {
            name: name.to_owned(),
            path: DataPath::Builtin(file.to_owned()),
            formatter: PluginName::new(formatter),
            ..Self::default()
        };
        vec![source("math", "math_train", "math_mix"), source("chat", "chat_train", "sharegpt")]
    }
}

section! {
    /// A condition on one value of a row. All that is set must hold. A value that is missing or null passes only `is_not` and `present = false`.
    pub struct Filter {
        /// A column's name, or a JSON Pointer such as `/messages/0/role`. Required.
        pub column: String = String::new();
        /// One of these texts, numbers or truth values.
        pub is: Scalars = Scalars::default();
        /// None of these.
        pub is_not: Scalars = Scalars::default();
        /// A text that holds one of these.
        pub contains: Vec<String> = Vec::new();
        /// A number no smaller.
        pub min: Option<f64> = None;
        /// A number no larger.
        pub max: Option<f64> = None;
        /// A text of at least so many characters, or a list of so many items.
        pub min_length: Option<u64> = None;
        /// A text of at most so many characters, or a list of so many items.
        pub max_length: Option<u64> = None;
        /// Whether there must be a value other than null, or must be none.
        pub present: Option<bool> = None;
    }
}

choices! {
    /// The format of a source's files.
    pub enum SourceFormat {
        /// By the file's extension.
        Auto = "auto",
        /// JSON Lines: one object a line. Text formats may be compressed (gzip, Zstandard).
        Jsonl = "jsonl",
        /// One JSON array of objects, or one object.
        Json = "json",
        /// Apache Parquet.
        Parquet = "parquet",
        /// Comma-separated values with a header.
        Csv = "csv",
        /// Arrow IPC: a file (Feather) or a stream.
        Arrow = "arrow",
    }
}

section! {
    /// The mixing policy: which source the next sample comes from.
    pub struct Mix {
        /// The mixing-policy plugin.
        pub plugin: PluginName = PluginName::new("math_mix");
        /// Its settings, over those in `[plugins.NAME]`.
        pub settings: Settings = Settings::default();
        /// Tells the policy each step's losses by source, this many steps later; 0 does not tell it. With a lag, reading ahead stops at the step being filled.
        pub feedback_lag: u32 = 0, |n| (0..=1024).contains(n), "from 0 to 1024";
    }
}

section! {
    /// The chat template: conversations to text, and the model's output back.
    pub struct Template {
        /// The chat-template plugin.
        pub plugin: PluginName = PluginName::new("qwen3_chat");
        /// What renders prompts for answers: the plugin, or the model's own Jinja template. Answers are read, and training texts rendered, by the plugin
        /// either way; a recipe that trains must leave this at `"plugin"`.
        pub prompts: PromptsFrom = PromptsFrom::Plugin;
        /// Its settings, over those in `[plugins.NAME]`.
        pub settings: Settings = Settings::default();
    }
}

choices! {
    /// What renders prompts.
    pub enum PromptsFrom {
        /// The chat-template plugin.
        Plugin = "plugin",
        /// The Jinja template that comes with the model.
        Model = "model",
    }
}

section! {
    /// The optimization. A step is always `batch` × `accumulation` samples, and its loss is the mean over all target weight of the step.
    pub struct Train {
        /// Samples in a micro-batch.
        pub batch: usize = 2, |n| (1..=65_536).contains(n), "from 1 to 65536";
        /// Micro-batches in a step.
        pub accumulation: usize = 4, |n| (1..=65_536).contains(n), "from 1 to 65536";
        /// Optimizer steps. Exactly one of `max_steps` and `epochs` may be set; with neither it is 30.
        pub max_steps: Option<u64> = Some(30), |n| n.is_none_or(|n| n >= 1), "at least 1";
        /// Passes over the mix, such as `1` or `0.5`; needs a mixing policy that knows the length of a pass.
        pub epochs: Option<f64> = None, |n| n.is_none_or(|n| n.is_finite() && n > 0.0), "a finite number greater than 0";
        /// Steps over which the learning rate rises from 0.
        pub warmup_steps: u64 = 5;
        /// The highest learning rate. (The tutorial's 2e-4 suits large models; the nano model needs 2e-3.)
        pub learning_rate: f64 = 2e-3, |x| x.is_finite() && *x > 0.0, "a finite number greater than 0";
        /// How the learning rate goes on after the warmup.
        pub schedule: Schedule = Schedule::Linear;
        /// The optimizer.
        pub optimizer: Optimizer = Optimizer::AdamW8bit;
        /// Decoupled weight decay.
        pub weight_decay: f64 = 0.01, |x| x.is_finite() && *x >= 0.0, "a finite number, at least 0";
        /// Decay rates of Adam's two moments.
        pub betas: [f64; 2] = [0.9, 0.999], |b| b.iter().all(|b| (0.0..1.0).contains(b)), "two numbers, each at least 0 and less than 1";
        /// Added to the denominator of the update.
        pub eps: f64 = 1e-8, |x| x.is_finite() && *x > 0.0, "a finite number greater than 0";
        /// Gradients are scaled down to this global norm; 0 turns clipping off.
        pub max_grad_norm: f64 = 1.0, |x| x.is_finite() && *x >= 0.0, "a finite number, at least 0";
        /// The seed of everything random: adapter, order of rows, dropout, sampling.
        pub seed: u64 = 3407;
        /// Which layers' activations are computed again in the backward pass instead of being kept. Never changes a result.
        pub recompute: Recompute = Recompute::Auto;
        /// What products of frozen weights are computed in on a card; the CPU computes in f32.
        pub precision: Precision = Precision::Bf16;
        /// Steps between checkpoints; 0 writes one only at the end (and on Ctrl-C).
        pub checkpoint_every: u64 = 0;
        /// How many checkpoints are kept, the newest first.
        pub keep_checkpoints: usize = 2, |n| (1..=1_000_000).contains(n), "from 1 to 1000000";
    }
}

choices! {
    /// How the learning rate goes on after the warmup.
    pub enum Schedule {
        /// Down to 0 in a straight line.
        Linear = "linear",
        /// Down to 0 along half a cosine.
        Cosine = "cosine",
        /// Unchanged.
        Constant = "constant",
    }
}

choices! {
    /// The optimizer.
    pub enum Optimizer {
        /// AdamW with blockwise 8-bit states; tensors under 4,096 entries keep 32-bit ones.
        AdamW8bit = "adamw_8bit",
        /// AdamW with 32-bit states.
        AdamW = "adamw",
    }
}

choices! {
    /// What products of frozen weights are computed in.
    pub enum Precision {
        /// bfloat16.
        Bf16 = "bf16",
        /// 8-bit floating point (e4m3) with a scale for each row of weights, activations and gradients: faster, less exact. Needs an H100 or H200.
        Fp8 = "fp8",
    }
}

choices! {
    /// Which layers are computed again in the backward pass.
    pub enum Recompute {
        /// What the memory plan needs.
        Auto = "auto",
        /// All.
        All = "all",
        /// None.
        None = "none",
    }
}

section! {
    /// The evaluation before, during and after training, and what `trainer eval` uses for a run.
    pub struct Eval {
        /// The rows: as the `path` of a source, or `"holdout:NAME"`: those that the source of that name keeps out of training.
        pub data: DataPath = DataPath::Builtin("math_test".to_owned());
        /// The format of their file.
        pub format: SourceFormat = SourceFormat::Auto;
        /// The eval-metric plugins.
        pub metrics: Vec<PluginName> = vec![PluginName::new("boxed_answer")];
        /// Settings by metric, over those in `[plugins.NAME]`.
        pub settings: BTreeMap<PluginName, Settings> = BTreeMap::new();
        /// Whether to evaluate before training.
        pub before: bool = true;
        /// Whether to evaluate after training.
        pub after: bool = true;
        /// Also after every so many steps, and after the last; 0: not during training. The numbers by step are in `evals.jsonl`.
        pub every: u64 = 0;
        /// Ends the run when a number stops getting better.
        pub early_stopping: EarlyStopping = EarlyStopping::default();
        /// Keeps the adapter of the step at which a number was best, in `adapter-best`.
        pub best: Best = Best::default();
        /// At most this many rows, from the top. Absent: all.
        pub limit: Option<u64> = None, |n| n.is_none_or(|n| n >= 1), "at least 1";
        /// How many answers are generated at once.
        pub batch: usize = 128, |n| (1..=65_536).contains(n), "from 1 to 65536";
        /// The longest answer in tokens, where the metric does not say.
        pub max_new_tokens: usize = 256, |n| (1..=1 << 24).contains(n), "from 1 to 16777216";
        /// 0 takes the likeliest token (greedy); otherwise logits are divided by it.
        pub temperature: f64 = 0.0, |x| x.is_finite() && *x >= 0.0, "a finite number, at least 0";
        /// Sampling only among the k likeliest tokens; 0 turns it off.
        pub top_k: usize = 0;
        /// Sampling only among the likeliest tokens that together reach this probability; 1 turns it off.
        pub top_p: f64 = 1.0, |x| *x > 0.0 && *x <= 1.0, "greater than 0 and at most 1";
        /// Sampling only among tokens with at least this share of the likeliest one's probability; 0 turns it off.
        pub min_p: f64 = 0.0, |x| (0.0..=1.0).contains(x), "from 0 to 1";
        /// Divides (if positive, else multiplies) the logits of tokens that were seen; 1 turns it off.
        pub repetition_penalty: f64 = 1.0, |x| x.is_finite() && *x > 0.0, "a finite number greater than 0";
        /// Qwen3's thinking switch in the prompt; `"template"` does not pass it and leaves it to the template.
        pub enable_thinking: Thinking = Thinking::Template;
        /// Tool-executor plugins whose tools a model can call. Rows that name tools themselves offer those, others offer all of these.
        pub tools: Vec<PluginName> = Vec::new();
        /// How many answers are drawn per row, for pass@k; needs a `temperature`. Absent: as many as the metric asks for.
        pub repeats: Option<u32> = None, |n| n.is_none_or(|n| (1..=1024).contains(&n)), "from 1 to 1024";
        /// The most turns of the model in a conversation with tools.
        pub max_turns: u32 = 8, |n| (1..=1024).contains(n), "from 1 to 1024";
        /// The most calls in a conversation with tools.
        pub max_calls: u32 = 32, |n| (1..=65_536).contains(n), "from 1 to 65536";
        /// The most seconds that an answer may take, its tools included; one that takes longer ends where it is. Results then depend on how fast the machine is. Absent: no limit.
        pub max_seconds: Option<f64> = None, |x| x.is_none_or(|x| x > 0.0 && x <= 86_400.0), "greater than 0 and at most 86400";
        /// The most tokens of a conversation with tools, their results included; the model's own limit if that is less.
        pub max_context: usize = 4096, |n| (1..=1 << 24).contains(n), "from 1 to 16777216";
    }
}

section! {
    /// Ends the run when a number of the evaluations during training stops getting better; needs `eval.every`.
    pub struct EarlyStopping {
        /// The number, as evaluations name it: `"boxed_answer/accuracy"`, or `"loss/eval"`, the loss on the rows that sources hold out. Absent: the run goes on to its last step.
        pub metric: Option<String> = None, |m| m.as_deref().is_none_or(is_metric), "a metric's name and that of its number, such as \"boxed_answer/accuracy\", or \"loss/eval\"";
        /// So many evaluations in a row without an improvement end the run.
        pub patience: u64 = 3, |n| *n >= 1, "at least 1";
        /// An improvement of no more than this counts as none.
        pub min_delta: f64 = 0.0, |x| x.is_finite() && *x >= 0.0, "a finite number, at least 0";
        /// Which way is better.
        pub mode: Better = Better::Auto;
    }
}

section! {
    /// Keeps the adapter of the step at which a number of the evaluations during training was best; needs `eval.every`.
    pub struct Best {
        /// The number, as in `[eval.early_stopping]`. Absent: no adapter but the last is kept.
        pub metric: Option<String> = None, |m| m.as_deref().is_none_or(is_metric), "a metric's name and that of its number, such as \"boxed_answer/accuracy\", or \"loss/eval\"";
        /// Which way is better.
        pub mode: Better = Better::Auto;
    }
}

choices! {
    /// Which way a number is better.
    pub enum Better {
        /// As the metric says; the run ends with an error where it does not.
        Auto = "auto",
        /// The higher, the better.
        Max = "max",
        /// The lower, the better.
        Min = "min",
    }
}

/// The number that is the loss on the rows that sources hold out.
pub const HELD_OUT_LOSS: &str = "loss/eval";

/// Whether a text can be the name of an evaluation's number.
fn is_metric(text: &str) -> bool {
    text.split_once('/').is_some_and(|(metric, number)| !metric.is_empty() && !number.is_empty()) && !text.chars().any(char::is_control)
}

section! {
    /// The sample answer that a run streams at its end.
    pub struct Sample {
        /// Also after every so many steps; 0: only at the end. All answers are kept in `samples.jsonl`.
        pub every: u64 = 0;
        /// The user's message; an empty one skips the sample.
        pub prompt: String = "Solve for x: 4(x + 2) + 9 = 37.".to_owned();
        /// The longest answer in tokens.
        pub max_new_tokens: usize = 256, |n| (1..=1 << 24).contains(n), "from 1 to 16777216";
        /// As in `[eval]`.
        pub temperature: f64 = 0.7, |x| x.is_finite() && *x >= 0.0, "a finite number, at least 0";
        /// As in `[eval]`.
        pub top_k: usize = 20;
        /// As in `[eval]`.
        pub top_p: f64 = 0.8, |x| *x > 0.0 && *x <= 1.0, "greater than 0 and at most 1";
        /// As in `[eval]`.
        pub min_p: f64 = 0.0, |x| (0.0..=1.0).contains(x), "from 0 to 1";
        /// As in `[eval]`.
        pub repetition_penalty: f64 = 1.0, |x| x.is_finite() && *x > 0.0, "a finite number greater than 0";
        /// As in `[eval]`; here the default is `false`, and the tutorial ends the same way.
        pub enable_thinking: Thinking = Thinking::Given(false);
    }
}

section! {
    /// A plugin by its name.
    pub struct Plugin {
        /// The component's file. Absent: the official plugin of this name, which is embedded in the program, or else the one that `trainer plugin add` installed under this name.
        pub path: Option<PathBuf> = None;
        /// SHA-256 that the component must have; an installed plugin is found by it. Absent: what `plugins.lock` beside the recipe pins, or else whatever is there.
        pub sha256: Option<String> = None, |s| s.as_deref().is_none_or(is_sha256), "64 hexadecimal digits";
        /// Settings wherever the plugin is used.
        pub settings: Settings = Settings::default();
        /// Limits over the defaults, such as `memory = "64MiB"`; `trainer plugin inspect` shows them all.
        pub limits: Settings = Settings::default();
        /// What it may do beyond computing: `"http=https://api.example.com"` (a server, with methods before it if it is more than reading), `"network=10.0.0.0/8"` (addresses beyond the public internet), `"clock"` and `"random"` (this machine's, where WASI's are asked for). The default is nothing; each grant is recorded in the lock.
        pub grants: Vec<String> = Vec::new();
        /// Its secrets: each by its name, and where its value is, `KEY = "env:NAME"` or `"file:PATH"`, with ` to https://HOST` after it where the plugin has several servers. Values never stand in a recipe.
        pub secrets: BTreeMap<String, String> = BTreeMap::new();
        /// Whether each episode of its tools runs in a process of its own that has given up its rights: a wall behind the sandbox, at a few milliseconds an episode. Only for plugins of nothing but tools.
        pub isolated: bool = false;
    }
}

section! {
    /// Where results go.
    pub struct Output {
        /// The run directory. Absent: `runs/<date-time>-<mixing plugin>` in the current folder.
        pub dir: Option<PathBuf> = None;
    }
}

section! {
    /// Trackers that follow the run: what `metrics.jsonl` and the evaluations hold, in the tools that people watch runs with. None of it changes a result.
    pub struct Track {
        /// The trackers; `metrics.jsonl` is written always.
        pub report_to: Vec<Tracker> = Vec::new();
        /// MLflow's experiment and W&B's project.
        pub project: String = "trainer".to_owned(), |s| is_label(s), "1 to 128 characters without control characters";
        /// The run's name there. Absent: that of the run directory.
        pub name: Option<String> = None, |s| s.as_deref().is_none_or(is_label), "1 to 128 characters without control characters";
        /// MLflow's server. Absent: what the environment's `MLFLOW_TRACKING_URI` says, else `http://127.0.0.1:5000`.
        pub mlflow_uri: Option<String> = None, |s| s.as_deref().is_none_or(is_http), "an http:// or https:// address";
    }
}

/// Whether a text is a SHA-256.
fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a text can name something in a tracker.
fn is_label(text: &str) -> bool {
    !text.trim().is_empty() && text.chars().count() <= 128 && !text.chars().any(char::is_control)
}

/// Whether a text is the address of a web server.
fn is_http(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(|r| !r.is_empty() && !r.starts_with('/')) && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

choices! {
    /// A program that shows runs.
    pub enum Tracker {
        /// Event files in the run's `tensorboard` folder.
        TensorBoard = "tensorboard",
        /// An MLflow server, over its REST interface.
        Mlflow = "mlflow",
        /// A Weights & Biases offline run in the run's `wandb` folder, for `wandb sync`.
        Wandb = "wandb",
    }
}

section! {
    /// The hardware. What the program chose where this says `auto` is in the lock.
    pub struct Device {
        /// What computes: the best device there is, the CPU, or an NVIDIA card, by its number where there are several.
        pub backend: DeviceBackend = DeviceBackend::Auto;
        /// Compute threads on the CPU: `"auto"` (all cores this process may use) or a number. Never changes a result.
        pub threads: Count = Count::Auto, |c| c.within(1, 4096), "\"auto\" or from 1 to 4096";
        /// How memory is traded for speed. It changes results by rounding at most.
        pub plan: DevicePlan = DevicePlan::Auto;
        /// The memory in GiB that the plan may fill, such as `22.5`; 0: all of the card's, on the CPU without a limit.
        pub memory_limit: f64 = 0.0, |x| x.is_finite() && (0.0..=1_048_576.0).contains(x), "from 0 to 1048576 GiB";
    }
}

choices! {
    /// How memory is traded for speed.
    pub enum DevicePlan {
        /// The fastest plan that fits the memory, with a margin where the card says how much it has.
        Auto = "auto",
        /// The fastest plan that fits.
        Fastest = "fastest",
        /// The plan that needs the least memory.
        Smallest = "smallest",
    }
}
