//! `trainer selftest`

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;
use trainer_config::Device;
use trainer_kernels::ops::Ops;
use trainer_kernels_cuda::selftest::{Comparison, GROUPS as KERNELS, Options};
use trainer_runtime::{Backend, DeviceInfo, open_device, with_ops};
use trainer_selftest::{Check, GROUPS as REFERENCE, Measure};

use crate::cli::SelftestArgs;
use crate::output::{check_json, json_on_stdout, put, write_json};

/// The result as JSON.
#[derive(Serialize)]
struct Outcome {
    trainer: &'static str,
    /// What was checked.
    device: DeviceInfo,
    /// Its own description.
    backend: String,
    seed: u64,
    /// Kernels against the CPU.
    kernels: Vec<Comparison>,
    /// The engine against the reference data.
    reference: Vec<Check>,
    compared: usize,
    failed: usize,
    pass: bool,
}

/// Runs the command; exit code 1 if a comparison fails.
pub fn run(args: &SelftestArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let (reference, kernels): (Vec<String>, Vec<String>) = args.groups.iter().cloned().partition(|g| g.starts_with("ref-"));
    let known = |g: &&String| KERNELS.contains(&g.as_str()) || REFERENCE.contains(&g.as_str());
    if let Some(unknown) = args.groups.iter().find(|g| !known(g)) {
        bail!("there are no checks called {unknown}; kernels: {}; reference data: {}", KERNELS.join(", "), REFERENCE.join(", "));
    }
    if !reference.is_empty() && args.reference.is_none() {
        bail!("{} needs a folder of reference data: --reference DIR", reference.join(", "));
    }
    let mut more = vec![("device.backend", super::toml_string(&args.device))];
    more.extend(args.threads.map(|n| ("device.threads", n.to_string())));
    let device: Device = super::recipe_with(&[], &more)?.device;
    let open = open_device(&device)?;
    let quiet = json_on_stdout(args.json.as_deref());
    let backend = with_ops!(&open.backend, ops => ops.describe());
    if !quiet {
        say!("{backend} on {}", open.info.name);
    }
    // Groups of one kind alone leave out the other kind.
    let (some_kernels, some_reference) = (!kernels.is_empty(), !reference.is_empty());
    let compared = if some_kernels || !some_reference { check_kernels(&open.backend, &kernels, args, quiet)? } else { None };
    let checked = match &args.reference {
        Some(folder) if some_reference || !some_kernels => {
            with_ops!(&open.backend, ops => trainer_selftest::run(ops.clone(), folder, &reference, &mut |c| {
                if !quiet {
                    show(c);
                }
            }))?
        }
        _ => Vec::new(),
    };
    if compared.is_none() && args.reference.is_none() {
        bail!("the CPU is what kernels are compared with; to check it and the engine, give the reference data: --reference DIR");
    }
    let compared = compared.unwrap_or_default();
    let failed = compared.iter().filter(|c| !c.pass).count() + checked.iter().filter(|c| !c.pass).count();
    let outcome = Outcome {
        trainer: env!("CARGO_PKG_VERSION"),
        device: open.info,
        backend,
        seed: args.seed,
        compared: compared.len() + checked.len(),
        kernels: compared,
        reference: checked,
        failed,
        pass: failed == 0,
    };
    if let Some(target) = &args.json {
        write_json(target, &outcome)?;
    }
    if !quiet {
        say!("{} comparisons, {failed} failed", outcome.compared);
    }
    Ok(if outcome.pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every kernel against the CPU; none on the CPU itself.
fn check_kernels(backend: &Backend, groups: &[String], args: &SelftestArgs, quiet: bool) -> Result<Option<Vec<Comparison>>> {
    let how = Options { seed: args.seed, quick: args.quick };
    match backend {
        Backend::Cpu(_) if groups.is_empty() => Ok(None),
        Backend::Cpu(_) => bail!("{} are checks of a card's kernels: --device cuda", groups.join(", ")),
        Backend::Cuda(cuda) => Ok(Some(trainer_kernels_cuda::selftest::run(cuda.device(), groups, how, &mut |c| {
            if !quiet {
                show_kernel(c);
            }
        })?)),
    }
}

fn verdict(pass: bool) -> &'static str {
    if pass { "ok  " } else { "FAIL" }
}

fn show_kernel(c: &Comparison) {
    let verdict = verdict(c.pass);
    put(format_args!("{verdict} {:28} {:32} relative {:.2e} of {:.0e}, max {:.2e}\n", c.kernel, c.shape, c.relative, c.tolerance, c.max));
}

fn show(c: &Check) {
    let measure = match c.measure {
        Measure::Largest => "largest",
        Measure::Relative => "relative",
        Measure::RelativeNorm => "norm",
        Measure::Count => "count",
        Measure::Share => "share",
        Measure::Margin => "margin",
    };
    put(format_args!("{} {:14} {:72} {measure:8} {:.2e} of {:.0e}\n", verdict(c.pass), c.group, c.name, c.error, c.tolerance));
}
