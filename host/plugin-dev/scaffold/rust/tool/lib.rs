//! A shopping list that the model can add to and read. Each episode has a list of its own.

use serde::Serialize;
use trainer_plugin_sdk::{Call, CallOutcome, Context, Executor, NoSettings, Session, Tool, plugin};

struct Shopping;

/// One episode: what the model has put on the list.
struct List {
    items: Vec<Item>,
}

#[derive(Serialize)]
struct Item {
    item: String,
    quantity: i64,
}

/// The JSON Schema of `add_item`'s arguments.
const ADD_ITEM: &str = r#"{
    "type": "object",
    "properties": {
        "item": {"type": "string", "description": "What to buy."},
        "quantity": {"type": "integer", "description": "How many; 1 if left out."}
    },
    "required": ["item"],
    "additionalProperties": false
}"#;

impl Executor for Shopping {
    type Settings = NoSettings;
    type Session = List;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    /// The tools, in the order in which the model sees them. The host checks calls against the schemas.
    fn tools(&self) -> Result<Vec<Tool>, String> {
        Ok(vec![
            Tool {
                name: "add_item".to_owned(),
                description: "Puts something on the shopping list.".to_owned(),
                parameters: ADD_ITEM.to_owned(),
                mutates: true,
            },
            Tool {
                name: "list_items".to_owned(),
                description: "Reads the shopping list.".to_owned(),
                parameters: r#"{"type": "object", "properties": {}, "additionalProperties": false}"#.to_owned(),
                mutates: false,
            },
        ])
    }

    /// Begins an episode. `context` holds its seed and its clock.
    fn open(&self, _context: &Context) -> Result<List, String> {
        Ok(List { items: Vec::new() })
    }
}

impl Session for List {
    /// Executes one call. A tool error is told to the model, which can try again.
    fn call(&mut self, call: &Call) -> CallOutcome {
        match call.name.as_str() {
            "add_item" => match item(&call.arguments) {
                Err(words) => CallOutcome::ToolError(words.to_owned()),
                Ok(item) => {
                    self.items.push(item);
                    CallOutcome::Ok(serde_json::json!({ "items": self.items.len() }).to_string())
                }
            },
            "list_items" => CallOutcome::Ok(serde_json::json!({ "items": self.items }).to_string()),
            other => CallOutcome::ToolError(format!("there is no tool {other}")),
        }
    }

    /// The state as text, by which two episodes can be compared.
    fn state_digest(&self) -> Option<String> {
        serde_json::to_string(&self.items).ok()
    }
}

/// What `add_item` is called with.
fn item(arguments: &str) -> Result<Item, &'static str> {
    let arguments: serde_json::Value = serde_json::from_str(arguments).unwrap_or_default();
    let item = arguments.get("item").and_then(|item| item.as_str()).ok_or("item must be a string")?;
    let quantity = match arguments.get("quantity") {
        None => 1,
        Some(quantity) => quantity.as_i64().ok_or("quantity must be an integer")?,
    };
    if quantity < 1 {
        return Err("quantity must be at least 1");
    }
    Ok(Item { item: item.to_owned(), quantity })
}

plugin! { executor: Shopping, }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_refused() {
        let mut list = List { items: Vec::new() };
        let call = Call { name: "add_item".to_owned(), arguments: r#"{"item": "tea", "quantity": 0}"#.to_owned() };
        assert!(matches!(list.call(&call), CallOutcome::ToolError(_)));
    }
}
