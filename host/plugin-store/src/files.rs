//! Files that appear whole or not at all, and a lock between processes.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use crate::StoreError;

/// Writes a file under its name only when it is whole and on the disk. `private`: only the user may read it.
pub(crate) fn write(path: &Path, bytes: &[u8], private: bool) -> Result<(), StoreError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    let failed = StoreError::io("write", path);
    let work = || -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".incomplete-").tempfile_in(folder)?;
        #[cfg(unix)]
        if !private {
            use std::os::unix::fs::PermissionsExt;
            // A temporary file is the user's alone; others may read what is no secret, such as a project's pins.
            file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
        }
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        // The name is on the disk when the folder is.
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        Ok(())
    };
    work().map_err(failed)
}

/// Reads a file of at most `limit` bytes; `None` if there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|f| f.take(limit.saturating_add(1)).read_to_end(&mut bytes)) {
        Ok(_) if bytes.len() as u64 > limit => {
            Err(StoreError::Broken { path: path.to_owned(), message: format!("it is larger than {limit} bytes") })
        }
        Ok(_) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("read", path)(e)),
    }
}

/// The same for text.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<Option<String>, StoreError> {
    let Some(bytes) = read(path, limit)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| StoreError::Broken { path: path.to_owned(), message: "it is not UTF-8".to_owned() })
}

/// A lock that one process has at a time, held until it is dropped, also by a process that is killed.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "it is held, not used")] File);

impl Lock {
    /// Waits for the lock. The file stays.
    pub(crate) fn take(path: &Path) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(StoreError::io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                tracing::info!("waiting for another process that changes the store of plugins");
                file.lock().map_err(StoreError::io("lock", path))?;
            }
            // A file system without locks: files still appear whole.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", path)(e)),
        }
        Ok(Self(file))
    }
}
