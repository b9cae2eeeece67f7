//! What computes.

use std::sync::Arc;

use trainer_config::Device;
use trainer_kernels::cpu::{Cpu, CpuOptions};

/// The backend that commands compute with. Everything beyond this module is generic over the operations trait.
pub type Backend = Cpu;

/// The machine, for banners.
#[derive(Clone, Debug, serde::Serialize)]
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

/// The backend as the recipe asks for it, and its number of threads.
///
/// # Errors
/// The thread pool cannot be made.
pub fn device(device: &Device) -> Result<(Arc<Backend>, usize), crate::RuntimeError> {
    let threads = device.threads.or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let cpu = Cpu::new(CpuOptions { threads })?;
    Ok((Arc::new(cpu), threads))
}
