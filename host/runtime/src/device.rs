//! What computes: the machine, the device that a recipe asks for, and the one place where a backend is chosen.

use std::sync::Arc;

use serde::Serialize;
use trainer_config::{Device, DeviceBackend, Precision};
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels_cuda::compile::Arch;
use trainer_kernels_cuda::probe::{CUBLASLT, NVRTC, Probe, driver_present, probe_for_use};
use trainer_kernels_cuda::{Cuda, CudaError, CudaOptions};

use crate::RuntimeError;

/// The backends, each behind the operations trait. Everything beyond this module is generic over that trait; [`with_ops`](crate::with_ops)
/// goes from here to there.
#[derive(Clone)]
pub enum Backend {
    /// The CPU.
    Cpu(Arc<Cpu>),
    /// An NVIDIA card.
    Cuda(Arc<Cuda>),
}

/// Runs an expression with whichever backend there is under one name: `with_ops!(device.backend, ops => work(ops))`.
#[macro_export]
macro_rules! with_ops {
    ($backend:expr, $ops:ident => $body:expr) => {
        match $backend {
            $crate::Backend::Cpu($ops) => $body,
            $crate::Backend::Cuda($ops) => $body,
        }
    };
}

/// What kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// An NVIDIA card.
    Cuda,
}

/// What is known of a device, for banners, locks and reports.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceInfo {
    /// The CPU or a card.
    pub kind: DeviceKind,
    /// The processor's or the card's name.
    pub name: String,
    /// The card's number.
    pub ordinal: Option<usize>,
    /// The card's compute capability, such as `9.0`.
    pub compute_capability: Option<String>,
    /// The driver's version, or the CUDA version that it serves.
    pub driver: Option<String>,
    /// Memory of the card, or of the machine, in bytes, where it is known.
    pub memory: Option<u64>,
    /// Why it is this one.
    pub reason: String,
}

/// A device that is ready to compute.
pub struct OpenDevice {
    /// Its operations.
    pub backend: Backend,
    /// Compute threads on the CPU.
    pub threads: usize,
    /// What it is.
    pub info: DeviceInfo,
}

/// The machine, for banners.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor's name, where the system tells.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory in bytes, where the system tells.
    pub memory: Option<u64>,
}

impl Machine {
    /// The machine that this runs on.
    pub fn this() -> Self {
        let field = |file: &str, name: &str| -> Option<String> {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            memory: field("/proc/meminfo", "MemTotal")
                .and_then(|t| t.split(' ').next()?.parse::<u64>().ok())
                .map(|kib| kib.saturating_mul(1024)),
        }
    }
}

/// The version of NVIDIA's driver, where the system tells.
pub(crate) fn driver_version() -> Option<String> {
    // `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  ...`, or `NVIDIA UNIX Open Kernel Module for x86_64  580...`
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |w: &&str| w.contains('.') && w.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.lines().next()?.split_whitespace().find(is_version).map(str::to_owned)
}

/// How much memory a backend has held so far, for reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryUse {
    /// The most that the backend's own arena had handed out at a time, in bytes; none without an arena.
    pub arena: Option<u64>,
    /// The most that the system says this process held, or the driver that the card held for all, in bytes.
    pub system: Option<u64>,
}

/// The time of one kernel in a profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KernelTime {
    /// Its name; products with their sizes.
    pub name: String,
    /// Launches.
    pub launches: usize,
    /// All of them together, on the device.
    pub microseconds: f64,
}

/// What the host asks of a backend beyond computing.
pub trait Gauge {
    /// The highest marks so far.
    fn memory_use(&self) -> MemoryUse;

    /// Waits until everything that was begun is done, for timing.
    ///
    /// # Errors
    /// The device's: a fault of earlier work among them.
    fn synchronize(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// Begins to collect where time goes; false where the backend cannot tell.
    fn profile_start(&self) -> bool {
        false
    }
    /// What was collected, the longest first.
    ///
    /// # Errors
    /// The device's.
    fn profile_stop(&self) -> Result<Vec<KernelTime>, RuntimeError> {
        Ok(Vec::new())
    }
}

impl Gauge for Cpu {
    fn memory_use(&self) -> MemoryUse {
        let peak = || -> Option<u64> {
            let text = std::fs::read_to_string("/proc/self/status").ok()?;
            let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
            line.trim().split(' ').next()?.parse::<u64>().ok()?.checked_mul(1024)
        };
        MemoryUse { arena: None, system: peak() }
    }
}

impl Gauge for Cuda {
    fn memory_use(&self) -> MemoryUse {
        let system = self.device().context().bind_to_thread().ok().and_then(|()| {
            let (free, total) = trainer_kernels_cuda::device::memory().ok()?;
            Some(total.saturating_sub(free) as u64)
        });
        // The arena gives nothing back before the end, so what the driver counts now is the most that it ever was.
        MemoryUse { arena: Some(self.usage().peak), system }
    }

    fn synchronize(&self) -> Result<(), RuntimeError> {
        self.device().synchronize().map_err(|e| RuntimeError::Device(e.into()))
    }

    fn profile_start(&self) -> bool {
        self.device().profile().start();
        true
    }

    fn profile_stop(&self) -> Result<Vec<KernelTime>, RuntimeError> {
        let timings = self.device().profile().stop(self.device().stream()).map_err(trainer_kernels::ops::OpsError::from)?;
        let time =
            |t: trainer_kernels_cuda::profile::Timing| KernelTime { name: t.name, launches: t.launches, microseconds: t.microseconds };
        Ok(timings.into_iter().map(time).collect())
    }
}

/// What kind of device `auto` means on this machine, and why; with the card's number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The CPU or a card.
    pub kind: DeviceKind,
    /// The card's number.
    pub ordinal: Option<usize>,
    /// Why.
    pub reason: String,
}

/// The device that `auto` means, given what was found: the first card that can be used, else the CPU.
pub fn choose(found: &Probe) -> Verdict {
    let cpu = |reason: String| Verdict { kind: DeviceKind::Cpu, ordinal: None, reason };
    let usable = (0..found.cards.len()).find(|&i| unusable(found, i).is_none());
    match usable {
        Some(ordinal) => {
            let name = found.cards.get(ordinal).map_or("the card", |c| c.name.as_str());
            let slower = found.library(CUBLASLT).is_some_and(|l| l.state.is_err());
            let how = if slower { ", with slower matrix products: cublasLt is not there" } else { "" };
            Verdict { kind: DeviceKind::Cuda, ordinal: Some(ordinal), reason: format!("{name} can be used{how}") }
        }
        None => cpu(unusable(found, 0).unwrap_or_else(|| "there is no card".to_owned())),
    }
}

/// Why a card cannot be used, with the remedy; `None`: it can.
pub fn unusable(found: &Probe, ordinal: usize) -> Option<String> {
    let first = || found.missing.first().cloned().unwrap_or_else(|| "the driver shows no card".to_owned());
    if found.driver.is_none() || found.cards.is_empty() {
        return Some(first());
    }
    let Some(card) = found.cards.get(ordinal) else {
        let count = found.cards.len();
        let (last, are) = (count - 1, if count == 1 { "is" } else { "are" });
        return Some(format!("there {are} {count} card{}, numbered 0 to {last}", if count == 1 { "" } else { "s" }));
    };
    let [major, minor] = card.compute_capability;
    match Arch::of(major, minor) {
        Err(e) => Some(format!("{}: {e}", card.name)),
        Ok(_) if found.has_code(card.compute_capability) => None,
        Ok(arch) => {
            let compiler = found.library(NVRTC).and_then(|l| l.state.as_ref().err());
            let why = compiler.map_or("there is no compiler for them", String::as_str);
            Some(format!("this program holds no kernels for {}, and {why}", arch.name()))
        }
    }
}

/// Opens the device that a recipe asks for, for evaluation, generation and whatever else computes in the backend's plain precision.
///
/// # Errors
/// A card is asked for that cannot be used: the error says what is missing and how to get it.
pub fn open_device(device: &Device) -> Result<OpenDevice, RuntimeError> {
    open_device_as(device, Precision::Bf16)
}

/// Opens the device that a recipe asks for, to train in a precision.
///
/// # Errors
/// As [`open_device`]; a device that has no products in that precision.
pub fn open_device_as(device: &Device, precision: Precision) -> Result<OpenDevice, RuntimeError> {
    match device.backend {
        DeviceBackend::Cpu => open_cpu_as(device, precision, "it was asked for".to_owned()),
        DeviceBackend::Cuda(ordinal) => {
            let found = probe_for_use();
            match unusable(&found, ordinal) {
                Some(why) => Err(RuntimeError::NoCard { ordinal, why }),
                None => open_card(device, precision, &found, ordinal, "it was asked for".to_owned()),
            }
        }
        // Without a driver nothing else need be looked for.
        DeviceBackend::Auto if !driver_present() => {
            let reason = CudaError::NoDriver.to_string();
            tracing::info!("the CPU computes: {reason}");
            open_cpu(device, reason)
        }
        DeviceBackend::Auto => {
            let found = probe_for_use();
            let verdict = choose(&found);
            let Some(ordinal) = verdict.ordinal else {
                tracing::info!("the CPU computes: {}", verdict.reason);
                return open_cpu_as(device, precision, verdict.reason);
            };
            match open_card(device, precision, &found, ordinal, verdict.reason) {
                Ok(open) => Ok(open),
                // A card that looks usable but is not must not keep anyone from working; the reason is worth a line.
                Err(RuntimeError::NoCard { why, .. }) => {
                    tracing::warn!("the CPU computes, because the card cannot be used: {why}");
                    open_cpu_as(device, precision, why)
                }
                Err(e) => Err(e),
            }
        }
    }
}

fn open_cpu_as(device: &Device, precision: Precision, reason: String) -> Result<OpenDevice, RuntimeError> {
    match precision {
        Precision::Bf16 => open_cpu(device, reason),
        Precision::Fp8 => Err(RuntimeError::NoFp8 { device: "the CPU".to_owned(), why: format!("it computes in f32 ({reason})") }),
    }
}

/// The memory limit of a recipe in bytes; none: all that there is.
pub fn limit_in_bytes(device: &Device) -> Option<u64> {
    (device.memory_limit > 0.0).then(|| (device.memory_limit * f64::from(1 << 30)) as u64)
}

fn open_cpu(device: &Device, reason: String) -> Result<OpenDevice, RuntimeError> {
    let threads = threads(device);
    let cpu = Cpu::new(CpuOptions { threads })?;
    let machine = Machine::this();
    let info = DeviceInfo {
        kind: DeviceKind::Cpu,
        name: machine.processor,
        ordinal: None,
        compute_capability: None,
        driver: None,
        memory: machine.memory,
        reason,
    };
    Ok(OpenDevice { backend: Backend::Cpu(Arc::new(cpu)), threads, info })
}

fn threads(device: &Device) -> usize {
    device.threads.or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()))
}

/// Opens a card that [`unusable`] has nothing against.
fn open_card(device: &Device, precision: Precision, found: &Probe, ordinal: usize, reason: String) -> Result<OpenDevice, RuntimeError> {
    let computes = match precision {
        Precision::Bf16 => trainer_kernels_cuda::Precision::Bf16,
        Precision::Fp8 => trainer_kernels_cuda::Precision::Fp8,
    };
    let options = CudaOptions { ordinal, memory_limit: limit_in_bytes(device), precision: computes, ..CudaOptions::default() };
    let cuda = Cuda::open(options).map_err(|e| match e {
        CudaError::Precision { why } => RuntimeError::NoFp8 { device: format!("cuda:{ordinal}"), why },
        e => RuntimeError::NoCard { ordinal, why: e.to_string() },
    })?;
    let card = found.cards.get(ordinal);
    let driver = match (driver_version(), &found.driver) {
        (Some(version), Some(serves)) => Some(format!("{version}, CUDA {serves}")),
        (version, serves) => version.or_else(|| serves.as_ref().map(|s| format!("for CUDA {s}"))),
    };
    let info = DeviceInfo {
        kind: DeviceKind::Cuda,
        name: cuda.card().to_owned(),
        ordinal: Some(ordinal),
        compute_capability: card.map(|c| format!("{}.{}", c.compute_capability[0], c.compute_capability[1])),
        driver,
        memory: card.map(|c| c.memory as u64),
        reason,
    };
    tracing::info!("{} computes: {}", info.name, info.reason);
    Ok(OpenDevice { backend: Backend::Cuda(Arc::new(cuda)), threads: threads(device), info })
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
