//! The recipe's settings for a plugin, checked against the schema in its manifest before the plugin sees them.

use jsonschema::Validator;
use serde_json::Value;

use crate::error::PluginError;
use crate::manifest::Manifest;

/// Prepares a settings schema. References to other documents are never followed.
pub(crate) fn compile_schema(manifest: &Manifest, schema: &Value) -> Result<Validator, PluginError> {
    jsonschema::validator_for(schema).map_err(|e| PluginError::Manifest {
        plugin: manifest.name.clone(),
        reason: format!("`settings_schema` in its manifest is no valid JSON Schema, at `{}`: {e}", e.instance_path()),
    })
}

/// Checks settings and writes them as the JSON text that `configure` takes; null counts as `{}`.
pub(crate) fn check(manifest: &Manifest, settings: &Value) -> Result<String, PluginError> {
    let empty = Value::Object(serde_json::Map::new());
    let settings = if settings.is_null() { &empty } else { settings };
    let wrong = |pointer: String, message: String| PluginError::Settings {
        plugin: manifest.name.clone(),
        version: manifest.version.clone(),
        pointer,
        message,
    };
    let Some(object) = settings.as_object() else {
        return Err(wrong(String::new(), format!("settings are an object, not {settings}")));
    };
    match &manifest.settings_schema {
        Some(schema) => {
            let validator = compile_schema(manifest, schema)?;
            if let Some(error) = validator.iter_errors(settings).next() {
                return Err(wrong(error.instance_path().to_string(), error.to_string()));
            }
        }
        None if object.is_empty() => {}
        None => {
            let names = object.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            return Err(wrong(
                String::new(),
                format!("the plugin takes no settings (its manifest has no `settings_schema`), but {names} is set"),
            ));
        }
    }
    Ok(settings.to_string())
}
