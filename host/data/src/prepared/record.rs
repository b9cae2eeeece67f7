//! What became of one row, as bytes. Names of files and of the source are not in it: an entry serves wherever the files lie.

use std::sync::Arc;

use crate::error::{BadKind, BadRow};
use crate::pipeline::worker::{Failure, Outcome, Prepared};

const SAMPLES: u8 = 0;
const SKIPPED: u8 = 1;
const BAD: u8 = 2;
/// Set beside one of those where the formatter gave a conversation.
const FORMATTED: u8 = 0x80;

const LEFT_OUT: u8 = 0;
const WHOLE: u8 = 1;
const TRUNCATED: u8 = 2;

/// Where a record is read: what it leaves out.
pub(super) struct Place<'a> {
    pub(super) source: u32,
    pub(super) name: &'a str,
    pub(super) files: &'a [Arc<str>],
}

/// None for an outcome that is no row's own (a failure that ends the run).
pub(super) fn encode(outcome: &Outcome, file: u32) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let tag = match &outcome.result {
        Ok(_) => SAMPLES,
        Err(Failure::Skip(_)) => SKIPPED,
        Err(Failure::Bad(_)) => BAD,
        Err(Failure::Fatal(_)) => return None,
    };
    out.push(tag | if outcome.formatted { FORMATTED } else { 0 });
    number(&mut out, u64::from(file));
    number(&mut out, outcome.row);
    match &outcome.result {
        Ok(parts) => {
            number(&mut out, parts.len() as u64);
            for part in parts {
                match part {
                    Err(reason) => {
                        out.push(LEFT_OUT);
                        text(&mut out, reason);
                    }
                    Ok(sample) => tokens(&mut out, sample),
                }
            }
        }
        Err(Failure::Skip(reason)) => text(&mut out, reason),
        Err(Failure::Bad(bad)) => {
            text(&mut out, &serde_json::to_string(&bad.kind).ok()?);
            text(&mut out, &bad.field);
            text(&mut out, &bad.message);
        }
        Err(Failure::Fatal(_)) => return None,
    }
    Some(out)
}

fn tokens(out: &mut Vec<u8>, sample: &Prepared) {
    out.push(if sample.truncated { TRUNCATED } else { WHOLE });
    number(out, sample.ids.len() as u64);
    let width = match sample.ids.iter().max().copied().unwrap_or(0) {
        0..=0xffff => 2u8,
        0x1_0000..=0xff_ffff => 3,
        _ => 4,
    };
    out.push(width);
    for id in &sample.ids {
        let bytes = id.to_le_bytes();
        out.extend(bytes.iter().take(usize::from(width)));
    }
    // Weights come in long runs: a message is learned or not.
    let mut rest = sample.weights.as_slice();
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|w| w.to_bits() == first.to_bits()).count();
        number(out, same as u64);
        out.extend(first.to_le_bytes());
        rest = rest.get(same..).unwrap_or_default();
    }
}

/// None for bytes that no [`encode`] gave.
pub(super) fn decode(bytes: &[u8], place: &Place<'_>) -> Option<Outcome> {
    let mut input = Input(bytes);
    let tag = input.byte()?;
    let file = Arc::clone(place.files.get(usize::try_from(input.number()?).ok()?)?);
    let row = input.number()?;
    let result = match tag & !FORMATTED {
        SAMPLES => {
            let count = input.length()?;
            let mut parts = Vec::with_capacity(count);
            for _ in 0..count {
                parts.push(match input.byte()? {
                    LEFT_OUT => Err(input.text()?),
                    kind @ (WHOLE | TRUNCATED) => Ok(input.tokens(kind == TRUNCATED)?),
                    _ => return None,
                });
            }
            Ok(parts)
        }
        SKIPPED => Err(Failure::Skip(input.text()?)),
        BAD => {
            let kind: BadKind = serde_json::from_str(&input.text()?).ok()?;
            let (field, message) = (input.text()?, input.text()?);
            Err(Failure::Bad(BadRow { source: place.name.to_owned(), file: file.to_string(), row, field, kind, message }))
        }
        _ => return None,
    };
    input.0.is_empty().then_some(Outcome { source: place.source, file, row, formatted: tag & FORMATTED != 0, result, trace: None })
}

/// LEB128.
fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn text(out: &mut Vec<u8>, text: &str) {
    number(out, text.len() as u64);
    out.extend(text.as_bytes());
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            n |= part << shift;
            if byte & 0x80 == 0 {
                return Some(n);
            }
        }
        None
    }

    /// A count of things of at least a byte each, so that it cannot make anybody reserve more than there are bytes.
    fn length(&mut self) -> Option<usize> {
        let n = usize::try_from(self.number()?).ok()?;
        (n <= self.0.len()).then_some(n)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.length()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn tokens(&mut self, truncated: bool) -> Option<Prepared> {
        let count = self.length()?;
        let width = usize::from(self.byte()?);
        if !(2..=4).contains(&width) {
            return None;
        }
        let raw = self.take(count.checked_mul(width)?)?;
        let ids: Vec<u32> = match width {
            2 => raw.chunks_exact(2).map(|b| b.iter().rev().fold(0, |id, b| (id << 8) | u32::from(*b))).collect(),
            3 => raw.chunks_exact(3).map(|b| b.iter().rev().fold(0, |id, b| (id << 8) | u32::from(*b))).collect(),
            _ => raw.chunks_exact(4).map(|b| b.iter().rev().fold(0, |id, b| (id << 8) | u32::from(*b))).collect(),
        };
        let mut weights = Vec::with_capacity(count);
        while weights.len() < count {
            let same = usize::try_from(self.number()?).ok()?;
            if same == 0 || same > count - weights.len() {
                return None;
            }
            let weight = f32::from_le_bytes(self.take(4)?.try_into().ok()?);
            weights.resize(weights.len() + same, weight);
        }
        Some(Prepared { ids, weights, truncated })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> impl Strategy<Value = Result<Prepared, String>> {
        let id = prop_oneof![0u32..300, 0u32..0x2_0000, any::<u32>()];
        let weight = prop_oneof![Just(0.0f32), Just(1.0), any::<f32>()];
        let tokens = prop::collection::vec((id, weight), 0..40).prop_flat_map(|pairs| (Just(pairs), any::<bool>()));
        prop_oneof![
            tokens.prop_map(|(pairs, truncated)| {
                let (ids, weights) = pairs.into_iter().unzip();
                Ok(Prepared { ids, weights, truncated })
            }),
            ".{0,20}".prop_map(Err),
        ]
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        let kind = prop_oneof![Just(BadKind::Format), Just(BadKind::TooLong), Just(BadKind::InvalidUtf8)];
        let result = prop_oneof![
            prop::collection::vec(sample(), 0..4).prop_map(Ok),
            ".{0,20}".prop_map(|reason| Err(Failure::Skip(reason))),
            (kind, ".{0,9}", ".{0,20}").prop_map(|(kind, field, message)| {
                Err(Failure::Bad(BadRow { source: "s".to_owned(), file: "b".to_owned(), row: 0, field, kind, message }))
            }),
        ];
        (result, any::<u64>(), any::<bool>()).prop_map(|(mut result, row, formatted)| {
            if let Err(Failure::Bad(bad)) = &mut result {
                bad.row = row;
            }
            Outcome { source: 3, file: Arc::from("b"), row, formatted, result, trace: None }
        })
    }

    proptest! {
        #[test]
        fn comes_back_bit_by_bit_and_nothing_else_is_taken(outcome in outcome(), cut in any::<prop::sample::Index>(), flip in any::<(prop::sample::Index, u8)>()) {
            let files = [Arc::from("a"), Arc::from("b")];
            let place = Place { source: 3, name: "s", files: &files };
            let bytes = encode(&outcome, 1).unwrap();
            let back = decode(&bytes, &place).unwrap();
            // NaN is not equal to itself, so the bytes are compared.
            prop_assert_eq!(encode(&back, 1).unwrap(), bytes.clone());
            prop_assert_eq!((back.source, &back.file, back.row, back.formatted), (outcome.source, &outcome.file, outcome.row, outcome.formatted));
            prop_assert_eq!(format!("{:?}", back.result), format!("{:?}", outcome.result));
            // Cut or changed bytes give nothing or something, but never a panic or an allocation without end.
            prop_assert!(decode(&bytes[..cut.index(bytes.len())], &place).is_none());
            let mut changed = bytes.clone();
            let at = flip.0.index(bytes.len());
            changed[at] ^= flip.1;
            let _ = decode(&changed, &place);
            changed.push(0);
            let _ = decode(&changed, &place);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let files = [Arc::from("a")];
            let _ = decode(&bytes, &Place { source: 0, name: "s", files: &files });
        }
    }
}
