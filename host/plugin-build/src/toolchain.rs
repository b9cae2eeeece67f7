//! Finding a compiler that can make guests.
//!
//! rustup's own compiler serves if its `wasm32-unknown-unknown` target is installed. Where rustup cannot fetch targets, a distribution's
//! compiler with the standard library's sources serves: std is then built once, from those sources, beside the first plugin.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Error;

/// The target of every Rust guest: no operating system, so that a component has no import that its author did not write.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// How guests get their standard library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Std {
    /// The compiler comes with one for the target.
    Precompiled,
    /// Built from the compiler's sources.
    FromSource {
        /// The linker, which such compilers do not bring along.
        linker: PathBuf,
    },
}

/// A compiler that can make guests.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// Its sysroot.
    pub sysroot: PathBuf,
    /// Its full version line, such as `rustc 1.96.0 (ac68faa20 2026-05-25)`.
    pub version: String,
    /// The commit it was built from.
    pub commit: String,
    /// Where std comes from.
    pub std: Std,
}

impl Toolchain {
    /// Chooses: the compiler that cargo would use if it has the target, else any compiler that has std's sources.
    pub fn find() -> Result<Self, Error> {
        Self::find_preferring(|_| false)
    }

    /// As [`Toolchain::find`], but among those that can make guests the first that `preferred` picks, if it picks any.
    pub fn find_preferring(preferred: impl Fn(&Self) -> bool) -> Result<Self, Error> {
        let default = std::env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
        let mut reasons = Vec::new();
        let mut usable: Option<Self> = None;
        for rustc in [default.clone(), PathBuf::from("/usr/bin/rustc")] {
            match Self::of(&rustc, &default) {
                Ok(found) if preferred(&found) => return Ok(found),
                Ok(found) => usable = usable.or(Some(found)),
                Err(reason) => reasons.push(format!("{}: {reason}", rustc.display())),
            }
        }
        usable.ok_or_else(|| Error::NoToolchain { reason: reasons.join("; ") })
    }

    fn of(rustc: &Path, default: &Path) -> Result<Self, Error> {
        let sysroot = PathBuf::from(print(rustc, &["--print", "sysroot"])?);
        let std = if has_target(rustc)? {
            Std::Precompiled
        } else if sysroot.join("lib/rustlib/src/rust/library/std/Cargo.toml").is_file() {
            Std::FromSource { linker: linker(rustc, default)? }
        } else {
            return Err(Error::invalid(
                sysroot.display().to_string(),
                format!("holds neither {TARGET} nor the standard library's sources"),
            ));
        };
        let verbose = print(rustc, &["-vV"])?;
        let field = |name: &str| verbose.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("unknown").trim().to_owned();
        let version = verbose.lines().next().unwrap_or("unknown").trim().to_owned();
        Ok(Self { rustc: rustc.to_owned(), sysroot, version, commit: field("commit-hash:"), std })
    }

    /// Prepares a cargo command that builds guests with this compiler and whose output does not depend on paths of this machine.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // The caller's flags and profile overrides would change the bytes.
        let inherited = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in inherited.filter(|n| n.starts_with("CARGO_PROFILE_") || n.starts_with("CARGO_BUILD_") || n.starts_with("CARGO_TARGET_"))
        {
            cargo.env_remove(name);
        }
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_INCREMENTAL"] {
            cargo.env_remove(name);
        }
        // Workspace members are compiled under relative paths; what lies outside gets a name instead of its place.
        let mut flags = vec![remap(&cargo_home().join("registry"), "/registry"), remap(&self.sysroot, "/rust")];
        flags.push("-Cdebuginfo=0".to_owned());
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("RUSTC", &self.rustc);
        cargo.args(["build", "--lib", "--release", "--target", TARGET]);
        if let Std::FromSource { linker } = &self.std {
            // `-Zbuild-std` is the documented way to build std from rust-src; stable compilers accept it under this variable.
            cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
            cargo.arg("-Zbuild-std=std,panic_abort");
        }
        cargo
    }
}

fn remap(from: &Path, to: &str) -> String {
    format!("--remap-path-prefix={}={to}", from.display())
}

fn cargo_home() -> PathBuf {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return PathBuf::from(home);
    }
    std::env::home_dir().unwrap_or_default().join(".cargo")
}

fn has_target(rustc: &Path) -> Result<bool, Error> {
    let Ok(folder) = print(rustc, &["--print", "target-libdir", "--target", TARGET]) else {
        return Ok(false);
    };
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(false);
    };
    let is_std = |name: &str| name.starts_with("libstd-") && name.ends_with(".rlib");
    Ok(entries.flatten().any(|e| e.file_name().to_str().is_some_and(is_std)))
}

/// rust-lld, from either compiler's sysroot.
fn linker(rustc: &Path, default: &Path) -> Result<PathBuf, Error> {
    for compiler in [rustc, default] {
        let Ok(sysroot) = print(compiler, &["--print", "sysroot"]) else { continue };
        let verbose = print(compiler, &["-vV"])?;
        let host = verbose.lines().find_map(|l| l.strip_prefix("host: ")).unwrap_or_default().to_owned();
        let lld = Path::new(&sysroot).join("lib/rustlib").join(host).join("bin/rust-lld");
        if lld.is_file() {
            return Ok(lld);
        }
    }
    Err(Error::invalid(
        "rust-lld",
        format!("neither {} nor {} brings it; install rustup's stable toolchain", rustc.display(), default.display()),
    ))
}

/// The trimmed standard output of a compiler call.
fn print(rustc: &Path, args: &[&str]) -> Result<String, Error> {
    let program = rustc.display().to_string();
    let out = Command::new(rustc).args(args).output().map_err(|source| Error::Start { program: program.clone(), source })?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr).trim().to_owned();
        return Err(Error::Failed { program: format!("{program} {}", args.join(" ")), status: out.status.to_string(), stderr });
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
