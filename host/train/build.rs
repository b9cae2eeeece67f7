//! Writes down the versions of what decides a run's bits: the compiler, and the libraries as `Cargo.lock` pins them.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// Matrix products, tokenization, plugins, and reading numbers and rows.
const DECIDING: [&str; 11] =
    ["arrow-array", "csv", "gemm", "gemm-common", "gemm-f32", "half", "parquet", "safetensors", "serde_json", "tokenizers", "wasmtime"];

fn main() {
    let lock = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../../Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    println!("cargo::rerun-if-changed=build.rs");
    let text = fs::read_to_string(&lock).unwrap_or_else(|e| panic!("{}: {e}", lock.display()));
    let mut found: Vec<(String, String)> = Vec::new();
    let mut name = None;
    for line in text.lines() {
        let value = |key: &str| line.strip_prefix(key).and_then(|v| v.strip_prefix(" = \"")).and_then(|v| v.strip_suffix('"'));
        if let Some(n) = value("name") {
            name = DECIDING.contains(&n).then(|| n.to_owned());
        } else if let (Some(n), Some(version)) = (&name, value("version")) {
            match found.iter_mut().find(|(known, _)| known == n) {
                // Several versions may be in the tree; all count.
                Some((_, versions)) => *versions = format!("{versions} {version}"),
                None => found.push((n.clone(), version.to_owned())),
            }
        }
    }
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = Command::new(rustc).arg("--version").output().expect("the compiler tells its version");
    found.push(("rustc".to_owned(), String::from_utf8_lossy(&version.stdout).trim().to_owned()));
    let out = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("libraries.rs");
    let code = format!("/// Name and version of each, as this program was built.\nconst LIBRARIES: &[(&str, &str)] = &{found:?};\n");
    fs::write(&out, code).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
}
