//! The page over HTTP, as a browser and as somebody with other intentions would ask.

mod browser;
mod invented;
mod support;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use browser::{Browser, Screen};
use serde_json::json;
use support::{Dashboard, add_step, make, two};
use trainer_dashboard::{DashboardError, Options, serve};

#[test]
fn every_page_answers() {
    let d = two();
    let index = d.get("/");
    assert_eq!(index.status, 200);
    assert!(index.body.contains("<a href=\"/run/first/\">first</a>"), "{}", index.body);
    assert!(index.body.contains("<a href=\"/run/group%2Fsecond%20%26%20co/\">group/second &amp; co</a>"), "{}", index.body);
    let run = d.get("/run/group%2Fsecond%20%26%20co/");
    assert_eq!(run.status, 200, "{}", run.body);
    for id in ["loss", "lr", "grad", "speed", "memory", "wait", "mix", "sources"] {
        assert!(run.body.contains(&format!("<figure class=\"chart\" id=\"{id}\"")), "{id}");
    }
    assert!(run.body.contains("&lt;img src=x onerror") && !run.body.contains("<img"));
    assert!(run.body.contains("<a href=\"eval/after\">after</a>"));
    let eval = d.get("/run/first/eval/after");
    assert!(eval.body.contains("&lt;script&gt;4") && eval.body.contains("accuracy = 1"), "{}", eval.body);
    let compare = d.get("/compare?run=first&run=group/second+%26+co&smoothing=0&log=1");
    assert_eq!(compare.status, 200);
    assert!(
        compare.body.contains("<tr><th>train.learning_rate</th><td class=\"n\">0.002</td><td class=\"n\">0.004</td></tr>"),
        "{}",
        compare.body
    );
    for asset in ["/style.css", "/charts.js", "/live.js"] {
        assert_eq!(d.get(asset).status, 200);
    }
    assert_eq!(d.get("/api/runs").json().as_array().unwrap().len(), 2);
    let api = d.get("/api/run/first").json();
    assert_eq!((api["overview"]["step"].as_u64(), api["metrics"].as_array().unwrap().len()), (Some(20), 20));
    assert_eq!(d.get("/api/compare?run=first&run=first").json()["recipe"], json!([]));
}

#[test]
fn only_runs_below_the_folder_are_reachable() {
    let d = two();
    for path in [
        "/run/..%2F..%2Fetc/",
        "/run/group/",
        "/run/%2Fetc/",
        "/run/first/eval/..%2Flock",
        "/run/first/eval/none",
        "/etc/passwd",
        "/run/first%00/",
        "/compare?run=first",
        "/compare?run=first&run=../x",
    ] {
        let answer = d.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("all runs"), "{path}: {}", answer.body);
    }
}

#[test]
fn others_are_refused() {
    let d = two();
    for host in ["evil.example", "evil.example:80", "localhost.evil.example"] {
        let answer = d.send("GET", "/api/runs", host, "");
        assert_eq!(answer.status, 403, "{host}");
        assert!(!answer.body.contains("first"));
    }
    for host in ["localhost:1", "gpu-box", "[::1]:80"] {
        assert_eq!(d.send("GET", "/", host, "").status, 200, "{host}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(d.send(method, "/", "localhost", "Content-Length: 0\r\n").status, 405, "{method}");
    }
    let head = d.get("/").head;
    assert!(head.contains("content-security-policy: default-src 'none'") && head.contains("x-content-type-options: nosniff"), "{head}");
    assert!(!head.contains("access-control-allow-origin"));
}

#[test]
fn the_live_part_comes_only_when_something_changed() {
    let d = two();
    let first = d.get("/run/first/live");
    let tag = first.head.lines().find_map(|l| l.strip_prefix("etag: ")).unwrap().to_owned();
    let again = |tag: &str| d.send("GET", "/run/first/live", "localhost", &format!("If-None-Match: {tag}\r\n"));
    assert_eq!((again(&tag).status, again(&tag).body.as_str()), (304, ""));
    add_step(&d.folder.path().join("first"), 21, 0.002);
    let changed = again(&tag);
    assert_eq!(changed.status, 200);
    assert!(changed.body.contains("21 of 20"));
}

#[test]
fn a_run_that_goes_on_or_is_replaced_is_shown_as_it_is() {
    let d = two();
    let dir = d.folder.path().join("first");
    let shown = || {
        let api = d.get("/api/run/first").json();
        let all = |key: &str| api[key].as_array().unwrap().iter().map(|m| m["step"].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("metrics"), all("timings"));
        (all("metrics"), api["overview"]["tokens"].as_u64().unwrap(), api["metrics"][0]["lr"].as_f64().unwrap())
    };
    let steps = |n: u64| (1..=n).collect::<Vec<_>>();
    assert_eq!(shown(), (steps(20), 200, 0.002));
    // It goes on, with a line that is only half there at first.
    add_step(&dir, 21, 0.002);
    let whole = fs::read(dir.join("metrics.jsonl")).unwrap();
    fs::write(dir.join("metrics.jsonl"), &whole[..whole.len() - 20]).unwrap();
    assert_eq!(d.get("/api/run/first").json()["metrics"].as_array().unwrap().len(), 20);
    fs::write(dir.join("metrics.jsonl"), &whole).unwrap();
    assert_eq!(shown(), (steps(21), 210, 0.002));
    // It is set back to a checkpoint and goes on otherwise, past where it was.
    for name in ["metrics.jsonl", "timings.jsonl"] {
        let text = fs::read_to_string(dir.join(name)).unwrap();
        fs::write(dir.join(name), text.lines().take(15).map(|l| format!("{l}\n")).collect::<String>()).unwrap();
    }
    (16..=30).for_each(|step| add_step(&dir, step, 0.001));
    assert_eq!(shown(), (steps(30), 300, 0.002));
    let live = d.get("/run/first/live").body;
    assert!(live.contains("30 of 20") && live.contains("<b>0.001</b>"), "{live}");
    // Another run takes its place and has more steps than it ever had.
    fs::remove_dir_all(&dir).unwrap();
    assert_eq!(d.get("/run/first/live").status, 404);
    make(&dir, 0.5, 40);
    assert_eq!(shown(), (steps(40), 400, 0.5));
    let live = d.get("/run/first/live").body;
    assert!(live.contains("40 of 40") && live.contains("<b>0.5</b>"), "{live}");
    // And one that has done nothing yet.
    fs::remove_dir_all(&dir).unwrap();
    make(&dir, 0.25, 0);
    assert!(d.get("/run/first/live").body.contains("nothing yet"));
}

#[test]
fn one_run_is_shown_at_once() {
    let d = Dashboard::start(|dir| make(dir, 0.1, 3));
    let index = d.get("/");
    assert_eq!((index.status, index.head.contains("location: /run/self/")), (307, true), "{}", index.head);
    assert_eq!(d.get("/run/self/").status, 200);
    assert_eq!(d.get("/run/self/live").status, 200);
}

#[test]
fn what_cannot_be_served_is_said() {
    let d = two();
    let options = |folder: PathBuf, port| Options { folder, host: IpAddr::V4(Ipv4Addr::LOCALHOST), port, allowed_hosts: vec![] };
    let taken = serve(options(d.folder.path().to_owned(), d.address.port()), |_| {}, std::future::pending()).unwrap_err();
    assert!(matches!(taken, DashboardError::Listen { .. }) && taken.to_string().contains("another --port"), "{taken}");
    let none = serve(options(d.folder.path().join("none"), 0), |_| {}, std::future::pending()).unwrap_err();
    assert!(
        matches!(none, DashboardError::NoFolder { .. })
            && none.to_string().ends_with("; give a run directory, or the folder that holds the runs")
    );
}

/// Charts in a real browser: drawn, up to date, and usable with the keyboard. Needs `chromium`.
#[test]
#[ignore = "needs chromium"]
fn a_browser_shows_the_charts() {
    let d = two();
    let mut browser = Browser::start();
    browser.open(&d, "/run/first/", Screen::LIGHT);
    // Written by the script after it has asked for news: the policy lets it run, and the page was brought up to date.
    browser.wait("document.getElementById('status').textContent.startsWith('as of ')");
    assert_eq!(browser.eval("document.querySelectorAll('svg').length"), 8);
    // A chart that has the focus is walked along with the keys.
    browser.eval("document.getElementById('lr').focus()");
    for (key, shown) in [("End", "step 20: value 0.002"), ("ArrowLeft", "step 19: value 0.002"), ("Home", "step 1: value 0.002")] {
        browser.press(key);
        assert_eq!(browser.eval("document.querySelector('#lr output').textContent"), shown);
    }
    // A step that is made meanwhile appears, and the focus stays.
    browser.eval("document.getElementById('evaluations').querySelector('a').focus()");
    add_step(&d.folder.path().join("first"), 21, 0.002);
    browser.wait("document.getElementById('overview').textContent.includes('21 of 20')");
    assert_eq!(browser.eval("document.activeElement.textContent"), "after");
    browser.open(&d, "/compare?run=first&run=group/second+%26+co", Screen::PHONE);
    browser.wait("document.getElementById('status').textContent.startsWith('as of ')");
    assert_eq!(browser.eval("document.body.textContent.includes('train.learning_rate')"), true);
}

/// Pages on a desk's screen and a telephone's: nothing sticks out at the side, and text is large enough and stands out from what is behind it.
/// With `TRAINER_SCREENSHOTS` the pictures of docs/src/seeing.md are written into that folder.
#[test]
#[ignore = "needs chromium"]
fn pages_fit_every_screen() {
    let d = Dashboard::start(invented::runs);
    let mut browser = Browser::start();
    let folder = std::env::var_os("TRAINER_SCREENSHOTS");
    for (name, path, screen) in [
        ("dashboard-run", "/run/qwen3-8b-math/", Screen::LIGHT),
        ("dashboard-compare", "/compare?run=qwen3-8b-math&run=qwen3-8b-math-slower", Screen::DARK),
        ("dashboard-phone", "/run/qwen3-8b-math/", Screen::PHONE),
        ("", "/", Screen::LIGHT),
        ("", "/", Screen::PHONE),
        ("", "/compare?run=qwen3-8b-math&run=qwen3-8b-math-slower", Screen::PHONE),
        ("", "/run/qwen3-8b-math/eval/after", Screen::PHONE),
    ] {
        browser.open(&d, path, screen);
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth"), true, "{path} sticks out of {screen:?}");
        let small = "[...document.querySelectorAll('svg text')].filter((t) => t.getBoundingClientRect().height < 10).length";
        assert_eq!(browser.eval(small), 0, "{path}: the charts' numbers are too small on {screen:?}");
        // WCAG's measure: 4.5 for text.
        let faint = browser.eval(include_str!("contrast.js"));
        assert_eq!(faint, json!([]), "{path} on {screen:?}");
        if let Some(folder) = folder.as_ref().filter(|_| !name.is_empty()) {
            if screen.phone {
                // Its first screen holds the facts alone.
                browser.eval("document.getElementById('charts').scrollIntoView()");
            }
            let file = Path::new(folder).join(format!("{name}.png"));
            fs::write(file, browser.picture()).unwrap();
        }
    }
}
