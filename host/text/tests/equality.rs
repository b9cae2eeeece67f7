//! The native encoder gives what the `tokenizers` crate gives: ids and offsets, on texts made to hurt.

mod common;

use common::{NANO, Pair, all};
use proptest::prelude::*;
use trainer_text::{SpecialMode, Tokens};

/// Compares ids, and starts brought to character boundaries, in both modes.
fn check(pair: &Pair, text: &str) {
    for mode in [SpecialMode::Plain, SpecialMode::Parse] {
        let Tokens { ids, starts } = pair.native.encode_tokens(text, mode).unwrap();
        let want = pair.general.encode_tokens(text, mode).unwrap();
        assert_eq!(ids, want.ids, "{} {mode:?} {text:?}", pair.name);
        let starts: Vec<u32> = starts.into_iter().map(|s| text.floor_char_boundary(s as usize) as u32).collect();
        assert_eq!(starts, want.starts, "{} {mode:?} starts in {text:?}", pair.name);
        if mode == SpecialMode::Plain {
            assert!(ids.iter().all(|i| pair.native.added_token(*i).is_none()), "{} {text:?} forges a token", pair.name);
        }
    }
}

const FRAGMENTS: &[&str] = &[
    " ",
    "  ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "\u{A0}",
    "\u{2028}",
    "\u{3000}",
    "\u{85}",
    "\u{B}",
    "\u{200B}",
    "\u{FEFF}",
    "\u{200D}",
    "'s",
    "'S",
    "'ſ",
    "'t",
    "'RE",
    "'ve",
    "'ll",
    "'d",
    "'",
    "’s",
    "a",
    "Z",
    "the",
    " the",
    "ing",
    "tion",
    " function",
    "return",
    "0",
    "12",
    "3.14",
    "½",
    "²",
    "Ⅷ",
    "٣",
    "१",
    "é",
    "e\u{301}",
    "a\u{315}\u{300}",
    "\u{301}",
    "\u{344}",
    "\u{1100}\u{1161}\u{11A8}",
    "각",
    "\u{11A8}",
    "क\u{93C}",
    "क्षि",
    "กำ",
    "שָׁ",
    "ﬁ",
    "Å",
    "K",
    "\u{1F1}",
    "ß",
    "İ",
    "ﬀ",
    "你好",
    "，",
    "！",
    "漢",
    "\u{FA19}",
    "日本語",
    "ひらがな",
    "😊",
    "👩‍👩‍👧",
    "🇩🇪",
    "🏽",
    "\u{FE0F}",
    "\u{378}",
    "\u{E000}",
    "\u{F0000}",
    "\u{10FFFF}",
    "\u{FFFD}",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "<|im_",
    "_start|>",
    "<|",
    "|>",
    "<",
    ">",
    "<<|im_end|>>",
    "!",
    "?!",
    "...",
    "--",
    "==",
    "{\"a\": 1}",
    "\\n",
    "/",
    "#",
    "$x^2$",
    "_",
    "`",
    "\0",
    "\u{1}",
    "\u{7F}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenverordnung",
    "                                                                                ",
];

fn nasty() -> impl Strategy<Value = String> {
    let fragment = prop_oneof![
        8 => prop::sample::select(FRAGMENTS).prop_map(str::to_owned),
        2 => any::<char>().prop_map(String::from),
        1 => "[a-zA-Z]{1,12}",
        1 => "\\PC{1,6}",
        1 => prop::collection::vec((0x300u32..0x370).prop_filter_map("a scalar", char::from_u32), 1..4).prop_map(String::from_iter),
    ];
    prop::collection::vec(fragment, 0..24).prop_map(|f| f.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn nasty_texts(text in nasty()) {
        for pair in all() {
            check(pair, &text);
        }
    }

    /// Whatever bytes tokens bring together, streams and pieces agree with the whole, and with `tokenizers`.
    #[test]
    fn any_ids_decode_alike(picks in prop::collection::vec(any::<u32>(), 0..40), skip in any::<bool>()) {
        for pair in all() {
            // One in some ids lies behind the vocabulary.
            let ids: Vec<u32> = picks.iter().map(|p| p % (pair.native.vocab_size() as u32 + 20)).collect();
            let text = pair.native.decode(&ids, skip);
            prop_assert_eq!(&text, &pair.general.decode(&ids, skip));
            let mut stream = pair.native.stream_decoder(skip);
            let mut shown: String = ids.iter().map(|i| stream.push(*i).to_owned()).collect();
            shown.push_str(stream.finish());
            prop_assert_eq!(&shown, &text);
            let pieces: String = pair.native.decode_pieces(&ids).iter().map(|p| p.as_str().to_owned()).collect();
            prop_assert_eq!(pieces, pair.native.decode(&ids, false));
        }
    }
}

/// Decoding is also compared with `tokenizers`' own, without anything of this crate.
#[test]
fn decoding_is_that_of_tokenizers() {
    let json = std::fs::read(common::nano().join("model/tokenizer.json")).unwrap();
    let theirs = tokenizers::Tokenizer::from_bytes(&json).unwrap();
    let n = NANO.native.vocab_size() as u32;
    let mut state = 1u64;
    for _ in 0..2000 {
        let ids: Vec<u32> = (0..12).map(|_| random(&mut state) as u32 % (n + 5)).collect();
        for skip in [false, true] {
            assert_eq!(NANO.native.decode(&ids, skip), theirs.decode(&ids, skip).unwrap(), "{ids:?}");
        }
    }
}

/// SplitMix64: the long loops need no more.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn random_text(state: &mut u64) -> String {
    let mut text = String::new();
    for _ in 0..random(state) % 40 {
        match random(state) % 8 {
            0 => text.extend(char::from_u32(random(state) as u32 % 0x11_0000)),
            1 => text.extend(char::from_u32(0x20 + random(state) as u32 % 0x3000)),
            2 => text.extend(char::from_u32(0x20 + random(state) as u32 % 0x60)),
            _ => text.push_str(FRAGMENTS[random(state) as usize % FRAGMENTS.len()]),
        }
    }
    text
}

fn long_loop(texts: usize) {
    let mut state = 3407;
    for _ in 0..texts {
        let text = random_text(&mut state);
        for pair in all() {
            check(pair, &text);
        }
    }
}

#[test]
fn thousands_of_random_texts() {
    long_loop(4_000);
}

/// A third of a million texts; minutes. `cargo test --release -p trainer-text -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn a_very_long_loop() {
    long_loop(333_000);
}

/// All text of the embedded data.
#[test]
fn rows_of_the_embedded_data() {
    for file in ["math_train.jsonl", "math_test.jsonl", "tools_eval.jsonl"] {
        let text = std::fs::read_to_string(common::nano().join("data").join(file)).unwrap();
        for line in text.lines() {
            for pair in all() {
                let got = pair.native.encode(line, SpecialMode::Plain).unwrap();
                assert_eq!(got, pair.general.encode(line, SpecialMode::Plain).unwrap(), "{} {line}", pair.name);
                assert_eq!(pair.native.decode(&got, false), line);
            }
        }
    }
}

/// One tokenizer serves many threads, whatever they ask first.
#[test]
fn threads_share_a_tokenizer() {
    let mut state = 5;
    let texts: Vec<String> = (0..400).map(|_| random_text(&mut state)).collect();
    for pair in all() {
        let want: Vec<Vec<u32>> = texts.iter().map(|t| pair.general.encode(t, SpecialMode::Parse).unwrap()).collect();
        let json_free_clone = pair.native.clone();
        std::thread::scope(|scope| {
            for offset in 0..4 {
                let (texts, want, tokenizer) = (&texts, &want, &json_free_clone);
                scope.spawn(move || {
                    for i in 0..texts.len() {
                        let i = (i * 7 + offset * 100) % texts.len();
                        assert_eq!(tokenizer.encode(&texts[i], SpecialMode::Parse).unwrap(), want[i]);
                    }
                });
            }
        });
    }
}
