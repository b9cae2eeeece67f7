//! Tools in processes of their own: an optional wall behind the sandbox.
//!
//! A tool that was granted servers handles what strangers send. Should a flaw in the sandbox let such a guest out, it would have the user's
//! rights. With isolation it runs in a process that has given up its own: no files, no connections, no other programs ([`rights`]). Its
//! requests go over a pipe to the host, which checks and carries them as it does for every guest; secrets never enter the process. One
//! process per session, so that episodes share nothing.

mod child;
pub(crate) mod rights;
mod wire;

use std::ffi::OsString;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub use child::process_main;
use wire::{Ask, Say, Start};

use crate::bindings::executor::exports::trainer::tool_executor::executor::{Call, Outcome, Tool};
use crate::bindings::shared::trainer::host::log::Level;
use crate::capability::{Connection, Transport, carry, placeholder};
use crate::error::PluginError;
use crate::host::Plugin;

/// The hidden subcommand of `trainer` that runs [`process_main`].
pub const SUBCOMMAND: &str = "__plugin-process";

/// How long a process may take to begin.
const START: Duration = Duration::from_secs(20);
/// How much longer than the guest's own deadline the host waits.
const GRACE: Duration = Duration::from_secs(2);

/// How to start the process of an isolated tool: the program with its arguments, which must call [`process_main`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessCommand {
    program: PathBuf,
    args: Vec<OsString>,
}

impl ProcessCommand {
    /// A program and its arguments.
    pub fn new(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self { program: program.into(), args: args.into_iter().map(Into::into).collect() }
    }

    /// The running program itself with the subcommand [`SUBCOMMAND`].
    ///
    /// # Errors
    /// If the system does not tell which program is running.
    pub fn current_exe() -> Result<Self, PluginError> {
        let program = std::env::current_exe().map_err(|e| PluginError::io("find", "the running program", e))?;
        Ok(Self::new(program, [SUBCOMMAND]))
    }
}

/// The host's side of one process.
pub(crate) struct Process {
    plugin: Arc<Plugin>,
    connection: Connection,
    child: Child,
    to: BufWriter<ChildStdin>,
    from: Receiver<io::Result<Say>>,
    /// Lines of the guest's log in this call.
    lines: u64,
}

impl Process {
    /// Starts a process and hands it the plugin.
    pub(crate) fn start(plugin: &Arc<Plugin>, command: &ProcessCommand, transport: Arc<dyn Transport>) -> Result<Self, PluginError> {
        let lost = |reason: &str| wire::lost(plugin.manifest(), reason);
        let mut child = Command::new(&command.program)
            .args(&command.args)
            // Not even the environment, which may hold secrets.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| PluginError::io("start the process of a tool by", &command.program, e))?;
        let (Some(to), Some(mut stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(lost("has no pipes"));
        };
        let (say, from) = channel();
        let limit = most(plugin);
        // Ends with the process, whose end closes the pipe.
        std::thread::Builder::new()
            .name("plugin-process".into())
            .spawn(move || {
                loop {
                    let message = match wire::read(&mut stdout, limit) {
                        Ok(Some(message)) => Ok(message),
                        Ok(None) => return,
                        Err(error) => Err(error),
                    };
                    let last = message.is_err();
                    if say.send(message).is_err() || last {
                        return;
                    }
                }
            })
            .map_err(|e| PluginError::Host(format!("cannot start the thread that listens to a tool's process: {e}")))?;
        let connection = Connection::new(Arc::clone(plugin.capabilities()), transport);
        let mut process = Self { plugin: Arc::clone(plugin), connection, child, to: BufWriter::new(to), from, lines: 0 };
        let (layout, code) = plugin.code()?;
        let capabilities = plugin.capabilities();
        let start = Start {
            manifest: plugin.manifest().clone(),
            limits: plugin.limits().clone(),
            layout: layout.name().to_owned(),
            clock: capabilities.may_read_clock(),
            random: capabilities.may_draw_random(),
        };
        let sent = wire::write(&mut process.to, &start).and_then(|()| wire::write_bytes(&mut process.to, &code));
        // A process that ends early says why; that counts for more than the broken pipe.
        match process.hear("instantiation", START)? {
            Say::Ready => sent.map(|()| process).map_err(|e| lost(&format!("does not listen: {e}"))),
            Say::Failed(message) => Err(lost(&format!("could not begin: {}", crate::instance::bounded(&message)))),
            _ => Err(lost("said something else than that it is ready")),
        }
    }

    /// The tools under settings.
    pub(crate) fn tools(&mut self, export: &str, settings: String) -> Result<Result<Vec<Tool>, String>, PluginError> {
        match self.ask(export, &Ask::Tools { settings })? {
            Say::Tools(result) => self.checked(result),
            other => Err(self.unexpected(other)),
        }
    }

    /// Begins the session.
    pub(crate) fn open(&mut self, export: &str, settings: String, seed: u64, now_ms: u64) -> Result<Result<(), String>, PluginError> {
        match self.ask(export, &Ask::Open { settings, seed, now_ms })? {
            Say::Opened(result) => self.checked(result),
            other => Err(self.unexpected(other)),
        }
    }

    /// Executes calls.
    pub(crate) fn call(&mut self, export: &str, calls: &[Call]) -> Result<Vec<Outcome>, PluginError> {
        match self.ask(export, &Ask::Call(calls.to_vec()))? {
            Say::Outcomes(result) => self.checked(result),
            other => Err(self.unexpected(other)),
        }
    }

    /// The digest of the session's state.
    pub(crate) fn state_digest(&mut self, export: &str) -> Result<Option<String>, PluginError> {
        match self.ask(export, &Ask::StateDigest)? {
            Say::Digest(result) => self.checked(result),
            other => Err(self.unexpected(other)),
        }
    }

    fn checked<T>(&self, result: Result<T, wire::Failure>) -> Result<T, PluginError> {
        // The process knows no secrets, and so cannot strike out what stands for them.
        let clean = |text: String| self.connection.capabilities.scrub(crate::instance::bounded(&text));
        result.map_err(|failure| failure.into_error(self.plugin.manifest(), &clean))
    }

    fn unexpected(&self, said: Say) -> PluginError {
        match said {
            Say::Failed(message) => wire::lost(self.plugin.manifest(), &format!("failed: {}", crate::instance::bounded(&message))),
            _ => wire::lost(self.plugin.manifest(), "gave an answer to another question"),
        }
    }

    fn ask(&mut self, export: &str, ask: &Ask) -> Result<Say, PluginError> {
        let deadline = self.plugin.limits().deadline.0;
        self.connection.begin(deadline);
        self.lines = 0;
        wire::write(&mut self.to, ask).map_err(|e| wire::lost(self.plugin.manifest(), &format!("does not listen: {e}")))?;
        self.hear(export, deadline.saturating_add(GRACE))
    }

    /// The next answer, and before it all that the guest asks of the world.
    fn hear(&mut self, export: &str, time: Duration) -> Result<Say, PluginError> {
        let started = Instant::now();
        loop {
            let said = match self.from.recv_timeout(time.saturating_sub(started.elapsed())) {
                Ok(Ok(said)) => said,
                Ok(Err(e)) => return Err(self.end(&format!("cannot be understood: {e}"))),
                Err(RecvTimeoutError::Disconnected) => return Err(self.end("ended")),
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    let (manifest, limits) = (self.plugin.manifest(), self.plugin.limits());
                    return Err(wire::overdue(manifest, export, limits, started.elapsed()));
                }
            };
            let answer = match said {
                Say::Fetch(request) => Ask::Fetched(carry(self.plugin.limits(), &mut self.connection, &request)),
                Say::Placeholder(name) => Ask::Placeholder(placeholder(&self.connection, &name)),
                Say::Log(level, line) => {
                    self.log(level, &line);
                    continue;
                }
                answer => return Ok(answer),
            };
            if wire::write(&mut self.to, &answer).is_err() {
                return Err(self.end("does not listen"));
            }
        }
    }

    /// The process is of no more use.
    fn end(&mut self, reason: &str) -> PluginError {
        let _ = self.child.kill();
        let status = self.child.wait().map(|status| format!(" ({status})")).unwrap_or_default();
        wire::lost(self.plugin.manifest(), &format!("{reason}{status}"))
    }

    /// A line of the guest's log, which the process was to have made fit, and which is made fit again.
    fn log(&mut self, level: u8, line: &str) {
        let limits = self.plugin.limits();
        self.lines = self.lines.saturating_add(1);
        // One more: what the guest says at its end.
        if self.lines > limits.log_lines.saturating_add(1) {
            return;
        }
        let level = match level {
            0 => Level::Trace,
            1 => Level::Debug,
            2 => Level::Info,
            3 => Level::Warn,
            _ => Level::Error,
        };
        let cut = &line[..line.floor_char_boundary(limits.log_line_size.bytes().saturating_add(16))];
        let tidy: String = cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        crate::call::log_line(self.plugin.manifest(), level, &self.connection.capabilities.scrub(tidy));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The largest message of a process: what a guest may return, as JSON, and what it may send.
fn most(plugin: &Plugin) -> u32 {
    let limits = plugin.limits();
    let bytes = limits.returned_size.0.saturating_add(limits.string_size.0).saturating_mul(6).saturating_add(1 << 20);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
