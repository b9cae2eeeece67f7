use trainer_plugin_sdk::{Answer, Finish, Item, Metric, Plan, Request, Response, Value};

use crate::{BoxedAnswer, Settings, last_boxed};

fn metric(settings: &str) -> BoxedAnswer {
    let settings: Settings = serde_json::from_str(settings).unwrap();
    BoxedAnswer::new(settings).unwrap()
}

fn answer(text: &str, raw: &str) -> Answer {
    Answer {
        raw: raw.to_owned(),
        text: text.to_owned(),
        reasoning: String::new(),
        calls: Vec::new(),
        malformed: Vec::new(),
        finish: Finish::Stop,
    }
}

fn item(expected: &str, response: Response) -> Item {
    Item { row: format!("{{\"problem\": \"p\", \"expected_answer\": {expected}}}"), response }
}

fn right(settings: &str, expected: &str, text: &str) -> bool {
    let scores = metric(settings).score(&item(&format!("{expected:?}"), Response::Answers(vec![answer(text, text)])));
    assert_eq!(scores[0].name, "correct");
    scores[0].value == Value::Boolean(true)
}

#[test]
fn the_last_balanced_box_counts() {
    for (text, boxed) in [
        ("so \\boxed{14}.", Some("14")),
        ("\\boxed{1} then \\boxed{2}", Some("2")),
        ("\\boxed{\\frac{1}{2}}", Some("\\frac{1}{2}")),
        ("\\boxed{\\{1, 2\\}}", Some("\\{1, 2\\}")),
        ("\\boxed{1} then \\boxed{2", Some("1")),
        ("\\boxed{}", Some("")),
        ("\\boxed{日本}", Some("日本")),
        ("boxed{1}", None),
        ("", None),
    ] {
        assert_eq!(last_boxed(text), boxed, "{text}");
    }
}

#[test]
fn comparison_is_exact_unless_asked_otherwise() {
    assert!(right("{}", "14", "\\boxed{ 14 }"));
    assert!(!right("{}", "14", "14"));
    assert!(!right("{}", "1234", "\\boxed{1,234}"));
    let latex = r#"{"normalize": "latex"}"#;
    for (expected, found) in [
        ("1234", "1,234"),
        ("1234567", "1,234,567"),
        ("3,12", "3, 12"),
        ("$5$", "5"),
        ("\\frac12", "\\dfrac12"),
        ("(1,2)", "\\left(1,\\,2\\right)"),
        ("5cm", "5\\text{ cm}"),
    ] {
        assert!(right(latex, expected, &format!("\\boxed{{{found}}}")), "{expected} {found}");
    }
    assert!(!right(latex, "312", "\\boxed{3, 12}"));
}

#[test]
fn rows_become_questions_or_are_bad() {
    let m = metric("{}");
    let Plan::Ask(Request::Generate(question)) = m.prepare(r#"{"problem": "p", "expected_answer": 14}"#).unwrap() else { panic!() };
    assert_eq!((question.conversation.messages.len(), question.enable_thinking, question.repeats), (1, None, 1));
    for (row, pointer) in [
        (r#"{"expected_answer": "1"}"#, "/problem"),
        (r#"{"problem": "p"}"#, "/expected_answer"),
        (r#"{"problem": "p", "expected_answer": [1]}"#, "/expected_answer"),
    ] {
        assert_eq!(m.prepare(row).unwrap_err().pointer.to_string(), pointer);
    }
}

#[test]
fn failures_count_as_wrong() {
    let m = metric("{}");
    let samples = [
        m.score(&item("14", Response::Answers(vec![answer("no box", "think \\boxed{14}")]))),
        m.score(&item("\"14\"", Response::Answers(vec![answer("\\boxed{15}", "")]))),
        m.score(&item("\"14\"", Response::Failed("too long".to_owned()))),
        m.score(&item("\"14\"", Response::Answers(vec![answer("nothing", "")]))),
    ];
    assert_eq!(samples[0][0].value, Value::Boolean(true));
    assert_eq!(samples[1][0].explanation, "expected 14, found 15");
    assert_eq!((&samples[2][0].value, samples[2][0].explanation.as_str()), (&Value::Unscored, "too long"));
    assert_eq!(samples[3][0].explanation, "expected 14, found no \\boxed{}");
    let sums = m.aggregate(&samples).unwrap();
    assert_eq!((sums[0].name.as_str(), sums[0].value, sums[0].higher_is_better), ("accuracy", 0.25, Some(true)));
    assert_eq!(sums[0].stderr, Some((0.25f64 * 0.75 / 4.0).sqrt()));
    assert_eq!((sums[1].name.as_str(), sums[1].value), ("boxed_rate", 0.5));
    assert!(m.aggregate(&[]).is_err());
}
