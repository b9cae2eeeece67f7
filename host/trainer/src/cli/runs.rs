//! `trainer runs`, `trainer dashboard`

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(super) const RUNS_EXAMPLES: &str = "\
Examples:
  trainer runs list                          the runs below ./runs
  trainer runs compare runs/A runs/B --json
  trainer runs rm runs/A --dry-run";

pub(super) const DASHBOARD_EXAMPLES: &str = "\
Examples:
  trainer dashboard                    the runs below ./runs, at http://127.0.0.1:7860/
  trainer dashboard runs/NAME --port 0 one run, at a free port
  ssh -L 7860:127.0.0.1:7860 gpu-box   from elsewhere, without opening it to a network";

/// `trainer runs`
#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// The runs below a folder, the newest first.
    List {
        /// The folder.
        #[arg(default_value = "runs")]
        dir: PathBuf,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// One run: where it stands, losses, speed, evaluations.
    Show {
        /// The run directory.
        run: PathBuf,
        /// With recipe, lock and sample answers, as one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Runs side by side: what differs in recipe and lock, losses, evaluations.
    Compare {
        /// The run directories.
        #[arg(required = true, num_args = 2.., value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Remove runs with their adapters and checkpoints. One that is running is refused.
    Rm {
        /// The run directories.
        #[arg(required = true, value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

/// `trainer dashboard`
#[derive(Debug, Args)]
pub struct DashboardArgs {
    /// A run directory, or a folder with runs below it.
    #[arg(default_value = "runs")]
    pub dir: PathBuf,
    /// The port; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 7860)]
    pub port: u16,
    /// The address to listen on. Everybody who reaches it can read the runs.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Answer also requests for this name, besides addresses and localhost. May be repeated.
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
}
