//! `trainer plugin doc`: what a kind asks of a plugin, from the comments of its WIT.

use std::fmt::Write as _;
use std::str::FromStr;

use trainer_plugin_host::Kind;
use wit_parser::{Docs, Function, FunctionKind, Resolve, Type, TypeDef, TypeDefKind, TypeOwner, UnresolvedPackageGroup, WorldItem};

use crate::Error;
use crate::scaffold::{kind_name, version, wit_of};

/// A kind in one version of its contract. As text `metric`, which means the newest, or `metric@0.1.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contract {
    /// The kind.
    pub kind: Kind,
    /// One of [`Kind::versions`].
    pub version: &'static str,
}

impl Contract {
    /// A kind's newest contract.
    pub fn newest(kind: Kind) -> Self {
        Self { kind, version: kind.versions().last().copied().unwrap_or(version(kind)) }
    }

    /// All contracts that this host knows.
    pub fn all() -> impl Iterator<Item = Self> {
        Kind::ALL.into_iter().flat_map(|kind| kind.versions().iter().map(move |version| Self { kind, version }))
    }

    /// The name of its page in the book, without `.md`: `metric` for the newest, `metric-0.1.0` for others.
    pub fn page(self) -> String {
        let name = kind_name(self.kind);
        if self == Self::newest(self.kind) { name.to_owned() } else { format!("{name}-{}", self.version) }
    }
}

impl FromStr for Contract {
    type Err = Error;

    /// # Errors
    /// No such kind, or not in this version.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (kind, wanted) = text.split_once('@').map_or((text, None), |(kind, version)| (kind, Some(version)));
        let kind: Kind = kind.parse().map_err(|e: trainer_plugin_host::UnknownKind| Error::Argument(e.to_string()))?;
        let Some(wanted) = wanted else { return Ok(Self::newest(kind)) };
        let Some(version) = kind.versions().iter().find(|v| **v == wanted) else {
            let known = kind.versions().join(", ");
            return Err(Error::Argument(format!("there is no {kind} {wanted}; this program knows {known}")));
        };
        Ok(Self { kind, version })
    }
}

/// A contract as Markdown: the kind's functions and types, and those that it shares with other kinds.
///
/// # Errors
/// If the embedded WIT cannot be read, which a test rules out.
pub fn markdown(contract: Contract) -> Result<String, Error> {
    let kind = contract.kind;
    let resolve = resolve(contract)?;
    let mut out = format!("# Kind `{}`\n", kind_name(kind));
    push_versions(&mut out, contract);
    // The kind's own package first, then what it imports: shared types, the log, requests.
    let wanted = kind.interface().split_once('/').map_or("", |(package, _)| package);
    let name = |p: &wit_parser::Package| format!("{}:{}", p.name.namespace, p.name.name);
    let mut packages: Vec<_> = resolve.packages.iter().map(|(_, p)| p).filter(|p| name(p) != "trainer:project").collect();
    packages.sort_by_key(|p| (name(p) != wanted, name(p)));
    for package in packages {
        let version = package.name.version.as_ref().map(|v| format!("@{v}")).unwrap_or_default();
        for (interface_name, id) in &package.interfaces {
            let interface = &resolve.interfaces[*id];
            let _ = writeln!(out, "\n## `{}/{interface_name}{version}`\n", name(package));
            if interface_name.as_str() == kind.interface().split('/').nth(1).unwrap_or_default() {
                push_docs(&mut out, &package.docs, "");
            }
            push_docs(&mut out, &interface.docs, "");
            for function in interface.functions.values() {
                push_function(&mut out, &resolve, function);
            }
            for (type_name, id) in &interface.types {
                let ty = &resolve.types[*id];
                // What is only taken over from elsewhere is explained there.
                if !matches!(ty.kind, TypeDefKind::Type(Type::Id(_))) {
                    push_type(&mut out, &resolve, type_name, ty);
                }
            }
        }
    }
    Ok(out)
}

/// Which version this is, where there are several.
fn push_versions(out: &mut String, contract: Contract) {
    let (kind, name) = (contract.kind, kind_name(contract.kind));
    if kind.versions().len() < 2 {
        return;
    }
    let newest = if contract == Contract::newest(kind) { ", the newest" } else { "" };
    let others: Vec<String> =
        kind.versions().iter().filter(|v| **v != contract.version).map(|v| format!("{v} (`trainer plugin doc {name}@{v}`)")).collect();
    let (others, begun) = (others.join(", "), version(kind));
    let _ =
        writeln!(out, "\nVersion {}{newest}. Plugins of {others} are run too. `trainer plugin new` begins with {begun}.", contract.version);
}

fn resolve(Contract { kind, version }: Contract) -> Result<Resolve, Error> {
    let unread = |e: &dyn std::fmt::Display| Error::Argument(format!("the embedded contract of {kind} cannot be read: {e}"));
    let mut resolve = Resolve::default();
    let mut groups = Vec::new();
    for (path, bytes) in wit_of(kind, version) {
        let text = String::from_utf8(bytes).map_err(|e| unread(&e))?;
        groups.push(UnresolvedPackageGroup::parse(&path, &text).map_err(|e| unread(&format!("{e:?}")))?);
    }
    // The world comes first in the list and depends on the others; of those, the kind depends on the shared types and the log.
    let main = groups.remove(0);
    resolve.push_groups(main, groups).map_err(|e| unread(&format!("{e:#}")))?;
    debug_assert!(resolve.worlds.iter().any(|(_, w)| w.exports.values().any(|i| matches!(i, WorldItem::Interface { .. }))));
    Ok(resolve)
}

fn push_docs(out: &mut String, docs: &Docs, indent: &str) {
    let Some(text) = docs.contents.as_deref() else { return };
    for line in text.trim().lines() {
        let _ = writeln!(out, "{indent}{}", line.trim_end());
    }
    if indent.is_empty() {
        out.push('\n');
    }
}

fn push_function(out: &mut String, resolve: &Resolve, function: &Function) {
    let (form, hidden) = match function.kind {
        FunctionKind::Method(_) => ("method ", 1),
        FunctionKind::Static(_) => ("static ", 0),
        FunctionKind::Constructor(_) => ("constructor ", 0),
        _ => ("", 0),
    };
    let name = function.name.split_once(']').map_or(function.name.as_str(), |(_, name)| name);
    let params = function.params.iter().skip(hidden).map(|p| format!("{}: {}", p.name, type_name(resolve, &p.ty)));
    let result = function.result.as_ref().map(|ty| format!(" -> {}", type_name(resolve, ty))).unwrap_or_default();
    let _ = writeln!(out, "### {form}`{name}({}){result}`\n", params.collect::<Vec<_>>().join(", "));
    push_docs(out, &function.docs, "");
}

fn push_type(out: &mut String, resolve: &Resolve, name: &str, ty: &TypeDef) {
    let mut rows: Vec<(String, &Docs)> = Vec::new();
    let form = match &ty.kind {
        TypeDefKind::Record(record) => {
            rows.extend(record.fields.iter().map(|f| (format!("`{}: {}`", f.name, type_name(resolve, &f.ty)), &f.docs)));
            "record"
        }
        TypeDefKind::Variant(variant) => {
            let case = |ty: &Option<Type>| ty.as_ref().map(|ty| format!("({})", type_name(resolve, ty))).unwrap_or_default();
            rows.extend(variant.cases.iter().map(|c| (format!("`{}{}`", c.name, case(&c.ty)), &c.docs)));
            "variant"
        }
        TypeDefKind::Enum(cases) => {
            rows.extend(cases.cases.iter().map(|c| (format!("`{}`", c.name), &c.docs)));
            "enum"
        }
        TypeDefKind::Resource => "resource",
        _ => "type",
    };
    let alias = match &ty.kind {
        TypeDefKind::Type(ty) => format!(" = {}", type_name(resolve, ty)),
        _ => String::new(),
    };
    let _ = writeln!(out, "### {form} `{name}{alias}`\n");
    push_docs(out, &ty.docs, "");
    for (row, docs) in &rows {
        let text = docs.contents.as_deref().map(|t| t.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default();
        let _ = writeln!(out, "- {row}{}{text}", if text.is_empty() { "" } else { " - " });
    }
    if !rows.is_empty() {
        out.push('\n');
    }
}

fn type_name(resolve: &Resolve, ty: &Type) -> String {
    match ty {
        Type::Bool => "bool".to_owned(),
        Type::U8 => "u8".to_owned(),
        Type::U16 => "u16".to_owned(),
        Type::U32 => "u32".to_owned(),
        Type::U64 => "u64".to_owned(),
        Type::S8 => "s8".to_owned(),
        Type::S16 => "s16".to_owned(),
        Type::S32 => "s32".to_owned(),
        Type::S64 => "s64".to_owned(),
        Type::F32 => "f32".to_owned(),
        Type::F64 => "f64".to_owned(),
        Type::Char => "char".to_owned(),
        Type::String => "string".to_owned(),
        Type::ErrorContext => "error-context".to_owned(),
        Type::Id(id) => {
            let def = &resolve.types[*id];
            if let (Some(name), TypeOwner::Interface(_)) = (&def.name, def.owner) {
                return name.clone();
            }
            let inner = |ty: &Type| type_name(resolve, ty);
            match &def.kind {
                TypeDefKind::List(ty) => format!("list<{}>", inner(ty)),
                TypeDefKind::Option(ty) => format!("option<{}>", inner(ty)),
                TypeDefKind::Result(r) => {
                    let part = |ty: &Option<Type>| ty.as_ref().map_or_else(|| "_".to_owned(), inner);
                    format!("result<{}, {}>", part(&r.ok), part(&r.err))
                }
                TypeDefKind::Tuple(t) => format!("tuple<{}>", t.types.iter().map(inner).collect::<Vec<_>>().join(", ")),
                TypeDefKind::Handle(wit_parser::Handle::Own(id) | wit_parser::Handle::Borrow(id)) => {
                    resolve.types[*id].name.clone().unwrap_or_default()
                }
                TypeDefKind::Type(ty) => inner(ty),
                other => other.as_str().to_owned(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_contract() {
        for contract in Contract::all() {
            let text = markdown(contract).unwrap();
            assert!(text.contains(&format!("## `{}@{}`", contract.kind.interface(), contract.version)), "{text}");
            assert!(text.contains("## `trainer:host/log@0.1.0`"));
            // Outside of code a type's angle brackets would be HTML.
            let outside: String = text.split('`').step_by(2).collect();
            assert!(!outside.contains('<'), "{outside}");
        }
        let formatter = markdown(Contract::newest(Kind::DatasetFormatter)).unwrap();
        assert!(formatter.contains("### `format(rows: list<json>) -> list<outcome>`"), "{formatter}");
        assert!(formatter.contains("- `skip(string)` - The row is fine but not wanted."), "{formatter}");
    }

    #[test]
    fn a_contract_is_chosen_by_its_version() {
        let of = |text: &str| text.parse::<Contract>().map_err(|e| e.to_string());
        assert_eq!(of("metric").unwrap(), Contract { kind: Kind::EvalMetric, version: "0.2.0" });
        assert_eq!(of("eval-metric@0.1.0").unwrap(), Contract { kind: Kind::EvalMetric, version: "0.1.0" });
        assert_eq!(of("formatter").unwrap().version, "0.1.0");
        assert_eq!(of("metric@0.3.0").unwrap_err(), "there is no eval-metric 0.3.0; this program knows 0.1.0, 0.2.0");
        assert!(of("sorter").unwrap_err().contains("`sorter` is no plugin kind"));
        let pages: Vec<String> = Contract::all().map(Contract::page).collect();
        assert_eq!(pages, ["formatter", "template", "mixing", "tool", "metric-0.1.0", "metric"]);
    }
}
