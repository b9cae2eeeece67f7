//! What it takes to talk to a model and to judge it, as a recipe says.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use trainer_config::Recipe;
use trainer_data::Source;
use trainer_engine::{Adapter, Finish, GenOptions, GenRequest, Generator, Model};
use trainer_kernels::ops::Ops;
use trainer_kernels::sampling::SamplingParams;
use trainer_plugin_host::template::{Piece, PromptRequest, Rendered, Template};
use trainer_plugin_host::types::{Content, Conversation, Message};
use trainer_plugin_host::{Kind, Plugin};
use trainer_runtime::{Base, Plugins, eval_source, source_digest};
use trainer_tools::{Case, Limits, Tape, TapeHeader, TapePlugin, ToolPlugin, Toolbox, write_tape};

use crate::error::EvalError;
use crate::evaluate::{Decoding, Judge, MetricUse, Progress, Subject, evaluate};
use crate::journal::Journal;
use crate::predictions::{Predictions, evaluate_predictions};
use crate::prompts::{encode_prompt, rendered_text};
use crate::report::{Component, DataUse, Report, SampleResult, Timing, write_report};

/// Rows to evaluate at most: they are held in memory.
const MAX_ROWS: usize = 1_000_000;

/// The chat template of a recipe.
///
/// # Errors
/// The plugin cannot be had, or refuses its settings.
pub fn chat_template(recipe: &Recipe, plugins: &mut Plugins) -> Result<Template, EvalError> {
    let name = &recipe.template.plugin;
    let plugin = plugins.get("template.plugin", name, Kind::ChatTemplate)?;
    let settings = recipe.settings_of(name, &recipe.template.settings);
    Ok(plugin.template(&serde_json::Value::Object(settings))?)
}

/// The chat template of a recipe, and what ends an answer under it.
pub struct Speaker {
    /// The template's name.
    pub name: String,
    /// The template.
    pub template: Arc<Template>,
    /// Tokens at which an answer ends: the model's and the template's.
    pub stop_ids: Vec<u32>,
}

impl Speaker {
    /// Loads the template.
    ///
    /// # Errors
    /// The plugin cannot be had, or stops at a token that the tokenizer does not have.
    pub fn new(recipe: &Recipe, base: &Base, plugins: &mut Plugins) -> Result<Self, EvalError> {
        let name = &recipe.template.plugin;
        let template = Arc::new(chat_template(recipe, plugins)?);
        let mut stop_ids = base.eos.clone();
        for token in template.describe()?.stop_tokens {
            match base.tokenizer.added_token_id(&token) {
                Some(id) if stop_ids.contains(&id) => {}
                Some(id) => stop_ids.push(id),
                None => return Err(EvalError::StopToken { template: name.to_string(), token }),
            }
        }
        Ok(Self { name: name.to_string(), template, stop_ids })
    }

    /// Tries the training form on a probe: whether prefixes are stable, as the template says, and whether the stop token is taught after
    /// every answer. Gives warnings for the user.
    ///
    /// # Errors
    /// The template says that its prefixes are stable, and they are not; or it cannot render the probe.
    pub fn check_training(&self) -> Result<Vec<String>, EvalError> {
        let turns =
            [("user", "What is 2 + 3?"), ("assistant", "<think>\n2 + 3 = 5.\n</think>\n\n5"), ("user", "And 5 + 1?"), ("assistant", "6")];
        let whole = self.training_segments(&turns)?;
        let first = self.training_segments(&turns[..2])?;
        let description = self.template.describe()?;
        let mut warnings = Vec::new();
        // A template may cut a conversation into several samples; prefixes are a matter of one.
        if let ([whole], [first]) = (whole.as_slice(), first.as_slice()) {
            let stable = rendered_text(whole).starts_with(&rendered_text(first));
            if description.stable_prefixes && !stable {
                return Err(EvalError::Prompt(format!(
                    "the chat template {} says that its training form has stable prefixes, but the first turns of a probe are not the beginning of the whole",
                    self.name
                )));
            }
            if !stable {
                warnings.push(format!(
                    "the training form of {} is not prefix-stable: earlier turns are trained in a form that inference never shows",
                    self.name
                ));
            }
        }
        if let Some(stop) = description.stop_tokens.first() {
            let teaches = |r: &Rendered| {
                r.segments
                    .iter()
                    .rev()
                    .find(|s| s.generated)
                    .is_some_and(|s| s.weight > 0.0 && matches!(&s.piece, Piece::Special(t) if t == stop))
            };
            if !whole.iter().all(teaches) {
                warnings
                    .push(format!("{} does not teach its stop token {stop} after an answer: the trained model may not stop", self.name));
            }
        }
        Ok(warnings)
    }

    fn training_segments(&self, turns: &[(&str, &str)]) -> Result<Vec<Rendered>, EvalError> {
        match self.template.render_training(&[conversation(turns)])?.into_iter().next() {
            Some(Ok(samples)) => Ok(samples),
            Some(Err(e)) => Err(EvalError::Prompt(format!("the chat template {} cannot render a probe: {e}", self.name))),
            None => Ok(Vec::new()),
        }
    }

    /// The tokens of the prompt for a conversation.
    ///
    /// # Errors
    /// The template refuses the conversation.
    pub fn prompt(&self, base: &Base, conversation: Conversation, enable_thinking: Option<bool>) -> Result<Vec<u32>, EvalError> {
        let request = PromptRequest { conversation, add_generation_prompt: true, enable_thinking };
        let rendered = self.template.render_prompts(&[request])?.into_iter().next();
        match rendered {
            Some(Ok(rendered)) => {
                encode_prompt(&base.tokenizer, &rendered).map_err(|source| EvalError::Text { place: "the prompt".into(), source })
            }
            Some(Err(e)) => Err(EvalError::Prompt(e.to_string())),
            None => Err(EvalError::Prompt("the chat template gave nothing".into())),
        }
    }
}

/// A conversation of messages of plain text, given as role and text.
pub fn conversation(messages: &[(&str, &str)]) -> Conversation {
    let messages = messages
        .iter()
        .map(|(role, text)| Message {
            role: (*role).to_owned(),
            content: Content::Text((*text).to_owned()),
            reasoning_content: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            weight: None,
            spans: Vec::new(),
        })
        .collect();
    Conversation { messages, tools: Vec::new(), template_args: None, weight: 1.0 }
}

/// What one generation is asked for.
pub struct Question {
    /// The prompt.
    pub prompt_ids: Vec<u32>,
    /// How tokens are chosen.
    pub params: SamplingParams,
    /// The seed of the sampling.
    pub seed: u64,
    /// The longest answer in tokens.
    pub max_new_tokens: usize,
    /// Tokens at which it ends.
    pub stop_ids: Vec<u32>,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new tokens, without the stop token.
    pub ids: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// Generates one answer with an adapter beside the model's weights, if any, giving its text to `on_text` as it grows, whole characters only. `on_text` can end it.
///
/// # Errors
/// The engine fails, or refuses the prompt.
pub fn generate_one<O: Ops>(
    model: Arc<Model<O>>,
    adapter: Option<&Adapter<O>>,
    base: &Base,
    question: Question,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, EvalError> {
    let wanted = question.prompt_ids.len().saturating_add(question.max_new_tokens);
    let options = GenOptions {
        slots: 1,
        cache_length: wanted.min(base.config.max_position_embeddings).max(1),
        prefill_tokens: question.prompt_ids.len().clamp(1, 2048),
    };
    let mut generator = Generator::new(model, options)?;
    let mut decoder = base.tokenizer.stream_decoder(question.skip_special);
    let mut text = String::new();
    let request = GenRequest {
        id: 0,
        prompt_ids: question.prompt_ids,
        params: question.params,
        seed: question.seed,
        max_new_tokens: question.max_new_tokens,
        stop_ids: question.stop_ids,
        ..GenRequest::default()
    };
    let results = generator.generate(adapter, vec![request], &mut |event| {
        let Some(id) = event.token else { return ControlFlow::Continue(()) };
        let piece = decoder.push(id);
        text.push_str(piece);
        match on_text(piece) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(()) => ControlFlow::Break(trainer_engine::Cancel::All),
        }
    })?;
    let rest = decoder.finish();
    text.push_str(rest);
    let _ = on_text(rest);
    let result = results.into_iter().next().ok_or_else(|| EvalError::Prompt("the engine gave no answer".into()))?;
    if let Finish::Refused(why) = &result.finish {
        return Err(EvalError::Prompt(why.to_string()));
    }
    Ok(Generated { ids: result.ids, text, finish: result.finish })
}

/// The rows to evaluate on.
pub struct Rows {
    /// Where they come from.
    pub data: DataUse,
    /// Digest of the source as a whole, and its rows.
    pub sha256: String,
    /// Rows in the source, where known.
    pub length: Option<u64>,
    /// File and row, and the row as JSON.
    pub rows: Vec<(String, String)>,
}

impl Rows {
    /// Reads them, in file order.
    ///
    /// # Errors
    /// A file that cannot be read, or a broken row: evaluation data has no place for those.
    pub fn read(recipe: &Recipe, limit: Option<u64>) -> Result<Self, EvalError> {
        let source: Source = eval_source(recipe)?;
        let limit = limit.map_or(MAX_ROWS, |n| usize::try_from(n).unwrap_or(MAX_ROWS));
        let mut rows = Vec::new();
        for row in source.rows().take(limit) {
            let row = row?;
            let place = format!("{}:{}", row.file, row.row);
            let json = row.json.map_err(|bad| EvalError::BrokenRow { message: bad.to_string() })?;
            rows.push((place, json));
        }
        Ok(Self {
            data: DataUse { path: recipe.eval.data.to_string(), files: file_components(&source) },
            sha256: source_digest(&source),
            length: Some(source.len()),
            rows,
        })
    }
}

/// The files of a source by name and digest.
pub(crate) fn file_components(source: &Source) -> Vec<Component> {
    source.files().iter().map(|f| component(&f.name, &f.sha256)).collect()
}

/// The judges of a recipe with their rows.
pub struct Panel {
    /// The metrics.
    pub metrics: Vec<MetricUse>,
    /// The rows.
    pub rows: Rows,
    plugins: Vec<Component>,
    max_bad_rows: u64,
    slots: usize,
    /// See [`Subject::cache_tokens`].
    pub cache_tokens: Option<usize>,
    decoding: Decoding,
    limit: Option<u64>,
    toolbox: Arc<Toolbox>,
    record: Option<PathBuf>,
    resumable: bool,
    /// Digest of all settings that have a part in an answer or a score.
    settings: String,
}

/// What a judgement gives.
pub struct Judged {
    /// The report, as it was written.
    pub report: Report,
    /// What it is made of, as it was written.
    pub samples: Vec<SampleResult>,
    /// Answers taken over from an evaluation that was stopped.
    pub taken_over: usize,
}

/// A model that can be judged.
pub struct Candidate<'a, O: Ops> {
    /// The model, with any adapter folded in that is not in `live`.
    pub model: Arc<Model<O>>,
    /// The base that it comes from.
    pub base: &'a Base,
    /// The adapter beside the model's weights, where it is not folded in.
    pub live: Option<&'a Adapter<O>>,
    /// sha256 of the adapter, folded in or not.
    pub adapter: Option<String>,
    /// Numbers that were measured already and belong in the report, with whether more is better.
    pub measured: Vec<(String, f64, bool)>,
}

impl Panel {
    /// Loads metrics and tools and reads the rows.
    ///
    /// # Errors
    /// Plugins or rows that cannot be had.
    pub fn new(recipe: &Recipe, plugins: &mut Plugins) -> Result<Self, EvalError> {
        let tools = tool_plugins(recipe, plugins)?;
        let toolbox = Toolbox::new(tools, limits(recipe))?;
        Self::with(recipe, plugins, toolbox)
    }

    /// As [`Panel::new`], with a tape in place of the tools: no tool runs. Plugins that are given all the same must be those of the recording.
    ///
    /// # Errors
    /// A tape that cannot be read or that was recorded on other rows or with other plugins, besides those of [`Panel::new`].
    pub fn replaying(recipe: &Recipe, plugins: &mut Plugins, tape: &Path) -> Result<Self, EvalError> {
        let tape = Tape::read(tape)?;
        for used in tool_plugins(recipe, plugins)? {
            tape.check_plugin(used.plugin.name(), used.plugin.digest())?;
        }
        let tape = Arc::new(tape);
        let toolbox = Toolbox::replay(tape.clone(), limits(recipe))?;
        let panel = Self::with(recipe, plugins, toolbox)?;
        tape.check_data(&panel.rows.sha256)?;
        Ok(panel)
    }

    fn with(recipe: &Recipe, plugins: &mut Plugins, toolbox: Toolbox) -> Result<Self, EvalError> {
        let e = &recipe.eval;
        if let Some(repeats) = e.repeats.filter(|n| *n > 1 && e.temperature == 0.0) {
            return Err(EvalError::Repeats { repeats });
        }
        let mut metrics = Vec::new();
        let mut components = vec![plugin_component(&plugins.get("template.plugin", &recipe.template.plugin, Kind::ChatTemplate)?)];
        for name in &e.metrics {
            let plugin = plugins.get("eval.metrics", name, Kind::EvalMetric)?;
            let metric = plugin.metric(&serde_json::Value::Object(recipe.metric_settings(name)))?;
            metrics.push(MetricUse { name: name.to_string(), metric });
            components.push(plugin_component(&plugin));
        }
        for about in toolbox.plugins() {
            let component = tool_component(about);
            // A plugin of several kinds has one line.
            if !components.contains(&component) {
                components.push(component);
            }
        }
        let decoding = Decoding {
            params: SamplingParams {
                temperature: e.temperature,
                top_k: u32::try_from(e.top_k).unwrap_or(u32::MAX),
                top_p: e.top_p,
                min_p: e.min_p,
                repetition_penalty: e.repetition_penalty,
                ..SamplingParams::default()
            },
            max_new_tokens: e.max_new_tokens,
            enable_thinking: e.enable_thinking.get(),
            seed: recipe.train.seed,
            repeats: e.repeats,
            max_context: e.max_context,
            max_turns: e.max_turns,
            max_calls: e.max_calls,
            max_seconds: e.max_seconds,
        };
        let rows = Rows::read(recipe, e.limit)?;
        Ok(Self {
            metrics,
            rows,
            plugins: components,
            max_bad_rows: recipe.data.max_bad_rows,
            slots: e.batch,
            cache_tokens: None,
            decoding,
            limit: e.limit,
            toolbox: Arc::new(toolbox),
            record: None,
            resumable: false,
            settings: digest(&serde_json::json!([&recipe.eval, &recipe.template, &recipe.plugins])),
        })
    }

    /// Writes all tool traffic to a tape when a judgement is complete.
    pub fn record(&mut self, tape: &Path) {
        self.record = Some(tape.to_owned());
    }

    /// Whether conversations can have several turns: there are tools of plugins, or canned responses in the rows.
    pub fn calls_tools(&self) -> bool {
        !self.toolbox.offer().is_empty() || has_fixtures(&self.rows.rows)
    }

    /// Tools that lack a grant, in words for the user.
    pub fn ungranted(&self) -> Vec<String> {
        self.toolbox.ungranted()
    }

    /// Keeps answers in `<name>.journal.jsonl` as they come, so that the same judgement, stopped, goes on where it was.
    pub fn resumable(&mut self) {
        self.resumable = true;
    }

    /// Judges a candidate and writes `<name>.json`, `<name>.timing.json` and `<name>.samples.jsonl` into `folder`.
    ///
    /// # Errors
    /// See [`EvalError`].
    pub fn judge<O: Ops>(
        &self,
        candidate: &Candidate<'_, O>,
        speaker: &Speaker,
        folder: &Path,
        name: &str,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Judged, EvalError> {
        let began = Instant::now();
        let base = candidate.base;
        let subject = Subject {
            model: candidate.model.clone(),
            adapter: candidate.live,
            slots: self.slots,
            cache_tokens: self.cache_tokens,
            tokenizer: &base.tokenizer,
            stop_ids: &speaker.stop_ids,
            template: &speaker.template,
        };
        let judge = Judge { metrics: &self.metrics, rows: &self.rows.rows, max_bad_rows: self.max_bad_rows, toolbox: &self.toolbox };
        let mut report = Report {
            metrics: Default::default(),
            stderr: Default::default(),
            higher_is_better: Default::default(),
            counted: Default::default(),
            pass_at_k: Default::default(),
            scoring_versions: Default::default(),
            rows: Default::default(),
            trainer: env!("CARGO_PKG_VERSION").to_owned(),
            backend: Some(candidate.model.ops().describe()),
            model: Some(component(&base.name, &base.digest.get()?.sha256)),
            predictions: None,
            adapter: candidate.adapter.as_ref().map(|digest| component("adapter", digest)),
            tokenizer: Some(component("tokenizer", base.tokenizer.digest())),
            data: self.rows.data.clone(),
            plugins: self.plugins.clone(),
            decoding: Some(self.decoding.clone()),
            samples: Default::default(),
            prompt_tokens: 0,
            generated_tokens: 0,
            seconds: 0.0,
        };
        let journal = self.resumable.then(|| self.journal(folder, name, &report)).transpose()?;
        let result = evaluate(&subject, &judge, &self.decoding, journal.as_ref(), progress)?;
        report.metrics = result.metrics;
        report.stderr = result.stderr;
        report.higher_is_better = result.higher_is_better;
        report.counted = result.counted;
        report.pass_at_k = result.pass_at_k;
        report.scoring_versions = result.scoring_versions;
        report.rows = result.rows;
        for (name, value, higher_is_better) in &candidate.measured {
            report.metrics.insert(name.clone(), *value);
            report.higher_is_better.insert(name.clone(), *higher_is_better);
        }
        report.prompt_tokens = result.prompt_tokens;
        report.generated_tokens = result.generated_tokens;
        report.seconds = began.elapsed().as_secs_f64();
        if let Some(path) = &self.record {
            let mut header = TapeHeader::new(&report.trainer, &base.digest.get()?.sha256, &self.rows.sha256, self.toolbox.plugins());
            header.timed_out = result.timed_out;
            write_tape(path, header, &result.traffic)?;
        }
        let taken_over = journal.as_ref().map_or(0, Journal::len);
        let timing = Timing { seconds: report.seconds, taken_over };
        write_report(folder, name, &mut report, &result.samples, &timing)?;
        if let Some(journal) = journal {
            journal.remove();
        }
        Ok(Judged { report, samples: result.samples, taken_over })
    }

    /// As [`Panel::new`], with all rows whatever the recipe's limit, which [`Panel::judge_predictions`] keeps.
    ///
    /// # Errors
    /// As [`Panel::new`].
    pub fn for_predictions(recipe: &Recipe, plugins: &mut Plugins) -> Result<Self, EvalError> {
        let mut unlimited = recipe.clone();
        unlimited.eval.limit = None;
        Ok(Self { limit: recipe.eval.limit, ..Self::new(&unlimited, plugins)? })
    }

    /// Judges given outputs, and writes the same files as [`Panel::judge`].
    ///
    /// # Errors
    /// Outputs and rows do not match; see [`EvalError`].
    pub fn judge_predictions(
        &self,
        predictions: &Predictions,
        template: &Template,
        folder: &Path,
        name: &str,
    ) -> Result<Judged, EvalError> {
        let began = Instant::now();
        let judge = Judge { metrics: &self.metrics, rows: &self.rows.rows, max_bad_rows: self.max_bad_rows, toolbox: &self.toolbox };
        let limit = self.limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let result = evaluate_predictions(template, &judge, predictions, limit)?;
        let mut report = Report {
            metrics: result.metrics,
            stderr: result.stderr,
            higher_is_better: result.higher_is_better,
            counted: result.counted,
            pass_at_k: Default::default(),
            scoring_versions: result.scoring_versions,
            rows: result.rows,
            trainer: env!("CARGO_PKG_VERSION").to_owned(),
            backend: None,
            model: None,
            predictions: Some(predictions.data.clone()),
            adapter: None,
            tokenizer: None,
            data: self.rows.data.clone(),
            plugins: self.plugins.clone(),
            decoding: None,
            samples: Default::default(),
            prompt_tokens: 0,
            generated_tokens: 0,
            seconds: began.elapsed().as_secs_f64(),
        };
        let timing = Timing { seconds: report.seconds, taken_over: 0 };
        write_report(folder, name, &mut report, &result.samples, &timing)?;
        Ok(Judged { report, samples: result.samples, taken_over: 0 })
    }

    /// The journal of a judgement. Its key is everything that an answer depends on, the recorded calls of a replay included.
    fn journal(&self, folder: &Path, name: &str, report: &Report) -> Result<Journal, EvalError> {
        let tape = self.toolbox.tape().map(|t| t.sha256().to_owned());
        let key = digest(&serde_json::json!([report, self.settings, self.rows.sha256, self.rows.rows.len(), tape]));
        std::fs::create_dir_all(folder).map_err(|source| EvalError::Write { path: folder.to_owned(), source })?;
        Journal::open(&folder.join(format!("{name}.journal.jsonl")), &key)
    }
}

/// Whether conversations of a recipe's evaluation can have several turns, as [`Panel::calls_tools`] says it; false where the rows cannot be read.
pub fn calls_tools(recipe: &Recipe) -> bool {
    !recipe.eval.tools.is_empty() || Rows::read(recipe, recipe.eval.limit).is_ok_and(|rows| has_fixtures(&rows.rows))
}

/// Whether some row has canned responses: a case of tool calls, whatever the metric is.
fn has_fixtures(rows: &[(String, String)]) -> bool {
    rows.iter().any(|(place, row)| row.contains("\"tool_fixtures\"") && Case::of_row(place, row).is_ok_and(|c| !c.fixtures.is_empty()))
}

/// The tool plugins of a recipe with their settings.
fn tool_plugins(recipe: &Recipe, plugins: &mut Plugins) -> Result<Vec<ToolPlugin>, EvalError> {
    let load = |name| {
        let plugin = plugins.get("eval.tools", name, Kind::ToolExecutor)?;
        let settings = serde_json::Value::Object(recipe.settings_of(name, &Default::default()));
        Ok(ToolPlugin { plugin, settings })
    };
    recipe.eval.tools.iter().map(load).collect()
}

/// The limits of episodes. Unless asked for there is none on wall-clock time: no result may depend on how fast a machine is.
fn limits(recipe: &Recipe) -> Limits {
    let e = &recipe.eval;
    let wall_time = e.max_seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    Limits { turns: e.max_turns, calls: e.max_calls, wall_time, ..Limits::default() }
}

fn digest(value: &serde_json::Value) -> String {
    Sha256::digest(value.to_string().as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

fn component(name: &str, sha256: &str) -> Component {
    Component { name: name.to_owned(), version: None, sha256: sha256.to_owned(), kinds: Vec::new(), grants: None }
}

fn tool_component(about: TapePlugin) -> Component {
    Component { name: about.name, version: Some(about.version), sha256: about.sha256, kinds: about.kinds, grants: Some(about.grants) }
}

/// A plugin as reports and banners show it.
pub fn plugin_component(plugin: &Arc<Plugin>) -> Component {
    let manifest = plugin.manifest();
    Component {
        name: manifest.name.clone(),
        version: Some(manifest.version.clone()),
        sha256: plugin.digest().to_owned(),
        kinds: plugin.kinds().iter().map(|k| format!("{}@{}", k.kind, k.version)).collect(),
        grants: Some(plugin.grants().to_vec()),
    }
}
