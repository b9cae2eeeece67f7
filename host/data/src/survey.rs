//! Going through data once: every row of a source in file order, and what a mixing policy would draw.

use std::ops::Range;

use crate::error::{DataError, StageError};
use crate::pack::Sample;
use crate::pipeline::{Counters, Pipeline, PipelineSpec};
use crate::stages::{Draw, MixerFactory, MixerSetup, MixerSource, SourceLoss, SourceMixer};

/// Samples taken at a time.
const BATCH: usize = 256;
/// Decisions asked for at a time.
const BLOCK: u64 = 4096;

/// Every row of one source once: in file order, or, where it can only be read from the front, in the host's order.
struct EachOnce(u64);

struct Each {
    random: bool,
    rows: u64,
    next: u64,
}

impl MixerFactory for EachOnce {
    fn open(&self, setup: &MixerSetup, snapshot: Option<&[u8]>) -> Result<Box<dyn SourceMixer>, StageError> {
        let refuse = |message: &str| StageError::Fatal(message.to_owned());
        let source = setup.sources.first().ok_or_else(|| refuse("there is no source"))?;
        // The rows themselves, whatever weight the source has in the mix.
        let rows = self.0;
        let next = match snapshot {
            None => 0,
            Some(bytes) => bytes.try_into().map(u64::from_le_bytes).map_err(|_| refuse("a damaged snapshot"))?,
        };
        Ok(Box::new(Each { random: source.random_access, rows, next }))
    }
}

impl SourceMixer for Each {
    fn epoch_length(&mut self) -> Result<Option<u64>, StageError> {
        Ok(Some(self.rows))
    }

    fn next(&mut self, n: u32) -> Result<Vec<Draw>, StageError> {
        let end = self.next.saturating_add(u64::from(n)).min(self.rows);
        let draws: Range<u64> = self.next..end;
        self.next = end;
        Ok(draws.map(|i| Draw { source: 0, ordinal: self.random.then_some(i) }).collect())
    }

    fn feedback(&mut self, _: u64, _: &[SourceLoss]) -> Result<(), StageError> {
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Vec<u8>, StageError> {
        Ok(self.next.to_le_bytes().to_vec())
    }
}

/// Takes every row of a source of `spec` once, through all stages and on all its threads, and shows each sample. Bad rows are counted, none stops
/// it. Gives what was counted.
///
/// Errors: an unreadable file, a failing plugin.
pub fn each_sample(spec: &PipelineSpec, source: usize, visit: &mut dyn FnMut(&Sample)) -> Result<Counters, DataError> {
    let mut spec = spec.clone();
    let input = spec.sources.get(source).cloned().ok_or_else(|| DataError::Settings(format!("there is no source {source}")))?;
    let rows = input.source.len();
    spec.sources = vec![input];
    spec.mixer = std::sync::Arc::new(EachOnce(rows));
    (spec.feedback, spec.max_draws, spec.max_bad_rows, spec.may_be_barren) = (None, None, u64::MAX, true);
    let mut pipeline = Pipeline::new(spec)?;
    loop {
        let samples = pipeline.next_samples(BATCH)?;
        if samples.is_empty() {
            return Ok(pipeline.counters().clone());
        }
        samples.iter().for_each(&mut *visit);
    }
}

/// How often a policy draws from each source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Draws by source, in the recipe's order.
    pub by_source: Vec<u64>,
    /// Draws in one pass over the mix, if there is such a thing.
    pub epoch: Option<u64>,
}

impl Drawn {
    /// All draws.
    pub fn total(&self) -> u64 {
        self.by_source.iter().sum()
    }
}

/// Asks the mixing policy of `spec` for `draws(epoch)` decisions, without reading a row, and counts them.
///
/// Errors: a failing policy, or one that draws from a source that there is not.
pub fn count_draws(spec: &PipelineSpec, draws: impl FnOnce(Option<u64>) -> u64) -> Result<Drawn, DataError> {
    let failed = |e: StageError| DataError::Mixer(e.to_string());
    let listed = spec.sources.iter().map(|s| MixerSource {
        name: s.source.name().to_owned(),
        length: Some(s.source.mix_length()),
        random_access: s.source.random_access(),
    });
    let setup = MixerSetup { sources: listed.collect(), seed: spec.seed, feedback_lag: spec.feedback.map_or(0, |f| f.lag) };
    let mut mixer = spec.mixer.open(&setup, None).map_err(failed)?;
    let epoch = mixer.epoch_length().map_err(failed)?;
    let mut left = draws(epoch);
    let mut by_source = vec![0u64; spec.sources.len()];
    while left > 0 {
        let asked = left.min(BLOCK);
        let given = mixer.next(u32::try_from(asked).unwrap_or(u32::MAX)).map_err(failed)?;
        for draw in &given {
            let count = usize::try_from(draw.source).ok().and_then(|s| by_source.get_mut(s));
            *count.ok_or_else(|| DataError::Mixer(format!("it drew from source {}, which there is not", draw.source)))? += 1;
        }
        if (given.len() as u64) < asked {
            break;
        }
        left -= asked;
    }
    Ok(Drawn { by_source, epoch })
}
