//! Sending one large content to where a hub wants it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::error::HubError;
use crate::http::{Answer, Ask, Client, Content, patiently};
use crate::push::PushFile;
use crate::watch::Watch;

/// Contents at a time.
const AT_ONCE: usize = 4;

/// A reader that tells how far it is.
struct Counted<'a> {
    inner: io::Take<File>,
    count: &'a AtomicU64,
    watch: &'a dyn Watch,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.count.fetch_add(n as u64, Ordering::Relaxed);
        self.watch.received(n as u64);
        Ok(n)
    }
}

/// Sends bytes of a file, again if the server is busy.
pub(super) fn put(
    client: &Client,
    url: &str,
    headers: &[(&str, &str)],
    file: &PushFile,
    span: (u64, u64),
    watch: &dyn Watch,
) -> Result<Answer, HubError> {
    let (start, length) = (span.0, span.1.saturating_sub(span.0));
    let what = format!("the content of {}", file.path);
    patiently(|| {
        let count = AtomicU64::new(0);
        let open = || -> io::Result<Box<dyn Read + '_>> {
            let mut inner = File::open(&file.local)?;
            if inner.metadata()?.len() != file.size {
                return Err(io::Error::other("the file has changed since it was listed"));
            }
            inner.seek(SeekFrom::Start(start))?;
            Ok(Box::new(Counted { inner: inner.take(length), count: &count, watch }))
        };
        let ask = Ask { method: "PUT", url, headers, content: Content::Stream(length, &open), what: &what, brief: false };
        let sent = client.once(&ask, &|_| None);
        if sent.is_err() {
            watch.lost(count.load(Ordering::Relaxed));
        }
        sent
    })
}

/// Does something for each of many, several at a time, until the first error.
pub(super) fn each<T: Sync>(items: &[T], work: &(dyn Fn(&T) -> Result<(), HubError> + Sync)) -> Result<(), HubError> {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(items.len())).map(|_| scope.spawn(run)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
