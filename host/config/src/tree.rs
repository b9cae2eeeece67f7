//! A parsed TOML text that remembers where each value was written, so that a problem found later still has its line.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Origin, Problem};

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub origin: Origin,
    pub data: Data,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    DateTime(String),
    Array(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key with its place, and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub origin: Origin,
    pub node: Node,
}

impl Node {
    /// An empty table.
    pub fn empty() -> Self {
        Self { origin: Origin::Default, data: Data::Table(Vec::new()) }
    }

    /// What the value is called in a message.
    pub fn kind(&self) -> &'static str {
        match self.data {
            Data::String(_) => "a string",
            Data::Integer(_) => "an integer",
            Data::Float(_) => "a float",
            Data::Bool(_) => "a boolean",
            Data::DateTime(_) => "a date or time",
            Data::Array(_) => "an array",
            Data::Table(_) => "a table",
        }
    }

    /// The entry of a table.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.data {
            Data::Table(entries) => entries.iter().find(|e| e.key == key),
            _ => None,
        }
    }

    /// Whether there is a value at this path of keys.
    pub fn has(&self, path: &[&str]) -> bool {
        match path {
            [] => true,
            [first, rest @ ..] => self.entry(first).is_some_and(|e| e.node.has(rest)),
        }
    }

    /// Where the value at a path such as `data.sources[1].path` was written, or the nearest place around it.
    pub fn origin_of(&self, path: &str) -> Origin {
        let mut node = self;
        let mut origin = self.origin.clone();
        for step in path.split(['.', '[']) {
            let next = match (&node.data, step.strip_suffix(']')) {
                (Data::Array(items), Some(index)) => index.parse::<usize>().ok().and_then(|i| items.get(i)).map(|n| (n, n.origin.clone())),
                (Data::Table(_), None) => node.entry(step).map(|e| (&e.node, e.origin.clone())),
                _ => None,
            };
            let Some((found, place)) = next else { break };
            if place != Origin::Default {
                origin = place;
            }
            node = found;
        }
        origin
    }

    /// Puts a value at a path of keys, making tables on the way; a number as key is an index into an array.
    pub fn set(&mut self, path: &[String], value: Node, origin: &Origin) -> Result<(), String> {
        let Some((first, rest)) = path.split_first() else {
            *self = value;
            return Ok(());
        };
        match &mut self.data {
            Data::Table(entries) => {
                if let Some(entry) = entries.iter_mut().find(|e| e.key == *first) {
                    if rest.is_empty() {
                        entry.origin = origin.clone();
                    }
                    return entry.node.set(rest, value, origin);
                }
                let mut node = Node { origin: origin.clone(), data: Data::Table(Vec::new()) };
                node.set(rest, value, origin)?;
                entries.push(Entry { key: first.clone(), origin: origin.clone(), node });
                Ok(())
            }
            Data::Array(items) => {
                let count = items.len();
                match first.parse::<usize>().ok().and_then(|i| items.get_mut(i)) {
                    Some(item) => item.set(rest, value, origin),
                    None => Err(format!("`{first}` is no index into the array of {count} written in the recipe (the first is 0)")),
                }
            }
            _ => Err(format!("`{first}` cannot be set inside {}", self.kind())),
        }
    }

    /// Removes an entry of a table inside a table.
    pub fn remove(&mut self, table: &str, key: &str) {
        if let Data::Table(entries) = &mut self.data
            && let Some(entry) = entries.iter_mut().find(|e| e.key == table)
            && let Data::Table(inner) = &mut entry.node.data
        {
            inner.retain(|e| e.key != key);
        }
    }
}

/// Turns byte offsets into places.
struct Places<'a> {
    file: &'a str,
    text: &'a str,
    /// The byte offset of every line's beginning.
    lines: Vec<usize>,
}

impl Places<'_> {
    fn at(&self, offset: usize) -> Origin {
        let line = self.lines.partition_point(|&start| start <= offset).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..offset).map_or(0, |s| s.chars().count()) + 1;
        Origin::Text { file: self.file.to_owned(), line, column }
    }
}

/// Parses a whole text; every syntax error is a problem.
pub(crate) fn parse(file: &str, text: &str) -> Result<Node, Vec<Problem>> {
    let lines = std::iter::once(0).chain(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1)).collect();
    let places = Places { file, text, lines };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors
            .into_iter()
            .map(|e| Problem {
                origin: e.span().map_or(Origin::Default, |s| places.at(s.start)),
                key: String::new(),
                message: format!("not TOML: {}", e.message()),
                help: None,
            })
            .collect());
    }
    let mut problems = Vec::new();
    let node = table_node(table.get_ref(), places.at(0), &|offset| places.at(offset), "", &mut problems);
    if problems.is_empty() { Ok(node) } else { Err(problems) }
}

/// Parses one value, as it stands after the `=`.
pub(crate) fn parse_value(text: &str, origin: &Origin, key: &str) -> Result<Node, Vec<Problem>> {
    let problem = |message: String| Problem { origin: origin.clone(), key: key.to_owned(), message, help: None };
    let value = DeValue::parse(text).map_err(|e| vec![problem(format!("not a TOML value: {}", e.message()))])?;
    let mut problems = Vec::new();
    let node = value_node(&value, origin.clone(), &|_| origin.clone(), key, &mut problems);
    if problems.is_empty() { Ok(node) } else { Err(problems) }
}

fn table_node(table: &DeTable<'_>, origin: Origin, place: &dyn Fn(usize) -> Origin, path: &str, problems: &mut Vec<Problem>) -> Node {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let name: &str = key.get_ref();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let origin = place(key.span().start);
            let node = value_node(value, origin.clone(), place, &path, problems);
            (key.span().start, Entry { key: name.to_owned(), origin, node })
        })
        .collect();
    // Problems are reported in the order of the text, whatever order the parser keeps keys in.
    entries.sort_by_key(|(start, _)| *start);
    Node { origin, data: Data::Table(entries.into_iter().map(|(_, e)| e).collect()) }
}

fn value_node(value: &Spanned<DeValue<'_>>, key: Origin, place: &dyn Fn(usize) -> Origin, path: &str, problems: &mut Vec<Problem>) -> Node {
    let origin = place(value.span().start);
    let mut broken = |message: String| {
        problems.push(Problem { origin: origin.clone(), key: path.to_owned(), message, help: None });
        Data::Bool(false)
    };
    let data = match value.get_ref() {
        DeValue::String(s) => Data::String(s.as_ref().to_owned()),
        DeValue::Integer(i) => match i64::from_str_radix(i.as_str(), i.radix()) {
            Ok(i) => Data::Integer(i),
            Err(_) => broken(format!("{} does not fit into a 64-bit integer", i.as_str())),
        },
        DeValue::Float(x) => match x.as_str().parse::<f64>() {
            Ok(v) if v.is_finite() || x.as_str().contains("inf") || x.as_str().contains("nan") => Data::Float(v),
            _ => broken(format!("{} does not fit into a 64-bit float", x.as_str())),
        },
        DeValue::Boolean(b) => Data::Bool(*b),
        DeValue::Datetime(d) => Data::DateTime(d.to_string()),
        DeValue::Array(items) => Data::Array(
            items
                .iter()
                .enumerate()
                .map(|(i, item)| {
                    // An item has no key of its own: a table in an array is where it begins.
                    let own = if item.span().is_empty() { key.clone() } else { place(item.span().start) };
                    value_node(item, own, place, &format!("{path}[{i}]"), problems)
                })
                .collect(),
        ),
        DeValue::Table(table) => return table_node(table, key, place, path, problems),
    };
    Node { origin, data }
}
