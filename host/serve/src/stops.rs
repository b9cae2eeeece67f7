//! Stop strings in an output that grows.

use trainer_text::Piece;

/// Looks for stop strings; what has come out is certainly before the first one. The string that is complete first counts, the longest of those
/// that end there, however the output is cut.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    strings: Vec<String>,
    /// What may be the beginning of a stop string.
    held: Vec<Piece>,
}

impl Stops {
    /// For these strings, of which none is empty.
    pub fn new(strings: Vec<String>) -> Self {
        Stops { strings, held: Vec::new() }
    }

    /// Takes the next pieces and adds to `out` what is certain by now. True: a stop string was there, and everything before it is in `out`. An added
    /// token in which the string begins is left out as a whole.
    pub fn push(&mut self, new: Vec<Piece>, out: &mut Vec<Piece>) -> bool {
        if self.strings.is_empty() {
            out.extend(new);
            return false;
        }
        self.held.extend(new);
        let text: String = self.held.iter().map(Piece::as_str).collect();
        let found = self.strings.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at))).min();
        if let Some((_, at)) = found {
            self.release(at, out);
            self.held.clear();
            return true;
        }
        let open = self.strings.iter().map(|s| overlap(&text, s)).max().unwrap_or(0);
        self.release(text.len() - open, out);
        false
    }

    /// The output has ended: adds what was held back.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        out.append(&mut self.held);
    }

    /// Moves the first `bytes` bytes to `out`, less the part of an added token that they would cut.
    fn release(&mut self, mut bytes: usize, out: &mut Vec<Piece>) {
        let mut rest = Vec::new();
        for piece in std::mem::take(&mut self.held) {
            let length = piece.as_str().len();
            if !rest.is_empty() || bytes == 0 {
                rest.push(piece);
            } else if length <= bytes {
                bytes -= length;
                out.push(piece);
            } else {
                match piece {
                    Piece::Text(text) => {
                        let (before, after) = text.split_at(text.floor_char_boundary(bytes));
                        out.push(Piece::Text(before.to_owned()));
                        rest.push(Piece::Text(after.to_owned()));
                    }
                    special => rest.push(special),
                }
                bytes = 0;
            }
        }
        self.held = rest;
    }
}

/// Bytes at the end of `text` that are the beginning of `string`, but not all of it.
fn overlap(text: &str, string: &str) -> usize {
    let most = text.len().min(string.len().saturating_sub(1));
    (1..=most).rev().find(|n| text.as_bytes().ends_with(string.as_bytes().get(..*n).unwrap_or_default())).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(pieces: &[Piece]) -> String {
        pieces.iter().map(Piece::as_str).collect()
    }

    fn run(strings: &[&str], pieces: &[Piece]) -> (String, bool, Vec<String>) {
        let mut stops = Stops::new(strings.iter().map(|s| (*s).to_owned()).collect());
        let (mut out, mut steps) = (Vec::new(), Vec::new());
        for piece in pieces {
            let stopped = stops.push(vec![piece.clone()], &mut out);
            steps.push(text(&out));
            if stopped {
                return (text(&out), true, steps);
            }
        }
        stops.finish(&mut out);
        (text(&out), false, steps)
    }

    fn words(list: &[&str]) -> Vec<Piece> {
        list.iter().map(|t| Piece::Text((*t).to_owned())).collect()
    }

    #[test]
    fn what_may_be_a_stop_string_is_held_back() {
        let (out, stopped, steps) = run(&["END"], &words(&["a E", "N", "x", " EN", "D b"]));
        assert_eq!((out.as_str(), stopped), ("a ENx ", true));
        assert_eq!(steps, ["a ", "a ", "a ENx", "a ENx ", "a ENx "]);
        assert_eq!(run(&["END"], &words(&["a E", "N"])), ("a EN".into(), false, vec!["a ".into(), "a ".into()]));
        assert_eq!(run(&["\n\n", "é"], &words(&["x\n", "\ny"])).0, "x");
        assert_eq!(run(&["\u{e9}"], &words(&["caf\u{e8}"])).0, "caf\u{e8}");
    }

    #[test]
    fn the_string_that_is_complete_first_counts() {
        // "bc" is complete before "abcd" is, which begins earlier; of "bc" and "abc" the longer one.
        assert_eq!(run(&["abcd", "bc"], &words(&["xabcd"])).0, "xa");
        assert_eq!(run(&["bc", "abc"], &words(&["xabcd"])).0, "x");
    }

    #[test]
    fn added_tokens_are_whole() {
        let pieces = [Piece::Text("a".into()), Piece::Special("</think>".into()), Piece::Text("b".into())];
        assert_eq!(run(&["</think>"], &pieces).0, "a");
        assert_eq!(run(&["think"], &pieces).0, "a");
        assert_eq!(run(&["k>bc"], &pieces), ("a</think>b".into(), false, vec!["a".into(), "a".into(), "a".into()]));
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(
            strings in prop::collection::vec("[abé]{1,4}", 0..4),
            output in "[abcé]{0,40}",
            cuts in prop::collection::vec(0usize..40, 0..12),
        ) {
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let whole = run(&strings, &words(&[&output]));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| output.floor_char_boundary(c)).collect();
            cuts.extend([0, output.len()]);
            cuts.sort_unstable();
            let parts: Vec<&str> = cuts.windows(2).map(|w| &output[w[0]..w[1]]).collect();
            let cut = run(&strings, &words(&parts));
            prop_assert_eq!((&cut.0, cut.1), (&whole.0, whole.1));
            // The plain definition: the match that ends first.
            let first = strings.iter().filter_map(|s| output.find(s).map(|at| (at + s.len(), at))).min();
            prop_assert_eq!(whole.0.as_str(), first.map_or(output.as_str(), |(_, at)| &output[..at]));
            // Nothing is given that is taken back later, and nothing is held without need.
            for step in &cut.2 {
                prop_assert!(whole.0.starts_with(step.as_str()));
            }
        }
    }
}
