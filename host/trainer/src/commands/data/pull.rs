//! `trainer data pull`: a split of a data set of a hub into the cache.

use std::process::ExitCode;

use anyhow::{Result, bail};
use trainer_hub::{RepoRef, Wanted};
use trainer_runtime::{download_watch, hub};

use crate::cli::DataPullArgs;
use crate::commands::model::pull::report;
use crate::output::check_json;

/// Runs the command.
pub fn run(args: &DataPullArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let mut repo = RepoRef::dataset(&args.id, args.hub.into())?;
    if let Some(revision) = &args.revision {
        repo = repo.at(revision)?;
    }
    // The name's own rules hold for what flags say too.
    for (flag, value, slot) in [("split", &args.split, repo.split.is_some()), ("config", &args.config, repo.config.is_some())] {
        if slot && value.is_some() {
            bail!("--{flag} is given, and so is ?{flag}= in the name; leave one of them out");
        }
    }
    for (flag, value) in [("split", &args.split), ("config", &args.config)] {
        if let Some(value) = value {
            let text = repo.to_string();
            repo = RepoRef::parse(&format!("{text}{}{flag}={value}", if text.contains('?') { '&' } else { '?' }))?;
        }
    }
    let snapshot =
        if args.all { hub()?.snapshot(&repo, &Wanted::All, download_watch())? } else { hub()?.data_files(&repo, download_watch())?.1 };
    report(&repo, &snapshot, args.json.as_deref())
}
