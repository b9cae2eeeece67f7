//! Installed plugins, by name and by digest, and what pins them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use serde::Serialize;
use trainer_config::{PluginName, Recipe};
use trainer_plugin_store::{Digest, Manager, Pins, Settings, StoreError, Verdict};

use crate::error::RuntimeError;
use crate::plugins::PluginArg;

static MANAGER: OnceLock<Manager> = OnceLock::new();
/// The pins of the project that this process works on, once something has asked for them.
static PINS: Mutex<Option<Option<Pins>>> = Mutex::new(None);

/// A component of the store, as it was hashed.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The plugin's name.
    pub name: String,
    /// Its digest.
    pub digest: Digest,
    /// The component.
    pub bytes: Vec<u8>,
}

/// What wants a plugin to have a digest.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    digest: Digest,
    by: String,
    help: String,
}

impl Wanted {
    /// The same, of a file that is no longer there.
    pub(crate) fn gone(&self, path: &Path) -> Self {
        Self { help: format!("{} is gone; {}", path.display(), self.help), ..self.clone() }
    }
}

/// The user's store of plugins, as the environment says where it is.
///
/// # Errors
/// It says nothing, or the user's policy does not read.
pub fn plugin_manager() -> Result<&'static Manager, StoreError> {
    if let Some(manager) = MANAGER.get() {
        return Ok(manager);
    }
    let new = Manager::new(&Settings::from_env()?)?;
    Ok(MANAGER.get_or_init(|| new))
}

/// Says that the pins of this process are those beside a recipe. Without this, or without a recipe, they are those in the current folder.
///
/// # Errors
/// The file does not read.
pub fn use_pins_beside(recipe: Option<&Path>) -> Result<(), StoreError> {
    let pins = Pins::beside(recipe)?;
    *PINS.lock().unwrap_or_else(PoisonError::into_inner) = Some(pins);
    Ok(())
}

/// The pins of this process.
///
/// # Errors
/// The file does not read.
pub fn pins() -> Result<Option<Pins>, StoreError> {
    let mut pins = PINS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = &*pins {
        return Ok(known.clone());
    }
    let found = Pins::beside(None)?;
    *pins = Some(found.clone());
    Ok(found)
}

/// What the recipe, or else the pins, want of a plugin.
pub(crate) fn wanted(name: &str, entry: Option<&trainer_config::Plugin>) -> Result<Option<Wanted>, RuntimeError> {
    if let Some(text) = entry.and_then(|e| e.sha256.as_ref()) {
        let broken = |message| RuntimeError::Store(StoreError::Reference { text: text.clone(), message });
        let help = format!("`trainer plugin add` the one with this digest, or set path or sha256 in [plugins.{name}]");
        return Ok(Some(Wanted { digest: text.parse().map_err(broken)?, by: "the recipe or its lock wants".to_owned(), help }));
    }
    // What is inside the program is pinned by the program.
    if trainer_nano::plugin(name).is_some() && entry.is_none_or(|e| e.path.is_none()) {
        return Ok(None);
    }
    Ok(pins()?.and_then(|pins| {
        let pin = pins.get(name)?;
        let file = pins.path.display();
        Some(Wanted {
            digest: pin.digest.clone(),
            by: format!("{file} pins"),
            help: format!(
                "`trainer plugin add --lock-file {file}` installs what is pinned, `trainer plugin update {name}` pins what is there now"
            ),
        })
    }))
}

/// The installed plugin of a name: the bytes that are wanted or pinned, or else what the name means in the store. None if it is not installed.
pub(crate) fn find(name: &str, wanted: Option<&Wanted>) -> Result<Option<Stored>, RuntimeError> {
    let pinned = if wanted.is_none() { self::wanted(name, None)? } else { None };
    let manager = match plugin_manager() {
        Err(StoreError::NoHome) => return Ok(None),
        manager => manager?,
    };
    let (digest, by, help) = match wanted.or(pinned.as_ref()) {
        Some(w) => (w.digest.clone(), format!("{} for `{name}`", w.by), w.help.clone()),
        None => match manager.store.index()?.plugins.remove(name) {
            Some(entry) => {
                (entry.digest, format!("its index names for `{name}`"), format!("`trainer plugin remove {name}` and add it again"))
            }
            None => return Ok(None),
        },
    };
    match manager.store.read(&digest)? {
        Some(bytes) => Ok(Some(Stored { name: name.to_owned(), digest, bytes })),
        None => Err(StoreError::NotStored { digest, wanted_by: by, help }.into()),
    }
}

/// The names of the installed plugins, for messages.
pub(crate) fn names() -> Vec<String> {
    let index = plugin_manager().and_then(|m| m.store.index());
    index.map(|i| i.plugins.into_keys().collect()).unwrap_or_default()
}

/// Whether the user or the project demands good signatures of plugins that are not official.
fn signatures_required() -> Result<bool, StoreError> {
    if pins()?.is_some_and(|p| p.require_signatures) {
        return Ok(true);
    }
    match plugin_manager() {
        Err(StoreError::NoHome) => Ok(false),
        manager => Ok(manager?.policy.require_signatures),
    }
}

/// A component and what came with it.
struct Signed {
    /// What it is called in messages.
    what: String,
    bytes: Vec<u8>,
    signature: Option<String>,
}

/// A plugin that is not official, as it lies there.
fn signed(arg: &PluginArg, manager: &Manager) -> Result<Option<Signed>, StoreError> {
    Ok(match arg {
        PluginArg::Official(_) => None,
        PluginArg::Stored(s) => {
            let signature = manager.store.signature(&s.digest)?;
            Some(Signed { what: format!("plugin `{}`", s.name), bytes: s.bytes.clone(), signature })
        }
        PluginArg::File(path) => {
            let (bytes, signature) = Manager::read_signed(path)?;
            Some(Signed { what: path.display().to_string(), bytes, signature })
        }
    })
}

/// Checks the signature of a plugin that is not official, where the user or the project requires one. The digest of what was checked.
pub(crate) fn check_signature(arg: &PluginArg) -> Result<Option<Digest>, RuntimeError> {
    if matches!(arg, PluginArg::Official(_)) || !signatures_required()? {
        return Ok(None);
    }
    let manager = plugin_manager()?;
    let Some(Signed { what, bytes, signature }) = signed(arg, manager)? else { return Ok(None) };
    manager.check_signature(&what, &bytes, signature.as_deref(), false, true)?;
    Ok(Some(Digest::of(&bytes)))
}

/// Holds a plugin that is used without a recipe to the same rule: where the user or the project in the current folder requires signatures, it must
/// have a good one, over the component with this digest.
///
/// # Errors
/// It has none, or one that is not good; what was signed is another component than the one that was looked at.
pub fn check_policy(name: &str, arg: &PluginArg, digest: &str) -> Result<(), RuntimeError> {
    let signed = check_signature(arg)?;
    check_digest(name, arg, digest, None, signed)
}

/// What is known of a plugin's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignatureReport {
    /// What it is worth.
    #[serde(flatten)]
    pub state: SignatureState,
    /// Whether the user or the project in the current folder requires a good one.
    pub required: bool,
}

/// What a plugin's signature is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum SignatureState {
    /// The plugin is part of the program, and needs none.
    Official,
    /// There is none.
    Missing,
    /// Made with a trusted key over this component.
    Good {
        /// The user's name of the key.
        signed_by: String,
        /// The key's id.
        id: String,
    },
    /// It claims to be by a trusted key and is not: the component or the signature was changed.
    Bad {
        /// The user's name of the key.
        claims: String,
    },
    /// Its key is not trusted.
    Untrusted {
        /// The key's id.
        id: String,
    },
    /// It is no signature in minisign's format.
    Unreadable,
    /// It could not be looked at.
    Unknown {
        /// Why not.
        message: String,
    },
}

/// What a plugin's signature is worth, whether or not one is required. What stands in the way of knowing is an answer too.
pub fn signature(arg: &PluginArg) -> SignatureReport {
    let worth = || {
        if matches!(arg, PluginArg::Official(_)) {
            return Ok(SignatureState::Official);
        }
        let manager = plugin_manager()?;
        let Some(Signed { bytes, signature, .. }) = signed(arg, manager)? else { return Ok(SignatureState::Official) };
        let Some(signature) = signature else { return Ok(SignatureState::Missing) };
        Ok::<_, StoreError>(match manager.keys.verify(&bytes, &signature)? {
            Verdict::Good(key, _) => SignatureState::Good { signed_by: manager.keys.name_of(&key)?.unwrap_or_default(), id: key.id() },
            Verdict::Bad(claims) => SignatureState::Bad { claims },
            Verdict::Unknown(id) => SignatureState::Untrusted { id },
            Verdict::Unreadable => SignatureState::Unreadable,
        })
    };
    // A demand that does not read is one: with it, nothing runs.
    SignatureReport {
        state: worth().unwrap_or_else(|e| SignatureState::Unknown { message: e.to_string() }),
        required: signatures_required().unwrap_or(true),
    }
}

/// Checks that a plugin is the one that is wanted, and the one whose signature was checked.
pub(crate) fn check_digest(
    name: &str,
    arg: &PluginArg,
    found: &str,
    wanted: Option<Wanted>,
    signed: Option<Digest>,
) -> Result<(), RuntimeError> {
    let signed =
        signed.map(|digest| Wanted { digest, by: "what was signed is".to_owned(), help: "it changed just now; try again".to_owned() });
    let Some(wanted) = signed.into_iter().chain(wanted).find(|w| w.digest.hex() != found) else { return Ok(()) };
    let place = match arg {
        PluginArg::File(path) => path.display().to_string(),
        PluginArg::Official(_) => "the program".to_owned(),
        PluginArg::Stored(_) => "the store".to_owned(),
    };
    Err(RuntimeError::WrongDigest {
        name: name.into(),
        place: place.into(),
        found: found.into(),
        wanted_by: wanted.by.into(),
        wanted: wanted.digest,
        help: wanted.help.into(),
    })
}

/// Holds a recipe to the plugins of an earlier run, by name and SHA-256, as far as they come from the store: what a name means today must not decide how
/// a run goes on, and a file that is gone since may be there. Official plugins and files stay what they are, and are compared with the lock. From here on
/// the lock decides, and what the project pins by now does not.
pub fn pin_plugins(recipe: &mut Recipe, digests: &BTreeMap<String, String>) {
    for (name, digest) in digests {
        let key = PluginName::new(name.clone());
        let entry = recipe.plugins.get(&key);
        let from_file = entry.and_then(|e| e.path.as_ref());
        let lacking = from_file.map_or(trainer_nano::plugin(name).is_none(), |path| !path.is_file());
        if lacking && entry.is_none_or(|e| e.sha256.is_none()) && recipe.plugin_names().contains(&key) {
            recipe.plugins.entry(key).or_default().sha256 = Some(digest.clone());
        }
    }
    // A file that does not read is an error where its demands are asked for.
    if let Ok(Some(mut known)) = pins() {
        known.plugins.clear();
        *PINS.lock().unwrap_or_else(PoisonError::into_inner) = Some(Some(known));
    }
}
