//! A host for tests, and guests written in WebAssembly's text form.

#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

use trainer_plugin_host::{CompilerCommand, HostOptions, Limits, PluginHost, PluginSource, ProcessCommand, Span};
use wit_component::{ComponentEncoder, StringEncoding};
use wit_parser::Resolve;

/// The compiler's process that is built with this crate.
pub fn compiler() -> CompilerCommand {
    CompilerCommand::new(env!("CARGO_BIN_EXE_trainer-plugin-compiler"), [""; 0])
}

/// The process of isolated tools that is built with this crate.
pub fn process() -> ProcessCommand {
    ProcessCommand::new(env!("CARGO_BIN_EXE_trainer-plugin-process"), [""; 0])
}

pub fn host() -> PluginHost {
    PluginHost::new(HostOptions { worker_instances: 2, ..HostOptions::new(compiler()) }).unwrap()
}

/// Limits under which misbehaving takes little time.
pub fn tight() -> Limits {
    Limits {
        memory: "16MiB".parse().unwrap(),
        fuel_per_call: 20_000_000,
        fuel_per_row: 1_000_000,
        fuel_per_byte: 100,
        deadline: Span::seconds(30),
        returned_size: "8MiB".parse().unwrap(),
        ..Limits::default()
    }
}

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A prebuilt guest of the repository.
pub fn prebuilt(name: &str) -> PluginSource {
    let path = root().join("plugins/prebuilt").join(format!("{name}.wasm"));
    assert!(path.is_file(), "the prebuilt guest {} is missing", path.display());
    PluginSource::File(path)
}

pub fn source(bytes: Vec<u8>) -> PluginSource {
    PluginSource::Bytes { name: "test.wasm".into(), bytes }
}

/// A manifest section in the text form.
pub fn manifest(json: &str) -> String {
    format!("(@custom \"trainer:plugin\" {json:?})")
}

pub const MANIFEST: &str = r#"{"name": "rogue", "version": "1.2.3", "description": "for tests"}"#;

/// A whole component in the text form.
pub fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// Makes a component of a core module in the text form that implements a kind's world.
pub fn implement(kind: &str, module: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    let mut package = None;
    for name in ["host", "conversation", kind] {
        package = Some(resolve.push_path(root().join("wit").join(name).join("0.1.0")).unwrap().0);
    }
    let world = resolve.select_world(&[package.unwrap()], Some("plugin")).unwrap();
    let mut module = wat::parse_str(module).unwrap();
    wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// A formatter whose rows say in their first letter what it does. Otherwise every row is skipped with the reason `ok`.
pub fn rogue() -> Vec<u8> {
    implement("dataset-formatter", &rogue_module(4, ""))
}

/// As [`rogue`], with so many pages of memory from the beginning and a body for its start function.
pub fn rogue_module(pages: u32, start: &str) -> String {
    format!(
        r#"
(module
  {section}
  (import "trainer:host/log@0.1.0" "write" (func $log (param i32 i32 i32)))
  (memory (export "memory") {pages})
  (data (i32.const 1024) "ok")
  (data (i32.const 1040) "boom in the middle")
  (data (i32.const 1080) "\ff\fe")
  (global $heap (mut i32) (i32.const 65536))
  (global $calls (mut i32) (i32.const 0))
  (func $start {start})
  (start $start)
  (func $alloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $p i32)
    (local.set $p (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
    (global.set $heap (i32.add (local.get $p) (local.get 3)))
    (block $enough
      (loop $more
        (br_if $enough (i32.le_u (global.get $heap) (i32.mul (memory.size) (i32.const 65536))))
        (drop (memory.grow (i32.const 1)))
        (br $more)))
    (local.get $p))
  (func (export "trainer:dataset-formatter/formatter@0.1.0#configure") (param $p i32) (param $n i32) (result i32)
    (i32.store8 (i32.const 16) (i32.const 0))
    (i32.const 16))
  (func $recurse (param i32) (result i32)
    (i32.add (i32.const 1) (call $recurse (i32.add (local.get 0) (i32.const 1)))))
  (func $is (param $letter i32) (param $wanted i32) (result i32) (i32.eq (local.get $letter) (local.get $wanted)))
  (func $skip (param $at i32) (param $p i32) (param $n i32)
    (i32.store8 (local.get $at) (i32.const 1))
    (i32.store offset=4 (local.get $at) (local.get $p))
    (i32.store offset=8 (local.get $at) (local.get $n)))
  (func $amplify (param $count i32) (param $size i32)
    (local $p i32) (local $i i32)
    (local.set $p (call $alloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $count) (i32.const 36))))
    (loop $next
      (call $skip (i32.add (local.get $p) (i32.mul (local.get $i) (i32.const 36))) (i32.const 2048) (local.get $size))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $count))))
    (i32.store (i32.const 32) (local.get $p))
    (i32.store (i32.const 36) (local.get $count)))
  (func (export "cabi_post_trainer:dataset-formatter/formatter@0.1.0#format") (param i32)
    (global.set $heap (i32.const 65536)))
  (func (export "trainer:dataset-formatter/formatter@0.1.0#format") (param $rows i32) (param $n i32) (result i32)
    (local $i i32) (local $letter i32) (local $at i32) (local $out i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (local.set $out (call $alloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $n) (i32.const 36))))
    (i32.store (i32.const 32) (local.get $out))
    (i32.store (i32.const 36) (local.get $n))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
        (local.set $letter (i32.load8_u (i32.load (i32.add (local.get $rows) (i32.mul (local.get $i) (i32.const 8))))))
        (local.set $at (i32.add (local.get $out) (i32.mul (local.get $i) (i32.const 36))))
        (call $skip (local.get $at) (i32.const 1024) (i32.const 2))
        (if (call $is (local.get $letter) (i32.const 0x6c)) (then (loop $forever (br $forever))))                     ;; l
        (if (call $is (local.get $letter) (i32.const 0x6d)) (then (loop $grow (drop (memory.grow (i32.const 1))) (br $grow)))) ;; m
        (if (call $is (local.get $letter) (i32.const 0x72)) (then (drop (call $recurse (i32.const 0)))))              ;; r
        (if (call $is (local.get $letter) (i32.const 0x74)) (then unreachable))                                       ;; t
        (if (call $is (local.get $letter) (i32.const 0x70)) (then                                                     ;; p
          (call $log (i32.const 4) (i32.const 1040) (i32.const 18)) unreachable))
        (if (call $is (local.get $letter) (i32.const 0x61)) (then                                                     ;; a
          (call $amplify (i32.const 100000) (i32.const 60000)) (return (i32.const 32))))
        (if (call $is (local.get $letter) (i32.const 0x67)) (then                                                     ;; g
          (call $skip (local.get $at) (i32.const 0) (i32.const 0x40000000))))
        (if (call $is (local.get $letter) (i32.const 0x62)) (then                                                     ;; b
          (call $skip (local.get $at) (i32.const 2048) (i32.const 60000))))
        (if (call $is (local.get $letter) (i32.const 0x75)) (then                                                     ;; u
          (call $skip (local.get $at) (i32.const 1080) (i32.const 2))))
        (if (call $is (local.get $letter) (i32.const 0x76)) (then (i32.store8 (local.get $at) (i32.const 9))))        ;; v
        (if (call $is (local.get $letter) (i32.const 0x63)) (then                                                     ;; c
          (i32.store (i32.const 36) (i32.add (local.get $n) (i32.const 1)))))
        (if (call $is (local.get $letter) (i32.const 0x66)) (then                                                     ;; f
          (loop $flood
            (call $log (i32.const 4) (i32.const 1040) (i32.const 18))
            (global.set $heap (global.get $heap))
            (local.set $letter (i32.add (local.get $letter) (i32.const 1)))
            (br_if $flood (i32.lt_u (local.get $letter) (i32.const 50000))))))
        (if (call $is (local.get $letter) (i32.const 0x73)) (then                                                     ;; s
          (if (i32.gt_u (global.get $calls) (i32.const 1)) (then unreachable))))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br $next)))
    (i32.const 32)))
"#,
        section = manifest(MANIFEST)
    )
}
