//! What an evaluation leaves behind: one JSON object, and the samples in a file beside it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trainer_model::durable;
use trainer_tools::Transcript;

use crate::error::EvalError;

/// Something that had a part in the result, by name, version and digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Its version, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// sha256, hexadecimal.
    pub sha256: String,
    /// A plugin's kinds with the version of each contract, such as `eval-metric@0.1.0`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub kinds: Vec<String>,
    /// What the user granted it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grants: Option<Vec<String>>,
}

/// The rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataUse {
    /// As the recipe or the command names it.
    pub path: String,
    /// Its files.
    pub files: Vec<Component>,
}

/// What became of the rows, for one metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows read.
    pub rows: u64,
    /// Rows that were asked and scored.
    pub scored: u64,
    /// Rows that the metric does not want, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Rows that the metric refuses as broken.
    pub bad: u64,
    /// Samples that failed before they could be scored; they are scored as failed.
    pub failed: u64,
}

/// One score of one sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreRecord {
    /// The score's name.
    pub name: String,
    /// Number, boolean, text, or null where the sample could not be judged.
    pub value: serde_json::Value,
    /// For the reader.
    pub explanation: String,
}

/// One sample of one metric, a line of the samples file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleResult {
    /// The metric.
    pub metric: String,
    /// File and row.
    pub row: String,
    /// The row's own name, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// The rendered prompt.
    pub prompt: String,
    /// The outputs, one per repeat, special tokens included; those of several turns below each other.
    pub outputs: Vec<String>,
    /// Why each output ended: `stop`, `length` or `limit`.
    pub finish: Vec<String>,
    /// The tokens of each output; none of given outputs.
    pub tokens: Vec<usize>,
    /// Why the sample failed before it could be scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// The scores.
    pub scores: Vec<ScoreRecord>,
    /// What was said and called, one per repeat, where tools were on offer.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub transcripts: Vec<Transcript>,
}

/// The report: what `trainer eval --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `<metric>/<aggregate>` to its value.
    pub metrics: BTreeMap<String, f64>,
    /// Standard errors of those metrics that have one.
    pub stderr: BTreeMap<String, f64>,
    /// Whether more is better, for those metrics that say so.
    pub higher_is_better: BTreeMap<String, bool>,
    /// How many samples a value is over, for those metrics that say so (`eval-metric` 0.2.0).
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub counted: BTreeMap<String, u64>,
    /// Where several answers per row were drawn: `<metric>/<score>` to k to pass@k, the unbiased estimate.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub pass_at_k: BTreeMap<String, BTreeMap<String, f64>>,
    /// The version of each metric's scoring: reports compare only where it is equal.
    pub scoring_versions: BTreeMap<String, String>,
    /// What became of the rows, by metric.
    pub rows: BTreeMap<String, RowCounts>,
    /// This program's version.
    pub trainer: String,
    /// The backend that computed; none where outputs were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The base model; none where outputs were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Component>,
    /// The given outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predictions: Option<DataUse>,
    /// The adapter on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Component>,
    /// The tokenizer; none where outputs were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<Component>,
    /// The rows.
    pub data: DataUse,
    /// The plugins that had a part.
    pub plugins: Vec<Component>,
    /// How the answers were drawn; none where outputs were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoding: Option<crate::Decoding>,
    /// The per-sample results: a file beside the report, by name.
    pub samples: PathBuf,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub generated_tokens: u64,
    /// Wall-clock seconds. Kept in `<name>.timing.json`, apart from what an equal evaluation gives again to the byte.
    #[serde(skip)]
    pub seconds: f64,
}

/// What differs from one evaluation to its equal: `<name>.timing.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Wall-clock seconds, from the model being ready to the report.
    pub seconds: f64,
    /// Answers taken over from an evaluation that was stopped.
    pub taken_over: usize,
}

/// Writes `<name>.samples.jsonl`, `<name>.timing.json` and `<name>.json` into a folder, each whole or not at all, and gives the report's path.
/// The report's `samples` is set to the name of the file that was written.
///
/// # Errors
/// A file cannot be written.
pub fn write_report(
    folder: &Path,
    name: &str,
    report: &mut Report,
    samples: &[SampleResult],
    timing: &Timing,
) -> Result<PathBuf, EvalError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| EvalError::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let path = folder.join(format!("{name}.samples.jsonl"));
    let mut lines = Vec::new();
    for sample in samples {
        serde_json::to_writer(&mut lines, sample).map_err(|e| failed(&path)(e.into()))?;
        lines.write_all(b"\n").map_err(failed(&path))?;
    }
    durable::write_atomic(&path, &lines)?;
    report.samples = PathBuf::from(format!("{name}.samples.jsonl"));
    let path = folder.join(format!("{name}.timing.json"));
    durable::write_atomic(&path, &pretty(timing).map_err(failed(&path))?)?;
    let path = folder.join(format!("{name}.json"));
    durable::write_atomic(&path, &pretty(report).map_err(failed(&path))?)?;
    Ok(path)
}

fn pretty(value: &impl Serialize) -> Result<Vec<u8>, std::io::Error> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}
