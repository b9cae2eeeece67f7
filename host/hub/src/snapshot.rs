//! A folder with files of a repository at one commit: found in the cache, or fetched into it.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::Deserialize;

use crate::cache::{Marker, Place, RepoCache};
use crate::digest;
use crate::download::{Connections, Job, begun, free_space};
use crate::error::{HubError, cache_variable};
use crate::http::Client;
use crate::listing::{Digest, Listing, RepoFile};
use crate::lock::Lock;
use crate::name::{HubKind, RepoRef, is_commit};
use crate::settings::Settings;
use crate::watch::{Silent, Watch};
use crate::{huggingface, modelscope};

/// Connections at a time: what hubs give one asker at full speed.
const CONNECTIONS: usize = 8;
/// Files at a time.
const FILES: usize = 4;
/// The largest text file that is fetched without being named.
const TEXT_LIMIT: u64 = 256 << 20;
/// Names of weights.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";
/// Weights in forms that are not read here, and archives: a repository often has the same weights in several.
const FOREIGN: [&str; 20] = [
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "gguf",
    "ggml",
    "tflite",
    "ot",
    "pkl",
    "pickle",
    "npz",
    "mlmodel",
    "zip",
    "tar",
    "gz",
    "pdparams",
];

/// Which files of a repository are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Configuration, tokenizer, chat template and whatever else is no weight, in the uppermost folder.
    Texts,
    /// These and the weights in safetensors: the one file, or those that the index names.
    Model,
    /// All.
    All,
    /// These.
    Paths(Vec<String>),
}

/// A file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its path in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// A folder with files of a repository.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The repository; its revision is the commit, where the hub says it.
    pub repo: RepoRef,
    /// The folder.
    pub dir: PathBuf,
    /// The files that were wanted, in ascending order of paths.
    pub files: Vec<SnapshotFile>,
    /// Bytes that had to be fetched.
    pub fetched: u64,
}

impl Snapshot {
    /// Bytes of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }
}

/// Both hubs with their caches. A branch is looked up once: what it is then, it stays as long as this value lives.
#[derive(Debug)]
pub struct Hub {
    pub(crate) settings: Settings,
    connections: Connections,
    clients: [OnceLock<Arc<Client>>; 2],
    resolved: Mutex<HashMap<RepoRef, Arc<Listing>>>,
}

/// A repository as it is now, or was when it was last asked for.
pub(crate) struct Opened {
    pub(crate) repo: RepoRef,
    cache: RepoCache,
    /// The name of its snapshot.
    pub(crate) key: String,
    pub(crate) listing: Arc<Listing>,
    /// Whether only the cache is looked at.
    cached: bool,
}

impl Hub {
    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, connections: Connections::new(CONNECTIONS), clients: Default::default(), resolved: Mutex::default() }
    }

    /// As the environment says.
    ///
    /// # Errors
    /// Settings that do not read.
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self::new(Settings::from_env()?))
    }

    pub(crate) fn client(&self, hub: HubKind) -> Result<Arc<Client>, HubError> {
        let [hugging_face, model_scope] = &self.clients;
        let slot = if hub == HubKind::HuggingFace { hugging_face } else { model_scope };
        if let Some(client) = slot.get() {
            return Ok(Arc::clone(client));
        }
        let endpoint = self.settings.endpoint(hub);
        let client = Client::new(&endpoint.url, endpoint.token.clone(), hub == HubKind::ModelScope, self.settings.offline)?;
        Ok(Arc::clone(slot.get_or_init(|| Arc::new(client))))
    }

    /// The wanted files of a repository.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn snapshot(&self, repo: &RepoRef, wanted: &Wanted, watch: &dyn Watch) -> Result<Snapshot, HubError> {
        let opened = self.open(repo, watch)?;
        self.fetch(&opened, wanted, watch)
    }

    /// Which files a repository has, at which commit.
    pub(crate) fn open(&self, repo: &RepoRef, watch: &dyn Watch) -> Result<Opened, HubError> {
        let repo = RepoRef { config: None, split: None, ..repo.clone() };
        let endpoint = self.settings.endpoint(repo.hub);
        let cache = RepoCache::new(&endpoint.cache, &repo);
        let known = self.resolved.lock().unwrap_or_else(PoisonError::into_inner).get(&repo).cloned();
        if let Some(listing) = known {
            let key = key_of(&repo, &listing);
            return Ok(Opened { repo, cache, key, listing, cached: false });
        }
        if self.settings.offline {
            return offline(repo, cache);
        }
        match self.ask(&repo, &cache) {
            Ok(listing) => {
                let listing = Arc::new(listing);
                self.resolved.lock().unwrap_or_else(PoisonError::into_inner).insert(repo.clone(), Arc::clone(&listing));
                let key = key_of(&repo, &listing);
                Ok(Opened { repo, cache, key, listing, cached: false })
            }
            Err(error) if error.unreachable() => {
                let Ok(opened) = offline(repo, cache) else { return Err(error) };
                watch.note(&format!("{error}\n  {} is taken from the cache as it was last seen ({})", opened.repo, opened.key));
                Ok(opened)
            }
            Err(error) => Err(error),
        }
    }

    fn ask(&self, repo: &RepoRef, cache: &RepoCache) -> Result<Listing, HubError> {
        let client = self.client(repo.hub)?;
        let base = &self.settings.endpoint(repo.hub).url;
        match repo.hub {
            HubKind::HuggingFace => {
                let revision = repo.revision_or_main();
                let brief = cache.commit(revision).is_some();
                let commit = if is_commit(revision) { revision.to_owned() } else { huggingface::commit(&client, base, repo, brief)? };
                let listing = match cache.listing(&commit) {
                    Some(listing) => listing,
                    None => {
                        let listing = huggingface::listing(&client, base, repo, &commit)?;
                        cache.keep_listing(&commit, &listing)?;
                        listing
                    }
                };
                cache.tag();
                cache.keep_commit(revision, &commit)?;
                Ok(listing)
            }
            HubKind::ModelScope => modelscope::listing(&client, base, repo),
        }
    }

    /// Fetches what is wanted and missing.
    pub(crate) fn fetch(&self, opened: &Opened, wanted: &Wanted, watch: &dyn Watch) -> Result<Snapshot, HubError> {
        let (files, index) = self.select(opened, wanted)?;
        let fetched = index + self.bring(opened, &files, watch)?;
        let mut repo = opened.repo.clone();
        if let Some(commit) = &opened.listing.commit {
            repo.revision = Some(commit.clone());
        }
        let files = files.iter().map(|f| SnapshotFile { path: f.path.clone(), size: f.size }).collect();
        Ok(Snapshot { repo, dir: opened.cache.snapshot(&opened.key), files, fetched })
    }

    /// The files that are wanted, and the bytes that had to be fetched to know them.
    pub(crate) fn select<'a>(&self, opened: &'a Opened, wanted: &Wanted) -> Result<(Vec<&'a RepoFile>, u64), HubError> {
        let listing = &opened.listing;
        let no_file = |file: &str, help: String| HubError::NoFile { repo: opened.repo.to_string(), file: file.to_owned(), help };
        let texts = |f: &&RepoFile| !f.path.contains('/') && !is_weights(&f.path) && f.size <= TEXT_LIMIT;
        match wanted {
            Wanted::All => Ok((listing.files.iter().collect(), 0)),
            Wanted::Texts => Ok((listing.files.iter().filter(texts).collect(), 0)),
            Wanted::Paths(paths) => {
                let find =
                    |p: &String| listing.get(p).ok_or_else(|| opened.missing(p).unwrap_or_else(|| no_file(p, "check its path".to_owned())));
                Ok((paths.iter().map(find).collect::<Result<_, _>>()?, 0))
            }
            Wanted::Model => {
                let (mut names, mut fetched) = (BTreeSet::new(), 0);
                if listing.get(SINGLE).is_some() {
                    names.insert(SINGLE.to_owned());
                } else if let Some(index) = listing.get(INDEX) {
                    fetched = self.bring(opened, &[index], &Silent)?;
                    names = shards(&opened.cache.snapshot(&opened.key).join(INDEX), &opened.repo)?;
                } else if listing.get(ADAPTER).is_some() {
                    names.insert(ADAPTER.to_owned());
                } else {
                    let others: Vec<&str> = listing.files.iter().map(|f| f.path.as_str()).filter(|p| is_weights(p)).take(3).collect();
                    let help = match others.as_slice() {
                        [] => "it is no model in the Hugging Face layout".to_owned(),
                        others => format!("weights are read as safetensors only, and it has {}", others.join(", ")),
                    };
                    return Err(opened.missing(SINGLE).unwrap_or_else(|| no_file(SINGLE, help)));
                }
                if let Some(lost) = names.iter().find(|n| listing.get(n).is_none()) {
                    return Err(opened.missing(lost).unwrap_or_else(|| no_file(lost, format!("{INDEX} names it"))));
                }
                Ok((listing.files.iter().filter(|f| texts(f) || names.contains(&f.path)).collect(), fetched))
            }
        }
    }

    /// Makes sure that files are in the snapshot. Gives the bytes that had to be fetched.
    fn bring(&self, opened: &Opened, files: &[&RepoFile], watch: &dyn Watch) -> Result<u64, HubError> {
        let name = opened.repo.to_string();
        let mut missing: Vec<(&RepoFile, Place)> = Vec::new();
        for file in files {
            let place = opened.cache.place(&opened.key, file);
            if !opened.is_there(file, &place)? {
                missing.push((file, place));
            }
        }
        let all: u64 = files.iter().map(|f| f.size).sum();
        if missing.is_empty() {
            return Ok(0);
        }
        if opened.cached {
            let what = missing.first().map(|(f, _)| f.path.clone()).unwrap_or_default();
            return Err(HubError::Offline { repo: name, what, cache: opened.cache.cache().to_owned() });
        }
        // Largest first: they take longest, and small ones fill the gaps.
        missing.sort_by_key(|(f, _)| std::cmp::Reverse(f.size));
        let mut seen = BTreeSet::new();
        let shared = |f: &RepoFile, p: &Place| opened.is_hugging_face() && p.has_content(f.size);
        let new = missing.iter().filter(|(f, p)| !shared(f, p) && seen.insert(&p.content));
        let needed: u64 = new.map(|(f, p)| f.size - begun(&p.partial, &p.journal, f.size).min(f.size)).sum();
        if let Some((free, _)) = free_space(opened.cache.cache()).filter(|(free, _)| *free < needed) {
            let (folder, variable) = (opened.cache.cache().to_owned(), cache_variable(opened.repo.hub));
            return Err(HubError::NoSpace { repo: name, folder, needed, free, variable });
        }
        watch.begin(&name, files.len(), all, all.saturating_sub(needed));
        let client = self.client(opened.repo.hub)?;
        let (next, fetched) = (AtomicUsize::new(0), AtomicU64::new(0));
        let work = || -> Result<(), HubError> {
            while let Some((file, place)) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                let done = self.bring_one(opened, &client, file, place, watch);
                match done {
                    Ok(bytes) => fetched.fetch_add(bytes, Ordering::Relaxed),
                    Err(error) => {
                        // The others finish what they are at, and begin nothing.
                        next.store(missing.len(), Ordering::Relaxed);
                        return Err(error);
                    }
                };
            }
            Ok(())
        };
        let results: Vec<Result<(), HubError>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..FILES.min(missing.len())).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        watch.end();
        results.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(fetched.into_inner())
    }

    fn bring_one(&self, opened: &Opened, client: &Client, file: &RepoFile, place: &Place, watch: &dyn Watch) -> Result<u64, HubError> {
        let _lock = Lock::take(&place.lock, &file.path, watch)?;
        let mut fetched = 0;
        // Another process may have been at it, or this one for another file of the same content.
        let content = if opened.is_hugging_face() { place.has_content(file.size) } else { opened.is_there(file, place)? };
        if !content {
            let repo = &opened.repo;
            let base = &self.settings.endpoint(repo.hub).url;
            let url = match repo.hub {
                HubKind::HuggingFace => huggingface::file_url(base, repo, &opened.key, &file.path),
                HubKind::ModelScope => modelscope::file_url(base, repo, &file.path),
            };
            let job = Job {
                client,
                repo: &repo.to_string(),
                file,
                url: &url,
                announced: &|answer| match repo.hub {
                    HubKind::HuggingFace => huggingface::announced(client, repo, &opened.key, file, answer),
                    HubKind::ModelScope => Ok(()),
                },
                explain: &|refusal| match repo.hub {
                    HubKind::HuggingFace => huggingface::explain(client, repo, refusal),
                    HubKind::ModelScope => modelscope::explain(client, repo, refusal),
                },
                partial: &place.partial,
                journal: &place.journal,
                target: &place.content,
                connections: &self.connections,
                watch,
            };
            fetched = file.size - begun(&place.partial, &place.journal, file.size).min(file.size);
            job.run()?;
            if let Some(marker) = file.digest.hex().filter(|_| !opened.is_hugging_face()).and_then(|d| Marker::of(&place.content, d)) {
                marker.keep(&place.checked);
            }
        }
        if !place.is_shown(file.size) {
            place.show()?;
        }
        Ok(fetched)
    }
}

impl Opened {
    fn is_hugging_face(&self) -> bool {
        self.repo.hub == HubKind::HuggingFace
    }

    /// Whether a file is in the snapshot. What is in one of Hugging Face's never changes. In ModelScope's it may be of an earlier commit, so that its
    /// checksum counts, not its length alone.
    fn is_there(&self, file: &RepoFile, place: &Place) -> Result<bool, HubError> {
        if !place.is_shown(file.size) {
            return Ok(false);
        }
        if self.is_hugging_face() || file.digest == Digest::Unknown {
            return Ok(true);
        }
        let wanted = file.digest.hex().unwrap_or_default();
        let before = Marker::of(&place.content, wanted);
        if before.is_some() && before == Marker::read(&place.checked) {
            return Ok(true);
        }
        let found = digest::of_file(&place.content, &file.digest).map_err(HubError::io("read", &place.content))?;
        let right = found.as_deref() == Some(wanted);
        // Only what did not change while it was read.
        if let Some(marker) = before.filter(|b| right && Marker::of(&place.content, wanted).as_ref() == Some(b)) {
            marker.keep(&place.checked);
        }
        Ok(right)
    }

    /// What a missing file means where only the cache is looked at.
    pub(crate) fn missing(&self, what: &str) -> Option<HubError> {
        let cache = self.cache.cache().to_owned();
        self.cached.then(|| HubError::Offline { repo: self.repo.to_string(), what: what.to_owned(), cache })
    }
}

/// The name of a snapshot.
fn key_of(repo: &RepoRef, listing: &Listing) -> String {
    match (repo.hub, &listing.commit) {
        (HubKind::HuggingFace, Some(commit)) => commit.clone(),
        _ => repo.revision_or_main().to_owned(),
    }
}

/// A repository as the cache has it.
fn offline(repo: RepoRef, cache: RepoCache) -> Result<Opened, HubError> {
    let lost = |what: &str| HubError::Offline { repo: repo.to_string(), what: what.to_owned(), cache: cache.cache().to_owned() };
    let key = match repo.hub {
        HubKind::HuggingFace => cache.commit(repo.revision_or_main()).ok_or_else(|| lost("the commit of its revision"))?,
        HubKind::ModelScope => repo.revision_or_main().to_owned(),
    };
    let listing = cache.listing(&key).unwrap_or_else(|| cache.present(&key));
    if listing.files.is_empty() {
        return Err(lost("every file"));
    }
    Ok(Opened { repo, cache, key, listing: Arc::new(listing), cached: true })
}

pub(crate) fn is_weights(path: &str) -> bool {
    let ending = path.rsplit_once('.').map_or("", |(_, e)| e).to_ascii_lowercase();
    ending == "safetensors" || FOREIGN.contains(&ending.as_str())
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// The files that an index names.
fn shards(path: &Path, repo: &RepoRef) -> Result<BTreeSet<String>, HubError> {
    let bytes = std::fs::read(path).map_err(HubError::io("read", path))?;
    let wrong = |help: String| HubError::NoFile { repo: repo.to_string(), file: format!("{INDEX} that reads"), help };
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    for name in &names {
        crate::path::check(name).map_err(|source| HubError::Path { repo: repo.to_string(), source })?;
    }
    if names.is_empty() { Err(wrong("it names no file".to_owned())) } else { Ok(names) }
}
