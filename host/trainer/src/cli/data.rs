//! `trainer preview`, `trainer data`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::RecipeArgs;
use crate::commands::model::pull::HubArg;

const PREPARE_EXAMPLES: &str = "\
Examples:
  trainer data prepare recipe.toml
  trainer run recipe.toml                             uses it; --set data.cache=off does not
  trainer run recipe.toml --set data.cache=prepare    prepares what is missing and runs";

const CLEAN_EXAMPLES: &str = "\
Examples:
  trainer data clean --dry-run           lists what there is
  trainer data clean                     removes what no run can use any more
  trainer data clean --older-than 30d    and what was not used for a month";

const PULL_EXAMPLES: &str = "\
Examples:
  trainer data pull hf://datasets/unsloth/OpenMathReasoning-mini?split=cot
  trainer data pull mlabonne/FineTome-100k --revision main";

/// `trainer data pull`
#[derive(Debug, Args)]
pub struct DataPullArgs {
    /// The data set: org/name, hf://datasets/org/name?split=NAME or ms://datasets/org/name, as a recipe names it.
    pub id: String,
    /// The hub, where the name does not say it.
    #[arg(long, value_name = "HUB", value_enum, default_value_t)]
    pub hub: HubArg,
    /// A branch, a tag or a commit. Absent: the main branch.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// The split. Absent: train, or the only one there is.
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// The configuration, of data sets that have several.
    #[arg(long, value_name = "NAME")]
    pub config: Option<String>,
    /// All files of the repository, whatever they are.
    #[arg(long, conflicts_with_all = ["split", "config"])]
    pub all: bool,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer preview`
#[derive(Debug, Args)]
pub struct PreviewArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// How many rows, in the order in which the run draws them.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub rows: u64,
    /// Only rows of this source.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Only this row, numbered as in errors: the line of a text file or the row of a table, from 1; FILE:ROW where the source has several files.
    #[arg(long, value_name = "ROW")]
    pub row: Option<String>,
    /// As one page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer data`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Go through all rows and count: lengths, targets, what is left out and why, duplicates, and the mix as it will be drawn.
    Stat(DataStatArgs),
    /// Format, render and tokenize all rows once and keep the result on disk, so that runs need not. Results stay the same.
    #[command(after_help = PREPARE_EXAMPLES)]
    Prepare(DataPrepareArgs),
    /// Fetch a split of a data set of a hub into the cache, where recipes and the hub's own Python package find it.
    #[command(after_help = PULL_EXAMPLES)]
    Pull(DataPullArgs),
    /// Remove prepared data: what no run can use any more, or more with --older-than and --all.
    #[command(after_help = CLEAN_EXAMPLES)]
    Clean(DataCleanArgs),
}

/// `trainer data prepare`
#[derive(Debug, Args)]
pub struct DataPrepareArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer data clean`
#[derive(Debug, Args)]
pub struct DataCleanArgs {
    /// Also what was last used longer ago than this, such as 30d, 12h or 90m.
    #[arg(long, value_name = "TIME", value_parser = crate::commands::data::clean::age)]
    pub older_than: Option<std::time::Duration>,
    /// Everything.
    #[arg(long, conflicts_with = "older_than")]
    pub all: bool,
    /// Only list: what there is, and what would be removed.
    #[arg(long)]
    pub dry_run: bool,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// `trainer data stat`
#[derive(Debug, Args)]
pub struct DataStatArgs {
    /// The recipe, a TOML file. Absent: the defaults.
    pub recipe: Option<PathBuf>,
    /// The flags over it.
    #[command(flatten)]
    pub over: RecipeArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}
