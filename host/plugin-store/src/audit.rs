//! Looking over the store, a project's pins and a recipe's plugins.

use std::path::PathBuf;

use semver::Version;
use serde::Serialize;
use trainer_plugin_host::{ByteSize, Inspection};

use crate::fetch::{describe, fetch};
use crate::http::Client;
use crate::keys::{SignerKey, Verdict};
use crate::manage::Manager;
use crate::oci::Registry;
use crate::pins::Pins;
use crate::store::Entry;
use crate::{Digest, Reference, StoreError, files};

/// Whether something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is, and the audit fails.
    Problem,
    /// It is worth knowing.
    Note,
}

/// One thing that the audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// The plugin, or the digest of a component without a name.
    pub plugin: String,
    /// What was found, and what to do.
    pub message: String,
}

/// An installed plugin as the audit saw it.
#[derive(Clone, Debug, Serialize)]
pub struct Audited {
    /// Its name.
    pub name: String,
    /// Its entry in the index.
    #[serde(flatten)]
    pub entry: Entry,
    /// The user's name of the key that signed it.
    pub signed_by: Option<String>,
    /// What it asks for beyond computing.
    pub needs: Vec<String>,
}

/// A plugin that a recipe uses and that is not official.
#[derive(Clone, Debug)]
pub struct Used {
    /// Its name.
    pub name: String,
    /// Its file, where the recipe names one.
    pub path: Option<PathBuf>,
    /// The digest that the recipe wants.
    pub sha256: Option<Digest>,
}

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// A project's pins.
    pub pins: Option<Pins>,
    /// The plugins of a recipe.
    pub used: Vec<Used>,
    /// Whether references are asked what they mean now.
    pub online: bool,
    /// Names of official plugins.
    pub reserved: Vec<String>,
}

/// What the audit came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The installed plugins.
    pub plugins: Vec<Audited>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Components that were hashed, with and without names.
    pub components: usize,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.findings.iter().all(|f| f.level == Level::Note)
    }

    fn problem(&mut self, plugin: &str, message: impl Into<String>) {
        self.findings.push(Finding { level: Level::Problem, plugin: plugin.to_owned(), message: message.into() });
    }

    fn note(&mut self, plugin: &str, message: impl Into<String>) {
        self.findings.push(Finding { level: Level::Note, plugin: plugin.to_owned(), message: message.into() });
    }
}

impl Manager {
    /// Hashes every component, checks signatures and descriptions, and compares pins and recipes with what is there.
    ///
    /// # Errors
    /// The index or the keys do not read.
    pub fn audit(&self, audit: &Audit) -> Result<Report, StoreError> {
        let mut report = Report::default();
        let index = self.store.index()?;
        for digest in self.store.components()? {
            report.components += 1;
            if let Err(error) = self.store.read(&digest)
                && !index.plugins.values().any(|e| e.digest == digest)
            {
                report.problem(digest.short(), format!("{error}; no name has it, so `trainer plugin remove --unused` removes it"));
            }
        }
        for (name, entry) in &index.plugins {
            let about = self.look_at(name, entry, audit, &mut report)?;
            if audit.online {
                self.ask(&self.http()?, name, entry, &mut report);
            }
            let signed_by = entry.signer.as_ref().map(|key| self.keys.name_of(key)).transpose()?.flatten();
            let needs = about.map(|a| a.needs).unwrap_or_default();
            report.plugins.push(Audited { name: name.clone(), entry: entry.clone(), signed_by, needs });
        }
        if let Some(pins) = &audit.pins {
            self.look_at_pins(pins, &index.plugins, &mut report)?;
        }
        for used in &audit.used {
            self.look_at_use(used, audit.pins.as_ref(), &mut report)?;
        }
        Ok(report)
    }

    /// One installed plugin.
    fn look_at(&self, name: &str, entry: &Entry, audit: &Audit, report: &mut Report) -> Result<Option<Inspection>, StoreError> {
        let bytes = match self.store.read(&entry.digest) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                report.problem(name, format!("its component {} is gone; remove it and add it again", entry.digest));
                return Ok(None);
            }
            Err(error) => {
                report.problem(name, error.to_string());
                return Ok(None);
            }
        };
        if audit.reserved.iter().any(|r| r == name) {
            report.note(name, "an official plugin has its name and is used in its place");
        }
        self.look_at_signature(name, &bytes, &entry.digest, entry.signer.as_ref(), self.policy.require_signatures, report)?;
        let about = match describe(name, &bytes) {
            Ok(about) => about,
            // Such as a kind in a version that this program does not know.
            Err(error) => {
                report.problem(name, format!("this program cannot use it: {error}"));
                return Ok(None);
            }
        };
        if about.name != name || about.version != entry.version {
            report.problem(name, format!("the index says {name} {}, and the component {} {}", entry.version, about.name, about.version));
        }
        for import in &about.refused_imports {
            report.problem(name, format!("it imports {import}, which nothing offers or its manifest does not declare"));
        }
        if !about.needs.is_empty() {
            report.note(
                name,
                format!("it asks for {}; nothing is granted but by you: {}", about.needs.join(", "), about.grant_with.join(" ")),
            );
        }
        Ok(Some(about))
    }

    fn look_at_signature(
        &self,
        name: &str,
        bytes: &[u8],
        digest: &Digest,
        signer: Option<&SignerKey>,
        required: bool,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        let Some(signer) = signer else {
            match required {
                true => report.problem(name, "it is not signed, and signatures are required"),
                false => report.note(name, "it is not signed"),
            }
            return Ok(());
        };
        let verdict = self.store.signature(digest)?.map(|s| self.keys.verify(bytes, &s)).transpose()?;
        match verdict {
            Some(Verdict::Good(key, _)) if key == *signer => {}
            Some(Verdict::Good(key, _)) => {
                report.problem(name, format!("its signature is by the key {}, not by {} as recorded", key.id(), signer.id()))
            }
            Some(Verdict::Unknown(id)) => report.problem(name, format!("it is signed with the key {id}, which is not trusted any more")),
            Some(Verdict::Bad(by)) => report.problem(name, format!("its signature claims to be by `{by}` and is not")),
            Some(Verdict::Unreadable) => report.problem(name, "its signature does not read; remove it and add it again"),
            None => report.problem(name, "its signature is gone; remove it and add it again"),
        }
        Ok(())
    }

    /// What the reference means now.
    fn ask(&self, http: &Client, name: &str, entry: &Entry, report: &mut Report) {
        let now = match &entry.reference {
            Reference::Oci(oci) => Registry::new(http, oci, self.docker.clone()).and_then(|mut r| r.peek()),
            other => fetch(http, None, other, None, ByteSize::mib(4096)).map(|f| Digest::of(&f.bytes)),
        };
        match now {
            Ok(now) if now != entry.digest => {
                report.note(name, format!("{} has {now} now; `trainer plugin update {name}` takes it", entry.reference));
            }
            Ok(_) => {}
            Err(error) => report.note(name, format!("what is at {} now is not known: {error}", entry.reference)),
        }
        if let Reference::Oci(oci) = &entry.reference {
            let tags = Registry::new(http, oci, self.docker.clone()).and_then(|mut r| r.tags());
            let newer =
                tags.ok().and_then(|tags| newest(&tags)).filter(|(v, _)| Version::parse(&entry.version).is_ok_and(|have| *v > have));
            if let Some((_, tag)) = newer {
                let place = format!("oci://{}/{}:{tag}", oci.registry, oci.repository);
                report.note(name, format!("there is a newer version; `trainer plugin update {name} --from {place}` takes it"));
            }
        }
    }

    fn look_at_pins(
        &self,
        pins: &Pins,
        installed: &std::collections::BTreeMap<String, Entry>,
        report: &mut Report,
    ) -> Result<(), StoreError> {
        let file = pins.path.display();
        for pin in &pins.plugins {
            match self.store.read(&pin.digest) {
                Ok(Some(bytes)) => {
                    let required = pins.require_signatures || self.policy.require_signatures;
                    // What is also installed was looked at above.
                    if installed.get(&pin.name).is_none_or(|e| e.digest != pin.digest || e.signer != pin.signer) || required {
                        self.look_at_signature(&pin.name, &bytes, &pin.digest, pin.signer.as_ref(), required, report)?;
                    }
                }
                Ok(None) => {
                    let help = format!("`trainer plugin add --lock-file {file}` installs what it pins");
                    report.problem(&pin.name, format!("{file} pins {}, which the store does not have; {help}", pin.digest));
                }
                // A damaged one that is installed was reported already.
                Err(error) if installed.get(&pin.name).is_none_or(|e| e.digest != pin.digest) => {
                    report.problem(&pin.name, error.to_string())
                }
                Err(_) => {}
            }
            if let Some(entry) = installed.get(&pin.name).filter(|e| e.digest != pin.digest) {
                report.note(
                    &pin.name,
                    format!(
                        "{file} pins {} {}, but installed is {} {}",
                        pin.version,
                        pin.digest.short(),
                        entry.version,
                        entry.digest.short()
                    ),
                );
            }
        }
        Ok(())
    }

    fn look_at_use(&self, used: &Used, pins: Option<&Pins>, report: &mut Report) -> Result<(), StoreError> {
        let name = &used.name;
        let pin = pins.and_then(|p| p.get(name));
        if let (Some(pins), None) = (pins, pin) {
            let what = used.path.as_ref().map_or_else(
                || format!("`trainer plugin add` with --lock-file {}", pins.path.display()),
                |p| format!("`trainer plugin add {}`", p.display()),
            );
            report.problem(name, format!("the recipe uses it, and {} does not pin it; {what} does", pins.path.display()));
        }
        let wanted = used.sha256.as_ref().or(pin.map(|p| &p.digest));
        if let (Some(a), Some(pin)) = (&used.sha256, pin)
            && *a != pin.digest
        {
            report.problem(name, format!("the recipe wants {a}, and the pin is {}", pin.digest));
        }
        match &used.path {
            Some(path) => {
                let found = files::read(path, ByteSize::mib(4096).0)?.map(|bytes| Digest::of(&bytes));
                match (found, wanted) {
                    (Some(found), Some(wanted)) if found != *wanted => {
                        report.problem(name, format!("{} has {found}, and {wanted} is wanted", path.display()));
                    }
                    (Some(_), _) => {}
                    (None, Some(wanted)) if matches!(self.store.read(wanted), Ok(Some(_))) => {
                        report.note(name, format!("{} is gone; the store has its component", path.display()));
                    }
                    (None, _) => report.problem(name, format!("{} is gone, and the store does not have its component", path.display())),
                }
            }
            None => {
                let there = match wanted {
                    Some(digest) => self.store.path(digest).is_file(),
                    None => self.store.index()?.plugins.contains_key(name),
                };
                // What a pin wants was looked at with the pins.
                if !there && pin.is_none() {
                    report.problem(name, "the recipe uses it, and it is not installed; `trainer plugin add` installs it");
                }
            }
        }
        if pins.is_none() && used.sha256.is_none() {
            report.note(name, "nothing pins it: `trainer plugin add --project` writes a plugins.lock beside the recipe");
        }
        Ok(())
    }
}

/// The tag with the highest version, pre-releases aside.
fn newest(tags: &[String]) -> Option<(Version, String)> {
    let versions = tags.iter().filter_map(|tag| Some((Version::parse(tag.strip_prefix('v').unwrap_or(tag)).ok()?, tag.clone())));
    versions.filter(|(v, _)| v.pre.is_empty()).max_by(|a, b| a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_tag_is_that_of_the_highest_version() {
        let tags = |list: &[&str]| list.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(newest(&tags(&["latest", "0.9.0", "v0.10.0", "1.0.0-rc.1", "sha256-x"])).unwrap().1, "v0.10.0");
        assert!(newest(&tags(&["latest", "1"])).is_none());
    }
}
