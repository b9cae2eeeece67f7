//! Many clients of a server at once, for a minute.

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::serve::Server;
use crate::support::Sandbox;

/// Clients.
const CLIENTS: usize = 64;
/// How long they ask.
const MINUTE: Duration = Duration::from_secs(60);

/// One streamed answer: when its first token came and when it ended.
struct Timed {
    first: Duration,
    all: Duration,
    tokens: usize,
}

fn ask(server: &Server, number: usize) -> Timed {
    let body = json!({
        "model": "nano", "messages": [{ "role": "user", "content": format!("What is {} + {}?", number % 90, number % 7) }],
        "temperature": 0.8, "seed": number, "max_tokens": 48, "stream": true, "stream_options": { "include_usage": true },
    });
    let began = Instant::now();
    let mut stream = server.open("POST", "/v1/chat/completions", "", &body.to_string());
    let (mut text, mut part, mut first) = (Vec::new(), [0; 4096], None);
    loop {
        let n = stream.read(&mut part).unwrap();
        if n == 0 {
            break;
        }
        text.extend_from_slice(&part[..n]);
        // The first event opens the answer; the second has its first words.
        if first.is_none() && text.windows(6).filter(|w| w == b"data: ").count() > 1 {
            first = Some(began.elapsed());
        }
    }
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]") && !text.contains("\"error\""), "{text}");
    let tokens = text.rsplit("\"completion_tokens\":").next().unwrap().split([',', '}']).next().unwrap().parse().unwrap();
    Timed { first: first.unwrap(), all: began.elapsed(), tokens }
}

/// The process's memory in MiB.
fn resident(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn shares(mut list: Vec<Duration>) -> String {
    list.sort_unstable();
    let at = |share: f64| list[((list.len() - 1) as f64 * share) as usize].as_secs_f64();
    format!("p50 {:.3} s, p90 {:.3} s, p99 {:.3} s, most {:.3} s", at(0.5), at(0.9), at(0.99), at(1.0))
}

#[test]
#[ignore = "takes over a minute of all cores"]
fn sixty_four_clients_for_a_minute() {
    let server = Server::start(Sandbox::new(), &["--slots", "64"]);
    let (number, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    // What is allocated once is there after a fifth of the time.
    let mut early = 0;
    let began = Instant::now();
    let timed: Vec<Timed> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        mine.push(ask(&server, number.fetch_add(1, Ordering::Relaxed)));
                    }
                    mine
                })
            })
            .collect();
        std::thread::sleep(MINUTE / 5);
        early = resident(&server);
        std::thread::sleep(MINUTE - MINUTE / 5);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|c| c.join().unwrap()).collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    let late = resident(&server);
    let tokens: usize = timed.iter().map(|t| t.tokens).sum();
    println!("{} answers, {:.1} a second, {:.0} tokens a second", timed.len(), timed.len() as f64 / seconds, tokens as f64 / seconds);
    println!("first token: {}", shares(timed.iter().map(|t| t.first).collect()));
    println!("whole answer: {}", shares(timed.iter().map(|t| t.all).collect()));
    println!("memory: {early} MiB after 12 s, {late} MiB at the end");
    assert!(timed.len() > CLIENTS, "hardly anything was answered");
    assert!(late <= early + early / 20 + 8, "memory grew from {early} to {late} MiB");
    assert_eq!(server.metric("trainer_requests_in_flight"), 0.0);
    assert_eq!(server.metric("trainer_disconnects_total"), 0.0);
}
