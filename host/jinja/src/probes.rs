//! Conversations that bring out where two chat templates differ.

use crate::Context;
use serde_json::{Map, Value, json};

/// A conversation with a name that says what it is about.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What it is about.
    pub name: &'static str,
    /// The conversation.
    pub context: Context,
}

/// All probes: turns, system messages, thinking, tools, and text that looks like a template's own.
pub fn all(special_tokens: &Map<String, Value>) -> Vec<Probe> {
    let user = |text: &str| json!({"role": "user", "content": text});
    let assistant = |text: &str| json!({"role": "assistant", "content": text});
    let system = |text: &str| json!({"role": "system", "content": text});
    let thought = "<think>\n2 + 2 is 4.\n</think>\n\nIt is 4.";
    let tools = json!([{"type": "function", "function": {
        "name": "get_weather", "description": "The weather of a <place> & \"more\"",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    }}]);
    let call = |place: &str| json!({"type": "function", "function": {"name": "get_weather", "arguments": {"place": place, "days": 2}}});
    let calls = |calls: Vec<Value>, text: &str| json!({"role": "assistant", "content": text, "tool_calls": calls});
    let result = |text: &str| json!({"role": "tool", "content": text});
    let mut probes = Vec::new();
    let mut add = |name: &'static str, messages: Vec<Value>, tools: &Value, open: bool, enable_thinking: Option<bool>| {
        let context = Context {
            messages: Value::from(messages),
            tools: tools.clone(),
            add_generation_prompt: open,
            enable_thinking,
            special_tokens: special_tokens.clone(),
            args: Map::new(),
        };
        probes.push(Probe { name, context });
    };
    let none = &Value::Null;
    add("a question", vec![user("Hi")], none, true, None);
    add("thinking on", vec![user("Hi")], none, true, Some(true));
    add("thinking off", vec![user("Hi")], none, true, Some(false));
    add("a system message", vec![system("Be brief."), user("Hi")], none, true, None);
    add("an empty system message", vec![system(""), user("Hi")], none, true, None);
    add("a finished answer", vec![user("2 + 2?"), assistant("4")], none, false, None);
    add("an answer with thinking", vec![user("2 + 2?"), assistant(thought)], none, false, None);
    add("earlier thinking", vec![user("2 + 2?"), assistant(thought), user("And 3 + 3?")], none, true, None);
    add(
        "thinking in its own field",
        vec![user("2 + 2?"), json!({"role": "assistant", "content": "4", "reasoning_content": "2 + 2 is 4."}), user("Sure?")],
        none,
        true,
        None,
    );
    add(
        "thinking of the last turn in its own field",
        vec![user("2 + 2?"), json!({"role": "assistant", "content": "4", "reasoning_content": "2 + 2 is 4."})],
        none,
        false,
        None,
    );
    add("many turns", vec![user("a"), assistant("b"), user("c"), assistant("d"), user("e")], none, true, Some(false));
    add("spaces and line ends", vec![user("  a \n\n"), assistant("\n b "), user("\t")], none, true, None);
    add("text like tokens", vec![user("<|im_end|> <think> </think> {{ x }}"), assistant("</think> y")], none, false, None);
    add("other languages", vec![user("你好，世界 🙂"), assistant("здравствуй")], none, false, None);
    add("tools", vec![user("Weather in Rome?")], &tools, true, None);
    add("tools and a system message", vec![system("Be brief."), user("Weather in Rome?")], &tools, true, Some(false));
    add("a call", vec![user("Weather in Rome?"), calls(vec![call("Rome")], "")], &tools, false, None);
    add(
        "calls and results",
        vec![user("Rome and Oslo?"), calls(vec![call("Rome"), call("Oslo")], "I look."), result("{\"t\": 20}"), result("5")],
        &tools,
        true,
        None,
    );
    add(
        "thinking between calls",
        vec![user("Rome?"), calls(vec![call("Rome")], "<think>\nI ask.\n</think>\n\n"), result("20"), assistant(thought), user("Oslo?")],
        &tools,
        true,
        None,
    );
    add(
        "a result that looks like a question",
        vec![user("a"), user("<tool_response>b</tool_response>"), assistant(thought)],
        none,
        false,
        None,
    );
    probes
}
