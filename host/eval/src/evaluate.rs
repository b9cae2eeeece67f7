//! The evaluation itself: rows to questions, questions to answers, answers to scores.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trainer_engine::{Adapter, Cancel, GenOptions, GenRequest, Generator, Model, ScoreRequest};
use trainer_kernels::ops::Ops;
use trainer_kernels::sampling::SamplingParams;
use trainer_plugin_host::metric::{Aggregate, Answer, Finish, Item, Metric, Plan, Request, Response, Score, Value};
use trainer_plugin_host::template::{Piece as TemplatePiece, PromptRequest, Rendered, Template};
use trainer_plugin_host::types::Conversation;
use trainer_text::{Piece, Segment, SpecialMode, Tokenizer};

use crate::answers::{Output, answer, cut_at_stop, finish, finish_name};
use crate::error::EvalError;
use crate::report::{RowCounts, SampleResult, ScoreRecord};

/// Rows that go through a plugin at once.
pub(crate) const PLUGIN_BATCH: usize = 64;
/// Prompt tokens in one forward pass.
pub const PREFILL_TOKENS: usize = 2048;

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// Temperature (0: greedy), top-k, top-p, min-p, repetition penalty.
    pub params: SamplingParams,
    /// The longest answer in tokens, where the metric does not say.
    pub max_new_tokens: usize,
    /// Qwen3's thinking switch, where the metric does not say; null: not passed.
    pub enable_thinking: Option<bool>,
    /// The seed; each sample and repeat has a stream of its own.
    pub seed: u64,
}

/// The model with all that it takes to talk to it.
pub struct Subject<'a, O: Ops> {
    /// The model.
    pub model: Arc<Model<O>>,
    /// The adapter, if there is one that is not part of the model's weights.
    pub adapter: Option<&'a Adapter<O>>,
    /// How many answers are generated at once; never changes a result.
    pub slots: usize,
    /// The most tokens in the key/value cache: of longer sequences fewer are generated at once. None: no limit.
    pub cache_tokens: Option<usize>,
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Tokens at which an answer ends.
    pub stop_ids: &'a [u32],
    /// The chat template.
    pub template: &'a Template,
}

/// A metric with its name in the report.
pub struct MetricUse {
    /// The plugin's name.
    pub name: String,
    /// The metric.
    pub metric: Metric,
}

/// What judges, and on which rows.
pub struct Judge<'a> {
    /// The metrics; names must differ.
    pub metrics: &'a [MetricUse],
    /// File and row, and the row as JSON.
    pub rows: &'a [(String, String)],
    /// How many rows a metric may refuse as broken.
    pub max_bad_rows: u64,
}

/// How far an evaluation is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Answers that are complete.
    pub done: usize,
    /// Answers in all, as far as known.
    pub total: usize,
    /// Tokens generated so far.
    pub tokens: u64,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// `<metric>/<aggregate>` to its value.
    pub metrics: BTreeMap<String, f64>,
    /// Standard errors, where there are any.
    pub stderr: BTreeMap<String, f64>,
    /// Whether more is better, where the metric says so.
    pub higher_is_better: BTreeMap<String, bool>,
    /// By metric.
    pub scoring_versions: BTreeMap<String, String>,
    /// By metric.
    pub rows: BTreeMap<String, RowCounts>,
    /// In the order of metrics and rows.
    pub samples: Vec<SampleResult>,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub generated_tokens: u64,
}

/// Evaluates. `progress` is told of every finished answer and can stop the evaluation.
///
/// # Errors
/// Whatever ends an evaluation as a whole; see [`EvalError`].
pub fn evaluate<O: Ops>(
    subject: &Subject<'_, O>,
    judge: &Judge<'_>,
    decoding: &Decoding,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Evaluation, EvalError> {
    if judge.rows.is_empty() {
        return Err(EvalError::NoRows { what: "evaluation".into() });
    }
    let mut out = Evaluation::default();
    for (i, used) in judge.metrics.iter().enumerate() {
        if judge.metrics.iter().take(i).any(|m| m.name == used.name) {
            return Err(EvalError::DuplicateMetric(used.name.clone()));
        }
        one_metric(subject, used, judge, decoding, progress, &mut out)?;
    }
    Ok(out)
}

/// A row with its question.
pub(crate) struct Asked<'a> {
    /// File and row.
    pub place: &'a str,
    /// The row as JSON.
    pub row: &'a str,
    /// What the metric asks.
    pub request: Request,
    prompt: String,
    prompt_ids: Vec<u32>,
    failed: Option<String>,
}

fn one_metric<O: Ops>(
    subject: &Subject<'_, O>,
    used: &MetricUse,
    judge: &Judge<'_>,
    decoding: &Decoding,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    out: &mut Evaluation,
) -> Result<(), EvalError> {
    let mut counts = RowCounts { rows: judge.rows.len() as u64, ..RowCounts::default() };
    let mut asked = prepare(used, judge, &mut counts)?;
    for chunk in asked.chunks_mut(PLUGIN_BATCH) {
        render(subject, decoding, chunk)?;
    }
    let responses = respond(subject, &asked, decoding, progress, out)?;
    let (items, shown) = asked.iter().zip(responses).map(|(a, (response, raw))| (Item { row: a.row.to_owned(), response }, raw)).unzip();
    judge_responses(used, asked, items, shown, counts, out)
}

/// Scores responses, one per question, and sums up.
pub(crate) fn judge_responses(
    used: &MetricUse,
    asked: Vec<Asked<'_>>,
    items: Vec<Item>,
    shown: Vec<Shown>,
    mut counts: RowCounts,
    out: &mut Evaluation,
) -> Result<(), EvalError> {
    let mut scores: Vec<Vec<Score>> = Vec::with_capacity(asked.len());
    for chunk in items.chunks(PLUGIN_BATCH) {
        for scored in used.metric.score(chunk)? {
            // A trap costs the sample: it has no score, and the metric's aggregate sees it as such.
            scores
                .push(scored.unwrap_or_else(|e| vec![Score { name: "error".into(), value: Value::Unscored, explanation: e.to_string() }]));
        }
    }
    for aggregate in used.metric.aggregate(&scores)? {
        add_aggregate(out, &used.name, aggregate);
    }
    out.scoring_versions.insert(used.name.clone(), used.metric.scoring_version()?);
    for (((a, item), raw), scores) in asked.into_iter().zip(items).zip(shown).zip(scores) {
        let failed = match item.response {
            Response::Failed(why) => Some(why),
            _ => None,
        };
        counts.scored += 1;
        counts.failed += u64::from(failed.is_some());
        out.samples.push(SampleResult {
            metric: used.name.clone(),
            row: a.place.to_owned(),
            prompt: a.prompt,
            outputs: raw.iter().map(|r| r.0.clone()).collect(),
            finish: raw.iter().map(|r| finish_name(r.1).to_owned()).collect(),
            tokens: raw.iter().filter_map(|r| r.2).collect(),
            failed,
            scores: scores.into_iter().map(score_record).collect(),
        });
    }
    out.rows.insert(used.name.clone(), counts);
    Ok(())
}

fn add_aggregate(out: &mut Evaluation, metric: &str, aggregate: Aggregate) {
    let name = format!("{metric}/{}", aggregate.name);
    if let Some(stderr) = aggregate.stderr {
        out.stderr.insert(name.clone(), stderr);
    }
    if let Some(better) = aggregate.higher_is_better {
        out.higher_is_better.insert(name.clone(), better);
    }
    out.metrics.insert(name, aggregate.value);
}

fn score_record(score: Score) -> ScoreRecord {
    let value = match score.value {
        Value::Number(x) => serde_json::json!(x),
        Value::Boolean(b) => serde_json::json!(b),
        Value::Text(t) => serde_json::json!(t),
        Value::Unscored => serde_json::Value::Null,
    };
    ScoreRecord { name: score.name, value, explanation: score.explanation }
}

/// Asks the metric what to ask.
pub(crate) fn prepare<'a>(used: &MetricUse, judge: &Judge<'a>, counts: &mut RowCounts) -> Result<Vec<Asked<'a>>, EvalError> {
    let mut asked = Vec::with_capacity(judge.rows.len());
    for chunk in judge.rows.chunks(PLUGIN_BATCH) {
        let rows: Vec<String> = chunk.iter().map(|(_, row)| row.clone()).collect();
        for ((place, row), plan) in chunk.iter().zip(used.metric.prepare(&rows)?) {
            let (pointer, message) = match plan {
                Ok(Plan::Ask(request)) => {
                    asked.push(Asked { place, row, request, prompt: String::new(), prompt_ids: Vec::new(), failed: None });
                    continue;
                }
                Ok(Plan::Skip(reason)) => {
                    *counts.skipped.entry(reason).or_default() += 1;
                    continue;
                }
                Ok(Plan::Bad((pointer, message))) => (pointer, message),
                Err(e) => (String::new(), e.to_string()),
            };
            counts.bad += 1;
            tracing::warn!(row = %place, metric = %used.name, %pointer, %message, "bad row");
            if counts.bad > judge.max_bad_rows {
                return Err(EvalError::BadRow {
                    place: place.clone(),
                    metric: used.name.clone(),
                    pointer,
                    message,
                    count: counts.bad,
                    allowed: judge.max_bad_rows,
                });
            }
        }
    }
    Ok(asked)
}

fn conversation(request: &Request) -> &Conversation {
    match request {
        Request::Generate(g) => &g.conversation,
        Request::LogLikelihood(l) => &l.conversation,
    }
}

/// Fills in the prompts.
fn render<O: Ops>(subject: &Subject<'_, O>, decoding: &Decoding, asked: &mut [Asked<'_>]) -> Result<(), EvalError> {
    let requests: Vec<PromptRequest> = asked
        .iter()
        .map(|a| PromptRequest {
            conversation: conversation(&a.request).clone(),
            add_generation_prompt: true,
            enable_thinking: match &a.request {
                Request::Generate(g) => g.enable_thinking.or(decoding.enable_thinking),
                Request::LogLikelihood(_) => decoding.enable_thinking,
            },
        })
        .collect();
    for (a, rendered) in asked.iter_mut().zip(subject.template.render_prompts(&requests)?) {
        match rendered {
            Ok(rendered) => {
                a.prompt = rendered_text(&rendered);
                a.prompt_ids =
                    encode_prompt(subject.tokenizer, &rendered).map_err(|source| EvalError::Text { place: a.place.to_owned(), source })?;
                if a.prompt_ids.is_empty() {
                    a.failed = Some("the prompt is empty".into());
                }
            }
            Err(e) => a.failed = Some(format!("the chat template cannot render the prompt: {e}")),
        }
    }
    Ok(())
}

/// A rendered text as a reader sees it.
pub fn rendered_text(rendered: &Rendered) -> String {
    rendered
        .segments
        .iter()
        .map(|s| match &s.piece {
            TemplatePiece::Text(t) | TemplatePiece::Special(t) => t.as_str(),
        })
        .collect()
}

/// A rendered prompt as tokens; strings in its text that look like special tokens stay text.
///
/// # Errors
/// The template asks for a special token that the tokenizer does not have.
pub fn encode_prompt(tokenizer: &Tokenizer, rendered: &Rendered) -> Result<Vec<u32>, trainer_text::TextError> {
    let segments: Vec<Segment<'_>> = rendered
        .segments
        .iter()
        .map(|s| Segment {
            piece: match &s.piece {
                TemplatePiece::Text(t) => Piece::Text(t.as_str()),
                TemplatePiece::Special(t) => Piece::Special(t.as_str()),
            },
            weight: 0.0,
        })
        .collect();
    Ok(tokenizer.encode_segments(&segments, SpecialMode::Plain)?.ids)
}

/// An output, or why the request could not be served.
type Answered = std::result::Result<Output, String>;
/// A continuation's log-probability, tokens and whether it is the greedy one, or why it could not be scored.
type Scored = std::result::Result<(f64, u32, bool), String>;
/// Raw output, why it ended, and its tokens where they are known, per repeat.
pub(crate) type Shown = Vec<(String, Finish, Option<usize>)>;

/// Lets the model answer: one response per question, in order, with the raw outputs.
fn respond<O: Ops>(
    subject: &Subject<'_, O>,
    asked: &[Asked<'_>],
    decoding: &Decoding,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    out: &mut Evaluation,
) -> Result<Vec<(Response, Shown)>, EvalError> {
    let mut requests = Vec::new();
    let mut likelihoods = Vec::new();
    // Which question, and which repeat or continuation, a request's number stands for.
    let mut owners: Vec<usize> = Vec::new();
    let mut likelihood_owners: Vec<usize> = Vec::new();
    for (index, a) in asked.iter().enumerate().filter(|(_, a)| a.failed.is_none()) {
        match &a.request {
            Request::Generate(g) => {
                let repeats = if decoding.params.temperature == 0.0 { 1 } else { g.repeats.max(1) };
                for repeat in 0..repeats {
                    requests.push(GenRequest {
                        id: owners.len() as u64,
                        prompt_ids: a.prompt_ids.clone(),
                        params: decoding.params,
                        seed: decoding.seed,
                        sample: index as u64,
                        repeat,
                        max_new_tokens: g.max_new_tokens.map_or(decoding.max_new_tokens, |n| n as usize),
                        stop_ids: subject.stop_ids.to_vec(),
                        ..GenRequest::default()
                    });
                    owners.push(index);
                }
            }
            Request::LogLikelihood(l) => {
                for text in &l.continuations {
                    let ids = subject
                        .tokenizer
                        .encode(text, SpecialMode::Plain)
                        .map_err(|source| EvalError::Text { place: a.place.to_owned(), source })?;
                    likelihoods.push(ScoreRequest {
                        id: likelihood_owners.len() as u64,
                        prompt_ids: a.prompt_ids.clone(),
                        continuation_ids: ids,
                    });
                    likelihood_owners.push(index);
                }
            }
        }
        out.prompt_tokens += a.prompt_ids.len() as u64;
    }
    let outputs = generate(subject, requests, progress, out)?;
    let mut by_question: Vec<Vec<Answered>> = asked.iter().map(|_| Vec::new()).collect();
    for (owner, output) in owners.into_iter().zip(outputs) {
        if let Some(list) = by_question.get_mut(owner) {
            list.push(output);
        }
    }
    let mut likelihood_by_question: Vec<Vec<Scored>> = asked.iter().map(|_| Vec::new()).collect();
    if !likelihoods.is_empty() {
        let longest = likelihoods.iter().map(|l| l.prompt_ids.len() + l.continuation_ids.len()).max().unwrap_or(0);
        let results = generator(subject, likelihoods.len(), longest)?.score(subject.adapter, &likelihoods)?;
        for (owner, result) in likelihood_owners.into_iter().zip(results) {
            if let Some(list) = likelihood_by_question.get_mut(owner) {
                list.push(
                    result
                        .score
                        .map(|s| (s.sum_logprob, u32::try_from(s.tokens).unwrap_or(u32::MAX), s.is_greedy))
                        .map_err(|e| e.to_string()),
                );
            }
        }
    }
    asked
        .iter()
        .zip(by_question.into_iter().zip(likelihood_by_question))
        .map(|(a, (outputs, likelihoods))| response(subject, a, outputs, likelihoods))
        .collect()
}

/// A generator no larger than the requests need.
fn generator<O: Ops>(subject: &Subject<'_, O>, requests: usize, longest: usize) -> Result<Generator<O>, EvalError> {
    let cache_length = longest.min(subject.model.config().max_position_embeddings).max(1);
    let fitting = subject.cache_tokens.map_or(usize::MAX, |tokens| tokens / cache_length);
    let slots = subject.slots.min(requests).min(fitting).max(1);
    Ok(Generator::new(subject.model.clone(), GenOptions { slots, cache_length, prefill_tokens: PREFILL_TOKENS })?)
}

/// Runs the requests; one output per request, in order.
fn generate<O: Ops>(
    subject: &Subject<'_, O>,
    requests: Vec<GenRequest>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    out: &mut Evaluation,
) -> Result<Vec<Answered>, EvalError> {
    let total = requests.len();
    if total == 0 {
        return Ok(Vec::new());
    }
    let (mut done, mut tokens, mut stopped) = (0, 0u64, false);
    let longest = requests.iter().map(|r| r.prompt_ids.len().saturating_add(r.max_new_tokens)).max().unwrap_or(0);
    let results = generator(subject, total, longest)?.generate(subject.adapter, requests, &mut |event| {
        tokens += u64::from(event.token.is_some());
        if event.finish.is_none() {
            return ControlFlow::Continue(());
        }
        done += 1;
        match progress(Progress { done, total, tokens }) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(()) => {
                stopped = true;
                ControlFlow::Break(Cancel::All)
            }
        }
    })?;
    if stopped {
        return Err(EvalError::Stopped);
    }
    out.generated_tokens += results.iter().map(|r| r.ids.len() as u64).sum::<u64>();
    Ok(results
        .into_iter()
        .map(|r| match r.finish {
            trainer_engine::Finish::Refused(why) => Err(why.to_string()),
            f => Ok(Output { ids: r.ids, finish: finish(&f) }),
        })
        .collect())
}

fn response<O: Ops>(
    subject: &Subject<'_, O>,
    a: &Asked<'_>,
    outputs: Vec<Answered>,
    likelihoods: Vec<Scored>,
) -> Result<(Response, Shown), EvalError> {
    if let Some(why) = &a.failed {
        return Ok((Response::Failed(why.clone()), Vec::new()));
    }
    match &a.request {
        Request::LogLikelihood(_) => match likelihoods.into_iter().collect() {
            Ok(list) => Ok((Response::LogLikelihoods(list), Vec::new())),
            Err(why) => Ok((Response::Failed(why), Vec::new())),
        },
        Request::Generate(g) => {
            let mut answers: Vec<Answer> = Vec::new();
            let mut shown = Shown::new();
            for output in outputs {
                let output = match output {
                    Ok(output) => output,
                    Err(why) => return Ok((Response::Failed(why), shown)),
                };
                let mut raw = subject.tokenizer.decode(&output.ids, false);
                let mut ended = output.finish;
                let pieces = if cut_at_stop(&mut raw, &g.stop) {
                    ended = Finish::Stop;
                    vec![TemplatePiece::Text(raw.clone())]
                } else {
                    subject.tokenizer.decode_pieces(&output.ids).into_iter().map(template_piece).collect()
                };
                shown.push((raw.clone(), ended, Some(output.ids.len())));
                let parts = match subject.template.parse(&[pieces])?.into_iter().next() {
                    Some(Ok(parts)) => parts,
                    Some(Err(e)) => return Ok((Response::Failed(e.to_string()), shown)),
                    None => Vec::new(),
                };
                answers.push(answer(raw, parts, ended));
            }
            Ok((Response::Answers(answers), shown))
        }
    }
}

/// A decoded piece as the template's parser takes it.
pub fn template_piece(piece: Piece) -> TemplatePiece {
    match piece {
        Piece::Text(t) => TemplatePiece::Text(t),
        Piece::Special(t) => TemplatePiece::Special(t),
    }
}
