//! Files and folders that are either complete on disk or not there, whenever the power fails.
//!
//! The order is always the same: write under another name in the same folder, flush the content to the device, rename (atomic on POSIX),
//! flush the folder that holds the name.

use crate::{ModelError, Result};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a file durably: afterwards `path` has exactly these bytes, and at any instant before it is as it was.
///
/// # Errors
/// What the operating system refuses; the file is as it was then.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = parent(path);
    let mut builder = tempfile::Builder::new();
    let mut temporary = shared(builder.prefix(".tmp-"), 0o666).tempfile_in(&folder).map_err(ModelError::io("create a file in", &folder))?;
    let file = temporary.as_file_mut();
    file.write_all(bytes).map_err(ModelError::io("write", path))?;
    file.sync_all().map_err(ModelError::io("flush", path))?;
    temporary.persist(path).map_err(|e| ModelError::Io { action: "rename to", path: path.to_path_buf(), source: e.error })?;
    sync_folder(&folder)
}

/// Makes a folder that was filled under a temporary name appear durably under its own: flushes every file and folder in `temporary`,
/// renames it to `target` and flushes the folder that holds both.
///
/// Both must be in the same file system; best beside each other. An existing `target` must be empty or absent.
///
/// # Errors
/// What the operating system refuses. Before the rename `temporary` stays as it is; after it `target` is complete.
pub fn commit_dir(temporary: &Path, target: &Path) -> Result<()> {
    sync_tree(temporary)?;
    fs::rename(temporary, target).map_err(ModelError::io("rename to", target))?;
    let folder = parent(target);
    sync_folder(&folder)?;
    let before = parent(temporary);
    if before != folder {
        sync_folder(&before)?;
    }
    Ok(())
}

/// Creates a folder and those above it, each durably.
///
/// # Errors
/// What the operating system refuses.
pub fn create_dir_all(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    if above != path {
        create_dir_all(&above)?;
    }
    match fs::create_dir(path) {
        Ok(()) => sync_folder(&above),
        // Another process may have been faster.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(ModelError::Io { action: "create", path: path.to_path_buf(), source: e }),
    }
}

/// Flushes the names in a folder to the device. Windows has no such operation.
///
/// # Errors
/// What the operating system refuses.
pub fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(ModelError::io("flush", folder))?;
    }
    Ok(())
}

/// Flushes all files below a folder, then the folders from the inside out.
fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(ModelError::io("list", folder))? {
        let entry = entry.map_err(ModelError::io("list", folder))?;
        let path = entry.path();
        let kind = entry.file_type().map_err(ModelError::io("read", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            File::open(&path).and_then(|f| f.sync_all()).map_err(ModelError::io("flush", &path))?;
        }
    }
    sync_folder(folder)
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        Some(_) => PathBuf::from("."),
        None => path.to_path_buf(),
    }
}

/// Temporary files and folders are private by default; what is written for the user gets the permissions that the umask allows.
#[cfg(unix)]
fn shared<'a, 'b>(builder: &'a mut tempfile::Builder<'b, 'b>, mode: u32) -> &'a mut tempfile::Builder<'b, 'b> {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn shared<'a, 'b>(builder: &'a mut tempfile::Builder<'b, 'b>, _: u32) -> &'a mut tempfile::Builder<'b, 'b> {
    builder
}

/// A temporary folder beside `target`, for [`commit_dir`]; it is removed when dropped unless it was committed.
///
/// # Errors
/// What the operating system refuses.
pub fn temporary_beside(target: &Path) -> Result<tempfile::TempDir> {
    let folder = parent(target);
    create_dir_all(&folder)?;
    let mut builder = tempfile::Builder::new();
    shared(builder.prefix(".tmp-"), 0o777).tempdir_in(&folder).map_err(ModelError::io("create a folder in", &folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two, longer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two, longer");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_atomic(&dir.path().join("absent/file"), b"x").is_err());
    }

    #[test]
    fn a_folder_appears_complete_and_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let (temporary, target) = (dir.path().join("tmp"), dir.path().join("step-1"));
        fs::create_dir_all(temporary.join("inner")).unwrap();
        fs::write(temporary.join("inner/a"), b"a").unwrap();
        commit_dir(&temporary, &target).unwrap();
        assert_eq!(fs::read(target.join("inner/a")).unwrap(), b"a");
        assert!(!temporary.exists());
        create_dir_all(&temporary).unwrap();
        assert!(commit_dir(&temporary, &target).is_err(), "a complete folder must not be replaced");
        assert!(temporary.exists() && target.join("inner/a").exists());
    }

    #[test]
    fn folders_are_made_with_those_above_them() {
        let dir = tempfile::tempdir().unwrap();
        create_dir_all(&dir.path().join("a/b/c")).unwrap();
        create_dir_all(&dir.path().join("a/b/c")).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        fs::write(dir.path().join("f"), b"").unwrap();
        assert!(create_dir_all(&dir.path().join("f/g")).is_err());
    }
}
