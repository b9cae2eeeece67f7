//! Products of frozen weights in e4m3, for groups whose sizes allow it.
//!
//! A product sums over a row of both operands, so each row has its own scale: `x Wᵀ` takes rows of `x` and of `W`, and `dy W` takes rows of `dy` and of
//! `Wᵀ`, which is rounded apart from `W`. Activations and gradients are rounded as they come (largest magnitude / 448). Adapters stay in 16 bits: their
//! thin product is written first, and the product in e4m3 is added to it.

use super::linear::bf16;
use super::weights::{Frozen, Group};
use super::{Cuda, Outcome, Precision};
use crate::blaslt::{BlasLt, Scales};
use crate::compile::Arch;
use crate::device::Device;
use crate::launch::{Eight, MOST_SMALL_ROWS};
use crate::matrix::{Matrix8, Out};
use crate::memory::{Buffer, Floats, Tensor};
use crate::{CudaError, Result as CudaResult};
use std::sync::{MutexGuard, PoisonError};
use trainer_kernels::ops::{OpsError, WeightPlan};

/// Widths of fp8 products are multiples of this.
pub(super) const PIECE: usize = 16;

/// Sums in the matrix unit's own format, of about 14 bits: their error is a tenth of that of the operands.
const FAST: bool = true;

/// How much faster frozen products are than in bf16, the rounding of their operands counted in.
pub(super) const GAIN: f64 = 1.6;

/// The frozen weights of a group in e4m3.
pub(super) struct Eights {
    /// `W`, `[out, in]`, and its scales.
    forward: Half,
    /// `Wᵀ`, `[in, out]`, and its scales.
    backward: Half,
}

impl Eights {
    /// Whether the values are there, and not only their scales.
    pub(super) fn kept(&self) -> bool {
        matches!(self.forward, Half::Kept(_))
    }
}

enum Half {
    Kept(Eight),
    /// The scales alone: the values are made for each use.
    Scales(Floats),
}

/// The operand that was rounded last.
#[derive(Default)]
pub(super) struct Rounded {
    eight: Option<Eight>,
    /// The tensor whose rows it holds, as long as nothing has been written since: address, rows, columns.
    of: Option<(u64, usize, usize)>,
}

impl Rounded {
    fn room(&mut self, cuda: &Cuda, n: usize, width: usize) -> CudaResult<&mut Eight> {
        self.of = None;
        if self.eight.as_ref().is_none_or(|e| !e.holds(n, width)) {
            // Every operand takes turns in it: it only grows.
            let (bytes, rows) = self.eight.as_ref().map_or((0, 0), |e| (e.values().len(), e.scales().len()));
            self.eight = None;
            cuda.replace();
            self.eight = Some(cuda.device.eight(bytes.max(n.saturating_mul(width)), rows.max(n), "operands in fp8")?);
        }
        self.eight.as_mut().ok_or_else(|| CudaError::CublasLt("no room for operands in fp8: a bug in trainer-kernels-cuda".into()))
    }
}

/// Whether the sizes of a group allow products in e4m3.
pub(super) fn fits(outs: impl IntoIterator<Item = usize>, inner: usize) -> bool {
    inner.is_multiple_of(PIECE) && inner > 0 && outs.into_iter().all(|out| out.is_multiple_of(PIECE))
}

/// An error unless card and library multiply rows in e4m3; whether they also add to what is there.
pub(super) fn check(device: &Device, blas: &BlasLt) -> CudaResult<bool> {
    if device.arch() != Arch::Sm90a {
        return Err(CudaError::Precision { why: format!("this card's code is that of {}", device.arch().name()) });
    }
    let (m, k) = (64, 64);
    let mut eight = device.eight(m * k, m, "a trial of fp8")?;
    let zeros = device.tensor(k, &vec![0.0; m * k])?;
    device.eight_rows(m, &zeros, &mut eight)?;
    let mut c = Tensor::new(device.arena(), m, m, "a trial of fp8")?;
    let mut attempt = |beta: f32| {
        let (a, scales) = (eight.matrix(m, k)?, eight.scales());
        blas.gemm_fp8(device, a, a, Scales::Rows { a: scales, b: scales }, FAST, Out::tensor(&mut c, m)?, m, m, k, 1.0, beta)
    };
    attempt(0.0).map_err(|e| CudaError::Precision { why: e.to_string() })?;
    Ok(attempt(1.0).is_ok())
}

impl Cuda {
    fn rounded(&self) -> MutexGuard<'_, Rounded> {
        self.rounded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tensor is written: what was rounded may no longer be what it holds.
    pub(super) fn forget(&self) {
        if self.options.precision == Precision::Fp8 {
            self.rounded().of = None;
        }
    }

    /// Whether a result of so many rows and columns is worth rounding while it is at hand.
    pub(super) fn rounds(&self, n: usize, cols: usize, most: usize) -> bool {
        self.options.precision == Precision::Fp8 && n > MOST_SMALL_ROWS && cols.is_multiple_of(PIECE) && cols <= most
    }

    /// Runs a kernel that writes `t`, `n` rows, and beside it the same in e4m3 if that is wanted.
    pub(super) fn rounding(
        &self,
        wanted: bool,
        n: usize,
        t: &mut Tensor,
        launch: impl FnOnce(&mut Tensor, Option<&mut Eight>) -> CudaResult<()>,
    ) -> Outcome<()> {
        if !wanted {
            self.forget();
            return Ok(launch(t, None)?);
        }
        let mut rounded = self.rounded();
        let eight = rounded.room(self, n, t.cols())?;
        launch(t, Some(eight))?;
        rounded.of = Some((t.ptr(), n, t.cols()));
        Ok(())
    }

    /// The weights of a group in e4m3; none where it is not to be, or its sizes do not allow it.
    pub(super) fn eights(&self, group: &Group, plan: WeightPlan, fill: impl FnOnce(&mut Tensor) -> Outcome<()>) -> Outcome<Option<Eights>> {
        if self.options.precision != Precision::Fp8 {
            return Ok(None);
        }
        let (out, inner) = (group.out_features, group.in_features);
        // Two copies in eight bits take no more than one in sixteen.
        let packed = plan == WeightPlan::Packed && group.members.iter().all(|m| matches!(m.frozen, Some(Frozen::Nf4(_))));
        if !fits(group.members.iter().map(|m| m.out), inner) {
            tracing::debug!(out, inner, "a group stays in bf16: sizes of fp8 products are multiples of {PIECE}");
            return Ok(None);
        }
        let d = &self.device;
        let mut dense = Tensor::new(d.arena(), out, inner, "weights on their way to fp8")?;
        fill(&mut dense)?;
        let values = out.saturating_mul(inner);
        let mut forward = d.eight(values, out, "weights in fp8")?;
        d.eight_rows(out, &dense, &mut forward)?;
        if packed {
            let mut columns = d.buffer(inner, "scales of weights")?;
            d.eight_column_scales(&dense, &mut columns)?;
            return Ok(Some(Eights { forward: Half::Scales(forward.into_scales()), backward: Half::Scales(columns) }));
        }
        let mut backward = d.eight(values, inner, "weights in fp8")?;
        let (bytes, scales) = backward.parts();
        d.eight_column_scales(&dense, scales)?;
        d.eight_transposed(&dense, scales, bytes, 0, out)?;
        Ok(Some(Eights { forward: Half::Kept(forward), backward: Half::Kept(backward) }))
    }

    /// `C [n, width] = x Wᵀ + beta C` with `x` rounded here unless it was rounded where it was made.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    fn product8(&self, n: usize, x: &Tensor, weights: Matrix8, scales: &Floats, c: Out, width: usize, beta: f32) -> Outcome<()> {
        let k = x.cols();
        let mut rounded = self.rounded();
        if rounded.of != Some((x.ptr(), n, k)) {
            let eight = rounded.room(self, n, k)?;
            self.device.eight_rows(n, x, eight)?;
            rounded.of = Some((x.ptr(), n, k));
        }
        let Some(eight) = &rounded.eight else { return Err(OpsError::Device("no operand: a bug in trainer-kernels-cuda".into())) };
        let a = eight.matrix(n, k)?;
        let name = || format!("fp8 product {n} x {width} x {k}{}", if beta == 0.0 { "" } else { " +=" });
        let by = Scales::Rows { a: eight.scales(), b: scales };
        let blas = self.products.cublaslt("a product in fp8")?;
        let launch = || blas.gemm_fp8(&self.device, a, weights, by, FAST, c, n, width, k, 1.0, beta);
        Ok(self.device.profile().span(self.device.stream(), name, launch)?)
    }

    /// `out = x Wᵀ + beta out`.
    pub(super) fn forward8(&self, n: usize, x: &Tensor, w: &Group, eights: &Eights, out: &Tensor, beta: f32) -> Outcome<()> {
        let (inner, outer) = (w.in_features, w.out_features);
        let store = bf16(out, 0, outer);
        match &eights.forward {
            Half::Kept(kept) => self.product8(n, x, kept.matrix(outer, inner)?, kept.scales(), store, outer, beta),
            Half::Scales(scales) => self.with_values8(w, |values| {
                for m in &w.members {
                    match &m.frozen {
                        Some(Frozen::Nf4(nf4)) => self.device.nf4_eight(nf4, scales, values, m.column)?,
                        _ => return Err(dropped()),
                    }
                }
                self.product8(n, x, Matrix8::buffer(values, 0, outer, inner)?, scales, store, outer, beta)
            }),
        }
    }

    /// `dx = dy W + beta dx`.
    pub(super) fn backward8(&self, n: usize, dy: &Tensor, w: &Group, eights: &Eights, dx: &Tensor, beta: f32) -> Outcome<()> {
        let (inner, outer) = (w.in_features, w.out_features);
        let store = bf16(dx, 0, inner);
        match &eights.backward {
            Half::Kept(kept) => self.product8(n, dy, kept.matrix(inner, outer)?, kept.scales(), store, inner, beta),
            Half::Scales(scales) => self.with_values8(w, |values| {
                for m in &w.members {
                    match &m.frozen {
                        Some(Frozen::Nf4(nf4)) => self.device.nf4_eight_transposed(nf4, scales, values, m.column, outer)?,
                        _ => return Err(dropped()),
                    }
                }
                self.product8(n, dy, Matrix8::buffer(values, 0, inner, outer)?, scales, store, inner, beta)
            }),
        }
    }

    /// `C = thin + wide`, given launches of both: the product in e4m3 is added to the adapters', or the other way around where the library cannot.
    pub(super) fn sum8(&self, thin: impl Fn(f32) -> Outcome<()>, wide: impl Fn(f32) -> Outcome<()>) -> Outcome<()> {
        if self.sums8 {
            thin(0.0)?;
            wide(1.0)
        } else {
            wide(0.0)?;
            thin(1.0)
        }
    }

    /// Runs `work` with room for a group's values that are made for each use.
    fn with_values8(&self, w: &Group, work: impl FnOnce(&mut Buffer<u8>) -> Outcome<()>) -> Outcome<()> {
        let need = w.out_features.saturating_mul(w.in_features);
        let mut held = self.values8.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|b| b.len() < need) {
            *held = None;
            self.replace();
            *held = Some(self.device.buffer(need, "weights in fp8")?);
        }
        match held.as_mut() {
            Some(values) => work(values),
            None => Err(dropped()),
        }
    }
}

fn dropped() -> OpsError {
    OpsError::Device("weights were dropped that are needed: a bug in trainer-kernels-cuda".into())
}
