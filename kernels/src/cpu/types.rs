//! What the backend's operations work on, and the checks of their sizes.

use super::buffer::{Buffer, area};
use crate::ops::{HostBatch, OpsError, Result};

/// Activations, `[rows, cols]`.
pub struct Tensor {
    pub(super) data: Buffer,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// Statistics, `[rows, cols]`.
pub type Stats = Tensor;

impl Tensor {
    /// Rows that there is room for.
    pub fn row_count(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn col_count(&self) -> usize {
        self.cols
    }

    pub(super) fn new(rows: usize, cols: usize) -> Result<Self> {
        Ok(Tensor { data: Buffer::zeroed(area(rows, cols, "a tensor")?, "a tensor")?, rows, cols })
    }

    /// The first `n` rows, checked to be `cols` wide.
    pub(super) fn rows(&self, op: &'static str, what: &'static str, n: usize, cols: usize) -> Result<&[f32]> {
        same(op, what, self.cols, cols)?;
        let len = area(n, cols, what)?;
        self.data.get(..len).ok_or(OpsError::Shape { op, what, got: self.data.len(), need: len })
    }

    /// The first `n` rows, checked to be `cols` wide.
    pub(super) fn rows_mut(&mut self, op: &'static str, what: &'static str, n: usize, cols: usize) -> Result<&mut [f32]> {
        same(op, what, self.cols, cols)?;
        let len = area(n, cols, what)?;
        let got = self.data.len();
        self.data.get_mut(..len).ok_or(OpsError::Shape { op, what, got, need: len })
    }
}

/// Trained values or their gradients.
pub struct Param {
    pub(super) data: Buffer,
}

impl Param {
    /// How many values there are.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// A batch whose parts were checked against each other.
pub struct Batch {
    pub(super) host: HostBatch,
    /// The sequence of each row.
    pub(super) sequence_of: Vec<u32>,
    /// Panels of keys of all sequences.
    pub(super) key_panels: usize,
    /// Rows of the longest sequence.
    pub(super) longest: usize,
}

impl Batch {
    pub(super) fn sequences(&self) -> usize {
        self.host.cu_seqlens.len().saturating_sub(1)
    }

    /// First row and number of rows of a sequence.
    pub(super) fn span(&self, sequence: usize) -> (usize, usize) {
        match self.host.cu_seqlens.get(sequence..sequence + 2) {
            Some(&[start, end]) => (start as usize, (end as usize).saturating_sub(start as usize)),
            _ => (0, 0),
        }
    }

    pub(super) fn check_rows(&self, op: &'static str, n: usize) -> Result<()> {
        same(op, "the batch", self.host.ids.len(), n)
    }
}

/// An error unless `got` is `need`.
pub(super) fn same(op: &'static str, what: &'static str, got: usize, need: usize) -> Result<()> {
    if got == need { Ok(()) } else { Err(OpsError::Shape { op, what, got, need }) }
}

/// An error unless `got` is at least `need`.
pub(super) fn need(op: &'static str, what: &'static str, got: usize, need: usize) -> Result<()> {
    if got >= need { Ok(()) } else { Err(OpsError::Shape { op, what, got, need }) }
}

/// An error unless `index` is below `limit`.
pub(super) fn index(op: &'static str, what: &'static str, index: u64, limit: u64) -> Result<()> {
    if index < limit { Ok(()) } else { Err(OpsError::Index { op, what, index, limit }) }
}
