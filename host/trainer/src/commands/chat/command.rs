//! What a user can type besides words: `/commands`.

use trainer_kernels::sampling::SamplingParams;

/// A line, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// Words for the model.
    Say(String),
    /// Nothing.
    Empty,
    /// Something for the program.
    Do(Command),
}

/// A command.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Shows the system message, or sets it; an empty text takes it away.
    System(Option<String>),
    /// Shows the tools, or offers them or not.
    Tools(Option<bool>),
    /// Shows Qwen3's thinking switch, or sets it; `Some(None)`: not passed.
    Thinking(Option<Option<bool>>),
    /// Shows how answers are drawn, or changes some of it.
    Sampling(Vec<(String, String)>),
    /// Writes the conversation to a file.
    Save(String),
    /// Takes a conversation from a file.
    Load(String),
    /// Draws the last answer again.
    Retry,
    /// Takes the last question and what followed it away.
    Undo,
    /// Begins anew, with the system message.
    Clear,
    /// Shows the exact prompt that the model would be given.
    Prompt,
    /// Shows the commands.
    Help,
    /// Ends the program.
    Quit,
}

/// The commands with their arguments and what they do, as `/help` shows them.
pub const COMMANDS: [(&str, &str, &str); 12] = [
    ("system", "[TEXT|-]", "show the system message, set it, or take it away with -"),
    ("tools", "[on|off]", "show the tools, offer them or not"),
    ("thinking", "[on|off|auto]", "show or set the thinking switch; auto leaves it to the template"),
    ("sampling", "[KEY=VALUE ...]", "show or change temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, seed"),
    ("save", "FILE", "write the conversation to a JSON file"),
    ("load", "FILE", "take a conversation from such a file"),
    ("retry", "", "draw the last answer again"),
    ("undo", "", "take the last question and its answer away"),
    ("clear", "", "begin anew; the system message stays"),
    ("prompt", "", "show the exact text that the model would be given now"),
    ("help", "", "show this"),
    ("quit", "", "end the program; so does the end of the input"),
];

/// Understands a line. `//` begins words that begin with a slash.
///
/// # Errors
/// What is wrong with a command, for the user.
pub fn understand(line: &str) -> Result<Line, String> {
    let trimmed = line.trim();
    if trimmed.is_empty() {
        return Ok(Line::Empty);
    }
    let Some(rest) = trimmed.strip_prefix('/') else { return Ok(Line::Say(line.to_owned())) };
    if rest.starts_with('/') {
        return Ok(Line::Say(rest.to_owned()));
    }
    let (name, argument) = rest.split_once(char::is_whitespace).map_or((rest, ""), |(name, argument)| (name, argument.trim()));
    let nothing = |command: Command| {
        if argument.is_empty() { Ok(command) } else { Err(format!("/{name} takes nothing after it")) }
    };
    let file = |make: fn(String) -> Command| {
        if argument.is_empty() { Err(format!("/{name} needs a file: /{name} FILE")) } else { Ok(make(argument.to_owned())) }
    };
    let command = match name {
        "system" => Command::System(match argument {
            "" => None,
            "-" => Some(String::new()),
            text => Some(text.to_owned()),
        }),
        "tools" => Command::Tools(match argument {
            "" => None,
            "on" => Some(true),
            "off" => Some(false),
            other => return Err(format!("/tools takes on or off, not {other:?}")),
        }),
        "thinking" => Command::Thinking(match argument {
            "" => None,
            "on" => Some(Some(true)),
            "off" => Some(Some(false)),
            "auto" => Some(None),
            other => return Err(format!("/thinking takes on, off or auto, not {other:?}")),
        }),
        "sampling" => {
            let pair = |word: &str| -> Result<(String, String), String> {
                let (key, value) = word.split_once('=').ok_or_else(|| format!("/sampling takes KEY=VALUE, not {word:?}"))?;
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            };
            Command::Sampling(argument.split_whitespace().map(pair).collect::<Result<_, String>>()?)
        }
        "save" => file(Command::Save)?,
        "load" => file(Command::Load)?,
        "retry" => nothing(Command::Retry)?,
        "undo" => nothing(Command::Undo)?,
        "clear" => nothing(Command::Clear)?,
        "prompt" => nothing(Command::Prompt)?,
        "help" | "?" => nothing(Command::Help)?,
        "quit" | "exit" | "q" => nothing(Command::Quit)?,
        other => {
            let near = COMMANDS.iter().map(|c| c.0).find(|c| strsim::damerau_levenshtein(c, other) <= 2);
            let help = near.map_or_else(|| "/help shows the commands".to_owned(), |c| format!("did you mean /{c}?"));
            return Err(format!("there is no command /{other}; {help}"));
        }
    };
    Ok(Line::Do(command))
}

/// How answers are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawing {
    /// Temperature and what else chooses tokens.
    pub params: SamplingParams,
    /// The longest answer in tokens.
    pub max_new_tokens: usize,
    /// The seed.
    pub seed: u64,
}

impl Drawing {
    /// With some settings changed: all of them or none.
    ///
    /// # Errors
    /// A key that there is not, or a value out of range.
    pub fn with(mut self, changes: &[(String, String)]) -> Result<Self, String> {
        const KEYS: [&str; 7] = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "seed"];
        fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
            value.parse().map_err(|_| format!("{key} cannot be {value:?}"))
        }
        for (key, value) in changes {
            let p = &mut self.params;
            match key.as_str() {
                "temperature" => p.temperature = number(key, value)?,
                "top_k" => p.top_k = number(key, value)?,
                "top_p" => p.top_p = number(key, value)?,
                "min_p" => p.min_p = number(key, value)?,
                "repetition_penalty" => p.repetition_penalty = number(key, value)?,
                "max_new_tokens" => self.max_new_tokens = number::<std::num::NonZeroU32>(key, value)?.get() as usize,
                "seed" => self.seed = number(key, value)?,
                other => return Err(format!("there is no setting {other:?}; there are {}", KEYS.join(", "))),
            }
        }
        self.params.validate().map_err(|e| e.to_string())?;
        Ok(self)
    }
}

impl std::fmt::Display for Drawing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let p = &self.params;
        write!(
            f,
            "temperature={} top_k={} top_p={} min_p={} repetition_penalty={} max_new_tokens={} seed={}",
            p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, self.max_new_tokens, self.seed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_words_or_commands() {
        assert_eq!(understand("  "), Ok(Line::Empty));
        assert_eq!(understand(" hello / you"), Ok(Line::Say(" hello / you".to_owned())));
        assert_eq!(understand("//not a command"), Ok(Line::Say("/not a command".to_owned())));
        assert_eq!(understand("/system  be brief "), Ok(Line::Do(Command::System(Some("be brief".to_owned())))));
        assert_eq!(understand("/system -"), Ok(Line::Do(Command::System(Some(String::new())))));
        assert_eq!(understand("/thinking auto"), Ok(Line::Do(Command::Thinking(Some(None)))));
        let pairs = vec![("top_k".to_owned(), "3".to_owned()), ("seed".to_owned(), "4".to_owned())];
        assert_eq!(understand("/sampling top_k=3 seed=4"), Ok(Line::Do(Command::Sampling(pairs))));
        for (name, _, _) in COMMANDS {
            assert!(
                understand(&format!("/{name} x=1")).is_ok_and(|l| l != Line::Empty) || understand(&format!("/{name}")).is_ok(),
                "{name}"
            );
        }
    }

    #[test]
    fn mistakes_are_told() {
        let said = |line: &str| understand(line).unwrap_err();
        assert_eq!(said("/sytem x"), "there is no command /sytem; did you mean /system?");
        assert_eq!(said("/dance"), "there is no command /dance; /help shows the commands");
        assert_eq!(said("/undo all"), "/undo takes nothing after it");
        assert_eq!(said("/save"), "/save needs a file: /save FILE");
        assert_eq!(said("/thinking maybe"), "/thinking takes on, off or auto, not \"maybe\"");
        assert_eq!(said("/sampling hot"), "/sampling takes KEY=VALUE, not \"hot\"");
    }

    #[test]
    fn drawing_changes_as_a_whole() {
        let drawing = Drawing { params: SamplingParams::default(), max_new_tokens: 9, seed: 1 };
        let set = |key: &str, value: &str| drawing.with(&[("seed".to_owned(), "7".to_owned()), (key.to_owned(), value.to_owned())]);
        assert_eq!(set("top_k", "5").map(|d| (d.params.top_k, d.seed)), Ok((5, 7)));
        assert_eq!(
            set("warmth", "5").unwrap_err(),
            "there is no setting \"warmth\"; there are temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, seed"
        );
        assert_eq!(set("top_k", "x").unwrap_err(), "top_k cannot be \"x\"");
        assert!(set("temperature", "-1").is_err() && set("temperature", "NaN").is_err() && set("max_new_tokens", "0").is_err());
    }
}
