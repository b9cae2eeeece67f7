//! `trainer plugin push`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use trainer_plugin_store::Reference;
use trainer_runtime::plugin_manager;

use crate::output::{check_json, json_on_stdout, write_json};
use crate::ui::bytes;

pub const PUSH_EXAMPLES: &str = "\
Examples:
  trainer plugin push my_mix.wasm oci://ghcr.io/me/my_mix:1.0.0 --key me
  trainer plugin push my_mix.wasm 127.0.0.1:5000/my_mix:dev";

/// `trainer plugin push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// A component file, or the name of an installed plugin. Its signature, FILE.minisig or the kept one, goes with it.
    pub plugin: String,
    /// Where to: oci://HOST/REPOSITORY:TAG. Credentials are those of `docker login`; on this machine itself, http is spoken.
    #[arg(value_name = "PLACE")]
    pub place: String,
    /// Sign it with this key of yours.
    #[arg(long, value_name = "NAME")]
    pub key: Option<String>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &PushArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let (reference, _) = Reference::parse(&args.place)?;
    let pushed = plugin_manager()?.push(&args.plugin, &reference, args.key.as_deref())?;
    if !json_on_stdout(args.json.as_deref()) {
        say!("pushed {} {} to {}", pushed.name, pushed.version, pushed.reference);
        say!("  sha256   {}", pushed.digest.hex());
        say!("  manifest {}", pushed.manifest);
        say!("  signed   {}", if pushed.signed { "yes" } else { "no" });
        say!("  sent     {}", bytes(pushed.sent));
    }
    if let Some(target) = &args.json {
        write_json(target, &pushed)?;
    }
    Ok(ExitCode::SUCCESS)
}
