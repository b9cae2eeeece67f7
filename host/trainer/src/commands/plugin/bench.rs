//! `trainer plugin bench`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use trainer_plugin_dev::bench::{Figures, bench};
use trainer_plugin_dev::fixtures::{self, Fixture, Step};
use trainer_plugin_dev::{PROJECT_FILE, scaffold};
use trainer_plugin_host::{Inspection, Kind};
use trainer_runtime::{PluginArg, compiler_command};

use super::json_argument;
use crate::cli::PluginBenchArgs;
use crate::output::{check_json, write_json};
use crate::ui::{bytes, count};

/// The most rows of an input that are used.
const MAX_ROWS: usize = 10_000;

/// `trainer plugin bench`
pub fn run(args: &PluginBenchArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    if !(args.seconds.is_finite() && (0.01..=3600.0).contains(&args.seconds)) {
        bail!("--seconds is from 0.01 to 3600, and not {}", args.seconds);
    }
    let (plugin, about) = super::usable(&args.plugin)?;
    let fixtures = match (&args.input, &plugin) {
        (Some(input), _) => given(&about, input, &json_argument("--settings", &args.settings)?)?,
        (None, PluginArg::File(path)) => beside(path)?,
        (None, PluginArg::Official(_) | PluginArg::Stored(_)) => Vec::new(),
    };
    let cache = tempfile::tempdir().context("cannot make a folder for compiled code")?;
    let span = Duration::from_secs_f64(args.seconds);
    let figures = bench(&plugin.source(), &about.digest, &compiler_command()?, &fixtures, &cache.path().join("plugins"), span)?;
    match &args.json {
        Some(target) => write_json(target, &figures)?,
        None => show(&figures),
    }
    Ok(ExitCode::SUCCESS)
}

fn show(figures: &Figures) {
    say!("{} {}, {}", figures.name, figures.version, bytes(figures.size));
    say!("  compiled in {:.0} ms, from the cache in {:.2} ms", figures.cold_ms, figures.cached_ms);
    for kind in &figures.kinds {
        let name = scaffold::kind_name(kind.kind);
        say!("  {name}: an instance takes {:.0} us and {} of memory", kind.instance_us, bytes(kind.instance_memory));
        for call in &kind.calls {
            let (each, rate, size) = (call.single_us, count(call.per_second as u64), call.item_bytes);
            let by_name = if call.by_name { "; by name" } else { "" };
            say!("    {:<16} {each:.1} us alone, {rate} a second in calls of {}, {size:.0} bytes each{by_name}", call.call, call.batch);
        }
        if kind.calls.is_empty() {
            say!("    no inputs: give --input ROWS.jsonl, or a component that lies in its project");
        }
    }
    if figures.kinds.iter().flat_map(|k| &k.calls).any(|c| c.by_name) {
        say!(
            "  by name: with arguments and results as values of any type, as `trainer plugin run` calls; runs call with types, which is faster"
        );
    }
}

/// The rows of a file for every function of the plugin that takes rows.
fn given(about: &Inspection, input: &Path, settings: &Value) -> Result<Vec<Fixture>> {
    let file = File::open(input).with_context(|| format!("cannot read {}", input.display()))?;
    let mut rows = Vec::new();
    for (i, line) in BufReader::new(file).lines().take(MAX_ROWS).enumerate() {
        let line = line.with_context(|| format!("cannot read {}:{}", input.display(), i + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        serde_json::from_str::<serde::de::IgnoredAny>(&line)
            .with_context(|| format!("{}:{}: the line is no JSON", input.display(), i + 1))?;
        rows.push(Value::from(line));
    }
    let fixture = |kind: Kind, call: &str| Fixture {
        about: String::new(),
        kind: Some(kind.name().to_owned()),
        settings: settings.clone(),
        calls: vec![Step { call: call.to_owned(), args: vec![Value::Array(rows.clone())], expect: None, error: None }],
    };
    let of = |kind: Kind| match kind {
        Kind::DatasetFormatter => Some(fixture(kind, "format")),
        Kind::EvalMetric => Some(fixture(kind, "prepare")),
        Kind::ChatTemplate | Kind::MixingPolicy | Kind::ToolExecutor => None,
    };
    let fixtures: Vec<Fixture> = about.kinds.iter().filter_map(|k| of(k.kind)).collect();
    if fixtures.is_empty() {
        bail!("--input gives rows, and {} has no function that takes rows; its project's cases serve instead", about.name);
    }
    Ok(fixtures)
}

/// The cases of the project in whose folder a component lies.
fn beside(component: &Path) -> Result<Vec<Fixture>> {
    let folder = component.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.join(PROJECT_FILE).is_file() {
        return Ok(Vec::new());
    }
    Ok(fixtures::read(&folder.join("tests"))?.into_iter().map(|(_, fixture)| fixture).collect())
}
