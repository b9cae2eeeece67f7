//! `trainer-plugin-build`: the official plugins' build, their check, and the SDK's bindings.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trainer_plugin_build::{Error, bindings, foreign, official};

#[derive(Parser)]
#[command(name = "trainer-plugin-build", about = "Builds the official plugins into components and checks those that are checked in")]
struct Cli {
    /// The repository.
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../.."), hide_default_value = true)]
    root: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds official plugins into plugins/prebuilt and records what they were built from.
    Build {
        /// Which ones; all without a name.
        names: Vec<String>,
        /// Builds all (the same as naming none).
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Rebuilds all official plugins from a copy of their sources and compares them with plugins/prebuilt.
    Check {
        /// Keeps the rebuilt components in this folder, for the conformance tests of another compiler's bytes.
        #[arg(long)]
        keep: Option<PathBuf>,
    },
    /// Writes the bindings from wit/: those of the SDK, and those of new projects in other languages.
    Bindings {
        /// Only says whether the checked-in ones are those of wit/.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<bool, Error> {
    let root = std::path::absolute(&cli.root).unwrap_or(cli.root);
    match cli.command {
        Command::Build { names, all: _ } => {
            for built in official::build(&root, &names)? {
                println!("{built}");
            }
            Ok(true)
        }
        Command::Check { keep } => {
            let report = official::check(&root, keep.as_deref())?;
            println!("{report}");
            Ok(report.passed())
        }
        Command::Bindings { check } => {
            let wit = root.join("wit");
            let (sdk, scaffold) = (root.join("plugins/sdk/src/bindings"), root.join("host/plugin-dev/scaffold"));
            if check {
                let of_sdk = bindings::generate(&wit)?.into_iter().map(|(name, content)| (sdk.join(name), content));
                let of_scaffold = foreign::generate(&wit)?.into_iter().map(|(name, content)| (scaffold.join(name), content));
                let mut same = true;
                for (path, content) in of_sdk.chain(of_scaffold) {
                    if std::fs::read(&path).ok() != Some(content) {
                        let path = path.display();
                        println!("{path} is not what wit/ gives: run `cargo run --release -p trainer-plugin-build -- bindings`");
                        same = false;
                    }
                }
                return Ok(same);
            }
            for path in bindings::write(&wit, &sdk)?.into_iter().chain(foreign::write(&wit, &scaffold)?) {
                println!("wrote {}", path.display());
            }
            Ok(true)
        }
    }
}
