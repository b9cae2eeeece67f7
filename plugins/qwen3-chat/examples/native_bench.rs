//! Rows per second of formatter and template as native code, in the batches and over the rows of `trainer bench plugins`:
//! `cargo run --release -p qwen3-chat --example native_bench -- ROWS.jsonl`, where ROWS.jsonl has OpenMathReasoning's columns.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use math_mix::formatter::OpenMathReasoning;
use qwen3_chat::Qwen3Chat;
use trainer_plugin_sdk::{Conversation, Formatter, Outcome, Template};

/// Rows that are formatted before they are rendered.
const BATCH: usize = 64;
/// Passes over the rows, after one that warms up.
const TIMES: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).ok_or("native_bench ROWS.jsonl")?;
    let rows: Vec<String> = std::fs::read_to_string(path)?.lines().map(str::to_owned).collect();
    let formatter = OpenMathReasoning::new(Default::default())?;
    let template = Qwen3Chat::new(Default::default())?;
    let mut rates = Vec::with_capacity(TIMES);
    for pass in 0..=TIMES {
        let began = Instant::now();
        for rows in rows.chunks(BATCH) {
            let mut conversations: Vec<Conversation> = Vec::with_capacity(rows.len());
            for row in rows {
                match formatter.format(black_box(row)) {
                    Ok(Outcome::Sample(conversation)) => conversations.push(conversation),
                    other => return Err(format!("a row gave no sample: {other:?}").into()),
                }
            }
            for conversation in &conversations {
                black_box(template.render_training(conversation)?);
            }
        }
        if pass > 0 {
            rates.push(rows.len() as f64 / began.elapsed().as_secs_f64());
        }
    }
    rates.sort_by(f64::total_cmp);
    println!("{:.0} rows/s native, median of {TIMES} passes over {} rows", rates[TIMES / 2], rows.len());
    Ok(())
}
