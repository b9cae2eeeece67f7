use proptest::prelude::*;
use trainer_plugin_sdk::{Answer, Finish, Item, Metric, Plan, Request, Response, Value};

use crate::{ExactMatch, Normal, Settings};

fn metric(settings: &str) -> ExactMatch {
    ExactMatch::new(serde_json::from_str::<Settings>(settings).unwrap()).unwrap()
}

fn answer(text: &str) -> Answer {
    Answer {
        raw: text.to_owned(),
        text: text.to_owned(),
        reasoning: String::new(),
        calls: Vec::new(),
        malformed: Vec::new(),
        finish: Finish::Stop,
    }
}

fn right(settings: &str, expected: &str, text: &str) -> bool {
    let item = Item { row: format!(r#"{{"question": "q", "answer": {expected}}}"#), response: Response::Answers(vec![answer(text)]) };
    metric(settings).score(&item)[0].value == Value::Boolean(true)
}

#[test]
fn what_does_not_count_is_said_in_the_settings() {
    for (settings, expected, text, equal) in [
        ("{}", "\"Paris\"", " Paris\n", true),
        ("{}", "\"New  York\"", "New\nYork", true),
        ("{}", "\"Paris\"", "paris", false),
        (r#"{"ignore_whitespace": false}"#, "\"Paris\"", "Paris ", false),
        (r#"{"ignore_case": true}"#, "\"Straße\"", "STRAßE", true),
        (r#"{"ignore_punctuation": true}"#, "\"3.5\"", "35!", true),
        (r#"{"ignore_articles": true}"#, "\"the cat\"", "A cat", true),
        // Articles are words, and a contraction is two of them.
        (r#"{"ignore_articles": true}"#, "\"theatre\"", "atre", false),
        (r#"{"ignore_articles": true, "ignore_case": true, "ignore_punctuation": true}"#, "\"The Eiffel-Tower.\"", "eiffeltower", true),
        ("{}", "14", "14", true),
        ("{}", "1.50", "1.5", false),
        ("{}", "true", "true", true),
        ("{}", "[\"a\", \"b\", 3]", "3", true),
        ("{}", "[\"a\", \"b\", 3]", "c", false),
        (r#"{"after": "=>"}"#, "\"18\"", "9 => 9 + 9\n=> 18", true),
        (r#"{"after": "=>"}"#, "\"18\"", "18", false),
    ] {
        assert_eq!(right(settings, expected, text), equal, "{settings} {expected} {text}");
    }
}

#[test]
fn places_are_json_pointers() {
    let m = metric(r#"{"question": "/data/0/ask", "answer": "/data/1/a~1b"}"#);
    let row = r#"{"data": [{"ask": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, {"a/b": "x"}]}"#;
    let Plan::Ask(Request::Generate(question)) = m.prepare(row).unwrap() else { panic!() };
    assert_eq!(question.conversation.messages.len(), 2);
    for (row, pointer) in [
        (r#"{"data": [{"ask": "q"}]}"#, "/data/1"),
        (r#"{"data": [{"ask": "q"}, {"a/b": null}]}"#, "/data/1/a~1b"),
        (r#"{"data": [{"ask": 3}, {"a/b": "x"}]}"#, "/data/0/ask"),
        (r#"{"data": [{"ask": []}, {"a/b": "x"}]}"#, "/data/0/ask"),
        (r#"{"data": [{"ask": [{"role": "user"}]}, {"a/b": "x"}]}"#, "/data/0/ask/0/content"),
        (r#"{"data": [{"ask": "q"}, {"a/b": {}}]}"#, "/data/1/a~1b"),
        (r#"{"data": [{"ask": "q"}, {"a/b": []}]}"#, "/data/1/a~1b"),
        (r#"{"data": 3}"#, "/data"),
        ("3", ""),
    ] {
        assert_eq!(m.prepare(row).unwrap_err().pointer.to_string(), pointer, "{row}");
    }
    for pointer in ["answer", "", "/a~2"] {
        let settings = Settings { answer: pointer.to_owned(), ..Settings::default() };
        assert!(ExactMatch::new(settings).is_err(), "{pointer}");
    }
}

#[test]
fn failures_count_as_wrong() {
    let m = metric("{}");
    let row = r#"{"question": "q", "answer": "x"}"#.to_owned();
    let samples = [
        m.score(&Item { row: row.clone(), response: Response::Answers(vec![answer("x")]) }),
        m.score(&Item { row: row.clone(), response: Response::Failed("too long".to_owned()) }),
        m.score(&Item { row, response: Response::Answers(vec![answer("x"), answer("y")]) }),
    ];
    assert_eq!((&samples[1][0].value, samples[1][0].explanation.as_str()), (&Value::Unscored, "too long"));
    assert_eq!(samples[2][0].value, Value::Number(0.5));
    assert_eq!(samples[2][0].explanation, "expected x, found x, found y");
    let sums = m.aggregate(&samples).unwrap();
    assert_eq!((sums[0].name.as_str(), sums[0].value), ("accuracy", 0.5));
    assert!(m.aggregate(&[]).is_err());
}

fn normal() -> impl Strategy<Value = Normal> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(case, whitespace, punctuation, articles)| Normal {
        case,
        whitespace,
        punctuation,
        articles,
    })
}

proptest! {
    #[test]
    fn a_second_time_changes_nothing(normal in normal(), text in "([a-zA-Z ]|the|an|[\\PC]){0,12}") {
        let once = normal.apply(&text);
        prop_assert_eq!(normal.apply(&once), once);
    }

    #[test]
    fn what_is_ignored_can_be_added(words in prop::collection::vec("[b-z]{1,5}[0-9]", 1..6), seed in any::<u64>()) {
        let normal = Normal { case: true, whitespace: true, punctuation: true, articles: true };
        let plain = words.join(" ");
        let noisy: Vec<String> = words.iter().enumerate().map(|(i, word)| match (seed >> i) % 4 {
            0 => format!("the {word}"),
            1 => word.to_uppercase(),
            2 => format!("\"{word}\","),
            _ => format!("  {word}\t"),
        }).collect();
        prop_assert_eq!(normal.apply(&plain), normal.apply(&noisy.join(" ")));
    }
}
