//! `trainer model`: fetching models, looking at them and converting them.

pub mod args;
mod inspect;
pub mod pull;
mod quantize;
mod template;

use std::process::ExitCode;

use anyhow::Result;
use trainer_config::ModelSource;
use trainer_model::ModelFiles;
use trainer_runtime::model_files;

use args::ModelCommand;

/// Runs the command.
pub fn run(command: ModelCommand) -> Result<ExitCode> {
    match command {
        ModelCommand::Pull(args) => pull::run(&args),
        ModelCommand::Inspect(args) => inspect::run(&args),
        ModelCommand::Quantize(args) => quantize::run(&args),
        ModelCommand::Template(args) => template::run(&args),
    }
}

/// The files of a model as commands name it, by the recipe's own rules; with the name as it was understood.
pub fn named_model(name: &str) -> Result<(ModelFiles, ModelSource)> {
    let source = named(name)?;
    Ok((model_files(&source)?, source))
}

/// A model as commands name it.
fn named(name: &str) -> Result<ModelSource> {
    Ok(super::recipe_with(&[], &[("model.source", super::toml_string(name))])?.model.source)
}
