//! Query and key norms with the rotary embedding.

use super::{Eight, blocks, fail, grid, launch, launch_early, least, product, rows};
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats, Tensor};
use cudarc::driver::LaunchConfig;
use trainer_kernels::ops::AttentionShape;

/// The first position that has no rotation, as on the CPU.
pub const POSITIONS: usize = 1 << 20;

/// Angles of the rotary embedding (Su et al. 2021) by position: `[positions, head_dim]`, cosines then sines, in f64 rounded to f32.
pub struct Angles {
    pub(crate) values: Floats,
    /// Positions that it reaches.
    pub positions: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// The base.
    pub theta: f64,
}

/// Lanes of a head of the rotary kernels.
fn lanes(op: &'static str, shape: AttentionShape) -> Result<u32> {
    if !(shape.head_dim.is_power_of_two() && (16..=512).contains(&shape.head_dim)) {
        return Err(fail(op, "the head size", shape.head_dim, "a power of two from 16 to 512"));
    }
    Ok((shape.head_dim / 16) as u32)
}

/// Heads of a thread.
const HEADS: usize = 2;

/// What both directions check.
struct Heads {
    q: u32,
    k: u32,
    lanes: u32,
    wide: u32,
    narrow: u32,
    config: LaunchConfig,
}

impl Device {
    /// Angles for the first `positions` positions.
    ///
    /// # Errors
    /// A base that is not positive, positions that reach beyond [`POSITIONS`], or the driver's.
    pub fn angles(&self, positions: usize, head_dim: usize, theta: f64) -> Result<Angles> {
        if !(theta.is_finite() && theta > 0.0) {
            return Err(fail("rotation", "the base, rounded down,", theta as usize, "a positive number"));
        }
        if positions > POSITIONS || head_dim > 512 {
            return Err(fail("rotation", "the number of positions", positions, "at most 1048576, with heads of at most 512"));
        }
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect();
        let mut values = Vec::with_capacity(positions * head_dim);
        for position in 0..positions {
            values.extend(frequencies.iter().map(|f| (position as f64 * f).cos() as f32));
            values.extend(frequencies.iter().map(|f| (position as f64 * f).sin() as f32));
        }
        Ok(Angles { values: self.floats(&values)?, positions, head_dim, theta })
    }

    /// Normalises and rotates the query and key heads of `n` rows. No position may reach past the angles.
    ///
    /// # Errors
    /// Buffers or heads that do not fit.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn qk_norm_rope(
        &self,
        n: usize,
        positions: &Buffer<u32>,
        angles: &Angles,
        shape: AttentionShape,
        qkv: &Tensor,
        q_weight: &Floats,
        k_weight: &Floats,
        eps: f32,
        qk: &mut Tensor,
        rstd: &mut Floats,
    ) -> Result<()> {
        let op = "qk_norm_rope";
        let h = rope_shape(op, n, positions, angles, shape, qkv, q_weight, k_weight, qk, rstd)?;
        if n > 0 {
            launch!(
                self,
                op,
                h.config,
                qkv.ptr(),
                h.wide,
                q_weight.ptr(),
                k_weight.ptr(),
                positions.ptr(),
                angles.values.ptr(),
                eps,
                n as u64,
                h.q,
                h.k,
                h.lanes,
                qk.ptr(),
                h.narrow,
                rstd.ptr()
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
        n: usize,
        positions: &Buffer<u32>,
        angles: &Angles,
        shape: AttentionShape,
        dqk: &Tensor,
        qkv: &Tensor,
        q_weight: &Floats,
        k_weight: &Floats,
        rstd: &Floats,
        dqkv: &mut Tensor,
    ) -> Result<()> {
        let op = "qk_norm_rope_backward";
        let h = rope_shape(op, n, positions, angles, shape, qkv, q_weight, k_weight, dqk, rstd)?;
        let out = rows(op, "dqkv", dqkv, n, shape.qkv_width())?;
        if n > 0 {
            launch!(
                self,
                op,
                h.config,
                dqk.ptr(),
                h.narrow,
                qkv.ptr(),
                h.wide,
                q_weight.ptr(),
                k_weight.ptr(),
                positions.ptr(),
                angles.values.ptr(),
                rstd.ptr(),
                n as u64,
                h.q,
                h.k,
                h.lanes,
                dqkv.ptr(),
                out
            );
        }
        Ok(())
    }

    /// [`Self::qk_norm_rope_backward`] that also leaves all of `dqkv` in e4m3: the gradient of v has to be there already.
    ///
    /// # Errors
    /// Buffers or heads that do not fit; heads that [`rounds_heads`] does not take.
    #[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
    pub fn qk_norm_rope_backward_eight(
        &self,
        n: usize,
        positions: &Buffer<u32>,
        angles: &Angles,
        shape: AttentionShape,
        dqk: &Tensor,
        qkv: &Tensor,
        q_weight: &Floats,
        k_weight: &Floats,
        rstd: &Floats,
        dqkv: &mut Tensor,
        eight: &mut Eight,
    ) -> Result<()> {
        let op = "qk_norm_rope_backward_8";
        let h = rope_shape(op, n, positions, angles, shape, qkv, q_weight, k_weight, dqk, rstd)?;
        let out = rows(op, "dqkv", dqkv, n, shape.qkv_width())?;
        if !rounds_heads(shape) {
            return Err(fail(op, "the width of q and k", shape.qk_width(), "at most 16384, with no more heads of k than of q"));
        }
        let (values, scales, stride) = eight.ptrs(op, n, shape.qkv_width())?;
        if n > 0 {
            let config = grid(blocks(op, n, 1)?, 1, ((h.q + h.k) * h.lanes).next_multiple_of(32));
            launch_early!(
                self,
                op,
                config,
                dqk.ptr(),
                h.narrow,
                qkv.ptr(),
                h.wide,
                q_weight.ptr(),
                k_weight.ptr(),
                positions.ptr(),
                angles.values.ptr(),
                rstd.ptr(),
                h.q,
                h.k,
                h.lanes,
                dqkv.ptr(),
                out,
                values,
                scales,
                stride
            );
        }
        Ok(())
    }
}

/// Whether [`Device::qk_norm_rope_backward_eight`] takes heads of this shape: a block has a thread for 16 values of q and k.
pub fn rounds_heads(shape: AttentionShape) -> bool {
    shape.kv_heads <= shape.heads && shape.qk_width() <= 16 * 1024
}

#[expect(clippy::too_many_arguments, reason = "the checks that both directions share")]
fn rope_shape(
    op: &'static str,
    n: usize,
    positions: &Buffer<u32>,
    angles: &Angles,
    shape: AttentionShape,
    qkv: &Tensor,
    q_weight: &Floats,
    k_weight: &Floats,
    qk: &Tensor,
    rstd: &Floats,
) -> Result<Heads> {
    let lanes = lanes(op, shape)?;
    if angles.head_dim != shape.head_dim || q_weight.len() != shape.head_dim || k_weight.len() != shape.head_dim {
        return Err(fail(op, "the head size", shape.head_dim, "that of the angles and of both norms"));
    }
    let (Ok(q), Ok(k)) = (u16::try_from(shape.heads), u16::try_from(shape.kv_heads)) else {
        return Err(fail(op, "the number of heads", shape.heads, "at most 65535"));
    };
    let heads = usize::from(q) + usize::from(k);
    least(op, "positions", positions.len(), Some(n))?;
    let (wide, narrow) = (rows(op, "qkv", qkv, n, shape.qkv_width())?, rows(op, "qk", qk, n, shape.qk_width())?);
    least(op, "rstd", rstd.len(), product(&[n, heads]))?;
    // Warps: each takes two heads for each group of lanes, of the queries or of the keys of a row.
    let per = HEADS * (32 / lanes as usize);
    let warps = n.saturating_mul(shape.heads.div_ceil(per) + shape.kv_heads.div_ceil(per));
    let config = grid(blocks(op, warps, 8)?, 1, 256);
    Ok(Heads { q: q.into(), k: k.into(), lanes, wide, narrow, config })
}
