//! W&B's record files: LevelDB's log format (blocks of 32 KiB, records cut at their ends) after a head of seven bytes, with plain CRC32.

use std::borrow::Cow;

const BLOCK: usize = 32_768;
/// Checksum, length and type before each piece.
const PIECE_HEAD: usize = 7;
/// `:W&B`, 0xBEE1 in little endian, version 0.
const FILE_HEAD: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// The head of a file.
pub fn file_head() -> &'static [u8] {
    &FILE_HEAD
}

fn checksum(kind: u8, data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(data);
    crc.finalize()
}

/// A record as it is stored at a place in the file.
pub fn frame(offset: u64, mut data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + PIECE_HEAD);
    let mut begun = false;
    loop {
        let within = (offset % BLOCK as u64) as usize + out.len() % BLOCK;
        let mut room = BLOCK - within % BLOCK;
        if room < PIECE_HEAD {
            out.resize(out.len() + room, 0);
            room = BLOCK;
        }
        let (piece, rest) = data.split_at(data.len().min(room - PIECE_HEAD));
        let kind = match (begun, rest.is_empty()) {
            (false, true) => FULL,
            (false, false) => FIRST,
            (true, false) => MIDDLE,
            (true, true) => LAST,
        };
        out.extend(checksum(kind, piece).to_le_bytes());
        // A piece lies within a block, so its length has 15 bits.
        out.extend((piece.len() as u16).to_le_bytes());
        out.push(kind);
        out.extend(piece);
        if rest.is_empty() {
            return out;
        }
        data = rest;
        begun = true;
    }
}

/// The records of a file, up to its end or to one that is not whole or not right.
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Bytes up to the end of the last record that was right; 0 if not even the head is.
    pub good: u64,
}

impl<'a> Records<'a> {
    /// Of a file's contents.
    pub fn new(bytes: &'a [u8]) -> Self {
        let good = if bytes.starts_with(&FILE_HEAD) { FILE_HEAD.len() } else { 0 };
        Self { bytes: if good == 0 { &[] } else { bytes }, at: good, good: good as u64 }
    }

    fn piece(&mut self) -> Option<(u8, &'a [u8])> {
        let room = BLOCK - self.at % BLOCK;
        if room < PIECE_HEAD {
            self.at += room;
        }
        let (head, rest) = self.bytes.get(self.at..)?.split_first_chunk::<PIECE_HEAD>()?;
        let [a, b, c, d, low, high, kind] = *head;
        let length = usize::from(u16::from_le_bytes([low, high]));
        let data = rest.get(..length)?;
        if checksum(kind, data) != u32::from_le_bytes([a, b, c, d]) {
            return None;
        }
        self.at += PIECE_HEAD + length;
        Some((kind, data))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Cow<'a, [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = match self.piece()? {
            (FULL, data) => Cow::Borrowed(data),
            (FIRST, data) => {
                let mut whole = data.to_vec();
                loop {
                    match self.piece()? {
                        (MIDDLE, data) => whole.extend(data),
                        (LAST, data) => {
                            whole.extend(data);
                            break Cow::Owned(whole);
                        }
                        _ => return None,
                    }
                }
            }
            _ => return None,
        };
        self.good = self.at as u64;
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(lengths: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let mut bytes = file_head().to_vec();
        let records: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(i, n)| vec![i as u8; *n]).collect();
        for record in &records {
            bytes.extend(frame(bytes.len() as u64, record));
        }
        (bytes, records)
    }

    proptest! {
        #[test]
        fn records_read_back(lengths in prop::collection::vec(prop_oneof![0..40usize, 32_700..32_800usize, 0..100_000usize], 0..12), cut in any::<prop::sample::Index>()) {
            let (bytes, records) = file(&lengths);
            let mut read = Records::new(&bytes);
            prop_assert_eq!(&read.by_ref().map(Cow::into_owned).collect::<Vec<_>>(), &records);
            prop_assert_eq!(read.good, bytes.len() as u64);
            // However it is torn, what is whole is read, and can be gone on with.
            let torn = &bytes[..cut.index(bytes.len() + 1)];
            let mut read = Records::new(torn);
            let some: Vec<Vec<u8>> = read.by_ref().map(Cow::into_owned).collect();
            prop_assert_eq!(&some[..], &records[..some.len()]);
            prop_assert!(read.good <= torn.len() as u64);
            if read.good > 0 {
                let mut kept = torn[..read.good as usize].to_vec();
                kept.extend(frame(read.good, b"more"));
                prop_assert_eq!(Records::new(&kept).last().map(Cow::into_owned), Some(b"more".to_vec()));
            }
        }
    }
}
