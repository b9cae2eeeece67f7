//! One definition of a setting: its name, type, default, limits and documentation, from which the struct, its reader and its line in the
//! docs are made.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trainer_hub::{HubKind, RepoKind, RepoRef};

use crate::error::{Origin, Problem};
use crate::tree::{Data, Node};
use crate::values::{Count, DataPath, DeviceBackend, ModelSource, PluginName, Scalars, Settings, Thinking};

/// What reading needs and gathers.
pub(crate) struct Context<'a> {
    /// The folder to which paths in the text are relative.
    pub base: Option<&'a Path>,
    /// What was wrong so far.
    pub problems: Vec<Problem>,
}

impl Context<'_> {
    /// Notes a problem.
    pub fn problem(&mut self, origin: &Origin, key: &str, message: impl Into<String>, help: Option<String>) {
        self.problems.push(Problem { origin: origin.clone(), key: key.to_owned(), message: message.into(), help });
    }

    /// Notes a value of the wrong type.
    pub fn wrong<T>(&mut self, node: &Node, key: &str, expected: &str) -> Option<T> {
        self.problem(&node.origin, key, format!("expected {expected}, found {}", node.kind()), None);
        None
    }

    /// A path as it is meant where it was written.
    fn path(&mut self, node: &Node, key: &str, text: &str) -> Option<PathBuf> {
        if text.is_empty() {
            self.problem(&node.origin, key, "the path is empty", None);
            return None;
        }
        match (&node.origin, self.base) {
            (Origin::Text { .. }, Some(base)) => Some(base.join(text)),
            // A flag means the folder in which the command runs; made absolute where the recipe's own paths are.
            (_, Some(_)) => match std::path::absolute(text) {
                Ok(path) => Some(path),
                Err(e) => {
                    self.problem(&node.origin, key, format!("cannot make the path {text} absolute: {e}"), None);
                    None
                }
            },
            (_, None) => Some(PathBuf::from(text)),
        }
    }
}

/// The known name nearest to one that is not known, if any is near.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&lower, &k.to_lowercase()), strsim::jaro_winkler(&lower, &k.to_lowercase()), k))
        .filter(|(distance, similar, k)| *distance <= 1 + k.len() / 4 || *similar > 0.87)
        .min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)))
        .map(|(_, _, k)| k)
}

/// Help for a name that is not known.
pub(crate) fn unknown_help<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(k) => format!("did you mean `{k}`?"),
        None => format!("known here: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

/// Something that a recipe can hold.
pub(crate) trait Setting: Sized {
    /// What a value is, for the documentation.
    fn kind() -> String;
    /// Reads it; on a problem notes it and gives none.
    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self>;
    /// The sections inside it, for the documentation.
    fn sections(_key: &str, _out: &mut Vec<SectionDoc>) {}
}

/// A section's documentation.
pub(crate) struct SectionDoc {
    pub key: String,
    pub doc: &'static [&'static str],
    pub fields: Vec<FieldDoc>,
}

/// A setting's documentation.
pub(crate) struct FieldDoc {
    pub name: &'static str,
    pub kind: String,
    pub default: Option<String>,
    pub allowed: Option<&'static str>,
    pub doc: &'static [&'static str],
    pub is_section: bool,
}

/// Defines a section: a struct with defaults, and its reader.
///
/// A field is `name: type = default;` or `name: type = default, |value| condition, "what is allowed";`.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        pub struct $name:ident {
            $( $(#[doc = $doc:literal])+ pub $field:ident : $ty:ty = $default:expr $(, |$value:ident| $ok:expr, $allowed:literal)? ; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $ty, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )+ }
            }
        }

        impl $crate::section::Setting for $name {
            fn kind() -> String {
                "table".to_owned()
            }

            fn read(cx: &mut $crate::section::Context<'_>, key: &str, node: &$crate::tree::Node) -> Option<Self> {
                const KNOWN: &[&str] = &[$( stringify!($field) ),+];
                let $crate::tree::Data::Table(entries) = &node.data else { return cx.wrong(node, key, "a table") };
                let join = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
                let mut out = Self::default();
                let before = cx.problems.len();
                for entry in entries {
                    match entry.key.as_str() {
                        $( stringify!($field) => {
                            let path = join(stringify!($field));
                            if let Some(value) = <$ty as $crate::section::Setting>::read(cx, &path, &entry.node) {
                                $( {
                                    let ok = |$value: &$ty| $ok;
                                    if !ok(&value) {
                                        let text = toml::Value::try_from(&value).map(|v| v.to_string()).unwrap_or_default();
                                        cx.problem(&entry.node.origin, &path, format!("must be {}, not {text}", $allowed), None);
                                    }
                                } )?
                                out.$field = value;
                            }
                        } )+
                        unknown => {
                            let help = $crate::section::unknown_help(unknown, KNOWN.iter().copied());
                            cx.problem(&entry.origin, &join(unknown), "unknown key", Some(help));
                        }
                    }
                }
                (cx.problems.len() == before).then_some(out)
            }

            fn sections(key: &str, out: &mut Vec<$crate::section::SectionDoc>) {
                let default = Self::default();
                out.push($crate::section::SectionDoc {
                    key: key.to_owned(),
                    doc: &[$( $about ),+],
                    fields: vec![ $( $crate::section::FieldDoc {
                        name: stringify!($field),
                        kind: <$ty as $crate::section::Setting>::kind(),
                        default: toml::Value::try_from(&default.$field).ok().map(|v| v.to_string()),
                        allowed: None $( .or(Some($allowed)) )?,
                        doc: &[$( $doc ),+],
                        is_section: { let mut inner = Vec::new(); <$ty as $crate::section::Setting>::sections("", &mut inner); !inner.is_empty() },
                    } ),+ ],
                });
                $( <$ty as $crate::section::Setting>::sections(
                    &if key.is_empty() { stringify!($field).to_owned() } else { format!("{key}.{}", stringify!($field)) }, out); )+
            }
        }
    };
}

/// Defines an enumeration of names.
macro_rules! choices {
    (
        $(#[doc = $about:literal])+
        pub enum $name:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $text:literal, )+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $( $(#[doc = $doc])+ #[serde(rename = $text)] $variant, )+
        }

        impl $name {
            /// Every one, in the order of the documentation.
            pub const ALL: &[Self] = &[$( Self::$variant ),+];

            /// The name in a recipe.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text ),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::section::Setting for $name {
            fn kind() -> String {
                [$( concat!("`\"", $text, "\"`: ", $( $doc ),+) ),+].map(|s| s.split_whitespace().collect::<Vec<_>>().join(" ")).join("<br>")
            }

            fn read(cx: &mut $crate::section::Context<'_>, key: &str, node: &$crate::tree::Node) -> Option<Self> {
                const NAMES: &[&str] = &[$( $text ),+];
                let $crate::tree::Data::String(text) = &node.data else {
                    return cx.wrong(node, key, &format!("one of {}", $crate::section::quoted(NAMES)));
                };
                match text.as_str() {
                    $( $text => Some(Self::$variant), )+
                    _ => {
                        let help = $crate::section::nearest(text, NAMES.iter().copied()).map(|n| format!("did you mean \"{n}\"?"));
                        cx.problem(&node.origin, key, format!("must be one of {}, not {text:?}", $crate::section::quoted(NAMES)), help);
                        None
                    }
                }
            }
        }
    };
}

/// `"a", "b"`.
pub(crate) fn quoted(names: &[&str]) -> String {
    names.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ")
}

impl Setting for bool {
    fn kind() -> String {
        "true or false".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match node.data {
            Data::Bool(b) => Some(b),
            _ => cx.wrong(node, key, "true or false"),
        }
    }
}

macro_rules! integers {
    ($($ty:ty),+) => { $(
        impl Setting for $ty {
            fn kind() -> String {
                "integer".to_owned()
            }

            fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
                let Data::Integer(i) = node.data else { return cx.wrong(node, key, "an integer") };
                match <$ty>::try_from(i) {
                    Ok(v) => Some(v),
                    Err(_) => {
                        let most = i64::try_from(<$ty>::MAX).unwrap_or(i64::MAX);
                        cx.problem(&node.origin, key, format!("must be from 0 to {most}, not {i}"), None);
                        None
                    }
                }
            }
        }
    )+ };
}
integers!(u32, u64, usize);

impl Setting for f64 {
    fn kind() -> String {
        "number".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match node.data {
            Data::Float(x) => Some(x),
            Data::Integer(i) => Some(i as f64),
            _ => cx.wrong(node, key, "a number"),
        }
    }
}

impl Setting for [f64; 2] {
    fn kind() -> String {
        "two numbers".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        let values = <Vec<f64> as Setting>::read(cx, key, node)?;
        match <[f64; 2]>::try_from(values) {
            Ok(pair) => Some(pair),
            Err(values) => {
                cx.problem(&node.origin, key, format!("expected two numbers, found {}", values.len()), None);
                None
            }
        }
    }
}

impl Setting for String {
    fn kind() -> String {
        "string".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match &node.data {
            Data::String(s) => Some(s.clone()),
            _ => cx.wrong(node, key, "a string"),
        }
    }
}

impl Setting for PathBuf {
    fn kind() -> String {
        "path".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match &node.data {
            Data::String(s) => cx.path(node, key, s),
            _ => cx.wrong(node, key, "a path"),
        }
    }
}

impl Setting for DataPath {
    fn kind() -> String {
        "path, glob, `builtin:NAME` or `hf://datasets/ORG/NAME?split=NAME`".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        let Data::String(text) = &node.data else { return cx.wrong(node, key, "a path, a glob or \"builtin:NAME\"") };
        if let Some(source) = text.strip_prefix(Self::HOLDOUT) {
            return Some(Self::Holdout(source.to_owned()));
        }
        if RepoRef::has_scheme(text) {
            let repo = RepoRef::parse(text).map_err(|e| e.to_string());
            let repo = repo.and_then(|r| {
                if r.kind == RepoKind::Dataset { Ok(r) } else { Err(format!("{r} is a model; a data set is hf://datasets/{}", r.id)) }
            });
            return repo.map(Self::Hub).map_err(|message| cx.problem(&node.origin, key, message, None)).ok();
        }
        let Some(name) = text.strip_prefix(Self::PREFIX) else { return cx.path(node, key, text).map(Self::Path) };
        if Self::BUILTIN.contains(&name) {
            return Some(Self::Builtin(name.to_owned()));
        }
        cx.problem(&node.origin, key, format!("there is no embedded data {name:?}"), Some(unknown_help(name, Self::BUILTIN)));
        None
    }
}

impl Setting for DeviceBackend {
    fn kind() -> String {
        "`\"auto\"`, `\"cpu\"`, `\"cuda\"` or `\"cuda:N\"`".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        let Data::String(text) = &node.data else { return cx.wrong(node, key, "\"auto\", \"cpu\", \"cuda\" or \"cuda:N\"") };
        let read = Self::parse(text);
        if read.is_none() {
            let help = nearest(text, ["auto", "cpu", "cuda", "cuda:1"]).map(|n| format!("did you mean \"{n}\"?"));
            let message = format!("must be \"auto\", \"cpu\", \"cuda\" or \"cuda:N\" with the card's number, not {text:?}");
            cx.problem(&node.origin, key, message, help);
        }
        read
    }
}

impl Setting for ModelSource {
    fn kind() -> String {
        "`\"nano\"`, a folder, or a model on a hub".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match &node.data {
            Data::String(s) if s == "nano" => Some(Self::Nano),
            Data::String(s) if RepoRef::has_scheme(s) => {
                RepoRef::model(s, HubKind::HuggingFace).map(Self::Hub).map_err(|e| cx.problem(&node.origin, key, e.to_string(), None)).ok()
            }
            // A folder that is there wins over a name on a hub.
            Data::String(s) => cx.path(node, key, s).map(|path| match RepoRef::model(s, HubKind::HuggingFace) {
                Ok(repo) if !path.exists() => Self::Hub(repo),
                _ => Self::Folder(path),
            }),
            _ => cx.wrong(node, key, "\"nano\", a folder, or a model on a hub"),
        }
    }
}

impl Setting for PluginName {
    fn kind() -> String {
        "plugin name".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        let Data::String(text) = &node.data else { return cx.wrong(node, key, "a plugin's name") };
        plugin_name(cx, &node.origin, key, text)
    }
}

/// Checks a plugin's name.
fn plugin_name(cx: &mut Context<'_>, origin: &Origin, key: &str, text: &str) -> Option<PluginName> {
    let name = PluginName::new(text);
    if name.is_valid() {
        return Some(name);
    }
    let help =
        (text.contains(['/', '\\', '.'])).then(|| "a plugin has a name here; give its file as `path` in `[plugins.NAME]`".to_owned());
    cx.problem(origin, key, format!("{text:?} is not a plugin's name (1 to 64 letters, digits, `_` or `-`)"), help);
    None
}

impl Setting for Count {
    fn kind() -> String {
        "`\"auto\"` or an integer".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match &node.data {
            Data::String(s) if s == "auto" => Some(Self::Auto),
            Data::Integer(_) => usize::read(cx, key, node).map(Self::Exactly),
            Data::String(s) => {
                cx.problem(&node.origin, key, format!("expected \"auto\" or an integer, not {s:?}"), None);
                None
            }
            _ => cx.wrong(node, key, "\"auto\" or an integer"),
        }
    }
}

impl Setting for Thinking {
    fn kind() -> String {
        "true, false or `\"template\"`".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match &node.data {
            Data::Bool(on) => Some(Self::Given(*on)),
            Data::String(s) if s == "template" => Some(Self::Template),
            _ => cx.wrong(node, key, "true, false or \"template\""),
        }
    }
}

impl<T: Setting> Setting for Option<T> {
    fn kind() -> String {
        T::kind()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        T::read(cx, key, node).map(Some)
    }

    fn sections(key: &str, out: &mut Vec<SectionDoc>) {
        T::sections(key, out);
    }
}

impl<T: Setting> Setting for Vec<T> {
    fn kind() -> String {
        format!("list of {}", T::kind())
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        let Data::Array(items) = &node.data else { return cx.wrong(node, key, "an array") };
        let read: Vec<_> = items.iter().enumerate().map(|(i, item)| T::read(cx, &format!("{key}[{i}]"), item)).collect();
        read.into_iter().collect()
    }

    fn sections(key: &str, out: &mut Vec<SectionDoc>) {
        // One pair of brackets around the whole, however deep lists lie in lists.
        T::sections(&format!("[{}]", key.replace(['[', ']'], "")), out);
    }
}

/// A key of a map.
pub(crate) trait MapKey: Ord + Sized {
    fn read_key(cx: &mut Context<'_>, origin: &Origin, path: &str, key: &str) -> Option<Self>;
}

impl MapKey for String {
    fn read_key(_cx: &mut Context<'_>, _origin: &Origin, _path: &str, key: &str) -> Option<Self> {
        Some(key.to_owned())
    }
}

impl MapKey for PluginName {
    fn read_key(cx: &mut Context<'_>, origin: &Origin, path: &str, key: &str) -> Option<Self> {
        plugin_name(cx, origin, path, key)
    }
}

impl<K: MapKey, T: Setting> Setting for BTreeMap<K, T> {
    fn kind() -> String {
        format!("table of {}", T::kind())
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        let Data::Table(entries) = &node.data else { return cx.wrong(node, key, "a table") };
        let mut out = Self::new();
        let mut complete = true;
        for entry in entries {
            let path = format!("{key}.{}", entry.key);
            match (K::read_key(cx, &entry.origin, &path, &entry.key), T::read(cx, &path, &entry.node)) {
                (Some(k), Some(v)) => drop(out.insert(k, v)),
                _ => complete = false,
            }
        }
        complete.then_some(out)
    }

    fn sections(key: &str, out: &mut Vec<SectionDoc>) {
        T::sections(&format!("{key}.NAME"), out);
    }
}

impl Setting for Scalars {
    fn kind() -> String {
        "text, number, true or false, or a list of them".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        let value = json(cx, key, node)?;
        let items = if let serde_json::Value::Array(items) = value { items } else { vec![value] };
        if items.iter().any(|v| v.is_object() || v.is_array()) {
            return cx.wrong(node, key, "a text, a number, true, false, or a list of them");
        }
        Some(Self(items))
    }
}

impl Setting for Settings {
    fn kind() -> String {
        "table".to_owned()
    }

    fn read(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<Self> {
        match json(cx, key, node)? {
            serde_json::Value::Object(map) => Some(map),
            _ => cx.wrong(node, key, "a table"),
        }
    }
}

/// A TOML value as JSON, with sorted keys; a date or time becomes its text.
fn json(cx: &mut Context<'_>, key: &str, node: &Node) -> Option<serde_json::Value> {
    use serde_json::Value;
    Some(match &node.data {
        Data::String(s) | Data::DateTime(s) => Value::String(s.clone()),
        Data::Integer(i) => Value::from(*i),
        Data::Float(x) => match serde_json::Number::from_f64(*x) {
            Some(n) => Value::Number(n),
            None => {
                cx.problem(&node.origin, key, format!("{x} cannot be given to a plugin, whose settings are JSON"), None);
                return None;
            }
        },
        Data::Bool(b) => Value::Bool(*b),
        Data::Array(items) => {
            let items: Vec<_> = items.iter().enumerate().map(|(i, item)| json(cx, &format!("{key}[{i}]"), item)).collect();
            Value::Array(items.into_iter().collect::<Option<_>>()?)
        }
        Data::Table(entries) => {
            let sorted: BTreeMap<&str, &Node> = entries.iter().map(|e| (e.key.as_str(), &e.node)).collect();
            let read: Vec<_> = sorted.into_iter().map(|(k, n)| json(cx, &format!("{key}.{k}"), n).map(|v| (k.to_owned(), v))).collect();
            Value::Object(read.into_iter().collect::<Option<_>>()?)
        }
    })
}
