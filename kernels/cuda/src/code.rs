//! Where a card's machine code comes from: this program, the user's cache, or NVRTC, which is loaded only if the program lacks something.

use crate::archive::{Archive, ArchiveError};
use crate::cache::Cache;
use crate::compile::{Arch, SOURCES, Source, cubin};
use crate::nvrtc::Nvrtc;
use crate::{CudaError, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places that code comes from.
pub struct Code {
    archive: std::result::Result<Option<Archive>, ArchiveError>,
    cache: Option<Cache>,
    nvrtc: OnceLock<std::result::Result<Nvrtc, String>>,
}

impl Code {
    /// What serves users: the code inside this program; beyond it NVRTC, with the user's cache.
    pub fn installed() -> Self {
        let archive = Archive::embedded();
        if let Err(e) = &archive {
            tracing::warn!("the kernels inside this program cannot be used: {e}");
        }
        let cache = Cache::default_folder().and_then(|folder| Cache::open(&folder).ok());
        Self { archive, cache, nvrtc: OnceLock::new() }
    }

    /// These places.
    pub fn with(archive: Option<Archive>, cache: Option<Cache>) -> Self {
        Self { archive: Ok(archive), cache, nvrtc: OnceLock::new() }
    }

    /// NVRTC alone, with a cache or without.
    pub fn compiled(cache: Option<Cache>) -> Self {
        Self::with(None, cache)
    }

    /// Every cubin of an architecture.
    ///
    /// # Errors
    /// [`CudaError::NoCode`] where something is not in the program and there is no NVRTC, with what to install; or NVRTC's messages.
    pub fn cubins(&self, arch: Arch) -> Result<Vec<(&'static Source, Vec<u8>)>> {
        let unpacked = match self.archive.as_ref().ok().and_then(Option::as_ref).map(|a| a.unpack(arch)) {
            Some(Ok(unpacked)) => Some(unpacked),
            Some(Err(e)) => {
                tracing::warn!("the kernels inside this program cannot be used: {e}");
                None
            }
            None => None,
        };
        let inside = |source| unpacked.as_ref().and_then(|u| u.get(source));
        let sources: Vec<_> = SOURCES.iter().filter(|s| s.serves(arch)).collect();
        let missing: Vec<_> = sources.iter().copied().filter(|s| inside(s).is_none()).collect();
        let mut compiled = if missing.is_empty() { Vec::new() } else { self.compile(self.nvrtc(arch)?, &missing, arch)? };
        compiled.reverse();
        let mut cubins = Vec::with_capacity(sources.len());
        for source in sources {
            let code = match inside(source) {
                Some(code) => code.to_vec(),
                None => compiled.pop().unwrap_or_default(),
            };
            cubins.push((source, code));
        }
        let inside = cubins.len() - missing.len();
        tracing::debug!("{} kernel files for {}, {inside} of them inside this program", cubins.len(), arch.name());
        Ok(cubins)
    }

    /// Machine code of each of these files, in their order, on all processors: without a cache a card's kernels take one of them 10 to 20 s.
    fn compile(&self, nvrtc: &Nvrtc, sources: &[&'static Source], arch: Arch) -> Result<Vec<Vec<u8>>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                match sources.get(i) {
                    Some(source) => done.push((i, cubin(nvrtc, self.cache.as_ref(), source, arch))),
                    None => return done,
                }
            }
        };
        let mut done: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        done.sort_by_key(|(i, _)| *i);
        done.into_iter().map(|(_, code)| code).collect()
    }

    fn nvrtc(&self, arch: Arch) -> Result<&Nvrtc> {
        let loaded = self.nvrtc.get_or_init(|| Nvrtc::load().map_err(|e| e.to_string()));
        loaded.as_ref().map_err(|e| CudaError::NoCode {
            arch: arch.name(),
            archive: self.archive.as_ref().err().cloned(),
            nvrtc: e.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{pack, tests::invented};

    #[test]
    fn what_is_inside_the_program_needs_no_compiler() {
        let cubins = invented();
        let code = Code::with(Some(Archive::read(pack(&cubins).unwrap()).unwrap()), None);
        for arch in Arch::ALL {
            let got = code.cubins(arch).unwrap();
            assert_eq!(got.len(), SOURCES.iter().filter(|s| s.serves(arch)).count());
            for (source, cubin) in got {
                assert!(cubins.iter().any(|c| c.arch == arch && c.file == source.file && c.code == cubin), "{}", source.file);
            }
        }
        assert!(code.nvrtc.get().is_none(), "NVRTC was not even looked for");
    }

    #[test]
    fn without_code_and_compiler_the_error_says_what_to_install() {
        let mut cubins = invented();
        cubins.retain(|c| c.arch != Arch::Sm86);
        for archive in [Some(Archive::read(pack(&cubins).unwrap()).unwrap()), None] {
            let code = Code::with(archive, None);
            code.nvrtc.set(Err(CudaError::NoNvrtc { why: "nowhere".into() }.to_string())).map_err(|_| "set before").unwrap();
            let error = code.cubins(Arch::Sm86).unwrap_err().to_string();
            assert!(error.contains("holds no kernels for sm_86") && error.contains("pip install"), "{error}");
        }
        let code = Code { archive: Err(ArchiveError::Short), cache: None, nvrtc: OnceLock::from(Err("no NVRTC".to_owned())) };
        let error = code.cubins(Arch::Sm80).unwrap_err().to_string();
        assert!(error.contains("cut short") && error.contains("no NVRTC"), "{error}");
    }
}
