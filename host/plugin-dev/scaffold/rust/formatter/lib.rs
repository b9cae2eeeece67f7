//! Turns rows with the columns `question` and `answer` into conversations.

use serde::Deserialize;
use trainer_plugin_sdk::{Conversation, Formatter, Message, Outcome, Pointer, RowError, plugin};

/// What a recipe can set: keep it in step with settings.json.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// A system message before every conversation.
    system: Option<String>,
}

struct Answers {
    settings: Settings,
}

impl Formatter for Answers {
    type Settings = Settings;

    /// Called once before anything else. An error stops the run before it starts.
    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    /// One row to one conversation. An error is a bad row; the pointer says which value is wrong.
    fn format(&self, row: &str) -> Result<Outcome, RowError> {
        let row: serde_json::Value = serde_json::from_str(row).unwrap_or_default();
        let Some(row) = row.as_object() else { return Err(RowError::new(Pointer::root(), "the row is no JSON object")) };
        let column = |name: &str| match row.get(name).and_then(|value| value.as_str()) {
            Some(text) => Ok(text),
            None => Err(RowError::new(Pointer::root().at(name), "a string is needed")),
        };
        let (question, answer) = (column("question")?, column("answer")?);
        if answer.is_empty() {
            // The row is fine but not wanted: counted and reported under this reason.
            return Ok(Outcome::Skip("no answer".to_owned()));
        }
        let mut messages = Vec::new();
        messages.extend(self.settings.system.as_deref().map(Message::system));
        messages.extend([Message::user(question), Message::assistant(answer)]);
        Ok(Outcome::Sample(Conversation::of(messages)))
    }
}

plugin! { formatter: Answers, }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_is_skipped() {
        let plugin = Answers::new(Settings::default()).unwrap();
        assert!(matches!(plugin.format(r#"{"question": "1+1?", "answer": ""}"#), Ok(Outcome::Skip(_))));
    }
}
