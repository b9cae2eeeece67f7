//! The parser of the model's output.

use proptest::prelude::*;
use qwen3_chat::parser::Parser;
use trainer_plugin_sdk::adapter::join_parts;
use trainer_plugin_sdk::{CallArguments, OutputParser, OutputPart, Piece};

const TOKENS: [&str; 6] = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "<|fim_pad|>"];

/// `{name}` stands for a special token: `{T}` `<think>`, `{/T}`, `{C}` `<tool_call>`, `{/C}`, `{E}` `<|im_end|>`, `{X}` `<|fim_pad|>`.
fn pieces(output: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = output;
    let marks = ["{T}", "{/T}", "{C}", "{/C}", "{E}", "{X}"];
    while let Some((at, i)) = (0..6).filter_map(|i| rest.find(marks[i]).map(|at| (at, i))).min() {
        if at > 0 {
            pieces.push(Piece::Text(rest[..at].to_owned()));
        }
        pieces.push(Piece::Special(TOKENS[i].to_owned()));
        rest = &rest[at + marks[i].len()..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    pieces
}

fn parse(pieces: Vec<Piece>, in_reasoning: bool) -> Vec<OutputPart> {
    let mut parser = Parser::new(in_reasoning);
    let mut parts = parser.push(pieces);
    parts.extend(parser.finish());
    join_parts(parts)
}

/// One line per part.
fn shown(parts: &[OutputPart]) -> String {
    let one = |part: &OutputPart| match part {
        OutputPart::Text(t) => format!("text {t:?}"),
        OutputPart::Reasoning(r) => format!("reasoning {r:?}"),
        OutputPart::ToolCall(c) => match &c.arguments {
            CallArguments::Json(json) => format!("call {} {json}", c.name),
            CallArguments::Text(text) => format!("call {} text {text:?}", c.name),
        },
        OutputPart::Malformed(m) => format!("malformed {:?}: {}", m.raw, m.message),
    };
    parts.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[test]
fn outputs_and_their_parts() {
    let call = r#"{"name": "f", "arguments": {}}"#;
    for (output, expected) in [
        ("plain words", r#"text "plain words""#.to_owned()),
        ("{T}\nhm\n{/T}\n\nso{E}", "reasoning \"hm\"\ntext \"so\"".to_owned()),
        ("{T}\n\n{/T}\n\nso", "text \"so\"".to_owned()),
        ("{T}\na\n\nb\n\n{/T}c", "reasoning \"a\\n\\nb\"\ntext \"c\"".to_owned()),
        ("{T}\nnever closed\n", "reasoning \"never closed\"".to_owned()),
        // Tags as plain text, where the model would put them.
        ("<think>\nhm\n</think>\n\nso", "reasoning \"hm\"\ntext \"so\"".to_owned()),
        ("\n<think>x</think>", "reasoning \"x\"".to_owned()),
        ("the tag <think> opens", "text \"the tag <think> opens\"".to_owned()),
        ("use <tool_call>{} here", "text \"use <tool_call>{} here\"".to_owned()),
        ("<tool_call> is a tag", "text \"<tool_call> is a tag\"".to_owned()),
        ("<thin", "text \"<thin\"".to_owned()),
        ("a\n\n", "text \"a\\n\\n\"".to_owned()),
        // Calls.
        (&format!("{{C}}\n{call}\n{{/C}}{{E}}"), "call f {}".to_owned()),
        (&format!("<tool_call>\n{call}\n</tool_call>"), "call f {}".to_owned()),
        (&format!("one\n{{C}}\n{call}\n{{/C}}\n{{C}}\n{call}\n{{/C}}\n"), "text \"one\"\ncall f {}\ncall f {}".to_owned()),
        (&format!("one\n\n{{C}}\n{call}\n{{/C}}"), "text \"one\\n\"\ncall f {}".to_owned()),
        (&format!("one\n\n<tool_call>{call}</tool_call> two"), "text \"one\\n\"\ncall f {}\ntext \"two\"".to_owned()),
        (&format!("{{T}}\nhm\n{{/T}}\n\n{{C}}{call}{{/C}}"), "reasoning \"hm\"\ncall f {}".to_owned()),
        (&format!("{{T}}\nI call {{C}}\n{{/T}}\n{{C}}{call}{{/C}}"), "reasoning \"I call <tool_call>\"\ncall f {}".to_owned()),
        (
            r#"{C}{"name": "f", "arguments": {"a": "} {/C} {C} \" ]", "n": [1, {"b": "</tool_call>"}]}}{/C}"#,
            r#"call f {"a": "} </tool_call> <tool_call> \" ]", "n": [1, {"b": "</tool_call>"}]}"#.to_owned(),
        ),
        (r#"{C}{"name": "f", "arguments": "{\"a\": 1}"}{/C}"#, r#"call f text "{\"a\": 1}""#.to_owned()),
        (r#"{C}{"arguments": {"x": 1.50}, "name": "f"}{/C}"#, r#"call f {"x": 1.50}"#.to_owned()),
        // What is none.
        ("{C}{/C}", r#"malformed "<tool_call></tool_call>": the call is empty"#.to_owned()),
        ("{C}f(x){/C}a", "malformed \"<tool_call>f(x)</tool_call>\": a call must be one JSON object\ntext \"a\"".to_owned()),
        (r#"{C}{"name": "f"}{/C}"#, r#"malformed "<tool_call>{\"name\": \"f\"}</tool_call>": the call has no "arguments""#.to_owned()),
        (
            r#"{C}{"name": "f", "arguments": {}} and {/C}"#,
            r#"malformed "<tool_call>{\"name\": \"f\", \"arguments\": {}} and </tool_call>": something follows the call's JSON object"#.to_owned(),
        ),
        (
            r#"{C}{"name": "f", "arguments": {}"#,
            r#"malformed "<tool_call>{\"name\": \"f\", \"arguments\": {}": the call is not closed by </tool_call>"#.to_owned(),
        ),
        (
            &format!("{{C}}{{\"name\": \"f{{C}}{call}{{/C}}"),
            r#"malformed "<tool_call>{\"name\": \"f<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>": the call's JSON is broken"#.to_owned(),
        ),
        (
            &format!("{{C}}{{\"name\": \"f}}{{/C}}\n{{C}}{call}{{/C}}"),
            "malformed \"<tool_call>{\\\"name\\\": \\\"f}</tool_call>\": a string of the call's JSON does not end\ncall f {}".to_owned(),
        ),
        (
            &format!("{{C}}{{\"name\": \"f\n}}{{/C}}{{C}}{call}{{/C}}"),
            "malformed \"<tool_call>{\\\"name\\\": \\\"f\\n}</tool_call>\": a line ends inside a string of the call's JSON\ncall f {}".to_owned(),
        ),
        (
            &format!("{{C}}{{{{C}}{call}{{/C}}"),
            "malformed \"<tool_call>{\": the call is not closed by </tool_call>\ncall f {}".to_owned(),
        ),
        ("before{X}after", "text \"before<|fim_pad|>after\"".to_owned()),
    ] {
        assert_eq!(shown(&parse(pieces(output), false)), expected, "{output}");
    }
    assert_eq!(shown(&parse(pieces("hm\n{/T}\n\nso"), true)), "reasoning \"hm\"\ntext \"so\"");
}

#[test]
fn deep_and_hostile_outputs_end_quickly() {
    for output in [
        format!("{{C}}{}", "{\"a\":".repeat(100_000)),
        "{C}{\"{/C}".repeat(20_000),
        "<tool_call>\n".repeat(50_000),
        format!("{}x", "\n".repeat(200_000)),
        format!("{{T}}{}x", "\n</think".repeat(50_000)),
        format!("<tool_call>{}x", "\n".repeat(200_000)),
        format!("a\n<tool_call>{}x", "\n".repeat(200_000)),
        format!("{{T}}a{}x", "\n".repeat(200_000)),
        format!("{{C}}{{}}{}x", " ".repeat(200_000)),
    ] {
        parse(pieces(&output), false);
    }
}

fn fragment() -> impl Strategy<Value = Piece> {
    prop_oneof![
        prop::sample::select(TOKENS.to_vec()).prop_map(|t| Piece::Special(t.to_owned())),
        prop::sample::select(vec![
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            "<",
            "</tool",
            "\n",
            "\n\n",
            " ",
            "{",
            "}",
            "\"",
            "\\",
            "words",
            "é",
            ",",
            "{\"name\": \"f\", \"arguments\": {}}",
            "\"a\": ",
        ])
        .prop_map(|t| Piece::Text(t.to_owned())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// However an output is cut into pieces and calls, its parts are the same.
    #[test]
    fn parts_do_not_depend_on_the_cuts(output in prop::collection::vec(fragment(), 0..30), cuts in prop::collection::vec(0usize..8, 1..40), in_reasoning: bool) {
        let whole = parse(output.clone(), in_reasoning);
        let mut cut = Vec::new();
        let mut sizes = cuts.iter().cycle();
        for piece in &output {
            match piece {
                Piece::Special(_) => cut.push(vec![piece.clone()]),
                Piece::Text(text) => {
                    let chars: Vec<char> = text.chars().collect();
                    for chunk in chars.chunks(sizes.next().unwrap() + 1) {
                        cut.push(vec![Piece::Text(chunk.iter().collect())]);
                    }
                }
            }
        }
        let mut parser = Parser::new(in_reasoning);
        let mut parts: Vec<OutputPart> = cut.into_iter().flat_map(|pieces| parser.push(pieces)).collect();
        parts.extend(parser.finish());
        prop_assert_eq!(join_parts(parts), whole);
    }

    /// Words without tags come through as they are.
    #[test]
    fn words_survive(words in "[a-zé\\n {}\"<>/]{0,60}") {
        prop_assume!(!words.contains("<t") && !words.contains("</t"));
        let text: String = parse(vec![Piece::Text(words.clone())], false).iter().map(|p| match p {
            OutputPart::Text(t) => t.as_str(),
            other => panic!("{other:?}"),
        }).collect();
        prop_assert_eq!(text, words);
    }
}
