//! A web server for tests, with what it was asked and whatever it is to say. It ends with the value.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: BTreeMap<String, String>,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// An answer. A `content-length` among the headers is sent in place of the true one.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// Puts a stream around a connection, such as TLS, and serves it.
pub trait WrapStream: Fn(TcpStream, &dyn Fn(&mut dyn ReadWrite) -> io::Result<()>) -> io::Result<()> + Send + Sync + 'static {}
impl<T: Fn(TcpStream, &dyn Fn(&mut dyn ReadWrite) -> io::Result<()>) -> io::Result<()> + Send + Sync + 'static> WrapStream for T {}

pub trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// A server at a free port of the loopback interface.
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    ends: Arc<AtomicBool>,
}

impl Server {
    pub fn start(handle: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::wrapped(handle, |mut stream, serve| serve(&mut stream))
    }

    pub fn wrapped(
        handle: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        wrap: impl Fn(TcpStream, &dyn Fn(&mut dyn ReadWrite) -> io::Result<()>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (handle, wrap): (Arc<Handler>, _) = (Arc::new(handle), Arc::new(wrap));
        let (log, end) = (Arc::clone(&seen), Arc::clone(&ends));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (handle, wrap, log) = (Arc::clone(&handle), Arc::clone(&wrap), Arc::clone(&log));
                // A client that goes away is no failure of the test's: the test looks at what the client says.
                std::thread::spawn(move || {
                    let serve = |stream: &mut dyn ReadWrite| {
                        let request = read(stream)?;
                        log.lock().unwrap().push(request.clone());
                        write(stream, &request, &handle(&request))
                    };
                    stream.and_then(|stream| wrap(stream, &serve))
                });
            }
        });
        Self { address, seen, ends }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What it was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn read(stream: &mut dyn ReadWrite) -> io::Result<Request> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut more = |bytes: &mut Vec<u8>| match stream.read(&mut buffer)? {
        0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        count => {
            bytes.extend_from_slice(&buffer[..count]);
            Ok(())
        }
    };
    let end = loop {
        more(&mut bytes)?;
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
    };
    let mut body = bytes.split_off(end + 4);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = head.trim_end().split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: BTreeMap<String, String> =
        lines.filter_map(|l| l.split_once(':')).map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned())).collect();
    let length = headers.get("content-length").map_or(0, |l| l.parse::<usize>().unwrap());
    while body.len() < length {
        more(&mut body)?;
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.to_owned(), unescape(v)));
    Ok(Request { method: method.to_owned(), path: path.to_owned(), query: pairs.collect(), headers, body })
}

/// The characters that stand in digests and scopes.
fn unescape(text: &str) -> String {
    text.replace("%3A", ":").replace("%2C", ",").replace("%2F", "/")
}

fn write(stream: &mut dyn ReadWrite, request: &Request, reply: &Reply) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Text\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !reply.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("content-length: {}\r\n", reply.body.len()));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body)?;
    }
    stream.flush()
}
