//! Pulling models from Hugging Face's protocol, with everything that can go wrong on the way.

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Notes, Place, TOKEN, model, noise, plain_files, serve};
use serde_json::json;
use trainer_hub::{RepoRef, Wanted};
use trainer_test_hub::{Fault, Request, git_blob, sha256};

const ID: &str = "org/tiny";
const NAME: &str = "hf://org/tiny";
const MIB: usize = 1 << 20;

fn is_shard(request: &Request) -> bool {
    request.cdn || request.path.ends_with(".safetensors")
}

#[test]
fn a_model_comes_into_the_layout_of_huggingface_hub() {
    let place = Place::new();
    let files = model(&[300_000, 200_000]);
    let commit = serve(&place.hub, "models", ID, &files);
    place.hub.token(TOKEN);
    place.hub.pages_of(3);
    let snapshot = place.pull(NAME, &[("HF_TOKEN", TOKEN)]).unwrap();
    assert_eq!(snapshot.repo.to_string(), format!("{NAME}@{commit}"));
    let root = place.path("hf/hub/models--org--tiny");
    assert_eq!(snapshot.dir, root.join("snapshots").join(&commit));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), commit);
    let wanted: Vec<&str> = snapshot.files.iter().map(|f| f.path.as_str()).collect();
    let expected = [
        ".gitattributes",
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(wanted, expected, "neither weights in other formats nor subfolders");
    for (path, bytes, lfs) in files.iter().filter(|f| expected.contains(&f.0.as_str())) {
        let shown = snapshot.dir.join(path);
        assert_eq!(&fs::read(&shown).unwrap(), bytes, "{path}");
        let blob = if *lfs { sha256(bytes) } else { git_blob(bytes) };
        #[cfg(unix)]
        assert_eq!(fs::read_link(&shown).unwrap(), Path::new("../../blobs").join(blob), "{path}");
    }
    assert_eq!(plain_files(&root.join(".incomplete")), [""; 0].map(std::path::PathBuf::from), "nothing half done is left");
    let tree: serde_json::Value = serde_json::from_slice(&fs::read(root.join(format!("trees/{commit}.json"))).unwrap()).unwrap();
    assert_eq!(tree["format_version"], 1);
    assert_eq!(tree["files"]["tokenizer.json"]["lfs_sha256"], sha256(&files[3].1));
    assert_eq!(tree["files"]["config.json"]["blob_id"], git_blob(&files[2].1));
    assert!(place.path("hf/hub/CACHEDIR.TAG").exists());
    // The token goes to the hub, and never to where it leads.
    let requests = place.hub.requests();
    assert!(requests.iter().any(|r| r.cdn) && requests.iter().all(|r| r.headers.contains_key("authorization") != r.cdn));

    // Once more: one question, which commit it is, and nothing to fetch.
    place.hub.forget();
    assert_eq!(place.pull(NAME, &[("HF_TOKEN", TOKEN)]).unwrap().fetched, 0);
    assert_eq!(place.hub.requests().iter().map(|r| r.path.clone()).collect::<Vec<_>>(), ["/api/models/org/tiny/revision/main"]);
    // By its commit not even that; and offline as well.
    place.hub.forget();
    place.pull(&format!("{NAME}@{commit}"), &[]).unwrap();
    let offline = place.pull(NAME, &[("HF_HUB_OFFLINE", "1")]).unwrap();
    assert_eq!((offline.dir, offline.files), (snapshot.dir.clone(), snapshot.files.clone()));
    assert_eq!(place.hub.requests().len(), 0);
    // All of it: only what is missing comes.
    let all = place.process(&[]).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::All, &Notes::default()).unwrap();
    assert_eq!((all.files.len(), all.fetched), (9, 200));
    assert!(all.dir.join("onnx/model.onnx").is_file());
}

#[test]
fn branches_move_and_commits_share_their_contents() {
    let place = Place::new();
    let mut files = model(&[100_000]);
    let first = serve(&place.hub, "models", ID, &files);
    place.pull(NAME, &[]).unwrap();
    files[2].1 = b"{\"model_type\": \"qwen3\", \"other\": 1}".to_vec();
    let second = serve(&place.hub, "models", ID, &files);
    place.hub.forget();
    let now = place.pull(NAME, &[]).unwrap();
    assert_eq!((now.repo.revision.as_deref(), now.fetched), (Some(second.as_str()), files[2].1.len() as u64));
    assert!(!place.hub.requests().iter().any(|r| r.cdn), "large contents are there");
    let before = place.pull(&format!("{NAME}@{first}"), &[("HF_HUB_OFFLINE", "1")]).unwrap();
    assert_ne!(fs::read(before.dir.join("config.json")).unwrap(), files[2].1);
    // One process sees one commit, whatever becomes of the branch meanwhile.
    let hub = place.process(&[]);
    let repo = RepoRef::parse(NAME).unwrap();
    let seen = hub.snapshot(&repo, &Wanted::Texts, &Notes::default()).unwrap().repo;
    files[2].1 = b"{}".to_vec();
    serve(&place.hub, "models", ID, &files);
    assert_eq!(hub.snapshot(&repo, &Wanted::Model, &Notes::default()).unwrap().repo, seen);
}

#[test]
fn a_large_file_comes_in_pieces_over_several_connections() {
    let place = Place::new();
    let files = model(&[70 * MIB + 12_345]);
    serve(&place.hub, "models", ID, &files);
    let notes = Notes::default();
    let snapshot = place.process(&[]).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::Model, &notes).unwrap();
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), files[6].1);
    let ranges = place.hub.requests().iter().filter(|r| r.cdn && r.path.contains(&sha256(&files[6].1))).count();
    assert_eq!(ranges, 3, "pieces of 32 MiB");
    let (all, present, received, lost) = *notes.bytes.lock().unwrap();
    assert_eq!((all, present, lost), (snapshot.bytes(), 0, 0));
    assert_eq!(received, all);
}

#[test]
fn broken_connections_and_busy_servers_cost_time_and_nothing_else() {
    let place = Place::new();
    let files = model(&[40 * MIB]);
    serve(&place.hub, "models", ID, &files);
    let count = AtomicUsize::new(0);
    place.hub.faults(move |request| {
        if !is_shard(request) && !request.path.contains("/tree/") {
            return None;
        }
        let retry = |seconds: &str| vec![("retry-after".to_owned(), seconds.to_owned())];
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Fault::Answer(503, retry("0"), "busy".into())),
            1 => Some(Fault::Answer(429, retry("0"), "slower".into())),
            3 | 6 => Some(Fault::Cut(5 * MIB)),
            4 => Some(Fault::Answer(500, vec![], String::new())),
            5 => Some(Fault::Cut(0)),
            _ => None,
        }
    });
    let notes = Notes::default();
    let snapshot = place.process(&[]).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::Model, &notes).unwrap();
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), files[6].1);
    assert_eq!(notes.bytes.lock().unwrap().2, snapshot.bytes(), "what had come did not come again");
}

#[test]
fn a_later_attempt_goes_on_where_an_earlier_one_ended() {
    let place = Place::new();
    let files = model(&[40 * MIB]);
    serve(&place.hub, "models", ID, &files);
    // Whatever is asked, the large file ends after 9 MiB and then is gone.
    let count = AtomicUsize::new(0);
    place.hub.faults(move |request| {
        let large =
            request.cdn && request.headers.get("range").is_some_and(|r| r.starts_with("bytes=0-3355") || r.starts_with("bytes=33554432-"));
        match large.then(|| count.fetch_add(1, Ordering::SeqCst)) {
            None => None,
            Some(0) => Some(Fault::Cut(9 * MIB)),
            Some(_) => Some(Fault::Answer(404, vec![], "gone".into())),
        }
    });
    let error = place.fails(NAME, &[]);
    assert!(error.contains("404") || error.contains("bytes of model.safetensors"), "{error}");
    assert!(!place.path("hf/hub/models--org--tiny/blobs").join(sha256(&files[6].1)).exists());
    place.hub.release();
    let notes = Notes::default();
    let snapshot = place.process(&[]).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::Model, &notes).unwrap();
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), files[6].1);
    // Which of the two pieces is asked for first, and so was cut and not refused, is chance: 8 or 9 MiB of 40 were there, but for some bytes of small files.
    assert!(snapshot.fetched <= 33 * MIB as u64, "{} bytes came again", snapshot.fetched);

    // What is left of an attempt may be broken; the checksum tells, and all of it comes.
    let incomplete = place.path("hf/hub/models--org--tiny/.incomplete");
    let etag = sha256(&files[6].1);
    fs::remove_file(snapshot.dir.join("model.safetensors")).unwrap();
    fs::remove_file(place.path("hf/hub/models--org--tiny/blobs").join(&etag)).unwrap();
    fs::write(incomplete.join(&etag), vec![7; 40 * MIB]).unwrap();
    fs::write(incomplete.join(format!("{etag}.spans")), format!("trainer-spans 1 {}\n0 {}\n", 40 * MIB, 39 * MIB)).unwrap();
    let notes = Notes::default();
    let snapshot = place.process(&[]).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::Model, &notes).unwrap();
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), files[6].1);
    assert!(notes.notes.lock().unwrap().iter().any(|n| n.contains("broken")));
}

#[test]
fn a_server_without_ranges_is_read_from_the_front() {
    let place = Place::new();
    let files = model(&[40 * MIB]);
    serve(&place.hub, "models", ID, &files);
    place.hub.faults(|request| is_shard(request).then_some(Fault::NoRanges));
    let snapshot = place.pull(NAME, &[]).unwrap();
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), files[6].1);
}

#[test]
fn wrong_contents_never_get_a_name() {
    let files = model(&[100_000]);
    for (path, algorithm) in [("/lfs/", "SHA-256"), ("config.json", "Git SHA-1")] {
        let place = Place::new();
        serve(&place.hub, "models", ID, &files);
        place.hub.faults(move |request| (request.path.contains(path) && !request.path.contains("/api/")).then_some(Fault::Flip));
        let error = place.fails(NAME, &[]);
        assert!(error.contains(&format!("its {algorithm} is")) && error.contains("thrown away"), "{error}");
        let there = plain_files(&place.path("hf/hub/models--org--tiny/blobs"));
        assert!(there.iter().all(|b| {
            [sha256(&fs::read(b).unwrap()), git_blob(&fs::read(b).unwrap())].contains(&b.file_name().unwrap().to_str().unwrap().to_owned())
        }));
    }
    let place = Place::new();
    serve(&place.hub, "models", ID, &files);
    // What the hub says of a file differs from its own list.
    for (header, value, part) in [
        ("x-linked-etag", format!("\"{}\"", "0".repeat(64)), "its checksum is 0000"),
        ("x-linked-size", "5".to_owned(), "it has 5 bytes, not"),
        ("x-repo-commit", "1".repeat(40), "it is of commit"),
        ("location", "file:///etc/passwd".to_owned(), "it leads nowhere"),
        ("location", "http://127.0.0.1:1@evil.net/".to_owned(), "no address"),
    ] {
        place.hub.faults(move |r| {
            (!r.cdn && r.path.ends_with("model.safetensors")).then(|| Fault::Headers(vec![(header.to_owned(), value.clone())]))
        });
        let error = place.fails(NAME, &[]);
        assert!(error.contains(part), "{header}: {error}");
    }
    // Round and round.
    place.hub.faults(|r| {
        let location = format!("{}?again", r.path);
        r.path.ends_with("model.safetensors").then(|| Fault::Answer(302, vec![("location".into(), location)], String::new()))
    });
    assert!(place.fails(NAME, &[]).contains("leads further after 6 redirects"));
    place.hub.release();
    place.pull(NAME, &[]).unwrap();
}

#[test]
fn refusals_say_what_to_do() {
    let place = Place::new();
    serve(&place.hub, "models", ID, &model(&[100_000]));
    place.hub.token(TOKEN);
    assert!(place.fails("hf://org/other", &[]).contains("Hugging Face shows no model org/other without a token (401): check the name (there is no folder org/other either); a private one needs a token in HF_TOKEN"));
    assert!(place.fails("hf://org/other", &[("HF_TOKEN", TOKEN)]).contains("to this token (404)"));
    let revision = place.fails("hf://org/tiny@v2", &[]);
    assert!(revision.contains("org/tiny has no branch, tag or commit \"v2\""), "{revision}");
    assert!(place.fails(NAME, &[("HF_TOKEN", "hf_wrong")]).contains("refuses the token in HF_TOKEN (401)"));
    place.hub.with_repo("models", ID, |r| r.private = true);
    assert!(place.fails(NAME, &[]).contains("without a token"));
    place.pull(NAME, &[("HF_TOKEN", TOKEN)]).unwrap();
    place.hub.with_repo("models", ID, |r| (r.private, r.gated) = (false, true));
    fs::remove_dir_all(place.path("hf")).unwrap();
    let gated = place.fails(NAME, &[]);
    assert!(
        gated.contains("is gated (401): accept its terms at") && gated.contains("/org/tiny, then set HF_TOKEN to a token of that account"),
        "{gated}"
    );
    // A server that wants to be left alone for long is not waited for.
    place.hub.faults(|_| Some(Fault::Answer(429, vec![("retry-after".into(), "3600".into())], String::new())));
    assert!(place.fails(NAME, &[]).contains("wants a pause of 3600 s before the next request (429)"));
    // A proxy's page.
    place.hub.faults(|_| Some(Fault::Answer(200, vec![("content-type".into(), "text/html".into())], "<html>log in</html>".into())));
    assert!(place.fails(NAME, &[]).contains("no proxy's page in between"));
    place.hub.faults(|_| Some(Fault::Headers(vec![("content-length".into(), "999999999999".into())])));
    assert!(place.fails(NAME, &[]).contains("larger than"));
    let message = "\u{1b}[2Jhello".to_owned();
    place.hub.faults(move |_| Some(Fault::Answer(418, vec![], json!({ "error": message }).to_string())));
    let error = place.fails(NAME, &[]);
    assert!(error.contains("418") && error.contains("[2Jhello") && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn what_a_server_lists_is_not_believed() {
    let place = Place::new();
    let commit = serve(&place.hub, "models", ID, &model(&[1000]));
    let lies = |entries: serde_json::Value| {
        place.hub.faults(move |r| r.path.contains("/tree/").then(|| Fault::Answer(200, vec![], entries.to_string())));
        place.fails(NAME, &[])
    };
    let oid = "0".repeat(40);
    let file = |path: &str, size: u64| json!([{ "type": "file", "path": path, "size": size, "oid": oid }]);
    for path in ["../../../evil", "/etc/passwd", "a/../../b", "a\nb", "C:\\x", "a\u{0}b"] {
        let error = lies(file(path, 5));
        assert!(error.contains("is refused as the path of a file"), "{path:?}: {error}");
    }
    assert!(lies(file("model.safetensors", 1 << 49)).contains("more in"), "more than any disk has");
    let error = lies(file("model.safetensors", 1 << 49));
    assert!(error.contains("free some, or set HF_HUB_CACHE to a folder with more"), "{error}");
    fs::remove_dir_all(place.path("hf/hub/models--org--tiny/trees")).unwrap();
    assert!(lies(file("model.safetensors", u64::MAX)).contains("checksum or size"));
    assert!(lies(json!([{ "type": "file", "path": "x", "size": 1, "oid": "../../x" }])).contains("checksum or size"));
    assert!(
        lies(json!([{ "type": "file", "path": "x.bin", "size": 1, "oid": oid }]))
            .contains("has no model.safetensors: weights are read as safetensors only, and it has x.bin")
    );
    fs::remove_dir_all(place.path("hf/hub/models--org--tiny/trees")).unwrap();
    // A commit that is a path.
    place.hub.faults(|r| r.path.contains("/revision/").then(|| Fault::Answer(200, vec![], json!({ "sha": "../../../evil" }).to_string())));
    assert!(place.fails(NAME, &[]).contains("is no commit"));
    // Pages without an end, and at another server.
    let other = place.hub.cdn();
    place
        .hub
        .faults(move |r| r.path.contains("/tree/").then(|| Fault::Headers(vec![("link".into(), format!("<{other}/x>; rel=\"next\""))])));
    assert!(place.fails(NAME, &[]).contains("at another server"));
    place.hub.release();
    let names: Vec<_> = fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["hf"], "nothing beside the cache");
    assert_eq!(place.pull(NAME, &[]).unwrap().repo.revision, Some(commit));
}

#[test]
fn offline_and_out_of_reach() {
    let place = Place::new();
    let commit = serve(&place.hub, "models", ID, &model(&[100_000, 50_000]));
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert!(place.fails(NAME, &offline).contains("is not in the cache (the commit of its revision is missing in"));
    let hub = place.process(&[]);
    hub.snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::Texts, &Notes::default()).unwrap();
    // Texts are enough for some commands, and not for others.
    let texts = place.process(&offline).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::Texts, &Notes::default()).unwrap();
    assert_eq!(texts.files.len(), 5);
    let error = place.fails(NAME, &offline);
    assert!(error.contains("model-00001-of-00002.safetensors is missing") && error.contains("HF_HUB_OFFLINE forbids"), "{error}");
    place.pull(NAME, &[]).unwrap();
    assert_eq!(place.hub.requests().iter().filter(|r| r.path.contains("/tree/")).count(), 1, "the list of a commit is asked for once");
    // The hub is away: what is cached must do, and that is said.
    let away = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    let notes = Notes::default();
    let snapshot = place.process(&away).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::Model, &notes).unwrap();
    assert_eq!(snapshot.repo.revision, Some(commit));
    let notes = notes.notes.into_inner().unwrap();
    assert!(notes[0].contains("cannot reach http://127.0.0.1:9") && notes[0].contains("taken from the cache"), "{notes:?}");
    // What its own package has fetched without a list of files serves as well.
    fs::remove_dir_all(place.path("hf/hub/models--org--tiny/trees")).unwrap();
    assert_eq!(place.pull(NAME, &offline).unwrap().files.len(), 7);
    fs::remove_file(snapshot.dir.join("model-00002-of-00002.safetensors")).unwrap();
    assert!(place.fails(NAME, &offline).contains("model-00002-of-00002.safetensors is missing"));
}

#[test]
fn two_at_once_share_the_work() {
    let place = Place::new();
    let files = model(&[40 * MIB, 20 * MIB]);
    serve(&place.hub, "models", ID, &files);
    std::thread::scope(|scope| {
        let pull = || place.pull(NAME, &[]).unwrap();
        let all: Vec<_> = (0..3).map(|_| scope.spawn(pull)).collect();
        let all: Vec<_> = all.into_iter().map(|t| t.join().unwrap()).collect();
        let fetched: u64 = all.iter().map(|s| s.fetched).sum();
        assert_eq!(fetched, all[0].bytes(), "each byte once");
        for (path, bytes, _) in files.iter().filter(|f| f.0.ends_with(".safetensors")) {
            assert_eq!(&fs::read(all[0].dir.join(path)).unwrap(), bytes);
        }
    });
}

#[test]
fn splits_of_a_data_set() {
    let place = Place::new();
    let rows = |n: u8| vec![n; 1000];
    let card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: cot\n    path: data/cot-*\n---\n# x\n".to_vec();
    place.hub.commit(
        "datasets",
        "org/rows",
        &[
            ("README.md", card, false),
            ("data/cot-00001-of-00002.parquet", rows(2), true),
            ("data/cot-00000-of-00002.parquet", rows(1), true),
            ("data/other-00000-of-00001.parquet", rows(3), true),
        ],
    );
    let files = |name: &str| place.process(&[]).data_files(&RepoRef::parse(name).unwrap(), &Notes::default());
    let (paths, snapshot) = files("hf://datasets/org/rows?split=cot").unwrap();
    let contents: Vec<u8> = paths.iter().map(|p| fs::read(p).unwrap()[0]).collect();
    assert_eq!(contents, [1, 2], "by the names of files");
    assert!(paths[0].starts_with(place.path("hf/hub/datasets--org--rows/snapshots")));
    assert!(snapshot.repo.to_string().ends_with("?split=cot") && snapshot.repo.revision.is_some());
    assert!(!place.hub.requests().iter().any(|r| r.path.contains("other")), "no file of another split");
    let error = files("hf://datasets/org/rows?split=train").map(|_| ()).unwrap_err().to_string();
    assert_eq!(error, "org/rows has no split `train`; there is cot");
    assert!(place.hub.requests().iter().all(|r| r.path.starts_with("/api/datasets/") || r.path.starts_with("/datasets/") || r.cdn));
}

#[test]
fn empty_files_and_paths_that_must_be_escaped() {
    let place = Place::new();
    place.hub.commit(
        "models",
        ID,
        &[("empty.txt", vec![], false), ("a b/ü#%?.json", noise(100, 3), false), ("model.safetensors", noise(10, 1), true)],
    );
    let all = place.process(&[]).snapshot(&RepoRef::parse(NAME).unwrap(), &Wanted::All, &Notes::default()).unwrap();
    assert_eq!(fs::read(all.dir.join("empty.txt")).unwrap(), b"");
    assert_eq!(fs::read(all.dir.join("a b/ü#%?.json")).unwrap(), noise(100, 3));
}

#[test]
fn many_files_at_once_stay_apart() {
    let place = Place::new();
    let mut files: Vec<_> = (0..40).map(|i| (format!("model-{i:05}.json"), noise(2000 + i, i as u64), i % 2 == 0)).collect();
    files.push(("model.safetensors".to_owned(), noise(10, 1), true));
    // The same content under two names is fetched once.
    files.push(("again.json".to_owned(), noise(2000, 0), true));
    serve(&place.hub, "models", ID, &files);
    let snapshot = place.pull(NAME, &[]).unwrap();
    for (path, bytes, _) in &files {
        assert_eq!(&fs::read(snapshot.dir.join(path)).unwrap(), bytes, "{path}");
    }
    assert_eq!(snapshot.files.len(), 42);
    assert_eq!(snapshot.fetched, snapshot.bytes() - 2000);
}

#[test]
fn a_repository_that_was_renamed() {
    let place = Place::new();
    let files = model(&[100_000]);
    let commit = serve(&place.hub, "models", "org/new", &files);
    place.hub.token(TOKEN);
    place.hub.faults(|r| {
        let to = r.path.replace("org/tiny", "org/new");
        (to != r.path).then(|| Fault::Answer(307, vec![("location".into(), to)], String::new()))
    });
    let snapshot = place.pull(NAME, &[("HF_TOKEN", TOKEN)]).unwrap();
    assert_eq!(snapshot.repo.revision, Some(commit));
    assert_eq!(fs::read(snapshot.dir.join("model.safetensors")).unwrap(), files[6].1);
    assert!(place.hub.requests().iter().all(|r| r.headers.contains_key("authorization") != r.cdn));
    // A storage that refuses is no refusal of the hub's.
    fs::remove_dir_all(place.path("hf")).unwrap();
    place.hub.faults(|r| r.cdn.then(|| Fault::Answer(403, vec![], "expired".into())));
    let error = place.fails("hf://org/new", &[("HF_TOKEN", TOKEN)]);
    assert!(error.contains("answered 403 to") && !error.contains("HF_TOKEN"), "{error}");
}
