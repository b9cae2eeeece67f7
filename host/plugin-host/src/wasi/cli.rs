//! `wasi:cli`: a program without arguments, environment and terminal.

use wasmtime::component::Resource;

use super::io::{InputStream, OutputStream, STDERR, STDOUT};
use super::{Interface, Stopped};

/// A terminal to read from: there is none.
pub(super) struct TerminalInput;
/// A terminal to write to: there is none.
pub(super) struct TerminalOutput;

/// `wasi:cli/environment`
pub(super) fn environment(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-environment", |_, (): ()| Ok((Vec::<(String, String)>::new(),)))?;
    interface.func("get-arguments", |_, (): ()| Ok((Vec::<String>::new(),)))?;
    interface.func("initial-cwd", |_, (): ()| Ok((None::<String>,)))
}

/// `wasi:cli/exit`
pub(super) fn exit(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("exit", |_, (status,): (Result<(), ()>,)| -> wasmtime::Result<()> {
        let how = if status.is_ok() { "success" } else { "failure" };
        Err(Stopped(format!("it ended itself with {how} (wasi:cli/exit), and a plugin returns instead")).into())
    })?;
    interface.func("exit-with-code", |_, (code,): (u8,)| -> wasmtime::Result<()> {
        Err(Stopped(format!("it ended itself with code {code} (wasi:cli/exit), and a plugin returns instead")).into())
    })
}

/// `wasi:cli/stdin`
pub(super) fn stdin(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-stdin", |_, (): ()| Ok((Resource::<InputStream>::new_own(0),)))
}

/// `wasi:cli/stdout`
pub(super) fn stdout(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-stdout", |_, (): ()| Ok((Resource::<OutputStream>::new_own(STDOUT),)))
}

/// `wasi:cli/stderr`
pub(super) fn stderr(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-stderr", |_, (): ()| Ok((Resource::<OutputStream>::new_own(STDERR),)))
}

/// `wasi:cli/terminal-stdin`
pub(super) fn terminal_stdin(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-terminal-stdin", |_, (): ()| Ok((None::<Resource<TerminalInput>>,)))
}

/// `wasi:cli/terminal-stdout`
pub(super) fn terminal_stdout(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-terminal-stdout", |_, (): ()| Ok((None::<Resource<TerminalOutput>>,)))
}

/// `wasi:cli/terminal-stderr`
pub(super) fn terminal_stderr(interface: &mut Interface<'_>) -> wasmtime::Result<()> {
    interface.func("get-terminal-stderr", |_, (): ()| Ok((None::<Resource<TerminalOutput>>,)))
}
