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
        assert!(matches!(old.prepare(&[row.clone()]).unwrap().as_slice(), [Ok(Plan::Ask(_))]));
        let scores = old.score(&[item.clone()]).unwrap().pop().unwrap().unwrap();
        assert_eq!(scores[0].value, Value::Boolean(right), "{scores:?}");
        let summary = old.aggregate(&[scores]).unwrap().remove(0);
        assert_eq!((summary.value, summary.samples), (f64::from(u8::from(right)), None));
        assert!(new.score(&[item]).unwrap().pop().unwrap().is_ok());
    }
}
