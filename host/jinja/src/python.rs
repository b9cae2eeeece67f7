//! Values as Python writes them: `json.dumps(value, ensure_ascii=False)` and `str(value)`.
//!
//! A template's values can be lists that are longer, and nested more deeply, than any memory: lists are repeated and joined lazily. So whatever
//! is written is paid for with steps, item by item, and depth is limited.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Lists within lists at the most.
const DEPTH: usize = 64;
/// Bytes for which a step pays.
const BYTES_PER_STEP: usize = 16;

/// How values are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `json.dumps` with this indentation.
    Json(Option<usize>),
    /// `repr`.
    Repr,
}

/// The JSON text; with `indent`, over several lines.
///
/// # Errors
/// A value that is no JSON, one that is nested too deeply, or that takes more steps than there are.
pub(crate) fn dumps(state: &State<'_, '_>, value: &Value, indent: Option<usize>) -> Result<String, Error> {
    let mut writer = Writer { state, form: Form::Json(indent), out: String::new(), paid: 0 };
    writer.value(value, 0)?;
    writer.pay()?;
    Ok(writer.out)
}

/// What `{{ value }}` prints: strings as they are, other values as `repr` has them, nothing for what is not there.
///
/// # Errors
/// As [`dumps`].
pub(crate) fn shown(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut writer = Writer { state, form: Form::Repr, out: String::new(), paid: 0 };
    writer.value(value, 0)?;
    writer.pay()?;
    Ok(writer.out)
}

struct Writer<'a, 't, 'e> {
    state: &'a State<'t, 'e>,
    form: Form,
    out: String,
    /// Bytes that have been paid for.
    paid: usize,
}

impl Writer<'_, '_, '_> {
    fn pay(&mut self) -> Result<(), Error> {
        let steps = 1 + (self.out.len() - self.paid) / BYTES_PER_STEP;
        self.paid = self.out.len();
        self.state.consume_fuel(steps as u64)
    }

    fn indent(&self) -> Option<usize> {
        if let Form::Json(indent) = self.form { indent } else { None }
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent() {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth)));
        }
    }

    fn words(&mut self, json: &str, repr: &str) {
        self.out.push_str(if self.form == Form::Repr { repr } else { json });
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.pay()?;
        if depth > DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("a value is nested more than {DEPTH} deep")));
        }
        match value.kind() {
            ValueKind::None => self.words("null", "None"),
            ValueKind::Bool if value.is_true() => self.words("true", "True"),
            ValueKind::Bool => self.words("false", "False"),
            ValueKind::Number if value.is_integer() => self.out.push_str(&value.to_string()),
            ValueKind::Number => self.out.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN))),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            ValueKind::Undefined if self.form == Form::Repr => self.out.push_str("Undefined"),
            // A namespace or a macro, which only a template that shows itself prints.
            _ if self.form == Form::Repr => self.out.push_str("<object>"),
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} is no value of JSON"))),
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        if self.form == Form::Repr {
            self.out.push_str(&quoted(text));
        } else {
            self.out.push_str(&serde_json::Value::from(text).to_string());
        }
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let tuple = self.form == Form::Repr && value.is_tuple();
        self.out.push(if tuple { '(' } else { '[' });
        let mut count = 0usize;
        for item in value.try_iter()? {
            if count > 0 {
                self.out.push_str(if self.indent().is_some() { "," } else { ", " });
            }
            self.line(depth + 1);
            self.value(&item, depth + 1)?;
            count = count.saturating_add(1);
        }
        if count > 0 {
            self.line(depth);
        }
        self.out.push_str(match (tuple, count) {
            (true, 1) => ",)",
            (true, _) => ")",
            (false, _) => "]",
        });
        Ok(())
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('{');
        let mut count = 0usize;
        for key in value.try_iter()? {
            if count > 0 {
                self.out.push_str(if self.indent().is_some() { "," } else { ", " });
            }
            self.line(depth + 1);
            match (self.form, key.as_str()) {
                (Form::Json(_), Some(text)) => self.string(text),
                // JSON's keys are strings; Python turns numbers and truth values into theirs.
                (Form::Json(_), None) => {
                    self.out.push('"');
                    self.value(&key, depth + 1)?;
                    self.out.push('"');
                }
                (Form::Repr, _) => self.value(&key, depth + 1)?,
            }
            self.out.push_str(": ");
            let item = value.get_item(&key)?;
            self.value(&item, depth + 1)?;
            count = count.saturating_add(1);
        }
        if count > 0 {
            self.line(depth);
        }
        self.out.push('}');
        Ok(())
    }
}

/// A float as Python's `repr` has it: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if !x.is_finite() {
        let sign = if x < 0.0 { "-" } else { "" };
        return if x.is_nan() { "NaN".to_owned() } else { format!("{sign}Infinity") };
    }
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, power) = exponent.strip_prefix('-').map_or(('+', exponent), |power| ('-', power));
        return format!("{digits}e{sign}{power:0>2}");
    }
    format!("{x:?}")
}

/// A string as Python's `repr` has it: in single quotes, unless it has such and no double ones.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7f..0xa1).contains(&(c as u32)) || c as u32 == 0xad => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use crate::environment::environment;
    use crate::{Context, Limits};
    use serde_json::{Map, Value, json};

    fn render(source: &str, x: Value) -> String {
        let limits = Limits::default();
        let context = Context {
            messages: json!([]),
            tools: Value::Null,
            add_generation_prompt: false,
            enable_thinking: None,
            special_tokens: Map::new(),
            args: [("x".to_owned(), x)].into_iter().collect(),
        };
        let env = environment(source, &limits).unwrap_or_else(|e| panic!("{e}"));
        crate::environment::render(&env, &context, &limits).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = json!({"a": [1, 2.0, 1e-7, 1e22, -0.0, 0.0001], "é": null, "s": "<b>\"\n", "e": {}, "l": []});
        assert_eq!(
            render("{{ x|tojson }}", value.clone()),
            "{\"a\": [1, 2.0, 1e-07, 1e+22, -0.0, 0.0001], \"é\": null, \"s\": \"<b>\\\"\\n\", \"e\": {}, \"l\": []}"
        );
        assert_eq!(render("{{ x|tojson(indent=2) }}", json!({"a": [1, {}]})), "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
        assert_eq!(render("{{ x }}", value), "{'a': [1, 2.0, 1e-07, 1e+22, -0.0, 0.0001], 'é': None, 's': '<b>\"\\n', 'e': {}, 'l': []}");
        assert_eq!(render("{{ x }}{{ true }}{{ none }}{{ y }}", json!(["it's", "\\", true])), "[\"it's\", '\\\\', True]TrueNone");
        assert_eq!(render("{{ (1,) }}{{ (1, 'a') }}{{ {1: 2}|tojson }}{{ 1.5 }}", json!(0)), "(1,)(1, 'a'){\"1\": 2}1.5");
    }
}
