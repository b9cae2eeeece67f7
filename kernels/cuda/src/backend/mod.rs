//! The CUDA backend: [`trainer_kernels::ops::Ops`] on bf16 activations with f32 accumulation, f32 adapters and statistics, in one arena.

mod adapters;
mod cached;
mod fp8;
mod linear;
mod loss;
mod ops;
mod optimizer;
mod outside;
mod products;
mod recording;
mod stored;
mod types;
mod weights;

pub use outside::Offloaded;
pub use products::Products;
pub use recording::Recording;
pub use types::{Batch, Param, Table};
pub use weights::Group;

use crate::code::Code;
use crate::device::Device;
use crate::launch::{Angles, AttentionScratch, POSITIONS};
use crate::matrix::{Matrix, Op, Out};
use crate::memory::{Buffer, Floats, Tensor, Usage};
use crate::{CudaError, Result as CudaResult};
use cudarc::driver::CudaStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use trainer_kernels::ops::{OpsError, Result as Outcome};
use weights::Extended;

impl From<CudaError> for OpsError {
    fn from(e: CudaError) -> Self {
        OpsError::Device(e.to_string())
    }
}

/// What products of frozen weights are computed in; everything else is bf16 and f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 with f32 sums.
    #[default]
    Bf16,
    /// e4m3 with a scale for each row of both operands, where a group's sizes are multiples of 16.
    Fp8,
}

/// How the backend works.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which card.
    pub ordinal: usize,
    /// Bytes of cublasLt's workspace.
    pub workspace: usize,
    /// More than this many bytes of the card are refused.
    pub memory_limit: Option<u64>,
    /// What products of frozen weights are computed in.
    pub precision: Precision,
    /// Our own kernels compute large products even where cublasLt is installed. The environment variable `TRAINER_CUDA_PRODUCTS` has the last word.
    pub own_products: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self { ordinal: 0, workspace: 64 << 20, memory_limit: None, precision: Precision::default(), own_products: false }
    }
}

/// Buffers that operations take turns in.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Unpacked weights.
    weights: Option<Extended>,
    /// Adapters beside weights in e4m3.
    adapters: Option<Extended>,
}

/// The CUDA backend.
pub struct Cuda {
    device: Device,
    products: Products,
    options: CudaOptions,
    loss_rows: AtomicUsize,
    name: String,
    angles: Mutex<Option<Arc<Angles>>>,
    /// Grows whenever a buffer that operations take turns in is replaced: recorded launches hold their addresses.
    replaced: AtomicU64,
    scratch: Mutex<Scratch>,
    rounded: Mutex<fp8::Rounded>,
    /// The most bytes that adapters take beside a row in e4m3.
    beside8: AtomicUsize,
    /// Zeros for the making of adapters' factors.
    counts8: Mutex<Option<Floats>>,
    /// Weights in e4m3 that are made for each use.
    values8: Mutex<Option<Buffer<u8>>>,
    /// Whether the library's fp8 products can be added to what is there.
    sums8: bool,
    /// Where weights pass through that are loaded.
    pieces: Mutex<stored::Pieces>,
    /// The stream of copies to and from the host.
    copies: Mutex<Option<Arc<CudaStream>>>,
    dropped: Mutex<Option<Tensor>>,
    loss: Mutex<Option<loss::Scratch>>,
    attention: Mutex<Option<AttentionScratch>>,
    cached: Mutex<Option<cached::Scratch>>,
    /// Logits and the tokens chosen from them.
    chosen: Mutex<loss::Chosen>,
    /// Partial sums of adapters' products.
    partial: Mutex<Option<Floats>>,
    optimizer: Mutex<optimizer::Lists>,
}

impl Cuda {
    /// Opens a card.
    ///
    /// # Errors
    /// No driver, a card that is too old, no code for it and no compiler, or the driver's own errors.
    pub fn open(options: CudaOptions) -> CudaResult<Self> {
        let device = Device::open(options.ordinal, &Code::installed())?;
        Self::with_device(device, options)
    }

    /// A backend on a card that was opened before.
    ///
    /// # Errors
    /// The card has not got the memory; `TRAINER_CUDA_PRODUCTS` demands what is not there.
    pub fn with_device(device: Device, options: CudaOptions) -> CudaResult<Self> {
        device.arena().limit(options.memory_limit);
        let products = Products::open(&device, &options)?;
        let name = device.name()?;
        let sums8 = options.precision == Precision::Fp8 && fp8::check(&device, products.cublaslt("training in fp8")?)?;
        Ok(Self {
            device,
            products,
            options,
            loss_rows: AtomicUsize::new(1024),
            name,
            angles: Mutex::default(),
            replaced: AtomicU64::new(0),
            scratch: Mutex::default(),
            rounded: Mutex::default(),
            beside8: AtomicUsize::new(0),
            counts8: Mutex::default(),
            values8: Mutex::default(),
            sums8,
            pieces: Mutex::default(),
            copies: Mutex::default(),
            dropped: Mutex::default(),
            loss: Mutex::default(),
            attention: Mutex::default(),
            cached: Mutex::default(),
            chosen: Mutex::default(),
            partial: Mutex::default(),
            optimizer: Mutex::default(),
        })
    }

    /// The card.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What computes large products.
    pub fn products(&self) -> &Products {
        &self.products
    }

    /// The card's name, such as `NVIDIA H100 80GB HBM3`.
    pub fn card(&self) -> &str {
        &self.name
    }

    /// What its memory holds.
    pub fn usage(&self) -> Usage {
        self.device.arena().usage()
    }

    #[expect(clippy::too_many_arguments, reason = "a product has two operands, a result, three sizes and two factors")]
    fn gemm(&self, a: Matrix, op_a: Op, b: Matrix, op_b: Op, c: Out, m: usize, n: usize, k: usize, alpha: f32, beta: f32) -> Outcome<()> {
        let name = || format!("product {m} x {n} x {k}{}", if beta == 0.0 { "" } else { " +=" });
        let launch = || self.products.gemm(&self.device, a, op_a, b, op_b, c, m, n, k, alpha, beta);
        Ok(self.device.profile().span(self.device.stream(), name, launch)?)
    }

    /// A buffer that operations take turns in is replaced.
    fn replace(&self) {
        self.replaced.fetch_add(1, Ordering::Relaxed);
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Angles that reach the batch's positions.
    fn angles(&self, op: &'static str, batch: &Batch, theta: f64, head_dim: usize) -> Outcome<Arc<Angles>> {
        let last = batch.reach.max(1) - 1;
        if last >= POSITIONS {
            return Err(OpsError::Index { op, what: "position", index: last as u64, limit: POSITIONS as u64 });
        }
        let mut held = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(a) = held.as_ref().filter(|a| a.theta == theta && a.head_dim == head_dim && a.positions > last) {
            return Ok(Arc::clone(a));
        }
        let made = Arc::new(self.device.angles((last + 1).next_power_of_two().clamp(4096, POSITIONS), head_dim, theta)?);
        *held = Some(Arc::clone(&made));
        self.replace();
        Ok(made)
    }
}
