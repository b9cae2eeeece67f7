//! Rows per second of the native encoder beside the `tokenizers` crate, one thread, on the training texts of the embedded maths rows.
//!
//! `cargo run --release -p trainer-text --example tokenize_bench -- [MODEL_FOLDER ...]` (a folder with a `tokenizer.json`; the embedded model without arguments)

use std::path::{Path, PathBuf};
use std::time::Instant;

use trainer_text::{Piece, Segment, SpecialMode, Tokenizer};

type AnyError = Box<dyn std::error::Error>;

/// Question and answer of a row.
fn rows() -> Result<Vec<(String, String)>, AnyError> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nano/assets/data/math_train.jsonl");
    let text = std::fs::read_to_string(file)?;
    let field = |row: &serde_json::Value, key: &str| row[key].as_str().map(str::to_owned).ok_or_else(|| format!("a row has no {key}"));
    text.lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line)?;
            Ok((field(&row, "problem")?, field(&row, "generated_solution")?))
        })
        .collect()
}

fn segments(row: &(String, String)) -> [Segment<'_>; 9] {
    let piece = |piece, weight| Segment { piece, weight };
    [
        piece(Piece::Special("<|im_start|>"), 0.0),
        piece(Piece::Text("user\n"), 0.0),
        piece(Piece::Text(&row.0), 0.0),
        piece(Piece::Special("<|im_end|>"), 0.0),
        piece(Piece::Text("\n"), 0.0),
        piece(Piece::Special("<|im_start|>"), 0.0),
        piece(Piece::Text("assistant\n"), 0.0),
        piece(Piece::Text(&row.1), 1.0),
        piece(Piece::Special("<|im_end|>"), 1.0),
    ]
}

fn main() -> Result<(), AnyError> {
    let mut folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../nano/assets/model"));
    }
    let rows = rows()?;
    for folder in folders {
        let json = std::fs::read(folder.join("tokenizer.json"))?;
        println!("{}: {} rows", folder.display(), rows.len());
        let started = Instant::now();
        let native = Tokenizer::from_bytes(&json, None, None)?;
        let native_load = started.elapsed();
        let started = Instant::now();
        let general = Tokenizer::general_from_bytes(&json)?;
        let general_load = started.elapsed();
        for (name, tokenizer, load, rounds) in [("native", &native, native_load, 10), ("tokenizers", &general, general_load, 2)] {
            // A first round fills caches and finds faults.
            for row in &rows {
                tokenizer.encode_segments(&segments(row), SpecialMode::Plain)?;
            }
            let mut tokens = 0;
            let started = Instant::now();
            for _ in 0..rounds {
                for row in &rows {
                    tokens += tokenizer.encode_segments(&segments(row), SpecialMode::Plain)?.ids.len();
                }
            }
            let seconds = started.elapsed().as_secs_f64();
            let n = (rows.len() * rounds) as f64;
            println!(
                "  {name:10}  load {:6.1} ms  {:8.0} rows/s  {:5.2} M tokens/s  {:.0} tokens a row",
                load.as_secs_f64() * 1e3,
                n / seconds,
                tokens as f64 / seconds / 1e6,
                tokens as f64 / n
            );
        }
    }
    Ok(())
}
