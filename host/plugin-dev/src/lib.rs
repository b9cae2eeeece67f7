//! The plugin author's loop: `trainer plugin new`, `build`, `test`, `run`, `bench` and `doc`, for every language.
//!
//! A project is a folder with a `plugin.toml` ([`Project`]). [`scaffold`] makes one, [`build`](mod@build) turns it into a component by the
//! language's own tools, [`fixtures`] and [`properties`] test the component, [`bench`](mod@bench) measures it, [`contract`] shows what a
//! kind asks of it.

pub mod bench;
pub mod build;
pub mod contract;
mod error;
pub mod fixtures;
pub mod language;
mod project;
pub mod properties;
pub mod run;
pub mod scaffold;

pub use error::Error;
pub use language::Language;
pub use project::{PROJECT_FILE, Project};
