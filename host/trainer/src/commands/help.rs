//! `trainer completions` and `trainer man`: made from the definitions in `cli.rs`, like the help.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;

/// The whole command line, with what is not for people left out.
fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// Prints a shell's completions.
pub fn completions(shell: Shell) -> Result<ExitCode> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "trainer", &mut out);
    crate::output::put(format_args!("{}", String::from_utf8_lossy(&out)));
    Ok(ExitCode::SUCCESS)
}

/// Writes a man page for each command.
pub fn man(out: &Path) -> Result<ExitCode> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut pages: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    render(&command(), "trainer", &mut pages).context("cannot make the pages")?;
    for (name, page) in &pages {
        let path = out.join(name);
        trainer_model::durable::write_atomic(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    say!("{} pages in {}", pages.len(), out.display());
    Ok(ExitCode::SUCCESS)
}

fn render(command: &Command, name: &str, pages: &mut Vec<(PathBuf, Vec<u8>)>) -> std::io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().display_name(name)).render(&mut page)?;
    pages.push((PathBuf::from(format!("{name}.1")), page));
    for inner in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        render(inner, &format!("{name}-{}", inner.get_name()), pages)?;
    }
    Ok(())
}
