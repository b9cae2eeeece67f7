//! `trainer plugin add`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use trainer_plugin_store::{AddOptions, Added, Change, Digest, Reference};
use trainer_runtime::plugin_manager;

use super::store::{PinArgs, TakeArgs, signed, titled};
use crate::output::{check_json, json_on_stdout, write_json};

pub const ADD_EXAMPLES: &str = "\
Examples:
  trainer plugin add target/my_mix.wasm
  trainer plugin add https://example.com/my_mix.wasm#sha256=HEX
  trainer plugin add oci://ghcr.io/me/my_mix:1.0.0 --project
  trainer plugin add                                          # everything that plugins.lock pins";

/// `trainer plugin add`
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Places: files, https://HOST/PATH (#sha256=HEX after it fixes the content), oci://HOST/REPOSITORY:TAG. None: what plugins.lock pins.
    #[arg(value_name = "PLACE")]
    pub places: Vec<String>,
    /// The SHA-256 that the component must have.
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<Digest>,
    #[command(flatten)]
    pub take: TakeArgs,
    #[command(flatten)]
    pub pin: PinArgs,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &AddArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let manager = plugin_manager()?;
    let pins = args.pin.file();
    let options = args.take.options();
    let quiet = json_on_stdout(args.json.as_deref());
    let mut all = Vec::new();
    match (args.places.as_slice(), &pins) {
        ([], None) => {
            bail!("there is nothing to add: say from where, or name a file of pins with --lock-file (there is no plugins.lock here)")
        }
        ([], Some(_)) if args.sha256.is_some() => bail!("--sha256 goes with one place"),
        ([], Some(pins)) => all = manager.add_pinned(&options, pins)?,
        (places, pins) => {
            if places.len() > 1 && args.sha256.is_some() {
                bail!("--sha256 goes with one place; write #sha256=HEX after addresses");
            }
            // Read before anything is installed.
            let places = places.iter().map(|p| Reference::parse(p)).collect::<Result<Vec<_>, _>>()?;
            for (reference, fixed) in places {
                if let (Some(a), Some(b)) = (&fixed, &args.sha256)
                    && a != b
                {
                    bail!("the address says {a}, and --sha256 {b}");
                }
                let sha256 = fixed.or_else(|| args.sha256.clone());
                let added = manager.add(&reference, &AddOptions { sha256, ..options.clone() }, pins.as_deref())?;
                if !quiet {
                    show(&added);
                }
                all.push(added);
            }
        }
    }
    if args.places.is_empty() && !quiet {
        all.iter().for_each(show);
    }
    if let Some(target) = &args.json {
        write_json(target, &json!({ "plugins": all }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells what an addition came to.
pub fn show(added: &Added) {
    let what = match added.change {
        Change::Added => "added",
        Change::Updated => "updated",
        Change::Unchanged => "unchanged",
    };
    say!("{what} {}", titled(&added.name, &added.entry));
    details(added);
}

/// What is to know about an installed plugin.
pub fn details(added: &Added) {
    say!("  from     {}", added.entry.reference);
    say!("  sha256   {}", added.entry.digest.hex());
    say!("  kinds    {}", added.entry.kinds.join(", "));
    say!("  signer   {}", signed(&added.entry, added.signed_by.as_deref()));
    if !added.needs.is_empty() {
        say!("  needs    {}", added.needs.join(", "));
        for (i, flag) in added.grant_with.iter().enumerate() {
            say!("  {:<8} {flag}", if i == 0 { "grant" } else { "" });
        }
    }
    if let Some(file) = &added.pinned_in {
        say!("  pinned   in {}", file.display());
    }
}
