//! Row kernels: sums of residuals, RMSNorm, the norms and rotation of query and key heads, SwiGLU.

use super::simd::{Simd, at, dispatch, put, sigmoid, sum, vectors};

/// Sizes and settings of a query/key row.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    /// Query heads.
    pub(super) q: usize,
    /// Key heads, after the query heads.
    pub(super) k: usize,
    /// Values of a head.
    pub(super) dim: usize,
}

dispatch!(
    /// `x += delta`.
    pub(super) fn add(x: &mut [f32], delta: &[f32]) = add_body
);

#[inline(always)]
fn add_body<S: Simd>(s: S, x: &mut [f32], delta: &[f32]) {
    for c in 0..vectors(x.len()) {
        let v = s.add(at(s, x, c), at(s, delta, c));
        put(s, x, c, v);
    }
}

dispatch!(
    /// RMSNorm of rows of `weight.len()` values.
    pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) = rms_norm_body
);

#[inline(always)]
fn rms_norm_body<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    let width = weight.len();
    for ((x, out), rstd) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(rstd) {
        *rstd = norm_row(s, x, weight, eps, out);
    }
}

dispatch!(
    /// `x += delta`, then RMSNorm of `x`.
    pub(super) fn add_rms_norm(x: &mut [f32], delta: &[f32], weight: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) = add_rms_norm_body
);

#[inline(always)]
fn add_rms_norm_body<S: Simd>(s: S, x: &mut [f32], delta: &[f32], weight: &[f32], eps: f32, out: &mut [f32], rstd: &mut [f32]) {
    let width = weight.len();
    for (((x, delta), out), rstd) in x.chunks_exact_mut(width).zip(delta.chunks_exact(width)).zip(out.chunks_exact_mut(width)).zip(rstd) {
        add_body(s, x, delta);
        *rstd = norm_row(s, x, weight, eps, out);
    }
}

/// Writes `x * rstd * weight` and returns `rstd`.
#[inline(always)]
fn norm_row<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> f32 {
    let mut squares = s.splat(0.0);
    for c in 0..vectors(x.len()) {
        let v = at(s, x, c);
        squares = s.fma(v, v, squares);
    }
    let rstd = 1.0 / (sum(s, squares) / x.len() as f32 + eps).sqrt();
    let r = s.splat(rstd);
    for c in 0..vectors(x.len()) {
        put(s, out, c, s.mul(s.mul(at(s, x, c), r), at(s, weight, c)));
    }
    rstd
}

dispatch!(
    /// Adds the gradient of [`rms_norm`] with respect to `x` to `dx`.
    pub(super) fn rms_norm_backward(dy: &[f32], x: &[f32], weight: &[f32], rstd: &[f32], dx: &mut [f32]) = rms_norm_backward_body
);

#[inline(always)]
fn rms_norm_backward_body<S: Simd>(s: S, dy: &[f32], x: &[f32], weight: &[f32], rstd: &[f32], dx: &mut [f32]) {
    let width = weight.len();
    for (((dy, x), dx), rstd) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(dx.chunks_exact_mut(width)).zip(rstd) {
        let (r, k) = backward_factors(s, dy, x, weight, *rstd);
        for c in 0..vectors(width) {
            let g = s.mul(at(s, dy, c), at(s, weight, c));
            let v = s.fma(k, at(s, x, c), s.fma(r, g, at(s, dx, c)));
            put(s, dx, c, v);
        }
    }
}

/// With `g = dy * weight`, the gradient of a normalised row is `rstd * g - x * rstd³ * mean(g * x)`: the factors of `g` and `x`.
#[inline(always)]
fn backward_factors<S: Simd>(s: S, dy: &[f32], x: &[f32], weight: &[f32], rstd: f32) -> (S::V, S::V) {
    let mut dot = s.splat(0.0);
    for c in 0..vectors(x.len()) {
        dot = s.fma(s.mul(at(s, dy, c), at(s, weight, c)), at(s, x, c), dot);
    }
    let k = -(sum(s, dot) / x.len() as f32) * rstd * rstd * rstd;
    (s.splat(rstd), s.splat(k))
}

dispatch!(
    /// Normalises and rotates the heads of one row of `q | k`. `cos` and `sin` have half a head's values.
    pub(super) fn qk_row(heads: Heads, qkv: &[f32], q_weight: &[f32], k_weight: &[f32], eps: f32, cos: &[f32], sin: &[f32], qk: &mut [f32], rstd: &mut [f32]) = qk_row_body
);

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
fn qk_row_body<S: Simd>(
    s: S,
    heads: Heads,
    qkv: &[f32],
    q_weight: &[f32],
    k_weight: &[f32],
    eps: f32,
    cos: &[f32],
    sin: &[f32],
    qk: &mut [f32],
    rstd: &mut [f32],
) {
    let half = heads.dim / 2;
    for (h, ((x, out), rstd)) in
        qkv.chunks_exact(heads.dim).zip(qk.chunks_exact_mut(heads.dim)).zip(rstd).take(heads.q + heads.k).enumerate()
    {
        let weight = if h < heads.q { q_weight } else { k_weight };
        *rstd = norm_row(s, x, weight, eps, out);
        let (a, b) = out.split_at_mut(half);
        for c in 0..vectors(half) {
            let (x1, x2, cos, sin) = (at(s, a, c), at(s, b, c), at(s, cos, c), at(s, sin, c));
            put(s, a, c, s.sub(s.mul(x1, cos), s.mul(x2, sin)));
            put(s, b, c, s.add(s.mul(x2, cos), s.mul(x1, sin)));
        }
    }
}

dispatch!(
    /// The gradient of [`qk_row`] with respect to the `q | k` columns of `qkv`.
    pub(super) fn qk_row_backward(heads: Heads, dqk: &[f32], qkv: &[f32], q_weight: &[f32], k_weight: &[f32], rstd: &[f32], cos: &[f32], sin: &[f32], dqkv: &mut [f32]) = qk_row_backward_body
);

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a fused kernel has the arguments of both of its parts")]
fn qk_row_backward_body<S: Simd>(
    s: S,
    heads: Heads,
    dqk: &[f32],
    qkv: &[f32],
    q_weight: &[f32],
    k_weight: &[f32],
    rstd: &[f32],
    cos: &[f32],
    sin: &[f32],
    dqkv: &mut [f32],
) {
    let (dim, half) = (heads.dim, heads.dim / 2);
    let rows = dqk.chunks_exact(dim).zip(qkv.chunks_exact(dim)).zip(dqkv.chunks_exact_mut(dim)).zip(rstd).take(heads.q + heads.k);
    for (h, (((dy, x), dx), rstd)) in rows.enumerate() {
        let weight = if h < heads.q { q_weight } else { k_weight };
        let (da, db) = dy.split_at(half);
        let (a, b) = dx.split_at_mut(half);
        for c in 0..vectors(half) {
            let (y1, y2, cos, sin) = (at(s, da, c), at(s, db, c), at(s, cos, c), at(s, sin, c));
            put(s, a, c, s.add(s.mul(y1, cos), s.mul(y2, sin)));
            put(s, b, c, s.sub(s.mul(y2, cos), s.mul(y1, sin)));
        }
        let (r, k) = backward_factors(s, dx, x, weight, *rstd);
        for c in 0..vectors(dim) {
            let g = s.mul(at(s, dx, c), at(s, weight, c));
            put(s, dx, c, s.fma(k, at(s, x, c), s.mul(r, g)));
        }
    }
}

dispatch!(
    /// `out = silu(gate) * up` for rows of `gate | up`.
    pub(super) fn swiglu(width: usize, gate_up: &[f32], out: &mut [f32]) = swiglu_body
);

#[inline(always)]
fn swiglu_body<S: Simd>(s: S, width: usize, gate_up: &[f32], out: &mut [f32]) {
    for (row, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (gate, up) = row.split_at(width);
        for c in 0..vectors(width) {
            let g = at(s, gate, c);
            put(s, out, c, s.mul(s.mul(g, sigmoid(s, g)), at(s, up, c)));
        }
    }
}

dispatch!(
    /// The gradient of [`swiglu`]: `d_gate | d_up` in place of `gate | up`.
    pub(super) fn swiglu_backward(width: usize, dout: &[f32], gate_up: &mut [f32]) = swiglu_backward_body
);

#[inline(always)]
fn swiglu_backward_body<S: Simd>(s: S, width: usize, dout: &[f32], gate_up: &mut [f32]) {
    let one = s.splat(1.0);
    for (row, dout) in gate_up.chunks_exact_mut(2 * width).zip(dout.chunks_exact(width)) {
        let (gate, up) = row.split_at_mut(width);
        for c in 0..vectors(width) {
            let (g, u, d) = (at(s, gate, c), at(s, up, c), at(s, dout, c));
            let sig = sigmoid(s, g);
            // silu'(g) = sig * (1 + g * (1 - sig))
            let slope = s.mul(sig, s.fma(g, s.sub(one, sig), one));
            put(s, gate, c, s.mul(s.mul(d, u), slope));
            put(s, up, c, s.mul(d, s.mul(g, sig)));
        }
    }
}

/// `Σ g²` in f64, in eight interleaved sums.
pub(super) fn sum_of_squares(g: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    for chunk in g.chunks(8) {
        for (sum, &g) in sums.iter_mut().zip(chunk) {
            let g = f64::from(g);
            *sum += g * g;
        }
    }
    sums.iter().sum()
}
