//! The pages: a list of runs, a run, runs side by side, transcripts; and the same as JSON. Runs are named by their path below the folder and looked
//! up among those found there, so no request reaches any other file.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path as UrlPath, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use trainer_runs::chart::{escape, number};
use trainer_runs::html::{self, View};
use trainer_runs::{Run, RunError, Shelf, all_below, compare, find, for_people};

use crate::Options;
use crate::guard::guard;

const STYLE: &str = html::CSS;
const CHARTS: &str = html::JS;
const LIVE: &str = include_str!("live.js");
/// A browser's table and colours end somewhere.
const MOST_COMPARED: usize = 8;

/// Bytes of journals whose records stay in memory between two requests: some runs of a million steps, or all of the usual ones.
const KEPT: u64 = 256 << 20;

/// What the pages are made from.
struct Site {
    options: Arc<Options>,
    /// A page that is open asks every second or so: what it was told before is not read again.
    shelf: Shelf,
}

impl Site {
    /// The runs, the newest first.
    fn runs(&self) -> Vec<Run> {
        find(&self.options.folder).into_iter().map(|run| run.on(&self.shelf)).collect()
    }

    /// A run's name.
    fn id(&self, run: &Run) -> String {
        id(&self.options.folder, run)
    }

    fn lookup(&self, wanted: &str) -> Result<Run, Failure> {
        let found = all_below(&self.options.folder).into_iter().find(|run| {
            let id = self.id(run);
            id == wanted || (id == "." && wanted == "self")
        });
        let found = found.map(|run| run.on(&self.shelf));
        found.ok_or_else(|| Failure::Unknown(format!("There is no run {wanted:?} here (any more).")))
    }
}

type Shared = State<Arc<Site>>;

/// Every address.
pub fn router(options: Arc<Options>) -> Router {
    let site = Site { options: Arc::clone(&options), shelf: Shelf::new(KEPT) };
    Router::new()
        .route("/", get(index))
        .route("/run/{id}/", get(run))
        .route("/run/{id}/live", get(run_live))
        .route("/run/{id}/eval/{name}", get(transcripts))
        .route("/compare", get(comparison))
        .route("/compare/live", get(comparison_live))
        .route("/api/runs", get(api_runs))
        .route("/api/run/{id}", get(api_run))
        .route("/api/compare", get(api_compare))
        .route("/style.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE) }))
        .route("/charts.js", get(|| async { ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], CHARTS) }))
        .route("/live.js", get(|| async { ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], LIVE) }))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
        .fallback(|| async { Failure::Unknown("There is no such page.".to_owned()) })
        .layer(from_fn_with_state(options, guard))
        .with_state(Arc::new(site))
}

/// Why there is no page.
enum Failure {
    Unknown(String),
    Run(RunError),
    Broken(String),
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Unknown(text) => (StatusCode::NOT_FOUND, text),
            Self::Run(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            Self::Broken(text) => (StatusCode::INTERNAL_SERVER_ERROR, text),
        };
        let body = format!("<main><h1>{}</h1><p>{}</p><p><a href=\"/\">all runs</a></p></main>", status.as_u16(), escape(&text));
        (status, Html(page("not shown", &body, None))).into_response()
    }
}

/// Reads files off the thread that answers.
async fn reading<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Failure::Broken(e.to_string())))
}

/// A run's name: its path below the folder; `.` for the folder itself.
fn id(folder: &Path, run: &Run) -> String {
    let root = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let below = run.root().strip_prefix(&root).unwrap_or(run.root()).to_string_lossy().into_owned();
    if below.is_empty() { ".".to_owned() } else { below }
}

/// The address of a run's page. A lone dot would be taken for the folder above.
fn address(id: &str) -> String {
    format!("/run/{}/", if id == "." { "self".to_owned() } else { html::percent(id) })
}

fn page(title: &str, body: &str, live: Option<&str>) -> String {
    let live = live.map_or_else(String::new, |address| format!(" data-live=\"{}\"", escape(address)));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{} - trainer</title><link rel=\"stylesheet\" href=\"/style.css\"><script src=\"/charts.js\" defer></script>\
         <script src=\"/live.js\" defer></script></head><body{live}><a class=\"skip\" href=\"#live\">to the content</a>{body}</body></html>\n",
        escape(title)
    )
}

/// The parts of a query, decoded.
fn query(raw: Option<String>) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((first, more)) = rest.split_first() {
            let hex = more.get(..2).and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
            match (first, hex) {
                (b'%', Some(byte)) => {
                    bytes.push(byte);
                    rest = more.get(2..).unwrap_or_default();
                    continue;
                }
                (b'+', _) => bytes.push(b' '),
                (other, _) => bytes.push(*other),
            }
            rest = more;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let raw = raw.unwrap_or_default();
    raw.split('&').filter_map(|pair| pair.split_once('=')).map(|(k, v)| (decode(k), decode(v))).collect()
}

fn view(query: &[(String, String)]) -> View {
    let of = |key: &str| query.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    let smoothing = of("smoothing").and_then(|v| v.parse::<f64>().ok()).filter(|v| (0.0..=0.999).contains(v));
    View { smoothing: smoothing.unwrap_or(View::default().smoothing), log: of("log") == Some("1") }
}

/// The form that changes the charts; it keeps the runs of a comparison.
fn view_form(view: View, runs: &[String]) -> String {
    let kept: String = runs.iter().map(|r| format!("<input type=\"hidden\" name=\"run\" value=\"{}\">", escape(r))).collect();
    let option = |value: f64, name: &str| {
        let chosen = if (value - view.smoothing).abs() < 1e-9 { " selected" } else { "" };
        format!("<option value=\"{value}\"{chosen}>{name}</option>")
    };
    let options: String =
        [(0.0, "none"), (0.6, "0.6"), (0.9, "0.9"), (0.97, "0.97"), (0.99, "0.99")].iter().map(|(v, n)| option(*v, n)).collect();
    format!(
        "<form class=\"view\" method=\"get\">{kept}<label>smoothing <select name=\"smoothing\">{options}</select></label>\
         <label><input type=\"checkbox\" name=\"log\" value=\"1\"{}> logarithmic loss</label><button>show</button>\
         <span id=\"status\" class=\"dim\" role=\"status\"></span></form>",
        if view.log { " checked" } else { "" }
    )
}

/// The list's line of a run.
fn row(id: &str, run: &Run) -> String {
    let (name, link) = (escape(id), escape(&address(id)));
    let chosen = format!("<td><input type=\"checkbox\" name=\"run\" value=\"{name}\" aria-label=\"compare {name}\"></td>");
    let Ok(o) = run.overview() else {
        return format!("<tr>{chosen}<th><a href=\"{link}\">{name}</a></th><td colspan=\"5\">cannot be read</td></tr>\n");
    };
    let state = o.state.name();
    let steps = o.steps.map_or_else(|| o.step.to_string(), |n| format!("{} of {n}", o.step));
    let loss = o.last_loss.map_or_else(|| "-".to_owned(), number);
    let evals = o.evaluations.iter().flat_map(|(name, m)| m.iter().take(1).map(move |(k, v)| format!("{k} {name}: {}", number(*v))));
    let evals = escape(&evals.collect::<Vec<_>>().join(", "));
    let started = escape(&o.started.as_deref().map_or_else(|| "-".to_owned(), for_people));
    format!(
        "<tr>{chosen}<th><a href=\"{link}\">{name}</a></th><td class=\"{state}\">{state}</td><td>{started}</td><td>{steps}</td>\
         <td class=\"n\">{loss}</td><td>{evals}</td></tr>\n"
    )
}

async fn index(State(site): Shared) -> Result<Response, Failure> {
    reading(move || {
        let runs = site.runs();
        if runs.first().is_some_and(|only| site.id(only) == ".") {
            return Ok(Redirect::temporary(&address(".")).into_response());
        }
        let rows: String = runs.iter().map(|run| row(&site.id(run), run)).collect();
        let table = if rows.is_empty() {
            "<p class=\"none\">There is no run below this folder yet.</p>".to_owned()
        } else {
            format!(
                "<form action=\"/compare\" method=\"get\"><div class=\"scroll\"><table><thead><tr><td></td><th>run</th><th>state</th>\
                 <th>began (UTC)</th><th>steps</th><th>loss</th><th>evaluations</th></tr></thead><tbody>{rows}</tbody></table></div>\
                 <p><button>compare the chosen runs</button></p></form>"
            )
        };
        let body = format!(
            "<main id=\"live\" tabindex=\"-1\"><h1>Runs in {}</h1>{table}</main>",
            escape(&site.options.folder.display().to_string())
        );
        Ok(Html(page("runs", &body, None)).into_response())
    })
    .await
}

async fn run(State(site): Shared, UrlPath(wanted): UrlPath<String>, RawQuery(raw): RawQuery) -> Result<Html<String>, Failure> {
    reading(move || {
        let run = site.lookup(&wanted)?;
        let view = view(&query(raw.clone()));
        let name = run.name();
        let body = format!(
            "<nav><a href=\"/\">all runs</a></nav><h1>{}</h1>{}<main id=\"live\" tabindex=\"-1\">{}</main><h2>What it was made of</h2>{}{}",
            escape(&name),
            view_form(view, &[]),
            run_body(&run, view)?,
            html::folded("recipe.toml", &html::file_text(&run, "recipe.toml")),
            html::folded("lock.json", &html::file_text(&run, "lock.json")),
        );
        Ok(Html(page(&name, &body, Some(&format!("live?{}", raw.unwrap_or_default())))))
    })
    .await
}

fn run_body(run: &Run, view: View) -> Result<String, Failure> {
    Ok(format!(
        "<section id=\"overview\">{}</section><section id=\"evaluations\"><h2>Evaluations</h2>{}</section><h2>Training</h2>\
         <div class=\"charts\" id=\"charts\">{}</div><section id=\"samples\"><h2>Sample answers</h2>{}</section>",
        html::overview(&[run.overview()?]),
        html::evaluations(run, Some("")),
        html::charts(std::slice::from_ref(run), view)?,
        html::samples(&run.samples()?),
    ))
}

/// What tells whether runs have changed: the lengths and times of their files.
fn tag(runs: &[Run]) -> String {
    let mut tag = "\"".to_owned();
    for run in runs {
        for name in ["metrics.jsonl", "timings.jsonl", "evals.jsonl", "samples.jsonl", "eval", "adapter"] {
            let found = std::fs::metadata(run.file(name)).ok();
            let length = found.as_ref().map_or(0, std::fs::Metadata::len);
            let time = found.and_then(|m| m.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
            let _ = write!(tag, "{length:x}-{:x}.", time.as_nanos());
        }
        let _ = write!(tag, "{}", u8::from(run.is_held()));
    }
    tag + "\""
}

/// A part of a page, unless the browser has it.
fn fresh(headers: &HeaderMap, runs: &[Run], make: impl FnOnce() -> Result<String, Failure>) -> Result<Response, Failure> {
    // Made before reading, so that a change meanwhile is seen the next time.
    let tag = tag(runs);
    if headers.get(header::IF_NONE_MATCH).is_some_and(|t| t.as_bytes() == tag.as_bytes()) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], Html(make()?)).into_response())
}

async fn run_live(
    State(site): Shared,
    UrlPath(wanted): UrlPath<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    reading(move || {
        let run = site.lookup(&wanted)?;
        fresh(&headers, std::slice::from_ref(&run), || run_body(&run, view(&query(raw))))
    })
    .await
}

async fn transcripts(State(site): Shared, UrlPath((wanted, name)): UrlPath<(String, String)>) -> Result<Html<String>, Failure> {
    const MOST: usize = 500;
    reading(move || {
        let run = site.lookup(&wanted)?;
        // A name of the run's own, not one that leads elsewhere.
        let during = trainer_runs::records::EvalMetrics::step_of(&name).is_some_and(|_| run.evaluation(&name).is_some());
        if !during && !run.evaluations().iter().any(|e| e.name == name) {
            return Err(Failure::Unknown(format!("The run has no evaluation {name:?}.")));
        }
        let body = format!(
            "<nav><a href=\"../\">{}</a></nav><main id=\"live\" tabindex=\"-1\"><h1>Transcripts: {}</h1><p class=\"dim\">at most the first {MOST}</p>{}</main>",
            escape(&run.name()),
            escape(&name),
            html::transcripts(&run, &name, MOST)?
        );
        Ok(Html(page(&name, &body, None)))
    })
    .await
}

/// The runs of a query, and their names.
fn chosen(site: &Site, query: &[(String, String)]) -> Result<(Vec<Run>, Vec<String>), Failure> {
    let names: Vec<String> = query.iter().filter(|(k, _)| k == "run").map(|(_, v)| v.clone()).collect();
    if names.len() < 2 || names.len() > MOST_COMPARED {
        return Err(Failure::Unknown(format!("Choose two to {MOST_COMPARED} runs to compare.")));
    }
    let runs = names.iter().map(|name| site.lookup(name)).collect::<Result<_, _>>()?;
    Ok((runs, names))
}

fn comparison_body(runs: &[Run], view: View) -> Result<String, Failure> {
    Ok(format!(
        "<div class=\"charts\" id=\"charts\">{}</div><section id=\"tables\">{}</section>",
        html::charts(runs, view)?,
        html::comparison(&compare(runs)?)
    ))
}

async fn comparison(State(site): Shared, RawQuery(raw): RawQuery) -> Result<Html<String>, Failure> {
    reading(move || {
        let query = query(raw.clone());
        let (runs, names) = chosen(&site, &query)?;
        let view = view(&query);
        let body = format!(
            "<nav><a href=\"/\">all runs</a></nav><h1>Comparison</h1>{}<main id=\"live\" tabindex=\"-1\">{}</main>",
            view_form(view, &names),
            comparison_body(&runs, view)?
        );
        Ok(Html(page("comparison", &body, Some(&format!("/compare/live?{}", raw.unwrap_or_default())))))
    })
    .await
}

async fn comparison_live(State(site): Shared, RawQuery(raw): RawQuery, headers: HeaderMap) -> Result<Response, Failure> {
    reading(move || {
        let query = query(raw);
        let (runs, _) = chosen(&site, &query)?;
        fresh(&headers, &runs, || comparison_body(&runs, view(&query)))
    })
    .await
}

fn json(value: &impl serde::Serialize) -> Result<Response, Failure> {
    let text = serde_json::to_vec(value).map_err(|e| Failure::Broken(e.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

async fn api_runs(State(site): Shared) -> Result<Response, Failure> {
    reading(move || {
        let one = |r: &Run| Some(serde_json::json!({ "id": site.id(r), "overview": r.overview().ok()? }));
        let all: Vec<_> = site.runs().iter().filter_map(one).collect();
        json(&all)
    })
    .await
}

async fn api_run(State(site): Shared, UrlPath(wanted): UrlPath<String>) -> Result<Response, Failure> {
    reading(move || {
        let run = site.lookup(&wanted)?;
        json(&serde_json::json!({
            "overview": run.overview()?, "metrics": *run.metrics()?, "timings": *run.timings()?, "samples": *run.samples()?,
            "evaluations": run.evaluations(), "evals": *run.evals()?, "recipe": run.recipe()?, "lock": run.lock()?,
        }))
    })
    .await
}

async fn api_compare(State(site): Shared, RawQuery(raw): RawQuery) -> Result<Response, Failure> {
    reading(move || {
        let (runs, _) = chosen(&site, &query(raw))?;
        json(&compare(&runs)?)
    })
    .await
}
