//! What every plugin of a kind must keep to, tried on the inputs of the project's own fixtures and on inputs that real data holds and
//! authors forget. All calls go through the clients that training uses, whose checks of returned values apply.

mod formatter;
mod metric;
mod mixing;
mod template;
mod tool;

use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use trainer_plugin_host::{Kind, Plugin};

use crate::fixtures::{Fixture, Step};

/// What became of one property.
#[derive(Debug, Clone, Serialize)]
pub struct Property {
    /// The kind that it is about.
    pub kind: Kind,
    /// What was tried, as a statement that holds for a good plugin.
    pub name: &'static str,
    /// Why it does not hold; none if it does.
    pub failure: Option<String>,
}

type Checked = Result<(), String>;

/// Tries all properties of one kind.
pub fn check(plugin: &Arc<Plugin>, kind: Kind, fixtures: &[Fixture]) -> Vec<Property> {
    let inputs = Inputs { fixtures: fixtures.iter().filter(|f| is_about(plugin, kind, f)).collect() };
    let results = match kind {
        Kind::DatasetFormatter => formatter::check(plugin, &inputs),
        Kind::ChatTemplate => template::check(plugin, &inputs),
        Kind::MixingPolicy => mixing::check(plugin, &inputs),
        Kind::ToolExecutor => tool::check(plugin, &inputs),
        Kind::EvalMetric => metric::check(plugin, &inputs),
    };
    results.into_iter().map(|(name, result)| Property { kind, name, failure: result.err() }).collect()
}

/// Whether a fixture is about a kind of the plugin.
pub(crate) fn is_about(plugin: &Plugin, kind: Kind, fixture: &Fixture) -> bool {
    match &fixture.kind {
        Some(named) => named.parse() == Ok(kind),
        None => plugin.kinds().len() == 1,
    }
}

/// What the fixtures offer as inputs.
struct Inputs<'a> {
    fixtures: Vec<&'a Fixture>,
}

impl Inputs<'_> {
    /// The settings that the fixtures use, `{}` among them where the plugin takes them.
    fn settings(&self) -> Vec<Value> {
        let mut all = vec![serde_json::json!({})];
        for fixture in &self.fixtures {
            if !all.contains(&fixture.settings) {
                all.push(fixture.settings.clone());
            }
        }
        all
    }

    /// The calls of a function, in cases that do not expect it to fail.
    fn calls(&self, function: &str) -> impl Iterator<Item = &Step> {
        let wanted = function.to_owned();
        self.fixtures.iter().flat_map(|f| &f.calls).filter(move |step| step.call.replace('-', "_") == wanted && step.error.is_none())
    }

    /// The rows given to a function whose first argument is a list of rows.
    fn rows(&self, function: &str) -> Vec<String> {
        let rows = self.calls(function).filter_map(|step| step.args.first()?.as_array()).flatten();
        let mut rows: Vec<String> = rows.map(|row| row.as_str().map_or_else(|| row.to_string(), str::to_owned)).collect();
        rows.dedup();
        rows
    }
}

/// Rows as bad data has them: other shapes, wrong types in each column, deep nesting, long and strange text.
fn hostile_rows(rows: &[String]) -> Vec<String> {
    let mut hostile: Vec<String> = ["{}", "[]", "null", "\"text\"", "7", "true", "{\"\": {}}"].map(str::to_owned).to_vec();
    hostile.push(format!("{}{}", "[".repeat(100), "]".repeat(100)));
    // The row with the most columns: a fixture may begin with rows that lack some.
    let objects = rows.iter().filter_map(|row| serde_json::from_str::<serde_json::Map<String, Value>>(row).ok());
    let Some(object) = objects.max_by_key(serde_json::Map::len) else { return hostile };
    let wrong = [
        Value::Null,
        Value::Bool(true),
        Value::from(-1.5e300),
        Value::from(u64::MAX),
        Value::from(""),
        Value::from("\u{0}\u{feff}\u{202e} \u{10ffff} e\u{301} <|im_end|> \\ \" ' {{ }} %s"),
        Value::from("x".repeat(100_000)),
        serde_json::json!([]),
        serde_json::json!({}),
        serde_json::json!([[[[{"a": [null]}]]]]),
    ];
    for column in object.keys() {
        for value in &wrong {
            let mut row = object.clone();
            row.insert(column.clone(), value.clone());
            hostile.push(Value::Object(row).to_string());
        }
        let mut without = object.clone();
        without.remove(column);
        hostile.push(Value::Object(without).to_string());
    }
    hostile
}

/// The first place where two lists differ, named by `what`.
fn same<T: Debug>(what: &str, left: &[T], right: &[T], inputs: &[String]) -> Checked {
    for (i, (left, right)) in left.iter().zip(right).enumerate() {
        let (left, right) = (format!("{left:?}"), format!("{right:?}"));
        if left != right {
            let input = inputs.get(i).map(|input| format!(" for {}", brief(input))).unwrap_or_default();
            return Err(format!("{what}{input}: {} and {}", brief(&left), brief(&right)));
        }
    }
    if left.len() == right.len() { Ok(()) } else { Err(format!("{what}: {} and {} results", left.len(), right.len())) }
}

fn brief(text: &str) -> String {
    const LIMIT: usize = 160;
    if text.len() <= LIMIT { text.to_owned() } else { format!("{}...", &text[..text.floor_char_boundary(LIMIT)]) }
}
