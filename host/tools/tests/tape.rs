//! Recording and replaying.

mod common;

use std::sync::Arc;

use common::*;
use serde_json::{Value, json};
use trainer_tools::{Limits, Next, Tape, TapeEntry, TapeHeader, Toolbox, Transcript, write_tape};

/// An episode with every kind of answer.
fn play(toolbox: &Arc<Toolbox>) -> Transcript {
    let mut e = episode(toolbox, &[weather(), calculate()], case());
    let parts = vec![
        call("calculate", json!({"expression": "6*7"})),
        malformed("<tool_call>", "not closed"),
        call("get_weather", json!({"loc": "Rome"})),
        call("get_weather", json!({"loc": "Paris"})),
        call("nothing", json!({})),
        call("calculate", json!({"expression": "1/0"})),
        call("calculate", json!({"expression": 5})),
    ];
    assert_eq!(e.take(turn(parts)).unwrap(), Next::Prompt);
    assert_eq!(e.take(turn(vec![call("calculate", json!({"expression": "1.50"}))])).unwrap(), Next::Prompt);
    assert_eq!(e.take(turn(vec![text("done")])).unwrap(), Next::End);
    e.into_transcript()
}

fn record(path: &std::path::Path) -> Transcript {
    let toolbox = toolbox(vec![calculator()], Limits::default());
    let transcript = play(&toolbox);
    let entries = TapeEntry::of_transcript(&key("case-1", 0), &transcript, &toolbox.plugins());
    write_tape(path, TapeHeader::new("0.1.0", "aa", "bb", toolbox.plugins()), &entries).unwrap();
    transcript
}

#[test]
fn a_replay_gives_the_same_transcript_and_runs_no_plugin() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tape.jsonl");
    let recorded = record(&path);
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1 + 7);
    let tape = Arc::new(Tape::read(&path).unwrap());
    tape.check_data("bb").unwrap();
    tape.check_plugin("calculator", calculator().plugin.digest()).unwrap();
    // The replaying toolbox has no plugin at all.
    let toolbox = Arc::new(Toolbox::replay(tape, Limits::default()).unwrap());
    assert_eq!(play(&toolbox), recorded);
    assert_eq!(toolbox.plugins()[0].tools[0].name, "calculate");
}

#[test]
fn a_call_that_is_not_on_the_tape_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tape.jsonl");
    record(&path);
    let toolbox = Arc::new(Toolbox::replay(Arc::new(Tape::read(&path).unwrap()), Limits::default()).unwrap());
    let error = |case_name: &str, part| {
        let mut e = trainer_tools::Episode::new(conversation(&[calculate()]), toolbox.open(key(case_name, 0), case(), 7, 0));
        e.take(turn(vec![part])).unwrap_err().to_string().replace(&path.display().to_string(), "TAPE")
    };
    assert_eq!(
        error("case-1", call("calculate", json!({"expression": "6*8"}))),
        "TAPE: not on the tape: case case-1, repeat 0, call 0 of metric `tool_calls`: calculate({\"expression\":\"6*8\"}) (the tape has \
         calculate({\"expression\":\"6*7\"}) there); a replay needs the model, data and settings of the recording: record again with --record"
    );
    assert!(
        error("case-2", call("calculate", json!({"expression": "6*7"})))
            .starts_with("TAPE: not on the tape: case case-2, repeat 0, call 0 of")
    );
}

#[test]
fn broken_tapes_say_where() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tape.jsonl");
    record(&path);
    let good = std::fs::read_to_string(&path).unwrap();
    let error = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Tape::read(&path).unwrap_err().to_string().replace(&path.display().to_string(), "TAPE")
    };
    assert_eq!(error(""), "TAPE:1: the file is empty; a tape begins with a header");
    assert_eq!(error("{\"id\": 1}\n"), "TAPE:1: this is no tape: its first line does not say \"format\": \"trainer-tools\"");
    assert_eq!(
        error(&good.replacen("\"version\":1", "\"version\":9", 1)),
        "TAPE:1: the tape is of version 9; this program reads version 1"
    );
    let without_last: Vec<&str> = good.lines().take(7).collect();
    assert_eq!(error(&without_last.join("\n")), "TAPE:7: the tape ends here with 6 of 7 calls: it is not complete");
    let lines: Vec<&str> = good.lines().collect();
    let twice = [lines[0], lines[1], lines[1]].join("\n");
    assert_eq!(error(&twice), "TAPE:3: case case-1, repeat 0, call 0 is on the tape already");
    assert!(error(&good.replacen("\"ordinal\":2", "\"ordinal\":\"2\"", 1)).starts_with("TAPE:3: this is no call of a tape: invalid type"));
    assert!(error(&good.replacen("\"case\":", "\"cas\":", 1)).starts_with("TAPE:2: this is no call of a tape: unknown field `cas`"));
    assert!(Tape::read(&folder.path().join("none")).unwrap_err().to_string().starts_with("cannot read "));
}

#[test]
fn a_tape_of_other_circumstances_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tape.jsonl");
    record(&path);
    let tape = Tape::read(&path).unwrap();
    assert!(tape.check_data("cc").unwrap_err().to_string().contains("was recorded on other data (sha256 bb there, cc here)"));
    assert!(tape.check_plugin("calculator", "dd").unwrap_err().to_string().contains("another build of the plugin `calculator`"));
    assert!(tape.check_plugin("weather", "dd").unwrap_err().to_string().contains("recorded without the plugin `weather`"));
    // What goes on a tape has one form, whatever the order of keys.
    let first: Value = serde_json::from_str(std::fs::read_to_string(&path).unwrap().lines().nth(1).unwrap()).unwrap();
    assert_eq!(first["plugin_sha256"], json!(calculator().plugin.digest()));
}
