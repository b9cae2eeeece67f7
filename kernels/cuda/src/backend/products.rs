//! What computes large products: cublasLt where it is installed, otherwise our own kernels.

use super::CudaOptions;
use crate::blaslt::BlasLt;
use crate::device::Device;
use crate::matrix::{Matrix, Op, Out};
use crate::{CudaError, Result};
use std::fmt;
use trainer_kernels::ops::Rates;

/// Says what computes products: `own`, `cublaslt`, or nothing for cublasLt where it is installed.
pub const VARIABLE: &str = "TRAINER_CUDA_PRODUCTS";

/// How much of cublasLt's rate our own products reach, for predictions alone: 328 against about 730 TFLOP/s at 4096 x 4096 x 4096 on an H100. Before
/// Hopper, whose own instructions they do not use, they should reach more.
const SHARE: f64 = 0.45;

/// What computes large products. It decides bits, so it is part of the backend's description.
pub enum Products {
    /// cublasLt. In a box: it is large, and there is one.
    Lt(Box<BlasLt>),
    /// Our own kernels: slower, and without fp8.
    Own,
}

/// Which of the two somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Own,
    Lt,
    Whatever,
}

/// What an environment variable and the options ask for together.
fn wish(variable: Option<&str>, own: bool) -> Result<Wish> {
    match variable {
        Some("own") => Ok(Wish::Own),
        Some("cublaslt") => Ok(Wish::Lt),
        None | Some("") => Ok(if own { Wish::Own } else { Wish::Whatever }),
        Some(value) => {
            Err(CudaError::Environment { name: VARIABLE, value: value.to_owned(), need: "it may be `own` or `cublaslt`, or not be set" })
        }
    }
}

impl Products {
    /// Chooses for a card.
    ///
    /// # Errors
    /// No memory for cublasLt's workspace; or the environment demands cublasLt and it cannot be used.
    pub fn open(device: &Device, options: &CudaOptions) -> Result<Self> {
        let variable = std::env::var_os(VARIABLE).map(|v| v.to_string_lossy().into_owned());
        let wish = wish(variable.as_deref(), options.own_products)?;
        if wish == Wish::Own {
            return Ok(Products::Own);
        }
        match BlasLt::open(device, options.workspace) {
            Ok(lt) => Ok(Products::Lt(Box::new(lt))),
            Err(CudaError::CublasLt(why)) if wish == Wish::Whatever => {
                tracing::warn!("our own, slower kernels compute large products, because cublasLt cannot be used: {why}");
                Ok(Products::Own)
            }
            Err(e) => Err(e),
        }
    }

    /// `C = alpha op(A) op(B) + beta C`: see [`BlasLt::gemm`] and [`Device::gemm`].
    ///
    /// # Errors
    /// Matrices that do not fit, or the library's or the driver's own.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub fn gemm(
        &self,
        device: &Device,
        a: Matrix,
        op_a: Op,
        b: Matrix,
        op_b: Op,
        c: Out,
        m: usize,
        n: usize,
        k: usize,
        alpha: f32,
        beta: f32,
    ) -> Result<()> {
        match self {
            Products::Lt(lt) => lt.gemm(device, a, op_a, b, op_b, c, m, n, k, alpha, beta),
            Products::Own => device.gemm(a, op_a, b, op_b, c, m, n, k, alpha, beta),
        }
    }

    /// cublasLt, for what only it can do (`what`, in words).
    ///
    /// # Errors
    /// It is not in use; with what to install.
    pub fn cublaslt(&self, what: &str) -> Result<&BlasLt> {
        match self {
            Products::Lt(lt) => Ok(lt),
            Products::Own => {
                let why = crate::blaslt::present().err().unwrap_or_else(|| format!("our own products were asked for ({VARIABLE})"));
                Err(CudaError::CublasLt(format!("{what} needs it, but {why}")))
            }
        }
    }

    /// Bytes of memory that products need beside their operands.
    pub fn workspace(&self) -> usize {
        match self {
            Products::Lt(lt) => lt.workspace(),
            Products::Own => 0,
        }
    }

    /// The card's rates with these products.
    pub fn rates(&self, card: Rates) -> Rates {
        match self {
            Products::Lt(_) => card,
            Products::Own => Rates { products: SHARE * card.products, frozen: SHARE * card.frozen, ..card },
        }
    }
}

impl fmt::Display for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Products::Lt(lt) => write!(f, "cublasLt {}", lt.version()),
            Products::Own => f.write_str("own products"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_the_last_word() {
        assert_eq!(wish(None, false).unwrap(), Wish::Whatever);
        assert_eq!(wish(None, true).unwrap(), Wish::Own);
        assert_eq!(wish(Some(""), true).unwrap(), Wish::Own);
        assert_eq!(wish(Some("own"), false).unwrap(), Wish::Own);
        assert_eq!(wish(Some("cublaslt"), true).unwrap(), Wish::Lt);
        let error = wish(Some("mine"), false).unwrap_err().to_string();
        assert!(error.contains("TRAINER_CUDA_PRODUCTS=mine") && error.contains("`own`"), "{error}");
    }

    #[test]
    fn own_products_say_so_and_have_no_fp8() {
        assert_eq!((Products::Own.to_string().as_str(), Products::Own.workspace()), ("own products", 0));
        let error = Products::Own.cublaslt("fp8").err().unwrap().to_string();
        assert!(error.contains("fp8 needs it"), "{error}");
    }
}
