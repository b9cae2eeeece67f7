//! The leaderboard's check of calls against the answers that a row allows.
//!
//! It follows the checker of the package `bfcl-eval` in every verdict, oddities included: what is compared loosely (text), what only by
//! type, and what makes that checker fail (such a call counts as wrong here). The names of faults are the checker's.

use std::fmt;

use crate::literal::{self, Language};
use crate::value::{Type, Value};

/// A call: the function's name and its arguments.
#[derive(Clone, Debug)]
pub struct Call {
    /// The name.
    pub name: String,
    /// The arguments, by name.
    pub arguments: Value,
}

/// How a row's calls are matched with its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One call of the only function.
    Simple,
    /// One call of one of several functions.
    Multiple,
    /// Several calls, in any order.
    Parallel,
}

/// Why calls are wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The checker's name for it.
    pub kind: &'static str,
    /// For the reader.
    pub message: String,
    /// The leaderboard's checker itself fails here, so no other call is tried.
    fatal: bool,
}

/// The fault of rows and calls at which the leaderboard's checker fails.
pub const CHECKER_FAILS: &str = "checker_fails";

impl Fault {
    fn new(kind: &'static str, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), fatal: false }
    }

    /// A fault of the calls as a whole, before any is compared.
    pub(crate) fn decoder(kind: &'static str, message: impl Into<String>) -> Self {
        Self::new(kind, message)
    }

    pub(crate) fn fatal(message: impl Into<String>) -> Self {
        Self { kind: CHECKER_FAILS, message: message.into(), fatal: true }
    }
}

type Check<T = ()> = Result<T, Fault>;

/// What calls are checked against.
pub struct Expected<'a> {
    /// How calls and answers are matched.
    pub form: Form,
    /// In which language the values are written.
    pub language: Language,
    /// The functions on offer.
    pub functions: &'a [Value],
    /// The answers: objects with one member, the function, whose arguments have lists of allowed values.
    pub answers: &'a [Value],
    /// Whether dots in functions' names are underscores in calls.
    pub underscores: bool,
}

/// A value in a message, cut where it is long.
pub struct Shown<'a>(pub &'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 160;
        let json = self.0.to_json();
        match json.char_indices().nth(LONGEST) {
            Some((end, _)) => write!(f, "{}…", json.get(..end).unwrap_or_default()),
            None => f.write_str(&json),
        }
    }
}

impl Expected<'_> {
    /// Whether the calls are those that the row asks for.
    ///
    /// # Errors
    /// What is wrong with them; in parallel rows with the answer that no call fits.
    pub fn check(&self, calls: &[Call]) -> Check {
        let wrong_count = |kind, wanted: usize| Fault::new(kind, format!("{} calls where {wanted} belong", calls.len()));
        match self.form {
            Form::Parallel => self.parallel(calls),
            Form::Multiple if calls.len() != self.answers.len() => {
                Err(wrong_count("multiple_function_checker:wrong_count", self.answers.len()))
            }
            Form::Simple if calls.len() != 1 => Err(wrong_count("simple_function_checker:wrong_count", 1)),
            form => {
                let Some(answer) = self.answers.first() else { return Err(Fault::fatal("the row has no answer")) };
                let function = match form {
                    Form::Multiple => self.function_of(answer)?,
                    _ => self.functions.first(),
                };
                let Some(call) = calls.first() else { return Err(Fault::fatal("there is no call")) };
                self.call(function, call, answer)
            }
        }
    }

    /// Takes the answers one by one, each with the first call that fits it and no earlier answer.
    fn parallel(&self, calls: &[Call]) -> Check {
        if calls.len() != self.answers.len() {
            let message = format!("{} calls where {} belong", calls.len(), self.answers.len());
            return Err(Fault::new("parallel_function_checker_no_order:wrong_count", message));
        }
        let mut left: Vec<&Call> = calls.iter().collect();
        for (i, answer) in self.answers.iter().enumerate() {
            let function = self.function_of(answer)?;
            let mut faults = Vec::new();
            let mut fitting = None;
            for (at, call) in left.iter().enumerate() {
                match self.call(function, call, answer) {
                    Ok(()) => {
                        fitting = Some(at);
                        break;
                    }
                    Err(fault) if fault.fatal => return Err(fault),
                    Err(fault) => faults.push(fault.message),
                }
            }
            match fitting {
                Some(at) => {
                    left.remove(at);
                }
                None => {
                    let message = format!("no call fits answer {}: {}", i + 1, faults.join("; "));
                    return Err(Fault::new("parallel_function_checker_no_order:cannot_find_match", message));
                }
            }
        }
        Ok(())
    }

    /// The description of the function that an answer calls.
    fn function_of(&self, answer: &Value) -> Check<Option<&Value>> {
        let (name, _) = answer.members().first().ok_or_else(|| Fault::fatal("an answer names no function"))?;
        Ok(self.functions.iter().find(|f| f.get("name").and_then(Value::text) == Some(name)))
    }

    fn call(&self, function: Option<&Value>, call: &Call, answer: &Value) -> Check {
        let Some((_, allowed)) = answer.members().first() else { return Err(Fault::fatal("an answer names no function")) };
        let function = function.ok_or_else(|| Fault::fatal("the answer's function is not on offer"))?;
        let name = function.get("name").and_then(Value::text).ok_or_else(|| Fault::fatal("a function has no name"))?;
        let parameters = function.get("parameters");
        let (Some(Value::Dict(properties)), Some(Value::List(required))) =
            (parameters.and_then(|p| p.get("properties")), parameters.and_then(|p| p.get("required")))
        else {
            return Err(Fault::fatal(format!("{name} does not say its `properties` and which are `required`")));
        };
        let name = if self.underscores { name.replace('.', "_") } else { name.to_owned() };
        if call.name != name {
            return Err(Fault::new("simple_function_checker:wrong_func_name", format!("{:?} is called and not {name:?}", call.name)));
        }
        for parameter in required.iter().filter_map(Value::text) {
            if call.arguments.get(parameter).is_none() {
                let message = format!("the required {parameter:?} is missing");
                return Err(Fault::new("simple_function_checker:missing_required", message));
            }
        }
        for (parameter, value) in call.arguments.members() {
            let description = properties.iter().find(|(key, _)| key == parameter).map(|(_, d)| d);
            let (Some(description), Some(allowed)) = (description, allowed.get(parameter)) else {
                let message = format!("{parameter:?} is not expected");
                return Err(Fault::new("simple_function_checker:unexpected_param", message));
            };
            let Value::List(allowed) = allowed else {
                return Err(Fault::fatal(format!("the allowed values of {parameter:?} are no list")));
            };
            self.argument(description, value, allowed)
                .map_err(|fault| Fault { message: format!("{parameter:?} is {}: {}", Shown(value), fault.message), ..fault })?;
        }
        for (parameter, allowed) in allowed.members() {
            if call.arguments.get(parameter).is_none() && !may_be_absent(allowed)? {
                let message = format!("{parameter:?} is missing, and has no default that is allowed");
                return Err(Fault::new("simple_function_checker:missing_optional", message));
            }
        }
        Ok(())
    }

    /// One argument against its description and its allowed values.
    fn argument(&self, description: &Value, value: &Value, allowed: &[Value]) -> Check {
        let described = Described::new(self.language, description)?;
        let converted;
        let value = match (self.language, value) {
            (Language::Python, Value::Int(int)) if described.name == "float" => {
                converted = Value::Float(int.to_float().ok_or_else(|| Fault::fatal("the integer is too large for a float"))?);
                &converted
            }
            (Language::Python, value) => value,
            (_, Value::Str(text)) => {
                converted = literal::read(self.language, text, described.name, described.nested_name)?;
                &converted
            }
            (language, other) => {
                let kind = if language == Language::Java { "type_error:java" } else { "type_error:js" };
                return Err(Fault::new(kind, format!("{} where a literal in a string belongs", other.kind().name())));
            }
        };
        let variable = type_check(value, allowed, described.outer, described.nested)?;
        if !variable {
            match (described.outer, described.nested, value) {
                (Type::Dict, _, Value::Dict(_)) => return dict(value, allowed),
                (Type::List, Some(Type::Dict), Value::List(elements)) => return list_of_dicts(elements, allowed),
                (Type::Str, _, Value::Str(text)) => return string(text, allowed),
                (Type::List, _, Value::List(elements)) => return list(elements, allowed),
                _ => {}
            }
        }
        if allowed.contains(value) { Ok(()) } else { Err(not_among("value_error:others", allowed)) }
    }
}

/// What a function's description says of a parameter's type.
struct Described<'a> {
    name: &'a str,
    outer: Type,
    nested_name: Option<&'a str>,
    nested: Option<Type>,
}

impl<'a> Described<'a> {
    fn new(language: Language, description: &'a Value) -> Check<Self> {
        let known = |description: Option<&'a Value>| {
            let name = description.and_then(|d| d.get("type")).and_then(Value::text);
            let name = name.ok_or_else(|| Fault::fatal("the parameter's description has no type"))?;
            let kind = language.type_named(name).ok_or_else(|| Fault::fatal(format!("the type {name:?} is not known")))?;
            Ok::<_, Fault>((name, kind))
        };
        let (name, outer) = known(Some(description))?;
        let (nested_name, nested) = match language.has_items(name) {
            true => known(description.get("items")).map(|(name, kind)| (Some(name), Some(kind)))?,
            false => (None, None),
        };
        Ok(Self { name, outer, nested_name, nested })
    }
}

/// The type of the first allowed value that is one.
fn type_of_allowed(allowed: &[Value]) -> Option<Type> {
    allowed.iter().find(|v| !v.is_empty_string()).map(Value::kind)
}

/// Whether a value has the expected type, or that of the allowed values: such stand for variables, and the answer is then true.
fn type_check(value: &Value, allowed: &[Value], expected: Type, nested: Option<Type>) -> Check<bool> {
    let other = type_of_allowed(allowed);
    let wrong = |kind, expected: &str| Fault::new(kind, format!("{} where {expected} belongs", value.kind().name()));
    if value.kind() != expected {
        return if other == Some(value.kind()) { Ok(true) } else { Err(wrong("type_error:simple", expected.name())) };
    }
    let variable = other.is_some_and(|t| t != expected);
    let Some(nested) = nested else { return Ok(variable) };
    // Each element must fit one of the allowed lists by its type; an allowed value that is no list fits all.
    for list in allowed {
        let fits = |element: &Value| type_check(element, list.elements(), nested, None).is_ok();
        if !matches!(list, Value::List(_)) || value.elements().iter().all(fits) {
            return Ok(variable);
        }
    }
    let kind = if other == Some(value.kind()) { "type_error:nested" } else { "type_error:simple" };
    Err(wrong(kind, &format!("a list of type {}", nested.name())))
}

/// Text in the form in which it is compared: without spaces and `,./-_*^`, in lower case, with double quotes for single ones.
pub fn standardized(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !matches!(c, ' ' | ',' | '.' | '/' | '-' | '_' | '*' | '^')).collect();
    kept.to_lowercase().replace('\'', "\"")
}

fn standardized_value(value: &Value) -> Value {
    match value {
        Value::Str(text) => Value::Str(standardized(text)),
        other => other.clone(),
    }
}

fn not_among(kind: &'static str, allowed: &[Value]) -> Fault {
    Fault::new(kind, format!("not among {}", Shown(&Value::List(allowed.to_vec()))))
}

fn string(text: &str, allowed: &[Value]) -> Check {
    let text = standardized(text);
    let fits = allowed.iter().filter_map(Value::text).any(|a| standardized(a) == text);
    if fits { Ok(()) } else { Err(not_among("value_error:string", allowed)) }
}

fn list(elements: &[Value], allowed: &[Value]) -> Check {
    let elements: Vec<Value> = elements.iter().map(standardized_value).collect();
    let mut fits = false;
    // All are looked at before any is compared: one that cannot be taken apart makes the checker fail.
    for one in allowed {
        fits |= parts(one)? == elements;
    }
    if fits { Ok(()) } else { Err(not_among("value_error:list/tuple", allowed)) }
}

/// The elements of an allowed list, standardized; a string gives its characters.
fn parts(value: &Value) -> Check<Vec<Value>> {
    match value {
        Value::List(elements) => Ok(elements.iter().map(standardized_value).collect()),
        Value::Str(text) => Ok(text.chars().map(|c| Value::Str(standardized(&c.to_string()))).collect()),
        Value::Dict(members) if members.is_empty() => Ok(Vec::new()),
        other => Err(Fault::fatal(format!("an allowed value is of type {} where a list belongs", other.kind().name()))),
    }
}

/// Whether what is allowed for a parameter includes the empty string, which marks it as optional.
fn may_be_absent(allowed: &Value) -> Check<bool> {
    match allowed {
        Value::List(values) => Ok(values.iter().any(Value::is_empty_string)),
        Value::Str(_) => Ok(true),
        Value::Dict(_) => Ok(allowed.get("").is_some()),
        other => Err(Fault::fatal(format!("the allowed values are of type {}", other.kind().name()))),
    }
}

/// An object against the allowed ones, whose members have lists of allowed values.
fn dict(value: &Value, allowed: &[Value]) -> Check {
    let mut result = Err(Fault::new("dict_checker:unclear", "no object is allowed"));
    for candidate in allowed.iter().filter(|a| !a.is_empty_string()) {
        result = one_dict(value, candidate)?;
        if result.is_ok() {
            break;
        }
    }
    result
}

/// The outer result is that of the checker, the inner one that of the comparison.
fn one_dict(value: &Value, candidate: &Value) -> Check<Check> {
    let (Value::Dict(members), Value::Dict(wanted)) = (value, candidate) else {
        return Err(Fault::fatal("an object is compared with something else"));
    };
    let mut result = Ok(());
    for (key, value) in members {
        let Some(values) = candidate.get(key) else {
            result = Err(Fault::new("value_error:dict_key", format!("the key {key:?} is not expected")));
            break;
        };
        if !parts(values)?.contains(&standardized_value(value)) {
            let message = format!("{key:?} is {}, not among {}", Shown(value), Shown(values));
            result = Err(Fault::new("value_error:dict_value", message));
            break;
        }
    }
    for (key, values) in wanted {
        if value.get(key).is_none() && !may_be_absent(values)? {
            result = Err(Fault::new("value_error:dict_key", format!("the key {key:?} is missing")));
            break;
        }
    }
    Ok(result)
}

/// A list of objects against the allowed lists, element by element.
fn list_of_dicts(elements: &[Value], allowed: &[Value]) -> Check {
    let mut result = Err(Fault::new("list_dict_checker:unclear", "no list is allowed"));
    for candidate in allowed {
        let (count, wanted) = match candidate {
            Value::List(wanted) => (wanted.len(), wanted.as_slice()),
            // Their lengths are compared before it shows that they are no lists.
            Value::Str(text) => (text.chars().count(), [].as_slice()),
            Value::Dict(members) => (members.len(), [].as_slice()),
            other => return Err(Fault::fatal(format!("an allowed value is of type {} where a list belongs", other.kind().name()))),
        };
        if count != elements.len() {
            let message = format!("{} objects where {count} belong", elements.len());
            result = Err(Fault::new("value_error:list_dict_count", message));
            continue;
        }
        if wanted.len() != count {
            return Err(Fault::fatal("an allowed value is no list of objects"));
        }
        result = Ok(());
        for (element, one) in elements.iter().zip(wanted) {
            match dict(element, std::slice::from_ref(one)) {
                Ok(()) => {}
                Err(fault) if fault.fatal => return Err(fault),
                wrong => {
                    result = wrong;
                    break;
                }
            }
        }
        if result.is_ok() {
            break;
        }
    }
    result
}
