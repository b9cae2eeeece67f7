//! One store: its limits, its log, and the one way into a guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{Component, ComponentType, Lift, Linker, WasmStr};
use wasmtime::{Engine, ResourceLimiter, Store, StoreContextMut, Trap};

use crate::bindings::shared::trainer::host::log::Level;
use crate::capability::{self, Capabilities, Connection, Transport};
use crate::engine::TICK;
use crate::error::{Place, PluginError};
use crate::inspect::LOG;
use crate::limits::{ByteSize, Limits};
use crate::manifest::Manifest;
use crate::wasi::{self, Output, Stopped, World};

/// Component handles that a guest may hold: parsers, sessions and mixers, of which the host makes one per store.
const MAX_HANDLES: usize = 1024;

/// Longer than any call.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Bytes of log text that the host looks at in one call, however they are cut into lines.
pub(crate) const LOG_BYTES: usize = 256 << 10;

pub(crate) fn place(manifest: &Manifest, export: &str) -> Arc<Place> {
    Arc::new(Place { plugin: manifest.name.clone(), version: manifest.version.clone(), export: export.to_owned() })
}

pub(crate) fn hint(plugin: &str, key: &str, value: &str) -> String {
    format!("raise it in the recipe: [plugins.{plugin}.limits] {key} = {value}")
}

/// A limit error; `raise_to` is what the hint proposes.
pub(crate) fn limit_error(
    at: &Arc<Place>,
    limit: &'static str,
    current: String,
    requested: Option<String>,
    raise_to: String,
) -> PluginError {
    PluginError::Limit { at: Arc::clone(at), limit, current, requested, hint: hint(&at.plugin, limit, &raise_to) }
}

/// A limit that the store's own callbacks enforced, kept as the trap's cause.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{limit} limit: {current} allowed, {requested} requested")]
struct Hit {
    limit: &'static str,
    current: String,
    requested: String,
    raise_to: String,
}

impl Hit {
    fn bytes(limit: &'static str, current: ByteSize, requested: usize) -> Self {
        let requested = ByteSize(requested as u64);
        // The next power of two leaves room for what comes after the request that failed.
        let raise_to = ByteSize(requested.0.max(current.0.saturating_add(1)).checked_next_power_of_two().unwrap_or(u64::MAX));
        Self { limit, current: current.to_string(), requested: requested.to_string(), raise_to: format!("\"{raise_to}\"") }
    }

    fn count(limit: &'static str, current: u64, requested: u64) -> Self {
        let raise_to = requested.checked_next_power_of_two().unwrap_or(u64::MAX);
        Self { limit, current: current.to_string(), requested: requested.to_string(), raise_to: raise_to.to_string() }
    }
}

/// What the host keeps beside a guest.
pub(crate) struct State {
    plugin: Arc<Manifest>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) connection: Connection,
    /// Bytes in all linear memories.
    memory: usize,
    /// The bytes that the last allowed growth added, taken back if it fails after all.
    growing: usize,
    log: Log,
    /// What it finds where it asks for WASI.
    pub(crate) world: World,
    /// Unfinished lines of standard output and standard error.
    output: [Output; 2],
}

#[derive(Default)]
struct Log {
    lines: u64,
    bytes: usize,
    dropped: u64,
    last_error: Option<String>,
}

impl State {
    fn new(plugin: Arc<Manifest>, limits: Arc<Limits>, capabilities: Arc<Capabilities>, transport: Arc<dyn Transport>) -> Self {
        let world = World::new(capabilities.may_read_clock(), capabilities.may_draw_random());
        let connection = Connection { capabilities, transport, requests: 0, deadline: Instant::now() };
        Self { plugin, limits, connection, memory: 0, growing: 0, log: Log::default(), world, output: Default::default() }
    }

    /// Bytes in all linear memories.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// One line of the guest, cut to the limits of a call and without control characters, which could forge lines of a log.
    fn write(mut store: StoreContextMut<'_, State>, level: Level, message: &WasmStr) -> wasmtime::Result<()> {
        let state = store.data();
        if state.log.lines >= state.limits.log_lines || state.log.bytes >= LOG_BYTES {
            // Not even read: a flood costs the host nothing.
            store.data_mut().log.dropped += 1;
            return Ok(());
        }
        let limit = state.limits.log_line_size.bytes();
        let text = message.to_str(&store)?;
        let length = text.len();
        let line = state.tidy(&text, length > limit);
        drop(text);
        let state = store.data_mut();
        state.log.bytes = state.log.bytes.saturating_add(length);
        state.tell(level, &line);
        if level == Level::Error {
            state.log.last_error = Some(line);
        }
        Ok(())
    }

    /// Bytes that a guest writes to its standard output or error: lines of its log. The last line of standard error is what it says if it fails.
    pub(crate) fn print(&mut self, error: bool, bytes: &[u8]) {
        if self.log.bytes >= LOG_BYTES || (!error && self.log.lines >= self.limits.log_lines) {
            self.log.dropped += 1;
            return;
        }
        self.log.bytes = self.log.bytes.saturating_add(bytes.len());
        let mut lines = Vec::new();
        let limit = self.limits.log_line_size.bytes();
        if let Some(output) = self.output.get_mut(usize::from(error)) {
            output.take(bytes, limit, |line| lines.push(line.to_owned()));
        }
        lines.iter().for_each(|line| self.printed(error, line));
    }

    fn printed(&mut self, error: bool, line: &str) {
        if line.is_empty() {
            return;
        }
        let line = self.tidy(line, line.len() > self.limits.log_line_size.bytes());
        if self.log.lines < self.limits.log_lines {
            self.tell(if error { Level::Warn } else { Level::Info }, &line);
        } else {
            self.log.dropped += 1;
        }
        if error {
            self.log.last_error = Some(line);
        }
    }

    /// Ends the lines that a call did not end.
    fn finish_output(&mut self) {
        for error in [false, true] {
            if let Some(line) = self.output.get_mut(usize::from(error)).and_then(Output::rest) {
                self.printed(error, &line);
            }
        }
    }

    /// A line as it is shown: of bounded length, without control characters and secrets.
    fn tidy(&self, text: &str, cut: bool) -> String {
        let text = &text[..text.floor_char_boundary(self.limits.log_line_size.bytes())];
        let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if cut {
            line.push_str(" [cut]");
        }
        self.connection.capabilities.scrub(line)
    }

    /// Writes a line.
    fn tell(&mut self, level: Level, line: &str) {
        self.log.lines += 1;
        let (plugin, version) = (self.plugin.name.as_str(), self.plugin.version.as_str());
        match level {
            Level::Trace => tracing::trace!(target: "plugin", plugin, version, "{line}"),
            Level::Debug => tracing::debug!(target: "plugin", plugin, version, "{line}"),
            Level::Info => tracing::info!(target: "plugin", plugin, version, "{line}"),
            Level::Warn => tracing::warn!(target: "plugin", plugin, version, "{line}"),
            Level::Error => tracing::error!(target: "plugin", plugin, version, "{line}"),
        }
    }
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|m| desired > m) {
            // The module's own maximum: it asked for a failure that it can handle.
            return Ok(false);
        }
        let growth = desired.saturating_sub(current);
        let total = self.memory.saturating_add(growth);
        if total > self.limits.memory.bytes() {
            // A trap here says what was asked for; a failed growth would end in an abort that does not.
            return Err(Hit::bytes("memory", self.limits.memory, total).into());
        }
        self.memory = total;
        self.growing = growth;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory = self.memory.saturating_sub(self.growing);
        self.growing = 0;
        Err(error.context("the system has no memory for the plugin"))
    }

    fn table_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|m| desired > m) {
            return Ok(false);
        }
        if desired as u64 > self.limits.table_elements {
            return Err(Hit::count("table_elements", self.limits.table_elements, desired as u64).into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        usize::try_from(self.limits.instances).unwrap_or(usize::MAX)
    }

    fn tables(&self) -> usize {
        usize::try_from(self.limits.tables).unwrap_or(usize::MAX)
    }

    fn memories(&self) -> usize {
        usize::try_from(self.limits.memories).unwrap_or(usize::MAX)
    }
}

/// A linker with all that plugins can be given: the log, what [`crate::inspect`] lets only those import that declare it, and the empty world
/// for what the component imports of WASI.
pub(crate) fn linker(engine: &Engine, component: &Component) -> Result<Linker<State>, PluginError> {
    let host = |e: wasmtime::Error| PluginError::Host(format!("{e:#}"));
    let mut linker = Linker::new(engine);
    linker
        .instance(LOG)
        .map_err(host)?
        .func_wrap("write", |store: StoreContextMut<'_, State>, (level, message): (Level, WasmStr)| State::write(store, level, &message))
        .map_err(host)?;
    capability::link(&mut linker).map_err(host)?;
    wasi::link(&mut linker, component).map_err(host)?;
    Ok(linker)
}

/// A store for one instance.
pub(crate) fn store(
    engine: &Engine,
    plugin: &Arc<Manifest>,
    limits: &Arc<Limits>,
    capabilities: &Arc<Capabilities>,
    transport: &Arc<dyn Transport>,
) -> Store<State> {
    let state = State::new(Arc::clone(plugin), Arc::clone(limits), Arc::clone(capabilities), Arc::clone(transport));
    let mut store = Store::new(engine, state);
    store.limiter(|state| state);
    // What is lifted from the guest is counted as it is lifted, so a gigabyte behind one pointer, or behind a million, is never copied.
    store.set_hostcall_fuel(limits.returned_size.bytes());
    store.set_max_component_handles(MAX_HANDLES);
    store.epoch_deadline_trap();
    store
}

/// How large a call is, for its fuel.
#[derive(Clone, Copy, Default)]
pub(crate) struct Load {
    pub(crate) rows: usize,
    pub(crate) bytes: usize,
}

/// Enters the guest once, under fresh limits, and says what went wrong. After an error the store must not be used again.
pub(crate) fn enter<R>(
    store: &mut Store<State>,
    export: &str,
    load: Load,
    fuelled: bool,
    call: impl FnOnce(&mut Store<State>) -> wasmtime::Result<R>,
) -> Result<R, PluginError> {
    let limits = Arc::clone(&store.data().limits);
    let fuel = if fuelled { limits.fuel(load.rows, load.bytes) } else { u64::MAX };
    let deadline = limits.deadline.0;
    // One tick more, because the current one has partly gone by.
    let ticks = deadline.as_millis().div_ceil(TICK.as_millis()).saturating_add(1);
    store.set_epoch_deadline(u64::try_from(ticks).unwrap_or(u64::MAX / 2).min(u64::MAX / 2));
    let started = Instant::now();
    let state = store.data_mut();
    state.log = Log::default();
    state.world.enter();
    state.connection.requests = 0;
    // A deadline that no clock can hold is none.
    state.connection.deadline = started.checked_add(deadline).unwrap_or_else(|| started + DAY);
    let result = store.set_fuel(fuel).and_then(|()| call(store));
    store.data_mut().finish_output();
    let state = store.data();
    if state.log.dropped > 0 {
        let (plugin, version) = (state.plugin.name.as_str(), state.plugin.version.as_str());
        tracing::warn!(target: "plugin", plugin, version, "{} more lines of {export} were dropped", state.log.dropped);
    }
    result.map_err(|e| explain(&e, state, export, fuel, started.elapsed()))
}

/// Turns wasmtime's error into one that says which limit or trap it was.
fn explain(error: &wasmtime::Error, state: &State, export: &str, fuel: u64, elapsed: Duration) -> PluginError {
    let limits = &state.limits;
    let at = place(&state.plugin, export);
    if let Some(hit) = error.downcast_ref::<Hit>() {
        return limit_error(&at, hit.limit, hit.current.clone(), Some(hit.requested.clone()), hit.raise_to.clone());
    }
    if let Some(Stopped(words)) = error.downcast_ref::<Stopped>() {
        return PluginError::Trap { at, trap: words.clone(), panic: state.log.last_error.clone() };
    }
    let doubled = |size: ByteSize| format!("\"{}\"", ByteSize(size.0.saturating_mul(2)));
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => {
            return limit_error(
                &at,
                "fuel_per_row",
                format!("{fuel} units of fuel in this call (fuel_per_call + rows x fuel_per_row + bytes x fuel_per_byte)"),
                None,
                limits.fuel_per_row.saturating_mul(10).to_string(),
            );
        }
        Some(Trap::Interrupt) => {
            let limit = limits.deadline.0;
            let hint = hint(&at.plugin, "deadline", &format!("\"{}\"", crate::limits::Span(limit.saturating_mul(2))));
            return PluginError::Deadline { at, limit, elapsed, hint };
        }
        Some(Trap::StackOverflow) => {
            return limit_error(&at, "wasm_stack", limits.wasm_stack.to_string(), None, doubled(limits.wasm_stack));
        }
        Some(trap) => {
            let trap = trap.to_string();
            let trap = trap.strip_prefix("wasm trap: ").unwrap_or(&trap).to_owned();
            tracing::debug!(target: "plugin", "{at}: {error:?}");
            return PluginError::Trap { at, trap, panic: state.log.last_error.clone() };
        }
        None => {}
    }
    let text = format!("{:#}", error.root_cause());
    // wasmtime keeps this error's type to itself.
    if text.contains("fuel allocated for hostcalls has been exhausted") {
        return limit_error(&at, "returned_size", limits.returned_size.to_string(), None, doubled(limits.returned_size));
    }
    if text.contains("resource limit exceeded") {
        let (limit, current) = [("instance count", "instances", limits.instances), ("table count", "tables", limits.tables)]
            .into_iter()
            .find(|(what, ..)| text.contains(what))
            .map_or(("memories", limits.memories), |(_, key, current)| (key, current));
        return limit_error(&at, limit, current.to_string(), None, current.saturating_mul(2).to_string());
    }
    // What is left are values that the component model forbids: strings that are not UTF-8, pointers out of bounds, unknown variants.
    PluginError::BadValue { at, field: "its result".to_owned(), message: text }
}

/// Only here to say that the types used in `linker` are those of the WIT.
const _: fn() = || {
    fn lifts<T: Lift + ComponentType>() {}
    lifts::<(Level, WasmStr)>();
};
