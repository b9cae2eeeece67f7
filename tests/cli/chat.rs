//! `trainer chat`: conversations from a pipe, tools, commands, files, and the exact prompts of conversations that were written down.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Sandbox, json_file};

/// A conversation of these lines; gives standard output.
fn chat(sandbox: &Sandbox, args: &[&str], lines: &[&str]) -> String {
    let limit: &[&str] = if args.contains(&"--max-new-tokens") { &[] } else { &["--max-new-tokens", "120"] };
    let mut child = sandbox
        .command(["chat", "--temperature", "0"].iter().chain(limit).chain(args))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    sandbox.neutral(std::str::from_utf8(&output.stdout).unwrap())
}

#[test]
fn a_question_is_answered_with_a_tool() {
    let sandbox = Sandbox::new();
    let system = "You are a helpful assistant.";
    let shown = chat(&sandbox, &["--plugin", "calculator", "--system", system], &["What is 12*7+5?", "/save c.json"]);
    let saved = json_file(&sandbox.path("c.json"));
    let roles: Vec<&str> = saved["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"], "{shown}");
    let call = &saved["messages"][2]["tool_calls"][0]["function"];
    assert_eq!(saved["messages"][3]["name"], call["name"]);
    assert!(saved["messages"][3]["content"].as_str().unwrap().contains("89"), "{saved}");
    // What the small model makes of it is its own affair.
    assert!(!saved["messages"][4]["content"].as_str().unwrap().is_empty(), "{saved}");
    assert_eq!(saved["tools"][0]["function"]["name"], call["name"]);
    let name = call["name"].as_str().unwrap();
    assert!(shown.contains(&format!("-> {name}(")) && shown.contains("<- ") && shown.contains("written to c.json"), "{shown}");

    // What was saved can be gone on with, and says what it said.
    let again = chat(&sandbox, &["--plugin", "calculator", "--load", "c.json"], &["/retry", "/save d.json"]);
    assert_eq!(json_file(&sandbox.path("d.json"))["messages"], saved["messages"], "{again}");
}

#[test]
fn commands_change_the_conversation() {
    let sandbox = Sandbox::new();
    let lines = [
        "/tools",
        "/thinking",
        "/thinking off",
        "/thinking",
        "/sampling top_k=5 seed=9",
        "/sampling top_k=x",
        "/undo",
        "/retry",
        "/sytem",
        "/system",
        "/system Be brief.",
        "/system",
        "/prompt",
        "/save empty.json",
        "/load nothing.json",
        "/system -",
        "/system",
        "/clear now",
    ];
    let shown = chat(&sandbox, &[], &lines);
    insta::assert_snapshot!(shown, @r#"
    no tools are on offer; --plugin adds some
    thinking is left to the template
    thinking is off
    temperature=0 top_k=5 top_p=0.8 min_p=0 repetition_penalty=1 max_new_tokens=120 seed=9
    top_k cannot be "x"
    there is no question to take away
    there is no answer to draw again
    there is no command /sytem; did you mean /system?
    there is no system message
    Be brief.
    <|im_start|>system
    Be brief.<|im_end|>
    <|im_start|>assistant
    <think>

    </think>


    written to empty.json
    cannot open nothing.json: No such file or directory (os error 2)
    there is no system message
    /clear takes nothing after it
    "#);
    assert_eq!(
        json_file(&sandbox.path("empty.json")),
        json!({ "messages": [{ "role": "system", "content": "Be brief." }], "enable_thinking": false })
    );
    let help = chat(&sandbox, &[], &["/help"]);
    for name in ["system", "tools", "thinking", "sampling", "save", "load", "retry", "undo", "clear", "quit"] {
        assert!(help.contains(&format!("/{name} ")), "{help}");
    }
    // What is taken away is not said again, and a retry under greedy decoding says the same.
    chat(
        &sandbox,
        &["--system", "s"],
        &["What is 2 + 3?", "/save a.json", "/retry", "/save b.json", "/undo", "/save c.json", "What is 2 + 3?", "/save d.json"],
    );
    let messages = |name: &str| json_file(&sandbox.path(name))["messages"].clone();
    assert_eq!((messages("a.json"), messages("a.json")), (messages("b.json"), messages("d.json")));
    assert_eq!(messages("c.json"), json!([{ "role": "system", "content": "s" }]));
    assert_eq!(messages("a.json").as_array().unwrap().len(), 3);
}

#[test]
fn what_cannot_go_on_is_told_and_taken_back() {
    let sandbox = Sandbox::new();
    let long = "word ".repeat(60);
    let shown = chat(&sandbox, &["--max-context", "40", "--max-new-tokens", "4"], &[&long, "Hi", "/save c.json"]);
    assert!(shown.contains("tokens of at most 40: /undo or /clear make room, --max-context gives more"), "{shown}");
    assert!(shown.contains("the answer reached max_new_tokens = 4"), "{shown}");
    let messages = json_file(&sandbox.path("c.json"))["messages"].clone();
    assert_eq!((messages.as_array().unwrap().len(), &messages[0]["content"]), (2, &"Hi".into()), "the long question was taken back");
    sandbox.write("bad.json", "{\"messages\": [{}]}");
    insta::assert_snapshot!(sandbox.fails(["chat", "--load", "bad.json"]), @"error: bad.json is no conversation: a JSON object with a list `messages` belongs there: missing field `role` at line 1 column 16");
    let unknown = sandbox.fails(["chat", "--plugin", "calculater"]);
    assert!(
        unknown.starts_with("error: there is no file calculater and no official plugin of that name; official plugins are "),
        "{unknown}"
    );
}

#[test]
fn nothing_of_a_conversation_steers_the_terminal() {
    let sandbox = Sandbox::new();
    let hostile = "\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\u{202e}abc";
    let call = json!({ "name": hostile, "arguments": { "x": hostile } });
    let messages = json!([
        { "role": "system", "content": hostile }, { "role": "user", "content": hostile },
        { "role": "assistant", "content": hostile, "reasoning_content": hostile, "tool_calls": [call] },
        { "role": "tool", "content": hostile }, { "role": "assistant", "content": "done" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": hostile, "description": hostile, "parameters": {} } }]);
    sandbox.write("c.json", json!({ "messages": messages, "tools": tools }).to_string());
    let shown = chat(&sandbox, &["--replay", "c.json"], &["/system", "/tools", "/prompt", "/save x\u{1b}[2J/y.json"]);
    assert!(shown.contains("␛]0;title␇␛[2J<U+009B>31m<U+202E>abc") && shown.contains("done"), "{shown}");
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{shown:?}");
}

/// The tutorial's conversations, and others: the prompts are the reference's, as text and as tokens.
#[test]
fn replayed_conversations_have_the_reference_prompts() {
    let sandbox = Sandbox::new();
    let model = trainer_test_support::reference_file("model/tied_f32");
    let cases = std::fs::read_to_string(trainer_test_support::reference_file("chat_template/cases.jsonl")).unwrap();
    let mut seen = 0;
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let (id, tag) = (case["id"].as_str().unwrap(), case["tag"].as_str().unwrap());
        if !(tag.starts_with("seed-") || tag == "random") || case["expected_text"].is_null() {
            continue;
        }
        // As it is written, so that numbers keep their digits.
        sandbox.write("case.json", line);
        let replay = sandbox.json(["chat", "--model", model.to_str().unwrap(), "--replay", "case.json", "--json"]);
        let steps = replay["steps"].as_array().unwrap();
        let (text, ids) = match case["add_generation_prompt"].as_bool().unwrap() {
            true => (&steps.last().unwrap()["prompt"], &steps.last().unwrap()["prompt_ids"]),
            false => (&replay["text"], &replay["ids"]),
        };
        let messages = case["messages"].as_array().unwrap();
        if case["add_generation_prompt"] == true && messages.last().unwrap()["role"] == "assistant" {
            continue;
        }
        assert_eq!(text, &case["expected_text"], "{id} {tag}");
        // Words of a message that look like a special token stay words here; for the reference they become the token.
        let forged = messages.iter().any(|m| m["content"].as_str().is_some_and(|c| c.contains("<tool_") || c.contains("<|im_")));
        assert_eq!(ids == &case["expected_ids_small"], !forged, "{id} {tag}");
        let answers = messages.iter().filter(|m| m["role"] == "assistant").count();
        assert_eq!(steps.len(), answers + usize::from(messages.last().unwrap()["role"] != "assistant"), "{id}");
        seen += 1;
    }
    assert!(seen >= 20, "{seen}");
    // Step by step: the prompt of the tutorial's answer with tool results is that of its own golden, in another conversation that goes on.
    let golden =
        |tag: &str| -> Value { cases.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).find(|c| c["tag"] == tag).unwrap() };
    let (first, whole) = (golden("seed-tool-results"), golden("seed-tool-final"));
    sandbox.write("case.json", whole.to_string());
    let shown =
        sandbox.ok(["chat", "--model", model.to_str().unwrap(), "--replay", "case.json", "--show-prompts", "--enable-thinking", "true"]);
    assert!(shown.contains(first["expected_text"].as_str().unwrap()), "{shown}");
    assert_eq!(shown.matches("=== prompt of message ").count(), 2);
}

#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    use std::io::{BufRead, BufReader};
    let sandbox = Sandbox::new();
    // Without a stop the model would go on for a long time: a high temperature ends answers rarely.
    let mut child = sandbox
        .command(["chat", "--max-context", "32768", "--max-new-tokens", "30000", "--temperature", "50", "--top-k", "0", "--top-p", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    writeln!(stdin, "Go on and on.").unwrap();
    stdin.flush().unwrap();
    // The answer has begun.
    let mut begun = vec![0; 1];
    std::io::Read::read_exact(&mut stdout, &mut begun).unwrap();
    let signal =
        || assert!(std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap().success());
    signal();
    let mut rest = Vec::new();
    loop {
        let mut line = Vec::new();
        assert!(stdout.read_until(b'\n', &mut line).unwrap() > 0, "it ended: {}", String::from_utf8_lossy(&rest));
        rest.extend_from_slice(&line);
        if line == b"(stopped)\n" {
            break;
        }
    }
    // The program still answers.
    writeln!(stdin, "/save c.json\n/quit").unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let messages = json_file(&sandbox.path("c.json"))["messages"].clone();
    assert_eq!(messages.as_array().unwrap().len(), 2, "what was said so far is kept");
}
