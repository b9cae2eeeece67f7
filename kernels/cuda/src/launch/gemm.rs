//! Matrix products by our own kernels: what serves where cublasLt is not installed.

use super::{blocks, launch};
use crate::device::Device;
use crate::matrix::{Float, Matrix, Op, Out, check};
use crate::{CudaError, Result};
use cudarc::driver::LaunchConfig;

/// Rows of a block's tile.
const TILE: usize = 128;
/// Tiles along k that are in shared memory at the same time, and their length.
const STAGES: u32 = 3;
const STEP: u32 = 64;

impl Device {
    /// `C = alpha op(A) op(B) + beta C`, all row-major, bf16 operands, f32 sums; a row of `C` depends on nothing but its own operands. The same as
    /// [`crate::blaslt::BlasLt::gemm`].
    ///
    /// # Errors
    /// Matrices that do not fit, or the driver's.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub fn gemm(
        &self,
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
        check(&a, op_a, &b, op_b, &c, m, n, k)?;
        let tiles = |width: usize| m.div_ceil(TILE).saturating_mul(n.div_ceil(width));
        let shared = |width: u32| STAGES * STEP * 2 * (TILE as u32 + width);
        let wide = self.shared_limit() >= shared(256) && tiles(256) >= self.multiprocessors() as usize;
        let name = match (op_a, op_b, wide) {
            (Op::N, Op::T, true) => "gemm_nt_256",
            (Op::N, Op::N, true) => "gemm_nn_256",
            (Op::T, Op::N, true) => "gemm_tn_256",
            (Op::N, Op::T, false) => "gemm_nt_128",
            (Op::N, Op::N, false) => "gemm_nn_128",
            (Op::T, Op::N, false) => "gemm_tn_128",
            (Op::T, Op::T, _) => return Err(CudaError::NoKernel { name: "gemm_tt", arch: self.arch().name() }),
        };
        let width = if wide { 256 } else { 128 };
        let grid_dim = (blocks("gemm", tiles(width as usize), 1)?, 1, 1);
        let config = LaunchConfig { grid_dim, block_dim: (256, 1, 1), shared_mem_bytes: shared(width) };
        if m > 0 && n > 0 {
            // `check` has found every size below 2^31.
            let [sa, sb, sc, m, n, k] = [a.stride, b.stride, c.stride, m, n, k].map(|v| v as u32);
            launch!(self, name, config, a.ptr, sa, b.ptr, sb, c.ptr, sc, u32::from(c.dtype == Float::F32), m, n, k, alpha, beta);
        }
        Ok(())
    }
}
