//! WASI as an empty world, asked by a component that imports all of it.

mod common;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/logged.rs"]
mod logged;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use common::{component, host, manifest, source, tight};
use guest::Guest;
use logged::logged;
use serde_json::{Value, json};
use trainer_plugin_host::tools::{Call, Outcome};
use trainer_plugin_host::{Grants, Kind, Limits, Plugin, RowOutcome, ToolContext, inspect};

const INTERFACES: &str = include_str!("wasi/empty-world.wit");

/// Everything that the empty world has.
const IMPORTS: [&str; 26] = [
    "cli/environment",
    "cli/exit",
    "cli/stdin",
    "cli/stdout",
    "cli/stderr",
    "cli/terminal-input",
    "cli/terminal-output",
    "cli/terminal-stdin",
    "cli/terminal-stdout",
    "cli/terminal-stderr",
    "clocks/monotonic-clock",
    "clocks/wall-clock",
    "filesystem/preopens",
    "filesystem/types",
    "io/error",
    "io/poll",
    "io/streams",
    "random/random",
    "random/insecure",
    "random/insecure-seed",
    "sockets/instance-network",
    "sockets/ip-name-lookup",
    "sockets/tcp",
    "sockets/tcp-create-socket",
    "sockets/udp",
    "sockets/udp-create-socket",
];

/// The functions that the probes call, and what writes numbers.
fn functions(version: &str) -> String {
    let import = |interface: &str, name: &str, ty: &str| {
        let id = name.rsplit(['.', ']']).next().unwrap();
        format!("(import \"wasi:{interface}@{version}\" \"{name}\" (func ${id} {ty}))\n")
    };
    [
        import("cli/environment", "get-environment", "(param i32)"),
        import("cli/environment", "get-arguments", "(param i32)"),
        import("cli/environment", "initial-cwd", "(param i32)"),
        import("cli/exit", "exit", "(param i32)"),
        import("cli/stdin", "get-stdin", "(result i32)"),
        import("cli/stdout", "get-stdout", "(result i32)"),
        import("cli/stderr", "get-stderr", "(result i32)"),
        import("cli/terminal-stdout", "get-terminal-stdout", "(param i32)"),
        import("filesystem/preopens", "get-directories", "(param i32)"),
        import("io/streams", "[method]input-stream.blocking-read", "(param i32 i64 i32)"),
        import("io/streams", "[method]output-stream.blocking-write-and-flush", "(param i32 i32 i32 i32)"),
        import("clocks/wall-clock", "now", "(param i32)").replace("$now", "$wall"),
        import("clocks/monotonic-clock", "now", "(result i64)"),
        import("clocks/monotonic-clock", "subscribe-duration", "(param i64) (result i32)"),
        import("io/poll", "[method]pollable.block", "(param i32)"),
        import("io/poll", "[resource-drop]pollable", "(param i32)"),
        import("io/poll", "poll", "(param i32 i32 i32)"),
        import("random/random", "get-random-u64", "(result i64)"),
        import("random/random", "get-random-bytes", "(param i64 i32)"),
        import("random/insecure-seed", "insecure-seed", "(param i32)"),
        import("sockets/instance-network", "instance-network", "(result i32)"),
        import("sockets/tcp-create-socket", "create-tcp-socket", "(param i32 i32)"),
        import("sockets/ip-name-lookup", "resolve-addresses", "(param i32 i32 i32 i32)"),
        r#"
(global $out (mut i32) (i32.const 1025))
(global $calls (mut i32) (i32.const 0))
(data (i32.const 512) "to standard output\nfor nobody\nno end\1b[2J")
(data (i32.const 640) "Traceback:\nValueError: no such thing")
(func $byte (param i32) (i32.store8 (global.get $out) (local.get 0)) (global.set $out (i32.add (global.get $out) (i32.const 1))))
(func $hex (param $n i64)
  (local $shift i64) (local $digit i32)
  (local.set $shift (i64.const 60))
  (loop $next
    (local.set $digit (i32.wrap_i64 (i64.and (i64.shr_u (local.get $n) (local.get $shift)) (i64.const 15))))
    (call $byte (i32.add (local.get $digit) (select (i32.const 48) (i32.const 87) (i32.lt_u (local.get $digit) (i32.const 10)))))
    (local.set $shift (i64.sub (local.get $shift) (i64.const 4)))
    (br_if $next (i64.ge_s (local.get $shift) (i64.const 0))))
  (call $byte (i32.const 32)))
(func $word (param i32) (call $hex (i64.extend_i32_u (local.get 0))))
;; What is asked for by a letter; the answer lies at 1024 as a JSON string of hexadecimal numbers.
(func $probe (param $letter i32)
  (local $i i32) (local $p i32)
  (global.set $out (i32.const 1025))
  (i32.store8 (i32.const 1024) (i32.const 34))
  (block $done
    (if (i32.eq (local.get $letter) (i32.const 0x6e)) (then ;; n: what there is nothing of
      (call $get-environment (i32.const 256)) (call $word (i32.load (i32.const 260)))
      (call $get-arguments (i32.const 256)) (call $word (i32.load (i32.const 260)))
      (call $initial-cwd (i32.const 256)) (call $word (i32.load8_u (i32.const 256)))
      (call $get-directories (i32.const 256)) (call $word (i32.load (i32.const 260)))
      (call $get-terminal-stdout (i32.const 256)) (call $word (i32.load8_u (i32.const 256)))
      (call $blocking-read (call $get-stdin) (i64.const 100) (i32.const 256))
      (call $word (i32.load8_u (i32.const 256))) (call $word (i32.load8_u (i32.const 260))) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x63)) (then ;; c: the clocks before and after a second's wait
      (call $wall (i32.const 256)) (call $hex (i64.load (i32.const 256))) (call $word (i32.load (i32.const 264)))
      (call $hex (call $now))
      (local.set $p (call $subscribe-duration (i64.const 50000000)))
      (call $block (local.get $p)) (call $pollable (local.get $p))
      (call $hex (call $now)) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x72)) (then ;; r: random numbers
      (call $hex (call $get-random-u64)) (call $hex (call $get-random-u64))
      (call $insecure-seed (i32.const 256)) (call $hex (i64.load (i32.const 256))) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x6f)) (then ;; o: output
      (call $blocking-write-and-flush (call $get-stdout) (i32.const 512) (i32.const 40) (i32.const 256)) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x65)) (then ;; e: a traceback and a trap
      (call $blocking-write-and-flush (call $get-stderr) (i32.const 640) (i32.const 36) (i32.const 256)) unreachable))
    (if (i32.eq (local.get $letter) (i32.const 0x78)) (then ;; x: the end
      (call $exit (i32.const 1)) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x73)) (then ;; s: sockets and names
      (call $create-tcp-socket (i32.const 0) (i32.const 256))
      (call $word (i32.load8_u (i32.const 256))) (call $word (i32.load8_u (i32.const 260)))
      (call $resolve-addresses (call $instance-network) (i32.const 512) (i32.const 2) (i32.const 256))
      (call $word (i32.load8_u (i32.const 256))) (call $word (i32.load8_u (i32.const 260))) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x62)) (then ;; b: too many bytes
      (call $get-random-bytes (i64.const 1048577) (i32.const 256)) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x70)) (then ;; p: waits for nothing
      (call $poll (i32.const 512) (i32.const 0) (i32.const 256)) (br $done)))
    (if (i32.eq (local.get $letter) (i32.const 0x68)) (then ;; h: hoards handles
      (loop $more (drop (call $get-stdout)) (br $more))))
    (if (i32.eq (local.get $letter) (i32.const 0x74)) (then ;; t: hoards timers
      (loop $more (drop (call $subscribe-duration (i64.const 1000000000000))) (br $more))))
    (if (i32.eq (local.get $letter) (i32.const 0x66)) (then ;; f: floods the output
      (loop $more
        (call $blocking-write-and-flush (call $get-stdout) (i32.const 512) (i32.const 40) (i32.const 256))
        (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 900)))) (br $done))))
  (call $byte (i32.const 34)))
"#
        .to_owned(),
    ]
    .concat()
}

fn guest(kind: Kind, version: &str) -> Guest {
    let imports: Vec<String> = IMPORTS.iter().map(|i| format!("wasi:{i}@{version}")).collect();
    Guest::with(kind, "0.1.0", &INTERFACES.replace("VERSION", version), &imports).field(&functions(version))
}

/// A formatter that answers a row's first letter with a reason to skip it.
fn formatter(version: &str) -> Guest {
    guest(Kind::DatasetFormatter, version).body(
        "format",
        "(call $probe (i32.load8_u (i32.load (local.get 0))))
         (i32.store (i32.const 128) (i32.const 160)) (i32.store (i32.const 132) (local.get 1))
         (i32.store (i32.const 160) (i32.const 1))
         (i32.store (i32.const 164) (i32.const 1024)) (i32.store (i32.const 168) (i32.sub (global.get $out) (i32.const 1024)))
         (i32.const 128)",
    )
}

/// A tool that answers the first letter of its name.
fn tool(needs: &str) -> Guest {
    guest(Kind::ToolExecutor, "0.2.3")
        .body(
            "session.call",
            "(call $probe (i32.load8_u (i32.load (local.get 1))))
             (i32.store (i32.const 128) (i32.const 160)) (i32.store (i32.const 132) (local.get 2))
             (i32.store (i32.const 160) (i32.const 0))
             (i32.store (i32.const 164) (i32.const 1024)) (i32.store (i32.const 168) (i32.sub (global.get $out) (i32.const 1024)))
             (i32.const 128)",
        )
        .manifest(&format!(r#"{{"name": "rogue", "version": "1.2.3", "needs": [{needs}], "deterministic": false}}"#))
}

/// The numbers of an answer, or the error.
fn numbers(text: &str) -> Vec<u64> {
    text.trim_matches('"').split_whitespace().map(|n| u64::from_str_radix(n, 16).unwrap()).collect()
}

fn ask(plugin: &Arc<Plugin>, letter: &str) -> Result<Vec<u64>, String> {
    match plugin.formatter(&Value::Null).unwrap().format(&[letter.to_owned()]).unwrap().pop().unwrap() {
        RowOutcome::Skip(text) => Ok(numbers(&text)),
        RowOutcome::Trapped(error) => Err(error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_component_of_any_version_finds_nothing() {
    for version in ["0.2.0", "0.2.3", "0.2.12"] {
        let imports: Vec<String> = IMPORTS.iter().map(|i| format!("wasi:{i}@{version}")).collect();
        let all = Guest::with(Kind::DatasetFormatter, "0.1.0", &INTERFACES.replace("VERSION", version), &imports).import_all().build();
        let about = inspect(&all).unwrap();
        assert_eq!(about.refused_imports, Vec::<String>::new());
        // Terminals are types of the terminals' functions, and `wasi:sockets/network` holds the types of the other interfaces.
        assert!(about.empty_world.len() >= IMPORTS.len() - 1, "{:?}", about.empty_world);
        host().load(&source(all), tight()).unwrap().formatter(&Value::Null).unwrap();
        let plugin = host().load(&source(formatter(version).build()), tight()).unwrap();
        assert!(plugin.grants().is_empty());
        // Nothing in any list, no folder, no terminal; the input has ended, which is the second case of a stream's error.
        assert_eq!(ask(&plugin, "n").unwrap(), [0, 0, 0, 0, 0, 1, 1]);
        // Sockets and names: access denied, which is the second code.
        assert_eq!(ask(&plugin, "s").unwrap(), [1, 1, 1, 1]);
    }
}

#[test]
fn clocks_stand_still_and_random_numbers_repeat() {
    let plugin = host().load(&source(formatter("0.2.3").build()), tight()).unwrap();
    let formatter = plugin.formatter(&Value::Null).unwrap();
    let ask = |letter: &str| match formatter.format(&[letter.to_owned()]).unwrap().pop().unwrap() {
        RowOutcome::Skip(text) => numbers(&text),
        other => panic!("{other:?}"),
    };
    let began = Instant::now();
    assert_eq!(ask("c"), [1_735_689_600, 0, 0, 50_000_000]);
    // The same instance: its clock went on by what it waited for.
    assert_eq!(ask("c"), [1_735_689_600, 0, 50_000_000, 100_000_000]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let random = ask("r");
    assert!(random[0] != random[1] && random[1] != random[2]);
    assert_eq!(ask("r"), random, "each call begins anew");
    let other = host().load(&source(self::formatter("0.2.3").build()), tight()).unwrap();
    assert_eq!(self::ask(&other, "r").unwrap(), random, "as does each instance");
}

#[test]
fn misuse_ends_with_its_words() {
    let plugin = host().load(&source(formatter("0.2.3").build()), tight()).unwrap();
    let at = "plugin `rogue` 1.2.3, trainer:dataset-formatter/formatter@0.1.0#format";
    for (letter, golden) in [
        ("x", "trapped: it ended itself with failure (wasi:cli/exit), and a plugin returns instead"),
        ("b", "trapped: it asks for 1048577 random bytes at once; 1048576 are the most"),
        ("p", "trapped: it waits for nothing (wasi:io/poll with an empty list)"),
        ("e", "trapped: wasm `unreachable` instruction executed (it said: Traceback: | ValueError: no such thing)"),
    ] {
        assert_eq!(ask(&plugin, letter).unwrap_err(), format!("{at} {golden}"), "{letter}");
    }
    for letter in ["h", "t"] {
        let error = ask(&plugin, letter).unwrap_err();
        assert!(error.contains("timers") || error.contains("handle"), "{error}");
        assert_eq!(ask(&plugin, "n").unwrap().len(), 7);
    }
}

#[test]
fn output_is_the_log_within_its_limits() {
    let plugin = host().load(&source(formatter("0.2.3").build()), Limits { log_lines: 10, ..tight() }).unwrap();
    let (result, log) = logged(|| ask(&plugin, "o"));
    result.unwrap();
    for line in ["INFO plugin: to standard output plugin=\"rogue\"", "for nobody", "no end [2J"] {
        assert!(log.contains(line), "{line} is not in {log}");
    }
    assert!(!log.contains('\u{1b}'), "{log:?}");
    let (result, log) = logged(|| ask(&plugin, "f"));
    result.unwrap();
    assert_eq!(log.lines().filter(|l| l.contains("INFO plugin:")).count(), 10, "{log}");
    assert!(log.contains(" more lines of trainer:dataset-formatter/formatter@0.1.0#format were dropped"), "{log}");
    let (result, log) = logged(|| ask(&plugin, "e"));
    result.unwrap_err();
    assert!(log.contains("WARN plugin: Traceback:") && log.contains("WARN plugin: ValueError: no such thing"), "{log}");
}

/// What a tool answers in sessions of this seed and time.
fn call(plugin: &Arc<Plugin>, seed: u64, now_ms: u64, letters: &[&str]) -> Vec<Vec<u64>> {
    let mut session = plugin.tool_session(&ToolContext { settings: json!({}), seed, now_ms }).unwrap();
    let mut answers = Vec::new();
    for letter in letters {
        match session.call(&[Call { name: (*letter).to_owned(), arguments: "{}".into() }]).unwrap().pop().unwrap() {
            Outcome::Ok(text) => answers.push(numbers(&text)),
            other => panic!("{other:?}"),
        }
    }
    answers
}

#[test]
fn an_episode_has_its_own_clock_and_seed() {
    let plugin = host().load(&source(tool("").build()), tight()).unwrap();
    let first = call(&plugin, 7, 1_000_000_002_003, &["c", "r", "r"]);
    assert_eq!(first[0][..2], [1_000_000_002, 3_000_000]);
    assert_ne!(first[1], first[2], "an episode's random numbers go on");
    assert_eq!(call(&plugin, 7, 1_000_000_002_003, &["c", "r", "r"]), first, "and repeat with it");
    assert_ne!(call(&plugin, 8, 1_000_000_002_003, &["c", "r", "r"])[1], first[1]);
}

#[test]
fn an_episode_that_is_called_by_name_is_the_same() {
    let plugin = host().load(&source(tool("").build()), tight()).unwrap();
    let letters = ["c", "r", "r", "c"];
    let mut caller = plugin.caller(Kind::ToolExecutor, &json!({})).unwrap();
    // One after the other in one instance: each begins with its own clock and seed.
    for seed in [7, 8, 7] {
        caller.call("open", &[json!({"settings": {}, "seed": seed, "now_ms": 1_000_000_002_003_u64})]).unwrap();
        let mut by_name = Vec::new();
        for letter in letters {
            let answer = caller.call("call", &[json!([{"name": letter, "arguments": {}}])]).unwrap();
            by_name.push(numbers(answer[0]["ok"].as_str().unwrap()));
        }
        let mut session = call(&plugin, seed, 1_000_000_002_003, &letters);
        // The monotonic clock is the instance's, and goes on.
        for answer in [0, 3] {
            by_name[answer].truncate(2);
            session[answer].truncate(2);
        }
        assert_eq!(by_name, session, "seed {seed}");
        assert_ne!(by_name[1], by_name[2]);
    }
}

#[test]
fn granted_clock_and_randomness_are_real() {
    let needs = r#""clock", "random""#;
    let load = |grants: &[&str]| {
        let grants = Grants::parse(grants.iter().copied(), []).unwrap();
        host().load_with(&source(tool(needs).build()), tight(), grants).unwrap()
    };
    let plugin = load(&[]);
    assert_eq!(
        plugin.ungranted().unwrap(),
        "plugin `rogue` 1.2.3 asks for clock, random, which it was not granted: clocks stand still, and random bytes follow from the seed; \
         grant it with --grant rogue:clock --grant rogue:random"
    );
    assert_eq!(call(&plugin, 7, 5_000, &["c"])[0][..2], [5, 0]);
    let plugin = load(&["clock", "random"]);
    assert_eq!(plugin.grants(), ["clock", "random"]);
    assert_eq!(plugin.ungranted(), None);
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let answers = call(&plugin, 7, 5_000, &["c", "r"]);
    let after = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((before..=after).contains(&answers[0][0]), "{answers:?}");
    let waited = answers[0][3] - answers[0][2];
    assert!((50_000_000..20_000_000_000).contains(&waited), "{waited} ns");
    assert_ne!(answers[1], call(&plugin, 7, 5_000, &["r"])[0]);
    // One without the other.
    let plugin = load(&["random"]);
    assert_eq!(call(&plugin, 7, 5_000, &["c"])[0], [5, 0, 0, 50_000_000]);
}

#[test]
fn only_tools_that_ask_for_it_are_granted_a_clock() {
    let load = |guest: Guest, grants: &[&str]| {
        let grants = Grants::parse(grants.iter().copied(), []).unwrap();
        host().load_with(&source(guest.build()), tight(), grants).unwrap_err().to_string()
    };
    assert_eq!(load(tool(""), &["clock"]), "plugin `rogue` 1.2.3 is granted clock, but its manifest does not ask for it: remove the grant");
    assert_eq!(
        load(formatter("0.2.3").manifest(r#"{"name": "rogue", "version": "1.2.3", "needs": ["clock"]}"#), &["clock"]),
        "plugin `rogue`: its manifest says that it needs `clock`, which only a plugin of nothing but tools may"
    );
    assert_eq!(
        load(tool("").manifest(r#"{"name": "rogue", "version": "1.2.3", "needs": ["random"]}"#), &["random"]),
        "plugin `rogue`: its manifest says that it needs `random` and that it is deterministic: it also has to say `deterministic: false`"
    );
}

#[test]
fn types_that_differ_from_wasi_are_refused() {
    let text = format!(
        r#"(component {} (import "wasi:cli/environment@0.2.0" (instance (export "get-arguments" (func (result u32)))))
           (instance $i) (export "trainer:dataset-formatter/formatter@0.1.0" (instance $i)))"#,
        manifest(common::MANIFEST)
    );
    let error = host().load(&source(component(&text)), Limits::default()).unwrap_err().to_string();
    assert!(error.starts_with("plugin `rogue` 1.2.3 does not fit the interface that it names: "), "{error}");
    assert!(error.contains("wasi:cli/environment@0.2.0") || error.contains("get-arguments"), "{error}");
}
