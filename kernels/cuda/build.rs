//! Puts the archive of compiled kernels that `TRAINER_CUBINS` names (see `examples/pack_cubins.rs`) into the program; without the variable, nothing.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=TRAINER_CUBINS");
    println!("cargo:rerun-if-changed=build.rs");
    if let Err(e) = place() {
        eprintln!("{e}");
        std::process::exit(1);
    }
}

fn place() -> Result<(), String> {
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from).ok_or("OUT_DIR is not set: build with cargo")?;
    let archive = match std::env::var_os("TRAINER_CUBINS").filter(|v| !v.is_empty()).map(PathBuf::from) {
        Some(path) => {
            if !path.is_absolute() {
                return Err(format!("TRAINER_CUBINS={} must be an absolute path: builds run in other folders", path.display()));
            }
            println!("cargo:rerun-if-changed={}", path.display());
            std::fs::read(&path).map_err(|e| format!("TRAINER_CUBINS={}: {e}", path.display()))?
        }
        None => Vec::new(),
    };
    std::fs::write(out.join("cubins.bin"), archive).map_err(|e| format!("{}: {e}", out.display()))
}
