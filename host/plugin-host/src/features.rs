//! The features of WebAssembly, each on or off by its own decision.

use wasmparser::WasmFeatures;

/// The WebAssembly features that plugins may use; all others are off. Those are what today's toolchains for components emit. SIMD is
/// deterministic (relaxed SIMD is not), and threads, 64-bit memories, garbage collection, exceptions and everything asynchronous only
/// widen what has to be trusted.
pub(crate) fn features() -> WasmFeatures {
    WasmFeatures::MUTABLE_GLOBAL
        | WasmFeatures::SATURATING_FLOAT_TO_INT
        | WasmFeatures::SIGN_EXTENSION
        | WasmFeatures::REFERENCE_TYPES
        | WasmFeatures::CALL_INDIRECT_OVERLONG
        | WasmFeatures::MULTI_VALUE
        | WasmFeatures::BULK_MEMORY
        | WasmFeatures::BULK_MEMORY_OPT
        | WasmFeatures::SIMD
        | WasmFeatures::EXTENDED_CONST
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::MULTI_MEMORY
        | WasmFeatures::FLOATS
        | WasmFeatures::COMPONENT_MODEL
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Layout, on_demand};
    use crate::inspect::validate;

    #[test]
    fn the_engines_have_exactly_these() {
        assert_eq!(on_demand(Layout::Compact, 1 << 19).unwrap().get_wasm_features(), features());
    }

    /// A component around a module.
    fn module(text: &str) -> String {
        format!("(component (core module {text}))")
    }

    /// A component that uses a feature which is off, with words of the refusal; none where a feature has nothing of its own to write down, with the
    /// reason.
    fn use_of(feature: WasmFeatures) -> Result<(String, &'static str), &'static str> {
        Ok(match feature {
            WasmFeatures::THREADS => (module("(memory 1 1 shared)"), "threads must be enabled for shared memories"),
            WasmFeatures::RELAXED_SIMD => (
                module("(func (param v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 0)))"),
                "relaxed SIMD support is not enabled",
            ),
            WasmFeatures::SHARED_EVERYTHING_THREADS => (module("(global (shared mut i32) (i32.const 0))"), "shared-everything-threads"),
            WasmFeatures::EXCEPTIONS => (module("(tag)"), "exceptions proposal not enabled"),
            WasmFeatures::LEGACY_EXCEPTIONS => return Err("the text form no longer writes them"),
            WasmFeatures::MEMORY64 => (module("(memory i64 1)"), "memory64 must be enabled for 64-bit memories"),
            WasmFeatures::FUNCTION_REFERENCES => {
                (module("(type $f (func)) (func (param (ref null $f)))"), "function references required for index reference types")
            }
            WasmFeatures::GC => (module("(type (struct (field i32)))"), "not supported without the gc feature"),
            WasmFeatures::GC_TYPES => (module("(table 1 externref)"), "gc types are disallowed"),
            WasmFeatures::MEMORY_CONTROL => (module("(memory 1) (func (memory.discard (i32.const 0) (i32.const 0)))"), "memory control"),
            WasmFeatures::CUSTOM_PAGE_SIZES => (module("(memory 1 (pagesize 1))"), "custom page sizes proposal must be enabled"),
            WasmFeatures::STACK_SWITCHING => (module("(type $f (func)) (type (cont $f))"), "stack switching"),
            WasmFeatures::WIDE_ARITHMETIC => (
                module("(func (param i64) (result i64 i64) (i64.add128 (local.get 0) (local.get 0) (local.get 0) (local.get 0)))"),
                "wide arithmetic",
            ),
            WasmFeatures::CUSTOM_DESCRIPTORS => (
                module("(rec (type $a (descriptor $b) (struct)) (type $b (describes $a) (struct)))"),
                "rec group usage requires `gc` proposal",
            ),
            WasmFeatures::COMPACT_IMPORTS => return Err("it is another encoding of imports, which the text form does not write"),
            WasmFeatures::CM_VALUES => ("(component (import \"v\" (value string)))".to_owned(), "`value`s is not enabled"),
            WasmFeatures::CM_NESTED_NAMES => return Err("the text form knows no such names"),
            WasmFeatures::CM_ASYNC => ("(component (type (stream u8)))".to_owned(), "`stream` requires the component model async feature"),
            WasmFeatures::CM_ASYNC_STACKFUL => return Err("it is an option of what needs async, and is refused with it"),
            WasmFeatures::CM_MORE_ASYNC_BUILTINS => return Err("it is an option of what needs async, and is refused with it"),
            WasmFeatures::CM_THREADING => {
                ("(component (core func (canon thread.index)))".to_owned(), "requires the component model threading feature")
            }
            WasmFeatures::CM_ERROR_CONTEXT => {
                ("(component (type error-context))".to_owned(), "requires the component model error-context feature")
            }
            WasmFeatures::CM_FIXED_LENGTH_LISTS => ("(component (type (list u8 4)))".to_owned(), "ixed-length list"),
            WasmFeatures::CM_GC => (
                "(component (import \"f\" (func $f (param \"a\" (list u8)))) (core func (canon lower (func $f) gc)))".to_owned(),
                "requires the `cm-gc` feature",
            ),
            WasmFeatures::CM_MAP => ("(component (type (map string u8)))".to_owned(), "map"),
            WasmFeatures::CM64 => ("(component (type (resource (rep i64))))".to_owned(), "require the `cm64` feature"),
            WasmFeatures::CM_IMPLEMENTS => return Err("it is an annotation of names, which the text form does not write"),
            WasmFeatures::CM_CANON_NAMES => return Err("it is about names of lowered functions only"),
            other => panic!("{other:?} is new in the validator: decide whether plugins may use it"),
        })
    }

    #[test]
    fn every_other_feature_is_refused_with_its_name() {
        let off = WasmFeatures::all() - features();
        assert!(off.contains(WasmFeatures::THREADS | WasmFeatures::MEMORY64 | WasmFeatures::GC | WasmFeatures::CM_ASYNC));
        let (mut refused, mut others) = (0, String::new());
        for feature in off.iter() {
            let Ok((text, words)) = use_of(feature) else { continue };
            let bytes = wat::parse_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            let error = validate("p.wasm", &bytes).expect_err(&text).to_string();
            assert!(error.starts_with("plugin `p.wasm` is not a valid WebAssembly component: "), "{error}");
            if !error.contains(words) {
                others.push_str(&format!("{text}: {error}\n"));
            }
            assert!(error.len() < 400 && !error.contains('\n'), "{error}");
            refused += 1;
        }
        assert_eq!(others, "");
        assert!(refused >= 17, "{refused}");
    }

    #[test]
    fn what_is_on_is_taken() {
        for text in [
            "(memory 1) (memory 1)",
            "(func (param v128) (result v128) (i32x4.add (local.get 0) (local.get 0)))",
            "(func (result i32 i32) (i32.const 1) (i32.const 2))",
            "(func $f (return_call $f))",
            "(global i32 (i32.add (i32.const 1) (i32.const 2)))",
            "(func (param f32) (result i32) (i32.trunc_sat_f32_s (local.get 0)))",
            "(func (param i32) (result i32) (i32.extend8_s (local.get 0)))",
            "(table $a 1 funcref) (table $b 2 funcref) (func (table.copy $a $b (i32.const 0) (i32.const 0) (i32.const 1)))",
            "(memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)))",
        ] {
            validate("p.wasm", &wat::parse_str(module(text)).unwrap()).unwrap();
        }
    }
}
