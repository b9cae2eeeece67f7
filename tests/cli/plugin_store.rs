//! `trainer plugin add|list|remove|update|audit|push|sign|keys`, and runs with what they installed.

use std::path::PathBuf;

use serde_json::Value;

use crate::plugin_common::registry::{AUTHORITY, Access, NAME, PASSWORD, RealRegistry, Registry, docker_config};
use crate::plugin_common::rename;
use crate::plugin_common::server::{Reply, Server};
use crate::support::{Sandbox, json_file, prebuilt, short, shown};

/// A component of the repository under another name.
fn plugin(of: &str, name: &str, version: &str) -> Vec<u8> {
    let manifest = format!(r#"{{"name": "{name}", "version": "{version}", "description": "for tests"}}"#);
    rename(&std::fs::read(prebuilt(&format!("{of}.wasm"))).unwrap(), &manifest)
}

/// Digests and places as tests can show them.
fn steady(text: &str) -> String {
    let mut out = String::new();
    let mut run = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_hexdigit() && !c.is_ascii_uppercase() {
            run.push(c);
            continue;
        }
        out.push_str(if run.len() == 64 {
            "[SHA256]"
        } else if run.len() == 12 {
            "[SHORT]"
        } else {
            &run
        });
        run.clear();
        out.push(c);
    }
    out.trim_end_matches('\0').to_owned()
}

#[test]
fn add_list_inspect_remove() {
    let sandbox = Sandbox::cold();
    sandbox.write("mine.wasm", plugin("exact_match", "mine", "1.0.0"));
    let said = sandbox.neutral(&sandbox.ok(["plugin", "add", "mine.wasm"]));
    insta::assert_snapshot!(steady(&said), @r"
    added mine 1.0.0 ([SHORT])
      from     [DIR]/mine.wasm
      sha256   [SHA256]
      kinds    eval-metric@0.1.0
      signer   not signed
    ");
    std::fs::remove_file(sandbox.path("mine.wasm")).unwrap();
    let said = sandbox.neutral(&sandbox.ok(["plugin", "list", "--installed"]));
    insta::assert_snapshot!(said, @"mine           1.0.0    eval-metric@0.1.0; from [DIR]/mine.wasm, not signed");
    assert_eq!(sandbox.ok(["plugin", "list", "--kind", "tool"]), sandbox.ok(["plugin", "list", "--kind", "tool-executor"]));
    assert!(sandbox.ok(["plugin", "list"]).lines().count() > 11);
    // Found by its name wherever a plugin is named.
    let about = sandbox.json(["plugin", "inspect", "mine", "--json"]);
    assert_eq!((&about["name"], &about["version"]), (&"mine".into(), &"1.0.0".into()));
    let listed = sandbox.json(["plugin", "list", "--installed", "--json"]);
    assert_eq!(listed["plugins"][0]["digest"], about["digest"]);
    assert!(listed["plugins"][0]["installed"]["added"].as_str().unwrap().ends_with('Z'));
    let said = sandbox.fails(["plugin", "inspect", "yours"]);
    assert!(said.contains("no official plugin of that name") && said.contains("installed are mine"), "{said}");
    insta::assert_snapshot!(sandbox.fails(["plugin", "remove", "yours"]), @"error: no plugin `yours` is installed (there are mine); `trainer plugin add` installs one");
    insta::assert_snapshot!(sandbox.ok(["plugin", "remove", "mine"]), @"removed mine");
    assert_eq!(sandbox.ok(["plugin", "list", "--installed"]), "");
    assert!(sandbox.fails(["plugin", "inspect", "mine"]).contains("there is no file mine"));
}

#[test]
fn what_cannot_be_added_says_why() {
    let sandbox = Sandbox::cold();
    sandbox.write("math_mix.wasm", std::fs::read(prebuilt("math_mix.wasm")).unwrap());
    let said = sandbox.fails(["plugin", "add", "math_mix.wasm"]);
    insta::assert_snapshot!(said, @"error: [DIR]/math_mix.wasm is not installed: `math_mix` is the name of an official plugin; it can only be used by the path of its file");
    let said = sandbox.fails(["plugin", "add", "nothing.wasm"]);
    insta::assert_snapshot!(said, @r#"error: "nothing.wasm" is no place of a plugin: there is no such file; other places are https://HOST/PATH and oci://HOST/REPOSITORY:TAG"#);
    let said = sandbox.fails(["plugin", "add"]);
    insta::assert_snapshot!(said, @"error: there is nothing to add: say from where, or name a file of pins with --lock-file (there is no plugins.lock here)");
    let said = sandbox.fails(["plugin", "add", "http://example.com/x.wasm"]);
    assert!(said.contains("use https"), "{said}");
    let curious = r#"(component
        (@custom "trainer:plugin" "{\"name\": \"curious\", \"version\": \"1.2.3\", \"description\": \"for tests\"}")
        (import "other:files/everything@1.0.0" (instance))
        (instance $i)
        (export "trainer:dataset-formatter/formatter@0.1.0" (instance $i)))"#;
    sandbox.write("curious.wasm", wat::parse_str(curious).unwrap());
    let said = sandbox.fails(["plugin", "add", "curious.wasm"]);
    assert!(said.contains("it imports other:files/everything@1.0.0"), "{said}");
    // Not a trace of any of them.
    assert!(!sandbox.path("home/.local/share/trainer/plugins/sha256").exists());
}

#[test]
fn an_address_with_its_digest() {
    let sandbox = Sandbox::cold();
    let bytes = plugin("exact_match", "mine", "1.0.0");
    let server = Server::start(move |r| if r.path == "/mine.wasm" { Reply::ok(bytes.clone()) } else { Reply::new(404) });
    let url = server.url("/mine.wasm");
    let wrong = "0".repeat(64);
    let said = sandbox.fails(["plugin", "add", &format!("{url}#sha256={wrong}")]);
    assert!(said.contains("but you asked for") && said.contains(&wrong), "{said}");
    let said = sandbox.fails(["plugin", "add", &url, "--sha256", &wrong]);
    assert!(said.contains("but you asked for"), "{said}");
    let added = sandbox.json(["plugin", "add", &url, "--json"]);
    let digest = added["plugins"][0]["digest"].as_str().unwrap();
    assert_eq!((&added["plugins"][0]["change"], &added["plugins"][0]["reference"]), (&"added".into(), &url.as_str().into()));
    let again = sandbox.json(["plugin", "add", &format!("{url}#{}", digest.replace(':', "=")), "--json"]);
    assert_eq!(again["plugins"][0]["change"], "unchanged");
}

/// A recipe that evaluates with an installed metric.
const RECIPE: &str = "[eval]\nmetrics = [\"mine\"]\n";

#[test]
fn a_recipe_names_an_installed_plugin() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", RECIPE);
    let said = sandbox.fails(["run", "recipe.toml", "--dry-run"]);
    assert!(
        said.contains("names the plugin `mine`") && said.contains("and not installed") && said.contains("trainer plugin add"),
        "{said}"
    );
    sandbox.write("a/mine.wasm", plugin("boxed_answer", "mine", "1.0.0"));
    sandbox.ok(["plugin", "add", "a/mine.wasm"]);
    assert!(sandbox.ok(["run", "recipe.toml", "--dry-run"]).contains("# plan"));
    // A digest in the recipe holds, whatever the name means.
    let pinned = format!("{RECIPE}[plugins.mine]\nsha256 = \"{}\"\n", "0".repeat(64));
    sandbox.write("pinned.toml", pinned);
    let said = sandbox.fails(["run", "pinned.toml", "--dry-run"]);
    assert!(said.contains("the store has no component sha256:000") && said.contains("for `mine`"), "{said}");
    sandbox.write("pinned.toml", format!("{RECIPE}[plugins.mine]\npath = \"a/mine.wasm\"\nsha256 = \"{}\"\n", "0".repeat(64)));
    let said = sandbox.fails(["run", "pinned.toml", "--dry-run"]);
    assert!(said.contains("a/mine.wasm has sha256:") && said.contains("but the recipe or its lock wants sha256:000"), "{said}");
    sandbox.write("pinned.toml", "[plugins.math_mix]\nsha256 = \"x\"\n");
    assert!(sandbox.fails(["run", "pinned.toml", "--dry-run"]).contains("64 hexadecimal digits"));
    // A component that was changed in the store is not used.
    let index = json_file(&sandbox.path("home/.local/share/trainer/plugins/index.json"));
    let hex = index["plugins"]["mine"]["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    let file = sandbox.path("home/.local/share/trainer/plugins/sha256").join(&hex[..2]).join(format!("{}.wasm", &hex[2..]));
    std::fs::write(&file, plugin("boxed_answer", "mine", "6.6.6")).unwrap();
    let said = sandbox.fails(["run", "recipe.toml", "--dry-run"]);
    assert!(said.contains("is damaged"), "{said}");
    let audit = sandbox.run(["plugin", "audit"]);
    assert_eq!(audit.status.code(), Some(1), "{}", shown(&audit));
    assert!(String::from_utf8_lossy(&audit.stdout).contains("PROBLEM: mine: "), "{}", shown(&audit));
}

#[test]
fn pins_beside_a_recipe_decide() {
    let sandbox = Sandbox::new();
    sandbox.write("project/recipe.toml", RECIPE);
    sandbox.write("project/mine.wasm", plugin("boxed_answer", "mine", "1.0.0"));
    let lock = ["--lock-file", "project/plugins.lock"];
    let said = sandbox.ok(["plugin", "add", "project/mine.wasm", lock[0], lock[1]]);
    assert!(said.contains("pinned   in project/plugins.lock"), "{said}");
    let dry = |args: &[&str]| sandbox.json(["run", "project/recipe.toml", "--dry-run", "--json"].iter().chain(args))["lock_digest"].clone();
    let first = dry(&[]);
    // Elsewhere the name comes to mean something else. The project stays with its pin.
    sandbox.write("new/mine.wasm", plugin("boxed_answer", "mine", "2.0.0"));
    sandbox.ok(["plugin", "update", "mine", "--from", "new/mine.wasm"]);
    assert_eq!(sandbox.json(["plugin", "inspect", "mine", "--json"])["version"], "2.0.0");
    assert_eq!(dry(&[]), first);
    let audit = sandbox.json(["plugin", "audit", "project/recipe.toml", "--json"]);
    assert_eq!(audit["good"], true);
    assert!(audit["findings"].to_string().contains("but installed is 2.0.0"), "{audit}");
    // The same file by its path: it must be what is pinned.
    sandbox.write("project/by_path.toml", format!("{RECIPE}[plugins.mine]\npath = \"../new/mine.wasm\"\n"));
    let said = sandbox.fails(["run", "project/by_path.toml", "--dry-run"]);
    assert!(said.contains("new/mine.wasm has sha256:") && said.contains("plugins.lock pins sha256:"), "{said}");
    // What is pinned and not there is asked for.
    sandbox.ok(["plugin", "remove", "--unused"]);
    let said = sandbox.fails(["run", "project/recipe.toml", "--dry-run"]);
    assert!(
        said.contains("plugins.lock pins for `mine`") && said.contains("trainer plugin add --lock-file project/plugins.lock"),
        "{said}"
    );
    let audit = sandbox.run(["plugin", "audit", "project/recipe.toml"]);
    assert_eq!(audit.status.code(), Some(1));
    sandbox.ok(["plugin", "add", lock[0], lock[1]]);
    assert_eq!(dry(&[]), first);
    // A recipe whose plugin the file does not pin.
    sandbox.write("project/more.toml", "[eval]\nmetrics = [\"other\"]\n");
    let audit = sandbox.run(["plugin", "audit", "project/more.toml"]);
    assert!(String::from_utf8_lossy(&audit.stdout).contains("does not pin it"), "{}", shown(&audit));
}

#[test]
fn a_locked_run_finds_its_plugin_by_digest() {
    let sandbox = Sandbox::new();
    sandbox.write("mine.wasm", plugin("qwen3_chat", "mine", "1.0.0"));
    let run: Vec<String> = short(&["--plugin", "./mine.wasm", "--out", "run"]).into_iter().map(str::to_owned).collect();
    sandbox.ok(&run);
    let lock = json_file(&sandbox.path("run/lock.json"));
    let again = |out: &str| {
        let mut args = short(&["--set", "template.plugin=mine", "--locked", "run/lock.json", "--out"])
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        args.push(out.to_owned());
        args
    };
    // The file is gone, and nothing has its bytes.
    std::fs::rename(sandbox.path("mine.wasm"), sandbox.path("kept.wasm")).unwrap();
    let said = sandbox.fails(again("again"));
    let sha256 = lock["plugins"]["mine"]["sha256"].as_str().unwrap();
    assert!(said.contains(&format!("the store has no component sha256:{sha256}")) && said.contains("for `mine`"), "{said}");
    // The store has them, under a name that means another version by now.
    sandbox.ok(["plugin", "add", "kept.wasm"]);
    sandbox.write("newer.wasm", plugin("qwen3_chat", "mine", "2.0.0"));
    sandbox.ok(["plugin", "update", "mine", "--from", "newer.wasm"]);
    // Not even what the project pins by now counts.
    sandbox.ok(["plugin", "add", "newer.wasm", "--project"]);
    sandbox.ok(again("again"));
    assert_eq!(json_file(&sandbox.path("again/lock.json"))["plugins"], lock["plugins"]);
    assert_eq!(crate::support::bytes(&sandbox.path("run")), crate::support::bytes(&sandbox.path("again")));
    // And a run that names the file goes on without it.
    let recipe = std::fs::read_to_string(sandbox.path("run/recipe.toml")).unwrap();
    assert!(recipe.contains("mine.wasm"), "{recipe}");
    let longer = ["run", "--locked", "run/lock.json", "run/recipe.toml", "--out", "third"];
    sandbox.ok(longer);
    assert_eq!(crate::support::bytes(&sandbox.path("run")), crate::support::bytes(&sandbox.path("third")));
}

#[test]
fn keys_sign_and_policy_demands() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", RECIPE);
    sandbox.write("mine.wasm", plugin("boxed_answer", "mine", "1.0.0"));
    let said = sandbox.fails(["plugin", "sign", "mine.wasm"]);
    insta::assert_snapshot!(said, @"error: you have no key to sign with; `trainer plugin keys generate NAME` makes one");
    let key = sandbox.json(["plugin", "keys", "generate", "me", "--json"]);
    let id = key["id"].as_str().unwrap();
    insta::assert_snapshot!(sandbox.ok(["plugin", "sign", "mine.wasm"]), @"signed mine.wasm with me: mine.wasm.minisig");
    let said = sandbox.ok(["plugin", "add", "mine.wasm"]);
    assert!(said.contains(&format!("signer   signed by me ({id})")), "{said}");
    assert!(sandbox.ok(["plugin", "keys", "list"]).contains("yours"));
    // From now on only what is signed.
    sandbox.write("home/.config/trainer/plugins.toml", "require_signatures = true\n");
    assert!(sandbox.ok(["run", "recipe.toml", "--dry-run"]).contains("# plan"));
    assert!(sandbox.ok(["run", "--plugin", "mine.wasm", "--dry-run"]).contains("# plan"));
    sandbox.write("other.wasm", plugin("boxed_answer", "other", "1.0.0"));
    let said = sandbox.fails(["plugin", "add", "other.wasm"]);
    insta::assert_snapshot!(said, @"error: [DIR]/other.wasm: it has no signature, and signatures are required (plugins.toml of your configuration, or plugins.lock); `trainer plugin sign FILE` signs what is yours, and its author's signature goes beside it as FILE.minisig");
    let said = sandbox.fails(["run", "--plugin", "other.wasm", "--dry-run"]);
    assert!(said.contains("other.wasm: it has no signature"), "{said}");
    std::fs::copy(sandbox.path("mine.wasm.minisig"), sandbox.path("other.wasm.minisig")).unwrap();
    let said = sandbox.fails(["run", "--plugin", "other.wasm", "--dry-run"]);
    assert!(said.contains("claims to be by `me` and is not"), "{said}");
    // Official plugins are part of the program.
    assert!(sandbox.ok(["run", "--dry-run"]).contains("# plan"));
    // A key that is trusted no longer ends it.
    assert_eq!(sandbox.json(["plugin", "audit", "--json"])["good"], true);
    sandbox.ok(["plugin", "keys", "remove", "me"]);
    let said = sandbox.fails(["run", "recipe.toml", "--dry-run"]);
    assert!(said.contains(&format!("the key {id}, which is not trusted")), "{said}");
    assert_eq!(sandbox.run(["plugin", "audit"]).status.code(), Some(1));
    sandbox.ok(["plugin", "keys", "trust", "me", key["key"].as_str().unwrap()]);
    assert!(sandbox.ok(["run", "recipe.toml", "--dry-run"]).contains("# plan"));
    // A demand that is not understood is none that is ignored.
    sandbox.write("home/.config/trainer/plugins.toml", "require_signature = true\n");
    assert!(sandbox.fails(["run", "recipe.toml", "--dry-run"]).contains("plugins.toml does not read"));
}

/// Pushing, adding by name and by tag, with credentials of Docker's.
fn registry(name: &str, access: Access) {
    let sandbox = Sandbox::new();
    sandbox.write("mine.wasm", plugin("boxed_answer", "mine", "1.0.0"));
    sandbox.ok(["plugin", "keys", "generate", "me"]);
    let place = format!("oci://{name}/me/mine:1.0.0");
    if access != Access::Everybody {
        let said = sandbox.fails(["plugin", "push", "mine.wasm", &place]);
        assert!(said.contains("docker login"), "{said}");
        sandbox.write("home/.docker/config.json", docker_config(name));
    }
    let pushed = sandbox.json(["plugin", "push", "mine.wasm", &place, "--key", "me", "--json"]);
    assert_eq!((&pushed["signed"], &pushed["reference"]), (&true.into(), &place.as_str().into()));
    // As `wkg oci` writes references.
    let said = sandbox.ok(["plugin", "add", &format!("{name}/me/mine:1.0.0"), "--project"]);
    assert!(said.contains("signed by me") && said.contains("pinned   in plugins.lock"), "{said}");
    let pins = std::fs::read_to_string(sandbox.path("plugins.lock")).unwrap();
    for text in [pushed["manifest"].as_str().unwrap(), pushed["digest"].as_str().unwrap(), &place, "eval-metric@0.1.0", "signer = \"RW"] {
        assert!(pins.contains(text), "{text}: {pins}");
    }
    sandbox.write("recipe.toml", RECIPE);
    assert!(sandbox.ok(["run", "recipe.toml", "--dry-run"]).contains("# plan"));
    let unchanged = sandbox.json(["plugin", "update", "--json"]);
    assert_eq!(unchanged["plugins"][0]["change"], "unchanged");
    sandbox.write("mine.wasm", plugin("boxed_answer", "mine", "1.1.0"));
    let next = place.replace("1.0.0", "1.1.0");
    sandbox.ok(["plugin", "push", "mine.wasm", &next, "--key", "me"]);
    let audit = sandbox.ok(["plugin", "audit", "--online"]);
    assert!(audit.contains(&format!("trainer plugin update mine --from {next}")), "{audit}");
    let said = sandbox.ok(["plugin", "update", "mine", "--from", &next]);
    assert!(said.starts_with("updated mine 1.0.0 (") && said.contains("to 1.1.0 ("), "{said}");
    assert!(std::fs::read_to_string(sandbox.path("plugins.lock")).unwrap().contains(&next));
}

#[test]
fn a_registry() {
    registry(&Registry::start(Access::Everybody).name(), Access::Everybody);
    registry(&Registry::start(Access::Token).name(), Access::Token);
}

#[test]
#[ignore = "needs the program docker-registry"]
fn a_real_registry() {
    registry(&RealRegistry::start(Access::Everybody).name(), Access::Everybody);
    registry(&RealRegistry::start(Access::Basic).name(), Access::Basic);
}

#[test]
#[ignore = "needs the program docker-registry"]
fn a_real_registry_over_tls() {
    let registry = RealRegistry::start_tls(Access::Basic);
    let place = format!("oci://{}/me/mine:1.0.0", registry.name());
    let sandbox = Sandbox::cold();
    sandbox.write("mine.wasm", plugin("exact_match", "mine", "1.0.0"));
    sandbox.write("authority.pem", AUTHORITY);
    sandbox.write("home/.docker/config.json", docker_config(&registry.name()));
    let trusting = |args: &[&str]| {
        let output = sandbox.command(args).env("SSL_CERT_FILE", sandbox.path("authority.pem")).output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
    };
    let unknown = |args: &[&str]| {
        let said = sandbox.fails(args);
        assert!(said.contains("an authority that is not trusted") && said.contains("SSL_CERT_FILE"), "{said}");
    };
    unknown(&["plugin", "push", "mine.wasm", &place]);
    trusting(&["plugin", "push", "mine.wasm", &place]);
    unknown(&["plugin", "add", &place]);
    assert_eq!(sandbox.ok(["plugin", "list", "--installed"]), "");
    trusting(&["plugin", "add", &place]);
    assert!(sandbox.ok(["plugin", "list", "--installed"]).contains(&place));
    // By a name of this machine it is spoken to in the clear, and says so.
    let said = sandbox.fails(["plugin", "add", &place.replace("0.0.0.0", "127.0.0.1")]);
    assert!(said.contains("HTTP request to an HTTPS server"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_helper_of_dockers_gives_the_password() {
    use std::os::unix::fs::PermissionsExt;
    let registry = Registry::start(Access::Basic);
    let sandbox = Sandbox::cold();
    sandbox.write("mine.wasm", plugin("exact_match", "mine", "1.0.0"));
    sandbox.write("home/.docker/config.json", r#"{"credsStore": "here"}"#);
    let push = |helper: &str| {
        let path = sandbox.write("bin/docker-credential-here", format!("#!/bin/sh\nread server\n{helper}\n"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let programs = format!("{}:/usr/bin:/bin", sandbox.path("bin").display());
        let place = format!("oci://{}/me/mine:1", registry.name());
        let output = sandbox.command(["plugin", "push", "mine.wasm", &place]).env("PATH", programs).output().unwrap();
        (output.status.code(), shown(&output))
    };
    let answer = format!(r#"echo '{{"ServerURL": "x", "Username": "{NAME}", "Secret": "{PASSWORD}"}}'"#);
    let only_for = format!("[ \"$server\" = {} ] && {answer}", registry.name());
    let (code, said) = push(&only_for);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = push("echo credentials not found in native keychain; exit 1");
    assert!(code == Some(1) && said.contains("there are no credentials"), "{said}");
    let (code, said) = push(&format!("echo {PASSWORD}; exit 3"));
    assert!(code == Some(1) && said.contains("credential helper \"here\"") && !said.contains(PASSWORD), "{said}");
    let (code, said) = push(&format!("echo {PASSWORD}"));
    assert!(code == Some(1) && said.contains("not the JSON") && !said.contains(PASSWORD), "{said}");
}

#[test]
fn several_processes_at_once() {
    let sandbox = Sandbox::cold();
    let names: Vec<String> = (0..6).map(|i| format!("p{i}")).collect();
    let children: Vec<_> = names
        .iter()
        .map(|name| {
            let file = sandbox.write(&format!("{name}.wasm"), plugin("exact_match", name, "1.0.0"));
            let mut command = sandbox.command(["plugin", "add", "--project", file.to_str().unwrap()]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
    }
    let listed = sandbox.json(["plugin", "list", "--installed", "--json"]);
    let found: Vec<&str> = listed["plugins"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(found, names);
    let pins = std::fs::read_to_string(sandbox.path("plugins.lock")).unwrap();
    assert_eq!(pins.matches("[[plugin]]").count(), 6, "{pins}");
    assert!(pins.contains("reference = \"p0.wasm\""), "{pins}");
}

/// What one of the two programs pushes, the other pulls.
#[test]
#[ignore = "needs the programs docker-registry and wkg"]
fn wkg_and_this_program_understand_each_other() {
    let registry = RealRegistry::start(Access::Everybody);
    let (sandbox, name) = (Sandbox::cold(), registry.name());
    let bytes = plugin("boxed_answer", "mine", "1.0.0");
    sandbox.write("mine.wasm", &bytes);
    sandbox.ok(["plugin", "keys", "generate", "me"]);
    let wkg = |args: &[&str]| {
        let mut command = std::process::Command::new(std::env::var_os("WKG").unwrap_or_else(|| "wkg".into()));
        let output = command.args(args).current_dir(sandbox.path("")).env("HOME", sandbox.path("home")).output();
        let output = output.unwrap_or_else(|e| panic!("cannot run wkg (cargo install wkg --locked): {e}"));
        assert!(output.status.success(), "{}", shown(&output));
    };
    // Ours to theirs, with a signature that they do not know.
    sandbox.ok(["plugin", "push", "mine.wasm", &format!("oci://{name}/ours/mine:1.0.0"), "--key", "me"]);
    wkg(&["oci", "pull", "--insecure", &name, &format!("{name}/ours/mine:1.0.0"), "-o", "pulled.wasm"]);
    assert_eq!(std::fs::read(sandbox.path("pulled.wasm")).unwrap(), bytes);
    // Theirs to ours.
    wkg(&["oci", "push", "--insecure", &name, &format!("{name}/theirs/mine:1.0.0"), "mine.wasm"]);
    let added = sandbox.json(["plugin", "add", &format!("oci://{name}/theirs/mine:1.0.0"), "--json"]);
    assert_eq!((&added["plugins"][0]["name"], &added["plugins"][0]["signer"]), (&"mine".into(), &Value::Null));
}

/// What one of the two programs signs, the other verifies.
#[test]
#[ignore = "needs the program minisign"]
fn minisign_and_this_program_understand_each_other() {
    let sandbox = Sandbox::cold();
    sandbox.write("mine.wasm", plugin("boxed_answer", "mine", "1.0.0"));
    let minisign = |args: &[&str]| {
        let output = std::process::Command::new("minisign").args(args).current_dir(sandbox.path("")).output();
        let output = output.unwrap_or_else(|e| panic!("cannot run minisign, of the Debian package of that name: {e}"));
        assert!(output.status.success(), "{args:?}: {}", shown(&output));
    };
    let key = sandbox.json(["plugin", "keys", "generate", "me", "--json"]);
    sandbox.ok(["plugin", "sign", "mine.wasm"]);
    minisign(&["-V", "-m", "mine.wasm", "-P", key["key"].as_str().unwrap()]);
    // It signs with our key, and with its own.
    let secret: PathBuf = sandbox.path("home/.config/trainer/keys/me.key");
    minisign(&["-S", "-s", secret.to_str().unwrap(), "-m", "mine.wasm"]);
    assert!(sandbox.ok(["plugin", "add", "mine.wasm"]).contains("signed by me"));
    sandbox.ok(["plugin", "remove", "mine"]);
    minisign(&["-G", "-W", "-p", "its.pub", "-s", "its.key"]);
    minisign(&["-S", "-s", "its.key", "-m", "mine.wasm"]);
    assert!(sandbox.fails(["plugin", "add", "mine.wasm"]).contains("is not trusted"));
    sandbox.ok(["plugin", "keys", "trust", "its", "its.pub"]);
    assert!(sandbox.ok(["plugin", "add", "mine.wasm"]).contains("signed by its"));
}

#[test]
fn the_policy_holds_for_calls_and_benches_and_inspection_tells() {
    let sandbox = Sandbox::new();
    sandbox.write("mine.wasm", plugin("exact_match", "mine", "1.0.0"));
    let signer = |place: &str| {
        let said = sandbox.ok(["plugin", "inspect", place]);
        said.lines().find_map(|l| l.strip_prefix("  signer   ")).unwrap_or_else(|| panic!("no signer in {said}")).to_owned()
    };
    let signature = |place: &str| sandbox.json(["plugin", "inspect", place, "--json"])["signature"].clone();
    let run = ["plugin", "run", "mine.wasm", "--call", "scoring_version"];
    let bench = ["plugin", "bench", "mine.wasm", "--seconds", "0.01"];
    // Nothing is demanded.
    sandbox.ok(run);
    assert_eq!(signer("mine.wasm"), "not signed");
    assert_eq!(signature("mine.wasm"), serde_json::json!({"state": "missing", "required": false}));
    assert_eq!(signer("exact_match"), "none needed: it is part of the program");
    // From now on only what is signed.
    sandbox.write("home/.config/trainer/plugins.toml", "require_signatures = true\n");
    for args in [&run[..], &run[..3], &bench[..]] {
        let said = sandbox.fails(args);
        assert!(said.contains("mine.wasm: it has no signature, and signatures are required"), "{said}");
        assert!(said.contains("`trainer plugin sign FILE` signs what is yours"), "{said}");
    }
    assert_eq!(signer("mine.wasm"), "not signed; signatures are required, so it is not used");
    // Official plugins are part of the program.
    sandbox.ok(["plugin", "run", "exact_match", "--call", "scoring_version"]);
    let key = sandbox.json(["plugin", "keys", "generate", "me", "--json"]);
    let id = key["id"].as_str().unwrap();
    sandbox.ok(["plugin", "sign", "mine.wasm"]);
    sandbox.ok(run);
    sandbox.ok(bench);
    assert_eq!(signer("mine.wasm"), format!("signed by me ({id})"));
    assert_eq!(signature("mine.wasm"), serde_json::json!({"state": "good", "signed_by": "me", "id": id, "required": true}));
    // Installed ones too, by their names.
    sandbox.ok(["plugin", "add", "mine.wasm"]);
    sandbox.ok(["plugin", "run", "mine", "--call", "scoring_version"]);
    assert_eq!(signer("mine"), format!("signed by me ({id})"));
    // A signature of something else, one that is none, and one by a key that is not trusted.
    sandbox.write("mine.wasm", plugin("exact_match", "mine", "6.6.6"));
    let said = sandbox.fails(run);
    assert!(said.contains("claims to be by `me` and is not"), "{said}");
    assert!(signer("mine.wasm").starts_with("a BAD signature: it claims to be by me"), "{}", signer("mine.wasm"));
    assert_eq!(signature("mine.wasm")["state"], "bad");
    sandbox.write("mine.wasm.minisig", "nonsense");
    assert_eq!(signature("mine.wasm")["state"], "unreadable");
    assert!(sandbox.fails(bench).contains("its signature is no minisign signature"));
    sandbox.ok(["plugin", "keys", "remove", "me"]);
    assert_eq!(signature("mine"), serde_json::json!({"state": "untrusted", "id": id, "required": true}));
    assert!(sandbox.fails(["plugin", "run", "mine"]).contains("is not trusted"));
    // A demand that is not understood is none that is met; inspection shows it all the same.
    sandbox.write("home/.config/trainer/plugins.toml", "require_signature = true\n");
    assert!(sandbox.fails(run).contains("plugins.toml does not read"));
    assert!(signer("mine.wasm").contains("plugins.toml does not read"), "{}", signer("mine.wasm"));
    // A project's demand holds where the user has none.
    sandbox.write("home/.config/trainer/plugins.toml", "");
    sandbox.write("plugins.lock", "version = 1\nrequire_signatures = true\n");
    assert!(sandbox.fails(run).contains("its signature is no minisign signature"));
}

#[test]
fn ones_own_project_is_not_asked_for_signatures() {
    let sandbox = Sandbox::new();
    sandbox.write("home/.config/trainer/plugins.toml", "require_signatures = true\n");
    sandbox.ok(["plugin", "new", "mine", "--kind", "metric", "--lang", "rust"]);
    // A component that was built elsewhere stands for a build, which takes a compiler for each language.
    sandbox.write("mine/mine.wasm", plugin("exact_match", "mine", "0.1.0"));
    std::fs::remove_dir_all(sandbox.path("mine/tests")).unwrap();
    let said = shown(&sandbox.run(["plugin", "test", "mine"]));
    assert!(said.contains("0 cases and ") && !said.contains("signature"), "{said}");
    assert!(sandbox.fails(["plugin", "run", "mine/mine.wasm"]).contains("it has no signature"));
}
