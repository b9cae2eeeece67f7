//! Hugging Face's addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use serde_json::{Value, json};

use super::{Reply, Request, Shared, State, StoredFile, StoredRepo, git_blob, put_commit, sha256};

fn error(status: u16, code: &str, message: &str) -> Reply {
    let mut reply = Reply::json(status, &json!({ "error": message })).with("x-error-message", message);
    if !code.is_empty() {
        reply = reply.with("x-error-code", code);
    }
    reply
}

/// Who asks: nobody, or the holder of the token; anybody else is refused.
fn asker(state: &State, request: &Request) -> Result<bool, Reply> {
    match (request.headers.get("authorization"), &state.token) {
        (None, _) => Ok(false),
        (Some(given), Some(token)) if *given == format!("Bearer {token}") => Ok(true),
        (Some(_), Some(_)) => Err(error(401, "", "Invalid credentials in Authorization header")),
        (Some(_), None) => Ok(true),
    }
}

/// A repository that the asker may see.
fn find<'a>(state: &'a State, kind: &str, id: &str, known: bool) -> Result<&'a StoredRepo, Reply> {
    match state.repos.get(&(kind.to_owned(), id.to_owned())) {
        Some(repo) if known || !repo.private => Ok(repo),
        // What may not be seen is not there; without a token, even what is not there may be private.
        _ if known => Err(error(404, "RepoNotFound", "Repository not found")),
        _ => Err(error(401, "RepoNotFound", "Invalid username or password.")),
    }
}

pub(super) fn answer(shared: &Shared, request: &Request) -> Reply {
    let mut state = shared.state();
    let known = match asker(&state, request) {
        Ok(known) => known,
        Err(reply) => return reply,
    };
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["api", kind @ ("models" | "datasets"), org, name, rest @ ..]) => {
            look(&state, request, kind, &format!("{org}/{name}"), rest, known, &shared.hub.to_string())
        }
        (_, _) if request.method == "POST" && !known => error(401, "", "Invalid username or password."),
        ("POST", ["api", "repos", "create"]) => create(&mut state, &request.json()),
        ("POST", ["api", kind @ ("models" | "datasets"), org, name, "preupload", _]) => {
            preupload(&state, request, kind, &format!("{org}/{name}"))
        }
        ("POST", ["api", kind @ ("models" | "datasets"), org, name, "commit", branch]) => {
            commit(&mut state, request, kind, &format!("{org}/{name}"), branch)
        }
        ("POST", [.., _, name, "info", "lfs", "objects", "batch"]) if name.ends_with(".git") => batch(shared, &state, request),
        ("POST", ["complete", oid]) => complete(&mut state, request, oid),
        ("POST", ["verify"]) => {
            let (body, oid) = (request.json(), request.json()["oid"].as_str().unwrap_or_default().to_owned());
            let there = state.lfs.get(&oid).is_some_and(|b| Some(b.len() as u64) == body["size"].as_u64());
            Reply::empty(if there { 200 } else { 404 })
        }
        ("GET" | "HEAD", ["datasets", org, name, "resolve", revision, path @ ..]) => {
            resolve(shared, &state, "datasets", &format!("{org}/{name}"), revision, &path.join("/"), known)
        }
        ("GET" | "HEAD", [org, name, "resolve", revision, path @ ..]) => {
            resolve(shared, &state, "models", &format!("{org}/{name}"), revision, &path.join("/"), known)
        }
        _ => error(404, "", "Sorry, we can't find the page you are looking for."),
    }
}

fn look(state: &State, request: &Request, kind: &str, id: &str, rest: &[&str], known: bool, host: &str) -> Reply {
    let repo = match find(state, kind, id, known) {
        Ok(repo) => repo,
        Err(reply) => return reply,
    };
    let (question, revision) = match rest {
        [] => ("info", "main".to_owned()),
        ["revision", revision @ ..] => ("info", revision.join("/")),
        ["tree", revision, ..] => ("tree", (*revision).to_owned()),
        _ => return error(404, "", "no such address"),
    };
    let Some((sha, files)) = repo.resolve(&revision) else { return error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}")) };
    if question == "info" {
        let siblings: Vec<Value> = files.keys().map(|p| json!({ "rfilename": p })).collect();
        return Reply::json(
            200,
            &json!({ "_id": "1", "id": id, "modelId": id, "sha": sha, "private": repo.private, "gated": if repo.gated { json!("auto") } else { json!(false) },
                "disabled": false, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings }),
        );
    }
    let mut entries = Vec::new();
    let mut folders = std::collections::BTreeSet::new();
    for (path, file) in files {
        if let Some((folder, _)) = path.rsplit_once('/')
            && folders.insert(folder)
        {
            entries.push(json!({ "type": "directory", "oid": git_blob(folder.as_bytes()), "size": 0, "path": folder }));
        }
        let mut entry = json!({ "type": "file", "size": file.bytes.len(), "path": path, "oid": git_blob(&file.bytes) });
        if file.lfs {
            let (oid, size) = (sha256(&file.bytes), file.bytes.len());
            let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n");
            entry["oid"] = git_blob(pointer.as_bytes()).into();
            entry["lfs"] = json!({ "oid": oid, "size": size, "pointerSize": pointer.len() });
        }
        entries.push(entry);
    }
    let from: usize = request.asked("cursor").parse().unwrap_or(0);
    let page: Vec<Value> = entries.iter().skip(from).take(state.page).cloned().collect();
    let reply = Reply::json(200, &Value::Array(page));
    let next = from + state.page;
    if next >= entries.len() {
        return reply;
    }
    let address = format!("http://{host}/api/{kind}/{id}/tree/{revision}?recursive=true&expand=false&cursor={next}");
    reply.with("link", format!("<{address}>; rel=\"next\""))
}

fn resolve(shared: &Shared, state: &State, kind: &str, id: &str, revision: &str, path: &str, known: bool) -> Reply {
    let repo = match find(state, kind, id, known) {
        Ok(repo) => repo,
        Err(reply) => return reply,
    };
    let Some((sha, files)) = repo.resolve(revision) else { return error(404, "RevisionNotFound", "Invalid rev id") };
    if repo.gated && !known {
        return error(401, "GatedRepo", &format!("Access to model {id} is restricted. You must be authenticated to access it."));
    }
    let Some(file) = files.get(path) else { return error(404, "EntryNotFound", "Entry not found").with("x-repo-commit", sha) };
    if !file.lfs {
        return Reply { status: 200, headers: Vec::new(), body: Arc::clone(&file.bytes) }
            .with("x-repo-commit", sha)
            .with("etag", format!("\"{}\"", git_blob(&file.bytes)))
            .with("accept-ranges", "bytes");
    }
    let oid = sha256(&file.bytes);
    Reply { status: 302, headers: Vec::new(), body: Arc::new(b"Found. Redirecting".to_vec()) }
        .with("x-repo-commit", sha)
        .with("x-linked-etag", format!("\"{oid}\""))
        .with("x-linked-size", file.bytes.len().to_string())
        .with("etag", "\"something-else\"")
        .with("location", format!("http://{}/lfs/{oid}?Signature=secret-signature", shared.cdn))
}

fn create(state: &mut State, body: &Value) -> Reply {
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let kind = if text("type") == "dataset" { "datasets" } else { "models" };
    let id =
        if text("organization").is_empty() { format!("me/{}", text("name")) } else { format!("{}/{}", text("organization"), text("name")) };
    let key = (kind.to_owned(), id.clone());
    if state.repos.contains_key(&key) {
        return error(409, "", "You already created this model repo");
    }
    let private = body["private"].as_bool().unwrap_or(false) || text("visibility") == "private";
    state.repos.insert(key, StoredRepo { private, ..StoredRepo::default() });
    put_commit(state, kind, &id, BTreeMap::new(), Some("main"));
    Reply::json(200, &json!({ "url": format!("https://huggingface.co/{id}"), "name": id, "id": "1" }))
}

/// Which files are large: by their endings and sizes, as the hub's `.gitattributes` has it.
fn preupload(state: &State, request: &Request, kind: &str, id: &str) -> Reply {
    let Some(repo) = state.repos.get(&(kind.to_owned(), id.to_owned())) else { return error(404, "RepoNotFound", "Repository not found") };
    let there = repo.resolve("main").map(|(_, files)| files);
    let body = request.json();
    let files: Vec<Value> = body["files"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|file| {
            let path = file["path"].as_str().unwrap_or_default();
            let large = path.ends_with(".safetensors") || file["size"].as_u64().unwrap_or(0) > 10 << 20;
            let oid = there.and_then(|f| f.get(path)).map(|f| if f.lfs { sha256(&f.bytes) } else { git_blob(&f.bytes) });
            let mode = if large { "lfs" } else { "regular" };
            json!({ "path": path, "uploadMode": mode, "shouldIgnore": path.ends_with(".log"), "oid": oid })
        })
        .collect();
    Reply::json(200, &json!({ "files": files }))
}

fn batch(shared: &Shared, state: &State, request: &Request) -> Reply {
    let body = request.json();
    let objects: Vec<Value> = body["objects"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|object| {
            let (oid, size) = (object["oid"].as_str().unwrap_or_default(), object["size"].as_u64().unwrap_or(0) as usize);
            if state.lfs.contains_key(oid) {
                return json!({ "oid": oid, "size": size });
            }
            let address = format!("http://{}/upload/{oid}?Signature=secret-signature", shared.cdn);
            let verify = json!({ "href": format!("http://{}/verify", shared.hub) });
            if size <= state.chunk {
                return json!({ "oid": oid, "size": size, "authenticated": true, "actions": { "upload": { "href": address }, "verify": verify } });
            }
            let mut header = json!({ "chunk_size": state.chunk.to_string() });
            for part in 1..=size.div_ceil(state.chunk) {
                header[format!("{part:05}")] = format!("{address}&part={part}").into();
            }
            let complete = format!("http://{}/complete/{oid}", shared.hub);
            json!({ "oid": oid, "size": size, "authenticated": true, "actions": { "upload": { "href": complete, "header": header }, "verify": verify } })
        })
        .collect();
    Reply::json(200, &json!({ "transfer": "multipart", "objects": objects }))
}

fn complete(state: &mut State, request: &Request, oid: &str) -> Reply {
    let body = request.json();
    let mut whole = Vec::new();
    for (i, part) in body["parts"].as_array().into_iter().flatten().enumerate() {
        let number = part["partNumber"].as_u64().unwrap_or(0) as usize;
        let Some(bytes) = state.parts.get(&(oid.to_owned(), number)).filter(|_| number == i + 1) else {
            return error(400, "", "a part is missing");
        };
        if part["etag"].as_str().map(|e| e.trim_matches('"')) != Some(&git_blob(bytes)) {
            return error(400, "", "the tag of a part is wrong");
        }
        whole.extend_from_slice(bytes);
    }
    if sha256(&whole) != oid {
        return error(400, "", "the parts are not the object");
    }
    state.lfs.insert(oid.to_owned(), Arc::new(whole));
    Reply::json(200, &json!({}))
}

fn commit(state: &mut State, request: &Request, kind: &str, id: &str, branch: &str) -> Reply {
    let key = (kind.to_owned(), id.to_owned());
    let Some(repo) = state.repos.get(&key) else { return error(404, "RepoNotFound", "Repository not found") };
    let Some((parent, mut files)) = repo.resolve(branch).map(|(sha, files)| (sha.clone(), files.clone())) else {
        return error(404, "RevisionNotFound", "Invalid rev id");
    };
    for line in request.body.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        let Ok(line) = serde_json::from_slice::<Value>(line) else { return error(400, "", "a line is no JSON") };
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str() {
            Some("header") => {
                if value["parentCommit"].as_str().is_some_and(|p| p != parent) {
                    return error(412, "", "A commit has happened since. Please refresh and try again.");
                }
            }
            Some("file") => {
                let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(value["content"].as_str().unwrap_or_default()) else {
                    return error(400, "", "the content is no base64");
                };
                files.insert(path, StoredFile { bytes: Arc::new(bytes), lfs: false });
            }
            Some("lfsFile") => {
                let Some(bytes) = value["oid"].as_str().and_then(|oid| state.lfs.get(oid)) else {
                    return error(400, "", "the object was never sent");
                };
                files.insert(path, StoredFile { bytes: Arc::clone(bytes), lfs: true });
            }
            _ => return error(400, "", "what is this line?"),
        }
    }
    let sha = put_commit(state, kind, id, files, Some(branch));
    Reply::json(
        200,
        &json!({ "success": true, "commitOid": sha, "commitUrl": format!("https://huggingface.co/{id}/commit/{sha}"), "hookOutput": "" }),
    )
}

/// The CDN: large contents, and where they are sent.
pub(super) fn storage(shared: &Shared, request: &Request) -> Reply {
    let mut state = shared.state();
    let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    if request.asked("Signature") != "secret-signature" {
        return Reply::empty(403);
    }
    match (request.method.as_str(), parts.as_slice()) {
        ("GET" | "HEAD", ["lfs", oid]) => match state.lfs.get(*oid) {
            Some(bytes) => Reply { status: 200, headers: Vec::new(), body: Arc::clone(bytes) }
                .with("etag", format!("\"{oid}\""))
                .with("accept-ranges", "bytes"),
            None => Reply::empty(404),
        },
        ("PUT", ["upload", oid]) => {
            let bytes = request.body.clone();
            if let Ok(part) = request.asked("part").parse() {
                let tag = git_blob(&bytes);
                state.parts.insert(((*oid).to_owned(), part), bytes);
                return Reply::empty(200).with("etag", format!("\"{tag}\""));
            }
            if sha256(&bytes) != *oid {
                return Reply::empty(400);
            }
            state.lfs.insert((*oid).to_owned(), Arc::new(bytes));
            Reply::empty(200)
        }
        _ => Reply::empty(404),
    }
}
