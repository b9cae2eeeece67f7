//! What plugins cost: `cargo run --release -p trainer-plugin-host --example plugin_bench -- FOLDER ROWS.jsonl`, where FOLDER holds
//! `math_mix.wasm` and `qwen3_chat.wasm`, and ROWS.jsonl has OpenMathReasoning's columns. Everything runs on one thread with all limits on.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use trainer_plugin_host::template::Template;
use trainer_plugin_host::types::Conversation;
use trainer_plugin_host::{CompilerCommand, Formatter, HostOptions, Limits, PluginHost, PluginSource, RowOutcome};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(rows)) = (args.next(), args.next()) else {
        return Err("plugin_bench FOLDER_OF_PLUGINS ROWS.jsonl".into());
    };
    let rows: Vec<String> = std::fs::read_to_string(&rows)?.lines().map(str::to_owned).collect();
    let bytes: usize = rows.iter().map(String::len).sum();
    println!("{} rows, {} bytes each on average", rows.len(), bytes / rows.len().max(1));

    let cache = tempfile::tempdir()?;
    let compiler = std::env::current_exe()?.with_file_name("../trainer-plugin-compiler");
    let host = || {
        PluginHost::new(HostOptions {
            cache_dir: Some(cache.path().join("plugins")),
            ..HostOptions::new(CompilerCommand::new(&compiler, [""; 0]))
        })
    };
    let file = |name: &str| PluginSource::File(folder.join(name));
    let started = Instant::now();
    host()?.load(&file("math_mix.wasm"), Limits::default())?;
    host()?.load(&file("qwen3_chat.wasm"), Limits::default())?;
    println!("cold: two plugins compiled in child processes in {:.0?}", started.elapsed());

    // A host anew each time: what a program pays at its start.
    println!("host set up: {:.2?}", median(20, || host().map(drop))?);
    let start = median(20, || {
        let host = host()?;
        host.load(&file("math_mix.wasm"), Limits::default())?.formatter(&json!({}))?;
        Ok::<_, trainer_plugin_host::PluginError>(())
    })?;
    println!("cached start, from nothing to a configured instance: {start:.2?}");

    let host = host()?;
    let math = host.load(&file("math_mix.wasm"), Limits::default())?;
    let chat = host.load(&file("qwen3_chat.wasm"), Limits::default())?;
    println!("instantiate and configure: {:.2?}", median(200, || math.formatter(&json!({})).map(drop))?);

    let formatter = math.formatter(&json!({}))?;
    let template = chat.template(&json!({}))?;
    println!("empty call (describe): {:.2?}", median(2000, || template.describe().map(drop))?);
    let tiny = vec![r#"{"problem": "1+1?", "generated_solution": "2"}"#.to_owned()];
    println!("format one tiny row: {:.2?}", median(2000, || formatter.format(&tiny).map(drop))?);
    for batch in [1, 64] {
        formatting(&formatter, &rows, batch)?;
    }
    both(&formatter, &template, &rows)?;
    Ok(())
}

fn median<E>(times: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<Duration, E> {
    let mut spans = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        run()?;
        spans.push(started.elapsed());
    }
    spans.sort();
    Ok(spans.get(times / 2).copied().unwrap_or_default())
}

fn formatting(formatter: &Formatter, rows: &[String], batch: usize) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed() < Duration::from_secs(2) {
        for rows in rows.chunks(batch) {
            done += formatter.format(rows)?.len();
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("format, batch {batch}: {:.0} rows/s, {:.2} us a row", done as f64 / seconds, seconds * 1e6 / done as f64);
    Ok(())
}

fn both(formatter: &Formatter, template: &Template, rows: &[String]) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let (mut done, mut segments) = (0, 0);
    while started.elapsed() < Duration::from_secs(3) {
        for rows in rows.chunks(64) {
            let conversations: Vec<Conversation> = formatter
                .format(rows)?
                .into_iter()
                .filter_map(|outcome| if let RowOutcome::Sample(conversation) = outcome { Some(conversation) } else { None })
                .collect();
            for rendered in template.render_training(&conversations)? {
                segments += rendered?.iter().map(|r| r.segments.len()).sum::<usize>();
            }
            done += rows.len();
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("format + render for training, batch 64: {:.0} rows/s ({segments} segments)", done as f64 / seconds);
    Ok(())
}
