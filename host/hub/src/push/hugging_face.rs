//! Hugging Face's way: which files are large is asked, their contents go to its storage by Git LFS's batch interface, in parts if it says so, and one
//! commit names them all.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::digest;
use crate::error::{HubError, variable};
use crate::http::{Ask, Client, Content, Refusal, escape};
use crate::huggingface::explain;
use crate::name::{HubKind, RepoKind};
use crate::push::{PushFile, PushOptions, PushPlan, Pushed, object, public_repo};
use crate::watch::Watch;

/// The largest answer.
const LIMIT: u64 = 16 << 20;
/// Files that are asked about at a time.
const BATCH: usize = 256;
/// The largest file that a commit itself carries; the hub calls larger ones large.
const MAX_REGULAR: u64 = 20 << 20;
/// The most parts of a content.
const MAX_PARTS: u64 = 100_000;
/// Bytes that the hub looks at to see whether a file is text.
const SAMPLE: u64 = 512;

#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    private: bool,
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<Mode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
    oid: Option<String>,
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Deserialize)]
struct ObjectError {
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    header: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_oid: Option<String>,
}

/// A large file with its SHA-256.
struct Large<'a> {
    file: &'a PushFile,
    oid: String,
}

pub(super) fn push(client: &Client, base: &str, plan: &PushPlan, options: &PushOptions, watch: &dyn Watch) -> Result<Pushed, HubError> {
    let prefix = if plan.repo.kind == RepoKind::Dataset { "datasets/" } else { "" };
    let mut done = Pushed { page: format!("{base}/{prefix}{}", plan.repo.id), ..Pushed::default() };
    done.created = make(client, base, plan, options)?;
    let api = format!("{base}/api/{}/{}", plan.repo.kind.plural(), plan.repo.id);
    let branch = escape(plan.repo.revision_or_main(), false);
    let modes = modes(client, &format!("{api}/preupload/{branch}"), plan)?;

    let (mut large, mut regular) = (Vec::new(), Vec::new());
    for file in &plan.files {
        let mode = modes.get(&file.path);
        if mode.is_some_and(|m| m.should_ignore) {
            done.ignored.push(file.path.clone());
            continue;
        }
        let there = mode.and_then(|m| m.oid.as_deref());
        let mut reader = File::open(&file.local).map_err(HubError::io("open", &file.local))?;
        // An empty file cannot be a large one.
        if mode.is_some_and(|m| m.upload_mode == "lfs") && file.size > 0 {
            let oid = digest::sha256(&mut reader).map_err(HubError::io("read", &file.local))?;
            if there == Some(&oid) {
                done.unchanged += 1
            } else {
                large.push(Large { file, oid })
            }
            continue;
        }
        if file.size > MAX_REGULAR {
            let message = format!("the hub wants {} as a plain file, but it has more than 20 MiB", file.path);
            return Err(HubError::Push { folder: plan.folder.clone(), message });
        }
        let oid = digest::git_sha1(&mut reader, file.size).map_err(HubError::io("read", &file.local))?;
        if there == Some(&oid) { done.unchanged += 1 } else { regular.push(file) }
    }
    done.files = large.len() + regular.len();
    if done.files == 0 {
        return Ok(done);
    }
    done.sent = send(client, &format!("{base}/{prefix}{}.git/info/lfs/objects/batch", plan.repo.id), plan, &large, watch)?;

    let line = |key: &str, value: Value| format!("{}\n", json!({ "key": key, "value": value }));
    let mut body = line("header", json!({ "summary": options.message, "description": "" }));
    for file in regular {
        let bytes = std::fs::read(&file.local).map_err(HubError::io("read", &file.local))?;
        body.push_str(&line("file", json!({ "content": STANDARD.encode(bytes), "path": file.path, "encoding": "base64" })));
    }
    for Large { file, oid } in &large {
        body.push_str(&line("lfsFile", json!({ "path": file.path, "algo": "sha256", "oid": oid, "size": file.size })));
    }
    let headers = [("content-type", "application/x-ndjson")];
    let url = format!("{api}/commit/{branch}");
    let ask =
        Ask { method: "POST", url: &url, headers: &headers, content: Content::Bytes(body.as_bytes()), what: "the commit", brief: false };
    // Once: whether a commit was made although its answer was lost, nobody knows.
    let mut answer = client.once(&ask, &|r| refused(client, plan, r))?;
    let bytes = client.read(&mut answer, LIMIT, "the commit")?;
    let committed: Committed = serde_json::from_slice(&bytes).map_err(|e| client.answer("the commit", e.to_string()))?;
    done.commit = committed.commit_oid;
    Ok(done)
}

/// What a refusal to write means.
fn refused(client: &Client, plan: &PushPlan, refusal: &Refusal) -> Option<HubError> {
    match refusal.status {
        401 | 403 if refusal.server == client.server() => Some(HubError::Token {
            server: refusal.server.clone(),
            variable: variable(HubKind::HuggingFace),
            status: refusal.status,
            message: refusal.message(),
            writes: true,
        }),
        _ => explain(client, &plan.repo, refusal),
    }
}

/// Makes sure that the repository is there, and as private as it should be. Whether it was made.
fn make(client: &Client, base: &str, plan: &PushPlan, options: &PushOptions) -> Result<bool, HubError> {
    let url = format!("{base}/api/{}/{}", plan.repo.kind.plural(), plan.repo.id);
    match client.json::<Info>(&Ask::get(&url, "the repository"), LIMIT, &|r| explain(client, &plan.repo, r)) {
        Ok((info, _)) if !info.private && !options.public => return Err(public_repo(plan)),
        Ok(_) => return Ok(false),
        Err(HubError::NoRepository { .. }) => {}
        Err(error) => return Err(error),
    }
    let (owner, name) = plan.repo.id.split_once('/').unwrap_or(("", &plan.repo.id));
    let visibility = if options.public { "public" } else { "private" };
    let mut body = json!({ "name": name, "type": plan.repo.kind.name(), "private": !options.public, "visibility": visibility });
    if !owner.is_empty() {
        body["organization"] = owner.into();
    }
    post(client, &format!("{base}/api/repos/create"), &body, "the new repository", plan)?;
    Ok(true)
}

fn post(client: &Client, url: &str, body: &Value, what: &str, plan: &PushPlan) -> Result<Vec<u8>, HubError> {
    let body = body.to_string();
    let headers = [("content-type", "application/json")];
    let ask = Ask { method: "POST", url, headers: &headers, content: Content::Bytes(body.as_bytes()), what, brief: false };
    let mut answer = client.ask(&ask, &|r| refused(client, plan, r))?;
    client.read(&mut answer, LIMIT, what)
}

/// How the hub wants each file.
fn modes(client: &Client, url: &str, plan: &PushPlan) -> Result<HashMap<String, Mode>, HubError> {
    let mut all = HashMap::new();
    for files in plan.files.chunks(BATCH) {
        let mut list = Vec::new();
        for file in files {
            let mut sample = Vec::new();
            let read = File::open(&file.local).and_then(|f| f.take(SAMPLE).read_to_end(&mut sample));
            read.map_err(HubError::io("read", &file.local))?;
            list.push(json!({ "path": file.path, "sample": STANDARD.encode(sample), "size": file.size }));
        }
        let bytes = post(client, url, &json!({ "files": list }), "how files are to be sent", plan)?;
        let modes: Modes = serde_json::from_slice(&bytes).map_err(|e| client.answer("how files are to be sent", e.to_string()))?;
        all.extend(modes.files.into_iter().map(|m| (m.path.clone(), m)));
    }
    Ok(all)
}

/// Sends large contents that the hub does not have. Gives their bytes.
fn send(client: &Client, url: &str, plan: &PushPlan, large: &[Large<'_>], watch: &dyn Watch) -> Result<u64, HubError> {
    let headers = [("accept", "application/vnd.git-lfs+json"), ("content-type", "application/vnd.git-lfs+json")];
    let mut wanted: Vec<(&Large<'_>, Object)> = Vec::new();
    for files in large.chunks(BATCH) {
        // The same content under two names is sent once.
        let objects: BTreeMap<&str, u64> = files.iter().map(|l| (l.oid.as_str(), l.file.size)).collect();
        let objects: Vec<Value> = objects.iter().map(|(oid, size)| json!({ "oid": oid, "size": size })).collect();
        let body =
            json!({ "operation": "upload", "transfers": ["basic", "multipart"], "objects": objects, "hash_algo": "sha256" }).to_string();
        let what = "where contents are to be sent";
        let ask = Ask { method: "POST", url, headers: &headers, content: Content::Bytes(body.as_bytes()), what, brief: false };
        let (batch, _): (Batch, _) = client.json(&ask, LIMIT, &|r| refused(client, plan, r))?;
        for object in batch.objects {
            let Some(file) = files.iter().find(|l| l.oid == object.oid) else {
                return Err(client.answer(what, "it names a content that was not asked about".to_owned()));
            };
            if let Some(error) = object.error {
                let message = format!("the hub does not take {}: {}", file.file.path, error.message);
                return Err(HubError::Push { folder: plan.folder.clone(), message });
            }
            wanted.push((file, object));
        }
    }
    wanted.retain(|(_, o)| o.actions.as_ref().is_some_and(|a| a.upload.is_some()));
    let bytes = wanted.iter().map(|(l, _)| l.file.size).sum();
    if wanted.is_empty() {
        return Ok(0);
    }
    watch.begin(&plan.repo.to_string(), wanted.len(), bytes, 0);
    let sent = object::each(&wanted, &|(large, object)| {
        let Some(Actions { upload: Some(upload), verify }) = &object.actions else { return Ok(()) };
        upload_one(client, large, upload, watch)?;
        if let Some(verify) = verify {
            let body = json!({ "oid": large.oid, "size": large.file.size });
            post(client, &verify.href, &body, &format!("whether {} arrived", large.file.path), plan)?;
        }
        watch.file(&large.file.path, large.file.size);
        Ok(())
    });
    watch.end();
    sent.map(|()| bytes)
}

fn upload_one(client: &Client, large: &Large<'_>, action: &Action, watch: &dyn Watch) -> Result<(), HubError> {
    let what = format!("the content of {}", large.file.path);
    let size = large.file.size;
    let empty = BTreeMap::new();
    let header = action.header.as_ref().unwrap_or(&empty);
    let text = |v: &Value| v.as_str().map(str::to_owned).or_else(|| v.as_u64().map(|n| n.to_string()));
    let Some(chunk) = header.get("chunk_size").and_then(text) else {
        let pairs: Vec<(&str, &str)> = header.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))).collect();
        return object::put(client, &action.href, &pairs, large.file, (0, size), watch).map(drop);
    };
    let chunk: u64 =
        chunk.parse().ok().filter(|c| *c > 0).ok_or_else(|| client.answer(&what, "the size of its parts is none".to_owned()))?;
    let parts: BTreeMap<u64, &str> = header.iter().filter_map(|(k, v)| Some((k.parse().ok()?, v.as_str()?))).collect();
    let count = size.div_ceil(chunk);
    if count > MAX_PARTS || !parts.keys().copied().eq(1..=count) {
        return Err(client.answer(&what, format!("it wants {} parts of {chunk} bytes for {size} bytes", parts.len())));
    }
    let mut tags = Vec::new();
    for (number, url) in parts {
        let start = (number - 1).saturating_mul(chunk);
        let end = start.saturating_add(chunk).min(size);
        let answer = object::put(client, url, &[], large.file, (start, end), watch)?;
        let tag =
            answer.header("etag").filter(|t| !t.is_empty()).ok_or_else(|| client.answer(&what, format!("part {number} has no ETag")))?;
        tags.push(json!({ "partNumber": number, "etag": tag }));
    }
    let body = json!({ "oid": large.oid, "parts": tags }).to_string();
    let headers = [("accept", "application/vnd.git-lfs+json"), ("content-type", "application/vnd.git-lfs+json")];
    let ask =
        Ask { method: "POST", url: &action.href, headers: &headers, content: Content::Bytes(body.as_bytes()), what: &what, brief: false };
    client.ask(&ask, &|_| None).map(drop)
}
