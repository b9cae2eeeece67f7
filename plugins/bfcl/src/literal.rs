//! Values written in Java or JavaScript, as the leaderboard's functions of those languages take them: each argument is a string that holds a
//! literal. What does not have the expected form stays a string.
//!
//! This is no parser of those languages. It reads the few forms that the checker of `bfcl-eval` reads, and with its limits: elements of a
//! list are cut at commas wherever they stand, and a list ends at its first closing bracket.

use crate::check::Fault;
use crate::value::{Int, Type, Value};

/// The language of a row's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Arguments are JSON values.
    Python,
    /// Arguments are strings with Java literals.
    Java,
    /// Arguments are strings with JavaScript literals.
    JavaScript,
}

impl Language {
    /// The type that a function's description names.
    pub fn type_named(self, name: &str) -> Option<Type> {
        Some(match (self, name) {
            (Self::Python, "string" | "any") => Type::Str,
            (Self::Python, "integer") => Type::Int,
            (Self::Python, "float") => Type::Float,
            (Self::Python, "boolean") => Type::Bool,
            (Self::Python, "array" | "tuple") => Type::List,
            (Self::Python, "dict") => Type::Dict,
            (Self::Java, "byte" | "short" | "integer" | "long") => Type::Int,
            (Self::Java, "float" | "double") => Type::Float,
            (Self::Java, "boolean") => Type::Bool,
            (Self::Java, "char" | "String" | "any") => Type::Str,
            // There is no value of type `Set`: the checker does not read it.
            (Self::Java, "Array" | "ArrayList" | "Queue" | "Stack" | "Set") => Type::List,
            (Self::Java, "HashMap" | "Hashtable") => Type::Dict,
            (Self::JavaScript, "String" | "any") => Type::Str,
            (Self::JavaScript, "integer" | "Bigint") => Type::Int,
            (Self::JavaScript, "float") => Type::Float,
            (Self::JavaScript, "Boolean") => Type::Bool,
            (Self::JavaScript, "dict") => Type::Dict,
            (Self::JavaScript, "array") => Type::List,
            _ => return None,
        })
    }

    /// Whether the description of such a type says of which type the elements are.
    pub fn has_items(self, name: &str) -> bool {
        match self {
            Self::Python => matches!(name, "array" | "tuple"),
            Self::Java => matches!(name, "Array" | "ArrayList"),
            Self::JavaScript => name == "array",
        }
    }
}

/// Reads a literal of a type.
///
/// # Errors
/// The leaderboard's checker cannot read literals of the type.
pub fn read(language: Language, text: &str, name: &str, items: Option<&str>) -> Result<Value, Fault> {
    match language {
        Language::Python => Ok(Value::Str(text.to_owned())),
        Language::Java => java(text, name, items),
        Language::JavaScript => javascript(text, name, items),
    }
}

/// A string as it stands.
fn plain(text: &str) -> Value {
    Value::Str(text.to_owned())
}

// What regular expressions call a line's end: a newline at the very end does not count.
fn line(text: &str) -> &str {
    text.strip_suffix('\n').unwrap_or(text)
}

/// `-`, digits, and as allowed a fraction and an exponent.
fn is_decimal(text: &str, fraction: bool, exponent: bool) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, power) = match text.find(['e', 'E']) {
        Some(at) if exponent => (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
        _ => (text, None),
    };
    let power = power.is_none_or(|p| digits(p.strip_prefix(['+', '-']).unwrap_or(p)));
    let mantissa = match mantissa.split_once('.') {
        Some((whole, decimals)) => fraction && digits(whole) && digits(decimals),
        None => digits(mantissa),
    };
    mantissa && power
}

fn whole(text: &str) -> Option<Value> {
    is_decimal(text, false, false).then(|| Int::parse(text).map(Value::Int))?
}

fn float(text: &str) -> Option<Value> {
    text.parse().ok().map(Value::Float)
}

/// A whole number as Python reads it from a string: space around it, a sign, underscores between digits.
fn python_int(text: &str) -> Option<Value> {
    Int::parse(&without_underscores(trimmed(text))?).map(Value::Int)
}

/// A floating-point number as Python reads it from a string.
fn python_float(text: &str) -> Option<Value> {
    let text = without_underscores(trimmed(text))?;
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(&text);
    let named = ["inf", "infinity", "nan"].iter().any(|n| unsigned.eq_ignore_ascii_case(n));
    let starts = unsigned.starts_with(|c: char| c == '.' || c.is_ascii_digit());
    if named || starts { float(&text) } else { None }
}

/// Drops underscores; none if one does not stand between digits.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit = |i: Option<usize>| i.and_then(|i| bytes.get(i)).is_some_and(u8::is_ascii_digit);
    let fits = bytes.iter().enumerate().all(|(i, b)| *b != b'_' || (digit(i.checked_sub(1)) && digit(Some(i + 1))));
    fits.then(|| text.replace('_', ""))
}

/// Space as Python's strings and regular expressions understand it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn skip_space(text: &str) -> &str {
    text.trim_start_matches(is_space)
}

/// At least one space.
fn some_space(text: &str) -> Option<&str> {
    let rest = skip_space(text);
    (rest.len() < text.len()).then_some(rest)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Without its first and last character.
fn inner(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.next_back();
    chars.as_str()
}

/// What follows each `word` in a text, in order.
fn after_each<'t>(text: &'t str, word: &'static str) -> impl Iterator<Item = &'t str> {
    text.match_indices(word).filter_map(move |(at, _)| text.get(at + word.len()..))
}

/// The beginning of a text before `end`, on one line and at least so many characters long.
fn up_to<'t>(text: &'t str, end: &str, least: usize) -> Option<&'t str> {
    let at = ends_on_line(text).skip(least).find(|at| text.get(*at..).is_some_and(|rest| rest.starts_with(end)))?;
    text.get(..at)
}

/// The positions at which something that began at the start of `text` and stays on one line can end.
fn ends_on_line(text: &str) -> impl Iterator<Item = usize> {
    let length = text.find('\n').unwrap_or(text.len());
    (0..=length).filter(|at| text.is_char_boundary(*at))
}

// Java.

fn java(text: &str, name: &str, items: Option<&str>) -> Result<Value, Fault> {
    let number = line(text);
    let read = match name {
        "byte" | "short" | "integer" => whole(number),
        "float" => number.strip_suffix(['f', 'F']).filter(|n| is_decimal(n, true, true)).and_then(float),
        "double" => Some(number).filter(|n| is_decimal(n, true, true)).and_then(float),
        "long" => number.strip_suffix(['l', 'L']).and_then(whole),
        "boolean" => boolean(text),
        "Array" => return java_array(text, items),
        "ArrayList" => return java_list(text, items),
        "HashMap" => java_map(text),
        "char" | "String" | "any" => None,
        other => return Err(Fault::fatal(format!("literals of the type {other:?} are not read"))),
    };
    Ok(read.unwrap_or_else(|| plain(text)))
}

fn boolean(text: &str) -> Option<Value> {
    match text {
        "true" => Some(Value::Bool(true)),
        "false" => Some(Value::Bool(false)),
        _ => None,
    }
}

/// An element of a list: read by its type where that is known; quotes are taken off without looking.
fn java_element(text: &str, items: Option<&str>) -> Result<Value, Fault> {
    match items {
        Some("char" | "String") => Ok(plain(inner(text))),
        Some(name) => java(text, name, None),
        None => Ok(java_value(text)),
    }
}

/// `new ArrayList<T>(Arrays.asList(...))`, `new ArrayList<T>() {{ add(...); ... }}` or `new ArrayList<T>()`, anywhere in the text.
fn java_list(text: &str, items: Option<&str>) -> Result<Value, Fault> {
    let elements = |texts: Vec<&str>| texts.into_iter().map(|t| java_element(trimmed(t), items)).collect::<Result<_, _>>().map(Value::List);
    let heads: Vec<&str> = after_each(text, "new").filter_map(|rest| java_generic(rest, "ArrayList<")).collect();
    if let Some(body) = heads.iter().find_map(|head| up_to(head.strip_prefix("(Arrays.asList(")?, "))", 1)) {
        return elements(body.split(',').collect());
    }
    if let Some(body) = heads.iter().find_map(|head| double_braced(head.strip_prefix("()")?)) {
        return elements(additions(body));
    }
    let empty = heads.iter().any(|head| head.starts_with("()"));
    Ok(if empty { Value::List(Vec::new()) } else { plain(text) })
}

/// What follows `NAME<T>` after `new`, for a type parameter that is one word or left out.
fn java_generic<'t>(after_new: &'t str, name: &str) -> Option<&'t str> {
    some_space(after_new)?.strip_prefix(name)?.trim_start_matches(is_word).strip_prefix('>')
}

/// The content of `{{ ... }}`: at least one character, up to the first double closing.
fn double_braced<'t>(text: &'t str) -> Option<&'t str> {
    let body = skip_space(text).strip_prefix("{{")?;
    let content = |body: &'t str| {
        let first = body.chars().next()?.len_utf8();
        let end = first + body.get(first..)?.find("}}")?;
        let kept = body.get(..end)?.trim_end_matches(is_space).len();
        body.get(..kept.max(first))
    };
    // Space before the content is left out, unless there is nothing else.
    let space = body.len() - skip_space(body).len();
    let (before, _) = body.get(..space)?.char_indices().next_back().unwrap_or_default();
    content(body.get(space..)?).or_else(|| content(body.get(before..)?))
}

/// What the `add(...)` of a text add: up to the first `)`, at least one character of one line.
fn additions(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, body)) = rest.split_once("add(") {
        match up_to(body, ")", 1) {
            Some(added) => {
                found.push(added);
                rest = body.get(added.len() + 1..).unwrap_or_default();
            }
            None => rest = body,
        }
    }
    found
}

/// `new T[] {...}` anywhere in the text, on one line.
fn java_array(text: &str, items: Option<&str>) -> Result<Value, Fault> {
    let body = after_each(text, "new").find_map(|rest| {
        let name = some_space(rest)?;
        let brackets = name.trim_start_matches(is_word);
        let body = (brackets.len() < name.len()).then(|| brackets.strip_prefix("[]"))??;
        up_to(skip_space(body).strip_prefix('{')?, "}", 0)
    });
    let Some(body) = body else { return Ok(plain(text)) };
    let element = |text: &str| match items {
        Some(name) => java(text, name, None),
        None => Ok(java_value(text)),
    };
    body.split(',').map(trimmed).filter(|e| !e.is_empty()).map(element).collect::<Result<_, _>>().map(Value::List)
}

/// `new HashMap<K, V>() {{ put("key", value); ... }}` or `new HashMap<K, V>()`, anywhere in the text.
fn java_map(text: &str) -> Option<Value> {
    let heads: Vec<&str> = after_each(text, "new").collect();
    let body = |after: &'_ str| {
        let body = skip_space(skip_space(after).strip_prefix("()")?).strip_prefix('{').map(skip_space)?;
        let body = skip_space(body.strip_prefix('{').unwrap_or(body));
        body.split_once('}').map(|(body, _)| puts(body.trim_end_matches(is_space)))
    };
    let filled = heads.iter().find_map(|head| after_map(head, true, body));
    let empty = || heads.iter().find_map(|head| after_map(head, false, |after| skip_space(after).strip_prefix("()").map(|_| Vec::new())));
    filled.or_else(empty).map(Value::Dict)
}

/// What `read` makes of what follows `HashMap<...>` after `new`. Type parameters may be anything, so each `>` is tried in turn.
fn after_map<T>(after_new: &str, lines: bool, read: impl Fn(&str) -> Option<T>) -> Option<T> {
    let rest = some_space(after_new)?.strip_prefix("HashMap<")?;
    let length = if lines { rest.len() } else { rest.find('\n').unwrap_or(rest.len()) };
    rest.match_indices('>').take_while(|(at, _)| *at < length).find_map(|(at, _)| read(rest.get(at + 1..)?))
}

/// What the `put("key", value)` of a text put.
fn puts(text: &str) -> Vec<(String, Value)> {
    let mut members: Vec<(String, Value)> = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("put(\"") {
        let found = ends_on_line(after).find_map(|at| {
            let key = after.get(..at)?;
            let value = skip_space(after.get(at..)?.strip_prefix("\",")?);
            let put = up_to(value, ")", 0)?;
            Some((key, put, value.get(put.len() + 1..)?))
        });
        match found {
            Some((key, value, after)) => {
                insert(&mut members, key, java_value(trimmed(value)));
                rest = after;
            }
            None => rest = after,
        }
    }
    members
}

fn insert(members: &mut Vec<(String, Value)>, key: &str, value: Value) {
    match members.iter_mut().find(|(k, _)| k == key) {
        Some((_, earlier)) => *earlier = value,
        None => members.push((key.to_owned(), value)),
    }
}

/// A value of unknown type.
fn java_value(text: &str) -> Value {
    let number = line(text);
    boolean(text)
        .or_else(|| (text.starts_with('"') && text.ends_with('"')).then(|| plain(inner(text))))
        .or_else(|| number.strip_suffix(['l', 'L']).and_then(whole))
        .or_else(|| number.strip_suffix(['f', 'F']).filter(|n| is_decimal(n, true, true)).and_then(float))
        .or_else(|| python_int(text))
        .or_else(|| python_float(text))
        .unwrap_or_else(|| plain(text))
}

// JavaScript.

fn javascript(text: &str, name: &str, items: Option<&str>) -> Result<Value, Fault> {
    let number = line(text);
    let read = match name {
        "String" => quoted(text).map(plain),
        "integer" => whole(number),
        "float" => Some(number).filter(|n| is_decimal(n, true, false)).and_then(float),
        "Bigint" => match number.strip_suffix('n').and_then(whole) {
            Some(_) if number.len() < text.len() => return Err(Fault::fatal("a newline after a Bigint is not read")),
            read => read,
        },
        "Boolean" => boolean(text),
        "array" => return Ok(javascript_array(trimmed(text), items)),
        "dict" => return Ok(javascript_dict(trimmed(text))),
        "any" => None,
        other => return Err(Fault::fatal(format!("literals of the type {other:?} are not read"))),
    };
    Ok(read.unwrap_or_else(|| plain(text)))
}

/// The content of a quoted string; a single quote character is both of its quotes.
fn quoted(text: &str) -> Option<&str> {
    ['"', '\''].iter().any(|q| text.starts_with(*q) && text.ends_with(*q)).then(|| inner(text))
}

/// `[...]` or `new Array(...)`, of values or of lists of values; what follows the closing bracket does not matter.
fn javascript_array(text: &str, items: Option<&str>) -> Value {
    if let Some(rows) = rows_of_rows(text) {
        return Value::List(rows);
    }
    let array = after_new_array(text);
    let body = match (text.strip_prefix('['), array) {
        (Some(body), _) => up_to(body, "]", 0),
        (None, Some(body)) => up_to(body, ")", 0),
        (None, None) => None,
    };
    let Some(body) = body.map(trimmed) else { return plain(text) };
    if body.is_empty() {
        return Value::List(Vec::new());
    }
    let element = |element: &str| match items {
        Some(name) => javascript(element, name, element.starts_with(['\'', '"']).then_some("String")),
        None => Ok(javascript_value(element)),
    };
    let elements: Result<_, Fault> = body.split(',').map(|e| element(trimmed(e))).collect();
    elements.map_or_else(|_| plain(text), Value::List)
}

fn after_new_array(text: &str) -> Option<&str> {
    some_space(text.strip_prefix("new")?)?.strip_prefix("Array(")
}

/// A list of lists.
fn rows_of_rows(text: &str) -> Option<Vec<Value>> {
    let (body, close) = match text.strip_prefix('[') {
        Some(body) => (body, ']'),
        None => (after_new_array(text)?, ')'),
    };
    let rows = skip_space(body).strip_prefix('[')?;
    let start = text.len() - rows.len();
    let end = end_of_rows(text, start, close)?;
    let mut rest = text.get(..end)?;
    let mut lists = Vec::new();
    while let Some((_, after)) = rest.split_once('[') {
        let Some(list) = up_to(after, "]", 0) else {
            rest = after;
            continue;
        };
        rest = after.get(list.len() + 1..).unwrap_or_default();
        // The first one found may begin at the outer bracket.
        let list = trimmed(list);
        let list = if lists.is_empty() { list.strip_prefix('[').unwrap_or(list) } else { list };
        lists.push(Value::List(list.split(',').map(javascript_value).collect()));
    }
    Some(lists)
}

/// Where the outer list ends, if the inner one that begins at `start`, and others after commas, lead to its closing bracket. An inner list ends
/// at the first `]` of its line that another list or the closing bracket follows.
fn end_of_rows(text: &str, start: usize, close: char) -> Option<usize> {
    let mut at = start;
    loop {
        match text.as_bytes().get(at)? {
            b'\n' => return None,
            b']' => {
                let after = skip_space(text.get(at + 1..)?);
                if after.starts_with(close) {
                    return Some(text.len() - after.len() + 1);
                }
                at = match after.strip_prefix(',').and_then(|r| skip_space(r).strip_prefix('[')) {
                    Some(next) => text.len() - next.len(),
                    None => at + 1,
                };
            }
            _ => at += 1,
        }
    }
}

/// `{key: value, ...}`, up to the first closing brace.
fn javascript_dict(text: &str) -> Value {
    let Some(body) = text.strip_prefix('{').and_then(|body| up_to(body, "}", 0)) else { return plain(text) };
    let mut members = Vec::new();
    let mut rest = body;
    while let Some((key, value, after)) = pair(rest) {
        let key = trimmed(key).trim_matches(['\'', '"']);
        let value = trimmed(value);
        let value = if value.starts_with('[') && value.ends_with(']') {
            javascript_array(value, None)
        } else if value.starts_with('{') && value.ends_with('}') {
            javascript_dict(value)
        } else {
            javascript_value(value.trim_matches(['\'', '"']))
        };
        insert(&mut members, key, value);
        rest = after;
    }
    Value::Dict(members)
}

/// The next `key: value` of an object's content, and what follows its comma. A comma ends a value only if a later colon comes before the
/// next comma.
fn pair(text: &str) -> Option<(&str, &str, &str)> {
    let text = text.trim_start_matches(':');
    let (key, after) = text.split_once(':')?;
    let value = skip_space(after);
    for at in ends_on_line(value) {
        let rest = value.get(at..)?;
        if rest.is_empty() {
            return Some((key, value.get(..at)?, rest));
        }
        if let Some(next) = rest.strip_prefix(',')
            && let Some(next) = next_pair(next)
        {
            return Some((key, value.get(..at)?, next));
        }
    }
    None
}

/// The text after a comma, without space before it, if it begins with the key of a pair.
fn next_pair(text: &str) -> Option<&str> {
    let rest = skip_space(text);
    let key = rest.split(',').next().unwrap_or_default();
    if key.chars().skip(1).any(|c| c == ':') {
        return Some(rest);
    }
    // A key may be one space.
    let (at, _) = text.get(..text.len() - rest.len())?.char_indices().next_back()?;
    if rest.starts_with(':') { text.get(at..) } else { None }
}

/// A value of unknown type.
fn javascript_value(text: &str) -> Value {
    let text = trimmed(text);
    boolean(text)
        .or_else(|| quoted(text).map(plain))
        .or_else(|| python_int(text))
        .or_else(|| python_float(text))
        .unwrap_or_else(|| plain(text))
}
