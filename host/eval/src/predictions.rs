//! Scoring of outputs that are given, with no model loaded: each prediction belongs to the row of the same `id`.
//!
//! A prediction's text is what a model wrote after the prompt, with or without its special tokens. The chat template takes it apart, as it does
//! with what this program generates: strings that the template writes as special tokens count as such, and the first stop token ends the text.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;
use trainer_data::{Format, Source, SourceSpec};
use trainer_plugin_host::metric::{Item, Request, Response};
use trainer_plugin_host::template::{Piece, PromptRequest, Rendered, Template};
use trainer_plugin_host::types::{CallArguments, Content, Conversation, Message, ToolCall};

use crate::answers::{AnswerRecord, Finished, cut_at_stop};
use crate::error::EvalError;
use crate::evaluate::{Evaluation, Judge, MetricUse, PLUGIN_BATCH, judge_responses, prepare};
use crate::report::{DataUse, RowCounts};
use crate::setup::{conversation, file_components};

/// Outputs by the id of their row.
pub struct Predictions {
    /// The file, for the report.
    pub data: DataUse,
    by_id: HashMap<String, Prediction>,
}

struct Prediction {
    place: String,
    line: u64,
    text: String,
}

/// What is read of a prediction or a row; what else it holds is no matter here.
#[derive(Deserialize)]
struct Line {
    id: Option<serde_json::Value>,
    text: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Identified {
    id: Option<serde_json::Value>,
}

impl Predictions {
    /// Reads a file of predictions: objects with an `id` and a `text`, one a line, or in any other format of data files.
    ///
    /// # Errors
    /// The file cannot be read, a line is no prediction, or two have one id.
    pub fn read(path: &Path) -> Result<Self, EvalError> {
        let path_text = path.to_string_lossy().into_owned();
        let mut spec = SourceSpec::paths("predictions", [path_text.clone()]);
        if Format::of_name(&path_text).is_none() {
            spec.format = Some(Format::Jsonl);
        }
        spec.order = trainer_data::Order::File;
        let source = Source::open(spec)?;
        let mut by_id: HashMap<String, Prediction> = HashMap::new();
        for row in source.rows() {
            let row = row?;
            let place = format!("{}:{}", row.file, row.row);
            let json = row.json.map_err(|bad| EvalError::BrokenRow { message: bad.to_string() })?;
            let line: Line =
                serde_json::from_str(&json).map_err(|e| EvalError::Prediction { place: place.clone(), message: e.to_string() })?;
            let id = id_of(line.id.as_ref()).map_err(|message| EvalError::Prediction { place: place.clone(), message })?;
            let text = match line.text {
                Some(serde_json::Value::String(text)) => text,
                Some(other) => {
                    let message = format!("its `text` is {}, not a string", kind(&other));
                    return Err(EvalError::Prediction { place, message });
                }
                None => return Err(EvalError::Prediction { place, message: "it has no `text`".into() }),
            };
            if let Some(first) = by_id.get(&id) {
                let message = format!("the id {id:?} is also that of {}", first.place);
                return Err(EvalError::Prediction { place, message });
            }
            by_id.insert(id, Prediction { place, line: row.row, text });
        }
        Ok(Self { data: DataUse { path: path_text, files: file_components(&source) }, by_id })
    }
}

/// An id as text: a string, or a number as it is written.
fn id_of(id: Option<&serde_json::Value>) -> Result<String, String> {
    match id {
        Some(serde_json::Value::String(id)) => Ok(id.clone()),
        Some(serde_json::Value::Number(id)) => Ok(id.to_string()),
        Some(other) => Err(format!("its `id` is {}, neither a string nor a number", kind(other))),
        None => Err("it has no `id`".to_owned()),
    }
}

fn kind(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::Object(_) => "an object",
    }
}

/// The ids of the rows, by place. Every row has one, and no two the same.
fn row_ids(rows: &[(String, String)]) -> Result<HashMap<&str, String>, EvalError> {
    let mut ids = HashMap::with_capacity(rows.len());
    let mut places: HashMap<String, &str> = HashMap::with_capacity(rows.len());
    for (place, row) in rows {
        let wrong =
            |message: String| EvalError::BrokenRow { message: format!("{place}: {message}; predictions are matched with rows by `id`") };
        let parsed: Identified = serde_json::from_str(row).map_err(|e| wrong(e.to_string()))?;
        let id = id_of(parsed.id.as_ref()).map_err(wrong)?;
        if let Some(first) = places.insert(id.clone(), place) {
            return Err(wrong(format!("the id {id:?} is also that of {first}")));
        }
        ids.insert(place.as_str(), id);
    }
    Ok(ids)
}

/// Scores predictions. `limit`: how many of the rows count; predictions may be there for the others too.
///
/// # Errors
/// A prediction is missing or belongs to no row; a metric asks for something else than a text; see [`EvalError`].
pub(crate) fn evaluate_predictions(
    template: &Template,
    judge: &Judge<'_>,
    predictions: &Predictions,
    limit: usize,
) -> Result<Evaluation, EvalError> {
    let ids = row_ids(judge.rows)?;
    let known: BTreeSet<&str> = ids.values().map(String::as_str).collect();
    let unknown = predictions.by_id.iter().filter(|(id, _)| !known.contains(id.as_str()));
    if let Some((id, prediction)) = unknown.min_by_key(|(_, prediction)| prediction.line) {
        let message = format!("no row of the data has the id {id:?}");
        return Err(EvalError::Prediction { place: prediction.place.clone(), message });
    }
    let judge = Judge {
        metrics: judge.metrics,
        rows: judge.rows.get(..limit).unwrap_or(judge.rows),
        max_bad_rows: judge.max_bad_rows,
        toolbox: judge.toolbox,
    };
    if judge.rows.is_empty() {
        return Err(EvalError::NoRows { what: "evaluation".into() });
    }
    let reader = Reader::new(template)?;
    let mut out = Evaluation::default();
    for (i, used) in judge.metrics.iter().enumerate() {
        if judge.metrics.iter().take(i).any(|m| m.name == used.name) {
            return Err(EvalError::DuplicateMetric(used.name.clone()));
        }
        one_metric(&reader, used, &judge, &ids, predictions, &mut out)?;
    }
    Ok(out)
}

fn one_metric(
    reader: &Reader<'_>,
    used: &MetricUse,
    judge: &Judge<'_>,
    ids: &HashMap<&str, String>,
    predictions: &Predictions,
    out: &mut Evaluation,
) -> Result<(), EvalError> {
    let mut counts = RowCounts { rows: judge.rows.len() as u64, ..RowCounts::default() };
    let asked = prepare(used, judge, &mut counts)?;
    let mut texts = Vec::with_capacity(asked.len());
    let mut missing: Option<(&str, &str, u64)> = None;
    for a in &asked {
        let Request::Generate(generation) = &a.request else {
            let message = format!("{} asks how likely given texts are, which only a model can say: give --model", used.name);
            return Err(EvalError::Prediction { place: a.place.to_owned(), message });
        };
        let Some(id) = ids.get(a.place) else { continue };
        match (predictions.by_id.get(id), &mut missing) {
            (Some(prediction), _) => {
                let mut text = prediction.text.clone();
                reader.cut(&mut text);
                cut_at_stop(&mut text, &generation.stop);
                texts.push(text);
            }
            (None, Some((_, _, count))) => *count += 1,
            (None, none) => *none = Some((a.place, id, 1)),
        }
    }
    if let Some((place, id, count)) = missing {
        let message = format!("no prediction in {} has the id {id:?} ({count} of {} rows have none)", predictions.data.path, asked.len());
        return Err(EvalError::Prediction { place: place.to_owned(), message });
    }
    let mut responses: Vec<(Response, Vec<AnswerRecord>)> = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(PLUGIN_BATCH) {
        let pieces: Vec<Vec<Piece>> = chunk.iter().map(|text| reader.pieces(text)).collect();
        for (text, parts) in chunk.iter().zip(reader.template.parse(&pieces)?) {
            let mut record = AnswerRecord { finish: Finished::Stop, ..AnswerRecord::default() };
            let response = match parts {
                Ok(parts) => {
                    record.add(text, &parts, None);
                    Response::Answers(vec![record.answer()])
                }
                Err(e) => {
                    record.add(text, &[], None);
                    Response::Failed(e.to_string())
                }
            };
            responses.push((response, vec![record]));
        }
    }
    let (items, answers) =
        asked.iter().zip(responses).map(|(a, (response, answers))| (Item { row: a.row.to_owned(), response }, answers)).unzip();
    judge_responses(used, judge, asked, items, answers, counts, out)
}

/// Takes the text of an output apart.
struct Reader<'t> {
    template: &'t Template,
    /// Tokens that end an output.
    stop: Vec<String>,
    /// All that the template writes as special tokens.
    special: Vec<String>,
}

impl<'t> Reader<'t> {
    /// Finds the template's special tokens by rendering a conversation that has everything.
    fn new(template: &'t Template) -> Result<Self, EvalError> {
        let stop = template.describe()?.stop_tokens;
        let mut special: BTreeSet<String> = stop.iter().cloned().collect();
        let mut probe = probe();
        for rendered in template.render_training(std::slice::from_ref(&probe))?.into_iter().flatten().flatten() {
            special.extend(special_tokens(&rendered));
        }
        probe.messages.truncate(1);
        let request = PromptRequest { conversation: probe, add_generation_prompt: true, enable_thinking: Some(false) };
        for rendered in template.render_prompts(&[request])?.into_iter().flatten() {
            special.extend(special_tokens(&rendered));
        }
        special.remove("");
        Ok(Self { template, stop, special: special.into_iter().collect() })
    }

    /// Cuts a text at its first stop token.
    fn cut(&self, text: &mut String) {
        cut_at_stop(text, &self.stop);
    }

    /// A text as ordinary text and special tokens.
    fn pieces(&self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut rest = text;
        // The first token, and of those that begin there the longest.
        let next = |text: &str| {
            let places = self.special.iter().filter_map(|t| text.find(t.as_str()).map(|at| (at, t)));
            places.min_by(|a, b| a.0.cmp(&b.0).then(b.1.len().cmp(&a.1.len())))
        };
        while let Some((at, token)) = next(rest) {
            let (before, after) = rest.split_at(at);
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Special(token.clone()));
            rest = after.get(token.len()..).unwrap_or_default();
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        pieces
    }
}

fn special_tokens(rendered: &Rendered) -> impl Iterator<Item = String> + '_ {
    rendered.segments.iter().filter_map(|s| match &s.piece {
        Piece::Special(token) => Some(token.clone()),
        Piece::Text(_) => None,
    })
}

/// A conversation with reasoning, calls and a tool's result.
fn probe() -> Conversation {
    let mut probe = conversation(&[("user", "?"), ("assistant", ""), ("tool", "{}"), ("assistant", "!")]);
    if let Some(message) = probe.messages.get_mut(1) {
        let arguments = CallArguments::Json("{}".to_owned());
        *message = Message {
            content: Content::None,
            reasoning_content: Some("?".to_owned()),
            tool_calls: vec![ToolCall { id: None, name: "f".to_owned(), arguments }],
            ..message.clone()
        };
    }
    if let Some(message) = probe.messages.get_mut(3) {
        message.reasoning_content = Some("?".to_owned());
    }
    probe.tools = vec![r#"{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}"#.to_owned()];
    probe
}
