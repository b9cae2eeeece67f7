//! What the backend's operations work on, and the checks that batches need.

use crate::Result;
use crate::device::Device;
use crate::launch::{MaskRows, Sequences};
use crate::memory::{Buffer, Floats, Pinned, Tensor};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use trainer_kernels::ops::{HostBatch, OpsError};

static NEXT_VERSION: AtomicU64 = AtomicU64::new(1);

/// A number that no parameter has had before.
fn fresh_version() -> u64 {
    NEXT_VERSION.fetch_add(1, Ordering::Relaxed)
}

/// Trained values or their gradients, f32.
pub struct Param {
    values: Floats,
    version: u64,
}

impl Param {
    pub(super) fn new(values: Floats) -> Self {
        Self { values, version: fresh_version() }
    }

    /// The values.
    pub fn values(&self) -> &Floats {
        &self.values
    }

    /// The values, about to change.
    pub(super) fn change(&mut self) -> &mut Floats {
        self.version = fresh_version();
        &mut self.values
    }

    /// Changes whenever the values do; no two parameters share one.
    pub(super) fn version(&self) -> u64 {
        self.version
    }
}

/// A dense table in bf16, `[rows, cols]`.
pub enum Table {
    /// On the card.
    Card(Tensor),
    /// In pinned host memory, for lookups alone.
    Outside {
        /// Rows without gaps.
        memory: Pinned,
        /// Rows.
        rows: usize,
        /// Values of a row.
        cols: usize,
    },
}

impl Table {
    pub(super) fn rows(&self) -> usize {
        match self {
            Table::Card(t) => t.rows(),
            Table::Outside { rows, .. } => *rows,
        }
    }

    /// The table as an operand.
    pub(super) fn on_card(&self, op: &'static str) -> std::result::Result<&Tensor, OpsError> {
        match self {
            Table::Card(t) => Ok(t),
            Table::Outside { .. } => Err(OpsError::Device(format!("{op}: the table lies in host memory, for lookups alone"))),
        }
    }
}

/// A position whose prediction counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub weight: f32,
    pub sequence: u32,
}

/// Positions that launches reach are rounded up to this many.
const REACH: usize = 256;

/// A batch on the card, checked.
pub struct Batch {
    pub(super) n: usize,
    pub(super) ids: Buffer<u32>,
    pub(super) positions: Buffer<u32>,
    /// The cache slot of each row; empty outside of generation.
    pub(super) slots: Buffer<u32>,
    /// The sample of each row; empty outside of training.
    pub(super) samples: Buffer<u64>,
    pub(super) sequences: Sequences,
    pub(super) sequence_count: usize,
    pub(super) largest_id: u32,
    pub(super) largest_position: u32,
    pub(super) largest_slot: u32,
    /// Positions that launches for this batch reach: a multiple of [`REACH`], so that recorded ones serve the steps that follow.
    pub(super) reach: usize,
    /// Rows of the table that the ids were looked up in; 0 before.
    pub(super) vocabulary: AtomicUsize,
    /// The slot of each sequence.
    pub(super) host_slots: Vec<u32>,
    /// Whether each slot has one row.
    pub(super) single: bool,
    pub(super) largest_target: u32,
    /// In the order of rows.
    pub(super) wanted: Vec<Wanted>,
    pub(super) wanted_rows: Buffer<u32>,
    pub(super) targets: Buffer<u32>,
    pub(super) has_targets: bool,
}

/// An error unless `got` is `need`.
fn same(what: &'static str, got: usize, need: usize) -> std::result::Result<(), OpsError> {
    if got == need { Ok(()) } else { Err(OpsError::Shape { op: "batch", what, got, need }) }
}

/// Checks that the parts of a batch fit each other; gives the sequence of each row.
pub(super) fn check(batch: &HostBatch) -> std::result::Result<Vec<u32>, OpsError> {
    let n = batch.ids.len();
    let index =
        |what, index: u64, limit: u64| if index < limit { Ok(()) } else { Err(OpsError::Index { op: "batch", what, index, limit }) };
    index("the number of rows", n as u64, i32::MAX as u64)?;
    same("positions", batch.positions.len(), n)?;
    if !batch.targets.is_empty() || !batch.weights.is_empty() {
        same("targets", batch.targets.len(), n)?;
        same("weights", batch.weights.len(), n)?;
    }
    let sequences = batch.cu_seqlens.len().checked_sub(1).ok_or(OpsError::Shape { op: "batch", what: "cu_seqlens", got: 0, need: 1 })?;
    for (what, got) in [("samples", batch.samples.len()), ("slots", batch.slots.len())] {
        if got > 0 {
            same(what, got, sequences)?;
        }
    }
    index("the first row", batch.cu_seqlens.first().copied().unwrap_or(0).into(), 1)?;
    let mut sequence_of = Vec::with_capacity(n);
    for (sequence, pair) in batch.cu_seqlens.windows(2).enumerate() {
        let &[start, end] = pair else { continue };
        index("a sequence's first row", start.into(), u64::from(end) + 1)?;
        index("a sequence's end", end.into(), n as u64 + 1)?;
        sequence_of.resize(end as usize, sequence as u32);
    }
    same("the rows of all sequences", sequence_of.len(), n)?;
    Ok(sequence_of)
}

impl Batch {
    pub(super) fn new(device: &Device, batch: &HostBatch, sequence_of: &[u32]) -> Result<Self> {
        let largest = |values: &[u32]| values.iter().max().copied().unwrap_or(0);
        let per_row = |values: &[u32]| -> Vec<u32> { sequence_of.iter().filter_map(|&s| values.get(s as usize).copied()).collect() };
        let samples: Vec<u64> = sequence_of.iter().filter_map(|&s| batch.samples.get(s as usize).copied()).collect();
        let mut wanted = Vec::new();
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for (row, ((&target, &weight), &sequence)) in batch.targets.iter().zip(&batch.weights).zip(sequence_of).enumerate() {
            if weight != 0.0 {
                wanted.push(Wanted { weight, sequence });
                rows.push(row as u32);
                targets.push(target);
            }
        }
        let slots = per_row(&batch.slots);
        let what = "a batch";
        let mut distinct = batch.slots.clone();
        distinct.sort_unstable();
        distinct.dedup();
        Ok(Self {
            n: batch.ids.len(),
            ids: device.upload(&batch.ids, what)?,
            positions: device.upload(&batch.positions, what)?,
            slots: device.upload(&slots, what)?,
            samples: device.upload(&samples, what)?,
            sequences: device.sequences(&batch.cu_seqlens)?,
            sequence_count: batch.cu_seqlens.len().saturating_sub(1),
            largest_id: largest(&batch.ids),
            largest_position: largest(&batch.positions),
            largest_slot: largest(&slots),
            reach: (largest(&batch.positions) as usize + 1).next_multiple_of(REACH),
            vocabulary: AtomicUsize::new(0),
            host_slots: batch.slots.clone(),
            single: distinct.len() == batch.ids.len(),
            largest_target: largest(&targets),
            wanted_rows: device.upload(&rows, what)?,
            targets: device.upload(&targets, what)?,
            wanted,
            has_targets: !batch.targets.is_empty() || batch.ids.is_empty(),
        })
    }

    /// What dropout masks depend on.
    pub(super) fn mask_rows(&self) -> MaskRows<'_> {
        MaskRows { samples: &self.samples, positions: &self.positions }
    }

    /// An error unless the batch has `n` rows.
    pub(super) fn check_rows(&self, op: &'static str, n: usize) -> std::result::Result<(), OpsError> {
        if self.n == n { Ok(()) } else { Err(OpsError::Shape { op, what: "the batch", got: self.n, need: n }) }
    }
}
