//! `trainer serve`

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use trainer_config::Recipe;
use trainer_engine::{Adapter, GenOptions, Generator, Model};
use trainer_eval::Speaker;
use trainer_kernels::ops::Ops;
use trainer_kernels::sampling::SamplingParams;
use trainer_model::{Adapter as HostAdapter, GenerationConfig, ModelFiles};
use trainer_plugin_host::{Kind, Limits};
use trainer_runtime::{Base, Plugins, apply_plugin, compiler_command, find_plugin, inference_weights, load_base, open_device, with_ops};
use trainer_serve::{ApiKey, Engine, Options, Stopper, Voice, serve};

use crate::cli::ServeArgs;
use crate::ui::safe;

/// The context where none is asked for, unless the model has less.
const CONTEXT: usize = 4096;
/// Prompt tokens in one forward pass.
const PREFILL_TOKENS: usize = 2048;
/// How long the body of a request may take to come.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// A file with a key is small.
const KEY_LIMIT: u64 = 4096;

/// Runs the command.
pub fn run(args: ServeArgs) -> Result<ExitCode> {
    let api_key = args.api_key.as_deref().map(api_key).transpose()?;
    let adapters = args.adapter.iter().map(|text| adapter(text)).collect::<Result<Vec<_>>>()?;
    let mut recipe = super::model_recipe(&args.model, &args.quantization, &args.device)?;
    for plugin in &args.plugin {
        let about = find_plugin(plugin)?.source().inspect(&Limits::default())?;
        if !about.kinds.iter().any(|k| matches!(k.kind, Kind::ChatTemplate | Kind::ToolExecutor)) {
            note!("note: {plugin} has neither tools nor a chat template, and does nothing here");
        }
        apply_plugin(&mut recipe, plugin)?;
    }
    super::grant(&mut recipe, &args.grants)?;
    args.template.put(&mut recipe);
    if !args.host.is_loopback() && api_key.is_none() {
        note!("warning: everybody who reaches {} can use the model; --api-key restricts that", args.host);
    }
    let open = open_device(&recipe.device)?;
    with_ops!(open.backend, ops => with_model(ops, args, api_key, &adapters, &recipe))
}

fn with_model<O: Ops + 'static>(
    ops: Arc<O>,
    args: ServeArgs,
    api_key: Option<ApiKey>,
    adapters: &[(String, PathBuf)],
    recipe: &Recipe,
) -> Result<ExitCode> {
    let base = load_base(&recipe.model.source, recipe.model.quantization, ops.reads_weights())?;
    let mut plugins = Plugins::new(recipe, compiler_command()?)?;
    let speaker = Speaker::new(recipe, &base, &mut plugins)?;
    let toolbox = super::toolbox(&super::tool_names(&args.plugin)?, recipe, args.limits.limits(), &mut plugins)?;
    for warning in toolbox.ungranted() {
        note!("warning: {warning}");
    }
    let weights = inference_weights(ops.as_ref(), &base.config);
    let model = Model::new(ops, &base.config, &base.weights, weights)?;
    let name = Path::new(&base.name).file_name().map_or_else(|| base.name.clone(), |n| n.to_string_lossy().into_owned());
    let mut models = vec![(name.clone(), None)];
    for (adapter, folder) in adapters {
        if models.iter().any(|m| m.0 == *adapter) {
            bail!("two models would be called {adapter}; give --adapter another name");
        }
        let read = || -> Result<_> { Ok(Adapter::load(&model, &HostAdapter::read(&ModelFiles::dir(folder))?)?) };
        models.push((adapter.clone(), Some(read().with_context(|| format!("the adapter in {}", folder.display()))?)));
    }
    let limit = base.config.max_position_embeddings;
    let context = args.context.map_or(CONTEXT.min(limit), |n| n as usize);
    if context > limit {
        bail!("--context {context} is more than the {limit} tokens that {name} was made for");
    }
    let slots = args.slots as usize;
    let generator = Generator::new(model, GenOptions { slots, cache_length: context, prefill_tokens: PREFILL_TOKENS.min(context) })
        .context("memory for --slots times --context tokens")?;
    let defaults = defaults(&base)?;
    let voice = Voice { tokenizer: base.tokenizer.clone(), speaker, eos: base.eos.clone() };
    // Everything that is needed of the files is on the device by now.
    drop((base, plugins));
    let tools: Vec<String> = toolbox.plugins().into_iter().flat_map(|p| p.tools).map(|t| t.name).collect();
    let names: Vec<String> = models.iter().map(|m| m.0.clone()).collect();
    let seconds = |n: u32| Duration::from_secs(n.into());
    let options = Options {
        host: args.host,
        port: args.port,
        api_key,
        allowed_hosts: args.allow_host,
        queue: args.queue as usize,
        max_connections: args.max_connections as usize,
        max_request_bytes: args.max_request_bytes as usize,
        read_timeout: READ_TIMEOUT,
        request_timeout: seconds(args.request_timeout),
        shutdown_timeout: seconds(args.shutdown_timeout),
    };
    let stopper = Stopper::new();
    listen_for_signals(stopper.clone())?;
    let ready = move |address: SocketAddr| {
        let executes = if tools.is_empty() { String::new() } else { format!(" executes {};", safe(&tools.join(", "))) };
        say!("serving {} at http://{address}/v1 ({slots} slots of {context} tokens;{executes} Ctrl-C ends it)", names.join(", "));
        let _ = std::io::stdout().flush();
    };
    serve(Engine { generator, models, defaults }, voice, Some(Arc::new(toolbox)), options, ready, &stopper)?;
    note!("the server has ended");
    Ok(ExitCode::SUCCESS)
}

/// How the model's own settings draw tokens.
fn defaults(base: &Base) -> Result<SamplingParams> {
    let own = GenerationConfig::read(&base.files)?;
    let none = SamplingParams::default();
    if own.do_sample == Some(false) {
        return Ok(SamplingParams::greedy());
    }
    Ok(SamplingParams {
        temperature: own.temperature.unwrap_or(none.temperature),
        top_k: own.top_k.map_or(none.top_k, |k| u32::try_from(k).unwrap_or(u32::MAX)),
        top_p: own.top_p.unwrap_or(none.top_p),
        min_p: own.min_p.unwrap_or(none.min_p),
        repetition_penalty: own.repetition_penalty.unwrap_or(none.repetition_penalty),
        ..none
    })
}

/// `NAME=DIR`.
fn adapter(text: &str) -> Result<(String, PathBuf)> {
    let Some((name, folder)) = text.split_once('=') else { bail!("--adapter {text} is not of the form NAME=DIR") };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    if name.is_empty() || name.len() > 128 || !name.chars().all(fits) {
        bail!("--adapter {text}: a name has 1 to 128 letters, digits, underscores, dots, colons and dashes");
    }
    Ok((name.to_owned(), folder.into()))
}

/// The key that `--api-key` says where to find. No error shows it.
fn api_key(from: &str) -> Result<ApiKey> {
    let (text, place) = match from.split_once(':') {
        Some(("env", name)) => {
            (std::env::var(name).ok().with_context(|| format!("--api-key: there is no environment variable {name}"))?, name.to_owned())
        }
        Some(("file", path)) => {
            let length = std::fs::metadata(path).with_context(|| format!("--api-key: {path}"))?.len();
            if length > KEY_LIMIT {
                bail!("--api-key: {path} has {length} bytes; a key has at most {KEY_LIMIT}");
            }
            (std::fs::read_to_string(path).with_context(|| format!("--api-key: {path}"))?, path.to_owned())
        }
        _ => bail!("--api-key takes env:NAME or file:PATH; a key on the command line could be read in the list of processes"),
    };
    ApiKey::new(&text).with_context(|| format!("--api-key: what {place} holds"))
}

/// The first Ctrl-C or SIGTERM ends the server when it has finished what runs, the second at once.
fn listen_for_signals(stopper: Stopper) -> Result<()> {
    let seen = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        note!("\nfinishing what runs; once more stops at once");
        stopper.stop();
    })
    .context("cannot listen for Ctrl-C")
}
