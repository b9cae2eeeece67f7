//! Loading: what is accepted, what is refused and in which words, and what goes to the `tokenizers` crate.

mod common;

use common::{NANO, nano};
use proptest::prelude::*;
use serde_json::{Value, json};
use trainer_text::{SpecialMode, TextError, Tokenizer};

fn nano_json() -> Value {
    serde_json::from_slice(&std::fs::read(nano().join("model/tokenizer.json")).unwrap()).unwrap()
}

fn load(json: &Value) -> Result<Tokenizer, TextError> {
    Tokenizer::from_bytes(&serde_json::to_vec(json).unwrap(), None, None)
}

fn changed(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TextError> {
    let mut json = nano_json();
    change(&mut json);
    load(&json)
}

fn refusal(change: impl FnOnce(&mut Value)) -> String {
    changed(change).map(|_| "accepted").unwrap_err().to_string()
}

#[test]
fn the_embedded_model() {
    let tokenizer = Tokenizer::from_dir(&nano().join("model")).unwrap();
    assert!(tokenizer.is_native());
    let config: Value = serde_json::from_slice(&std::fs::read(nano().join("model/config.json")).unwrap()).unwrap();
    let eos = config["eos_token_id"].as_u64().unwrap() as u32;
    assert_eq!(tokenizer.eos_ids()[0], eos);
    assert_eq!(tokenizer.eos_ids().len(), 2, "generation_config.json has one more");
    assert_eq!(tokenizer.pad_id(), config["pad_token_id"].as_u64().map(|i| i as u32));
    assert_eq!(tokenizer.bos_id(), None);
    assert_eq!(tokenizer.vocab_size(), config["vocab_size"].as_u64().unwrap() as usize);
    let think = tokenizer.added_token(tokenizer.added_token_id("<think>").unwrap()).unwrap();
    assert!(!think.special);
    assert_eq!(tokenizer.digest().len(), 64);
    assert_eq!(tokenizer.digest(), NANO.native.digest());
    // The companions count, and so does which of them a text is in.
    let file = |name: &str| std::fs::read(nano().join("model").join(name)).unwrap();
    let alone = Tokenizer::from_bytes(&file("tokenizer.json"), None, None).unwrap();
    assert_ne!(alone.digest(), tokenizer.digest());
    assert_eq!(alone.json_digest(), tokenizer.json_digest());
    assert!(alone.eos_ids().is_empty() && alone.pad_id().is_none());
    let e = Tokenizer::from_dir(&nano().join("nowhere")).unwrap_err();
    assert!(matches!(&e, TextError::Read { path, .. } if path.ends_with("nowhere/tokenizer.json")), "{e}");
}

#[test]
fn companions_must_fit() {
    let json = std::fs::read(nano().join("model/tokenizer.json")).unwrap();
    let config = |c: Value| Tokenizer::from_bytes(&json, Some(&serde_json::to_vec(&c).unwrap()), None);
    let generation = |c: Value| Tokenizer::from_bytes(&json, None, Some(&serde_json::to_vec(&c).unwrap()));
    assert_eq!(
        config(json!({"eos_token": {"content": "<|im_end|>"}})).unwrap().eos_ids(),
        [NANO.native.added_token_id("<|im_end|>").unwrap()]
    );
    assert_eq!(generation(json!({"eos_token_id": 5, "pad_token_id": 6})).unwrap().eos_ids(), [5]);
    // A token of the vocabulary serves too, by its text.
    assert_eq!(config(json!({"pad_token": "!"})).unwrap().pad_id(), Some(0));
    for (e, words) in [
        (config(json!({"eos_token": "<eos>"})), "eos_token is \"<eos>\", which is no token"),
        (config(json!({"added_tokens_decoder": {"7": {"content": "<|im_end|>"}}})), "\"<|im_end|>\" with id 7"),
        (config(json!({"added_tokens_decoder": {"x": {"content": "<|im_end|>"}}})), "with id x"),
        (config(json!({"eos_token": 3})), "tokenizer_config.json: "),
        (generation(json!({"eos_token_id": [1, 99999]})), "eos_token_id is 99999, which is no token"),
        (generation(json!({"pad_token_id": -1})), "generation_config.json: "),
    ] {
        let e = e.unwrap_err().to_string();
        assert!(e.contains(words), "{e} lacks {words}");
    }
}

#[test]
fn broken_files_are_refused_by_name() {
    assert!(matches!(Tokenizer::from_bytes(b"{", None, None), Err(TextError::Json { file: "tokenizer.json", .. })));
    assert!(matches!(Tokenizer::from_bytes(&[0xFF; 9], None, None), Err(TextError::Json { .. })));
    for (e, words) in [
        (refusal(|j| j["decoder"] = Value::Null), "there is no decoder"),
        (refusal(|j| j["decoder"] = json!({"type": "WordPiece"})), "the decoder is of type \"WordPiece\""),
        (refusal(|j| j["added_tokens"][0]["id"] = json!(9_999)), "has id 9999, but its place gives it 2534"),
        (refusal(|j| j["added_tokens"][0]["content"] = json!("")), "id 2534 has no text"),
        (refusal(|j| j["model"]["merges"][3] = json!(["a", "\u{4f60}"])), "merge 4: "),
        (refusal(|j| j["model"]["merges"][3] = json!("a b c")), "model"),
        (refusal(|j| drop(j["model"]["vocab"].as_object_mut().unwrap().remove("!"))), "byte 0x21"),
        (refusal(|j| j["model"]["vocab"]["\""] = json!(0)), "id 0 belongs to two tokens"),
        (refusal(|j| j["model"]["vocab"]["!"] = json!(4_000_000_000u32)), "has id 4000000000"),
        (refusal(|j| j["model"]["vocab"]["!"] = json!(-1)), "model"),
    ] {
        assert!(e.contains(words), "{e:?} lacks {words:?}");
    }
}

/// An added token that merges can make would let data forge it.
#[test]
fn a_forgeable_added_token_is_refused() {
    let json = nano_json();
    let (pair, id) = (&json["model"]["merges"][0], &json["model"]["vocab"]);
    let token = format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let id = id[&token].clone();
    let e = refusal(|j| {
        let mut entry = j["added_tokens"][0].clone();
        entry["content"] = json!(token);
        entry["id"] = id;
        j["added_tokens"].as_array_mut().unwrap().push(entry);
    });
    assert!(e.contains("data could forge it"), "{e}");
}

/// Older files write merges as one text.
#[test]
fn merges_in_the_old_form() {
    let old = changed(|j| {
        for merge in j["model"]["merges"].as_array_mut().unwrap() {
            *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
        }
    })
    .unwrap();
    let text = "Priya has 24 candles.\n\nThen she loses 7.";
    assert!(old.is_native());
    assert_eq!(old.encode(text, SpecialMode::Plain).unwrap(), NANO.native.encode(text, SpecialMode::Plain).unwrap());
}

/// What the native encoder does not know goes to `tokenizers`, and keeps this crate's promises.
#[test]
fn other_byte_level_tokenizers_go_to_the_tokenizers_crate() {
    type Change = fn(&mut Value);
    let kinds: [(&str, Change); 7] = [
        ("GPT-2's pattern", |j| {
            j["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
        }),
        ("another pattern", |j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\p{N}{1,3}|\\s+|[^\\s\\p{N}]+")),
        ("NFKC", |j| j["normalizer"] = json!({"type": "NFKC"})),
        ("ignore_merges", |j| j["model"]["ignore_merges"] = json!(true)),
        ("added tokens with rules", |j| j["added_tokens"][0]["lstrip"] = json!(true)),
        ("trimmed offsets", |j| {
            j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = json!("Removed");
            j["pre_tokenizer"]["pretokenizers"][0]["invert"] = json!(true);
            j["post_processor"] = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        }),
        ("truncation", |j| {
            j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\p{L}+|\\P{L}+");
            j["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        }),
    ];
    for (name, change) in kinds {
        let tokenizer = changed(change).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!tokenizer.is_native(), "{name}");
        let text = "Hello world, 12 x<|im_end|> it's";
        let ids = tokenizer.encode(text, SpecialMode::Plain).unwrap();
        assert_eq!(tokenizer.decode(&ids, true), text, "{name}");
        assert!(ids.iter().all(|i| tokenizer.added_token(*i).is_none()), "{name}");
        let tokens = tokenizer.encode_tokens(text, SpecialMode::Parse).unwrap();
        let end = tokenizer.added_token_id("<|im_end|>").unwrap();
        let at = tokens.ids.iter().position(|i| *i == end).unwrap();
        assert_eq!(tokens.starts[at] as usize, text.find("<|im_end|>").unwrap(), "{name}");
        // Offsets are of the first byte, spaces included.
        let mut rebuilt = String::new();
        for (i, start) in tokens.starts.iter().enumerate() {
            let stop = tokens.starts.get(i + 1).map_or(text.len(), |s| *s as usize);
            rebuilt.push_str(&text[*start as usize..stop]);
        }
        assert_eq!(rebuilt, text, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Whatever is done to a file, loading gives a tokenizer or an error, and a tokenizer encodes.
    #[test]
    fn damaged_files_do_no_harm(damage in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![
        any::<u8>(), prop::sample::select(b"0123456789\"[]{},:\\ntrue-".to_vec())
    ]), 1..6), cut in prop::option::of(any::<prop::sample::Index>())) {
        let mut bytes = std::fs::read(nano().join("model/tokenizer.json")).unwrap();
        // Damage to the head of the file (added tokens, pre-tokenizer) matters most; half goes there.
        for (i, (at, byte)) in damage.iter().enumerate() {
            let n = if i % 2 == 0 { bytes.len().min(6_000) } else { bytes.len() };
            bytes[at.index(n)] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()).max(bytes.len() / 2));
        }
        if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes, None, None) {
            let text = "it's 12 é\n <|im_end|> \u{301}x";
            if let Ok(ids) = tokenizer.encode(text, SpecialMode::Parse) {
                tokenizer.decode(&ids, false);
            }
        }
    }

    /// As above, but the file stays JSON: any part of it, outside of the long lists too, becomes something else.
    #[test]
    fn strange_files_do_no_harm(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4)) {
        let values = [
            Value::Null, json!(true), json!(false), json!(-1), json!(0), json!(7), json!(2535), json!(1e300), json!(4_294_967_295u32), json!(""), json!("x"), json!("Ġ"),
            json!("ByteLevel"), json!("NFC"), json!("Sequence"), json!("("), json!("(?<=a+)b"), json!([]), json!({}), json!([["a", "b"]]), json!(["a"]),
            json!({"Regex": "\\p{L}+"}), json!({"String": " "}), json!({"type": "Sequence", "normalizers": []}), json!({"type": "BPE"}),
        ];
        let mut json = nano_json();
        // A short model, so that changes hit all of its parts.
        json["model"]["merges"].as_array_mut().unwrap().truncate(40);
        for (at, value) in &changes {
            let mut paths = Vec::new();
            pointers(&json, String::new(), &mut paths);
            let path = at.get(&paths);
            *json.pointer_mut(path).unwrap() = value.get(&values).clone();
        }
        if let Ok(tokenizer) = load(&json) {
            for mode in [SpecialMode::Plain, SpecialMode::Parse] {
                if let Ok(ids) = tokenizer.encode("it's 12 é\n <|im_end|> \u{301}x", mode) {
                    tokenizer.decode(&ids, false);
                    tokenizer.decode_pieces(&ids);
                }
            }
        }
    }
}

/// Paths of all parts of a JSON value; of long lists and maps, every 97th entry.
fn pointers(value: &Value, path: String, out: &mut Vec<String>) {
    let step = |n: usize| if n > 100 { 97 } else { 1 };
    match value {
        Value::Object(map) => {
            for (key, v) in map.iter().step_by(step(map.len())) {
                pointers(v, format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), out);
            }
        }
        Value::Array(list) => {
            for (i, v) in list.iter().enumerate().step_by(step(list.len())) {
                pointers(v, format!("{path}/{i}"), out);
            }
        }
        _ => {}
    }
    out.push(path);
}
