//! Draws from the sources in fixed proportions, as evenly as whole rows allow (smooth weighted round robin).

use std::collections::BTreeMap;

use serde::Deserialize;
use trainer_plugin_sdk::{Draw, Policy, Setup, plugin};

/// What a recipe can set: keep it in step with settings.json.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Weights by source; others have 1.
    weights: BTreeMap<String, f64>,
}

struct RoundRobin {
    weights: Vec<f64>,
    epoch_length: Option<u64>,
    /// How often each source was drawn: all that a snapshot holds.
    drawn: Vec<u64>,
}

impl Policy for RoundRobin {
    type Settings = Settings;

    /// Begins. An error stops the run before it starts.
    fn open(settings: Settings, setup: &Setup) -> Result<Self, String> {
        if let Some(unknown) = settings.weights.keys().find(|name| !setup.sources.iter().any(|s| s.name == **name)) {
            return Err(format!("`weights` names {unknown:?}, which is no source"));
        }
        if let Some((name, _)) = settings.weights.iter().find(|(_, weight)| **weight <= 0.0) {
            return Err(format!("the weight of {name} must be positive"));
        }
        let weights = setup.sources.iter().map(|s| settings.weights.get(&s.name).copied().unwrap_or(1.0)).collect();
        let epoch_length = setup.sources.iter().map(|s| s.length).sum();
        Ok(Self { weights, epoch_length, drawn: vec![0; setup.sources.len()] })
    }

    /// Continues exactly where `snapshot` was taken.
    fn restore(settings: Settings, setup: &Setup, snapshot: &[u8]) -> Result<Self, String> {
        let mut policy = Self::open(settings, setup)?;
        let drawn: Vec<u64> = serde_json::from_slice(snapshot).map_err(|_| "the snapshot is no list of counts")?;
        if drawn.len() != policy.drawn.len() {
            return Err(format!("the snapshot has {} counts, but the mix has {} sources", drawn.len(), policy.drawn.len()));
        }
        policy.drawn = drawn;
        Ok(policy)
    }

    fn epoch_length(&self) -> Option<u64> {
        self.epoch_length
    }

    fn next(&mut self, n: u32) -> Result<Vec<Draw>, String> {
        let total: f64 = self.weights.iter().sum();
        let mut draws = Vec::new();
        for _ in 0..n {
            let round = (self.drawn.iter().sum::<u64>() + 1) as f64;
            // How far each source is behind its share; the first of equals is drawn.
            let behind = |i: usize| self.weights[i] * round - self.drawn[i] as f64 * total;
            let mut source = 0;
            for i in 1..self.weights.len() {
                if behind(i) > behind(source) {
                    source = i;
                }
            }
            self.drawn[source] += 1;
            draws.push(Draw { source: source as u32, ordinal: None });
        }
        Ok(draws)
    }

    /// The state after the draws given so far.
    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.drawn).unwrap_or_default()
    }
}

plugin! { policy: RoundRobin, }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_source_is_refused() {
        let setup = Setup { settings: "{}".to_owned(), sources: Vec::new(), seed: 1, feedback_lag: 1 };
        let settings = Settings { weights: BTreeMap::from([("nowhere".to_owned(), 1.0)]) };
        assert!(RoundRobin::open(settings, &setup).is_err());
    }
}
