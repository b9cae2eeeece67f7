//! The host and the plugins that it has loaded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre};

use crate::cache::Cache;
use crate::call::{State, linker};
use crate::capability::{CLIENT, Capabilities, Gate, Grants, Need, Network, Transport};
use crate::compile::{CompilerCommand, compile};
use crate::engine::{Engines, Ticker};
use crate::error::PluginError;
use crate::inspect::{Inspection, Scan, digest, inspect_named};
use crate::kind::{Kind, KindVersion};
use crate::limits::{ByteSize, Limits, MAX_WASM_STACK};
use crate::manifest::Manifest;

/// The least stack that a guest can do anything with.
const MIN_WASM_STACK: u64 = 16 << 10;
/// The largest manifest file.
const MAX_MANIFEST_FILE: u64 = 1 << 20;

/// How to set up a host.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Where compiled components are kept; none: only in memory. A folder for the user alone; if it is not, the host does without.
    pub cache_dir: Option<PathBuf>,
    /// The process that compiles.
    pub compiler: CompilerCommand,
    /// Limits for plugins that nothing says otherwise of; see [`PluginHost::default_limits`].
    pub default_limits: Limits,
    /// How many idle instances each client keeps: as many as threads use it.
    pub worker_instances: usize,
    /// How requests of plugins that were granted servers reach them.
    pub network: Network,
}

impl HostOptions {
    /// No cache, default limits, and an instance per processor.
    pub fn new(compiler: CompilerCommand) -> Self {
        Self {
            cache_dir: None,
            compiler,
            default_limits: Limits::default(),
            worker_instances: std::thread::available_parallelism().map_or(1, usize::from),
            network: Network::default(),
        }
    }
}

/// Where a plugin comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluginSource {
    /// A component file. A manifest may stand beside it: `NAME.plugin.json` for `NAME.wasm`.
    File(PathBuf),
    /// A component in memory.
    Bytes {
        /// What to call it in errors before its manifest is read.
        name: String,
        /// The component.
        bytes: Vec<u8>,
    },
}

/// A name for errors, the component, and the manifest file beside it.
type RawPlugin = (String, Vec<u8>, Option<Vec<u8>>);

impl PluginSource {
    /// Reads the component and the manifest beside it; no more than `limit` bytes of a component.
    fn read(&self, limit: ByteSize) -> Result<RawPlugin, PluginError> {
        match self {
            Self::Bytes { name, bytes } => Ok((name.clone(), bytes.clone(), None)),
            Self::File(path) => {
                let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
                // One byte more than allowed, so that the size check sees that it is too much.
                let bytes = read_at_most(path, limit.0.saturating_add(1))?;
                let beside = path.with_extension("plugin.json");
                let manifest = if beside.is_file() { Some(read_at_most(&beside, MAX_MANIFEST_FILE)?) } else { None };
                Ok((name, bytes, manifest))
            }
        }
    }

    /// Reads the plugin's description without compiling or running it: [`crate::inspect`] for a source.
    ///
    /// # Errors
    /// As for [`crate::inspect`], and if the file cannot be read.
    pub fn inspect(&self, limits: &Limits) -> Result<Inspection, PluginError> {
        let (name, bytes, manifest) = self.read(limits.component_size)?;
        check_size(&name, bytes.len(), limits)?;
        inspect_named(&name, &bytes, manifest.as_deref())
    }
}

fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, PluginError> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes)).map_err(|e| PluginError::io("read", path, e))?;
    Ok(bytes)
}

fn check_size(file: &str, size: usize, limits: &Limits) -> Result<(), PluginError> {
    let limit = limits.component_size;
    if size as u64 <= limit.0 {
        return Ok(());
    }
    Err(PluginError::Invalid {
        plugin: file.to_owned(),
        reason: format!(
            "it has more than {limit}, its component_size limit; raise it in the recipe: [plugins.NAME.limits] component_size = \"{}\"",
            ByteSize(limit.0.saturating_mul(2))
        ),
    })
}

/// Loads plugins. One per process is enough; it is shared freely between threads.
pub struct PluginHost {
    options: HostOptions,
    cache: Option<Cache>,
    ticker: Arc<Ticker>,
    /// By stack size, which wasmtime sets per engine.
    engines: Mutex<HashMap<u64, Arc<Engines>>>,
    /// Components of this process, by stack size and digest.
    loaded: Mutex<HashMap<(u64, String), Component>>,
}

impl PluginHost {
    /// Sets up the host.
    ///
    /// # Errors
    /// If wasmtime or the deadline thread cannot be set up. A cache folder that is not private is no error: the host warns and goes
    /// without.
    pub fn new(options: HostOptions) -> Result<Self, PluginError> {
        let cache = options
            .cache_dir
            .as_deref()
            .and_then(|dir| Cache::open(dir).inspect_err(|why| tracing::warn!("compiled plugins are not cached: {why}")).ok());
        Ok(Self { options, cache, ticker: Arc::new(Ticker::start()?), engines: Mutex::default(), loaded: Mutex::default() })
    }

    /// The limits for plugins whose recipe says nothing.
    pub fn default_limits(&self) -> &Limits {
        &self.options.default_limits
    }

    /// Loads a plugin that is granted nothing: see [`Self::load_with`].
    ///
    /// # Errors
    /// As there.
    pub fn load(&self, source: &PluginSource, limits: Limits) -> Result<Arc<Plugin>, PluginError> {
        self.load_with(source, limits, Grants::default())
    }

    /// Loads a plugin: reads its manifest and type, refuses what it may not import, and compiles it, unless that was done before. What it
    /// declares and is not granted is refused when it is used: see [`Plugin::missing_grants`].
    ///
    /// # Errors
    /// If the file cannot be read, is no component, has no or a wrong manifest, exports no known kind in a known version, imports what it
    /// does not declare or nothing offers, is granted what it does not declare, or exceeds a limit on its size, counts or compilation.
    pub fn load_with(&self, source: &PluginSource, limits: Limits, grants: Grants) -> Result<Arc<Plugin>, PluginError> {
        let (file, bytes, manifest_file) = source.read(limits.component_size)?;
        check_size(&file, bytes.len(), &limits)?;
        let scan = Scan::of(&file, &bytes)?;
        let manifest = scan.manifest(&file, manifest_file.as_deref())?;
        let kinds = scan.kinds(&manifest.name)?;
        let needs = crate::capability::needs(&manifest)?;
        scan.check_imports(&manifest, &needs)?;
        scan.check_counts(&manifest, &limits)?;
        if let Some(need) = needs.iter().find(|need| **need != Need::Log && kinds.iter().any(|k| k.kind != Kind::ToolExecutor)) {
            return Err(PluginError::Manifest {
                plugin: manifest.name,
                reason: format!("its manifest says that it needs `{need}`, which only a plugin of nothing but tools may"),
            });
        }
        let capabilities = Arc::new(Capabilities::new(&manifest, grants)?);
        if !manifest.deterministic && kinds.iter().any(|k| k.kind != Kind::ToolExecutor) {
            return Err(PluginError::Manifest {
                plugin: manifest.name,
                reason: "its manifest says `deterministic: false`, which only a plugin of nothing but tools may".to_owned(),
            });
        }
        if let Some(need) = needs.iter().find(|need| manifest.deterministic && matches!(need, Need::Clock | Need::Random)) {
            return Err(PluginError::Manifest {
                plugin: manifest.name,
                reason: format!(
                    "its manifest says that it needs `{need}` and that it is deterministic: it also has to say `deterministic: false`"
                ),
            });
        }
        if !(MIN_WASM_STACK..=MAX_WASM_STACK).contains(&limits.wasm_stack.0) {
            return Err(PluginError::Host(format!(
                "limit wasm_stack = \"{}\" of plugin `{}` is out of range: it lies on the host's own thread, so {} to {} are possible",
                limits.wasm_stack,
                manifest.name,
                ByteSize(MIN_WASM_STACK),
                ByteSize(MAX_WASM_STACK)
            )));
        }
        let digest = digest(&bytes);
        let imports = scan.imports;
        let engines = self.engines(limits.wasm_stack.0)?;
        let component = self.component(&engines, &manifest, &limits, &digest, &bytes)?;
        let interface = |e: wasmtime::Error| interface_error(&manifest, &e);
        let pre = linker(component.engine(), &component)?.instantiate_pre(&component).map_err(interface)?;
        Ok(Arc::new(Plugin {
            manifest: Arc::new(manifest),
            limits: Arc::new(limits),
            capabilities,
            transport: Arc::new(Gate::new(self.options.network.clone())),
            digest,
            kinds,
            imports,
            size: bytes.len() as u64,
            worker_instances: self.options.worker_instances,
            engines,
            _ticker: Arc::clone(&self.ticker),
            pre,
            beyond_the_pool: OnceLock::new(),
        }))
    }

    fn engines(&self, wasm_stack: u64) -> Result<Arc<Engines>, PluginError> {
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = engines.get(&wasm_stack) {
            return Ok(Arc::clone(found));
        }
        let new = Arc::new(Engines::new(usize::try_from(wasm_stack).unwrap_or(usize::MAX))?);
        self.ticker.watch(&new);
        engines.insert(wasm_stack, Arc::clone(&new));
        Ok(new)
    }

    /// The compiled component: from this process, the cache, or the compiler.
    fn component(
        &self,
        engines: &Engines,
        manifest: &Manifest,
        limits: &Limits,
        digest: &str,
        bytes: &[u8],
    ) -> Result<Component, PluginError> {
        let key = (limits.wasm_stack.0, digest.to_owned());
        if let Some(component) = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(component.clone());
        }
        let cached = self.cache.as_ref().and_then(|cache| cache.get(&engines.compatibility, digest));
        let cached = cached.and_then(|code| {
            load(engines, &code).inspect_err(|e| tracing::warn!("a cached plugin does not load and is compiled anew: {e:#}")).ok()
        });
        let component = match cached {
            Some(component) => component,
            None => {
                let code = compile(&self.options.compiler, engines.layout, manifest, limits, bytes)?;
                let component =
                    load(engines, &code).map_err(|e| PluginError::Compile { plugin: manifest.name.clone(), reason: format!("{e:#}") })?;
                if let Some(cache) = &self.cache {
                    cache.put(&engines.compatibility, digest, &code);
                }
                component
            }
        };
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(key, component.clone());
        Ok(component)
    }
}

impl std::fmt::Debug for PluginHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PluginHost").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Loads compiled code into the pool's engine, or, if the component does not fit the pool, into the other.
fn load(engines: &Engines, code: &[u8]) -> wasmtime::Result<Component> {
    if let Some(pooled) = &engines.pooled {
        match deserialize(pooled, code) {
            Ok(component) => return Ok(component),
            Err(e) => tracing::debug!("a plugin does not fit the pool of instances ({e:#}); its instances are made one by one"),
        }
    }
    deserialize(&engines.on_demand, code)
}

#[expect(unsafe_code, reason = "wasmtime cannot tell compiled code from forged code")]
fn deserialize(engine: &Engine, code: &[u8]) -> wasmtime::Result<Component> {
    // SAFETY: the code comes, unchanged, out of `Engine::precompile_component` or `Component::serialize`: from this process, from the
    // compiler's process that this host started and whose output lay in a directory of the user's alone, or from the cache, which gives
    // only entries whose keyed digest shows that this user's host wrote them. wasmtime itself checks version and configuration.
    unsafe { Component::deserialize(engine, code) }
}

fn interface_error(manifest: &Manifest, error: &wasmtime::Error) -> PluginError {
    PluginError::Interface { plugin: manifest.name.clone(), version: manifest.version.clone(), reason: format!("{error:#}") }
}

/// A loaded plugin: checked, compiled, ready to make instances of.
pub struct Plugin {
    manifest: Arc<Manifest>,
    limits: Arc<Limits>,
    capabilities: Arc<Capabilities>,
    /// The gate to the network.
    transport: Arc<dyn Transport>,
    digest: String,
    kinds: Vec<KindVersion>,
    imports: Vec<String>,
    size: u64,
    worker_instances: usize,
    engines: Arc<Engines>,
    /// Deadlines hold as long as there is a plugin, also when its host is gone.
    _ticker: Arc<Ticker>,
    pre: InstancePre<State>,
    beyond_the_pool: OnceLock<Result<InstancePre<State>, PluginError>>,
}

impl Plugin {
    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.manifest.version
    }

    /// SHA-256 of the component, hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The kinds that it exports.
    pub fn kinds(&self) -> &[KindVersion] {
        &self.kinds
    }

    /// Whether it is of a kind.
    pub fn is(&self, kind: Kind) -> bool {
        self.kinds.iter().any(|k| k.kind == kind)
    }

    /// The newest version of a kind's interface that it exports.
    pub(crate) fn version_of(&self, kind: Kind) -> Result<&str, PluginError> {
        self.require(kind)?;
        let newest = kind.versions().iter().rev().find(|v| self.kinds.iter().any(|k| k.kind == kind && k.version == **v));
        // Loading has seen to it that the versions are known ones.
        newest.copied().ok_or_else(|| PluginError::Host(format!("no known version of {kind}")))
    }

    /// What it imports.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// Whether it can make requests, if they are granted.
    pub fn makes_requests(&self) -> bool {
        self.imports.iter().any(|i| i == CLIENT)
    }

    /// Bytes of the component.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The limits that it runs under.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What it was granted, in normal form, for locks and reports: servers, address ranges, and secrets by name and kind of source.
    /// Logging is none: every plugin has it.
    pub fn grants(&self) -> &[String] {
        self.capabilities.described()
    }

    /// What its manifest asks for and the user did not grant; [`Need::flag`] says how to. Using it is refused.
    pub fn missing_grants(&self) -> Vec<Need> {
        self.capabilities.missing().cloned().collect()
    }

    /// What it was not granted, in words, with the flags that would grant it; none if it lacks nothing.
    pub fn ungranted(&self) -> Option<String> {
        let missing = self.missing_grants();
        let flags: Vec<String> = missing.iter().filter_map(|need| need.flag(self.name())).collect();
        if flags.is_empty() {
            return None;
        }
        let needs = missing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let (name, version) = (self.name(), self.version());
        let flags = flags.join(" ");
        let without = if missing.iter().all(|need| matches!(need, Need::Log | Need::Clock | Need::Random)) {
            "clocks stand still, and random bytes follow from the seed"
        } else {
            "what needs it will be refused"
        };
        Some(format!("plugin `{name}` {version} asks for {needs}, which it was not granted: {without}; grant it with {flags}"))
    }

    /// What carries its requests: the gate, which checks them and goes to the network. To record or replay an episode, wrap it in a
    /// [`Transport`] and pass that to [`Plugin::tool_session_through`].
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::clone(&self.transport)
    }

    /// Checks settings against the schema in the manifest and gives them as the JSON text that the plugin is configured with.
    ///
    /// # Errors
    /// [`PluginError::Settings`], which names the JSON Pointer.
    pub fn check_settings(&self, settings: &serde_json::Value) -> Result<String, PluginError> {
        crate::settings::check(&self.manifest, settings)
    }

    pub(crate) fn manifest_arc(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    pub(crate) fn capabilities(&self) -> &Arc<Capabilities> {
        &self.capabilities
    }

    pub(crate) fn limits_arc(&self) -> &Arc<Limits> {
        &self.limits
    }

    pub(crate) fn worker_instances(&self) -> usize {
        self.worker_instances
    }

    pub(crate) fn instance_pre(&self) -> &InstancePre<State> {
        &self.pre
    }

    /// The same component without the pool.
    pub(crate) fn beyond_the_pool(&self) -> Result<&InstancePre<State>, PluginError> {
        let made = self.beyond_the_pool.get_or_init(|| {
            let engine = &self.engines.on_demand;
            let code = self.pre.component().serialize().map_err(|e| self.instantiate_error(&format!("{e:#}")))?;
            let component = deserialize(engine, &code).map_err(|e| self.instantiate_error(&format!("{e:#}")))?;
            linker(engine, &component)?.instantiate_pre(&component).map_err(|e| self.interface_error(&e))
        });
        made.as_ref().map_err(Clone::clone)
    }

    pub(crate) fn require(&self, kind: Kind) -> Result<(), PluginError> {
        if self.is(kind) {
            return Ok(());
        }
        Err(PluginError::WrongKind {
            plugin: self.manifest.name.clone(),
            version: self.manifest.version.clone(),
            wanted: kind,
            has: self.kinds.clone(),
        })
    }

    pub(crate) fn interface_error(&self, error: &wasmtime::Error) -> PluginError {
        interface_error(&self.manifest, error)
    }

    pub(crate) fn instantiate_error(&self, reason: &str) -> PluginError {
        PluginError::Instantiate { plugin: self.manifest.name.clone(), version: self.manifest.version.clone(), reason: reason.to_owned() }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("manifest", &self.manifest).field("digest", &self.digest).field("kinds", &self.kinds).finish()
    }
}
