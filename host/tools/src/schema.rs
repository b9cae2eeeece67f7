//! Checking newly generated arguments against the tools' schemas, each compiled once however many cases carry it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::Value;
use sha2::{Digest, Sha256};
use trainer_plugin_host::schema::{SchemaError, compile, violations};

/// Schemas that are kept; with more different ones, all are compiled anew.
const MOST: usize = 4096;
/// How many faults of a call are told.
const FAULTS: usize = 3;

type Compiled = Arc<Result<Validator, SchemaError>>;

/// Compiled schemas by digest.
#[derive(Default)]
pub(crate) struct Schemas {
    compiled: Mutex<HashMap<[u8; 32], Compiled>>,
}

/// Why arguments are not let through.
pub(crate) enum Refusal {
    /// The schema itself.
    Schema(SchemaError),
    /// What is wrong with the arguments.
    Arguments(Vec<String>),
}

impl Schemas {
    fn get(&self, schema: &Value) -> Compiled {
        let key: [u8; 32] = Sha256::digest(schema.to_string().as_bytes()).into();
        let lock = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().get(&key) {
            return found.clone();
        }
        // Compiled outside the lock: two threads may do it twice, with the same result.
        let made: Compiled = Arc::new(compile(schema));
        let mut all = lock();
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(key, made.clone());
        made
    }

    /// Checks arguments.
    pub(crate) fn check(&self, schema: &Value, arguments: &Value) -> Result<(), Refusal> {
        match self.get(schema).as_ref() {
            Err(e) => Err(Refusal::Schema(e.clone())),
            Ok(validator) => match violations(validator, arguments, FAULTS) {
                faults if faults.is_empty() => Ok(()),
                faults => Err(Refusal::Arguments(faults)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_is_compiled_once() {
        let schemas = Schemas::default();
        let schema = json!({"type": "object", "required": ["x"]});
        let first = schemas.get(&schema);
        assert!(schemas.check(&schema, &json!({"x": 1})).is_ok());
        assert!(
            matches!(schemas.check(&schema, &json!({})), Err(Refusal::Arguments(faults)) if faults == ["\"x\" is a required property"])
        );
        assert!(Arc::ptr_eq(&first, &schemas.get(&schema.clone())));
        assert!(matches!(schemas.check(&json!({"type": 3}), &json!({})), Err(Refusal::Schema(SchemaError::Invalid(_)))));
        assert_eq!(schemas.compiled.lock().unwrap().len(), 2);
    }
}
