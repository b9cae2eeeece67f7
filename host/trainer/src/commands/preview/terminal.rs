//! A preview as lines of text.

use std::fmt::Write;

use super::report::{Packing, Preview, RowView, SampleView, TokenView};

/// Micro-batches that are listed.
const MAX_BATCHES: usize = 16;

/// What text looks like.
#[derive(Clone, Copy)]
enum Look {
    Trained,
    Partly,
    Untrained,
    Cut,
    Heading,
    Warning,
}

impl Look {
    fn code(self) -> &'static str {
        match self {
            Self::Trained => "32",
            Self::Partly => "33",
            Self::Untrained => "2",
            Self::Cut => "2;9",
            Self::Heading => "1",
            Self::Warning => "1;33",
        }
    }
}

/// The whole preview; without colour every line says the same in words and numbers.
pub fn text(preview: &Preview, colour: bool) -> String {
    let mut out = Out { text: String::new(), colour };
    out.line(
        Look::Heading,
        &format!(
            "{} with template {}, train_on {}, max_seq_length {} (longer ones: {})",
            preview.model, preview.template, preview.train_on, preview.max_seq_length, preview.too_long
        ),
    );
    for row in &preview.rows {
        out.row(row);
    }
    if let Some(packing) = &preview.packing {
        out.packing(packing);
    }
    out.plain("");
    if preview.warnings.is_empty() {
        out.plain("no warnings");
    }
    for warning in &preview.warnings {
        let place = warning.row.as_ref().map(|row| format!("{row}: ")).unwrap_or_default();
        out.line(Look::Warning, &format!("warning: {}{} [{}]", visible(&place), visible(&warning.message), warning.kind));
    }
    out.text
}

struct Out {
    text: String,
    colour: bool,
}

impl Out {
    fn plain(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn line(&mut self, look: Look, line: &str) {
        if self.colour {
            let _ = writeln!(self.text, "\x1b[{}m{line}\x1b[0m", look.code());
        } else {
            self.plain(line);
        }
    }

    fn row(&mut self, row: &RowView) {
        let draw = row.draw.map_or_else(|| "row".to_owned(), |d| format!("draw {d}"));
        self.plain("");
        self.line(Look::Heading, &format!("{draw}: {}:{} (source {})", visible(&row.file), row.row, visible(&row.source)));
        if let Some(reason) = &row.reason {
            self.line(Look::Warning, &format!("  {}: {}", row.outcome, visible(reason)));
        }
        for (i, message) in row.messages.iter().enumerate() {
            let weight = message.weight.map(|w| format!(", weight {w}")).unwrap_or_default();
            self.plain(&format!("  message {i}: {}{weight}", visible(&message.role)));
        }
        for sample in &row.samples {
            self.sample(sample, row);
        }
    }

    fn sample(&mut self, sample: &SampleView, row: &RowView) {
        let name = sample.index.map_or_else(|| "sample".to_owned(), |i| format!("sample {i}"));
        let left_out = sample.left_out.as_ref().map(|r| format!(", left out: {}", visible(r))).unwrap_or_default();
        let cut = if sample.truncated { format!(" of {}", sample.tokens.len()) } else { String::new() };
        let (length, targets, weight) = (sample.length, sample.targets, sample.target_weight);
        self.line(Look::Heading, &format!("  {name}: {length}{cut} tokens, {targets} of them targets, weight {weight}{left_out}"));
        self.plain(&format!("  {:>6} {:>8} {:>7} {:>4}  {:<14} text", "token", "id", "weight", "seg", "message"));
        for (i, token) in sample.tokens.iter().enumerate() {
            let message = token.message.map_or_else(
                || "-".to_owned(),
                |m| {
                    let role = usize::try_from(m).ok().and_then(|m| row.messages.get(m)).map_or("", |m| m.role.as_str());
                    format!("{m} {}", visible(role))
                },
            );
            let weight = if token.kept { token.weight.to_string() } else { "cut".to_owned() };
            let line = format!("  {i:>6} {:>8} {weight:>7} {:>4}  {message:<14} {}", token.id, token.segment, shown(token));
            self.line(look(token), &line);
        }
    }

    fn packing(&mut self, packing: &Packing) {
        self.plain("");
        let holds = packing.max_tokens.map_or_else(|| "one sample each".to_owned(), |n| format!("up to {n} tokens each"));
        let (samples, per) = (packing.samples, packing.samples_per_step);
        self.line(Look::Heading, &format!("the first {samples} of a step's {per} samples as micro-batches, {holds}"));
        for (i, batch) in packing.batches.iter().enumerate().take(MAX_BATCHES) {
            let parts: Vec<String> = batch.samples.iter().zip(&batch.lengths).map(|(s, l)| format!("sample {s} ({l})")).collect();
            let fill =
                packing.max_tokens.map(|n| format!(", {:.0} % full", 100.0 * batch.tokens as f64 / n.max(1) as f64)).unwrap_or_default();
            self.plain(&format!("  {i}: {} tokens{fill}: {}", batch.tokens, parts.join(", ")));
        }
        if let Some(more) = packing.batches.len().checked_sub(MAX_BATCHES).filter(|n| *n > 0) {
            self.plain(&format!("  and {more} more"));
        }
    }
}

fn look(token: &TokenView) -> Look {
    match token.weight {
        _ if !token.kept => Look::Cut,
        w if w <= 0.0 => Look::Untrained,
        w if (w - 1.0).abs() < 1e-6 => Look::Trained,
        _ => Look::Partly,
    }
}

/// A token's text on one line: in quotes, or as it stands where it is an added token.
fn shown(token: &TokenView) -> String {
    match &token.bytes {
        Some(bytes) => format!("bytes {bytes}"),
        None if token.special => visible(&token.text),
        None => format!("\"{}\"", visible(&token.text)),
    }
}

/// Text with what would move the cursor or change the terminal's state made visible: data may hold anything.
fn visible(text: &str) -> String {
    let harmless = |c: char| !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.chars().all(harmless) {
        return text.to_owned();
    }
    text.chars().map(|c| if harmless(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::preview::report::{MessageView, Warning};

    fn preview() -> Preview {
        let token = |text: &str, weight, kept| TokenView {
            id: 7,
            text: text.to_owned(),
            bytes: None,
            special: false,
            weight,
            segment: 0,
            message: Some(0),
            kept,
        };
        let tokens = vec![token("a\u{1b}[31m\n", 0.0, true), token("b", 1.0, true), token("c", 0.5, true), token("d", 1.0, false)];
        let sample = SampleView {
            index: Some(0),
            length: 3,
            targets: 2,
            target_weight: 1.5,
            truncated: true,
            left_out: None,
            segments: vec![],
            tokens,
        };
        let row = RowView {
            draw: Some(0),
            source: "s".to_owned(),
            file: "f.jsonl".to_owned(),
            row: 3,
            outcome: "samples",
            reason: None,
            messages: vec![MessageView { role: "user".to_owned(), weight: None }],
            samples: vec![sample],
        };
        Preview {
            trainer: "0",
            model: "m".to_owned(),
            tokenizer: String::new(),
            template: "t".to_owned(),
            train_on: "assistant".to_owned(),
            max_seq_length: 3,
            too_long: "truncate".to_owned(),
            warnings: vec![Warning { kind: "truncated", row: Some("f.jsonl:3".to_owned()), message: "\u{1b}[2J".to_owned() }],
            rows: vec![row],
            packing: None,
        }
    }

    #[test]
    fn what_data_says_never_reaches_the_terminal_raw() {
        let plain = text(&preview(), false);
        assert!(!plain.contains('\u{1b}'), "{plain}");
        assert!(plain.contains("\"a\\u{1b}[31m\\n\""), "{plain}");
        assert!(plain.contains(" cut "), "{plain}");
    }

    #[test]
    fn colours_only_mark_lines() {
        let coloured = text(&preview(), true);
        let stripped: String =
            coloured.split('\u{1b}').enumerate().map(|(i, p)| if i == 0 { p } else { p.split_once('m').unwrap().1 }).collect();
        assert_eq!(stripped, text(&preview(), false));
        for look in [Look::Trained, Look::Partly, Look::Untrained, Look::Cut, Look::Warning] {
            assert!(coloured.contains(&format!("\x1b[{}m", look.code())), "{}", look.code());
        }
    }
}
