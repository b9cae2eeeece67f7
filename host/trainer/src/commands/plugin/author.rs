//! `trainer plugin new`, `build` and `test`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;
use trainer_plugin_dev::{Project, build as builder, fixtures, properties, scaffold};
use trainer_plugin_host::{Limits, PluginSource};

use crate::cli::{PluginBuildArgs, PluginNewArgs, PluginTestArgs};
use crate::output::{check_json, write_json};
use crate::ui::{bytes, count};

/// `trainer plugin new`
pub fn new(args: &PluginNewArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let folder = args.path.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    let files = scaffold::create(&folder, &args.name, args.kind, args.lang)?;
    if let Some(target) = &args.json {
        write_json(target, &json!({ "folder": folder, "files": files }))?;
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}: a {} in {}, {} files", folder.display(), scaffold::kind_name(args.kind), args.lang, files.len());
    say!("next: cd {} && trainer plugin build && trainer plugin test", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// `trainer plugin build`
pub fn build(args: &PluginBuildArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let project = Project::open(&args.project)?;
    let built = builder::build(&project, trainer_runtime::plugin_build_dir().as_deref())?;
    if let Some(target) = &args.json {
        write_json(target, &json!({ "component": built.path, "seconds": built.took.as_secs_f64(), "plugin": built.about }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let about = &built.about;
    let kinds = about.kinds.iter().map(|k| format!("{}@{}", k.kind, k.version)).collect::<Vec<_>>().join(", ");
    say!("{}.wasm: {} {}, {kinds}, {}, in {:.1} s", about.name, about.name, about.version, bytes(about.size), built.took.as_secs_f64());
    for import in &about.refused_imports {
        note!("warning: it imports {import}, which no host offers it: it will be refused");
    }
    Ok(ExitCode::SUCCESS)
}

/// `trainer plugin test`
pub fn test(args: &PluginTestArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let started = Instant::now();
    let project = Project::open(&args.project)?;
    let component = project.component();
    if !component.is_file() {
        bail!("{} is not there yet: run `trainer plugin build` first", component.display());
    }
    let grants = super::grants(&args.grants, &project.manifest.name)?;
    let host = super::host()?;
    let plugin = host.load_with(&PluginSource::File(component.clone()), Limits::default(), grants)?;
    if *plugin.manifest() != project.manifest {
        note!("warning: plugin.toml or settings.json have changed since {} was built", component.display());
    }
    let mut cases = fixtures::read(&project.root.join("tests"))?;
    let mut outcomes = Vec::new();
    for (path, fixture) in &mut cases {
        let before = serde_json::to_value(&*fixture)?;
        outcomes.push(fixtures::run(&plugin, path, fixture, args.update)?);
        let after = serde_json::to_value(&*fixture)?;
        if args.update && before != after {
            let mut text = serde_json::to_vec_pretty(&after)?;
            text.push(b'\n');
            trainer_model::durable::write_atomic(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    let cases: Vec<_> = cases.into_iter().map(|(_, fixture)| fixture).collect();
    let kinds = plugin.kinds().iter().map(|k| k.kind);
    let properties: Vec<_> = kinds.flat_map(|kind| properties::check(&plugin, kind, &cases)).collect();
    let failed = outcomes.iter().filter(|o| o.failure.is_some()).count() + properties.iter().filter(|p| p.failure.is_some()).count();
    let seconds = started.elapsed().as_secs_f64();
    if let Some(target) = &args.json {
        write_json(target, &json!({ "passed": failed == 0, "cases": outcomes, "properties": properties, "seconds": seconds }))?;
        return Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    for outcome in &outcomes {
        match &outcome.failure {
            None => say!("ok    {:<14} {} ({})", outcome.name, outcome.about, count_of(outcome.calls, "call")),
            Some(why) => say!("FAIL  {:<14} {}\n      {}", outcome.name, outcome.about, why.replace('\n', "\n      ")),
        }
    }
    for property in &properties {
        match &property.failure {
            None => say!("ok    {:<14} {}", scaffold::kind_name(property.kind), property.name),
            Some(why) => {
                say!("FAIL  {:<14} {}\n      {}", scaffold::kind_name(property.kind), property.name, why.replace('\n', "\n      "))
            }
        }
    }
    let all = count_of(outcomes.len(), "case");
    say!("{all} and {} properties, {failed} failed, in {seconds:.1} s", count(properties.len() as u64));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn count_of(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
