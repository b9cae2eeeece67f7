//! `trainer plugin keys` and `trainer plugin sign`

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use trainer_plugin_store::KeyInfo;
use trainer_runtime::plugin_manager;

use crate::output::{check_json, json_on_stdout, write_json};

/// The largest file of a key.
const MAX_TEXT: u64 = 64 << 10;

pub const KEYS_EXAMPLES: &str = "\
Examples:
  trainer plugin keys generate me
  trainer plugin keys trust alice RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3
  trainer plugin keys trust bob bob.pub";

pub const SIGN_EXAMPLES: &str = "\
Example:
  trainer plugin sign my_mix.wasm --key me       # as `minisign -S -m my_mix.wasm` does";

/// `trainer plugin keys`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key pair to sign with. The rights of its file protect the secret key; for one with a password, use the program minisign, and trust its public key.
    Generate {
        /// Your name for it.
        name: String,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Trust the signatures of a key from now on.
    Trust {
        /// Your name for it.
        name: String,
        /// The public key, or a file that holds it.
        key: String,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// The trusted keys.
    List {
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
    /// Trust a key no longer. The secret key goes too, if it is yours.
    Remove {
        /// Its name.
        name: String,
        /// As one JSON object: to a file, or to standard output (alone or with -).
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
    },
}

/// `trainer plugin sign`
#[derive(Debug, Args)]
pub struct SignArgs {
    /// The component file.
    pub file: PathBuf,
    /// The key. It needs not be named where you have just one.
    #[arg(long, value_name = "NAME")]
    pub key: Option<String>,
    /// As one JSON object: to a file, or to standard output (alone or with -).
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub json: Option<PathBuf>,
}

fn read_text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).and_then(|f| f.take(MAX_TEXT).read_to_string(&mut text));
    file.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// `trainer plugin sign`
pub fn sign(args: &SignArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let manager = plugin_manager()?;
    let own: Vec<String> = manager.keys.list()?.into_iter().filter(|k| k.own).map(|k| k.name).collect();
    let key = match (&args.key, own.as_slice()) {
        (Some(key), _) => key.clone(),
        (None, [one]) => one.clone(),
        (None, []) => bail!("you have no key to sign with; `trainer plugin keys generate NAME` makes one"),
        (None, several) => bail!("say which key to sign with: --key {}", several.join(" or --key ")),
    };
    let signature = manager.sign(&args.file, &key)?;
    if !json_on_stdout(args.json.as_deref()) {
        say!("signed {} with {key}: {}", args.file.display(), signature.display());
    }
    if let Some(target) = &args.json {
        write_json(target, &json!({ "file": args.file, "key": key, "signature": signature }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `trainer plugin keys`
pub fn run(command: KeysCommand) -> Result<ExitCode> {
    let keys = &plugin_manager()?.keys;
    match command {
        KeysCommand::Generate { name, json } => {
            check_json(json.as_deref())?;
            let key = keys.generate(&name)?;
            show(&key, json.as_deref(), || {
                say!("made the key {} ({})", key.name, key.id);
                say!("  secret   {}", keys.secret_path(&key.name).display());
                say!("  public   {}", key.key);
                say!("others trust it by: trainer plugin keys trust {} {}", key.name, key.key);
            })
        }
        KeysCommand::Trust { name, key, json } => {
            check_json(json.as_deref())?;
            let text = if Path::new(&key).is_file() { read_text(Path::new(&key))? } else { key };
            let key = keys.trust(&name, &text)?;
            show(&key, json.as_deref(), || say!("signatures by {} ({}) are trusted from now on", key.name, key.id))
        }
        KeysCommand::List { json } => {
            check_json(json.as_deref())?;
            let all = keys.list()?;
            match &json {
                Some(target) => write_json(target, &json!({ "keys": all }))?,
                None => all.iter().for_each(|k| say!("{:<16} {}  {}{}", k.name, k.id, k.key, if k.own { "  yours" } else { "" })),
            }
            Ok(ExitCode::SUCCESS)
        }
        KeysCommand::Remove { name, json } => {
            check_json(json.as_deref())?;
            keys.remove(&name)?;
            match &json {
                Some(target) => write_json(target, &json!({ "removed": name }))?,
                None => say!("removed {name}; what it signed and is installed stays, and `trainer plugin audit` says so"),
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn show(key: &KeyInfo, json: Option<&Path>, text: impl FnOnce()) -> Result<ExitCode> {
    if !json_on_stdout(json) {
        text();
    }
    if let Some(target) = json {
        write_json(target, key)?;
    }
    Ok(ExitCode::SUCCESS)
}
