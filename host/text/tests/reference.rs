//! The goldens of `tests/reference` that concern text and ids.

mod common;

use common::{Pair, REFERENCE};
use serde_json::Value;
use trainer_test_support as reference;
use trainer_text::{Piece, Segment, SpecialMode, Tokenizer};

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is no text in {value}"))
}

/// Whether encoding may make an added token of a part of the text.
fn holds_added(tokenizer: &Tokenizer, text: &str) -> bool {
    tokenizer.added_tokens().iter().any(|t| text.contains(&t.text))
}

/// The template's view of ids: text and added tokens, each a segment with a weight of its own.
fn segments(pieces: &[Piece]) -> Vec<Segment<'_>> {
    let mut segments = Vec::new();
    for piece in pieces {
        let piece = match piece {
            Piece::Text(t) => Piece::Text(t.as_str()),
            Piece::Special(t) => Piece::Special(t.as_str()),
        };
        segments.push(Segment { piece, weight: segments.len() as f32 });
    }
    segments
}

/// Ids of a text in every way that must agree.
fn check_ids(pair: &Pair, id: &str, text: &str, want: &[u32]) {
    let at = |how: &str| format!("{} {id}: {how} of {text:?}", pair.name);
    for (how, tokenizer) in [("native", &pair.native), ("general", &pair.general)] {
        assert_eq!(tokenizer.encode(text, SpecialMode::Parse).unwrap(), want, "{}", at(how));
        let plain = tokenizer.encode(text, SpecialMode::Plain).unwrap();
        if holds_added(tokenizer, text) {
            assert!(plain.iter().all(|i| tokenizer.added_token(*i).is_none()), "{}", at("forged token"));
        } else {
            assert_eq!(plain, want, "{}", at("plain"));
        }
        // As a template would say it, with added tokens as pieces.
        let pieces = tokenizer.decode_pieces(want);
        let segments = segments(&pieces);
        for mode in [SpecialMode::Plain, SpecialMode::Parse] {
            let encoded = tokenizer.encode_segments(&segments, mode).unwrap();
            assert_eq!(encoded.ids, want, "{} {mode:?}", at("segments"));
            let weights: Vec<f32> = encoded.segments.iter().map(|s| *s as f32).collect();
            assert_eq!(encoded.weights, weights, "{}", at("weights"));
        }
    }
}

#[test]
fn reference_tokenizer_ids() {
    for pair in REFERENCE.iter() {
        for case in reference::jsonl(&format!("tokenizer/{}_cases.jsonl", pair.name)) {
            check_ids(pair, text(&case, "id"), text(&case, "text"), &ids(&case["ids"]));
        }
    }
}

#[test]
fn reference_tokenizer_decoding_and_streaming() {
    for pair in REFERENCE.iter() {
        let mut prefixes = 0;
        for case in reference::jsonl(&format!("tokenizer/{}_cases.jsonl", pair.name)) {
            let (id, tokens) = (text(&case, "id"), ids(&case["ids"]));
            for tokenizer in [&pair.native, &pair.general] {
                for (skip, key) in [(false, "decoded"), (true, "decoded_skip_special")] {
                    let want = text(&case, key);
                    assert_eq!(tokenizer.decode(&tokens, skip), want, "{} {id} {key}", pair.name);
                    let mut stream = tokenizer.stream_decoder(skip);
                    let mut shown: String = tokens.iter().map(|i| stream.push(*i).to_owned()).collect();
                    shown.push_str(stream.finish());
                    assert_eq!(shown, want, "{} {id} streamed {key}", pair.name);
                }
                let pieces: String = tokenizer.decode_pieces(&tokens).iter().map(Piece::as_str).collect();
                assert_eq!(pieces, text(&case, "decoded"), "{} {id} pieces", pair.name);
                let Some(want) = case.get("prefix_decoded") else { continue };
                let want: Vec<String> = serde_json::from_value(want.clone()).unwrap();
                // Only the first prefixes of a long text are stored.
                assert!(!want.is_empty() && want.len() <= tokens.len(), "{} {id}", pair.name);
                let mut stream = tokenizer.stream_decoder(false);
                let mut shown = String::new();
                for (n, (token, want)) in tokens.iter().zip(&want).enumerate() {
                    shown.push_str(stream.push(*token));
                    let mark = if stream.is_incomplete() { "\u{FFFD}" } else { "" };
                    assert_eq!(&format!("{shown}{mark}"), want, "{} {id}: first {} ids", pair.name, n + 1);
                    assert_eq!(&tokenizer.decode(&tokens[..=n], false), want, "{} {id}: first {} ids", pair.name, n + 1);
                }
                prefixes += 1;
            }
        }
        assert!(prefixes > 0, "{}: no case has prefixes", pair.name);
    }
}

#[test]
fn reference_tokenizer_about() {
    let about = reference::json("tokenizer/about.json");
    for pair in REFERENCE.iter() {
        let (tokenizer, about) = (&pair.native, &about[pair.name]);
        let number = |key: &str| usize::try_from(about[key].as_u64().unwrap()).unwrap();
        assert_eq!(tokenizer.added_tokens().len(), number("added"), "{}", pair.name);
        assert_eq!(tokenizer.vocab_size(), number("entries") + number("added"), "{}", pair.name);
        if let Some(sha) = about.get("tokenizer_json_sha256") {
            assert_eq!(tokenizer.json_digest(), sha, "{}", pair.name);
        }
        if let Some(token) = about.get("eos").and_then(Value::as_str) {
            assert_eq!(tokenizer.eos_ids(), [tokenizer.added_token_id(token).unwrap()], "{}", pair.name);
        }
        if let Some(token) = about.get("pad").and_then(Value::as_str) {
            assert_eq!(tokenizer.pad_id(), tokenizer.added_token_id(token), "{}", pair.name);
        }
        for (token, id) in about.get("special_ids").and_then(Value::as_object).into_iter().flatten() {
            assert_eq!(tokenizer.added_token_id(token).map(u64::from), id.as_u64(), "{} {token}", pair.name);
        }
    }
    // The tutorial's prompt comes back from its ids.
    let prompt = ids(&about["seed_prompt_ids"]);
    let tokenizer = &REFERENCE[0].native;
    assert_eq!(tokenizer.encode(&tokenizer.decode(&prompt, false), SpecialMode::Parse).unwrap(), prompt);
}

#[test]
fn reference_chat_template_ids() {
    let [qwen3, small] = &*REFERENCE;
    let mut checked = 0;
    for case in reference::jsonl("chat_template/cases.jsonl") {
        let id = text(&case, "id");
        for (pair, key) in [(qwen3, "expected_ids"), (small, "expected_ids_small")] {
            if let Some(want) = case.get(key).filter(|v| v.is_array()) {
                check_ids(pair, id, text(&case, "expected_text"), &ids(want));
                checked += 1;
            }
        }
        // The variants have no ids stored; what `tokenizers` gives must still come out in every way.
        for variant in case.get("variants").and_then(Value::as_object).into_iter().flat_map(|v| v.values()) {
            if let Some(text) = variant.get("text").and_then(Value::as_str) {
                check_ids(qwen3, id, text, &qwen3.general.encode(text, SpecialMode::Parse).unwrap());
            }
        }
    }
    assert!(checked > 0, "no template case has ids");
}

#[test]
fn reference_dataset_token_counts() {
    let small = &REFERENCE[1];
    for file in ["maths", "chat"] {
        for row in reference::jsonl(&format!("dataset/expected_{file}.jsonl")) {
            let text = text(&row, "text");
            let got = small.native.encode(text, SpecialMode::Parse).unwrap();
            assert_eq!(got.len() as u64, row["n_tokens_small"].as_u64().unwrap(), "{file} {}", row["index"]);
            check_ids(small, file, text, &got);
        }
    }
}
