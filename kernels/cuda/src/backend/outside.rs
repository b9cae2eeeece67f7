//! What lies outside of the card's memory: layer inputs between forward and backward, and a table that is only looked up.
//!
//! Copies run on a stream of their own. An event says when the last one of a buffer is done; the main stream waits for it where it needs to.

use super::types::Table;
use super::{Cuda, Outcome};
use crate::Result;
use crate::memory::{Pinned, Tensor};
use cudarc::driver::{CudaEvent, CudaStream};
use half::bf16;
use std::sync::{Mutex, PoisonError};
use trainer_kernels::ops::{HostMatrix, OpsError, ReadMatrix};

/// Activations in pinned host memory.
pub struct Offloaded {
    memory: Pinned,
    rows: usize,
    cols: usize,
    /// The end of the last copy.
    done: Mutex<Option<CudaEvent>>,
}

/// Rows of a random table that are made at a time.
const ROWS: usize = 4096;

impl Cuda {
    pub(super) fn room_outside(&self, rows: usize, cols: usize) -> Outcome<Offloaded> {
        let bytes = rows.saturating_mul(cols).saturating_mul(2);
        Ok(Offloaded { memory: Pinned::new(self.device.context(), bytes, "activations")?, rows, cols, done: Mutex::default() })
    }

    /// Copies between a tensor and its place outside, after everything launched so far and beside what follows.
    pub(super) fn carry(&self, n: usize, out: bool, t: &Tensor, place: &Offloaded) -> Outcome<()> {
        if t.cols() != place.cols || n > place.rows || n > t.rows() {
            return Err(OpsError::Shape { op: "offload", what: "the room outside", got: place.rows * place.cols, need: n * t.cols() });
        }
        let copies = self.copy_stream()?;
        let copy = || -> Result<CudaEvent> {
            copies.wait(&self.device.stream().record_event(None)?)?;
            self.device.copy_outside(&copies, n, t, place.memory.ptr(), out)?;
            Ok(copies.record_event(None)?)
        };
        *place.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy()?);
        Ok(())
    }

    /// Makes the main stream wait for the last copy.
    pub(super) fn wait_for(&self, place: &Offloaded) -> Outcome<()> {
        if let Some(event) = place.done.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            self.device.stream().wait(event).map_err(crate::CudaError::from)?;
        }
        Ok(())
    }

    pub(super) fn copy_stream(&self) -> Outcome<std::sync::Arc<CudaStream>> {
        let mut held = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = held.as_ref() {
            return Ok(stream.clone());
        }
        let stream = self.device.context().new_stream().map_err(crate::CudaError::from)?;
        *held = Some(stream.clone());
        Ok(stream)
    }

    /// A table in pinned host memory.
    pub(super) fn table_outside(&self, matrix: HostMatrix<'_>, rows: usize, cols: usize) -> Outcome<Table> {
        let mut table = self.empty_outside(rows, cols)?;
        if let Table::Outside { memory, .. } = &mut table {
            let to: &mut [bf16] = values(memory.as_mut_slice())?;
            let len = rows * cols;
            match matrix {
                HostMatrix::Stored { source, quantize: None } if source.len() == len => source.read(0, to).map_err(OpsError::Source)?,
                HostMatrix::Stored { source, quantize } => {
                    let read = ReadMatrix::new(source, rows, cols, quantize)?;
                    return self.table_outside(read.matrix(), rows, cols);
                }
                HostMatrix::Bf16(w) if w.len() == len => to.copy_from_slice(w),
                HostMatrix::F32(w) if w.len() == len => to.iter_mut().zip(w).for_each(|(to, w)| *to = bf16::from_f32(*w)),
                HostMatrix::Nf4(w) if w.len() == len => to.copy_from_slice(&w.dequantize::<bf16>()),
                other => return Err(OpsError::Shape { op: "table", what: "the matrix", got: other.len(), need: len }),
            }
        }
        Ok(table)
    }

    /// A random table in pinned host memory, made on the card piece by piece: the same values as in one piece.
    pub(super) fn random_outside(&self, rows: usize, cols: usize, seed: u64, deviation: f32) -> Outcome<Table> {
        let table = self.empty_outside(rows, cols)?;
        let mut piece = Tensor::new(self.device.arena(), ROWS.min(rows), cols, "a random table")?;
        if let Table::Outside { memory, .. } = &table {
            for first in (0..rows).step_by(ROWS) {
                self.device.random_normal(seed, deviation, first, &mut piece)?;
                let to = memory.ptr() + 2 * (first * cols) as u64;
                self.device.copy_outside(self.device.stream(), ROWS.min(rows - first), &piece, to, true)?;
            }
        }
        self.device.synchronize()?;
        Ok(table)
    }

    fn empty_outside(&self, rows: usize, cols: usize) -> Outcome<Table> {
        let bytes =
            rows.checked_mul(cols).and_then(|n| n.checked_mul(2)).ok_or(OpsError::Memory { what: "a table".into(), bytes: u64::MAX })?;
        Ok(Table::Outside { memory: Pinned::new(self.device.context(), bytes, "a table")?, rows, cols })
    }
}

/// The bytes as bf16 values: pages are aligned.
pub(super) fn values(bytes: &mut [u8]) -> Outcome<&mut [bf16]> {
    bytemuck::try_cast_slice_mut(bytes).map_err(|e| OpsError::Device(format!("pinned memory: {e}")))
}
