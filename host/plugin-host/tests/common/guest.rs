//! Guests of any kind and version, made of the WIT: every export answers with zeros, but for those to which a test gives another body.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fmt::Write;

use trainer_plugin_host::Kind;
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::abi::{AbiVariant, WasmType};
use wit_parser::{Function, FunctionKind, InterfaceId, Resolve, WorldId, WorldItem};

use super::common::{manifest, root};

/// Where 4 KiB of zeros lie: no error, empty lists, none.
const ZEROS: u32 = 4096;
/// Where 4 KiB of ones lie: cases that there are not, and lists beyond the memory.
const ONES: u32 = 8192;
/// Where the data begin.
const DATA: u32 = 16384;

/// What an export does wrong, in any kind.
pub const MISDEEDS: [(&str, &str); 7] = [
    ("traps", "unreachable"),
    ("spins", "(loop $forever (br $forever)) unreachable"),
    ("recurses", "(drop (call $recurse (i32.const 0))) unreachable"),
    ("allocates", "(loop $grow (drop (memory.grow (i32.const 16))) (br $grow)) unreachable"),
    ("grows a table", "(loop $grow (drop (table.grow $table (ref.null func) (i32.const 5000))) (br $grow)) unreachable"),
    ("reads beyond its memory", "(drop (i32.load (i32.const -4))) unreachable"),
    ("divides by zero", "(drop (i32.div_u (i32.const 1) (i32.const 0))) unreachable"),
];

pub struct Guest {
    resolve: Resolve,
    world: WorldId,
    bodies: BTreeMap<String, String>,
    data: Vec<u8>,
    globals: String,
    all_imports: bool,
    manifest: String,
}

impl Guest {
    pub fn new(kind: Kind, version: &str) -> Self {
        Self::with(kind, version, "", &[])
    }

    /// A world that has more in it: WIT packages and what of them is imported.
    pub fn with(kind: Kind, version: &str, packages: &str, imports: &[String]) -> Self {
        let mut resolve = Resolve::default();
        for name in ["host", "conversation"] {
            resolve.push_path(root().join("wit").join(name).join("0.1.0")).unwrap();
        }
        resolve.push_path(root().join("wit").join(kind.name()).join(version)).unwrap();
        let imports: String = imports.iter().map(|i| format!("import {i};\n")).collect();
        let text = format!(
            "package test:guest@0.0.0;\nworld guest {{ include trainer:{}/plugin@{version};\n{imports} }}\n{packages}",
            kind.name()
        );
        let package = resolve.push_str("guest.wit", &text).unwrap();
        let world = resolve.select_world(&[package], Some("guest")).unwrap();
        let deterministic = kind != Kind::ToolExecutor;
        let manifest = format!(r#"{{"name": "rogue", "version": "1.2.3", "deterministic": {deterministic}}}"#);
        Self { resolve, world, bodies: BTreeMap::new(), data: Vec::new(), globals: String::new(), all_imports: false, manifest }
    }

    pub fn manifest(mut self, json: &str) -> Self {
        json.clone_into(&mut self.manifest);
        self
    }

    /// Gives an export, such as `format` or `mixer.next`, a body in the text form.
    pub fn body(mut self, export: &str, body: &str) -> Self {
        assert!(self.exports().iter().any(|e| e == export), "{export} is not among {:?}", self.exports());
        self.bodies.insert(export.to_owned(), body.to_owned());
        self
    }

    /// Lets an export return these bytes, as they lie in memory.
    pub fn answers(mut self, export: &str, bytes: &[u8]) -> Self {
        let at = self.data(bytes);
        self.body(export, &format!("(i32.const {at})"))
    }

    /// Lets an export return cases that there are not and lists beyond the memory.
    pub fn answers_ones(self, export: &str) -> Self {
        self.body(export, &format!("(i32.const {ONES})"))
    }

    /// Adds module fields.
    pub fn field(mut self, text: &str) -> Self {
        self.globals.push_str(text);
        self
    }

    /// Imports every function of every interface that its world imports.
    pub fn import_all(mut self) -> Self {
        self.all_imports = true;
        self
    }

    /// Puts bytes into the memory and tells where.
    pub fn data(&mut self, bytes: &[u8]) -> u32 {
        self.data.resize(self.data.len().next_multiple_of(8), 0);
        let at = DATA + u32::try_from(self.data.len()).unwrap();
        self.data.extend_from_slice(bytes);
        at
    }

    /// A text and its length as they lie in memory.
    pub fn text(&mut self, text: &str) -> Vec<u8> {
        let at = self.data(text.as_bytes());
        words(&[at, u32::try_from(text.len()).unwrap()])
    }

    /// A list and its length as they lie in memory.
    pub fn list(&mut self, items: &[Vec<u8>]) -> Vec<u8> {
        let at = self.data(&items.concat());
        words(&[at, u32::try_from(items.len()).unwrap()])
    }

    /// The interfaces that it exports, each with its name and functions.
    fn interfaces(&self) -> impl Iterator<Item = (String, InterfaceId)> {
        let world = &self.resolve.worlds[self.world];
        world.exports.values().filter_map(|item| match item {
            WorldItem::Interface { id, .. } => Some((self.resolve.id_of(*id).unwrap(), *id)),
            _ => None,
        })
    }

    fn functions(&self) -> Vec<(String, &Function)> {
        self.interfaces().flat_map(|(name, id)| self.resolve.interfaces[id].functions.values().map(move |f| (name.clone(), f))).collect()
    }

    /// The exports' names, without their interface.
    pub fn exports(&self) -> Vec<String> {
        self.functions().iter().map(|(_, f)| short(f)).collect()
    }

    /// The component.
    pub fn build(&self) -> Vec<u8> {
        let mut text = format!("(module {}\n", manifest(&self.manifest));
        for (name, id) in self.interfaces() {
            for (type_name, ty) in &self.resolve.interfaces[id].types {
                if matches!(self.resolve.types[*ty].kind, wit_parser::TypeDefKind::Resource) {
                    writeln!(
                        text,
                        "(import \"[export]{name}\" \"[resource-new]{type_name}\" (func $new-{type_name} (param i32) (result i32)))"
                    )
                    .unwrap();
                }
            }
        }
        let types = |all: &[WasmType]| all.iter().map(|t| format!(" {}", core(*t))).collect::<String>();
        for item in self.resolve.worlds[self.world].imports.values().filter(|_| self.all_imports) {
            let WorldItem::Interface { id, .. } = item else { continue };
            let name = self.resolve.id_of(*id).unwrap();
            for function in self.resolve.interfaces[*id].functions.values() {
                let signature = self.resolve.wasm_signature(AbiVariant::GuestImport, function);
                let (params, results) = (types(&signature.params), types(&signature.results));
                writeln!(text, "(import {name:?} {:?} (func (param{params}) (result{results})))", function.name).unwrap();
            }
        }
        // Imports come first in a module; what a test adds may begin with some.
        text.push_str(&self.globals);
        let pages = (DATA as usize + self.data.len()).div_ceil(65536).max(1) + 1;
        let escape = |bytes: &[u8]| bytes.iter().fold(String::new(), |out, b| out + &format!("\\{b:02x}"));
        write!(
            text,
            r#"
(memory (export "memory") {pages})
(table $table 1 funcref)
(global $heap (mut i32) (i32.const {heap}))
(data (i32.const {ONES}) "{ones}")
(data (i32.const {DATA}) "{data}")
(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (local $p i32)
  (local.set $p (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
  (global.set $heap (i32.add (local.get $p) (local.get 3)))
  (block $enough
    (loop $more
      (br_if $enough (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
      (drop (memory.grow (i32.const 1)))
      (br $more)))
  (local.get $p))
(func $recurse (param i32) (result i32) (i32.add (i32.const 1) (call $recurse (i32.add (local.get 0) (i32.const 1)))))
"#,
            heap = (pages - 1) * 65536,
            ones = escape(&[0xff; 4096]),
            data = escape(&self.data),
        )
        .unwrap();
        for (interface, function) in self.functions() {
            let signature = self.resolve.wasm_signature(AbiVariant::GuestExport, function);
            let name = function.legacy_core_export_name(Some(&interface));
            let body = self.bodies.get(&short(function)).cloned().unwrap_or_else(|| harmless(function, &signature.results));
            writeln!(text, "(func (export {name:?}) (param{}) (result{}) {body})", types(&signature.params), types(&signature.results))
                .unwrap();
        }
        text.push(')');
        let mut module = wat::parse_str(&text).unwrap_or_else(|e| panic!("{e}"));
        wit_component::embed_component_metadata(&mut module, &self.resolve, self.world, StringEncoding::UTF8).unwrap();
        ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
    }
}

/// 32-bit numbers as they lie in memory.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn short(function: &Function) -> String {
    let name = function.name.as_str();
    name.split_once(']').map_or(name, |(_, name)| name).to_owned()
}

fn core(ty: WasmType) -> &'static str {
    match ty {
        WasmType::I64 | WasmType::PointerOrI64 => "i64",
        WasmType::F32 => "f32",
        WasmType::F64 => "f64",
        _ => "i32",
    }
}

/// Zeros, or a resource where one is wanted.
fn harmless(function: &Function, results: &[WasmType]) -> String {
    match &function.kind {
        FunctionKind::Constructor(_) => format!("(call $new-{} (i32.const 1))", short(function)),
        FunctionKind::Static(_) => {
            let name = short(function);
            let resource = name.split('.').next().unwrap();
            format!("(i32.store (i32.const 68) (call $new-{resource} (i32.const 1))) (i32.const 64)")
        }
        _ => match results {
            [] => String::new(),
            [WasmType::I32 | WasmType::Pointer] => format!("(i32.const {ZEROS})"),
            other => panic!("{}: {other:?}", function.name),
        },
    }
}
