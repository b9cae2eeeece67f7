//! Recorded launches: a decoding step as one call.

use super::types::Batch;
use super::{Cuda, Outcome};
use crate::graph::Graph;
use std::sync::atomic::Ordering;
use trainer_kernels::ops::{HostBatch, OpsError};

/// Launches with the addresses that they were recorded with.
pub struct Recording {
    graph: Graph,
    /// What [`Cuda::replace`] had counted then.
    replaced: u64,
}

impl Cuda {
    pub(super) fn record_launches(&self, work: &mut dyn FnMut() -> Outcome<()>) -> Outcome<Option<Recording>> {
        let replaced = self.replaced.load(Ordering::Relaxed);
        // What was rounded before is not part of the recording, and a replay rounds without this side's knowing.
        self.forget();
        let mut failure = None;
        let graph = self.device.capture(|| {
            if let Err(e) = work() {
                failure = Some(e);
            }
            Ok(())
        });
        match (failure, graph) {
            (Some(e), _) => Err(e),
            // Something new had to be allocated while recording: the next step will do without.
            _ if self.replaced.load(Ordering::Relaxed) != replaced => Ok(None),
            (None, graph) => Ok(Some(Recording { graph: graph?, replaced })),
        }
    }

    pub(super) fn replay_launches(&self, recording: &mut Recording) -> Outcome<bool> {
        if self.replaced.load(Ordering::Relaxed) != recording.replaced {
            return Ok(false);
        }
        self.forget();
        recording.graph.launch()?;
        Ok(true)
    }

    pub(super) fn refill_batch(&self, host: &HostBatch, batch: &mut Batch) -> Outcome<bool> {
        let n = host.ids.len();
        let reach = host.positions.iter().max().map_or(0, |last| *last as usize + 1);
        if n != batch.n || host.positions.len() != n || !host.targets.is_empty() || reach > batch.reach || host.slots != batch.host_slots {
            return Ok(false);
        }
        let largest = host.ids.iter().max().copied().unwrap_or(0);
        let limit = batch.vocabulary.load(Ordering::Relaxed) as u64;
        if u64::from(largest) >= limit {
            return Err(OpsError::Index { op: "embed", what: "token id", index: largest.into(), limit });
        }
        batch.ids.write_at(0, &host.ids)?;
        batch.positions.write_at(0, &host.positions)?;
        Ok(true)
    }
}
