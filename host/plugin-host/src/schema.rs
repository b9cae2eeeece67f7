//! JSON Schemas of tools: where they come from nobody is trusted, so they are bounded before they are compiled.
//!
//! A schema is data that is executed on other data. Without bounds, references that double at each step (a "schema bomb") make
//! a validator of a few hundred bytes work for years, references in a circle make it recurse for ever, and a backtracking regular expression
//! stops it on one string. So: sizes and depth are limited, references stay within the document and never form a circle, the schema with all
//! references written out is limited too, and patterns run on an engine without backtracking.

use std::collections::{BTreeMap, BTreeSet};

use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// The most bytes of a schema, written compactly.
pub const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// The deepest nesting of a schema.
pub const MAX_SCHEMA_DEPTH: usize = 32;
/// The most objects and lists of a schema once every reference is replaced by what it refers to.
pub const MAX_SCHEMA_EXPANDED: u64 = 20_000;
/// The most memory of one compiled pattern.
const PATTERN_BYTES: usize = 1 << 20;
/// How much of a message from the validator is kept.
const MESSAGE_BYTES: usize = 500;

/// Why a schema is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Too much text.
    #[error("the schema has {bytes} bytes; at most {MAX_SCHEMA_BYTES} are taken")]
    Size {
        /// Its size.
        bytes: usize,
    },
    /// Too deep, by itself or by references that follow references.
    #[error("the schema is nested {depth} deep; at most {MAX_SCHEMA_DEPTH} is taken")]
    Depth {
        /// Its depth, or one more than the limit.
        depth: usize,
    },
    /// A reference that leaves the document, or leads nowhere in it.
    #[error("the schema refers to {reference:?}; only places in the schema itself can be referred to, such as \"#/$defs/city\"")]
    Reference {
        /// The reference.
        reference: String,
    },
    /// References in a circle.
    #[error("the schema's references run in a circle, through {reference:?}")]
    Circle {
        /// One of them.
        reference: String,
    },
    /// References that multiply.
    #[error("the schema has more than {MAX_SCHEMA_EXPANDED} parts once its references are written out")]
    Expanded,
    /// No JSON Schema.
    #[error("it is no valid JSON Schema: {0}")]
    Invalid(String),
}

/// Compiles a schema within the bounds.
///
/// # Errors
/// See [`SchemaError`].
pub fn compile(schema: &Value) -> Result<Validator, SchemaError> {
    check_bounds(schema)?;
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES))
        .build(schema)
        .map_err(|e| SchemaError::Invalid(cut(&e.to_string())))
}

/// The first few things that are wrong with a value, each with its place; empty if it is valid.
pub fn violations(validator: &Validator, value: &Value, most: usize) -> Vec<String> {
    let place = |path: String| if path.is_empty() { String::new() } else { format!("at {path}: ") };
    validator.iter_errors(value).take(most).map(|e| format!("{}{}", place(e.instance_path().to_string()), cut(&e.to_string()))).collect()
}

fn cut(text: &str) -> String {
    if text.len() <= MESSAGE_BYTES { text.to_owned() } else { format!("{}…", &text[..text.floor_char_boundary(MESSAGE_BYTES)]) }
}

fn check_bounds(schema: &Value) -> Result<(), SchemaError> {
    let depth = depth(schema, 0);
    if depth > MAX_SCHEMA_DEPTH {
        return Err(SchemaError::Depth { depth });
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        return Err(SchemaError::Size { bytes });
    }
    let mut walk = Walk { root: schema, sizes: BTreeMap::new(), open: BTreeSet::new() };
    match walk.size(schema)? {
        size if size > MAX_SCHEMA_EXPANDED => Err(SchemaError::Expanded),
        _ => Ok(()),
    }
}

/// The nesting of a value, looked at no deeper than one beyond the limit.
fn depth(value: &Value, at: usize) -> usize {
    if at > MAX_SCHEMA_DEPTH {
        return at;
    }
    match value {
        Value::Array(items) => items.iter().map(|v| depth(v, at + 1)).max().unwrap_or(at + 1),
        Value::Object(members) => members.values().map(|v| depth(v, at + 1)).max().unwrap_or(at + 1),
        _ => at,
    }
}

/// Sums up a schema with its references written out; each place that is referred to is gone through once.
struct Walk<'a> {
    root: &'a Value,
    sizes: BTreeMap<String, u64>,
    open: BTreeSet<String>,
}

impl<'a> Walk<'a> {
    fn size(&mut self, value: &'a Value) -> Result<u64, SchemaError> {
        let mut size = 0u64;
        match value {
            Value::Array(items) => {
                size += 1;
                for item in items {
                    size = size.saturating_add(self.size(item)?);
                }
            }
            Value::Object(members) => {
                size += 1;
                for (key, value) in members {
                    size = size.saturating_add(match (key.as_str(), value) {
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(reference)) => self.reference(reference)?,
                        // What names a place elsewhere would make references mean something else than looked at here.
                        ("$id" | "id" | "$anchor" | "$dynamicAnchor" | "$recursiveAnchor", Value::String(name))
                            if names_a_place(key, name) =>
                        {
                            return Err(SchemaError::Reference { reference: name.clone() });
                        }
                        _ => self.size(value)?,
                    });
                }
            }
            _ => {}
        }
        Ok(size)
    }

    fn reference(&mut self, reference: &str) -> Result<u64, SchemaError> {
        if let Some(size) = self.sizes.get(reference) {
            return Ok(*size);
        }
        let nowhere = || SchemaError::Reference { reference: cut(reference) };
        let pointer = reference.strip_prefix('#').ok_or_else(nowhere)?;
        let target = self.root.pointer(pointer).ok_or_else(nowhere)?;
        if !self.open.insert(reference.to_owned()) || std::ptr::eq(target, self.root) {
            return Err(SchemaError::Circle { reference: cut(reference) });
        }
        if self.open.len() > MAX_SCHEMA_DEPTH {
            return Err(SchemaError::Depth { depth: self.open.len() });
        }
        let size = self.size(target)?;
        self.open.remove(reference);
        self.sizes.insert(reference.to_owned(), size);
        Ok(size)
    }
}

/// Whether a member gives the schema around it a name that references could use. A property may be called `id`: then its value is a schema.
fn names_a_place(key: &str, name: &str) -> bool {
    key != "id" || name.contains(['#', ':', '/'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ordinary_schemas_compile_and_say_what_is_wrong() {
        let schema = json!({
            "type": "object",
            "properties": {"loc": {"type": "string", "pattern": "^[A-Z]"}, "id": {"$ref": "#/$defs/number"}, "days": {"$ref": "#/$defs/number"}},
            "required": ["loc"],
            "$defs": {"number": {"type": "integer", "minimum": 1}}
        });
        let validator = compile(&schema).unwrap();
        assert!(violations(&validator, &json!({"loc": "Oslo", "days": 3, "id": 1}), 3).is_empty());
        let mut faults = violations(&validator, &json!({"days": 0}), 3);
        faults.sort();
        assert_eq!(faults, ["\"loc\" is a required property", "at /days: 0 is less than the minimum of 1"]);
        assert_eq!(violations(&validator, &json!({"days": 0}), 1).len(), 1);
    }

    #[test]
    fn bombs_are_refused() {
        let mut defs = serde_json::Map::new();
        for i in 0..30 {
            let next = format!("#/$defs/d{}", i + 1);
            defs.insert(format!("d{i}"), json!({"allOf": [{"$ref": next}, {"$ref": next}]}));
        }
        defs.insert("d30".into(), json!({"type": "object"}));
        let bomb = json!({"$ref": "#/$defs/d0", "$defs": defs});
        assert_eq!(compile(&bomb).unwrap_err(), SchemaError::Expanded);
        let chain: serde_json::Map<String, Value> =
            (0..900).map(|i| (format!("d{i}"), json!({"not": {"$ref": format!("#/$defs/d{}", i + 1)}}))).collect();
        let chain = json!({"$ref": "#/$defs/d0", "$defs": chain});
        assert!(matches!(compile(&chain).unwrap_err(), SchemaError::Depth { .. }));
        let deep = (0..200).fold(json!({"type": "string"}), |inner, _| json!({"items": inner}));
        assert!(matches!(compile(&deep).unwrap_err(), SchemaError::Depth { .. }));
        let wide = json!({"enum": (0..20_000).collect::<Vec<_>>()});
        assert!(matches!(compile(&wide).unwrap_err(), SchemaError::Size { .. }));
        for circle in [
            json!({"$ref": "#"}),
            json!({"properties": {"next": {"$ref": "#"}}}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/a"}}}}),
        ] {
            assert!(matches!(compile(&circle).unwrap_err(), SchemaError::Circle { .. }), "{circle}");
        }
        for elsewhere in ["https://example.com/schema.json", "file:///etc/passwd", "#/$defs/none", "other.json#/x"] {
            let error = compile(&json!({"$ref": elsewhere})).unwrap_err();
            assert_eq!(error, SchemaError::Reference { reference: elsewhere.into() });
        }
        assert!(matches!(compile(&json!({"$id": "https://example.com/a", "type": "object"})).unwrap_err(), SchemaError::Reference { .. }));
    }

    #[test]
    fn patterns_do_not_backtrack() {
        let validator = compile(&json!({"type": "string", "pattern": "^(a+)+$"})).unwrap();
        let text = format!("{}!", "a".repeat(50_000));
        let begin = std::time::Instant::now();
        assert_eq!(violations(&validator, &json!(text), 1).len(), 1);
        assert!(begin.elapsed().as_secs() < 20, "a pattern took {:?}", begin.elapsed());
        // Backreferences need backtracking.
        assert!(matches!(compile(&json!({"pattern": "(a)\\1"})).unwrap_err(), SchemaError::Invalid(_)));
        assert!(matches!(compile(&json!({"type": 7})).unwrap_err(), SchemaError::Invalid(_)));
    }
}
