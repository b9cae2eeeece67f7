//! `trainer serve`

use clap::Args;

use super::{DeviceArgs, GrantArgs, TemplateArgs, ToolLimitArgs};

pub(super) const SERVE_EXAMPLES: &str = "\
Examples:
  trainer serve --model nano                                          http://127.0.0.1:8000/v1
  trainer serve --model models/Qwen3-0.6B --adapter math=runs/NAME/adapter --slots 64 --context 8192
  trainer serve --model nano --plugin calculator                      its calls are executed by the server
  TRAINER_KEY=... trainer serve --host 0.0.0.0 --api-key env:TRAINER_KEY";

/// `trainer serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A model: nano, a folder, a GGUF file, or one on a hub (org/name, hf://org/name@revision, ms://org/name). Its name for clients is the folder's.
    #[arg(long, value_name = "MODEL", default_value = "nano")]
    pub model: String,
    /// A PEFT adapter folder, served as a model of this name beside the base. May be repeated.
    #[arg(long, value_name = "NAME=DIR")]
    pub adapter: Vec<String>,
    /// A component file, or the name of an official plugin: tools that the server offers in every chat and executes itself, or the chat template. May be
    /// repeated.
    #[arg(long, value_name = "FILE|NAME")]
    pub plugin: Vec<String>,
    /// What plugins may do.
    #[command(flatten)]
    pub grants: GrantArgs,
    /// Where prompts come from.
    #[command(flatten)]
    pub template: TemplateArgs,
    /// The limits of an answer that calls the server's tools.
    #[command(flatten)]
    pub limits: ToolLimitArgs,
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
    /// What computes.
    #[command(flatten)]
    pub device: DeviceArgs,
}
