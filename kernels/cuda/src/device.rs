//! A card with its kernels loaded, and the buffers that live on it.

use crate::cache::Cache;
use crate::compile::{Arch, SOURCES, cubin};
use crate::nvrtc::Nvrtc;
use crate::probe::driver_present;
use crate::{CudaError, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError};
use half::bf16;
use std::collections::HashMap;
use std::sync::Arc;
use trainer_kernels::nf4::{Absmax, Nf4};

/// A card: one stream, on which every operation runs in order, and all kernels.
pub struct Device {
    pub(crate) stream: Arc<CudaStream>,
    functions: HashMap<&'static str, CudaFunction>,
    arch: Arch,
}

/// An NF4 weight on the card, as stored.
pub struct DeviceNf4 {
    pub(crate) packed: CudaSlice<u8>,
    pub(crate) code: CudaSlice<f32>,
    /// Codes of the scales; one unused entry when the scales are plain.
    pub(crate) codes: CudaSlice<u8>,
    pub(crate) map: CudaSlice<f32>,
    pub(crate) absmax: CudaSlice<f32>,
    pub(crate) nested: bool,
    pub(crate) offset: f32,
    pub(crate) block_shift: i32,
    pub(crate) nested_shift: i32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl DeviceNf4 {
    /// Bytes that unpacking reads: packed values and scales.
    pub fn bytes(&self) -> usize {
        self.packed.len() + 4 * self.absmax.len() + if self.nested { self.codes.len() } else { 0 }
    }
}

/// Token ids on the card, with the largest of them, so that a gather can be checked without reading them back.
pub struct Ids {
    pub(crate) ids: CudaSlice<u32>,
    pub(crate) max: u32,
}

/// Positions and the angles of the rotary embedding that they index.
pub struct Rotation {
    pub(crate) positions: CudaSlice<u32>,
    pub(crate) angles: CudaSlice<f32>,
    pub(crate) head_dim: usize,
}

impl Device {
    /// Opens a card and loads its kernels: from the cache, or compiled now.
    ///
    /// # Errors
    /// No driver, a card that is too old, no NVRTC, or the driver's own errors.
    #[expect(unsafe_code, reason = "cudarc's switch of event tracking")]
    pub fn open(ordinal: usize, nvrtc: &Nvrtc, cache: Option<&Cache>) -> Result<Self> {
        if !driver_present() {
            return Err(CudaError::NoDriver);
        }
        let context = CudaContext::new(ordinal)?;
        // SAFETY: all work of this type goes through one stream, so no event is needed to order it; nothing has been allocated yet.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability()?;
        let arch = Arch::of(major, minor)?;
        let mut functions = HashMap::new();
        for source in &SOURCES {
            let module = context.load_module(cudarc::nvrtc::Ptx::from_binary(cubin(nvrtc, cache, source, arch)?))?;
            for &kernel in source.kernels {
                functions.insert(kernel, module.load_function(kernel)?);
            }
        }
        Ok(Self { stream: context.new_stream()?, functions, arch })
    }

    /// The architecture that the kernels were compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The stream, for transfers and timing.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(crate) fn function(&self, name: &'static str) -> Result<&CudaFunction> {
        self.functions.get(name).ok_or(CudaError::Driver(DriverError(cudarc::driver::sys::CUresult::CUDA_ERROR_NOT_FOUND)))
    }

    /// Values rounded to bf16, on the card.
    ///
    /// # Errors
    /// The driver's.
    pub fn upload(&self, values: &[f32]) -> Result<CudaSlice<bf16>> {
        let values: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        Ok(self.stream.clone_htod(&values)?)
    }

    /// Values as they are.
    ///
    /// # Errors
    /// The driver's.
    pub fn upload_f32(&self, values: &[f32]) -> Result<CudaSlice<f32>> {
        Ok(self.stream.clone_htod(values)?)
    }

    /// A tensor's values.
    ///
    /// # Errors
    /// The driver's, a fault of an earlier kernel among them.
    pub fn download(&self, t: &CudaSlice<bf16>) -> Result<Vec<f32>> {
        Ok(self.stream.clone_dtoh(t)?.into_iter().map(bf16::to_f32).collect())
    }

    /// Statistics.
    ///
    /// # Errors
    /// The driver's.
    pub fn download_f32(&self, t: &CudaSlice<f32>) -> Result<Vec<f32>> {
        Ok(self.stream.clone_dtoh(t)?)
    }

    /// Token ids.
    ///
    /// # Errors
    /// The driver's.
    pub fn ids(&self, ids: &[u32]) -> Result<Ids> {
        Ok(Ids { ids: self.stream.clone_htod(ids)?, max: ids.iter().max().copied().unwrap_or(0) })
    }

    /// Positions, and angles in f64 rounded to f32 as far as they reach: `[positions, head_dim]`, cosines then sines (Su et al. 2021).
    ///
    /// # Errors
    /// A base that is not positive, positions that reach beyond 2²⁰, or the driver's.
    pub fn rotation(&self, positions: &[u32], head_dim: usize, theta: f64) -> Result<Rotation> {
        let shape = |what, got, need: &str| CudaError::Shape { op: "rotation", what, got, need: need.into() };
        if !(theta.is_finite() && theta > 0.0) {
            return Err(shape("the base, rounded down,", theta as usize, "a positive number"));
        }
        let last = positions.iter().max().copied().unwrap_or(0) as usize;
        if last >= 1 << 20 || head_dim > 512 {
            return Err(shape("the last position", last, "less than 1048576, with heads of at most 512"));
        }
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect();
        let mut angles = Vec::with_capacity((last + 1) * head_dim);
        for position in 0..=last {
            angles.extend(frequencies.iter().map(|f| (position as f64 * f).cos() as f32));
            angles.extend(frequencies.iter().map(|f| (position as f64 * f).sin() as f32));
        }
        Ok(Rotation { positions: self.stream.clone_htod(positions)?, angles: self.stream.clone_htod(&angles)?, head_dim })
    }

    /// Puts an NF4 matrix on the card.
    ///
    /// # Errors
    /// A tensor whose rows are not whole groups of eight values, blocks of fewer than eight, or the driver's.
    pub fn nf4(&self, w: &Nf4) -> Result<DeviceNf4> {
        let shape = |what, got| CudaError::Shape { op: "nf4", what, got, need: "a multiple of 8".into() };
        let (rows, cols) = (w.rows(), w.cols());
        if !cols.is_multiple_of(8) {
            return Err(shape("the number of columns", cols));
        }
        if w.blocksize() < 8 {
            return Err(shape("the block size", w.blocksize()));
        }
        let s = &self.stream;
        let (codes, map, absmax, offset, nested_size, nested) = match w.absmax() {
            Absmax::Plain(scales) => (s.clone_htod(&[0u8])?, s.clone_htod(&[0f32; 256])?, s.clone_htod(scales)?, 0.0, 1, false),
            Absmax::Nested(n) => {
                let map = s.clone_htod(n.code.as_slice())?;
                (s.clone_htod(&n.codes)?, map, s.clone_htod(&n.absmax)?, n.offset, n.blocksize, true)
            }
        };
        // Block sizes are powers of two up to 65536 (checked by `Nf4`).
        let shift = |size: usize| size.trailing_zeros() as i32;
        Ok(DeviceNf4 {
            packed: s.clone_htod(w.packed())?,
            code: s.clone_htod(w.code())?,
            codes,
            map,
            absmax,
            nested,
            offset,
            block_shift: shift(w.blocksize()),
            nested_shift: shift(nested_size),
            rows,
            cols,
        })
    }
}
