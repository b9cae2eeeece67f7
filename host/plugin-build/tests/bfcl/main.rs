//! The `bfcl` component against the checker of the package `bfcl-eval` from PyPI, on all its rows that are judged by one answer. The package
//! is installed into a folder of the build, so this is for `.ci/full` (`cargo test -- --ignored`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::json;
use trainer_plugin_host::metric::{Answer, Call, Finish, Item, Metric, Response, Score, Value};
use trainer_plugin_host::types::CallArguments;
use trainer_plugin_host::{CompilerCommand, HostOptions, Limits, PluginHost, PluginSource};

/// The checker, and what it imports. The package's other dependencies are the clients of all providers.
const PACKAGES: [&str; 3] = ["bfcl-eval==2026.3.23", "filelock==3.20.0", "python-dotenv==1.2.4"];

/// Items that are scored at once.
const BATCH: usize = 512;

/// What `oracle.py` prints a line.
#[derive(Deserialize)]
struct Line {
    category: String,
    row: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    calls: Vec<(String, String)>,
    underscores: bool,
    valid: bool,
    error_type: Option<String>,
}

/// A Python with the package, made once.
fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(PACKAGES.join("-").replace("==", "-"));
    let python = folder.join("bin/python");
    let done = folder.join("installed");
    if !done.exists() {
        let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]).args(PACKAGES));
        std::fs::write(done, "").unwrap();
    }
    python
}

/// The checker's verdicts, written once a run.
fn verdicts() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bfcl/oracle.py");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bfcl-verdicts.jsonl");
    let status = Command::new(python()).arg(script).stdout(File::create(&path).unwrap()).stderr(Stdio::inherit()).status().unwrap();
    assert!(status.success());
    path
}

/// The metric with dots in names as they are, and as underscores.
fn metrics() -> [Metric; 2] {
    let folder = match std::env::var_os("TRAINER_PREBUILT") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/prebuilt"),
    };
    let host = PluginHost::new(HostOptions::new(CompilerCommand::in_process())).unwrap();
    let plugin = host.load(&PluginSource::File(folder.join("bfcl.wasm")), Limits::default()).unwrap();
    [false, true].map(|underscores| plugin.metric(&json!({ "underscores": underscores })).unwrap())
}

fn item(row: &str, calls: &[(String, String)]) -> Item {
    let call = |(name, arguments): &(String, String)| Call { name: name.clone(), arguments: CallArguments::Json(arguments.clone()) };
    let answer = Answer {
        raw: String::new(),
        text: String::new(),
        reasoning: String::new(),
        calls: calls.iter().map(call).collect(),
        malformed: Vec::new(),
        finish: Finish::Stop,
        tokens: None,
    };
    Item { row: row.to_owned(), response: Response::Answers(vec![answer]) }
}

fn kind(scores: &[Score]) -> Option<&str> {
    scores.iter().find(|s| s.name == "error_type").map(|s| match &s.value {
        Value::Text(kind) => kind.as_str(),
        other => panic!("{other:?}"),
    })
}

#[derive(Default)]
struct Count {
    rows: u64,
    cases: u64,
    valid: u64,
    failing: u64,
}

#[test]
#[ignore = "installs a package from PyPI and judges half a million calls with it"]
fn every_verdict_is_that_of_the_leaderboards_checker() {
    let metrics = metrics();
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    let mut wrong = Vec::new();
    for line in BufReader::new(File::open(verdicts()).unwrap()).lines() {
        let line: Line = serde_json::from_str(&line.unwrap()).unwrap();
        let count = counts.entry(line.category.clone()).or_default();
        count.rows += 1;
        for (underscores, metric) in metrics.iter().enumerate() {
            let cases: Vec<&Case> = line.cases.iter().filter(|c| usize::from(c.underscores) == underscores).collect();
            for cases in cases.chunks(BATCH) {
                let items: Vec<Item> = cases.iter().map(|case| item(&line.row, &case.calls)).collect();
                for (case, scores) in cases.iter().zip(metric.score(&items).unwrap()) {
                    let scores = scores.unwrap();
                    count.cases += 1;
                    count.valid += u64::from(case.valid);
                    // Where the checker itself fails, the calls count as wrong, and say so.
                    let fails = case.error_type.as_deref().is_some_and(|e| e.starts_with("raised "));
                    count.failing += u64::from(fails);
                    let same_kind = match (kind(&scores), &case.error_type) {
                        (ours, Some(_)) if fails => ours == Some("checker_fails"),
                        (ours, Some(theirs)) => ours == Some(theirs),
                        // Of rows about whether there is a call, only the verdict is asked.
                        (_, None) => true,
                    };
                    if scores[0].value != Value::Boolean(case.valid) || !same_kind {
                        wrong.push(format!(
                            "{:?}\n  {}\n  ours {scores:?}\n  theirs {} {:?}",
                            case.calls, line.row, case.valid, case.error_type
                        ));
                    }
                }
            }
        }
    }
    let mut all = Count::default();
    for (category, Count { rows, cases, valid, failing }) in &counts {
        println!("{category}: {rows} rows, {cases} lists of calls, {valid} of them right, {failing} at which the checker fails");
        all.rows += rows;
        all.cases += cases;
    }
    println!("{} rows, {} lists of calls, {} disagreements", all.rows, all.cases, wrong.len());
    assert!(wrong.is_empty(), "{} of {} verdicts differ, such as\n{}", wrong.len(), all.cases, wrong[..wrong.len().min(5)].join("\n"));
    // The data's categories, and rows of literals in two languages.
    assert_eq!(counts.len(), 15, "{:?}", counts.keys());
    assert!(all.rows > 20_000 && all.cases > 500_000);
    for (category, count) in &counts {
        assert!(count.valid > 0 && count.valid < count.cases, "{category} has verdicts of one kind only");
    }
}
