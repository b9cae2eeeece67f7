//! Evaluation during training: numbers by step, the best adapter, early stopping, and all of it exact under `kill -9`.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Sandbox, bytes, json_file, until};

/// Ten steps on the embedded data, of which some maths is held out; every second step is followed by an evaluation.
const RECIPE: &str = r#"
[train]
max_steps = 10
warmup_steps = 2
checkpoint_every = 4

[[data.sources]]
name = "math"
path = "builtin:math_train"
formatter = "math_mix"
holdout = 0.01

[[data.sources]]
name = "chat"
path = "builtin:chat_train"
formatter = "sharegpt"

[sample]
prompt = ""

[eval]
before = false
every = 2
limit = 6
max_new_tokens = 24

[eval.best]
metric = "loss/eval"

[eval.early_stopping]
metric = "boxed_answer/accuracy"
patience = 100
"#;

fn sandbox(recipe: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", recipe);
    sandbox
}

/// The lines of `evals.jsonl`.
fn evals(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("evals.jsonl")).unwrap_or_default();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn steps(run: &Path) -> Vec<u64> {
    evals(run).iter().map(|e| e["step"].as_u64().unwrap()).collect()
}

/// Everything of a run that must repeat: adapters, metrics and evaluations.
fn outcome(run: &Path) -> (crate::support::Bytes, Vec<u8>, Vec<u8>, Vec<Vec<u8>>) {
    let best = std::fs::read(run.join("adapter-best/adapter_model.safetensors")).unwrap();
    let transcripts = steps(run).iter().map(|s| std::fs::read(run.join(format!("eval/step-{s}.samples.jsonl"))).unwrap()).collect();
    (bytes(run), std::fs::read(run.join("evals.jsonl")).unwrap(), best, transcripts)
}

#[test]
fn numbers_come_by_step_and_the_best_adapter_is_kept() {
    let sandbox = sandbox(RECIPE);
    let summary = sandbox.json(["run", "recipe.toml", "--out", "run", "--json"]);
    let run = sandbox.path("run");
    assert_eq!(steps(&run), [2, 4, 6, 8, 10]);
    let losses: Vec<f64> = evals(&run).iter().map(|e| e["metrics"]["loss/eval"].as_f64().unwrap()).collect();
    assert!(losses.iter().all(|l| l.is_finite() && *l > 0.0) && losses[4] < losses[0], "the rows held out are learnt too: {losses:?}");
    assert!(evals(&run).iter().all(|e| e["metrics"]["boxed_answer/accuracy"].is_number()));

    // The best step is where the loss on the rows held out is least, and its adapter is the one that was evaluated there.
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = &summary["best"];
    assert_eq!((&best["metric"], best["value"].as_f64()), (&"loss/eval".into(), Some(least)));
    let line = evals(&run).into_iter().find(|e| e["step"] == best["step"]).unwrap();
    assert_eq!(line["best"], true);
    assert_eq!(summary["stopped_early"], Value::Null);
    assert_eq!(summary["evaluations"].as_array().unwrap().len(), 5);
    assert_eq!(best["step"], 10, "in so short a run the last step is the best");
    let adapter = |name: &str| std::fs::read(run.join(name).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("adapter") == adapter("adapter-best"));

    // The evaluation after training is that after the last step, not another one.
    let (after, last) = (json_file(&run.join("eval/after.json")), json_file(&run.join("eval/step-10.json")));
    assert_eq!((&after["metrics"], &after["seconds"]), (&last["metrics"], &last["seconds"]));
    assert_eq!(after["adapter"]["sha256"], line["adapter"]);
    assert_eq!(
        std::fs::read(run.join("eval/after.samples.jsonl")).unwrap(),
        std::fs::read(run.join("eval/step-10.samples.jsonl")).unwrap()
    );
    assert!(after["samples"].as_str().unwrap().ends_with("after.samples.jsonl"));

    // Who looks at the run sees the course.
    let show = sandbox.json(["runs", "show", "run", "--json"]);
    assert_eq!((&show["overview"]["best_step"], &show["overview"]["state"]), (&10.into(), &"complete".into()));
    assert_eq!(show["evaluations"].as_array().unwrap().len(), 1, "steps are no columns of the table");
    sandbox.ok(["report", "run", "--out", "run.html"]);
    let page = std::fs::read_to_string(sandbox.path("run.html")).unwrap();
    assert!(page.contains("Evaluation: loss/eval") && page.contains("Evaluation: boxed_answer/accuracy"));

    // Evaluating changes no training.
    let plain = RECIPE.replace("every = 2\n", "").split("[eval.best]").next().unwrap().to_owned();
    sandbox.write("plain.toml", plain);
    sandbox.ok(["run", "plain.toml", "--out", "plain"]);
    assert_eq!(bytes(&sandbox.path("plain")), bytes(&run));
    assert!(!sandbox.path("plain/evals.jsonl").exists());
}

#[test]
fn a_number_that_gets_no_better_ends_the_run() {
    let stopping = RECIPE.replace("patience = 100", "patience = 2\nmin_delta = 10");
    let sandbox = sandbox(&stopping);
    let summary = sandbox.json(["run", "recipe.toml", "--out", "run", "--json"]);
    let run = sandbox.path("run");
    assert_eq!((&summary["complete"], &summary["steps"]), (&true.into(), &6.into()));
    let why = summary["stopped_early"].as_str().unwrap();
    assert!(why.starts_with("boxed_answer/accuracy was not better than") && why.ends_with("in the last 2 evaluations"), "{why}");
    assert_eq!(steps(&run), [2, 4, 6]);
    assert!(run.join("adapter").is_dir() && run.join("eval/after.json").is_file());
    assert_eq!(std::fs::read_to_string(run.join("checkpoints/latest")).unwrap().trim(), "step-6");
    let show = sandbox.json(["runs", "show", "run", "--json"]);
    assert_eq!((&show["overview"]["state"], &show["overview"]["stopped_early"]), (&"complete".into(), &why.into()));
    // It is over: going on changes nothing.
    let before = outcome(&run);
    sandbox.ok(["run", "--resume", "run"]);
    assert!(outcome(&run) == before);
}

#[test]
fn killed_runs_end_with_the_same_numbers_and_repeat_no_evaluation() {
    use std::os::unix::process::ExitStatusExt;
    let stopping = RECIPE.replace("patience = 100", "patience = 3\nmin_delta = 10");
    let sandbox = sandbox(&stopping);
    sandbox.ok(["run", "recipe.toml", "--out", "whole"]);
    let whole = outcome(&sandbox.path("whole"));
    assert_eq!(steps(&sandbox.path("whole")), [2, 4, 6, 8], "early stopping counts across all of them");

    let run = sandbox.path("run");
    // After the evaluation of step 6 is written, but with the last checkpoint at step 4; then in the middle of one; then after the last.
    let kill = |args: &[&str], what: &str, is_so: &dyn Fn() -> bool| {
        let mut child = sandbox.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until(what, || is_so() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "it ended before {what}");
    };
    kill(&["run", "recipe.toml", "--out", "run"], "the report of step 6", &|| run.join("eval/step-6.json").exists());
    let made: Vec<Value> = [2, 4, 6].iter().map(|s| json_file(&run.join(format!("eval/step-{s}.json")))).collect();
    kill(&["run", "--resume", "run"], "the line of step 6, again", &|| steps(&run).contains(&6));
    sandbox.ok(["run", "--resume", "run"]);
    assert!(outcome(&run) == whole);
    for (step, report) in [2, 4, 6].iter().zip(made) {
        // The seconds of a report tell one evaluation from another of the same adapter.
        assert_eq!(json_file(&run.join(format!("eval/step-{step}.json"))), report, "step {step} was evaluated again");
    }
}

#[test]
fn a_run_that_goes_back_has_the_adapter_that_was_best_there() {
    let sandbox = sandbox(RECIPE);
    let run = sandbox.path("run");
    let weights = |folder: &str| std::fs::read(run.join(folder).join("adapter_model.safetensors")).ok();
    let kill = |args: &[&str], what: &str, is_so: &dyn Fn() -> bool| {
        let mut child = sandbox.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until(what, || is_so() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "it ended before {what}");
    };
    // Step 6 was better than step 4, where the last checkpoint is.
    kill(&["run", "recipe.toml", "--out", "run"], "the line of step 6", &|| steps(&run).contains(&6));
    assert!(evals(&run).iter().all(|e| e["best"] == true), "this test needs numbers that get better and better: {:?}", evals(&run));
    let (fourth, sixth) = (weights(".best/step-4").unwrap(), weights("adapter-best").unwrap());
    assert!(fourth != sixth && weights(".best/step-2").is_none(), "no checkpoint is before step 2");
    kill(&["run", "--resume", "run"], "the adapter of step 4", &|| weights("adapter-best").as_ref() == Some(&fourth));
    assert_eq!(steps(&run).last(), Some(&4));
    sandbox.ok(["run", "--resume", "run"]);
    assert!(weights("adapter-best") == weights("adapter"), "the last step is the best");
    assert!(weights(".best/step-4").is_none(), "nothing is kept that no checkpoint needs");
}

#[test]
fn what_is_watched_must_be_measured() {
    let sandbox = sandbox("");
    let said = |set: &[&str]| {
        let args = ["run", "recipe.toml", "--out", "none", "--max-steps", "2", "--set", "train.warmup_steps=1"];
        let set = set.iter().flat_map(|s| ["--set", s]);
        sandbox.fails(args.into_iter().chain(set))
    };
    insta::assert_snapshot!(said(&["eval.best.metric=loss/eval", "eval.early_stopping.metric=boxed_anwser/accuracy"]), @r#"
    error: --set eval.early_stopping.metric=boxed_anwser/accuracy: eval.early_stopping.metric: nothing is measured during training
      help: set eval.every to a number of steps
    --set eval.early_stopping.metric=boxed_anwser/accuracy: eval.early_stopping.metric: "boxed_anwser" is not one of eval.metrics
      help: did you mean "boxed_answer/..."?
    --set eval.best.metric=loss/eval: eval.best.metric: nothing is measured during training
      help: set eval.every to a number of steps
    --set eval.best.metric=loss/eval: eval.best.metric: no source holds rows out to measure their loss
      help: set a source's holdout to a share, such as 0.01
    4 problems in the recipe
    "#);
    assert!(!sandbox.path("none").exists());
    let limit = ["eval.limit=1", "eval.max_new_tokens=2", "sample.prompt=\"\""];
    let wrong = said(&[&limit[..], &["eval.every=1", "eval.best.metric=boxed_answer/acuracy"]].concat());
    assert!(
        wrong.contains("eval.best.metric = \"boxed_answer/acuracy\" is not a number of the evaluation; there are boxed_answer/"),
        "{wrong}"
    );
}

#[test]
fn a_plan_counts_what_an_evaluation_during_training_holds() {
    let sandbox = sandbox("");
    let parts = |set: &[&str]| sandbox.json(["plan", "recipe.toml", "--json", "-"].iter().chain(set))["parts"].clone();
    let (without, with) = (parts(&[]), parts(&["--set", "eval.every=5"]));
    assert!(without["key/value cache"].is_null() && without["merged weights (evaluation)"].is_null());
    let tools = parts(&["--set", "eval.every=5", "--set", "eval.tools=[\"calculator\"]"]);
    let cases = parts(&["--set", "eval.every=5", "--set", "eval.data=builtin:tools_eval"]);
    assert!(tools["key/value cache"].as_u64() > with["key/value cache"].as_u64().map(|n| 4 * n), "{tools} {with}");
    assert_eq!(tools["key/value cache"], cases["key/value cache"]);
    assert!(with["key/value cache"].as_u64() > Some(1 << 20) && with["merged weights (evaluation)"].as_u64() > Some(1 << 20), "{with}");
}
