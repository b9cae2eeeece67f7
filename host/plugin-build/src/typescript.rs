//! Types of the contract for editors and TypeScript, as componentize-qjs passes values: records are objects with keys in camel case, an option
//! is the value or null, cases of a variant are objects with `tag` and `val`, and an error is thrown.

use std::fmt::Write as _;

use wit_parser::{Docs, Function, FunctionKind, Handle, InterfaceId, Resolve, Type, TypeDefKind, TypeId, WorldId, WorldItem};

/// The declarations of a world's types and of what its plugin exports.
pub(crate) fn declarations(resolve: &Resolve, world: WorldId) -> String {
    let mut out = String::from("// Made from the contract in wit/. DO NOT EDIT!\n");
    let world = &resolve.worlds[world];
    for (exported, items) in [(false, &world.imports), (true, &world.exports)] {
        for item in items.values() {
            // The log is a module of its own: see trainer_host.d.ts.
            if let WorldItem::Interface { id, .. } = item
                && (exported || resolve.interfaces[*id].functions.is_empty())
            {
                interface(&mut out, resolve, *id, exported);
            }
        }
    }
    out
}

fn interface(out: &mut String, resolve: &Resolve, id: InterfaceId, exported: bool) {
    let interface = &resolve.interfaces[id];
    for (name, ty) in &interface.types {
        definition(out, resolve, name, *ty, interface.functions.values());
    }
    if exported {
        let name = interface.name.as_deref().unwrap_or_default();
        comment(out, "", &interface.docs);
        let _ = writeln!(out, "export interface {} {{", upper(name));
        for function in interface.functions.values().filter(|f| matches!(f.kind, FunctionKind::Freestanding)) {
            comment(out, "  ", &function.docs);
            let _ = writeln!(out, "  {};", signature(resolve, &lower(&function.name), function));
        }
        for (name, ty) in &interface.types {
            if matches!(resolve.types[*ty].kind, TypeDefKind::Resource) {
                let _ = writeln!(out, "  {0}: {0}Class;", upper(name));
            }
        }
        out.push_str("}\n");
    }
}

fn definition<'a>(out: &mut String, resolve: &Resolve, name: &str, id: TypeId, functions: impl Iterator<Item = &'a Function>) {
    let ty = &resolve.types[id];
    let name = upper(name);
    // What another interface defines is written there.
    if let TypeDefKind::Type(Type::Id(other)) = &ty.kind
        && resolve.types[*other].owner != ty.owner
    {
        return;
    }
    out.push('\n');
    comment(out, "", &ty.docs);
    let _ = match &ty.kind {
        TypeDefKind::Record(record) => {
            let _ = writeln!(out, "export interface {name} {{");
            for field in &record.fields {
                comment(out, "  ", &field.docs);
                let _ = writeln!(out, "  {}: {};", lower(&field.name), named(resolve, &field.ty));
            }
            writeln!(out, "}}")
        }
        TypeDefKind::Variant(variant) => {
            let _ = writeln!(out, "export type {name} =");
            for case in &variant.cases {
                comment(out, "  ", &case.docs);
                let value = case.ty.as_ref().map(|ty| format!("; val: {}", named(resolve, ty))).unwrap_or_default();
                let _ = writeln!(out, "  | {{ tag: \"{}\"{value} }}", case.name);
            }
            writeln!(out, "  ;")
        }
        TypeDefKind::Enum(cases) => {
            let cases: Vec<String> = cases.cases.iter().map(|case| format!("\"{}\"", case.name)).collect();
            writeln!(out, "export type {name} = {};", cases.join(" | "))
        }
        TypeDefKind::Resource => {
            let of: Vec<&Function> = functions.filter(|f| f.kind.resource() == Some(id)).collect();
            let (methods, statics): (Vec<&Function>, Vec<&Function>) =
                of.into_iter().partition(|f| matches!(f.kind, FunctionKind::Method(_)));
            let _ = writeln!(out, "export interface {name} {{");
            for function in methods {
                comment(out, "  ", &function.docs);
                let _ = writeln!(out, "  {};", signature(resolve, &lower(function.item_name()), function));
            }
            let _ = writeln!(out, "}}\n\nexport interface {name}Class {{");
            for function in statics {
                comment(out, "  ", &function.docs);
                let call = match function.kind {
                    FunctionKind::Constructor(_) => "new ".to_owned(),
                    _ => lower(function.item_name()),
                };
                let _ = writeln!(out, "  {};", signature(resolve, &call, function));
            }
            writeln!(out, "}}")
        }
        TypeDefKind::Type(ty) => writeln!(out, "export type {name} = {};", named(resolve, ty)),
        _ => writeln!(out, "export type {name} = {};", shape(resolve, id)),
    };
}

fn signature(resolve: &Resolve, name: &str, function: &Function) -> String {
    // A method's first parameter is the object itself.
    let own = usize::from(matches!(function.kind, FunctionKind::Method(_)));
    let params: Vec<String> = function.params.iter().skip(own).map(|p| format!("{}: {}", lower(&p.name), named(resolve, &p.ty))).collect();
    let result = match &function.result {
        None => "void".to_owned(),
        // The error of a function's own result is thrown.
        Some(Type::Id(id)) if matches!(resolve.types[*id].kind, TypeDefKind::Result(_)) => match &resolve.types[*id].kind {
            TypeDefKind::Result(result) => result.ok.as_ref().map_or("void".to_owned(), |ty| named(resolve, ty)),
            _ => String::new(),
        },
        Some(ty) => named(resolve, ty),
    };
    format!("{name}({}): {result}", params.join(", "))
}

fn named(resolve: &Resolve, ty: &Type) -> String {
    match ty {
        Type::Bool => "boolean".to_owned(),
        Type::String | Type::Char => "string".to_owned(),
        Type::Id(id) => match &resolve.types[*id].name {
            Some(name) => upper(name),
            None => shape(resolve, *id),
        },
        _ => "number".to_owned(),
    }
}

fn shape(resolve: &Resolve, id: TypeId) -> String {
    match &resolve.types[id].kind {
        TypeDefKind::List(Type::U8) => "Uint8Array".to_owned(),
        TypeDefKind::List(ty) => match named(resolve, ty) {
            simple if simple.chars().all(char::is_alphanumeric) => format!("{simple}[]"),
            other => format!("({other})[]"),
        },
        TypeDefKind::Option(ty) => format!("{} | null", named(resolve, ty)),
        TypeDefKind::Tuple(tuple) => {
            let types: Vec<String> = tuple.types.iter().map(|ty| named(resolve, ty)).collect();
            format!("[{}]", types.join(", "))
        }
        TypeDefKind::Result(result) => {
            let value = |ty: &Option<Type>| ty.as_ref().map(|ty| format!("; val: {}", named(resolve, ty))).unwrap_or_default();
            format!("{{ tag: \"ok\"{} }} | {{ tag: \"err\"{} }}", value(&result.ok), value(&result.err))
        }
        TypeDefKind::Handle(Handle::Own(id) | Handle::Borrow(id)) => upper(resolve.types[*id].name.as_deref().unwrap_or_default()),
        TypeDefKind::Type(ty) => named(resolve, ty),
        _ => "unknown".to_owned(),
    }
}

fn comment(out: &mut String, indent: &str, docs: &Docs) {
    let Some(text) = docs.contents.as_deref().map(str::trim).filter(|text| !text.is_empty()) else { return };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let _ = match lines.as_slice() {
        [line] => writeln!(out, "{indent}/** {line} */"),
        lines => writeln!(out, "{indent}/**\n{indent} * {}\n{indent} */", lines.join(&format!("\n{indent} * "))),
    };
}

fn upper(name: &str) -> String {
    name.split('-')
        .map(|word| {
            let mut chars = word.chars();
            chars.next().map(|c| c.to_ascii_uppercase().to_string() + chars.as_str()).unwrap_or_default()
        })
        .collect()
}

fn lower(name: &str) -> String {
    let upper = upper(name);
    let mut chars = upper.chars();
    chars.next().map(|c| c.to_ascii_lowercase().to_string() + chars.as_str()).unwrap_or_default()
}
