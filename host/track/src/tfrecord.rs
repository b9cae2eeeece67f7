//! TensorFlow's record files: length, its checksum, data, its checksum.

use crate::checksum::masked;

/// Bytes before the data.
const HEAD: usize = 12;

/// A record as it is stored.
pub fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + HEAD + 4);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

/// The records of a file, up to its end or to one that is not whole or not right.
pub struct Records<'a> {
    bytes: &'a [u8],
    /// Bytes of the records that were right.
    pub good: u64,
}

impl<'a> Records<'a> {
    /// Of a file's contents.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, good: 0 }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.bytes.split_first_chunk::<8>()?;
        let (check, rest) = rest.split_first_chunk::<4>()?;
        if masked(length).to_le_bytes() != *check {
            return None;
        }
        let (data, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let (check, rest) = rest.split_first_chunk::<4>()?;
        if masked(data).to_le_bytes() != *check {
            return None;
        }
        self.good += (self.bytes.len() - rest.len()) as u64;
        self.bytes = rest;
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_file_gives_its_whole_records() {
        let first = frame(b"one");
        let file = [first.clone(), frame(&[7; 300])].concat();
        for cut in 0..=file.len() {
            let mut records = Records::new(&file[..cut]);
            let count = records.by_ref().count();
            let expected = if cut == file.len() { 2 } else { usize::from(cut >= first.len()) };
            assert_eq!(count, expected, "{cut}");
            assert_eq!(records.good, [0, first.len(), file.len()][expected] as u64);
        }
    }

    #[test]
    fn a_changed_byte_ends_the_file() {
        for at in 0..frame(b"one").len() {
            let mut bytes = frame(b"one");
            bytes[at] ^= 4;
            assert_eq!(Records::new(&bytes).count(), 0, "{at}");
        }
    }
}
