//! `trainer hub`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use trainer_hub::RepoRef;
use trainer_hub::push::{PushOptions, PushPlan};
use trainer_runtime::{download_watch, hub};

use super::model::pull::HubArg;
use crate::output::{check_json, json_on_stdout, write_json};
use crate::ui::bytes;

const PUSH_EXAMPLES: &str = "\
Examples:
  trainer hub push runs/NAME/adapter me/qwen3-math-lora --dry-run
  HF_TOKEN=... trainer hub push runs/NAME/adapter me/qwen3-math-lora
  trainer hub push out/merged me/qwen3-math --hub modelscope --public";

/// `trainer hub`
#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Send a folder, such as an adapter or a merged model, to a hub. The repository is made if it is not there, private unless --public is said.
    #[command(after_help = PUSH_EXAMPLES)]
    Push(PushArgs),
}

/// `trainer hub push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The folder. What in it begins with a dot stays here.
    pub dir: PathBuf,
    /// The repository: org/name, hf://org/name, ms://org/name or hf://datasets/org/name.
    pub id: String,
    /// The hub, where the name does not say it.
    #[arg(long, value_name = "HUB", value_enum, default_value_t)]
    pub hub: HubArg,
    /// Let everybody see it.
    #[arg(long)]
    pub public: bool,
    /// The commit's message.
    #[arg(long, value_name = "TEXT", default_value = "Upload with trainer")]
    pub message: String,
    /// Only list what would be sent, and where to.
    #[arg(long)]
    pub dry_run: bool,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Runs a command.
pub fn run(command: HubCommand) -> Result<ExitCode> {
    match command {
        HubCommand::Push(args) => push(&args),
    }
}

fn push(args: &PushArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let repo = match args.id.contains("://") {
        true => RepoRef::parse(&args.id)?,
        false => RepoRef::model(&args.id, args.hub.into())?,
    };
    let plan = PushPlan::new(&args.dir, &repo)?;
    let quiet = json_on_stdout(args.json.as_deref());
    if !quiet {
        let width = plan.files.iter().map(|f| f.path.chars().count()).max().unwrap_or(0);
        for file in &plan.files {
            say!("  {:width$}  {}", file.path, bytes(file.size));
        }
        let who = if args.public { "for everybody" } else { "private" };
        let hidden = if plan.hidden > 0 { format!("; {} whose names begin with a dot stay here", plan.hidden) } else { String::new() };
        say!("{} files, {}, to {}, {who}{hidden}", plan.files.len(), bytes(plan.bytes()), plan.repo);
    }
    let files: Vec<_> = plan.files.iter().map(|f| json!({ "path": f.path, "bytes": f.size })).collect();
    let mut value =
        json!({ "repo": plan.repo.to_string(), "public": args.public, "files": files, "bytes": plan.bytes(), "hidden": plan.hidden });
    if !args.dry_run {
        let options = PushOptions { public: args.public, message: args.message.clone() };
        let done = hub()?.push(&plan, &options, download_watch())?;
        if !quiet {
            for path in &done.ignored {
                say!("left out by the repository's .gitignore: {path}");
            }
            let made = if done.created { "made for it, " } else { "" };
            let what = match done.files {
                0 => "nothing has changed".to_owned(),
                n => format!("{n} files in commit {}", done.commit.as_deref().unwrap_or("(the hub does not say)")),
            };
            say!("{}: {made}{what}, {} unchanged, {} sent apart", done.page, done.unchanged, bytes(done.sent));
        }
        value["commit"] = json!(done.commit);
        value["page"] = json!(done.page);
        value["created"] = json!(done.created);
        value["committed"] = json!(done.files);
        value["unchanged"] = json!(done.unchanged);
        value["ignored"] = json!(done.ignored);
        value["sent"] = json!(done.sent);
    }
    if let Some(target) = &args.json {
        write_json(target, &value)?;
    }
    Ok(ExitCode::SUCCESS)
}
