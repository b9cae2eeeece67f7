//! What data sets call the roles.

use std::collections::BTreeMap;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions.
    System,
    /// The human.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    Tool,
    /// The model, calling tools in a turn of its own.
    Calls,
}

impl Role {
    /// The name in the chat format.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant | Self::Calls => "assistant",
            Self::Tool => "tool",
        }
    }
}

const ALIASES: [(&str, Role); 26] = [
    ("system", Role::System),
    ("developer", Role::System),
    ("user", Role::User),
    ("human", Role::User),
    ("input", Role::User),
    ("prompter", Role::User),
    ("assistant", Role::Assistant),
    ("gpt", Role::Assistant),
    ("output", Role::Assistant),
    ("model", Role::Assistant),
    ("chatgpt", Role::Assistant),
    ("bard", Role::Assistant),
    ("bing", Role::Assistant),
    ("claude", Role::Assistant),
    ("ai", Role::Assistant),
    ("bot", Role::Assistant),
    ("chatbot", Role::Assistant),
    ("tool", Role::Tool),
    ("function", Role::Tool),
    ("observation", Role::Tool),
    ("tool_response", Role::Tool),
    ("function_response", Role::Tool),
    ("ipython", Role::Tool),
    ("function_call", Role::Calls),
    ("tool_call", Role::Calls),
    ("tool_calls", Role::Calls),
];

/// The names that are known.
pub struct Roles {
    more: BTreeMap<String, Role>,
}

impl Roles {
    /// The usual names and those of the settings, which win.
    pub fn new(more: &BTreeMap<String, String>) -> Result<Self, String> {
        let known = |(alias, role): (&String, &String)| {
            let found = [Role::System, Role::User, Role::Assistant, Role::Tool].into_iter().find(|r| r.name() == role);
            let role = found.ok_or_else(|| format!("roles: {role:?} is none of system, user, assistant and tool"))?;
            Ok((alias.trim().to_lowercase(), role))
        };
        Ok(Self { more: more.iter().map(known).collect::<Result<_, String>>()? })
    }

    /// The role with this name.
    pub fn find(&self, name: &str) -> Option<Role> {
        let name = name.trim().to_lowercase();
        let usual = || ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, role)| *role);
        self.more.get(&name).copied().or_else(usual)
    }
}
