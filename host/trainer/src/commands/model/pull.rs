//! `trainer model pull`: a model of a hub into the cache.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::json;
use trainer_hub::{HubKind, RepoRef, Snapshot, Wanted};
use trainer_runtime::{download_watch, hub};

use crate::output::{check_json, write_json};
use crate::ui::bytes;

pub(super) const PULL_EXAMPLES: &str = "\
Examples:
  trainer model pull Qwen/Qwen3-0.6B
  trainer model pull unsloth/Qwen3-8B-unsloth-bnb-4bit --revision main
  trainer model pull Qwen/Qwen3-0.6B --hub modelscope        the same as ms://Qwen/Qwen3-0.6B
  HF_ENDPOINT=https://mirror.example trainer model pull Qwen/Qwen3-0.6B";

/// Where a repository is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HubArg {
    /// Hugging Face.
    #[default]
    Hf,
    /// ModelScope.
    #[value(alias = "ms")]
    Modelscope,
}

impl From<HubArg> for HubKind {
    fn from(hub: HubArg) -> Self {
        match hub {
            HubArg::Hf => Self::HuggingFace,
            HubArg::Modelscope => Self::ModelScope,
        }
    }
}

/// `trainer model pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The model: org/name, org/name@revision, hf://org/name or ms://org/name.
    pub id: String,
    /// The hub, where the name does not say it.
    #[arg(long, value_name = "HUB", value_enum, default_value_t)]
    pub hub: HubArg,
    /// A branch, a tag or a commit. Absent: the main branch.
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,
    /// All files of the repository, also weights in other formats and subfolders. Absent: what a model needs, and its card.
    #[arg(long)]
    pub all: bool,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &PullArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let mut repo = RepoRef::model(&args.id, args.hub.into())?;
    if let Some(revision) = &args.revision {
        repo = repo.at(revision)?;
    }
    let wanted = if args.all { Wanted::All } else { Wanted::Model };
    let snapshot = hub()?.snapshot(&repo, &wanted, download_watch())?;
    report(&repo, &snapshot, args.json.as_deref())
}

/// Says what was fetched, and where it is.
///
/// # Errors
/// Nowhere to write to.
pub fn report(repo: &RepoRef, snapshot: &Snapshot, json: Option<&Path>) -> Result<ExitCode> {
    if let Some(target) = json {
        let files: Vec<_> = snapshot.files.iter().map(|f| json!({ "path": f.path, "bytes": f.size })).collect();
        let value = json!({
            "hub": snapshot.repo.hub.scheme(),
            "id": snapshot.repo.id,
            "revision": repo.revision_or_main(),
            "commit": snapshot.repo.revision,
            "dir": snapshot.dir,
            "files": files,
            "bytes": snapshot.bytes(),
            "fetched": snapshot.fetched,
        });
        write_json(target, &value)?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}", snapshot.repo);
    let width = snapshot.files.iter().map(|f| f.path.chars().count()).max().unwrap_or(0);
    for file in &snapshot.files {
        say!("  {:width$}  {}", file.path, bytes(file.size));
    }
    say!("{} files, {}, of which {} fetched", snapshot.files.len(), bytes(snapshot.bytes()), bytes(snapshot.fetched));
    say!("{}", snapshot.dir.display());
    Ok(ExitCode::SUCCESS)
}
