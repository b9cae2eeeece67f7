//! The head of a data card: YAML between two lines of dashes. It is somebody else's text, so it is read event by event, with limits, and without aliases,
//! which could make little into much.

use serde_json::{Map, Value};
use yaml_rust2::parser::{Event, Parser};

/// The largest head.
const LIMIT: usize = 1 << 20;
/// How deep values may lie.
const MAX_DEPTH: usize = 32;
/// How many values there may be.
const MAX_VALUES: usize = 100_000;

/// The head of a card; none if it has none.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn front_matter(card: &str) -> Result<Option<Value>, String> {
    let card = card.trim_start_matches('\u{feff}');
    let Some(rest) = card.strip_prefix("---").and_then(|r| r.trim_start_matches([' ', '\t', '\r']).strip_prefix('\n')) else {
        return Ok(None);
    };
    let mut length = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return parse(rest.get(..length).unwrap_or_default()).map(Some);
        }
        length += line.len();
        if length > LIMIT {
            return Err("its head is larger than 1 MiB".to_owned());
        }
    }
    Err("its head has no end".to_owned())
}

/// A value that is being read: what it is so far, and for a mapping the key whose value comes next.
enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Option<String>),
}

fn parse(text: &str) -> Result<Value, String> {
    let mut parser = Parser::new_from_str(text);
    let (mut stack, mut result, mut count): (Vec<Open>, Value, usize) = (Vec::new(), Value::Null, 0);
    loop {
        let (event, mark) = parser.next_token().map_err(|e| e.to_string())?;
        count += 1;
        if count > MAX_VALUES || stack.len() > MAX_DEPTH {
            return Err(format!("line {}: too many values, or too deep", mark.line()));
        }
        let done = match event {
            Event::StreamEnd => return Ok(result),
            Event::Alias(_) => return Err(format!("line {}: aliases are not read", mark.line())),
            Event::SequenceStart(..) => {
                stack.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingStart(..) => {
                stack.push(Open::Map(Map::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match stack.pop() {
                Some(Open::List(list)) => Value::Array(list),
                Some(Open::Map(map, _)) => Value::Object(map),
                None => return Err(format!("line {}: an end without a beginning", mark.line())),
            },
            // Names and patterns are texts, and `true` is compared as one.
            Event::Scalar(text, ..) => Value::String(text),
            _ => continue,
        };
        match stack.last_mut() {
            None => result = done,
            Some(Open::List(list)) => list.push(done),
            Some(Open::Map(map, key)) => match (key.take(), done) {
                (Some(key), value) => drop(map.insert(key, value)),
                (None, Value::String(text)) => *key = Some(text),
                (None, _) => return Err(format!("line {}: a key that is no text", mark.line())),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_card_reads() {
        let card = "---\nlicense: apache-2.0\nconfigs:\n- config_name: default\n  data_files:\n  - split: cot\n    path: data/cot-*\n  - {split: x, path: [a, \"b\"]}\n  default: true\n---\n# Title\n---\n";
        let head = front_matter(card).unwrap().unwrap();
        assert_eq!(
            head["configs"],
            json!([{ "config_name": "default", "data_files": [{ "split": "cot", "path": "data/cot-*" }, { "split": "x", "path": ["a", "b"] }], "default": "true" }])
        );
        assert_eq!(front_matter("# Title"), Ok(None));
        assert_eq!(front_matter("---\r\na: b\r\n---\r\n").unwrap().unwrap(), json!({ "a": "b" }));
    }

    #[test]
    fn cards_that_would_hurt_are_refused() {
        let deep = format!("---\n{}\n---\n", "[".repeat(100_000));
        let wide = format!("---\na: [{}]\n---\n", "x,".repeat(200_000));
        let laughs = "---\na: &a [x, x]\nb: [*a, *a]\n---\n";
        let long = format!("---\n{}", "a: b\n".repeat(1 << 18));
        for bad in [deep.as_str(), &wide, laughs, &long, "---\na: [\n---\n", "---\n[a]: b\n---\n", "---\na: b\n"] {
            assert!(front_matter(bad).is_err(), "{}", bad.chars().take(40).collect::<String>());
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "[-a\\[\\]{}:,&*!|> \n\"'#%]{0,60}") {
            let _ = front_matter(&format!("---\n{text}\n---\n"));
        }
    }
}
