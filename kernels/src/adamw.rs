//! AdamW with 32-bit and blockwise 8-bit states, the gradient norm and clipping.
//!
//! One step (Loshchilov & Hutter 2019, "Decoupled weight decay regularization"), per value, with `t` counting from 1:
//!
//! ```text
//! m = β1 m + (1 - β1) g          v = β2 v + (1 - β2) g²
//! p = p (1 - lr · wd)            p = p - lr / (1 - β1ᵗ) · m / (√v / √(1 - β2ᵗ) + ε)
//! ```
//!
//! With 8-bit states (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization") `m` and `v` are kept in blocks of 256 with the
//! signed and the unsigned dynamic map ([`crate::blockwise8`]), dequantized before the update and quantized again after it; the parameter is
//! updated from the values before they are quantized. Blocks restart at each tensor, and small tensors keep 32-bit states.
//!
//! # The guard
//!
//! In 8 bits a second moment below about 3e-7 of its block's largest becomes 0, while the first moment, whose share is about the square
//! root of that, does not. If the next gradient of that entry is 0 or tiny, `m / (√v + ε)` is as large as `m / ε`: hundreds. In exact
//! arithmetic that cannot happen. By the Cauchy-Schwarz inequality over the gradient history,
//!
//! ```text
//! |m| = (1-β1) |Σ β1ⁱ gᵢ| ≤ (1-β1) √(Σ (β1²/β2)ⁱ) √(Σ β2ⁱ gᵢ²) ≤ κ √v,   κ = (1-β1) / √((1-β2)(1-β1²/β2))
//! ```
//!
//! (7.3 for the usual betas). So after each update `|m|` is limited to `2 κ √v`. The factor 2 leaves room for what rounding does to moments
//! that did not vanish, so that only states that no gradient history can produce are changed; an entry without gradient and without second
//! moment does not move at all. 32-bit states need no guard and get none.

use crate::blockwise8::{self, Map, Rounding};
use crate::nf4::Element;
use rayon::prelude::*;

/// Values per block of 8-bit states.
pub const BLOCKSIZE: usize = 256;
/// Tensors with fewer values keep 32-bit states.
pub const MIN_8BIT_SIZE: usize = 4096;
/// Values that one task of the thread pool works on, a multiple of [`BLOCKSIZE`]. Also the unit of summation of the gradient norm.
const TASK: usize = 1 << 13;

/// In which form the moments are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateBits {
    /// 32-bit floats: 8 bytes per parameter.
    ThirtyTwo,
    /// Blockwise 8-bit codes: 2 bytes per parameter and 8 per block.
    #[default]
    Eight,
}

/// The settings of AdamW that do not change during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment, in `0.0..1.0`.
    pub beta1: f64,
    /// Decay of the second moment, in `0.0..1.0`.
    pub beta2: f64,
    /// Added to the root of the second moment; positive.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// The form of the moments.
    pub bits: StateBits,
    /// Tensors with fewer values keep 32-bit states whatever `bits` says.
    pub min_8bit_size: usize,
    /// How moments are rounded to 8 bits.
    pub rounding: Rounding,
}

impl Default for AdamWConfig {
    /// The defaults of `torch.optim.AdamW` (weight decay 0.01) with 8-bit states.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            bits: StateBits::Eight,
            min_8bit_size: MIN_8BIT_SIZE,
            rounding: Rounding::Nearest,
        }
    }
}

/// What can be wrong with an optimizer's settings, state or arguments.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AdamWError {
    /// A setting outside of its range.
    #[error("AdamW: {name} is {value}; it must be {must}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// Its range.
        must: &'static str,
    },
    /// Something is not as long as the parameter.
    #[error("AdamW: {what} has {got} entries; the parameter needs {need}")]
    Length {
        /// Gradient or part of the state.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The right length.
        need: usize,
    },
    /// Steps count from 1.
    #[error("AdamW: step 0 does not exist; steps count from 1")]
    StepZero,
}

impl AdamWConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first setting outside of its range.
    pub fn validate(&self) -> Result<(), AdamWError> {
        let check = |name, value: f64, ok, must| if ok { Ok(()) } else { Err(AdamWError::Setting { name, value, must }) };
        check("beta1", self.beta1, (0.0..1.0).contains(&self.beta1), "at least 0 and below 1")?;
        check("beta2", self.beta2, (0.0..1.0).contains(&self.beta2), "at least 0 and below 1")?;
        check("eps", self.eps, self.eps.is_finite() && self.eps > 0.0, "positive and finite")?;
        check("weight_decay", self.weight_decay, self.weight_decay.is_finite() && self.weight_decay >= 0.0, "at least 0 and finite")
    }

    /// The form in which a parameter of `len` values keeps its moments.
    pub fn bits_for(&self, len: usize) -> StateBits {
        if len < self.min_8bit_size { StateBits::ThirtyTwo } else { self.bits }
    }
}

/// The moments of one parameter: plain data, so that a checkpoint can hold it exactly.
#[derive(Clone, Debug, PartialEq)]
pub enum OptimizerState {
    /// 32-bit moments, one entry per value of the parameter.
    ThirtyTwo {
        /// First moment.
        m: Vec<f32>,
        /// Second moment.
        v: Vec<f32>,
    },
    /// 8-bit moments in blocks of [`BLOCKSIZE`] values.
    Eight {
        /// Codes of the first moment in the signed dynamic map, one per value.
        m: Vec<u8>,
        /// Codes of the second moment in the unsigned dynamic map, one per value.
        v: Vec<u8>,
        /// Scale of each block of the first moment.
        m_absmax: Vec<f32>,
        /// Scale of each block of the second moment.
        v_absmax: Vec<f32>,
    },
}

impl OptimizerState {
    /// The state of a parameter of `len` values before its first step: zeros.
    pub fn new(len: usize, config: &AdamWConfig) -> Self {
        match config.bits_for(len) {
            StateBits::ThirtyTwo => Self::ThirtyTwo { m: vec![0.0; len], v: vec![0.0; len] },
            StateBits::Eight => {
                let blocks = len.div_ceil(BLOCKSIZE);
                Self::Eight {
                    m: vec![Map::signed().nearest(0.0); len],
                    v: vec![Map::unsigned().nearest(0.0); len],
                    m_absmax: vec![0.0; blocks],
                    v_absmax: vec![0.0; blocks],
                }
            }
        }
    }

    /// How many values the parameter has.
    pub fn len(&self) -> usize {
        match self {
            Self::ThirtyTwo { m, .. } => m.len(),
            Self::Eight { m, .. } => m.len(),
        }
    }

    /// Whether the parameter has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::ThirtyTwo { m, v } => 4 * (m.len() + v.len()),
            Self::Eight { m, v, m_absmax, v_absmax } => m.len() + v.len() + 4 * (m_absmax.len() + v_absmax.len()),
        }
    }

    /// Checks that all parts fit a parameter of `len` values; a state that came from a file must pass before it is used.
    ///
    /// # Errors
    /// The first part of another length.
    pub fn validate(&self, len: usize) -> Result<(), AdamWError> {
        let check = |what, got, need| if got == need { Ok(()) } else { Err(AdamWError::Length { what, got, need }) };
        match self {
            Self::ThirtyTwo { m, v } => {
                check("the first moment", m.len(), len)?;
                check("the second moment", v.len(), len)
            }
            Self::Eight { m, v, m_absmax, v_absmax } => {
                let blocks = len.div_ceil(BLOCKSIZE);
                check("the first moment", m.len(), len)?;
                check("the second moment", v.len(), len)?;
                check("the scales of the first moment", m_absmax.len(), blocks)?;
                check("the scales of the second moment", v_absmax.len(), blocks)
            }
        }
    }

    /// Both moments as f32, whatever form they are stored in.
    pub fn moments(&self) -> (Vec<f32>, Vec<f32>) {
        match self {
            Self::ThirtyTwo { m, v } => (m.clone(), v.clone()),
            Self::Eight { m, v, m_absmax, v_absmax } => {
                let (mut first, mut second) = (vec![0.0; m.len()], vec![0.0; v.len()]);
                blockwise8::dequantize(m, m_absmax, Map::signed().code(), BLOCKSIZE, &mut first);
                blockwise8::dequantize(v, v_absmax, Map::unsigned().code(), BLOCKSIZE, &mut second);
                (first, second)
            }
        }
    }
}

/// The numbers of one step, each computed in f64 and rounded once: the same for every backend.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// β1.
    pub beta1: f32,
    /// 1 - β1.
    pub one_minus_beta1: f32,
    /// β2.
    pub beta2: f32,
    /// 1 - β2.
    pub one_minus_beta2: f32,
    /// ε.
    pub eps: f32,
    /// `1 - lr · wd`.
    pub decay: f32,
    /// `lr / (1 - β1ᵗ)`.
    pub size: f32,
    /// `√(1 - β2ᵗ)`.
    pub root: f32,
    /// What gradients are multiplied by.
    pub scale: f32,
    /// `2 κ` of the guard; infinite where the inequality gives no bound.
    pub limit: f32,
}

impl Step {
    /// The numbers of step `step`, which counts from 1.
    pub fn new(config: &AdamWConfig, lr: f64, grad_scale: f64, step: u64) -> Self {
        let (b1, b2) = (config.beta1, config.beta2);
        let power = |b: f64| b.powf(step as f64);
        let rho = b1 * b1 / b2;
        let kappa = if rho < 1.0 { (1.0 - b1) / ((1.0 - b2) * (1.0 - rho)).sqrt() } else { f64::INFINITY };
        Self {
            beta1: b1 as f32,
            one_minus_beta1: (1.0 - b1) as f32,
            beta2: b2 as f32,
            one_minus_beta2: (1.0 - b2) as f32,
            eps: config.eps as f32,
            decay: (1.0 - lr * config.weight_decay) as f32,
            size: (lr / (1.0 - power(b1))) as f32,
            root: (1.0 - power(b2)).sqrt() as f32,
            scale: grad_scale as f32,
            limit: (2.0 * kappa) as f32,
        }
    }

    #[inline(always)]
    fn moments(&self, m: f32, v: f32, g: f32) -> (f32, f32) {
        (self.beta1 * m + self.one_minus_beta1 * g, self.beta2 * v + self.one_minus_beta2 * g * g)
    }

    /// The guard of the module's documentation.
    #[inline(always)]
    fn guarded(&self, m: f32, v: f32) -> f32 {
        let most = self.limit * v.sqrt();
        // Not `clamp`: with v = 0 and no bound the product is NaN, which must leave `m` alone.
        if m > most {
            most
        } else if m < -most {
            -most
        } else {
            m
        }
    }

    #[inline(always)]
    fn parameter(&self, p: f32, m: f32, v: f32) -> f32 {
        p * self.decay - self.size * (m / (v.sqrt() / self.root + self.eps))
    }
}

/// One AdamW step on one parameter: `param` and `state` are updated from `grad * grad_scale` (the clip factor; 1 for none).
///
/// `step` counts from 1. The result depends neither on the number of threads nor on timing. A gradient that is not finite makes the
/// parameter so too: check the norm ([`grad_norm_sq`]) first.
///
/// # Errors
/// Settings out of range, lengths that differ, or step 0. Nothing is changed then.
pub fn step<P: Element, G: Element>(
    param: &mut [P],
    grad: &[G],
    state: &mut OptimizerState,
    config: &AdamWConfig,
    lr: f64,
    grad_scale: f64,
    step: u64,
) -> Result<(), AdamWError> {
    config.validate()?;
    if step == 0 {
        return Err(AdamWError::StepZero);
    }
    if grad.len() != param.len() {
        return Err(AdamWError::Length { what: "the gradient", got: grad.len(), need: param.len() });
    }
    state.validate(param.len())?;
    let numbers = Step::new(config, lr, grad_scale, step);
    match state {
        OptimizerState::ThirtyTwo { m, v } => {
            param.par_chunks_mut(TASK).zip(grad.par_chunks(TASK)).zip(m.par_chunks_mut(TASK)).zip(v.par_chunks_mut(TASK)).for_each(
                |(((param, grad), m), v)| {
                    for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
                        (*m, *v) = numbers.moments(*m, *v, g.to_f32() * numbers.scale);
                        *p = P::from_f32(numbers.parameter(p.to_f32(), *m, *v));
                    }
                },
            );
        }
        OptimizerState::Eight { m, v, m_absmax, v_absmax } => {
            let blocks = TASK / BLOCKSIZE;
            param
                .par_chunks_mut(TASK)
                .zip(grad.par_chunks(TASK))
                .zip(m.par_chunks_mut(TASK).zip(m_absmax.par_chunks_mut(blocks)))
                .zip(v.par_chunks_mut(TASK).zip(v_absmax.par_chunks_mut(blocks)))
                .for_each(|(((param, grad), (m, m_absmax)), (v, v_absmax))| {
                    let of_blocks = param.chunks_mut(BLOCKSIZE).zip(grad.chunks(BLOCKSIZE));
                    let of_m = m.chunks_mut(BLOCKSIZE).zip(m_absmax);
                    let of_v = v.chunks_mut(BLOCKSIZE).zip(v_absmax);
                    for (((param, grad), (m, m_absmax)), (v, v_absmax)) in of_blocks.zip(of_m).zip(of_v) {
                        step_block(&numbers, config.rounding, param, grad, (m, m_absmax), (v, v_absmax));
                    }
                });
        }
    }
    Ok(())
}

/// One block with 8-bit states.
fn step_block<P: Element, G: Element>(
    numbers: &Step,
    rounding: Rounding,
    param: &mut [P],
    grad: &[G],
    (m_codes, m_absmax): (&mut [u8], &mut f32),
    (v_codes, v_absmax): (&mut [u8], &mut f32),
) {
    let (mut m, mut v) = ([0f32; BLOCKSIZE], [0f32; BLOCKSIZE]);
    let (m, v) = (&mut m[..param.len()], &mut v[..param.len()]);
    blockwise8::dequantize_block(m_codes, *m_absmax, Map::signed().code(), m);
    blockwise8::dequantize_block(v_codes, *v_absmax, Map::unsigned().code(), v);
    for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m.iter_mut()).zip(v.iter_mut()) {
        let (first, second) = numbers.moments(*m, *v, g.to_f32() * numbers.scale);
        let first = numbers.guarded(first, second);
        *p = P::from_f32(numbers.parameter(p.to_f32(), first, second));
        (*m, *v) = (first, second);
    }
    *m_absmax = blockwise8::quantize_block(m, Map::signed(), rounding, m_codes);
    *v_absmax = blockwise8::quantize_block(v, Map::unsigned(), rounding, v_codes);
}

/// The sum of squares of one gradient: f64 sums of fixed pieces, added in order, so the result does not depend on the number of threads.
pub fn grad_norm_sq<G: Element>(grad: &[G]) -> f64 {
    let pieces: Vec<f64> = grad.par_chunks(TASK).map(|piece| piece.iter().map(|g| f64::from(g.to_f32()).powi(2)).sum()).collect();
    pieces.iter().sum()
}

/// The Euclidean norm over all gradients, in the order given.
pub fn grad_norm<G: Element>(grads: &[&[G]]) -> f64 {
    grads.iter().map(|g| grad_norm_sq(g)).sum::<f64>().sqrt()
}

/// What gradients of norm `norm` are multiplied by so that their norm is at most `max_norm`: `max_norm / (norm + 1e-6)`, at most 1, as
/// `torch.nn.utils.clip_grad_norm_`. NaN if `norm` is NaN.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + 1e-6);
    if factor > 1.0 { 1.0 } else { factor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    fn settings(bits: StateBits) -> AdamWConfig {
        AdamWConfig { bits, min_8bit_size: 0, ..AdamWConfig::default() }
    }

    /// The case of the module's documentation: a large gradient beside a tiny one, then nothing.
    #[test]
    fn a_vanished_second_moment_does_not_blow_up() {
        let config = AdamWConfig { weight_decay: 0.0, ..settings(StateBits::Eight) };
        let mut param = vec![0f32; BLOCKSIZE];
        let mut state = OptimizerState::new(BLOCKSIZE, &config);
        let mut grad = vec![1f32; BLOCKSIZE];
        grad[7] = 3e-4;
        step(&mut param, &grad, &mut state, &config, 1e-3, 1.0, 1).unwrap();
        let (m, v) = state.moments();
        assert!(m[7] != 0.0 && v[7] == 0.0, "the case under test did not arise: m {} v {}", m[7], v[7]);
        let before = param[7];
        grad[7] = 0.0;
        step(&mut param, &grad, &mut state, &config, 1e-3, 1.0, 2).unwrap();
        assert_eq!(param[7], before, "no gradient and no second moment: no movement");
        assert_eq!(state.moments().0[7], 0.0);
        // Unguarded, the update would have been lr * m / eps.
        assert!(1e-3 * 0.9 * m[7] / 1e-8 > 1.0);

        // A tiny next gradient is the same danger: bounded by 2 κ learning rates.
        let mut param = vec![0f32; BLOCKSIZE];
        let mut state = OptimizerState::new(BLOCKSIZE, &config);
        for (t, g) in [(1, 3e-4), (2, 1e-12), (3, -1e-9), (4, 0.0), (5, 1e-20)] {
            grad[7] = g;
            let before = param[7];
            step(&mut param, &grad, &mut state, &config, 1e-3, 1.0, t).unwrap();
            assert!((param[7] - before).abs() <= 2.0 * 7.3 * 1e-3, "step {t} moved by {}", param[7] - before);
        }
    }

    proptest! {
        /// Whatever the gradients, no 8-bit step moves a parameter further than 2 κ lr √(1-β2ᵗ)/(1-β1ᵗ).
        #[test]
        fn every_8bit_update_is_bounded(history in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(0f32), -1.0f32..1.0, -1e-4f32..1e-4, -1e-9f32..1e-9], 64), 1..12)) {
            let config = AdamWConfig { weight_decay: 0.0, ..settings(StateBits::Eight) };
            let mut param = vec![0f32; 64];
            let mut state = OptimizerState::new(64, &config);
            for (i, grad) in history.iter().enumerate() {
                let before = param.clone();
                let t = i as u64 + 1;
                step(&mut param, grad, &mut state, &config, 1e-3, 1.0, t).unwrap();
                let most = 2.0 * 7.28 * 1e-3 * (1.0 - 0.999f64.powi(t as i32)).sqrt() / (1.0 - 0.9f64.powi(t as i32));
                for (a, b) in param.iter().zip(&before) {
                    prop_assert!(f64::from((a - b).abs()) <= most + 1e-6, "moved by {}", a - b);
                }
            }
        }

        /// The guard never acts on moments that a gradient history produced in exact arithmetic.
        #[test]
        fn the_guard_leaves_real_histories_alone(history in proptest::collection::vec(-10.0f32..10.0, 1..60)) {
            let numbers = Step::new(&AdamWConfig::default(), 1e-3, 1.0, 1);
            let (mut m, mut v) = (0f32, 0f32);
            for g in history {
                (m, v) = numbers.moments(m, v, g);
                prop_assert_eq!(numbers.guarded(m, v), m);
            }
        }
    }

    #[test]
    fn without_a_bound_the_guard_does_nothing() {
        let numbers = Step::new(&AdamWConfig { beta1: 0.99, beta2: 0.9, ..AdamWConfig::default() }, 1e-3, 1.0, 1);
        assert_eq!(numbers.guarded(5.0, 0.0), 5.0);
        assert_eq!(numbers.guarded(-5.0, 1e-30), -5.0);
    }

    #[test]
    fn threads_do_not_matter() {
        let len = 3 * TASK + 1000;
        let grad: Vec<f32> = (0..len).map(|i| ((i * 7919 % 10_007) as f32 / 10_007.0 - 0.5) * 1e-3).collect();
        let run = |threads: usize, bits| {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
                let config = settings(bits);
                let mut param: Vec<bf16> = grad.iter().map(|g| bf16::from_f32(g * 50.0)).collect();
                let mut state = OptimizerState::new(len, &config);
                for t in 1..=3 {
                    step(&mut param, &grad, &mut state, &config, 1e-2, 0.7, t).unwrap();
                }
                (param, state, grad_norm_sq(&grad).to_bits())
            })
        };
        for bits in [StateBits::ThirtyTwo, StateBits::Eight] {
            assert_eq!(run(1, bits), run(3, bits));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_changes() {
        let config = settings(StateBits::Eight);
        let mut param = vec![1f32; 10];
        let mut state = OptimizerState::new(10, &config);
        let fresh = state.clone();
        let mut go = |param: &mut [f32], grad: &[f32], config: &AdamWConfig, t| step(param, grad, &mut state, config, 1e-3, 1.0, t);
        assert_eq!(go(&mut param, &[1.0; 10], &config, 0), Err(AdamWError::StepZero));
        assert!(matches!(go(&mut param, &[1.0; 9], &config, 1), Err(AdamWError::Length { what: "the gradient", got: 9, need: 10 })));
        assert!(matches!(go(&mut param[..9], &[1.0; 9], &config, 1), Err(AdamWError::Length { what: "the first moment", .. })));
        assert!(go(&mut param, &[1.0; 10], &AdamWConfig { beta2: 1.0, ..config }, 1).is_err());
        assert!(go(&mut param, &[1.0; 10], &AdamWConfig { eps: f64::NAN, ..config }, 1).is_err());
        assert_eq!((param, state), (vec![1f32; 10], fresh));
    }

    #[test]
    fn small_tensors_keep_32_bits() {
        let config = AdamWConfig::default();
        assert!(matches!(OptimizerState::new(MIN_8BIT_SIZE - 1, &config), OptimizerState::ThirtyTwo { .. }));
        assert!(matches!(OptimizerState::new(MIN_8BIT_SIZE, &config), OptimizerState::Eight { .. }));
    }

    #[test]
    fn clipping_is_torchs() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 1.0 / 4.000001).abs() < 1e-12);
        assert!(clip_factor(f64::NAN, 1.0).is_nan());
        assert_eq!(clip_factor(f64::INFINITY, 1.0), 0.0);
        assert_eq!(grad_norm(&[&[3.0f32][..], &[4.0][..]]), 5.0);
    }
}
