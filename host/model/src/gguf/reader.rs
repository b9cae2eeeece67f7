//! Reading a header front to back, never beyond the file.

use crate::files::Source;

/// Bytes that are fetched at a time.
const PIECE: u64 = 1 << 16;

pub(crate) struct Reader<'a> {
    source: &'a Source,
    at: u64,
    piece: Vec<u8>,
    /// Where `piece` begins.
    start: u64,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a Source) -> Self {
        Self { source, at: 0, piece: Vec::new(), start: 0 }
    }

    /// The next byte's place.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.source.len().saturating_sub(self.at)
    }

    /// The next bytes; `len` has been held against a limit.
    pub fn bytes(&mut self, len: u64) -> Result<Vec<u8>, String> {
        if len > self.left() {
            return Err(format!("it ends before byte {}", self.at.saturating_add(len)));
        }
        let bytes = self.source.read(self.at, len).map_err(|e| e.to_string())?.into_owned();
        self.at += len;
        Ok(bytes)
    }

    /// The next few bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let end = self.at + N as u64;
        if self.at < self.start || end > self.start + self.piece.len() as u64 {
            if end > self.source.len() {
                return Err(format!("it ends before byte {end}"));
            }
            let len = PIECE.min(self.left());
            self.piece = self.source.read(self.at, len).map_err(|e| e.to_string())?.into_owned();
            self.start = self.at;
        }
        let from = usize::try_from(self.at - self.start).unwrap_or(usize::MAX);
        let bytes = self.piece.get(from..).and_then(|rest| rest.first_chunk::<N>()).copied();
        self.at = end;
        bytes.ok_or_else(|| format!("it ends before byte {end}"))
    }

    pub fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A string of at most `limit` bytes.
    pub fn string(&mut self, limit: u64) -> Result<String, String> {
        let len = self.u64()?;
        if len > limit {
            return Err(format!("a string at byte {} would have {len} bytes; at most {limit} are read", self.at));
        }
        let at = self.at;
        // Short ones come from the piece at hand.
        let bytes = if len <= 256 {
            let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
            for _ in 0..len {
                bytes.extend(self.array::<1>()?);
            }
            bytes
        } else {
            self.bytes(len)?
        };
        String::from_utf8(bytes).map_err(|_| format!("a string at byte {at} is not UTF-8"))
    }
}
