//! JSON values of untrusted origin: bounded reading, one way of writing.

use std::collections::BTreeMap;

use serde_json::{Number, Value};

/// The integers that every JSON reader takes exactly lie below this.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The deepest nesting of arrays and objects in a text, looked at no further than `most` + 1; a bare value has depth 0. One pass, no recursion.
pub(crate) fn depth(text: &str, most: usize) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
                if deepest > most {
                    return deepest;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// A value in its one form: keys sorted, numbers of equal value alike (`1.0` is `1`). Two values are equal exactly if their forms are.
#[must_use]
pub fn canonical(value: &Value) -> Value {
    match value {
        Value::Number(number) => Value::Number(number_of(number)),
        Value::Array(items) => Value::Array(items.iter().map(canonical).collect()),
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            Value::Object(sorted.into_iter().map(|(k, v)| (k.clone(), canonical(v))).collect())
        }
        other => other.clone(),
    }
}

fn number_of(number: &Number) -> Number {
    match number.as_f64() {
        Some(x) if number.is_f64() && x.fract() == 0.0 && x.abs() < EXACT => Number::from(x as i64),
        _ => number.clone(),
    }
}

/// Whether two values are equal, whatever the order of keys and the way in which numbers are written.
#[must_use]
pub fn equal(a: &Value, b: &Value) -> bool {
    canonical(a) == canonical(b)
}

/// A piece of untrusted text for a message: short, and without characters that could forge lines or move a terminal's cursor.
pub(crate) fn shown(text: &str, most: usize) -> String {
    let cut = text.floor_char_boundary(most);
    let mut out: String = text.get(..cut).unwrap_or_default().escape_debug().collect();
    if cut < text.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn equal_values_have_one_form() {
        assert!(equal(&json!({"a": 1, "b": [2.0, -0.0]}), &json!({"b": [2, 0], "a": 1.0})));
        assert!(!equal(&json!({"a": 1}), &json!({"a": "1"})));
        assert!(!equal(&json!([1, 2]), &json!([2, 1])));
        assert!(!equal(&json!({"a": null}), &json!({})));
        assert!(!equal(&json!(true), &json!(1)));
        assert_eq!(canonical(&json!({"b": 1.50, "a": {"d": 1e3, "c": 0}})).to_string(), r#"{"a":{"c":0,"d":1000},"b":1.5}"#);
    }

    #[test]
    fn depth_is_bounded_and_ignores_strings() {
        assert_eq!(depth(r#"{"a[[": ["\"[", {"b": []}]}"#, 32), 4);
        assert_eq!(depth(&"[".repeat(1 << 20), 32), 33);
        assert_eq!(depth("7", 0), 0);
    }

    #[test]
    fn what_is_shown_is_short_and_harmless() {
        assert_eq!(shown("get_\u{1b}[2Jweather\n", 100), "get_\\u{1b}[2Jweather\\n");
        assert_eq!(shown(&"é".repeat(40), 7), "ééé…");
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (-1000i32..1000).prop_map(|n| Value::from(f64::from(n))),
            "[a-c]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec(("[a-e]", inner), 0..5).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_form_is_stable_and_reads_back(value in values()) {
            let form = canonical(&value);
            prop_assert_eq!(&canonical(&form), &form);
            let again: Value = serde_json::from_str(&form.to_string()).unwrap();
            prop_assert_eq!(canonical(&again).to_string(), form.to_string());
            prop_assert!(equal(&value, &form));
        }
    }
}
