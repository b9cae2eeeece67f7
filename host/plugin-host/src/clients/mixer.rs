//! Kind `mixing-policy`.

use std::sync::Arc;

use serde_json::Value;
use wasmtime::component::ResourceAny;

use crate::bindings::policy::Plugin as World;
use crate::bindings::policy::exports::trainer::mixing_policy::policy::{Draw, Feedback, Setup, Source};
use crate::call::{Load, limit_error, place};
use crate::check::{Check, Path};
use crate::error::PluginError;
use crate::host::Plugin;
use crate::instance::{Factory, Guest, bindings, bounded};
use crate::kind::Kind;
use crate::limits::ByteSize;

const OPEN: &str = "trainer:mixing-policy/policy@0.1.0#mixer.open";
const RESTORE: &str = "trainer:mixing-policy/policy@0.1.0#mixer.restore";
const EPOCH_LENGTH: &str = "trainer:mixing-policy/policy@0.1.0#mixer.epoch-length";
const NEXT: &str = "trainer:mixing-policy/policy@0.1.0#mixer.next";
const FEEDBACK: &str = "trainer:mixing-policy/policy@0.1.0#mixer.feedback";
const SNAPSHOT: &str = "trainer:mixing-policy/policy@0.1.0#mixer.snapshot";

bindings!(policy, Kind::MixingPolicy);

/// What a policy starts from.
#[derive(Debug, Clone, PartialEq)]
pub struct MixerSetup {
    /// The recipe's settings for the plugin, checked here against its schema; null counts as `{}`.
    pub settings: Value,
    /// All sources, in the recipe's order; at least one.
    pub sources: Vec<Source>,
    /// The run's seed for this policy.
    pub seed: u64,
    /// Steps between a step and the first draw that may know of its feedback.
    pub feedback_lag: u32,
}

/// A mixing in progress, in an instance of its own. Made by [`Plugin::mixer`].
///
/// It has state, so every failure stops the run; after one the mixer is of no more use.
pub struct Mixer {
    plugin: Arc<Plugin>,
    guest: Guest<World>,
    mixer: ResourceAny,
    sources: Vec<Source>,
}

impl Plugin {
    /// Begins a mixing with this plugin's policy, or continues one from a snapshot of the same plugin under the same setup.
    ///
    /// # Errors
    /// If it is no mixing policy, the settings do not fit its schema, or it refuses the setup or the snapshot.
    pub fn mixer(self: &Arc<Self>, setup: &MixerSetup, snapshot: Option<&[u8]>) -> Result<Mixer, PluginError> {
        self.require(Kind::MixingPolicy)?;
        let settings = self.check_settings(&setup.settings)?;
        let sources = setup.sources.clone();
        let load = Load { rows: sources.len(), bytes: settings.len() + snapshot.map_or(0, <[u8]>::len) };
        let raw = Setup { settings, sources: sources.clone(), seed: setup.seed, feedback_lag: setup.feedback_lag };
        let mut guest = Factory::<World>::new(self)?.make()?;
        let export = if snapshot.is_some() { RESTORE } else { OPEN };
        let opened = guest.call(export, load, |b, s| {
            let mixer = b.trainer_mixing_policy_policy().mixer();
            match snapshot {
                Some(snapshot) => mixer.call_restore(s, &raw, snapshot),
                None => mixer.call_open(s, &raw),
            }
        })?;
        let mixer = opened.map_err(|words| PluginError::Refused { at: place(self.manifest(), export), message: bounded(&words) })?;
        Ok(Mixer { plugin: Arc::clone(self), guest, mixer, sources })
    }
}

impl Mixer {
    /// How many draws make one pass over the mix; none if there is no such thing.
    ///
    /// # Errors
    /// If the plugin traps or runs into a limit.
    pub fn epoch_length(&mut self) -> Result<Option<u64>, PluginError> {
        let mixer = self.mixer;
        self.guest.call(EPOCH_LENGTH, Load::default(), |b, s| b.trainer_mixing_policy_policy().mixer().call_epoch_length(s, mixer))
    }

    /// The next `n` decisions, fewer only at the end of the data.
    ///
    /// # Errors
    /// If the plugin traps, runs into a limit, gives up, or draws from a source or row that does not exist.
    pub fn next(&mut self, n: u32) -> Result<Vec<Draw>, PluginError> {
        let mixer = self.mixer;
        let load = Load { rows: n as usize, bytes: 0 };
        let draws = self.guest.call(NEXT, load, |b, s| b.trainer_mixing_policy_policy().mixer().call_next(s, mixer, n))?;
        let at = place(self.plugin.manifest(), NEXT);
        let draws = draws.map_err(|words| PluginError::Refused { at: Arc::clone(&at), message: bounded(&words) })?;
        let check = Check { at: &at, limits: self.plugin.limits() };
        let root = Path::Root("draws");
        if draws.len() > n as usize {
            return Err(check.bad(root, format!("{} decisions were returned where {n} were asked for", draws.len())));
        }
        for (i, draw) in draws.iter().enumerate() {
            let path = root.index(i);
            let Some(source) = self.sources.get(draw.source as usize) else {
                return Err(check.bad(path.field("source"), format!("there is no source {} among {}", draw.source, self.sources.len())));
            };
            let Some(ordinal) = draw.ordinal else { continue };
            if !source.random_access {
                return Err(check.bad(path.field("ordinal"), format!("source `{}` cannot be read in any order", source.name)));
            }
            if let Some(length) = source.length
                && ordinal >= length
            {
                return Err(check.bad(path.field("ordinal"), format!("there is no row {ordinal} in source `{}` of {length}", source.name)));
            }
        }
        Ok(draws)
    }

    /// Tells the policy what became of its decisions.
    ///
    /// # Errors
    /// If the plugin traps or runs into a limit.
    pub fn feedback(&mut self, feedback: &Feedback) -> Result<(), PluginError> {
        let mixer = self.mixer;
        let load = Load { rows: feedback.sources.len(), bytes: 0 };
        self.guest.call(FEEDBACK, load, |b, s| b.trainer_mixing_policy_policy().mixer().call_feedback(s, mixer, feedback))
    }

    /// The state after the decisions given so far, as bytes that [`Plugin::mixer`] takes.
    ///
    /// # Errors
    /// If the plugin traps or runs into a limit.
    pub fn snapshot(&mut self) -> Result<Vec<u8>, PluginError> {
        let mixer = self.mixer;
        let bytes = self.guest.call(SNAPSHOT, Load::default(), |b, s| b.trainer_mixing_policy_policy().mixer().call_snapshot(s, mixer))?;
        let limit = self.plugin.limits().string_size;
        if bytes.len() > limit.bytes() {
            let size = ByteSize(bytes.len() as u64);
            let raise = ByteSize(size.0.checked_next_power_of_two().unwrap_or(u64::MAX));
            let at = place(self.plugin.manifest(), SNAPSHOT);
            return Err(limit_error(&at, "string_size", limit.to_string(), Some(size.to_string()), format!("\"{raise}\"")));
        }
        Ok(bytes)
    }

    /// The plugin.
    pub fn plugin(&self) -> &Arc<Plugin> {
        &self.plugin
    }
}
