//! Kind `dataset-formatter`.

use std::sync::Arc;

use serde_json::Value;
use wasmtime::Store;

use crate::bindings::formatter::{Plugin as World, exports::trainer::dataset_formatter::formatter::Outcome};
use crate::call::{Load, State, place};
use crate::check::{Check, Path};
use crate::error::PluginError;
use crate::host::Plugin;
use crate::instance::{Configure, Guest, Pool, bindings, bounded};
use crate::kind::Kind;
use crate::types::Conversation;

const FORMAT: &str = "trainer:dataset-formatter/formatter@0.1.0#format";

bindings!(formatter, Kind::DatasetFormatter);

impl Configure for World {
    const CONFIGURE: &'static str = "trainer:dataset-formatter/formatter@0.1.0#configure";

    fn configure(&self, store: &mut Store<State>, settings: &str) -> wasmtime::Result<Result<(), String>> {
        self.trainer_dataset_formatter_formatter().call_configure(store, &settings.to_owned())
    }
}

/// What became of a row.
#[derive(Debug, Clone)]
pub enum RowOutcome {
    /// A sample.
    Sample(Conversation),
    /// The row is fine but not wanted, for this reason.
    Skip(String),
    /// The row is broken.
    Bad {
        /// JSON Pointer to the offending value; empty for the row itself.
        pointer: String,
        /// What is wrong with it.
        message: String,
    },
    /// The formatter trapped, ran into a limit or returned a bad value on this row.
    Trapped(PluginError),
}

/// A formatter under its settings. Made by [`Plugin::formatter`]; shared between threads.
pub struct Formatter {
    pool: Pool<World>,
}

impl Plugin {
    /// This plugin as a dataset formatter.
    ///
    /// # Errors
    /// If it is none, the settings do not fit its schema, or it refuses them.
    pub fn formatter(self: &Arc<Self>, settings: &Value) -> Result<Formatter, PluginError> {
        Ok(Formatter { pool: Pool::new(self, settings)? })
    }
}

impl Formatter {
    /// Formats rows, each one JSON object with the source's columns. One outcome per row, in order.
    ///
    /// # Errors
    /// Only what stops a run: a deadline, or an instance that cannot be made. What goes wrong with a row is that row's outcome.
    pub fn format(&self, rows: &[String]) -> Result<Vec<RowOutcome>, PluginError> {
        let outcomes = self.pool.isolated(rows, |guest, rows| self.call(guest, rows))?;
        Ok(outcomes.into_iter().map(|o| o.unwrap_or_else(RowOutcome::Trapped)).collect())
    }

    /// The plugin.
    pub fn plugin(&self) -> &Arc<Plugin> {
        self.pool.plugin()
    }

    /// All that decides what it answers: component, manifest, contract versions, limits, grants and settings. For caches of its answers.
    pub fn identity(&self) -> Value {
        self.pool.identity()
    }

    fn call(&self, guest: &mut Guest<World>, rows: &[String]) -> Result<Vec<RowOutcome>, PluginError> {
        let load = Load { rows: rows.len(), bytes: rows.iter().map(String::len).sum() };
        let outcomes = guest.call(FORMAT, load, |b, store| b.trainer_dataset_formatter_formatter().call_format(store, rows))?;
        let plugin = self.plugin();
        let at = place(plugin.manifest(), FORMAT);
        let check = Check { at: &at, limits: plugin.limits() };
        let root = Path::Root("outcomes");
        check.count(root, outcomes.len(), rows.len())?;
        outcomes
            .into_iter()
            .enumerate()
            .map(|(i, outcome)| {
                Ok(match outcome {
                    Outcome::Sample(conversation) => {
                        check.conversation(root.index(i), &conversation)?;
                        RowOutcome::Sample(conversation)
                    }
                    Outcome::Skip(reason) => RowOutcome::Skip(bounded(&reason)),
                    Outcome::Bad(bad) => {
                        check.pointer(root.index(i).field("pointer"), &bad.pointer)?;
                        RowOutcome::Bad { pointer: bounded(&bad.pointer), message: bounded(&bad.message) }
                    }
                })
            })
            .collect()
    }
}
