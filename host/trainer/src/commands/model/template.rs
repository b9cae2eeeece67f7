//! `trainer model template`: a checkpoint's own chat template against a template plugin.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use trainer_config::Recipe;
use trainer_jinja::{Context, JinjaTemplate, Limits, RendererCommand, probes};
use trainer_model::chat_template::{chat_template, special_tokens, tokenizer_settings};
use trainer_plugin_host::template::{Piece, PromptRequest, Rendered};
use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message, ToolCall};
use trainer_plugin_host::{Kind, Plugin};
use trainer_runtime::{Plugins, apply_plugin, compiler_command};

use super::args::ModelTemplateArgs;
use crate::output::{check_json, write_json};
use crate::ui::shown;

/// What came of a probe.
struct Outcome {
    name: &'static str,
    own: Result<String, String>,
    plugin: Result<String, String>,
}

impl Outcome {
    /// Equal texts, or both refuse.
    fn same(&self) -> bool {
        match (&self.own, &self.plugin) {
            (Ok(a), Ok(b)) => a == b,
            (Err(_), Err(_)) => true,
            _ => false,
        }
    }
}

/// Runs the command.
pub fn run(args: &ModelTemplateArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let (files, source) = super::named_model(&args.model)?;
    let Some(text) = chat_template(&files)? else {
        bail!(
            "{} has no chat template of its own: neither chat_template.jinja nor chat_template in tokenizer_config.json",
            files.describe()
        );
    };
    let sha256: String = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let tokens = special_tokens(&tokenizer_settings(&files)?);
    let template = JinjaTemplate::new(text.clone(), Limits::default(), RendererCommand::current_exe()?)?;
    let probes = probes::all(&tokens);
    let contexts: Vec<Context> = probes.iter().map(|p| p.context.clone()).collect();
    let own = template.render(&contexts).with_context(|| format!("the chat template of {}", files.describe()))?;
    if args.show {
        for (probe, own) in probes.iter().zip(&own) {
            say!("== {}\n{}", probe.name, own.as_ref().map_or_else(|e| format!("(refused: {e})"), |t| shown(t).into_owned()));
        }
        return Ok(ExitCode::SUCCESS);
    }

    let mut recipe = Recipe::default();
    apply_plugin(&mut recipe, &args.plugin)?;
    let mut plugins = Plugins::new(&recipe, compiler_command()?)?;
    let plugin = plugins.get("--plugin", &recipe.template.plugin, Kind::ChatTemplate)?;
    let outcomes = compare(&plugin, &json!({}), &contexts, &probes, &own)?;
    let equal = outcomes.iter().filter(|o| o.same()).count();
    let better = if equal == outcomes.len() { None } else { better_revision(&plugin, &contexts, &probes, &own)? };
    let name = plugin.manifest().name.clone();
    if let Some(target) = &args.json {
        let shown = |t: &Result<String, String>| t.as_ref().map_or_else(|e| json!({ "refused": e }), |t| json!({ "text": t }));
        let probes: Vec<Value> = outcomes
            .iter()
            .map(|o| json!({ "name": o.name, "same": o.same(), "own": shown(&o.own), "plugin": shown(&o.plugin) }))
            .collect();
        write_json(
            target,
            &json!({
                "model": source.to_string(), "template_sha256": sha256, "template_bytes": text.len(), "plugin": name,
                "same": equal, "probes": probes, "equal_revision": better,
            }),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}: chat template of {} bytes, sha256 {}", files.describe(), text.len(), sha256.get(..12).unwrap_or_default());
    say!("{equal} of {} probes are rendered alike by {name}", outcomes.len());
    for outcome in outcomes.iter().filter(|o| !o.same()) {
        say!("\ndiffers: {}", outcome.name);
        match (&outcome.own, &outcome.plugin) {
            (Ok(a), Ok(b)) => {
                let at = first_difference(a, b);
                say!("  from byte {at} on");
                say!("  the model's  {}", excerpt(a, at));
                say!("  {name:<12} {}", excerpt(b, at));
            }
            (Ok(_), Err(e)) => say!("  {name} refuses it: {}", shown(e)),
            (Err(e), Ok(_)) => say!("  the model's refuses it: {}", shown(e)),
            (Err(_), Err(_)) => {}
        }
    }
    if let Some(revision) = better {
        say!("\nwith the setting revision = \"{revision}\" {name} renders all probes alike ([template.settings] of the recipe)");
    }
    Ok(ExitCode::SUCCESS)
}

/// Both sides of every probe.
fn compare(
    plugin: &Arc<Plugin>,
    settings: &Value,
    contexts: &[Context],
    probes: &[probes::Probe],
    own: &[Result<String, String>],
) -> Result<Vec<Outcome>> {
    let template = plugin.template(settings)?;
    let requests: Vec<PromptRequest> = contexts.iter().map(request).collect();
    let rendered = template.render_prompts(&requests)?;
    let theirs = rendered.into_iter().map(|r| r.map(|r| text_of(&r)).map_err(|e| e.to_string()));
    Ok(probes.iter().zip(own).zip(theirs).map(|((probe, own), plugin)| Outcome { name: probe.name, own: own.clone(), plugin }).collect())
}

/// A revision of the plugin's template, where its settings have such, under which all probes are rendered alike.
fn better_revision(
    plugin: &Arc<Plugin>,
    contexts: &[Context],
    probes: &[probes::Probe],
    own: &[Result<String, String>],
) -> Result<Option<String>> {
    let schema = plugin.manifest().settings_schema.clone().unwrap_or_default();
    for revision in schema.pointer("/properties/revision/enum").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if compare(plugin, &json!({ "revision": revision }), contexts, probes, own)?.iter().all(Outcome::same) {
            return Ok(Some(revision.to_owned()));
        }
    }
    Ok(None)
}

fn text_of(rendered: &Rendered) -> String {
    let text = |piece: &Piece| match piece {
        Piece::Text(t) | Piece::Special(t) => t.clone(),
    };
    rendered.segments.iter().map(|s| text(&s.piece)).collect()
}

/// A probe as plugins take it.
fn request(context: &Context) -> PromptRequest {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    PromptRequest {
        conversation: Conversation {
            messages: items(&context.messages).iter().map(message).collect(),
            tools: items(&context.tools).iter().map(Value::to_string).collect(),
            template_args: None,
            weight: 1.0,
        },
        add_generation_prompt: context.add_generation_prompt,
        enable_thinking: context.enable_thinking,
    }
}

fn message(value: &Value) -> Message {
    let string = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let call = |call: &Value| {
        let inner = call.get("function").unwrap_or(call);
        ToolCall {
            id: string(call, "id"),
            name: string(inner, "name").unwrap_or_default(),
            arguments: CallArguments::Json(inner.get("arguments").unwrap_or(&Value::Null).to_string()),
        }
    };
    let calls = value.get("tool_calls").and_then(Value::as_array);
    Message {
        role: string(value, "role").unwrap_or_default(),
        content: string(value, "content").map_or(Content::None, Content::Text),
        reasoning_content: string(value, "reasoning_content"),
        tool_calls: calls.into_iter().flatten().map(call).collect(),
        tool_call_id: None,
        name: None,
        weight: None,
        spans: Vec::new(),
    }
}

fn first_difference(a: &str, b: &str) -> usize {
    let at = a.bytes().zip(b.bytes()).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
    a.floor_char_boundary(at)
}

/// Some characters around a place, in quotes.
fn excerpt(text: &str, at: usize) -> String {
    let start = text.floor_char_boundary(at.saturating_sub(24));
    let end = text.ceil_char_boundary(at.saturating_add(40).min(text.len()));
    format!("...{:?}...", text.get(start..end).unwrap_or_default())
}
