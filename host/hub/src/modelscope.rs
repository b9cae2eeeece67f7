//! What ModelScope's addresses answer.

use serde::Deserialize;

use crate::error::{HubError, variable};
use crate::http::{Ask, Client, Refusal, escape};
use crate::listing::{Digest, Listing, MAX_FILES, MAX_SIZE, RepoFile, is_hex};
use crate::name::{HubKind, RepoKind, RepoRef};

/// The largest list of files.
const LIMIT: u64 = 64 << 20;
/// Files on a page, where lists come in pages.
const PAGE: usize = 200;

/// What wraps every answer.
#[derive(Deserialize)]
pub(crate) struct Envelope<T> {
    #[serde(rename = "Code")]
    pub code: Option<i64>,
    #[serde(rename = "Success")]
    pub success: Option<bool>,
    #[serde(rename = "Message")]
    pub message: Option<String>,
    #[serde(rename = "Data")]
    pub data: Option<T>,
}

impl<T> Envelope<T> {
    /// The data; a refusal may come as a success of HTTP.
    pub(crate) fn open(self, client: &Client, what: &str) -> Result<T, HubError> {
        let message = self.message.unwrap_or_default();
        if self.success == Some(false) || self.code.is_some_and(|c| c != 200) {
            let message: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
            return Err(HubError::Status { server: client.server(), what: what.to_owned(), status: 200, message, wait: None });
        }
        self.data.ok_or_else(|| client.answer(what, "it has no Data".to_owned()))
    }
}

#[derive(Deserialize)]
struct Tree {
    #[serde(rename = "Files")]
    files: Option<Vec<Entry>>,
    #[serde(rename = "LatestCommitter")]
    latest: Option<Latest>,
}

#[derive(Deserialize)]
struct Latest {
    #[serde(rename = "Id")]
    id: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "Path")]
    path: String,
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(rename = "Size", default)]
    size: u64,
    #[serde(rename = "Sha256", default)]
    sha256: Option<String>,
}

/// The files of a revision.
pub(crate) fn listing(client: &Client, base: &str, repo: &RepoRef) -> Result<Listing, HubError> {
    let what = format!("the files of {}", repo.id);
    let revision = escape(repo.revision_or_main(), false);
    let (mut files, mut commit) = (Vec::new(), None);
    for page in 1.. {
        let address = match repo.kind {
            RepoKind::Model => format!("{base}/api/v1/models/{}/repo/files?Revision={revision}&Recursive=true", repo.id),
            RepoKind::Dataset => {
                format!("{base}/api/v1/datasets/{}/repo/tree?Revision={revision}&Recursive=True&PageNumber={page}&PageSize={PAGE}", repo.id)
            }
        };
        let (envelope, _): (Envelope<Tree>, _) = client.json(&Ask::get(&address, &what), LIMIT, &|r| explain(client, repo, r))?;
        let tree = envelope.open(client, &what)?;
        commit = commit.or(tree.latest.and_then(|l| l.id).filter(|id| is_hex(id, 40)));
        let entries = tree.files.unwrap_or_default();
        let last = repo.kind == RepoKind::Model || entries.len() < PAGE;
        for entry in entries.into_iter().filter(|e| e.kind != "tree") {
            let digest = match entry.sha256.as_deref() {
                Some("") | None => Digest::Unknown,
                Some(text) => {
                    Digest::sha256(text).ok_or_else(|| client.answer(&what, format!("the checksum of {:?} is none", entry.path)))?
                }
            };
            if entry.size > MAX_SIZE {
                return Err(client.answer(&what, format!("the size of {:?} is none", entry.path)));
            }
            files.push(RepoFile { path: entry.path, size: entry.size, digest, blob: None, xet: None });
        }
        if files.len() > MAX_FILES {
            return Err(client.answer(&what, format!("there are more than {MAX_FILES}")));
        }
        if last {
            break;
        }
    }
    Listing::new(&repo.to_string(), commit, files)
}

/// Where a file is.
pub(crate) fn file_url(base: &str, repo: &RepoRef, path: &str) -> String {
    let (plural, revision) = (repo.kind.plural(), escape(repo.revision_or_main(), false));
    format!("{base}/api/v1/{plural}/{}/repo?Revision={revision}&FilePath={}", repo.id, escape(path, false))
}

/// What a refusal means.
pub(crate) fn explain(client: &Client, repo: &RepoRef, refusal: &Refusal) -> Option<HubError> {
    if refusal.server != client.server() {
        // A storage, which knows nothing of repositories and tokens.
        return None;
    }
    let (status, with_token) = (refusal.status, client.has_token());
    let message = refusal.message();
    match status {
        404 if message.to_ascii_lowercase().contains("revision") => {
            Some(HubError::NoRevision { repo: repo.id.clone(), revision: repo.revision_or_main().to_owned() })
        }
        401 if with_token => Some(HubError::Token {
            server: refusal.server.clone(),
            variable: variable(HubKind::ModelScope),
            status,
            message,
            writes: false,
        }),
        401 | 403 | 404 => Some(HubError::NoRepository { repo: Box::new(repo.clone()), status, with_token }),
        _ => None,
    }
}
