//! Who is told how a download goes.

/// Follows a download; called from several threads.
pub trait Watch: Sync {
    /// It begins: the repository, the files that are wanted, their bytes, and how many of these are there already.
    fn begin(&self, repo: &str, files: usize, bytes: u64, present: u64);
    /// So many bytes more are on disk.
    fn received(&self, bytes: u64);
    /// So many bytes were thrown away and will come again.
    fn lost(&self, bytes: u64);
    /// A file is complete and its checksum right.
    fn file(&self, path: &str, bytes: u64);
    /// Something a person should know, such as waiting for another process.
    fn note(&self, text: &str);
    /// It is over.
    fn end(&self);
}

/// Nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Watch for Silent {
    fn begin(&self, _: &str, _: usize, _: u64, _: u64) {}
    fn received(&self, _: u64) {}
    fn lost(&self, _: u64) {}
    fn file(&self, _: &str, _: u64) {}
    fn note(&self, _: &str) {}
    fn end(&self) {}
}
