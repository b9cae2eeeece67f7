//! The page of every setting, made from the definitions.

use crate::recipe::Recipe;
use crate::section::{FieldDoc, Setting};

/// `docs/src/recipe.md`: what is written by hand above, then every section and setting with type, default and limits.
pub fn markdown() -> String {
    let mut out = String::from(include_str!("recipe_intro.md"));
    let mut sections = Vec::new();
    Recipe::sections("", &mut sections);
    for section in &sections {
        if section.key.is_empty() {
            continue;
        }
        out.push_str(&format!("\n## `[{}]`\n\n{}\n\n", section.key, prose(section.doc)));
        out.push_str("| setting | value | default | |\n| --- | --- | --- | --- |\n");
        for field in section.fields.iter().filter(|f| !f.is_section) {
            out.push_str(&row(field));
        }
    }
    out
}

fn prose(lines: &[&str]) -> String {
    lines.iter().map(|l| l.trim()).collect::<Vec<_>>().join(" ")
}

fn row(field: &FieldDoc) -> String {
    let allowed = field.allowed.map(|a| format!(": {a}")).unwrap_or_default();
    let default = match field.default.as_deref() {
        None => "absent".to_owned(),
        Some("\"\"") => "none".to_owned(),
        Some(text) => format!("`{text}`"),
    };
    format!("| `{}` | {}{} | {} | {} |\n", field.name, cell(&field.kind), cell(&allowed), cell(&default), cell(&prose(field.doc)))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
