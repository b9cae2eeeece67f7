//! Pulling from ModelScope's protocol.

mod common;

use std::fs;

use common::{Notes, Place, TOKEN, model, plain_files, serve};
use trainer_hub::{RepoRef, Wanted};
use trainer_test_hub::{Fault, sha256};

const ID: &str = "org/tiny";
const NAME: &str = "ms://org/tiny";

#[test]
fn a_model_comes_into_the_layout_of_modelscope() {
    let place = Place::new();
    let mut files = model(&[3_000_000, 200_000]);
    let commit = serve(&place.hub, "models", ID, &files);
    place.hub.token(TOKEN);
    place.hub.with_repo("models", ID, |r| r.private = true);
    assert!(place.fails(NAME, &[]).contains("ModelScope shows no model org/tiny without a token (404)"));
    assert!(
        place.fails(NAME, &[("MODELSCOPE_API_TOKEN", "wrong")]).contains("refuses the token in MODELSCOPE_API_TOKEN (401): Invalid token")
    );
    let token = [("MODELSCOPE_API_TOKEN", TOKEN)];
    let snapshot = place.pull(NAME, &token).unwrap();
    assert_eq!(snapshot.dir, place.path("ms/models/org--tiny/snapshots/master"));
    assert_eq!(snapshot.repo.revision, Some(commit));
    for (path, bytes, _) in files.iter().filter(|f| f.0.ends_with(".safetensors") || f.0 == "config.json") {
        assert_eq!(&fs::read(snapshot.dir.join(path)).unwrap(), bytes);
    }
    assert!(place.hub.requests().iter().all(|r| r.headers.contains_key("cookie") == r.headers.contains_key("authorization")));
    assert!(place.hub.requests().iter().filter(|r| r.cdn).all(|r| !r.headers.contains_key("authorization")));
    assert_eq!(place.pull(NAME, &token).unwrap().fetched, 0);
    // A branch moves: only what is new comes, into the same folder; a file of the same length is told by its checksum.
    files[2].1 = b"{\"model_type\": \"QWEN3\"}".to_vec();
    serve(&place.hub, "models", ID, &files);
    let moved = place.pull(NAME, &token).unwrap();
    assert_eq!((moved.fetched, fs::read(moved.dir.join("config.json")).unwrap()), (files[2].1.len() as u64, files[2].1.clone()));
    assert_eq!(place.pull(NAME, &[("HF_HUB_OFFLINE", "1")]).unwrap().files, moved.files);
    assert!(place.fails("ms://org/other", &[("HF_HUB_OFFLINE", "1")]).contains("is not in the cache"));
    assert_eq!(plain_files(&place.path("ms/models/org--tiny/.incomplete")).len(), 0);
    assert!(place.fails("ms://org/tiny@v9", &token).contains("no branch, tag or commit \"v9\""));
}

/// A file whose checksum was right is read again only when it has changed.
#[test]
fn what_was_checked_is_not_read_again() {
    let place = Place::new();
    let files = model(&[400_000]);
    serve(&place.hub, "models", ID, &files);
    let snapshot = place.pull(NAME, &[]).unwrap();
    let weights = snapshot.dir.join("model.safetensors");
    let markers = || plain_files(&place.path("ms/models/org--tiny/.checked")).len();
    assert_eq!(markers(), snapshot.files.len());
    // Bytes that change behind its back are seen: the times are other ones.
    let mut bytes = fs::read(&weights).unwrap();
    bytes[100] ^= 1;
    fs::write(&weights, &bytes).unwrap();
    assert_eq!(place.pull(NAME, &[]).unwrap().fetched, bytes.len() as u64);
    assert_eq!(fs::read(&weights).unwrap(), files[6].1);
    // Without a marker, or with one that is broken or of another content, the file is read, and the marker comes back.
    for broken in [None, Some("{"), Some("{\"digest\":\"0\",\"size\":400000,\"modified\":0,\"changed\":null}")] {
        for marker in plain_files(&place.path("ms/models/org--tiny/.checked")) {
            fs::remove_file(&marker).unwrap();
            if let Some(text) = broken {
                fs::write(&marker, text).unwrap();
            }
        }
        assert_eq!(place.pull(NAME, &[]).unwrap().fetched, 0);
        assert_eq!(markers(), snapshot.files.len());
    }
    // A marker is believed: one that says that other bytes were right keeps them.
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let read = |path: &std::path::Path| -> serde_json::Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let all = plain_files(&place.path("ms/models/org--tiny/.checked"));
        let marker = all.iter().find(|m| read(m)["size"] == bytes.len()).unwrap();
        fs::write(&weights, &bytes).unwrap();
        let about = fs::metadata(&weights).unwrap();
        let mut said = read(marker);
        let modified = about.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        said["modified"] = serde_json::json!(modified as u64);
        said["changed"] = serde_json::json!([about.ctime(), about.ctime_nsec(), about.ino()]);
        fs::write(marker, said.to_string()).unwrap();
        assert_eq!(place.pull(NAME, &[]).unwrap().fetched, 0);
        assert_eq!(fs::read(&weights).unwrap(), bytes);
    }
}

#[test]
fn broken_answers_and_contents() {
    let place = Place::new();
    let files = model(&[100_000]);
    serve(&place.hub, "models", ID, &files);
    place.hub.faults(|r| r.cdn.then_some(Fault::Flip));
    assert!(place.fails(NAME, &[]).contains("its SHA-256 is"));
    assert!(!place.path("ms/models/org--tiny/snapshots/master/model.safetensors").exists());
    place
        .hub
        .faults(|r| r.path.contains("/files").then(|| Fault::Answer(200, vec![], r#"{"Code":500,"Message":"no","Success":false}"#.into())));
    assert!(place.fails(NAME, &[]).contains("answered 200 to the files of org/tiny: no"));
    let evil = r#"{"Code":200,"Success":true,"Data":{"Files":[{"Path":"../../evil","Type":"blob","Size":1,"Sha256":""}]}}"#;
    place.hub.faults(|r| r.path.contains("/files").then(|| Fault::Answer(200, vec![], evil.into())));
    assert!(place.fails(NAME, &[]).contains("is refused as the path of a file"));
    place.hub.release();
    let snapshot = place.pull(NAME, &[]).unwrap();
    assert_eq!(sha256(&fs::read(snapshot.dir.join("model.safetensors")).unwrap()), sha256(&files[6].1));
}

#[test]
fn lists_of_data_sets_come_in_pages() {
    let place = Place::new();
    let names: Vec<String> = (0..450).map(|i| format!("data/train-{i:05}-of-00450.jsonl")).collect();
    let files: Vec<_> = names.iter().map(|n| (n.as_str(), n.clone().into_bytes(), false)).collect();
    place.hub.commit("datasets", "org/rows", &files);
    let hub = place.process(&[]);
    let (paths, _) = hub.data_files(&RepoRef::parse("ms://datasets/org/rows").unwrap(), &Notes::default()).unwrap();
    assert_eq!(paths.len(), 450);
    assert!(paths[449].ends_with("ms/datasets/org--rows/snapshots/master/data/train-00449-of-00450.jsonl"));
    let _ = Wanted::All;
}
