//! Rows of OpenMathReasoning: a problem and a generated solution, whose reasoning stands in `<think>` tags. The solution becomes the
//! assistant's content as it stands: splitting off the reasoning is the chat template's business.

use trainer_plugin_sdk::{Conversation, Formatter, Message, Object, Outcome, RowError};

use crate::Settings;

/// The formatter.
pub struct OpenMathReasoning {
    settings: Settings,
}

impl Formatter for OpenMathReasoning {
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.problem_column == settings.solution_column {
            return Err(format!("problem_column and solution_column are both {:?}", settings.problem_column));
        }
        Ok(Self { settings })
    }

    fn format(&self, row: &str) -> Result<Outcome, RowError> {
        let Settings { problem_column, solution_column, skip_empty, .. } = &self.settings;
        let row = Object::row(row, &[problem_column, solution_column])?;
        let problem = row.string(problem_column)?;
        let solution = row.string(solution_column)?;
        for (text, reason) in [(&problem, "empty problem"), (&solution, "empty solution")] {
            if *skip_empty && text.trim().is_empty() {
                return Ok(Outcome::Skip(reason.to_owned()));
            }
        }
        Ok(Outcome::Sample(Conversation::of([Message::user(problem), Message::assistant(solution)])))
    }
}
