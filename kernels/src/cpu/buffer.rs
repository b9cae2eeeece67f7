//! Aligned buffers, a pool of scratch, and slices that tasks write to side by side.

use crate::ops::{OpsError, Result};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// A cache line, so that rows whose width is a multiple of sixteen start on one.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// f32 values that start on a cache line, followed by at least one more line of unspecified values: kernels may read whole vectors at the
/// end of the last row.
#[derive(Default)]
pub(super) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub(super) fn zeroed(len: usize, what: &str) -> Result<Buffer> {
        let mut lines = Vec::new();
        let count = len.div_ceil(16) + 1;
        lines.try_reserve_exact(count).map_err(|_| OpsError::Memory { what: what.to_owned(), bytes: (len as u64).saturating_mul(4) })?;
        lines.resize(count, Line([0.0; 16]));
        Ok(Buffer { lines, len })
    }

    /// The values and what follows them, which may only be read into lanes that are dropped.
    pub(super) fn padded(&self) -> &[f32] {
        bytemuck::cast_slice(&self.lines)
    }

    /// A copy of `values`.
    pub(super) fn copy_of(values: &[f32], what: &str) -> Result<Buffer> {
        let mut buffer = Buffer::zeroed(values.len(), what)?;
        buffer.copy_from_slice(values);
        Ok(buffer)
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        let all: &[f32] = bytemuck::cast_slice(&self.lines);
        all.get(..self.len).unwrap_or(all)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        let all: &mut [f32] = bytemuck::cast_slice_mut(&mut self.lines);
        let len = self.len.min(all.len());
        &mut all[..len]
    }
}

/// `a * b`, or the error that no such buffer can exist.
pub(super) fn area(a: usize, b: usize, what: &str) -> Result<usize> {
    a.checked_mul(b).filter(|n| *n <= isize::MAX as usize / 8).ok_or_else(|| OpsError::Memory { what: what.to_owned(), bytes: u64::MAX })
}

/// Buffers that operations borrow while they run, kept for the next one.
#[derive(Default)]
pub(super) struct Scratch {
    free: Mutex<Vec<Buffer>>,
}

/// A borrowed buffer; its contents are whatever was left in it.
pub(super) struct Borrowed<'a> {
    owner: &'a Scratch,
    buffer: Buffer,
}

impl Scratch {
    /// A buffer of `len` values with unspecified contents.
    pub(super) fn take(&self, len: usize, what: &str) -> Result<Borrowed<'_>> {
        let lines = len.div_ceil(16) + 1;
        let found = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let best = free.iter().enumerate().filter(|(_, b)| b.lines.len() >= lines).min_by_key(|(_, b)| b.lines.len()).map(|(i, _)| i);
            match best {
                Some(i) => Some(free.swap_remove(i)),
                // Growing replaces the largest of several, so that rising sizes leave no trail of buffers that are too small.
                None if free.len() >= 8 => {
                    let largest = free.iter().enumerate().max_by_key(|(_, b)| b.lines.len()).map(|(i, _)| i);
                    largest.map(|i| free.swap_remove(i));
                    None
                }
                None => None,
            }
        };
        let mut buffer = match found {
            Some(buffer) => buffer,
            None => Buffer::zeroed(len, what)?,
        };
        buffer.len = len;
        Ok(Borrowed { owner: self, buffer })
    }
}

impl Borrowed<'_> {
    /// See [`Buffer::padded`].
    pub(super) fn padded(&self) -> &[f32] {
        self.buffer.padded()
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        self.owner.free.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

impl Deref for Borrowed<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer
    }
}

/// A mutable slice that several tasks write to, each in its own part.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    ptr: *mut f32,
    len: usize,
    lives: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "the parts are handed out by an unsafe method whose callers keep them disjoint")]
// SAFETY: the slice is only reached through `part` and `ptr`, whose callers keep the parts disjoint.
unsafe impl Send for Parts<'_> {}
#[expect(unsafe_code, reason = "the parts are handed out by an unsafe method whose callers keep them disjoint")]
// SAFETY: as above.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    /// The whole slice.
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Parts { ptr: slice.as_mut_ptr(), len: slice.len(), lives: PhantomData }
    }

    /// How long the slice is.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Its start, for kernels that write columns.
    pub(super) fn ptr(&self) -> *mut f32 {
        self.ptr
    }

    /// The values `start..start + len`, cut at the end of the slice.
    ///
    /// # Safety
    /// No value may be in two parts that live at the same time.
    #[expect(unsafe_code, reason = "disjointness is the caller's promise")]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [f32] {
        let start = start.min(self.len);
        let len = len.min(self.len - start);
        // SAFETY: in bounds by the lines above; nobody else has these values by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}
