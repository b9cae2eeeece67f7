//! Formatters: pure functions of a row.

use std::sync::Arc;

use serde_json::Value;
use trainer_plugin_host::formatter::RowOutcome;
use trainer_plugin_host::{Formatter, Plugin};

use super::{Checked, Inputs, brief, hostile_rows, same};

pub(super) fn check(plugin: &Arc<Plugin>, inputs: &Inputs<'_>) -> Vec<(&'static str, Checked)> {
    let rows = inputs.rows("format");
    let each = |run: &dyn Fn(&Formatter, &Value) -> Checked| -> Checked {
        for settings in inputs.settings() {
            // `{}` may lack what the schema requires; the fixtures then say what fits.
            let Ok(formatter) = plugin.formatter(&settings) else { continue };
            run(&formatter, &settings).map_err(|e| format!("under settings {settings}: {e}"))?;
        }
        Ok(())
    };
    let none_traps = |formatter: &Formatter, rows: &[String]| -> Checked {
        let outcomes = formatter.format(rows).map_err(|e| e.to_string())?;
        let trapped = outcomes.iter().zip(rows).find_map(|(outcome, row)| match outcome {
            RowOutcome::Trapped(error) => Some(format!("{}: {error}", brief(row))),
            _ => None,
        });
        trapped.map_or(Ok(()), Err)
    };
    vec![
        ("the fixtures hold rows to try", if rows.is_empty() { Err("no fixture calls `format`".to_owned()) } else { Ok(()) }),
        ("every conversation passes the host's checks", each(&|formatter, _| none_traps(formatter, &rows))),
        ("a broken row is bad or skipped, and no trap", each(&|formatter, _| none_traps(formatter, &hostile_rows(&rows)))),
        (
            "a row gives the same in a batch and alone",
            each(&|formatter, _| {
                let together = formatter.format(&rows).map_err(|e| e.to_string())?;
                let mut alone = Vec::with_capacity(rows.len());
                for row in &rows {
                    alone.extend(formatter.format(std::slice::from_ref(row)).map_err(|e| e.to_string())?);
                }
                same("in a batch and alone", &together, &alone, &rows)
            }),
        ),
        (
            "a row gives the same again, in another instance and another order",
            each(&|formatter, settings| {
                let other = plugin.formatter(settings).map_err(|e| e.to_string())?;
                let backwards: Vec<String> = rows.iter().rev().cloned().collect();
                let first = formatter.format(&rows).map_err(|e| e.to_string())?;
                let mut second = other.format(&backwards).map_err(|e| e.to_string())?;
                second.reverse();
                same("the first and the second time", &first, &second, &rows)
            }),
        ),
    ]
}
