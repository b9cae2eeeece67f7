//! The command line.

#[macro_use]
mod output;
mod cli;
mod clock;
mod commands;
mod tracking;
mod ui;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, DataCommand, LogFormat};

fn main() -> ExitCode {
    // The first look fixes the process's start.
    let _ = clock::since_start();
    let cli = Cli::parse();
    // The compiler child speaks to its parent only; it sets its own limits before it does anything else.
    if let Command::CompileComponent { args } = cli.command {
        return trainer_plugin_host::compile_main(args);
    }
    if matches!(cli.command, Command::PluginProcess) {
        return trainer_plugin_host::process_main();
    }
    if let Command::RenderTemplate { args } = cli.command {
        return trainer_jinja::render_main(&args);
    }
    log(cli.verbose, cli.log_format);
    let json_lines = cli.log_format == LogFormat::Json;
    if json_lines {
        output::tell_as_log_lines();
    }
    trainer_runtime::watch_downloads(Box::new(ui::Transfer::new(json_lines)));
    let result = match cli.command {
        Command::Run(args) => commands::run::run(args, json_lines),
        Command::Eval(args) => commands::eval::run(args),
        Command::Generate(args) => commands::generate::run(args),
        Command::Chat(args) => commands::chat::run(args),
        Command::Serve(args) => commands::serve::run(args),
        Command::Model(command) => commands::model::run(command),
        Command::Export(command) => commands::export::run(command),
        Command::Hub(command) => commands::hub::run(command),
        Command::Plugin(command) => commands::plugin::run(command),
        Command::Bench(args) => commands::bench::run(args),
        Command::Doctor { json } => commands::doctor::run(json.as_deref()),
        Command::Selftest(args) => commands::selftest::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Data(DataCommand::Stat(args)) => commands::data::stat::run(&args),
        Command::Data(DataCommand::Prepare(args)) => commands::data::prepare::run(&args),
        Command::Data(DataCommand::Pull(args)) => commands::data::pull::run(&args),
        Command::Data(DataCommand::Clean(args)) => commands::data::clean::run(&args),
        Command::Preview(args) => commands::preview::run(&args),
        Command::Runs(command) => commands::runs::run(command),
        Command::Report { run, out } => commands::runs::report(&run, out.as_deref()),
        Command::Dashboard(args) => commands::runs::dashboard(args),
        Command::Completions { shell } => commands::help::completions(shell),
        Command::Man { out } => commands::help::man(&out),
        Command::CompileComponent { .. } | Command::PluginProcess | Command::RenderTemplate { .. } => Ok(ExitCode::SUCCESS),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            note!("error: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, except those that the text so far says already.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Log lines go to standard error: warnings, or what -v and TRAINER_LOG ask for; as JSON, a run's progress too.
fn log(verbose: u8, look: LogFormat) {
    let default = match (verbose, look) {
        (0, LogFormat::Text) => "warn",
        (0, LogFormat::Json) => "warn,progress=info",
        (1, _) => "info",
        (2, _) => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("TRAINER_LOG").unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let format = tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_writer(std::io::stderr);
    match look {
        LogFormat::Text => format.with_ansi(std::io::stderr().is_terminal() && ui::colors()).with_target(false).without_time().init(),
        LogFormat::Json => format.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
}
