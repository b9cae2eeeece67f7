//! How each language makes a component.

mod c;
mod go;
mod js;
mod python;
mod rust;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use crate::{Error, Project};

/// A language that plugins are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// Rust, by cargo.
    Rust,
    /// Python, by componentize-py.
    Python,
    /// JavaScript, by componentize-qjs.
    JavaScript,
    /// C, by zig or clang.
    C,
    /// Go, by its own compiler.
    Go,
}

impl Language {
    /// All languages.
    pub const ALL: [Language; 5] = [Language::Rust, Language::Python, Language::JavaScript, Language::C, Language::Go];

    /// As on the command line and in `plugin.toml`.
    pub const fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::Python => "python",
            Language::JavaScript => "js",
            Language::C => "c",
            Language::Go => "go",
        }
    }

    /// Builds a project into a component without manifest. `work` is an existing folder for what the build leaves behind,
    /// `shared` one that the user's projects share.
    pub(crate) fn build(self, project: &Project, work: &Path, shared: Option<&Path>) -> Result<Vec<u8>, Error> {
        match self {
            Language::Rust => rust::build(project, work, shared),
            Language::Python => python::build(project, work, shared),
            Language::JavaScript => js::build(project, work, shared),
            Language::C => c::build(project, work, shared),
            Language::Go => go::build(project, work, shared),
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no language.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no language that plugins are built from; the languages are rust, python, js, c and go")]
pub struct UnknownLanguage(String);

impl FromStr for Language {
    type Err = UnknownLanguage;

    fn from_str(name: &str) -> Result<Self, UnknownLanguage> {
        Ok(match name {
            "rust" | "rs" => Language::Rust,
            "python" | "py" => Language::Python,
            "js" | "javascript" | "ts" | "typescript" => Language::JavaScript,
            "c" => Language::C,
            "go" => Language::Go,
            other => return Err(UnknownLanguage(other.to_owned())),
        })
    }
}

/// Where a program that pip can install may be: in the project's own environments, then on PATH.
fn candidates(project: &Project, names: &[&str]) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for folder in [".trainer/venv/bin", ".venv/bin", ""] {
        places.extend(names.iter().map(|name| if folder.is_empty() { name.into() } else { project.root.join(folder).join(name) }));
    }
    places
}

/// Major and minor version, the first that stands in what a program says of itself.
fn version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches(|c: char| !c.is_ascii_digit()).split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

/// Bindings that are checked in are those of one kind.
fn one_kind(project: &Project) -> Result<(), Error> {
    if project.kinds.len() == 1 {
        return Ok(());
    }
    let reason = format!("[build] kinds: a project in {} has one kind; make a project of its own for each other one", project.language);
    Err(Error::file(project.root.join(crate::PROJECT_FILE), reason))
}

/// A program of a language's tools.
pub(crate) struct Tool {
    program: PathBuf,
}

impl Tool {
    /// The first of `candidates` that is there: a path, or a name that is looked for on PATH. `install` says how to get it.
    pub(crate) fn find(name: &str, candidates: &[PathBuf], install: &str) -> Result<Self, Error> {
        for candidate in candidates {
            if candidate.components().count() > 1 {
                if candidate.is_file() {
                    return Ok(Self { program: candidate.clone() });
                }
                continue;
            }
            let folders = std::env::var_os("PATH").unwrap_or_default();
            if let Some(found) = std::env::split_paths(&folders).map(|f| f.join(candidate)).find(|p| p.is_file()) {
                return Ok(Self { program: found });
            }
        }
        let looked = candidates
            .iter()
            .map(|c| if c.components().count() > 1 { c.display().to_string() } else { format!("{} on PATH", c.display()) })
            .collect::<Vec<_>>()
            .join(", ");
        Err(Error::Missing { program: name.to_owned(), looked, install: install.to_owned() })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.program
    }

    /// Runs it in a folder and waits; what it says is shown only if it fails.
    pub(crate) fn run(&self, folder: &Path, args: &[&OsStr], env: &[(&str, OsString)]) -> Result<String, Error> {
        const LIMIT: usize = 8000;
        let name = self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy();
        let words = args.iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let command = format!("{name} {words}");
        let mut child = Command::new(&self.program);
        child.current_dir(folder).args(args).envs(env.iter().map(|(k, v)| (*k, v))).stdin(Stdio::null());
        let out = child.output().map_err(Error::io("run", &self.program))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if out.status.success() {
            return Ok(text(&out.stdout));
        }
        let both = [text(&out.stdout), text(&out.stderr)].into_iter().filter(|t| !t.is_empty()).collect::<Vec<_>>().join("\n");
        // The end says what went wrong.
        let output = both.get(both.ceil_char_boundary(both.len().saturating_sub(LIMIT))..).unwrap_or_default().to_owned();
        Err(Error::Failed { command, status: out.status.to_string(), output })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (said, expected) in [
            ("componentize-py 0.25.1", Some((0, 25))),
            ("go1.27.3", Some((1, 27))),
            ("go version go1.19.8 linux/amd64", Some((1, 19))),
            ("go1.28-devel_abc", None),
            ("", None),
        ] {
            assert_eq!(version(said), expected, "{said}");
        }
    }
}
