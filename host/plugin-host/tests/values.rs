//! Values that an interface allows by its types and forbids by its words: templates, mixing policies and tools. (Formatters: `evil`, metrics: `evil_metric`.)

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::sync::Arc;

use common::{source, tight};
use guest::{Guest, words};
use serde_json::Value;
use trainer_plugin_host::mixing::Source;
use trainer_plugin_host::tools::{Call, Outcome};
use trainer_plugin_host::types::{Content, Conversation, Message};
use trainer_plugin_host::{CompilerCommand, HostOptions, Kind, MixerSetup, Plugin, PluginError, PluginHost, RowError, ToolContext};

fn load(guest: &Guest) -> Arc<Plugin> {
    PluginHost::new(HostOptions::new(CompilerCommand::in_process())).unwrap().load(&source(guest.build()), tight()).unwrap()
}

/// What a plugin's error says after the export.
fn words_of(error: &PluginError) -> String {
    let text = error.to_string();
    let (_, rest) = text.split_once('#').unwrap();
    rest.split_once(' ').unwrap().1.to_owned()
}

/// `ok` with a list.
fn ok_list(guest: &mut Guest, items: &[Vec<u8>]) -> Vec<u8> {
    [words(&[0]), guest.list(items)].concat()
}

/// One segment of a text: its source message, if any, and its weight.
fn segment(guest: &mut Guest, special: bool, text: &str, message: Option<u32>, weight: f32) -> Vec<u8> {
    let message = words(&[u32::from(message.is_some()), message.unwrap_or(0)]);
    [words(&[u32::from(special)]), guest.text(text), message, words(&[1]), weight.to_le_bytes().to_vec()].concat()
}

#[test]
fn segments_of_a_template() {
    let refused = |make: &dyn Fn(&mut Guest) -> Vec<u8>| {
        let mut guest = Guest::new(Kind::ChatTemplate, "0.1.0");
        let segment = make(&mut guest);
        let rendered = guest.list(&[segment]);
        let sample = ok_list(&mut guest, &[rendered]);
        let results = guest.list(&[sample]);
        let template = load(&guest.answers("render-training", &results)).template(&Value::Null).unwrap();
        let message = Message {
            role: "user".into(),
            content: Content::Text("x".into()),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            weight: None,
            spans: Vec::new(),
        };
        let conversation = Conversation { messages: vec![message], tools: Vec::new(), template_args: None, weight: 1.0 };
        match template.render_training(&[conversation]).unwrap().pop().unwrap() {
            Ok(_) => "taken".to_owned(),
            Err(RowError::Trapped(error)) => words_of(&error),
            Err(RowError::Refused(words)) => words,
        }
    };
    assert_eq!(refused(&|g| segment(g, false, "x", Some(0), 1.0)), "taken");
    for (weight, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-0.5, "-0.5")] {
        assert_eq!(
            refused(&|g| segment(g, false, "x", None, weight)),
            format!("returned a bad value: results[0][0].segments[0].weight: {shown} is no weight; it is finite and not negative")
        );
    }
    assert_eq!(
        refused(&|g| segment(g, true, "", None, 1.0)),
        "returned a bad value: results[0][0].segments[0].piece: a special token is not empty"
    );
    let beyond = refused(&|g| segment(g, false, "x", Some(1), 1.0));
    assert!(beyond.starts_with("returned a bad value: results[0][0].segments[0].source-message: "), "{beyond}");
}

/// A draw from a source, of a row or of the next one.
fn draw(source: u32, ordinal: Option<u64>) -> Vec<u8> {
    let row = ordinal.unwrap_or(0);
    [words(&[source, 0, u32::from(ordinal.is_some()), 0]), row.to_le_bytes().to_vec()].concat()
}

#[test]
fn draws_of_a_policy() {
    let refused = |draws: &[Vec<u8>]| {
        let mut guest = Guest::new(Kind::MixingPolicy, "0.1.0");
        let answer = ok_list(&mut guest, draws);
        let source = |name: &str, random_access| Source { name: name.into(), length: Some(4), random_access };
        let setup = MixerSetup { settings: Value::Null, sources: vec![source("a", true), source("b", false)], seed: 1, feedback_lag: 0 };
        let mut mixer = load(&guest.answers("mixer.next", &answer)).mixer(&setup, None).unwrap();
        mixer.next(2).map_or_else(|e| words_of(&e), |draws| format!("{} taken", draws.len()))
    };
    assert_eq!(refused(&[draw(0, Some(3)), draw(1, None)]), "2 taken");
    assert_eq!(refused(&[draw(2, None)]), "returned a bad value: draws[0].source: there is no source 2 among 2");
    assert_eq!(refused(&[draw(0, Some(4))]), "returned a bad value: draws[0].ordinal: there is no row 4 in source `a` of 4");
    assert_eq!(
        refused(&[draw(0, None), draw(1, Some(0))]),
        "returned a bad value: draws[1].ordinal: source `b` cannot be read in any order"
    );
    assert_eq!(
        refused(&[draw(0, None), draw(0, None), draw(0, None)]),
        "returned a bad value: draws: 3 decisions were returned where 2 were asked for"
    );
}

/// A tool as it lies in memory.
fn tool(guest: &mut Guest, name: &str, parameters: &str) -> Vec<u8> {
    [guest.text(name), guest.text("does it"), guest.text(parameters), words(&[0])].concat()
}

#[test]
fn tools_on_offer() {
    let refused = |tools: &[(&str, &str)]| {
        let mut guest = Guest::new(Kind::ToolExecutor, "0.1.0");
        let tools: Vec<_> = tools.iter().map(|(name, parameters)| tool(&mut guest, name, parameters)).collect();
        let answer = ok_list(&mut guest, &tools);
        load(&guest.answers("tools", &answer)).tools(&Value::Null).map_or_else(|e| words_of(&e), |tools| format!("{} taken", tools.len()))
    };
    assert_eq!(refused(&[("a", "{}"), ("b", "{}")]), "2 taken");
    assert_eq!(refused(&[("a", "{}"), ("a", "{}")]), "returned a bad value: tools[1].name: \"a\" is empty or the name of another tool");
    assert_eq!(refused(&[("", "{}")]), "returned a bad value: tools[0].name: \"\" is empty or the name of another tool");
    assert_eq!(refused(&[("a", "[]")]), "returned a bad value: tools[0].parameters: it is no JSON object");
    let words = refused(&[("a", "{\"type\": \"no such type\"}")]);
    assert!(words.starts_with("returned a bad value: tools[0].parameters: "), "{words}");
    // A schema that refers to a place on the network is never fetched.
    let words = refused(&[("a", "{\"$ref\": \"https://evil.example/schema.json\"}")]);
    assert!(words.starts_with("returned a bad value: tools[0].parameters: "), "{words}");
    let deep = format!("{{\"a\": {}{}}}", "[".repeat(500), "]".repeat(500));
    assert!(refused(&[("a", &deep)]).starts_with("hit its json_depth limit: 128 are allowed, 501 in tools[0].parameters were requested"));
}

fn context() -> ToolContext {
    ToolContext { settings: Value::Null, seed: 1, now_ms: 0 }
}

#[test]
fn outcomes_of_calls() {
    let refused = |make: &dyn Fn(&mut Guest) -> Vec<Vec<u8>>| {
        let mut guest = Guest::new(Kind::ToolExecutor, "0.1.0");
        let outcomes = make(&mut guest);
        let answer = guest.list(&outcomes);
        let mut session = load(&guest.answers("session.call", &answer)).tool_session(&context()).unwrap();
        let call = Call { name: "a".into(), arguments: "{}".into() };
        session.call(&[call]).map_or_else(|e| words_of(&e), |outcomes| format!("{outcomes:?}"))
    };
    let outcome = |guest: &mut Guest, error: u32, text: &str| [words(&[error]), guest.text(text)].concat();
    assert_eq!(refused(&|g| vec![outcome(g, 0, "[1]")]), format!("{:?}", [Outcome::Ok("[1]".into())]));
    assert_eq!(refused(&|_| Vec::new()), "returned a bad value: outcomes: 0 were returned for 1 given; each gets exactly one, in order");
    let words = refused(&|g| vec![outcome(g, 0, "{\"a\": NaN}")]);
    assert!(words.starts_with("returned a bad value: outcomes[0]: it is not valid JSON: "), "{words}");
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    assert!(refused(&|g| vec![outcome(g, 0, &deep)]).starts_with("hit its json_depth limit: 128 are allowed, 200 in outcomes[0]"));
}

/// A session that counts its calls in its memory and in a global, and shows the sum as its digest.
#[test]
fn no_state_goes_from_one_episode_to_the_next() {
    let guest = Guest::new(Kind::ToolExecutor, "0.1.0");
    let mut guest = guest.field("(global $calls (mut i32) (i32.const 0))");
    let null = guest.text("null");
    let outcome = [words(&[0]), null].concat();
    let answer = guest.list(&[outcome]);
    let answer = guest.data(&answer);
    let digest = guest.data(&words(&[1, 0x100, 1]));
    let guest = guest
        .body(
            "session.call",
            &format!(
                "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
                 (i32.store (i32.const 0x104) (i32.add (i32.load (i32.const 0x104)) (i32.const 1)))
                 (i32.const {answer})"
            ),
        )
        .body(
            "session.state-digest",
            &format!(
                "(i32.store8 (i32.const 0x100) (i32.add (i32.const 48) (i32.add (global.get $calls) (i32.load (i32.const 0x104)))))
                 (i32.const {digest})"
            ),
        );
    let plugin = load(&guest);
    let call = [Call { name: "a".into(), arguments: "{}".into() }];
    let mut one = plugin.tool_session(&context()).unwrap();
    one.call(&call).unwrap();
    one.call(&call).unwrap();
    assert_eq!(one.state_digest().unwrap().as_deref(), Some("4"));
    for _ in 0..50 {
        let mut other = plugin.tool_session(&context()).unwrap();
        assert_eq!(other.state_digest().unwrap().as_deref(), Some("0"));
        other.call(&call).unwrap();
        assert_eq!(other.state_digest().unwrap().as_deref(), Some("2"));
    }
    assert_eq!(one.state_digest().unwrap().as_deref(), Some("4"));
}
