use proptest::prelude::*;
use trainer_plugin_sdk::{Content, Item, Metric, Plan, Request, Response, Score, Value};

use crate::{Perplexity, Settings};

fn metric() -> Perplexity {
    Perplexity::new(Settings::default()).unwrap()
}

fn asked(row: &str) -> (usize, String) {
    let Plan::Ask(Request::LogLikelihood(asked)) = metric().prepare(row).unwrap() else { panic!("{row}") };
    assert_eq!(asked.continuations.len(), 1);
    assert!(matches!(asked.conversation.messages[0].content, Content::Text(_)));
    (asked.conversation.messages.len(), asked.continuations[0].clone())
}

fn scores(text: &str, sum: f64, tokens: u32) -> Vec<Score> {
    let row = serde_json::json!({ "prompt": "p", "text": text }).to_string();
    metric().score(&Item { row, response: Response::LogLikelihoods(vec![(sum, tokens, true)]) })
}

#[test]
fn the_text_is_a_column_or_the_last_message() {
    assert_eq!(asked(r#"{"prompt": "p", "text": "t"}"#), (1, "t".to_owned()));
    assert_eq!(asked(r#"{"prompt": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "t"}]}"#), (1, "t".to_owned()));
    assert_eq!(asked(r#"{"prompt": [{"role": "user", "content": "p"}], "text": "t"}"#), (1, "t".to_owned()));
    assert_eq!(metric().prepare(r#"{"prompt": "p", "text": ""}"#).unwrap(), Plan::Skip("the text is empty".to_owned()));
    for (row, pointer) in [
        (r#"{"text": "t"}"#, "/prompt"),
        (r#"{"prompt": "p"}"#, "/text"),
        (r#"{"prompt": [{"role": "user", "content": "p"}]}"#, "/text"),
        (r#"{"prompt": [{"role": "assistant", "content": "p"}]}"#, "/prompt"),
        (r#"{"prompt": [{"role": "user"}], "text": "t"}"#, "/prompt/0/content"),
        (r#"{"prompt": 3, "text": "t"}"#, "/prompt"),
    ] {
        assert_eq!(metric().prepare(row).unwrap_err().pointer.to_string(), pointer, "{row}");
    }
}

#[test]
fn figures_are_over_all_tokens_and_bytes() {
    // Two texts: 4 tokens and 8 bytes in all, of a log-likelihood of -8 ln 2.
    let ln2 = std::f64::consts::LN_2;
    let samples = [scores("aé", -2.0 * ln2, 1), scores("bcdef", -6.0 * ln2, 3), scores("g", f64::NEG_INFINITY, 1)];
    assert!(matches!(samples[2][0].value, Value::Unscored));
    let sums = metric().aggregate(&samples).unwrap();
    let close = |name: &str, value: f64| {
        let sum = sums.iter().find(|a| a.name == name).unwrap();
        assert!((sum.value - value).abs() < 1e-12, "{name} {}", sum.value);
    };
    close("token_perplexity", 4.0);
    close("byte_perplexity", 2.0);
    close("bits_per_byte", 1.0);
    close("greedy_rate", 1.0);
    close("scored_rate", 2.0 / 3.0);
    // Failures have no likelihood, and too unlikely a text has a finite figure.
    let row = r#"{"prompt": "p", "text": "t"}"#.to_owned();
    let failed = metric().score(&Item { row, response: Response::Failed("too long".to_owned()) });
    assert_eq!((&failed[0].value, failed[0].explanation.as_str()), (&Value::Unscored, "too long"));
    assert!(metric().aggregate(&[failed]).is_err());
    assert!(metric().aggregate(&[]).is_err());
    let unlikely = metric().aggregate(&[scores("t", -1e9, 1)]).unwrap();
    assert_eq!(unlikely[0].value, f64::MAX);
}

proptest! {
    /// How texts are cut into samples does not change the figures.
    #[test]
    fn cutting_changes_nothing(parts in prop::collection::vec((-50.0f64..0.0, 1u32..9, 1usize..9), 1..8)) {
        let each: Vec<_> = parts.iter().map(|(sum, tokens, bytes)| scores(&"x".repeat(*bytes), *sum, *tokens)).collect();
        let all = scores(&"x".repeat(parts.iter().map(|p| p.2).sum()), parts.iter().map(|p| p.0).sum(), parts.iter().map(|p| p.1).sum());
        let (each, all) = (metric().aggregate(&each).unwrap(), metric().aggregate(&[all]).unwrap());
        for (a, b) in each.iter().zip(&all) {
            prop_assert!((a.value - b.value).abs() <= 1e-9 * b.value.abs(), "{} {} {}", a.name, a.value, b.value);
        }
    }
}
