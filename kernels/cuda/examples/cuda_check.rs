//! Checks kernels against the CPU reference: what `trainer selftest` runs, in a program that builds in seconds.
//!
//!     cuda_check [--seed N] [--json FILE] [--portable] [--quick] [GROUP...]
//!
//! Prints a line per comparison; fails if one does. Kernels are those inside the program (`TRAINER_CUBINS` at build time); what is not there is
//! compiled by NVRTC, found as [`trainer_kernels_cuda::nvrtc::Nvrtc::load`] says.

use std::error::Error;
use trainer_kernels_cuda::archive::Archive;
use trainer_kernels_cuda::code::Code;
use trainer_kernels_cuda::device::Device;
use trainer_kernels_cuda::selftest::{self, Options};

fn main() {
    match run() {
        Ok(true) => {}
        Ok(false) => std::process::exit(1),
        Err(e) => {
            eprintln!("cuda_check: {e}");
            std::process::exit(2);
        }
    }
}

fn run() -> Result<bool, Box<dyn Error>> {
    let (mut file, mut options, mut portable, mut groups) = (None, Options { seed: 1, quick: false }, false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--portable" => portable = true,
            "--quick" => options.quick = true,
            "--json" => file = args.next(),
            "--seed" => options.seed = args.next().ok_or("--seed needs a number")?.parse()?,
            group if selftest::GROUPS.contains(&group) => groups.push(group.to_owned()),
            other => return Err(format!("there is no group {other}; there are {}", selftest::GROUPS.join(", ")).into()),
        }
    }
    let start = std::time::Instant::now();
    let mut device = Device::open(0, &Code::with(Archive::embedded()?, None))?;
    device.use_portable_kernels(portable);
    println!("kernels for {} loaded in {:.0} ms", device.arch().name(), start.elapsed().as_secs_f64() * 1e3);
    let rows = selftest::run(&device, &groups, options, &mut |c| {
        let verdict = if c.pass { "ok  " } else { "FAIL" };
        println!("{verdict} {:28} {:32} relative {:.2e} max {:.2e}", c.kernel, c.shape, c.relative, c.max);
    })?;
    if let Some(file) = file {
        std::fs::write(file, serde_json::to_string_pretty(&rows)?)?;
    }
    let failed = rows.iter().filter(|r| !r.pass).count();
    println!("{} comparisons, {failed} failed", rows.len());
    Ok(failed == 0)
}
