//! The page over HTTP, as a browser and as somebody with other intentions would ask.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use trainer_dashboard::{DashboardError, Options, serve};

/// A run directory with some of everything.
fn make(dir: &Path, lr: f64, steps: u64) {
    fs::create_dir_all(dir.join("eval")).unwrap();
    fs::write(dir.join("recipe.toml"), format!("[train]\nlearning_rate = {lr}\n")).unwrap();
    fs::write(dir.join("lock.json"), json!({ "plan": { "steps": steps }, "recorded": { "started": "2026-01-01" } }).to_string()).unwrap();
    for step in 1..=steps {
        add_step(dir, step, lr);
    }
    fs::write(dir.join("eval/after.json"), json!({ "metrics": { "boxed_answer/accuracy": 0.75 } }).to_string()).unwrap();
    let sample =
        json!({ "row": "t:1", "prompt": "<b>2 + 2?</b>", "outputs": ["<script>4"], "scores": [{ "name": "accuracy", "value": 1.0 }] });
    fs::write(dir.join("eval/after.samples.jsonl"), format!("{sample}\n")).unwrap();
    fs::write(dir.join("samples.jsonl"), json!({ "step": 2, "prompt": "p", "text": "<img src=x onerror=alert(1)>" }).to_string() + "\n")
        .unwrap();
}

fn add_step(dir: &Path, step: u64, lr: f64) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("metrics.jsonl")).unwrap();
    let sources = json!([{ "name": "math", "loss": 1.0, "target_weight": 1.0, "samples": 2 }]);
    let line = json!({ "step": step, "loss": 3.0 / (step as f64 + 1.0), "lr": lr, "grad_norm": 1.0, "tokens": 10, "target_weight": 5.0, "sources": sources });
    writeln!(file, "{line}").unwrap();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("timings.jsonl")).unwrap();
    let line = json!({ "step": step, "seconds": 0.5, "tokens_per_second": 20.0, "data_wait_seconds": 0.1, "memory": 1u64 << 30 });
    writeln!(file, "{line}").unwrap();
}

struct Dashboard {
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Dashboard {
    fn start(make: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        let (tell, told) = mpsc::channel();
        let options = Options {
            folder: folder.path().to_owned(),
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            allowed_hosts: vec!["gpu-box".into()],
        };
        // Ends with the test's process.
        std::thread::spawn(move || serve(options, |a| tell.send(a).unwrap(), std::future::pending()));
        Self { address: told.recv_timeout(Duration::from_secs(30)).unwrap(), folder }
    }

    fn send(&self, method: &str, path: &str, host: &str, more: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Answer { status: head[9..12].parse().unwrap(), head: head.to_lowercase(), body: body.to_owned() }
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &self.address.to_string(), "")
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        let start = self.body.find(['{', '[']).unwrap();
        serde_json::Deserializer::from_str(&self.body[start..]).into_iter().next().unwrap().unwrap()
    }
}

fn two() -> Dashboard {
    Dashboard::start(|dir| {
        make(&dir.join("first"), 0.002, 20);
        make(&dir.join("group/second & co"), 0.004, 10);
    })
}

#[test]
fn every_page_answers() {
    let d = two();
    let index = d.get("/");
    assert_eq!(index.status, 200);
    assert!(index.body.contains("<a href=\"/run/first/\">first</a>"), "{}", index.body);
    assert!(index.body.contains("<a href=\"/run/group%2Fsecond%20%26%20co/\">group/second &amp; co</a>"), "{}", index.body);
    let run = d.get("/run/group%2Fsecond%20%26%20co/");
    assert_eq!(run.status, 200, "{}", run.body);
    for id in ["loss", "lr", "grad", "speed", "memory", "wait", "mix", "sources"] {
        assert!(run.body.contains(&format!("<figure class=\"chart\" id=\"{id}\"")), "{id}");
    }
    assert!(run.body.contains("&lt;img src=x onerror") && !run.body.contains("<img"));
    assert!(run.body.contains("<a href=\"eval/after\">after</a>"));
    let eval = d.get("/run/first/eval/after");
    assert!(eval.body.contains("&lt;script&gt;4") && eval.body.contains("accuracy = 1"), "{}", eval.body);
    let compare = d.get("/compare?run=first&run=group/second+%26+co&smoothing=0&log=1");
    assert_eq!(compare.status, 200);
    assert!(
        compare.body.contains("<tr><th>train.learning_rate</th><td class=\"n\">0.002</td><td class=\"n\">0.004</td></tr>"),
        "{}",
        compare.body
    );
    for asset in ["/style.css", "/charts.js", "/live.js"] {
        assert_eq!(d.get(asset).status, 200);
    }
    assert_eq!(d.get("/api/runs").json().as_array().unwrap().len(), 2);
    let api = d.get("/api/run/first").json();
    assert_eq!((api["overview"]["step"].as_u64(), api["metrics"].as_array().unwrap().len()), (Some(20), 20));
    assert_eq!(d.get("/api/compare?run=first&run=first").json()["recipe"], json!([]));
}

#[test]
fn only_runs_below_the_folder_are_reachable() {
    let d = two();
    for path in [
        "/run/..%2F..%2Fetc/",
        "/run/group/",
        "/run/%2Fetc/",
        "/run/first/eval/..%2Flock",
        "/run/first/eval/none",
        "/etc/passwd",
        "/run/first%00/",
        "/compare?run=first",
        "/compare?run=first&run=../x",
    ] {
        let answer = d.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("all runs"), "{path}: {}", answer.body);
    }
}

#[test]
fn others_are_refused() {
    let d = two();
    for host in ["evil.example", "evil.example:80", "localhost.evil.example"] {
        let answer = d.send("GET", "/api/runs", host, "");
        assert_eq!(answer.status, 403, "{host}");
        assert!(!answer.body.contains("first"));
    }
    for host in ["localhost:1", "gpu-box", "[::1]:80"] {
        assert_eq!(d.send("GET", "/", host, "").status, 200, "{host}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(d.send(method, "/", "localhost", "Content-Length: 0\r\n").status, 405, "{method}");
    }
    let head = d.get("/").head;
    assert!(head.contains("content-security-policy: default-src 'none'") && head.contains("x-content-type-options: nosniff"), "{head}");
    assert!(!head.contains("access-control-allow-origin"));
}

#[test]
fn the_live_part_comes_only_when_something_changed() {
    let d = two();
    let first = d.get("/run/first/live");
    let tag = first.head.lines().find_map(|l| l.strip_prefix("etag: ")).unwrap().to_owned();
    let again = |tag: &str| d.send("GET", "/run/first/live", "localhost", &format!("If-None-Match: {tag}\r\n"));
    assert_eq!((again(&tag).status, again(&tag).body.as_str()), (304, ""));
    add_step(&d.folder.path().join("first"), 21, 0.002);
    let changed = again(&tag);
    assert_eq!(changed.status, 200);
    assert!(changed.body.contains("21 of 20"));
}

#[test]
fn one_run_is_shown_at_once() {
    let d = Dashboard::start(|dir| make(dir, 0.1, 3));
    let index = d.get("/");
    assert_eq!((index.status, index.head.contains("location: /run/self/")), (307, true), "{}", index.head);
    assert_eq!(d.get("/run/self/").status, 200);
    assert_eq!(d.get("/run/self/live").status, 200);
}

#[test]
fn what_cannot_be_served_is_said() {
    let d = two();
    let options = |folder: PathBuf, port| Options { folder, host: IpAddr::V4(Ipv4Addr::LOCALHOST), port, allowed_hosts: vec![] };
    let taken = serve(options(d.folder.path().to_owned(), d.address.port()), |_| {}, std::future::pending()).unwrap_err();
    assert!(matches!(taken, DashboardError::Listen { .. }) && taken.to_string().contains("another --port"), "{taken}");
    let none = serve(options(d.folder.path().join("none"), 0), |_| {}, std::future::pending()).unwrap_err();
    assert!(matches!(none, DashboardError::NoFolder { .. }));
}

/// Charts in a real browser: drawn, up to date, and usable with the keyboard. Needs `chromium`.
#[test]
#[ignore = "needs chromium"]
fn a_browser_shows_the_charts() {
    let d = two();
    let shot = |path: &str, more: &[&str]| {
        let mut command = Command::new("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000", "--dump-dom"]).args(more);
        command.arg(format!("http://{}{path}", d.address)).env("HOME", d.folder.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let dom = shot("/run/first/", &[]);
    // Written by the script after it has asked for news: the policy lets it run, and the page was brought up to date.
    assert!(dom.contains("as of "), "{dom}");
    assert_eq!(dom.matches("<svg").count(), 8, "{dom}");
    let dom = shot("/compare?run=first&run=group/second+%26+co", &["--window-size=390,844"]);
    assert!(dom.contains("as of ") && dom.contains("train.learning_rate"), "{dom}");
}
