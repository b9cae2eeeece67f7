//! The promises of the pipeline, with native stages: order, resuming, feedback, policies on bad rows.

mod prepared;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;
use crate::conversation::{Content, Conversation, Message, Piece};
use crate::error::{BadKind, StageError};
use crate::source::{Access, Order, Source, SourceSpec};
use crate::stages::*;

/// Rows `{"n": NUMBER, "do": WHAT}`; the conversation holds the number, and `do` asks for trouble.
struct TestFormatter {
    calls: AtomicUsize,
}

fn conversation(text: String, weight: f32) -> Conversation {
    let message = Message {
        role: "assistant".to_owned(),
        content: Content::Text(text),
        reasoning_content: None,
        tool_calls: vec![],
        tool_call_id: None,
        name: None,
        weight: None,
        spans: vec![],
    };
    Conversation { messages: vec![message], tools: vec![], template_args: None, weight }
}

impl RowFormatter for TestFormatter {
    fn format(&self, rows: &[String]) -> Result<Vec<FormatOutcome>, StageError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let parsed: Vec<serde_json::Value> = rows.iter().map(|r| serde_json::from_str(r).unwrap()).collect();
        if let Some(trap) = parsed.iter().find(|r| r["do"] == "trap") {
            return Err(StageError::Row(format!("trapped on {}", trap["n"])));
        }
        if parsed.iter().any(|r| r["do"] == "deadline") {
            return Err(StageError::Fatal("deadline".to_owned()));
        }
        assert!(parsed.iter().all(|r| r["do"] != "panic"), "asked to panic");
        Ok(parsed
            .iter()
            .map(|r| match r["do"].as_str() {
                Some("skip") => FormatOutcome::Skip("not wanted".to_owned()),
                Some("bad") => FormatOutcome::Bad { pointer: "/n".to_owned(), message: "refused".to_owned() },
                Some("half") => FormatOutcome::Sample(conversation(r["n"].to_string(), 0.5)),
                Some(other) => FormatOutcome::Sample(conversation(format!("{} {other}", r["n"]), 1.0)),
                None => FormatOutcome::Sample(conversation(r["n"].to_string(), 1.0)),
            })
            .collect())
    }
    fn identity(&self) -> Option<serde_json::Value> {
        Some("test formatter".into())
    }
}

/// `N split` gives N % 4 samples, `N long` a hundred words, `N mute` nothing generated, `N refuse` an error.
struct TestTemplate;

impl SampleTemplate for TestTemplate {
    fn render(&self, conversations: &[Conversation]) -> Result<Vec<Result<Vec<Vec<RenderedSegment>>, RenderFault>>, StageError> {
        let one = |c: &Conversation| {
            let Content::Text(text) = &c.messages[0].content else { panic!("text") };
            let (n, what) = text.split_once(' ').unwrap_or((text, ""));
            let segment = |text: String, generated| RenderedSegment {
                piece: Piece::Text(text),
                generated,
                weight: 1.0,
                message: generated.then_some(0),
            };
            let sample = |part: usize| vec![segment("1 ".to_owned(), false), segment(format!("{n} {part} "), what != "mute")];
            match what {
                "refuse" => Err(RenderFault { kind: BadKind::Template, message: "refused".to_owned() }),
                "split" => Ok((0..n.parse::<usize>().unwrap() % 4).map(sample).collect()),
                "long" => Ok(vec![vec![segment("7 ".repeat(100), true)], sample(1)]),
                _ => Ok(vec![sample(0)]),
            }
        };
        Ok(conversations.iter().map(one).collect())
    }
    fn identity(&self) -> Option<serde_json::Value> {
        Some("test template".into())
    }
}

/// Numbers as ids.
struct TestEncoder;

impl SegmentEncoder for TestEncoder {
    fn encode(&self, segments: &[(Piece, f32)]) -> Result<Tokens, StageError> {
        let mut out = Tokens::default();
        for (i, (piece, weight)) in segments.iter().enumerate() {
            for word in piece.as_str().split_whitespace() {
                out.ids.push(word.parse().unwrap());
                out.weights.push(*weight);
                out.segments.push(i as u32);
            }
        }
        Ok(out)
    }
    fn identity(&self) -> Option<serde_json::Value> {
        Some("test encoder".into())
    }
}

/// Draws by a pseudo-random walk; `feedback` changes where it goes; `left` bounds it.
struct TestMixer {
    sources: u64,
    state: u64,
    left: u64,
    heard: u64,
}

#[derive(Clone, Copy)]
struct TestMix {
    draws: u64,
    /// One source after the other.
    sequential: bool,
}

impl SourceMixer for TestMixer {
    fn epoch_length(&mut self) -> Result<Option<u64>, StageError> {
        Ok(Some(self.left))
    }
    fn next(&mut self, n: u32) -> Result<Vec<Draw>, StageError> {
        let n = u64::from(n).min(self.left);
        self.left -= n;
        Ok((0..n)
            .map(|_| {
                self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                Draw { source: ((self.state >> 33) % self.sources) as u32, ordinal: None }
            })
            .collect())
    }
    fn feedback(&mut self, step: u64, sources: &[SourceLoss]) -> Result<(), StageError> {
        assert_eq!(step, self.heard + 1, "steps in order, once each");
        self.heard = step;
        for s in sources {
            self.state ^= s.loss.to_bits().rotate_left(s.source);
        }
        Ok(())
    }
    fn snapshot(&mut self) -> Result<Vec<u8>, StageError> {
        Ok([self.sources, self.state, self.left, self.heard].iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

impl MixerFactory for TestMix {
    fn open(&self, setup: &MixerSetup, snapshot: Option<&[u8]>) -> Result<Box<dyn SourceMixer>, StageError> {
        let sources = if self.sequential { 1 } else { setup.sources.len() as u64 };
        Ok(Box::new(match snapshot {
            None => TestMixer { sources, state: setup.seed, left: self.draws, heard: 0 },
            Some(bytes) => {
                let mut v = bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap()));
                let mut next = || v.next().unwrap();
                TestMixer { sources: next(), state: next(), left: next(), heard: next() }
            }
        }))
    }
}

fn leak(text: String) -> &'static [u8] {
    Box::leak(text.into_bytes().into_boxed_slice())
}

fn source(name: &str, whats: &[&str], rows: usize, access: Access) -> Arc<Source> {
    let text: String = (0..rows)
        .map(|i| match whats[i % whats.len()] {
            "" => format!("{{\"n\": {i}}}\n"),
            what => format!("{{\"n\": {i}, \"do\": \"{what}\"}}\n"),
        })
        .collect();
    let mut spec = SourceSpec::embedded(name, format!("{name}.jsonl"), leak(text));
    spec.access = access;
    Arc::new(Source::open(spec).unwrap())
}

fn spec(sources: Vec<Arc<Source>>, draws: u64) -> PipelineSpec {
    let formatter: Arc<dyn RowFormatter> = Arc::new(TestFormatter { calls: AtomicUsize::new(0) });
    let inputs = sources.into_iter().map(|source| SourceInput { source, formatter: Arc::clone(&formatter) }).collect();
    let mut spec =
        PipelineSpec::new(inputs, Arc::new(TestMix { draws, sequential: false }), Arc::new(TestTemplate), Arc::new(TestEncoder), 3407);
    spec.workers = Some(0);
    spec.max_seq_length = 50;
    spec
}

/// Sources with everything in them that does not stop a run.
fn rich(access: Access) -> Vec<Arc<Source>> {
    vec![source("a", &["", "skip", "split", "bad"], 37, Access::Random), source("b", &["half", "mute", "trap", "long", ""], 23, access)]
}

/// Takes `n` samples a call, giving feedback after each call if the run has it; the samples of all calls.
fn drain(p: &mut Pipeline, n: usize, calls: usize) -> Vec<Sample> {
    let mut out = Vec::new();
    for _ in 0..calls {
        let got = p.next_samples(n).unwrap();
        let last = got.len() < n;
        tell(p, n as u64, got.last().map_or(0, |s| s.index + 1));
        out.extend(got);
        if last {
            break;
        }
    }
    out
}

/// Feedback that depends on the step, once a step is complete.
fn tell(p: &mut Pipeline, n: u64, samples: u64) {
    if p.feedback.is_some() && samples > 0 && samples.is_multiple_of(n) {
        let step = samples / n;
        let loss = SourceLoss { source: (step % 2) as u32, loss: (step as f64).sin(), weight: 1.0, samples: 1 };
        p.feedback(step, &[loss]).unwrap();
    }
}

#[test]
fn the_stream_is_the_same_for_every_number_of_threads_and_depth() {
    for access in [Access::Random, Access::Stream { window: 7 }] {
        for feedback in [None, Some(FeedbackPlan { lag: 1, samples_per_step: 5 }), Some(FeedbackPlan { lag: 3, samples_per_step: 5 })] {
            let mut expected = None;
            for (workers, read_ahead, format_batch) in [(0, 1, 1), (0, 512, 32), (1, 3, 2), (3, 64, 5), (4, 512, 64)] {
                let mut s = spec(rich(access), 400);
                (s.workers, s.read_ahead, s.format_batch) = (Some(workers), read_ahead, format_batch);
                (s.max_bad_rows, s.feedback) = (u64::MAX, feedback);
                let mut p = Pipeline::new(s).unwrap();
                let samples = drain(&mut p, 5, usize::MAX);
                let state = p.state().unwrap();
                assert!(samples.len() > 200 && samples.iter().enumerate().all(|(i, s)| s.index == i as u64));
                assert!(samples.windows(2).all(|w| w[0].draw <= w[1].draw));
                let (first, at) = expected.get_or_insert_with(|| (samples.clone(), state.clone()));
                assert_eq!(*first, samples, "{workers} {read_ahead} {format_batch}");
                assert_eq!(*at, state, "{workers} {read_ahead} {format_batch}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Stopped anywhere, also between the samples of one conversation, and continued with other settings of reading: the same stream,
    /// and the same state at its end.
    #[test]
    fn resumed_equals_uninterrupted(
        calls in 0usize..60, extra in 0usize..5, ways in prop::array::uniform2((0usize..3, 1usize..100, 1usize..20)),
        streamed: bool, lag in 0u32..3,
    ) {
        let access = if streamed { Access::Stream { window: 5 } } else { Access::Random };
        let make = |(workers, read_ahead, format_batch): (usize, usize, usize)| {
            let mut s = spec(rich(access), 300);
            (s.workers, s.read_ahead, s.format_batch, s.max_bad_rows) = (Some(workers), read_ahead, format_batch, u64::MAX);
            s.feedback = (lag > 0).then_some(FeedbackPlan { lag, samples_per_step: 5 });
            s
        };
        let mut whole = Pipeline::new(make((0, 512, 32))).unwrap();
        let expected = drain(&mut whole, 5, usize::MAX);

        let mut p = Pipeline::new(make(ways[0])).unwrap();
        let mut got = drain(&mut p, 5, calls);
        let full = got.len() == calls * 5;
        if full {
            got.extend(p.next_samples(extra).unwrap());
        }
        let text = serde_json::to_string(&p.state().unwrap()).unwrap();
        drop(p);
        let state: PipelineState = serde_json::from_str(&text).unwrap();
        let mut p = Pipeline::resume(make(ways[1]), &state).unwrap();
        prop_assert_eq!(&p.state().unwrap(), &state);
        if full && extra > 0 {
            let rest = p.next_samples(5 - extra).unwrap();
            let complete = rest.len() == 5 - extra;
            got.extend(rest);
            if complete { tell(&mut p, 5, got.len() as u64); }
        }
        got.extend(drain(&mut p, 5, usize::MAX));
        prop_assert_eq!(got, expected);
        prop_assert_eq!(p.state().unwrap(), whole.state().unwrap());
    }
}

#[test]
fn a_pass_gives_every_row_once_and_passes_differ() {
    let mut s = spec(vec![source("a", &[""], 100, Access::Random)], 200);
    s.workers = Some(2);
    let rows: Vec<u64> = drain(&mut Pipeline::new(s).unwrap(), 200, 1).iter().map(|s| s.row).collect();
    let sorted = |part: &[u64]| {
        let mut v = part.to_vec();
        v.sort();
        v
    };
    assert_eq!(sorted(&rows[..100]), (1..=100).collect::<Vec<_>>());
    assert_eq!(sorted(&rows[100..]), (1..=100).collect::<Vec<_>>());
    assert_ne!(rows[..100], rows[100..]);
}

#[test]
fn file_order_and_windows() {
    let rows = |order, access| {
        let text: String = (0..30).map(|i| format!("{{\"n\": {i}}}\n")).collect();
        let mut one = SourceSpec::embedded("a", "a.jsonl", leak(text));
        (one.order, one.access) = (order, access);
        let s = spec(vec![Arc::new(Source::open(one).unwrap())], 60);
        drain(&mut Pipeline::new(s).unwrap(), 60, 1).iter().map(|s| s.row).collect::<Vec<u64>>()
    };
    let plain: Vec<u64> = (1..=30).chain(1..=30).collect();
    assert_eq!(rows(Order::File, Access::Random), plain);
    assert_eq!(rows(Order::File, Access::Stream { window: 8 }), plain);
    let windowed = rows(Order::Shuffled, Access::Stream { window: 8 });
    assert_ne!(windowed, plain);
    for (i, row) in windowed.iter().enumerate() {
        assert_eq!((row - 1) / 8, (i as u64 % 30) / 8, "a row leaves its window");
    }
}

#[test]
fn the_first_bad_row_stops_the_run_and_the_state_is_that_before() {
    let mut s = spec(vec![source("a", &["", "", "", "bad"], 40, Access::Random)], 40);
    s.workers = Some(2);
    let mut p = Pipeline::new(s).unwrap();
    let before = p.state().unwrap();
    let text = p.next_samples(40).unwrap_err().to_string();
    assert!(text.contains("a.jsonl:") && text.contains("at /n: refused") && text.contains("--max-bad-rows"), "{text}");
    assert_eq!(p.state().unwrap(), before);
    assert!(p.next_samples(1).is_err());
}

#[test]
fn bad_rows_are_counted_up_to_the_limit() {
    let with = |max| {
        let mut s = spec(vec![source("a", &["", "bad", "trap", "refuse", "skip"], 50, Access::Random)], 50);
        (s.max_bad_rows, s.bad_examples) = (max, 4);
        Pipeline::new(s).unwrap()
    };
    let mut p = with(30);
    assert_eq!(p.next_samples(100).unwrap().len(), 10);
    let c = p.counters();
    assert_eq!((c.rows, c.bad_rows(), c.skipped_total(), c.formatted), (50, 30, 10, 20));
    assert_eq!([c.bad[&BadKind::Format], c.bad[&BadKind::Trap], c.bad[&BadKind::Template]], [10, 10, 10]);
    assert_eq!(c.skipped["not wanted"], 10);
    assert_eq!(c.bad_examples.len(), 4);
    assert!(with(29).next_samples(100).unwrap_err().to_string().contains("this is bad row 30; --max-bad-rows allows 29"));
}

#[test]
fn weights_lengths_and_targets_follow_the_settings() {
    let all = |what: &'static str, set: &dyn Fn(&mut PipelineSpec)| {
        let mut s = spec(vec![source("a", &[what], 1, Access::Random)], 1);
        set(&mut s);
        let mut p = Pipeline::new(s).unwrap();
        let samples = p.next_samples(9).map(|v| v.into_iter().map(|s| (s.ids, s.weights)).collect::<Vec<_>>());
        (samples.map_err(|e| e.to_string()), p.counters().clone())
    };
    assert_eq!(all("", &|_| ()).0.unwrap(), [(vec![1, 0, 0], vec![0.0, 1.0, 1.0])]);
    assert_eq!(all("half", &|_| ()).0.unwrap(), [(vec![1, 0, 0], vec![0.0, 0.5, 0.5])]);
    assert_eq!(all("half", &|s| s.train_on = TrainOn::All).0.unwrap(), [(vec![1, 0, 0], vec![0.5, 0.5, 0.5])]);
    let (samples, c) = all("mute", &|_| ());
    assert!(samples.unwrap().is_empty() && c.skipped["no target tokens"] == 1);
    assert!(all("mute", &|s| s.no_target = NoTarget::Error).0.unwrap_err().contains("a.jsonl:1: no target tokens"));
    let (samples, c) = all("long", &|_| ());
    assert_eq!((samples.unwrap()[0].0.len(), c.truncated, c.samples, c.tokens, c.target_tokens), (50, 1, 2, 53, 51));
    let (samples, c) = all("long", &|s| s.too_long = TooLong::Drop);
    assert_eq!((samples.unwrap().len(), c.skipped["longer than max_seq_length"]), (1, 1));
    assert!(all("long", &|s| s.too_long = TooLong::Error).0.unwrap_err().contains("100 tokens; raise max_seq_length (50)"));
    assert!(all("deadline", &|_| ()).0.unwrap_err().contains("formatter failed on a.jsonl:1 (source `a`): deadline"));
    assert!(all("panic", &|_| ()).0.unwrap_err().contains("asked to panic"));
    assert!(all("panic", &|s| s.workers = Some(2)).0.unwrap_err().contains("asked to panic"));
}

#[test]
fn a_source_that_gives_nothing_ends_the_run() {
    let s = spec(vec![source("a", &["skip"], 10, Access::Random)], u64::MAX);
    let text = Pipeline::new(s).unwrap().next_samples(1).unwrap_err().to_string();
    assert!(text.contains("the last 1000 draws gave no sample") && text.contains("not wanted: "), "{text}");
}

#[test]
fn feedback_is_demanded_in_order_and_in_time() {
    let make = |lag| {
        let mut s = spec(vec![source("a", &["", "skip"], 100, Access::Random)], 1000);
        s.feedback = Some(FeedbackPlan { lag, samples_per_step: 4 });
        s.workers = Some(2);
        Pipeline::new(s).unwrap()
    };
    let loss = [SourceLoss { source: 0, loss: 1.0, weight: 1.0, samples: 4 }];
    for lag in 1..4 {
        let mut p = make(lag);
        // Steps up to `lag` can be had without any feedback, and the next cannot.
        assert_eq!(p.next_samples(4 * lag as usize).unwrap().len(), 4 * lag as usize);
        if lag > 1 {
            assert!(p.feedback(2, &loss).unwrap_err().to_string().contains("step 1 is next"));
        }
        p.feedback(1, &loss).unwrap();
        assert_eq!(p.next_samples(4).unwrap().len(), 4);
        let text = p.next_samples(4).unwrap_err().to_string();
        assert!(text.contains("depend on the feedback of step 2"), "{text}");
    }
    let mut p = make(1);
    assert!(p.feedback(1, &loss).unwrap_err().to_string().contains("before all of its samples"));
    let s = spec(vec![source("a", &[""], 4, Access::Random)], 4);
    assert!(Pipeline::new(s).unwrap().feedback(1, &loss).is_err());
}

#[test]
fn a_state_of_another_run_is_refused() {
    let make = || spec(vec![source("a", &[""], 10, Access::Random)], 10);
    let mut p = Pipeline::new(make()).unwrap();
    p.next_samples(3).unwrap();
    let state = p.state().unwrap();
    let refused = |spec: PipelineSpec, state: &PipelineState| Pipeline::resume(spec, state).err().unwrap().to_string();
    let mut other = make();
    other.seed = 1;
    assert!(refused(other, &state).contains("seed was 3407, now it is 1"));
    assert!(refused(spec(vec![source("a", &[""], 11, Access::Random)], 10), &state).contains("the data has changed"));
    let mut broken = state.clone();
    broken.sources.clear();
    assert!(refused(make(), &broken).contains("damaged"));
    broken = state.clone();
    broken.version = 9;
    assert!(refused(make(), &broken).contains("format 9"));
}

#[test]
fn reading_ahead_is_bounded_and_dropping_joins() {
    struct Counting(Arc<AtomicUsize>);
    impl RowFormatter for Counting {
        fn format(&self, rows: &[String]) -> Result<Vec<FormatOutcome>, StageError> {
            self.0.fetch_add(rows.len(), Ordering::SeqCst);
            Ok(rows.iter().map(|_| FormatOutcome::Sample(conversation("5".to_owned(), 1.0))).collect())
        }
    }
    let count = Arc::new(AtomicUsize::new(0));
    let mut s = spec(vec![source("a", &[""], 100, Access::Random)], u64::MAX);
    s.sources[0].formatter = Arc::new(Counting(Arc::clone(&count)));
    (s.workers, s.read_ahead, s.format_batch) = (Some(2), 40, 4);
    let mut p = Pipeline::new(s).unwrap();
    p.next_samples(10).unwrap();
    drop(p);
    // Joined: nothing counts on, and no more than the handed out and the read-ahead were ever begun.
    assert!((10..=50).contains(&count.load(Ordering::SeqCst)));
    assert_eq!(Arc::strong_count(&count), 1);
}

#[test]
fn max_draws_ends_the_stream() {
    for feedback in [None, Some(FeedbackPlan { lag: 1, samples_per_step: 4 })] {
        let mut s = spec(vec![source("a", &["", "skip"], 10, Access::Random)], u64::MAX);
        (s.max_draws, s.feedback) = (Some(20), feedback);
        let mut p = Pipeline::new(s).unwrap();
        assert_eq!(drain(&mut p, 4, usize::MAX).len(), 10);
        assert_eq!(p.counters().rows, 20);
        assert!(p.next_samples(4).unwrap().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Streams and random access, with a split, a limit and a filter: every pass has exactly the rows that are taken, each once; stopped
    /// anywhere and continued from a state that went through a file, nothing is skipped or repeated, whatever the number of threads.
    #[test]
    fn passes_over_views_are_whole_and_resume_exactly(
        window in prop::option::of(1u32..40), share in 0.0f64..0.7, limit in prop::option::of(1u64..60), least in 0u64..30,
        stop in 0usize..150, workers in 0usize..4, seed: u64,
    ) {
        let text: String = (0..80).map(|i| format!("{{\"n\": {i}}}\n")).collect();
        let open = || {
            let mut one = SourceSpec::embedded("a", "a.jsonl", leak(text.clone()));
            one.access = window.map_or(Access::Random, |window| Access::Stream { window });
            one.view = RowView {
                filters: vec![crate::source::Filter { column: "n".to_owned(), min: Some(least as f64), ..Default::default() }],
                holdout: Some(crate::source::Holdout { share, by: None, held_out: false }),
                limit,
                columns: vec![("n".to_owned(), "/n".to_owned())],
            };
            Arc::new(Source::open(one).unwrap())
        };
        let source = open();
        let taken: Vec<u64> = source.rows().map(|r| r.unwrap().row).collect();
        let len = taken.len();
        prop_assert_eq!(source.len(), len as u64);
        let draws = 3 * len;
        let make = |source: Arc<Source>, workers| {
            let mut s = spec(vec![source], draws as u64);
            (s.seed, s.workers, s.read_ahead, s.format_batch) = (seed, Some(workers), 1 + 7 * workers, 1 + workers);
            s
        };
        let all = drain(&mut Pipeline::new(make(source, 0)).unwrap(), 16, usize::MAX);
        prop_assert_eq!(all.len(), draws);
        for pass in all.chunks(len) {
            let mut rows: Vec<u64> = pass.iter().map(|s| s.row).collect();
            rows.sort_unstable();
            prop_assert_eq!(&rows, &taken);
        }
        let stop = stop % (draws + 1);
        let mut first = Pipeline::new(make(open(), workers)).unwrap();
        let mut got = first.next_samples(stop).unwrap();
        let state = serde_json::to_string(&first.state().unwrap()).unwrap();
        let mut second = Pipeline::resume(make(open(), workers), &serde_json::from_str(&state).unwrap()).unwrap();
        got.extend(drain(&mut second, 5, usize::MAX));
        prop_assert_eq!(got, all);
    }
}

#[test]
fn both_sides_of_a_long_sample() {
    for (side, first) in [(TruncationSide::Right, 0..50), (TruncationSide::Left, 50..100)] {
        let mut s = spec(vec![source("a", &["long"], 1, Access::Random)], u64::MAX);
        (s.max_draws, s.truncation_side) = (Some(1), side);
        let mut tracer = Tracer::new(&s).unwrap();
        let trace = tracer.next(None).unwrap().unwrap();
        let sample = Pipeline::new(s).unwrap().next_samples(1).unwrap().remove(0);
        let [traced, _] = trace.samples.as_slice() else { panic!("two samples") };
        assert_eq!((traced.kept.clone(), traced.tokens.ids.len()), (first, 100));
        assert_eq!(traced.trained(), (sample.ids.as_slice(), sample.weights.as_slice()));
        assert!(tracer.next(None).unwrap().is_none());
    }
}
