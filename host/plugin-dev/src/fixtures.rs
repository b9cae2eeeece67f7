//! Fixtures: calls with what they must give, in `tests/*.json` of a project.
//!
//! A case is a list of calls on one instance. Values are written as [`trainer_plugin_host::dynamic`] says. In what is expected, a field
//! that is null may be left out, and where the plugin answers with a string and the case expects another JSON value, the string is read as
//! JSON.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use trainer_plugin_host::dynamic::CallError;
use trainer_plugin_host::{Kind, Plugin, PluginError};

use crate::Error;

/// The largest fixture file.
const MAX_SIZE: u64 = 16 << 20;

/// One case.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fixture {
    /// What the case shows.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
    /// The kind, which may be left out where the plugin has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Given to `configure`, where the kind has it.
    #[serde(default = "empty", skip_serializing_if = "is_empty")]
    pub settings: Value,
    /// In order.
    pub calls: Vec<Step>,
}

/// One call of a case.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The function.
    pub call: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<Value>,
    /// What it must give. With neither this nor `error` the call has only to succeed.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub expect: Option<Value>,
    /// The call must fail with an error that contains these words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn empty() -> Value {
    serde_json::json!({})
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// An explicit null is something to expect.
fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

/// What became of a case.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The file's name.
    pub name: String,
    /// What the case shows.
    pub about: String,
    /// What went wrong; none if it passed.
    pub failure: Option<String>,
    /// How many calls were made.
    pub calls: usize,
}

/// The fixture files of a folder, sorted by name.
///
/// # Errors
/// If a file cannot be read or is no fixture.
pub fn read(folder: &Path) -> Result<Vec<(PathBuf, Fixture)>, Error> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json") && p.is_file()).collect();
    files.sort();
    let fixture = |path: PathBuf| {
        let size = std::fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        if size > MAX_SIZE {
            return Err(Error::file(path, format!("it has {size} bytes; a fixture has at most {MAX_SIZE}")));
        }
        let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let fixture: Fixture = serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("it is no fixture: {e}")))?;
        Ok((path, fixture))
    };
    files.into_iter().map(fixture).collect()
}

/// The kind that a fixture is about.
///
/// # Errors
/// If it names none that the plugin has, or none where the plugin has several.
pub fn kind(plugin: &Plugin, path: &Path, fixture: &Fixture) -> Result<Kind, Error> {
    let named = match &fixture.kind {
        Some(kind) => Some(kind.parse::<Kind>().map_err(|e| Error::file(path, format!("kind: {e}")))?),
        None => None,
    };
    only_kind(plugin, named).map_err(|reason| Error::file(path, reason))
}

/// The kind asked for, or the only one.
pub(crate) fn only_kind(plugin: &Plugin, named: Option<Kind>) -> Result<Kind, String> {
    let has: Vec<Kind> = plugin.kinds().iter().map(|k| k.kind).collect();
    let list = || has.iter().map(|k| k.short_name()).collect::<Vec<_>>().join(", ");
    match (named, has.as_slice()) {
        (Some(kind), _) if has.contains(&kind) => Ok(kind),
        (Some(kind), _) => Err(format!("the plugin is no {kind}; it is {}", list())),
        (None, [kind]) => Ok(*kind),
        (None, _) => Err(format!("the plugin is of several kinds ({}): say which is meant with `kind`", list())),
    }
}

/// Runs a case in an instance of its own. With `update`, what is expected becomes what the plugin gives.
///
/// # Errors
/// Only what is no failure of the case: the wrong kind, or settings that do not fit.
pub fn run(plugin: &Arc<Plugin>, path: &Path, fixture: &mut Fixture, update: bool) -> Result<Outcome, Error> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let kind = kind(plugin, path, fixture)?;
    let mut outcome = Outcome { name, about: fixture.about.clone(), failure: None, calls: 0 };
    let mut caller = match plugin.caller(kind, &fixture.settings) {
        Ok(caller) => caller,
        Err(error) => {
            // A case may be about settings that the schema refuses.
            outcome.failure = fixture.calls.first_mut().and_then(|step| check(step, Err(error.into()), update));
            return Ok(outcome);
        }
    };
    for (i, step) in fixture.calls.iter_mut().enumerate() {
        outcome.calls += 1;
        let result = caller.call(&step.call, &step.args);
        if let Some(failure) = check(step, result, update) {
            outcome.failure = Some(format!("call {} ({}): {failure}", i + 1, step.call));
            break;
        }
    }
    Ok(outcome)
}

fn check(step: &mut Step, result: Result<Value, CallError>, update: bool) -> Option<String> {
    if let Err(CallError::NoFunction { .. } | CallError::Arguments { .. } | CallError::Mismatch { .. }) = &result {
        // The case itself is wrong.
        return result.err().map(|e| e.to_string());
    }
    match (&step.error, &result) {
        (Some(words), Err(error)) if error.to_string().contains(words.as_str()) => None,
        (_, Err(error)) if update && costs_the_row(error) => {
            step.error = Some(error.to_string());
            step.expect = None;
            None
        }
        (None, Err(error)) => Some(error.to_string()),
        (Some(words), Err(error)) => Some(format!("an error with \"{words}\" was expected, and it was: {error}")),
        (Some(_), Ok(value)) if update => {
            step.error = None;
            step.expect = Some(value.clone());
            None
        }
        (Some(words), Ok(value)) => Some(format!("an error with \"{words}\" was expected, and it gave {}", brief(value))),
        (None, Ok(value)) => {
            let differ = difference(step.expect.as_ref()?, value, &mut "result".to_owned())?;
            if update {
                step.expect = Some(value.clone());
                return None;
            }
            Some(differ)
        }
    }
}

fn costs_the_row(error: &CallError) -> bool {
    matches!(error, CallError::Plugin(error) if error.costs_the_row() || matches!(error, PluginError::Configure { .. }))
}

/// The first place where a value is not as expected.
pub(crate) fn difference(expected: &Value, actual: &Value, path: &mut String) -> Option<String> {
    let at = path.len();
    match (expected, actual) {
        (Value::Object(want), Value::Object(have)) => {
            for (key, have) in have {
                path.push_str(&format!(".{key}"));
                if let Some(found) = difference(want.get(key).unwrap_or(&Value::Null), have, path) {
                    return Some(found);
                }
                path.truncate(at);
            }
            let missing = want.iter().find(|(key, value)| !value.is_null() && !have.contains_key(*key));
            missing.map(|(key, value)| format!("{path}.{key}: {} was expected, and there is no such field", brief(value)))
        }
        (Value::Array(want), Value::Array(have)) => {
            for (i, (want, have)) in want.iter().zip(have).enumerate() {
                path.push_str(&format!("[{i}]"));
                if let Some(found) = difference(want, have, path) {
                    return Some(found);
                }
                path.truncate(at);
            }
            (want.len() != have.len()).then(|| format!("{path}: {} values were expected, and there are {}", want.len(), have.len()))
        }
        (Value::Number(want), Value::Number(have)) if want.as_f64() == have.as_f64() => None,
        (want, Value::String(text)) if !want.is_string() && !want.is_null() => match serde_json::from_str(text) {
            Ok(have) => difference(want, &have, path),
            Err(_) => Some(format!("{path}: {} was expected, and it is the text {}", brief(want), brief(actual))),
        },
        (want, have) if want == have => None,
        (want, have) => Some(format!("{path}: {} was expected, and it is {}", brief(want), brief(have))),
    }
}

fn brief(value: &Value) -> String {
    const LIMIT: usize = 300;
    let text = value.to_string();
    if text.len() <= LIMIT { text } else { format!("{}...", &text[..text.floor_char_boundary(LIMIT)]) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn differ(expected: Value, actual: Value) -> Option<String> {
        difference(&expected, &actual, &mut "result".to_owned())
    }

    #[test]
    fn equal_values() {
        assert_eq!(differ(json!([{"a": 1}]), json!([{"a": 1.0, "b": null}])), None);
        assert_eq!(differ(json!({"a": {"x": 1}}), json!({"a": "{\"x\": 1}"})), None);
        assert_eq!(differ(json!("{\"x\": 1}"), json!("{\"x\": 1}")), None);
        assert_eq!(differ(json!(null), json!(null)), None);
    }

    #[test]
    fn different_values_name_their_place() {
        let place = |expected, actual| differ(expected, actual).unwrap();
        assert!(place(json!([{"a": 1}]), json!([{"a": 2}])).starts_with("result[0].a: 1 was expected, and it is 2"));
        assert!(place(json!({"a": 1, "b": 2}), json!({"a": 1})).starts_with("result.b: 2 was expected"));
        assert!(place(json!([1]), json!([1, 2])).contains("1 values were expected, and there are 2"));
        assert!(place(json!({}), json!({"a": 5})).contains("null was expected, and it is 5"));
        assert!(place(json!({"a": {}}), json!({"a": "not json"})).contains("it is the text"));
    }
}
