//! The data path over many rows on all cores: speed, and the memory that it needs however many rows there are.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use trainer_data::{Access, Pipeline, Source, SourceSpec, pack};
use trainer_plugin_host::Kind;
use trainer_runtime::{DataParts, Plugins, compiler_command, load_tokenizer, pipeline_spec};

use super::data::{math_rows, resident_bytes};
use super::figure::Figure;

/// Samples taken at a time, as a training step would.
const BATCH: usize = 64;
/// Tokens of a micro-batch.
const PACKED: usize = 8192;
/// Rows of a window of the streamed pass.
const WINDOW: u32 = 10_000;
/// Rows that warm up before memory is compared.
const WARM: u64 = 10;

/// `rows` rows of maths through source, mixing policy, formatter, template, tokenizer and packer, with all limits on: read at random, and as a
/// stream in windows.
pub fn measure(rows: u64, threads: usize) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.jsonl");
    let bytes = write(&path, rows)?;
    let mut figures =
        vec![Figure::new("data_scale/rows", "rows", vec![rows as f64]), Figure::new("data_scale/source", "MB", vec![bytes as f64 / 1e6])];
    for (name, access) in [("random", Access::Random), ("stream", Access::Stream { window: WINDOW })] {
        let began = Instant::now();
        let spec = SourceSpec { access, ..SourceSpec::paths("math", [path.display().to_string()]) };
        let source = Arc::new(Source::open(spec)?);
        figures.push(Figure::new(format!("data_scale/{name}/open"), "s", vec![began.elapsed().as_secs_f64()]));
        figures.extend(pass(name, source, rows, threads)?);
    }
    Ok(figures)
}

/// The embedded maths rows, over and over.
fn write(path: &std::path::Path, rows: u64) -> Result<u64> {
    let lines = math_rows()?;
    let failed = || format!("cannot write {} rows to measure with to {}", rows, path.display());
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).with_context(failed)?);
    let mut bytes = 0;
    for (line, _) in lines.iter().cycle().zip(0..rows) {
        writeln!(file, "{line}").with_context(failed)?;
        bytes += line.len() as u64 + 1;
    }
    file.flush().with_context(failed)?;
    Ok(bytes)
}

fn pass(name: &str, source: Arc<Source>, rows: u64, threads: usize) -> Result<Vec<Figure>> {
    // One source alone, as the peer's figures are about.
    let mut recipe = super::super::recipe_with(&[], &[("mix.settings.chat_percentage", "0".to_owned())])?;
    recipe.data.sources.truncate(1);
    let tokenizer = load_tokenizer(&recipe.model.source)?;
    let mut plugins = Plugins::new(&recipe, compiler_command()?)?;
    let mixer = plugins.get("mix.plugin", &recipe.mix.plugin, Kind::MixingPolicy)?;
    let formatters = [plugins.get("formatter", &recipe.mix.plugin, Kind::DatasetFormatter)?];
    let template = plugins.get("template.plugin", &recipe.template.plugin, Kind::ChatTemplate)?;
    let template = Arc::new(template.template(&serde_json::json!({}))?);
    let sources = [source];
    let parts = DataParts { mixer: &mixer, formatters: &formatters, sources: &sources, template: &template, tokenizer: &tokenizer };
    let mut spec = pipeline_spec(&recipe, &parts)?;
    (spec.workers, spec.max_draws) = (Some(threads), Some(rows));
    let mut pipeline = Pipeline::new(spec)?;
    let (began, mut tokens, mut warm) = (Instant::now(), 0usize, None);
    let mut peak = 0.0f64;
    loop {
        let samples = pipeline.next_samples(BATCH)?;
        if samples.is_empty() {
            break;
        }
        tokens += pack(&samples, PACKED)?.iter().map(|b| b.tokens()).sum::<usize>();
        if pipeline.counters().rows.is_multiple_of(BATCH as u64 * 64)
            && let Some(bytes) = resident_bytes()
        {
            peak = peak.max(bytes);
            if warm.is_none() && pipeline.counters().rows >= rows / WARM {
                warm = Some(bytes);
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64().max(1e-9);
    let done = pipeline.counters().rows;
    if done != rows {
        bail!("the pass ended after {done} of {rows} rows");
    }
    let figure = |what: &str, unit, value: f64| Figure::new(format!("data_scale/{name}/{what}"), unit, vec![value]);
    let mut figures = vec![
        figure("rows_per_second", "rows/s", rows as f64 / seconds),
        figure("tokens_per_second", "tokens/s", tokens as f64 / seconds),
        figure("rows_per_second_per_thread", "rows/s", rows as f64 / seconds / threads.max(1) as f64),
    ];
    if let (Some(warm), Some(last)) = (warm, resident_bytes()) {
        let mib = f64::from(1 << 20);
        figures.push(figure("peak_resident_memory", "MiB", peak.max(last) / mib));
        figures.push(figure("memory_growth_after_a_tenth", "MiB", (last - warm) / mib));
    }
    Ok(figures)
}
