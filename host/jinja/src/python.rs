//! Python's `json.dumps(value, ensure_ascii=False)`.

use serde_json::Value;

/// The text; with `indent`, over several lines.
pub(crate) fn dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write(value, indent, 0, &mut out);
    out
}

fn write(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let separator = if indent.is_some() { "," } else { ", " };
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth)));
        }
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { separator } else { "" });
                line(depth + 1, out);
                write(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                out.push_str(if i > 0 { separator } else { "" });
                line(depth + 1, out);
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push_str(": ");
                write(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        Value::Number(n) if n.is_f64() => out.push_str(&float(n.as_f64().unwrap_or_default())),
        other => out.push_str(&other.to_string()),
    }
}

/// A float as Python's `repr` has it: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, power) = exponent.strip_prefix('-').map_or(('+', exponent), |power| ('-', power));
        return format!("{digits}e{sign}{power:0>2}");
    }
    format!("{x:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value = json!({"a": [1, 2.0, 1e-7, 1e22, -0.0, 0.0001], "é": null, "s": "<b>\"\n", "e": {}, "l": []});
        assert_eq!(
            dumps(&value, None),
            "{\"a\": [1, 2.0, 1e-07, 1e+22, -0.0, 0.0001], \"é\": null, \"s\": \"<b>\\\"\\n\", \"e\": {}, \"l\": []}"
        );
        assert_eq!(dumps(&json!({"a": [1, {}]}), Some(2)), "{\n  \"a\": [\n    1,\n    {}\n  ]\n}");
    }
}
