//! What `trainer plan` shows.

use std::fmt::Write;

use crate::commands::plan::Plan;

fn gib(bytes: u64) -> String {
    format!("{:.3} GiB", bytes as f64 / f64::from(1 << 30))
}

/// The choice, then the memory part by part.
pub fn plan_table(p: &Plan) -> String {
    let mut out = format!("{} on {}, plan \"{}\" for {}\n", p.backend, p.device.name, p.goal, p.model);
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<24} {text}");
    };
    line("frozen weights", if p.weights == "packed" { "unpacked for each use" } else { "unpacked once" }.to_owned());
    line("recompute", format!("{} of {} layers", p.recomputed_layers, p.layers));
    line("micro-batch", format!("up to {} tokens", p.max_tokens));
    if let Some(speed) = p.tokens_per_second {
        line("predicted speed", format!("{speed:.0} tokens/s"));
    }
    let _ = writeln!(out, "memory");
    for (part, bytes) in &p.parts {
        let _ = writeln!(out, "  {part:<24} {:>12}", gib(*bytes));
    }
    let limit = p.limit.map_or_else(|| "no limit".to_owned(), |l| format!("limit {}", gib(l)));
    let _ = writeln!(out, "  {:<24} {:>12}, {limit}", "total", gib(p.total));
    out
}
