//! Runs as they might be on a card, for pictures. Their figures are made up.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

const STEPS: u64 = 600;
const GIB: f64 = (1u64 << 30) as f64;

/// Two runs that differ in their learning rate.
pub fn runs(folder: &Path) {
    run(&folder.join("qwen3-8b-math"), 2e-4, 1, 0.0);
    run(&folder.join("qwen3-8b-math-slower"), 5e-5, 2, 0.06);
}

fn run(dir: &Path, rate: f64, seed: u64, worse: f64) {
    fs::create_dir_all(dir.join("eval")).unwrap();
    fs::create_dir(dir.join("adapter")).unwrap();
    fs::write(dir.join("recipe.toml"), format!("[model]\nname = \"Qwen/Qwen3-8B\"\n\n[train]\nlearning_rate = {rate}\nsteps = {STEPS}\n"))
        .unwrap();
    let recorded = json!({ "started": format!("2026-01-0{seed}T09-30-00"), "model": "Qwen/Qwen3-8B", "device": "an invented card" });
    fs::write(dir.join("lock.json"), json!({ "plan": { "steps": STEPS }, "recorded": recorded }).to_string()).unwrap();
    let mut state = seed;
    // Noise between -1 and 1, the same each time (Knuth's constants).
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1u32 << 30) - 1.0
    };
    let (mut metrics, mut timings) = (String::new(), String::new());
    for step in 1..=STEPS {
        let done = step as f64 / STEPS as f64;
        let loss = 0.42 + worse + 0.5 * (-6.0 * done).exp() + 0.05 * noise();
        let lr = rate * (step as f64 / 30.0).min(1.0) * (1.0 - (done - 0.05).max(0.0));
        let source =
            |name: &str, more: f64, samples: u64| json!({ "name": name, "loss": loss + more, "target_weight": 900.0, "samples": samples });
        let sources = [source("math", -0.08, 10 + step % 3), source("chat", 0.17, 4), source("code", 0.04, 2)];
        let grad = 0.9 * (-3.0 * done).exp() + 0.25 + 0.08 * noise();
        let line = json!({ "step": step, "loss": loss, "lr": lr, "grad_norm": grad, "tokens": 16_000, "target_weight": 2700.0, "sources": sources });
        let _ = writeln!(metrics, "{line}");
        let speed = 9_400.0 + 250.0 * noise();
        let line = json!({
            "step": step, "seconds": 16_000.0 / speed, "tokens_per_second": speed, "data_wait_seconds": 0.004 + 0.003 * noise(),
            "memory": ((5.1 + 0.3 * done) * GIB) as u64, "gpu_load": 96.5 + 2.5 * noise(),
            "gpu_memory": (if step < 20 { 31.0 } else { 33.4 } * GIB) as u64, "gpu_memory_total": 80u64 << 30,
        });
        let _ = writeln!(timings, "{line}");
    }
    fs::write(dir.join("metrics.jsonl"), metrics).unwrap();
    fs::write(dir.join("timings.jsonl"), timings).unwrap();
    let accuracy = |step: u64| 0.62 + (0.2 - worse) * (1.0 - (-5.0 * step as f64 / STEPS as f64).exp());
    let name = "math_equal/accuracy";
    let mut evals = String::new();
    for step in (100..=STEPS).step_by(100) {
        let line = json!({ "step": step, "metrics": { name: accuracy(step) }, "adapter": format!("{step:064}"), "best": step == STEPS });
        let _ = writeln!(evals, "{line}");
    }
    fs::write(dir.join("evals.jsonl"), evals).unwrap();
    for (when, step) in [("before", 0), ("after", STEPS)] {
        let report = json!({ "metrics": { name: accuracy(step) }, "stderr": { name: 0.012 } });
        fs::write(dir.join(format!("eval/{when}.json")), report.to_string()).unwrap();
        let row = |i: u64| json!({ "row": format!("math:{i}"), "prompt": "What is 3/4 of 200?", "outputs": ["3/4 of 200 is \\boxed{150}."], "scores": [{ "name": "accuracy", "value": 1.0 }] });
        fs::write(dir.join(format!("eval/{when}.samples.jsonl")), (1..9).map(row).map(|r: Value| format!("{r}\n")).collect::<String>())
            .unwrap();
    }
    let sample = json!({ "step": STEPS, "prompt": "What is 17 * 24?", "text": "17 * 24 = 17 * 20 + 17 * 4 = 340 + 68, so the answer is \\boxed{408}." });
    fs::write(dir.join("samples.jsonl"), format!("{sample}\n")).unwrap();
}
