//! Tokens drawn on the card against those of the host's sampler.

use super::{CheckError, Checks, Outcome};
use crate::launch::{BROKEN, ON_HOST, draw_words};
use trainer_kernels::sampling::{Draw, DrawStream, Sampler, SamplingParams};

impl Checks<'_> {
    pub(super) fn all_sampling(&mut self) -> Outcome<()> {
        let params = |temperature, top_k, top_p, min_p| SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        for (rows, vocab) in [(64, 1003), (60, 151_936), (3, 5), (2, 1)] {
            for p in [
                params(1.0, 0, 1.0, 0.0),
                params(0.7, 0, 1.0, 0.02),
                params(0.6, 20, 0.95, 0.0),
                params(1.0, 50, 1.0, 0.0),
                params(1.3, 4, 0.5, 0.3),
                params(0.6, 0, 0.9, 0.0),
                params(1.0, 0, 0.95, 0.1),
                params(0.0, 20, 0.95, 0.0),
                params(1e-3, 20, 1.0, 0.0),
                params(1.0, 1, 1.0, 0.0),
                params(1.0, 900, 0.999, 0.0),
                params(1.0, 0, 0.0, 0.0),
                SamplingParams { repetition_penalty: 1.2, ..params(0.8, 20, 0.95, 0.0) },
            ] {
                self.check_sampling(rows, vocab, &p)?;
            }
        }
        Ok(())
    }

    fn check_sampling(&mut self, rows: usize, vocab: usize, params: &SamplingParams) -> Outcome<()> {
        if self.large(rows * vocab) {
            return Ok(());
        }
        let d = self.device;
        let other = |e: &dyn std::fmt::Display| CheckError::Other(e.to_string());
        // Peaked as a model's are: cubes of about normal values; every fourth row in coarse steps, so that there are ties.
        let mut logits: Vec<f32> = self.random.values(rows * vocab).into_iter().map(|x| x * x * x * 0.8 + 1.37 * x).collect();
        for (r, row) in logits.chunks_mut(vocab).enumerate() {
            if r % 4 == 1 {
                row.iter_mut().for_each(|x| *x = (*x * 2.0).round() / 2.0);
            }
            if r % 4 == 2 {
                row.iter_mut().step_by(3).skip(1).for_each(|x| *x = f32::NEG_INFINITY);
            }
        }
        let stream = DrawStream { seed: self.random.bits(), sample: 5, repeat: 0 };
        let history: Vec<u32> = (0..vocab.min(50)).map(|i| (i * 7 % vocab) as u32).collect();
        let mut unique = history.clone();
        unique.sort_unstable();
        unique.dedup();
        let pairs: Vec<u32> = (0..rows as u32).flat_map(|r| unique.iter().flat_map(move |&id| [r, id])).collect();
        // Every row has settings of its own: here the same with other uniform numbers.
        let mut draws = Vec::new();
        for r in 0..rows {
            draws.extend(draw_words(&Draw { params: *params, uniform: stream.uniform(r as u32) })?);
        }
        let mut card = d.floats(&logits)?;
        let (draws, mut out) = (d.upload(&draws, "draws")?, d.zeros(rows, "tokens")?);
        if params.repetition_penalty != 1.0 {
            d.penalise(rows, vocab, &mut card, &d.upload(&pairs, "pairs")?, pairs.len() / 2, params.repetition_penalty)?;
        }
        d.sample_rows(rows, vocab, &card, &draws, &mut out)?;
        let (mut sampler, mut wrong, mut on_host) = (Sampler::new(), 0, 0);
        let got = out.read()?;
        for (r, (row, &got)) in logits.chunks(vocab).zip(&got).enumerate() {
            let history: &[u32] = if params.repetition_penalty == 1.0 { &[] } else { &history };
            let want = sampler.sample(row, history, params, &stream, r as u32).map_err(|e| other(&e))?;
            on_host += u32::from(got == ON_HOST);
            wrong += u32::from(got != want && got != ON_HOST);
        }
        let shape =
            format!("{rows}x{vocab} t {} k {} p {} m {}, {on_host} on host", params.temperature, params.top_k, params.top_p, params.min_p);
        // Tokens that differ: none where few are candidates, hardly any otherwise. And no more left to the host than half of the rows.
        let few = params.top_k > 0 || params.top_p < 1.0 || params.temperature == 0.0;
        self.note("sample_rows", shape, &[1.0 + wrong as f32 / rows as f32], &[1.0], if few { 0.0 } else { 0.02 });
        if on_host as usize * 2 > rows && rows > 3 {
            return Err(CheckError::Other(format!("{on_host} of {rows} rows were left to the host")));
        }
        // Broken rows say so.
        logits.truncate(vocab);
        for bad in [f32::NAN, f32::INFINITY] {
            if let Some(last) = logits.last_mut() {
                *last = bad;
            }
            d.sample_rows(1, vocab, &d.floats(&logits)?, &draws, &mut out)?;
            if out.read()?.first() != Some(&BROKEN) {
                return Err(CheckError::Other(format!("a logit of {bad} was sampled from")));
            }
        }
        Ok(())
    }
}
