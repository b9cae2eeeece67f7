//! `trainer serve`, over real connections.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::{Value, json};

use crate::support::{PATIENCE, Sandbox, baseline, lines, until};

/// A server that listens on a free port, and ends with the test.
pub struct Server {
    child: Child,
    pub address: String,
    pub headers: String,
    _sandbox: Sandbox,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()) && error["type"].is_string(), "{self:?}");
        error
    }

    /// The events of a stream, which must end as it should.
    fn events(&self) -> Vec<Value> {
        assert!(self.status == 200 && self.head.contains("content-type: text/event-stream"), "{self:?}");
        let mut events: Vec<&str> = self.body.split("\n\n").filter(|e| !e.is_empty() && !e.starts_with(':')).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{self:?}");
        events.into_iter().map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

impl Server {
    pub fn start(sandbox: Sandbox, args: &[&str]) -> Self {
        Self::start_with(sandbox, args, &[])
    }

    fn start_with(sandbox: Sandbox, args: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_model(sandbox, "nano", args, environment)
    }

    pub fn start_model(sandbox: Sandbox, model: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = sandbox.command(["serve", "--model", model, "--port", "0"].iter().chain(args));
        command.envs(environment.iter().copied()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).and_then(|rest| rest.split("/v1").next());
        let address = address.unwrap_or_else(|| panic!("it does not say where it is: {line:?}")).to_owned();
        Server { child, address, headers: String::new(), _sandbox: sandbox }
    }

    /// Sends a request and gives the connection.
    pub fn open(&self, method: &str, path: &str, more: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (address, headers, length) = (&self.address, &self.headers, body.len());
        let host = if more.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
        let kind = if more.contains("Content-Type:") { "" } else { "Content-Type: application/json\r\n" };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\n{host}{kind}Content-Length: {length}\r\nConnection: close\r\n{headers}{more}\r\n{body}"
        )
        .unwrap();
        stream
    }

    pub fn send(&self, method: &str, path: &str, more: &str, body: &str) -> Answer {
        let mut bytes = Vec::new();
        // A server that does not want to read a body closes the connection, which the system may report as an error after the answer.
        let _ = self.open(method, path, more, body).read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
        let head = head.to_lowercase();
        let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
        Answer { status: head[9..12].parse().unwrap(), head, body }
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "", &body.to_string())
    }

    fn chat(&self, body: Value) -> Answer {
        self.post("/v1/chat/completions", &with(json!({ "model": "nano", "temperature": 0 }), body))
    }

    fn complete(&self, body: Value) -> Answer {
        self.post("/v1/completions", &with(json!({ "model": "nano", "temperature": 0 }), body))
    }

    /// A value of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").body;
        let line = page.lines().find(|l| l.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("no {name} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.id().to_string()]).status().unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the server's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

fn with(mut value: Value, more: Value) -> Value {
    value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    value
}

fn unchunked(mut body: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 || rest.len() < size {
            break;
        }
        all.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    all
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

/// A stream that goes on until the context is full, of which the first event has come.
fn endless(server: &Server, tokens: u32) -> TcpStream {
    let body = json!({ "model": "nano", "messages": user("Hi"), "stream": true, "ignore_eos": true, "temperature": 1, "seed": 1, "max_tokens": tokens });
    let mut stream = server.open("POST", "/v1/chat/completions", "", &body.to_string());
    let mut seen = Vec::new();
    let mut byte = [0];
    // Two events: the first comes before anything is generated.
    while seen.windows(6).filter(|w| w == b"data: ").count() < 2 {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    stream
}

#[test]
fn it_says_what_it_is() {
    let server = Server::start(Sandbox::new(), &[]);
    assert_eq!(server.get("/health").ok(), json!({ "status": "ok" }));
    let models = server.get("/v1/models").ok();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["object"]), (&json!("nano"), &json!("model")));
    assert_eq!(server.get("/v1/models/nano").ok()["id"], "nano");
    assert_eq!(server.get("/v1/models/other").error()["code"], "model_not_found");
    assert_eq!((server.get("/v1/nothing").status, server.get("/v1/completions").status), (404, 405));
    server.get("/v1/nothing").error();
    let answer = server.chat(json!({ "messages": user("What is 3 + 4?") })).ok();
    let answered = answer["usage"]["completion_tokens"].as_f64().unwrap();
    assert_eq!((&answer["object"], &answer["choices"][0]["finish_reason"]), (&json!("chat.completion"), &json!("stop")));
    assert_eq!(answer["usage"]["total_tokens"].as_f64().unwrap(), answer["usage"]["prompt_tokens"].as_f64().unwrap() + answered);
    assert_eq!(server.metric("trainer_generated_tokens_total"), answered);
    assert_eq!(server.metric("trainer_request_seconds_count"), 1.0);
    assert_eq!(server.metric("trainer_requests_total{path=\"/v1/chat/completions\",status=\"200\"}"), 1.0);
    assert_eq!(server.metric("trainer_requests_in_flight"), 0.0);
}

#[test]
fn a_completion_is_what_generate_gives() {
    let sandbox = Sandbox::new();
    let prompt = "Question: What is 12 + 30?\nAnswer:";
    let alone = sandbox.json(["generate", "--prompt", prompt, "--temperature", "0", "--max-new-tokens", "24", "--json"]);
    let server = Server::start(sandbox, &[]);
    let text = server.complete(json!({ "prompt": prompt, "max_tokens": 24 })).ok();
    assert_eq!(text["choices"][0]["text"], alone["text"]);
    // As tokens, and several at once.
    let ids = &alone["prompt_ids"];
    let both = server.complete(json!({ "prompt": [ids, ids], "max_tokens": 24 })).ok();
    assert_eq!((&both["choices"][0]["text"], &both["choices"][1]["text"]), (&alone["text"], &alone["text"]));
    assert_eq!(both["choices"][1]["index"], 1);
    // With the prompt, and probabilities for every token: what lm-eval asks for.
    let echo = server.complete(json!({ "prompt": ids, "max_tokens": 1, "echo": true, "logprobs": 1 })).ok();
    let (choice, count) = (&echo["choices"][0], ids.as_array().unwrap().len() + 1);
    let logprobs = &choice["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), count, "{list}");
    }
    assert!(choice["text"].as_str().unwrap().starts_with(prompt));
    assert!(
        logprobs["token_logprobs"][0].is_null()
            && logprobs["token_logprobs"].as_array().unwrap()[1..].iter().all(|p| p.as_f64().unwrap() <= 0.0)
    );
    let joined: String = logprobs["tokens"].as_array().unwrap()[..count - 1].iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(joined, prompt);
    let top = logprobs["top_logprobs"][count - 1].as_object().unwrap();
    assert_eq!(top.values().next(), Some(&logprobs["token_logprobs"][count - 1]), "the greedy token is the likeliest");
    // Without an answer, the same for the prompt.
    let only = server.complete(json!({ "prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 1 })).ok();
    assert_eq!(only["choices"][0]["text"], prompt);
    assert_eq!(
        only["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..],
        logprobs["token_logprobs"].as_array().unwrap()[..count - 1]
    );
}

#[test]
fn a_stream_is_the_whole_in_parts() {
    let server = Server::start(Sandbox::new(), &["--slots", "3"]);
    let tools: Value = serde_json::from_str(&lines("tools_eval", 1)[0]).unwrap();
    let questions = [
        json!({ "messages": user("What is 17 * 3?"), "temperature": 0.9, "top_p": 0.9, "seed": 5, "n": 3, "logprobs": true, "top_logprobs": 2 }),
        json!({ "messages": user("Tell me about Paris."), "temperature": 1, "seed": 6, "max_tokens": 9, "stop": ["e", "zzz"] }),
        json!({ "messages": tools["messages"], "tools": tools["tools"] }),
    ];
    for question in questions {
        let whole = server.chat(question.clone()).ok();
        assert_eq!(server.chat(question.clone()).ok()["choices"].as_array().unwrap().len(), whole["choices"].as_array().unwrap().len());
        let parts = server.chat(with(question, json!({ "stream": true, "stream_options": { "include_usage": true } }))).events();
        let last = parts.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &whole["usage"]["completion_tokens"]));
        assert!(parts.iter().all(|p| p["object"] == "chat.completion.chunk" && p["id"] == last["id"]));
        for choice in whole["choices"].as_array().unwrap() {
            let of = |p: &&Value| p["choices"][0]["index"] == choice["index"];
            let mine: Vec<&Value> = parts.iter().filter(of).map(|p| &p["choices"][0]).collect();
            assert_eq!(mine[0]["delta"]["role"], "assistant");
            let text: String = mine.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
            assert_eq!(text, choice["message"]["content"].as_str().unwrap_or_default());
            let reasoning: String = mine.iter().filter_map(|c| c["delta"]["reasoning_content"].as_str()).collect();
            assert_eq!(reasoning, choice["message"]["reasoning_content"].as_str().unwrap_or_default());
            let finishes: Vec<&Value> = mine.iter().map(|c| &c["finish_reason"]).filter(|f| !f.is_null()).collect();
            assert_eq!(finishes, [&choice["finish_reason"]]);
            let tokens = |c: &Value| c["logprobs"]["content"].as_array().cloned().unwrap_or_default();
            assert_eq!(mine.iter().flat_map(|c| tokens(c)).collect::<Vec<_>>(), tokens(choice));
            let calls = |list: &Value| -> Vec<Value> { list.as_array().into_iter().flatten().map(|c| c["function"].clone()).collect() };
            assert_eq!(
                mine.iter().flat_map(|c| calls(&c["delta"]["tool_calls"])).collect::<Vec<_>>(),
                calls(&choice["message"]["tool_calls"])
            );
        }
    }
    // The seed is all that an answer depends on, and each choice draws for itself.
    let drawn = |seed: u32| -> Vec<Value> {
        let answer = server
            .chat(json!({ "messages": user("Write a story."), "temperature": 1.2, "top_k": 0, "top_p": 1, "n": 4, "seed": seed }))
            .ok();
        answer["choices"].as_array().unwrap().iter().map(|c| c["message"]["content"].clone()).collect()
    };
    let first = drawn(1);
    assert_eq!(first, drawn(1));
    assert_ne!(first, drawn(2));
    assert!(first.iter().any(|c| *c != first[0]));
}

#[test]
fn answers_end_at_stop_strings_and_lengths() {
    let server = Server::start(Sandbox::new(), &[]);
    let write =
        |more: Value| server.complete(with(json!({ "prompt": "What is 17 * 3?", "max_tokens": 40 }), more)).ok()["choices"][0].clone();
    let whole = write(json!({}));
    let text = whole["text"].as_str().unwrap();
    let middle = text.char_indices().nth(text.chars().count() / 2).unwrap().0;
    let stop = &text[middle..middle + text[middle..].chars().next().unwrap().len_utf8()];
    let cut = write(json!({ "stop": ["never there", stop] }));
    assert_eq!((cut["text"].as_str(), cut["finish_reason"].as_str()), (text.split(stop).next(), Some("stop")));
    let body = json!({ "messages": user("What is 17 * 3?"), "max_completion_tokens": 2, "max_tokens": 9, "logprobs": true });
    let short = server.chat(body).ok()["choices"][0].clone();
    assert_eq!((&short["finish_reason"], short["logprobs"]["content"].as_array().unwrap().len()), (&json!("length"), 2));
}

#[test]
fn biases_and_penalties_change_which_tokens_are_drawn() {
    let server = Server::start(Sandbox::new(), &[]);
    let write = |more: Value| {
        let body = with(json!({ "prompt": "What is 17 * 3?", "max_tokens": 12, "logprobs": 0, "ignore_eos": true }), more);
        server.complete(body).ok()["choices"][0].clone()
    };
    let plain = write(json!({}));
    assert_eq!(write(json!({ "logit_bias": { "9": 0 }, "presence_penalty": 0 }))["text"], plain["text"]);
    // A token with the largest bias is all that is written, unless each time that it is makes it as much less likely as the next best.
    let id = 40;
    let only = write(json!({ "logit_bias": { id.to_string(): 100 } }));
    let tokens = |choice: &Value| -> Vec<String> {
        choice["logprobs"]["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect()
    };
    let written = tokens(&only);
    assert!(written.len() == 12 && written.iter().all(|t| *t == written[0]), "{only}");
    // What was written is not written again where that costs most.
    let answer =
        write(json!({ "logit_bias": { id.to_string(): 1.5, (id + 1).to_string(): 1.5 }, "presence_penalty": 2, "frequency_penalty": 2 }));
    let repeats = |tokens: &[String]| tokens.len() - tokens.iter().collect::<std::collections::BTreeSet<_>>().len();
    let without = write(json!({ "logit_bias": { id.to_string(): 1.5, (id + 1).to_string(): 1.5 } }));
    assert!(repeats(&tokens(&answer)) <= repeats(&tokens(&without)), "{answer} {without}");
    // Forbidding the first token of the greedy answer gives another one; log-probabilities stay the model's own.
    let chosen =
        server.complete(json!({ "prompt": "What is 17 * 3?", "max_tokens": 1, "logprobs": 20 })).ok()["choices"][0]["logprobs"].clone();
    let first = chosen["tokens"][0].as_str().unwrap().to_owned();
    let encoded = server.complete(json!({ "prompt": first, "max_tokens": 0, "echo": true, "logprobs": 0 })).ok();
    assert_eq!(encoded["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 1, "{encoded}");
    let ids = trainer_text::Tokenizer::from_bytes(file("tokenizer.json"), Some(file("tokenizer_config.json")), None).unwrap();
    let first_id = ids.encode(&first, trainer_text::SpecialMode::Parse).unwrap()[0];
    let other = write(json!({ "logit_bias": { first_id.to_string(): -100 }, "max_tokens": 1 }))["logprobs"].clone();
    let second = other["tokens"][0].as_str().unwrap();
    assert_ne!(second, first);
    let of_model = chosen["top_logprobs"][0][second].as_f64().unwrap();
    assert!((other["token_logprobs"][0].as_f64().unwrap() - of_model).abs() < 1e-9, "{other} {chosen}");
}

/// A file of the embedded model.
fn file(name: &str) -> &'static [u8] {
    trainer_nano::MODEL_FILES.iter().find(|f| f.0 == name).unwrap().1
}

#[test]
fn tools_of_plugins_are_executed_by_the_server() {
    let server = Server::start(Sandbox::new(), &["--plugin", "calculator", "--plugin", "weather"]);
    let system = json!({ "role": "system", "content": "You are a helpful assistant." });
    let messages = json!([system, { "role": "user", "content": "What is 12*7+5?" }]);
    let whole = server.chat(json!({ "messages": messages })).ok();
    let choice = &whole["choices"][0];
    let executed = &choice["message"]["executed_tool_calls"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["tool_calls"]), (&json!("stop"), &Value::Null), "{whole}");
    assert_eq!((&executed["function"]["name"], &executed["output"]), (&json!("calculate"), &json!("{\"result\": 89}")), "{whole}");
    assert!(choice["message"]["content"].as_str().is_some_and(|t| !t.is_empty()), "{whole}");
    // Both turns count, and the second reads what the first left in the cache.
    let usage = &whole["usage"];
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 100, "{usage}");
    assert!(usage["prompt_tokens"].as_u64() > usage["prompt_tokens_details"]["cached_tokens"].as_u64(), "{usage}");
    assert_eq!((server.metric("trainer_tool_calls_total"), server.metric("trainer_tool_errors_total")), (1.0, 0.0));

    // The stream has the same in parts, for every choice.
    let parts = server.chat(json!({ "messages": messages, "stream": true, "n": 2, "stream_options": { "include_usage": true } })).events();
    for index in 0..2 {
        let mine: Vec<&Value> = parts.iter().map(|p| &p["choices"][0]).filter(|c| c["index"] == index).collect();
        let text: String = mine.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(text, choice["message"]["content"].as_str().unwrap());
        let ran: Vec<&Value> = mine.iter().filter_map(|c| c["delta"]["executed_tool_calls"].as_array()).flatten().collect();
        assert_eq!(
            (ran.len(), &ran[0]["function"], &ran[0]["output"], &ran[0]["index"]),
            (1, &executed["function"], &executed["output"], &json!(0))
        );
        assert!(mine.iter().all(|c| c["delta"]["tool_calls"].is_null()));
    }

    // Without its grants the weather is an error that the model reads, and the request goes on.
    let rainy = server.chat(json!({ "messages": [system, { "role": "user", "content": "What is the weather in Paris?" }] })).ok();
    let executed = &rainy["choices"][0]["message"]["executed_tool_calls"][0];
    assert_eq!(executed["function"]["name"], "get_weather", "{rainy}");
    assert!(executed["output"].as_str().unwrap().contains("--secret weather:OPENWEATHER_API_KEY=env:OPENWEATHER_API_KEY"), "{rainy}");
    assert!(server.metric("trainer_tool_errors_total") >= 1.0);

    // The client's own tools go to the client as ever, and none are offered where it wants none.
    let case: Value = serde_json::from_str(&lines("tools_eval", 1)[0]).unwrap();
    let clash = server.chat(json!({ "messages": messages, "tools": case["tools"] }));
    assert_eq!((clash.status, clash.error()["param"].as_str()), (400, Some("tools")), "{clash:?}");
    let none = server.chat(json!({ "messages": messages, "tool_choice": "none" })).ok();
    assert!(none["choices"][0]["message"]["executed_tool_calls"].is_null(), "{none}");
    let named = json!({ "type": "function", "function": { "name": "calculate" } });
    let forced = server.chat(json!({ "messages": messages, "tool_choice": named, "max_tokens": 200 })).ok();
    assert_eq!(forced["choices"][0]["message"]["executed_tool_calls"][0]["function"]["name"], "calculate", "{forced}");
    assert_eq!(forced["choices"][0]["finish_reason"], "stop", "{forced}");
    let length = server.chat(json!({ "messages": messages, "max_tokens": 3 })).ok();
    assert_eq!((&length["choices"][0]["finish_reason"], &length["usage"]["completion_tokens"]), (&json!("length"), &json!(3)));
    let call_own = json!([{ "type": "function", "function": { "name": "look_up", "description": "Looks a word up.",
        "parameters": { "type": "object", "properties": { "word": { "type": "string" } }, "required": ["word"] } } }]);
    let own = json!({ "type": "function", "function": { "name": "look_up" } });
    let client = server.chat(json!({ "messages": messages, "tools": call_own, "tool_choice": own })).ok()["choices"][0].clone();
    assert_eq!(client["message"]["tool_calls"][0]["function"]["name"], "look_up", "{client}");
    assert!(client["message"]["executed_tool_calls"].is_null() && client["finish_reason"] == "stop", "{client}");
}

#[test]
fn calls_of_the_servers_tools_are_limited() {
    let server = Server::start(Sandbox::new(), &["--plugin", "calculator", "--max-turns", "1"]);
    let ask = json!({ "messages": [{ "role": "system", "content": "You are a helpful assistant." }, { "role": "user", "content": "What is 12*7+5?" }] });
    let answer = server.chat(ask).ok();
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], choice["message"]["executed_tool_calls"].as_array().unwrap().len()),
        (&json!("length"), 1),
        "{answer}"
    );
}

#[test]
fn tools_are_called_and_their_results_read() {
    let server = Server::start(Sandbox::new(), &[]);
    let case: Value = serde_json::from_str(&lines("tools_eval", 1)[0]).unwrap();
    let ask =
        |more: Value| server.chat(with(json!({ "messages": case["messages"], "tools": case["tools"] }), more)).ok()["choices"][0].clone();
    let called = ask(json!({}));
    let call = &called["message"]["tool_calls"][0];
    assert_eq!((&called["finish_reason"], &called["message"]["content"]), (&json!("tool_calls"), &Value::Null));
    let arguments = |call: &Value| -> Value { serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap() };
    assert_eq!(json!([{ "name": call["function"]["name"], "arguments": arguments(call) }]), case["expected_calls"]);
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    // The way back, with the answer's own message.
    let mut messages = case["messages"].as_array().unwrap().clone();
    messages.push(called["message"].clone());
    messages.push(json!({ "role": "tool", "tool_call_id": call["id"], "content": case["tool_fixtures"][0]["response"].to_string() }));
    let answered = server.chat(json!({ "messages": messages, "tools": case["tools"] })).ok();
    let text = answered["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.contains(case["answer_contains"][0].as_str().unwrap()), "{text}");
    assert!(answered["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0, "{answered}");
    // Other choices.
    let none = ask(json!({ "tool_choice": "none" }));
    assert!(none["message"]["tool_calls"].is_null() && none["finish_reason"] == "stop", "{none}");
    let named = ask(json!({ "tool_choice": { "type": "function", "function": { "name": "calculate" } } }));
    assert_eq!((&named["message"]["tool_calls"][0]["function"]["name"], &named["finish_reason"]), (&json!("calculate"), &json!("stop")));
    assert!(arguments(&named["message"]["tool_calls"][0]).is_object());
    let required =
        server.chat(json!({ "messages": user("Hello!"), "tools": case["tools"], "tool_choice": "required" })).ok()["choices"][0].clone();
    assert_eq!(required["finish_reason"], "tool_calls", "{required}");
    let single = ask(json!({ "parallel_tool_calls": false }));
    assert_eq!(single["message"]["tool_calls"].as_array().unwrap().len(), 1);
}

#[test]
fn thinking_is_apart_from_the_answer() {
    let server = Server::start(Sandbox::new(), &["--adapter", &format!("tuned={}", baseline().dir.join("adapter").display())]);
    let tokens = |body: Value| {
        server.chat(with(json!({ "messages": user("What is 2 + 2?"), "max_tokens": 1 }), body)).ok()["usage"]["prompt_tokens"].clone()
    };
    let on = tokens(json!({}));
    assert_eq!(tokens(json!({ "enable_thinking": true })), on);
    let off = tokens(json!({ "enable_thinking": false }));
    assert!(off.as_u64() > on.as_u64(), "an empty thought is part of the prompt");
    assert_eq!(tokens(json!({ "chat_template_kwargs": { "enable_thinking": false } })), off);
    // The model is made to think by its own beginning of the answer.
    let said = server
        .complete(json!({ "prompt": "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n<think>\n", "max_tokens": 8 }))
        .ok();
    assert!(!said["choices"][0]["text"].as_str().unwrap().is_empty());
    let models: Vec<Value> = server.get("/v1/models").ok()["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(models, ["nano", "tuned"]);
    // Base and adapter side by side, each as alone.
    let ask = |model: &str, text: &str| {
        let body = json!({ "model": model, "messages": user(text), "max_tokens": 40, "temperature": 0, "logprobs": true });
        server.post("/v1/chat/completions", &body).ok()["choices"][0].clone()
    };
    let questions = ["What is 12 + 5?", "Tom has 3 apples and buys 4 more. How many?", "Hello!", "What is 9 * 9?"];
    let alone: Vec<Value> = questions.iter().flat_map(|q| [ask("nano", q), ask("tuned", q)]).collect();
    assert!(alone.chunks(2).any(|pair| pair[0] != pair[1]), "the adapter does nothing");
    let together: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            questions.iter().flat_map(|q| [("nano", *q), ("tuned", *q)]).map(|(m, q)| scope.spawn(move || ask(m, q))).collect();
        asked.into_iter().map(|a| a.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn what_is_wrong_is_named() {
    let server = Server::start(Sandbox::new(), &["--context", "256", "--queue", "4", "--max-request-bytes", "20000"]);
    let chat = |more: Value| server.chat(with(json!({ "messages": user("Hi") }), more));
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    for (answer, status, param, code) in [
        (chat(json!({ "model": "other" })), 404, "model", "model_not_found"),
        (chat(json!({ "model": null })), 400, "model", "invalid_value"),
        (chat(json!({ "messages": [] })), 400, "messages", "invalid_value"),
        (chat(json!({ "messages": "Hi" })), 400, "messages", "invalid_type"),
        (chat(json!({ "messages": [{ "role": "robot", "content": "x" }] })), 400, "messages[0].role", "invalid_value"),
        (chat(json!({ "messages": [{ "role": "user" }] })), 400, "messages[0].content", "invalid_value"),
        (
            chat(json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }] })),
            400,
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (chat(json!({ "temperature": 3 })), 400, "temperature", "invalid_value"),
        (chat(json!({ "temperature": "hot" })), 400, "temperature", "invalid_type"),
        (chat(json!({ "top_logprobs": 3 })), 400, "top_logprobs", "invalid_value"),
        (chat(json!({ "n": 5 })), 400, "n", "invalid_value"),
        (chat(json!({ "stop": [""] })), 400, "stop", "invalid_value"),
        (chat(json!({ "max_tokens": 0 })), 400, "max_tokens", "invalid_value"),
        (chat(json!({ "max_tokens": 1000 })), 400, "messages", "context_length_exceeded"),
        (chat(json!({ "messages": user(&"word ".repeat(1000)) })), 400, "messages", "context_length_exceeded"),
        (chat(json!({ "frequency_penalty": 2.5 })), 400, "frequency_penalty", "invalid_value"),
        (chat(json!({ "presence_penalty": "x" })), 400, "presence_penalty", "invalid_type"),
        (chat(json!({ "response_format": { "type": "json_object" } })), 400, "response_format", "unsupported_parameter"),
        (chat(json!({ "logit_bias": { "1": 101 } })), 400, "logit_bias", "invalid_value"),
        (chat(json!({ "logit_bias": { "one": 5 } })), 400, "logit_bias", "invalid_value"),
        (chat(json!({ "logit_bias": { "5000": 5 } })), 400, "logit_bias", "invalid_value"),
        (chat(json!({ "logit_bias": [1] })), 400, "logit_bias", "invalid_type"),
        (chat(json!({ "tempreature": 1 })), 400, "tempreature", "unknown_parameter"),
        (chat(json!({ "stream_options": { "include_usage": true } })), 400, "stream_options", "invalid_value"),
        (chat(json!({ "tools": [tool, tool] })), 400, "tools[1].function.name", "invalid_value"),
        (
            chat(json!({ "tools": [tool], "tool_choice": { "type": "function", "function": { "name": "g" } } })),
            400,
            "tool_choice",
            "invalid_value",
        ),
        (chat(json!({ "tool_choice": "required" })), 400, "tool_choice", "invalid_value"),
        (server.complete(json!({ "prompt": [[5000]] })), 400, "prompt", "invalid_value"),
        (server.complete(json!({ "prompt": "" })), 400, "prompt", "invalid_value"),
        (server.complete(json!({ "prompt": "a", "suffix": "b" })), 400, "suffix", "unsupported_parameter"),
        (server.complete(json!({ "prompt": "a", "logprobs": 30 })), 400, "logprobs", "invalid_value"),
        (server.complete(json!({ "prompt": "a", "max_tokens": 0 })), 400, "max_tokens", "invalid_value"),
    ] {
        let error = answer.error();
        assert_eq!((answer.status, error["param"].as_str(), error["code"].as_str()), (status, Some(param), Some(code)), "{error}");
    }
    // Things that mean nothing are no errors.
    let harmless = json!({ "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "response_format": { "type": "text" }, "stop": null, "max_tokens": 1 });
    chat(harmless).ok();
    let raw = |kind: &str, body: &str| server.send("POST", "/v1/chat/completions", &format!("Content-Type: {kind}\r\n"), body);
    assert_eq!(raw("application/json", "{").error()["code"], "invalid_json");
    assert_eq!(raw("application/json", "[]").status, 400);
    assert_eq!(raw("application/json", &"[".repeat(10_000)).status, 400);
    assert_eq!(raw("text/plain", "{}").status, 415);
    assert_eq!(raw("application/json", &" ".repeat(30_000)).error()["code"], "request_too_large");
    // After all that it still answers.
    chat(json!({ "max_tokens": 1 })).ok();
}

#[test]
fn strangers_are_not_answered() {
    let open = Server::start(Sandbox::new(), &["--allow-host", "gpu-box"]);
    let host = |name: &str| open.send("GET", "/v1/models", &format!("Host: {name}\r\n"), "");
    assert_eq!((host("evil.example").status, host("gpu-box").status, host("localhost").status), (403, 200, 200));
    assert_eq!(host("evil.example").error()["code"], "host_not_allowed");
    drop(open);
    let mut server = Server::start_with(Sandbox::new(), &["--api-key", "env:SERVER_KEY"], &[("SERVER_KEY", "a-long-secret")]);
    assert_eq!((server.get("/v1/models").status, server.get("/health").status, server.get("/metrics").status), (401, 200, 401));
    server.headers = "Authorization: Bearer a-long-secreT\r\n".into();
    assert_eq!(server.get("/v1/models").error()["code"], "invalid_api_key");
    server.headers = "Authorization: Bearer a-long-secret\r\n".into();
    server.get("/v1/models").ok();
    assert_eq!(server.send("GET", "/v1/models", "Host: evil.example\r\n", "").status, 200, "a key is enough");
    let sandbox = Sandbox::new();
    let error = sandbox.fails(["serve", "--port", "0", "--api-key", "a-long-secret"]);
    assert!(error.contains("env:NAME or file:PATH") && !error.contains("a-long-secret"), "{error}");
    let error = sandbox.fails(["serve", "--port", "0", "--api-key", &format!("file:{}", sandbox.write("key", "short").display())]);
    assert!(error.contains("8 to 512") && !error.contains("short"), "{error}");
    for (args, part) in
        [(["--adapter", "nano=x"], "two models"), (["--adapter", "x"], "NAME=DIR"), (["--adapter", "a=none"], "the adapter in none")]
    {
        let error = sandbox.fails(["serve", "--port", "0"].iter().chain(&args));
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_full_queue_and_clients_that_go_away() {
    let server = Server::start(Sandbox::new(), &["--slots", "1", "--queue", "1"]);
    let running = endless(&server, 4000);
    let body = json!({ "model": "nano", "messages": user("Hi"), "max_tokens": 4 });
    let waiting = server.open("POST", "/v1/chat/completions", "", &body.to_string());
    until("a waiting request", || server.metric("trainer_sequences_waiting") == 1.0);
    let refused = server.post("/v1/chat/completions", &body);
    assert_eq!((refused.status, refused.error()["code"].as_str()), (429, Some("queue_full")));
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    // One that gave up waiting makes room, and so does one that stops reading.
    drop(waiting);
    until("room in the queue", || server.metric("trainer_disconnects_total") == 1.0);
    drop(running);
    until("a free slot", || server.metric("trainer_sequences_running") == 0.0 && server.metric("trainer_requests_in_flight") == 0.0);
    assert!(server.metric("trainer_generated_tokens_total") < 4000.0, "it went on for nobody");
    server.post("/v1/chat/completions", &body).ok();
}

#[test]
fn answers_have_a_time_limit() {
    // One after the other sixty-four answers that never stop take much longer than a second wherever this runs.
    let server = Server::start(Sandbox::new(), &["--request-timeout", "1", "--slots", "1"]);
    let body = json!({ "model": "nano", "messages": user("Hi"), "ignore_eos": true, "temperature": 1, "n": 64 });
    let late = server.post("/v1/chat/completions", &body);
    assert_eq!((late.status, late.error()["code"].as_str()), (504, Some("timeout")));
    let stream = server.post("/v1/chat/completions", &with(body, json!({ "stream": true })));
    let last = stream.body.trim_end().rsplit("\n\n").next().unwrap();
    assert_eq!(serde_json::from_str::<Value>(last.strip_prefix("data: ").unwrap()).unwrap()["error"]["code"], "timeout");
    until("free slots", || server.metric("trainer_sequences_running") == 0.0);
}

#[test]
fn what_runs_is_finished_before_the_end() {
    let mut server = Server::start(Sandbox::new(), &[]);
    let mut stream = endless(&server, 400);
    server.signal();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"finish_reason\":\"length\"") && rest.contains("data: [DONE]"), "{rest}");
    assert!(server.ended().success());
    // What takes longer than the time for it is told so.
    let mut server = Server::start(Sandbox::new(), &["--shutdown-timeout", "0", "--slots", "1"]);
    let mut stream = endless(&server, 4000);
    server.signal();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("shutting_down") && !rest.contains("[DONE]"), "{}", &rest[rest.len().saturating_sub(500)..]);
    assert!(server.ended().success());
    assert!(TcpStream::connect(&server.address).is_err());
}
