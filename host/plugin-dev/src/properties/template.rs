//! Templates: stable prefixes, and a parser that reads back what was rendered, however it is cut.

use std::sync::Arc;

use serde_json::Value;
use trainer_plugin_host::template::{OutputPart, Piece, PromptRequest, Rendered, Template};
use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message};
use trainer_plugin_host::{Plugin, PluginError, RowError};

use super::{Checked, Inputs, brief};

pub(super) fn check(plugin: &Arc<Plugin>, inputs: &Inputs<'_>) -> Vec<(&'static str, Checked)> {
    let conversations: Vec<Conversation> = probes()
        .into_iter()
        .chain(inputs.calls("render_training").filter_map(|s| s.args.first()?.as_array()).flatten().filter_map(conversation))
        .collect();
    let each = |run: &dyn Fn(&Template) -> Checked| -> Checked {
        for settings in inputs.settings() {
            let Ok(template) = plugin.template(&settings) else { continue };
            run(&template).map_err(|e| format!("under settings {settings}: {e}"))?;
        }
        Ok(())
    };
    vec![
        (
            "a plain conversation can be rendered, and its answer is trained",
            each(&|template| {
                let probe = Conversation { messages: vec![text("user", "Hi"), text("assistant", "Hello")], ..empty() };
                let rendered = training(template, &probe)?.map_err(|e| e.to_string())?;
                let trained = rendered.iter().flat_map(|r| &r.segments).any(|s| s.generated && s.weight > 0.0);
                if trained { Ok(()) } else { Err("no piece of it is marked as generated with a weight above 0".to_owned()) }
            }),
        ),
        (
            "its first stop token ends what is trained",
            each(&|template| {
                let stop = template.describe().map_err(|e| e.to_string())?.stop_tokens;
                let Some(stop) = stop.first() else { return Err("describe names no stop token".to_owned()) };
                let probe = Conversation { messages: vec![text("user", "Hi"), text("assistant", "Hello")], ..empty() };
                let rendered = training(template, &probe)?.map_err(|e| e.to_string())?;
                let last = rendered.iter().flat_map(|r| &r.segments).rfind(|s| s.generated).map(|s| s.piece.clone());
                match last {
                    Some(Piece::Special(token)) if token == *stop => Ok(()),
                    other => Err(format!("the last generated piece is {other:?}, not the special token {stop:?}")),
                }
            }),
        ),
        (
            "every rendering passes the host's checks, and none traps",
            each(&|template| {
                for conversation in conversations.iter().chain(&odd()) {
                    training(template, conversation)?.map(|_| ()).or_else(refused)?;
                    let request =
                        PromptRequest { conversation: conversation.clone(), add_generation_prompt: true, enable_thinking: Some(false) };
                    let prompts = template.render_prompts(&[request]).map_err(|e| e.to_string())?;
                    prompts.into_iter().try_for_each(|p| p.map(|_| ()).or_else(refused))?;
                }
                Ok(())
            }),
        ),
        (
            "the training text of the first turns begins that of the whole, where the template says so",
            each(&|template| {
                if !template.describe().map_err(|e| e.to_string())?.stable_prefixes {
                    return Ok(());
                }
                conversations.iter().try_for_each(|c| stable(template, c))
            }),
        ),
        ("the parser reads back what was rendered", each(&|template| conversations.iter().try_for_each(|c| read_back(template, c)))),
        (
            "the parser's parts do not depend on how the output is cut",
            each(&|template| {
                conversations.iter().try_for_each(|c| match generated(template, c)? {
                    Some((_, pieces)) => cuts(template, &pieces),
                    None => Ok(()),
                })
            }),
        ),
        (
            "no output of a model traps the parser",
            each(&|template| {
                let odd = [
                    "",
                    "<think>",
                    "</think></think>",
                    "<tool_call>{\"name\": ",
                    "\u{0}\u{feff}\u{10ffff}",
                    "<tool_call>\n{}\n</tool_call>x",
                ];
                let outputs: Vec<Vec<Piece>> = odd
                    .into_iter()
                    .map(|t| vec![Piece::Text(t.to_owned()), Piece::Special("<|no_such_token|>".to_owned()), Piece::Text(t.to_owned())])
                    .collect();
                let parsed = template.parse(&outputs).map_err(|e| e.to_string())?;
                parsed.into_iter().zip(odd).try_for_each(|(p, t)| p.map(|_| ()).map_err(|e| format!("{t:?}: {e}")))
            }),
        ),
    ]
}

/// A conversation that the template refuses is none to try; a trap is a failure.
fn refused(error: RowError) -> Checked {
    match error {
        RowError::Refused(_) => Ok(()),
        RowError::Trapped(error) => Err(error.to_string()),
    }
}

fn training(template: &Template, conversation: &Conversation) -> Result<Result<Vec<Rendered>, RowError>, String> {
    let mut rendered = template.render_training(std::slice::from_ref(conversation)).map_err(|e| e.to_string())?;
    rendered.pop().ok_or_else(|| "nothing was rendered".to_owned())
}

fn stable(template: &Template, conversation: &Conversation) -> Checked {
    let whole = |messages: &[Message]| -> Result<Option<String>, String> {
        let part = Conversation { messages: messages.to_vec(), ..conversation.clone() };
        match training(template, &part)? {
            Ok(rendered) if rendered.len() == 1 => Ok(rendered.first().map(joined)),
            // Cut into several samples, or refused: there is no prefix to speak of.
            Ok(_) => Ok(None),
            Err(error) => refused(error).map(|()| None),
        }
    };
    let Some(all) = whole(&conversation.messages)? else { return Ok(()) };
    for (n, _) in conversation.messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
        let Some(first) = whole(conversation.messages.get(..=n).unwrap_or_default())? else { continue };
        if !all.starts_with(&first) {
            return Err(format!("the first {} messages give {}, and all give {}", n + 1, brief(&first), brief(&all)));
        }
    }
    Ok(())
}

fn joined(rendered: &Rendered) -> String {
    rendered.segments.iter().map(|s| characters(&s.piece)).collect()
}

fn characters(piece: &Piece) -> &str {
    let (Piece::Text(text) | Piece::Special(text)) = piece;
    text
}

/// The last message, if it is an assistant's, and the pieces that the model writes for it.
fn generated(template: &Template, conversation: &Conversation) -> Result<Option<(Message, Vec<Piece>)>, String> {
    let Some(last) = conversation.messages.last().filter(|m| m.role == "assistant") else { return Ok(None) };
    let rendered = match training(template, conversation)? {
        Ok(rendered) => rendered,
        Err(error) => return refused(error).map(|()| None),
    };
    let index = u32::try_from(conversation.messages.len() - 1).ok();
    let segments = rendered.last().map(|r| r.segments.as_slice()).unwrap_or_default();
    let pieces = segments.iter().filter(|s| s.generated && s.source_message == index).map(|s| s.piece.clone()).collect();
    Ok(Some((last.clone(), pieces)))
}

fn read_back(template: &Template, conversation: &Conversation) -> Checked {
    let Some((message, pieces)) = generated(template, conversation)? else { return Ok(()) };
    let parsed = template.parse(&[pieces]).map_err(|e| e.to_string())?;
    let parts = parsed.into_iter().next().ok_or("nothing was parsed")?.map_err(|e: PluginError| e.to_string())?;
    let (mut words, mut reasoning, mut calls) = (String::new(), String::new(), Vec::new());
    for part in parts {
        match part {
            OutputPart::Text(t) => words.push_str(&t),
            OutputPart::Reasoning(t) => reasoning.push_str(&t),
            OutputPart::ToolCall(call) => calls.push((call.name, arguments(&call.arguments))),
            OutputPart::Malformed(call) => return Err(format!("what was rendered is read as a malformed call: {}", brief(&call.raw))),
        }
    }
    let wanted = match &message.content {
        Content::Text(text) => text.as_str(),
        Content::None => "",
        Content::Json(_) => return Ok(()),
    };
    let differ = |what: &str, wanted: &str, found: &str| {
        // Templates trim the space around what they render.
        if wanted.trim() == found.trim() { Ok(()) } else { Err(format!("the {what} {} is read as {}", brief(wanted), brief(found))) }
    };
    differ("text", wanted, &words)?;
    if !reasoning.is_empty() {
        differ("reasoning", message.reasoning_content.as_deref().unwrap_or_default(), &reasoning)?;
    }
    let given: Vec<(String, Value)> = message.tool_calls.iter().map(|c| (c.name.clone(), arguments(&c.arguments))).collect();
    if given == calls { Ok(()) } else { Err(format!("the calls {given:?} are read as {calls:?}")) }
}

fn arguments(arguments: &CallArguments) -> Value {
    let (CallArguments::Json(text) | CallArguments::Text(text)) = arguments;
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str()))
}

fn cuts(template: &Template, pieces: &[Piece]) -> Checked {
    let run = |cut: &dyn Fn(&str) -> Vec<String>| -> Result<Vec<OutputPart>, String> {
        let mut parser = template.output_parser(false).map_err(|e| e.to_string())?;
        let mut parts = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Special(_) => parts.extend(parser.push(std::slice::from_ref(piece)).map_err(|e| e.to_string())?),
                Piece::Text(text) => {
                    for part in cut(text) {
                        parts.extend(parser.push(&[Piece::Text(part)]).map_err(|e| e.to_string())?);
                    }
                }
            }
        }
        parts.extend(parser.finish().map_err(|e| e.to_string())?);
        Ok(merged(parts))
    };
    let whole = run(&|text| vec![text.to_owned()])?;
    for width in [1, 2, 3, 7] {
        let cut = |text: &str| text.chars().collect::<Vec<_>>().chunks(width).map(|c| c.iter().collect()).collect();
        let found = run(&cut)?;
        if found != whole {
            return Err(format!("whole: {whole:?}, in pieces of {width}: {found:?}"));
        }
    }
    Ok(())
}

fn merged(parts: Vec<OutputPart>) -> Vec<OutputPart> {
    let mut joined: Vec<OutputPart> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(OutputPart::Text(to)), OutputPart::Text(from)) | (Some(OutputPart::Reasoning(to)), OutputPart::Reasoning(from)) => {
                to.push_str(&from);
            }
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn empty() -> Conversation {
    Conversation { messages: Vec::new(), tools: Vec::new(), template_args: None, weight: 1.0 }
}

fn message(role: &str, content: Content) -> Message {
    Message {
        role: role.to_owned(),
        content,
        reasoning_content: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        name: None,
        weight: None,
        spans: Vec::new(),
    }
}

fn text(role: &str, words: &str) -> Message {
    message(role, Content::Text(words.to_owned()))
}

/// Conversations as data sets have them.
fn probes() -> Vec<Conversation> {
    let of = |messages: Vec<Message>| Conversation { messages, ..empty() };
    let thoughtful = Message { reasoning_content: Some("First this, then that.".to_owned()), ..text("assistant", "It is 4.") };
    vec![
        of(vec![text("user", "Hi"), text("assistant", "Hello")]),
        of(vec![text("system", "Be brief."), text("user", "2+2?"), text("assistant", "4"), text("user", "3+3?"), text("assistant", "6")]),
        of(vec![text("user", "2+2?"), thoughtful, text("user", "sure?"), text("assistant", "Yes.\n\n<b>really</b> \u{1f600} e\u{301}")]),
        of(vec![text("user", ""), text("assistant", "")]),
    ]
}

/// Conversations that a template may refuse, and must survive.
fn odd() -> Vec<Conversation> {
    vec![
        empty(),
        Conversation { messages: vec![text("stranger", "x")], ..empty() },
        Conversation { messages: vec![text("assistant", "first"), text("tool", "{}"), message("user", Content::None)], ..empty() },
        Conversation { messages: vec![message("user", Content::Json("[{\"type\": \"text\", \"text\": \"x\"}]".to_owned()))], ..empty() },
        Conversation { messages: vec![text("user", "x")], tools: vec!["{}".to_owned()], ..empty() },
    ]
}

/// A conversation as a fixture writes it; none where it uses forms that are not tried here.
fn conversation(json: &Value) -> Option<Conversation> {
    let messages = json.get("messages")?.as_array()?.iter().map(|m| {
        let words = match m.get("content")? {
            Value::String(none) if none == "none" => Content::None,
            content => Content::Text(content.get("text")?.as_str()?.to_owned()),
        };
        let plain = ["tool_calls", "spans"].iter().all(|key| m.get(key).is_none_or(|v| v.as_array().is_some_and(Vec::is_empty)));
        let string = |key: &str| m.get(key).and_then(Value::as_str).map(str::to_owned);
        let message = message(m.get("role")?.as_str()?, words);
        plain.then(|| Message { reasoning_content: string("reasoning_content"), tool_call_id: string("tool_call_id"), ..message })
    });
    let no_tools = json.get("tools").is_none_or(|t| t.as_array().is_some_and(Vec::is_empty));
    let messages = messages.collect::<Option<Vec<_>>>().filter(|m| no_tools && !m.is_empty())?;
    Some(Conversation { messages, ..empty() })
}
