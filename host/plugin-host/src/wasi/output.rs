//! What a guest writes to its standard output and error, cut into lines for its log.

/// One stream's unfinished line.
#[derive(Default)]
pub(crate) struct Output {
    line: Vec<u8>,
}

impl Output {
    /// Takes bytes and gives the lines that they complete, without their ends. Of a line no more than `limit` bytes and one are kept.
    pub(crate) fn take(&mut self, bytes: &[u8], limit: usize, mut line: impl FnMut(&str)) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            let room = limit.saturating_add(1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ends {
                line(String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim_end_matches('\r'));
            }
        }
    }

    /// The line that was not ended, if there is one.
    pub(crate) fn rest(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() { None } else { Some(String::from_utf8_lossy(&line).into_owned()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_put_together() {
        let mut output = Output::default();
        let mut lines = Vec::new();
        for bytes in [b"one\r\ntw".as_slice(), b"o\n\n", b"abcdefghij\nrest", b" of it \xff"] {
            output.take(bytes, 8, |line| lines.push(line.to_owned()));
        }
        assert_eq!(lines, ["one", "two", "", "abcdefghi"]);
        assert_eq!(output.rest().as_deref(), Some("rest of i"));
        assert_eq!(output.rest(), None);
    }
}
