//! Jinja as transformers sets it up.

use crate::python;
use crate::{Context, Limits};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};
use std::io::{self, Write};

/// The template's name.
const NAME: &str = "chat_template";

/// An environment with one template.
pub(crate) fn environment(source: &str, limits: &Limits) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_fuel(Some(limits.steps));
    env.set_recursion_limit(limits.recursion);
    env.set_formatter(|out, state, value| Ok(out.write_str(&python::shown(state, value)?)?));
    env.add_filter("tojson", |state: &State<'_, '_>, value: &Value, options: Kwargs| {
        let indent = options.get::<Option<usize>>("indent")?.map(|n| n.min(16));
        // Accepted as in Python, where they change nothing here: text is never escaped, and order is kept.
        let _ = (options.get::<Option<bool>>("ensure_ascii")?, options.get::<Option<bool>>("sort_keys")?);
        options.assert_all_used()?;
        Ok(Value::from_safe_string(python::dumps(state, value, indent)?))
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    // The day is no part of a text that must be the same tomorrow; templates of Qwen do not ask for it.
    env.add_function("strftime_now", |_: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "strftime_now is not to be had: a prompt must not depend on the day"))
    });
    env.add_template_owned(NAME, without_generation_marks(source))?;
    Ok(env)
}

/// `{% generation %}` marks the assistant's words for transformers' loss masks, and prints nothing. The marks become statements that are there
/// whatever happens, on the same lines and with the same minus signs.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        let Some((inside, behind)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        let words = inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        match words {
            "generation" => out.push_str(&inside.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&inside.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(inside),
        }
        out.push_str("%}");
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The text of a conversation.
pub(crate) fn render(env: &Environment<'_>, context: &Context, limits: &Limits) -> Result<String, String> {
    let mut names = Map::new();
    names.insert("messages".into(), context.messages.clone());
    names.insert("tools".into(), context.tools.clone());
    names.insert("documents".into(), Json::Null);
    names.insert("add_generation_prompt".into(), context.add_generation_prompt.into());
    // A parameter that was not passed is undefined in a template, not none.
    if let Some(on) = context.enable_thinking {
        names.insert("enable_thinking".into(), on.into());
    }
    for (name, value) in context.args.iter().chain(&context.special_tokens) {
        names.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let template = env.get_template(NAME).map_err(|e| explain(&e))?;
    let mut out = Bounded { bytes: Vec::new(), limit: limits.output };
    template.render_captured_to(Value::from(Serde(&names)), &mut out).map_err(|e| explain(&e))?;
    String::from_utf8(out.bytes).map_err(|_| "it wrote text that is not UTF-8".to_string())
}

/// An error with its place and its causes.
pub(crate) fn explain(error: &Error) -> String {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    let mut text = format!("{line}{}", error.detail().map_or_else(|| error.kind().to_string(), str::to_owned));
    if error.kind() == ErrorKind::OutOfFuel {
        text = format!("{line}it takes more steps than are allowed");
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text.truncate(text.char_indices().nth(2000).map_or(text.len(), |(at, _)| at));
    text
}

/// Refuses to grow beyond its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(buffer.len()) > self.limit {
            return Err(io::Error::other(format!("its text has more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
