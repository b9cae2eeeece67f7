//! The whole path with the official plugins and the real tokenizer.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use trainer_data::*;
use trainer_plugin_host::{CompilerCommand, HostOptions, Limits, Plugin, PluginHost, PluginSource};
use trainer_test_support as support;
use trainer_text::{SpecialMode, Tokenizer};

/// The sources' rows one after another, each once.
struct InOrder;
struct Cursor {
    lengths: Vec<u64>,
    next: u64,
}

impl MixerFactory for InOrder {
    fn open(&self, setup: &MixerSetup, snapshot: Option<&[u8]>) -> Result<Box<dyn SourceMixer>, StageError> {
        let next = snapshot.map_or(0, |s| u64::from_le_bytes(s.try_into().unwrap()));
        Ok(Box::new(Cursor { lengths: setup.sources.iter().map(|s| s.length.unwrap()).collect(), next }))
    }
}

impl SourceMixer for Cursor {
    fn epoch_length(&mut self) -> Result<Option<u64>, StageError> {
        Ok(Some(self.lengths.iter().sum()))
    }
    fn next(&mut self, n: u32) -> Result<Vec<Draw>, StageError> {
        let mut out = Vec::new();
        while out.len() < n as usize {
            let mut ordinal = self.next;
            let Some(source) = self.lengths.iter().position(|&len| ordinal.checked_sub(len).map(|o| ordinal = o).is_none()) else { break };
            out.push(Draw { source: source as u32, ordinal: Some(ordinal) });
            self.next += 1;
        }
        Ok(out)
    }
    fn feedback(&mut self, _: u64, _: &[SourceLoss]) -> Result<(), StageError> {
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Vec<u8>, StageError> {
        Ok(self.next.to_le_bytes().to_vec())
    }
}

fn host() -> PluginHost {
    PluginHost::new(HostOptions::new(CompilerCommand::in_process())).unwrap()
}

fn plugin(host: &PluginHost, name: &str) -> Arc<Plugin> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/prebuilt").join(format!("{name}.wasm"));
    host.load(&PluginSource::File(path), Limits::default()).unwrap()
}

fn source(path: &str) -> Arc<Source> {
    Arc::new(Source::open(SourceSpec::paths(path, [support::reference_file(path).display().to_string()])).unwrap())
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bytes(&support::bytes("tokenizer/small/tokenizer.json"), None, None).unwrap())
}

fn spec(sources: Vec<SourceInput>, template: Arc<dyn SampleTemplate>) -> PipelineSpec {
    let encoder = TextEncoder { tokenizer: tokenizer(), mode: SpecialMode::Parse };
    let mut spec = PipelineSpec::new(sources, Arc::new(InOrder), template, Arc::new(encoder), 3407);
    (spec.train_on, spec.max_seq_length, spec.workers) = (TrainOn::All, 1 << 20, Some(2));
    spec
}

/// Rows of every layout through formatter, exact template and tokenizer: the texts and token counts of the established software.
#[test]
fn reference_texts_and_token_counts() {
    let host = host();
    let none = serde_json::json!({});
    let template = Arc::new(plugin(&host, "qwen3_chat").template(&serde_json::json!({ "form": "exact" })).unwrap());
    let maths: Arc<dyn RowFormatter> = Arc::new(plugin(&host, "math_mix").formatter(&none).unwrap());
    let chat: Arc<dyn RowFormatter> = Arc::new(plugin(&host, "sharegpt").formatter(&none).unwrap());
    let tokenizer = tokenizer();
    for (name, formatter) in [("maths", maths), ("chat", chat)] {
        let expected = support::jsonl(&format!("dataset/expected_{name}.jsonl"));
        for ending in ["jsonl", "parquet"] {
            let input = SourceInput { source: source(&format!("dataset/{name}.{ending}")), formatter: Arc::clone(&formatter) };
            let mut p = Pipeline::new(spec(vec![input], template.clone())).unwrap();
            let samples = p.next_samples(expected.len() + 1).unwrap();
            assert_eq!(samples.len(), expected.len(), "{name}.{ending}: {:?}", p.counters());
            for (sample, expected) in samples.iter().zip(&expected) {
                let place = format!("{}:{}", sample.file, sample.row);
                assert_eq!(tokenizer.decode(&sample.ids, false), expected["text"].as_str().unwrap(), "{place}");
                assert_eq!(sample.ids.len() as u64, expected["n_tokens_small"].as_u64().unwrap(), "{place}");
                assert!(sample.weights.iter().all(|&w| w == 1.0), "{place}");
            }
        }
    }
}

/// Dirty rows through the real plugins: each gives samples, a skip or a bad row with file and line; nothing stops the run under a high limit.
#[test]
fn reference_dirty_rows_are_counted_with_their_places() {
    let host = host();
    let none = serde_json::json!({});
    let template = Arc::new(plugin(&host, "qwen3_chat").template(&none).unwrap());
    let maths: Arc<dyn RowFormatter> = Arc::new(plugin(&host, "math_mix").formatter(&none).unwrap());
    let chat: Arc<dyn RowFormatter> = Arc::new(plugin(&host, "sharegpt").formatter(&none).unwrap());
    for (name, formatter) in [
        ("maths_dirty.jsonl", &maths),
        ("maths_dirty.parquet", &maths),
        ("maths_no_problem_column.parquet", &maths),
        ("broken_lines.jsonl", &maths),
        ("invalid_utf8.jsonl", &maths),
        ("chat_dirty.jsonl", &chat),
        ("chat_dirty.parquet", &chat),
    ] {
        let source = source(&format!("dataset/dirty/{name}"));
        let rows = source.len();
        let input = SourceInput { source, formatter: Arc::clone(formatter) };
        let mut spec = spec(vec![input], template.clone());
        (spec.max_bad_rows, spec.bad_examples, spec.train_on) = (u64::MAX, usize::MAX, TrainOn::Assistant);
        let first = Pipeline::new(PipelineSpec { max_bad_rows: 0, ..spec.clone() }).unwrap().next_samples(rows as usize + 1);
        let mut p = Pipeline::new(spec).unwrap();
        let samples = p.next_samples(rows as usize + 1).unwrap();
        let c = p.counters();
        assert_eq!(c.rows, rows, "{name}");
        assert_eq!(samples.len() as u64 + c.bad_rows() + c.skipped_total(), rows, "{name}: {c:?}");
        assert_eq!(c.bad.get(&BadKind::Trap), None, "{name}: {:?}", c.bad_examples);
        for bad in &c.bad_examples {
            assert!(bad.to_string().contains(&format!("{name}:{}: ", bad.row)) && bad.message.len() > 5, "{bad}");
        }
        // Under the default the first bad row stops the run, and says so.
        match c.bad_examples.first() {
            Some(bad) => assert!(first.unwrap_err().to_string().starts_with(&bad.to_string())),
            None => assert_eq!(first.unwrap(), samples),
        }
        if name.contains("no_problem_column") {
            assert_eq!(c.bad_rows(), rows, "{:?}", c.bad_examples.first());
            assert!(c.bad_examples.iter().all(|b| b.to_string().contains("problem")));
        }
    }
}

/// The mixing plugin drives the pipeline; stopped and resumed it gives the same samples.
#[test]
fn the_mixing_plugin_resumes() {
    let host = host();
    let none = serde_json::json!({});
    let mix = plugin(&host, "math_mix");
    let template = Arc::new(plugin(&host, "qwen3_chat").template(&none).unwrap());
    let maths: Arc<dyn RowFormatter> = Arc::new(mix.formatter(&none).unwrap());
    let chat: Arc<dyn RowFormatter> = Arc::new(plugin(&host, "sharegpt").formatter(&none).unwrap());
    let make = |workers| {
        let open = |name: &str, path: &str| {
            Arc::new(Source::open(SourceSpec::paths(name, [support::reference_file(path).display().to_string()])).unwrap())
        };
        let inputs = vec![
            SourceInput { source: open("reasoning", "dataset/maths.jsonl"), formatter: Arc::clone(&maths) },
            SourceInput { source: open("chat", "dataset/chat.parquet"), formatter: Arc::clone(&chat) },
        ];
        let mut spec = spec(inputs, template.clone());
        (spec.mixer, spec.workers) = (Arc::new(PluginMixer { plugin: Arc::clone(&mix), settings: serde_json::json!({}) }), Some(workers));
        spec
    };
    let expected = Pipeline::new(make(0)).unwrap().next_samples(90).unwrap();
    assert!(expected.iter().any(|s| s.source == 0) && expected.iter().any(|s| s.source == 1));
    for split in [0, 1, 37, 64, 89] {
        let mut p = Pipeline::new(make(2)).unwrap();
        let mut got = p.next_samples(split).unwrap();
        let state = p.state().unwrap();
        let mut p = Pipeline::resume(make(1), &state).unwrap();
        got.extend(p.next_samples(90 - split).unwrap());
        assert_eq!(got, expected, "split at {split}");
    }
}
