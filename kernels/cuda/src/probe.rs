//! What the machine offers: driver, cards, libraries; and how to get what is missing. Never fails and never panics.

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
    /// The libraries, each tried by itself.
    pub libraries: Vec<Library>,
    /// What is missing, what it would serve and how to get it.
    pub missing: Vec<String>,
}

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
    /// What was loaded, or why it was not.
    pub state: std::result::Result<String, String>,
}

/// Whether the driver's library is there: no driver function may be called before this was true.
#[expect(unsafe_code, reason = "loads a library")]
pub fn driver_present() -> bool {
    // SAFETY: loading the driver's library runs its initialisers only.
    unsafe { sys::is_culib_present() }
}

/// Looks.
pub fn probe() -> Probe {
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
    let nvrtc = Nvrtc::load().map(|n| format!("{} {}.{}", n.path().display(), n.version().0, n.version().1)).map_err(|e| e.to_string());
    if let Err(e) = &nvrtc {
        missing.push(e.clone());
    }
    let lt = crate::blaslt::loaded();
    if let Err(e) = &lt {
        missing.push(format!("cublasLt (large matrix products): {e}"));
    }
    let libraries = vec![Library { name: "nvrtc", state: nvrtc }, Library { name: "cublasLt", state: lt }];
    Probe { driver, cards, libraries, missing }
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
    #[test]
    fn every_gap_is_named_with_its_remedy() {
        let found = super::probe();
        assert_eq!(found.libraries.len(), 2);
        if found.cards.is_empty() {
            assert!(found.missing.iter().any(|m| m.contains("driver")), "{:?}", found.missing);
        }
        for library in &found.libraries {
            let named = found.missing.iter().any(|m| m.to_lowercase().contains(&library.name.to_lowercase()));
            assert_eq!(named, library.state.is_err(), "{library:?}: {:?}", found.missing);
        }
    }
}
