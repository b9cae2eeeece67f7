//! `trainer plugin run`: calls from the shell.

use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use trainer_plugin_dev::run as calls;
use trainer_plugin_host::Limits;

use super::json_argument;
use crate::cli::PluginRunArgs;
use crate::output::{check_json, write_json};

/// `trainer plugin run`
pub fn run(args: &PluginRunArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let settings = json_argument("--settings", &args.settings)?;
    let (plugin, about) = super::usable(&args.plugin)?;
    let plugin = super::host()?.load_with(&plugin.source(), Limits::default(), super::grants(&args.grants, &about.name)?)?;
    if plugin.digest() != about.digest {
        bail!("{} changed just now; try again", args.plugin);
    }
    let Some(first) = args.call.first() else {
        let mut listed = Vec::new();
        for kind in plugin.kinds().iter().map(|k| k.kind).filter(|kind| args.kind.is_none_or(|k| k == *kind)) {
            for function in plugin.caller(kind, &settings)?.functions() {
                listed.push(json!({ "kind": kind, "signature": function.signature() }));
            }
        }
        if let Some(target) = &args.json {
            write_json(target, &json!({ "functions": listed }))?;
        } else {
            listed.iter().for_each(|f| say!("{}: {}", text(&f["kind"]), text(&f["signature"])));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut caller = calls::caller(&plugin, args.kind, first, &settings)?;
    let mut results = Vec::new();
    if let Some(path) = &args.input {
        let name = path.display().to_string();
        let mut input: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(stdin().lock())
        } else {
            Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {name}"))?))
        };
        if args.call.len() > 1 {
            bail!("--input goes with one --call");
        }
        let keep = args.json.is_some();
        calls::rows(&mut caller, first, &mut *input, &name, &mut |result| {
            if keep {
                results.push(result)
            } else {
                say!("{result}")
            }
            Ok(())
        })?;
    } else {
        for (i, function) in args.call.iter().enumerate() {
            let arguments = args.args.get(i).map_or(Ok(Value::Array(Vec::new())), |text| json_argument("--args", text))?;
            let Value::Array(arguments) = arguments else {
                bail!("--args is one JSON array with the arguments of a call, and not {arguments}")
            };
            let result = caller.call(function, &arguments)?;
            if args.json.is_some() { results.push(result) } else { say!("{result}") }
        }
    }
    if let Some(target) = &args.json {
        write_json(target, &json!({ "results": results }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
