//! The process that renders.

use crate::environment::{environment, explain, render};
use crate::{Context, JinjaError, Limits};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;
use trainer_plugin_host::confine::{restrict, wait};

/// The hidden subcommand of `trainer` that runs [`render_main`].
pub const SUBCOMMAND: &str = "__render-template";

/// How to start the process that renders.
#[derive(Clone, Debug)]
pub struct RendererCommand(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Child { program: PathBuf, args: Vec<OsString> },
    InProcess,
}

#[derive(Serialize, Deserialize)]
struct Request {
    source: String,
    limits: Limits,
    contexts: Vec<Context>,
}

/// Texts or messages; or what is wrong with the template itself.
type Answer = Result<Vec<Result<String, String>>, String>;

impl RendererCommand {
    /// The running program itself with the subcommand [`SUBCOMMAND`].
    ///
    /// # Errors
    /// If the system does not tell which program is running.
    pub fn current_exe() -> Result<Self, JinjaError> {
        let program = std::env::current_exe().map_err(io("find the running program"))?;
        Ok(Self(Kind::Child { program, args: vec![SUBCOMMAND.into()] }))
    }

    /// Renders in this very process, without limits on memory and time: for tests and for templates that are trusted.
    pub fn in_process() -> Self {
        Self(Kind::InProcess)
    }

    pub(crate) fn render(&self, source: &str, limits: &Limits, contexts: &[Context]) -> Result<Vec<Result<String, String>>, JinjaError> {
        let request = Request { source: source.to_owned(), limits: limits.clone(), contexts: contexts.to_vec() };
        match &self.0 {
            Kind::InProcess => answer(&request),
            Kind::Child { program, args } => in_child(program, args, &request)?,
        }
        .map_err(JinjaError::Broken)
    }
}

fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> JinjaError {
    move |source| JinjaError::Io { action, source }
}

/// Bytes of an answer.
fn answer_limit(request: &Request) -> u64 {
    // Escapes in JSON take up to six bytes for one.
    let texts = (request.limits.output as u64).saturating_mul(6).saturating_mul(request.contexts.len().max(1) as u64);
    texts.saturating_add(1 << 20).min(1 << 30)
}

/// Processor time of a call.
fn processor(request: &Request) -> Duration {
    let times = request.contexts.len().div_ceil(64).max(1);
    request.limits.processor.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX))
}

/// What a process that did not succeed was ended by.
fn ended(request: &Request, status: ExitStatus) -> JinjaError {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        // The limit on processor time is a hard one, at which the system kills.
        if matches!(status.signal(), Some(libc::SIGXCPU | libc::SIGKILL)) {
            return JinjaError::Processor(processor(request));
        }
    }
    JinjaError::Ended { memory: request.limits.memory, how: status.to_string() }
}

fn in_child(program: &Path, args: &[OsString], request: &Request) -> Result<Answer, JinjaError> {
    // A temporary directory is the user's alone (0700).
    let dir = tempfile::Builder::new().prefix("trainer-jinja-").tempdir().map_err(io("make a temporary directory"))?;
    let (input, output) = (dir.path().join("request"), dir.path().join("answer"));
    let text = serde_json::to_vec(request).map_err(|e| JinjaError::Broken(e.to_string()))?;
    std::fs::write(&input, text).map_err(io("write a request"))?;
    let child = Command::new(program)
        .args(args)
        .args([&input, &output])
        .arg(request.limits.memory.to_string())
        .arg(processor(request).as_secs().max(1).to_string())
        .arg(answer_limit(request).to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(io("start the template's process"))?;
    let status = wait(child, request.limits.time).map_err(io("wait for the template's process"))?;
    let Some(status) = status else { return Err(JinjaError::Time(request.limits.time)) };
    if !status.success() {
        return Err(ended(request, status));
    }
    let mut text = Vec::new();
    let file = File::open(&output).map_err(io("read an answer"))?;
    file.take(answer_limit(request)).read_to_end(&mut text).map_err(io("read an answer"))?;
    serde_json::from_slice(&text).map_err(|e| JinjaError::Ended { memory: request.limits.memory, how: e.to_string() })
}

/// The process that renders: `INPUT OUTPUT MEMORY CPU_SECONDS FILE_SIZE`, as [`RendererCommand`] appends them. Takes on the limits first.
pub fn render_main(args: &[OsString]) -> ExitCode {
    match try_main(args) {
        Some(()) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

fn try_main(args: &[OsString]) -> Option<()> {
    let [input, output, memory, seconds, size] = args else { return None };
    let number = |text: &OsString| text.to_str()?.parse::<u64>().ok();
    restrict(number(memory)?, number(seconds)?, number(size)?).ok()?;
    let request: Request = serde_json::from_slice(&std::fs::read(input).ok()?).ok()?;
    std::fs::write(output, serde_json::to_vec(&answer(&request)).ok()?).ok()
}

fn answer(request: &Request) -> Answer {
    let env = environment(&request.source, &request.limits).map_err(|e| explain(&e))?;
    Ok(request.contexts.iter().map(|context| render(&env, context, &request.limits)).collect())
}
