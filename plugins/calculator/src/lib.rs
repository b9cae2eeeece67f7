//! `calculator`: the tool `calculate`, which evaluates one arithmetic expression. Without state, so a session is nothing but its tool.

pub mod expression;
pub mod number;

use serde::Deserialize;
use trainer_plugin_sdk::{Call, CallOutcome, Context, Executor, NoSettings, Session, Tool, plugin};

/// The executor.
pub struct Calculator;

/// An episode.
pub struct Stateless;

const PARAMETERS: &str = r#"{"type": "object", "properties": {"expression": {"type": "string", "description": "For example 12*7+5."}}, "required": ["expression"]}"#;

impl Executor for Calculator {
    type Settings = NoSettings;
    type Session = Stateless;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn tools(&self) -> Result<Vec<Tool>, String> {
        Ok(vec![Tool {
            name: "calculate".to_owned(),
            description: "Evaluate an arithmetic expression.".to_owned(),
            parameters: PARAMETERS.to_owned(),
            mutates: false,
        }])
    }

    fn open(&self, _: &Context) -> Result<Stateless, String> {
        Ok(Stateless)
    }
}

#[derive(Deserialize)]
struct Arguments {
    expression: String,
}

impl Session for Stateless {
    fn call(&mut self, call: &Call) -> CallOutcome {
        if call.name != "calculate" {
            return CallOutcome::ToolError(format!("there is no tool {:?}; this one is called \"calculate\"", call.name));
        }
        let arguments: Arguments = match serde_json::from_str(&call.arguments) {
            Ok(arguments) => arguments,
            Err(e) => return CallOutcome::ToolError(format!("the arguments must be {{\"expression\": \"...\"}}: {e}")),
        };
        match expression::evaluate(&arguments.expression) {
            // An object with a name for the number: a bare number among tool results is something that models misread.
            Ok(value) => CallOutcome::Ok(format!("{{\"result\": {value}}}")),
            Err(reason) => CallOutcome::ToolError(reason),
        }
    }
}

plugin! {
    name: "calculator",
    description: "Evaluates arithmetic expressions: + - * / ^, parentheses, decimals",
    executor: Calculator,
}
