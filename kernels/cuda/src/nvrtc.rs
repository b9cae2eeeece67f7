//! NVRTC, loaded at run time: from a folder the user names, the system's loader, or the toolkit's usual places.
//!
//! cudarc's loader knows only the system's search path and panics when nothing is there, so the seven functions needed are bound here.

use crate::{CudaError, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

type Program = *mut c_void;
type Create = unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
type ErrorString = unsafe extern "C" fn(c_int) -> *const c_char;

/// The library's names, newest first.
const NAMES: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so"];
/// The oldest NVRTC that knows every architecture: 12.8 brought sm_100a and sm_120a; the sources are tried with 13.
const OLDEST: (i32, i32) = (13, 0);

/// A loaded NVRTC.
pub struct Nvrtc {
    create: Create,
    compile: Compile,
    log_size: Size,
    log: Bytes,
    cubin_size: Size,
    cubin: Bytes,
    destroy: Destroy,
    error: ErrorString,
    version: (i32, i32),
    path: PathBuf,
    // Last: the functions above point into it.
    _library: Library,
    _builtins: Option<Library>,
}

/// What NVRTC says of a failed compilation.
#[derive(Debug)]
pub struct Failure {
    /// The status in NVRTC's words.
    pub status: String,
    /// Its messages.
    pub log: String,
}

impl Nvrtc {
    /// Loads NVRTC from the folder or file in the environment variable `TRAINER_NVRTC` if it is set (and then from nowhere else), otherwise
    /// from the system's loader and the toolkit's usual places.
    ///
    /// # Errors
    /// [`CudaError::NoNvrtc`] with every place that was tried.
    pub fn load() -> Result<Self> {
        let mut tried = Vec::new();
        for path in crate::places::candidates("TRAINER_NVRTC", &NAMES) {
            match Self::open(&path) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(why) => tried.push(format!("{}: {why}", path.display())),
            }
        }
        Err(CudaError::NoNvrtc { why: tried.join("; ") })
    }

    #[expect(unsafe_code, reason = "a C library")]
    fn open(path: &Path) -> std::result::Result<Self, String> {
        let text = |e: libloading::Error| e.to_string();
        // NVRTC looks for its built-ins by name alone; a copy loaded by full path is found under that name.
        let builtins = path.parent().filter(|d| d.is_absolute()).and_then(|dir| {
            let mut files: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).collect();
            files.retain(|f| f.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("libnvrtc-builtins.so.")));
            files.sort();
            // SAFETY: NVIDIA's data library has no initialisers beyond its own runtime's.
            files.iter().rev().find_map(|file| unsafe { Library::new(file) }.ok())
        });
        // SAFETY: as above; the name or folder is the system's or the user's choice.
        let library = unsafe { Library::new(path) }.map_err(text)?;
        // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 11.1; the library is kept as long as the pointers.
        unsafe {
            let find = |name: &'static str| name.as_bytes();
            let version_of: Version = *library.get(find("nvrtcVersion")).map_err(text)?;
            let (mut major, mut minor) = (0, 0);
            if version_of(&raw mut major, &raw mut minor) != 0 {
                return Err("nvrtcVersion failed".into());
            }
            if (major, minor) < OLDEST {
                return Err(format!("is version {major}.{minor}; {}.{} or newer is needed", OLDEST.0, OLDEST.1));
            }
            Ok(Self {
                create: *library.get(find("nvrtcCreateProgram")).map_err(text)?,
                compile: *library.get(find("nvrtcCompileProgram")).map_err(text)?,
                log_size: *library.get(find("nvrtcGetProgramLogSize")).map_err(text)?,
                log: *library.get(find("nvrtcGetProgramLog")).map_err(text)?,
                cubin_size: *library.get(find("nvrtcGetCUBINSize")).map_err(text)?,
                cubin: *library.get(find("nvrtcGetCUBIN")).map_err(text)?,
                destroy: *library.get(find("nvrtcDestroyProgram")).map_err(text)?,
                error: *library.get(find("nvrtcGetErrorString")).map_err(text)?,
                version: (major, minor),
                path: path.to_owned(),
                _library: library,
                _builtins: builtins,
            })
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// What was loaded: a path, or the name that the system's loader resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Compiles a source to machine code (a cubin).
    ///
    /// # Errors
    /// NVRTC's status and messages.
    #[expect(unsafe_code, reason = "a C library")]
    pub fn compile(&self, name: &str, source: &str, options: &[String]) -> std::result::Result<Vec<u8>, Failure> {
        let plain = |status: &str| Failure { status: status.into(), log: String::new() };
        let c = |text: &str| CString::new(text).map_err(|_| plain("a NUL in a name, source or option"));
        let (name, source) = (c(name)?, c(source)?);
        let options = options.iter().map(|o| c(o)).collect::<std::result::Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).map_err(|_| plain("too many options"))?;
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: all strings end in NUL and outlive the call; no headers are given.
        let status = unsafe { (self.create)(&raw mut program, source.as_ptr(), name.as_ptr(), 0, std::ptr::null(), std::ptr::null()) };
        if status != 0 {
            return Err(plain(&self.status(status)));
        }
        // SAFETY: the program was made above; the options outlive the call.
        let status = unsafe { (self.compile)(program, count, pointers.as_ptr()) };
        let result = if status != 0 {
            let log = self.bytes(program, self.log_size, self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_owned();
            Err(Failure { status: self.status(status), log })
        } else {
            self.bytes(program, self.cubin_size, self.cubin).map_err(|s| plain(&self.status(s)))
        };
        // SAFETY: made above, destroyed once.
        unsafe { (self.destroy)(&raw mut program) };
        result
    }

    #[expect(unsafe_code, reason = "a C library")]
    fn bytes(&self, program: Program, size: Size, read: Bytes) -> std::result::Result<Vec<u8>, c_int> {
        let mut length = 0;
        // SAFETY: a live program and a place for its answer.
        match unsafe { size(program, &raw mut length) } {
            0 => {}
            status => return Err(status),
        }
        let mut bytes = vec![0u8; length];
        // SAFETY: the buffer has the length that NVRTC has just asked for.
        match unsafe { read(program, bytes.as_mut_ptr().cast()) } {
            0 => Ok(bytes),
            status => Err(status),
        }
    }

    #[expect(unsafe_code, reason = "a C library")]
    fn status(&self, status: c_int) -> String {
        // SAFETY: NVRTC returns a static string for every status, known or not.
        let text = unsafe { (self.error)(status) };
        if text.is_null() {
            return format!("NVRTC status {status}");
        }
        // SAFETY: not null, and ends in NUL.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}
