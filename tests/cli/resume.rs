//! A run that is stopped at any moment and continued ends with the same bytes as one that was not.

use std::path::Path;
use std::process::{Child, Stdio};

use crate::support::{SHORT_STEPS, Sandbox, baseline, bytes, metrics, short, until};

/// Starts a run or goes on with it, with nothing of it shown.
fn start(sandbox: &Sandbox, args: &[&str]) -> Child {
    sandbox.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn whole_lines(run: &Path) -> usize {
    std::fs::read(run.join("metrics.jsonl")).map_or(0, |b| b.iter().filter(|c| **c == b'\n').count())
}

/// Kills a process as `kill -9` does, as soon as something is so; the process must not have ended before.
fn kill_when(mut child: Child, what: &str, mut is_so: impl FnMut() -> bool) {
    use std::os::unix::process::ExitStatusExt;
    until(what, || is_so() || child.try_wait().unwrap().is_some());
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "it ended before {what}");
}

/// Continues to the end and compares.
fn finish(sandbox: &Sandbox, what: &str) {
    sandbox.ok(["run", "--resume", "run"]);
    assert_eq!(bytes(&sandbox.path("run")), baseline().bytes, "killed at {what}");
    let left: Vec<String> =
        std::fs::read_dir(sandbox.path("run")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|n| n.starts_with('.')), "temporary files are left: {left:?}");
}

/// Kills a fresh run once its metrics have so many lines.
fn killed_after_lines(lines: usize) {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let what = format!("line {lines} of the metrics");
    kill_when(start(&sandbox, &short(&["--out", "run"])), &what, || whole_lines(&run) >= lines);
    assert!(!run.join("adapter").exists());
    finish(&sandbox, &what);
}

#[test]
fn killed_before_the_first_checkpoint() {
    killed_after_lines(2);
}

#[test]
fn killed_between_checkpoints() {
    killed_after_lines(6);
}

#[test]
fn killed_after_the_last_checkpoint_but_one() {
    killed_after_lines(9);
}

#[test]
fn killed_as_soon_as_the_directory_is_there() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    kill_when(start(&sandbox, &short(&["--out", "run"])), "the run directory", || run.is_dir());
    finish(&sandbox, "the run directory");
}

#[test]
fn killed_while_a_checkpoint_is_written_and_again_in_the_resumed_run() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let checkpoints = run.join("checkpoints");
    // The first sign of the folder that will become the checkpoint of step 4, whatever its temporary name.
    kill_when(start(&sandbox, &short(&["--out", "run"])), "the first checkpoint", || {
        std::fs::read_dir(&checkpoints).is_ok_and(|mut d| d.next().is_some())
    });
    kill_when(start(&sandbox, &["run", "--resume", "run"]), "line 7 of the metrics", || whole_lines(&run) >= 7);
    kill_when(start(&sandbox, &["run", "--resume", "run"]), "line 9 of the metrics", || whole_lines(&run) >= 9);
    finish(&sandbox, "the first checkpoint, line 7 and line 9");
}

#[test]
fn interrupted_run_writes_a_checkpoint_and_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let child = sandbox.command(short(&["--out", "run"])).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    until("the second step", || whole_lines(&run) >= 2);
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let said = sandbox.neutral(std::str::from_utf8(&output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(130), "{said}");
    let steps = metrics(&run).len() as u64;
    assert!((2..SHORT_STEPS).contains(&steps), "{steps}");
    insta::with_settings!({filters => vec![(r"step \d+", "step [STEP]")]}, {
        insta::assert_snapshot!(said, @r#"

        stopping after this step and writing a checkpoint; once more stops at once
        stopped after step [STEP]; continue with: trainer run --resume [DIR]/run
        "#);
    });
    let latest = std::fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    assert_eq!(latest.trim(), format!("step-{steps}"), "the checkpoint is of the last step");
    finish(&sandbox, "an interrupt");
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let sandbox = Sandbox::new();
    sandbox.ok(short(&["--out", "run"]));
    finish(&sandbox, "its end");
}

#[test]
fn only_one_process_at_a_time() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let mut child = start(&sandbox, &short(&["--out", "run"]));
    until("the first step", || whole_lines(&run) >= 1);
    let said = sandbox.fails(["run", "--resume", "run"]).replace(&child.id().to_string(), "[PID]");
    insta::assert_snapshot!(said, @"error: [DIR]/run is in use by process [PID]; wait until it ends, or stop it");
    assert!(child.wait().unwrap().success());
    assert_eq!(bytes(&run), baseline().bytes, "the first process was not disturbed");
}
