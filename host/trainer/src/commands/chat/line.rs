//! Lines from the user: edited and remembered in a terminal, read as they are from a pipe or a file.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

/// A line is typed or pasted by a person; more is a mistake.
const MAX_BYTES: u64 = 1 << 20;
/// Lines that are remembered.
const REMEMBERED: usize = 1000;
const PROMPT: &str = "> ";
const CONTINUED: &str = ". ";

/// Where lines come from.
pub enum Lines {
    /// A terminal.
    Terminal {
        /// What edits them.
        editor: Box<Editor<(), FileHistory>>,
        /// Where they are remembered.
        history: Option<PathBuf>,
    },
    /// Anything else.
    Plain(std::io::BufReader<std::io::Stdin>),
}

impl Lines {
    /// From standard input.
    pub fn new() -> Result<Self> {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Ok(Self::Plain(std::io::BufReader::new(std::io::stdin())));
        }
        let config = Config::builder().max_history_size(REMEMBERED)?.history_ignore_space(true).auto_add_history(false).build();
        let mut editor = Box::new(Editor::with_config(config).context("cannot read from the terminal")?);
        let history = history_path();
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Self::Terminal { editor, history })
    }

    /// Whether a person types them.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line, without its end; none at the end of the input. A line that ends with `\` goes on in the next one.
    pub fn next(&mut self) -> Result<Option<String>> {
        let mut whole = String::new();
        loop {
            let Some(line) = self.one(if whole.is_empty() { PROMPT } else { CONTINUED })? else {
                return Ok((!whole.is_empty()).then_some(whole));
            };
            match line.strip_suffix('\\') {
                Some(begun) => {
                    whole.push_str(begun);
                    whole.push('\n');
                }
                None => {
                    whole.push_str(&line);
                    self.remember(&whole);
                    return Ok(Some(whole));
                }
            }
            if whole.len() as u64 > MAX_BYTES {
                bail!("a message has at most {MAX_BYTES} bytes");
            }
        }
    }

    fn one(&mut self, prompt: &str) -> Result<Option<String>> {
        match self {
            Self::Terminal { editor, .. } => loop {
                match editor.readline(prompt) {
                    Ok(line) => return Ok(Some(line)),
                    Err(ReadlineError::Eof) => return Ok(None),
                    // Ctrl-C drops the line, as in a shell.
                    Err(ReadlineError::Interrupted) => {}
                    Err(e) => return Err(e).context("cannot read from the terminal"),
                }
            },
            Self::Plain(input) => {
                // What was written must be seen before whoever is at the other end answers.
                let _ = std::io::stdout().flush();
                let mut bytes = Vec::new();
                let read = Read::by_ref(input).take(MAX_BYTES + 1).read_until(b'\n', &mut bytes).context("cannot read standard input")?;
                if read as u64 > MAX_BYTES {
                    bail!("a line of standard input is longer than {MAX_BYTES} bytes");
                }
                if read == 0 {
                    return Ok(None);
                }
                let text = String::from_utf8(bytes).context("standard input is not UTF-8")?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Ok(Some(text.strip_suffix('\r').unwrap_or(text).to_owned()))
            }
        }
    }

    /// Keeps a line for the arrow keys, here and in later conversations.
    fn remember(&mut self, line: &str) {
        let Self::Terminal { editor, history } = self else { return };
        let added = editor.add_history_entry(line).unwrap_or(false);
        if let Some(path) = history.as_ref().filter(|_| added) {
            let kept = path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(ReadlineError::from);
            if let Err(e) = kept.and_then(|()| editor.append_history(path)) {
                tracing::debug!("the line is not remembered in {}: {e}", path.display());
            }
        }
    }
}

/// The file of remembered lines, in the user's state folder (XDG Base Directory Specification); none if there is no home.
fn history_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(base.join("trainer/chat_history"))
}
