//! Between JSON and the values of the component model, led by the component's own types.
//!
//! Records are objects with `snake_case` keys, where a field that is an option may be left out; cases are `"name"` or `{"name": payload}`;
//! options are null or the value; results are `{"ok": value}` or `{"error": value}`; `list<u8>` is base64; numbers that JSON cannot hold
//! are text. Where a string is wanted, another JSON value stands for its own text, because JSON travels as text through the interfaces.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};
use wasmtime::component::types::Variant;
use wasmtime::component::{ResourceAny, Type, Val};

/// How a handle is written, in arguments and in answers.
pub const HANDLE: &str = "<handle>";

/// What does not fit, and where: a path such as `args[0][2].weight`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Mismatch {
    /// Where in the arguments.
    pub path: String,
    /// What was expected.
    pub message: String,
}

fn mismatch<T>(path: &str, message: impl Into<String>) -> Result<T, Mismatch> {
    Err(Mismatch { path: path.to_owned(), message: message.into() })
}

/// `a-b` as `a_b`.
pub(super) fn snake(name: &str) -> String {
    name.replace('-', "_")
}

fn same(wit: &str, json: &str) -> bool {
    wit == json || wit.bytes().map(|b| if b == b'-' { b'_' } else { b }).eq(json.bytes())
}

/// A type in a few words, for errors and signatures.
pub(super) fn describe(ty: &Type) -> String {
    let list = |names: Vec<String>| names.join(" | ");
    match ty {
        Type::Bool => "bool".to_owned(),
        Type::S8 => "s8".to_owned(),
        Type::U8 => "u8".to_owned(),
        Type::S16 => "s16".to_owned(),
        Type::U16 => "u16".to_owned(),
        Type::S32 => "s32".to_owned(),
        Type::U32 => "u32".to_owned(),
        Type::S64 => "s64".to_owned(),
        Type::U64 => "u64".to_owned(),
        Type::Float32 => "f32".to_owned(),
        Type::Float64 => "f64".to_owned(),
        Type::Char => "char".to_owned(),
        Type::String => "string".to_owned(),
        Type::List(l) => format!("list<{}>", describe(&l.ty())),
        Type::FixedLengthList(l) => format!("list<{}, {}>", describe(&l.ty()), l.len()),
        Type::Map(m) => format!("map<{}, {}>", describe(&m.key()), describe(&m.value())),
        Type::Record(r) => format!("{{{}}}", r.fields().map(|f| snake(f.name)).collect::<Vec<_>>().join(", ")),
        Type::Tuple(t) => format!("[{}]", t.types().map(|t| describe(&t)).collect::<Vec<_>>().join(", ")),
        Type::Variant(v) => list(v.cases().map(|c| snake(c.name)).collect()),
        Type::Enum(e) => list(e.names().map(snake).collect()),
        Type::Option(o) => format!("{} or null", describe(&o.ty())),
        Type::Result(r) => {
            let part = |t: Option<Type>| t.map_or_else(|| "null".to_owned(), |t| describe(&t));
            format!("{{ok: {}}} or {{error: {}}}", part(r.ok()), part(r.err()))
        }
        Type::Flags(f) => format!("flags {}", list(f.names().map(snake).collect())),
        Type::Own(_) | Type::Borrow(_) => "handle".to_owned(),
        Type::Future(_) | Type::Stream(_) | Type::ErrorContext => "a type of asynchronous calls".to_owned(),
    }
}

/// JSON as a value of a type. `handle` is what stands for handles.
pub(super) fn to_val(json: &Value, ty: &Type, handle: Option<ResourceAny>, path: &str) -> Result<Val, Mismatch> {
    let wanted = |json: &Value| mismatch(path, format!("{} is wanted, and {} was given", describe(ty), brief(json)));
    macro_rules! integer {
        ($case:ident, $type:ty) => {
            match json.as_i64().map(i128::from).or_else(|| json.as_u64().map(i128::from)).and_then(|n| <$type>::try_from(n).ok()) {
                Some(n) => Ok(Val::$case(n)),
                None => wanted(json),
            }
        };
    }
    match ty {
        Type::Bool => json.as_bool().map_or_else(|| wanted(json), |b| Ok(Val::Bool(b))),
        Type::S8 => integer!(S8, i8),
        Type::U8 => integer!(U8, u8),
        Type::S16 => integer!(S16, i16),
        Type::U16 => integer!(U16, u16),
        Type::S32 => integer!(S32, i32),
        Type::U32 => integer!(U32, u32),
        Type::S64 => integer!(S64, i64),
        Type::U64 => integer!(U64, u64),
        #[expect(clippy::cast_possible_truncation, reason = "the nearest f32 is what the interface can carry")]
        Type::Float32 => number(json).map_or_else(|| wanted(json), |n| Ok(Val::Float32(n as f32))),
        Type::Float64 => number(json).map_or_else(|| wanted(json), |n| Ok(Val::Float64(n))),
        Type::Char => {
            let mut chars = json.as_str().unwrap_or_default().chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => Ok(Val::Char(c)),
                _ => wanted(json),
            }
        }
        Type::String => Ok(Val::String(json.as_str().map_or_else(|| json.to_string(), str::to_owned))),
        Type::List(l) if matches!(l.ty(), Type::U8) => bytes(json, path),
        Type::List(l) => items(json, &l.ty(), handle, path, wanted).map(Val::List),
        Type::FixedLengthList(l) => match items(json, &l.ty(), handle, path, wanted)? {
            items if items.len() == l.len() as usize => Ok(Val::FixedLengthList(items)),
            _ => wanted(json),
        },
        Type::Map(m) => {
            let Value::Object(object) = json else { return wanted(json) };
            let entry = |(key, value): (&String, &Value)| {
                let path = format!("{path}.{key}");
                Ok((to_val(&Value::String(key.clone()), &m.key(), handle, &path)?, to_val(value, &m.value(), handle, &path)?))
            };
            object.iter().map(entry).collect::<Result<_, _>>().map(Val::Map)
        }
        Type::Record(r) => {
            let Value::Object(object) = json else { return wanted(json) };
            if let Some(unknown) = object.keys().find(|k| !r.fields().any(|f| same(f.name, k))) {
                return mismatch(path, format!("there is no field `{unknown}`; the fields are {}", describe(ty)));
            }
            let mut fields = Vec::with_capacity(r.fields().len());
            for field in r.fields() {
                let path = format!("{path}.{}", snake(field.name));
                let value = match object.iter().find(|(k, _)| same(field.name, k)) {
                    Some((_, value)) => to_val(value, &field.ty, handle, &path)?,
                    None if matches!(field.ty, Type::Option(_)) => Val::Option(None),
                    None => return mismatch(&path, format!("the field is missing: {}", describe(&field.ty))),
                };
                fields.push((field.name.to_owned(), value));
            }
            Ok(Val::Record(fields))
        }
        Type::Tuple(t) => match json {
            Value::Array(items) if items.len() == t.types().len() => {
                let item = |(i, (json, ty)): (usize, (&Value, Type))| to_val(json, &ty, handle, &format!("{path}[{i}]"));
                items.iter().zip(t.types()).enumerate().map(item).collect::<Result<_, _>>().map(Val::Tuple)
            }
            _ => wanted(json),
        },
        Type::Variant(v) => variant(json, v, ty, handle, path),
        Type::Enum(e) => match e.names().find(|name| json.as_str().is_some_and(|j| same(name, j))) {
            Some(name) => Ok(Val::Enum(name.to_owned())),
            None => wanted(json),
        },
        Type::Option(_) if json.is_null() => Ok(Val::Option(None)),
        Type::Option(o) => Ok(Val::Option(Some(Box::new(to_val(json, &o.ty(), handle, path)?)))),
        Type::Result(r) => {
            let payload = |json: &Value, ty: Option<Type>, path: String| match ty {
                Some(ty) => to_val(json, &ty, handle, &path).map(|v| Some(Box::new(v))),
                None if json.is_null() => Ok(None),
                None => mismatch(&path, format!("null is wanted, and {} was given", brief(json))),
            };
            match single(json) {
                Some(("ok", value)) => Ok(Val::Result(Ok(payload(value, r.ok(), format!("{path}.ok"))?))),
                Some(("error", value)) => Ok(Val::Result(Err(payload(value, r.err(), format!("{path}.error"))?))),
                _ => wanted(json),
            }
        }
        Type::Flags(f) => {
            let Value::Array(items) = json else { return wanted(json) };
            let flag = |item: &Value| f.names().find(|name| item.as_str().is_some_and(|j| same(name, j))).map(str::to_owned);
            items.iter().map(flag).collect::<Option<_>>().map_or_else(|| wanted(json), |flags| Ok(Val::Flags(flags)))
        }
        Type::Own(_) | Type::Borrow(_) => match handle {
            Some(handle) if json.as_str() == Some(HANDLE) => Ok(Val::Resource(handle)),
            Some(_) => mismatch(path, format!("\"{HANDLE}\" is wanted, and {} was given", brief(json))),
            None => mismatch(path, "no handle has been made yet"),
        },
        Type::Future(_) | Type::Stream(_) | Type::ErrorContext => mismatch(path, format!("{} cannot be given", describe(ty))),
    }
}

fn variant(json: &Value, variant: &Variant, ty: &Type, handle: Option<ResourceAny>, path: &str) -> Result<Val, Mismatch> {
    let (name, payload) = match (json, single(json)) {
        (Value::String(name), _) => (name.as_str(), None),
        (_, Some((name, payload))) => (name, Some(payload)),
        _ => return mismatch(path, format!("one of {} is wanted, and {} was given", describe(ty), brief(json))),
    };
    let Some(case) = variant.cases().find(|case| same(case.name, name)) else {
        return mismatch(path, format!("there is no case `{name}`; the cases are {}", describe(ty)));
    };
    match (case.ty, payload) {
        (None, None | Some(Value::Null)) => Ok(Val::Variant(case.name.to_owned(), None)),
        (None, Some(_)) => mismatch(path, format!("the case `{name}` holds nothing")),
        (Some(ty), None) => mismatch(path, format!("the case `{name}` holds {}: write {{\"{name}\": ...}}", describe(&ty))),
        (Some(ty), Some(payload)) => {
            let value = to_val(payload, &ty, handle, &format!("{path}.{name}"))?;
            Ok(Val::Variant(case.name.to_owned(), Some(Box::new(value))))
        }
    }
}

/// The key and value of an object with one key.
fn single(json: &Value) -> Option<(&str, &Value)> {
    let object = json.as_object()?;
    let mut entries = object.iter();
    match (entries.next(), entries.next()) {
        (Some((key, value)), None) => Some((key, value)),
        _ => None,
    }
}

fn items(
    json: &Value,
    ty: &Type,
    handle: Option<ResourceAny>,
    path: &str,
    wanted: impl Fn(&Value) -> Result<Val, Mismatch>,
) -> Result<Vec<Val>, Mismatch> {
    match json {
        Value::Array(items) => items.iter().enumerate().map(|(i, item)| to_val(item, ty, handle, &format!("{path}[{i}]"))).collect(),
        _ => wanted(json).map(|_| Vec::new()),
    }
}

fn bytes(json: &Value, path: &str) -> Result<Val, Mismatch> {
    let decoded = json.as_str().and_then(|text| BASE64.decode(text).ok());
    match decoded {
        Some(bytes) => Ok(Val::List(bytes.into_iter().map(Val::U8).collect())),
        None => mismatch(path, format!("bytes as base64 text are wanted, and {} was given", brief(json))),
    }
}

fn number(json: &Value) -> Option<f64> {
    match json {
        Value::String(text) if matches!(text.as_str(), "NaN" | "inf" | "-inf") => text.parse().ok(),
        other => other.as_f64(),
    }
}

/// The beginning of a JSON value, for errors.
fn brief(json: &Value) -> String {
    const LIMIT: usize = 60;
    let text = json.to_string();
    if text.len() <= LIMIT { text } else { format!("{}...", &text[..text.floor_char_boundary(LIMIT)]) }
}

/// A value of a type as JSON. A handle is written [`HANDLE`]; `handle` takes the last one seen.
pub(super) fn to_json(val: &Val, ty: &Type, handle: &mut Option<ResourceAny>) -> Value {
    match (val, ty) {
        (Val::Bool(b), _) => Value::Bool(*b),
        (Val::S8(n), _) => Value::from(*n),
        (Val::U8(n), _) => Value::from(*n),
        (Val::S16(n), _) => Value::from(*n),
        (Val::U16(n), _) => Value::from(*n),
        (Val::S32(n), _) => Value::from(*n),
        (Val::U32(n), _) => Value::from(*n),
        (Val::S64(n), _) => Value::from(*n),
        (Val::U64(n), _) => Value::from(*n),
        // The shortest decimal of the f32 itself: 0.1, not 0.10000000149.
        (Val::Float32(n), _) if n.is_finite() => n.to_string().parse().map_or_else(|_| Value::from(n.to_string()), float),
        (Val::Float32(n), _) => Value::from(n.to_string()),
        (Val::Float64(n), _) if n.is_finite() => float(*n),
        (Val::Float64(n), _) => Value::from(n.to_string()),
        (Val::Char(c), _) => Value::from(c.to_string()),
        (Val::String(s), _) => Value::from(s.as_str()),
        (Val::List(items), Type::List(l)) if matches!(l.ty(), Type::U8) => {
            let bytes: Vec<u8> = items.iter().filter_map(|i| if let Val::U8(b) = i { Some(*b) } else { None }).collect();
            Value::from(BASE64.encode(bytes))
        }
        (Val::List(items), Type::List(l)) => items.iter().map(|v| to_json(v, &l.ty(), handle)).collect(),
        (Val::FixedLengthList(items), Type::FixedLengthList(l)) => items.iter().map(|v| to_json(v, &l.ty(), handle)).collect(),
        (Val::Tuple(items), Type::Tuple(t)) => items.iter().zip(t.types()).map(|(v, ty)| to_json(v, &ty, handle)).collect(),
        (Val::Map(entries), Type::Map(m)) => {
            let mut object = Map::new();
            for (key, value) in entries {
                let key = match to_json(key, &m.key(), handle) {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                object.insert(key, to_json(value, &m.value(), handle));
            }
            Value::Object(object)
        }
        (Val::Record(fields), Type::Record(r)) => {
            let mut object = Map::new();
            for ((name, value), field) in fields.iter().zip(r.fields()) {
                object.insert(snake(name), to_json(value, &field.ty, handle));
            }
            Value::Object(object)
        }
        (Val::Variant(name, payload), Type::Variant(v)) => {
            match (payload, v.cases().find(|case| case.name == name).and_then(|case| case.ty)) {
                (Some(payload), Some(ty)) => object(&snake(name), to_json(payload, &ty, handle)),
                _ => Value::from(snake(name)),
            }
        }
        (Val::Enum(name), _) => Value::from(snake(name)),
        (Val::Option(Some(value)), Type::Option(o)) => to_json(value, &o.ty(), handle),
        (Val::Result(result), Type::Result(r)) => {
            let (key, payload, ty) = match result {
                Ok(value) => ("ok", value, r.ok()),
                Err(value) => ("error", value, r.err()),
            };
            object(key, payload.as_ref().zip(ty).map_or(Value::Null, |(value, ty)| to_json(value, &ty, handle)))
        }
        (Val::Flags(names), _) => names.iter().map(|n| Value::from(snake(n))).collect(),
        (Val::Resource(resource), _) => {
            *handle = Some(*resource);
            Value::from(HANDLE)
        }
        // None, and types of asynchronous calls, which no synchronous call returns.
        _ => Value::Null,
    }
}

/// Whole numbers are written as such.
fn float(n: f64) -> Value {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and in range")]
    if n.fract() == 0.0 && n.abs() < 9.0e15 { Value::from(n as i64) } else { Value::from(n) }
}

fn object(key: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(key.to_owned(), value)]))
}
