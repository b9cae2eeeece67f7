//! The evaluation itself: rows to questions, questions to answers, answers to scores.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use trainer_engine::{Adapter, GenOptions, Generator, Model, ScoreRequest};
use trainer_kernels::ops::Ops;
use trainer_kernels::sampling::SamplingParams;
use trainer_plugin_host::metric::{Aggregate, Item, Metric, Plan, Request, Response, Score, Value};
use trainer_plugin_host::template::{PromptRequest, Template};
use trainer_plugin_host::types::Conversation;
use trainer_text::{SpecialMode, Tokenizer};
use trainer_tools::{Case, Episode, EpisodeKey, TapeEntry, TapeTimeout, Toolbox, Transcript};

use crate::answers::AnswerRecord;
use crate::episodes::{Job, answer_all};
use crate::error::EvalError;
use crate::journal::Journal;
use crate::pass_at_k;
use crate::prompts::{encode_prompt, rendered_text};
use crate::report::{RowCounts, SampleResult, ScoreRecord};

/// Rows that go through a plugin at once.
pub(crate) const PLUGIN_BATCH: usize = 64;
/// Prompt tokens in one forward pass.
pub const PREFILL_TOKENS: usize = 2048;
/// The clock of every episode, milliseconds since 1970 UTC: the same in every evaluation, so that none depends on when it ran (1 January 2026).
const CLOCK_MS: u64 = 1_767_225_600_000;

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decoding {
    /// Temperature (0: greedy), top-k, top-p, min-p, repetition penalty.
    pub params: SamplingParams,
    /// The longest answer in tokens, where the metric does not say.
    pub max_new_tokens: usize,
    /// Qwen3's thinking switch, where the metric does not say; null: not passed.
    pub enable_thinking: Option<bool>,
    /// The seed; each sample, repeat and turn has a stream of its own.
    pub seed: u64,
    /// Answers per row, where not the metric's own number; drawn with a temperature only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub repeats: Option<u32>,
    /// The most tokens of a conversation with tools, their results included.
    pub max_context: usize,
    /// The most turns of the model in a conversation with tools.
    pub max_turns: u32,
    /// The most calls in a conversation with tools.
    pub max_calls: u32,
    /// The most seconds of an answer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_seconds: Option<f64>,
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
    /// What executes calls.
    pub toolbox: &'a Arc<Toolbox>,
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
    /// How many samples a value is over, where the metric says so.
    pub counted: BTreeMap<String, u64>,
    /// By metric.
    pub scoring_versions: BTreeMap<String, String>,
    /// By metric.
    pub rows: BTreeMap<String, RowCounts>,
    /// Where several answers per row were drawn: `<metric>/<score>` to k to pass@k.
    pub pass_at_k: BTreeMap<String, BTreeMap<String, f64>>,
    /// In the order of metrics and rows.
    pub samples: Vec<SampleResult>,
    /// The calls of all episodes, in the order of metrics, rows and repeats.
    pub traffic: Vec<TapeEntry>,
    /// The episodes whose time was up, in the same order.
    pub timed_out: Vec<TapeTimeout>,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub generated_tokens: u64,
}

/// Evaluates. `progress` is told of finished answers and can stop the evaluation; a journal keeps them.
///
/// # Errors
/// Whatever ends an evaluation as a whole; see [`EvalError`].
pub(crate) fn evaluate<O: Ops>(
    subject: &Subject<'_, O>,
    judge: &Judge<'_>,
    decoding: &Decoding,
    journal: Option<&Journal>,
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
        one_metric(subject, used, judge, decoding, journal, progress, &mut out)?;
    }
    Ok(out)
}

/// A row with its question.
pub(crate) struct Asked<'a> {
    /// File and row.
    pub place: &'a str,
    /// The row as JSON.
    pub row: &'a str,
    case: Case,
    /// The case's name on a tape: its `id`, or its place where it has none of its own.
    name: String,
    /// What the metric asks.
    pub request: Request,
    prompt: String,
    prompt_ids: Vec<u32>,
    failed: Option<String>,
}

/// What came of a question.
struct Responded {
    response: Response,
    answers: Vec<AnswerRecord>,
}

fn one_metric<O: Ops>(
    subject: &Subject<'_, O>,
    used: &MetricUse,
    judge: &Judge<'_>,
    decoding: &Decoding,
    journal: Option<&Journal>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    out: &mut Evaluation,
) -> Result<(), EvalError> {
    let mut counts = RowCounts { rows: judge.rows.len() as u64, ..RowCounts::default() };
    let mut asked = prepare(used, judge, &mut counts)?;
    for chunk in asked.chunks_mut(PLUGIN_BATCH) {
        render(subject, decoding, chunk)?;
    }
    let given = Given { subject, judge, metric: &used.name, decoding, journal };
    let responses = respond(&given, &asked, progress, out)?;
    let (items, answers) =
        asked.iter().zip(responses).map(|(a, r)| (Item { row: a.row.to_owned(), response: r.response }, r.answers)).unzip();
    judge_responses(used, judge, asked, items, answers, counts, out)
}

/// Scores responses, one per question, and sums up.
pub(crate) fn judge_responses(
    used: &MetricUse,
    judge: &Judge<'_>,
    asked: Vec<Asked<'_>>,
    items: Vec<Item>,
    all_answers: Vec<Vec<AnswerRecord>>,
    mut counts: RowCounts,
    out: &mut Evaluation,
) -> Result<(), EvalError> {
    let scores = score(used, &items)?;
    add_pass_at_k(used, &items, out)?;
    for aggregate in used.metric.aggregate(&scores)? {
        add_aggregate(out, &used.name, aggregate);
    }
    out.scoring_versions.insert(used.name.clone(), used.metric.scoring_version()?);
    let plugins = judge.toolbox.plugins();
    for (((a, item), answers), scores) in asked.into_iter().zip(items).zip(all_answers).zip(scores) {
        let failed = match item.response {
            Response::Failed(why) => Some(why),
            _ => None,
        };
        counts.scored += 1;
        counts.failed += u64::from(failed.is_some());
        for (repeat, transcript) in (0..).zip(&answers).filter_map(|(repeat, a)| Some((repeat, a.transcript.as_ref()?))) {
            let key = EpisodeKey { metric: used.name.clone(), case: a.name.clone(), repeat };
            out.timed_out.extend(TapeTimeout::of_transcript(&key, transcript));
            out.traffic.extend(TapeEntry::of_transcript(&key, transcript, &plugins));
        }
        // What failed before anything was written has nothing to show.
        let shown: Vec<&AnswerRecord> = answers.iter().filter(|a| a.failed.is_none() || !a.raw.is_empty()).collect();
        out.samples.push(SampleResult {
            metric: used.name.clone(),
            row: a.place.to_owned(),
            id: a.case.id,
            prompt: a.prompt,
            outputs: shown.iter().map(|a| a.raw.clone()).collect(),
            finish: shown.iter().map(|a| a.finish.name().to_owned()).collect(),
            tokens: shown.iter().filter_map(|a| usize::try_from(a.tokens?).ok()).collect(),
            failed,
            scores: scores.into_iter().map(score_record).collect(),
            transcripts: answers.into_iter().filter_map(|a| a.transcript).map(shown_transcript).collect(),
        });
    }
    out.rows.insert(used.name.clone(), counts);
    Ok(())
}

/// A transcript as the report has it: without the requests of plugins, which are on the tape and which a replay does not make.
fn shown_transcript(mut transcript: Transcript) -> Transcript {
    transcript.calls.iter_mut().for_each(|call| call.http.clear());
    transcript
}

/// The scores of each item. A trap costs the sample: it has no score, and the metric's aggregate sees it as such.
fn score(used: &MetricUse, items: &[Item]) -> Result<Vec<Vec<Score>>, EvalError> {
    let mut scores: Vec<Vec<Score>> = Vec::with_capacity(items.len());
    for chunk in items.chunks(PLUGIN_BATCH) {
        for scored in used.metric.score(chunk)? {
            scores
                .push(scored.unwrap_or_else(|e| vec![Score { name: "error".into(), value: Value::Unscored, explanation: e.to_string() }]));
        }
    }
    Ok(scores)
}

/// Where several answers per row were drawn, scores each by itself and gives pass@k of every score that says yes or no. A row that could not be scored
/// counts as wrong throughout.
fn add_pass_at_k(used: &MetricUse, items: &[Item], out: &mut Evaluation) -> Result<(), EvalError> {
    let drawn = items.iter().map(|i| if let Response::Answers(answers) = &i.response { answers.len() } else { 0 }).max().unwrap_or(0);
    if drawn < 2 {
        return Ok(());
    }
    let n = u32::try_from(drawn).unwrap_or(u32::MAX);
    let mut single = Vec::new();
    let mut owners = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if let Response::Answers(answers) = &item.response {
            for answer in answers {
                single.push(Item { row: item.row.clone(), response: Response::Answers(vec![answer.clone()]) });
                owners.push(index);
            }
        }
    }
    let scores = score(used, &single)?;
    // By score: for each row that has it, how many answers are right.
    let mut right: BTreeMap<String, BTreeMap<usize, u32>> = BTreeMap::new();
    let answered: std::collections::HashSet<usize> = owners.iter().copied().collect();
    let failed: Vec<usize> = (0..items.len()).filter(|i| !answered.contains(i)).collect();
    for (owner, scores) in owners.into_iter().zip(scores) {
        for score in scores {
            if let Value::Boolean(yes) = score.value {
                *right.entry(score.name).or_default().entry(owner).or_default() += u32::from(yes);
            }
        }
    }
    for (name, mut rows) in right {
        rows.extend(failed.iter().map(|i| (*i, 0)));
        let rows: Vec<(u32, u32)> = rows.into_values().map(|c| (n, c)).collect();
        out.pass_at_k.insert(format!("{}/{name}", used.name), pass_at_k::table(&rows));
    }
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
    if let Some(samples) = aggregate.samples {
        out.counted.insert(name.clone(), samples);
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
    let mut asked: Vec<Asked<'a>> = Vec::with_capacity(judge.rows.len());
    let mut names = std::collections::HashSet::new();
    for chunk in judge.rows.chunks(PLUGIN_BATCH) {
        let rows: Vec<String> = chunk.iter().map(|(_, row)| row.clone()).collect();
        for ((place, row), plan) in chunk.iter().zip(used.metric.prepare(&rows)?) {
            let (pointer, message) = match plan {
                Ok(Plan::Ask(mut request)) => {
                    let case = Case::of_row(place, row)?;
                    if let Request::Generate(g) = &mut request
                        && g.conversation.tools.is_empty()
                        && !case.names_tools
                    {
                        // The row says nothing of tools: the user's are on offer.
                        g.conversation.tools = judge.toolbox.offer();
                    }
                    let name = case.id.clone().filter(|id| names.insert(id.clone())).unwrap_or_else(|| place.clone());
                    asked.push(Asked { place, row, case, name, request, prompt: String::new(), prompt_ids: Vec::new(), failed: None });
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

/// A continuation's log-probability, tokens and whether it is the greedy one, or why it could not be scored.
type Scored = std::result::Result<(f64, u32, bool), String>;

/// What all questions of a metric have in common.
struct Given<'a, O: Ops> {
    subject: &'a Subject<'a, O>,
    judge: &'a Judge<'a>,
    metric: &'a str,
    decoding: &'a Decoding,
    journal: Option<&'a Journal>,
}

/// Lets the model answer: what came of each question, in order.
fn respond<O: Ops>(
    given: &Given<'_, O>,
    asked: &[Asked<'_>],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    out: &mut Evaluation,
) -> Result<Vec<Responded>, EvalError> {
    let answers = answers(given, asked, progress, out)?;
    let likelihoods = likelihoods(given.subject, asked)?;
    let responded = asked.iter().zip(answers.into_iter().zip(likelihoods)).map(|(a, (answers, likelihoods))| {
        let response = match (&a.failed, &a.request) {
            (Some(why), _) => Response::Failed(why.clone()),
            (None, Request::LogLikelihood(_)) => match likelihoods.into_iter().collect() {
                Ok(list) => Response::LogLikelihoods(list),
                Err(why) => Response::Failed(why),
            },
            (None, Request::Generate(_)) => match answers.iter().find_map(|a| a.failed.clone()) {
                Some(why) => Response::Failed(why),
                None => Response::Answers(answers.iter().map(AnswerRecord::answer).collect()),
            },
        };
        Responded { response, answers }
    });
    Ok(responded.collect())
}

/// The answers to each question, in order; those that the journal has are not asked for again.
fn answers<O: Ops>(
    given: &Given<'_, O>,
    asked: &[Asked<'_>],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    out: &mut Evaluation,
) -> Result<Vec<Vec<AnswerRecord>>, EvalError> {
    let decoding = given.decoding;
    let mut jobs = Vec::new();
    let mut all: Vec<Vec<Option<AnswerRecord>>> = asked.iter().map(|_| Vec::new()).collect();
    for ((index, a), slots) in asked.iter().enumerate().zip(&mut all).filter(|((_, a), _)| a.failed.is_none()) {
        let Request::Generate(g) = &a.request else { continue };
        out.prompt_tokens += a.prompt_ids.len() as u64;
        let repeats = if decoding.params.temperature == 0.0 { 1 } else { decoding.repeats.unwrap_or(g.repeats).max(1) };
        for repeat in 0..repeats {
            let key = (given.metric.to_owned(), a.place.to_owned(), repeat);
            let known = given.journal.and_then(|j| j.get(&key)).cloned();
            if known.is_none() {
                let episode = EpisodeKey { metric: given.metric.to_owned(), case: a.name.clone(), repeat };
                let seed = episode_seed(decoding.seed, index as u64, repeat);
                jobs.push(Job {
                    key,
                    sample: index as u64,
                    repeat,
                    prompt_ids: a.prompt_ids.clone(),
                    max_new_tokens: g.max_new_tokens.map_or(decoding.max_new_tokens, |n| n as usize),
                    stop: g.stop.clone(),
                    enable_thinking: g.enable_thinking.or(decoding.enable_thinking),
                    episode: Episode::new(g.conversation.clone(), given.judge.toolbox.open(episode, a.case.clone(), seed, CLOCK_MS)),
                });
            }
            slots.push(known);
        }
    }
    let before = all.iter().flatten().flatten().count();
    let mut fresh = answer_all(given.subject, decoding, jobs, before, given.journal, progress)?.into_iter();
    let mut complete = Vec::with_capacity(all.len());
    for slots in all {
        let slots: Vec<AnswerRecord> = slots.into_iter().filter_map(|known| known.or_else(|| fresh.next())).collect();
        out.generated_tokens += slots.iter().filter_map(|a| a.tokens).sum::<u64>();
        out.prompt_tokens += slots.iter().map(|a| a.more_prompt_tokens).sum::<u64>();
        complete.push(slots);
    }
    Ok(complete)
}

/// The seed that tools see: of the evaluation, the question and the repeat.
fn episode_seed(seed: u64, sample: u64, repeat: u32) -> u64 {
    let mixed =
        trainer_kernels::rng::philox4x32_10([sample as u32, (sample >> 32) as u32, repeat, 0x746F_6F6C], trainer_kernels::rng::split(seed));
    u64::from(mixed[0]) | u64::from(mixed[1]) << 32
}

/// The log-likelihoods of each question's continuations, in order.
fn likelihoods<O: Ops>(subject: &Subject<'_, O>, asked: &[Asked<'_>]) -> Result<Vec<Vec<Scored>>, EvalError> {
    let mut requests = Vec::new();
    // Which question a request's number stands for.
    let mut owners = Vec::new();
    for (index, a) in asked.iter().enumerate().filter(|(_, a)| a.failed.is_none()) {
        let Request::LogLikelihood(l) = &a.request else { continue };
        for text in &l.continuations {
            let ids = subject
                .tokenizer
                .encode(text, SpecialMode::Plain)
                .map_err(|source| EvalError::Text { place: a.place.to_owned(), source })?;
            requests.push(ScoreRequest { id: owners.len() as u64, prompt_ids: a.prompt_ids.clone(), continuation_ids: ids });
            owners.push(index);
        }
    }
    let mut by_question: Vec<Vec<Scored>> = asked.iter().map(|_| Vec::new()).collect();
    if requests.is_empty() {
        return Ok(by_question);
    }
    let longest = requests.iter().map(|l| l.prompt_ids.len() + l.continuation_ids.len()).max().unwrap_or(0);
    let results = generator(subject, requests.len(), longest)?.score(subject.adapter, &requests)?;
    for (owner, result) in owners.into_iter().zip(results) {
        if let Some(list) = by_question.get_mut(owner) {
            let score = result.score.map(|s| (s.sum_logprob, u32::try_from(s.tokens).unwrap_or(u32::MAX), s.is_greedy));
            list.push(score.map_err(|e| e.to_string()));
        }
    }
    Ok(by_question)
}

/// A generator no larger than the requests need.
pub(crate) fn generator<O: Ops>(subject: &Subject<'_, O>, requests: usize, longest: usize) -> Result<Generator<O>, EvalError> {
    let cache_length = longest.min(subject.model.config().max_position_embeddings).max(1);
    let fitting = subject.cache_tokens.map_or(usize::MAX, |tokens| tokens / cache_length);
    let slots = subject.slots.min(requests).min(fitting).max(1);
    Ok(Generator::new(subject.model.clone(), GenOptions { slots, cache_length, prefill_tokens: PREFILL_TOKENS })?)
}
