//! Runs as HTML: the pieces that the report and the dashboard share. Everything from a run is escaped.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde_json::Value;

use crate::chart::{Chart, Series, escape, number, smooth};
use crate::overview::{Comparison, Difference, Overview};
use crate::read::{Run, RunError};
use crate::records::{EvalMetrics, SampleAnswer, StepMetrics, StepTimings};
use crate::time::for_people;

/// The pages' style.
pub const CSS: &str = include_str!("page.css");
/// The pages' script.
pub const JS: &str = include_str!("page.js");

/// How charts are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// The weight of earlier steps in the smoothed loss, from 0 (not smoothed) to 0.999.
    pub smoothing: f64,
    /// Whether the loss has a logarithmic axis.
    pub log: bool,
}

impl Default for View {
    fn default() -> Self {
        Self { smoothing: 0.9, log: false }
    }
}

/// A run's journals.
struct Lines {
    name: String,
    metrics: Arc<Vec<StepMetrics>>,
    timings: Arc<Vec<StepTimings>>,
    evals: BTreeMap<String, Vec<(f64, f64)>>,
}

/// By number: its course over the evaluations before and during training. Empty where there were none during training.
fn eval_courses(run: &Run) -> Result<BTreeMap<String, Vec<(f64, f64)>>, RunError> {
    let during = run.evals()?;
    let mut out: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    if during.is_empty() {
        return Ok(out);
    }
    let before = run.evaluation("before").map(|e| e.metrics);
    for (step, metrics) in before.iter().map(|m| (0, m)).chain(during.iter().map(|e| (e.step, &e.metrics))) {
        for (name, value) in metrics {
            out.entry(name.clone()).or_default().push((step as f64, *value));
        }
    }
    Ok(out)
}

impl Lines {
    fn read(run: &Run) -> Result<Self, RunError> {
        Ok(Self { name: run.name(), metrics: run.metrics()?, timings: run.timings()?, evals: eval_courses(run)? })
    }

    fn metric(&self, value: impl Fn(&StepMetrics) -> f64) -> Vec<(f64, f64)> {
        self.metrics.iter().map(|m| (m.step as f64, value(m))).collect()
    }

    fn timing(&self, value: impl Fn(&StepTimings) -> Option<f64>) -> Vec<(f64, f64)> {
        self.timings.iter().filter_map(|t| Some((t.step as f64, value(t)?))).collect()
    }

    /// By source: a value of each step that drew from it.
    fn by_source(&self, value: impl Fn(&crate::records::SourceMetrics) -> f64) -> BTreeMap<String, Vec<(f64, f64)>> {
        let mut out: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for m in self.metrics.iter() {
            for s in &m.sources {
                out.entry(s.name.clone()).or_default().push((m.step as f64, value(s)));
            }
        }
        out
    }

    /// By source: its share of all samples so far.
    fn mix(&self) -> BTreeMap<String, Vec<(f64, f64)>> {
        let mut drawn: BTreeMap<&str, u64> = BTreeMap::new();
        let mut out: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for m in self.metrics.iter() {
            for s in &m.sources {
                *drawn.entry(&s.name).or_default() += s.samples;
            }
            let all = drawn.values().sum::<u64>().max(1) as f64;
            for (name, n) in &drawn {
                out.entry((*name).to_owned()).or_default().push((m.step as f64, *n as f64 / all));
            }
        }
        out
    }
}

/// The charts of one run, or of several with a line for each.
///
/// # Errors
/// If a file of one is there and cannot be read.
pub fn charts(runs: &[Run], view: View) -> Result<String, RunError> {
    let all = runs.iter().map(Lines::read).collect::<Result<Vec<_>, _>>()?;
    let alone = all.len() == 1;
    let line = |name: &str, color: usize, points| Series { name: name.to_owned(), color, faint: false, points };
    let chart = |id: &str, title: &str, series: Vec<Series>| Chart {
        id: id.to_owned(),
        title: title.to_owned(),
        series,
        log: false,
        from_zero: false,
    };
    let mut charts = Vec::new();
    let mut loss = Vec::new();
    for (i, lines) in all.iter().enumerate() {
        let points = lines.metric(|m| m.loss);
        if view.smoothing > 0.0 {
            loss.push(line(if alone { "smoothed" } else { &lines.name }, i, smooth(&points, view.smoothing)));
            loss.push(Series { faint: true, ..line("loss", i, points) });
        } else {
            loss.push(line(if alone { "loss" } else { &lines.name }, i, points));
        }
    }
    charts.push(Chart { log: view.log, ..chart("loss", "Loss (nats per token)", loss) });
    let measured: std::collections::BTreeSet<&String> = all.iter().flat_map(|l| l.evals.keys()).collect();
    for (i, number) in measured.into_iter().enumerate() {
        let of = |(i, l): (usize, &Lines)| Some(line(if alone { "value" } else { &l.name }, i, l.evals.get(number)?.clone()));
        let series = all.iter().enumerate().filter_map(of).collect();
        charts.push(chart(&format!("eval-{i}"), &format!("Evaluation: {number}"), series));
    }
    let of_metric = |value: fn(&StepMetrics) -> f64| -> Vec<Series> {
        all.iter().enumerate().map(|(i, l)| line(if alone { "value" } else { &l.name }, i, l.metric(value))).collect()
    };
    let of_timing = |value: fn(&StepTimings) -> Option<f64>| -> Vec<Series> {
        all.iter().enumerate().map(|(i, l)| line(if alone { "value" } else { &l.name }, i, l.timing(value))).collect()
    };
    charts.push(Chart { from_zero: true, ..chart("lr", "Learning rate", of_metric(|m| m.lr)) });
    charts.push(Chart { from_zero: true, ..chart("grad", "Gradient norm", of_metric(|m| m.grad_norm)) });
    charts.push(Chart { from_zero: true, ..chart("speed", "Tokens per second", of_timing(|t| Some(t.tokens_per_second))) });
    charts.push(Chart { from_zero: true, ..chart("memory", "Resident memory (GiB)", of_timing(|t| t.memory.map(gib))) });
    let gpu = [
        chart("gpu-load", "Load of the card (percent)", of_timing(|t| t.gpu_load)),
        chart("gpu-memory", "Memory of the card in use (GiB)", of_timing(|t| t.gpu_memory.map(gib))),
    ];
    // Runs on the CPU have none.
    charts.extend(gpu.into_iter().filter(|c| !c.is_empty()).map(|c| Chart { from_zero: true, ..c }));
    let waited = |t: &StepTimings| (t.seconds > 0.0).then(|| t.data_wait_seconds / t.seconds);
    charts.push(Chart { from_zero: true, ..chart("wait", "Share of the time spent waiting for data", of_timing(waited)) });
    if let [lines] = all.as_slice() {
        let many = |by: BTreeMap<String, Vec<(f64, f64)>>, smoothing: f64| -> Vec<Series> {
            let smoothed = |points: Vec<(f64, f64)>| if smoothing > 0.0 { smooth(&points, smoothing) } else { points };
            by.into_iter().enumerate().map(|(i, (name, points))| line(&name, i, smoothed(points))).collect()
        };
        charts.push(Chart { from_zero: true, ..chart("mix", "The mix drawn (share of samples so far)", many(lines.mix(), 0.0)) });
        charts.push(chart("sources", "Loss by source", many(lines.by_source(|s| s.loss), view.smoothing)));
    }
    Ok(charts.iter().map(Chart::html).collect())
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// A number with its thousands apart.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let (head, rest) = digits.split_at(first);
    let groups = rest.as_bytes().chunks(3).map(|g| String::from_utf8_lossy(g).into_owned());
    Some(head.to_owned()).filter(|h| !h.is_empty()).into_iter().chain(groups).collect::<Vec<_>>().join(",")
}

/// A duration for people.
fn time(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..=59 => format!("{seconds:.1} s"),
        60..=3599 => format!("{}:{:02} min", s / 60, s % 60),
        _ => format!("{}:{:02} h", s / 3600, s / 60 % 60),
    }
}

/// A value of a table.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<td class=\"dim\">-</td>".to_owned(),
        Value::Number(n) => format!("<td class=\"n\">{}</td>", n.as_f64().filter(|_| n.is_f64()).map_or_else(|| n.to_string(), number)),
        Value::String(s) => format!("<td>{}</td>", escape(s)),
        other => format!("<td>{}</td>", escape(&other.to_string())),
    }
}

/// A line of the overview: a run's value of it.
type Fact = fn(&Overview) -> Option<String>;

/// What runs are and how far they are: a list for one, a table with a column for each of several.
pub fn overview(runs: &[Overview]) -> String {
    let text = |v: Option<String>| v.map_or(Value::Null, Value::from);
    let rows: [(&str, Fact); 15] = [
        ("began (UTC)", |o| o.started.as_deref().map(for_people)),
        ("model", |o| o.model.clone()),
        ("device", |o| o.device.clone()),
        ("steps", |o| Some(o.steps.map_or_else(|| o.step.to_string(), |n| format!("{} of {n}", o.step)))),
        ("best step", |o| o.best_step.map(|s| s.to_string())),
        ("ended early", |o| o.stopped_early.clone()),
        ("first loss", |o| o.first_loss.map(number)),
        ("loss of the last ten steps", |o| o.last_loss.map(number)),
        ("tokens", |o| Some(thousands(o.tokens))),
        ("training time", |o| Some(time(o.seconds))),
        ("tokens per second", |o| o.tokens_per_second.map(number)),
        ("waiting for data", |o| o.data_wait_share.map(|s| format!("{:.1} %", 100.0 * s))),
        ("most memory", |o| o.memory.map(|m| format!("{:.2} GiB", gib(m)))),
        ("load of the card", |o| o.gpu_load.map(|l| format!("{l:.0} %"))),
        ("most memory of the card", |o| o.gpu_memory.map(|m| format!("{:.2} GiB", gib(m)))),
    ];
    if let [only] = runs {
        // Beside each other, so that the charts are not far down.
        let state = format!("<div><dt>state</dt><dd class=\"{0}\">{0}</dd></div>", only.state.name());
        let fact = |(name, value): (&str, Fact)| Some(format!("<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value(only)?)));
        return format!("<dl class=\"facts\">{state}{}</dl>\n", rows.into_iter().filter_map(fact).collect::<String>());
    }
    let mut out = "<div class=\"scroll\"><table><thead><tr><th></th>".to_owned();
    for o in runs {
        let _ = write!(out, "<th>{} <span class=\"{1}\">{1}</span></th>", escape(&o.name), o.state.name());
    }
    out += "</tr></thead><tbody>";
    for (name, value) in rows {
        // What no run has would be a line of dashes.
        if runs.iter().all(|o| value(o).is_none()) {
            continue;
        }
        let _ = write!(out, "<tr><th>{name}</th>{}</tr>", runs.iter().map(|o| cell(&text(value(o)))).collect::<String>());
    }
    out + "</tbody></table></div>\n"
}

/// A table of differences.
pub fn differences(names: &[String], rows: &[Difference], none: &str) -> String {
    if rows.is_empty() {
        return format!("<p class=\"none\">{}</p>\n", escape(none));
    }
    let head: String = names.iter().map(|n| format!("<th>{}</th>", escape(n))).collect();
    let row = |d: &Difference| format!("<tr><th>{}</th>{}</tr>", escape(&d.key), d.values.iter().map(cell).collect::<String>());
    let body: String = rows.iter().map(row).collect();
    format!("<div class=\"scroll\"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>\n")
}

/// The tables of a comparison.
pub fn comparison(c: &Comparison) -> String {
    let names: Vec<String> = c.runs.iter().map(|r| r.name.clone()).collect();
    let same = match c.first_different_step {
        Some(step) => format!("The losses are the same to the bit before step {step}."),
        None => "The losses are the same to the bit as far as all runs have gone.".to_owned(),
    };
    format!(
        "<h2>Overview</h2>{}<p class=\"dim\">{same}</p><h2>Evaluations</h2>{}<h2>Recipe: what differs</h2>{}<h2>Lock: what else differs</h2>{}",
        overview(&c.runs),
        differences(&names, &c.evaluations, "no evaluations"),
        differences(&names, &c.recipe, "the recipes are the same"),
        differences(&names, &c.lock, "data, model, plugins, plan, machine and libraries are the same"),
    )
}

/// A run's evaluations; with `links`, each name leads to `eval/NAME` below that address.
pub fn evaluations(run: &Run, links: Option<&str>) -> String {
    let reports = run.evaluations();
    if reports.is_empty() {
        let during = steps(run, links);
        return if during.is_empty() { "<p class=\"none\">no evaluations</p>\n".to_owned() } else { during };
    }
    let keys: std::collections::BTreeSet<&String> = reports.iter().flat_map(|r| r.metrics.keys()).collect();
    let mut out = "<div class=\"scroll\"><table><thead><tr><th></th>".to_owned();
    for r in &reports {
        let name = escape(&r.name);
        let linked = run.file("eval").join(format!("{}.samples.jsonl", r.name)).is_file();
        let _ = match links.filter(|_| linked) {
            Some(base) => write!(out, "<th><a href=\"{}eval/{}\">{name}</a></th>", escape(base), escape(&percent(&r.name))),
            None => write!(out, "<th>{name}</th>"),
        };
    }
    out += "</tr></thead><tbody>";
    for key in keys {
        let _ = write!(out, "<tr><th>{}</th>", escape(key));
        for r in &reports {
            let error = r.stderr.get(key).map_or_else(String::new, |e| format!(" ± {}", number(*e)));
            let value = r.metrics.get(key).map_or_else(|| "-".to_owned(), |v| number(*v) + &error);
            let _ = write!(out, "<td class=\"n\">{value}</td>");
        }
        out += "</tr>";
    }
    out + "</tbody></table></div>\n" + &steps(run, links)
}

/// The steps that were evaluated during training, as links to their transcripts.
fn steps(run: &Run, links: Option<&str>) -> String {
    let (Some(base), Ok(evals)) = (links, run.evals()) else { return String::new() };
    let one = |e: &EvalMetrics| {
        let name = EvalMetrics::report_name(e.step);
        format!("<a href=\"{}eval/{name}\">{}{}</a>", escape(base), e.step, if e.best { " (best so far)" } else { "" })
    };
    if evals.is_empty() {
        return String::new();
    }
    format!("<p>transcripts after step {}</p>\n", evals.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// A name as a part of an address.
pub fn percent(text: &str) -> String {
    let one = |b: u8| if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(one).collect()
}

/// A run's sample answers, the newest first.
pub fn samples(samples: &[SampleAnswer]) -> String {
    if samples.is_empty() {
        return "<p class=\"none\">no sample answers yet</p>\n".to_owned();
    }
    let one = |s: &SampleAnswer| format!("<h3>after step {}</h3><pre>{}</pre><pre>{}</pre>\n", s.step, escape(&s.prompt), escape(&s.text));
    samples.iter().rev().take(50).map(one).collect()
}

/// A file of a run, folded.
pub fn folded(title: &str, text: &str) -> String {
    format!("<details><summary>{}</summary><pre>{}</pre></details>\n", escape(title), escape(text))
}

/// Bytes of a file that a page shows. A lock of a run on a card names the way of each of its thousands of matrix products.
const SHOWN: usize = 64 << 10;

/// A file of a run as text, of a long one the beginning; empty where there is none.
pub fn file_text(run: &Run, name: &str) -> String {
    let Ok(mut bytes) = std::fs::read(run.file(name)) else { return String::new() };
    let more = bytes.len().saturating_sub(SHOWN);
    bytes.truncate(SHOWN);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if more > 0 {
        text.push_str(&format!("\n[{more} more bytes are in {name}]\n"));
    }
    text
}

/// The first transcripts of an evaluation.
///
/// # Errors
/// If the file is there and cannot be read.
pub fn transcripts(run: &Run, name: &str, most: usize) -> Result<String, RunError> {
    let path = run.file("eval").join(format!("{name}.samples.jsonl"));
    let mut tail = crate::Tail::<Value>::new(&path);
    let mut rows = Vec::new();
    while rows.len() < most {
        let more = tail.read().map_err(|source| RunError::Read { path: path.clone(), source })?;
        if more.is_empty() {
            break;
        }
        rows.extend(more);
    }
    rows.truncate(most);
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut out = String::new();
    for row in rows {
        let scores: Vec<String> =
            row["scores"].as_array().into_iter().flatten().map(|s| format!("{} = {}", text(&s["name"]), text(&s["value"]))).collect();
        let _ = write!(
            out,
            "<details><summary>{}: {}</summary><pre>{}</pre>",
            escape(&text(&row["row"])),
            escape(&scores.join(", ")),
            escape(&text(&row["prompt"]))
        );
        for answer in row["outputs"].as_array().into_iter().flatten() {
            let _ = write!(out, "<pre>{}</pre>", escape(&text(answer)));
        }
        out += "</details>\n";
    }
    Ok(if out.is_empty() { "<p class=\"none\">no transcripts</p>\n".to_owned() } else { out })
}

/// A whole report: one file that needs nothing else.
///
/// # Errors
/// If a file of the run is there and cannot be read.
pub fn report(run: &Run) -> Result<String, RunError> {
    let about = run.overview()?;
    let title = escape(&about.name);
    let mut evals = String::new();
    for e in run.evaluations() {
        let shown = transcripts(run, &e.name, 20)?;
        let _ = write!(evals, "<details><summary>transcripts: {} (the first 20)</summary>{shown}</details>", escape(&e.name));
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{CSS}</style></head><body><main><h1>{title}</h1>\n{}<h2>Evaluations</h2>{}{evals}<h2>Training</h2>\
         <div class=\"charts\">{}</div><h2>Sample answers</h2>{}<h2>What it was made of</h2>{}{}</main><script>{JS}</script></body></html>\n",
        overview(std::slice::from_ref(&about)),
        evaluations(run, None),
        charts(std::slice::from_ref(run), View::default())?,
        samples(&run.samples()?),
        folded("recipe.toml", &file_text(run, "recipe.toml")),
        folded("lock.json", &file_text(run, "lock.json")),
    ))
}
