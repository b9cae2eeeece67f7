//! Large matrix products through cublasLt, loaded at run time.
//!
//! Plans (descriptors and the chosen algorithm) are kept: making one costs about 90 us. One algorithm on one card and library version gives
//! the same bits every time (cuBLAS documentation, "Results reproducibility"); which one was chosen can be read ([`BlasLt::choices`]), stored and
//! pinned ([`BlasLt::pin`]). Split sums are only allowed in the compute type, through the workspace: in a fixed order and without rounding.

use crate::device::Device;
use crate::matrix::{Float, Matrix, Matrix8, Op, Out};
use crate::memory::Buffer;
use crate::{CudaError, Result};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

mod call;

pub use call::Scales;
use call::{Call, Input, Problem, bf16, fp8};

/// Algorithms that are measured for a problem.
const CANDIDATES: usize = 8;
/// Rounds over all candidates, of which each counts with its median, and runs of a candidate in a round: clocks and caches treat all alike.
const ROUNDS: usize = 5;
const RUNS: usize = 4;
/// How much faster a later candidate must be to be preferred to the heuristic's own order.
const MARGIN: f32 = 0.97;
/// The library's names, best first; what has another interface is refused by its version.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so", "libcublasLt.so.12"];
/// How to get it.
pub const REMEDY: &str =
    "Install the CUDA 13 toolkit or `pip install 'nvidia-cublas==13.*'`, or set TRAINER_CUBLASLT to the folder of libcublasLt.so.13";

/// Which algorithm a problem was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The problem.
    pub problem: String,
    /// The library's version and its algorithm, in hexadecimal: good for the same version only.
    pub algorithm: String,
}

/// Library objects of a plan.
struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algo: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    #[expect(unsafe_code, reason = "a C library")]
    fn drop(&mut self) {
        // Nothing useful can be done about a failure. Null marks what was not made.
        for layout in self.layouts.into_iter().filter(|l| !l.is_null()) {
            // SAFETY: made by `plan`, destroyed once.
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
        if !self.desc.is_null() {
            // SAFETY: as above.
            let _ = unsafe { result::destroy_matmul_desc(self.desc) };
        }
    }
}

#[derive(Default)]
struct State {
    plans: HashMap<Problem, Plan>,
    pins: HashMap<String, [u64; 8]>,
}

/// cublasLt with its workspace and plans.
pub struct BlasLt {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer<u8>,
    state: Mutex<State>,
    version: usize,
}
// SAFETY: the handle may be used by any thread (cuBLAS documentation, "Thread safety"); descriptors are used under the lock only.
#[expect(unsafe_code, reason = "library handles")]
unsafe impl Send for BlasLt {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "library handles")]
unsafe impl Sync for BlasLt {}

impl Drop for BlasLt {
    #[expect(unsafe_code, reason = "a C library")]
    fn drop(&mut self) {
        self.state().plans.clear();
        // SAFETY: made by `open`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn failed(what: &str) -> impl Fn(result::CublasError) -> CudaError {
    move |e| CudaError::CublasLt(format!("{what}: {e}"))
}

/// The place that the library was loaded from, or why it was not. It is taken from the folder in `TRAINER_CUBLASLT` (and then from nowhere
/// else), the system's loader or the toolkit's usual places, and kept: the loader then knows it by its name, by which cudarc asks for it.
///
/// # Errors
/// Every place that was tried, and how to get the library.
#[expect(unsafe_code, reason = "loads a library")]
pub fn present() -> std::result::Result<PathBuf, String> {
    static FOUND: OnceLock<std::result::Result<(PathBuf, libloading::Library), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let mut tried = Vec::new();
        for path in crate::places::candidates("TRAINER_CUBLASLT", &NAMES) {
            // SAFETY: loading NVIDIA's library runs its initialisers only.
            match unsafe { libloading::Library::new(&path) } {
                // SAFETY: as above. What cudarc finds is the library just loaded, or one that the system prefers under a shorter name.
                Ok(library) if unsafe { sys::is_culib_present() } => return Ok((path, library)),
                Ok(_) => tried.push(format!("{}: it is called otherwise", path.display())),
                Err(e) => tried.push(e.to_string()),
            }
        }
        Err(format!("it cannot be loaded: {}. {REMEDY}", tried.join("; ")))
    });
    found.as_ref().map(|(path, _)| path.clone()).map_err(String::clone)
}

/// What was loaded, and its version: for [`crate::probe`].
///
/// # Errors
/// As [`present`].
#[expect(unsafe_code, reason = "a C library")]
pub fn loaded() -> std::result::Result<String, String> {
    let path = present()?;
    // SAFETY: the library is loaded.
    let version = unsafe { sys::cublasLtGetVersion() };
    // 130100 is 13.1.0.
    Ok(format!("{} {}.{}.{}", path.display(), version / 10_000, version / 100 % 100, version % 100))
}

/// A number that cublasLt takes by address.
#[expect(unsafe_code, reason = "a C library")]
fn set<T: Copy>(desc: sys::cublasLtMatmulDesc_t, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
    // SAFETY: a live descriptor; the value is copied.
    unsafe { result::set_matmul_desc_attribute(desc, attribute, (&raw const value).cast(), size_of::<T>()) }
        .map_err(failed("a descriptor's attribute"))
}

/// The addresses of a call's scales: the library's first operand is our second.
fn scale(desc: sys::cublasLtMatmulDesc_t, call: &Call) -> Result<()> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    if let Some((a, b)) = call.scales {
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, b)?;
        set(desc, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, a)?;
    }
    Ok(())
}

impl BlasLt {
    /// Opens the library for a card, with a workspace of so many bytes from its arena (32 to 64 MiB serve Hopper's algorithms).
    ///
    /// # Errors
    /// [`CudaError::CublasLt`] where the library is missing, with what to install; no memory for the workspace.
    #[expect(unsafe_code, reason = "a C library")]
    pub fn open(device: &Device, workspace: usize) -> Result<Self> {
        present().map_err(CudaError::CublasLt)?;
        // SAFETY: the library is loaded.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < 120_000 {
            return Err(CudaError::CublasLt(format!("version {version} is too old: install that of CUDA 13")));
        }
        device.context().bind_to_thread()?;
        let workspace = device.buffer(workspace, "cublasLt's workspace")?;
        let handle = result::create_handle().map_err(failed("opening"))?;
        Ok(Self { handle, workspace, state: Mutex::default(), version })
    }

    /// The library's version, such as 130000.
    pub fn version(&self) -> usize {
        self.version
    }

    /// Bytes of its workspace.
    pub fn workspace(&self) -> usize {
        self.workspace.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `C = alpha op(A) op(B) + beta C`, all row-major, bf16 operands, f32 sums.
    ///
    /// # Errors
    /// Matrices that do not fit, a problem that the library has no algorithm for, or its own errors.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub fn gemm(
        &self,
        device: &Device,
        a: Matrix,
        op_a: Op,
        b: Matrix,
        op_b: Op,
        c: Out,
        m: usize,
        n: usize,
        k: usize,
        alpha: f32,
        beta: f32,
    ) -> Result<()> {
        match bf16(&a, op_a, &b, op_b, &c, m, n, k, alpha, beta)? {
            Some(call) => self.run(device, &call),
            None => Ok(()),
        }
    }

    /// Measures the library's best candidates for [`Self::gemm`] with these arguments and keeps the fastest. `C` holds rubbish afterwards.
    /// Gives the microseconds of the one kept. Candidates as fast as each other may change places from run to run, and with them the
    /// last bits of results: store the [`Self::choices`] and [`Self::pin`] them.
    ///
    /// # Errors
    /// As [`Self::gemm`].
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub fn tune(
        &self,
        device: &Device,
        a: Matrix,
        op_a: Op,
        b: Matrix,
        op_b: Op,
        c: Out,
        m: usize,
        n: usize,
        k: usize,
        alpha: f32,
        beta: f32,
    ) -> Result<f32> {
        match bf16(&a, op_a, &b, op_b, &c, m, n, k, alpha, beta)? {
            Some(call) => self.measure(device, &call),
            None => Ok(0.0),
        }
    }

    /// `C [m, n] = alpha A [m, k] B[n, k]ᵀ + beta C` with e4m3 operands and their scales. `fast` sums in the matrix unit's own, shorter
    /// format without promotion to f32 in between: faster on Hopper, less exact.
    ///
    /// # Errors
    /// As [`Self::gemm`]; fp8 needs compute capability 8.9, scales by row 9.0.
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub fn gemm_fp8(
        &self,
        device: &Device,
        a: Matrix8,
        b: Matrix8,
        scales: Scales<'_>,
        fast: bool,
        c: Out,
        m: usize,
        n: usize,
        k: usize,
        alpha: f32,
        beta: f32,
    ) -> Result<()> {
        match fp8(&a, &b, scales, fast, &c, m, n, k, alpha, beta)? {
            Some(call) => self.run(device, &call),
            None => Ok(()),
        }
    }

    /// [`Self::tune`] for [`Self::gemm_fp8`].
    ///
    /// # Errors
    /// As [`Self::gemm_fp8`].
    #[expect(clippy::too_many_arguments, reason = "a matrix product")]
    pub fn tune_fp8(
        &self,
        device: &Device,
        a: Matrix8,
        b: Matrix8,
        scales: Scales<'_>,
        fast: bool,
        c: Out,
        m: usize,
        n: usize,
        k: usize,
        alpha: f32,
        beta: f32,
    ) -> Result<f32> {
        match fp8(&a, &b, scales, fast, &c, m, n, k, alpha, beta)? {
            Some(call) => self.measure(device, &call),
            None => Ok(0.0),
        }
    }

    /// The algorithm of every problem seen so far, in the order of their texts: what a lock file keeps.
    pub fn choices(&self) -> Vec<Choice> {
        let state = self.state();
        let mut all: Vec<Choice> = state
            .plans
            .iter()
            .map(|(problem, plan)| {
                let words: String = plan.algo.data.iter().map(|w| format!("{w:016x}")).collect();
                Choice { problem: problem.to_string(), algorithm: format!("{}:{words}", self.version) }
            })
            .collect();
        all.sort_by(|x, y| x.problem.cmp(&y.problem));
        all
    }

    /// Problems of these texts get these algorithms from now on.
    ///
    /// # Errors
    /// A choice that is not of this library's version.
    pub fn pin(&self, choices: &[Choice]) -> Result<()> {
        let mut pins = HashMap::new();
        for choice in choices {
            let words = choice.algorithm.strip_prefix(&format!("{}:", self.version)).and_then(words).ok_or_else(|| {
                let Choice { problem, algorithm } = choice;
                let of = algorithm.split(':').next().unwrap_or_default();
                CudaError::CublasLt(format!("version {} cannot use the algorithm of version {of} kept for {problem}", self.version))
            })?;
            pins.insert(choice.problem.clone(), words);
        }
        let mut state = self.state();
        state.pins.extend(pins);
        let State { plans, pins } = &mut *state;
        plans.retain(|problem, _| !pins.contains_key(&problem.to_string()));
        Ok(())
    }

    /// Descriptors for a problem, without an algorithm yet.
    fn describe(call: &Call) -> Result<Plan> {
        let problem = &call.problem;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cudaDataType_t as Type;
        let bad = failed("a descriptor");
        let mut plan =
            Plan { desc: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 3], algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
        plan.desc = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F).map_err(&bad)?;
        // The library is column-major: it sees every matrix transposed, so it computes Cᵀ = op(B)ᵀ op(A)ᵀ with its first operand ours second.
        let flag = |op: Op| if op == Op::T { 1i32 } else { 0 };
        set(plan.desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, flag(problem.op_b))?;
        set(plan.desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, flag(problem.op_a))?;
        if let Input::E4m3 { rows, fast } = problem.input {
            set(plan.desc, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, i8::from(fast))?;
            if rows {
                let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
                set(plan.desc, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, mode)?;
                set(plan.desc, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, mode)?;
            }
            // The heuristic refuses vectors of scales without an address.
            scale(plan.desc, call)?;
        }
        let input = if problem.input == Input::Bf16 { Type::CUDA_R_16BF } else { Type::CUDA_R_8F_E4M3 };
        let out = if problem.out == Float::F32 { Type::CUDA_R_32F } else { Type::CUDA_R_16BF };
        let stored = |op: Op, rows: usize, cols: usize| if op == Op::N { (rows, cols) } else { (cols, rows) };
        let Problem { m, n, k, strides, .. } = *problem;
        let shapes = [stored(problem.op_b, k, n), stored(problem.op_a, m, k), (m, n)];
        for (i, ((rows, cols), stride)) in shapes.into_iter().zip([strides[1], strides[0], strides[2]]).enumerate() {
            let kind = if i == 2 { out } else { input };
            plan.layouts[i] = result::create_matrix_layout(kind, cols as u64, rows as u64, stride as i64).map_err(&bad)?;
        }
        Ok(plan)
    }

    /// The library's candidates for a problem, best first by its own estimate.
    #[expect(unsafe_code, reason = "a C library")]
    fn candidates(&self, problem: &Problem, plan: &Plan, most: usize) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = result::create_matmul_pref().map_err(failed("a preference"))?;
        let [a, b, c] = problem.align;
        // SAFETY: a live preference; values are copied.
        let put = |attribute, value: *const c_void, size| unsafe { result::set_matmul_pref_attribute(preference, attribute, value, size) };
        let word = |attribute, value: u32| put(attribute, (&raw const value).cast(), size_of::<u32>());
        let workspace = self.workspace.len();
        // A number of algorithms asked for is far below i32's limit.
        let (mut found, mut count) = (Vec::with_capacity(most), 0i32);
        let asked = put(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), size_of::<usize>())
            .and_then(|()| {
                let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
                word(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme)
            })
            .and_then(|()| word(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b))
            .and_then(|()| word(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a))
            .and_then(|()| word(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c))
            .and_then(|()| word(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c))
            .and_then(|()| {
                let [x, y, z] = plan.layouts;
                // SAFETY: live objects; the array has room for as many results as are asked for, and as many as were returned are taken.
                unsafe {
                    sys::cublasLtMatmulAlgoGetHeuristic(
                        self.handle,
                        plan.desc,
                        x,
                        y,
                        z,
                        z,
                        preference,
                        most as i32,
                        found.as_mut_ptr(),
                        &raw mut count,
                    )
                    .result()?;
                    found.set_len(usize::try_from(count).unwrap_or(0).min(most));
                }
                Ok(())
            });
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        asked.map_err(|e| CudaError::CublasLt(format!("no algorithm for {problem}: {e}")))?;
        let fits = |r: &sys::cublasLtMatmulHeuristicResult_t| {
            r.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && r.workspaceSize <= workspace
        };
        let algorithms: Vec<_> = found.iter().filter(|r| fits(r)).map(|r| r.algo).collect();
        if algorithms.is_empty() { Err(CudaError::CublasLt(format!("no algorithm for {problem}"))) } else { Ok(algorithms) }
    }

    /// The pinned algorithm of a problem, if there is one.
    #[expect(unsafe_code, reason = "a C library")]
    fn pinned(&self, state: &State, problem: &Problem, plan: &Plan) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        if state.pins.is_empty() {
            return Ok(None);
        }
        let Some(&data) = state.pins.get(&problem.to_string()) else { return Ok(None) };
        let algo = sys::cublasLtMatmulAlgo_t { data };
        let [x, y, z] = plan.layouts;
        // SAFETY: zeros are valid in every field; live objects.
        let (status, found) = unsafe {
            let mut found: sys::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
            (sys::cublasLtMatmulAlgoCheck(self.handle, plan.desc, x, y, z, z, &raw const algo, &raw mut found), found)
        };
        if status.result().is_err() || found.workspaceSize > self.workspace.len() {
            return Err(CudaError::CublasLt(format!("the algorithm kept for {problem} does not serve this card: {status:?}")));
        }
        Ok(Some(algo))
    }

    fn run(&self, device: &Device, call: &Call) -> Result<()> {
        device.context().bind_to_thread()?;
        let mut state = self.state();
        if !state.plans.contains_key(&call.problem) {
            let mut plan = Self::describe(call)?;
            plan.algo = match self.pinned(&state, &call.problem, &plan)? {
                Some(algo) => algo,
                None => self.first(&call.problem, &plan)?,
            };
            state.plans.insert(call.problem, plan);
        }
        match state.plans.get(&call.problem) {
            Some(plan) => self.launch(device, call, plan, &plan.algo),
            None => Ok(()),
        }
    }

    fn first(&self, problem: &Problem, plan: &Plan) -> Result<sys::cublasLtMatmulAlgo_t> {
        let none = || CudaError::CublasLt(format!("no algorithm for {problem}"));
        self.candidates(problem, plan, 1)?.into_iter().next().ok_or_else(none)
    }

    fn measure(&self, device: &Device, call: &Call) -> Result<f32> {
        device.context().bind_to_thread()?;
        let mut plan = Self::describe(call)?;
        let candidates = match self.pinned(&self.state(), &call.problem, &plan)? {
            Some(algo) => vec![algo],
            None => self.candidates(&call.problem, &plan, CANDIDATES)?,
        };
        let (stream, mut times) = (device.stream(), vec![Vec::new(); candidates.len()]);
        for _ in 0..ROUNDS {
            for (algo, times) in candidates.iter().zip(&mut times) {
                self.launch(device, call, &plan, algo)?;
                let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
                (0..RUNS).try_for_each(|_| self.launch(device, call, &plan, algo))?;
                let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
                end.synchronize()?;
                times.push(start.elapsed_ms(&end)? * 1e3 / RUNS as f32);
            }
        }
        let mut best = None::<f32>;
        for (algo, times) in candidates.into_iter().zip(&mut times) {
            times.sort_by(f32::total_cmp);
            let us = times.get(ROUNDS / 2).copied().unwrap_or(f32::INFINITY);
            if best.is_none_or(|b| us < MARGIN * b) {
                (best, plan.algo) = (Some(us), algo);
            }
        }
        self.state().plans.insert(call.problem, plan);
        Ok(best.unwrap_or(0.0))
    }

    #[expect(unsafe_code, reason = "a C library")]
    fn launch(&self, device: &Device, call: &Call, plan: &Plan, algo: &sys::cublasLtMatmulAlgo_t) -> Result<()> {
        scale(plan.desc, call)?;
        let [x, y, z] = plan.layouts;
        // SAFETY: live objects; the matrices lie within their buffers (checked); the workspace is as large as the candidates were told; work
        // on the one stream runs in order, so no other product uses the workspace at the same time.
        unsafe {
            result::matmul(
                self.handle,
                plan.desc,
                (&raw const call.alpha).cast(),
                (&raw const call.beta).cast(),
                call.b as *const c_void,
                x,
                call.a as *const c_void,
                y,
                call.c as *const c_void,
                z,
                call.c as *mut c_void,
                z,
                std::ptr::from_ref(algo),
                self.workspace.ptr() as *mut c_void,
                self.workspace.len(),
                device.stream().cu_stream().cast(),
            )
        }
        .map_err(|e| CudaError::CublasLt(format!("{}: {e}", call.problem)))
    }
}

/// Eight words in hexadecimal.
fn words(text: &str) -> Option<[u64; 8]> {
    if text.len() != 128 || !text.is_ascii() {
        return None;
    }
    let mut words = [0; 8];
    for (i, word) in words.iter_mut().enumerate() {
        *word = u64::from_str_radix(text.get(16 * i..16 * i + 16)?, 16).ok()?;
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_survives_its_text() {
        let data = [1, u64::MAX, 3, 0, 5, 0x0123_4567_89ab_cdef, 7, 8];
        let text: String = data.iter().map(|w| format!("{w:016x}")).collect();
        assert_eq!(words(&text), Some(data));
        assert_eq!(words(&text[1..]), None);
        assert_eq!(words(&text.replace('f', "g")), None);
    }
}
