//! Calls by name with JSON, for people and fixtures: no bindings, only the component's own types.
//!
//! The calls run under the plugin's limits like all others, but what comes back is shown as it is: the checks of the kinds' own clients
//! ([`crate::Formatter`] and the rest), which training relies on, are those clients' business.

mod value;

use std::sync::Arc;

use serde_json::Value;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Instance, ResourceAny, Type, Val};
use wasmtime::{Engine, Store};

pub use self::value::{HANDLE, Mismatch};
use self::value::{describe, snake, to_json, to_val};
use crate::call::{Load, State, enter};
use crate::error::PluginError;
use crate::host::Plugin;
use crate::instance::{fuelled, instantiate};
use crate::kind::{Kind, KindVersion};

/// Why a call by name gave nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// There is no such function.
    #[error("plugin `{plugin}` has no function `{function}` as {kind}; it has {}", known.join(", "))]
    NoFunction {
        /// The plugin.
        plugin: String,
        /// What was asked for.
        function: String,
        /// As what.
        kind: Kind,
        /// What there is.
        known: Vec<String>,
    },
    /// The number of arguments is another.
    #[error("`{signature}` takes {wanted} arguments, and {given} were given")]
    Arguments {
        /// The function.
        signature: String,
        /// How many it takes.
        wanted: usize,
        /// How many were given.
        given: usize,
    },
    /// An argument does not fit the function's type.
    #[error("`{signature}`, {mismatch}")]
    Mismatch {
        /// The function.
        signature: String,
        /// Where and what.
        mismatch: Mismatch,
    },
    /// The plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// A function that a plugin exports as one of its kinds.
#[derive(Debug, Clone)]
pub struct Function {
    /// As a caller writes it: `format`, `next`, `open`; a constructor has its resource's name, such as `output_parser`.
    pub name: String,
    /// The parameters, without the handle of a method: names and types in words.
    pub params: Vec<(String, String)>,
    /// The result's type in words.
    pub result: Option<String>,
    /// Whether the first parameter is a list, so that a file of rows can be given line by line.
    pub takes_rows: bool,
    /// The name in the component, such as `[method]mixer.next`.
    export: String,
    is_method: bool,
    types: Vec<Type>,
    result_type: Option<Type>,
}

impl Function {
    /// Whether it acts on a handle.
    pub fn is_method(&self) -> bool {
        self.is_method
    }

    /// The function in one line.
    pub fn signature(&self) -> String {
        let params = self.params.iter().map(|(name, ty)| format!("{name}: {ty}")).collect::<Vec<_>>().join(", ");
        let result = self.result.as_ref().map(|r| format!(" -> {r}")).unwrap_or_default();
        format!("{}({params}){result}", self.name)
    }
}

/// A call with its arguments. Made by [`Caller::prepare_call`].
pub struct Prepared {
    function: Function,
    vals: Vec<Val>,
    load: Load,
}

/// Calls a plugin's functions as one of its kinds, by name and with JSON.
pub struct Caller {
    plugin: Arc<Plugin>,
    kind: KindVersion,
    interface: String,
    functions: Vec<Function>,
    settings: Option<String>,
    guest: Option<(Store<State>, Instance)>,
    handle: Option<ResourceAny>,
}

impl Plugin {
    /// A caller for one kind. The settings are checked against the plugin's schema now and given to `configure` before the first call, where
    /// the kind has it.
    ///
    /// # Errors
    /// If the plugin is not of the kind, or the settings do not fit.
    pub fn caller(self: &Arc<Self>, kind: Kind, settings: &Value) -> Result<Caller, PluginError> {
        self.require(kind)?;
        if self.process().is_some() {
            return Err(self.instantiate_error("it is isolated, and calls by name run in this process"));
        }
        let settings = self.check_settings(settings)?;
        let Some(found) = self.kinds().iter().filter(|k| k.kind == kind).max_by(|a, b| a.version.cmp(&b.version)).cloned() else {
            return Err(self.instantiate_error("its kind was found and is gone"));
        };
        let (path, _) = kind.export().split_once('@').unwrap_or((kind.export(), ""));
        let interface = format!("{path}@{}", found.version);
        let component = self.instance_pre().component();
        let functions = functions(component.engine(), component, &interface);
        let settings = functions.iter().any(|f| f.name == "configure").then_some(settings);
        Ok(Caller { plugin: Arc::clone(self), kind: found, interface, functions, settings, guest: None, handle: None })
    }
}

/// The functions of one exported interface.
fn functions(engine: &Engine, component: &wasmtime::component::Component, interface: &str) -> Vec<Function> {
    let ty = component.component_type();
    let Some(found) = ty.get_export(engine, interface) else { return Vec::new() };
    let ComponentItem::ComponentInstance(instance) = found.ty else { return Vec::new() };
    let mut functions = Vec::new();
    for (export, item) in instance.exports(engine) {
        let ComponentItem::ComponentFunc(function) = item.ty else { continue };
        let (form, rest) = export.strip_prefix('[').and_then(|e| e.split_once(']')).unwrap_or(("", export));
        let name = snake(rest.rsplit('.').next().unwrap_or(rest));
        let is_method = form == "method";
        let params: Vec<(String, Type)> = function.params().skip(usize::from(is_method)).map(|(name, ty)| (snake(name), ty)).collect();
        functions.push(Function {
            name,
            takes_rows: matches!(params.first(), Some((_, Type::List(_)))),
            params: params.iter().map(|(name, ty)| (name.clone(), describe(ty))).collect(),
            result: function.results().next().map(|ty| describe(&ty)),
            export: export.to_owned(),
            is_method,
            types: params.into_iter().map(|(_, ty)| ty).collect(),
            result_type: function.results().next(),
        });
    }
    functions
}

impl Caller {
    /// What can be called.
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// The kind and its version.
    pub fn kind(&self) -> &KindVersion {
        &self.kind
    }

    /// The function of a name: `next`, or `mixer.next`.
    ///
    /// # Errors
    /// [`CallError::NoFunction`], which lists what there is.
    pub fn function(&self, name: &str) -> Result<&Function, CallError> {
        let wanted = snake(name.rsplit('.').next().unwrap_or(name));
        self.functions.iter().find(|f| f.name == wanted).ok_or_else(|| CallError::NoFunction {
            plugin: self.plugin.name().to_owned(),
            function: name.to_owned(),
            kind: self.kind.kind,
            known: self.functions.iter().map(Function::signature).collect(),
        })
    }

    /// Calls a function. A method acts on the handle that was returned last. After an error of the plugin the next call gets a new instance,
    /// in which there is no handle.
    ///
    /// # Errors
    /// If there is no such function, the arguments do not fit it, or the plugin traps, hits a limit or returns what the component model
    /// forbids.
    pub fn call(&mut self, name: &str, args: &[Value]) -> Result<Value, CallError> {
        let prepared = self.prepare_call(name, args)?;
        let val = self.make(&prepared)?;
        let ty = prepared.function.result_type;
        Ok(val.zip(ty).map_or(Value::Null, |(val, ty)| to_json(&val, &ty, &mut self.handle)))
    }

    /// A call with its arguments converted, to be made again and again.
    ///
    /// # Errors
    /// As for [`Self::call`], without those of the plugin.
    pub fn prepare_call(&self, name: &str, args: &[Value]) -> Result<Prepared, CallError> {
        let function = self.function(name)?.clone();
        if args.len() != function.types.len() {
            return Err(CallError::Arguments { signature: function.signature(), wanted: function.types.len(), given: args.len() });
        }
        let mut vals = Vec::with_capacity(args.len() + 1);
        let unfit = |mismatch| CallError::Mismatch { signature: function.signature(), mismatch };
        if function.is_method {
            let none =
                || Mismatch { path: "handle".to_owned(), message: "there is none yet: call the function that makes one first".to_owned() };
            vals.push(Val::Resource(self.handle.ok_or_else(|| unfit(none()))?));
        }
        for ((json, ty), (param, _)) in args.iter().zip(&function.types).zip(&function.params) {
            vals.push(to_val(json, ty, self.handle, param).map_err(unfit)?);
        }
        let load = Load {
            rows: args.first().and_then(Value::as_array).map_or(1, Vec::len),
            bytes: args.iter().map(|a| a.to_string().len()).sum(),
        };
        Ok(Prepared { function, vals, load })
    }

    /// Makes a prepared call and throws its result away: for measuring.
    ///
    /// # Errors
    /// Those of the plugin.
    pub fn call_prepared(&mut self, prepared: &Prepared) -> Result<(), CallError> {
        self.make(prepared).map(|_| ())
    }

    /// Makes the instance, configured, that the next call would make.
    ///
    /// # Errors
    /// If it cannot be made or refuses its settings.
    pub fn start(&mut self) -> Result<(), CallError> {
        if self.guest.is_none() { self.begin() } else { Ok(()) }
    }

    /// Bytes of linear memory of the present instance; 0 without one.
    pub fn memory(&self) -> u64 {
        self.guest.as_ref().map_or(0, |(store, _)| store.data().memory() as u64)
    }

    fn make(&mut self, prepared: &Prepared) -> Result<Option<Val>, CallError> {
        self.start()?;
        self.enter(&prepared.function, prepared.load, &prepared.vals).map_err(|error| {
            self.guest = None;
            self.handle = None;
            error.into()
        })
    }

    /// A new instance, configured.
    fn begin(&mut self) -> Result<(), CallError> {
        self.guest = Some(instantiate(&self.plugin, self.kind.kind)?);
        self.handle = None;
        let Some(settings) = self.settings.clone() else { return Ok(()) };
        let Ok(configure) = self.function("configure").cloned() else { return Ok(()) };
        let load = Load { rows: 1, bytes: settings.len() };
        let answer = self.enter(&configure, load, &[Val::String(settings)]).inspect_err(|_| self.guest = None)?;
        if let Some(Val::Result(Err(words))) = answer {
            self.guest = None;
            let message = match words.as_deref() {
                Some(Val::String(words)) => crate::instance::bounded(words),
                _ => String::new(),
            };
            let at = crate::call::place(self.plugin.manifest(), &format!("{}#configure", self.interface));
            return Err(PluginError::Configure { at, message }.into());
        }
        Ok(())
    }

    fn enter(&mut self, function: &Function, load: Load, args: &[Val]) -> Result<Option<Val>, PluginError> {
        let Some((store, instance)) = &mut self.guest else { return Err(self.plugin.instantiate_error("it has no instance")) };
        let instance = *instance;
        let index = instance.get_export_index(&mut *store, None, &self.interface);
        let index = index.and_then(|i| instance.get_export_index(&mut *store, Some(&i), &function.export));
        let func = index.and_then(|i| instance.get_func(&mut *store, i));
        let Some(func) = func else { return Err(self.plugin.instantiate_error(&format!("it lost its export `{}`", function.export))) };
        if let Some((seed, now_ms)) = episode(self.kind.kind, function, args) {
            store.data_mut().world.begin(seed, now_ms);
        }
        let (_, name) = function.export.split_once(']').unwrap_or(("", &function.export));
        let export = format!("{}#{name}", self.interface);
        let fuelled = fuelled(&self.plugin, self.kind.kind);
        let mut results = vec![Val::Bool(false); usize::from(function.result_type.is_some())];
        enter(store, &export, load, fuelled, |store| func.call(store, args, &mut results))?;
        Ok(results.pop())
    }
}

/// The seed and the time of the episode that a call begins, if it begins one: an instance's clock and random bytes follow them from there on, as those of
/// a [`crate::ToolSession`] do.
fn episode(kind: Kind, function: &Function, args: &[Val]) -> Option<(u64, u64)> {
    let (Kind::ToolExecutor, "[static]session.open", Some(Val::Record(context))) = (kind, function.export.as_str(), args.first()) else {
        return None;
    };
    let number = |wanted: &str| {
        context.iter().find_map(|(name, value)| match value {
            Val::U64(n) if name == wanted => Some(*n),
            _ => None,
        })
    };
    Some((number("seed")?, number("now-ms")?))
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("plugin", &self.plugin.name()).field("kind", &self.kind).finish_non_exhaustive()
    }
}
