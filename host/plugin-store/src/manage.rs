//! Adding, updating and removing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;
use trainer_plugin_host::{ByteSize, Inspection, Limits};

use crate::fetch::{Fetched, describe, fetch};
use crate::http::Client;
use crate::keys::{KeyRing, SignerKey, Verdict};
use crate::pins::{Pin, Pins};
use crate::store::{Entry, Store, utc};
use crate::{Digest, Policy, Reference, Settings, StoreError};

/// What an addition may and must be.
#[derive(Clone, Debug)]
pub struct AddOptions {
    /// The digest that it must have.
    pub sha256: Option<Digest>,
    /// A signature that cannot be verified is left aside.
    pub ignore_signature: bool,
    /// The largest component.
    pub max_size: ByteSize,
    /// Names that no plugin may have, because the program's own plugins have them.
    pub reserved: Vec<String>,
}

impl Default for AddOptions {
    fn default() -> Self {
        Self { sha256: None, ignore_signature: false, max_size: Limits::default().component_size, reserved: Vec::new() }
    }
}

/// How an addition changed the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Added,
    /// It was there already.
    Unchanged,
    /// It took the place of another one of its name.
    Updated,
}

/// What an addition came to.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// The plugin's name.
    pub name: String,
    /// What happened.
    pub change: Change,
    /// Its entry.
    #[serde(flatten)]
    pub entry: Entry,
    /// The user's name of the key that signed it.
    pub signed_by: Option<String>,
    /// What it asks for beyond computing.
    pub needs: Vec<String>,
    /// How that is granted.
    pub grant_with: Vec<String>,
    /// The file that pins it.
    pub pinned_in: Option<PathBuf>,
}

/// What an update came to.
#[derive(Clone, Debug, Serialize)]
pub struct Updated {
    /// What it was before.
    pub before: Entry,
    /// What it is now.
    #[serde(flatten)]
    pub now: Added,
}

/// What a removal came to.
#[derive(Clone, Debug, Serialize)]
pub struct Removed {
    /// The plugin's name.
    pub name: String,
    /// The component that was removed with it; none if another name has it.
    pub component: Option<Digest>,
    /// The file that pins it no longer.
    pub unpinned_in: Option<PathBuf>,
}

/// The store with everything that decides what comes into it.
#[derive(Debug)]
pub struct Manager {
    /// The store.
    pub store: Store,
    /// The user's keys.
    pub keys: KeyRing,
    /// The user's policy.
    pub policy: Policy,
    authorities: Option<PathBuf>,
    pub(crate) docker: Option<PathBuf>,
}

/// A component that may be kept.
struct Accepted {
    about: Inspection,
    fetched: Fetched,
    entry: Entry,
}

impl Manager {
    /// With these settings.
    ///
    /// # Errors
    /// The policy does not read.
    pub fn new(settings: &Settings) -> Result<Self, StoreError> {
        Ok(Self {
            store: Store::new(settings.store.clone()),
            keys: KeyRing::new(settings.config.join("keys")),
            policy: Policy::load(&settings.config.join("plugins.toml"))?,
            authorities: settings.authorities.clone(),
            docker: settings.docker.clone(),
        })
    }

    /// What speaks with servers.
    pub(crate) fn http(&self) -> Result<Client, StoreError> {
        Client::new(self.authorities.as_deref())
    }

    /// Checks a signature. With none, or with one that is not good, that is an error where signatures are required.
    ///
    /// # Errors
    /// It is not good, or missing where it is required.
    pub fn check_signature(
        &self,
        what: &str,
        bytes: &[u8],
        signature: Option<&str>,
        ignore: bool,
        required: bool,
    ) -> Result<Option<SignerKey>, StoreError> {
        let wrong = |message: String| StoreError::Signature { what: what.to_owned(), message };
        let verdict = match signature {
            Some(signature) => self.keys.verify(bytes, signature)?,
            None if required => {
                return Err(wrong(
                    "it has no signature, and signatures are required (plugins.toml of your configuration, or plugins.lock); `trainer plugin sign FILE` signs what is yours, and its author's signature goes beside it as FILE.minisig".to_owned(),
                ));
            }
            None => return Ok(None),
        };
        let (message, help) = match verdict {
            Verdict::Good(key, _) => return Ok(Some(key)),
            // Nothing helps against that.
            Verdict::Bad(name) => {
                return Err(wrong(format!(
                    "its signature claims to be by `{name}` and is not: the component or the signature was changed"
                )));
            }
            Verdict::Unknown(id) => (
                format!("it is signed with the key {id}, which is not trusted"),
                "; get its author's public key from where you trust it and run `trainer plugin keys trust NAME KEY`",
            ),
            Verdict::Unreadable => ("its signature is no minisign signature".to_owned(), ""),
        };
        match (ignore, required) {
            (true, false) => Ok(None),
            (true, true) => Err(wrong(format!("{message}; --ignore-signature does not help where signatures are required"))),
            (false, true) => Err(wrong(format!("{message}{help}"))),
            (false, false) => Err(wrong(format!("{message}{help}; --ignore-signature installs it as if it were not signed"))),
        }
    }

    fn requires(&self, pins: Option<&Pins>) -> bool {
        self.policy.require_signatures || pins.is_some_and(|p| p.require_signatures)
    }

    /// Fetches and checks what lies at a reference. Nothing is kept yet.
    fn accept(
        &self,
        reference: &Reference,
        at: Option<&Digest>,
        options: &AddOptions,
        pins: Option<&Pins>,
    ) -> Result<Accepted, StoreError> {
        let what = reference.to_string();
        let fetched = fetch(&self.http()?, self.docker.clone(), reference, at, options.max_size)?;
        let digest = Digest::of(&fetched.bytes);
        if let Some(expected) = options.sha256.as_ref().filter(|d| **d != digest) {
            let help = "Ask its author which one is right".to_owned();
            return Err(StoreError::Differs {
                what,
                found: digest,
                expected_by: "you asked for".to_owned(),
                expected: expected.clone(),
                help,
            });
        }
        let about =
            describe(&what, &fetched.bytes).map_err(|source| StoreError::Plugin { what: what.clone(), source: Box::new(source) })?;
        let refuse = |message: String| StoreError::Refused { what: what.clone(), message };
        if options.reserved.contains(&about.name) {
            return Err(refuse(format!("`{}` is the name of an official plugin; it can only be used by the path of its file", about.name)));
        }
        if let Some(import) = about.refused_imports.first() {
            return Err(refuse(format!(
                "it imports {import}, which nothing offers or its manifest does not declare, so it could not be used"
            )));
        }
        let signer =
            self.check_signature(&what, &fetched.bytes, fetched.signature.as_deref(), options.ignore_signature, self.requires(pins))?;
        let entry = Entry {
            version: about.version.clone(),
            digest,
            reference: reference.clone(),
            manifest: fetched.manifest.clone(),
            kinds: about.kinds.iter().map(|k| format!("{}@{}", k.kind, k.version)).collect(),
            added: utc(SystemTime::now()),
            signer,
        };
        Ok(Accepted { about, fetched, entry })
    }

    /// Installs the plugin at a reference, and pins it in the file, if one is given. What is pinned there already must be the same.
    ///
    /// # Errors
    /// It cannot be had, is no plugin, is not what was expected, or another one has its name.
    pub fn add(&self, reference: &Reference, options: &AddOptions, pin_file: Option<&Path>) -> Result<Added, StoreError> {
        let pins =
            pin_file.map(|path| Ok::<_, StoreError>(Pins::load(path)?.unwrap_or_else(|| Pins::empty(path.to_owned())))).transpose()?;
        let pinned = pins.as_ref().and_then(|p| p.plugins.iter().find(|p| p.reference == *reference)).cloned();
        // A registry keeps what a tag meant when it was pinned.
        let accepted = self.accept(reference, pinned.as_ref().and_then(|p| p.manifest.as_ref()), options, pins.as_ref())?;
        let name = accepted.about.name.clone();
        if let Some(pin) = pins.as_ref().and_then(|p| p.get(&name)) {
            hold_to(pin, &accepted.entry, pin_file)?;
        }
        self.keep(accepted, pin_file, |before, new| match before {
            Some(before) if before.digest == new.digest => Ok(true),
            Some(before) => Err(StoreError::Refused {
                what: new.reference.to_string(),
                message: format!(
                    "`{name}` {} is installed from {} and has {}, this one {}; `trainer plugin update {name}` takes what is there now, `trainer plugin remove {name}` makes room",
                    before.version, before.reference, before.digest, new.digest
                ),
            }),
            None => Ok(true),
        })
    }

    /// Installs everything that a file pins, as it is pinned. Names that mean something else in the index stay what they are: a recipe beside the
    /// file uses the pinned bytes.
    ///
    /// # Errors
    /// There is no such file; one of the plugins cannot be had, or is not what is pinned.
    pub fn add_pinned(&self, options: &AddOptions, pin_file: &Path) -> Result<Vec<Added>, StoreError> {
        let missing = || StoreError::io("read", pin_file)(std::io::ErrorKind::NotFound.into());
        let pins = Pins::load(pin_file)?.ok_or_else(missing)?;
        let mut all = Vec::new();
        for pin in &pins.plugins {
            let kept = self.store.read(&pin.digest).unwrap_or(None);
            let good = |bytes: &[u8]| -> Result<bool, StoreError> {
                let signature = self.store.signature(&pin.digest)?;
                Ok(pin.signer.is_none() && !self.requires(Some(&pins))
                    || matches!(signature.map(|s| self.keys.verify(bytes, &s)).transpose()?, Some(Verdict::Good(..))))
            };
            let accepted = match kept {
                Some(bytes) if good(&bytes)? => {
                    let signature = self.store.signature(&pin.digest)?;
                    let signer = self.check_signature(&pin.name, &bytes, signature.as_deref(), true, self.requires(Some(&pins)))?;
                    let about = describe(&pin.name, &bytes)
                        .map_err(|source| StoreError::Plugin { what: pin.name.clone(), source: Box::new(source) })?;
                    let entry = Entry {
                        version: pin.version.clone(),
                        digest: pin.digest.clone(),
                        reference: pin.reference.clone(),
                        manifest: pin.manifest.clone(),
                        kinds: pin.kinds.clone(),
                        added: utc(SystemTime::now()),
                        signer,
                    };
                    Accepted { about, entry, fetched: Fetched { bytes, signature: None, manifest: pin.manifest.clone() } }
                }
                _ => self.accept(&pin.reference, pin.manifest.as_ref(), options, Some(&pins))?,
            };
            if accepted.about.name != pin.name {
                let message =
                    format!("plugins.lock pins it as `{}`, but it calls itself `{}`", pin.name, crate::http::line(&accepted.about.name));
                return Err(StoreError::Refused { what: pin.reference.to_string(), message });
            }
            hold_to(pin, &accepted.entry, Some(pin_file))?;
            all.push(self.keep(accepted, Some(pin_file), |before, _| Ok(before.is_none()))?);
        }
        Ok(all)
    }

    /// Keeps a component and its name, and pins it. `may` is asked under the lock, with what the name means so far, whether it may mean this; false
    /// keeps the component only.
    fn keep(
        &self,
        accepted: Accepted,
        pin_file: Option<&Path>,
        may: impl FnOnce(Option<&Entry>, &Entry) -> Result<bool, StoreError>,
    ) -> Result<Added, StoreError> {
        let Accepted { about, fetched, entry } = accepted;
        let name = about.name;
        let held = self.store.lock()?;
        let mut index = self.store.index()?;
        let before = index.plugins.get(&name).cloned();
        let named = may(before.as_ref(), &entry)?;
        let there = matches!(self.store.read(&entry.digest), Ok(Some(_)));
        held.keep(&fetched.bytes, fetched.signature.as_deref().filter(|_| entry.signer.is_some()))?;
        let change = match &before {
            Some(b) if b.digest == entry.digest && there => Change::Unchanged,
            Some(b) if named && b.digest != entry.digest => Change::Updated,
            _ if !named && there => Change::Unchanged,
            _ => Change::Added,
        };
        let same = before.as_ref().is_some_and(|b| Entry { added: entry.added.clone(), ..b.clone() } == entry);
        if named && !same {
            index.plugins.insert(name.clone(), entry.clone());
            held.save(&index)?;
        }
        if let Some(path) = pin_file {
            let mut pins = Pins::load(path)?.unwrap_or_else(|| Pins::empty(path.to_owned()));
            let pin = Pin::new(&name, &entry);
            if pins.get(&name) != Some(&pin) {
                pins.put(pin);
                pins.save()?;
            }
        }
        let entry = before.filter(|_| same).unwrap_or(entry);
        Ok(Added {
            signed_by: entry.signer.as_ref().map(|key| self.keys.name_of(key)).transpose()?.flatten(),
            name,
            change,
            entry,
            needs: about.needs,
            grant_with: about.grant_with,
            pinned_in: pin_file.map(Path::to_owned),
        })
    }

    /// Fetches plugins anew from where they came from, or one of them from elsewhere. All installed and pinned ones, if none is named. What was signed
    /// must still be signed with the same key.
    ///
    /// # Errors
    /// One of them is not there, cannot be had, or is not what it may be; those before it are updated.
    pub fn update(
        &self,
        names: &[String],
        from: Option<&Reference>,
        options: &AddOptions,
        pin_file: Option<&Path>,
    ) -> Result<Vec<Updated>, StoreError> {
        let pins = pin_file.map(Pins::load).transpose()?.flatten();
        let pin_file = pin_file.filter(|_| pins.is_some());
        let index = self.store.index()?;
        let names: Vec<String> = match names {
            [] => index
                .plugins
                .keys()
                .cloned()
                .chain(pins.iter().flat_map(|p| &p.plugins).map(|p| p.name.clone()))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            names => names.to_vec(),
        };
        let mut all = Vec::new();
        for name in names {
            let pin = pins.as_ref().and_then(|p| p.get(&name));
            let before = match (pin, index.plugins.get(&name)) {
                (Some(pin), _) => Entry {
                    version: pin.version.clone(),
                    digest: pin.digest.clone(),
                    reference: pin.reference.clone(),
                    manifest: pin.manifest.clone(),
                    kinds: pin.kinds.clone(),
                    added: String::new(),
                    signer: pin.signer.clone(),
                },
                (None, Some(entry)) => entry.clone(),
                (None, None) => return Err(StoreError::NotInstalled { name, installed: index.plugins.keys().cloned().collect() }),
            };
            let reference = from.unwrap_or(&before.reference);
            let accepted = self.accept(reference, None, options, pins.as_ref())?;
            let refuse = |message: String| StoreError::Refused { what: reference.to_string(), message };
            if accepted.about.name != name {
                return Err(refuse(format!("it is to take the place of `{name}`, but calls itself `{}`", accepted.about.name)));
            }
            if let Some(signer) = before.signer.as_ref().filter(|s| accepted.entry.signer.as_ref() != Some(s)) {
                let was = self.keys.name_of(signer)?.map_or_else(|| signer.id(), |n| format!("{n} ({})", signer.id()));
                let now = accepted.entry.signer.as_ref().map_or("not signed".to_owned(), |s| format!("signed with {}", s.id()));
                return Err(refuse(format!(
                    "what is installed was signed with the key of {was}, and this is {now}; if that is right, remove `{name}` and add it again"
                )));
            }
            // A plugin that only the project has changes for the project only.
            let pinned_only = pin.is_some_and(|pin| index.plugins.get(&name).is_some_and(|e| e.digest != pin.digest));
            let now = self.keep(accepted, pin_file.filter(|_| pin.is_some()), |_, _| Ok(!pinned_only))?;
            all.push(Updated { before, now });
        }
        Ok(all)
    }

    /// Removes plugins from the index and from the file that pins them, and their components if no other name has them.
    ///
    /// # Errors
    /// One of them is neither installed nor pinned; then nothing is removed.
    pub fn remove(&self, names: &[String], pin_file: Option<&Path>) -> Result<Vec<Removed>, StoreError> {
        let held = self.store.lock()?;
        let mut index = self.store.index()?;
        let mut pins = pin_file.map(Pins::load).transpose()?.flatten();
        let pinned = |pins: &Option<Pins>, name: &str| pins.as_ref().and_then(|p| p.get(name)).map(|p| p.digest.clone());
        if let Some(name) = names.iter().find(|n| !index.plugins.contains_key(*n) && pinned(&pins, n).is_none()) {
            return Err(StoreError::NotInstalled { name: name.clone(), installed: index.plugins.into_keys().collect() });
        }
        let mut digests = Vec::new();
        for name in names {
            let pin = pinned(&pins, name);
            if let Some(pins) = &mut pins {
                pins.plugins.retain(|p| p.name != *name);
            }
            let entry = index.plugins.remove(name);
            digests.push((name.clone(), pin.is_some(), entry.map(|e| e.digest).into_iter().chain(pin).collect::<BTreeSet<_>>()));
        }
        // Names go before what they name.
        held.save(&index)?;
        if let Some(pins) = &pins {
            pins.save()?;
        }
        let mut all = Vec::new();
        for (name, was_pinned, digests) in digests {
            let mut component = None;
            for digest in digests {
                if held.forget(&digest, &index)? {
                    component = Some(digest);
                }
            }
            all.push(Removed { name, component, unpinned_in: pin_file.filter(|_| was_pinned).map(Path::to_owned) });
        }
        Ok(all)
    }

    /// Removes the components that no name in the index has, such as those that updates left behind.
    ///
    /// # Errors
    /// The system refuses.
    pub fn prune(&self) -> Result<Vec<Digest>, StoreError> {
        let held = self.store.lock()?;
        let index = self.store.index()?;
        let mut gone = Vec::new();
        for digest in self.store.components()? {
            if held.forget(&digest, &index)? {
                gone.push(digest);
            }
        }
        Ok(gone)
    }
}

/// What is pinned is what there is.
fn hold_to(pin: &Pin, entry: &Entry, pin_file: Option<&Path>) -> Result<(), StoreError> {
    let file = pin_file.map_or(crate::PIN_FILE.to_owned(), |p| p.display().to_string());
    if pin.digest != entry.digest {
        return Err(StoreError::Differs {
            what: entry.reference.to_string(),
            found: entry.digest.clone(),
            expected_by: format!("{file} pins `{}` to", pin.name),
            expected: pin.digest.clone(),
            help: format!("`trainer plugin update {}` pins what is there now, if that is right", pin.name),
        });
    }
    match &pin.signer {
        Some(signer) if entry.signer.as_ref() != Some(signer) => Err(StoreError::Signature {
            what: entry.reference.to_string(),
            message: format!(
                "{file} says that `{}` is signed with the key {signer}, and here it is not; if you trust that key, `trainer plugin keys trust NAME {signer}`",
                pin.name
            ),
        }),
        _ => Ok(()),
    }
}
