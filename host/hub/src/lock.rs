//! A file lock that several processes agree on, these and the hubs' own packages: `flock` on an empty file.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::error::HubError;
use crate::watch::Watch;

/// A lock that is held until it is dropped, also by a process that is killed.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "it is held, not used")] File);

impl Lock {
    /// Waits for the lock; says so if it takes long.
    pub(crate) fn take(path: &Path, what: &str, watch: &dyn Watch) -> Result<Self, HubError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(HubError::io("create", folder))?;
        }
        loop {
            // Not truncated: another holder may be at it.
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(HubError::io("open the lock", path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    watch.note(&format!("waiting for another process that fetches {what}"));
                    file.lock().map_err(HubError::io("lock", path))?;
                }
                // A file system without locks: files still appear whole, only perhaps fetched twice.
                Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => return Ok(Self(file)),
                Err(TryLockError::Error(e)) => return Err(HubError::io("lock", path)(e)),
            }
            if still_there(&file, path) {
                return Ok(Self(file));
            }
        }
    }
}

/// Whether the locked file still has its name: others remove lock files when they are done with them.
#[cfg(unix)]
fn still_there(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    matches!((file.metadata(), std::fs::metadata(path)), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

#[cfg(not(unix))]
fn still_there(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::watch::Silent;

    #[test]
    fn one_at_a_time_even_if_the_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.lock");
        let (inside, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = Lock::take(&path, "x", &Silent).unwrap();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        // As filelock does before it lets go.
                        std::fs::remove_file(&path).unwrap();
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((most.into_inner(), done.into_inner()), (1, 400));
    }
}
