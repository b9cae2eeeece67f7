//! The wasmtime engines: one configuration, every WebAssembly feature named, fuel and epochs on.

use std::hash::{Hash, Hasher};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use wasmparser::WasmFeatures;
use wasmtime::{
    Config, Engine, EngineWeak, Inlining, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, RegallocAlgorithm, Strategy,
    WasmBacktraceDetails,
};

use crate::error::PluginError;
use crate::features::features;

/// How often the epoch advances: the resolution of deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Core instances in all pooled component instances together. Each costs 4 GiB of address space and no memory.
const POOL_SLOTS: u32 = 512;
/// A component with more core instances than this is not pooled.
const POOL_CORE_INSTANCES: u32 = 16;

/// How linear memories are laid out, on which the compiled code depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// 4 GiB of address space per memory, so that the code needs no bounds checks.
    Wide,
    /// Memories as large as they are, for processes with little address space.
    Compact,
}

impl Layout {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Layout::Wide => "wide",
            Layout::Compact => "compact",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "wide" => Some(Layout::Wide),
            "compact" => Some(Layout::Compact),
            _ => None,
        }
    }
}

/// The configuration that decides the compiled code, equal in the host and in the compiler's process.
pub(crate) fn config(layout: Layout) -> Config {
    let mut config = Config::new();
    config
        .strategy(Strategy::Cranelift)
        .cranelift_opt_level(OptLevel::Speed)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking)
        // NaN bits would otherwise differ between processors, and with them results that must repeat.
        .cranelift_nan_canonicalization(true)
        .compiler_inlining(Inlining::No)
        .parallel_compilation(true)
        .consume_fuel(true)
        .epoch_interruption(true)
        .debug_info(false)
        .generate_address_map(true)
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .signals_based_traps(true)
        .concurrency_support(false)
        .memory_init_cow(true)
        .table_lazy_init(true)
        .wasm_features(WasmFeatures::all(), false)
        .wasm_features(features(), true);
    match layout {
        Layout::Wide => {
            config.memory_reservation(4 << 30).memory_guard_size(32 << 20).guard_before_linear_memory(true).memory_may_move(false)
        }
        Layout::Compact => {
            config.memory_reservation(0).memory_reservation_for_growth(1 << 20).memory_guard_size(64 << 10).memory_may_move(true)
        }
    };
    config
}

/// An engine for compiling, and for instances beyond the pool.
pub(crate) fn on_demand(layout: Layout, wasm_stack: usize) -> wasmtime::Result<Engine> {
    let mut config = config(layout);
    config.max_wasm_stack(wasm_stack).allocation_strategy(InstanceAllocationStrategy::OnDemand);
    Engine::new(&config)
}

fn pooled(wasm_stack: usize) -> wasmtime::Result<Engine> {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(POOL_SLOTS)
        .total_core_instances(POOL_SLOTS)
        .total_memories(POOL_SLOTS)
        .total_tables(POOL_SLOTS * 2)
        .max_core_instances_per_component(POOL_CORE_INSTANCES)
        .max_memories_per_component(POOL_CORE_INSTANCES)
        .max_tables_per_component(POOL_CORE_INSTANCES)
        .max_memories_per_module(4)
        .max_tables_per_module(4)
        .table_elements(100_000)
        .max_memory_size(4 << 30)
        .linear_memory_keep_resident(256 << 10)
        .table_keep_resident(16 << 10);
    let mut config = config(Layout::Wide);
    config.max_wasm_stack(wasm_stack).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    Engine::new(&config)
}

/// The engines for one stack size.
pub(crate) struct Engines {
    /// Instances from a pool; none where the address space does not hold one.
    pub(crate) pooled: Option<Engine>,
    /// Instances made as needed: for components that do not fit the pool, and when it is used up. Runs the same compiled code.
    pub(crate) on_demand: Engine,
    /// The memory layout of both.
    pub(crate) layout: Layout,
    /// Names everything that compiled code depends on: it runs only in engines of the same name.
    pub(crate) compatibility: String,
}

impl Engines {
    pub(crate) fn new(wasm_stack: usize) -> Result<Self, PluginError> {
        let host = |e: wasmtime::Error| PluginError::Host(format!("{e:#}"));
        let pooled = match pooled(wasm_stack) {
            Ok(engine) => Some(engine),
            Err(e) => {
                tracing::warn!("no pool of plugin instances ({e:#}); they are made one by one, which is slower");
                None
            }
        };
        let layout = if pooled.is_some() { Layout::Wide } else { Layout::Compact };
        let on_demand = on_demand(layout, wasm_stack).map_err(host)?;
        let compatibility = compatibility(&on_demand);
        Ok(Self { pooled, on_demand, layout, compatibility })
    }

    fn all(&self) -> impl Iterator<Item = &Engine> {
        self.pooled.iter().chain([&self.on_demand])
    }
}

/// A digest of all that decides whether compiled code fits an engine: wasmtime's version and configuration and the processor's features.
pub(crate) fn compatibility(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
        fn finish(&self) -> u64 {
            0 // never asked for: the whole digest is taken below
        }
    }
    let mut sha = Sha(Sha256::new());
    sha.write(concat!("trainer-plugin-host ", env!("CARGO_PKG_VERSION"), " cache 1\n").as_bytes());
    sha.write(std::env::consts::ARCH.as_bytes());
    engine.precompile_compatibility_hash().hash(&mut sha);
    hex(&sha.0.finalize())[..32].to_owned()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

/// Advances the epoch of all engines until it is dropped.
pub(crate) struct Ticker {
    engines: Arc<Mutex<Vec<EngineWeak>>>,
    /// Dropping it ends the thread.
    _stop: Sender<()>,
}

impl Ticker {
    pub(crate) fn start() -> Result<Self, PluginError> {
        let engines: Arc<Mutex<Vec<EngineWeak>>> = Arc::default();
        let (stop, stopped) = channel::<()>();
        let ticked = Arc::clone(&engines);
        std::thread::Builder::new()
            .name("plugin-epoch".into())
            .spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(TICK) {
                    ticked.lock().unwrap_or_else(PoisonError::into_inner).retain(|engine| match engine.upgrade() {
                        Some(engine) => {
                            engine.increment_epoch();
                            true
                        }
                        None => false,
                    });
                }
            })
            .map_err(|e| PluginError::Host(format!("cannot start the thread that keeps deadlines: {e}")))?;
        Ok(Self { engines, _stop: stop })
    }

    pub(crate) fn watch(&self, engines: &Engines) {
        self.engines.lock().unwrap_or_else(PoisonError::into_inner).extend(engines.all().map(Engine::weak));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_compiled_form_serves_the_pool_and_what_goes_beyond_it() {
        let engines = Engines::new(512 << 10).unwrap();
        if let Some(pooled) = &engines.pooled {
            assert_eq!(compatibility(pooled), engines.compatibility);
        }
        let other_stack = on_demand(engines.layout, 256 << 10).unwrap();
        assert_eq!(compatibility(&other_stack), engines.compatibility, "the stack size is no part of compiled code");
        assert_ne!(compatibility(&on_demand(Layout::Wide, 1 << 19).unwrap()), compatibility(&on_demand(Layout::Compact, 1 << 19).unwrap()));
    }
}
