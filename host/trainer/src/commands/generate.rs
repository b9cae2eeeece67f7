//! `trainer generate`

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Result, bail};
use trainer_config::Recipe;
use trainer_engine::Finish;
use trainer_eval::{Question, Speaker, conversation, generate_one};
use trainer_kernels::ops::Ops;
use trainer_runtime::{Plugins, compiler_command, load_base, open_device, with_ops};
use trainer_text::SpecialMode;

use super::Loaded;
use crate::cli::GenerateArgs;
use crate::output::{check_json, interruption, json_on_stdout, write_json};
use crate::ui::shown;

/// Runs the command.
pub fn run(args: GenerateArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let mut recipe = super::model_recipe(&args.model, &args.quantization, &args.device)?;
    if args.template.prompts.is_some() && !args.chat {
        bail!("--template says how a chat becomes a prompt; add --chat");
    }
    args.template.put(&mut recipe);
    let open = open_device(&recipe.device)?;
    with_ops!(open.backend, ops => answer(ops, &args, &recipe))
}

fn answer<O: Ops>(ops: Arc<O>, args: &GenerateArgs, recipe: &Recipe) -> Result<ExitCode> {
    let base = load_base(&recipe.model.source, recipe.model.quantization, ops.reads_weights())?;
    let (prompt_ids, stop_ids) = if args.chat {
        let mut plugins = Plugins::new(recipe, compiler_command()?)?;
        let speaker = Speaker::new(recipe, &base, &mut plugins)?;
        let mut messages = Vec::new();
        if let Some(system) = &args.system {
            messages.push(("system", system.as_str()));
        }
        messages.push(("user", args.prompt.as_str()));
        (speaker.prompt(&base, conversation(&messages), args.enable_thinking)?, speaker.stop_ids)
    } else {
        (base.tokenizer.encode(&args.prompt, SpecialMode::Parse)?, base.eos.clone())
    };
    let loaded = Loaded::new(ops, &base, args.adapter.as_deref())?;
    let stop = interruption()?;
    let streams = args.json.is_none() || !json_on_stdout(args.json.as_deref());
    let question = Question {
        prompt_ids: prompt_ids.clone(),
        params: args.sampling.params(),
        seed: args.sampling.seed,
        max_new_tokens: args.max_new_tokens,
        stop_ids,
        skip_special: args.chat,
    };
    let answer = generate_one(loaded.model, loaded.live.as_ref(), &base, question, &mut |text| {
        if streams {
            let mut out = std::io::stdout().lock();
            if out.write_all(shown(text).as_bytes()).and_then(|()| out.flush()).is_err() {
                return ControlFlow::Break(());
            }
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if streams {
        say!("");
    }
    if let Some(target) = &args.json {
        let finish = match &answer.finish {
            Finish::Stop(_) => "stop",
            Finish::Length => "length",
            Finish::CacheFull => "context",
            Finish::Cancelled => "cancelled",
            Finish::Refused(_) => "refused",
        };
        write_json(target, &serde_json::json!({ "prompt_ids": prompt_ids, "ids": answer.ids, "text": answer.text, "finish": finish }))?;
    }
    Ok(ExitCode::SUCCESS)
}
