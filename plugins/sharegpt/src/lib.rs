//! `sharegpt`: conversations as lists of turns, in the forms that data sets use.
//!
//! A turn says who speaks under `from` or `role` and what under `value` or `content`. Roles have many names, which are matched without
//! regard to case and surrounding space: see [`roles`]. Turns may carry OpenAI's `tool_calls`, `tool_call_id`, `name` and
//! `reasoning_content`, and a loss `weight`; LLaMA-Factory's `function_call` turns become tool calls of an assistant message.

pub mod roles;
mod turn;

use std::collections::BTreeMap;

use serde::Deserialize;
use trainer_plugin_sdk::{Conversation, Formatter, Message, Object, Outcome, Pointer, RowError, plugin};

/// The recipe's settings.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The column with the turns; none: the first of `conversations`, `messages` and `conversation` that the row has.
    pub column: Option<String>,
    /// The column with the tools on offer: a list of JSON Schemas, or the same as a JSON text.
    pub tools_column: String,
    /// The column with a system message, which counts if the turns do not begin with one.
    pub system_column: String,
    /// Further names of roles, such as `{ narrator = "system" }`.
    pub roles: BTreeMap<String, String>,
    /// Whether conversations in which the assistant says nothing are skipped.
    pub skip_unanswered: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            column: None,
            tools_column: "tools".to_owned(),
            system_column: "system".to_owned(),
            roles: BTreeMap::new(),
            skip_unanswered: false,
        }
    }
}

/// The columns that hold turns, in the order in which they are looked for.
const COLUMNS: [&str; 3] = ["conversations", "messages", "conversation"];

/// The formatter.
pub struct ShareGpt {
    settings: Settings,
    roles: roles::Roles,
}

impl Formatter for ShareGpt {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { roles: roles::Roles::new(&settings.roles)?, settings })
    }

    fn format(&self, row: &str) -> Result<Outcome, RowError> {
        let Settings { column, tools_column, system_column, skip_unanswered, .. } = &self.settings;
        let mut wanted = vec![tools_column.as_str(), system_column.as_str()];
        wanted.extend(column.as_deref().map_or(COLUMNS.as_slice(), |_| &[]));
        wanted.extend(column.as_deref());
        let row = Object::row(row, &wanted)?;
        let column = match column.as_deref().or_else(|| COLUMNS.into_iter().find(|c| row.has(c))) {
            Some(column) => column,
            None => return Err(RowError::new(Pointer::root(), format!("no column with turns: none of {}", COLUMNS.join(", ")))),
        };
        let turns = row.list(column)?;
        let place = row.place(column);
        let mut messages = Vec::with_capacity(turns.len() + 1);
        for (i, turn) in turns.iter().enumerate() {
            messages.push(turn::message(turn, place.at(i), &self.roles)?);
        }
        if messages.is_empty() {
            return Err(RowError::new(place, "an empty list where at least one turn belongs"));
        }
        if messages.first().is_some_and(|m| m.role != "system")
            && let Some(system) = row.optional_string(system_column)?.filter(|s| !s.is_empty())
        {
            messages.insert(0, Message::system(system));
        }
        if *skip_unanswered && !messages.iter().any(turn::says_something) {
            return Ok(Outcome::Skip("the assistant says nothing".to_owned()));
        }
        Ok(Outcome::Sample(Conversation { tools: tools(&row, tools_column)?, ..Conversation::of(messages) }))
    }
}

/// The tools as JSON texts.
fn tools(row: &Object<'_>, column: &str) -> Result<Vec<String>, RowError> {
    let Some(raw) = row.get(column) else { return Ok(Vec::new()) };
    let place = row.place(column);
    let text = match raw.starts_with('"') {
        true => row.string(column)?,
        false => raw.to_owned(),
    };
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<&serde_json::value::RawValue> =
        serde_json::from_str(&text).map_err(|e| RowError::new(place.clone(), format!("not a list of tools: {e}")))?;
    let tool = |(i, tool): (usize, &&serde_json::value::RawValue)| match tool.get() {
        object if object.starts_with('{') => Ok(object.to_owned()),
        _ => Err(RowError::new(place.at(i), "a tool must be a JSON object")),
    };
    list.iter().enumerate().map(tool).collect()
}

plugin! {
    name: "sharegpt",
    description: "Formats conversations in the ShareGPT and OpenAI forms, such as FineTome",
    settings_schema: include_str!("settings.json"),
    formatter: ShareGpt,
}

#[cfg(test)]
mod tests;
