//! Compiles every kernel for every architecture into one archive, which a build with `TRAINER_CUBINS=FILE` puts inside the program.
//!
//!     pack_cubins FILE [ARCHITECTURE...]
//!
//! Architectures such as `sm_90a` make a smaller archive for some cards alone, quicker; none: all.
//! NVRTC is found as [`trainer_kernels_cuda::nvrtc::Nvrtc::load`] says; no card is needed. The same sources and compiler give the same bytes.

use std::error::Error;
use trainer_kernels_cuda::archive::{Archive, compile_all, pack};
use trainer_kernels_cuda::compile::Arch;
use trainer_kernels_cuda::nvrtc::Nvrtc;

fn main() {
    if let Err(e) = run() {
        eprintln!("pack_cubins: {e}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let file = args.next().ok_or("usage: pack_cubins FILE [ARCHITECTURE...]")?;
    let mut wanted = Vec::new();
    for name in args {
        wanted.push(Arch::ALL.into_iter().find(|a| name == a.name()).ok_or_else(|| format!("no architecture {}", name.display()))?);
    }
    if wanted.is_empty() {
        wanted.extend(Arch::ALL);
    }
    let nvrtc = Nvrtc::load()?;
    let cubins = compile_all(&nvrtc, &wanted)?;
    let bytes = pack(&cubins)?;
    let archive = Archive::read(bytes.clone())?;
    if archive.serves() != Arch::ALL.into_iter().filter(|a| wanted.contains(a)).collect::<Vec<_>>() {
        return Err("the archive does not hold what was packed".into());
    }
    for arch in wanted {
        let unpacked = archive.unpack(arch)?;
        let of: Vec<_> = cubins.iter().filter(|c| c.arch == arch).collect();
        let whole: usize = of.iter().map(|c| c.code.len()).sum();
        let all = trainer_kernels_cuda::compile::SOURCES.iter().filter(|s| s.serves(arch)).all(|s| unpacked.get(s).is_some());
        if !all {
            return Err(format!("the archive does not hold every cubin for {}", arch.name()).into());
        }
        println!("{:8} {} files, {whole} bytes", arch.name(), of.len());
    }
    std::fs::write(&file, &bytes)?;
    let (major, minor) = nvrtc.version();
    println!("{}: {} bytes, by NVRTC {major}.{minor}", file.to_string_lossy(), bytes.len());
    Ok(())
}
