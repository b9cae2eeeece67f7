//! The data path on one core: the whole of it, its stages alone, and the memory that a long run keeps.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use trainer_config::Recipe;
use trainer_data::{
    FormatOutcome, Pipeline, PipelineSpec, PluginMixer, RowFormatter, SampleTemplate, SegmentEncoder, Source, SourceInput, SourceSpec,
    TextEncoder, pack,
};
use trainer_plugin_host::Kind;
use trainer_plugin_host::types::Conversation;
use trainer_runtime::{Plugins, compiler_command, load_base};

use super::figure::{Figure, Target, rates, seconds};

/// Rows that are drawn in one measurement.
const ROWS: usize = 20_000;
/// Draws over which memory must not grow, in units of [`ROWS`].
const LONG: usize = 5;
/// Rows that go to a plugin at once.
const BATCH: usize = 64;
/// Measurements of each figure.
const TIMES: usize = 3;

/// Rows per second of the whole path and of its stages, and the growth of resident memory.
pub fn measure() -> Result<Vec<Figure>> {
    let recipe = super::super::recipe_with(&[], &[])?;
    let base = load_base(&recipe.model.source, recipe.model.quantization, false)?;
    let encoder = TextEncoder::new(base.tokenizer.clone());
    let rows = math_rows()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rows.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    for row in rows.iter().cycle().take(ROWS) {
        writeln!(file, "{row}")?;
    }
    file.into_inner().map_err(|e| e.into_error()).context("cannot write the rows to measure with")?;
    let source = Arc::new(Source::open(SourceSpec::paths("reasoning", [path.display().to_string()]))?);
    let mut plugins = Plugins::new(&recipe, compiler_command()?)?;
    let path = Path { recipe: &recipe, source, encoder: &encoder };

    let (mut by_rows, mut by_tokens, mut native) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let began = Instant::now();
        let (rows, tokens) = path.pass(&mut plugins, ROWS, &mut || {})?;
        let elapsed = began.elapsed().as_secs_f64().max(1e-12);
        by_rows.push(rows as f64 / elapsed);
        by_tokens.push(tokens as f64 / elapsed);
        // In turns, so that what else the machine does falls on both.
        let began = Instant::now();
        if let Some((rows, same)) = path.native_pass(&mut plugins, ROWS)? {
            native.push(rows as f64 / began.elapsed().as_secs_f64().max(1e-12));
            if same != tokens {
                bail!("the native path gave {same} tokens, the plugins {tokens}");
            }
        }
    }
    let ratios: Vec<f64> = by_rows.iter().zip(&native).map(|(wasm, native)| wasm / native).collect();
    let mut figures = vec![
        Figure::new("data/rows_per_second", "rows/s", by_rows).target(Target::AtLeast(5000.0)),
        Figure::new("data/tokens_per_second", "tokens/s", by_tokens),
    ];
    if !native.is_empty() {
        figures.push(Figure::new("data/native_rows_per_second", "rows/s", native));
        figures.push(Figure::new("data/wasm_over_native", "ratio", ratios).target(Target::AtLeast(0.9)));
    }
    figures.extend(stages(&recipe, &mut plugins, &rows, &encoder)?);
    figures.extend(memory(&path, &mut plugins)?);
    Ok(figures)
}

/// The embedded maths rows.
pub fn math_rows() -> Result<Vec<String>> {
    let file = trainer_nano::data("math_train").ok_or_else(|| anyhow!("this program was built without its maths rows"))?;
    Ok(std::str::from_utf8(file.bytes)?.lines().map(str::to_owned).collect())
}

/// The embedded rows, the thoughts of each followed by those of the rows after it until there are `times`.
pub fn longer_rows(times: u16) -> Result<Vec<String>> {
    const SOLUTION: &str = "generated_solution";
    let lines = math_rows()?;
    if times == 1 {
        return Ok(lines);
    }
    let rows = lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line)).collect::<Result<Vec<_>, _>>()?;
    let parts = rows.iter().map(|row| {
        let text = row.get(SOLUTION).and_then(serde_json::Value::as_str)?;
        text.strip_prefix("<think>\n")?.split_once("\n</think>")
    });
    let parts = parts.collect::<Option<Vec<_>>>().context("an embedded row has no thoughts")?;
    let long = rows.iter().enumerate().map(|(i, row)| {
        let thoughts = parts.iter().cycle().skip(i).take(times.into()).map(|p| p.0).collect::<Vec<_>>().join("\n");
        let answer = parts.get(i).map_or("", |p| p.1);
        let mut row = row.clone();
        if let Some(solution) = row.get_mut(SOLUTION) {
            *solution = format!("<think>\n{thoughts}\n</think>{answer}").into();
        }
        row.to_string()
    });
    Ok(long.collect())
}

/// Source, formatter, template, tokenizer and packer, with limits on, in the calling thread.
struct Path<'a> {
    recipe: &'a Recipe,
    source: Arc<Source>,
    encoder: &'a TextEncoder,
}

impl Path<'_> {
    /// Draws `draws` rows and gives rows and tokens; `each` is called between steps.
    fn pass(&self, plugins: &mut Plugins, draws: usize, each: &mut dyn FnMut()) -> Result<(u64, usize)> {
        let spec = self.spec(plugins)?;
        run(spec, draws, each)
    }

    /// The same with formatter and template as native code, where that is in the program.
    fn native_pass(&self, plugins: &mut Plugins, draws: usize) -> Result<Option<(u64, usize)>> {
        #[cfg(feature = "native-plugins")]
        {
            let mut spec = self.spec(plugins)?;
            natively(&mut spec)?;
            Ok(Some(run(spec, draws, &mut || {})?))
        }
        #[cfg(not(feature = "native-plugins"))]
        {
            let _ = (plugins, draws);
            Ok(None)
        }
    }

    fn spec(&self, plugins: &mut Plugins) -> Result<PipelineSpec> {
        let mix = plugins.get("mix.plugin", &self.recipe.mix.plugin, Kind::MixingPolicy)?;
        let template = plugins.get("template.plugin", &self.recipe.template.plugin, Kind::ChatTemplate)?;
        let empty = serde_json::json!({});
        let input = SourceInput { source: self.source.clone(), formatter: Arc::new(mix.formatter(&empty)?) };
        // One source alone: the rows that the peer's figures are about.
        let mixer = Arc::new(PluginMixer { plugin: mix, settings: serde_json::json!({ "chat_percentage": 0 }) });
        let mut spec = PipelineSpec::new(
            vec![input],
            mixer,
            Arc::new(template.template(&empty)?),
            Arc::new(self.encoder.clone()),
            self.recipe.train.seed,
        );
        spec.workers = Some(0);
        Ok(spec)
    }
}

/// Draws `draws` rows and gives rows and tokens; `each` is called between steps.
fn run(mut spec: PipelineSpec, draws: usize, each: &mut dyn FnMut()) -> Result<(u64, usize)> {
    spec.max_draws = Some(u64::try_from(draws)?);
    let mut pipeline = Pipeline::new(spec)?;
    let mut tokens = 0;
    loop {
        let samples = pipeline.next_samples(BATCH)?;
        if samples.is_empty() {
            break;
        }
        tokens += pack(&samples, 8192)?.iter().map(|b| b.tokens()).sum::<usize>();
        each();
    }
    Ok((pipeline.counters().rows, tokens))
}

/// Puts formatter and template as native code in place of the plugins.
#[cfg(feature = "native-plugins")]
pub fn natively(spec: &mut PipelineSpec) -> Result<()> {
    let formatter: Arc<dyn RowFormatter> = Arc::new(super::native::NativeFormatter::new()?);
    spec.sources.iter_mut().for_each(|s| s.formatter = Arc::clone(&formatter));
    spec.template = Arc::new(super::native::NativeTemplate::new()?);
    Ok(())
}

/// Each stage alone, over what the one before it gave.
fn stages(recipe: &Recipe, plugins: &mut Plugins, rows: &[String], encoder: &TextEncoder) -> Result<Vec<Figure>> {
    let empty = serde_json::json!({});
    let formatter = plugins.get("mix.plugin", &recipe.mix.plugin, Kind::DatasetFormatter)?.formatter(&empty)?;
    let template = plugins.get("template.plugin", &recipe.template.plugin, Kind::ChatTemplate)?.template(&empty)?;
    let mut conversations: Vec<Conversation> = Vec::new();
    let format = seconds(TIMES, || {
        conversations.clear();
        for rows in rows.chunks(BATCH) {
            for outcome in RowFormatter::format(&formatter, rows).map_err(|e| anyhow!("{e}"))? {
                let FormatOutcome::Sample(conversation) = outcome else { bail!("an embedded row gave no sample") };
                conversations.push(conversation);
            }
        }
        Ok(())
    })?;
    let mut texts = Vec::new();
    let render = seconds(TIMES, || {
        texts.clear();
        for conversations in conversations.chunks(BATCH) {
            for rendered in template.render(conversations).map_err(|e| anyhow!("{e}"))? {
                let samples = rendered.map_err(|fault| anyhow!("{}", fault.message))?;
                texts.extend(samples.into_iter().map(|s| s.into_iter().map(|r| (r.piece, r.weight)).collect::<Vec<_>>()));
            }
        }
        Ok(())
    })?;
    let encode = seconds(TIMES, || {
        for segments in &texts {
            encoder.encode(segments).map_err(|e| anyhow!("{e}"))?;
        }
        Ok(())
    })?;
    Ok(vec![
        Figure::new("data/formatter_rows_per_second", "rows/s", rates(rows.len(), &format)),
        Figure::new("data/template_rows_per_second", "rows/s", rates(rows.len(), &render)),
        Figure::new("data/tokenizer_rows_per_second", "rows/s", rates(rows.len(), &encode)),
    ])
}

/// Resident memory at the end of a long run over what it was after the first [`ROWS`] draws of the same run.
fn memory(path: &Path<'_>, plugins: &mut Plugins) -> Result<Vec<Figure>> {
    let every = ROWS / BATCH;
    let (mut step, mut resident) = (0, Vec::new());
    let (rows, _) = path.pass(plugins, ROWS * LONG, &mut || {
        step += 1;
        if step % every == 0 {
            resident.extend(resident_bytes().map(|bytes| bytes / f64::from(1 << 20)));
        }
    })?;
    if rows != u64::try_from(ROWS * LONG)? {
        bail!("the long run ended after {rows} of {} rows, so it says nothing about memory", ROWS * LONG);
    }
    let (Some(first), Some(last)) = (resident.first(), resident.last()) else { return Ok(Vec::new()) };
    let name = format!("data/memory_growth_over_{}_rows", (resident.len() - 1) * every * BATCH);
    let growth = Figure::new(name, "MiB", vec![last - first]);
    Ok(vec![growth, Figure::new("data/resident_memory", "MiB", resident)])
}

/// Resident memory of this process, where the system tells.
pub fn resident_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.trim().split(' ').next()?.parse::<f64>().ok()? * 1024.0)
}
