//! The formatter on the reference rows.

use math_mix::Settings;
use math_mix::formatter::OpenMathReasoning;
use trainer_plugin_sdk::{Content, Formatter, Outcome};

fn format(row: &str) -> Outcome {
    OpenMathReasoning::new(Settings::default()).unwrap().format(row).unwrap_or_else(Into::into)
}

#[test]
fn reference_maths_rows_keep_their_texts() {
    for line in trainer_test_support::text("dataset/maths.jsonl").lines().filter(|l| !l.trim().is_empty()) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let Outcome::Sample(sample) = format(line) else { panic!("{line}") };
        let turns: Vec<(&str, &Content)> = sample.messages.iter().map(|m| (m.role.as_str(), &m.content)).collect();
        let text = |column: &str| Content::Text(row[column].as_str().unwrap().to_owned());
        assert_eq!(turns, [("user", &text("problem")), ("assistant", &text("generated_solution"))]);
    }
}

/// Lines that are JSON: a row is bad exactly where a column is not there as a string, and the pointer says which.
#[test]
fn reference_dirty_rows_each_have_an_outcome() {
    let mut bad = 0;
    for line in trainer_test_support::text("dataset/dirty/maths_dirty.jsonl").lines().filter(|l| !l.trim().is_empty()) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let wrong = ["problem", "generated_solution"].into_iter().find(|c| !row[*c].is_string());
        match (wrong, format(line)) {
            (None, Outcome::Sample(_)) => {}
            (Some(column), Outcome::Bad(error)) => {
                assert_eq!(error.pointer, format!("/{column}"), "{line}");
                assert!(error.message.contains("where a string belongs"), "{}", error.message);
                bad += 1;
            }
            (wrong, outcome) => panic!("{wrong:?}: {outcome:?}"),
        }
    }
    assert!(bad > 0);
}

#[test]
fn rows_and_their_outcomes() {
    let pointer = |row: &str| match format(row) {
        Outcome::Bad(error) => format!("{}: {}", error.pointer, error.message),
        other => panic!("{other:?}"),
    };
    assert_eq!(pointer("[1,2]"), ": a list where an object belongs");
    assert_eq!(pointer("null"), ": null where an object belongs");
    assert_eq!(pointer(r#"{"problem": null}"#), "/problem: null where a string belongs");
    assert_eq!(pointer(r#"{"problem": "p"}"#), "/generated_solution: missing where a string belongs");
    assert!(pointer(r#"{"problem": "\ud800", "generated_solution": "s"}"#).starts_with("/problem: not a string: "));
    assert!(pointer(r#"{"problem": "p", "generated_solution": "s", "x": NaN}"#).starts_with(": not a JSON object: "));
    let Outcome::Sample(sample) = format(r#"{"problem": "first", "problem": "second", "generated_solution": "s"}"#) else { panic!() };
    assert_eq!(sample.messages[0].content, Content::Text("second".to_owned()));
    let skipping = OpenMathReasoning::new(Settings { skip_empty: true, ..Settings::default() }).unwrap();
    assert_eq!(skipping.format(r#"{"problem": " ", "generated_solution": "s"}"#).unwrap(), Outcome::Skip("empty problem".to_owned()));
    assert!(OpenMathReasoning::new(Settings { solution_column: "problem".to_owned(), ..Settings::default() }).is_err());
}
