//! The data path over many rows on all cores: speed, the memory that it needs however many rows there are, the same with formatter and template as native
//! code, and with what was prepared.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use trainer_config::ModelSource;
use trainer_data::{Access, Pipeline, PipelineSpec, PreparedStore, Source, SourceSpec, pack, prepare};
use trainer_plugin_host::Kind;
use trainer_runtime::{DataParts, Plugins, compiler_command, load_tokenizer, pipeline_spec};

use super::data::{longer_rows, resident_bytes};
use super::figure::{Figure, Target};

/// Samples taken at a time, as a training step would.
const BATCH: usize = 64;
/// Tokens of a micro-batch.
const PACKED: usize = 8192;
/// Rows of a window of the streamed pass.
const WINDOW: u32 = 10_000;
/// Rows that warm up before memory is compared.
const WARM: u64 = 10;

/// A pass over the rows.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// As a run does it, at random.
    Random,
    /// The same with formatter and template as native code.
    Native,
    /// As a stream in windows.
    Stream,
    /// At random, with what was prepared.
    Prepared,
}

/// `rows` rows of maths, which think `times` times as long as the embedded ones, through source, mixing policy, formatter, template, tokenizer and
/// packer, with all limits on. `tokenizer`: a folder with another one than nano's.
pub fn measure(rows: u64, times: u16, tokenizer: Option<&Path>, threads: usize) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.jsonl");
    let bytes = write(&path, rows, times)?;
    let mut figures =
        vec![Figure::new("data_scale/rows", "rows", vec![rows as f64]), Figure::new("data_scale/source", "MB", vec![bytes as f64 / 1e6])];
    let store = PreparedStore::new(folder.path().join("prepared"));
    let mut speeds = Vec::new();
    for (name, way) in [("random", Way::Random), ("native", Way::Native), ("stream", Way::Stream), ("prepared", Way::Prepared)] {
        if way == Way::Native && cfg!(not(feature = "native-plugins")) {
            continue;
        }
        let began = Instant::now();
        let access = if way == Way::Stream { Access::Stream { window: WINDOW } } else { Access::Random };
        let spec = SourceSpec { access, ..SourceSpec::paths("math", [path.display().to_string()]) };
        let source = Arc::new(Source::open(spec)?);
        figures.push(Figure::new(format!("data_scale/{name}/open"), "s", vec![began.elapsed().as_secs_f64()]));
        let mut spec = pipeline(source, tokenizer, threads)?;
        match way {
            Way::Prepared => {
                let made = prepare(&spec, 0, &store, &mut |_| ControlFlow::Continue(()))?.context("the preparation was broken off")?;
                figures.push(Figure::new("data_scale/prepared/make", "rows/s", vec![made.rows as f64 / made.seconds.max(1e-9)]));
                figures.push(Figure::new("data_scale/prepared/size", "MB", vec![made.bytes as f64 / 1e6]));
                spec.prepared = Some(store.clone());
            }
            #[cfg(feature = "native-plugins")]
            Way::Native => super::data::natively(&mut spec)?,
            _ => {}
        }
        let pass = pass(name, spec, rows, threads)?;
        speeds.extend(pass.iter().find(|f| f.name.ends_with("/rows_per_cpu_second")).map(|f| (way, f.value)));
        figures.extend(pass);
    }
    let speed = |wanted: Way| speeds.iter().find(|(way, _)| *way == wanted).map(|(_, speed)| *speed);
    if let (Some(wasm), Some(native)) = (speed(Way::Random), speed(Way::Native)) {
        figures.push(Figure::new("data_scale/wasm_over_native", "ratio", vec![wasm / native]).target(Target::AtLeast(0.9)));
    }
    Ok(figures)
}

/// The embedded maths rows, over and over.
fn write(path: &Path, rows: u64, times: u16) -> Result<u64> {
    let lines = longer_rows(times)?;
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

fn pipeline(source: Arc<Source>, tokenizer: Option<&Path>, threads: usize) -> Result<PipelineSpec> {
    // One source alone, as the peer's figures are about.
    let mut recipe = super::super::recipe_with(&[], &[("mix.settings.chat_percentage", "0".to_owned())])?;
    recipe.data.sources.truncate(1);
    let tokenizer = match tokenizer {
        Some(folder) => load_tokenizer(&ModelSource::Folder(folder.to_owned()))?,
        None => load_tokenizer(&recipe.model.source)?,
    };
    let mut plugins = Plugins::new(&recipe, compiler_command()?)?;
    let mixer = plugins.get("mix.plugin", &recipe.mix.plugin, Kind::MixingPolicy)?;
    let formatters = [plugins.get("formatter", &recipe.mix.plugin, Kind::DatasetFormatter)?];
    let template = plugins.get("template.plugin", &recipe.template.plugin, Kind::ChatTemplate)?;
    let template = Arc::new(template.template(&serde_json::json!({}))?);
    let sources = [source];
    let parts = DataParts { mixer: &mixer, formatters: &formatters, sources: &sources, template: &template, tokenizer: &tokenizer };
    let mut spec = pipeline_spec(&recipe, &parts)?;
    // What the user has prepared is not what is measured.
    (spec.workers, spec.prepared) = (Some(threads), None);
    Ok(spec)
}

fn pass(name: &str, mut spec: PipelineSpec, rows: u64, threads: usize) -> Result<Vec<Figure>> {
    spec.max_draws = Some(rows);
    let mut pipeline = Pipeline::new(spec)?;
    let cpu = cpu_seconds();
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
    // What other programs take away is not in it: the figure for a core of a machine that is not idle.
    if let Some(cpu) = cpu_seconds().zip(cpu).map(|(after, before)| after - before).filter(|s| *s > 0.0) {
        figures.push(figure("rows_per_cpu_second", "rows/s", rows as f64 / cpu).target(Target::AtLeast(5000.0)));
    }
    if let (Some(warm), Some(last)) = (warm, resident_bytes()) {
        let mib = f64::from(1 << 20);
        figures.push(figure("peak_resident_memory", "MiB", peak.max(last) / mib));
        figures.push(figure("memory_growth_after_a_tenth", "MiB", (last - warm) / mib));
    }
    Ok(figures)
}

/// Processor time that this process has used, in all its threads, where the system tells.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name is in parentheses and may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    // Linux counts in hundredths for programs, whatever the kernel's own clock.
    Some((ticks()? + ticks()?) / 100.0)
}
