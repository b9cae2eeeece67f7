//! A card with its kernels loaded: where every launch and every transfer goes through.

use crate::code::Code;
use crate::compile::Arch;
use crate::memory::{Arena, Buffer, Floats, Plain, Tensor};
use crate::probe::driver_present;
use crate::profile::Profile;
use crate::{CudaError, Result};
use cudarc::driver::{CudaContext, CudaStream, LaunchConfig, result, sys};
use half::bf16;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;
use trainer_kernels::ops::Rates;

/// The most parameters of a kernel.
const MOST_PARAMETERS: usize = 40;
/// Shared memory that a block gets without asking.
const DEFAULT_SHARED: u32 = 48 << 10;

/// A kernel as the driver knows it.
struct Function {
    handle: sys::CUfunction,
    /// Bytes of each parameter: launches are checked against them.
    parameters: Vec<usize>,
}
// SAFETY: a handle that the driver lets any thread use.
#[expect(unsafe_code, reason = "a driver handle")]
unsafe impl Send for Function {}
// SAFETY: as above; it is never changed.
#[expect(unsafe_code, reason = "a driver handle")]
unsafe impl Sync for Function {}

/// A description of a matrix for the bulk copy engine, passed to kernels by value (`__grid_constant__`).
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct TensorMap(pub sys::CUtensorMap);

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub enum Arg<'a> {
    /// Four bytes: `u32`, `i32`, `f32`.
    Four(u32),
    /// Eight bytes: pointers, `u64`, `f64`.
    Eight(u64),
    /// A matrix for the bulk copy engine.
    Map(&'a TensorMap),
    /// A structure by value, laid out as the kernel's own; it starts at a multiple of its alignment.
    Bytes(&'a [u64]),
}
macro_rules! arg {
    ($($t:ty => $v:ident, $to:expr);+ $(;)?) => {$(
        impl From<$t> for Arg<'_> {
            fn from($v: $t) -> Self {
                $to
            }
        }
    )+};
}
arg! {
    u32 => v, Arg::Four(v);
    i32 => v, Arg::Four(v as u32);
    f32 => v, Arg::Four(v.to_bits());
    u64 => v, Arg::Eight(v);
    f64 => v, Arg::Eight(v.to_bits());
}
impl<'a> From<&'a [u64]> for Arg<'a> {
    fn from(words: &'a [u64]) -> Self {
        Arg::Bytes(words)
    }
}
impl<'a> From<&'a TensorMap> for Arg<'a> {
    fn from(map: &'a TensorMap) -> Self {
        Arg::Map(map)
    }
}

/// A card: one stream, on which every operation runs in order, all kernels, and all memory.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    arena: Arc<Arena>,
    functions: HashMap<&'static str, Function>,
    arch: Arch,
    multiprocessors: u32,
    shared_limit: u32,
    profile: Profile,
    portable: bool,
}

impl Device {
    /// Opens a card and loads its kernels from wherever they can be had.
    ///
    /// # Errors
    /// No driver, a card that is too old, kernels that the program does not hold and cannot compile, or the driver's own errors.
    #[expect(unsafe_code, reason = "cudarc's switch of event tracking")]
    pub fn open(ordinal: usize, code: &Code) -> Result<Self> {
        if !driver_present() {
            return Err(CudaError::NoDriver);
        }
        let context = CudaContext::new(ordinal)?;
        // SAFETY: all work of this type goes through one stream, so no event is needed to order it; nothing has been allocated yet.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability()?;
        let arch = Arch::of(major, minor)?;
        let mut functions = HashMap::new();
        for (source, cubin) in code.cubins(arch)? {
            load(&cubin, source.kernels, &mut functions)?;
        }
        let attribute = |a| context.attribute(a).map(|v| u32::try_from(v).unwrap_or(0));
        let multiprocessors = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_limit = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let stream = context.new_stream()?;
        let arena = Arena::new(Arc::clone(&context), Arc::clone(&stream));
        Ok(Self { context, stream, arena, functions, arch, multiprocessors, shared_limit, profile: Profile::default(), portable: false })
    }

    /// The architecture that the kernels were compiled for.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// The card's context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The stream, for transfers and timing.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// All memory.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The card's name.
    ///
    /// # Errors
    /// The driver's.
    pub fn name(&self) -> Result<String> {
        Ok(self.context.name()?)
    }

    /// Where the card is plugged in, such as `00000000:1B:00.0`: the name by which other libraries know it, whatever `CUDA_VISIBLE_DEVICES`
    /// makes of its number.
    ///
    /// # Errors
    /// The driver's.
    pub fn pci(&self) -> Result<String> {
        let attribute = |a| self.context.attribute(a);
        let domain = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
        let bus = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?;
        let device = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?;
        Ok(format!("{domain:08X}:{bus:02X}:{device:02X}.0"))
    }

    /// What the card sustains, for predictions: an H100's measured rates, scaled by multiprocessors and clock, and by the memory's width and clock.
    pub fn rates(&self) -> Rates {
        let attribute = |a| f64::from(self.context.attribute(a).unwrap_or(0));
        let compute =
            f64::from(self.multiprocessors) * attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE) / (132.0 * 1.98e6);
        let memory = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
            * attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)
            / (2.619e6 * 5120.0);
        // Hopper has kernels of its own; the portable ones reach less.
        let attention = if self.arch == Arch::Sm90a { 4.4e14 } else { 1.95e14 };
        // Generations before Hopper do a quarter to a third of the products per multiprocessor and clock.
        let generation = match self.arch {
            Arch::Sm90a | Arch::Sm100a => 1.0,
            Arch::Sm80 => 0.5,
            Arch::Sm86 | Arch::Sm89 | Arch::Sm120a => 0.25,
        };
        let products = 6.6e14 * compute * generation;
        Rates { products, frozen: products, attention: attention * compute * generation, bytes: 2.6e12 * memory }
    }

    /// Multiprocessors of the card.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// The most shared memory that a block can ask for, in bytes.
    pub fn shared_limit(&self) -> u32 {
        self.shared_limit
    }

    /// Whether there is a kernel of this name for this card.
    pub fn has(&self, name: &str) -> bool {
        self.functions.contains_key(name)
    }

    /// From now on kernels that every card runs are chosen even where this card has better ones: for checks and comparisons.
    pub fn use_portable_kernels(&mut self, portable: bool) {
        self.portable = portable;
    }

    /// Whether a kernel that only this generation of cards runs is to be chosen.
    pub(crate) fn prefers(&self, name: &str) -> bool {
        !self.portable && self.has(name)
    }

    /// Launches a kernel; its arguments must be of the sizes that the kernel declares. Use [`crate::launch::launch`].
    ///
    /// # Errors
    /// A kernel or arguments that do not exist, more shared memory than the card has, or the driver's.
    pub(crate) fn launch(&self, name: &'static str, config: LaunchConfig, args: &[Arg<'_>]) -> Result<()> {
        self.launch_as(name, config, args, false)
    }

    /// [`Self::launch`] of a kernel that may begin while the previous one ends: it must execute `griddepcontrol.wait` before it reads or writes
    /// what another kernel writes or reads. On cards that lack the instruction, a plain launch. Use [`crate::launch::launch_early`].
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub(crate) fn launch_early(&self, name: &'static str, config: LaunchConfig, args: &[Arg<'_>]) -> Result<()> {
        self.launch_as(name, config, args, !matches!(self.arch, Arch::Sm80 | Arch::Sm86 | Arch::Sm89))
    }

    #[expect(unsafe_code, reason = "a kernel launch")]
    fn launch_as(&self, name: &'static str, config: LaunchConfig, args: &[Arg<'_>], early: bool) -> Result<()> {
        let function = self.functions.get(name).ok_or(CudaError::NoKernel { name, arch: self.arch.name() })?;
        let sizes = args.iter().map(|a| match a {
            Arg::Four(_) => 4,
            Arg::Eight(_) => 8,
            Arg::Map(_) => size_of::<TensorMap>(),
            Arg::Bytes(words) => size_of_val(*words),
        });
        if !sizes.eq(function.parameters.iter().copied()) {
            return Err(CudaError::Arguments { name, got: args.len(), need: function.parameters.clone() });
        }
        if config.shared_mem_bytes > self.shared_limit {
            let (got, need) = (self.shared_limit as usize, format!("{} bytes", config.shared_mem_bytes));
            return Err(CudaError::Shape { op: name, what: "the shared memory of a block", got, need });
        }
        let mut pointers = [std::ptr::null_mut::<c_void>(); MOST_PARAMETERS];
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = match arg {
                Arg::Four(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::Eight(v) => std::ptr::from_ref(v).cast_mut().cast(),
                Arg::Map(v) => std::ptr::from_ref(*v).cast_mut().cast(),
                Arg::Bytes(words) => words.as_ptr().cast_mut().cast(),
            };
        }
        self.context.bind_to_thread()?;
        self.profile.span(
            &self.stream,
            || name.to_owned(),
            || {
                if early {
                    // SAFETY: a C structure of numbers and unions of numbers, for which zeros are valid.
                    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
                    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
                    attribute.value.programmaticStreamSerializationAllowed = 1;
                    let ((x, y, z), (bx, by, bz)) = (config.grid_dim, config.block_dim);
                    let config = sys::CUlaunchConfig {
                        gridDimX: x,
                        gridDimY: y,
                        gridDimZ: z,
                        blockDimX: bx,
                        blockDimY: by,
                        blockDimZ: bz,
                        sharedMemBytes: config.shared_mem_bytes,
                        hStream: self.stream.cu_stream(),
                        attrs: &raw mut attribute,
                        numAttrs: 1,
                    };
                    // SAFETY: as below; the kernel itself waits for the one before it, as its launcher promises.
                    unsafe { sys::cuLaunchKernelEx(&raw const config, function.handle, pointers.as_mut_ptr(), std::ptr::null_mut()) }
                        .result()?;
                    return Ok(());
                }
                // SAFETY: the kernel exists and has arguments of these sizes; they outlive the call, which copies them; the launcher has
                // checked every buffer against the sizes passed, and the one stream keeps launches in order.
                Ok(unsafe {
                    result::launch_kernel(
                        function.handle,
                        config.grid_dim,
                        config.block_dim,
                        config.shared_mem_bytes,
                        self.stream.cu_stream(),
                        pointers.get_mut(..args.len()).unwrap_or_default(),
                    )
                }?)
            },
        )
    }

    /// Where time goes.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Waits until everything launched so far is done.
    ///
    /// # Errors
    /// A fault of an earlier kernel.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    /// A buffer with unspecified contents.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn buffer<T: Plain>(&self, len: usize, what: &str) -> Result<Buffer<T>> {
        Buffer::new(&self.arena, len, what)
    }

    /// A buffer of zero bytes.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn zeros<T: Plain>(&self, len: usize, what: &str) -> Result<Buffer<T>> {
        let mut buffer = self.buffer(len, what)?;
        buffer.fill_bytes(0)?;
        Ok(buffer)
    }

    /// A buffer with these values.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn upload<T: Plain>(&self, values: &[T], what: &str) -> Result<Buffer<T>> {
        let mut buffer = self.buffer(values.len(), what)?;
        buffer.write_at(0, values)?;
        Ok(buffer)
    }

    /// Values in f32, for norms and statistics.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn floats(&self, values: &[f32]) -> Result<Floats> {
        self.upload(values, "f32 values")
    }

    /// A tensor of `values.len() / cols` rows, rounded to bf16.
    ///
    /// # Errors
    /// Values that are no whole rows, or the driver's.
    pub fn tensor(&self, cols: usize, values: &[f32]) -> Result<Tensor> {
        let rows = values.len().checked_div(cols).unwrap_or(0);
        let mut t = Tensor::new(&self.arena, rows, cols, "a tensor")?;
        self.write_tensor(values, &mut t)?;
        Ok(t)
    }

    /// Fills the first rows of a tensor, rounded to bf16.
    ///
    /// # Errors
    /// Values that are no whole rows of the tensor, or the driver's.
    pub fn write_tensor(&self, values: &[f32], t: &mut Tensor) -> Result<()> {
        let (cols, rows) = (t.cols(), if t.cols() == 0 { 0 } else { values.len() / t.cols() });
        if rows * cols != values.len() || rows > t.rows() {
            let need = format!("whole rows of {cols}, at most {}", t.rows());
            return Err(CudaError::Shape { op: "write_tensor", what: "the values", got: values.len(), need });
        }
        let values: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        self.copy_rows(&self.stream, rows, cols, |copy| {
            copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
            copy.srcHost = values.as_ptr().cast();
            copy.srcPitch = 2 * cols;
            copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
            copy.dstDevice = t.ptr();
            copy.dstPitch = 2 * t.stride();
        })?;
        // The values must outlive the copy.
        self.synchronize()
    }

    /// The first `n` rows of a tensor. Waits for everything launched so far.
    ///
    /// # Errors
    /// Rows that it has not got, or the driver's: a fault of an earlier kernel among them.
    pub fn read_tensor(&self, n: usize, t: &Tensor) -> Result<Vec<f32>> {
        if n > t.rows() {
            return Err(CudaError::Shape { op: "read_tensor", what: "the tensor's rows", got: t.rows(), need: n.to_string() });
        }
        let mut values = vec![bf16::ZERO; n * t.cols()];
        self.copy_rows(&self.stream, n, t.cols(), |copy| {
            copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
            copy.dstHost = values.as_mut_ptr().cast();
            copy.dstPitch = 2 * t.cols();
            copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
            copy.srcDevice = t.ptr();
            copy.srcPitch = 2 * t.stride();
        })?;
        self.synchronize()?;
        Ok(values.into_iter().map(bf16::to_f32).collect())
    }

    /// Copies rows of `cols` values between places that `describe` fills in.
    #[expect(unsafe_code, reason = "the driver's interface")]
    fn copy_rows(&self, stream: &CudaStream, rows: usize, cols: usize, describe: impl FnOnce(&mut sys::CUDA_MEMCPY2D)) -> Result<()> {
        if rows == 0 || cols == 0 {
            return Ok(());
        }
        // Not zeroed: the kinds of memory are enums without a zero.
        let mut copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: 0,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: 0,
            dstArray: std::ptr::null_mut(),
            dstPitch: 0,
            WidthInBytes: 2 * cols,
            Height: rows,
        };
        describe(&mut copy);
        self.context.bind_to_thread()?;
        // SAFETY: both places hold `rows` rows of `cols` values at their pitches: checked by the callers.
        Ok(unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.cu_stream()) }.result()?)
    }

    /// Copies the first `n` rows of a tensor to another of the same width.
    ///
    /// # Errors
    /// Rows or columns that do not fit, or the driver's.
    pub fn copy_tensor(&self, n: usize, from: &Tensor, to: &mut Tensor) -> Result<()> {
        if from.cols() != to.cols() || n > from.rows() || n > to.rows() {
            return Err(CudaError::Shape {
                op: "copy",
                what: "the target's columns",
                got: to.cols(),
                need: format!("{} and {n} rows", from.cols()),
            });
        }
        let cols = from.cols();
        if (from.stride(), to.stride()) == (cols, cols) {
            self.context.bind_to_thread()?;
            // SAFETY: both tensors have `n` rows without gaps. The plain copy is nearly twice as fast as the one of rows (3.0 and 1.7 TB/s on H100).
            #[expect(unsafe_code, reason = "the driver's interface")]
            return Ok(unsafe { result::memcpy_dtod_async(to.ptr(), from.ptr(), 2 * n * cols, self.stream.cu_stream()) }?);
        }
        self.copy_rows(&self.stream, n, cols, |copy| {
            copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
            copy.srcDevice = from.ptr();
            copy.srcPitch = 2 * from.stride();
            copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
            copy.dstDevice = to.ptr();
            copy.dstPitch = 2 * to.stride();
        })
    }

    /// Copies the first `n` rows of a tensor to (`out`) or from pinned host memory at `address`, without gaps there, on some stream. That the memory is
    /// large enough is the caller's promise.
    pub(crate) fn copy_outside(&self, stream: &CudaStream, n: usize, t: &Tensor, address: u64, out: bool) -> Result<()> {
        if n > t.rows() {
            return Err(CudaError::Shape { op: "copy_outside", what: "the tensor's rows", got: t.rows(), need: n.to_string() });
        }
        self.copy_rows(stream, n, t.cols(), |copy| {
            let (card, host) = (sys::CUmemorytype::CU_MEMORYTYPE_DEVICE, sys::CUmemorytype::CU_MEMORYTYPE_HOST);
            if out {
                (copy.srcMemoryType, copy.srcDevice, copy.srcPitch) = (card, t.ptr(), 2 * t.stride());
                (copy.dstMemoryType, copy.dstHost, copy.dstPitch) = (host, address as *mut c_void, 2 * t.cols());
            } else {
                (copy.srcMemoryType, copy.srcHost, copy.srcPitch) = (host, address as *const c_void, 2 * t.cols());
                (copy.dstMemoryType, copy.dstDevice, copy.dstPitch) = (card, t.ptr(), 2 * t.stride());
            }
        })
    }

    /// Sets the first `n` rows of a tensor to zero.
    ///
    /// # Errors
    /// Rows that it has not got, or the driver's.
    #[expect(unsafe_code, reason = "the driver's interface")]
    pub fn zero_tensor(&self, n: usize, t: &mut Tensor) -> Result<()> {
        if n > t.rows() {
            return Err(CudaError::Shape { op: "zero", what: "the tensor's rows", got: t.rows(), need: n.to_string() });
        }
        if n == 0 || t.cols() == 0 {
            return Ok(());
        }
        self.context.bind_to_thread()?;
        // SAFETY: the rows lie within the tensor.
        Ok(unsafe { sys::cuMemsetD2D8Async(t.ptr(), 2 * t.stride(), 0, 2 * t.cols(), n, self.stream.cu_stream()) }.result()?)
    }
}

/// Loads a cubin for the life of the process and finds its kernels.
#[expect(unsafe_code, reason = "the driver's interface")]
fn load(image: &[u8], kernels: &[&'static str], functions: &mut HashMap<&'static str, Function>) -> Result<()> {
    use sys::CUfunction_attribute as Attribute;
    // SAFETY: a complete ELF image from this program, NVRTC or the checked cache; the context is current (it was made by this thread).
    let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
    for &name in kernels {
        let c_name = CString::new(name).map_err(|_| CudaError::NoKernel { name, arch: "any: its name has a NUL" })?;
        // SAFETY: the module is loaded and never unloaded.
        let handle =
            unsafe { result::module::get_function(module, c_name) }.map_err(|_| CudaError::NoKernel { name, arch: "this card" })?;
        let mut parameters = Vec::new();
        // An image that does not tell has the driver asked until it says that there are no more.
        let count = crate::cubin::parameters(image, name);
        while parameters.len() < count.unwrap_or(MOST_PARAMETERS) {
            let (mut offset, mut size) = (0usize, 0usize);
            // SAFETY: a live function and places for the answers; an index past the last is an error.
            match unsafe { sys::cuFuncGetParamInfo(handle, parameters.len(), &raw mut offset, &raw mut size) }.result() {
                Ok(()) => parameters.push(size),
                Err(_) if count.is_none() => break,
                Err(e) => return Err(e.into()),
            }
        }
        if parameters.len() > MOST_PARAMETERS {
            return Err(CudaError::Arguments { name, got: MOST_PARAMETERS, need: parameters });
        }
        // SAFETY: a live function.
        let fixed = unsafe { result::function::get_function_attribute(handle, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) }?;
        let most = sharable(fixed)?;
        if most > DEFAULT_SHARED as i32 {
            // SAFETY: a live function; the value is what the card offers.
            unsafe { result::function::set_function_attribute(handle, Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most) }?;
        }
        functions.insert(name, Function { handle, parameters });
    }
    Ok(())
}

/// Dynamic shared memory that a block can have beside `fixed` bytes, on the current card.
#[expect(unsafe_code, reason = "the driver's interface")]
fn sharable(fixed: i32) -> Result<i32> {
    let mut device = 0;
    // SAFETY: a place for the answer; a context is current.
    unsafe { sys::cuCtxGetDevice(&raw mut device) }.result()?;
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    // SAFETY: the device of the current context.
    Ok(unsafe { result::device::get_attribute(device, attribute) }? - fixed)
}

/// Free and total bytes of the current card, as the driver counts them.
///
/// # Errors
/// The driver's.
pub fn memory() -> Result<(usize, usize)> {
    Ok(result::mem_get_info()?)
}
