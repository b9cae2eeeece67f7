//! Weights that are put on the card, and quantized there, while they are read.
//!
//! A matrix in a file passes through a few pieces of pinned host memory: while the card takes one, threads of the source fill the next. So host
//! memory never holds a matrix, and reading and copying overlap. On the card, what is quantized needs room for the same few pieces in 16 bits.

use super::{Cuda, Outcome};
use crate::launch::DeviceNf4;
use crate::memory::{Buffer, Pinned, Tensor};
use crate::{CudaError, Result};
use cudarc::driver::{CudaEvent, CudaStream, result};
use half::bf16;
use std::sync::PoisonError;
use trainer_kernels::blockwise8::Rounding;
use trainer_kernels::nf4::{DoubleQuant, NESTED_BLOCKSIZE, Nf4Error};
use trainer_kernels::ops::{MatrixSource, OpsError, ReadMatrix};

/// Values of a piece, a multiple of 64: 16 MiB.
const PIECE: usize = 8 << 20;
/// Pieces: one is filled, one is copied, one is quantized.
const SLOTS: usize = 3;

/// The pieces in host memory, kept from matrix to matrix: pinning takes longer than filling.
#[derive(Default)]
pub(super) struct Pieces(Vec<Pinned>);

/// What has to be over before a piece can be used again.
#[derive(Default)]
struct Slot {
    /// The copy out of host memory.
    copied: Option<CudaEvent>,
    /// What was launched on the piece on the card.
    used: Option<CudaEvent>,
}

impl Cuda {
    /// A matrix in bf16.
    pub(crate) fn stored_dense(&self, source: &dyn MatrixSource, rows: usize, cols: usize) -> Outcome<Tensor> {
        let tensor = Tensor::new(self.device.arena(), rows, cols, "a matrix")?;
        check(source, rows, cols)?;
        self.stream_in(source, |first, _| tensor.ptr() + 2 * first as u64, |_, _, _| Ok(()))?;
        Ok(tensor)
    }

    /// A matrix that is quantized on the card.
    pub(crate) fn stored_nf4(&self, source: &dyn MatrixSource, rows: usize, cols: usize, double: DoubleQuant) -> Outcome<DeviceNf4> {
        check(source, rows, cols)?;
        if !matches!(double, DoubleQuant::No | DoubleQuant::Yes { blocksize: NESTED_BLOCKSIZE, rounding: Rounding::Nearest }) {
            // What the card does not quantize, the host does.
            return match ReadMatrix::new(source, rows, cols, Some(double))? {
                ReadMatrix::Nf4(w) => Ok(self.device.nf4(&w)?),
                ReadMatrix::Bf16(_) => Err(OpsError::Device("a weight was not quantized: a bug in trainer-kernels".into())),
            };
        }
        // What stays comes first, so that what does not leaves no hole before it.
        let weight = self.device.nf4_pieces(rows, cols, double)?;
        let count = SLOTS.min(source.len().div_ceil(PIECE));
        let mut room: Vec<Buffer<bf16>> = Vec::with_capacity(count);
        for _ in 0..count {
            room.push(self.device.buffer(PIECE.min(source.len()), "a weight that is quantized")?);
        }
        let place =
            |slot: usize| room.get(slot).ok_or_else(|| OpsError::Device("no room for a piece: a bug in trainer-kernels-cuda".into()));
        self.stream_in(
            source,
            |_, slot| place(slot).map_or(0, Buffer::ptr),
            |first, len, slot| Ok(self.device.quantize_piece(&weight, first, place(slot)?, len)?),
        )?;
        self.device.nf4_whole(weight)?.map_err(|index| {
            let mut value = [bf16::NAN];
            match source.read(index, &mut value) {
                Ok(()) => {
                    let e = Nf4Error::NotFinite { what: "the weight", index, value: value[0].to_f32() };
                    OpsError::Source(format!("{}: {e}", source.name()))
                }
                Err(e) => OpsError::Source(e),
            }
        })
    }

    /// Copies all values to the card, piece by piece: `to` says where one goes, by its first value and its slot, and `then` launches what comes
    /// after its copy, given its length too.
    fn stream_in(
        &self,
        source: &dyn MatrixSource,
        to: impl Fn(usize, usize) -> u64,
        mut then: impl FnMut(usize, usize, usize) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let copies = self.copy_stream()?;
        let main = self.device.stream();
        // The memory that is written to may be what an earlier launch still reads.
        copies.wait(&main.record_event(None).map_err(CudaError::from)?).map_err(CudaError::from)?;
        let mut slots: [Slot; SLOTS] = Default::default();
        for (i, first) in (0..source.len()).step_by(PIECE).enumerate() {
            let (number, len) = (i % SLOTS, PIECE.min(source.len() - first));
            if pieces.0.len() <= number {
                pieces.0.push(Pinned::new(self.device.context(), 2 * PIECE, "weights that are loaded")?);
            }
            let (Some(slot), Some(piece)) = (slots.get_mut(number), pieces.0.get_mut(number)) else { continue };
            if let Some(copied) = slot.copied.take() {
                copied.synchronize().map_err(CudaError::from)?;
            }
            let values: &mut [bf16] = super::outside::values(piece.as_mut_slice())?;
            let values =
                values.get_mut(..len).ok_or_else(|| OpsError::Device("a piece is too short: a bug in trainer-kernels-cuda".into()))?;
            source.read(first, values).map_err(OpsError::Source)?;
            let copied = (|| -> Result<CudaEvent> {
                if let Some(used) = slot.used.take() {
                    copies.wait(&used)?;
                }
                copy(&copies, values, to(first, number))?;
                let copied = copies.record_event(None)?;
                main.wait(&copied)?;
                Ok(copied)
            })()?;
            slot.copied = Some(copied);
            then(first, len, number)?;
            slot.used = Some(main.record_event(None).map_err(CudaError::from)?);
        }
        // The next matrix finds every piece free.
        for copied in slots.iter_mut().filter_map(|slot| slot.copied.take()) {
            copied.synchronize().map_err(CudaError::from)?;
        }
        Ok(())
    }
}

fn check(source: &dyn MatrixSource, rows: usize, cols: usize) -> Outcome<()> {
    let need = rows.saturating_mul(cols);
    if source.len() == need { Ok(()) } else { Err(OpsError::Shape { op: "load", what: "a frozen weight", got: source.len(), need }) }
}

/// Copies pinned values to the card; they must stay until the copy is over, and that there is room is the caller's promise.
#[expect(unsafe_code, reason = "the driver's interface")]
fn copy(stream: &CudaStream, values: &[bf16], to: u64) -> Result<()> {
    stream.context().bind_to_thread()?;
    // SAFETY: `to` is the beginning of so many values in a live buffer (see the callers); the host waits for the copy before it writes here again.
    Ok(unsafe { result::memcpy_htod_async(to, values, stream.cu_stream()) }?)
}
