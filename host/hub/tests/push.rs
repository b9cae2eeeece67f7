//! Sending folders to both hubs.

mod common;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Notes, Place, TOKEN, noise};
use trainer_hub::push::{PushOptions, PushPlan, Pushed};
use trainer_hub::{HubError, RepoRef};
use trainer_test_hub::Fault;

fn folder(place: &Place) -> std::path::PathBuf {
    let dir = place.path("adapter");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("README.md"), "---\nlicense: mit\n---\n# Adapter\n").unwrap();
    fs::write(dir.join("adapter_config.json"), "{\"r\": 32}").unwrap();
    fs::write(dir.join("adapter_model.safetensors"), noise(3_000_000, 5)).unwrap();
    fs::write(dir.join("sub/other.safetensors"), noise(1_000_000, 6)).unwrap();
    fs::write(dir.join("empty.txt"), "").unwrap();
    fs::write(dir.join("run.log"), "noise").unwrap();
    fs::write(dir.join(".env"), "SECRET=1").unwrap();
    dir
}

fn push(place: &Place, name: &str, public: bool, token: bool) -> Result<Pushed, HubError> {
    let plan = PushPlan::new(&place.path("adapter"), &RepoRef::parse(name).unwrap()).unwrap();
    let tokens = [("HF_TOKEN", TOKEN), ("MODELSCOPE_API_TOKEN", TOKEN)];
    let hub = place.process(if token { &tokens } else { &[] });
    hub.push(&plan, &PushOptions { public, message: "first".into() }, &Notes::default())
}

fn fails(place: &Place, name: &str, public: bool) -> String {
    let error = push(place, name, public, true).unwrap_err().to_string();
    assert!(!error.contains(TOKEN) && !error.contains("secret-signature"), "{error}");
    error
}

#[test]
fn to_hugging_face() {
    let place = Place::new();
    place.hub.token(TOKEN);
    let dir = folder(&place);
    assert!(push(&place, "hf://me/adapter", false, false).unwrap_err().to_string().contains("needs a token: set HF_TOKEN"));
    assert_eq!(place.hub.requests().len(), 0, "nothing is asked without a token");
    place.hub.parts_of(1_200_000);
    let done = push(&place, "hf://me/adapter", false, true).unwrap();
    assert_eq!((done.created, done.files, done.unchanged, done.sent), (true, 5, 0, 4_000_000));
    assert_eq!(done.ignored, ["run.log"]);
    let repo = place.hub.repo("models", "me/adapter").unwrap();
    assert!(repo.private, "private unless said otherwise");
    let (sha, files) = repo.resolve("main").unwrap();
    assert_eq!(Some(sha), done.commit.as_ref());
    assert_eq!(files.len(), 5);
    for (path, file) in files {
        assert_eq!(*file.bytes, fs::read(dir.join(path)).unwrap(), "{path}");
        assert_eq!(file.lfs, path.ends_with(".safetensors"));
    }
    let requests = place.hub.requests();
    let puts: Vec<_> = requests.iter().filter(|r| r.method == "PUT").collect();
    assert_eq!(puts.len(), 4, "three parts, and one in one piece");
    assert!(puts.iter().all(|r| r.cdn && !r.headers.contains_key("authorization")));
    assert_eq!(requests.iter().filter(|r| r.path == "/verify").count(), 2);
    // Again: nothing has changed, so there is no commit.
    place.hub.forget();
    let again = push(&place, "hf://me/adapter", false, true).unwrap();
    assert_eq!((again.created, again.files, again.unchanged, again.commit), (false, 0, 5, None));
    assert!(!place.hub.requests().iter().any(|r| r.method == "PUT" || r.path.contains("/commit/")));
    // One file changes, one comes back under another name: only the new content is sent.
    fs::write(dir.join("adapter_config.json"), "{\"r\": 16}").unwrap();
    fs::copy(dir.join("adapter_model.safetensors"), dir.join("same.safetensors")).unwrap();
    let third = push(&place, "hf://me/adapter", false, true).unwrap();
    assert_eq!((third.files, third.unchanged, third.sent), (2, 4, 0));
    // Never by accident into a public one.
    place.hub.with_repo("models", "me/adapter", |r| r.private = false);
    fs::write(dir.join("adapter_config.json"), "{\"r\": 8}").unwrap();
    assert!(fails(&place, "hf://me/adapter", false).contains("me/adapter is public, and so would be what is sent; say --public"));
    push(&place, "hf://me/adapter", true, true).unwrap();
    let data = push(&place, "hf://datasets/me/rows", true, true).unwrap();
    assert!(data.created && place.hub.repo("datasets", "me/rows").is_some_and(|r| !r.private && r.resolve("main").unwrap().1.len() == 6));
}

#[test]
fn what_arrived_is_not_sent_again() {
    let place = Place::new();
    place.hub.token(TOKEN);
    folder(&place);
    // The first content arrives, the second never does.
    let count = AtomicUsize::new(0);
    place.hub.faults(move |r| {
        (r.method == "PUT" && count.fetch_add(1, Ordering::SeqCst) > 0).then(|| Fault::Answer(400, vec![], "no more".into()))
    });
    assert!(fails(&place, "hf://me/adapter", false).contains("answered 400 to the content of"));
    assert_eq!(place.hub.repo("models", "me/adapter").unwrap().resolve("main").unwrap().1.len(), 0, "no half of it is committed");
    place.hub.release();
    let done = push(&place, "hf://me/adapter", false, true).unwrap();
    assert!(done.sent == 1_000_000 || done.sent == 3_000_000, "{}", done.sent);
    // A busy storage is tried again; a commit is not, because nobody knows whether it was made.
    fs::write(place.path("adapter/sub/other.safetensors"), noise(1_000_000, 77)).unwrap();
    let count = AtomicUsize::new(0);
    place.hub.faults(move |r| match (r.method.as_str(), r.path.contains("/commit/")) {
        ("PUT", _) if count.fetch_add(1, Ordering::SeqCst) == 0 => {
            Some(Fault::Answer(503, vec![("retry-after".into(), "0".into())], String::new()))
        }
        (_, true) => Some(Fault::Answer(500, vec![], String::new())),
        _ => None,
    });
    place.hub.forget();
    assert!(fails(&place, "hf://me/adapter", false).contains("answered 500 to the commit"));
    assert_eq!(place.hub.requests().iter().filter(|r| r.path.contains("/commit/")).count(), 1);
    place.hub.faults(|r| r.path.contains("/commit/").then(|| Fault::Answer(403, vec![], "{\"error\": \"read only\"}".into())));
    assert!(fails(&place, "hf://me/adapter", false).contains("(403): read only; make a new one that may write to this repository"));
}

#[test]
fn to_modelscope() {
    let place = Place::new();
    place.hub.token(TOKEN);
    let dir = folder(&place);
    let done = push(&place, "ms://me/adapter", false, true).unwrap();
    assert_eq!((done.created, done.files, done.sent), (true, 6, 4_000_000));
    let repo = place.hub.repo("models", "me/adapter").unwrap();
    assert!(repo.private);
    let (_, files) = repo.resolve("master").unwrap();
    for (path, file) in files {
        assert_eq!(*file.bytes, fs::read(dir.join(path)).unwrap(), "{path}");
    }
    let made = place.hub.requests().into_iter().find(|r| r.method == "POST" && r.path == "/api/v1/models").unwrap().json();
    assert_eq!((&made["Visibility"], &made["License"]), (&1.into(), &"mit".into()));
    fs::write(dir.join("adapter_config.json"), "{\"r\": 16}").unwrap();
    let again = push(&place, "ms://me/adapter", false, true).unwrap();
    assert_eq!((again.files, again.unchanged, again.sent), (1, 5, 0));
    place.hub.with_repo("models", "me/adapter", |r| r.private = false);
    assert!(fails(&place, "ms://me/adapter", false).contains("is public"));
    assert!(fails(&place, "ms://datasets/me/rows", false).contains("to Hugging Face only"));
}
