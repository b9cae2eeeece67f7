//! Every kernel against its CPU reference, on fresh random inputs of odd shapes, with outputs poisoned beforehand.

use crate::device::Device;
use crate::memory::{Floats, Tensor};
use half::bf16;
use serde::Serialize;
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels::ops::{Ops, OpsError};

mod adamw;
mod attention;
mod decode;
mod elementwise;
mod fp8;
mod gemm;
mod lora;
mod loss;
mod nf4;
mod norm;
mod quantize;
mod rope;
mod sampling;

/// Relative error of a bf16 result whose inputs are exact: rounding alone gives about 0.0017 (uniform in half a unit of 2⁻⁸).
pub const BF16: f64 = 3e-3;
/// Relative error of f32 statistics.
pub const F32: f64 = 1e-5;

/// What can go wrong beside a wrong result.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// From the card.
    #[error(transparent)]
    Cuda(#[from] crate::CudaError),
    /// From the reference.
    #[error("the CPU reference: {0}")]
    Reference(#[from] OpsError),
    /// A kernel took what it must refuse, or a reference cannot be made.
    #[error("{0}")]
    Other(String),
}

/// Shorthand for results.
pub type Outcome<T> = std::result::Result<T, CheckError>;

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The kernel, and which of its outputs.
    pub kernel: String,
    /// The shape.
    pub shape: String,
    /// `‖got - want‖ / ‖want‖`.
    pub relative: f64,
    /// The largest difference.
    pub max: f64,
    /// The largest relative error that passes.
    pub tolerance: f64,
    /// Whether it passed.
    pub pass: bool,
}

/// The groups of checks.
pub const GROUPS: &[&str] = &[
    "nf4",
    "norm",
    "rope",
    "elementwise",
    "attention",
    "loss",
    "adamw",
    "lora",
    "quantize",
    "sampling",
    "gemm",
    "lora_gemm",
    "decode",
    "fp8",
];

/// How checks are run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Where random inputs come from.
    pub seed: u64,
    /// Leaves out the larger shapes: for a quick look, and for tools under which kernels are many times slower (`compute-sanitizer`).
    pub quick: bool,
}

/// Values of the largest matrix of a check that a quick run still makes.
const QUICK: usize = 1 << 18;

/// Runs the checks of some groups (none named: all). `seen` hears of each comparison.
///
/// # Errors
/// The card or the reference fails; a wrong result is no error but a comparison that did not pass.
pub fn run(device: &Device, groups: &[String], options: Options, seen: &mut dyn FnMut(&Comparison)) -> Outcome<Vec<Comparison>> {
    let cpu = Cpu::new(CpuOptions { threads: 0 })?;
    let mut checks = Checks { device, cpu, random: Random::new(options.seed), quick: options.quick, rows: Vec::new(), seen };
    for &group in GROUPS.iter().filter(|g| groups.is_empty() || groups.iter().any(|wanted| wanted == **g)) {
        match group {
            "nf4" => checks.all_nf4()?,
            "norm" => checks.all_norm()?,
            "rope" => checks.all_rope()?,
            "elementwise" => checks.all_elementwise()?,
            "loss" => checks.all_loss()?,
            "adamw" => checks.all_adamw()?,
            "lora" => checks.all_lora()?,
            "quantize" => checks.all_quantize()?,
            "attention" => checks.all_attention()?,
            "sampling" => checks.all_sampling()?,
            "gemm" => checks.all_gemm()?,
            "lora_gemm" => checks.all_lora_gemm()?,
            "decode" => checks.all_decode()?,
            "fp8" => checks.all_fp8()?,
            other => return Err(CheckError::Other(format!("no checks are called {other}"))),
        }
    }
    Ok(checks.rows)
}

/// SplitMix64 (Steele et al. 2014).
pub struct Random(u64);

impl Random {
    /// A stream.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// About normal (the sum of four uniform values, scaled to deviation 1), rounded to bf16.
    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                let b = self.bits();
                let sum: f32 = (0..4).map(|i| ((b >> (16 * i)) & 0xffff) as f32 / 65536.0 - 0.5).sum();
                bf16::from_f32(sum * 1.732).to_f32()
            })
            .collect()
    }
    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.bits() % n
    }
}

/// A run of checks.
pub(crate) struct Checks<'a> {
    pub device: &'a Device,
    pub cpu: Cpu,
    pub random: Random,
    quick: bool,
    rows: Vec<Comparison>,
    seen: &'a mut dyn FnMut(&Comparison),
}

impl Checks<'_> {
    /// Compares a result with its reference.
    pub fn note(&mut self, kernel: &str, shape: impl Into<String>, got: &[f32], want: &[f32], tolerance: f64) {
        let (mut error, mut norm, mut most) = (0.0f64, 0.0f64, 0.0f64);
        for (&g, &w) in got.iter().zip(want) {
            let d = f64::from(g) - f64::from(w);
            error += d * d;
            norm += f64::from(w) * f64::from(w);
            most = if d.is_nan() { f64::INFINITY } else { most.max(d.abs()) };
        }
        let relative = (error / norm.max(f64::MIN_POSITIVE)).sqrt();
        // Written so that NaN fails.
        let pass = got.len() == want.len() && relative <= tolerance;
        let row = Comparison { kernel: kernel.into(), shape: shape.into(), relative, max: most, tolerance, pass };
        (self.seen)(&row);
        self.rows.push(row);
    }

    /// Whether a check whose largest matrix has so many values is left out.
    pub fn large(&self, values: usize) -> bool {
        self.quick && values > QUICK
    }

    /// A tensor of NaN, so that what is not written is seen.
    pub fn poison(&self, rows: usize, cols: usize) -> Outcome<Tensor> {
        Ok(self.device.tensor(cols, &vec![f32::NAN; rows * cols])?)
    }

    /// Statistics of NaN.
    pub fn poison_floats(&self, n: usize) -> Outcome<Floats> {
        Ok(self.device.floats(&vec![f32::NAN; n])?)
    }

    /// A tensor in rows that lie `gap` values further apart than they are long, with a neighbour of NaN in the gap.
    pub fn apart(&self, cols: usize, gap: usize, values: &[f32]) -> Outcome<(Tensor, Tensor)> {
        let rows = values.len() / cols.max(1);
        let (mut left, mut right) = Tensor::pair(self.device.arena(), rows, cols, gap, cols + gap, "a tensor with a gap")?;
        self.device.write_tensor(values, &mut left)?;
        self.device.write_tensor(&vec![f32::NAN; rows * gap], &mut right)?;
        Ok((left, right))
    }

    /// A tensor of the reference.
    pub fn host(&self, rows: usize, cols: usize, values: &[f32]) -> Outcome<<Cpu as Ops>::Tensor> {
        let mut t = self.cpu.tensor(rows, cols)?;
        self.cpu.write_tensor(values, &mut t)?;
        Ok(t)
    }
}
