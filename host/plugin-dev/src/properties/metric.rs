//! Metrics: pure functions of rows and answers.

use std::sync::Arc;

use trainer_plugin_host::metric::{Answer, Finish, Item, Plan, Request, Response};
use trainer_plugin_host::{Metric, Plugin};

use super::{Checked, Inputs, brief, hostile_rows, same};

pub(super) fn check(plugin: &Arc<Plugin>, inputs: &Inputs<'_>) -> Vec<(&'static str, Checked)> {
    let rows = inputs.rows("prepare");
    let each = |run: &dyn Fn(&Metric) -> Checked| -> Checked {
        for settings in inputs.settings() {
            let Ok(metric) = plugin.metric(&settings) else { continue };
            run(&metric).map_err(|e| format!("under settings {settings}: {e}"))?;
        }
        Ok(())
    };
    let prepared = |metric: &Metric, rows: &[String]| -> Checked {
        let plans = metric.prepare(rows).map_err(|e| e.to_string())?;
        let failed = plans.iter().zip(rows).find_map(|(plan, row)| plan.as_ref().err().map(|e| format!("{}: {e}", brief(row))));
        failed.map_or(Ok(()), Err)
    };
    vec![
        ("the fixtures hold rows to try", if rows.is_empty() { Err("no fixture calls `prepare`".to_owned()) } else { Ok(()) }),
        ("every plan passes the host's checks", each(&|metric| prepared(metric, &rows))),
        ("a broken row is bad or skipped, and no trap", each(&|metric| prepared(metric, &hostile_rows(&rows)))),
        (
            "no answer traps: empty, long, strange, failed, or none",
            each(&|metric| {
                let items = items(metric, &rows)?;
                let scores = metric.score(&items).map_err(|e| e.to_string())?;
                let failed = scores.iter().zip(&items).find_map(|(score, item)| {
                    score.as_ref().err().map(|e| format!("{} with {}: {e}", brief(&item.row), brief(&format!("{:?}", item.response))))
                });
                failed.map_or(Ok(()), Err)
            }),
        ),
        (
            "an item scores the same in a batch, alone and again",
            each(&|metric| {
                let items = items(metric, &rows)?;
                let names: Vec<String> = items.iter().map(|i| i.row.clone()).collect();
                let together = metric.score(&items).map_err(|e| e.to_string())?;
                let mut alone = Vec::with_capacity(items.len());
                for item in &items {
                    alone.extend(metric.score(std::slice::from_ref(item)).map_err(|e| e.to_string())?);
                }
                same("in a batch and alone", &together, &alone, &names)
            }),
        ),
        (
            "all scores can be summed up, and so can none",
            each(&|metric| {
                let scores: Vec<_> = metric.score(&items(metric, &rows)?).map_err(|e| e.to_string())?.into_iter().flatten().collect();
                metric.aggregate(&scores).map_err(|e| format!("of {} samples: {e}", scores.len()))?;
                match metric.aggregate(&[]) {
                    Err(error) if error.costs_the_row() => Err(format!("of no sample: {error}")),
                    // To refuse nothing at all is a metric's right.
                    _ => Ok(()),
                }
            }),
        ),
        (
            "the version of the scoring is fixed",
            each(&|metric| {
                let versions = [metric.scoring_version(), metric.scoring_version()].map(|v| v.map_err(|e| e.to_string()));
                let [first, second] = versions;
                if first? == second? { Ok(()) } else { Err("two calls of scoring-version differ".to_owned()) }
            }),
        ),
    ]
}

/// Each row with answers as models give them.
fn items(metric: &Metric, rows: &[String]) -> Result<Vec<Item>, String> {
    let plans = metric.prepare(rows).map_err(|e| e.to_string())?;
    let mut items = Vec::new();
    for (row, plan) in rows.iter().zip(plans) {
        let Ok(Plan::Ask(request)) = plan else { continue };
        let mut push = |response| items.push(Item { row: row.clone(), response });
        push(Response::Failed("the tool trapped".to_owned()));
        match request {
            Request::Generate(generation) => {
                let repeats = generation.repeats as usize;
                let texts = ["", "42", "\\boxed{42}", "\u{0}\u{feff} \u{10ffff} }{ \\boxed{", row];
                for text in texts.into_iter().chain([&*"x ".repeat(10_000)]) {
                    push(Response::Answers(vec![answer(text); repeats]));
                }
            }
            Request::LogLikelihood(likelihood) => {
                let n = likelihood.continuations.len();
                push(Response::LogLikelihoods(vec![(-3.5, 4, true); n]));
                push(Response::LogLikelihoods(vec![(0.0, 0, false); n]));
            }
        }
    }
    Ok(items)
}

fn answer(text: &str) -> Answer {
    Answer {
        raw: text.to_owned(),
        text: text.to_owned(),
        reasoning: String::new(),
        calls: Vec::new(),
        malformed: Vec::new(),
        finish: Finish::Stop,
        tokens: None,
    }
}
