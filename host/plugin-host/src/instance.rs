//! Instances: how they are made, kept and thrown away.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::component::{Instance, InstancePre};
use wasmtime::{PoolConcurrencyLimitError, Store};

use crate::call::{Load, State, enter, place, store};
use crate::capability::Transport;
use crate::error::PluginError;
use crate::host::Plugin;
use crate::kind::Kind;

/// What differs between the kinds: the generated bindings.
pub(crate) trait Bindings: Sized + Send {
    /// The kind.
    const KIND: Kind;
    /// Where the exports lie in a component, looked up once.
    type Indices: Send + Sync;

    fn indices(pre: &InstancePre<State>) -> wasmtime::Result<Self::Indices>;
    fn load(indices: &Self::Indices, store: &mut Store<State>, instance: &Instance) -> wasmtime::Result<Self>;
}

/// Kinds that are configured once in every instance.
pub(crate) trait Configure: Bindings {
    /// The export's name for errors.
    const CONFIGURE: &'static str;

    fn configure(&self, store: &mut Store<State>, settings: &str) -> wasmtime::Result<Result<(), String>>;
}

/// Implements [`Bindings`] for the world that `bindgen!` made for a kind.
macro_rules! bindings {
    ($module:ident, $kind:expr) => {
        impl $crate::instance::Bindings for $crate::bindings::$module::Plugin {
            const KIND: $crate::kind::Kind = $kind;
            type Indices = $crate::bindings::$module::PluginIndices;

            fn indices(pre: &wasmtime::component::InstancePre<$crate::call::State>) -> wasmtime::Result<Self::Indices> {
                $crate::bindings::$module::PluginIndices::new(pre)
            }

            fn load(
                indices: &Self::Indices,
                store: &mut wasmtime::Store<$crate::call::State>,
                instance: &wasmtime::component::Instance,
            ) -> wasmtime::Result<Self> {
                indices.load(store, instance)
            }
        }
    };
}
pub(crate) use bindings;

/// One instance in a store of its own.
pub(crate) struct Guest<B> {
    pub(crate) store: Store<State>,
    pub(crate) bindings: B,
    fuelled: bool,
}

impl<B> Guest<B> {
    /// Enters the guest. After an error the guest must be dropped.
    pub(crate) fn call<R>(
        &mut self,
        export: &'static str,
        load: Load,
        call: impl FnOnce(&B, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> Result<R, PluginError> {
        let bindings = &self.bindings;
        enter(&mut self.store, export, load, self.fuelled, |store| call(bindings, store))
    }
}

/// Makes instances of one plugin as one kind.
pub(crate) struct Factory<B: Bindings> {
    pub(crate) plugin: Arc<Plugin>,
    /// What carries the requests of the instances.
    transport: Arc<dyn Transport>,
    pre: InstancePre<State>,
    indices: B::Indices,
}

impl<B: Bindings> Factory<B> {
    pub(crate) fn new(plugin: &Arc<Plugin>) -> Result<Self, PluginError> {
        Self::through(plugin, plugin.transport())
    }

    /// As [`Self::new`], with something else that carries the instances' requests.
    pub(crate) fn through(plugin: &Arc<Plugin>, transport: Arc<dyn Transport>) -> Result<Self, PluginError> {
        plugin.require(B::KIND)?;
        let pre = plugin.instance_pre().clone();
        let indices = B::indices(&pre).map_err(|e| plugin.interface_error(&e))?;
        Ok(Self { plugin: Arc::clone(plugin), transport, pre, indices })
    }

    pub(crate) fn make(&self) -> Result<Guest<B>, PluginError> {
        match self.instantiate(&self.pre, &self.indices) {
            Err(Failure::PoolIsFull) => {
                let pre = self.plugin.beyond_the_pool()?;
                let indices = B::indices(pre).map_err(|e| self.plugin.interface_error(&e))?;
                self.instantiate(pre, &indices)
            }
            done => done,
        }
        .map_err(|failure| failure.explain(&self.plugin))
    }

    fn instantiate(&self, pre: &InstancePre<State>, indices: &B::Indices) -> Result<Guest<B>, Failure> {
        let plugin = &self.plugin;
        let (mut store, instance) = instantiate_in(plugin, &self.transport, pre, B::KIND)?;
        let bindings = B::load(indices, &mut store, &instance).map_err(|e| Failure::Plugin(plugin.interface_error(&e)))?;
        Ok(Guest { store, bindings, fuelled: fuelled(plugin, B::KIND) })
    }
}

/// Whether calls of a plugin as a kind run under a fuel limit: all but those of tools that say they are not deterministic.
pub(crate) fn fuelled(plugin: &Plugin, kind: Kind) -> bool {
    plugin.manifest().deterministic || kind != Kind::ToolExecutor
}

/// An instance as one kind without bindings, from the pool or, where that is full, beside it.
pub(crate) fn instantiate(plugin: &Arc<Plugin>, kind: Kind) -> Result<(Store<State>, Instance), PluginError> {
    let transport = plugin.transport();
    match instantiate_in(plugin, &transport, plugin.instance_pre(), kind) {
        Err(Failure::PoolIsFull) => instantiate_in(plugin, &transport, plugin.beyond_the_pool()?, kind),
        done => done,
    }
    .map_err(|failure| failure.explain(plugin))
}

fn instantiate_in(
    plugin: &Arc<Plugin>,
    transport: &Arc<dyn Transport>,
    pre: &InstancePre<State>,
    kind: Kind,
) -> Result<(Store<State>, Instance), Failure> {
    let mut store = store(pre.engine(), plugin.manifest_arc(), plugin.limits_arc(), plugin.capabilities(), transport);
    let mut pool_is_full = false;
    // Start functions and initialisers of the component are guest code and run under the same limits as a call.
    let instance = enter(&mut store, "instantiation", Load::default(), fuelled(plugin, kind), |store| {
        pre.instantiate(&mut *store).inspect_err(|e| pool_is_full = e.is::<PoolConcurrencyLimitError>())
    });
    match instance {
        Ok(instance) => Ok((store, instance)),
        Err(_) if pool_is_full => Err(Failure::PoolIsFull),
        Err(PluginError::BadValue { message, .. }) => Err(Failure::Plugin(plugin.instantiate_error(&message))),
        Err(other) => Err(Failure::Plugin(other)),
    }
}

enum Failure {
    PoolIsFull,
    Plugin(PluginError),
}

impl Failure {
    fn explain(self, plugin: &Plugin) -> PluginError {
        match self {
            Failure::Plugin(error) => error,
            Failure::PoolIsFull => plugin.instantiate_error("no room in the pool of instances"),
        }
    }
}

/// Configured instances of one plugin under one setting, used again and again by any number of threads. An instance that failed in any
/// way is dropped.
pub(crate) struct Pool<B: Configure> {
    factory: Factory<B>,
    settings: String,
    idle: Mutex<VecDeque<Guest<B>>>,
    max_idle: usize,
}

impl<B: Configure> Pool<B> {
    /// Makes the first instance, so that settings which the plugin refuses are known before a run starts.
    pub(crate) fn new(plugin: &Arc<Plugin>, settings: &serde_json::Value) -> Result<Self, PluginError> {
        plugin.require(B::KIND)?;
        let settings = crate::settings::check(plugin.manifest(), settings)?;
        let max_idle = plugin.worker_instances().max(1);
        let pool = Self { factory: Factory::new(plugin)?, settings, idle: Mutex::default(), max_idle };
        let first = pool.fresh()?;
        pool.give_back(first);
        Ok(pool)
    }

    pub(crate) fn plugin(&self) -> &Arc<Plugin> {
        &self.factory.plugin
    }

    /// All that decides what the plugin answers, for caches of its answers: the component, what it says of itself, contract versions, limits, grants and
    /// settings.
    pub(crate) fn identity(&self) -> serde_json::Value {
        let plugin = self.plugin();
        serde_json::json!({
            "sha256": plugin.digest(),
            "manifest": plugin.manifest(),
            "kinds": plugin.kinds().iter().map(|k| format!("{}@{}", k.kind, k.version)).collect::<Vec<_>>(),
            "limits": plugin.limits(),
            "grants": plugin.grants(),
            "settings": self.settings,
        })
    }

    /// A new instance, configured.
    pub(crate) fn fresh(&self) -> Result<Guest<B>, PluginError> {
        let mut guest = self.factory.make()?;
        let settings = &self.settings;
        let load = Load { rows: 1, bytes: settings.len() };
        match guest.call(B::CONFIGURE, load, |b, store| b.configure(store, settings))? {
            Ok(()) => Ok(guest),
            Err(message) => Err(PluginError::Configure { at: place(self.plugin().manifest(), B::CONFIGURE), message: bounded(&message) }),
        }
    }

    fn give_back(&self, guest: Guest<B>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.max_idle {
            idle.push_back(guest);
        }
    }

    /// Runs with an idle instance, or a new one.
    pub(crate) fn with<R>(&self, run: impl FnOnce(&mut Guest<B>) -> Result<R, PluginError>) -> Result<R, PluginError> {
        // The lock is let go before anything runs.
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_back();
        let guest = match idle {
            Some(guest) => guest,
            None => self.fresh()?,
        };
        self.run(guest, run)
    }

    /// Runs with a new instance.
    fn with_fresh<R>(&self, run: impl FnOnce(&mut Guest<B>) -> Result<R, PluginError>) -> Result<R, PluginError> {
        self.run(self.fresh()?, run)
    }

    fn run<R>(&self, mut guest: Guest<B>, run: impl FnOnce(&mut Guest<B>) -> Result<R, PluginError>) -> Result<R, PluginError> {
        let result = run(&mut guest)?;
        self.give_back(guest);
        Ok(result)
    }

    /// Runs a batch. If that fails in a way that is the fault of its rows, runs them one by one, each in a new instance, so that only
    /// those that fail again are lost.
    pub(crate) fn isolated<I, O>(
        &self,
        items: &[I],
        run: impl Fn(&mut Guest<B>, &[I]) -> Result<Vec<O>, PluginError>,
    ) -> Result<Vec<Result<O, PluginError>>, PluginError> {
        if items.is_empty() {
            return Ok(Vec::new());
        }
        match self.with(|guest| run(guest, items)) {
            Ok(outputs) => return Ok(outputs.into_iter().map(Ok).collect()),
            Err(error) if error.costs_the_row() => {
                tracing::debug!("a batch of {} failed and is repeated one by one: {error}", items.len());
            }
            Err(error) => return Err(error),
        }
        let mut outputs = Vec::with_capacity(items.len());
        for item in items {
            // Making the instance is not the row's doing: its failure is no row's loss.
            let guest = self.fresh()?;
            match self.run(guest, |guest| run(guest, std::slice::from_ref(item))) {
                Ok(mut output) => match (output.pop(), output.is_empty()) {
                    (Some(output), true) => outputs.push(Ok(output)),
                    _ => return Err(PluginError::Host("a call with one row gave other than one result".to_owned())),
                },
                Err(error) if error.costs_the_row() => outputs.push(Err(error)),
                Err(error) => return Err(error),
            }
        }
        Ok(outputs)
    }

    /// As [`Self::with`]; an error that may come from an instance's past is tried once more in a new one.
    pub(crate) fn with_retry<R>(&self, run: impl Fn(&mut Guest<B>) -> Result<R, PluginError>) -> Result<R, PluginError> {
        match self.with(&run) {
            Err(error) if error.costs_the_row() => self.with_fresh(run),
            done => done,
        }
    }
}

/// A name in a component as messages and reports have it: it may be of any length and hold any characters, until it is validated.
pub(crate) fn shown(name: &str) -> String {
    const LIMIT: usize = 200;
    let plain =
        |c: char| !c.is_control() && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    if name.len() <= LIMIT && name.chars().all(plain) {
        return name.to_owned();
    }
    let mut out: String = name[..name.floor_char_boundary(LIMIT)].chars().flat_map(|c| c.escape_debug()).collect();
    if name.len() > LIMIT {
        out.push_str(" [cut]");
    }
    out
}

/// A guest's words, cut to what fits a message.
pub(crate) fn bounded(text: &str) -> String {
    const LIMIT: usize = 2000;
    if text.len() <= LIMIT { text.to_owned() } else { format!("{} [cut]", &text[..text.floor_char_boundary(LIMIT)]) }
}
