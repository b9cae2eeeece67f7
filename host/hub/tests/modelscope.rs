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
