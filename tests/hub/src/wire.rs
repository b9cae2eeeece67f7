//! HTTP as far as a hub needs it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::Fault;

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// Without the query, unescaped.
    pub path: String,
    /// The query's pairs, unescaped.
    pub query: BTreeMap<String, String>,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether it came to the CDN.
    pub cdn: bool,
}

impl Request {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A value of the query, or an empty text.
    pub fn asked(&self, key: &str) -> &str {
        self.query.get(key).map_or("", String::as_str)
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP's status.
    pub status: u16,
    /// Headers without those of its length.
    pub headers: Vec<(String, String)>,
    /// The body; a range of it is sent where one is asked for.
    pub body: Arc<Vec<u8>>,
}

impl Reply {
    /// JSON.
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self { status, headers: vec![("content-type".into(), "application/json".into())], body: Arc::new(value.to_string().into_bytes()) }
    }

    /// No body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Arc::default() }
    }

    /// With a header more.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

fn unescape(text: &str, plus: bool) -> String {
    let (bytes, mut out, mut i) = (text.as_bytes(), Vec::new(), 0);
    while i < bytes.len() {
        match bytes[i] {
            b'%' if i + 2 < bytes.len() => {
                out.push(u8::from_str_radix(&text[i + 1..i + 3], 16).unwrap_or(b'?'));
                i += 2;
            }
            b'+' if plus => out.push(b' '),
            b => out.push(b),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads a request with its body.
pub(super) fn read(stream: &mut TcpStream, cdn: bool) -> io::Result<Request> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let end = loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default().to_owned(), first.next().unwrap_or_default());
    let headers: BTreeMap<String, String> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    if headers.get("expect").is_some_and(|e| e.eq_ignore_ascii_case("100-continue")) {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = bytes.split_off(end + 4);
    match headers.get("content-length").map(|l| l.parse::<usize>().unwrap_or(0)) {
        Some(length) => {
            while body.len() < length {
                match stream.read(&mut buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => body.extend_from_slice(&buffer[..count]),
                }
            }
        }
        None if headers.get("transfer-encoding").is_some_and(|e| e.contains("chunked")) => {
            while !body.ends_with(b"0\r\n\r\n") {
                match stream.read(&mut buffer)? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => body.extend_from_slice(&buffer[..count]),
                }
            }
            body = unchunk(&body);
        }
        None => {}
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pair = |p: &str| p.split_once('=').map(|(k, v)| (unescape(k, true), unescape(v, true)));
    Ok(Request { method, path: unescape(path, false), query: query.split('&').filter_map(pair).collect(), headers, body, cdn })
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(line) = bytes.windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(String::from_utf8_lossy(&bytes[..line]).trim(), 16).unwrap_or(0);
        if size == 0 || bytes.len() < line + 2 + size {
            break;
        }
        out.extend_from_slice(&bytes[line + 2..line + 2 + size]);
        bytes = bytes.get(line + 4 + size..).unwrap_or_default();
    }
    out
}

/// Writes an answer, or what a fault leaves of it.
pub(super) fn write(
    stream: &mut TcpStream,
    request: &Request,
    reply: Reply,
    fault: Option<&Fault>,
    go_on: &dyn Fn() -> bool,
) -> io::Result<()> {
    let (mut status, mut headers) = (reply.status, reply.headers);
    let whole = reply.body.as_slice();
    let mut body = whole;
    let range = request.headers.get("range").filter(|_| status == 200 && !matches!(fault, Some(Fault::NoRanges)));
    if let Some(range) = range.and_then(|r| r.strip_prefix("bytes=")).and_then(|r| r.split_once('-')) {
        let start = range.0.parse::<usize>().unwrap_or(0);
        let end = range.1.parse::<usize>().map_or(whole.len(), |last| (last + 1).min(whole.len()));
        if start < end {
            status = 206;
            body = &whole[start..end];
            headers.push(("content-range".into(), format!("bytes {start}-{}/{}", end - 1, whole.len())));
        } else {
            status = 416;
            body = &[];
            headers.push(("content-range".into(), format!("bytes */{}", whole.len())));
        }
    }
    let mut head = format!("HTTP/1.1 {status} Text\r\nconnection: close\r\n");
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match fault {
        Some(Fault::Cut(at)) => return stream.write_all(&body[..body.len().min(*at)]),
        Some(Fault::Stall(at)) => {
            let (now, later) = body.split_at(body.len().min(*at));
            stream.write_all(now)?;
            while !go_on() {
                std::thread::sleep(Duration::from_millis(5));
            }
            return stream.write_all(later);
        }
        Some(Fault::Flip) if !body.is_empty() => {
            let mut wrong = body.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 1;
            return stream.write_all(&wrong);
        }
        _ => {}
    }
    stream.write_all(body)
}
