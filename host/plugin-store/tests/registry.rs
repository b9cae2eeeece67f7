//! Pushing to and pulling from registries: one in memory, with whatever goes wrong, and a program that people run.

mod common;
#[path = "common/round_trip.rs"]
mod round_trip;

use common::registry::{AUTHORITY, Access, RealRegistry, Registry, sha256};
use common::server::Reply;
use common::{User, plugin};
use round_trip::{reference, round_trip};
use serde_json::json;
use trainer_plugin_store::oci;

#[test]
fn there_and_back() {
    round_trip(&Registry::start(Access::Everybody).name(), Access::Everybody, None);
}

#[test]
fn there_and_back_with_a_password() {
    round_trip(&Registry::start(Access::Basic).name(), Access::Basic, None);
}

#[test]
fn there_and_back_with_tokens() {
    let registry = Registry::start(Access::Token);
    round_trip(&registry.name(), Access::Token, None);
    // Neither name and password nor a token went to where the blobs are, nor the password to anything but the service of tokens.
    assert!(registry.store.requests().iter().all(|r| !r.headers.contains_key("authorization")));
    let basic = |r: &common::server::Request| r.headers.get("authorization").is_some_and(|a| a.starts_with("Basic"));
    assert!(registry.server.requests().iter().all(|r| r.path == "/token" || !basic(r)));
}

#[test]
#[ignore = "needs the program docker-registry"]
fn there_and_back_with_the_real_one() {
    round_trip(&RealRegistry::start(Access::Everybody).name(), Access::Everybody, None);
    round_trip(&RealRegistry::start(Access::Basic).name(), Access::Basic, None);
}

#[test]
#[ignore = "needs the program docker-registry"]
fn there_and_back_with_the_real_one_over_tls() {
    round_trip(&RealRegistry::start_tls(Access::Basic).name(), Access::Basic, Some(AUTHORITY));
}

/// A registry that has `a/mine:1`, signed, and somebody who trusts it.
fn stocked() -> (Registry, User, String) {
    let (registry, user) = (Registry::start(Access::Everybody), User::new());
    user.manager().keys.generate("me").unwrap();
    let file = user.write("mine.wasm", plugin("mine", "1.0.0"));
    let place = format!("oci://{}/a/mine:1", registry.name());
    user.manager().push(file.to_str().unwrap(), &reference(&place), Some("me")).unwrap();
    (registry, user, place)
}

#[test]
fn the_artifact_is_that_of_the_convention() {
    let (registry, user, place) = stocked();
    let manifest = registry.manifest("a/mine:1");
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    let bytes = plugin("mine", "1.0.0");
    assert_eq!(
        manifest["layers"],
        json!([{
            "mediaType": "application/wasm",
            "digest": sha256(&bytes),
            "size": bytes.len(),
            "annotations": { "org.opencontainers.image.title": "mine.wasm" },
        }])
    );
    let annotations = &manifest["annotations"];
    assert_eq!(annotations["org.opencontainers.image.version"], "1.0.0");
    assert!(annotations[oci::SIGNATURE].as_str().unwrap().starts_with("untrusted comment: "));
    // Without a signature, the same component gives the same artifact.
    let push = |tag: &str| user.manager().push(user.path("mine.wasm").to_str().unwrap(), &reference(&place.replace(":1", tag)), None);
    assert_eq!(push(":2").unwrap().manifest, push(":3").unwrap().manifest);
    assert!(!push(":2").unwrap().signed);
    let fixed = format!("{place}@{}", sha256(b"x"));
    let error = user.manager().push(user.path("mine.wasm").to_str().unwrap(), &reference(&fixed), None).unwrap_err();
    assert!(error.to_string().contains("needs a tag"), "{error}");
}

#[test]
fn what_a_registry_changes_is_seen() {
    let blob = sha256(&plugin("mine", "1.0.0"));
    let case = |change: &dyn Fn(&Registry), word: &str| {
        let (registry, user, place) = stocked();
        change(&registry);
        let error = user.refused(&place);
        assert!(error.contains(word), "{word}: {error}");
        user.assert_empty();
    };
    case(&|r| r.change_blob(&blob, &plugin("mine", "6.6.6")), "but its manifest says");
    // Another component, well described, under the signature of the first.
    case(
        &|r| {
            let user = User::new();
            let file = user.write("evil.wasm", plugin("mine", "6.6.6"));
            user.manager().push(file.to_str().unwrap(), &reference(&format!("oci://{}/a/mine:6", r.name())), None).unwrap();
            let evil = r.manifest("a/mine:6")["layers"].clone();
            r.change_manifest("a/mine:1", |m| m["layers"] = evil);
        },
        "claims to be by `me` and is not",
    );
    case(&|r| r.change_manifest("a/mine:1", |m| m["annotations"][oci::SIGNATURE] = json!("x")), "no minisign signature");
    case(&|r| r.change_manifest("a/mine:1", |m| m["layers"][0]["mediaType"] = json!("text/html")), "its layer is");
    case(&|r| r.change_manifest("a/mine:1", |m| m["config"]["mediaType"] = json!("x")), "its configuration is");
    case(&|r| r.change_manifest("a/mine:1", |m| m["layers"][0]["size"] = json!(1u64 << 40)), "larger than 32MiB");
    case(&|r| r.change_manifest("a/mine:1", |m| *m = json!({ "manifests": [] })), "several artifacts");
    let on = |path: &'static str, reply: Reply| {
        move |r: &Registry| {
            let reply = reply.clone();
            r.faulty(move |request| request.path.contains(path).then(|| reply.clone()));
        }
    };
    case(&on("/manifests/", Reply::ok("<html>")), "its manifest is no JSON");
    case(&on("/manifests/", Reply::ok(vec![b' '; 5 << 20])), "larger than 4MiB");
    case(&on("/blobs/", Reply::new(500)), "answered 500");
    case(&on("/blobs/", Reply::new(307).with("location", "http://169.254.169.254/latest")), "http is for this machine only");
    case(&on("/blobs/", Reply::ok("short").with("content-length", "6")), "the connection");
    case(
        &on("/v2/", Reply::new(401).with("www-authenticate", "Bearer realm=\"http://example.com/token\"")),
        "http is for this machine only",
    );
    case(&on("/v2/", Reply::new(401).with("www-authenticate", "Bearer realm=\"\"")), "it is no address");
    case(&on("/v2/", Reply::new(401).with("www-authenticate", "Negotiate")), "refuses access");
    case(&on("/v2/", Reply::new(401)), "refuses access");
}

#[test]
fn a_manifest_is_what_its_digest_says() {
    let (registry, user, place) = stocked();
    let digest = sha256(b"something else");
    registry.faulty(|request| request.path.contains("/manifests/").then(|| Reply::ok("{}")));
    let error = user.refused(&format!("{place}@{digest}"));
    assert!(error.contains("was asked for"), "{error}");
    user.assert_empty();
}

#[test]
fn a_push_that_fails_says_so() {
    let (registry, user, place) = stocked();
    let file = user.write("mine.wasm", plugin("mine", "2.0.0"));
    let push = || user.manager().push(file.to_str().unwrap(), &reference(&place), None).unwrap_err().to_string();
    let on = |method: &'static str, path: &'static str, reply: Reply| {
        registry.faulty(move |r| (r.method == method && r.path.contains(path)).then(|| reply.clone()));
    };
    let denied = Reply { body: br#"{"errors": [{"code": "DENIED", "message": "read only"}]}"#.to_vec(), ..Reply::new(403) };
    on("POST", "/uploads/", denied);
    assert!(push().contains("refuses access to the component") && push().contains("read only"), "{}", push());
    on("POST", "/uploads/", Reply::new(202));
    assert!(push().contains("does not say where to upload"), "{}", push());
    on("PUT", "/uploads/", Reply::new(413));
    assert!(push().contains("answered 413"), "{}", push());
    on("PUT", "/manifests/", Reply::new(201).with("docker-content-digest", sha256(b"other")));
    assert!(push().contains("it took sha256:"), "{}", push());
    let text = user.write("text.wasm", "x");
    let error = user.manager().push(text.to_str().unwrap(), &reference(&place), None).unwrap_err().to_string();
    assert!(error.contains("text.wasm is no plugin that could be shared"), "{error}");
    // A signature of something else is not sent along.
    let other = user.write("other.wasm", plugin("other", "1.0.0"));
    let signature = user.manager().sign(&other, "me").unwrap();
    std::fs::copy(signature, user.path("mine.wasm.minisig")).unwrap();
    assert!(push().contains("not one of this component"), "{}", push());
}
