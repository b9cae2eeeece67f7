//! What can go wrong with a plugin, in words that say where and what to do.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::kind::{Kind, KindVersion};

/// Where in a plugin something happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The plugin's name from its manifest.
    pub plugin: String,
    /// The plugin's version from its manifest.
    pub version: String,
    /// The export that was called, such as `trainer:dataset-formatter/formatter@0.1.0#format`; or `instantiation`, `compilation`.
    pub export: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin `{}` {}, {}", self.plugin, self.version, self.export)
    }
}

/// An error of a plugin or about one. Cheap to clone, so that one can be kept per row.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: Arc<std::io::Error>,
    },
    /// The bytes are not a component that this host accepts.
    #[error("plugin `{plugin}` is not a valid WebAssembly component: {reason}")]
    Invalid {
        /// The file's or plugin's name.
        plugin: String,
        /// What the validator says, and what to do about it.
        reason: String,
    },
    /// The manifest is absent or wrong.
    #[error("plugin `{plugin}`: {reason}")]
    Manifest {
        /// The file's or plugin's name.
        plugin: String,
        /// What is wrong, and how a manifest comes to be.
        reason: String,
    },
    /// The component exports no plugin interface.
    #[error("plugin `{plugin}` exports no plugin kind (it exports: {}); this host knows {}", list_or(exports, "nothing"), known_kinds())]
    NoKind {
        /// The plugin.
        plugin: String,
        /// The names of its exports.
        exports: Vec<String>,
    },
    /// The component exports a known kind in a version that this host does not know.
    #[error(
        "plugin `{plugin}` exports {kind} {found}; this host knows {kind} {known}: build the plugin against that version of the interface, or use another version of trainer"
    )]
    UnknownKindVersion {
        /// The plugin.
        plugin: String,
        /// The kind.
        kind: Kind,
        /// The version that the component exports.
        found: String,
        /// The versions that this host knows.
        known: String,
    },
    /// The component imports something that nothing grants.
    #[error("plugin `{plugin}` {version} imports `{import}`, and nothing grants it: {hint}")]
    Import {
        /// The plugin.
        plugin: String,
        /// Its version.
        version: String,
        /// The import.
        import: String,
        /// What to do.
        hint: String,
    },
    /// The manifest declares a need that this host cannot grant.
    #[error("plugin `{plugin}` {version} declares that it needs `{need}`, which this version of trainer cannot grant")]
    Need {
        /// The plugin.
        plugin: String,
        /// Its version.
        version: String,
        /// The need.
        need: String,
    },
    /// The user grants what the plugin does not ask for.
    #[error("plugin `{plugin}` {version} {reason}")]
    Grant {
        /// The plugin.
        plugin: String,
        /// Its version.
        version: String,
        /// What is granted for nothing, and what to do.
        reason: String,
    },
    /// The plugin is asked to do what it does not offer.
    #[error("plugin `{plugin}` {version} is no {wanted}: it exports {}", kinds(has))]
    WrongKind {
        /// The plugin.
        plugin: String,
        /// Its version.
        version: String,
        /// The kind that was asked for.
        wanted: Kind,
        /// The kinds that it has.
        has: Vec<KindVersion>,
    },
    /// The component's types differ from the WIT of the version that it names.
    #[error("plugin `{plugin}` {version} does not fit the interface that it names: {reason}")]
    Interface {
        /// The plugin.
        plugin: String,
        /// Its version.
        version: String,
        /// What differs.
        reason: String,
    },
    /// The recipe's settings do not fit the plugin's schema.
    #[error("settings of plugin `{plugin}` {version}, at `{}`: {message}", if pointer.is_empty() { "/" } else { pointer })]
    Settings {
        /// The plugin.
        plugin: String,
        /// Its version.
        version: String,
        /// JSON Pointer into the settings.
        pointer: String,
        /// What is wrong there.
        message: String,
    },
    /// The plugin itself refuses its settings.
    #[error("{at} refuses its settings: {message}")]
    Configure {
        /// Where.
        at: Arc<Place>,
        /// The plugin's words.
        message: String,
    },
    /// The plugin returned an error of its own (a mixer that cannot go on, an aggregate that cannot be made).
    #[error("{at} failed: {message}")]
    Refused {
        /// Where.
        at: Arc<Place>,
        /// The plugin's words.
        message: String,
    },
    /// A limit was hit.
    #[error("{at} hit its {limit} limit{}", limit_numbers(.limit, .current, .requested, .hint))]
    Limit {
        /// Where.
        at: Arc<Place>,
        /// Which limit: the key of `[plugins.NAME.limits]`.
        limit: &'static str,
        /// The limit's present value and unit, such as `256 MiB`.
        current: String,
        /// What was asked for, where it is known.
        requested: Option<String>,
        /// How to raise it.
        hint: String,
    },
    /// The call took longer than the wall clock allows. Not a row's fault in any repeatable way, so it stops the run, which can be resumed.
    #[error("{at} did not return within its deadline of {limit:?} (stopped after {elapsed:.1?}); the run can be resumed; {hint}")]
    Deadline {
        /// Where.
        at: Arc<Place>,
        /// The limit.
        limit: Duration,
        /// The time after which the call was stopped.
        elapsed: Duration,
        /// How to raise it.
        hint: String,
    },
    /// The plugin trapped.
    #[error("{at} trapped: {trap}{}", panic.as_ref().map(|p| format!(" (it said: {p})")).unwrap_or_default())]
    Trap {
        /// Where.
        at: Arc<Place>,
        /// The trap.
        trap: String,
        /// The last line that the plugin logged at level error in the call: with the SDK, the panic's message.
        panic: Option<String>,
    },
    /// The plugin returned something that its interface forbids.
    #[error("{at} returned a bad value: {field}: {message}")]
    BadValue {
        /// Where.
        at: Arc<Place>,
        /// The path of the value in what was returned, such as `outcomes[3].messages[0].weight`.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The component could not be compiled.
    #[error("cannot compile plugin `{plugin}`: {reason}")]
    Compile {
        /// The plugin.
        plugin: String,
        /// What happened.
        reason: String,
    },
    /// The component could not be instantiated.
    #[error("cannot instantiate plugin `{plugin}` {version}: {reason}")]
    Instantiate {
        /// The plugin.
        plugin: String,
        /// Its version.
        version: String,
        /// What happened.
        reason: String,
    },
    /// The host itself could not be set up.
    #[error("cannot set up the plugin host: {0}")]
    Host(String),
}

impl PluginError {
    /// Whether the error is the fault of the rows in the call, so that it costs them and not the run: a trap, a deterministic limit, or
    /// a value that the interface forbids.
    pub fn costs_the_row(&self) -> bool {
        matches!(self, Self::Trap { .. } | Self::Limit { .. } | Self::BadValue { .. })
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source: Arc::new(source) }
    }
}

/// Why a template gave nothing for one item of a batch.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RowError {
    /// The template refuses the item, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The template trapped, hit a limit or returned a bad value on this item.
    #[error(transparent)]
    Trapped(PluginError),
}

fn limit_numbers(limit: &str, current: &str, requested: &Option<String>, hint: &str) -> String {
    let asked = requested.as_ref().map(|r| format!(", {r} were requested")).unwrap_or_default();
    let _ = limit;
    format!(": {current} are allowed{asked}; {hint}")
}

fn list_or(items: &[String], none: &str) -> String {
    const LISTED: usize = 8;
    match items {
        [] => none.to_owned(),
        few if few.len() <= LISTED => few.join(", "),
        many => format!("{}, ... ({} in all)", many[..LISTED].join(", "), many.len()),
    }
}

fn kinds(has: &[KindVersion]) -> String {
    has.iter().map(KindVersion::to_string).collect::<Vec<_>>().join(", ")
}

fn known_kinds() -> String {
    Kind::ALL.iter().map(|k| format!("`{}@{}`", k.interface(), k.versions().join("` or `@"))).collect::<Vec<_>>().join(", ")
}
