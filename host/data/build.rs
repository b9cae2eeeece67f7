//! Names this program's data path: a digest of the sources of the crates that a row passes, and of the versions of the libraries below them. What was
//! prepared by another data path is not used, without anybody having to remember to count a version up.

use std::path::{Path, PathBuf};
use std::{env, fs};

use sha2::{Digest, Sha256};

/// What decides ids and weights, from the workspace's root.
const DECIDING: [&str; 5] = ["host/data/src", "host/text/src", "host/plugin-host/src", "wit", "Cargo.lock"];

fn main() {
    let root = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..");
    let mut files = Vec::new();
    for part in DECIDING {
        let path = root.join(part);
        println!("cargo::rerun-if-changed={}", path.display());
        collect(&path, &mut files);
    }
    println!("cargo::rerun-if-changed=build.rs");
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let bytes = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    }
    let digest: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
    println!("cargo::rustc-env=TRAINER_DATA_PATH={digest}");
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
            collect(&entry.unwrap_or_else(|e| panic!("{}: {e}", path.display())).path(), files);
        }
    } else {
        files.push(path.to_owned());
    }
}
