//! Asks the question of each row and looks whether the answer contains what is expected.

use serde::Deserialize;
use trainer_plugin_sdk::{
    Aggregate, Conversation, Generation, Item, Message, Metric, Plan, Pointer, Request, Response, RowError, Score, Value, plugin,
};

/// What a recipe can set: keep it in step with settings.json.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Whether `A` and `a` are the same.
    ignore_case: bool,
}

struct Contains {
    settings: Settings,
}

fn column(row: &str, name: &str) -> Result<String, RowError> {
    let row: serde_json::Value = serde_json::from_str(row).unwrap_or_default();
    let Some(row) = row.as_object() else { return Err(RowError::new(Pointer::root(), "the row is no JSON object")) };
    match row.get(name).and_then(|value| value.as_str()) {
        Some(text) => Ok(text.to_owned()),
        None => Err(RowError::new(Pointer::root().at(name), "a string is needed")),
    }
}

impl Metric for Contains {
    type Settings = Settings;

    /// Called once before anything else. An error stops the run before it starts.
    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    /// Raise it when scores change: reports compare only under the same version.
    fn scoring_version(&self) -> String {
        "1".to_owned()
    }

    /// What to ask of the model for a row.
    fn prepare(&self, row: &str) -> Result<Plan, RowError> {
        let question = column(row, "question")?;
        column(row, "expected")?;
        Ok(Plan::Ask(Request::Generate(Generation {
            conversation: Conversation::of([Message::user(question)]),
            enable_thinking: None,
            repeats: 1,
            max_new_tokens: None,
            stop: Vec::new(),
        })))
    }

    /// The scores of one row with the model's answer.
    fn score(&self, item: &Item) -> Vec<Score> {
        let (value, explanation) = match (&item.response, column(&item.row, "expected")) {
            (Response::Answers(answers), Ok(expected)) if !answers.is_empty() => {
                let text = &answers[0].text;
                let found = if self.settings.ignore_case {
                    text.to_ascii_lowercase().contains(&expected.to_ascii_lowercase())
                } else {
                    text.contains(&expected)
                };
                let verdict = if found { "is in the answer" } else { "is not in the answer" };
                (Value::Boolean(found), format!("\"{expected}\" {verdict}"))
            }
            (Response::Failed(words), _) => (Value::Unscored, words.clone()),
            (Response::Answers(answers), Err(_)) if !answers.is_empty() => (Value::Unscored, "the row has no string `expected`".to_owned()),
            _ => (Value::Unscored, "there is no answer".to_owned()),
        };
        vec![Score { name: "contains".to_owned(), value, explanation }]
    }

    /// Sums up all samples.
    fn aggregate(&self, samples: &[Vec<Score>]) -> Result<Vec<Aggregate>, String> {
        let scored = samples.iter().flatten().filter(|score| score.name == "contains").filter_map(|score| match score.value {
            Value::Boolean(yes) => Some(f64::from(u8::from(yes))),
            _ => None,
        });
        let scored: Vec<f64> = scored.collect();
        if scored.is_empty() {
            return Ok(Vec::new());
        }
        let n = scored.len() as f64;
        let p = scored.iter().sum::<f64>() / n;
        Ok(vec![Aggregate {
            name: "accuracy".to_owned(),
            value: p,
            stderr: Some((p * (1.0 - p) / n).sqrt()),
            higher_is_better: Some(true),
        }])
    }
}

plugin! { metric: Contains, }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_samples_there_is_no_accuracy() {
        let plugin = Contains::new(Settings::default()).unwrap();
        assert!(plugin.aggregate(&[]).unwrap().is_empty());
    }
}
