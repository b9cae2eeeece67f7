//! What `trainer plan` shows.

use std::fmt::Write;

use trainer_engine::Keep;

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
    let count = |keep: Keep| p.keeps.iter().filter(|k| **k == keep).count();
    let activations = [(Keep::All, "keep everything"), (Keep::Lean, "keep their products"), (Keep::Input, "keep their inputs")];
    let held: Vec<String> =
        activations.into_iter().filter(|(k, _)| count(*k) > 0).map(|(k, what)| format!("{} layers {what}", count(k))).collect();
    line("activations", held.join(", "));
    if p.offload {
        line("host memory", "holds layer inputs and the embedding".to_owned());
    }
    line("micro-batch", format!("up to {} tokens, {} positions of the loss at a time", p.max_tokens, p.loss_rows));
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
