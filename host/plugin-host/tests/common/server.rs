//! A web server for tests: what it says is up to the test, byte by byte.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trainer_plugin_host::Resolver;

type Handler = dyn Fn(&str, &mut TcpStream) -> io::Result<()> + Send + Sync;

/// A server at a free port of the loopback interface. It ends with the value.
pub struct Server {
    pub address: SocketAddr,
    /// What it was sent: heads of requests with their bodies.
    pub seen: Arc<Mutex<Vec<String>>>,
    ends: Arc<AtomicBool>,
}

impl Server {
    /// Calls the handler with each request.
    pub fn start(handle: impl Fn(&str, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let handle: Arc<Handler> = Arc::new(handle);
        let (log, end) = (Arc::clone(&seen), Arc::clone(&ends));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let (handle, log) = (Arc::clone(&handle), Arc::clone(&log));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    // A client that goes away is no failure of the test's: the test looks at what the client says.
                    let _ = request(&mut stream).and_then(|request| {
                        log.lock().unwrap().push(request.clone());
                        handle(&request, &mut stream)
                    });
                });
            }
        });
        Self { address, seen, ends }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// An address on it, by its IP address.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What it was sent so far.
    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Reads one request with its body.
fn request(stream: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(|n| n.parse::<usize>().unwrap()));
        if body.len() >= length.unwrap_or(0) {
            return Ok(text.into_owned());
        }
    }
}

/// An ordinary answer.
pub fn answer(stream: &mut TcpStream, head: &str, body: &str) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

/// Names with the answers that each look-up gives, the last one again and again.
#[derive(Debug, Default)]
pub struct Names {
    answers: BTreeMap<String, Vec<Vec<IpAddr>>>,
    /// Look-ups so far.
    pub asked: AtomicUsize,
}

impl Names {
    pub fn new(names: &[(&str, &[&[&str]])]) -> Arc<Self> {
        let addresses = |list: &&[&str]| list.iter().map(|a| a.parse().unwrap()).collect();
        let answers = names.iter().map(|(name, answers)| ((*name).to_owned(), answers.iter().map(addresses).collect())).collect();
        Arc::new(Self { answers, asked: AtomicUsize::new(0) })
    }
}

impl Resolver for Names {
    fn resolve(&self, host: &str, _: Duration) -> io::Result<Vec<IpAddr>> {
        let nth = self.asked.fetch_add(1, Ordering::SeqCst);
        let answers = self.answers.get(host).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(answers[nth.min(answers.len() - 1)].clone())
    }
}
