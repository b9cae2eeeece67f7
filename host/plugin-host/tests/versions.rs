//! Versions of the interfaces: released ones never change, and plugins of every version run beside each other.

mod common;
#[path = "common/guest.rs"]
mod guest;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::{host, root, source};
use guest::{Guest, words};
use serde_json::json;
use sha2::{Digest, Sha256};
use trainer_plugin_host::metric::{Answer, Finish, Item, Plan, Response, Score, Value};
use trainer_plugin_host::{Kind, Limits, Plugin, PluginSource, inspect};

fn sha256(path: &Path) -> String {
    Sha256::digest(fs::read(path).unwrap()).iter().map(|b| format!("{b:02x}")).collect()
}

/// The files below `wit/`, by their paths.
fn interfaces() -> Vec<String> {
    let list = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        names
    };
    let mut files = Vec::new();
    for version in list(&root().join("wit")).iter().filter(|p| p.is_dir()).flat_map(|package| list(package)) {
        for file in list(&version) {
            files.push(file.strip_prefix(root().join("wit")).unwrap().to_str().unwrap().to_owned());
        }
    }
    files
}

#[test]
fn released_interfaces_never_change() {
    let text = fs::read_to_string(root().join("wit/released.toml")).unwrap();
    let released: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('"')?.split_once("\" = \""))
        .map(|(file, digest)| (file, digest.strip_suffix('"').unwrap()))
        .collect();
    assert!(released.len() >= 9, "{released:?}");
    for (file, digest) in &released {
        let path = root().join("wit").join(file);
        assert!(path.is_file(), "wit/{file} is released and gone: plugins that were built against it are in use; put it back");
        assert_eq!(
            &sha256(&path),
            digest,
            "wit/{file} is released and must not change, not even in a comment: put it back, and make the change in a new version beside it \
             (see wit/released.toml)"
        );
    }
    for file in interfaces() {
        assert!(
            released.contains_key(file.as_str()),
            "wit/{file} is in no list: once the host runs plugins of it, add it with its SHA-256, {}, to wit/released.toml",
            sha256(&root().join("wit").join(&file))
        );
    }
    for kind in Kind::ALL {
        for version in kind.versions() {
            let folder = format!("{}/{version}/", kind.name());
            assert!(
                released.keys().any(|file| file.starts_with(&folder)),
                "the host knows {kind} {version}, of which there is no released WIT"
            );
        }
    }
}

fn skip(guest: &mut Guest) -> Vec<u8> {
    let mut plan = [words(&[1]), guest.text("not for me")].concat();
    plan.resize(64, 0);
    guest.list(&[plan])
}

fn score(guest: &mut Guest) -> Vec<u8> {
    [guest.text("correct"), words(&[1, 0, 1, 0]), guest.text("as expected")].concat()
}

/// A metric whose scores say yes and whose summary is 0.5 ± 0.25, in either version.
fn metric(version: &str) -> Guest {
    let mut guest = Guest::new(Kind::EvalMetric, version);
    let number = guest.text("7");
    let plans = skip(&mut guest);
    let score = score(&mut guest);
    let sample = guest.list(&[score]);
    let scores = guest.list(&[sample]);
    let some = |value: f64| [words(&[1, 0]), value.to_le_bytes().to_vec()].concat();
    let mut summary = [guest.text("accuracy"), 0.5_f64.to_le_bytes().to_vec(), some(0.25), words(&[0x0101, 0])].concat();
    if version != "0.1.0" {
        summary.extend([words(&[1, 0]), 2_u64.to_le_bytes().to_vec()].concat());
    }
    let summaries = guest.list(&[summary]);
    let summaries = [words(&[0]), summaries].concat();
    guest.answers("scoring-version", &number).answers("prepare", &plans).answers("score", &scores).answers("aggregate", &summaries)
}

fn item(tokens: Option<u64>) -> Item {
    let answer = Answer {
        raw: "raw".into(),
        text: "text".into(),
        reasoning: String::new(),
        calls: Vec::new(),
        malformed: Vec::new(),
        finish: Finish::Stop,
        tokens,
    };
    Item { row: "{}".into(), response: Response::Answers(vec![answer]) }
}

fn load(bytes: Vec<u8>) -> Arc<Plugin> {
    host().load(&source(bytes), Limits::default()).unwrap()
}

#[test]
fn metrics_of_both_versions_pass_one_suite() {
    for version in Kind::EvalMetric.versions() {
        let bytes = metric(version).build();
        assert_eq!(inspect(&bytes).unwrap().kinds[0].to_string(), format!("eval-metric {version}"));
        let plugin = load(bytes);
        assert_eq!(plugin.kinds()[0].version, *version);
        let metric = plugin.metric(&json!({})).unwrap();
        assert_eq!(metric.scoring_version().unwrap(), "7");
        let plans = metric.prepare(&["{}".to_owned()]).unwrap();
        assert!(matches!(plans.as_slice(), [Ok(Plan::Skip(words))] if words == "not for me"), "{plans:?}");
        let scores: Vec<Vec<Score>> = metric.score(&[item(Some(3))]).unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(scores, [[Score { name: "correct".into(), value: Value::Boolean(true), explanation: "as expected".into() }]]);
        let summary = metric.aggregate(&[scores[0].clone(), scores[0].clone()]).unwrap().pop().unwrap();
        assert_eq!((summary.name.as_str(), summary.value, summary.stderr), ("accuracy", 0.5, Some(0.25)));
        assert_eq!(summary.higher_is_better, Some(true));
        assert_eq!(summary.samples, (*version != "0.1.0").then_some(2));
        // Errors name the version.
        let error = metric.prepare(&["{}".to_owned(), "{}".to_owned()]).unwrap().pop().unwrap().unwrap();
        assert!(matches!(error, Plan::Skip(_)), "row by row it answers: {error:?}");
        let broken = load(self::metric(version).body("score", "unreachable").build()).metric(&json!({})).unwrap();
        let error = broken.score(&[item(None)]).unwrap().pop().unwrap().unwrap_err().to_string();
        assert_eq!(
            error,
            format!("plugin `rogue` 1.2.3, trainer:eval-metric/metric@{version}#score trapped: wasm `unreachable` instruction executed")
        );
    }
}

#[test]
fn the_second_version_says_what_the_first_cannot() {
    // The score is the number of tokens of the first answer, where it is known.
    let mut guest = metric("0.2.0");
    let score = score(&mut guest);
    let score = guest.data(&score);
    let sample = guest.data(&words(&[score, 1]));
    let scores = guest.data(&words(&[sample, 1]));
    let guest = guest.body(
        "score",
        &format!(
            "(local $answer i32)
             (local.set $answer (i32.load offset=12 (local.get 0)))
             (i32.store8 offset=8 (i32.const {score}) (i32.const 3))
             (if (i32.load8_u offset=48 (local.get $answer)) (then
               (i32.store8 offset=8 (i32.const {score}) (i32.const 0))
               (f64.store offset=16 (i32.const {score}) (f64.convert_i64_u (i64.load offset=56 (local.get $answer))))))
             (i32.const {scores})"
        ),
    );
    // Parameters have no names; the body's first local comes after them.
    let metric = load(guest.build()).metric(&json!({})).unwrap();
    for (tokens, value) in [(Some(41), Value::Number(41.0)), (None, Value::Unscored)] {
        let scores = metric.score(&[item(tokens)]).unwrap().pop().unwrap().unwrap();
        assert_eq!(scores[0].value, value);
    }
    // Its summary is over two samples, which cannot be if there was one.
    let error = metric.aggregate(&[Vec::new()]).unwrap_err().to_string();
    assert_eq!(
        error,
        "plugin `rogue` 1.2.3, trainer:eval-metric/metric@0.2.0#aggregate returned a bad value: aggregates[0].samples: 2 are more than the \
         1 samples given"
    );
}

#[test]
fn a_binary_of_the_first_version_runs_unchanged() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/exact_match-0.1.0.wasm");
    assert_eq!(
        sha256(&path),
        "2e2900f8bb59e67905b816b4cd1249e54a13e2f4171bf014d8b1a763e796acca",
        "the fixture stands for plugins that nobody can rebuild: put it back"
    );
    let host = host();
    let old = host.load(&PluginSource::File(path), Limits::default()).unwrap();
    let new = host.load(&source(metric("0.2.0").build()), Limits::default()).unwrap();
    let kinds = |plugin: &Plugin| plugin.kinds().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((kinds(&old), kinds(&new)), (vec!["eval-metric 0.1.0".to_owned()], vec!["eval-metric 0.2.0".to_owned()]));
    // Both in one host, one after the other, again and again.
    let (old, new) = (old.metric(&json!({})).unwrap(), new.metric(&json!({})).unwrap());
    let row = json!({"question": "2 + 2?", "answer": "4"}).to_string();
    for (text, right) in [("4", true), ("5", false), ("4", true)] {
        let answer = Answer {
            raw: text.into(),
            text: text.into(),
            reasoning: String::new(),
            calls: Vec::new(),
            malformed: Vec::new(),
            finish: Finish::Stop,
            tokens: Some(1),
        };
        let item = Item { row: row.clone(), response: Response::Answers(vec![answer]) };
        assert!(matches!(old.prepare(std::slice::from_ref(&row)).unwrap().as_slice(), [Ok(Plan::Ask(_))]));
        let scores = old.score(std::slice::from_ref(&item)).unwrap().pop().unwrap().unwrap();
        assert_eq!(scores[0].value, Value::Boolean(right), "{scores:?}");
        let summary = old.aggregate(&[scores]).unwrap().remove(0);
        assert_eq!((summary.value, summary.samples), (f64::from(u8::from(right)), None));
        assert!(new.score(&[item]).unwrap().pop().unwrap().is_ok());
    }
}

/// A metric of the second version that lets the model write, scores each answer by its tokens, and sums up by their mean over the answers whose tokens
/// are known.
fn tokens() -> Guest {
    let manifest = r#"{"name": "tokens", "version": "0.2.0", "description": "The mean number of tokens of the answers"}"#;
    let mut guest = Guest::new(Kind::EvalMetric, "0.2.0").manifest(manifest);
    let version = guest.text("1");
    // One user message: role, text, and nothing of what follows.
    let mut message = [guest.text("user"), words(&[1]), guest.text("Well?")].concat();
    message.resize(80, 0);
    // To be asked, generated: a conversation, no switch for thinking, one repeat, no limit, no stop strings.
    let messages = guest.list(&[message]);
    let mut plan = [words(&[0, 0]), messages, words(&[0; 5]), 1.0_f32.to_le_bytes().to_vec(), words(&[0, 1])].concat();
    plan.resize(64, 0);
    let plan = guest.data(&plan);
    let (name, label) = (guest.text("mean_tokens"), guest.text("tokens"));
    let label = guest.data(&label);
    let summary = guest.data(&[name, vec![0; 48]].concat());
    let summaries = guest.data(&words(&[0, summary, 1]));
    let result = guest.data(&[0; 8]);
    guest
        .field("(func $room (param i32) (result i32) (call $realloc (i32.const 0) (i32.const 0) (i32.const 8) (local.get 0)))")
        .answers("scoring-version", &version)
        .body(
            "prepare",
            &format!(
                "(local $at i32) (local $i i32)
                 (local.set $at (call $room (i32.mul (local.get 1) (i32.const 64))))
                 (block $done (loop $next
                   (br_if $done (i32.ge_u (local.get $i) (local.get 1)))
                   (memory.copy (i32.add (local.get $at) (i32.mul (local.get $i) (i32.const 64))) (i32.const {plan}) (i32.const 64))
                   (local.set $i (i32.add (local.get $i) (i32.const 1)))
                   (br $next)))
                 (i32.store (i32.const {result}) (local.get $at)) (i32.store offset=4 (i32.const {result}) (local.get 1))
                 (i32.const {result})"
            ),
        )
        .body(
            "score",
            // Of each item a list of one score: the tokens of its first answer, where it has one and they are known.
            &format!(
                "(local $lists i32) (local $scores i32) (local $i i32) (local $item i32) (local $score i32) (local $answer i32)
                 (local.set $lists (call $room (i32.mul (local.get 1) (i32.const 8))))
                 (local.set $scores (call $room (i32.mul (local.get 1) (i32.const 32))))
                 (block $done (loop $next
                   (br_if $done (i32.ge_u (local.get $i) (local.get 1)))
                   (local.set $item (i32.add (local.get 0) (i32.mul (local.get $i) (i32.const 20))))
                   (local.set $score (i32.add (local.get $scores) (i32.mul (local.get $i) (i32.const 32))))
                   (memory.fill (local.get $score) (i32.const 0) (i32.const 32))
                   (i64.store (local.get $score) (i64.load (i32.const {label})))
                   (i32.store8 offset=8 (local.get $score) (i32.const 3))
                   (if (i32.and (i32.eqz (i32.load8_u offset=8 (local.get $item))) (i32.ne (i32.load offset=16 (local.get $item)) (i32.const 0))) (then
                     (local.set $answer (i32.load offset=12 (local.get $item)))
                     (if (i32.load8_u offset=48 (local.get $answer)) (then
                       (i32.store8 offset=8 (local.get $score) (i32.const 0))
                       (f64.store offset=16 (local.get $score) (f64.convert_i64_u (i64.load offset=56 (local.get $answer))))))))
                   (i32.store (i32.add (local.get $lists) (i32.mul (local.get $i) (i32.const 8))) (local.get $score))
                   (i32.store offset=4 (i32.add (local.get $lists) (i32.mul (local.get $i) (i32.const 8))) (i32.const 1))
                   (local.set $i (i32.add (local.get $i) (i32.const 1)))
                   (br $next)))
                 (i32.store (i32.const {result}) (local.get $lists)) (i32.store offset=4 (i32.const {result}) (local.get 1))
                 (i32.const {result})"
            ),
        )
        .body(
            "aggregate",
            // The mean lies at 8 of the summary; some count at 40 and 48.
            &format!(
                "(local $i i32) (local $sample i32) (local $score i32) (local $sum f64) (local $count i64)
                 (block $done (loop $next
                   (br_if $done (i32.ge_u (local.get $i) (local.get 1)))
                   (local.set $sample (i32.add (local.get 0) (i32.mul (local.get $i) (i32.const 8))))
                   (local.set $i (i32.add (local.get $i) (i32.const 1)))
                   (br_if $next (i32.eqz (i32.load offset=4 (local.get $sample))))
                   (local.set $score (i32.load (local.get $sample)))
                   (br_if $next (i32.load8_u offset=8 (local.get $score)))
                   (local.set $sum (f64.add (local.get $sum) (f64.load offset=16 (local.get $score))))
                   (local.set $count (i64.add (local.get $count) (i64.const 1)))
                   (br $next)))
                 (if (i64.ne (local.get $count) (i64.const 0)) (then
                   (f64.store offset=8 (i32.const {summary}) (f64.div (local.get $sum) (f64.convert_i64_u (local.get $count))))))
                 (i32.store8 offset=40 (i32.const {summary}) (i32.const 1))
                 (i64.store offset=48 (i32.const {summary}) (local.get $count))
                 (i32.const {summaries})"
            ),
        )
}

/// Writes the fixture that the tests of the whole program use.
#[test]
#[ignore = "writes a fixture"]
fn write_the_fixture_of_the_second_version() {
    fs::write(fixture("tokens-0.2.0.wasm"), tokens().build()).unwrap();
}

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn a_metric_of_the_second_version_counts_tokens() {
    let from_file = fs::read(fixture("tokens-0.2.0.wasm")).unwrap();
    for bytes in [from_file, tokens().build()] {
        let metric = load(bytes).metric(&json!({})).unwrap();
        let rows = vec!["{}".to_owned(); 5];
        for plan in metric.prepare(&rows).unwrap() {
            let Ok(Plan::Ask(trainer_plugin_host::metric::Request::Generate(ask))) = &plan else { panic!("{plan:?}") };
            assert_eq!((ask.repeats, ask.max_new_tokens, ask.conversation.weight), (1, None, 1.0));
            let [message] = ask.conversation.messages.as_slice() else { panic!("{ask:?}") };
            assert_eq!((message.role.as_str(), &message.content), ("user", &trainer_plugin_host::types::Content::Text("Well?".into())));
        }
        let failed = Item { row: "{}".into(), response: Response::Failed("no".into()) };
        let items = [item(Some(10)), item(None), item(Some(20)), failed];
        let scores: Vec<Vec<Score>> = metric.score(&items).unwrap().into_iter().map(Result::unwrap).collect();
        let values: Vec<&Value> = scores.iter().map(|s| &s[0].value).collect();
        assert_eq!(values, [&Value::Number(10.0), &Value::Unscored, &Value::Number(20.0), &Value::Unscored]);
        let summary = metric.aggregate(&scores).unwrap().remove(0);
        assert_eq!((summary.name.as_str(), summary.value, summary.samples), ("mean_tokens", 15.0, Some(2)));
    }
}
