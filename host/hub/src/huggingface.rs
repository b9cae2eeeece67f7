//! What Hugging Face's addresses answer.

use serde::Deserialize;

use crate::error::{HubError, variable};
use crate::http::{Answer, Ask, Client, Origin, Refusal, escape, header};
use crate::listing::{Digest, Listing, MAX_FILES, MAX_SIZE, RepoFile, is_hex};
use crate::name::{HubKind, RepoKind, RepoRef};

/// The largest answer to a question about a repository: lists come in pages of a thousand files.
const LIMIT: u64 = 32 << 20;

#[derive(Deserialize)]
struct Info {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
    #[serde(rename = "xetHash")]
    xet: Option<String>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

/// The commit of a revision; `brief`: an old answer would do, so the hub is asked once.
pub(crate) fn commit(client: &Client, base: &str, repo: &RepoRef, brief: bool) -> Result<String, HubError> {
    let revision = repo.revision_or_main();
    let url = format!("{base}/api/{}/{}/revision/{}", repo.kind.plural(), repo.id, escape(revision, false));
    let what = format!("which commit {revision} of {} is", repo.id);
    let (info, _): (Info, _) = client.json(&Ask { brief, ..Ask::get(&url, &what) }, LIMIT, &|r| explain(client, repo, r))?;
    if !is_hex(&info.sha, 40) {
        return Err(client.answer(&what, format!("{:?} is no commit", info.sha.chars().take(80).collect::<String>())));
    }
    Ok(info.sha.to_ascii_lowercase())
}

/// The files of a commit.
pub(crate) fn listing(client: &Client, base: &str, repo: &RepoRef, commit: &str) -> Result<Listing, HubError> {
    let what = format!("the files of {}", repo.id);
    let mut url = format!("{base}/api/{}/{}/tree/{commit}?recursive=true&expand=false", repo.kind.plural(), repo.id);
    let mut files = Vec::new();
    loop {
        let (page, headers): (Vec<Entry>, _) = client.json(&Ask::get(&url, &what), LIMIT, &|r| explain(client, repo, r))?;
        let empty = page.is_empty();
        for entry in page {
            if entry.kind != "file" {
                continue;
            }
            let (digest, size) = match &entry.lfs {
                Some(lfs) => (Digest::sha256(&lfs.oid), lfs.size),
                None => (Digest::git(&entry.oid), entry.size),
            };
            let digest = digest
                .filter(|_| size <= MAX_SIZE)
                .ok_or_else(|| client.answer(&what, format!("the checksum or size of {:?} is none", entry.path)))?;
            files.push(RepoFile { path: entry.path, size, digest, blob: Some(entry.oid), xet: entry.xet });
        }
        if files.len() > MAX_FILES {
            return Err(client.answer(&what, format!("there are more than {MAX_FILES}")));
        }
        match header(&headers, "link").and_then(next_page) {
            // Only the same server is asked; and a page without entries would go on for ever.
            Some(next) if !empty && Origin::of(next).is_some() && Origin::of(next) == Origin::of(base) => url = next.to_owned(),
            Some(_) => return Err(client.answer(&what, "its next page is at another server, or there is no end of pages".to_owned())),
            None => return Listing::new(&repo.to_string(), Some(commit.to_owned()), files),
        }
    }
}

/// The address of the next page in a `Link` header.
fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|part| {
        let (address, about) = part.trim().split_once('>')?;
        about.contains("rel=\"next\"").then(|| address.strip_prefix('<')).flatten()
    })
}

/// Where a file is.
pub(crate) fn file_url(base: &str, repo: &RepoRef, commit: &str, path: &str) -> String {
    let prefix = if repo.kind == RepoKind::Dataset { "datasets/" } else { "" };
    format!("{base}/{prefix}{}/resolve/{commit}/{}", repo.id, escape(path, true))
}

/// Compares what the hub says about a file with the list of files.
pub(crate) fn announced(client: &Client, repo: &RepoRef, commit: &str, file: &RepoFile, answer: &Answer) -> Result<(), HubError> {
    let wrong = |message: String| Err(client.answer(&format!("{} of {repo}", file.path), message));
    if let Some(found) = answer.hub_header("x-repo-commit").filter(|c| *c != commit) {
        return wrong(format!("it is of commit {found:?}, not {commit}"));
    }
    let etag = answer.hub_header("x-linked-etag").or_else(|| answer.hub_header("etag")).map(etag);
    // Where it is no checksum, there is nothing to compare.
    if let (Some(found), Some(expected)) = (etag.filter(|e| is_hex(e, 40) || is_hex(e, 64)), file.digest.hex())
        && !found.eq_ignore_ascii_case(expected)
    {
        return wrong(format!("its checksum is {found}, not {expected}"));
    }
    match answer.hub_header("x-linked-size").map(str::parse::<u64>) {
        Some(Ok(size)) if size != file.size => wrong(format!("it has {size} bytes, not {}", file.size)),
        _ => Ok(()),
    }
}

fn etag(text: &str) -> &str {
    text.strip_prefix("W/").unwrap_or(text).trim_matches('"')
}

/// What a refusal means.
pub(crate) fn explain(client: &Client, repo: &RepoRef, refusal: &Refusal) -> Option<HubError> {
    let (status, with_token) = (refusal.status, client.has_token());
    if refusal.server != client.server() {
        // A storage, which knows nothing of repositories and tokens.
        return None;
    }
    let message = refusal.message();
    let bad_token = || HubError::Token {
        server: refusal.server.clone(),
        variable: variable(HubKind::HuggingFace),
        status,
        message: message.clone(),
        writes: false,
    };
    match (header(&refusal.headers, "x-error-code"), status) {
        (Some("RevisionNotFound"), _) => Some(HubError::NoRevision { repo: repo.id.clone(), revision: repo.revision_or_main().to_owned() }),
        (Some("GatedRepo"), _) => {
            let prefix = if repo.kind == RepoKind::Dataset { "datasets/" } else { "" };
            Some(HubError::Gated {
                page: format!("{}/{prefix}{}", client.server(), repo.id),
                repo: Box::new(repo.clone()),
                status,
                with_token,
            })
        }
        (Some("EntryNotFound"), _) => None,
        // Where the token is wrong, the hub says so; otherwise it hides what may not be seen.
        (_, 401 | 403) if with_token && message.to_ascii_lowercase().contains("credentials") => Some(bad_token()),
        (Some("RepoNotFound"), _) | (_, 401 | 404) => Some(HubError::NoRepository { repo: Box::new(repo.clone()), status, with_token }),
        (_, 403) => Some(bad_token()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_tags_read() {
        assert_eq!(next_page("<https://h/x?cursor=a>; rel=\"next\""), Some("https://h/x?cursor=a"));
        assert_eq!(next_page("<https://h/0>; rel=\"prev\", <https://h/2>; rel=\"next\""), Some("https://h/2"));
        assert_eq!(next_page("<https://h/0>; rel=\"prev\""), None);
        assert_eq!(next_page("nonsense"), None);
        assert_eq!((etag("W/\"abc\""), etag("\"abc\""), etag("abc")), ("abc", "abc", "abc"));
    }
}
