//! What the machine offers: driver, cards, libraries; and how to get what is missing. Never fails and never panics.

use crate::archive::Archive;
use crate::compile::Arch;
use crate::nvrtc::Nvrtc;
use cudarc::driver::{result, sys};
use serde::Serialize;

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Probe {
    /// The driver's CUDA version, such as 13.0; None without a driver.
    pub driver: Option<String>,
    /// The cards that the driver shows.
    pub cards: Vec<Card>,
    /// Architectures whose kernels are all inside this program.
    pub inside: Vec<&'static str>,
    /// The libraries, each tried by itself.
    pub libraries: Vec<Library>,
    /// What is missing, what it would serve and how to get it.
    pub missing: Vec<String>,
}

impl Probe {
    /// Whether a card with this compute capability can be given its kernels: from inside the program, or by NVRTC.
    pub fn has_code(&self, [major, minor]: [i32; 2]) -> bool {
        let inside = Arch::of(major, minor).is_ok_and(|arch| self.inside.contains(&arch.name()));
        inside || self.libraries.iter().any(|l| l.name == NVRTC && l.state.is_ok())
    }

    /// A library by its name.
    pub fn library(&self, name: &str) -> Option<&Library> {
        self.libraries.iter().find(|l| l.name == name)
    }
}

/// The compiler's name among the libraries.
pub const NVRTC: &str = "nvrtc";
/// cublasLt's.
pub const CUBLASLT: &str = "cublasLt";

/// A card.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// The product's name.
    pub name: String,
    /// Compute capability, such as `[9, 0]`.
    pub compute_capability: [i32; 2],
    /// Memory in bytes.
    pub memory: usize,
    /// Multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of the second-level cache.
    pub l2: i32,
}

/// A library.
#[derive(Clone, Debug, Serialize)]
pub struct Library {
    /// Its name.
    pub name: &'static str,
    /// What was loaded, or why it was not, with how to get it.
    pub state: std::result::Result<String, String>,
    /// Whether some card here, or any card where there is none, cannot be used without it.
    pub needed: bool,
}

/// Whether the driver's library is there: no driver function may be called before this was true.
#[expect(unsafe_code, reason = "loads a library")]
pub fn driver_present() -> bool {
    // SAFETY: loading the driver's library runs its initialisers only.
    unsafe { sys::is_culib_present() }
}

/// Looks for everything.
pub fn probe() -> Probe {
    look_for(true)
}

/// Looks for what opening a card takes: a compiler only where some card needs one, because loading it takes a while.
pub fn probe_for_use() -> Probe {
    look_for(false)
}

fn look_for(everything: bool) -> Probe {
    let mut missing = Vec::new();
    let (mut driver, mut cards) = (None, Vec::new());
    if driver_present() {
        match look() {
            Ok((version, found)) => {
                if version < 13_000 {
                    missing.push(format!("the driver serves CUDA {}.{}; update it to 580 or newer", version / 1000, version % 1000 / 10));
                }
                if found.is_empty() {
                    missing.push("the driver shows no card: check `nvidia-smi` and CUDA_VISIBLE_DEVICES".into());
                }
                driver = Some(format!("{}.{}", version / 1000, version % 1000 / 10));
                cards = found;
            }
            Err(e) => missing.push(format!("the driver is installed but does not work ({e}): check `nvidia-smi`")),
        }
    } else {
        missing.push(crate::CudaError::NoDriver.to_string());
    }
    let inside: Vec<Arch> = match Archive::embedded() {
        Ok(archive) => archive.map(|a| a.serves()).unwrap_or_default(),
        Err(e) => {
            missing.push(format!("the kernels inside this program cannot be used ({e}): it was built wrongly"));
            Vec::new()
        }
    };
    let needed = needs_compiler(&cards, &inside);
    let nvrtc = if everything || needed {
        Nvrtc::load().map(|n| format!("{} {}.{}", n.path().display(), n.version().0, n.version().1)).map_err(|e| e.to_string())
    } else {
        Err("not looked for, because nothing needs it".to_owned())
    };
    if let (Err(e), true) = (&nvrtc, needed) {
        missing.push(e.clone());
    }
    let lt = crate::blaslt::loaded();
    if let Err(e) = &lt {
        missing.push(format!("cublasLt: {e}. Without it large matrix products are slower and there are none in fp8"));
    }
    let libraries = vec![Library { name: NVRTC, state: nvrtc, needed }, Library { name: CUBLASLT, state: lt, needed: false }];
    Probe { driver, cards, inside: inside.into_iter().map(Arch::name).collect(), libraries, missing }
}

/// Whether kernels must be compiled: for some card that can have any, or, without a card, for some architecture.
fn needs_compiler(cards: &[Card], inside: &[Arch]) -> bool {
    if cards.is_empty() {
        return Arch::ALL.iter().any(|arch| !inside.contains(arch));
    }
    cards.iter().filter_map(|c| Arch::of(c.compute_capability[0], c.compute_capability[1]).ok()).any(|arch| !inside.contains(&arch))
}

#[expect(unsafe_code, reason = "the driver's C interface")]
fn look() -> std::result::Result<(i32, Vec<Card>), result::DriverError> {
    use sys::CUdevice_attribute as A;
    result::init()?;
    let mut version = 0;
    // SAFETY: a place for the answer; the driver was initialised.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    let mut cards = Vec::new();
    for ordinal in 0..result::device::get_count()? {
        let device = result::device::get(ordinal)?;
        // SAFETY: the device was obtained from the driver above.
        let (attribute, memory) = (|a| unsafe { result::device::get_attribute(device, a) }, unsafe { result::device::total_mem(device) }?);
        cards.push(Card {
            name: result::device::get_name(device)?,
            compute_capability: [
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ],
            memory,
            multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            l2: attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        });
    }
    Ok((version, cards))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gap_is_named_with_its_remedy() {
        let found = probe();
        assert_eq!(found.missing, probe_for_use().missing);
        assert_eq!(found.libraries.len(), 2);
        if found.cards.is_empty() {
            assert!(found.missing.iter().any(|m| m.contains("driver")), "{:?}", found.missing);
        }
        for library in &found.libraries {
            let named = found.missing.iter().any(|m| m.to_lowercase().contains(&library.name.to_lowercase()));
            let matters = library.needed || library.name == CUBLASLT;
            assert_eq!(named, library.state.is_err() && matters, "{library:?}: {:?}", found.missing);
        }
    }

    #[test]
    fn a_compiler_is_needed_only_for_cards_whose_code_is_not_inside() {
        let card = |major, minor| Card {
            name: "a card".into(),
            compute_capability: [major, minor],
            memory: 1 << 30,
            multiprocessors: 1,
            l2: 1 << 20,
        };
        assert!(needs_compiler(&[], &[]) && needs_compiler(&[], &[Arch::Sm80]) && !needs_compiler(&[], &Arch::ALL));
        assert!(!needs_compiler(&[card(9, 0)], &[Arch::Sm90a]) && needs_compiler(&[card(9, 0)], &[Arch::Sm80]));
        assert!(needs_compiler(&[card(9, 0), card(8, 0)], &[Arch::Sm90a]));
        // NVRTC cannot help a card that is too old.
        assert!(!needs_compiler(&[card(7, 5)], &[]));
        let library = |state: std::result::Result<String, String>| Library { name: NVRTC, state, needed: true };
        let mut found =
            Probe { driver: None, cards: vec![], inside: vec!["sm_80"], libraries: vec![library(Err("none".into()))], missing: vec![] };
        assert!(found.has_code([8, 0]) && !found.has_code([9, 0]) && !found.has_code([7, 5]));
        found.libraries = vec![library(Ok("it".into()))];
        assert!(found.has_code([9, 0]));
    }
}
