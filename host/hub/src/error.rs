//! What can go wrong with a hub. Each message says what, where, and how to fix it; none has a token or a signed address in it.

use std::path::PathBuf;
use std::time::Duration;

use crate::name::{HubKind, RepoRef};
use crate::path::BadPath;
use crate::settings::SettingsError;

/// An error.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The environment does not read.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Something is not in the cache, and the network is not to be used.
    #[error("{repo} is not in the cache ({what} is missing in {cache}), and HF_HUB_OFFLINE forbids to ask the hub; unset it once, or run `trainer model pull` where there is a network", cache = cache.display())]
    Offline {
        /// The repository.
        repo: String,
        /// What is missing.
        what: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// The network is not to be used.
    #[error("HF_HUB_OFFLINE forbids to ask {server}; unset it")]
    NoNetwork {
        /// The server.
        server: String,
    },
    /// No answer.
    #[error(
        "cannot reach {server}: {message}\n  check the network, or set HF_ENDPOINT (MODELSCOPE_ENDPOINT) to a mirror, or HF_HUB_OFFLINE=1 to use what is cached"
    )]
    Connect {
        /// The server.
        server: String,
        /// What the system says.
        message: String,
    },
    /// No such repository, or one that the asker may not see.
    #[error("{hub} shows no {kind} {id} {who} ({status}): check the name{folder}; a private one needs a token in {variable}", hub = repo.hub.name(), kind = repo.kind.name(), id = repo.id, who = if *with_token { "to this token" } else { "without a token" }, variable = variable(repo.hub), folder = folder_hint(repo))]
    NoRepository {
        /// The repository.
        repo: Box<RepoRef>,
        /// HTTP's status.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// A repository whose terms must be accepted.
    #[error("{repo} is gated ({status}): accept its terms at {page}, then {action}", action = if *with_token { format!("check that the token in {} belongs to that account and may read gated repositories", variable(repo.hub)) } else { format!("set {} to a token of that account", variable(repo.hub)) })]
    Gated {
        /// The repository.
        repo: Box<RepoRef>,
        /// HTTP's status.
        status: u16,
        /// Where a person accepts them.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The token is refused.
    #[error("{server} refuses the token in {variable} ({status}): {message}; make a new one{rights}", rights = if *writes { " that may write to this repository" } else { "" })]
    Token {
        /// The server.
        server: String,
        /// Where the token was.
        variable: &'static str,
        /// HTTP's status.
        status: u16,
        /// What the server says.
        message: String,
        /// Whether something was to be written.
        writes: bool,
    },
    /// No token, but one is needed.
    #[error("writing to {hub} needs a token: set {variable}", hub = hub.name(), variable = variable(*hub))]
    NoToken {
        /// The hub.
        hub: HubKind,
    },
    /// No such revision.
    #[error("{repo} has no branch, tag or commit {revision:?}; its page on the hub lists what there is")]
    NoRevision {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// A file that must be there is not.
    #[error("{repo} has no {file}: {help}")]
    NoFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// What it would be for.
        help: String,
    },
    /// A split that a data set lacks.
    #[error("{repo} has no {what} `{name}`; there {are} {known}", are = if known.len() == 1 { "is" } else { "are" }, known = known.join(", "))]
    NoSplit {
        /// The data set.
        repo: String,
        /// `split` or `configuration`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// One of several must be chosen.
    #[error("{repo} has several {what}s: choose one of {known} by ?{key}=NAME", known = known.join(", "))]
    Choose {
        /// The data set.
        repo: String,
        /// `split` or `configuration`.
        what: &'static str,
        /// The option.
        key: &'static str,
        /// What there is.
        known: Vec<String>,
    },
    /// The card of a data set does not read.
    #[error("the README.md of {repo} does not say which files belong to a split: {message}")]
    Card {
        /// The data set.
        repo: String,
        /// What is wrong.
        message: String,
    },
    /// The server wants fewer requests.
    #[error("{server} wants {} before the next request (429); wait, or use a token, which raises the limit", wait.map_or_else(|| "a pause".to_owned(), |w| format!("a pause of {} s", w.as_secs())))]
    TooMany {
        /// The server.
        server: String,
        /// How long.
        wait: Option<Duration>,
    },
    /// Another refusal.
    #[error("{server} answered {status} to {what}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
    Status {
        /// The server.
        server: String,
        /// The request, without what may be secret.
        what: String,
        /// HTTP's status.
        status: u16,
        /// What the server says.
        message: String,
        /// How long it wants to be left alone.
        wait: Option<Duration>,
    },
    /// An answer that makes no sense.
    #[error(
        "{server} gave an answer to {what} that is none: {message}; if HF_ENDPOINT or MODELSCOPE_ENDPOINT is set, check that a hub is there, and no proxy's page in between"
    )]
    Answer {
        /// The server.
        server: String,
        /// The request.
        what: String,
        /// What is wrong.
        message: String,
    },
    /// A body ended early.
    #[error("the connection to {server} ended after {received} of {expected} bytes of {file}: {message}")]
    Short {
        /// The server.
        server: String,
        /// The file.
        file: String,
        /// Bytes that came.
        received: u64,
        /// Bytes that were expected.
        expected: u64,
        /// What the system says.
        message: String,
    },
    /// A path that may not be used.
    #[error("{repo}: {source}")]
    Path {
        /// The repository.
        repo: String,
        /// The path and why.
        source: BadPath,
    },
    /// What came is not what was announced.
    #[error(
        "{file} of {repo} is not what the hub announces: its {algorithm} is {found}, not {expected}; it was thrown away. Try again; if it stays so, what the hub serves is broken"
    )]
    Checksum {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
        /// `SHA-256`, or git's SHA-1.
        algorithm: &'static str,
        /// What was announced.
        expected: String,
        /// What came.
        found: String,
    },
    /// Not enough space.
    #[error("{repo} needs {} more in {folder}, where {} are free; free some, or set {variable} to a folder with more", size(*needed), size(*free), folder = folder.display())]
    NoSpace {
        /// The repository.
        repo: String,
        /// Where.
        folder: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// What says where the cache is.
        variable: &'static str,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A folder that cannot be pushed.
    #[error("{folder} cannot be pushed: {message}", folder = folder.display())]
    Push {
        /// The folder.
        folder: PathBuf,
        /// Why.
        message: String,
    },
}

impl HubError {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether another try may help, and after which pause if the server says so.
    pub(crate) fn again(&self) -> Option<Option<Duration>> {
        match self {
            Self::Connect { .. } | Self::Short { .. } => Some(None),
            Self::TooMany { wait, .. } => Some(*wait),
            Self::Status { status: 408 | 500 | 502 | 503 | 504, wait, .. } => Some(*wait),
            _ => None,
        }
    }

    /// Whether the hub is out of reach, so that what is cached must do.
    pub(crate) fn unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::NoNetwork { .. } | Self::Status { status: 500..=599, .. })
    }
}

/// Where a hub's token is looked for.
pub(crate) const fn variable(hub: HubKind) -> &'static str {
    match hub {
        HubKind::HuggingFace => "HF_TOKEN",
        HubKind::ModelScope => "MODELSCOPE_API_TOKEN",
    }
}

/// What says where a hub's cache is.
pub(crate) const fn cache_variable(hub: HubKind) -> &'static str {
    match hub {
        HubKind::HuggingFace => "HF_HUB_CACHE",
        HubKind::ModelScope => "MODELSCOPE_CACHE",
    }
}

/// A name without a scheme may be meant as a folder.
fn folder_hint(repo: &RepoRef) -> String {
    if repo.kind == crate::RepoKind::Model { format!(" (there is no folder {} either)", repo.id) } else { String::new() }
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
