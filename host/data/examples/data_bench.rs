//! Rows and tokens per second of the data path: source, formatter, template, tokenizer, packer.
//!
//! `cargo run --release -p trainer-data --example data_bench -- [WORKERS] [ROWS]` (default: 0 workers, so all on one core, and 20,000 rows). The
//! nano maths rows are repeated into a temporary file; formatter and template are the official plugins with limits on.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use trainer_data::{Pipeline, PipelineSpec, PluginMixer, Source, SourceInput, SourceSpec, TextEncoder, pack};
use trainer_plugin_host::{CompilerCommand, HostOptions, Limits, PluginHost, PluginSource};
use trainer_text::Tokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let workers: usize = args.next().map_or(Ok(0), |a| a.parse())?;
    let wanted: usize = args.next().map_or(Ok(20_000), |a| a.parse())?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let assets = root.join("host/nano/assets");
    let rows = std::fs::read_to_string(assets.join("data/math_train.jsonl"))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    for line in rows.lines().cycle().take(wanted) {
        writeln!(file, "{line}")?;
    }
    file.into_inner()?.sync_all()?;

    let host = PluginHost::new(HostOptions::new(CompilerCommand::in_process()))?;
    let load = |name: &str| host.load(&PluginSource::File(root.join(format!("plugins/prebuilt/{name}.wasm"))), Limits::default());
    let mix = load("math_mix")?;
    let empty = serde_json::json!({});
    let formatter = Arc::new(mix.formatter(&empty)?);
    let template = Arc::new(load("qwen3_chat")?.template(&empty)?);
    let tokenizer = Arc::new(Tokenizer::from_dir(&assets.join("model"))?);

    let start = Instant::now();
    let source = Arc::new(Source::open(SourceSpec::paths("reasoning", [path.display().to_string()]))?);
    println!(
        "open (index and digest of {:.1} MB): {:.3} s",
        source.files().iter().map(|f| f.bytes).sum::<u64>() as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );

    let settings = serde_json::json!({});
    let mixer = Arc::new(PluginMixer { plugin: mix, settings });
    let mut spec = PipelineSpec::new(vec![SourceInput { source, formatter }], mixer, template, Arc::new(TextEncoder::new(tokenizer)), 3407);
    (spec.workers, spec.max_draws) = (Some(workers), Some(wanted as u64));
    let mut pipeline = Pipeline::new(spec)?;
    let start = Instant::now();
    let (mut tokens, mut batches) = (0usize, 0usize);
    loop {
        let samples = pipeline.next_samples(64)?;
        if samples.is_empty() {
            break;
        }
        let packed = pack(&samples, 8192)?;
        tokens += packed.iter().map(|b| b.tokens()).sum::<usize>();
        batches += packed.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    let rows = pipeline.counters().rows;
    let cores = workers.max(1);
    println!("{rows} rows, {tokens} tokens, {batches} micro-batches in {seconds:.2} s on {cores} core(s)");
    println!(
        "{:.0} rows/s, {:.0} tokens/s; per core {:.0} rows/s, {:.0} tokens/s",
        rows as f64 / seconds,
        tokens as f64 / seconds,
        rows as f64 / seconds / cores as f64,
        tokens as f64 / seconds / cores as f64
    );
    Ok(())
}
