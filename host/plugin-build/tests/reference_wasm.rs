//! The reference data through the components that are shipped. `TRAINER_PREBUILT=<folder>` runs the same on rebuilt ones.

mod common;

use common::{plugin, request, text};
use serde_json::{Value, json};
use trainer_plugin_host::formatter::RowOutcome;
use trainer_plugin_host::template::PromptRequest;

#[test]
fn reference_prompts_through_wasm() {
    let plugin = plugin("qwen3_chat");
    let cases = trainer_test_support::jsonl("chat_template/cases.jsonl");
    let requests: Vec<PromptRequest> = cases.iter().map(request).collect();
    for revision in ["qwen3", "qwen3_later", "qwen3_unsloth"] {
        let template = plugin.template(&json!({ "revision": revision })).unwrap();
        let answers = template.render_prompts(&requests).unwrap();
        assert_eq!(answers.len(), cases.len());
        for (case, answer) in cases.iter().zip(answers) {
            let variant = &case["variants"][revision];
            let expected = if variant.is_object() { variant["text"].as_str() } else { case["expected_text"].as_str() };
            match (expected, answer) {
                (Some(expected), Ok(rendered)) => assert_eq!(text(&rendered), expected, "{} {revision}", case["id"]),
                (None, Err(error)) => assert!(error.to_string().contains("message "), "{} {revision}: {error}", case["id"]),
                (expected, answer) => panic!("{} {revision}: expected {expected:?}, got {answer:?}", case["id"]),
            }
        }
    }
}

fn lines(path: &str) -> Vec<String> {
    trainer_test_support::text(path).lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect()
}

/// The training texts of rows, under the template's settings.
fn training(formatter: &str, rows: &[String], settings: &Value) -> Vec<Result<String, String>> {
    let formatter = plugin(formatter).formatter(&json!({})).unwrap();
    let template = plugin("qwen3_chat").template(settings).unwrap();
    let one = |outcome: RowOutcome| match outcome {
        RowOutcome::Sample(conversation) => {
            let samples = template.render_training(&[conversation]).unwrap().remove(0).map_err(|e| e.to_string())?;
            assert_eq!(samples.len(), 1);
            let text = text(&samples[0]);
            // A question without an answer is a row of the data set too, with nothing to learn.
            let answered = text.contains("<|im_start|>assistant\n");
            assert_eq!(samples[0].segments.iter().any(|s| s.generated), answered, "{text}");
            Ok(text)
        }
        other => Err(format!("{other:?}")),
    };
    formatter.format(rows).unwrap().into_iter().map(one).collect()
}

#[test]
fn reference_datasets_give_the_training_texts_through_wasm() {
    for (formatter, rows, expected) in [
        ("math_mix", "dataset/maths.jsonl", "dataset/expected_maths.jsonl"),
        ("sharegpt", "dataset/chat.jsonl", "dataset/expected_chat.jsonl"),
    ] {
        let rows = lines(rows);
        let exact = training(formatter, &rows, &json!({ "form": "exact" }));
        let stable = training(formatter, &rows, &json!({}));
        let expected = trainer_test_support::jsonl(expected);
        assert_eq!(expected.len(), rows.len());
        for golden in expected {
            let (index, golden) = (golden["index"].as_u64().unwrap() as usize, golden["text"].as_str().unwrap());
            assert_eq!(exact[index].as_deref(), Ok(golden), "{formatter} {index}");
            if golden.matches("<|im_start|>assistant\n").count() == 1 {
                assert_eq!(stable[index].as_deref(), Ok(golden), "{formatter} {index}");
            }
        }
    }
}

/// Every dirty row is a sample or a bad row with a place, never a trap; and where peers make a text of it, so is ours.
#[test]
fn reference_dirty_rows_through_wasm() {
    let peers = trainer_test_support::jsonl("dataset/dirty/peer_results.jsonl");
    for (name, file) in [("math_mix", "maths_dirty.jsonl"), ("sharegpt", "chat_dirty.jsonl")] {
        let rows = lines(&format!("dataset/dirty/{file}"));
        let outcomes = plugin(name).formatter(&json!({})).unwrap().format(&rows).unwrap();
        let (mut samples, mut bad) = (0, 0);
        for (i, outcome) in outcomes.iter().enumerate() {
            match outcome {
                RowOutcome::Sample(_) => samples += 1,
                RowOutcome::Bad { pointer, message } => {
                    assert!(!message.is_empty() && (pointer.is_empty() || pointer.starts_with('/')), "{file}:{}", i + 1);
                    bad += 1;
                }
                other => panic!("{file}:{}: {other:?}", i + 1),
            }
        }
        assert!(samples > 0 && bad > 0);
        let texts = training_of_samples(&outcomes);
        for peer in peers.iter().filter(|p| p["file"] == file && p["line"].is_u64() && p["text"].is_string()) {
            let row = peer["line"].as_u64().unwrap() as usize - 1;
            if let Some(Some(text)) = texts.get(row) {
                assert_eq!(text, peer["text"].as_str().unwrap(), "{file}:{} ({})", row + 1, peer["about"]);
            } else {
                panic!("{file}:{}: the peers take this row, we do not: {:?}", row + 1, outcomes[row]);
            }
        }
    }
}

fn training_of_samples(outcomes: &[RowOutcome]) -> Vec<Option<String>> {
    let template = plugin("qwen3_chat").template(&json!({ "form": "exact" })).unwrap();
    let one = |outcome: &RowOutcome| match outcome {
        RowOutcome::Sample(conversation) => {
            let rendered = template.render_training(std::slice::from_ref(conversation)).unwrap().remove(0);
            rendered.ok().map(|samples| text(&samples[0]))
        }
        _ => None,
    };
    outcomes.iter().map(one).collect()
}
