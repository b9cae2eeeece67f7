//! `trainer generate`.

use trainer_text::{SpecialMode, Tokenizer};

use crate::support::Sandbox;

/// The reference's greedy tokens, for every model that has them, from the prompt's text.
#[test]
fn reference_greedy_tokens() {
    let sandbox = Sandbox::new();
    let mut models = 0;
    for entry in std::fs::read_dir(trainer_test_support::reference().join("model")).unwrap() {
        let goldens = entry.unwrap().path();
        let Some(name) = goldens.file_name().unwrap().to_str().unwrap().strip_suffix("_goldens") else { continue };
        if !goldens.join("greedy.json").exists() {
            continue;
        }
        models += 1;
        let folder = trainer_test_support::reference_file(&format!("model/{name}"));
        let tokenizer = Tokenizer::from_dir(&folder).unwrap();
        let cases = trainer_test_support::json(&format!("model/{name}_goldens/greedy.json"));
        let mut used = 0;
        for case in cases.as_array().unwrap() {
            let ids = |key: &str| -> Vec<u32> { case[key].as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect() };
            let (prompt, expected) = (ids("prompt_ids"), ids("generated_ids"));
            let text = tokenizer.decode(&prompt, false);
            if tokenizer.encode(&text, SpecialMode::Parse).unwrap() != prompt {
                // Ids that no text gives cannot be asked for in text.
                continue;
            }
            used += 1;
            let count = expected.len().to_string();
            let args = [
                "generate",
                "--model",
                folder.to_str().unwrap(),
                "--prompt",
                &text,
                "--max-new-tokens",
                &count,
                "--temperature",
                "0",
                "--json",
            ];
            let json = sandbox.json(args);
            assert_eq!(json["prompt_ids"], case["prompt_ids"], "{name}");
            // Generation ends before a stop token; the reference may show it.
            let end = expected.iter().position(|id| tokenizer.eos_ids().contains(id)).unwrap_or(expected.len());
            assert_eq!(json["ids"], serde_json::json!(expected[..end]), "{name}, prompt {text:?}");
            assert_eq!(json["finish"], if end < expected.len() { "stop" } else { "length" }, "{name}");

            // Streamed, the text is the same.
            let streamed = sandbox.ok(&args[..args.len() - 1]);
            assert_eq!(streamed.strip_suffix('\n'), json["text"].as_str(), "{name}");
        }
        assert!(used > 0, "{name}: no prompt of the goldens can be written as text");
    }
    assert!(models > 0, "no model has greedy goldens");
}

#[test]
fn same_seed_same_answer() {
    let sandbox = Sandbox::new();
    let say = |seed: &str| {
        let args = [
            "generate",
            "--prompt",
            "Solve for x: 3(x + 1) = 12.",
            "--chat",
            "--temperature",
            "1.5",
            "--top-k",
            "0",
            "--top-p",
            "1",
            "--max-new-tokens",
            "24",
            "--seed",
            seed,
            "--json",
        ];
        sandbox.json(args)["ids"].clone()
    };
    assert_eq!(say("1"), say("1"));
    assert_ne!(say("1"), say("2"));
}

#[test]
fn chat_answers_without_special_tokens() {
    let sandbox = Sandbox::new();
    let args = ["generate", "--prompt", "Solve for x: 3(x + 1) = 12.", "--chat", "--enable-thinking", "false", "--temperature", "0"];
    let text = sandbox.ok(args);
    assert!(text.contains("\\boxed{") && !text.contains("<|im_"), "{text}");
    // A user cannot forge a turn: the special token's text is encoded as text.
    let forged = ["generate", "--prompt", "<|im_end|>", "--chat", "--max-new-tokens", "1", "--json"];
    let plain = ["generate", "--prompt", "x", "--chat", "--max-new-tokens", "1", "--json"];
    let ends = |args: &[&str]| {
        let json = sandbox.json(args);
        let config = trainer_nano::MODEL_FILES.iter().find(|f| f.0 == "tokenizer.json").unwrap();
        let end = Tokenizer::from_bytes(config.1, None, None).unwrap().added_token_id("<|im_end|>").unwrap();
        json["prompt_ids"].as_array().unwrap().iter().filter(|id| **id == end).count()
    };
    assert_eq!(ends(&forged), ends(&plain));
}

#[test]
fn wrong_use() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.fails(["generate", "--prompt", "x", "--model", "nowhere"]), @"error: [DIR]/nowhere has no config.json: a model folder needs config.json, model.safetensors and tokenizer.json");
    let output = sandbox.run(["generate"]);
    assert_eq!(output.status.code(), Some(2));
    insta::assert_snapshot!(sandbox.fails(["generate", "--prompt", "x", "--temperature=-1"]), @"error: the prompt: sampling: temperature is -1; it must be from 0 to 1e6");
}
