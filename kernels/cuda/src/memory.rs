//! Device memory: one arena that is reserved before a run and handed out in pieces, and what lives in it.
//!
//! All work goes through one stream, so a piece that is given back can be handed out at once: whatever is launched on it later runs later.

use crate::ranges::{Ranges, rounded};
use crate::{CudaError, Result};
use cudarc::driver::{CudaContext, CudaStream, result};
use half::bf16;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Chunks that nobody planned are at least this large, so that small buffers share one.
const SMALL_CHUNK: u64 = 32 << 20;

/// Values that device memory may hold and that any bit pattern is one of.
///
/// # Safety
/// Plain data without padding or references.
#[expect(unsafe_code, reason = "a promise about types")]
pub unsafe trait Plain: Copy + Send + Sync + 'static {}
macro_rules! plain {
    ($($t:ty),+) => {$(
        // SAFETY: numbers.
        #[expect(unsafe_code, reason = "a promise about numbers")]
        unsafe impl Plain for $t {}
    )+};
}
plain!(u8, u16, u32, u64, i32, f32, f64, bf16);

/// What an arena holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Handed out now.
    pub in_use: u64,
    /// The most that was handed out at the same time.
    pub peak: u64,
    /// Taken from the driver.
    pub reserved: u64,
}

struct Chunk {
    base: u64,
    ranges: Ranges,
}

#[derive(Default)]
struct State {
    chunks: Vec<Chunk>,
    usage: Usage,
    limit: Option<u64>,
}

/// All device memory of a backend.
pub struct Arena {
    context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    state: Mutex<State>,
}

impl Arena {
    pub(crate) fn new(context: Arc<CudaContext>, stream: Arc<CudaStream>) -> Arc<Self> {
        Arc::new(Self { context, stream, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held.
    pub fn usage(&self) -> Usage {
        self.state().usage
    }

    /// Forgets the highest mark so far.
    pub fn reset_peak(&self) {
        let mut state = self.state();
        state.usage.peak = state.usage.in_use;
    }

    /// From now on more than this many bytes are refused, as if the card had no more.
    pub fn limit(&self, bytes: Option<u64>) {
        self.state().limit = bytes;
    }

    /// Takes the memory that a plan asks for from the driver, in one piece.
    ///
    /// # Errors
    /// The card has not got so much.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        let mut state = self.state();
        self.grow(&mut state, bytes, "the planned memory")
    }

    #[expect(unsafe_code, reason = "the driver's allocator")]
    fn grow(&self, state: &mut State, bytes: u64, what: &str) -> Result<()> {
        let refused =
            |state: &State| CudaError::Memory { what: what.to_owned(), bytes, reserved: state.usage.reserved, limit: state.limit };
        if state.limit.is_some_and(|limit| state.usage.reserved.saturating_add(bytes) > limit) {
            return Err(refused(state));
        }
        self.context.bind_to_thread()?;
        let size = usize::try_from(bytes).map_err(|_| refused(state))?;
        // SAFETY: the context is current; the memory is freed in `drop`.
        let base = unsafe { result::malloc_sync(size) }.map_err(|_| refused(state))?;
        state.usage.reserved += bytes;
        state.chunks.push(Chunk { base, ranges: Ranges::new(bytes) });
        Ok(())
    }

    /// A piece of memory with unspecified contents. `what` is for the error.
    ///
    /// # Errors
    /// The card has no more.
    pub fn take(self: &Arc<Self>, bytes: u64, what: &str) -> Result<Memory> {
        let mut state = self.state();
        let size = rounded(bytes).ok_or_else(|| CudaError::Memory {
            what: what.to_owned(),
            bytes,
            reserved: state.usage.reserved,
            limit: state.limit,
        })?;
        let mut found = state.chunks.iter_mut().enumerate().find_map(|(i, c)| Some((i, c.base, c.ranges.take(size)?)));
        if found.is_none() {
            let chunk = if size >= SMALL_CHUNK / 2 { size } else { SMALL_CHUNK };
            self.grow(&mut state, chunk, what)?;
            let last = state.chunks.len() - 1;
            found = state.chunks.last_mut().and_then(|c| Some((last, c.base, c.ranges.take(size)?)));
        }
        let Some((chunk, base, start)) = found else {
            return Err(CudaError::Memory { what: what.to_owned(), bytes, reserved: state.usage.reserved, limit: state.limit });
        };
        state.usage.in_use += size;
        state.usage.peak = state.usage.peak.max(state.usage.in_use);
        Ok(Memory { arena: Arc::clone(self), chunk, start, address: base + start, size })
    }
}

impl Drop for Arena {
    #[expect(unsafe_code, reason = "the driver's allocator")]
    fn drop(&mut self) {
        // Nothing useful can be done about a failure: the process or the context is going down.
        let _ = self.context.bind_to_thread();
        let _ = self.stream.synchronize();
        for chunk in &self.state().chunks {
            // SAFETY: allocated by `grow`, freed once; every piece holds the arena, so none is alive.
            let _ = unsafe { result::free_sync(chunk.base) };
        }
    }
}

/// A piece of an arena, given back when dropped.
pub struct Memory {
    arena: Arc<Arena>,
    chunk: usize,
    start: u64,
    address: u64,
    size: u64,
}

impl Memory {
    /// Its device address.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size in bytes: at least what was asked for.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut state = self.arena.state();
        state.usage.in_use -= self.size;
        if let Some(chunk) = state.chunks.get_mut(self.chunk) {
            chunk.ranges.give(self.start, self.size);
        }
    }
}

/// Pinned host memory: the card reads and writes it by itself, while the host goes on.
pub struct Pinned {
    address: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}
// SAFETY: an allocation without owner thread.
#[expect(unsafe_code, reason = "the driver's allocator")]
unsafe impl Send for Pinned {}
// SAFETY: only its address is shared; the host looks inside through `&mut` alone.
#[expect(unsafe_code, reason = "the driver's allocator")]
unsafe impl Sync for Pinned {}

impl Pinned {
    /// So many bytes, with unspecified contents.
    ///
    /// # Errors
    /// The host has not got them, or they cannot be pinned.
    #[expect(unsafe_code, reason = "the driver's allocator")]
    pub fn new(context: &Arc<CudaContext>, bytes: usize, what: &str) -> Result<Self> {
        context.bind_to_thread()?;
        // SAFETY: the context is current; freed in `drop`.
        let address = unsafe { result::malloc_host(bytes.max(1), 0) };
        let refused = |_| CudaError::Pinned { what: what.to_owned(), bytes: bytes as u64 };
        Ok(Self { address: address.map_err(refused)?.cast(), bytes, context: Arc::clone(context) })
    }

    /// The address, the same for host and card.
    pub fn ptr(&self) -> u64 {
        self.address as u64
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes, for the host. Nothing of the card's may be under way.
    #[expect(unsafe_code, reason = "the driver's allocator")]
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: our own allocation of that size, initialised or not: bytes of a fresh allocation are zero pages or old data, all valid.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.bytes) }
    }
}

impl Drop for Pinned {
    #[expect(unsafe_code, reason = "the driver's allocator")]
    fn drop(&mut self) {
        let _ = self.context.bind_to_thread();
        // The card may still be copying: the context's work is waited for first.
        let _ = self.context.synchronize();
        // SAFETY: allocated in `new`, freed once.
        let _ = unsafe { result::free_host(self.address.cast()) };
    }
}

/// `len` values in device memory.
pub struct Buffer<T> {
    memory: Arc<Memory>,
    len: usize,
    of: PhantomData<T>,
}

/// Values in f32.
pub type Floats = Buffer<f32>;

impl<T: Plain> Buffer<T> {
    /// Unspecified contents.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn new(arena: &Arc<Arena>, len: usize, what: &str) -> Result<Self> {
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        Ok(Self { memory: Arc::new(arena.take(bytes, what)?), len, of: PhantomData })
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device address of the first value, a multiple of 256: what kernels take as a pointer.
    pub fn ptr(&self) -> u64 {
        self.memory.address
    }

    /// Keeps the memory from being given back while a table on the card holds its address.
    pub(crate) fn hold(&self) -> Arc<Memory> {
        Arc::clone(&self.memory)
    }

    /// Bytes of the values.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Sets every byte.
    ///
    /// # Errors
    /// The driver's.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let arena = &self.memory.arena;
        arena.context.bind_to_thread()?;
        // SAFETY: the range is this buffer's own.
        Ok(unsafe { result::memset_d8_async(self.memory.address, byte, self.bytes(), arena.stream.cu_stream()) }?)
    }

    /// Copies `values` to the places from `at` on.
    ///
    /// # Errors
    /// Values past the end, or the driver's.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn write_at(&mut self, at: usize, values: &[T]) -> Result<()> {
        if at.checked_add(values.len()).is_none_or(|end| end > self.len) {
            return Err(CudaError::Shape { op: "write", what: "the buffer", got: self.len, need: format!("{at} + {}", values.len()) });
        }
        if values.is_empty() {
            return Ok(());
        }
        let arena = &self.memory.arena;
        arena.context.bind_to_thread()?;
        let to = self.memory.address + (at * size_of::<T>()) as u64;
        // SAFETY: in bounds by the check; from pageable memory the driver returns only once it has its own copy of the values.
        Ok(unsafe { result::memcpy_htod_async(to, values, arena.stream.cu_stream()) }?)
    }

    /// The values from `at` on, as many as `out` holds. Waits for everything launched so far.
    ///
    /// # Errors
    /// Values past the end, or the driver's: a fault of an earlier kernel among them.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn read_at(&self, at: usize, out: &mut [T]) -> Result<()> {
        if at.checked_add(out.len()).is_none_or(|end| end > self.len) {
            return Err(CudaError::Shape { op: "read", what: "the buffer", got: self.len, need: format!("{at} + {}", out.len()) });
        }
        if out.is_empty() {
            return Ok(());
        }
        let arena = &self.memory.arena;
        arena.context.bind_to_thread()?;
        let from = self.memory.address + (at * size_of::<T>()) as u64;
        // SAFETY: in bounds by the check; any bits are a value of `T`; the host waits below before it looks.
        unsafe { result::memcpy_dtoh_async(out, from, arena.stream.cu_stream()) }?;
        Ok(arena.stream.synchronize()?)
    }

    /// All values. Waits for everything launched so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn read(&self) -> Result<Vec<T>>
    where
        T: Default,
    {
        let mut out = vec![T::default(); self.len];
        self.read_at(0, &mut out)?;
        Ok(out)
    }
}

/// bf16 activations, `[rows, cols]`, in rows that may lie further apart than they are long: several tensors can share such rows, side by side.
pub struct Tensor {
    buffer: Arc<Buffer<bf16>>,
    /// First value.
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Tensor {
    /// A tensor of its own, with unspecified contents.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn new(arena: &Arc<Arena>, rows: usize, cols: usize, what: &str) -> Result<Self> {
        let len =
            rows.checked_mul(cols).ok_or_else(|| CudaError::Memory { what: what.into(), bytes: u64::MAX, reserved: 0, limit: None })?;
        Ok(Self { buffer: Arc::new(Buffer::new(arena, len, what)?), offset: 0, rows, cols, stride: cols })
    }

    /// Two tensors whose rows lie side by side: `[rows, left]` and `[rows, right]` in rows of `stride` values.
    ///
    /// # Errors
    /// The card has no more memory; a stride that is too short.
    pub fn pair(arena: &Arc<Arena>, rows: usize, left: usize, right: usize, stride: usize, what: &str) -> Result<(Self, Self)> {
        if left.checked_add(right).is_none_or(|width| width > stride) {
            return Err(CudaError::Shape { op: "pair", what: "the stride", got: stride, need: format!("{left} + {right}") });
        }
        let whole = Self::new(arena, rows, stride, what)?;
        let second = Self { buffer: Arc::clone(&whole.buffer), offset: left, rows, cols: right, stride };
        Ok((Self { cols: left, ..whole }, second))
    }

    /// Rows that there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Values from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The device address of the first value.
    pub fn ptr(&self) -> u64 {
        self.buffer.ptr() + 2 * self.offset as u64
    }

    /// Whether `right` lies in the same rows, just behind this one.
    pub fn is_left_of(&self, right: &Tensor) -> bool {
        Arc::ptr_eq(&self.buffer, &right.buffer) && self.stride == right.stride && self.offset + self.cols == right.offset
    }

    pub(crate) fn buffer(&self) -> &Buffer<bf16> {
        &self.buffer
    }

    pub(crate) fn offset(&self) -> usize {
        self.offset
    }
}

impl Tensor {
    /// A tensor over all of a buffer.
    ///
    /// # Errors
    /// A buffer of another size.
    pub fn of(buffer: Buffer<bf16>, rows: usize, cols: usize) -> Result<Self> {
        if rows.checked_mul(cols) != Some(buffer.len()) {
            return Err(CudaError::Shape { op: "tensor", what: "the buffer", got: buffer.len(), need: format!("{rows} x {cols}") });
        }
        Ok(Self { buffer: Arc::new(buffer), offset: 0, rows, cols, stride: cols })
    }

    /// The same memory, seen as its columns from `first` on.
    ///
    /// # Errors
    /// Columns that it has not got.
    pub fn columns(&self, first: usize, cols: usize) -> Result<Self> {
        if first.checked_add(cols).is_none_or(|end| end > self.cols) {
            return Err(CudaError::Shape {
                op: "columns",
                what: "the tensor's columns",
                got: self.cols,
                need: format!("{first} + {cols}"),
            });
        }
        Ok(Self { buffer: Arc::clone(&self.buffer), offset: self.offset + first, cols, ..*self })
    }

    /// The same memory, seen from a row on.
    ///
    /// # Errors
    /// A row that it has not got.
    pub fn rows_from(&self, first: usize) -> Result<Self> {
        let rows = self.rows.checked_sub(first).ok_or_else(|| CudaError::Shape {
            op: "rows_from",
            what: "the tensor's rows",
            got: self.rows,
            need: first.to_string(),
        })?;
        Ok(Self { buffer: Arc::clone(&self.buffer), offset: self.offset + first * self.stride, rows, ..*self })
    }

    /// Values that the memory from the first one on holds.
    pub fn capacity(&self) -> usize {
        self.buffer.len() - self.offset
    }

    /// The same memory with other rows and columns, without gaps.
    ///
    /// # Errors
    /// More values than there are.
    pub fn reshaped(&self, rows: usize, cols: usize) -> Result<Self> {
        if rows.checked_mul(cols).is_none_or(|len| len > self.capacity()) {
            return Err(CudaError::Shape { op: "reshape", what: "the memory", got: self.capacity(), need: format!("{rows} x {cols}") });
        }
        Ok(Self { buffer: Arc::clone(&self.buffer), offset: self.offset, rows, cols, stride: cols })
    }
}
