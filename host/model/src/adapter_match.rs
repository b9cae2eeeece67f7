//! Which modules an adapter is on, by PEFT's rules (`check_target_module_exists` and `get_pattern_key` of its `tuners_utils.py`).

use crate::json::Object;
use crate::{ModelError, Result};
use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Bytes that a compiled expression may take up. Matching is linear in the name's length whatever the expression.
const COMPILED_LIMIT: usize = 1 << 20;
/// Characters of an expression.
const TEXT_LIMIT: usize = 4096;
/// Entries of a list of layers.
const LAYER_LIMIT: u64 = 1 << 16;

/// Keys of `adapter_config.json` that are read here, besides the targets.
pub(crate) const KEYS: [&str; 3] = ["exclude_modules", "layers_to_transform", "layers_pattern"];

/// Whether a pattern is a plain end of a module name, and not a regular expression.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Whether `end` is the end of `name` at a dot, as PEFT matches.
pub(crate) fn ends_with_path(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| !end.is_empty() && (rest.is_empty() || rest.ends_with('.')))
}

/// A regular expression of Python's that is equal where its text is.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    /// Compiles `frame` with the text in the place of `{}`.
    fn new(object: &Object<'_>, key: &str, text: &str, frame: &str) -> Result<Self> {
        if text.len() > TEXT_LIMIT {
            return Err(object.error(key, format!("is a regular expression of more than {TEXT_LIMIT} bytes")));
        }
        let built = RegexBuilder::new(&frame.replacen("{}", text, 1)).size_limit(COMPILED_LIMIT).dfa_size_limit(COMPILED_LIMIT).build();
        let regex = built.map_err(|e| {
            let supported =
                format!("it must be a regular expression without look-around and back-references ({})", last_line(&e.to_string()));
            ModelError::unsupported(object.file, format!("{key} {text:?}"), supported)
        })?;
        Ok(Self { text: text.to_string(), regex })
    }

    /// An expression that must match a whole name.
    fn whole(object: &Object<'_>, key: &str, text: &str) -> Result<Self> {
        Self::new(object, key, text, r"\A(?:{})\z")
    }

    /// An expression that must match a name's end at a dot.
    pub fn end(object: &Object<'_>, key: &str, text: &str) -> Result<Self> {
        Self::new(object, key, text, r"\A(?:.*\.)?(?:{})\z")
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or_default().trim_start_matches("error: ")
}

/// What a file's keys say of modules beyond lists of names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Matching {
    /// `target_modules` as a regular expression, in the place of the list.
    pub targets: Option<Pattern>,
    /// Modules that have none, whatever the targets say.
    exclude: Option<Exclude>,
    /// `layers_to_transform`: layers that have an adapter; all if it is none.
    layers: Option<Vec<u64>>,
    /// `layers_pattern`: what stands before a layer's number.
    before: Vec<Pattern>,
    /// The keys of the rank and alpha patterns that are expressions.
    pub patterns: BTreeMap<String, Pattern>,
    /// The raw values of [`KEYS`], to be written as they were.
    raw: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq)]
enum Exclude {
    Names(Vec<String>),
    Pattern(Pattern),
}

impl Matching {
    /// Reads [`KEYS`].
    pub fn read(object: &Object<'_>) -> Result<Self> {
        let mut this = Self::default();
        let key = "exclude_modules";
        this.exclude = match object.get(key) {
            None => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(Exclude::Pattern(Pattern::whole(object, key, text)?)),
            Some(_) => object.strings(key)?.filter(|list| !list.is_empty()).map(Exclude::Names),
        };
        let key = "layers_to_transform";
        let layer = |value: &Value| value.as_u64().filter(|n| *n < LAYER_LIMIT);
        let wrong = || object.error(key, "must be a layer's number or a list of them");
        this.layers = match object.get(key) {
            None => None,
            Some(Value::Array(items)) if items.is_empty() => None,
            Some(Value::Array(items)) => Some(items.iter().map(|v| layer(v).ok_or_else(wrong)).collect::<Result<_>>()?),
            Some(one) => Some(vec![layer(one).ok_or_else(wrong)?]),
        };
        let key = "layers_pattern";
        let before = match object.get(key) {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(_) => object.strings(key)?.unwrap_or_default(),
        };
        this.before = before
            .iter()
            .filter(|text| !text.is_empty())
            .map(|text| Pattern::new(object, key, text, r"\A.*\.(?:{})\.(?P<layer>\d+)\."))
            .collect::<Result<_>>()?;
        for key in KEYS {
            if let Some(value) = object.get(key) {
                this.raw.insert(key.to_string(), value.clone());
            }
        }
        Ok(this)
    }

    /// Takes `target_modules` as an expression.
    pub fn set_targets(&mut self, object: &Object<'_>, text: &str) -> Result<()> {
        if self.layers.is_some() {
            let supported = "PEFT takes layers_to_transform with a list of target_modules only";
            return Err(ModelError::unsupported(object.file, "layers_to_transform with a regular expression", supported));
        }
        self.targets = Some(Pattern::whole(object, "target_modules", text)?);
        Ok(())
    }

    /// The text of `target_modules`, if it is an expression.
    pub fn targets_text(&self) -> Option<&str> {
        self.targets.as_ref().map(|p| p.text.as_str())
    }

    /// The values of [`KEYS`] to write.
    pub fn to_json(&self) -> impl Iterator<Item = (&'static str, Value)> + '_ {
        KEYS.into_iter().map(|key| (key, self.raw.get(key).cloned().unwrap_or(json!(null))))
    }

    /// Whether a module has an adapter; `named`: it is in the list of targets.
    pub fn targets(&self, module: &str, named: bool) -> bool {
        let excluded = match &self.exclude {
            None => false,
            Some(Exclude::Names(names)) => names.iter().any(|name| ends_with_path(module, name)),
            Some(Exclude::Pattern(pattern)) => pattern.regex.is_match(module),
        };
        if excluded {
            return false;
        }
        match &self.targets {
            Some(pattern) => pattern.regex.is_match(module),
            None => named && self.layer_fits(module),
        }
    }

    fn layer_fits(&self, module: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let number = if self.before.is_empty() {
            // The number behind two names, as in model.layers.3.
            let mut parts = module.split('.').skip(2);
            parts.find_map(|part| part.parse::<u64>().ok())
        } else {
            let found = self.before.iter().find_map(|p| p.regex.captures(module));
            found.and_then(|c| c.name("layer")?.as_str().parse().ok())
        };
        number.is_some_and(|n| layers.contains(&n))
    }

    /// Whether a key of a rank or alpha pattern is for a module.
    pub fn key_fits(&self, key: &str, module: &str) -> bool {
        match self.patterns.get(key) {
            Some(pattern) => pattern.regex.is_match(module),
            None => ends_with_path(module, key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_at_dots_only() {
        assert!(ends_with_path("model.layers.1.self_attn.q_proj", "q_proj"));
        assert!(ends_with_path("model.layers.1.self_attn.q_proj", "self_attn.q_proj"));
        assert!(ends_with_path("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj"));
        assert!(!ends_with_path("model.layers.11.self_attn.q_proj", "1.self_attn.q_proj"));
        assert!(!ends_with_path("model.layers.1.self_attn.q_proj", "proj"));
        assert!(!ends_with_path("model.layers.1.self_attn.q_proj", ""));
    }

    fn matching(json: Value) -> Result<Matching> {
        let map = json.as_object().cloned().unwrap_or_default();
        let object = Object { map: &map, file: "adapter_config.json", prefix: "" };
        let mut matching = Matching::read(&object)?;
        if let Some(text) = map.get("target_modules").and_then(Value::as_str) {
            matching.set_targets(&object, text)?;
        }
        Ok(matching)
    }

    #[test]
    fn expressions_match_whole_names_as_in_python() {
        let m = matching(json!({"target_modules": r".*layers\.[02]\.self_attn\.(q|k)_proj"})).unwrap();
        for (name, found) in [
            ("model.layers.0.self_attn.q_proj", true),
            ("model.layers.2.self_attn.k_proj", true),
            ("model.layers.1.self_attn.q_proj", false),
            ("model.layers.0.self_attn.q_proj.extra", false),
            ("model.layers.0.self_attn.v_proj", false),
        ] {
            assert_eq!(m.targets(name, true), found, "{name}");
        }
        // Alternatives bind weaker than what frames them.
        assert!(!matching(json!({"target_modules": "a|b"})).unwrap().targets("model.b", true));
    }

    #[test]
    fn layers_and_exceptions_narrow_a_list() {
        let m = matching(json!({"layers_to_transform": [1, 3], "exclude_modules": ["layers.3.mlp.up_proj"]})).unwrap();
        let found = |m: &Matching| (0..4).filter(|l| m.targets(&format!("model.layers.{l}.mlp.up_proj"), true)).collect::<Vec<_>>();
        assert_eq!(found(&m), [1]);
        assert!(m.targets("model.layers.3.mlp.down_proj", true) && !m.targets("model.layers.3.mlp.down_proj", false));
        assert_eq!(found(&matching(json!({"layers_to_transform": 2, "layers_pattern": ["h", "layers"]})).unwrap()), [2]);
        assert_eq!(found(&matching(json!({"layers_to_transform": [0], "layers_pattern": "blocks"})).unwrap()), [0usize; 0]);
        assert_eq!(found(&matching(json!({"exclude_modules": r".*\.[01]\..*"})).unwrap()), [2, 3]);
    }

    #[test]
    fn what_no_expression_is_or_takes_too_much_is_refused() {
        for text in ["(", "(?<=a)b", r"(a)\1", "a{99999999}", &"x".repeat(5000)] {
            let error = matching(json!({"target_modules": text})).unwrap_err().to_string();
            assert!(error.starts_with("adapter_config.json") && error.len() < 6000, "{error}");
        }
        assert!(matching(json!({"layers_to_transform": [-1]})).is_err());
        assert!(matching(json!({"layers_to_transform": [0], "target_modules": "q.*"})).is_err());
    }
}
