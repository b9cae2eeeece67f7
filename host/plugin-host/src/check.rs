//! Checks on what a guest returns: sizes, JSON, weights, spans. Everything that the WIT says in words and a type cannot say.

use std::fmt;
use std::sync::Arc;

use crate::call::limit_error;
use crate::error::{Place, PluginError};
use crate::limits::{ByteSize, Limits};
use crate::types::{CallArguments, Content, Conversation};

/// The path of a value in a result, written out only when something is wrong.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root(&'static str),
    Field(&'a Path<'a>, &'static str),
    Index(&'a Path<'a>, usize),
}

impl<'a> Path<'a> {
    pub(crate) fn field(&'a self, name: &'static str) -> Path<'a> {
        Path::Field(self, name)
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path::Index(self, index)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root(name) => f.write_str(name),
            Path::Field(parent, name) => write!(f, "{parent}.{name}"),
            Path::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// What a JSON text has to hold.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Expect {
    Any,
    Object,
}

/// Checks the result of one call.
pub(crate) struct Check<'a> {
    pub(crate) at: &'a Arc<Place>,
    pub(crate) limits: &'a Limits,
}

type Checked = Result<(), PluginError>;

impl Check<'_> {
    pub(crate) fn bad(&self, path: Path<'_>, message: impl Into<String>) -> PluginError {
        PluginError::BadValue { at: Arc::clone(self.at), field: path.to_string(), message: message.into() }
    }

    /// As many answers as questions.
    pub(crate) fn count(&self, path: Path<'_>, found: usize, wanted: usize) -> Checked {
        if found == wanted {
            return Ok(());
        }
        Err(self.bad(path, format!("{found} were returned for {wanted} given; each gets exactly one, in order")))
    }

    pub(crate) fn string(&self, path: Path<'_>, text: &str) -> Checked {
        let limit = self.limits.string_size;
        if text.len() <= limit.bytes() {
            return Ok(());
        }
        let size = ByteSize(text.len() as u64);
        let raise = ByteSize(size.0.checked_next_power_of_two().unwrap_or(u64::MAX));
        Err(limit_error(self.at, "string_size", limit.to_string(), Some(format!("{size} in {path}")), format!("\"{raise}\"")))
    }

    pub(crate) fn list(&self, path: Path<'_>, length: usize) -> Checked {
        let limit = self.limits.list_length;
        if length as u64 <= limit {
            return Ok(());
        }
        let raise = length.checked_next_power_of_two().unwrap_or(usize::MAX);
        Err(limit_error(self.at, "list_length", limit.to_string(), Some(format!("{length} in {path}")), raise.to_string()))
    }

    /// A JSON Pointer: empty, or parts that each begin with a slash (RFC 6901).
    pub(crate) fn pointer(&self, path: Path<'_>, pointer: &str) -> Checked {
        self.string(path, pointer)?;
        if pointer.is_empty() || pointer.starts_with('/') {
            return Ok(());
        }
        Err(self.bad(path, format!("{:?} is no JSON Pointer (RFC 6901)", crate::instance::bounded(pointer))))
    }

    pub(crate) fn weight(&self, path: Path<'_>, weight: f32) -> Checked {
        if weight.is_finite() && weight >= 0.0 {
            Ok(())
        } else {
            Err(self.bad(path, format!("{weight} is no weight; it is finite and not negative")))
        }
    }

    pub(crate) fn finite(&self, path: Path<'_>, value: f64) -> Checked {
        if value.is_finite() { Ok(()) } else { Err(self.bad(path, format!("{value} is not finite"))) }
    }

    /// Exactly one JSON value, not nested deeper than allowed.
    pub(crate) fn json(&self, path: Path<'_>, text: &str, expect: Expect) -> Checked {
        self.string(path, text)?;
        let depth = json_depth(text);
        if depth > self.limits.json_depth {
            let limit = self.limits.json_depth.to_string();
            return Err(limit_error(self.at, "json_depth", limit, Some(format!("{depth} in {path}")), depth.to_string()));
        }
        if let Err(e) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
            return Err(self.bad(path, format!("it is not valid JSON: {e}")));
        }
        if expect == Expect::Object && !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return Err(self.bad(path, "it is no JSON object"));
        }
        Ok(())
    }

    pub(crate) fn arguments(&self, path: Path<'_>, arguments: &CallArguments) -> Checked {
        match arguments {
            CallArguments::Json(json) => self.json(path, json, Expect::Any),
            CallArguments::Text(text) => self.string(path, text),
        }
    }

    fn optional(&self, path: Path<'_>, text: Option<&String>) -> Checked {
        text.map_or(Ok(()), |text| self.string(path, text))
    }

    pub(crate) fn conversation(&self, path: Path<'_>, conversation: &Conversation) -> Checked {
        let messages = path.field("messages");
        if conversation.messages.is_empty() {
            return Err(self.bad(messages, "a conversation has at least one message"));
        }
        self.list(messages, conversation.messages.len())?;
        for (i, message) in conversation.messages.iter().enumerate() {
            let path = messages.index(i);
            self.string(path.field("role"), &message.role)?;
            match &message.content {
                Content::None => {}
                Content::Text(text) => self.string(path.field("content"), text)?,
                Content::Json(json) => self.json(path.field("content"), json, Expect::Any)?,
            }
            self.optional(path.field("reasoning-content"), message.reasoning_content.as_ref())?;
            self.optional(path.field("tool-call-id"), message.tool_call_id.as_ref())?;
            self.optional(path.field("name"), message.name.as_ref())?;
            if let Some(weight) = message.weight {
                self.weight(path.field("weight"), weight)?;
            }
            let calls = path.field("tool-calls");
            self.list(calls, message.tool_calls.len())?;
            for (j, call) in message.tool_calls.iter().enumerate() {
                let path = calls.index(j);
                self.optional(path.field("id"), call.id.as_ref())?;
                self.string(path.field("name"), &call.name)?;
                self.arguments(path.field("arguments"), &call.arguments)?;
            }
            self.spans(path.field("spans"), message)?;
        }
        let tools = path.field("tools");
        self.list(tools, conversation.tools.len())?;
        for (i, tool) in conversation.tools.iter().enumerate() {
            self.json(tools.index(i), tool, Expect::Object)?;
        }
        if let Some(args) = &conversation.template_args {
            self.json(path.field("template-args"), args, Expect::Object)?;
        }
        self.weight(path.field("weight"), conversation.weight)
    }

    fn spans(&self, path: Path<'_>, message: &crate::types::Message) -> Checked {
        if message.spans.is_empty() {
            return Ok(());
        }
        let Content::Text(text) = &message.content else {
            return Err(self.bad(path, "spans weigh parts of a text, but the message's content is no text"));
        };
        self.list(path, message.spans.len())?;
        let mut last = 0usize;
        for (i, span) in message.spans.iter().enumerate() {
            let path = path.index(i);
            let (start, end) = (span.start as usize, span.end as usize);
            if start > end || end > text.len() {
                return Err(self.bad(path, format!("{start}..{end} does not lie in the text of {} bytes", text.len())));
            }
            if start < last {
                return Err(
                    self.bad(path, format!("{start}..{end} begins before the span ahead of it ends ({last}); spans are sorted and apart"))
                );
            }
            if !text.is_char_boundary(start) || !text.is_char_boundary(end) {
                return Err(self.bad(path, format!("{start}..{end} cuts a character in two")));
            }
            self.weight(path.field("weight"), span.weight)?;
            last = end;
        }
        Ok(())
    }
}

/// The deepest nesting of arrays and objects in a JSON text; a bare value has depth 0. One pass, no recursion.
fn json_depth(text: &str) -> u64 {
    let (mut depth, mut deepest) = (0u64, 0u64);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => in_string = true,
                b'[' | b'{' => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Message, SpanWeight};

    fn conversation(text: &str, spans: Vec<SpanWeight>) -> Conversation {
        Conversation {
            messages: vec![Message {
                role: "user".into(),
                content: Content::Text(text.into()),
                reasoning_content: None,
                tool_calls: Vec::new(),
                tool_call_id: None,
                name: None,
                weight: None,
                spans,
            }],
            tools: Vec::new(),
            template_args: None,
            weight: 1.0,
        }
    }

    fn checked(edit: impl FnOnce(&mut Conversation)) -> Result<(), String> {
        let at = Arc::new(Place { plugin: "p".into(), version: "1.0.0".into(), export: "e".into() });
        let limits = Limits { string_size: ByteSize(64), list_length: 4, json_depth: 3, ..Limits::default() };
        let mut value = conversation("héllo", Vec::new());
        edit(&mut value);
        Check { at: &at, limits: &limits }.conversation(Path::Root("outcomes").index(2), &value).map_err(|e| e.to_string())
    }

    #[test]
    fn conversations_are_checked_field_by_field() {
        assert_eq!(checked(|_| {}), Ok(()));
        let span = |start, end, weight| SpanWeight { start, end, weight };
        assert_eq!(checked(|c| c.messages[0].spans = vec![span(0, 1, 0.0), span(1, 3, 2.0), span(3, 6, 1.0)]), Ok(()));
        type Edit = fn(&mut Conversation);
        let cases: [(Edit, &str); 13] = [
            (|c| c.messages.clear(), "outcomes[2].messages: a conversation has at least one message"),
            (|c| c.weight = f32::NAN, "outcomes[2].weight: NaN is no weight"),
            (|c| c.messages[0].weight = Some(-1.0), "outcomes[2].messages[0].weight: -1 is no weight"),
            (|c| c.messages[0].spans = vec![SpanWeight { start: 0, end: 2, weight: 1.0 }], "cuts a character in two"),
            (|c| c.messages[0].spans = vec![SpanWeight { start: 4, end: 7, weight: 1.0 }], "does not lie in the text of 6 bytes"),
            (|c| c.messages[0].spans = vec![SpanWeight { start: 4, end: 3, weight: 1.0 }], "does not lie in the text"),
            (
                |c| c.messages[0].spans = vec![SpanWeight { start: 3, end: 4, weight: 1.0 }, SpanWeight { start: 0, end: 1, weight: 1.0 }],
                "spans[1]: 0..1 begins before",
            ),
            (|c| c.tools = vec!["[]".into()], "outcomes[2].tools[0]: it is no JSON object"),
            (|c| c.tools = vec!["{} {}".into()], "not valid JSON: trailing characters"),
            (|c| c.template_args = Some("{".into()), "outcomes[2].template-args: it is not valid JSON"),
            (|c| c.messages[0].role = "x".repeat(65), "string_size limit: 64B are allowed, 65B in outcomes[2].messages[0].role"),
            (|c| c.messages = vec![c.messages[0].clone(); 5], "list_length limit: 4 are allowed, 5 in outcomes[2].messages"),
            (|c| c.messages[0].content = Content::Json("[[[[]]]]".into()), "json_depth limit: 3 are allowed, 4 in"),
        ];
        for (edit, part) in cases {
            let error = checked(edit).unwrap_err();
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }

    #[test]
    fn depth_ignores_brackets_in_strings() {
        assert_eq!(json_depth(r#"7"#), 0);
        assert_eq!(json_depth(r#"{"a[[": ["\"[", {"b": []}]}"#), 4);
        assert_eq!(json_depth(&"[".repeat(1_000_000)), 1_000_000);
    }
}
