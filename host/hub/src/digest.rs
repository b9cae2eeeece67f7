//! Checksums of files as hubs give them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::Digest as _;

use crate::listing::Digest;

/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

/// A file's digest of the same kind as another; none where there is nothing to compare with.
pub(crate) fn of_file(path: &Path, like: &Digest) -> io::Result<Option<String>> {
    let mut file = File::open(path)?;
    match like {
        Digest::Sha256(_) => sha256(&mut file).map(Some),
        Digest::GitSha1(_) => {
            let length = file.metadata()?.len();
            git_sha1(&mut file, length).map(Some)
        }
        Digest::Unknown => Ok(None),
    }
}

/// SHA-256 of all that a reader gives.
pub(crate) fn sha256(reader: &mut dyn Read) -> io::Result<String> {
    let mut hash = sha2::Sha256::new();
    feed(reader, |bytes| hash.update(bytes))?;
    Ok(hex(&hash.finalize()))
}

/// Git's name of a blob: SHA-1 over a small head and the content.
pub(crate) fn git_sha1(reader: &mut dyn Read, length: u64) -> io::Result<String> {
    let mut hash = sha1::Sha1::new();
    sha1::Digest::update(&mut hash, format!("blob {length}\0"));
    feed(reader, |bytes| sha1::Digest::update(&mut hash, bytes))?;
    Ok(hex(&sha1::Digest::finalize(hash)))
}

fn feed(reader: &mut dyn Read, mut eat: impl FnMut(&[u8])) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => eat(piece.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        assert_eq!(git_sha1(&mut &b"hello\n"[..], 6).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(git_sha1(&mut &b""[..], 0).unwrap(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(sha256(&mut &b"abc"[..]).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
