//! What this machine offers for training, and what keeps it from offering more.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use trainer_kernels_cuda::compile::Arch;
use trainer_kernels_cuda::probe::{CUBLASLT, NVRTC, Probe, probe};

use crate::device::{Machine, Verdict, choose, driver_version, unusable};
use crate::plugins::cache_base;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// This program's version.
    pub trainer: String,
    /// Processor, cores and memory.
    pub machine: Machine,
    /// The NVIDIA driver's own version, where the system tells.
    pub driver: Option<String>,
    /// The CUDA version that the driver serves; none without a driver.
    pub cuda: Option<String>,
    /// The cards in the driver's order.
    pub cards: Vec<CardState>,
    /// Architectures whose kernels are all inside this program.
    pub kernels_inside: Vec<&'static str>,
    /// The libraries that are loaded at run time.
    pub libraries: Vec<LibraryState>,
    /// What is missing, what it would serve and how to get it.
    pub missing: Vec<String>,
    /// Where compiled kernels are kept.
    pub kernel_cache: CacheState,
    /// What `--device auto` means here.
    pub auto: Verdict,
}

/// A card.
#[derive(Clone, Debug, Serialize)]
pub struct CardState {
    /// Its number, as in `cuda:0`.
    pub ordinal: usize,
    /// The product's name.
    pub name: String,
    /// Such as `9.0`.
    pub compute_capability: String,
    /// What kernels are compiled for it; none if it is not supported.
    pub architecture: Option<&'static str>,
    /// Bytes.
    pub memory: u64,
    /// How many.
    pub multiprocessors: i32,
    /// Bytes of the second-level cache.
    pub l2: i32,
    /// Why it cannot be used; none if it can.
    pub unusable: Option<String>,
}

/// A library.
#[derive(Clone, Debug, Serialize)]
pub struct LibraryState {
    /// Its name.
    pub name: &'static str,
    /// Whether it was loaded.
    pub found: bool,
    /// What was loaded, or why nothing was.
    pub detail: String,
    /// What it is for.
    pub serves: &'static str,
    /// Whether cards cannot be used here without it.
    pub needed: bool,
    /// How to get it.
    pub remedy: &'static str,
}

/// A folder in which something is kept between runs.
#[derive(Clone, Debug, Serialize)]
pub struct CacheState {
    /// The folder; none if this user has no home.
    pub folder: Option<PathBuf>,
    /// In what state it is.
    pub state: String,
    /// How many kernel files are in it.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Looks. Never fails: what cannot be told is said to be so.
pub fn diagnose() -> Diagnosis {
    from_probe(&probe(), Machine::this(), driver_version(), kernel_cache(cache_base().map(|base| base.join("cubins"))))
}

/// The diagnosis of what was found.
pub fn from_probe(found: &Probe, machine: Machine, driver: Option<String>, kernel_cache: CacheState) -> Diagnosis {
    let card = |(ordinal, card): (usize, &trainer_kernels_cuda::probe::Card)| {
        let [major, minor] = card.compute_capability;
        CardState {
            ordinal,
            name: card.name.clone(),
            compute_capability: format!("{major}.{minor}"),
            architecture: Arch::of(major, minor).ok().map(Arch::name),
            memory: card.memory as u64,
            multiprocessors: card.multiprocessors,
            l2: card.l2,
            unusable: unusable(found, ordinal),
        }
    };
    let library = |l: &trainer_kernels_cuda::probe::Library| LibraryState {
        name: l.name,
        found: l.state.is_ok(),
        detail: l.state.clone().unwrap_or_else(|e| e),
        serves: serves(l.name).0,
        needed: l.needed,
        remedy: serves(l.name).1,
    };
    Diagnosis {
        trainer: env!("CARGO_PKG_VERSION").to_owned(),
        machine,
        driver,
        cuda: found.driver.clone(),
        cards: found.cards.iter().enumerate().map(card).collect(),
        kernels_inside: found.inside.clone(),
        libraries: found.libraries.iter().map(library).collect(),
        missing: found.missing.clone(),
        kernel_cache,
        auto: choose(found),
    }
}

/// What a library is for, and how to get it.
fn serves(library: &str) -> (&'static str, &'static str) {
    match library {
        NVRTC => (
            "compiles kernels that are not inside this program, once; their code is kept in the cache",
            "the CUDA 13 toolkit, or `pip install 'nvidia-cuda-nvrtc==13.*'` and TRAINER_NVRTC with its folder",
        ),
        CUBLASLT => (
            "large matrix products, faster than this program's own; products in fp8",
            "the CUDA 13 toolkit, or `pip install 'nvidia-cublas==13.*'` and TRAINER_CUBLASLT with its folder",
        ),
        _ => ("", ""),
    }
}

/// Looks at the cache without making it.
fn kernel_cache(folder: Option<PathBuf>) -> CacheState {
    let Some(folder) = folder else {
        let state = "there is no home folder, so kernels are compiled at each start".to_owned();
        return CacheState { folder: None, state, entries: 0, bytes: 0 };
    };
    let (entries, bytes) = entries(&folder);
    let state = match std::fs::symlink_metadata(&folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "not there yet: it is made when a card is first used".to_owned(),
        Err(e) => format!("cannot be looked at: {e}"),
        Ok(found) if !found.is_dir() => "not a folder: remove it, and it is made again".to_owned(),
        Ok(found) if found.mode() & 0o077 != 0 => "open to other users, so it is not used: `chmod 700` it".to_owned(),
        Ok(_) => "ready".to_owned(),
    };
    CacheState { folder: Some(folder), state, entries, bytes }
}

/// Kernel files: those whose names are digests.
fn entries(folder: &Path) -> (usize, u64) {
    let Ok(list) = std::fs::read_dir(folder) else { return (0, 0) };
    let is_entry = |name: &str| name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    list.flatten()
        .filter(|e| e.file_name().to_str().is_some_and(is_entry))
        .filter_map(|e| e.metadata().ok())
        .fold((0, 0), |(count, bytes), m| (count + 1, bytes + m.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_looked_at_and_never_made() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cubins");
        assert!(kernel_cache(Some(folder.clone())).state.starts_with("not there yet"));
        assert!(!folder.exists());
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(kernel_cache(Some(folder.clone())).state.contains("chmod 700"));
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        std::fs::write(folder.join("a".repeat(64)), [0; 10]).unwrap();
        std::fs::write(folder.join("key"), [0; 32]).unwrap();
        let cache = kernel_cache(Some(folder.clone()));
        assert_eq!((cache.state.as_str(), cache.entries, cache.bytes), ("ready", 1, 10));
        assert!(kernel_cache(None).folder.is_none());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(kernel_cache(Some(file)).state.contains("not a folder"));
    }

    #[test]
    fn this_machine_has_a_diagnosis() {
        let found = diagnose();
        assert_eq!(found.cards.is_empty(), found.auto.ordinal.is_none() && found.cards.is_empty());
        assert!(found.libraries.iter().all(|l| !l.serves.is_empty() && !l.remedy.is_empty()), "each library says what it is for");
    }
}
