//! Episodes step by step, with the calculator as it is shipped and canned responses.

mod common;

use std::time::Duration;

use common::*;
use serde_json::json;
use trainer_plugin_host::Limits as PluginLimits;
use trainer_plugin_host::template::{OutputPart, ParsedCall};
use trainer_plugin_host::types::CallArguments;
use trainer_tools::{By, Case, End, Limits, Next, Outcome, ToolPlugin, Toolbox, Turn, TurnEnd};

fn pair(role: &str, text: &str) -> (String, String) {
    (role.into(), text.into())
}

#[test]
fn parallel_calls_keep_their_order_and_the_answer_ends_it() {
    let toolbox = toolbox(vec![calculator()], Limits::default());
    let mut e = episode(&toolbox, &[weather(), calculate()], case());
    let calls = vec![
        OutputPart::Reasoning("Look it up.".into()),
        text("One moment."),
        call("calculate", json!({"expression": "2*3"})),
        call("get_weather", json!({"loc": "Rome"})),
        call("calculate", json!({"expression": "2^10"})),
        call("get_weather", json!({"loc": "Oslo"})),
    ];
    assert_eq!(e.take(turn(calls)).unwrap(), Next::Prompt);
    let expected = [
        pair("assistant", "One moment."),
        pair("tool", r#"{"result": 6}"#),
        pair("tool", r#"{"temp_c":21}"#),
        pair("tool", r#"{"result": 1024}"#),
        pair("tool", r#"{"temp_c":-8}"#),
    ];
    assert_eq!(last(&e, 5), expected);
    let said = &e.conversation().messages[1];
    assert_eq!(said.reasoning_content.as_deref(), Some("Look it up."));
    assert_eq!(said.tool_calls.len(), 4);
    assert_eq!(said.tool_calls[2].id, e.conversation().messages[4].tool_call_id);
    assert_eq!(e.take(turn(vec![text("21 and -8.")])).unwrap(), Next::End);
    assert_eq!(e.end(), Some(&End::Answer));
    let transcript = e.into_transcript();
    assert_eq!((transcript.turns, transcript.generated_tokens, transcript.end.as_str()), (2, 20, "answer"));
    let by: Vec<&By> = transcript.calls.iter().map(|c| &c.by).collect();
    let calculator = By::Plugin("calculator".into());
    assert_eq!(by, [&calculator, &By::Fixture, &calculator, &By::Fixture]);
    assert_eq!(transcript.calls.iter().map(|c| c.ordinal).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(transcript.messages.len(), 6);
    let again: trainer_tools::Transcript = serde_json::from_str(&serde_json::to_string(&transcript).unwrap()).unwrap();
    assert_eq!(again, transcript);
}

/// Each of these is denied in words that the model is shown; nothing runs, and the conversation goes on.
#[test]
fn hostile_outputs_are_denied() {
    let toolbox = toolbox(vec![calculator()], Limits::default());
    let mut bomb = serde_json::Map::new();
    for i in 0..30 {
        let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
        bomb.insert(format!("d{i}"), json!({"anyOf": [next, next]}));
    }
    bomb.insert("d30".into(), json!(true));
    let bomb = json!({"name": "bomb", "parameters": {"$ref": "#/$defs/d0", "$defs": bomb}});
    let elsewhere = json!({"name": "elsewhere", "parameters": {"$ref": "file:///etc/passwd"}});
    let tools = [weather(), calculate(), bomb, elsewhere];
    let row = json!({"tool_fixtures": [
        {"name": "get_weather", "arguments": {"loc": "Oslo"}, "response": {"temp_c": -8}},
        {"name": "bomb", "arguments": {}, "response": 1},
        {"name": "elsewhere", "arguments": {}, "response": 1},
    ]});
    let case = Case::of_row("x:1", &row.to_string()).unwrap();
    let deep = format!("{{\"loc\": {}{}}}", "[".repeat(100), "]".repeat(100));
    let megabyte = json!({"loc": "x".repeat(1 << 20)});
    let string =
        OutputPart::ToolCall(ParsedCall { name: "calculate".into(), arguments: CallArguments::Text("{\"expression\": \"1\"}".into()) });
    let long_name = format!("there is no tool \"{}…\"; the tools are: bomb, calculate, elsewhere, get_weather", "x".repeat(80));
    let cases: Vec<(&str, OutputPart, &str)> = vec![
        (
            "another host",
            call("get_weather", json!({"loc": "Oslo", "url": "https://evil.example/"})),
            r#"the arguments of get_weather do not fit its parameters: Additional properties are not allowed ('url' was unexpected)"#,
        ),
        ("a file", call("get_weather", json!({"loc": "file:///etc/passwd"})), "get_weather has no answer for these arguments"),
        (
            "a host as a tool",
            call("https://evil.example/", json!({})),
            r#"there is no tool "https://evil.example/"; the tools are: bomb, calculate, elsewhere, get_weather"#,
        ),
        (
            "control characters",
            call("get_weather\n\u{1b}[2J\u{202e}", json!({})),
            r#"there is no tool "get_weather\n\u{1b}[2J\u{202e}"; the tools are: bomb, calculate, elsewhere, get_weather"#,
        ),
        ("a long name", call(&"x".repeat(1 << 20), json!({})), &long_name),
        ("a megabyte", call("get_weather", megabyte), "the arguments of get_weather have 1048586 bytes; at most 65536 are taken"),
        ("deep JSON", call("get_weather", deep), "the arguments of get_weather are nested more than 32 deep"),
        (
            "a schema bomb",
            call("bomb", json!({})),
            "bomb cannot be called: the schema has more than 20000 parts once its references are written out",
        ),
        (
            "a schema elsewhere",
            call("elsewhere", json!({})),
            r##"elsewhere cannot be called: the schema refers to "file:///etc/passwd"; only places in the schema itself can be referred to, such as "#/$defs/city""##,
        ),
        (
            "nothing required",
            call("calculate", json!({})),
            r#"the arguments of calculate do not fit its parameters: "expression" is a required property"#,
        ),
        (
            "a wrong type",
            call("calculate", json!({"expression": 7})),
            r#"the arguments of calculate do not fit its parameters: at /expression: 7 is not of type "string""#,
        ),
        ("a string", string, "the arguments of calculate are a string; they must be a JSON object"),
        ("a list", call("calculate", json!([1])), "the arguments of calculate must be a JSON object"),
        (
            "a huge number",
            call("calculate", "{\"expression\": 1e999}"),
            "the arguments of calculate are no JSON: number out of range at line 1 column 20",
        ),
        ("the tool's own error", call("calculate", json!({"expression": "1/0"})), "division by zero"),
        (
            "no call",
            malformed("<tool_call>{</tool_call>", "the call's JSON is not complete"),
            "this is no tool call: the call's JSON is not complete",
        ),
    ];
    for (what, part, denial) in cases {
        let mut e = episode(&toolbox, &tools, case.clone());
        assert_eq!(e.take(turn(vec![part])).unwrap(), Next::Prompt, "{what}");
        let expected = json!({"error": denial}).to_string().replacen("{\"error\":", "{\"error\": ", 1);
        assert_eq!(last(&e, 1), [pair("tool", &expected)], "{what}");
        let record = &e.transcript().calls[0];
        assert!(matches!(record.outcome, Outcome::Error { .. }), "{what}");
        if !["the tool's own error", "a file"].contains(&what) {
            assert_eq!(record.by, By::Host, "{what}");
        }
    }
}

#[test]
fn what_is_no_call_stays_in_the_message_and_the_model_can_try_again() {
    let toolbox = toolbox(vec![calculator()], Limits::default());
    let mut e = episode(&toolbox, &[calculate()], Case::default());
    let parts = vec![
        text("Wait."),
        malformed("<tool_call>\n{\"name\"\n</tool_call>", "the call's JSON is not complete"),
        call("calculate", json!({"expression": "1+1"})),
    ];
    assert_eq!(e.take(turn(parts)).unwrap(), Next::Prompt);
    assert_eq!(
        last(&e, 3),
        [
            pair("assistant", "Wait.\n<tool_call>\n{\"name\"\n</tool_call>"),
            pair("tool", r#"{"error": "this is no tool call: the call's JSON is not complete"}"#),
            pair("tool", r#"{"result": 2}"#),
        ]
    );
    assert_eq!(e.take(turn(vec![call("calculate", json!({"expression": "2+2"}))])).unwrap(), Next::Prompt);
    assert_eq!(last(&e, 1), [pair("tool", r#"{"result": 4}"#)]);
}

#[test]
fn every_limit_ends_the_episode() {
    let again = || turn(vec![call("calculate", json!({"expression": "1"}))]);
    let run = |limits: Limits, mut turns: Box<dyn FnMut() -> Turn>| {
        let toolbox = toolbox(vec![calculator()], limits);
        let mut e = episode(&toolbox, &[calculate()], Case::default());
        let mut n = 0;
        while e.take(turns()).unwrap() == Next::Prompt {
            n += 1;
            assert!(n < 100, "no end");
        }
        (e.end().cloned().unwrap(), e.transcript().turns, e.transcript().calls.len())
    };
    let l = Limits::default();
    assert_eq!(run(l.clone(), Box::new(again)), (End::Turns, 8, 8));
    assert_eq!(run(Limits { calls: 3, ..l.clone() }, Box::new(again)), (End::Calls, 4, 3));
    assert_eq!(run(Limits { generated_tokens: Some(25), ..l.clone() }, Box::new(again)), (End::Tokens, 3, 3));
    assert_eq!(run(Limits { wall_time: Some(Duration::ZERO), ..l.clone() }, Box::new(again)), (End::Time, 1, 1));
    assert_eq!(run(Limits { all_result_bytes: 4 * 13, ..l.clone() }, Box::new(again)), (End::Bytes, 5, 5));
    let flood = || turn((0..33).map(|_| call("calculate", json!({"expression": "1"}))).collect());
    assert_eq!(run(l.clone(), Box::new(flood)), (End::Calls, 1, 0));
    let cut = move || Turn { end: TurnEnd::Length, ..again() };
    assert_eq!(run(l, Box::new(cut)), (End::Length, 1, 0));
}

#[test]
fn a_result_that_is_too_large_is_an_error_that_the_model_sees() {
    let toolbox = toolbox(vec![calculator()], Limits { result_bytes: 15, ..Limits::default() });
    let mut e = episode(&toolbox, &[calculate()], Case::default());
    e.take(turn(vec![call("calculate", json!({"expression": "100*100"})), call("calculate", json!({"expression": "1"}))])).unwrap();
    assert_eq!(
        last(&e, 2),
        [pair("tool", r#"{"error": "the result has 17 bytes; at most 15 are passed on"}"#), pair("tool", r#"{"result": 1}"#)]
    );
}

#[test]
fn calls_that_nothing_executes_stand_as_they_are() {
    let toolbox = toolbox(vec![calculator()], Limits::default());
    // One of two parallel calls has no executor: neither runs.
    let mut e = episode(&toolbox, &[weather(), calculate()], Case::default());
    let both = vec![call("calculate", json!({"expression": "1"})), call("get_weather", json!({"loc": "Oslo"}))];
    assert_eq!(e.take(turn(both)).unwrap(), Next::End);
    assert_eq!(e.end(), Some(&End::Unexecuted { tool: "get_weather".into() }));
    assert!(e.transcript().calls.is_empty());
    // Nothing on offer can be executed: the first turn is all, whatever it holds.
    for part in [call("get_weather", json!({"loc": 3})), call("none", json!({})), malformed("<tool_call>", "not closed")] {
        let mut e = episode(&toolbox, &[weather()], Case::default());
        assert_eq!(e.take(turn(vec![part])).unwrap(), Next::End);
        assert!(matches!(e.end(), Some(End::Unexecuted { .. })));
    }
}

#[test]
fn a_failing_plugin_fails_the_episode_and_no_other() {
    let limits = PluginLimits { returned_size: "4KiB".parse().unwrap(), ..PluginLimits::default() };
    let plugin = ToolPlugin { plugin: calculator_with(limits), settings: json!({}) };
    let toolbox = toolbox(vec![plugin], Limits { calls: 1000, ..Limits::default() });
    let mut e = episode(&toolbox, &[calculate()], Case::default());
    // So many results are more than this plugin may return.
    let mut parts = vec![call("nope", json!({}))];
    parts.extend((0..500).map(|i| call("calculate", json!({"expression": format!("{i}")}))));
    assert_eq!(e.take(turn(parts)).unwrap(), Next::End);
    let Some(End::Failed(why)) = e.end() else { panic!("{:?}", e.end()) };
    assert!(why.contains("plugin `calculator`") && why.contains("returned_size"), "{why}");
    assert_eq!(e.transcript().calls.len(), 2, "the unknown tool, and the first call of those that the plugin was given");
    assert!(matches!(e.transcript().calls[1].outcome, Outcome::Trap(_)));
    let mut e = episode(&toolbox, &[calculate()], Case::default());
    assert_eq!(e.take(turn(vec![call("calculate", json!({"expression": "1"}))])).unwrap(), Next::Prompt);
}

#[test]
fn a_chat_goes_on_with_limits_anew() {
    let toolbox = toolbox(vec![calculator()], Limits { turns: 2, ..Limits::default() });
    let mut e = episode(&toolbox, &[calculate()], Case::default());
    let step = || turn(vec![call("calculate", json!({"expression": "1"}))]);
    assert_eq!(e.take(step()).unwrap(), Next::Prompt);
    assert_eq!(e.take(step()).unwrap(), Next::End);
    assert_eq!(e.end(), Some(&End::Turns));
    let question = conversation(&[]).messages.remove(0);
    e.ask(question);
    assert_eq!(e.end(), None);
    assert_eq!(e.take(step()).unwrap(), Next::Prompt);
    assert_eq!(e.transcript().calls.iter().map(|c| c.ordinal).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn two_plugins_cannot_offer_the_same_tool() {
    let error = Toolbox::new(vec![calculator(), calculator()], Limits::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the plugins `calculator` and `calculator` both offer a tool called \"calculate\"; leave one of them out"
    );
    let offer = toolbox(vec![calculator()], Limits::default()).offer();
    let tool: serde_json::Value = serde_json::from_str(&offer[0]).unwrap();
    assert_eq!((&tool["type"], &tool["function"]["name"]), (&json!("function"), &json!("calculate")));
}

/// Hundreds of episodes with a plugin's session each, open at once and stepped in turns.
#[test]
fn hundreds_are_open_at_once() {
    let toolbox = toolbox(vec![calculator()], Limits::default());
    let mut all: Vec<_> = (0..300).map(|_| episode(&toolbox, &[calculate()], Case::default())).collect();
    for round in 0..2 {
        for (i, e) in all.iter_mut().enumerate() {
            let expression = format!("{i}+{round}");
            assert_eq!(e.take(turn(vec![call("calculate", json!({"expression": expression}))])).unwrap(), Next::Prompt);
            assert_eq!(last(e, 1), [pair("tool", &format!("{{\"result\": {}}}", i + round))]);
        }
    }
}
