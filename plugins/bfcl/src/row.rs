//! Rows of the leaderboard's data: a question, functions, and the answers that are allowed.

use trainer_plugin_sdk::{Content, Message, Object, Pointer, RowError};

use crate::check::Form;
use crate::literal::Language;
use crate::value::Value;

/// What a category asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The calls that the answers allow.
    Calls(Form, Language),
    /// Any call.
    SomeCall,
    /// No call.
    NoCall,
}

/// What becomes of a row's category.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Category {
    /// One that is judged by a single answer.
    Judged(String, Asks),
    /// One that the leaderboard judges by other means; the reason to skip it.
    Other(String),
}

/// A row.
pub struct Row<'a> {
    row: Object<'a>,
    /// Its category.
    pub category: Category,
}

const COLUMNS: [&str; 6] = ["id", "category", "question", "function", "ground_truth", "possible_answer"];

impl<'a> Row<'a> {
    /// Reads a row's category: its column `category`, or what precedes the number in its `id`.
    ///
    /// # Errors
    /// The row is no object, or of no category.
    pub fn new(json: &'a str) -> Result<Self, RowError> {
        let row = Object::row(json, &COLUMNS)?;
        let (column, name) = match row.optional_string("category")? {
            Some(category) => ("category", category),
            None => {
                let id = row.string("id")?;
                let name = id.split(':').next().unwrap_or_default();
                ("id", name.rsplit_once('_').map_or(name, |(name, _)| name).to_owned())
            }
        };
        let category = category(&name).ok_or_else(|| {
            let known = "simple, multiple, parallel, parallel_multiple, irrelevance or relevance, also after live_";
            RowError::new(row.place(column), format!("{name:?} is no category: {known}; the column `category` can name it"))
        })?;
        Ok(Self { row, category })
    }

    /// The messages of the question; rows of judged categories have one turn.
    ///
    /// # Errors
    /// The question is no list of one list of messages.
    pub fn messages(&self) -> Result<Vec<Message>, RowError> {
        let place = self.row.place("question");
        let turns = self.row.list("question")?;
        // Messages may also stand in the list itself.
        let flat = turns.first().is_some_and(|turn| turn.starts_with('{'));
        let (place, messages) = match (flat, turns.as_slice()) {
            (true, _) => (place, turns),
            (false, [turn]) => {
                let raw: Vec<&serde_json::value::RawValue> =
                    serde_json::from_str(turn).map_err(|_| RowError::new(place.at(0), "a list of messages belongs here"))?;
                (place.at(0), raw.into_iter().map(serde_json::value::RawValue::get).collect())
            }
            (false, _) => return Err(RowError::new(place, format!("{} turns where one belongs", turns.len()))),
        };
        let read = |(i, raw): (usize, &str)| message(raw, place.at(i));
        let messages: Vec<Message> = messages.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        if messages.is_empty() {
            return Err(RowError::new(place, "an empty list where at least one message belongs"));
        }
        Ok(messages)
    }

    /// The functions on offer.
    ///
    /// # Errors
    /// They are no list of objects.
    pub fn functions(&self) -> Result<Vec<Value>, RowError> {
        let place = self.row.place("function");
        let raw = self.row.get("function").ok_or_else(|| self.row.missing("function", "a list of functions"))?;
        objects(raw, &place)
    }

    /// The answers that are allowed: objects with one member, the function's name.
    ///
    /// # Errors
    /// The row has none, or not in this form.
    pub fn answers(&self) -> Result<Vec<Value>, RowError> {
        let column = if self.row.get("ground_truth").is_some() { "ground_truth" } else { "possible_answer" };
        let place = self.row.place(column);
        let raw = self.row.get(column).ok_or_else(|| {
            let message = "missing: the leaderboard keeps the allowed answers in files of their own; join them to the rows by `id`";
            RowError::new(self.row.place("ground_truth"), message)
        })?;
        // The line of the answers' file, put into the row as a whole.
        let nested = Value::parse(raw).ok().and_then(|value| value.get("ground_truth").map(Value::to_json));
        let answers = objects(nested.as_deref().unwrap_or(raw), &place)?;
        if answers.is_empty() {
            return Err(RowError::new(place, "an empty list where at least one answer belongs"));
        }
        for (i, answer) in answers.iter().enumerate() {
            if !matches!(answer.members(), [(_, Value::Dict(_))]) {
                return Err(RowError::new(place.at(i), "an answer is an object with one member, a function with its arguments"));
            }
        }
        Ok(answers)
    }
}

fn objects(raw: &str, place: &Pointer) -> Result<Vec<Value>, RowError> {
    let value = Value::parse(raw).map_err(|e| RowError::new(place.clone(), e))?;
    let Value::List(elements) = value else {
        return Err(RowError::new(place.clone(), format!("{} where a list of objects belongs", value.kind().name())));
    };
    match elements.iter().position(|e| !matches!(e, Value::Dict(_))) {
        Some(i) => Err(RowError::new(place.at(i), "an object belongs here")),
        None => Ok(elements),
    }
}

fn message(raw: &str, place: Pointer) -> Result<Message, RowError> {
    let message = Object::read(raw, &["role", "content"], place)?;
    Ok(Message { content: Content::Text(message.string("content")?), ..Message::empty(message.string("role")?) })
}

/// The category of this name, if there is one.
fn category(name: &str) -> Option<Category> {
    const BY_OTHER_MEANS: [(&str, &str); 6] = [
        ("multi_turn", "rows of several turns are judged by the state that the calls lead to"),
        ("memory", "memory rows are judged by the last message of a conversation"),
        ("web_search", "web search rows are judged by the last message of a conversation"),
        ("format_sensitivity", "format sensitivity rows are about other output formats"),
        ("exec", "executable rows are judged by running the calls"),
        ("rest", "executable rows are judged by running the calls"),
    ];
    if let Some((_, reason)) = BY_OTHER_MEANS.iter().find(|(start, _)| name.starts_with(start)) {
        return Some(Category::Other((*reason).to_owned()));
    }
    let asks = match name.strip_prefix("live_").unwrap_or(name) {
        "simple" | "simple_python" => Asks::Calls(Form::Simple, Language::Python),
        "simple_java" | "java" => Asks::Calls(Form::Simple, Language::Java),
        "simple_javascript" | "javascript" => Asks::Calls(Form::Simple, Language::JavaScript),
        "multiple" => Asks::Calls(Form::Multiple, Language::Python),
        "parallel" | "parallel_multiple" => Asks::Calls(Form::Parallel, Language::Python),
        "irrelevance" => Asks::NoCall,
        "relevance" => Asks::SomeCall,
        _ => return None,
    };
    Some(Category::Judged(name.to_owned(), asks))
}
