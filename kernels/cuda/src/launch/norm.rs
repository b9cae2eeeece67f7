//! RMSNorm and the residual sum.

use super::{Eight, blocks, fail, grid, launch_early, least, rows, vectors};
use crate::Result;
use crate::device::Device;
use crate::memory::{Floats, Tensor};
use cudarc::driver::LaunchConfig;

/// Values of a row that 1024 threads hold in registers.
const LONGEST_ROW: usize = 32768;

/// Those of a kernel that also rounds the row to e4m3.
pub const LONGEST_EIGHT: usize = 16384;

/// Where a row of a norm goes in e4m3.
fn eight(op: &'static str, to: Option<&mut Eight>, n: usize, width: usize) -> Result<Option<(u64, u64, u32)>> {
    match to {
        Some(_) if width > LONGEST_EIGHT => Err(fail(op, "the width", width, format_args!("at most {LONGEST_EIGHT}"))),
        to => to.map(|e| e.ptrs(op, n, width)).transpose(),
    }
}

/// Rows of a norm: vectors of a row, and the launch.
fn norm_rows(op: &'static str, n: usize, width: usize) -> Result<(u32, LaunchConfig)> {
    let v = vectors(op, "the width", width)?;
    if width > LONGEST_ROW {
        return Err(fail(op, "the width", width, format_args!("at most {LONGEST_ROW}")));
    }
    // Two vectors a thread where that gives enough threads; a row longer than 16384 takes up to four.
    Ok((v, grid(blocks(op, n, 1)?, 1, (v.div_ceil(2)).next_multiple_of(32).clamp(32, 1024))))
}

impl Device {
    /// RMSNorm of `n` rows of `weight.len()` values.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn rms_norm(&self, n: usize, x: &Tensor, weight: &Floats, eps: f32, out: &mut Tensor, rstd: &mut Floats) -> Result<()> {
        self.rms_norm_eight(n, x, weight, eps, out, rstd, None)
    }

    /// [`Self::rms_norm`] that may also leave the result in e4m3.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn rms_norm_eight(
        &self,
        n: usize,
        x: &Tensor,
        weight: &Floats,
        eps: f32,
        out: &mut Tensor,
        rstd: &mut Floats,
        to: Option<&mut Eight>,
    ) -> Result<()> {
        let op = "rms_norm";
        let width = weight.len();
        let (sx, so) = (rows(op, "x", x, n, width)?, rows(op, "the output", out, n, width)?);
        least(op, "rstd", rstd.len(), Some(n))?;
        let (v, config) = norm_rows(op, n, width)?;
        match eight(op, to, n, width)? {
            _ if n == 0 => {}
            None => launch_early!(self, op, config, x.ptr(), sx, weight.ptr(), eps, v, out.ptr(), so, rstd.ptr()),
            Some((q, s, sq)) => {
                launch_early!(self, "rms_norm_8", config, x.ptr(), sx, weight.ptr(), eps, v, out.ptr(), so, rstd.ptr(), q, s, sq)
            }
        }
        Ok(())
    }

    /// `sum = x + delta`, rounded, then RMSNorm of the stored sum.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn add_rms_norm(
        &self,
        n: usize,
        x: &Tensor,
        delta: &Tensor,
        sum: &mut Tensor,
        weight: &Floats,
        eps: f32,
        out: &mut Tensor,
        rstd: &mut Floats,
    ) -> Result<()> {
        self.add_rms_norm_eight(n, x, delta, sum, weight, eps, out, rstd, None)
    }

    /// [`Self::add_rms_norm`] that may also leave the result in e4m3.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn add_rms_norm_eight(
        &self,
        n: usize,
        x: &Tensor,
        delta: &Tensor,
        sum: &mut Tensor,
        weight: &Floats,
        eps: f32,
        out: &mut Tensor,
        rstd: &mut Floats,
        to: Option<&mut Eight>,
    ) -> Result<()> {
        let (x, stride) = (x.ptr(), rows("add_rms_norm", "x", x, n, weight.len())?);
        self.add_rms_norm_at(n, x, stride, delta, sum, weight, eps, out, rstd, to)
    }

    /// `x_acc += delta`, rounded, then RMSNorm of the stored sum.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn add_rms_norm_in_place(
        &self,
        n: usize,
        x_acc: &mut Tensor,
        delta: &Tensor,
        weight: &Floats,
        eps: f32,
        out: &mut Tensor,
        rstd: &mut Floats,
    ) -> Result<()> {
        let (x, stride) = (x_acc.ptr(), rows("add_rms_norm", "x", x_acc, n, weight.len())?);
        self.add_rms_norm_at(n, x, stride, delta, x_acc, weight, eps, out, rstd, None)
    }

    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    fn add_rms_norm_at(
        &self,
        n: usize,
        x: u64,
        sx: u32,
        delta: &Tensor,
        sum: &mut Tensor,
        weight: &Floats,
        eps: f32,
        out: &mut Tensor,
        rstd: &mut Floats,
        to: Option<&mut Eight>,
    ) -> Result<()> {
        let op = "add_rms_norm";
        let width = weight.len();
        let (sd, ss) = (rows(op, "delta", delta, n, width)?, rows(op, "the sum", sum, n, width)?);
        let so = rows(op, "the output", out, n, width)?;
        least(op, "rstd", rstd.len(), Some(n))?;
        let (v, config) = norm_rows(op, n, width)?;
        let (d, sum, w, out, rstd) = (delta.ptr(), sum.ptr(), weight.ptr(), out.ptr(), rstd.ptr());
        match eight(op, to, n, width)? {
            _ if n == 0 => {}
            None => launch_early!(self, op, config, x, sx, d, sd, sum, ss, w, eps, v, out, so, rstd),
            Some((q, s, sq)) => launch_early!(self, "add_rms_norm_8", config, x, sx, d, sd, sum, ss, w, eps, v, out, so, rstd, q, s, sq),
        }
        Ok(())
    }

    /// Adds the gradient of [`Self::rms_norm`] to `dx_acc`.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn rms_norm_backward(&self, n: usize, dy: &Tensor, x: &Tensor, weight: &Floats, rstd: &Floats, dx_acc: &mut Tensor) -> Result<()> {
        self.rms_norm_backward_eight(n, dy, x, weight, rstd, dx_acc, None)
    }

    /// [`Self::rms_norm_backward`] that may also leave the sum in e4m3.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn rms_norm_backward_eight(
        &self,
        n: usize,
        dy: &Tensor,
        x: &Tensor,
        weight: &Floats,
        rstd: &Floats,
        dx_acc: &mut Tensor,
        to: Option<&mut Eight>,
    ) -> Result<()> {
        let op = "rms_norm_backward";
        let width = weight.len();
        let (sy, sx, sd) = (rows(op, "dy", dy, n, width)?, rows(op, "x", x, n, width)?, rows(op, "dx", dx_acc, n, width)?);
        least(op, "rstd", rstd.len(), Some(n))?;
        let (v, config) = norm_rows(op, n, width)?;
        let (dy, x, w, rstd, dx) = (dy.ptr(), x.ptr(), weight.ptr(), rstd.ptr(), dx_acc.ptr());
        match eight(op, to, n, width)? {
            _ if n == 0 => {}
            None if width <= LONGEST_EIGHT => launch_early!(self, op, config, dy, sy, x, sx, w, rstd, v, dx, sd),
            None => launch_early!(self, "rms_norm_backward_long", config, dy, sy, x, sx, w, rstd, v, dx, sd),
            Some((q, s, sq)) => launch_early!(self, "rms_norm_backward_8", config, dy, sy, x, sx, w, rstd, v, dx, sd, q, s, sq),
        }
        Ok(())
    }
}
