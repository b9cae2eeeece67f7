//! Compiling components in a child process.
//!
//! A compiler cannot be cancelled and has no limits of its own, and its input here comes from strangers. So it runs in a process with
//! limits on address space, processor time and file size, which is killed when its time is up.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::call::{limit_error, place};
use crate::confine::{restrict, wait};
use crate::engine::{Layout, on_demand};
use crate::error::PluginError;
use crate::inspect::validate;
use crate::limits::{ByteSize, Limits, Span};
use crate::manifest::Manifest;

/// The hidden subcommand of `trainer` that runs [`compile_main`].
pub const SUBCOMMAND: &str = "__compile-component";

/// Largest compiled form, and largest file that the compiler's process may write.
const MAX_COMPILED: u64 = 1 << 30;
/// Threads of the compiler's process. Few, because each takes address space.
const THREADS: usize = 4;
/// The exit code that goes with a message on standard error about the component.
const REJECTED: u8 = 3;
/// How much of a compiler's complaint is kept.
const MAX_MESSAGE: u64 = 4096;

/// How to start the process that compiles: the program with its first arguments. It must hand what follows to [`compile_main`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompilerCommand(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Child { program: PathBuf, args: Vec<OsString> },
    InProcess,
}

impl CompilerCommand {
    /// A program and the arguments that make it run [`compile_main`].
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self(Kind::Child { program: program.into(), args: args.into_iter().map(Into::into).collect() })
    }

    /// The running program itself with the subcommand [`SUBCOMMAND`].
    ///
    /// # Errors
    /// If the system does not tell which program is running.
    pub fn current_exe() -> Result<Self, PluginError> {
        let program = std::env::current_exe().map_err(|e| PluginError::io("find", "the running program", e))?;
        Ok(Self::new(program, [SUBCOMMAND]))
    }

    /// Compiles in this very process, without the limits `compile_time` and `compile_memory`. For tests and for components that are
    /// trusted, such as those embedded in the program; never for a stranger's.
    pub fn in_process() -> Self {
        Self(Kind::InProcess)
    }
}

/// Compiles a component, whose structure has been looked at, into the form that engines of the layout load.
pub(crate) fn compile(
    command: &CompilerCommand,
    layout: Layout,
    manifest: &Manifest,
    limits: &Limits,
    bytes: &[u8],
) -> Result<Vec<u8>, PluginError> {
    let started = Instant::now();
    let compiled = match &command.0 {
        Kind::InProcess => {
            validate(&manifest.name, bytes)?;
            on_demand(layout, 512 << 10)
                .and_then(|engine| engine.precompile_component(bytes))
                .map_err(|e| PluginError::Compile { plugin: manifest.name.clone(), reason: format!("{e:#}") })
        }
        Kind::Child { program, args } => in_child(program, args, layout, manifest, limits, bytes),
    }?;
    tracing::debug!(plugin = manifest.name, bytes = compiled.len(), "compiled in {:.0?}", started.elapsed());
    Ok(compiled)
}

fn in_child(
    program: &Path,
    args: &[OsString],
    layout: Layout,
    manifest: &Manifest,
    limits: &Limits,
    bytes: &[u8],
) -> Result<Vec<u8>, PluginError> {
    // A temporary directory is the user's alone (0700).
    let dir = tempfile::Builder::new()
        .prefix("trainer-compile-")
        .tempdir()
        .map_err(|e| PluginError::io("make a temporary directory in", std::env::temp_dir(), e))?;
    let (input, output, messages) = (dir.path().join("component.wasm"), dir.path().join("component.cwasm"), dir.path().join("messages"));
    fs::write(&input, bytes).map_err(|e| PluginError::io("write", &input, e))?;
    let stderr = File::create(&messages).map_err(|e| PluginError::io("write", &messages, e))?;
    let time = limits.compile_time.0;
    let child = Command::new(program)
        .args(args)
        .args([input.as_os_str(), output.as_os_str()])
        .arg(layout.name())
        .arg(limits.compile_memory.0.to_string())
        // Processor time of all threads; the wall clock is kept here.
        .arg(time.as_secs().saturating_add(1).saturating_mul(THREADS as u64).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(|e| PluginError::io("start the plugin compiler", program, e))?;
    let status = wait(child, time).map_err(|e| PluginError::io("wait for the plugin compiler", program, e))?;
    let message = || {
        let mut text = Vec::new();
        if let Ok(file) = File::open(&messages) {
            let _ = file.take(MAX_MESSAGE).read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    verdict(status, &message, manifest, limits)?;
    let size = fs::metadata(&output).map_err(|e| PluginError::io("read", &output, e))?.len();
    if size > MAX_COMPILED {
        return Err(PluginError::Compile { plugin: manifest.name.clone(), reason: format!("its compiled form has {size} bytes") });
    }
    fs::read(&output).map_err(|e| PluginError::io("read", &output, e))
}

/// What the end of the compiler's process means.
fn verdict(status: Option<ExitStatus>, message: &dyn Fn() -> String, manifest: &Manifest, limits: &Limits) -> Result<(), PluginError> {
    let at = place(manifest, "compilation");
    let out_of_time = || {
        let limit = limits.compile_time;
        let raise = Span(limit.0.saturating_mul(4).max(Duration::from_secs(1)));
        limit_error(&at, "compile_time", limit.to_string(), None, format!("\"{raise}\""))
    };
    let out_of_memory = || {
        let limit = limits.compile_memory;
        let raise = ByteSize(limit.0.saturating_mul(2));
        limit_error(&at, "compile_memory", limit.to_string(), None, format!("\"{raise}\""))
    };
    let failed = |reason: String| PluginError::Compile { plugin: manifest.name.clone(), reason };
    let Some(status) = status else { return Err(out_of_time()) };
    if status.success() {
        return Ok(());
    }
    let text = message();
    let memory =
        ["memory allocation of", "Cannot allocate memory", "out of memory", "failed to spawn thread", "Resource temporarily unavailable"];
    if status.signal() == Some(libc::SIGXCPU) {
        return Err(out_of_time());
    }
    if memory.iter().any(|sign| text.contains(sign)) {
        return Err(out_of_memory());
    }
    Err(match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(REJECTED) => failed(text),
        (_, Some(libc::SIGXFSZ)) => failed(format!("its compiled form is larger than {}", ByteSize(MAX_COMPILED))),
        (_, Some(signal)) => failed(format!("the compiler was ended by signal {signal}: {text}")),
        (code, None) => failed(format!("the compiler ended with {}: {text}", code.map_or("no code".into(), |c| format!("code {c}")))),
    })
}

/// The compiler's process: `INPUT OUTPUT LAYOUT MEMORY CPU_SECONDS`, as the host appends them to the [`CompilerCommand`].
///
/// Takes on the limits, compiles INPUT and writes OUTPUT. What is wrong with the component goes to standard error.
pub fn compile_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match try_compile_main(&args.into_iter().collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(REJECTED)
        }
    }
}

fn try_compile_main(args: &[OsString]) -> Result<(), String> {
    let [input, output, layout, memory, seconds] = args else {
        return Err(format!("this process compiles plugins for its parent; it takes 5 arguments, not {}", args.len()));
    };
    let number = |text: &OsString| text.to_str().and_then(|t| t.parse::<u64>().ok()).ok_or_else(|| format!("{text:?} is no number"));
    let layout = layout.to_str().and_then(Layout::from_name).ok_or_else(|| format!("{layout:?} is no memory layout"))?;
    restrict(number(memory)?, number(seconds)?, MAX_COMPILED).map_err(|e| format!("cannot take on the limits of a compiler: {e}"))?;
    rayon::ThreadPoolBuilder::new()
        .num_threads(std::thread::available_parallelism().map_or(1, usize::from).min(THREADS))
        .build_global()
        .map_err(|e| e.to_string())?;
    let (input, output) = (Path::new(input), Path::new(output));
    let bytes = fs::read(input).map_err(|e| format!("{}: {e}", input.display()))?;
    let mut file = File::create(output).map_err(|e| format!("{}: {e}", output.display()))?;
    // From here on it reads a stranger's bytes, and needs nothing but memory, its threads and the open file.
    crate::process::rights::filter_calls().map_err(|e| format!("cannot take on the filter of a compiler: {e}"))?;
    validate("component", &bytes).map_err(|e| e.to_string())?;
    let engine = on_demand(layout, 512 << 10).map_err(|e| format!("{e:#}"))?;
    let compiled = engine.precompile_component(&bytes).map_err(|e| format!("{e:#}"))?;
    file.write_all(&compiled).map_err(|e| format!("{}: {e}", output.display()))
}
