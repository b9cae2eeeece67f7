//! A hub for tests: Hugging Face's and ModelScope's protocols over repositories in memory, on this machine, with whatever faults a test wants.
//!
//! Large files are redirected to a second server on another port, as hubs redirect to their CDN. Nothing here knows the program; the hubs' own Python
//! packages work with it too.

mod hugging_face;
mod model_scope;
mod wire;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use wire::{Reply, Request};

/// What goes wrong with an answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status with these headers and this text in its place.
    Answer(u16, Vec<(String, String)>, String),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// The connection stays open after so many bytes, and nothing more comes until the hub ends or [`FakeHub::release`] is called.
    Stall(usize),
    /// A bit of the body is wrong.
    Flip,
    /// A range is asked for, and everything is sent.
    NoRanges,
    /// These headers in place of the answer's own.
    Headers(Vec<(String, String)>),
}

type Faults = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

/// A file in a repository.
#[derive(Clone)]
pub struct StoredFile {
    /// Its content.
    pub bytes: Arc<Vec<u8>>,
    /// Whether it lies outside git, by its SHA-256.
    pub lfs: bool,
}

/// A repository.
#[derive(Clone, Default)]
pub struct StoredRepo {
    /// Commits with all their files.
    pub commits: BTreeMap<String, BTreeMap<String, StoredFile>>,
    /// Branches.
    pub branches: BTreeMap<String, String>,
    /// Whether it takes a token to see it.
    pub private: bool,
    /// Whether it takes a token to read it, and the hub says so.
    pub gated: bool,
}

#[derive(Default)]
struct State {
    /// By kind (`models`, `datasets`) and id.
    repos: BTreeMap<(String, String), StoredRepo>,
    /// Large contents by SHA-256.
    lfs: BTreeMap<String, Arc<Vec<u8>>>,
    /// Parts of contents that are being sent.
    parts: BTreeMap<(String, usize), Vec<u8>>,
    requests: Vec<Request>,
    faults: Option<Arc<Faults>>,
    token: Option<String>,
    /// Files on a page of a list.
    page: usize,
    /// Contents larger than this are sent in parts of this size.
    chunk: usize,
}

struct Shared {
    state: Mutex<State>,
    hub: SocketAddr,
    cdn: SocketAddr,
    ends: AtomicBool,
    released: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hub, with its CDN on another port. It ends with the value.
pub struct FakeHub(Arc<Shared>);

impl Default for FakeHub {
    fn default() -> Self {
        Self::start()
    }
}

impl FakeHub {
    /// An empty hub at free ports of the loopback interface.
    pub fn start() -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, cdn) = (listen(), listen());
        let state = State { page: 1000, chunk: usize::MAX, ..State::default() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            hub: hub.local_addr().unwrap(),
            cdn: cdn.local_addr().unwrap(),
            ends: AtomicBool::new(false),
            released: AtomicBool::new(false),
        });
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if shared.ends.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    // A client that goes away is no failure of the test's: the test looks at what the client says.
                    std::thread::spawn(move || drop(stream.and_then(|s| serve(&shared, s, is_cdn))));
                }
            });
        }
        Self(shared)
    }

    /// The address that `HF_ENDPOINT` and `MODELSCOPE_ENDPOINT` take.
    pub fn url(&self) -> String {
        format!("http://{}", self.0.hub)
    }

    /// The address of the CDN.
    pub fn cdn(&self) -> String {
        format!("http://{}", self.0.cdn)
    }

    /// Adds a commit with exactly these files (path, content, whether it is a large file) to the main branch of a repository, of `models` or `datasets`.
    pub fn commit(&self, kind: &str, id: &str, files: &[(&str, Vec<u8>, bool)]) -> String {
        let files = files.iter().map(|(p, b, lfs)| ((*p).to_owned(), StoredFile { bytes: Arc::new(b.clone()), lfs: *lfs })).collect();
        let mut state = self.0.state();
        put_commit(&mut state, kind, id, files, None)
    }

    /// The same for everything in a folder; files of more than `large` bytes are large files.
    pub fn commit_folder(&self, kind: &str, id: &str, folder: &std::path::Path, large: usize) -> String {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            files.push((path.file_name().unwrap().to_str().unwrap().to_owned(), bytes));
        }
        let files: Vec<_> = files.iter().map(|(n, b)| (n.as_str(), b.clone(), b.len() > large)).collect();
        self.commit(kind, id, &files)
    }

    /// A repository as it is now.
    pub fn repo(&self, kind: &str, id: &str) -> Option<StoredRepo> {
        self.0.state().repos.get(&(kind.to_owned(), id.to_owned())).cloned()
    }

    /// Changes a repository.
    pub fn with_repo(&self, kind: &str, id: &str, change: impl FnOnce(&mut StoredRepo)) {
        change(self.0.state().repos.get_mut(&(kind.to_owned(), id.to_owned())).unwrap());
    }

    /// The only token that is taken, and that private and gated repositories and all writing need.
    pub fn token(&self, token: &str) {
        self.0.state().token = Some(token.to_owned());
    }

    /// Lists come in pages of so many files.
    pub fn pages_of(&self, files: usize) {
        self.0.state().page = files;
    }

    /// Contents of more than so many bytes are to be sent in parts of that size.
    pub fn parts_of(&self, bytes: usize) {
        self.0.state().chunk = bytes;
    }

    /// What goes wrong from now on; the last one wins.
    pub fn faults(&self, faults: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static) {
        self.0.state().faults = Some(Arc::new(faults));
    }

    /// Nothing goes wrong any more, and stalled answers go on.
    pub fn release(&self) {
        self.0.state().faults = None;
        self.0.released.store(true, Ordering::SeqCst);
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.0.state().requests.clone()
    }

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        self.0.state().requests.clear();
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.0.ends.store(true, Ordering::SeqCst);
        for address in [self.0.hub, self.0.cdn] {
            let _ = TcpStream::connect(address);
        }
    }
}

/// A commit with these files on a branch of a repository, which is made if it is not there.
fn put_commit(state: &mut State, kind: &str, id: &str, files: BTreeMap<String, StoredFile>, branch: Option<&str>) -> String {
    let mut text = format!("{kind} {id}\n");
    for (path, file) in &files {
        let hash = sha256(&file.bytes);
        text.push_str(&format!("{path} {hash}\n"));
        if file.lfs {
            state.lfs.insert(hash, Arc::clone(&file.bytes));
        }
    }
    let repo = state.repos.entry((kind.to_owned(), id.to_owned())).or_default();
    text.push_str(&repo.commits.len().to_string());
    let sha = sha1(text.as_bytes());
    repo.commits.insert(sha.clone(), files);
    let branches = branch.map_or_else(|| vec!["main", "master"], |b| vec![b]);
    for branch in branches {
        repo.branches.insert(branch.to_owned(), sha.clone());
    }
    sha
}

impl StoredRepo {
    /// The commit of a revision.
    pub fn resolve(&self, revision: &str) -> Option<(&String, &BTreeMap<String, StoredFile>)> {
        let sha = self.branches.get(revision).map_or(revision, String::as_str);
        self.commits.get_key_value(sha)
    }
}

fn serve(shared: &Shared, mut stream: TcpStream, is_cdn: bool) -> std::io::Result<()> {
    let request = wire::read(&mut stream, is_cdn)?;
    shared.state().requests.push(request.clone());
    let faults = shared.state().faults.clone();
    let fault = faults.and_then(|f| f(&request));
    let mut reply = match &fault {
        Some(Fault::Answer(status, headers, text)) => {
            Reply { status: *status, headers: headers.clone(), body: Arc::new(text.clone().into_bytes()) }
        }
        _ if is_cdn => hugging_face::storage(shared, &request),
        _ if request.path.starts_with("/api/v1/") => model_scope::answer(shared, &request),
        _ => hugging_face::answer(shared, &request),
    };
    if let Some(Fault::Headers(headers)) = &fault {
        for (name, value) in headers {
            reply.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
            reply.headers.push((name.clone(), value.clone()));
        }
    }
    wire::write(&mut stream, &request, reply, fault.as_ref(), &|| {
        shared.ends.load(Ordering::SeqCst) || shared.released.load(Ordering::SeqCst)
    })
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-1 in hexadecimal.
pub fn sha1(bytes: &[u8]) -> String {
    use sha1::Digest;
    sha1::Sha1::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Git's name of a blob.
pub fn git_blob(bytes: &[u8]) -> String {
    sha1(&[format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat())
}
