//! What trackers are given, read by their own programs from PyPI. They are installed into a folder of the build, so these tests are for
//! `.ci/full` (`cargo test -- --ignored`); what needs no such program is tested here without.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::Fake;
use trainer_track::{Kind, Outcome, Trackers};

/// Longer than anything here takes on a crowded machine.
const LONG: Duration = Duration::from_secs(300);

/// A Python with packages, made once.
fn python(packages: &[&str]) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap_or_else(|e| e.into_inner());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("venv-{}", packages.join("-").replace("==", "-")));
    let python = folder.join("bin/python");
    let done = folder.join("installed");
    if !done.exists() {
        let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages));
        std::fs::write(done, "").unwrap();
    }
    python
}

fn read(python: &Path, args: &[&str]) -> Value {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/read.py");
    let output = Command::new(python).arg(script).args(args).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn finish(trackers: Trackers, outcome: Outcome) {
    for delivery in trackers.finish(outcome, LONG) {
        assert_eq!(delivery.problem, None, "{}", delivery.place);
    }
}

/// A run of 40 steps, killed after 17 with 15 in its checkpoint, and continued, with a tracker that follows all of it.
fn interrupted_and_continued(kind: Kind, uri: Option<String>) -> Fake {
    let run = Fake::new(40);
    run.evaluation("before", 0.25);
    let trackers = Trackers::start(&run.setup(&[kind], uri.clone()));
    for step in 1..=17 {
        run.step(step);
        trackers.news();
    }
    finish(trackers, Outcome::Stopped);
    run.cut_after(15);
    let trackers = Trackers::start(&run.setup(&[kind], uri));
    for step in 16..=40 {
        run.step(step);
        trackers.news();
    }
    run.sample(40);
    run.evaluation("after", 0.75);
    trackers.news();
    finish(trackers, Outcome::Complete);
    run
}

fn expected_loss() -> Vec<(u64, f64)> {
    (1..=40).map(|step| (step, Fake::loss(step))).collect()
}

fn series(value: &Value) -> Vec<(u64, f64)> {
    let pair = |v: &Value| (v[0].as_u64().unwrap(), v[1].as_f64().unwrap());
    let mut all: Vec<_> = value.as_array().unwrap_or_else(|| panic!("no series: {value}")).iter().map(pair).collect();
    all.sort_by(|a, b| a.partial_cmp(b).unwrap());
    all
}

fn assert_near(got: &[(u64, f64)], expected: &[(u64, f64)]) {
    assert_eq!(got.len(), expected.len(), "{got:?}");
    for (g, e) in got.iter().zip(expected) {
        assert!(g.0 == e.0 && (g.1 - e.1).abs() <= 1e-6, "{g:?} for {e:?}");
    }
}

#[test]
#[ignore = "installs tensorboard from PyPI"]
fn tensorboard_reads_the_event_file() {
    let run = interrupted_and_continued(Kind::TensorBoard, None);
    let folder = run.dir.join("tensorboard");
    // What a killed process may leave at the end.
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 5]).unwrap();
    finish(Trackers::start(&run.setup(&[Kind::TensorBoard], None)), Outcome::Complete);
    let shown = read(&python(&["tensorboard", "setuptools<81"]), &["tensorboard", folder.to_str().unwrap()]);
    assert_near(&series(&shown["train/loss"]), &expected_loss());
    assert_near(&series(&shown["eval/boxed_answer/accuracy"])[..1], &[(0, 0.25)]);
    assert_eq!(series(&shown["mix/math_ _1_"]).len(), 40);
    assert_eq!(series(&shown["perf/data_wait_share"])[0], (1, 0.25));
    assert_eq!((series(&shown["system/gpu_load"])[39], series(&shown["system/gpu_memory_gib"])[39]), ((40, 90.5), (40, 40.0)));
    assert!(shown["text:recipe"][0][1].as_str().unwrap().contains("    learning_rate = 0.002\n"), "{shown}");
    assert!(shown["text:sample"][0][1].as_str().unwrap().contains("    It is **4** <b>now</b>.\n"), "{shown}");
}

#[test]
#[ignore = "installs wandb from PyPI"]
fn the_wandb_client_reads_the_offline_run() {
    let run = interrupted_and_continued(Kind::Wandb, None);
    let folder = std::fs::read_dir(run.dir.join("wandb")).unwrap().next().unwrap().unwrap().path();
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let id = name.rsplit('-').next().unwrap();
    assert!(name.starts_with("offline-run-20") && id.len() == 8, "{name}");
    let file = folder.join(format!("run-{id}.wandb"));
    let check = |shown: &Value| {
        assert_eq!(shown["run"]["id"], id);
        assert_eq!((&shown["run"]["name"], &shown["run"]["project"]), (&json!("my run"), &json!("a project_ä")));
        assert_eq!(shown["run"]["config"]["train"]["learning_rate"], 0.002);
        let history = shown["history"].as_array().unwrap();
        let losses: Vec<_> = history.iter().filter_map(|r| Some((r["_step"].as_u64()?, r.get("train/loss")?.as_f64()?))).collect();
        assert_eq!(losses, expected_loss());
        let steps: Vec<_> = history.iter().map(|r| r["_step"].as_u64().unwrap()).collect();
        assert!(steps.is_sorted_by(|a, b| a < b), "a step has one row: {steps:?}");
        assert_eq!(shown["summary"]["eval/boxed_answer/accuracy"], 0.75);
        assert!(shown["summary"]["sample"].as_str().unwrap().ends_with("So \\boxed{4}."));
        assert_eq!(shown["exit"], 1);
        let stats = json!({
            "gpu.0.gpu": 90.5, "gpu.0.memoryAllocated": 50, "gpu.0.memoryAllocatedBytes": 40u64 << 30, "proc.memory.rssMB": 1024,
        });
        assert_eq!(shown["stats"].as_array().unwrap().len(), 40);
        assert_eq!(shown["stats"][39], json!([support::BEGAN + 40.0, stats]));
        let numbers: Vec<_> = shown["numbers"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    };
    // The last client with a reader in Python; later ones have it inside a program that speaks to W&B's server.
    let python = python(&["wandb==0.19.11", "setuptools<81"]);
    let whole = read(&python, &["wandb", file.to_str().unwrap()]);
    check(&whole);
    // A torn end is cut, and what it held is written again.
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    finish(Trackers::start(&run.setup(&[Kind::Wandb], None)), Outcome::Complete);
    check(&read(&python, &["wandb", file.to_str().unwrap()]));
}

/// Ends a process with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "installs wandb from PyPI"]
fn wandb_sync_uploads_the_offline_run() {
    let run = interrupted_and_continued(Kind::Wandb, None);
    let folder = std::fs::read_dir(run.dir.join("wandb")).unwrap().next().unwrap().unwrap().path();
    let python = python(&["wandb==0.31.0"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real/receiver.py");
    let mut receiver = Ended(Command::new(&python).arg(script).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(receiver.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let port = lines.next().unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || lines.for_each(|line| drop(tell.send(line))));
    let mut sync = Command::new(python.with_file_name("wandb"));
    sync.arg("sync").arg(&folder).env("WANDB_BASE_URL", format!("http://127.0.0.1:{port}")).env("WANDB_API_KEY", "a".repeat(40));
    // The client leaves logs where it is started.
    sync.env("HOME", run.dir.parent().unwrap()).current_dir(run.dir.parent().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
    let _sync = Ended(sync.spawn().unwrap());
    let mut variables = Value::Null;
    let mut losses = Vec::new();
    while losses.len() < 40 {
        let line = told.recv_timeout(LONG).unwrap_or_else(|_| panic!("only {} steps were uploaded", losses.len()));
        let upload: Value = serde_json::from_str(&line).unwrap();
        if upload["run"]["displayName"].is_string() {
            variables = upload["run"].clone();
        }
        let rows = upload["rows"].as_array().into_iter().flatten();
        losses.extend(rows.filter_map(|r| Some((r["_step"].as_u64()?, r.get("train/loss")?.as_f64()?))));
    }
    losses.sort_by_key(|l| l.0);
    assert_eq!(losses, expected_loss());
    assert_eq!(variables["displayName"], "my run");
    assert!(variables["config"].as_str().is_some_and(|c| c.contains("learning_rate")), "{variables}");
}

/// A local MLflow server, ended with the test.
struct Server {
    child: Child,
    uri: String,
}

impl Server {
    fn start(python: &Path, store: &Path, port: u16) -> Self {
        let mut command = Command::new(python.with_file_name("mlflow"));
        command.arg("server").args(["--host", "127.0.0.1", "--workers", "1", "--port", &port.to_string()]);
        command.arg("--backend-store-uri").arg(format!("sqlite:///{}", store.join("mlflow.db").display()));
        command.arg("--artifacts-destination").arg(store.join("artifacts")).current_dir(store);
        // The server starts processes of its own, which have to end with it.
        let path = format!("{}:{}", python.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().unwrap();
        let began = Instant::now();
        while !healthy(port) {
            assert!(began.elapsed() < LONG, "the server did not start");
            std::thread::sleep(Duration::from_millis(200));
        }
        Self { child, uri: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", "--", &format!("-{}", self.child.id())]).status();
        let _ = self.child.wait();
    }
}

fn healthy(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let mut answer = [0; 12];
    stream.write_all(format!("GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n").as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"HTTP/1.1 200"
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
#[ignore = "installs mlflow from PyPI"]
fn an_mlflow_server_has_everything() {
    let python = python(&["mlflow"]);
    let store = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = Server::start(&python, store.path(), port);
    let run = interrupted_and_continued(Kind::Mlflow, Some(server.uri.clone()));
    let check = |status: &str| {
        let runs = read(&python, &["mlflow", &server.uri, "a project/ä"]);
        assert_eq!(runs.as_array().unwrap().len(), 1, "{runs}");
        let shown = runs[0].clone();
        assert_eq!((&shown["name"], &shown["status"]), (&json!("my run"), &json!(status)));
        assert_eq!(shown["params"]["train.learning_rate"], "0.002");
        assert_eq!(shown["params"]["data.sources.0.name"], "math");
        assert_eq!(shown["artifacts"], json!(["lock.json", "recipe.toml"]));
        let metrics = &shown["metrics"];
        assert_eq!(series(&metrics["train/loss"]), expected_loss());
        assert_eq!(series(&metrics["eval/boxed_answer/accuracy"]), [(0, 0.25), (40, 0.75)]);
        for (name, value) in [("utilization_percentage", 90.5), ("memory_usage_percentage", 50.0), ("memory_usage_megabytes", 42949.67296)]
        {
            assert_eq!(series(&metrics[format!("system/gpu_0_{name}").as_str()])[39], (40, value));
        }
        assert_eq!(shown["tags"]["sample.40"].as_str().unwrap().lines().next(), Some("user: 2 + 2?"));
    };
    check("FINISHED");
    // Notes that were lost a little cost a repetition, and no second point.
    let notes = run.dir.join("track/mlflow.json");
    let mut older: Value = serde_json::from_slice(&std::fs::read(&notes).unwrap()).unwrap();
    older["step"] = json!(20);
    std::fs::write(&notes, older.to_string()).unwrap();
    finish(Trackers::start(&run.setup(&[Kind::Mlflow], Some(server.uri.clone()))), Outcome::Complete);
    check("FINISHED");
}

#[test]
#[ignore = "installs mlflow from PyPI"]
fn a_server_that_comes_late_gets_everything() {
    let python = python(&["mlflow"]);
    let store = tempfile::tempdir().unwrap();
    let port = free_port();
    let run = Fake::new(700);
    let uri = format!("http://127.0.0.1:{port}");
    let trackers = Trackers::start(&run.setup(&[Kind::Mlflow], Some(uri)));
    let began = Instant::now();
    for step in 1..=700 {
        run.step(step);
        trackers.news();
    }
    assert!(began.elapsed() < Duration::from_secs(30), "telling a tracker does not wait for it");
    let server = Server::start(&python, store.path(), port);
    finish(trackers, Outcome::Complete);
    let runs = read(&python, &["mlflow", &server.uri, "a project/ä"]);
    let expected: Vec<_> = (1..=700).map(|step| (step, Fake::loss(step))).collect();
    assert_eq!(series(&runs[0]["metrics"]["train/loss"]), expected);
}

#[test]
fn a_server_that_is_down_costs_the_end_of_a_run_its_patience_and_no_more() {
    let run = Fake::new(2);
    let uri = format!("http://127.0.0.1:{}", free_port());
    let trackers = Trackers::start(&run.setup(&[Kind::Mlflow, Kind::TensorBoard], Some(uri)));
    run.step(1);
    run.step(2);
    trackers.news();
    let began = Instant::now();
    let deliveries = trackers.finish(Outcome::Complete, Duration::from_secs(2));
    assert!((2..20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(deliveries[0].problem.as_deref().is_some_and(|p| p.contains("cannot reach http://127.0.0.1:")), "{deliveries:?}");
    assert_eq!(deliveries[1].problem, None, "the other one has everything");
}

#[test]
fn a_server_that_never_answers_does_not_hold_up_a_run() {
    let run = Fake::new(1);
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("http://{}", silent.local_addr().unwrap());
    let trackers = Trackers::start(&run.setup(&[Kind::Mlflow], Some(uri)));
    run.step(1);
    let began = Instant::now();
    trackers.news();
    let deliveries = trackers.finish(Outcome::Failed, Duration::from_secs(1));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(deliveries[0].problem.is_some());
}

#[test]
fn continuing_adds_only_what_is_missing() {
    for kind in [Kind::TensorBoard, Kind::Wandb] {
        let run = interrupted_and_continued(kind, None);
        let length = || walk(&run.dir.join(kind.name())).into_iter().map(|f| std::fs::metadata(f).unwrap().len()).collect::<Vec<_>>();
        let before = length();
        finish(Trackers::start(&run.setup(&[kind], None)), Outcome::Complete);
        assert_eq!(length(), before, "{kind:?}");
        // Without its folder everything is written again.
        std::fs::remove_dir_all(run.dir.join(kind.name())).unwrap();
        finish(Trackers::start(&run.setup(&[kind], None)), Outcome::Complete);
        // The two halves of the first time had no more in them than this.
        let sum = |lengths: &[u64]| lengths.iter().sum::<u64>();
        assert!(sum(&length()).abs_diff(sum(&before)) < sum(&before) / 20, "{kind:?}: {:?} for {before:?}", length());
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
