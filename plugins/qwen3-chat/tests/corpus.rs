//! Outputs that were made to confuse a parser, with the parts that they are to give: `corpus/*.jsonl`.
//!
//! A line has `about`; `output`, a text in which tags are special tokens, or a list of texts and of special tokens, each in brackets of its own;
//! `in_reasoning`, where the prompt has opened the thinking; and `parts`. With `TRAINER_UPDATE_GOLDENS=1` the parts are written anew, to be looked
//! at before they are committed.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qwen3_chat::parser::Parser;
use serde::{Deserialize, Serialize};
use trainer_plugin_sdk::adapter::join_parts;
use trainer_plugin_sdk::{CallArguments, OutputParser, OutputPart, Piece};

const TOKENS: [&str; 9] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|fim_pad|>",
];

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    about: String,
    output: Output,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    in_reasoning: bool,
    #[serde(default)]
    parts: Vec<Part>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Output {
    /// Tags are tokens.
    Tokens(String),
    /// Tags are tokens where they are alone.
    Pieces(Vec<Written>),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Token([String; 1]),
}

/// A part, as the goldens have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Text(String),
    Reasoning(String),
    Call {
        name: String,
        arguments: String,
    },
    /// A call whose arguments are a JSON string.
    TextCall {
        name: String,
        arguments: String,
    },
    Malformed {
        raw: String,
        message: String,
    },
}

fn pieces(output: &Output) -> Vec<Piece> {
    match output {
        Output::Pieces(pieces) => pieces
            .iter()
            .map(|p| match p {
                Written::Text(text) => Piece::Text(text.clone()),
                Written::Token([token]) => Piece::Special(token.clone()),
            })
            .collect(),
        Output::Tokens(text) => {
            let mut out = Vec::new();
            let mut rest = text.as_str();
            while let Some((at, token)) = TOKENS.iter().filter_map(|t| rest.find(t).map(|at| (at, *t))).min() {
                if at > 0 {
                    out.push(Piece::Text(rest[..at].to_owned()));
                }
                out.push(Piece::Special(token.to_owned()));
                rest = &rest[at + token.len()..];
            }
            if !rest.is_empty() {
                out.push(Piece::Text(rest.to_owned()));
            }
            out
        }
    }
}

fn parts(pushes: Vec<Vec<Piece>>, in_reasoning: bool) -> Vec<Part> {
    let mut parser = Parser::new(in_reasoning);
    let mut parts: Vec<OutputPart> = pushes.into_iter().flat_map(|p| parser.push(p)).collect();
    parts.extend(parser.finish());
    let part = |part| match part {
        OutputPart::Text(text) => Part::Text(text),
        OutputPart::Reasoning(text) => Part::Reasoning(text),
        OutputPart::ToolCall(call) => match call.arguments {
            CallArguments::Json(arguments) => Part::Call { name: call.name, arguments },
            CallArguments::Text(arguments) => Part::TextCall { name: call.name, arguments },
        },
        OutputPart::Malformed(m) => Part::Malformed { raw: m.raw, message: m.message },
    };
    join_parts(parts).into_iter().map(part).collect()
}

/// Text cut into pieces of at most so many characters, each pushed alone.
fn cut(pieces: &[Piece], mut size: impl FnMut() -> usize) -> Vec<Vec<Piece>> {
    let mut out = Vec::new();
    for piece in pieces {
        let Piece::Text(text) = piece else {
            out.push(vec![piece.clone()]);
            continue;
        };
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let end = rest.char_indices().nth(size().max(1)).map_or(rest.len(), |(i, _)| i);
            let (now, later) = rest.split_at(end);
            out.push(vec![Piece::Text(now.to_owned())]);
            rest = later;
        }
    }
    out
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn cases(file: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}\n{line}", file.display()))).collect()
}

#[test]
fn every_output_gives_its_parts_however_it_is_cut() {
    let update = std::env::var_os("TRAINER_UPDATE_GOLDENS").is_some();
    let mut count = 0;
    for file in files() {
        let mut all = cases(&file);
        for case in &mut all {
            let pieces = pieces(&case.output);
            let whole = parts(vec![pieces.clone()], case.in_reasoning);
            if update {
                case.parts.clone_from(&whole);
            }
            assert_eq!(whole, case.parts, "{}: {}", file.display(), case.about);
            for size in [1, 2, 3, 7] {
                assert_eq!(parts(cut(&pieces, || size), case.in_reasoning), whole, "{}: {}, cut by {size}", file.display(), case.about);
            }
            count += 1;
        }
        if update {
            let lines: Vec<String> = all.iter().map(|c| serde_json::to_string(c).unwrap() + "\n").collect();
            std::fs::write(&file, lines.concat()).unwrap();
        }
    }
    assert!(count > 100, "{count} cases");
}

/// A call that was read has a name and arguments that JSON can be read from again; what was not read is told with a reason.
#[test]
fn what_is_called_a_call_is_one() {
    for case in files().iter().flat_map(|f| cases(f)) {
        for part in &case.parts {
            match part {
                Part::Call { name, arguments } => {
                    assert!(!name.is_empty(), "{}", case.about);
                    assert!(serde_json::from_str::<&serde_json::value::RawValue>(arguments).is_ok(), "{}: {arguments}", case.about);
                }
                Part::Malformed { raw, message } => assert!(raw.starts_with("<tool_call>") && !message.is_empty(), "{}", case.about),
                Part::Text(text) | Part::Reasoning(text) => assert!(!text.is_empty(), "{}", case.about),
                Part::TextCall { .. } => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Corpus outputs in a row, cut anywhere.
    #[test]
    fn joined_outputs_do_not_depend_on_the_cuts(chosen in prop::collection::vec(any::<prop::sample::Index>(), 1..4), sizes in prop::collection::vec(1usize..12, 1..30), in_reasoning: bool) {
        let all: Vec<Case> = files().iter().flat_map(|f| cases(f)).collect();
        let pieces: Vec<Piece> = chosen.iter().flat_map(|i| pieces(&i.get(&all).output)).collect();
        let mut sizes = sizes.iter().copied().cycle();
        prop_assert_eq!(parts(cut(&pieces, || sizes.next().unwrap_or(1)), in_reasoning), parts(vec![pieces.clone()], in_reasoning));
    }
}
