//! The model card: what an export is, what it was made from, and how to use it; with the run's lock.

use crate::Result;
use crate::folder::Folder;
use crate::subject::Subject;
use std::fmt::Write;

/// What a card says besides what the subject knows.
pub(crate) struct Card<'a> {
    /// A sentence: what this is.
    pub what: String,
    /// The library that loads it, in Hugging Face's terms.
    pub library: &'a str,
    /// Tags beside `qwen3`.
    pub tags: &'a [&'a str],
    /// A code block that uses it: language and text.
    pub usage: (&'a str, String),
    /// Tensors that were compared.
    pub verified: usize,
    /// What else there is to know.
    pub notes: &'a [String],
}

/// The lock's file beside the card.
pub(crate) const LOCK: &str = "lock.json";

/// Writes `README.md` and the lock.
pub(crate) fn write(folder: &Folder, subject: &Subject, card: &Card<'_>) -> Result<()> {
    let p = &subject.provenance;
    let mut text = String::from("---\n");
    // YAML takes JSON's strings.
    let quoted = |s: &str| serde_json::Value::from(s).to_string();
    // Writing to a string cannot fail.
    let mut line = |args: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(args);
        text.push('\n');
    };
    line(format_args!("base_model: {}", quoted(&p.base)));
    line(format_args!("library_name: {}", card.library));
    line(format_args!("pipeline_tag: text-generation"));
    line(format_args!("tags:"));
    for tag in ["qwen3"].iter().chain(card.tags) {
        line(format_args!("- {tag}"));
    }
    line(format_args!("---\n\n# {}\n", p.name));
    line(format_args!("{}\n", card.what));
    line(format_args!("| | |\n|---|---|"));
    line(format_args!("| base model | `{}` |", p.base));
    if let Some(adapter) = &subject.adapter {
        let c = &adapter.config;
        let rs = if c.rslora { ", rank-stabilized" } else { "" };
        let parameters: u64 = adapter.modules.values().map(|m| (m.a.len() + m.b.len() + m.bias.as_ref().map_or(0, Vec::len)) as u64).sum();
        line(format_args!(
            "| adapter | LoRA, r {}, alpha {}{rs}; {} modules, {parameters} parameters |",
            c.r,
            c.alpha,
            adapter.modules.len()
        ));
    }
    line(format_args!("| parameters of the base | {} |", subject.config.parameters()));
    line(format_args!("| checked | {} tensors were read again from disk and are equal to what was computed |", card.verified));
    line(format_args!("| made by | trainer {} |\n", env!("CARGO_PKG_VERSION")));
    if !card.notes.is_empty() {
        line(format_args!("Notes:\n"));
        for note in card.notes {
            line(format_args!("- {note}"));
        }
        line(format_args!(""));
    }
    line(format_args!("## Use\n\n```{}\n{}\n```\n", card.usage.0, card.usage.1.trim_end()));
    line(format_args!("## Files\n\n| file | bytes | SHA-256 |\n|---|---|---|"));
    for (name, bytes, sha256) in folder.listing()? {
        line(format_args!("| {name} | {bytes} | `{sha256}` |"));
    }
    if let Some((lock, digest)) = &p.lock {
        folder.write(LOCK, format!("{lock:#}\n"))?;
        let mut short = lock.clone();
        if let Some(plan) = short.get_mut("plan").and_then(serde_json::Value::as_object_mut) {
            // Thousands of lines of a card's own choices; they are in the file.
            plan.remove("products");
        }
        line(format_args!(
            "\n## How to make it again\n\nThe run's lock, digest `{digest}`, is in `{LOCK}`; `trainer run --locked {LOCK}` repeats the run or says what \
             differs.\n\n<details>\n\n```json\n{short:#}\n```\n\n</details>"
        ));
    }
    folder.write("README.md", text)
}
