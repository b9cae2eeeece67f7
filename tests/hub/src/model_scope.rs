//! ModelScope's addresses.

use std::sync::Arc;

use base64::Engine;
use serde_json::{Value, json};

use super::{Reply, Request, Shared, State, StoredFile, StoredRepo, put_commit, sha256};

fn error(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({ "Code": 10_010_205_001_i64, "Message": message, "RequestId": "1", "Success": false }))
}

fn data(value: Value) -> Reply {
    Reply::json(200, &json!({ "Code": 200, "Data": value, "Message": "success", "RequestId": "1", "Success": true }))
}

pub(super) fn answer(shared: &Shared, request: &Request) -> Reply {
    let mut state = shared.state();
    let given = request.headers.get("authorization").cloned();
    let known = match (&given, &state.token) {
        (Some(given), Some(token)) if *given != format!("Bearer {token}") => return error(401, "Invalid token"),
        (given, _) => given.is_some(),
    };
    let parts: Vec<&str> = request.path.trim_start_matches("/api/v1/").split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET" | "HEAD", [kind @ ("models" | "datasets"), owner, name, rest @ ..]) => {
            let id = format!("{owner}/{name}");
            let Some(repo) = state.repos.get(&((*kind).to_owned(), id.clone())).filter(|r| known || !r.private) else {
                return error(404, "Not found");
            };
            look(shared, &state, request, repo, rest)
        }
        (_, _) if !known => error(401, "Unauthorized"),
        ("POST", ["models"]) => {
            let body = request.json();
            let id = format!("{}/{}", body["Path"].as_str().unwrap_or_default(), body["Name"].as_str().unwrap_or_default());
            let key = ("models".to_owned(), id.clone());
            if state.repos.contains_key(&key) {
                return error(400, "the model already exists");
            }
            state.repos.insert(key, StoredRepo { private: body["Visibility"] == 1, ..StoredRepo::default() });
            put_commit(&mut state, "models", &id, Default::default(), Some("master"));
            data(json!({ "Name": id }))
        }
        ("POST", ["repos", _, _, _, "info", "lfs", "objects", "batch"]) => {
            let body = request.json();
            let new = |o: &&Value| !state.lfs.contains_key(o["oid"].as_str().unwrap_or_default());
            // What is there already is not mentioned.
            let objects: Vec<Value> = body["objects"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(new)
                .map(|o| {
                    let href = format!("http://{}/upload/{}?Signature=secret-signature", shared.cdn, o["oid"].as_str().unwrap_or_default());
                    json!({ "oid": o["oid"], "size": o["size"], "actions": { "upload": { "href": href } } })
                })
                .collect();
            data(json!({ "objects": objects }))
        }
        ("POST", ["repos", kind, owner, name, "commit", branch]) => commit(&mut state, request, kind, &format!("{owner}/{name}"), branch),
        _ => error(404, "no such address"),
    }
}

fn look(shared: &Shared, state: &State, request: &Request, repo: &StoredRepo, rest: &[&str]) -> Reply {
    let revision = match request.asked("Revision") {
        "" => "master",
        revision => revision,
    };
    if rest.is_empty() {
        return data(json!({ "Name": "x", "Visibility": if repo.private { 1 } else { 5 } }));
    }
    let Some((sha, files)) = repo.resolve(revision) else { return error(404, "revision not found") };
    match rest {
        ["repo", "files" | "tree"] => {
            let entry = |(path, file): (&String, &StoredFile)| {
                let name = path.rsplit_once('/').map_or(path.as_str(), |(_, n)| n);
                json!({ "Path": path, "Name": name, "Type": "blob", "Size": file.bytes.len(), "Sha256": sha256(&file.bytes), "IsLFS": file.lfs,
                    "Mode": "33188", "Revision": sha, "InCheck": false, "CommittedDate": 1_700_000_000, "CommitMessage": "x", "CommitterName": "x" })
            };
            let mut entries: Vec<Value> = files.iter().map(entry).collect();
            if rest[1] == "tree" {
                let (page, size) = (request.asked("PageNumber").parse().unwrap_or(1), request.asked("PageSize").parse().unwrap_or(50));
                entries = entries.into_iter().skip((page - 1) * size).take(size).collect();
            }
            data(json!({ "Files": entries, "IsVisual": 0, "LatestCommitter": { "Id": sha, "ShortId": &sha[..8], "Title": "x" } }))
        }
        ["repo"] => match files.get(request.asked("FilePath")) {
            None => error(404, "file not found"),
            Some(file) if file.lfs => {
                let oid = sha256(&file.bytes);
                Reply { status: 302, headers: Vec::new(), body: Arc::default() }
                    .with("location", format!("http://{}/lfs/{oid}?Signature=secret-signature", shared.cdn))
            }
            Some(file) => Reply { status: 200, headers: Vec::new(), body: Arc::clone(&file.bytes) },
        },
        ["revisions"] => {
            let branches: Vec<Value> = repo.branches.keys().map(|b| json!({ "Revision": b, "CreatedAt": 1 })).collect();
            data(json!({ "RevisionMap": { "Branches": branches, "Tags": [] } }))
        }
        _ => {
            let _ = state;
            error(404, "no such address")
        }
    }
}

fn commit(state: &mut State, request: &Request, kind: &str, id: &str, branch: &str) -> Reply {
    let Some(repo) = state.repos.get(&(kind.to_owned(), id.to_owned())) else { return error(404, "Not found") };
    let Some((_, files)) = repo.resolve(branch) else { return error(404, "revision not found") };
    let mut files = files.clone();
    for action in request.json()["actions"].as_array().into_iter().flatten() {
        let path = action["path"].as_str().unwrap_or_default().to_owned();
        let file = if action["type"] == "lfs" {
            let Some(bytes) = action["sha256"].as_str().and_then(|oid| state.lfs.get(oid)) else {
                return error(400, "the object was never sent");
            };
            StoredFile { bytes: Arc::clone(bytes), lfs: true }
        } else {
            let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(action["content"].as_str().unwrap_or_default()) else {
                return error(400, "the content is no base64");
            };
            StoredFile { bytes: Arc::new(bytes), lfs: false }
        };
        files.insert(path, file);
    }
    let sha = put_commit(state, kind, id, files, Some(branch));
    data(json!({ "oid": sha }))
}
