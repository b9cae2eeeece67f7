//! Run directories, and a dashboard that shows them.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use trainer_dashboard::{Options, serve};

/// A run directory with some of everything.
pub fn make(dir: &Path, lr: f64, steps: u64) {
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

/// A further step of it.
pub fn add_step(dir: &Path, step: u64, lr: f64) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("metrics.jsonl")).unwrap();
    let sources = json!([{ "name": "math", "loss": 1.0, "target_weight": 1.0, "samples": 2 }]);
    let line = json!({ "step": step, "loss": 3.0 / (step as f64 + 1.0), "lr": lr, "grad_norm": 1.0, "tokens": 10, "target_weight": 5.0, "sources": sources });
    writeln!(file, "{line}").unwrap();
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join("timings.jsonl")).unwrap();
    let line = json!({ "step": step, "seconds": 0.5, "tokens_per_second": 20.0, "data_wait_seconds": 0.1, "memory": 1u64 << 30 });
    writeln!(file, "{line}").unwrap();
}

/// A dashboard over a folder of its own.
pub struct Dashboard {
    pub address: SocketAddr,
    pub folder: tempfile::TempDir,
}

impl Dashboard {
    pub fn start(make: impl FnOnce(&Path)) -> Self {
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

    pub fn send(&self, method: &str, path: &str, host: &str, more: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n").unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Answer { status: head[9..12].parse().unwrap(), head: head.to_lowercase(), body: body.to_owned() }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &self.address.to_string(), "")
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        let start = self.body.find(['{', '[']).unwrap();
        serde_json::Deserializer::from_str(&self.body[start..]).into_iter().next().unwrap().unwrap()
    }
}

/// Two runs.
pub fn two() -> Dashboard {
    Dashboard::start(|dir| {
        make(&dir.join("first"), 0.002, 20);
        make(&dir.join("group/second & co"), 0.004, 10);
    })
}
