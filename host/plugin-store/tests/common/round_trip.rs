//! What everybody does with a registry.

use crate::common::registry::{Access, NAME, PASSWORD, docker_config};
use crate::common::{User, plugin};
use trainer_plugin_store::{AddOptions, Audit, Change, PIN_FILE, Pins, Reference};

pub fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap().0
}

/// The whole way there and back, with a tag that moves, by people who trust these authorities in place of the built-in ones.
pub fn round_trip(registry: &str, access: Access, authorities: Option<&str>) {
    let author = User::trusting(authorities);
    let manager = author.manager();
    let key = manager.keys.generate("me").unwrap().key;
    let file = author.write("mine.wasm", plugin("mine", "1.0.0"));
    let place = |tag: &str| reference(&format!("oci://{registry}/a/mine{tag}"));
    let push = |tag: &str| manager.push(file.to_str().unwrap(), &place(tag), Some("me"));
    let user = User::trusting(authorities);
    if access != Access::Everybody {
        let error = push(":1.0.0").unwrap_err().to_string();
        assert!(error.contains("401") && error.contains("docker login"), "{error}");
        author.write("docker/config.json", docker_config("127.0.0.1:1"));
        assert!(push(":1.0.0").is_err(), "credentials of another registry");
        author.write("docker/config.json", docker_config(registry).replace("OnM", "OnN"));
        let error = push(":1.0.0").unwrap_err().to_string();
        assert!(error.contains("do not suffice") && !error.contains(PASSWORD) && !error.contains(NAME), "{error}");
        author.write("docker/config.json", docker_config(registry));
        user.write("docker/config.json", docker_config(registry));
    }
    let pushed = push(":1.0.0").unwrap();
    assert!(pushed.signed && pushed.sent > 10_000, "{pushed:?}");
    // Only the manifest is sent again, since each signature is another.
    assert!(push(":latest").unwrap().sent < 4_000);

    user.manager().keys.trust("author", &key.to_string()).unwrap();
    let pins = user.path(PIN_FILE);
    let add = || user.manager().add(&place(""), &AddOptions::default(), Some(&pins));
    let added = add().unwrap();
    assert_eq!(added.entry.reference.to_string(), format!("oci://{registry}/a/mine:latest"));
    assert_eq!((&added.entry.digest, &added.entry.signer), (&pushed.digest, &Some(key)));
    let pinned = added.entry.manifest.clone().unwrap();

    // The tag moves on. What is pinned is still had, by its digest, also by somebody else.
    author.write("mine.wasm", plugin("mine", "1.1.0"));
    push(":1.1.0").unwrap();
    let moved = push(":latest").unwrap();
    assert_ne!(moved.manifest, pinned);
    assert_eq!(add().unwrap().change, Change::Unchanged);
    user.manager().remove(&["mine".to_owned()], None).unwrap();
    let again = user.manager().add_pinned(&AddOptions::default(), &pins).unwrap();
    assert_eq!((again[0].change, &again[0].entry.digest), (Change::Added, &pushed.digest));
    // The audit says that there is more.
    let report = user.manager().audit(&Audit { online: true, pins: Pins::load(&pins).unwrap(), ..Audit::default() }).unwrap();
    let notes: Vec<&str> = report.findings.iter().map(|f| f.message.as_str()).collect();
    assert!(report.is_good(), "{notes:#?}");
    assert!(notes.iter().any(|n| n.contains("`trainer plugin update mine` takes it")), "{notes:#?}");
    assert!(notes.iter().any(|n| n.contains(&format!("--from oci://{registry}/a/mine:1.1.0"))), "{notes:#?}");
    // And an update takes it.
    let updated = user.manager().update(&[], None, &AddOptions::default(), Some(&pins)).unwrap();
    assert_eq!((updated[0].now.entry.version.as_str(), &updated[0].now.entry.digest), ("1.1.0", &moved.digest));
    assert_eq!(Pins::load(&pins).unwrap().unwrap().get("mine").unwrap().digest, moved.digest);

    // By the digest of a manifest, without and with a tag.
    let fresh = User::trusting(authorities);
    fresh.manager().keys.trust("author", &added.entry.signer.unwrap().to_string()).unwrap();
    if access != Access::Everybody {
        fresh.write("docker/config.json", docker_config(registry));
    }
    let by_digest = fresh.add(&format!("oci://{registry}/a/mine@{pinned}")).unwrap();
    assert_eq!(by_digest.entry.digest, pushed.digest);
    let error = fresh.refused(&format!("oci://{registry}/a/mine:9.9.9"));
    assert!(error.contains("404") && error.contains("mine:9.9.9"), "{error}");
    // An installed plugin goes on to another place with its signature.
    let copied = fresh.manager().push("mine", &reference(&format!("oci://{registry}/b/copy:1")), None).unwrap();
    assert!(copied.signed && copied.digest == pushed.digest);
    assert_eq!(user.add(&format!("oci://{registry}/b/copy:1")).unwrap_err().to_string().matches("`mine` 1.1.0 is installed").count(), 1);
}
