//! ModelScope's way: which files are large is a rule, their contents go to presigned addresses, and one commit names them all.

use std::fs::File;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::digest;
use crate::error::{HubError, variable};
use crate::http::{Ask, Client, Content, Refusal, escape};
use crate::modelscope::{Envelope, explain, listing};
use crate::name::{HubKind, RepoKind};
use crate::push::{PushFile, PushOptions, PushPlan, Pushed, object, public_repo};
use crate::watch::Watch;
use crate::yaml::front_matter;

/// The largest answer.
const LIMIT: u64 = 16 << 20;
/// Contents that are asked about at a time.
const BATCH: usize = 100;
/// A file that is larger lies outside git.
const LARGE: u64 = 64 << 10;
/// Files that the hub itself reads, and that lie in git whatever their size.
const INLINE: [&str; 8] = [
    "readme.md",
    "config.json",
    "configuration.json",
    "configuration.yaml",
    "configuration.yml",
    "dataset_infos.json",
    ".gitattributes",
    ".gitignore",
];
/// Endings of files that lie outside git whatever their size.
const ENDINGS: [&str; 12] = ["safetensors", "bin", "gguf", "model", "parquet", "arrow", "npy", "npz", "pt", "pth", "zip", "wasm"];
/// The most that a commit itself carries.
const MAX_REGULAR: u64 = 20 << 20;
/// The hub's numbers for who may see a repository.
const PRIVATE: u64 = 1;
const PUBLIC: u64 = 5;

#[derive(Deserialize)]
struct Info {
    #[serde(rename = "Visibility")]
    visibility: Option<u64>,
}

#[derive(Deserialize)]
struct Batch {
    #[serde(default)]
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: Option<String>,
}

pub(super) fn push(client: &Client, base: &str, plan: &PushPlan, options: &PushOptions, watch: &dyn Watch) -> Result<Pushed, HubError> {
    if plan.repo.kind == RepoKind::Dataset {
        let message = "data sets are sent to Hugging Face only".to_owned();
        return Err(HubError::Push { folder: plan.folder.clone(), message });
    }
    let mut done = Pushed { page: format!("{base}/models/{}", plan.repo.id), ..Pushed::default() };
    done.created = make(client, base, plan, options)?;
    let there = listing(client, base, &plan.repo)?;
    let (mut large, mut regular, mut inline) = (Vec::new(), Vec::new(), 0);
    for file in &plan.files {
        let mut reader = File::open(&file.local).map_err(HubError::io("open", &file.local))?;
        let oid = digest::sha256(&mut reader).map_err(HubError::io("read", &file.local))?;
        if there.get(&file.path).is_some_and(|f| f.size == file.size && f.digest.hex() == Some(&oid)) {
            done.unchanged += 1;
        } else if is_large(file) {
            large.push((file, oid));
        } else {
            inline += file.size;
            regular.push(file);
        }
    }
    if inline > MAX_REGULAR {
        let message = "its small files are more than 20 MiB together".to_owned();
        return Err(HubError::Push { folder: plan.folder.clone(), message });
    }
    done.files = large.len() + regular.len();
    if done.files == 0 {
        return Ok(done);
    }
    let api = format!("{base}/api/v1/repos/models/{}", plan.repo.id);
    done.sent = send(client, &format!("{api}/info/lfs/objects/batch"), plan, &large, watch)?;
    let mut actions = Vec::new();
    for (file, oid) in &large {
        actions.push(json!({ "action": "create", "path": file.path, "type": "lfs", "size": file.size, "sha256": oid, "content": "", "encoding": "" }));
    }
    for file in regular {
        let content = STANDARD.encode(std::fs::read(&file.local).map_err(HubError::io("read", &file.local))?);
        actions.push(
            json!({ "action": "create", "path": file.path, "type": "normal", "size": file.size, "sha256": "", "content": content, "encoding": "base64" }),
        );
    }
    let url = format!("{api}/commit/{}", escape(plan.repo.revision_or_main(), false));
    let body = json!({ "commit_message": options.message, "actions": actions });
    // Once: whether a commit was made although its answer was lost, nobody knows.
    let data: Value = post(client, &url, &body, "the commit", plan, false)?;
    done.commit = ["oid", "Id", "CommitId"].iter().find_map(|k| data.get(k).and_then(Value::as_str)).map(str::to_owned);
    Ok(done)
}

fn is_large(file: &PushFile) -> bool {
    let name = file.path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let ending = name.rsplit_once('.').map_or("", |(_, e)| e);
    !INLINE.contains(&name.as_str()) && file.size > 0 && (file.size > LARGE || ENDINGS.contains(&ending))
}

fn refused(client: &Client, plan: &PushPlan, refusal: &Refusal) -> Option<HubError> {
    match refusal.status {
        401 | 403 if refusal.server == client.server() => Some(HubError::Token {
            server: refusal.server.clone(),
            variable: variable(HubKind::ModelScope),
            status: refusal.status,
            message: refusal.message(),
            writes: true,
        }),
        _ => explain(client, &plan.repo, refusal),
    }
}

fn post<T: serde::de::DeserializeOwned>(
    client: &Client,
    url: &str,
    body: &Value,
    what: &str,
    plan: &PushPlan,
    again: bool,
) -> Result<T, HubError> {
    let body = body.to_string();
    let headers = [("content-type", "application/json")];
    let ask = Ask { method: "POST", url, headers: &headers, content: Content::Bytes(body.as_bytes()), what, brief: false };
    let explain = |r: &Refusal| refused(client, plan, r);
    let mut answer = if again { client.ask(&ask, &explain)? } else { client.once(&ask, &explain)? };
    let bytes = client.read(&mut answer, LIMIT, what)?;
    let envelope: Envelope<T> = serde_json::from_slice(&bytes).map_err(|e| client.answer(what, e.to_string()))?;
    envelope.open(client, what)
}

/// Makes sure that the repository is there, and as private as it should be. Whether it was made.
fn make(client: &Client, base: &str, plan: &PushPlan, options: &PushOptions) -> Result<bool, HubError> {
    let url = format!("{base}/api/v1/models/{}", plan.repo.id);
    let what = "the repository";
    match client.json::<Envelope<Info>>(&Ask::get(&url, what), LIMIT, &|r| explain(client, &plan.repo, r)) {
        Ok((envelope, _)) => {
            let info = envelope.open(client, what)?;
            return if info.visibility != Some(PRIVATE) && !options.public { Err(public_repo(plan)) } else { Ok(false) };
        }
        Err(HubError::NoRepository { .. }) => {}
        Err(error) => return Err(error),
    }
    let (owner, name) = plan.repo.id.split_once('/').unwrap_or(("", &plan.repo.id));
    let visibility = if options.public { PUBLIC } else { PRIVATE };
    // The hub wants one; what the model card says, or what its own package sends.
    let license = license(plan).unwrap_or_else(|| "Apache-2.0".to_owned());
    let body = json!({ "Path": owner, "Name": name, "Visibility": visibility, "License": license });
    post::<Value>(client, &format!("{base}/api/v1/models"), &body, "the new repository", plan, true)?;
    Ok(true)
}

fn license(plan: &PushPlan) -> Option<String> {
    let card = std::fs::read_to_string(plan.folder.join("README.md")).ok()?;
    let head = front_matter(&card).ok()??;
    head.get("license")?.as_str().filter(|l| l.len() <= 64).map(str::to_owned)
}

/// Sends large contents that the hub does not have. Gives their bytes.
fn send(client: &Client, url: &str, plan: &PushPlan, large: &[(&PushFile, String)], watch: &dyn Watch) -> Result<u64, HubError> {
    let mut wanted: Vec<(&PushFile, String)> = Vec::new();
    for files in large.chunks(BATCH) {
        let objects: Vec<Value> = files.iter().map(|(file, oid)| json!({ "oid": oid, "size": file.size })).collect();
        let what = "where contents are to be sent";
        let batch: Batch = post(client, url, &json!({ "operation": "upload", "objects": objects }), what, plan, true)?;
        // What it does not mention it has.
        for object in batch.objects {
            let href = object.actions.and_then(|a| a.upload).and_then(|u| u.href);
            if let (Some((file, _)), Some(href)) = (files.iter().find(|(_, oid)| *oid == object.oid), href) {
                wanted.push((file, href));
            }
        }
    }
    let bytes = wanted.iter().map(|(f, _)| f.size).sum();
    if wanted.is_empty() {
        return Ok(0);
    }
    watch.begin(&plan.repo.to_string(), wanted.len(), bytes, 0);
    let sent = object::each(&wanted, &|(file, href)| {
        object::put(client, href, &[], file, (0, file.size), watch)?;
        watch.file(&file.path, file.size);
        Ok(())
    });
    watch.end();
    sent.map(|()| bytes)
}
