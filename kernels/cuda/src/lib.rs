//! CUDA kernels of the engine: inside the program or compiled by NVRTC for the card at hand, launched, and checked against the CPU reference.
//!
//! Nothing here needs CUDA to build or to start: the driver, NVRTC and cublasLt are loaded at run time, each guarded by itself, and
//! [`probe::probe`] says what was found. Only the driver is always needed: a release holds the machine code of all kernels ([`archive`]), and
//! products that cublasLt computes have a twin of our own. The sources (`src/*.cu`) use no header, so that users need none. Every kernel computes what
//! [`trainer_kernels::ops::Ops`] says of the operation, on bf16 activations with f32 arithmetic and with reductions in a fixed order.

pub mod archive;
pub mod backend;
pub mod blaslt;
pub mod cache;
pub mod code;
pub mod compile;
pub mod cubin;
pub mod device;
pub mod graph;
pub mod launch;
pub mod matrix;
pub mod memory;
pub mod nvrtc;
pub mod places;
pub mod probe;
pub mod profile;
pub mod ranges;
pub mod selftest;

pub use backend::{Cuda, CudaOptions, Precision};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The NVIDIA driver's library cannot be loaded.
    #[error("no NVIDIA driver was found (libcuda.so.1): install the driver, or use the CPU")]
    NoDriver,
    /// NVRTC cannot be loaded.
    #[error(
        "NVRTC cannot be loaded: {why}. Install the CUDA 13 toolkit or `pip install 'nvidia-cuda-nvrtc==13.*'`, or set TRAINER_NVRTC to the folder of libnvrtc.so.13"
    )]
    NoNvrtc {
        /// Every place that was tried.
        why: String,
    },
    /// The program has no code for a card and cannot compile it.
    #[error("this program holds no kernels for {arch}{}, and {nvrtc}", broken_text(.archive))]
    NoCode {
        /// The architecture.
        arch: &'static str,
        /// What is wrong with the archive in the program, if there is one that cannot be read.
        archive: Option<archive::ArchiveError>,
        /// Why there is no compiler, and how to get it.
        nvrtc: String,
    },
    /// An archive of kernels cannot be made or read.
    #[error(transparent)]
    Archive(archive::ArchiveError),
    /// A kernel does not compile.
    #[error("{source_file} does not compile for {arch}: {status}\n{log}")]
    Compile {
        /// The kernel file.
        source_file: &'static str,
        /// The architecture.
        arch: &'static str,
        /// NVRTC's status.
        status: String,
        /// NVRTC's messages.
        log: String,
    },
    /// No cubin can serve the card.
    #[error("compute capability {major}.{minor} is not supported: 8.0 or newer is needed")]
    Capability {
        /// Major version.
        major: i32,
        /// Minor version.
        minor: i32,
    },
    /// A buffer or size does not fit the operation.
    #[error("{op}: {what} is {got} where {need} is needed")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Its size.
        got: usize,
        /// The size needed, in words.
        need: String,
    },
    /// A kernel that this card's code does not have.
    #[error("there is no kernel {name} for {arch}")]
    NoKernel {
        /// The kernel.
        name: &'static str,
        /// The architecture.
        arch: &'static str,
    },
    /// A launch with other arguments than the kernel has: a bug in its launcher.
    #[error("{name} was launched with {got} arguments; it has parameters of {need:?} bytes")]
    Arguments {
        /// The kernel.
        name: &'static str,
        /// How many were given.
        got: usize,
        /// The sizes of its parameters.
        need: Vec<usize>,
    },
    /// Memory cannot be had.
    #[error("no memory on the card for {what}: {bytes} bytes more than the {reserved} taken so far{}", limit_text(.limit))]
    Memory {
        /// What it was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
        /// What had been taken before.
        reserved: u64,
        /// The limit that was set, if any.
        limit: Option<u64>,
    },
    /// The optimizer's settings, step or state are not usable.
    #[error(transparent)]
    AdamW(#[from] trainer_kernels::adamw::AdamWError),
    /// A weight cannot be quantized as asked for.
    #[error(transparent)]
    Nf4(#[from] trainer_kernels::nf4::Nf4Error),
    /// Host memory cannot be had or pinned.
    #[error("no pinned host memory for {what}: {bytes} bytes; free host memory, or raise the limit of locked memory (ulimit -l)")]
    Pinned {
        /// What it was for.
        what: String,
        /// How much.
        bytes: u64,
    },
    /// The card, or its library, has no products in the precision asked for.
    #[error("fp8 products need an H100 or H200 (compute capability 9.0) and cublasLt 12.9 or newer: {why}; use bf16")]
    Precision {
        /// What is missing.
        why: String,
    },
    /// cublasLt cannot be used or reports an error.
    #[error("cublasLt: {0}")]
    CublasLt(String),
    /// An environment variable says something that is not known.
    #[error("{name}={value}: {need}")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        need: &'static str,
    },
    /// The driver reports an error.
    #[error("CUDA: {0}")]
    Driver(#[from] cudarc::driver::DriverError),
}

fn limit_text(limit: &Option<u64>) -> String {
    limit.map(|l| format!(" (limit {l})")).unwrap_or_default()
}

fn broken_text(archive: &Option<archive::ArchiveError>) -> String {
    archive.as_ref().map(|e| format!(" ({e})")).unwrap_or_default()
}

/// Shorthand for results.
pub type Result<T> = std::result::Result<T, CudaError>;
