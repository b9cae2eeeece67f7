//! Mixing policies: a snapshot holds all of the state, and how draws are asked for does not matter.

use std::sync::Arc;

use serde_json::Value;
use trainer_plugin_host::Plugin;
use trainer_plugin_host::mixing::{Mixer, MixerSetup, Source};

use super::{Checked, Inputs};

pub(super) fn check(plugin: &Arc<Plugin>, inputs: &Inputs<'_>) -> Vec<(&'static str, Checked)> {
    let setups: Vec<MixerSetup> =
        inputs.calls("open").filter_map(|step| setup(step.args.first()?)).filter(|setup| plugin.mixer(setup, None).is_ok()).collect();
    let each = |run: &dyn Fn(&MixerSetup) -> Checked| -> Checked {
        setups.iter().try_for_each(|setup| run(setup).map_err(|e| format!("of {} sources: {e}", setup.sources.len())))
    };
    let open = |setup: &MixerSetup, snapshot: Option<&[u8]>| plugin.mixer(setup, snapshot).map_err(|e| e.to_string());
    vec![
        (
            "the fixtures hold setups to try",
            if setups.is_empty() { Err("no fixture calls `open` with success".to_owned()) } else { Ok(()) },
        ),
        (
            "a and b draws are a + b draws",
            each(&|setup| {
                let (mut whole, mut parts) = (open(setup, None)?, open(setup, None)?);
                let expected = draws(&mut whole, 12)?;
                let mut found = draws(&mut parts, 7)?;
                found.extend(draws(&mut parts, 0)?);
                found.extend(draws(&mut parts, 5)?);
                equal("12 draws at once, and 7 and 5", &expected, &found)
            }),
        ),
        (
            "what is restored goes on exactly",
            each(&|setup| {
                let mut first = open(setup, None)?;
                for taken in [0, 1, 9] {
                    draws(&mut first, taken)?;
                    let snapshot = first.snapshot().map_err(|e| e.to_string())?;
                    let mut second = open(setup, Some(&snapshot))?;
                    let again = second.snapshot().map_err(|e| e.to_string())?;
                    if again != snapshot {
                        return Err("the snapshot of what was just restored is another".to_owned());
                    }
                    let (length, restored) = (first.epoch_length(), second.epoch_length());
                    if length.map_err(|e| e.to_string())? != restored.map_err(|e| e.to_string())? {
                        return Err("the epoch's length is another after restoring".to_owned());
                    }
                    equal("the draws after restoring", &draws(&mut first, 20)?, &draws(&mut second, 20)?)?;
                }
                Ok(())
            }),
        ),
        (
            "the same seed gives the same draws",
            each(&|setup| {
                let (mut first, mut second) = (open(setup, None)?, open(setup, None)?);
                equal("two times 50 draws", &draws(&mut first, 50)?, &draws(&mut second, 50)?)
            }),
        ),
        (
            "a snapshot of something else is refused, and no trap",
            each(&|setup| {
                for snapshot in [&[][..], &[0xff; 3], &[0; 4096]] {
                    match plugin.mixer(setup, Some(snapshot)) {
                        Err(error) if error.costs_the_row() => return Err(format!("{} bytes: {error}", snapshot.len())),
                        _ => {}
                    }
                }
                Ok(())
            }),
        ),
    ]
}

fn draws(mixer: &mut Mixer, n: u32) -> Result<Vec<(u32, Option<u64>)>, String> {
    let draws = mixer.next(n).map_err(|e| e.to_string())?;
    Ok(draws.into_iter().map(|d| (d.source, d.ordinal)).collect())
}

fn equal(what: &str, left: &[(u32, Option<u64>)], right: &[(u32, Option<u64>)]) -> Checked {
    if left == right { Ok(()) } else { Err(format!("{what} differ: {left:?} and {right:?}")) }
}

/// A setup as a fixture writes it.
fn setup(json: &Value) -> Option<MixerSetup> {
    let source = |source: &Value| {
        Some(Source {
            name: source.get("name")?.as_str()?.to_owned(),
            length: source.get("length").and_then(Value::as_u64),
            random_access: source.get("random_access")?.as_bool()?,
        })
    };
    let settings = json.get("settings").cloned().unwrap_or_default();
    // Settings are text that holds JSON, which a fixture may write either way.
    let settings = settings.as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(settings);
    Some(MixerSetup {
        settings,
        sources: json.get("sources")?.as_array()?.iter().map(source).collect::<Option<_>>()?,
        seed: json.get("seed")?.as_u64()?,
        feedback_lag: u32::try_from(json.get("feedback_lag")?.as_u64()?).ok()?,
    })
}
