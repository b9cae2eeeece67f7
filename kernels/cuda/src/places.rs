//! Where NVIDIA's libraries are looked for: what the user names, what the system's loader finds, and where toolkits are installed.

use std::path::{Path, PathBuf};

/// Where toolkits and distributions put libraries, beside `/usr/local/cuda*`.
const FOLDERS: [&str; 4] = ["/opt/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];

/// The places to try for a library of these names, in order. An environment variable with a folder or a file is the only place, if it is set;
/// otherwise the system's loader comes first, then `/usr/local/cuda`, `/usr/local/cuda-*` from the newest on, and distributions' own folders.
pub fn candidates(variable: &str, names: &[&str]) -> Vec<PathBuf> {
    match std::env::var_os(variable) {
        Some(place) => named(Path::new(&place), names),
        None => usual(names, &toolkits(Path::new("/usr/local"))),
    }
}

fn named(place: &Path, names: &[&str]) -> Vec<PathBuf> {
    if place.is_dir() { names.iter().map(|n| place.join(n)).collect() } else { vec![place.to_owned()] }
}

fn usual(names: &[&str], toolkits: &[PathBuf]) -> Vec<PathBuf> {
    let folders = toolkits.iter().map(|t| t.join("lib64")).chain(FOLDERS.iter().map(PathBuf::from));
    names.iter().map(PathBuf::from).chain(folders.flat_map(|f| names.iter().map(move |n| f.join(n)))).collect()
}

/// `cuda` and then `cuda-*` in a folder, the newest version first.
fn toolkits(base: &Path) -> Vec<PathBuf> {
    let mut found: Vec<(Vec<u32>, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(version) = name.to_str().and_then(|n| n.strip_prefix("cuda-")) else { continue };
        found.push((version.split('.').map(|v| v.parse().unwrap_or(0)).collect(), entry.path()));
    }
    found.sort();
    std::iter::once(base.join("cuda")).chain(found.into_iter().rev().map(|(_, path)| path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_toolkit_comes_first_after_the_default_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cuda-12.8", "cuda-13.0", "cuda-9.2", "cuda-13.10", "other", "cuda"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let names: Vec<String> = toolkits(dir.path()).iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["cuda", "cuda-13.10", "cuda-13.0", "cuda-12.8", "cuda-9.2"]);
        let all = usual(&["a.so.1", "a.so"], &toolkits(dir.path()));
        assert_eq!(all[..3], [PathBuf::from("a.so.1"), "a.so".into(), dir.path().join("cuda/lib64/a.so.1")]);
        assert_eq!(toolkits(Path::new("/nowhere")), [Path::new("/nowhere/cuda")]);
    }

    #[test]
    fn a_place_that_is_named_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(named(dir.path(), &["a.so"]), [dir.path().join("a.so")]);
        assert_eq!(named(Path::new("/x/mine.so"), &["a.so"]), [Path::new("/x/mine.so")]);
    }
}
