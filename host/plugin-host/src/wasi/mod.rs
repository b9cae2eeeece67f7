//! WASI as an empty world, for components of language runtimes that cannot do without it.
//!
//! A component that imports `wasi:cli`, `wasi:clocks`, `wasi:filesystem`, `wasi:io`, `wasi:random` or `wasi:sockets` in any version 0.2 finds
//! a world in which there is nothing: no arguments, no environment, no files, no network; standard input has ended. What it writes to
//! standard output and standard error becomes lines of its log, under the log's limits. Clocks stand still at [`EPOCH`] (a session of tools:
//! at the episode's time), except that waiting for a timer moves the monotonic clock to it, at once. Random bytes come from [`SEED`]
//! (a session of tools: from the episode's seed), from the beginning in every call. Ending the program is a trap.
//!
//! So a component gets nothing from outside, and equal calls give equal results. The grants `clock` and `random` open the clocks and the
//! randomness of this machine to tools that declare them.
//!
//! The interfaces are restated here as the Rust functions that implement them; their types are checked against those that a component
//! imports. What a version 0.2.x has beyond them is answered with the interface's own "access denied" where its type has one, and is a trap
//! otherwise: most of it are methods of files and sockets, of which there are none.

mod cli;
mod clocks;
mod closed;
mod io;
mod output;
mod random;
mod world;

use wasmtime::StoreContextMut;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, ComponentNamedList, Lift, Linker, LinkerInstance, Lower, ResourceType, Type, Val};

use crate::call::State;

pub(crate) use output::Output;
pub(crate) use world::{Stopped, World};

/// Seconds since 1970 at which the wall clock stands: 2025-01-01T00:00:00Z.
pub(crate) const EPOCH: u64 = 1_735_689_600;
/// The seed of random bytes.
pub(crate) const SEED: u64 = 0x7472_6169_6e65_7221;

/// What is defined in one interface so far.
struct Interface<'a> {
    linker: LinkerInstance<'a, State>,
    functions: Vec<&'static str>,
}

impl Interface<'_> {
    /// Defines a function.
    fn func<F, P, R>(&mut self, name: &'static str, run: F) -> wasmtime::Result<()>
    where
        F: Fn(StoreContextMut<'_, State>, P) -> wasmtime::Result<R> + Send + Sync + 'static,
        P: ComponentNamedList + Lift + 'static,
        R: ComponentNamedList + Lower + 'static,
    {
        self.functions.push(name);
        self.linker.func_wrap(name, run)
    }
}

type Define = fn(&mut Interface<'_>) -> wasmtime::Result<()>;

/// The interfaces that there are, each with its functions.
const INTERFACES: [(&str, Define); 27] = [
    ("wasi:cli/environment", cli::environment),
    ("wasi:cli/exit", cli::exit),
    ("wasi:cli/stdin", cli::stdin),
    ("wasi:cli/stdout", cli::stdout),
    ("wasi:cli/stderr", cli::stderr),
    ("wasi:cli/terminal-input", nothing),
    ("wasi:cli/terminal-output", nothing),
    ("wasi:cli/terminal-stdin", cli::terminal_stdin),
    ("wasi:cli/terminal-stdout", cli::terminal_stdout),
    ("wasi:cli/terminal-stderr", cli::terminal_stderr),
    ("wasi:clocks/monotonic-clock", clocks::monotonic),
    ("wasi:clocks/wall-clock", clocks::wall),
    ("wasi:filesystem/preopens", closed::preopens),
    ("wasi:filesystem/types", nothing),
    ("wasi:io/error", io::error),
    ("wasi:io/poll", io::poll),
    ("wasi:io/streams", io::streams),
    ("wasi:random/random", random::random),
    ("wasi:random/insecure", random::insecure),
    ("wasi:random/insecure-seed", random::insecure_seed),
    ("wasi:sockets/network", nothing),
    ("wasi:sockets/instance-network", closed::instance_network),
    ("wasi:sockets/ip-name-lookup", nothing),
    ("wasi:sockets/tcp", nothing),
    ("wasi:sockets/tcp-create-socket", nothing),
    ("wasi:sockets/udp", nothing),
    ("wasi:sockets/udp-create-socket", nothing),
];

/// Interfaces of types, and of functions that are refused.
fn nothing(_: &mut Interface<'_>) -> wasmtime::Result<()> {
    Ok(())
}

/// The packages, for messages.
pub(crate) const PACKAGES: &str = "wasi:cli, wasi:clocks, wasi:filesystem, wasi:io, wasi:random and wasi:sockets in versions 0.2";

/// Whether the empty world has an interface.
pub(crate) fn knows(import: &str) -> bool {
    find(import).is_some()
}

fn find(import: &str) -> Option<Define> {
    let (name, version) = import.split_once('@')?;
    let patch = version.strip_prefix("0.2.")?;
    if patch.is_empty() || patch.len() > 4 || !patch.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    INTERFACES.iter().find(|(known, _)| *known == name).map(|(_, define)| *define)
}

/// Defines what a component imports of WASI, if anything.
pub(crate) fn link(linker: &mut Linker<State>, component: &Component) -> wasmtime::Result<()> {
    let engine = component.engine();
    for (import, item) in component.component_type().imports(engine) {
        let Some(define) = find(import) else { continue };
        let ComponentItem::ComponentInstance(wanted) = item.ty else { continue };
        let mut interface = Interface { linker: linker.instance(import)?, functions: Vec::new() };
        define(&mut interface)?;
        let Interface { mut linker, functions } = interface;
        for (name, item) in wanted.exports(engine) {
            match item.ty {
                ComponentItem::Resource(_) => {
                    let timers = name == "pollable";
                    linker.resource(name, resource(name), move |mut store, rep| {
                        if timers {
                            store.data_mut().world.forget(rep);
                        }
                        Ok(())
                    })?;
                }
                ComponentItem::ComponentFunc(func) if !functions.contains(&name) => {
                    let refusal = func.results().next().and_then(|result| refusal(&result));
                    let words = format!("{import} has no {name} in the empty world");
                    linker.func_new(name, move |mut store, _, arguments, results| match (&refusal, results) {
                        (Some(refusal), [result]) => {
                            arguments.iter().try_for_each(|argument| give_back(&mut store, argument))?;
                            *result = refusal.clone();
                            Ok(())
                        }
                        _ => Err(Stopped(words.clone()).into()),
                    })?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The host's type for a resource. Those that nobody can have are told apart by nothing.
fn resource(name: &str) -> ResourceType {
    match name {
        "error" => ResourceType::host::<io::IoError>(),
        "pollable" => ResourceType::host::<io::Pollable>(),
        "input-stream" => ResourceType::host::<io::InputStream>(),
        "output-stream" => ResourceType::host::<io::OutputStream>(),
        "terminal-input" => ResourceType::host::<cli::TerminalInput>(),
        "terminal-output" => ResourceType::host::<cli::TerminalOutput>(),
        "network" => ResourceType::host::<closed::Network>(),
        "descriptor" => ResourceType::host::<closed::Descriptor>(),
        _ => ResourceType::host::<closed::Absent>(),
    }
}

/// The error by which an interface says that something is not allowed, if a function's result can be it.
fn refusal(result: &Type) -> Option<Val> {
    let Type::Result(result) = result else { return None };
    let Some(Type::Enum(codes)) = result.err() else { return None };
    let code = codes.names().find(|name| matches!(*name, "access-denied" | "access"))?;
    Some(Val::Result(Err(Some(Box::new(Val::Enum(code.to_owned()))))))
}

/// Gives back the handles that a call lent, which its end requires.
fn give_back(store: &mut StoreContextMut<'_, State>, value: &Val) -> wasmtime::Result<()> {
    match value {
        Val::Resource(resource) => resource.resource_drop(&mut *store),
        Val::List(items) | Val::Tuple(items) => items.iter().try_for_each(|item| give_back(store, item)),
        Val::Record(fields) => fields.iter().try_for_each(|(_, field)| give_back(store, field)),
        Val::Variant(_, Some(value)) | Val::Option(Some(value)) | Val::Result(Ok(Some(value)) | Err(Some(value))) => {
            give_back(store, value)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_0_2_are_known_and_no_others() {
        for known in ["wasi:io/poll@0.2.0", "wasi:io/poll@0.2.12", "wasi:sockets/tcp@0.2.3"] {
            assert!(knows(known), "{known}");
        }
        for unknown in [
            "wasi:io/poll",
            "wasi:io/poll@0.3.0",
            "wasi:io/poll@0.2",
            "wasi:io/poll@0.2.",
            "wasi:io/poll@0.2.0-rc-2023-11-10",
            "wasi:io/poll@0.2.99999",
            "wasi:http/types@0.2.0",
            "wasi:cli/run@0.2.0",
            "wasi:clocks/timezone@0.2.0",
        ] {
            assert!(!knows(unknown), "{unknown}");
        }
    }
}
