//! The parser of the model's output, on any output, cut anywhere.
//!
//! The first byte says whether the prompt has opened the thinking and how to cut; the rest is the output, in which the bytes 1 to 7 are special
//! tokens. What must hold:
//!
//! - the parts do not depend on the cuts;
//! - a call has a name, and arguments that are JSON;
//! - nothing is made up: the characters of words, reasoning and malformed calls stand in the output in that order;
//! - a call that is written as the template writes it, and read again, is the same call.

#![no_main]

use libfuzzer_sys::fuzz_target;
use qwen3_chat::parser::Parser;
use trainer_plugin_sdk::adapter::join_parts;
use trainer_plugin_sdk::{CallArguments, OutputParser, OutputPart, Piece};

const TOKENS: [&str; 7] = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "<|endoftext|>", "<|fim_pad|>"];

fn pieces(bytes: &[u8]) -> Vec<Piece> {
    let mut out = Vec::new();
    for run in bytes.chunk_by(|a, b| !(1..=7).contains(a) && !(1..=7).contains(b)) {
        match run {
            [byte @ 1..=7] => out.push(Piece::Special(TOKENS[usize::from(byte - 1)].to_owned())),
            text => out.push(Piece::Text(String::from_utf8_lossy(text).into_owned())),
        }
    }
    out
}

/// The same output in small pieces, of lengths that `seed` decides.
fn cut(pieces: &[Piece], seed: u8) -> Vec<Vec<Piece>> {
    let mut out = Vec::new();
    let mut state = u32::from(seed) + 1;
    for piece in pieces {
        let Piece::Text(text) = piece else {
            out.push(vec![piece.clone()]);
            continue;
        };
        let mut rest = text.as_str();
        while !rest.is_empty() {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let size = if seed == 0 { 1 } else { 1 + (state >> 24) as usize % 9 };
            let end = rest.char_indices().nth(size).map_or(rest.len(), |(i, _)| i);
            let (now, later) = rest.split_at(end);
            out.push(vec![Piece::Text(now.to_owned())]);
            rest = later;
        }
    }
    out
}

fn parse(pushes: Vec<Vec<Piece>>, in_reasoning: bool) -> Vec<OutputPart> {
    let mut parser = Parser::new(in_reasoning);
    let mut parts: Vec<OutputPart> = pushes.into_iter().flat_map(|p| parser.push(p)).collect();
    parts.extend(parser.finish());
    join_parts(parts)
}

fn check_call(name: &str, arguments: &CallArguments) {
    assert!(!name.is_empty());
    let written = match arguments {
        CallArguments::Json(json) => {
            assert!(serde_json::from_str::<&serde_json::value::RawValue>(json).is_ok_and(|v| v.get().starts_with('{')), "{json}");
            json.clone()
        }
        CallArguments::Text(text) => serde_json::Value::from(text.as_str()).to_string(),
    };
    let name_text = serde_json::Value::from(name).to_string();
    let body = format!("\n{{\"name\": {name_text}, \"arguments\": {written}}}\n");
    let again = vec![Piece::Special("<tool_call>".into()), Piece::Text(body), Piece::Special("</tool_call>".into())];
    match parse(vec![again], false).as_slice() {
        [OutputPart::ToolCall(call)] => assert!(call.name == name && call.arguments == *arguments, "{call:?}"),
        other => panic!("a call that was read is written as {other:?}"),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let in_reasoning = first & 1 == 1;
    let pieces = pieces(rest);
    let whole = parse(vec![pieces.clone()], in_reasoning);
    assert_eq!(parse(cut(&pieces, first >> 1), in_reasoning), whole);
    let text: String = pieces.iter().map(|(Piece::Text(t) | Piece::Special(t))| t.as_str()).collect();
    let mut left = text.chars();
    for part in &whole {
        match part {
            OutputPart::ToolCall(call) => check_call(&call.name, &call.arguments),
            OutputPart::Text(t) | OutputPart::Reasoning(t) | OutputPart::Malformed(trainer_plugin_sdk::MalformedCall { raw: t, .. }) => {
                assert!(!t.is_empty());
                for c in t.chars() {
                    assert!(left.any(|l| l == c), "{t:?} is not in {text:?} in this place: {whole:?}");
                }
            }
        }
    }
});
