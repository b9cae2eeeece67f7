//! The side of the process: one session of a tool, without rights.

use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use super::rights;
use super::wire::{self, Ask, Failure, Say, Start};
use crate::bindings::http::trainer::http::client::{Error, Request, Response};
use crate::bindings::shared::trainer::host::log::Level;
use crate::capability::{Outgoing, Transport};
use crate::clients::tools::{LocalSession, ToolContext, local_tools};
use crate::engine::Layout;
use crate::host::Plugin;

/// The largest message from the host: an answer of a server, whose bytes JSON writes as numbers.
const MAX_MESSAGE: u32 = 1 << 29;
/// Address space beside the guest's: code, stacks, and with the wide layout 4 GiB for each linear memory.
const WIDE: u64 = 64 << 30;
const COMPACT: u64 = 2 << 30;

/// The two pipes.
struct Pipe {
    from: io::Stdin,
    to: io::Stdout,
}

impl Pipe {
    fn say(&mut self, message: &Say) -> io::Result<()> {
        wire::write(&mut self.to.lock(), message)
    }

    fn hear(&mut self) -> io::Result<Option<Ask>> {
        wire::read(&mut self.from.lock(), MAX_MESSAGE)
    }
}

/// What a guest asks of the world goes to the host.
struct ToHost {
    pipe: Mutex<Pipe>,
}

impl ToHost {
    fn exchange(&self, message: &Say) -> io::Result<Ask> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        pipe.say(message)?;
        pipe.hear()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn fetch_there(&self, request: &Request) -> Result<Response, Error> {
        match self.exchange(&Say::Fetch(request.clone())) {
            Ok(Ask::Fetched(result)) => result,
            Ok(_) => Err(Error::Protocol("the host gave another answer than to a request".to_owned())),
            Err(e) => Err(Error::Protocol(format!("the host cannot be reached: {e}"))),
        }
    }
}

impl Transport for ToHost {
    fn fetch(&self, outgoing: &Outgoing<'_>) -> Result<Response, Error> {
        self.fetch_there(outgoing.request)
    }

    fn lend(&self, secret: &str) -> Option<Result<String, String>> {
        Some(match self.exchange(&Say::Placeholder(secret.to_owned())) {
            Ok(Ask::Placeholder(result)) => result,
            Ok(_) => Err("the host gave another answer than about a secret".to_owned()),
            Err(e) => Err(format!("the host cannot be reached: {e}")),
        })
    }

    fn tell(&self, level: Level, line: &str) -> bool {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        // A host that does not listen any more ends the process when it is asked next.
        let _ = pipe.say(&Say::Log(level as u8, line.to_owned()));
        true
    }
}

/// The process of one session: takes a plugin from standard input, gives up its rights, and answers what the host asks until it ends.
pub fn process_main() -> ExitCode {
    let mut pipe = Pipe { from: io::stdin(), to: io::stdout() };
    match begin(&mut pipe) {
        Ok(plugin) => serve(plugin, pipe),
        Err(message) => {
            let _ = pipe.say(&Say::Failed(message));
            ExitCode::FAILURE
        }
    }
}

/// What is to run, made ready while there are rights.
struct Prepared {
    start: Start,
    code: Vec<u8>,
    layout: Layout,
}

fn begin(pipe: &mut Pipe) -> Result<Prepared, String> {
    let mut from = pipe.from.lock();
    let ended = || "the host ended before it had begun".to_owned();
    let start: Start = wire::read(&mut from, MAX_MESSAGE).map_err(|e| e.to_string())?.ok_or_else(ended)?;
    let code = wire::read_bytes(&mut from, u32::MAX).map_err(|e| e.to_string())?.ok_or_else(ended)?;
    let layout = Layout::from_name(&start.layout).ok_or_else(|| format!("{:?} is no memory layout", start.layout))?;
    Ok(Prepared { start, code, layout })
}

fn serve(prepared: Prepared, mut pipe: Pipe) -> ExitCode {
    let Prepared { start, code, layout } = prepared;
    let memory = start.limits.memory.0.saturating_add(if layout == Layout::Wide { WIDE } else { COMPACT });
    // The thread that keeps deadlines has to be there before.
    let ready = Plugin::of_code(start.manifest, start.limits, (start.clock, start.random), layout, &code)
        .map_err(|e| e.to_string())
        .and_then(|plugin| rights::give_up(memory).map(|()| plugin).map_err(|e| format!("its rights could not be given up: {e}")));
    let plugin = match ready {
        Ok(plugin) => plugin,
        Err(message) => {
            let _ = pipe.say(&Say::Failed(message));
            return ExitCode::FAILURE;
        }
    };
    drop(code);
    if pipe.say(&Say::Ready).is_err() {
        return ExitCode::FAILURE;
    }
    let host = Arc::new(ToHost { pipe: Mutex::new(pipe) });
    let mut session: Option<LocalSession> = None;
    loop {
        let asked = host.pipe.lock().unwrap_or_else(PoisonError::into_inner).hear();
        let Ok(Some(ask)) = asked else { return ExitCode::SUCCESS };
        let answer = match ask {
            Ask::Tools { settings } => Say::Tools(local_tools(&plugin, host.clone(), &settings).map_err(Failure::of)),
            Ask::Open { settings, seed, now_ms } => {
                let context = ToolContext { settings: serde_json::Value::Null, seed, now_ms };
                Say::Opened(match LocalSession::open(&plugin, host.clone(), settings, &context) {
                    Ok(Ok(opened)) => {
                        session = Some(opened);
                        Ok(Ok(()))
                    }
                    Ok(Err(words)) => Ok(Err(words)),
                    Err(error) => Err(Failure::of(error)),
                })
            }
            Ask::Call(calls) => match &mut session {
                Some(session) => Say::Outcomes(session.call(&calls).map_err(Failure::of)),
                None => Say::Failed("a call before a session".to_owned()),
            },
            Ask::StateDigest => match &mut session {
                Some(session) => Say::Digest(session.state_digest().map_err(Failure::of)),
                None => Say::Failed("a digest before a session".to_owned()),
            },
            Ask::Fetched(_) | Ask::Placeholder(_) => Say::Failed("an answer to nothing".to_owned()),
        };
        if host.pipe.lock().unwrap_or_else(PoisonError::into_inner).say(&answer).is_err() {
            return ExitCode::FAILURE;
        }
    }
}
