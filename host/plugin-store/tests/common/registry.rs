//! Registries for tests: one in memory, with whatever goes wrong, and the Debian package `docker-registry`, a program that people run.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::server::{Reply, Request, Server, WrapStream};

/// Who may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Everybody,
    /// Name and password, in each request.
    Basic,
    /// A token that the registry's service gives for name and password.
    Token,
}

/// Name, password, and both as `Authorization` has them.
pub const NAME: &str = "tester";
pub const PASSWORD: &str = "s3cret-word";
const BASIC: &str = "Basic dGVzdGVyOnMzY3JldC13b3Jk";

/// An address of this machine that is not one of those that are spoken to by plain http.
pub const ANY: &str = "0.0.0.0";
/// The authority of the certificate of [`ANY`], in PEM.
pub const AUTHORITY: &str = include_str!("../tls/registry-ca.pem");

/// Docker's `config.json` with the credentials for a registry.
pub fn docker_config(registry: &str) -> String {
    format!(r#"{{"auths": {{"{registry}": {{"auth": "{}"}}}}}}"#, BASIC.trim_start_matches("Basic "))
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<String, Vec<u8>>,
    /// By `REPOSITORY:TAG` and `REPOSITORY@DIGEST`.
    manifests: BTreeMap<String, Vec<u8>>,
}

type Fault = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// A registry in memory. Contents of blobs come from a server on another port, as registries send to their stores.
pub struct Registry {
    pub server: Server,
    host: &'static str,
    pub store: Arc<Server>,
    state: Arc<Mutex<State>>,
    fault: Arc<Mutex<Option<Arc<Fault>>>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    trainer_plugin_store::Digest::of(bytes).to_string()
}

impl Registry {
    pub fn start(access: Access) -> Self {
        Self::wrapped(access, "127.0.0.1", "http", |mut stream, serve| serve(&mut stream))
    }

    /// At this address of the machine, with a stream around connections.
    pub fn wrapped(access: Access, host: &'static str, scheme: &'static str, wrap: impl WrapStream + Clone) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let fault: Arc<Mutex<Option<Arc<Fault>>>> = Arc::default();
        let blobs = Arc::clone(&state);
        let blob = move |request: &Request| {
            let state = blobs.lock().unwrap();
            state.blobs.get(request.path.trim_start_matches('/')).map_or(Reply::new(404), |b| Reply::ok(b.clone()))
        };
        let store = Arc::new(Server::wrapped(blob, wrap.clone()));
        let elsewhere = format!("{scheme}://{host}:{}", store.address.port());
        let (inner, faults) = (Arc::clone(&state), Arc::clone(&fault));
        let handle = move |request: &Request| {
            let fault = faults.lock().unwrap().clone();
            if let Some(reply) = fault.and_then(|f| f(request)) {
                return reply;
            }
            if let Some(reply) = refused(access, scheme, request) {
                return reply;
            }
            answer(&mut inner.lock().unwrap(), request, &elsewhere)
        };
        Self { server: Server::wrapped(handle, wrap), host, store, state, fault }
    }

    /// Host and port.
    pub fn name(&self) -> String {
        format!("{}:{}", self.host, self.server.address.port())
    }

    /// From now on, this is asked first.
    pub fn faulty(&self, fault: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) {
        *self.fault.lock().unwrap() = Some(Arc::new(fault));
    }

    /// Changes the bytes of a manifest under its tag.
    pub fn change_manifest(&self, tag: &str, change: impl FnOnce(&mut serde_json::Value)) {
        let mut state = self.state.lock().unwrap();
        let mut value = serde_json::from_slice(&state.manifests[tag]).unwrap();
        change(&mut value);
        state.manifests.insert(tag.to_owned(), value.to_string().into_bytes());
    }

    /// Puts other bytes under the digest of a blob.
    pub fn change_blob(&self, digest: &str, bytes: &[u8]) {
        assert!(self.state.lock().unwrap().blobs.insert(digest.to_owned(), bytes.to_vec()).is_some());
    }

    /// A manifest as JSON.
    pub fn manifest(&self, tag: &str) -> serde_json::Value {
        serde_json::from_slice(&self.state.lock().unwrap().manifests[tag]).unwrap()
    }
}

fn refused(access: Access, scheme: &str, request: &Request) -> Option<Reply> {
    let sent = request.headers.get("authorization").map_or("", String::as_str);
    let host = &request.headers["host"];
    if request.path == "/token" {
        let scope = request.query.get("scope").map_or("", String::as_str);
        return Some(if sent == BASIC && request.query.get("service").is_some_and(|s| s == "here") {
            Reply::ok(format!(r#"{{"token": "for-{scope}"}}"#))
        } else {
            Reply { body: br#"{"errors": [{"message": "wrong name or password"}]}"#.to_vec(), ..Reply::new(401) }
        });
    }
    let name = request.path.trim_start_matches("/v2/").split("/manifests/").next()?.split("/blobs/").next()?.split("/tags/").next()?;
    let writes = !matches!(request.method.as_str(), "GET" | "HEAD");
    let scope = format!("repository:{name}:{}", if writes { "pull,push" } else { "pull" });
    let may = match access {
        Access::Everybody => true,
        Access::Basic => sent == BASIC,
        Access::Token => sent == format!("Bearer for-{scope}") || sent == format!("Bearer for-repository:{name}:pull,push"),
    };
    let wants = match access {
        Access::Token => format!(r#"Bearer realm="{scheme}://{host}/token",service="here",scope="{scope}""#),
        _ => "Basic realm=\"here\"".to_owned(),
    };
    (!may).then(|| Reply::new(401).with("www-authenticate", wants))
}

fn answer(state: &mut State, request: &Request, store: &str) -> Reply {
    let rest = request.path.trim_start_matches("/v2/");
    if let Some((name, version)) = rest.split_once("/manifests/") {
        let key = if version.contains(':') { format!("{name}@{version}") } else { format!("{name}:{version}") };
        if request.method == "PUT" {
            let digest = sha256(&request.body);
            state.manifests.insert(format!("{name}@{digest}"), request.body.clone());
            state.manifests.insert(key, request.body.clone());
            return Reply::new(201).with("docker-content-digest", digest);
        }
        return match state.manifests.get(&key) {
            Some(bytes) => Reply::ok(bytes.clone()).with("content-type", "application/vnd.oci.image.manifest.v1+json"),
            None => {
                Reply { body: br#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}"#.to_vec(), ..Reply::new(404) }
            }
        };
    }
    if let Some((name, _)) = rest.split_once("/tags/list") {
        let tags: Vec<&str> = state.manifests.keys().filter_map(|k| k.strip_prefix(name)?.strip_prefix(':')).collect();
        // A page at a time.
        let from = request.query.get("last").map_or(0, |last| tags.iter().position(|t| t == last).unwrap() + 1);
        let page: Vec<&&str> = tags.get(from).into_iter().collect();
        let reply = Reply::ok(serde_json::json!({ "name": name, "tags": page }).to_string());
        return match tags.get(from) {
            Some(tag) if from + 1 < tags.len() => reply.with("link", format!("</v2/{name}/tags/list?last={tag}>; rel=\"next\"")),
            _ => reply,
        };
    }
    match (request.method.as_str(), rest.split_once("/blobs/")) {
        ("POST", Some((name, "uploads/"))) => Reply::new(202).with("location", format!("/v2/{name}/blobs/uploads/1?state=x")),
        ("PUT", Some((_, upload))) if upload.starts_with("uploads/1") && request.query.get("state").is_some_and(|s| s == "x") => {
            let digest = sha256(&request.body);
            if request.query.get("digest") != Some(&digest) {
                return Reply::new(400);
            }
            state.blobs.insert(digest, request.body.clone());
            Reply::new(201)
        }
        ("HEAD", Some((_, digest))) => Reply::new(if state.blobs.contains_key(digest) { 200 } else { 404 }),
        ("GET", Some((_, digest))) if state.blobs.contains_key(digest) => Reply::new(307).with("location", format!("{store}/{digest}")),
        _ => Reply::new(404),
    }
}

/// The program `docker-registry` with a folder of its own. It ends with the value.
pub struct RealRegistry {
    child: Child,
    name: String,
    _folder: tempfile::TempDir,
}

impl RealRegistry {
    pub fn start(access: Access) -> Self {
        Self::with(access, "127.0.0.1", "")
    }

    /// With TLS, at the one address of this machine that is spoken to in no other way, and whose certificate `tests/tls` has.
    pub fn start_tls(access: Access) -> Self {
        let tls = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(tls.path().join(name), text).unwrap();
            tls.path().join(name)
        };
        let certificate = file("certificate.pem", include_str!("../tls/registry.pem"));
        let key = file("key.pem", include_str!("../tls/registry.key.pem"));
        // They are read before the registry says where it listens.
        Self::with(access, ANY, &format!(", tls: {{certificate: {}, key: {}}}", certificate.display(), key.display()))
    }

    fn with(access: Access, host: &str, tls: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let auth = match access {
            Access::Everybody => String::new(),
            // Its tokens need a service of their own.
            Access::Token => unreachable!("the program has no service for tokens"),
            Access::Basic => {
                // bcrypt of PASSWORD.
                let line = "tester:$2b$04$9P1ef5qpVtCBmAf9/kJnse6GTlgchYNjciXVkMPRNi.SD8fR3OO22\n";
                std::fs::write(folder.path().join("htpasswd"), line).unwrap();
                format!("auth: {{htpasswd: {{realm: here, path: {}}}}}\n", folder.path().join("htpasswd").display())
            }
        };
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"{tls}}}\n{auth}",
            folder.path().join("data").display()
        );
        std::fs::write(folder.path().join("config.yml"), config).unwrap();
        let program = if Path::new("/usr/bin/docker-registry").exists() { "/usr/bin/docker-registry" } else { "docker-registry" };
        let mut child = Command::new(program)
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {program}, of the Debian package docker-registry: {e}"));
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut port = None;
        while port.is_none() {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "docker-registry ended");
            port = line.split_once("listening on 127.0.0.1:").map(|(_, rest)| rest.split(['"', ',']).next().unwrap().to_owned());
        }
        // Its log is read to the end, so that it never waits for a reader.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, name: format!("{host}:{}", port.unwrap()), _folder: folder }
    }

    /// Host and port.
    pub fn name(&self) -> String {
        self.name.clone()
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
