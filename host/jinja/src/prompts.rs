//! Prompts from a model's own template, in the form in which plugins give them.

use crate::{Context, JinjaError, JinjaTemplate, Limits, RendererCommand};
use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Map, Value, json};
use trainer_plugin_host::RowError;
use trainer_plugin_host::template::{Piece, PromptRequest, Rendered, Segment};
use trainer_plugin_host::types::{CallArguments, Content, Message, ToolCall};

/// Characters without a meaning of their own (the supplementary private use areas), which stand for control tokens in what people say.
const STAND_INS: [std::ops::RangeInclusive<u32>; 2] = [0xF_0000..=0xF_FFFD, 0x10_0000..=0x10_FFFD];

/// Conversations that one process gets, and their bytes: their texts are held several times.
const AT_ONCE: usize = 64;
const BYTES_AT_ONCE: usize = 16 << 20;

/// A token that is recognised as a whole in a rendered text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its text.
    pub text: String,
    /// Whether it controls the conversation, as `<|im_end|>` does and `<think>` does not.
    pub special: bool,
}

/// A model's own chat template, with what it takes to make prompts of its texts.
#[derive(Debug)]
pub struct ModelTemplate {
    template: JinjaTemplate,
    /// Texts of special tokens by use, for the template.
    uses: Map<String, Value>,
    added: Vec<AddedToken>,
}

/// Control tokens' texts, and the characters that stand for them in a conversation.
struct StandIns<'a> {
    texts: Vec<&'a str>,
    characters: Vec<String>,
    find: Option<AhoCorasick>,
}

impl ModelTemplate {
    /// A template by its source; `uses` are the texts of special tokens by use (`eos_token`), `added` the tokenizer's added tokens.
    ///
    /// # Errors
    /// A source that is too long.
    pub fn new(
        source: impl Into<String>,
        uses: Map<String, Value>,
        mut added: Vec<AddedToken>,
        command: RendererCommand,
    ) -> Result<Self, JinjaError> {
        added.retain(|token| !token.text.is_empty());
        Ok(Self { template: JinjaTemplate::new(source, Limits::default(), command)?, uses, added })
    }

    /// Renders prompts as transformers' `apply_chat_template` does, one answer per request, in order: with one difference, which is that the text
    /// of a control token in a message or a tool stays text.
    ///
    /// # Errors
    /// A template that is no Jinja, or that takes too much time or memory. A conversation that it refuses has an error of its own.
    pub fn render_prompts(&self, requests: &[PromptRequest]) -> Result<Vec<Result<Rendered, RowError>>, JinjaError> {
        let mut out = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while !rest.is_empty() {
            let mut bytes = 0usize;
            let fits = rest.iter().take(AT_ONCE).take_while(|request| {
                bytes = bytes.saturating_add(size(request));
                bytes <= BYTES_AT_ONCE
            });
            let (some, later) = rest.split_at(fits.count().max(1));
            self.render_some(some, &mut out)?;
            rest = later;
        }
        Ok(out)
    }

    /// As many as one process gets.
    fn render_some(&self, requests: &[PromptRequest], out: &mut Vec<Result<Rendered, RowError>>) -> Result<(), JinjaError> {
        let mut contexts = Vec::new();
        let mut places: Vec<Result<StandIns<'_>, String>> = Vec::with_capacity(requests.len());
        for request in requests {
            places.push(self.context(request).map(|(context, stand_ins)| {
                contexts.push(context);
                stand_ins
            }));
        }
        let mut texts = if contexts.is_empty() { Vec::new() } else { self.template.render(&contexts)? }.into_iter();
        out.extend(places.into_iter().map(|place| {
            let stand_ins = place.map_err(RowError::Refused)?;
            let text = texts.next().unwrap_or_else(|| Err("it gave nothing".to_owned())).map_err(RowError::Refused)?;
            self.segments(&text, &stand_ins).map_err(RowError::Refused)
        }));
        Ok(())
    }

    fn context(&self, request: &PromptRequest) -> Result<(Context, StandIns<'_>), String> {
        let conversation = &request.conversation;
        let mut messages = conversation.messages.iter().map(message).collect::<Result<Vec<_>, _>>()?;
        let tool = |(i, text): (usize, &String)| parsed(text).map_err(|e| format!("tool {i} is no JSON: {e}"));
        let mut tools = conversation.tools.iter().enumerate().map(tool).collect::<Result<Vec<_>, _>>()?;
        let mut args = match conversation.template_args.as_deref().map(parsed).transpose() {
            Ok(None | Some(Value::Null)) => Map::new(),
            Ok(Some(Value::Object(args))) => args,
            _ => return Err("the template's arguments are no JSON object".to_owned()),
        };
        let thinking = args.remove("enable_thinking").and_then(|v| v.as_bool());
        let stand_ins = self.stand_ins(&messages, &tools)?;
        if let Some(find) = &stand_ins.find {
            messages.iter_mut().chain(&mut tools).for_each(|value| stand_ins.put(find, value));
        }
        let context = Context {
            messages: Value::Array(messages),
            tools: if tools.is_empty() { Value::Null } else { Value::Array(tools) },
            add_generation_prompt: request.add_generation_prompt,
            enable_thinking: request.enable_thinking.or(thinking),
            special_tokens: self.uses.clone(),
            args,
        };
        Ok((context, stand_ins))
    }

    /// What stands for the control tokens that a conversation has as text: for most it is nothing.
    fn stand_ins(&self, messages: &[Value], tools: &[Value]) -> Result<StandIns<'_>, String> {
        let mut said = Vec::new();
        messages.iter().chain(tools).for_each(|value| strings(value, &mut said));
        let texts: Vec<&str> = self
            .added
            .iter()
            .filter(|token| token.special && said.iter().any(|text| text.contains(token.text.as_str())))
            .map(|token| token.text.as_str())
            .collect();
        if texts.is_empty() {
            return Ok(StandIns { texts, characters: Vec::new(), find: None });
        }
        let taken: std::collections::BTreeSet<char> = said.iter().flat_map(|text| text.chars()).filter(|c| *c >= '\u{F0000}').collect();
        let free = STAND_INS.into_iter().flatten().filter_map(char::from_u32).filter(|c| !taken.contains(c));
        let characters: Vec<String> = free.take(texts.len()).map(String::from).collect();
        if characters.len() < texts.len() {
            return Err("its messages use all characters for private use".to_owned());
        }
        let find = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts).map_err(|e| e.to_string())?;
        Ok(StandIns { texts, characters, find: Some(find) })
    }

    /// A rendered text as text and tokens.
    fn segments(&self, text: &str, stand_ins: &StandIns<'_>) -> Result<Rendered, String> {
        let tokens = self.added.iter().map(|token| token.text.as_str());
        let patterns: Vec<&str> = tokens.chain(stand_ins.characters.iter().map(String::as_str)).collect();
        let find = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&patterns).map_err(|e| e.to_string())?;
        let mut pieces: Vec<Piece> = Vec::new();
        let mut words = String::new();
        let mut at = 0;
        for found in find.find_iter(text) {
            words.push_str(text.get(at..found.start()).unwrap_or_default());
            at = found.end();
            let index = found.pattern().as_usize();
            match self.added.get(index) {
                Some(token) => {
                    if !words.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut words)));
                    }
                    pieces.push(Piece::Special(token.text.clone()));
                }
                None => words.push_str(stand_ins.texts.get(index - self.added.len()).copied().unwrap_or_default()),
            }
        }
        words.push_str(text.get(at..).unwrap_or_default());
        if !words.is_empty() {
            pieces.push(Piece::Text(words));
        }
        let segment = |piece| Segment { piece, weight: 0.0, source_message: None, generated: false };
        Ok(Rendered { segments: pieces.into_iter().map(segment).collect() })
    }
}

impl StandIns<'_> {
    /// Puts them into all strings of a value; keys are the template's own.
    fn put(&self, find: &AhoCorasick, value: &mut Value) {
        match value {
            Value::String(text) if find.is_match(text.as_str()) => *text = find.replace_all(text, &self.characters),
            Value::Array(items) => items.iter_mut().for_each(|item| self.put(find, item)),
            Value::Object(map) => map.values_mut().for_each(|item| self.put(find, item)),
            _ => {}
        }
    }
}

/// Bytes of a conversation, nearly.
fn size(request: &PromptRequest) -> usize {
    let conversation = &request.conversation;
    let messages = conversation.messages.iter().map(|message| {
        let content = match &message.content {
            Content::None => 0,
            Content::Text(text) | Content::Json(text) => text.len(),
        };
        let calls = message.tool_calls.iter().map(|call| {
            let (CallArguments::Json(text) | CallArguments::Text(text)) = &call.arguments;
            call.name.len().saturating_add(text.len())
        });
        calls.chain([content, message.reasoning_content.as_ref().map_or(0, String::len), 64]).fold(0, usize::saturating_add)
    });
    messages.chain(conversation.tools.iter().map(String::len)).fold(0, usize::saturating_add)
}

/// All strings of a value.
fn strings<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => out.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, out)),
        Value::Object(map) => map.values().for_each(|item| strings(item, out)),
        _ => {}
    }
}

fn parsed(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text)
}

/// A message as the dictionary that transformers gives a template.
fn message(message: &Message) -> Result<Value, String> {
    let mut map = Map::new();
    map.insert("role".to_owned(), json!(message.role));
    let content = match &message.content {
        Content::None => Value::Null,
        Content::Text(text) => json!(text),
        Content::Json(text) => parsed(text).map_err(|e| format!("a message's content is no JSON: {e}"))?,
    };
    map.insert("content".to_owned(), content);
    if let Some(text) = &message.reasoning_content {
        map.insert("reasoning_content".to_owned(), json!(text));
    }
    if !message.tool_calls.is_empty() {
        map.insert("tool_calls".to_owned(), Value::Array(message.tool_calls.iter().map(call).collect::<Result<_, _>>()?));
    }
    for (key, text) in [("tool_call_id", &message.tool_call_id), ("name", &message.name)] {
        if let Some(text) = text {
            map.insert(key.to_owned(), json!(text));
        }
    }
    Ok(Value::Object(map))
}

fn call(call: &ToolCall) -> Result<Value, String> {
    let arguments = match &call.arguments {
        CallArguments::Json(text) => parsed(text).map_err(|e| format!("a call's arguments are no JSON: {e}"))?,
        CallArguments::Text(text) => json!(text),
    };
    let mut map = Map::new();
    if let Some(id) = &call.id {
        map.insert("id".to_owned(), json!(id));
    }
    map.insert("type".to_owned(), json!("function"));
    map.insert("function".to_owned(), json!({ "name": call.name, "arguments": arguments }));
    Ok(Value::Object(map))
}
