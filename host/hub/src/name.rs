//! Names of repositories: `org/name`, `hf://org/name@revision`, `hf://datasets/org/name?split=train`, `ms://org/name`.

use std::fmt;

/// The longest name of an organization or a repository.
const MAX_PART: usize = 96;
/// The longest revision.
const MAX_REVISION: usize = 255;
/// The longest name of a split or configuration of a data set.
const MAX_OPTION: usize = 128;

/// A hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HubKind {
    /// <https://huggingface.co>, or what speaks its protocol.
    HuggingFace,
    /// <https://modelscope.cn>.
    ModelScope,
}

impl HubKind {
    /// The scheme of its names.
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf",
            Self::ModelScope => "ms",
        }
    }

    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HuggingFace => "Hugging Face",
            Self::ModelScope => "ModelScope",
        }
    }
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// A model, or an adapter.
    Model,
    /// A data set.
    Dataset,
}

impl RepoKind {
    /// `model` or `dataset`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }

    /// The word in addresses and caches.
    pub(crate) const fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A name that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names no repository of a hub: {message}; write it like org/name, hf://org/name@revision, hf://datasets/org/name?split=train or ms://org/name"
)]
pub struct NameError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub message: String,
}

/// A repository on a hub, at a revision, and for data sets what of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoRef {
    /// Where it is.
    pub hub: HubKind,
    /// What it holds.
    pub kind: RepoKind,
    /// `org/name`; a few old repositories of Hugging Face are a `name` alone.
    pub id: String,
    /// A branch, a tag or a commit; none: the main branch.
    pub revision: Option<String>,
    /// The configuration of a data set; none: its default.
    pub config: Option<String>,
    /// The split of a data set; none: `train`, or the only one there is.
    pub split: Option<String>,
}

impl RepoRef {
    /// The main branch of a repository.
    ///
    /// # Errors
    /// The id is none.
    pub fn new(hub: HubKind, kind: RepoKind, id: &str) -> Result<Self, NameError> {
        let wrong = |message: &str| NameError { text: id.to_owned(), message: message.to_owned() };
        let parts: Vec<&str> = id.split('/').collect();
        match (parts.len(), hub) {
            (2, _) | (1, HubKind::HuggingFace) => {}
            (1, _) => return Err(wrong("ModelScope's names have two parts, org/name")),
            _ => return Err(wrong("a name has two parts, org/name")),
        }
        for part in parts {
            if !(1..=MAX_PART).contains(&part.len()) {
                return Err(wrong(&format!("each part has from 1 to {MAX_PART} characters")));
            }
            if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
                return Err(wrong("only letters, digits, `-`, `_` and `.` stand in a name"));
            }
            if part.starts_with(['-', '.'])
                || part.ends_with(['-', '.'])
                || part.contains("--")
                || part.contains("..")
                || part.ends_with(".git")
            {
                return Err(wrong("a part neither begins nor ends with `-` or `.`, nor has two of them in a row, nor ends with .git"));
            }
        }
        Ok(Self { hub, kind, id: id.to_owned(), revision: None, config: None, split: None })
    }

    /// Whether a text claims to be a name on a hub, by its scheme.
    pub fn has_scheme(text: &str) -> bool {
        text.starts_with("hf://") || text.starts_with("ms://")
    }

    /// Reads a name with a scheme: `hf://[datasets/]org/name[@revision][?config=NAME&split=NAME]`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let wrong = |message: String| NameError { text: text.to_owned(), message };
        let (hub, rest) = match text.split_once("://") {
            Some(("hf", rest)) => (HubKind::HuggingFace, rest),
            Some(("ms", rest)) => (HubKind::ModelScope, rest),
            _ => return Err(wrong("it does not begin with hf:// or ms://".to_owned())),
        };
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(r, q)| (r, Some(q)));
        let (kind, rest) = match rest.split_once('/') {
            Some(("datasets", rest)) => (RepoKind::Dataset, rest),
            Some(("models", rest)) => (RepoKind::Model, rest),
            _ => (RepoKind::Model, rest),
        };
        let (id, revision) = rest.split_once('@').map_or((rest, None), |(id, r)| (id, Some(r)));
        let mut name = Self::new(hub, kind, id).map_err(|e| wrong(e.message))?;
        if let Some(revision) = revision {
            name = name.at(revision).map_err(|e| wrong(e.message))?;
        }
        for pair in query.into_iter().flat_map(|q| q.split('&')) {
            if kind == RepoKind::Model {
                return Err(wrong("a model has no options after `?`".to_owned()));
            }
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong(format!("{pair:?} is no KEY=VALUE")))?;
            let plain = |c: char| !c.is_control() && !"&?#".contains(c);
            if value.is_empty() || value.len() > MAX_OPTION || !value.chars().all(plain) {
                return Err(wrong(format!("the value of `{key}` must have from 1 to {MAX_OPTION} characters")));
            }
            let slot = match key {
                "split" => &mut name.split,
                "config" | "name" => &mut name.config,
                _ => return Err(wrong(format!("there is no option `{key}`; there are config and split"))),
            };
            if slot.replace(value.to_owned()).is_some() {
                return Err(wrong(format!("`{key}` is given twice")));
            }
        }
        Ok(name)
    }

    /// A model by a name that a person may have typed: with a scheme, or `org/name[@revision]` on a hub.
    ///
    /// # Errors
    /// What is wrong with it, or that it is a data set.
    pub fn model(text: &str, hub: HubKind) -> Result<Self, NameError> {
        let name = if text.contains("://") { Self::parse(text)? } else { Self::bare(text, hub, RepoKind::Model)? };
        if name.kind == RepoKind::Model {
            return Ok(name);
        }
        Err(NameError { text: text.to_owned(), message: "it is a data set, not a model (`trainer data pull` fetches those)".to_owned() })
    }

    /// A data set by a name that a person may have typed: with a scheme, or `org/name[@revision]` on a hub.
    ///
    /// # Errors
    /// What is wrong with it, or that it is a model.
    pub fn dataset(text: &str, hub: HubKind) -> Result<Self, NameError> {
        if !text.contains("://") {
            let (name, query) = text.split_once('?').map_or((text, ""), |(name, query)| (name, query));
            Self::bare(name, hub, RepoKind::Dataset)?;
            let question = if query.is_empty() { "" } else { "?" };
            return Self::parse(&format!("{}://datasets/{name}{question}{query}", hub.scheme()));
        }
        let name = Self::parse(text)?;
        if name.kind == RepoKind::Dataset {
            return Ok(name);
        }
        let message = format!("it is a model; a data set is {}://datasets/{}", name.hub.scheme(), name.id);
        Err(NameError { text: text.to_owned(), message })
    }

    /// `org/name[@revision]`, without a scheme.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn bare(text: &str, hub: HubKind, kind: RepoKind) -> Result<Self, NameError> {
        let (id, revision) = text.split_once('@').map_or((text, None), |(id, r)| (id, Some(r)));
        let name = Self::new(hub, kind, id)?;
        if !id.contains('/') {
            return Err(NameError { text: text.to_owned(), message: "a name has two parts, org/name".to_owned() });
        }
        match revision {
            Some(revision) => name.at(revision),
            None => Ok(name),
        }
    }

    /// The same repository at a revision.
    ///
    /// # Errors
    /// A text that is no name of a branch, a tag or a commit.
    pub fn at(mut self, revision: &str) -> Result<Self, NameError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+=/".contains(&b);
        let part = |p: &str| !p.is_empty() && !p.starts_with(['.', '-']) && !p.ends_with('.') && !p.ends_with(".lock");
        let good =
            revision.len() <= MAX_REVISION && revision.bytes().all(plain) && !revision.contains("..") && revision.split('/').all(part);
        if !good {
            let message = format!("{revision:?} is no name of a branch, a tag or a commit");
            return Err(NameError { text: format!("{}@{revision}", self.id), message });
        }
        self.revision = Some(revision.to_owned());
        Ok(self)
    }

    /// The revision, or the hub's main branch.
    pub fn revision_or_main(&self) -> &str {
        let main = match self.hub {
            HubKind::HuggingFace => "main",
            HubKind::ModelScope => "master",
        };
        self.revision.as_deref().unwrap_or(main)
    }

    /// The name without revision and options, as people know it: `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for RepoRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let datasets = if self.kind == RepoKind::Dataset { "datasets/" } else { "" };
        write!(f, "{}://{datasets}{}", self.hub.scheme(), self.id)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        let mut mark = '?';
        for (key, value) in [("config", &self.config), ("split", &self.split)] {
            if let Some(value) = value {
                write!(f, "{mark}{key}={value}")?;
                mark = '&';
            }
        }
        Ok(())
    }
}

/// Whether a revision is a whole commit, which never moves.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_and_write() {
        for text in [
            "hf://org/name",
            "hf://gpt2",
            "hf://org/na.me_x-y@refs/pr/1",
            "hf://datasets/unsloth/OpenMathReasoning-mini?split=cot",
            "hf://datasets/org/name@v1.0?config=en&split=train",
            "ms://Qwen/Qwen3-0.6B@master",
            "ms://datasets/org/name",
        ] {
            assert_eq!(RepoRef::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(RepoRef::parse("hf://models/org/name").unwrap().to_string(), "hf://org/name");
        let name = RepoRef::model("org/name@0123456789012345678901234567890123456789", HubKind::ModelScope).unwrap();
        assert!(is_commit(name.revision_or_main()) && name.hub == HubKind::ModelScope);
        assert_eq!(RepoRef::model("org/name", HubKind::HuggingFace).unwrap().revision_or_main(), "main");
    }

    #[test]
    fn names_that_are_none_say_why() {
        for (text, part) in [
            ("org/name", "does not begin with"),
            ("http://org/name", "does not begin with"),
            ("hf://", "from 1 to 96"),
            ("hf://a/b/c", "two parts"),
            ("ms://name", "two parts"),
            ("hf://../name", "neither begins nor ends"),
            ("hf://org/..", "neither begins nor ends"),
            ("hf://org/na me", "only letters"),
            ("hf://org/na\u{202e}me", "only letters"),
            ("hf://org/a--b", "neither begins nor ends"),
            ("hf://org/name.git", "neither begins nor ends"),
            ("hf://org/name@", "no name of a branch"),
            ("hf://org/name@../main", "no name of a branch"),
            ("hf://org/name@/etc", "no name of a branch"),
            ("hf://org/name@a\nb", "no name of a branch"),
            ("hf://org/name?split=x", "no options"),
            ("hf://datasets/org/name?split", "no KEY=VALUE"),
            ("hf://datasets/org/name?split=", "from 1 to"),
            ("hf://datasets/org/name?rows=1", "no option `rows`"),
            ("hf://datasets/org/name?split=a&split=b", "given twice"),
        ] {
            let error = RepoRef::parse(text).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("write it like"), "{text}: {error}");
        }
        assert!(RepoRef::model("hf://datasets/org/name", HubKind::HuggingFace).unwrap_err().message.contains("data set"));
        assert!(RepoRef::model("gpt2", HubKind::HuggingFace).is_err(), "one part needs a scheme: it could be any word");
    }

    proptest::proptest! {
        #[test]
        fn what_reads_is_written_as_a_name_that_reads_the_same(text in "(hf|ms)://(datasets/)?[a-z.-]{0,4}/?[a-zA-Z.-]{1,6}(@[a-z/.0-9]{0,6})?(\\?split=[a-z=&]{0,4})?") {
            if let Ok(name) = RepoRef::parse(&text) {
                proptest::prop_assert_eq!(RepoRef::parse(&name.to_string()).unwrap(), name);
            }
        }
    }
}
