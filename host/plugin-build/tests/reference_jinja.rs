//! The template plugin against the checkpoints' own Jinja templates, run by minijinja: first on the golden cases, which shows that this
//! oracle is right, then on many generated conversations.

mod common;

use common::{plugin, request, text};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, UndefinedBehavior};
use serde_json::{Value, json};

/// Python's `json.dumps(value, ensure_ascii=False)`, for the values that the conversations here hold.
fn dumps(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(dumps).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{}: {}", Value::from(k.as_str()), dumps(v))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

fn environment(source: &str) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap());
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", |value: &minijinja::Value, _: Kwargs| {
        let value =
            serde_json::to_value(value).map_err(|e| minijinja::Error::new(minijinja::ErrorKind::BadSerialization, e.to_string()))?;
        Ok(minijinja::Value::from_safe_string(dumps(&value)))
    });
    env.add_template_owned("chat", source.to_owned()).unwrap();
    env
}

fn render(env: &Environment<'_>, case: &Value) -> Result<String, minijinja::Error> {
    let mut context = serde_json::Map::new();
    for key in ["messages", "tools", "add_generation_prompt", "enable_thinking"] {
        // A parameter that was not passed is undefined in the template, not none.
        if key == "tools" || !case[key].is_null() {
            context.insert(key.to_owned(), case[key].clone());
        }
    }
    env.get_template("chat")?.render(minijinja::Value::from(Serde(&context)))
}

fn revisions() -> Vec<(String, Environment<'static>)> {
    let folder = trainer_test_support::reference_file("chat_template/templates");
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), environment(&std::fs::read_to_string(&path).unwrap())))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!all.is_empty());
    all
}

/// Numbers that Python and Rust print alike, so that the oracle needs no float printer of its own.
fn simple_numbers(value: &Value) -> bool {
    match value {
        Value::Number(n) => n.is_i64() || n.is_u64(),
        Value::Array(items) => items.iter().all(simple_numbers),
        Value::Object(map) => map.values().all(simple_numbers),
        _ => true,
    }
}

/// What the oracle can speak for: text contents (Python prints other values in its own way) and whole numbers.
fn within_oracle(case: &Value) -> bool {
    simple_numbers(&case["messages"])
        && simple_numbers(&case["tools"])
        && case["messages"].as_array().is_some_and(|all| all.iter().all(|m| m["content"].is_string()))
}

#[test]
fn reference_templates_themselves_give_the_golden_texts() {
    let cases = trainer_test_support::jsonl("chat_template/cases.jsonl");
    for (revision, env) in revisions() {
        let mut compared = 0;
        for case in cases.iter().filter(|c| within_oracle(c)) {
            let variant = &case["variants"][&revision];
            let expected = if variant.is_object() { &variant["text"] } else { &case["expected_text"] };
            if let Some(expected) = expected.as_str() {
                assert_eq!(render(&env, case).unwrap(), expected, "{} {revision}", case["id"]);
                compared += 1;
            }
        }
        assert!(compared * 2 > cases.len(), "{revision}: the oracle speaks for only {compared} cases");
    }
}

/// A small deterministic generator: the conversations are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn pick<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.roll(all.len())]
    }
}

const WORDS: &[&str] = &[
    "",
    " ",
    "\n",
    "\n\n",
    "hi",
    "你好，世界",
    "<think>",
    "</think>",
    "<think>\nx\n</think>\n\ny",
    "<tool_response>",
    "</tool_response>",
    "<|im_end|>",
    "<tool_call>",
    "{{ x }}",
    "{% if %}",
    "\"quoted\"",
    "\\boxed{4}",
    "a\tb",
    "é",
    "<b>&amp;</b>",
    "'",
    "\r\n",
    "🙂",
];

fn content(dice: &mut Dice) -> String {
    (0..dice.roll(4)).map(|_| dice.pick(WORDS)).collect()
}

fn conversation(dice: &mut Dice) -> Value {
    let mut messages = Vec::new();
    if dice.roll(3) == 0 {
        messages.push(json!({ "role": "system", "content": content(dice) }));
    }
    for _ in 0..1 + dice.roll(6) {
        let role = dice.pick(&["user", "assistant", "assistant", "tool", "user", "system"]);
        let text = match dice.roll(6) {
            0 => format!("<tool_response>{}</tool_response>", content(dice)),
            _ => content(dice),
        };
        let mut message = json!({ "role": role, "content": text });
        if role == "assistant" && dice.roll(3) == 0 {
            message["reasoning_content"] = json!(content(dice));
        }
        if role == "assistant" && dice.roll(3) == 0 {
            let calls: Vec<Value> = (0..1 + dice.roll(2))
                .map(|_| {
                    let call =
                        json!({ "name": dice.pick(&["calc", "get_weather"]), "arguments": { "a": content(dice), "n": dice.roll(9) } });
                    if dice.roll(2) == 0 { json!({ "type": "function", "function": call }) } else { call }
                })
                .collect();
            message["tool_calls"] = Value::from(calls);
        }
        messages.push(message);
    }
    let tools = match dice.roll(3) {
        0 => {
            json!([{ "type": "function", "function": { "name": "calc", "description": content(dice), "parameters": { "type": "object" } } }])
        }
        _ => Value::Null,
    };
    let enable_thinking = [Value::Null, json!(true), json!(false)][dice.roll(3)].clone();
    json!({ "messages": messages, "tools": tools, "add_generation_prompt": dice.roll(2) == 0, "enable_thinking": enable_thinking })
}

#[test]
fn reference_templates_agree_with_the_plugin_on_generated_conversations() {
    let plugin = plugin("qwen3_chat");
    let mut dice = Dice(3407);
    let cases: Vec<Value> = (0..600).map(|_| conversation(&mut dice)).collect();
    let requests: Vec<_> = cases.iter().map(request).collect();
    for (revision, env) in revisions() {
        let template = plugin.template(&json!({ "revision": revision })).unwrap();
        let mut compared = 0;
        for (case, answer) in cases.iter().zip(template.render_prompts(&requests).unwrap()) {
            match (render(&env, case), answer) {
                (Ok(expected), Ok(rendered)) => {
                    assert_eq!(text(&rendered), expected, "{revision}: {case}");
                    compared += 1;
                }
                (Err(_), Err(_)) => {}
                (expected, answer) => panic!("{revision}: {case}\n  Jinja: {expected:?}\n  plugin: {answer:?}"),
            }
        }
        assert!(compared > 400, "{revision}: only {compared} conversations rendered");
    }
}
