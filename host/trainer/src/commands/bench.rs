//! `trainer bench`: the figures of docs/src/benchmarks.md, measured on this machine.

mod breakdown;
mod data;
mod decode;
mod figure;
#[cfg(feature = "native-plugins")]
mod native;
mod plugins;
mod scale;
mod synthetic;
mod train;

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Result, bail};
use serde::Serialize;
use trainer_kernels::ops::Ops;
use trainer_runtime::{DeviceInfo, DeviceKind, Machine, open_device, with_ops};
use trainer_train::rundir::utc;

use crate::cli::BenchArgs;
use crate::output::{check_json, json_on_stdout, write_json};
use figure::Figure;

/// What can be measured, in the order in which it is.
const PARTS: [&str; 4] = ["train", "decode", "data", "plugins"];

/// The result as JSON.
#[derive(Serialize)]
struct Bench {
    /// The trainer's version.
    trainer: &'static str,
    /// UTC.
    date: String,
    machine: Machine,
    /// What computed.
    device: DeviceInfo,
    /// The backend's own description.
    backend: String,
    threads: usize,
    /// The load average over one minute before anything was measured: figures taken on a busy machine say so.
    load_before: Option<f64>,
    figures: Vec<Figure>,
}

/// Runs the command.
pub fn run(args: BenchArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    if let Some(unknown) = args.parts.iter().find(|p| !PARTS.contains(&p.as_str())) {
        bail!("there is nothing called {unknown} to measure; say some of {}, or nothing for all", PARTS.join(", "));
    }
    if let Some(shape) = &args.shape {
        return synthetic::run(&args, shape);
    }
    if args.rows.is_some() && !args.parts.iter().any(|p| p == "data") {
        bail!("--rows belongs to the data path: trainer bench data --rows N");
    }
    let load_before = load();
    let mut place = Place { device: args.device.device.clone(), threads: args.device.threads };
    let open = open_device(&super::recipe_with(&[], &place.settings())?.device)?;
    let (threads, info) = (open.threads, open.info);
    let backend = with_ops!(open.backend, ops => ops.describe());
    place.threads = Some(threads);
    let quiet = json_on_stdout(args.json.as_deref());
    if !quiet {
        say!("{backend}, {threads} threads, load {}", load_before.map_or_else(|| "unknown".to_owned(), |l| format!("{l:.2}")));
    }
    let mut figures = Vec::new();
    for part in PARTS.into_iter().filter(|p| args.parts.is_empty() || args.parts.iter().any(|wanted| wanted == p)) {
        let measured = match part {
            "train" => train::measure(&place, info.kind == DeviceKind::Cpu && threads > 1)?,
            "decode" => decode::measure(&place)?,
            "data" => match args.rows {
                Some(rows) => scale::measure(rows, args.times, args.tokenizer.as_deref(), threads)?,
                None => data::measure()?,
            },
            _ => plugins::measure(args.times)?,
        };
        if !quiet {
            say!("\n{part}");
            for figure in &measured {
                say!("  {figure}");
            }
        }
        figures.extend(measured);
    }
    if let Some(target) = &args.json {
        let bench = Bench {
            trainer: env!("CARGO_PKG_VERSION"),
            date: utc(SystemTime::now()),
            machine: Machine::this(),
            device: info,
            backend,
            threads,
            load_before,
            figures,
        };
        write_json(target, &bench)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Where to measure.
#[derive(Clone, Debug)]
struct Place {
    device: Option<String>,
    threads: Option<usize>,
}

impl Place {
    /// The settings over the default recipe that this means.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let device = self.device.as_deref().map(|d| ("device.backend", super::toml_string(d)));
        device.into_iter().chain(self.threads.map(|n| ("device.threads", n.to_string()))).collect()
    }
}

/// The load average over one minute, where the system tells.
fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}
