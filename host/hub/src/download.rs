//! Fetching one file: in pieces over several connections, going on where an earlier attempt stopped, and complete only when its checksum is right.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::digest;
use crate::error::HubError;
use crate::http::{Answer, Ask, Client, Content, Refusal};
use crate::listing::{Digest, RepoFile};
use crate::spans::{self, Journal};
use crate::watch::Watch;

/// Bytes of a request: large enough that its overhead does not count, small enough that every connection has work to the end.
const PIECE: u64 = 32 << 20;
/// Bytes that are read at a time.
const BUFFER: usize = 256 << 10;
/// Bytes after which the journal hears of them: what a killed process loses of each connection at most.
const NOTED: u64 = 4 << 20;
/// Failures in a row, without a byte in between, that end a piece.
const PATIENCE: u32 = 6;

/// Connections that all downloads of a process share.
#[derive(Debug)]
pub(crate) struct Connections {
    free: Mutex<usize>,
    freed: Condvar,
    most: usize,
}

impl Connections {
    pub(crate) fn new(most: usize) -> Self {
        Self { free: Mutex::new(most.max(1)), freed: Condvar::new(), most: most.max(1) }
    }

    fn take(&self) -> Held<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Held(self)
    }
}

struct Held<'a>(&'a Connections);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// A file to fetch.
pub(crate) struct Job<'a> {
    pub client: &'a Client,
    /// The repository, for messages.
    pub repo: &'a str,
    pub file: &'a RepoFile,
    /// Where it is.
    pub url: &'a str,
    /// What an answer of the hub must say about it, before a byte is believed.
    pub announced: &'a (dyn Fn(&Answer) -> Result<(), HubError> + Sync),
    /// What a refusal means.
    pub explain: &'a (dyn Fn(&Refusal) -> Option<HubError> + Sync),
    /// Where it grows.
    pub partial: &'a Path,
    /// Its journal.
    pub journal: &'a Path,
    /// Where it is in the end.
    pub target: &'a Path,
    pub connections: &'a Connections,
    pub watch: &'a dyn Watch,
}

/// Bytes of a file that are there from an earlier attempt.
pub(crate) fn begun(partial: &Path, journal: &Path, size: u64) -> u64 {
    let length = fs::metadata(partial).map_or(0, |about| about.len());
    if length == size { spans::look(journal, size).bytes() } else { 0 }
}

impl Job<'_> {
    /// Fetches the file. Whoever calls this holds its lock.
    pub(crate) fn run(&self) -> Result<(), HubError> {
        for folder in [self.partial, self.target].iter().filter_map(|p| p.parent()) {
            fs::create_dir_all(folder).map_err(HubError::io("create", folder))?;
        }
        // Bytes of an earlier attempt may be bad, such as after a power cut: then once more, from nothing.
        let earlier = begun(self.partial, self.journal, self.file.size) > 0;
        self.fetch()?;
        match self.check() {
            Err(error @ HubError::Checksum { .. }) if earlier => {
                self.watch.note(&format!("what an earlier attempt left of {} is broken; fetching all of it", self.file.path));
                tracing::warn!("{error}");
                self.watch.lost(self.file.size);
                self.fetch()?;
                self.check()?;
            }
            other => other?,
        }
        fs::rename(self.partial, self.target).map_err(HubError::io("rename to", self.target))?;
        // What is left of it is worth nothing.
        let _ = fs::remove_file(self.journal);
        self.watch.file(&self.file.path, self.file.size);
        Ok(())
    }

    /// Compares what came with what was announced; throws it away if it differs.
    fn check(&self) -> Result<(), HubError> {
        let file = File::open(self.partial).map_err(HubError::io("open", self.partial))?;
        file.sync_all().map_err(HubError::io("flush", self.partial))?;
        let expected = &self.file.digest;
        let found = digest::of_file(self.partial, expected).map_err(HubError::io("read", self.partial))?;
        let (Some(found), Some(wanted)) = (found, expected.hex()) else { return Ok(()) };
        if found == wanted {
            return Ok(());
        }
        self.discard();
        let algorithm = if matches!(expected, Digest::Sha256(_)) { "SHA-256" } else { "Git SHA-1" };
        let (repo, file) = (self.repo.to_owned(), self.file.path.clone());
        Err(HubError::Checksum { repo, file, algorithm, expected: wanted.to_owned(), found })
    }

    fn discard(&self) {
        // The journal first: bytes without it count for nothing.
        let _ = fs::remove_file(self.journal);
        let _ = fs::remove_file(self.partial);
    }

    /// Fetches what is missing.
    fn fetch(&self) -> Result<(), HubError> {
        let size = self.file.size;
        let write = |path: &Path| OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = write(self.partial).map_err(HubError::io("create", self.partial))?;
        let length = file.metadata().map_err(HubError::io("read", self.partial))?.len();
        if length != size {
            // The journal of a file that is not as long as it says is no truth.
            let _ = fs::remove_file(self.journal);
            file.set_len(size).map_err(HubError::io("resize", self.partial))?;
        }
        let (journal, there) = Journal::open(self.journal, size).map_err(HubError::io("write", self.journal))?;
        let pieces = there.missing(size, PIECE);
        let shared = Shared {
            pieces,
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            from: Mutex::default(),
        };
        let workers = shared.pieces.len().min(self.connections.most);
        let results: Vec<Result<(), HubError>> = std::thread::scope(|scope| {
            let work = || {
                let done = self.work(&shared, &journal);
                if done.is_err() {
                    shared.stop.store(true, Ordering::SeqCst);
                }
                done
            };
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
        });
        if shared.whole.load(Ordering::SeqCst) {
            // The server knows no ranges: all of it, from the front.
            drop(journal);
            self.watch.lost(begun(self.partial, self.journal, size));
            let _ = fs::remove_file(self.journal);
            return self.whole();
        }
        results.into_iter().collect()
    }

    /// Takes pieces until there are no more.
    fn work(&self, shared: &Shared, journal: &Journal) -> Result<(), HubError> {
        let mut file = OpenOptions::new().write(true).open(self.partial).map_err(HubError::io("open", self.partial))?;
        loop {
            let Some(&(mut at, end)) = shared.pieces.get(shared.next.fetch_add(1, Ordering::Relaxed)) else { return Ok(()) };
            let (mut failures, mut pause) = (0, Duration::from_millis(500));
            while at < end {
                if shared.stop.load(Ordering::SeqCst) {
                    return Ok(());
                }
                let held = self.connections.take();
                let before = at;
                let done = self.piece(shared, journal, &mut file, &mut at, end);
                drop(held);
                let Err(error) = done else { continue };
                if at > before {
                    (failures, pause) = (0, Duration::from_millis(500));
                }
                failures += 1;
                let Some(wanted) = error.again().filter(|_| failures < PATIENCE) else { return Err(error) };
                // Its signature may have run out.
                shared.forget();
                let wait = wanted.unwrap_or(pause);
                if wait > Duration::from_secs(90) {
                    return Err(error);
                }
                tracing::info!(seconds = wait.as_secs_f64(), "trying again: {error}");
                std::thread::sleep(wait);
                pause *= 2;
            }
        }
    }

    /// Fetches from `at` to `end`; `at` follows what is written and noted.
    fn piece(&self, shared: &Shared, journal: &Journal, file: &mut File, at: &mut u64, end: u64) -> Result<(), HubError> {
        let range = format!("bytes={at}-{}", end - 1);
        let headers = [("range", range.as_str())];
        // Where the hub has redirected to once: that saves a request for each piece.
        let known = shared.known();
        let url = known.as_deref().unwrap_or(self.url);
        let what = format!("{} of {}", self.file.path, self.repo);
        let ask = Ask { method: "GET", url, headers: &headers, content: Content::Nothing, what: &what, brief: false };
        let explain = |refusal: &Refusal| {
            if known.is_some() {
                // Not the hub, which knows its reasons, but where it has led to. It may lead elsewhere now.
                shared.forget();
                let (server, message) = (refusal.server.clone(), format!("it answered {}", refusal.status));
                return Some(HubError::Connect { server, message });
            }
            (self.explain)(refusal)
        };
        let mut answer = self.client.once(&ask, &explain)?;
        if known.is_none() {
            (self.announced)(&answer)?;
        }
        if answer.status == 200 {
            if *at == 0 && end == self.file.size {
                // The whole file was asked for.
                return self.pour(&mut answer, journal, file, at, end);
            }
            shared.whole.store(true, Ordering::SeqCst);
            shared.stop.store(true, Ordering::SeqCst);
            return Ok(());
        }
        let sent = answer.header("content-range").and_then(parse_content_range);
        if sent != Some((*at, end, self.file.size)) {
            let message = format!(
                "asked for bytes {at} to {end} of {}, it sends {:?}",
                self.file.size,
                answer.header("content-range").unwrap_or("others")
            );
            return Err(self.client.answer(&what, message));
        }
        if answer.first.is_some() {
            shared.remember(&answer.url);
        }
        self.pour(&mut answer, journal, file, at, end)
    }

    /// Writes a body to its place.
    fn pour(&self, answer: &mut Answer, journal: &Journal, file: &mut File, at: &mut u64, end: u64) -> Result<(), HubError> {
        let (start, length) = (*at, end - *at);
        let mut noted = start;
        let written = |e| HubError::io("write", self.partial)(e);
        file.seek(SeekFrom::Start(start)).map_err(written)?;
        let mut buffer = vec![0; BUFFER];
        // One byte more than is due, to see that no more comes.
        let mut reader = answer.body.as_reader().take(length.saturating_add(1));
        let failure = loop {
            match reader.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => {
                    if *at + n as u64 > end {
                        break Some(
                            self.client.answer(&self.file.path, format!("it is longer than the {} bytes announced", self.file.size)),
                        );
                    }
                    file.write_all(buffer.get(..n).unwrap_or_default()).map_err(written)?;
                    *at += n as u64;
                    self.watch.received(n as u64);
                    if *at - noted >= NOTED {
                        journal.add(noted, *at).map_err(HubError::io("write", self.journal))?;
                        noted = *at;
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => break Some(self.short(answer, *at - start, length, &e.to_string())),
            }
        };
        journal.add(noted, *at).map_err(HubError::io("write", self.journal))?;
        match failure {
            Some(error) => Err(error),
            None if *at < end => Err(self.short(answer, *at - start, length, "it was closed")),
            None => Ok(()),
        }
    }

    fn short(&self, answer: &Answer, received: u64, expected: u64, message: &str) -> HubError {
        let server = crate::http::Origin::of(&answer.url).map_or_else(|| self.client.server(), |o| o.to_string());
        HubError::Short { server, file: self.file.path.clone(), received, expected, message: message.to_owned() }
    }

    /// Fetches the file in one piece, from a server without ranges.
    fn whole(&self) -> Result<(), HubError> {
        let size = self.file.size;
        let what = format!("{} of {}", self.file.path, self.repo);
        crate::http::patiently(|| {
            let held = self.connections.take();
            let (journal, there) = Journal::open(self.journal, size).map_err(HubError::io("write", self.journal))?;
            self.watch.lost(there.bytes());
            drop(journal);
            let _ = fs::remove_file(self.journal);
            let (journal, _) = Journal::open(self.journal, size).map_err(HubError::io("write", self.journal))?;
            let mut file = OpenOptions::new().write(true).open(self.partial).map_err(HubError::io("open", self.partial))?;
            let mut answer = self.client.once(&Ask::get(self.url, &what), self.explain)?;
            (self.announced)(&answer)?;
            let mut at = 0;
            let done = self.pour(&mut answer, &journal, &mut file, &mut at, size);
            drop(held);
            done
        })
    }
}

/// What the workers of a file share.
struct Shared {
    pieces: Vec<(u64, u64)>,
    next: AtomicUsize,
    stop: AtomicBool,
    /// The server knows no ranges.
    whole: AtomicBool,
    /// Where the hub has redirected to.
    from: Mutex<Option<String>>,
}

impl Shared {
    fn known(&self) -> Option<String> {
        self.from.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, url: &str) {
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) = Some(url.to_owned());
    }

    fn forget(&self) {
        *self.from.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// `bytes 0-9/100` as start, end (exclusive) and size.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, last.trim().parse::<u64>().ok()?.checked_add(1)?, size.trim().parse().ok()?))
}

/// Bytes that are free for this user on the file system of a folder, or of the nearest one above it that is there.
pub(crate) fn free_space(folder: &Path) -> Option<(u64, PathBuf)> {
    let there = folder.ancestors().find(|f| f.is_dir()).unwrap_or(Path::new("."));
    #[cfg(unix)]
    {
        let about = rustix::fs::statvfs(there).ok()?;
        Some((about.f_bavail.saturating_mul(about.f_frsize), there.to_owned()))
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0, 10, 100)));
        for bad in ["bytes */100", "bytes 0-9/*", "0-9/100", "bytes 0-18446744073709551615/1", ""] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
        assert!(free_space(Path::new("/tmp/surely/not/there")).is_none_or(|(free, at)| free > 0 && at == Path::new("/tmp")));
    }
}
