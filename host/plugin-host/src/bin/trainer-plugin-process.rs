//! The process of an isolated tool as a program of its own, for tests and embedders. `trainer` has it as a hidden subcommand.

use std::process::ExitCode;

fn main() -> ExitCode {
    trainer_plugin_host::process_main()
}
