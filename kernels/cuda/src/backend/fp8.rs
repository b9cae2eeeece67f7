//! Products of frozen weights in e4m3, for groups whose sizes allow it.
//!
//! A product sums over a row of both operands, so each row has its own scale: `x Wᵀ` takes rows of `x` and of `W`, and `dy W` takes rows of `dy` and of
//! `Wᵀ`, which is rounded apart from `W`. Activations and gradients are rounded as they come (largest magnitude / 448). Adapters are a few more columns of
//! the same product, each number as a sum of two in e4m3 (see `eight_adapters.cu`); where there is no room for them, their thin product is written
//! in 16 bits, and the product in e4m3 is added to it.

use super::linear::bf16;
use super::weights::{Extended, Frozen, Group};
use super::{Cuda, Outcome, Precision};
use crate::blaslt::{BlasLt, Scales};
use crate::compile::Arch;
use crate::device::Device;
use crate::launch::{Eight, MOST_SMALL_ROWS, Side, beside_eight, factor_counts, stride_eight};
use crate::matrix::{Matrix, Matrix8, Out};
use crate::memory::{Buffer, Floats, Tensor};
use crate::{CudaError, Result as CudaResult};
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};
use trainer_kernels::ops::{OpsError, WeightPlan};

/// Widths of fp8 products are multiples of this.
pub(super) const PIECE: usize = 16;

/// Sums in the matrix unit's own format, of about 14 bits: their error is a tenth of that of the operands.
const FAST: bool = true;

/// How much faster frozen products are than in bf16, the rounding of their operands counted in.
pub(super) const GAIN: f64 = 1.8;

/// The frozen weights of a group in e4m3.
pub(super) struct Eights {
    /// `W`, `[out, in]`, and its scales.
    forward: Half,
    /// `Wᵀ`, `[in, out]`, and its scales.
    backward: Half,
    /// Ranks of adapters that there is room for beside both.
    room: usize,
}

/// An adapter's share of a product: what lies beside `x` and beside the weights.
#[derive(Clone, Copy)]
pub(super) struct Beside<'a> {
    /// mid or dmid.
    pub mid: Matrix,
    /// s B and A.
    pub adapters: &'a Extended,
}

impl Eights {
    /// Whether the values are there, and not only their scales.
    pub(super) fn kept(&self) -> bool {
        matches!(self.forward, Half::Kept(_))
    }

    /// Whether adapters of these ranks go into the product.
    pub(super) fn takes(&self, ranks: &[usize], total: usize) -> bool {
        total > 0 && total <= self.room && ranks.iter().all(|r| r.is_multiple_of(8))
    }

    fn scales(&self) -> (&Floats, &Floats) {
        (self.forward.scales(), self.backward.scales())
    }
}

enum Half {
    Kept(Eight),
    /// The scales alone: the values are made for each use.
    Scales(Floats),
}

impl Half {
    fn scales(&self) -> &Floats {
        match self {
            Half::Kept(eight) => eight.scales(),
            Half::Scales(scales) => scales,
        }
    }
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
        let beside = cuda.beside8.load(Ordering::Relaxed);
        if self.eight.as_ref().is_none_or(|e| !e.holds(n, width) || e.beside() != beside) {
            // Every operand takes turns in it: it only grows.
            let (bytes, rows) = self.eight.as_ref().map_or((0, 0), |e| (e.values().len(), e.scales().len()));
            self.eight = None;
            cuda.replace();
            let bytes = bytes.max(n.saturating_mul(stride_eight(width, beside)));
            self.eight = Some(cuda.device.eight(bytes, rows.max(n), beside, "operands in fp8")?);
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
    let mut eight = device.eight(m * k, m, 0, "a trial of fp8")?;
    let zeros = device.tensor(k, &vec![0.0; m * k])?;
    device.eight_rows(m, &zeros, None, &mut eight)?;
    let mut c = Tensor::new(device.arena(), m, m, "a trial of fp8")?;
    let mut attempt = |beta: f32| {
        let (a, scales) = (eight.matrix(m, k, 0)?, eight.scales());
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
    pub(super) fn eights(
        &self,
        group: &Group,
        plan: WeightPlan,
        ranks: usize,
        fill: impl FnOnce(&mut Tensor) -> Outcome<()>,
    ) -> Outcome<Option<Eights>> {
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
        let beside = beside_eight(ranks);
        self.beside8.fetch_max(beside, Ordering::Relaxed);
        let counts = factor_counts(ranks);
        let mut held = self.counts8.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_none_or(|c| c.len() < counts) {
            *held = None;
            self.replace();
            *held = Some(d.zeros(counts, "adapters' counts")?);
        }
        drop(held);
        let mut smallest = d.buffer(1, "scales of weights")?;
        if packed {
            let mut columns = d.buffer(inner, "scales of weights")?;
            d.eight_column_scales(&dense, &mut columns, &mut smallest)?;
            let mut forward = d.eight(out.saturating_mul(inner), out, 0, "weights in fp8")?;
            d.eight_rows(out, &dense, Some(&smallest), &mut forward)?;
            return Ok(Some(Eights { forward: Half::Scales(forward.into_scales()), backward: Half::Scales(columns), room: ranks }));
        }
        let room = |rows: usize, width: usize| d.eight(rows.saturating_mul(stride_eight(width, beside)), rows, beside, "weights in fp8");
        let (mut forward, mut backward) = (room(out, inner)?, room(inner, out)?);
        let stride = backward.stride(out);
        let (bytes, scales) = backward.parts();
        d.eight_column_scales(&dense, scales, &mut smallest)?;
        d.eight_transposed(&dense, scales, bytes, 0, stride)?;
        d.eight_rows(out, &dense, Some(&smallest), &mut forward)?;
        Ok(Some(Eights { forward: Half::Kept(forward), backward: Half::Kept(backward), room: ranks }))
    }

    /// What adapters that were just written need in fp8: the factors of their ranks, and their columns beside weights that are kept.
    pub(super) fn pack8(&self, eights: &Eights, ranks: usize, adapters: &mut Extended) -> Outcome<()> {
        let ((outs, ins), scales) = (adapters.parts(ranks), eights.scales());
        let Some(factors) = &mut adapters.factors else { return Err(dropped()) };
        let mut counts = self.counts8.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = counts.as_mut().ok_or_else(dropped)?;
        self.device.adapter_factors(outs, ins, scales.0, scales.1, counts, factors)?;
        if let (Half::Kept(forward), Half::Kept(backward)) = (&eights.forward, &eights.backward) {
            let (inner, outer) = (ins.cols, outs.rows);
            self.device.adapter_outs_eight(outs, scales.0, factors, forward.values(), inner, forward.stride(inner))?;
            self.device.adapter_ins_eight(ins, scales.1, factors, backward.values(), outer, backward.stride(outer))?;
        }
        Ok(())
    }

    /// `C [n, width] = x Wᵀ + beta C` with `x` rounded here unless it was rounded where it was made, and an adapter's share if its part of the weights is
    /// beside them.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    fn product8(
        &self,
        n: usize,
        x: &Tensor,
        weights: Matrix8,
        scales: &Floats,
        c: Out,
        width: usize,
        beta: f32,
        with: Option<(Beside<'_>, Side)>,
    ) -> Outcome<()> {
        let mut rounded = self.rounded();
        if rounded.of != Some((x.ptr(), n, x.cols())) {
            let eight = rounded.room(self, n, x.cols())?;
            self.device.eight_rows(n, x, None, eight)?;
            rounded.of = Some((x.ptr(), n, x.cols()));
        }
        let eight = rounded.eight.as_mut().ok_or_else(dropped)?;
        let mut more = 0;
        if let Some((Beside { mid, adapters }, side)) = with {
            let factors = adapters.factors.as_ref().ok_or_else(dropped)?;
            self.device.adapter_mid_eight(n, mid, side, factors, x, eight)?;
            more = beside_eight(mid.cols);
        }
        let (a, k) = (eight.matrix(n, x.cols(), more)?, x.cols() + more);
        let name = || format!("fp8 product {n} x {width} x {k}{}", if beta == 0.0 { "" } else { " +=" });
        let by = Scales::Rows { a: eight.scales(), b: scales };
        let blas = self.products.cublaslt("a product in fp8")?;
        let launch = || blas.gemm_fp8(&self.device, a, weights, by, FAST, c, n, width, k, 1.0, beta);
        Ok(self.device.profile().span(self.device.stream(), name, launch)?)
    }

    /// `out = x Wᵀ + beta out`, and an adapter's share.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub(super) fn forward8(
        &self,
        n: usize,
        x: &Tensor,
        w: &Group,
        eights: &Eights,
        out: &Tensor,
        beta: f32,
        with: Option<Beside<'_>>,
    ) -> Outcome<()> {
        let (inner, outer) = (w.in_features, w.out_features);
        let (store, more) = (bf16(out, 0, outer), with.map_or(0, |b| beside_eight(b.mid.cols)));
        let with = with.map(|b| (b, Side::Forward));
        match &eights.forward {
            Half::Kept(kept) => self.product8(n, x, kept.matrix(outer, inner, more)?, kept.scales(), store, outer, beta, with),
            Half::Scales(scales) => {
                let stride = stride_eight(inner, more);
                self.with_values8(outer.saturating_mul(stride), |values| {
                    for m in &w.members {
                        match &m.frozen {
                            Some(Frozen::Nf4(nf4)) => self.device.nf4_eight(nf4, scales, values, m.column, stride)?,
                            _ => return Err(dropped()),
                        }
                    }
                    if let Some((Beside { mid, adapters }, _)) = with {
                        let factors = adapters.factors.as_ref().ok_or_else(dropped)?;
                        self.device.adapter_outs_eight(adapters.parts(mid.cols).0, scales, factors, values, inner, stride)?;
                    }
                    let weights = Matrix8::columns(values, outer, inner + more, stride)?;
                    self.product8(n, x, weights, scales, store, outer, beta, with)
                })
            }
        }
    }

    /// `dx = dy W + beta dx`, and an adapter's share.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub(super) fn backward8(
        &self,
        n: usize,
        dy: &Tensor,
        w: &Group,
        eights: &Eights,
        dx: &Tensor,
        beta: f32,
        with: Option<Beside<'_>>,
    ) -> Outcome<()> {
        let (inner, outer) = (w.in_features, w.out_features);
        let (store, more) = (bf16(dx, 0, inner), with.map_or(0, |b| beside_eight(b.mid.cols)));
        let with = with.map(|b| (b, Side::Backward));
        match &eights.backward {
            Half::Kept(kept) => self.product8(n, dy, kept.matrix(inner, outer, more)?, kept.scales(), store, inner, beta, with),
            Half::Scales(scales) => {
                let stride = stride_eight(outer, more);
                self.with_values8(inner.saturating_mul(stride), |values| {
                    for m in &w.members {
                        match &m.frozen {
                            Some(Frozen::Nf4(nf4)) => self.device.nf4_eight_transposed(nf4, scales, values, m.column, stride)?,
                            _ => return Err(dropped()),
                        }
                    }
                    if let Some((Beside { mid, adapters }, _)) = with {
                        let factors = adapters.factors.as_ref().ok_or_else(dropped)?;
                        self.device.adapter_ins_eight(adapters.parts(mid.cols).1, scales, factors, values, outer, stride)?;
                    }
                    let weights = Matrix8::columns(values, inner, outer + more, stride)?;
                    self.product8(n, dy, weights, scales, store, inner, beta, with)
                })
            }
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

    /// Runs `work` with room for so many bytes of weights that are made for each use.
    fn with_values8(&self, need: usize, work: impl FnOnce(&mut Buffer<u8>) -> Outcome<()>) -> Outcome<()> {
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
    OpsError::Device("what a product in fp8 needs is not there: a bug in trainer-kernels-cuda".into())
}
