//! Lists, comparisons and reports of run directories.

use std::fs;
use std::path::Path;

use serde_json::json;
use trainer_runs::{Run, RunError, State, compare, find, html};

/// A run directory of so many done steps.
fn make(dir: &Path, started: &str, lr: f64, done: u64, steps: u64) {
    fs::create_dir_all(dir.join("eval")).unwrap();
    fs::write(
        dir.join("recipe.toml"),
        format!("[train]\nlearning_rate = {lr}\nseed = 1\n[sample]\nprompt = \"</pre><script>alert(1)</script>\"\n"),
    )
    .unwrap();
    let lock = json!({ "plan": { "steps": steps }, "recipe": { "lr": lr }, "data": [{ "name": "m", "sha256": "aa" }], "recorded": { "started": started } });
    fs::write(dir.join("lock.json"), lock.to_string()).unwrap();
    let mut metrics = String::new();
    let mut timings = String::new();
    for step in 1..=done {
        let loss = if step < 3 { 1.0 } else { lr * step as f64 };
        let sources = json!([{ "name": "<b>m", "loss": loss, "target_weight": 1.0, "samples": 2 }, { "name": "c", "loss": loss, "target_weight": 1.0, "samples": 6 }]);
        let line =
            json!({ "step": step, "loss": loss, "lr": lr, "grad_norm": 1.0, "tokens": 10, "target_weight": 5.0, "sources": sources });
        metrics += &format!("{line}\n");
        let line = json!({ "step": step, "seconds": 0.5, "tokens_per_second": 20.0, "data_wait_seconds": 0.125 });
        timings += &format!("{line}\n");
    }
    fs::write(dir.join("metrics.jsonl"), metrics + "{\"step\":").unwrap();
    fs::write(dir.join("timings.jsonl"), timings).unwrap();
    fs::write(dir.join("eval/after.json"), json!({ "metrics": { "m/acc": lr } }).to_string()).unwrap();
    fs::write(dir.join("samples.jsonl"), json!({ "step": 2, "prompt": "<i>p", "text": "</pre><script>x" }).to_string() + "\n").unwrap();
}

#[test]
fn runs_are_found_below_a_folder_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    make(&dir.path().join("a"), "2026-01-01", 0.5, 2, 4);
    make(&dir.path().join("deep/er/b"), "2026-01-02", 0.25, 4, 4);
    make(&dir.path().join("a/inside"), "2026-01-03", 0.25, 4, 4);
    make(&dir.path().join(".hidden"), "2026-01-03", 0.25, 4, 4);
    fs::create_dir(dir.path().join("deep/er/b/adapter")).unwrap();
    let found = find(dir.path());
    let shown: Vec<_> = found.iter().map(|r| (r.name(), r.overview().unwrap().state)).collect();
    assert_eq!(shown, [("b".to_owned(), State::Complete), ("a".to_owned(), State::Stopped)]);
    assert!(matches!(Run::open(dir.path()), Err(RunError::NotARun { .. })));
}

#[test]
fn a_run_that_is_held_is_running() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "x", 0.5, 2, 4);
    let run = Run::open(dir.path()).unwrap();
    assert!(!run.is_held(), "there is no lock file");
    let file = fs::File::create(dir.path().join("run.lock")).unwrap();
    assert!(!run.is_held(), "nobody holds it");
    file.lock().unwrap();
    assert!(run.is_held());
    drop(file);
    assert!(!run.is_held());
}

#[test]
fn a_comparison_says_what_differs() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    make(&a, "x", 0.5, 4, 4);
    make(&b, "y", 0.25, 3, 4);
    let runs = [Run::open(&a).unwrap(), Run::open(&b).unwrap()];
    let c = compare(&runs).unwrap();
    let keys: Vec<_> = c.recipe.iter().map(|d| (d.key.as_str(), d.values.clone())).collect();
    assert_eq!(keys, [("train.learning_rate", vec![json!(0.5), json!(0.25)])]);
    assert!(c.lock.is_empty(), "when it began and the recipe do not count: {:?}", c.lock);
    assert_eq!(c.evaluations[0].values, [json!(0.5), json!(0.25)]);
    assert_eq!(c.first_different_step, Some(3));
    let same = compare(&[runs[0].clone(), runs[0].clone()]).unwrap();
    assert!(same.recipe.is_empty() && same.first_different_step.is_none());
    let a = &c.runs[0];
    assert_eq!((a.step, a.tokens, a.tokens_per_second, a.data_wait_share), (4, 40, Some(20.0), Some(0.25)));
    assert_eq!(a.last_loss, Some((1.0 + 1.0 + 1.5 + 2.0) / 4.0));
}

#[test]
fn a_report_is_whole_and_nothing_breaks_out_of_it() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "x", 0.5, 20, 20);
    let page = html::report(&Run::open(dir.path()).unwrap()).unwrap();
    assert_eq!(page.matches("<script").count(), 1, "only its own");
    for address in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(address), "it needs {address}");
    }
    for id in ["loss", "lr", "grad", "speed", "memory", "wait", "mix", "sources"] {
        assert!(page.contains(&format!("<figure class=\"chart\" id=\"{id}\"")), "no chart {id}");
    }
    assert!(page.contains("&lt;/pre&gt;&lt;script&gt;x") && page.contains("&lt;b&gt;m"));
    assert!(page.contains("<dt>tokens</dt><dd>200</dd>") && page.contains("<dt>state</dt><dd class=\"stopped\">stopped</dd>"), "{page}");
    // 2 of 8 samples, at every step.
    assert!(page.contains("<i class=\"s0\"></i>&lt;b&gt;m <b>0.25</b>"), "{page}");
    // Nothing there yet is no error.
    fs::remove_file(dir.path().join("metrics.jsonl")).unwrap();
    fs::remove_file(dir.path().join("timings.jsonl")).unwrap();
    let page = html::report(&Run::open(dir.path()).unwrap()).unwrap();
    assert!(page.contains("nothing yet"));
}

#[test]
fn of_a_long_lock_a_report_has_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), "2026-01-01", 0.5, 2, 2);
    let lock = json!({ "version": 1, "plan": { "steps": 2, "products": "é".repeat(500_000) }, "recorded": { "started": "2026-01-01" } });
    fs::write(dir.path().join("lock.json"), lock.to_string()).unwrap();
    let page = html::report(&Run::open(dir.path()).unwrap()).unwrap();
    assert!(page.len() < 200_000, "{}", page.len());
    assert!(page.contains("more bytes are in lock.json]") && page.contains("&quot;products&quot;:&quot;éé"));
}

#[test]
fn the_load_of_a_card_is_shown_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let (cpu, card) = (dir.path().join("cpu"), dir.path().join("card"));
    make(&cpu, "x", 0.5, 4, 4);
    make(&card, "x", 0.5, 4, 4);
    let mut timings = String::new();
    for (step, seconds, load, gib) in [(1, 3.0, Some(50.0), 10u64), (2, 1.0, Some(90.0), 40), (3, 1.0, None, 30), (4, 0.0, Some(0.0), 20)] {
        let mut line =
            json!({ "step": step, "seconds": seconds, "tokens_per_second": 20.0, "data_wait_seconds": 0.0, "memory": 1u64 << 30 });
        line["gpu_memory"] = json!(gib << 30);
        line["gpu_memory_total"] = json!(80u64 << 30);
        if let Some(load) = load {
            line["gpu_load"] = json!(load);
        }
        timings += &format!("{line}\n");
    }
    fs::write(card.join("timings.jsonl"), timings).unwrap();
    let page = |path: &Path| html::report(&Run::open(path).unwrap()).unwrap();
    let with = page(&card);
    for part in [
        "id=\"gpu-load\"",
        "id=\"gpu-memory\"",
        "<b>20</b>",
        "<dt>load of the card</dt><dd>60 %</dd>",
        "<dt>most memory of the card</dt><dd>40.00 GiB</dd>",
    ] {
        assert!(with.contains(part), "{part}: {with}");
    }
    let without = page(&cpu);
    assert!(!without.contains("gpu") && !without.contains("of the card"), "a run on the CPU has no empty charts");
    // Side by side the card's run has a line and the other none.
    let both = html::charts(&[Run::open(&cpu).unwrap(), Run::open(&card).unwrap()], html::View::default()).unwrap();
    let runs = [&cpu, &card].map(|path| Run::open(path).unwrap().overview().unwrap());
    assert!(html::overview(&runs).contains("<tr><th>load of the card</th><td class=\"dim\">-</td><td>60 %</td></tr>"));
    assert!(both.contains("id=\"gpu-load\"") && both.contains("</i>card <b>0</b>"), "{both}");
    let shown = serde_json::to_value(Run::open(&cpu).unwrap().overview().unwrap()).unwrap();
    assert!(shown.get("gpu_load").is_none());
}

#[test]
fn evaluations_during_training_are_a_course_and_can_end_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    make(root, "x", 0.5, 4, 9);
    let run = Run::open(root).unwrap();
    assert!(
        run.evals().unwrap().is_empty()
            && !html::charts(std::slice::from_ref(&run), html::View::default()).unwrap().contains("Evaluation:")
    );
    let line = |step: u64, value: f64, more: serde_json::Value| {
        let mut line = json!({ "step": step, "metrics": { "m/<b>acc": value }, "adapter": "aa" });
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line.to_string() + "\n"
    };
    let stopped = json!({ "stopped": "no <better>" });
    fs::write(root.join("evals.jsonl"), line(2, 0.5, json!({ "best": true })) + &line(4, 0.25, stopped) + "{\"step\"").unwrap();
    for name in ["before", "step-2", "step-4"] {
        fs::write(root.join(format!("eval/{name}.json")), json!({ "metrics": { "m/<b>acc": 0.125 } }).to_string()).unwrap();
    }
    let about = run.overview().unwrap();
    assert_eq!((about.best_step, about.stopped_early.as_deref(), about.state), (Some(2), Some("no <better>"), State::Stopped));
    fs::create_dir(root.join("adapter")).unwrap();
    assert_eq!(run.overview().unwrap().state, State::Complete, "it ended early, with its adapter");
    // The steps are a course and no columns of the table.
    let names: Vec<_> = run.evaluations().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["before", "after"]);
    assert_eq!(run.evaluation("step-4").unwrap().metrics["m/<b>acc"], 0.125);
    let page = html::report(&run).unwrap();
    assert!(page.contains("Evaluation: m/&lt;b&gt;acc") && page.contains("no &lt;better&gt;"));
    assert!(!page.contains("m/<b>") && !page.contains("<better>"));
    assert!(html::evaluations(&run, Some("")).contains("<a href=\"eval/step-2\">2 (best so far)</a>"));
}
