//! A run directory as a run writes it, grown step by step.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;
use trainer_track::{Kind, Setup};

/// When the run began.
pub const BEGAN: f64 = 1_700_000_000.0;

pub struct Fake {
    pub dir: PathBuf,
    pub steps: u64,
    _folder: tempfile::TempDir,
}

impl Fake {
    /// A run that has begun, of so many steps.
    pub fn new(steps: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("my run");
        fs::create_dir_all(dir.join("eval")).unwrap();
        let recipe =
            "[train]\nlearning_rate = 0.002\nseed = 3407\n\n[[data.sources]]\nname = \"math\"\n\n[eval]\nmetrics = [\"boxed_answer\"]\n";
        fs::write(dir.join("recipe.toml"), recipe).unwrap();
        let lock = json!({
            "trainer": "0.1.0", "plan": { "steps": steps }, "machine": { "backend": "cpu" }, "recorded": { "started": "2023-11-14T22-13-20" },
        });
        fs::write(dir.join("lock.json"), lock.to_string()).unwrap();
        Self { dir, steps, _folder: folder }
    }

    pub fn setup(&self, trackers: &[Kind], mlflow_uri: Option<String>) -> Setup {
        let (dir, steps) = (self.dir.clone(), self.steps);
        Setup { dir, project: "a project/ä".into(), name: "my run".into(), mlflow_uri, steps, trackers: trackers.to_vec() }
    }

    /// The loss of a step: no round numbers.
    pub fn loss(step: u64) -> f64 {
        2.0 / (step as f64 + 0.3)
    }

    pub fn step(&self, step: u64) {
        let sources = json!([{ "name": "math: \"1\"", "loss": 0.5, "target_weight": 7.0, "samples": step % 3 + 1 }]);
        let metrics = json!({
            "step": step, "loss": Self::loss(step), "lr": 0.002, "grad_norm": 0.25, "tokens": 100, "target_weight": 50.0, "sources": sources,
        });
        append(&self.dir.join("metrics.jsonl"), &metrics.to_string());
        let timings = json!({
            "step": step, "seconds": 0.5, "tokens_per_second": 200.0, "data_wait_seconds": 0.125, "ended": BEGAN + step as f64, "memory": 1u64 << 30,
            "gpu_load": 90.5, "gpu_memory": 40u64 << 30, "gpu_memory_total": 80u64 << 30,
        });
        append(&self.dir.join("timings.jsonl"), &timings.to_string());
    }

    pub fn evaluation(&self, name: &str, accuracy: f64) {
        let report = json!({ "metrics": { "boxed_answer/accuracy": accuracy }, "stderr": {}, "higher_is_better": {}, "seconds": 1.0 });
        fs::write(self.dir.join(format!("eval/{name}.json")), report.to_string()).unwrap();
    }

    pub fn sample(&self, step: u64) {
        let line = json!({ "step": step, "prompt": "2 + 2?", "text": "It is **4** <b>now</b>.\nSo \\boxed{4}." });
        append(&self.dir.join("samples.jsonl"), &line.to_string());
    }

    /// Cuts the journals as resuming from a checkpoint does.
    pub fn cut_after(&self, step: u64) {
        for name in ["metrics.jsonl", "timings.jsonl"] {
            let path = self.dir.join(name);
            let text = fs::read_to_string(&path).unwrap();
            let kept: String = text.lines().take(step as usize).map(|l| format!("{l}\n")).collect();
            fs::write(&path, kept).unwrap();
        }
    }
}

fn append(path: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{line}").unwrap();
}
