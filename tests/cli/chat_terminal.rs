//! `trainer chat` as a person has it: in a terminal, key by key.

use std::process::Stdio;

use rexpect::session::{PtySession, spawn_command};

use crate::support::{PATIENCE, Sandbox, json_file};

/// What the line editor writes when it begins to wait for a line, and when the line is complete.
const ASKS: &str = "\x1b[?2004h";
const TAKEN: &str = "\x1b[?2004l";

/// A chat in a terminal of its own.
struct Terminal(PtySession);

impl Terminal {
    fn open(sandbox: &Sandbox, args: &[&str]) -> Self {
        let mut command = sandbox.command(["chat", "--temperature", "0"].iter().chain(args));
        // Whatever the terminal is.
        command.stdin(Stdio::inherit()).env("TERM", "xterm").env("NO_COLOR", "1").env_remove("XDG_STATE_HOME");
        let mut terminal = Self(spawn_command(command, Some(PATIENCE.as_millis() as u64)).unwrap());
        terminal.sees("/help shows the commands");
        terminal
    }

    /// Waits for a text; gives what came before it.
    fn sees(&mut self, text: &str) -> String {
        self.0.exp_string(text).unwrap_or_else(|e| panic!("{text:?} did not come: {e}"))
    }

    /// Waits until a line can be typed; gives what was shown before.
    fn ready(&mut self) -> String {
        self.sees(ASKS)
    }

    /// Keys, without an end of the line.
    fn types(&mut self, keys: &str) {
        self.0.send(keys).unwrap();
        self.0.flush().unwrap();
    }

    /// A line with its end.
    fn enters(&mut self, line: &str) {
        self.types(&format!("{line}\r"));
        self.sees(TAKEN);
    }

    fn ends(mut self) {
        self.types("\x04");
        self.0.exp_eof().unwrap();
        let status = format!("{:?}", self.0.process().wait().unwrap());
        assert!(status.starts_with("Exited(") && status.ends_with(", 0)"), "{status}");
    }
}

#[test]
fn a_conversation_in_a_terminal() {
    let sandbox = Sandbox::new();
    let mut terminal =
        Terminal::open(&sandbox, &["--plugin", "calculator", "--system", "You are a helpful assistant.", "--max-new-tokens", "120"]);
    terminal.ready();

    // A question with a mistake in it that is typed over, a call, its result, an answer.
    terminal.types("What is 12*7+6");
    terminal.types("\x7f5?\r");
    terminal.sees(TAKEN);
    terminal.sees("-> calculate(");
    terminal.sees("<- {\"result\": 89}");
    assert!(!terminal.ready().trim().is_empty(), "there is no answer");

    // Commands answer at once.
    terminal.enters("/thinking off");
    terminal.ready();
    terminal.enters("/thinking");
    assert!(terminal.ready().contains("off"));
    terminal.enters("/nonsense");
    assert!(terminal.ready().contains("there is no command /nonsense"));

    // A message of two lines.
    terminal.enters("Name a colour,\\");
    terminal.ready();
    terminal.enters("please.");
    assert!(!terminal.ready().trim().is_empty());
    terminal.enters("/save talk.json");
    assert!(terminal.ready().contains("written to talk.json"));
    let messages = json_file(&sandbox.path("talk.json"))["messages"].clone();
    let said: Vec<&str> =
        messages.as_array().unwrap().iter().filter(|m| m["role"] == "user").map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(said, ["What is 12*7+5?", "Name a colour,\nplease."]);

    // Ctrl-C at the prompt drops the line, and no more.
    terminal.types("never sent");
    terminal.sees("never sent");
    terminal.types("\x03");
    terminal.ready();
    // A line that begins with a space is not remembered.
    terminal.enters(" /thinking");
    terminal.ready();
    terminal.ends();

    // The next conversation remembers lines; the arrow brings the last one back.
    let history = std::fs::read_to_string(sandbox.path("home/.local/state/trainer/chat_history")).unwrap();
    assert!(history.contains("What is 12*7+5?") && history.contains("/save talk.json"), "{history}");
    assert!(!history.contains("never sent") && !history.contains(" /thinking\n"), "{history}");
    let mut terminal = Terminal::open(&sandbox, &["--load", "talk.json"]);
    terminal.ready();
    terminal.types("\x1b[A");
    terminal.sees("/save talk.json");
    terminal.types("\r");
    assert!(terminal.ready().contains("written to talk.json"));
    terminal.ends();
}

#[test]
fn control_c_stops_an_answer_and_keeps_what_was_said() {
    let sandbox = Sandbox::new();
    let mut terminal = Terminal::open(&sandbox, &["--max-new-tokens", "8000"]);
    terminal.ready();
    // Any token at all comes next, so that the answer is long.
    terminal.enters("/sampling temperature=1000 top_k=0 top_p=1 seed=9");
    terminal.ready();
    terminal.enters("Talk.");
    // The answer is being streamed.
    terminal.0.exp_regex("[a-z]{3}").unwrap();
    terminal.types("\x03");
    terminal.sees("(stopped)");
    terminal.ready();
    terminal.enters("/save stopped.json");
    assert!(terminal.ready().contains("written to stopped.json"));
    let saved = json_file(&sandbox.path("stopped.json"));
    let last = saved["messages"].as_array().unwrap().last().unwrap().clone();
    let words = format!("{}{}", last["content"].as_str().unwrap_or_default(), last["reasoning_content"].as_str().unwrap_or_default());
    assert!(last["role"] == "assistant" && !words.is_empty(), "{saved}");
    // The conversation goes on.
    terminal.enters("/sampling temperature=0 max_new_tokens=20");
    terminal.ready();
    terminal.enters("What is 3 + 4?");
    assert!(!terminal.ready().contains("(stopped)"));
    terminal.ends();
}
