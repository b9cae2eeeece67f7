//! Best steps and early stopping from courses of numbers.

use serde_json::json;

use super::*;

const METRIC: &str = "m/score";

/// A report with one number.
fn report(value: f64, higher: Option<bool>) -> Report {
    let directions = higher.map_or_else(|| json!({}), |h| json!({ METRIC: h }));
    let component = json!({ "name": "x", "sha256": "00" });
    let mut report: Report = serde_json::from_value(json!({
        "metrics": {}, "stderr": { METRIC: 0.01 }, "higher_is_better": directions, "scoring_versions": {}, "rows": {}, "trainer": "0",
        "backend": "b", "model": component, "tokenizer": component, "data": { "path": "p", "files": [] }, "plugins": [],
        "samples": "", "prompt_tokens": 0, "generated_tokens": 0, "seconds": 0.0,
    }))
    .unwrap();
    report.metrics.insert(METRIC.to_owned(), value);
    report
}

fn settings(patience: u64, min_delta: f64, mode: Better) -> Eval {
    let mut eval = Eval::default();
    eval.early_stopping.metric = Some(METRIC.to_owned());
    (eval.early_stopping.patience, eval.early_stopping.min_delta, eval.early_stopping.mode) = (patience, min_delta, mode);
    eval.best.metric = Some(METRIC.to_owned());
    eval.best.mode = mode;
    eval
}

/// The steps that were best when they came, and the step at which the run ends.
fn course(eval: &Eval, higher: Option<bool>, values: &[f64]) -> (Vec<u64>, Option<u64>) {
    let mut history = Vec::new();
    for (step, value) in (1..).zip(values) {
        let line = measured(eval, &history, step, &report(*value, higher), "digest").unwrap();
        let stopped = line.stopped.is_some();
        history.push(line);
        if stopped {
            break;
        }
    }
    let best: Vec<u64> = history.iter().filter(|e| e.best).map(|e| e.step).collect();
    assert_eq!(super::best(eval, &history).map(|b| b.step), best.last().copied());
    (best, history.iter().find(|e| e.stopped.is_some()).map(|e| e.step))
}

#[test]
fn the_run_ends_after_patience_evaluations_without_an_improvement() {
    let up = Some(true);
    assert_eq!(course(&settings(2, 0.0, Better::Auto), up, &[0.1, 0.3, 0.2, 0.3, 0.9]), (vec![1, 2], Some(4)));
    assert_eq!(course(&settings(3, 0.0, Better::Auto), up, &[0.1, 0.3, 0.2, 0.3, 0.9, 0.8, 0.7]), (vec![1, 2, 5], None));
    // Lower is better by the metric's own word, and the other way round by the recipe's.
    assert_eq!(course(&settings(1, 0.0, Better::Auto), Some(false), &[3.0, 2.0, 1.0, 1.5]), (vec![1, 2, 3], Some(4)));
    assert_eq!(course(&settings(1, 0.0, Better::Max), Some(false), &[3.0, 2.0]), (vec![1], Some(2)));
    // Small improvements move the best step, but not the patience.
    assert_eq!(course(&settings(2, 0.05, Better::Min), None, &[1.0, 0.98, 0.96, 0.5]), (vec![1, 2, 3], Some(3)));
}

#[test]
fn what_is_no_number_improves_nothing() {
    assert_eq!(course(&settings(2, 0.0, Better::Max), None, &[f64::NAN, f64::NAN]), (vec![], Some(2)));
    assert_eq!(course(&settings(2, 0.0, Better::Max), None, &[0.5, f64::INFINITY, 0.6, f64::NAN, 0.1]), (vec![1, 3], Some(5)));
}

#[test]
fn reasons_and_mistakes_are_told() {
    let eval = settings(1, 0.0, Better::Auto);
    let first = measured(&eval, &[], 10, &report(0.5, Some(true)), "digest").unwrap();
    let second = measured(&eval, &[first], 20, &report(0.25, Some(true)), "digest").unwrap();
    assert_eq!(second.stopped.as_deref(), Some("m/score was not better than 0.5 (after step 10) in the last evaluation"));
    assert_eq!(second.stderr[METRIC], 0.01);
    insta::assert_snapshot!(check(&eval, &report(0.5, None)).unwrap_err(), @r#"eval.early_stopping.metric = "m/score": the metric does not say whether more is better; set eval.early_stopping.mode to "max" or "min""#);
    let mut other = Eval::default();
    other.best.metric = Some("m/scroe".to_owned());
    insta::assert_snapshot!(check(&other, &report(0.5, None)).unwrap_err(), @r#"eval.best.metric = "m/scroe" is not a number of the evaluation; there are m/score"#);
}
