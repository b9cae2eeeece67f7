//! What the recipe does to rows before a formatter sees them: which are taken, and which columns they have.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::json_text::{escape_key, first_part, raw_at};

/// A condition on one value of a row; everything that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// A column's name, or a JSON Pointer such as `/messages/0/role`.
    pub column: String,
    /// One of these texts, numbers or truth values.
    pub is: Vec<Value>,
    /// None of these; a value that is missing passes.
    pub is_not: Vec<Value>,
    /// A text that holds one of these.
    pub contains: Vec<String>,
    /// A number no smaller.
    pub min: Option<f64>,
    /// A number no larger.
    pub max: Option<f64>,
    /// A text of at least so many characters, or a list of so many items.
    pub min_length: Option<u64>,
    /// A text of at most so many characters, or a list of so many items.
    pub max_length: Option<u64>,
    /// Whether there must be a value other than null, or must be none.
    pub present: Option<bool>,
}

impl Filter {
    /// Whether a row, one checked JSON object, passes.
    fn passes(&self, row: &str) -> bool {
        let value: Option<Value> =
            raw_at(row, &self.column).and_then(|raw| serde_json::from_str(raw).ok()).filter(|v: &Value| !v.is_null());
        let number = |v: &Value| v.as_f64();
        let length = |v: &Value| match v {
            Value::String(text) => Some(text.chars().count() as u64),
            Value::Array(items) => Some(items.len() as u64),
            _ => None,
        };
        let holds = |check: &dyn Fn(&Value) -> bool| value.as_ref().is_some_and(check);
        (self.is.is_empty() || holds(&|v| self.is.iter().any(|w| same(v, w))))
            && !holds(&|v| self.is_not.iter().any(|w| same(v, w)))
            && (self.contains.is_empty() || holds(&|v| v.as_str().is_some_and(|t| self.contains.iter().any(|part| t.contains(part)))))
            && self.min.is_none_or(|min| holds(&|v| number(v).is_some_and(|n| n >= min)))
            && self.max.is_none_or(|max| holds(&|v| number(v).is_some_and(|n| n <= max)))
            && self.min_length.is_none_or(|min| holds(&|v| length(v).is_some_and(|n| n >= min)))
            && self.max_length.is_none_or(|max| holds(&|v| length(v).is_some_and(|n| n <= max)))
            && self.present.is_none_or(|wanted| value.is_some() == wanted)
    }
}

/// Equal, where numbers are equal by what they are worth.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_i64().zip(b.as_i64()), a.as_f64().zip(b.as_f64())) {
        (Some((a, b)), _) => a == b,
        (None, Some((a, b))) => a == b,
        _ => a == b,
    }
}

/// Rows kept for evaluation: those whose content's hash falls into a share of all hashes. It depends on nothing but the content, so a row
/// stays on its side when the data grow, are sorted anew or stored in another format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Holdout {
    /// From 0 to 1.
    pub share: f64,
    /// The column whose value is hashed, so that rows with the same value stay together; the whole row without it.
    pub by: Option<String>,
    /// Whether the rows that are held out are wanted, or the others.
    pub held_out: bool,
}

impl Holdout {
    fn passes(&self, row: &str) -> bool {
        let text = match &self.by {
            Some(column) => raw_at(row, column).unwrap_or("null"),
            None => row,
        };
        // In one way of writing it, whatever the white space and the order of the columns.
        let canonical = serde_json::from_str::<Value>(text).map(|mut v| {
            v.sort_all_objects();
            v.to_string()
        });
        let mut hash = Sha256::new();
        hash.update(b"trainer holdout 1\0");
        hash.update(canonical.as_deref().unwrap_or(text).as_bytes());
        let digest = hash.finalize();
        let word = digest.iter().take(8).fold(0u64, |word, byte| (word << 8) | u64::from(*byte));
        // 53 bits are what a double holds exactly.
        let at = (word >> 11) as f64 / (1u64 << 53) as f64;
        (at < self.share) == self.held_out
    }
}

/// Which rows of a source are taken, and how they look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowView {
    /// All must pass.
    pub filters: Vec<Filter>,
    /// The split between training and evaluation.
    pub holdout: Option<Holdout>,
    /// At most so many rows, the first that pass.
    pub limit: Option<u64>,
    /// What a formatter sees: each column's name for it, and the column's own (or a JSON Pointer). Without any the row as it is.
    pub columns: Vec<(String, String)>,
}

impl RowView {
    /// Whether rows must be looked at to know which are taken.
    pub(crate) fn selects(&self) -> bool {
        !self.filters.is_empty() || self.holdout.is_some()
    }

    /// Whether a row is taken, not counting the limit. A broken row is: it must be reported, not lost.
    pub(crate) fn takes(&self, row: Result<&str, ()>) -> bool {
        match row {
            Ok(row) => self.filters.iter().all(|f| f.passes(row)) && self.holdout.as_ref().is_none_or(|h| h.passes(row)),
            Err(()) => self.holdout.as_ref().is_none_or(|h| !h.held_out),
        }
    }

    /// The row as the formatter sees it. A column that is missing is left out, and the formatter says what it thinks of that.
    pub(crate) fn shape(&self, row: String) -> String {
        if self.columns.is_empty() {
            return row;
        }
        let mut out = String::with_capacity(row.len());
        for (name, column) in &self.columns {
            if let Some(raw) = raw_at(&row, column) {
                out.push(if out.is_empty() { '{' } else { ',' });
                out.push_str(&escape_key(name));
                out.push(':');
                out.push_str(raw);
            }
        }
        if out.is_empty() { "{}".to_owned() } else { out + "}" }
    }

    /// The columns of a table that are looked at, if not all of them.
    pub(crate) fn table_columns(&self) -> Option<Vec<String>> {
        let whole = self.columns.is_empty() || self.holdout.as_ref().is_some_and(|h| h.by.is_none());
        if whole {
            return None;
        }
        let by = self.holdout.iter().filter_map(|h| h.by.as_ref());
        let all = self.columns.iter().map(|(_, c)| c).chain(self.filters.iter().map(|f| &f.column)).chain(by);
        let mut names: Vec<String> = Vec::new();
        for column in all {
            let name = first_part(column);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Some(names)
    }

    /// Every column that the recipe names, by its outermost name: a table must have them.
    pub(crate) fn named_columns(&self) -> Vec<String> {
        let by = self.holdout.iter().filter_map(|h| h.by.as_ref());
        let filters = self.filters.iter().map(|f| &f.column);
        self.columns.iter().map(|(_, c)| c).chain(filters).chain(by).map(|c| first_part(c)).collect()
    }

    /// Whether a row has a value there, for telling a misspelt column.
    pub(crate) fn has_value(row: &str, column: &str) -> bool {
        raw_at(row, column).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn filter(json: Value) -> Filter {
        let mut all = serde_json::to_value(Filter::default()).unwrap();
        for (k, v) in json.as_object().unwrap() {
            all[k] = v.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn conditions() {
        let row = r#"{"lang": "en", "score": 0.75, "n": 3, "none": null, "m": [{"role": "user"}], "a/b~": true, "text": "größer"}"#;
        for (condition, expected) in [
            (json!({ "column": "lang", "is": ["de", "en"] }), true),
            (json!({ "column": "lang", "is": ["de"] }), false),
            (json!({ "column": "lang", "is_not": ["de"] }), true),
            (json!({ "column": "lang", "is_not": ["en"] }), false),
            (json!({ "column": "gone", "is": ["en"] }), false),
            (json!({ "column": "gone", "is_not": ["en"] }), true),
            (json!({ "column": "score", "min": 0.75, "max": 0.75 }), true),
            (json!({ "column": "score", "min": 0.76 }), false),
            (json!({ "column": "lang", "min": 0.0 }), false),
            (json!({ "column": "n", "is": [3.0] }), true),
            (json!({ "column": "none", "present": false }), true),
            (json!({ "column": "none", "present": true }), false),
            (json!({ "column": "m", "min_length": 1, "max_length": 1 }), true),
            (json!({ "column": "text", "max_length": 6 }), true),
            (json!({ "column": "text", "min_length": 7 }), false),
            (json!({ "column": "text", "contains": ["x", "öß"] }), true),
            (json!({ "column": "/m/0/role", "is": ["user"] }), true),
            (json!({ "column": "/m/1/role", "present": false }), true),
            (json!({ "column": "/a~1b~0", "is": [true] }), true),
        ] {
            assert_eq!(filter(condition.clone()).passes(row), expected, "{condition}");
        }
    }

    #[test]
    fn columns_keep_values_as_written() {
        let columns = [("question", "q"), ("answer", "/deep/a"), ("lost", "nothing"), ("q\"", "n")];
        let view = RowView { columns: columns.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec(), ..RowView::default() };
        let row = r#"{"n": 1.00e5, "q": "\u00e9 {", "deep": {"a": [1, 2 ]}, "q": "last"}"#;
        assert_eq!(view.shape(row.to_owned()), r#"{"question":"last","answer":[1, 2 ],"q\"":1.00e5}"#);
        assert_eq!(view.shape("{}".to_owned()), "{}");
        assert_eq!(view.table_columns().unwrap(), ["q", "deep", "nothing", "n"]);
    }

    proptest! {
        #[test]
        fn a_split_is_one_and_depends_on_the_content_alone(texts in prop::collection::vec(".{0,6}", 200), share in 0.0f64..1.0) {
            let split = |held_out| Holdout { share, by: None, held_out };
            for text in &texts {
                let row = json!({ "a": text, "b": 1 }).to_string();
                let other = format!("{{ \"b\" : 1, \"a\":{} }}", json!(text));
                prop_assert!(split(true).passes(&row) != split(false).passes(&row));
                prop_assert_eq!(split(true).passes(&row), split(true).passes(&other));
                let grouped = Holdout { share, by: Some("b".to_owned()), held_out: true };
                prop_assert_eq!(grouped.passes(&row), grouped.passes(&other));
            }
        }
    }

    #[test]
    fn a_share_is_a_share() {
        let split = Holdout { share: 0.1, by: None, held_out: true };
        let held = (0..20_000).filter(|i| split.passes(&json!({ "i": i }).to_string())).count();
        // Five standard deviations around 2,000.
        assert!((1788..=2212).contains(&held), "{held}");
    }
}
