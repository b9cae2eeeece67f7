//! The functions of a row as tools for the chat template.

use serde::Deserialize;

use crate::literal::Language;
use crate::value::Value;

/// In which form a model is shown the functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolForm {
    /// As the leaderboard shows them to Qwen3: as they stand in the data, with the language in the description, and Java's and JavaScript's
    /// parameters as strings.
    #[default]
    Leaderboard,
    /// The same as OpenAI's tools: `{"type": "function", "function": ...}` with the types of JSON Schema.
    Openai,
}

/// A function as a tool's JSON.
pub fn tool(function: &Value, language: Language, form: ToolForm, underscores: bool) -> String {
    let mut function = function.clone();
    if underscores && let Some(Value::Str(name)) = member(&mut function, "name") {
        *name = name.replace('.', "_");
    }
    append(
        &mut function,
        match language {
            Language::Python => " Note that the provided function is in Python 3 syntax.",
            Language::Java => " Note that the provided function is in Java 8 SDK syntax.",
            Language::JavaScript => " Note that the provided function is in JavaScript syntax.",
        },
    );
    if language != Language::Python
        && let Some(Value::Dict(properties)) = member(&mut function, "parameters").and_then(|p| member(p, "properties"))
    {
        properties.iter_mut().for_each(|(_, parameter)| as_string(parameter, language));
    }
    match form {
        ToolForm::Leaderboard => function.to_json(),
        ToolForm::Openai => {
            if let Some(parameters) = member(&mut function, "parameters") {
                schema(parameters);
            }
            let kind = Value::Str("function".to_owned());
            Value::Dict(vec![("type".to_owned(), kind), ("function".to_owned(), function)]).to_json()
        }
    }
}

fn member<'v>(value: &'v mut Value, key: &str) -> Option<&'v mut Value> {
    match value {
        Value::Dict(members) => members.iter_mut().find(|(k, _)| k == key).map(|(_, v)| v),
        _ => None,
    }
}

fn append(described: &mut Value, words: &str) {
    if let Some(Value::Str(description)) = member(described, "description") {
        description.push_str(words);
    }
}

/// A parameter of Java or JavaScript as the string that holds its literal.
fn as_string(parameter: &mut Value, language: Language) {
    let name = parameter.get("type").and_then(Value::text).unwrap_or_default().to_owned();
    let language_name = if language == Language::Java { "Java" } else { "JavaScript" };
    let words = match name.as_str() {
        "any" => format!(" This parameter can be of any type of {language_name} object in string representation."),
        name => format!(" This is {language_name} {name} type parameter in string representation."),
    };
    append(parameter, &words);
    if language.has_items(&name) {
        let items = parameter.get("items").and_then(|i| i.get("type")).and_then(Value::text).unwrap_or_default().to_owned();
        append(parameter, &format!(" The list elements are of type {items}; they are not in string representation."));
        remove(parameter, "items");
    }
    if name == "dict"
        && let Some(properties) = parameter.get("properties").map(Value::to_json)
    {
        let words = " The dictionary entries have the following schema; they are not in string representation.";
        append(parameter, &format!("{words} {properties}"));
        remove(parameter, "properties");
    }
    if let Some(kind) = member(parameter, "type") {
        *kind = Value::Str("string".to_owned());
    }
}

fn remove(value: &mut Value, key: &str) {
    if let Value::Dict(members) = value {
        members.retain(|(k, _)| k != key);
    }
}

/// The leaderboard's types as those of JSON Schema, all the way down.
fn schema(description: &mut Value) {
    if let Some(Value::Str(kind)) = member(description, "type") {
        *kind = match kind.as_str() {
            "float" | "number" | "double" => "number",
            "integer" | "byte" | "short" | "long" | "Bigint" => "integer",
            "boolean" | "bool" | "Boolean" => "boolean",
            "array" | "list" | "tuple" | "Array" | "ArrayList" | "Queue" | "Stack" | "Set" => "array",
            "dict" | "object" | "HashMap" | "Hashtable" => "object",
            _ => "string",
        }
        .to_owned();
    }
    if let Some(Value::Dict(properties)) = member(description, "properties") {
        properties.iter_mut().for_each(|(_, property)| schema(property));
    }
    if let Some(items) = member(description, "items") {
        schema(items);
    }
}
