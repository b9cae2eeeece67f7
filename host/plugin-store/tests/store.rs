//! From files and addresses into the store, and what keeps other things out.

mod common;

use std::sync::{Arc, Mutex};

use common::server::{Reply, Server};
use common::{User, plugin, with_manifest};
use trainer_plugin_store::{AddOptions, Audit, Change, Digest, Level, Manager, PIN_FILE, Pins, Reference, StoreError, Used};

fn add(manager: &Manager, place: &str, pins: Option<&std::path::Path>) -> Result<trainer_plugin_store::Added, StoreError> {
    manager.add(&Reference::parse(place)?.0, &AddOptions::default(), pins)
}

#[test]
fn a_file_is_kept_by_its_digest() {
    let user = User::new();
    let bytes = plugin("mine", "1.0.0");
    let file = user.write("a/mine.wasm", &bytes);
    let added = user.add(file.to_str().unwrap()).unwrap();
    assert_eq!((added.name.as_str(), added.change, &added.entry.digest), ("mine", Change::Added, &Digest::of(&bytes)));
    assert_eq!((added.entry.kinds.as_slice(), added.entry.signer), (["eval-metric@0.1.0".to_owned()].as_slice(), None));
    let hex = Digest::of(&bytes).hex().to_owned();
    let kept = user.path("data/sha256").join(&hex[..2]).join(format!("{}.wasm", &hex[2..]));
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
    // The file may go: the store has its own.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(user.manager().store.read(&Digest::of(&bytes)).unwrap().unwrap(), bytes);
}

#[test]
fn another_one_of_the_same_name_needs_an_update() {
    let user = User::new();
    let file = user.write("mine.wasm", plugin("mine", "1.0.0"));
    let place = file.to_str().unwrap();
    let first = user.add(place).unwrap();
    assert_eq!(user.add(place).unwrap().change, Change::Unchanged);
    user.write("mine.wasm", plugin("mine", "1.1.0"));
    let error = user.refused(place);
    assert!(error.contains("`mine` 1.0.0 is installed") && error.contains("trainer plugin update mine"), "{error}");
    assert_eq!(user.installed(), ["mine 1.0.0"]);
    let updated = user.manager().update(&["mine".to_owned()], None, &AddOptions::default(), None).unwrap();
    assert_eq!((updated[0].before.digest.clone(), updated[0].now.change), (first.entry.digest.clone(), Change::Updated));
    assert_eq!(user.installed(), ["mine 1.1.0"]);
    // What runs of before were made with is still there, until it is cleared away.
    assert!(user.manager().store.read(&first.entry.digest).unwrap().is_some());
    assert_eq!(user.manager().prune().unwrap(), [first.entry.digest]);
    let error = user.manager().update(&["other".to_owned()], None, &AddOptions::default(), None).unwrap_err().to_string();
    assert!(error.contains("no plugin `other` is installed (there are mine)"), "{error}");
    user.manager().remove(&["mine".to_owned()], None).unwrap();
    user.assert_empty();
}

#[test]
fn what_is_no_plugin_stays_out() {
    let user = User::new();
    for (name, bytes, word) in [
        ("text.wasm", b"not WebAssembly".to_vec(), "plugin `text.wasm` is not a valid WebAssembly component"),
        ("module.wasm", b"\0asm\x01\0\0\0".to_vec(), "core module"),
        ("cut.wasm", plugin("cut", "1.0.0")[..5000].to_vec(), "not installed"),
        ("manifest.wasm", with_manifest(r#"{"name": "../x", "version": "1.0.0"}"#), "not of the form"),
        ("field.wasm", with_manifest(r#"{"name": "x", "version": "1.0.0", "grant": "all"}"#), "unknown field"),
    ] {
        let error = user.refused(user.write(name, bytes).to_str().unwrap());
        assert!(error.contains(word), "{name}: {error}");
    }
    let options = AddOptions { reserved: vec!["math_mix".to_owned()], ..AddOptions::default() };
    let (reference, _) = Reference::parse(user.write("m.wasm", plugin("math_mix", "1.0.0")).to_str().unwrap()).unwrap();
    let error = user.manager().add(&reference, &options, None).unwrap_err().to_string();
    assert!(error.contains("official plugin"), "{error}");
    let options = AddOptions { max_size: "10KiB".parse().unwrap(), ..AddOptions::default() };
    let error = user.manager().add(&reference, &options, None).unwrap_err().to_string();
    assert!(error.contains("larger than 10KiB") && error.contains("--max-size"), "{error}");
    user.assert_empty();
}

#[test]
fn two_processes_at_once_lose_nothing() {
    let user = User::new();
    let names: Vec<String> = (0..8).map(|i| format!("p{i}")).collect();
    let files: Vec<_> = names.iter().map(|n| user.write(&format!("{n}.wasm"), plugin(n, "1.0.0"))).collect();
    let pins = user.path(PIN_FILE);
    std::thread::scope(|scope| {
        for file in &files {
            // Each with everything of its own, as processes have it.
            scope.spawn(|| add(&user.manager(), file.to_str().unwrap(), Some(&pins)).unwrap());
        }
    });
    assert_eq!(user.installed().len(), 8);
    assert_eq!(Pins::load(&pins).unwrap().unwrap().plugins.len(), 8);
    // And the same one many times.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(user.add(files[0].to_str().unwrap()).unwrap().change, Change::Unchanged));
        }
    });
    assert_eq!(user.manager().store.components().unwrap().len(), 8);
}

/// Paths with what lies there.
type Files = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Serves files that the test may change.
fn web(files: &[(&str, Vec<u8>)]) -> (Server, Files) {
    let files: Vec<(String, Vec<u8>)> = files.iter().map(|(p, b)| ((*p).to_owned(), b.clone())).collect();
    let files = Arc::new(Mutex::new(files));
    let served = Arc::clone(&files);
    let server = Server::start(move |request| {
        let files = served.lock().unwrap();
        files.iter().find(|(path, _)| *path == request.path).map_or(Reply::new(404), |(_, bytes)| Reply::ok(bytes.clone()))
    });
    (server, files)
}

#[test]
fn an_address_is_fetched_and_held_to_its_digest() {
    let user = User::new();
    let bytes = plugin("mine", "1.0.0");
    let (server, files) = web(&[("/x/mine.wasm", bytes.clone())]);
    let url = server.url("/x/mine.wasm");
    let other = format!("{url}#sha256={}", Digest::of(b"other").hex());
    let error = user.refused(&other);
    assert!(error.contains("but you asked for") && error.contains("nothing was installed"), "{error}");
    user.assert_empty();
    let added = user.add(&format!("{url}#sha256={}", Digest::of(&bytes).hex())).unwrap();
    assert_eq!(added.entry.reference, Reference::Web(url.clone()));
    // Pinned, and then other bytes are there.
    let pins = user.path(PIN_FILE);
    add(&user.manager(), &url, Some(&pins)).unwrap();
    files.lock().unwrap()[0].1 = plugin("mine", "2.0.0");
    let error = add(&user.manager(), &url, Some(&pins)).unwrap_err().to_string();
    assert!(error.contains("plugins.lock pins `mine`") && error.contains("trainer plugin update mine"), "{error}");
    user.manager().update(&[], None, &AddOptions::default(), Some(&pins)).unwrap();
    assert_eq!(Pins::load(&pins).unwrap().unwrap().get("mine").unwrap().version, "2.0.0");
    assert_eq!(user.installed(), ["mine 2.0.0"]);
}

#[test]
fn servers_cannot_do_what_they_like() {
    let user = User::new();
    let bytes = plugin("mine", "1.0.0");
    let cases: Vec<(Reply, &str)> = vec![
        (Reply::new(404), "answered 404"),
        (Reply { body: b"{\"message\": \"go\\u001b[31m away\"}".to_vec(), ..Reply::new(503) }, "answered 503 to"),
        (Reply::new(302).with("location", "file:///etc/passwd"), "redirects to nowhere"),
        (Reply::new(302).with("location", "http://example.com/x.wasm"), "http is for this machine only"),
        (Reply::new(302).with("location", "/mine.wasm"), "more than 6 redirects"),
        (Reply::ok(bytes.clone()).with("content-length", (bytes.len() + 5).to_string()), "the connection"),
        (Reply::ok("x").with("content-length", "99999999999"), "larger than 32MiB"),
        (Reply::ok("<html>"), "not installed"),
    ];
    for (reply, word) in cases {
        let server = Server::start(move |_| reply.clone());
        let error = user.refused(&server.url("/mine.wasm"));
        assert!(error.contains(word) && !error.contains('\u{1b}'), "{word}: {error}");
    }
    user.assert_empty();
    let error = user.refused("http://127.0.0.1:9/x.wasm");
    assert!(error.contains("no answer from http://127.0.0.1:9"), "{error}");
    // A redirect on the same machine is followed.
    let server = Server::start(move |request| match request.path.as_str() {
        "/a.wasm" => Reply::new(302).with("location", "/b/mine.wasm"),
        "/b/mine.wasm" => Reply::ok(bytes.clone()),
        _ => Reply::new(404),
    });
    user.add(&server.url("/a.wasm")).unwrap();
}

#[test]
fn signatures_are_checked_where_they_are_and_demanded_where_policy_says() {
    let author = User::new();
    let key = author.manager().keys.generate("me").unwrap().key;
    let bytes = plugin("mine", "1.0.0");
    let file = author.write("mine.wasm", &bytes);
    let signature = std::fs::read(author.manager().sign(&file, "me").unwrap()).unwrap();
    assert!(author.path("mine.wasm.minisig").is_file());

    let user = User::new();
    let (server, files) = web(&[("/mine.wasm", bytes.clone()), ("/mine.wasm.minisig", signature.clone())]);
    let url = server.url("/mine.wasm");
    // A key that nobody trusts.
    let error = user.refused(&url);
    assert!(error.contains(&format!("the key {}, which is not trusted", key.id())) && error.contains("keys trust"), "{error}");
    user.assert_empty();
    // Trusted.
    user.manager().keys.trust("author", &key.to_string()).unwrap();
    let added = user.add(&url).unwrap();
    assert_eq!((added.entry.signer.as_ref(), added.signed_by.as_deref()), (Some(&key), Some("author")));
    assert!(user.manager().audit(&Audit::default()).unwrap().is_good());
    user.manager().remove(&["mine".to_owned()], None).unwrap();
    // Other bytes under that signature, a signature that is none, a signature of something else.
    files.lock().unwrap()[0].1 = plugin("mine", "1.0.1");
    assert!(user.refused(&url).contains("claims to be by `author` and is not"));
    files.lock().unwrap()[1].1 = b"untrusted comment: nothing\n".to_vec();
    assert!(user.refused(&url).contains("no minisign signature"));
    user.assert_empty();
    // None at all: good enough, unless signatures are required.
    files.lock().unwrap().truncate(1);
    user.add(&url).unwrap();
    user.manager().remove(&["mine".to_owned()], None).unwrap();
    user.write("config/plugins.toml", "require_signatures = true\n");
    assert!(user.refused(&url).contains("it has no signature, and signatures are required"));
    let (reference, _) = Reference::parse(&url).unwrap();
    let options = AddOptions { ignore_signature: true, ..AddOptions::default() };
    assert!(user.manager().add(&reference, &options, None).is_err());
    user.assert_empty();
    // A page in place of a signature is none.
    let page = bytes.clone();
    let server = Server::start(move |r| if r.path == "/mine.wasm" { Reply::ok(page.clone()) } else { Reply::ok("<html>") });
    assert!(user.refused(&server.url("/mine.wasm")).contains("no signature"));
}

#[test]
fn an_update_keeps_to_its_signer() {
    let author = User::new();
    let manager = author.manager();
    manager.keys.generate("me").unwrap();
    manager.keys.generate("thief").unwrap();
    let file = author.write("mine.wasm", plugin("mine", "1.0.0"));
    manager.sign(&file, "me").unwrap();
    author.add(file.to_str().unwrap()).unwrap();
    let update = || manager.update(&[], None, &AddOptions::default(), None);
    author.write("mine.wasm", plugin("mine", "2.0.0"));
    assert!(update().unwrap_err().to_string().contains("claims to be by `me`"));
    manager.sign(&file, "thief").unwrap();
    let error = update().unwrap_err().to_string();
    assert!(error.contains("was signed with the key of me") && error.contains("remove `mine` and add it again"), "{error}");
    std::fs::remove_file(author.path("mine.wasm.minisig")).unwrap();
    assert!(update().unwrap_err().to_string().contains("this is not signed"));
    manager.sign(&file, "me").unwrap();
    assert_eq!(update().unwrap()[0].now.entry.version, "2.0.0");
}

#[test]
fn pins_bring_the_same_bytes_to_others() {
    let author = User::new();
    let key = author.manager().keys.generate("me").unwrap().key;
    let file = author.write("project/plugins/mine.wasm", plugin("mine", "1.0.0"));
    author.manager().sign(&file, "me").unwrap();
    let pins = author.path("project").join(PIN_FILE);
    add(&author.manager(), file.to_str().unwrap(), Some(&pins)).unwrap();
    let text = std::fs::read_to_string(&pins).unwrap();
    assert!(text.contains("reference = \"plugins/mine.wasm\"") && text.contains(&key.to_string()), "{text}");
    // Somebody else has the project, and has to trust its author first.
    let other = User::new();
    let install = || other.manager().add_pinned(&AddOptions::default(), &pins);
    assert!(install().unwrap_err().to_string().contains("not trusted"));
    other.assert_empty();
    other.manager().keys.trust("author", &key.to_string()).unwrap();
    let added = install().unwrap();
    assert_eq!((added.len(), added[0].change, added[0].entry.signer.as_ref()), (1, Change::Added, Some(&key)));
    // Once more, without the file: the store has it.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(install().unwrap()[0].change, Change::Unchanged);
    // Other bytes at that place are not what is pinned.
    other.manager().remove(&["mine".to_owned()], None).unwrap();
    author.write("project/plugins/mine.wasm", plugin("mine", "1.0.9"));
    author.manager().sign(&file, "me").unwrap();
    assert!(install().unwrap_err().to_string().contains("plugins.lock pins `mine`"));
    other.assert_empty();
    // Unsigned bytes of the right digest are not signed bytes.
    author.write("project/plugins/mine.wasm", plugin("mine", "1.0.0"));
    std::fs::remove_file(author.path("project/plugins/mine.wasm.minisig")).unwrap();
    let error = install().unwrap_err().to_string();
    assert!(error.contains("is signed with the key") && error.contains("here it is not"), "{error}");
}

#[test]
fn an_audit_finds_what_is_wrong() {
    let user = User::new();
    let manager = user.manager();
    let key = manager.keys.generate("me").unwrap();
    for name in ["good", "damaged", "gone", "signed"] {
        let file = user.write(&format!("{name}.wasm"), plugin(name, "1.0.0"));
        if name == "signed" {
            manager.sign(&file, "me").unwrap();
        }
        user.add(file.to_str().unwrap()).unwrap();
    }
    let report = manager.audit(&Audit::default()).unwrap();
    assert!(report.is_good() && report.components == 4, "{report:?}");
    let store = &manager.store;
    let path = |name: &str| store.path(&store.entry(name).unwrap().digest);
    std::fs::write(path("damaged"), plugin("damaged", "6.6.6")).unwrap();
    std::fs::remove_file(path("gone")).unwrap();
    manager.keys.remove("me").unwrap();
    // A recipe that uses an installed one, one that is not there, and a file that is not what it is to be.
    let used = |name: &str, path: Option<&str>, sha256| Used { name: name.to_owned(), path: path.map(|p| user.path(p)), sha256 };
    let audit = Audit {
        used: vec![used("good", None, None), used("absent", None, None), used("file", Some("good.wasm"), Some(Digest::of(b"")))],
        online: true,
        reserved: vec!["good".to_owned()],
        ..Audit::default()
    };
    user.write("signed.wasm", plugin("signed", "2.0.0"));
    let report = manager.audit(&audit).unwrap();
    let found = |level: Level| {
        let mut list: Vec<String> =
            report.findings.iter().filter(|f| f.level == level).map(|f| format!("{}: {}", f.plugin, f.message)).collect();
        list.sort();
        list
    };
    let problems = found(Level::Problem);
    let words = [
        ("absent", "not installed"),
        ("damaged", "is damaged"),
        ("file", "is wanted"),
        ("gone", "is gone"),
        ("signed", &format!("the key {}, which is not trusted any more", key.id)),
    ];
    assert_eq!(problems.len(), words.len(), "{problems:#?}");
    for (problem, (name, word)) in problems.iter().zip(words) {
        assert!(problem.starts_with(name) && problem.contains(word), "{problem}");
    }
    let notes = found(Level::Note);
    assert!(notes.iter().any(|n| n.starts_with("good: an official plugin has its name")), "{notes:#?}");
    assert!(notes.iter().any(|n| n.starts_with("signed: ") && n.contains("trainer plugin update signed")), "{notes:#?}");
    // What policy demands.
    user.write("config/plugins.toml", "require_signatures = true\n");
    let report = user.manager().audit(&Audit::default()).unwrap();
    assert!(report.findings.iter().any(|f| f.level == Level::Problem && f.plugin == "good" && f.message.contains("not signed")));
}

#[test]
fn an_audit_compares_pins() {
    let user = User::new();
    let manager = user.manager();
    let file = user.write("project/mine.wasm", plugin("mine", "1.0.0"));
    let pins = user.path("project").join(PIN_FILE);
    add(&manager, file.to_str().unwrap(), Some(&pins)).unwrap();
    let load = || Pins::load(&pins).unwrap();
    let audit = |used: Vec<Used>| {
        let report = manager.audit(&Audit { pins: load(), used, ..Audit::default() }).unwrap();
        report.findings.iter().filter(|f| f.level == Level::Problem).map(|f| f.message.clone()).collect::<Vec<_>>()
    };
    let used = |name: &str| Used { name: name.to_owned(), path: None, sha256: None };
    assert_eq!(audit(vec![used("mine")]), [""; 0]);
    let problems = audit(vec![used("mine"), used("other")]);
    assert!(problems.len() == 2 && problems[0].contains("does not pin it"), "{problems:?}");
    manager.remove(&["mine".to_owned()], None).unwrap();
    let problems = audit(vec![used("mine")]);
    assert!(problems.len() == 1 && problems[0].contains("installs what it pins"), "{problems:?}");
}
