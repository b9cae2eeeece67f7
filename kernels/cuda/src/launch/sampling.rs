//! From logits to tokens.

use super::{blocks, fail, grid, launch, least, product};
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats};
use trainer_kernels::sampling::{Draw, SamplingParams};

/// What [`Device::sample_rows`] gives for a row with a logit that is NaN or +infinity, or with nothing to draw from.
pub const BROKEN: u32 = u32::MAX;
/// What [`Device::sample_rows`] gives for a row that more tokens pass the filters of than the card's list holds: sample it on the host.
pub const ON_HOST: u32 = u32::MAX - 1;

/// Words of eight bytes of a draw.
pub const DRAW_WORDS: usize = 4;

/// A draw as [`Device::sample_rows`] reads it. The repetition penalty has no part in it.
///
/// # Errors
/// Settings out of range.
pub fn draw_words(draw: &Draw) -> Result<[u64; DRAW_WORDS]> {
    let (p, pair) = (&draw.params, |low: u32, high: u32| u64::from(low) | u64::from(high) << 32);
    p.validate().map_err(|e| fail("sample_rows", "the sampling settings", 0, e))?;
    let (temperature, min_p) = (p.temperature as f32, p.min_p as f32);
    Ok([p.top_p.to_bits(), draw.uniform.to_bits(), pair(temperature.to_bits(), min_p.to_bits()), pair(p.top_k, 0)])
}

impl Device {
    /// A token for each of `rows` rows of `logits`, `[rows, vocab]` without gaps: as [`trainer_kernels::sampling::Sampler::sample`] with the same
    /// settings and uniform number in [0, 1), laid out in `draws` by [`draw_words`]. Where all tokens are candidates, weights may differ from the host's
    /// in their last bit, so that a draw between two tokens of a long tail falls on the other one now and then: about once in 10⁴ draws over 150,000
    /// tokens of equal chances, never between likely ones. The repetition penalty is [`Self::penalise`]'s. A row may give [`BROKEN`] or, with `top_k`
    /// above about 2000 or a nucleus of more tokens than that, [`ON_HOST`].
    ///
    /// # Errors
    /// Buffers that do not fit.
    pub fn sample_rows(&self, rows: usize, vocab: usize, logits: &Floats, draws: &Buffer<u64>, out: &mut Buffer<u32>) -> Result<()> {
        let op = "sample_rows";
        let v = super::loss::vocabulary(op, vocab)?;
        least(op, "the logits", logits.len(), product(&[rows, vocab]))?;
        least(op, "the draws", draws.len(), product(&[rows, DRAW_WORDS]))?;
        least(op, "the tokens", out.len(), Some(rows))?;
        if rows > 0 {
            launch!(self, op, grid(blocks(op, rows, 1)?, 1, 1024), logits.ptr(), v, draws.ptr(), out.ptr());
        }
        Ok(())
    }

    /// The repetition penalty (Keskar et al. 2019), in place, for `count` pairs of row and token id one behind the other. No pair may occur twice; pairs
    /// outside of the logits are left out.
    ///
    /// # Errors
    /// Buffers that do not fit, or a penalty that is not positive.
    pub fn penalise(&self, rows: usize, vocab: usize, logits: &mut Floats, pairs: &Buffer<u32>, count: usize, penalty: f64) -> Result<()> {
        let op = "penalise";
        let v = super::loss::vocabulary(op, vocab)?;
        least(op, "the logits", logits.len(), product(&[rows, vocab]))?;
        least(op, "the pairs", pairs.len(), product(&[2, count]))?;
        SamplingParams { repetition_penalty: penalty, ..SamplingParams::default() }
            .validate()
            .map_err(|e| fail(op, "the repetition penalty", 0, e))?;
        let (Ok(rows), Ok(n)) = (u32::try_from(rows), u32::try_from(count)) else {
            return Err(fail(op, "the pairs", count, "less than 2^32"));
        };
        if rows > 0 && n > 0 {
            launch!(self, op, grid(blocks(op, count, 256)?, 1, 256), logits.ptr(), rows, v, pairs.ptr(), n, penalty as f32);
        }
        Ok(())
    }
}
