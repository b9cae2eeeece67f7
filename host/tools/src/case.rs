//! A row as a case: canned responses, and the name under which its traffic is kept.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::ToolsError;
use crate::json::{canonical, equal};
use crate::transcript::{ErrorKind, Outcome};

/// A canned response: what a tool answers to these arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Fixture {
    /// The tool.
    pub name: String,
    /// The arguments that it answers to, in canonical form.
    pub arguments: Value,
    /// The answer.
    pub outcome: Outcome,
}

/// What a row of an evaluation says about tools, whichever metric asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Case {
    /// The row's `id`, if it has one that is a string or a number.
    pub id: Option<String>,
    /// Whether the row says itself which tools are on offer, be it none.
    pub names_tools: bool,
    /// The row's `tool_fixtures`.
    pub fixtures: Arc<[Fixture]>,
}

#[derive(Deserialize)]
struct RawCase<'a> {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default, borrow)]
    tools: Option<&'a RawValue>,
    #[serde(default, borrow)]
    tool_fixtures: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFixture<'a> {
    name: String,
    arguments: Value,
    #[serde(default, borrow, deserialize_with = "given")]
    response: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<String>,
}

/// A member that is there, be it null.
fn given<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Case {
    /// Reads a row, which is one JSON object; `place` is its file and row, for errors. A row without any of the columns is a case too.
    ///
    /// # Errors
    /// A `tool_fixtures` that is not a list of `{name, arguments, response}` or `{name, arguments, error}`.
    pub fn of_row(place: &str, row: &str) -> Result<Self, ToolsError> {
        let wrong = |pointer: String, message: String| ToolsError::Case { place: place.to_owned(), pointer, message };
        let raw: RawCase<'_> = serde_json::from_str(row).map_err(|e| wrong("/".into(), e.to_string()))?;
        let mut fixtures = Vec::new();
        if let Some(list) = raw.tool_fixtures.filter(|f| f.get() != "null") {
            let list: Vec<&RawValue> = serde_json::from_str(list.get())
                .map_err(|e| wrong("/tool_fixtures".into(), format!("a list of canned responses belongs there: {e}")))?;
            for (i, item) in list.into_iter().enumerate() {
                let pointer = format!("/tool_fixtures/{i}");
                let item: RawFixture<'_> = serde_json::from_str(item.get()).map_err(|e| {
                    wrong(pointer.clone(), format!("an object with name, arguments and response (or error) belongs there: {e}"))
                })?;
                let outcome = match (item.response, item.error) {
                    (Some(response), None) => Outcome::Ok(response.get().to_owned()),
                    (None, Some(message)) => Outcome::Error { kind: ErrorKind::Tool, message },
                    _ => return Err(wrong(pointer, "a canned response has either `response` or `error`".into())),
                };
                fixtures.push(Fixture { name: item.name, arguments: canonical(&item.arguments), outcome });
            }
        }
        let id = match raw.id {
            Some(Value::String(id)) => Some(id),
            Some(Value::Number(id)) => Some(id.to_string()),
            _ => None,
        };
        Ok(Self { id, names_tools: raw.tools.is_some(), fixtures: fixtures.into() })
    }

    /// The canned response to a call, if the case has responses of that tool at all. The first that fits counts.
    pub(crate) fn answer(&self, name: &str, arguments: &Value) -> Option<Outcome> {
        let mut of_tool = self.fixtures.iter().filter(|f| f.name == name).peekable();
        of_tool.peek()?;
        Some(of_tool.find(|f| equal(&f.arguments, arguments)).map_or_else(
            || Outcome::Error { kind: ErrorKind::NoFixture, message: format!("{name} has no answer for these arguments") },
            |f| f.outcome.clone(),
        ))
    }

    /// Whether the case has canned responses of a tool.
    pub(crate) fn answers(&self, name: &str) -> bool {
        self.fixtures.iter().any(|f| f.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn responses_are_found_by_value_and_given_as_written() {
        let row = r#"{"id": "a", "tools": [], "tool_fixtures": [
            {"name": "f", "arguments": {"x": 1, "y": [2]}, "response": {"t": 1.50,  "u": null}},
            {"name": "f", "arguments": {}, "error": "closed"}, {"name": "g", "arguments": {}, "response": null}]}"#;
        let case = Case::of_row("cases.jsonl:1", row).unwrap();
        assert_eq!((case.id.as_deref(), case.names_tools), (Some("a"), true));
        assert_eq!(case.answer("f", &json!({"y": [2.0], "x": 1})), Some(Outcome::Ok(r#"{"t": 1.50,  "u": null}"#.into())));
        assert_eq!(case.answer("f", &json!({})), Some(Outcome::Error { kind: ErrorKind::Tool, message: "closed".into() }));
        assert!(matches!(case.answer("f", &json!({"x": 2})), Some(Outcome::Error { kind: ErrorKind::NoFixture, .. })));
        assert_eq!(case.answer("g", &json!({})), Some(Outcome::Ok("null".into())));
        assert_eq!(case.answer("h", &json!({})), None);
        assert_eq!(Case::of_row("x:1", r#"{"problem": "2+2", "id": 7}"#).unwrap().id.as_deref(), Some("7"));
    }

    #[test]
    fn broken_cases_say_where() {
        let error = |row: &str| Case::of_row("cases.jsonl:3", row).unwrap_err().to_string();
        assert_eq!(
            error(r#"{"tool_fixtures": [{"name": "f", "arguments": {}}]}"#),
            "cases.jsonl:3: at /tool_fixtures/0: a canned response has either `response` or `error`"
        );
        assert!(error(r#"{"tool_fixtures": {"f": 1}}"#).starts_with("cases.jsonl:3: at /tool_fixtures: a list"));
        assert!(error(r#"{"tool_fixtures": [{"name": "f", "arguments": {}, "respnse": 1}]}"#).contains("unknown field `respnse`"));
    }
}
