//! One launcher per kernel: checks sizes, chooses the grid, launches. What each computes is said in [`trainer_kernels::ops::Ops`].
//!
//! Activations are bf16, statistics, norm weights and angles f32. Widths are multiples of eight. Launches return before the work is done.

use crate::device::{Device, DeviceNf4, Ids, Rotation};
use crate::{CudaError, Result};
use cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use half::bf16;
use trainer_kernels::ops::AttentionShape;

/// Activations.
pub type Tensor = CudaSlice<bf16>;
/// Statistics and norm weights.
pub type Floats = CudaSlice<f32>;

/// Blocks of the first pass of [`Device::sum_of_squares`]: fixed, so that the order of the sum is too.
const SUM_BLOCKS: u32 = 1024;
/// Values of a row that 1024 threads hold in registers.
const LONGEST_ROW: usize = 32768;

fn fail(op: &'static str, what: &'static str, got: usize, need: impl std::fmt::Display) -> CudaError {
    CudaError::Shape { op, what, got, need: need.to_string() }
}

fn least(op: &'static str, what: &'static str, got: usize, need: Option<usize>) -> Result<()> {
    match need {
        Some(need) if got >= need => Ok(()),
        Some(need) => Err(fail(op, what, got, format_args!("at least {need}"))),
        None => Err(fail(op, what, got, "more than memory can hold")),
    }
}

fn product(factors: &[usize]) -> Option<usize> {
    factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f))
}

/// A size as the number of vectors of eight.
fn vectors(op: &'static str, what: &'static str, width: usize) -> Result<u32> {
    if width == 0 || !width.is_multiple_of(8) {
        return Err(fail(op, what, width, "a positive multiple of 8"));
    }
    u32::try_from(width / 8).map_err(|_| fail(op, what, width, "less than 2^35"))
}

fn blocks(op: &'static str, items: usize, per_block: usize) -> Result<u32> {
    u32::try_from(items.div_ceil(per_block))
        .ok()
        .filter(|&b| b <= i32::MAX as u32)
        .ok_or_else(|| fail(op, "the work", items, "less than 2^31 blocks"))
}

fn grid(x: u32, y: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (x, y, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
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

/// Lanes of a head of the rotary kernels.
fn lanes(op: &'static str, shape: AttentionShape) -> Result<u32> {
    if !(shape.head_dim.is_power_of_two() && (16..=512).contains(&shape.head_dim)) {
        return Err(fail(op, "the head size", shape.head_dim, "a power of two from 16 to 512"));
    }
    Ok((shape.head_dim / 16) as u32)
}

/// Launches a kernel with the given arguments.
macro_rules! launch {
    ($device:expr, $name:literal, $config:expr, $($arg:expr),+ $(,)?) => {{
        let function = $device.function($name)?;
        let mut builder = $device.stream.launch_builder(function);
        $(builder.arg($arg);)+
        // SAFETY: the arguments are those of the kernel of that name, in its order and types; the launcher has checked every buffer
        // against the sizes passed, and the one stream keeps launches in order.
        #[expect(unsafe_code, reason = "a kernel launch")]
        unsafe { builder.launch($config) }?;
    }};
}

impl Device {
    /// All values of `w`, `[rows, cols]`, bit for bit as the CPU reference rounds them.
    ///
    /// # Errors
    /// A buffer that is too small.
    pub fn nf4_unpack(&self, w: &DeviceNf4, out: &mut Tensor) -> Result<()> {
        let op = "nf4_unpack";
        least(op, "the output", out.len(), product(&[w.rows, w.cols]))?;
        let words = (w.rows * w.cols / 8) as u64;
        if words == 0 {
            return Ok(());
        }
        let config = grid(blocks(op, words as usize, 1024)?, 1, 256);
        let none = 0u64;
        // A null pointer says that the scales are plain.
        if w.nested {
            launch!(
                self,
                "nf4_unpack",
                config,
                &w.packed,
                &w.code,
                &w.codes,
                &w.map,
                &w.absmax,
                &w.offset,
                &w.block_shift,
                &w.nested_shift,
                &words,
                out
            );
        } else {
            launch!(
                self,
                "nf4_unpack",
                config,
                &w.packed,
                &w.code,
                &none,
                &w.map,
                &w.absmax,
                &w.offset,
                &w.block_shift,
                &w.nested_shift,
                &words,
                out
            );
        }
        Ok(())
    }

    /// The transpose of `w`, `[cols, rows]`.
    ///
    /// # Errors
    /// A buffer that is too small, or rows that are no multiple of 8.
    pub fn nf4_unpack_transposed(&self, w: &DeviceNf4, out: &mut Tensor) -> Result<()> {
        let op = "nf4_unpack_transposed";
        least(op, "the output", out.len(), product(&[w.rows, w.cols]))?;
        if w.rows * w.cols == 0 {
            return Ok(());
        }
        vectors(op, "the number of rows", w.rows)?;
        let (rows, cols) = match (u32::try_from(w.rows), u32::try_from(w.cols)) {
            (Ok(rows), Ok(cols)) if rows.div_ceil(64) <= 65535 => (rows, cols),
            _ => return Err(fail(op, "the number of rows", w.rows, "at most 4194240")),
        };
        let config = grid(cols.div_ceil(64), rows.div_ceil(64), 256);
        let none = 0u64;
        if w.nested {
            launch!(
                self,
                "nf4_unpack_transposed",
                config,
                &w.packed,
                &w.code,
                &w.codes,
                &w.map,
                &w.absmax,
                &w.offset,
                &w.block_shift,
                &w.nested_shift,
                &rows,
                &cols,
                out
            );
        } else {
            launch!(
                self,
                "nf4_unpack_transposed",
                config,
                &w.packed,
                &w.code,
                &none,
                &w.map,
                &w.absmax,
                &w.offset,
                &w.block_shift,
                &w.nested_shift,
                &rows,
                &cols,
                out
            );
        }
        Ok(())
    }

    /// RMSNorm of `n` rows of `weight.len()` values.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn rms_norm(&self, n: usize, x: &Tensor, weight: &Floats, eps: f32, out: &mut Tensor, rstd: &mut Floats) -> Result<()> {
        let op = "rms_norm";
        let all = product(&[n, weight.len()]);
        least(op, "x", x.len(), all)?;
        least(op, "the output", out.len(), all)?;
        least(op, "rstd", rstd.len(), Some(n))?;
        let (v, config) = norm_rows(op, n, weight.len())?;
        if n > 0 {
            launch!(self, "rms_norm", config, x, weight, &eps, &v, out, rstd);
        }
        Ok(())
    }

    /// `x_acc += delta`, then RMSNorm of the stored sum.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn add_rms_norm(
        &self,
        n: usize,
        x_acc: &mut Tensor,
        delta: &Tensor,
        weight: &Floats,
        eps: f32,
        out: &mut Tensor,
        rstd: &mut Floats,
    ) -> Result<()> {
        let op = "add_rms_norm";
        let all = product(&[n, weight.len()]);
        least(op, "x", x_acc.len(), all)?;
        least(op, "delta", delta.len(), all)?;
        least(op, "the output", out.len(), all)?;
        least(op, "rstd", rstd.len(), Some(n))?;
        let (v, config) = norm_rows(op, n, weight.len())?;
        if n > 0 {
            launch!(self, "add_rms_norm", config, x_acc, delta, weight, &eps, &v, out, rstd);
        }
        Ok(())
    }

    /// Adds the gradient of [`Self::rms_norm`] to `dx_acc`.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn rms_norm_backward(&self, n: usize, dy: &Tensor, x: &Tensor, weight: &Floats, rstd: &Floats, dx_acc: &mut Tensor) -> Result<()> {
        let op = "rms_norm_backward";
        let all = product(&[n, weight.len()]);
        least(op, "dy", dy.len(), all)?;
        least(op, "x", x.len(), all)?;
        least(op, "dx", dx_acc.len(), all)?;
        least(op, "rstd", rstd.len(), Some(n))?;
        let (v, config) = norm_rows(op, n, weight.len())?;
        if n > 0 {
            launch!(self, "rms_norm_backward", config, dy, x, weight, rstd, &v, dx_acc);
        }
        Ok(())
    }

    /// Normalises and rotates query and key heads; `n` rows are those of the rotation.
    ///
    /// # Errors
    /// Buffers or heads that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn qk_norm_rope(
        &self,
        rotation: &Rotation,
        shape: AttentionShape,
        qkv: &Tensor,
        q_weight: &Floats,
        k_weight: &Floats,
        eps: f32,
        qk: &mut Tensor,
        rstd: &mut Floats,
    ) -> Result<()> {
        let op = "qk_norm_rope";
        let (rows, q, k, l, config) = self.rope_shape(op, rotation, shape, qkv, q_weight, k_weight, qk, rstd)?;
        if rows > 0 {
            launch!(
                self,
                "qk_norm_rope",
                config,
                qkv,
                q_weight,
                k_weight,
                &rotation.positions,
                &rotation.angles,
                &eps,
                &rows,
                &q,
                &k,
                &l,
                qk,
                rstd
            );
        }
        Ok(())
    }

    /// Backward of [`Self::qk_norm_rope`]: writes the `q | k` columns of `dqkv`.
    ///
    /// # Errors
    /// Buffers or heads that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn qk_norm_rope_backward(
        &self,
        rotation: &Rotation,
        shape: AttentionShape,
        dqk: &Tensor,
        qkv: &Tensor,
        q_weight: &Floats,
        k_weight: &Floats,
        rstd: &Floats,
        dqkv: &mut Tensor,
    ) -> Result<()> {
        let op = "qk_norm_rope_backward";
        let (rows, q, k, l, config) = self.rope_shape(op, rotation, shape, qkv, q_weight, k_weight, dqk, rstd)?;
        least(op, "dqkv", dqkv.len(), product(&[rows as usize, shape.qkv_width()]))?;
        if rows > 0 {
            launch!(
                self,
                "qk_norm_rope_backward",
                config,
                dqk,
                qkv,
                q_weight,
                k_weight,
                &rotation.positions,
                &rotation.angles,
                rstd,
                &rows,
                &q,
                &k,
                &l,
                dqkv
            );
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the checks that both directions share")]
    fn rope_shape(
        &self,
        op: &'static str,
        rotation: &Rotation,
        shape: AttentionShape,
        qkv: &Tensor,
        q_weight: &Floats,
        k_weight: &Floats,
        qk: &Tensor,
        rstd: &Floats,
    ) -> Result<(u64, u32, u32, u32, LaunchConfig)> {
        let l = lanes(op, shape)?;
        let n = rotation.positions.len();
        if rotation.head_dim != shape.head_dim || q_weight.len() != shape.head_dim || k_weight.len() != shape.head_dim {
            return Err(fail(op, "the head size", shape.head_dim, "that of the angles and of both norms"));
        }
        let (Ok(q), Ok(k)) = (u16::try_from(shape.heads), u16::try_from(shape.kv_heads)) else {
            return Err(fail(op, "the number of heads", shape.heads, "at most 65535"));
        };
        let heads = usize::from(q) + usize::from(k);
        least(op, "qkv", qkv.len(), product(&[n, shape.qkv_width()]))?;
        least(op, "qk", qk.len(), product(&[n, shape.qk_width()]))?;
        least(op, "rstd", rstd.len(), product(&[n, heads]))?;
        // qk holds 16 values per item and lane, so the product cannot overflow after the check above.
        Ok((n as u64, q.into(), k.into(), l, grid(blocks(op, n * heads * l as usize, 256)?, 1, 256)))
    }

    /// `out = silu(gate) * up`.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn swiglu(&self, n: usize, width: usize, gate_up: &Tensor, out: &mut Tensor) -> Result<()> {
        let op = "swiglu";
        let v = vectors(op, "the width", width)?;
        least(op, "gate_up", gate_up.len(), product(&[n, 2, width]))?;
        least(op, "the output", out.len(), product(&[n, width]))?;
        let total = n as u64 * u64::from(v);
        if total > 0 {
            launch!(self, "swiglu", grid(blocks(op, total as usize, 256)?, 1, 256), gate_up, &v, &total, out);
        }
        Ok(())
    }

    /// Backward of [`Self::swiglu`]: writes `d_gate_up`.
    ///
    /// # Errors
    /// Buffers or widths that do not fit.
    pub fn swiglu_backward(&self, n: usize, width: usize, dout: &Tensor, gate_up: &Tensor, d_gate_up: &mut Tensor) -> Result<()> {
        let op = "swiglu_backward";
        let v = vectors(op, "the width", width)?;
        least(op, "dout", dout.len(), product(&[n, width]))?;
        least(op, "gate_up", gate_up.len(), product(&[n, 2, width]))?;
        least(op, "d_gate_up", d_gate_up.len(), product(&[n, 2, width]))?;
        let total = n as u64 * u64::from(v);
        if total > 0 {
            launch!(self, "swiglu_backward", grid(blocks(op, total as usize, 256)?, 1, 256), dout, gate_up, &v, &total, d_gate_up);
        }
        Ok(())
    }

    /// `out[i] = table[ids[i]]` for a table of rows of `width` values.
    ///
    /// # Errors
    /// An id outside of the table, or buffers that do not fit.
    pub fn embed(&self, ids: &Ids, width: usize, table: &Tensor, out: &mut Tensor) -> Result<()> {
        let op = "embed";
        let v = vectors(op, "the width", width)?;
        if ids.ids.is_empty() {
            return Ok(());
        }
        let rows = table.len() / width;
        if ids.max as usize >= rows {
            return Err(fail(op, "the largest token id", ids.max as usize, format_args!("less than {rows}")));
        }
        least(op, "the output", out.len(), product(&[ids.ids.len(), width]))?;
        let total = ids.ids.len() as u64 * u64::from(v);
        launch!(self, "embed", grid(blocks(op, total as usize, 256)?, 1, 256), &ids.ids, table, &v, &total, out);
        Ok(())
    }

    /// Scratch of [`Self::sum_of_squares`].
    ///
    /// # Errors
    /// The driver's.
    pub fn sum_scratch(&self) -> Result<CudaSlice<f64>> {
        Ok(self.stream.alloc_zeros(SUM_BLOCKS as usize)?)
    }

    /// Adds `Σ g²`, in f64 and in an order that depends on the length alone, to the first entry of `sum_acc`.
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn sum_of_squares(&self, g: &Floats, scratch: &mut CudaSlice<f64>, sum_acc: &mut CudaSlice<f64>) -> Result<()> {
        let op = "sum_of_squares";
        least(op, "the scratch", scratch.len(), Some(SUM_BLOCKS as usize))?;
        least(op, "the sum", sum_acc.len(), Some(1))?;
        let n = g.len() as u64;
        launch!(self, "squares_partial", grid(SUM_BLOCKS, 1, 256), g, &n, &mut *scratch);
        launch!(self, "squares_total", grid(1, 1, 32), &*scratch, &SUM_BLOCKS, sum_acc);
        Ok(())
    }
}
