//! An evaluation as one page that needs nothing else: numbers, charts, and every transcript behind filters. Everything that comes from a model, a
//! plugin or a row is escaped.

use std::fmt::Write;

use serde_json::Value;
use trainer_eval::{Report, SampleResult};
use trainer_runs::chart::escape;
use trainer_runs::html::CSS;

/// The page's own style, over that of runs.
const OWN_CSS: &str = ".bar{height:.7rem;background:var(--c0);border-radius:2px;min-width:1px}.track{background:var(--card);border:1px solid var(--line);border-radius:3px;min-width:12rem}\
.yes{color:var(--good)}.no{color:var(--c1);font-weight:600}.turn{border-left:3px solid var(--line);padding-left:.6rem;margin:.4rem 0}\
.turn.assistant{border-color:var(--c0)}.turn.tool{border-color:var(--c2)}.turn.user{border-color:var(--c3)}.who{font-size:.85rem;color:var(--dim)}";

/// The page's script: filters.
const OWN_JS: &str = r#""use strict";
(() => {
  const form = document.querySelector("form.view"), rows = [...document.querySelectorAll("details.sample")], count = document.getElementById("shown");
  const apply = () => {
    const metric = form.metric.value, verdict = form.verdict.value, end = form.end.value, text = form.text.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const ok = (!metric || row.dataset.metric === metric) && (!verdict || row.dataset.verdict === verdict)
        && (!end || row.dataset.end.split(" ").includes(end)) && (!text || row.textContent.toLowerCase().includes(text));
      row.hidden = !ok;
      shown += ok;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (e) => e.preventDefault());
  apply();
})();
"#;

/// How a sample came out.
fn verdict(sample: &SampleResult) -> &'static str {
    let judged = |f: fn(&Value) -> bool| sample.scores.iter().any(|s| f(&s.value));
    if sample.failed.is_some() || judged(Value::is_null) {
        "unscored"
    } else if judged(|v| *v == Value::Bool(false)) {
        "wrong"
    } else if judged(|v| *v == Value::Bool(true)) {
        "right"
    } else {
        "scored"
    }
}

/// Why a sample's episodes ended, each once.
fn ends(sample: &SampleResult) -> Vec<String> {
    let mut all: Vec<String> = match sample.transcripts.as_slice() {
        [] => sample.finish.clone(),
        transcripts => transcripts.iter().map(|t| t.end.clone()).collect(),
    };
    all.sort();
    all.dedup();
    all
}

/// Bars with their values.
fn bars(title: &str, rows: &[(String, f64, String)], most: f64) -> String {
    let mut out = format!("<figure class=\"chart\"><figcaption>{}</figcaption><table>", escape(title));
    for (name, value, shown) in rows {
        let width = if most > 0.0 { (100.0 * value / most).clamp(0.0, 100.0) } else { 0.0 };
        let _ = write!(
            out,
            "<tr><th>{}</th><td><div class=\"track\"><div class=\"bar\" style=\"width:{width:.1}%\"></div></div></td><td class=\"n\">{}</td></tr>",
            escape(name),
            escape(shown)
        );
    }
    out + "</table></figure>"
}

fn counted(title: &str, names: impl Iterator<Item = String>) -> String {
    let mut counts = std::collections::BTreeMap::<String, u64>::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or(0) as f64;
    let rows: Vec<(String, f64, String)> = counts.into_iter().map(|(name, n)| (name, n as f64, n.to_string())).collect();
    if rows.is_empty() { String::new() } else { bars(title, &rows, most) }
}

fn charts(report: &Report, samples: &[SampleResult]) -> String {
    let shares: Vec<(String, f64, String)> = report
        .metrics
        .iter()
        .map(|(name, value)| {
            let stderr = report.stderr.get(name).map_or_else(String::new, |s| format!(" ± {s:.4}"));
            (name.clone(), *value, format!("{value:.4}{stderr}"))
        })
        .collect();
    let most = shares.iter().map(|(_, v, _)| *v).fold(1.0, f64::max);
    let mut out = bars("Metrics", &shares, most);
    for (name, table) in &report.pass_at_k {
        let mut table: Vec<(u32, f64)> = table.iter().filter_map(|(k, v)| Some((k.parse().ok()?, *v))).collect();
        table.sort_by_key(|(k, _)| *k);
        let rows: Vec<(String, f64, String)> = table.into_iter().map(|(k, v)| (format!("pass@{k}"), v, format!("{v:.4}"))).collect();
        out += &bars(&format!("{name} of several answers"), &rows, 1.0);
    }
    out += &counted("Samples", samples.iter().map(|s| verdict(s).to_owned()));
    out += &counted("How answers ended", samples.iter().flat_map(ends));
    let calls = || samples.iter().flat_map(|s| &s.transcripts);
    out += &counted("Calls per answer", calls().map(|t| t.calls.len().to_string()));
    out += &counted("Turns per answer", calls().map(|t| t.turns.to_string()));
    out
}

fn transcript(sample: &SampleResult) -> String {
    let mut out = format!("<div class=\"turn user\"><div class=\"who\">prompt</div><pre>{}</pre></div>", escape(&sample.prompt));
    let several = sample.outputs.len().max(sample.transcripts.len()) > 1;
    for (i, t) in sample.transcripts.iter().enumerate() {
        if several {
            let _ = write!(out, "<h3>answer {}</h3>", i + 1);
        }
        for m in &t.messages {
            let name = m.name.as_deref().map_or_else(String::new, |n| format!(" {}", escape(n)));
            let class = if ["assistant", "tool", "user"].contains(&m.role.as_str()) { m.role.as_str() } else { "other" };
            let _ = write!(out, "<div class=\"turn {class}\"><div class=\"who\">{}{name}</div>", escape(&m.role));
            if let Some(reasoning) = &m.reasoning {
                let _ = write!(out, "<details><summary>reasoning</summary><pre>{}</pre></details>", escape(reasoning));
            }
            if !m.content.is_empty() {
                let _ = write!(out, "<pre>{}</pre>", escape(&m.content));
            }
            for (name, arguments) in &m.tool_calls {
                let _ = write!(out, "<pre>{}({})</pre>", escape(name), escape(arguments));
            }
            out += "</div>";
        }
        let detail = t.detail.as_deref().map_or_else(String::new, |d| format!(": {}", escape(d)));
        let _ = write!(out, "<p class=\"dim\">ended: {}{detail}; {} turns, {} tokens</p>", escape(&t.end), t.turns, t.generated_tokens);
    }
    if sample.transcripts.is_empty() {
        for (i, output) in sample.outputs.iter().enumerate() {
            let who = if several { format!("answer {}", i + 1) } else { "answer".to_owned() };
            let _ = write!(out, "<div class=\"turn assistant\"><div class=\"who\">{who}</div><pre>{}</pre></div>", escape(output));
        }
    }
    if let Some(why) = &sample.failed {
        let _ = write!(out, "<p class=\"no\">failed: {}</p>", escape(why));
    }
    out += "<table>";
    for s in &sample.scores {
        let value = s.value.as_str().map_or_else(|| s.value.to_string(), str::to_owned);
        let _ = write!(out, "<tr><th>{}</th><td>{}</td><td>{}</td></tr>", escape(&s.name), escape(&value), escape(&s.explanation));
    }
    out + "</table>"
}

fn options(name: &str, values: impl Iterator<Item = String>) -> String {
    let all: std::collections::BTreeSet<String> = values.collect();
    let options: String = all.iter().map(|v| format!("<option value=\"{0}\">{0}</option>", escape(v))).collect();
    format!("<label>{name} <select name=\"{name}\"><option value=\"\">all</option>{options}</select></label>")
}

fn about(report: &Report) -> String {
    let mut rows = vec![
        ("data".to_owned(), report.data.path.clone()),
        ("trainer".to_owned(), report.trainer.clone()),
        ("tokens".to_owned(), format!("{} of prompts, {} generated", report.prompt_tokens, report.generated_tokens)),
    ];
    rows.extend(report.model.iter().map(|m| ("model".to_owned(), format!("{} {}", m.name, m.sha256))));
    rows.extend(report.predictions.iter().map(|p| ("given outputs".to_owned(), p.path.clone())));
    rows.extend(report.tokenizer.iter().map(|t| ("tokenizer".to_owned(), t.sha256.clone())));
    rows.extend(report.backend.iter().map(|b| ("device".to_owned(), b.clone())));
    rows.extend(report.adapter.iter().map(|a| ("adapter".to_owned(), a.sha256.clone())));
    rows.extend(report.data.files.iter().map(|f| ("data file".to_owned(), format!("{} {}", f.name, f.sha256))));
    let plugin = |p: &trainer_eval::Component| format!("{} {} {}", p.name, p.version.as_deref().unwrap_or_default(), p.sha256);
    rows.extend(report.plugins.iter().map(|p| ("plugin".to_owned(), plugin(p))));
    for (metric, n) in &report.rows {
        let skipped = n.skipped.values().sum::<u64>();
        rows.push((
            metric.clone(),
            format!("{} of {} rows scored, {skipped} skipped, {} bad, {} failed", n.scored, n.rows, n.bad, n.failed),
        ));
    }
    let rows: String = rows.iter().map(|(k, v)| format!("<tr><th>{}</th><td>{}</td></tr>", escape(k), escape(v))).collect();
    format!("<div class=\"scroll\"><table>{rows}</table></div>")
}

/// The page.
pub fn page(report: &Report, samples: &[SampleResult]) -> String {
    let mut rows = String::new();
    for sample in samples {
        let verdict = verdict(sample);
        let mark = match verdict {
            "right" => "<span class=\"yes\">right</span>".to_owned(),
            "wrong" | "unscored" => format!("<span class=\"no\">{verdict}</span>"),
            other => other.to_owned(),
        };
        let _ = writeln!(
            rows,
            "<details class=\"sample\" data-metric=\"{}\" data-verdict=\"{verdict}\" data-end=\"{}\"><summary>{} <span class=\"dim\">{}</span> {mark}</summary>{}</details>",
            escape(&sample.metric),
            escape(&ends(sample).join(" ")),
            escape(sample.id.as_deref().unwrap_or(&sample.row)),
            escape(&sample.metric),
            transcript(sample)
        );
    }
    let filters = format!(
        "<form class=\"view\">{}{}{}<label>text <input name=\"text\" type=\"search\"></label> <output id=\"shown\"></output></form>",
        options("metric", samples.iter().map(|s| s.metric.clone())),
        options("verdict", samples.iter().map(|s| verdict(s).to_owned())),
        options("end", samples.iter().flat_map(ends)),
    );
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\
         <title>Evaluation of {0}</title><style>{CSS}{OWN_CSS}</style></head><body><main><h1>Evaluation of {0}</h1>\n<div class=\"charts\">{1}</div>\
         <h2>What was evaluated</h2>{2}<h2>Transcripts</h2>{filters}{rows}</main><script>{OWN_JS}</script></body></html>\n",
        escape(report.model.as_ref().map_or("given outputs", |m| m.name.as_str())),
        charts(report, samples),
        about(report),
    )
}
