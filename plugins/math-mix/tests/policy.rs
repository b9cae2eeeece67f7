//! The mix: counts, cuts, snapshots and errors.

use math_mix::Settings;
use math_mix::policy::MathMix;
use proptest::prelude::*;
use trainer_plugin_sdk::{Policy, Setup, Source};

fn setup(lengths: &[Option<u64>], seed: u64) -> Setup {
    let source = |(i, length): (usize, &Option<u64>)| Source { name: format!("s{i}"), length: *length, random_access: true };
    Setup { settings: "{}".to_owned(), sources: lengths.iter().enumerate().map(source).collect(), seed, feedback_lag: 1 }
}

fn settings(json: &str) -> Settings {
    serde_json::from_str(json).unwrap()
}

fn draws(mix: &mut MathMix, n: u32) -> Vec<u32> {
    let draws = mix.next(n).unwrap();
    assert!(draws.iter().all(|d| d.ordinal.is_none()));
    draws.into_iter().map(|d| d.source).collect()
}

fn count(draws: &[u32], source: u32) -> usize {
    draws.iter().filter(|s| **s == source).count()
}

#[test]
fn reference_rows_give_the_tutorials_epoch() {
    let rows = |path| trainer_test_support::jsonl(path).len() as u64;
    let (maths, chat) = (rows("dataset/maths.jsonl"), rows("dataset/chat.jsonl"));
    let mut mix = MathMix::open(Settings::default(), &setup(&[Some(maths), Some(chat)], 3407)).unwrap();
    assert_eq!(mix.epoch_length(), Some(maths + maths / 4));
    let epoch = draws(&mut mix, (maths + maths / 4) as u32);
    assert_eq!((count(&epoch, 0) as u64, count(&epoch, 1) as u64), (maths, maths / 4));
}

#[test]
fn the_tutorials_counts() {
    let mut mix = MathMix::open(Settings::default(), &setup(&[Some(4000), Some(6000)], 3407)).unwrap();
    assert_eq!(mix.epoch_length(), Some(5000));
    let mut orders = Vec::new();
    for _ in 0..3 {
        let epoch = draws(&mut mix, 5000);
        assert_eq!((count(&epoch, 0), count(&epoch, 1)), (4000, 1000));
        // Shuffled together: every tenth of the epoch has its share, within ten standard deviations.
        assert!(epoch.chunks(500).all(|c| count(c, 1).abs_diff(100) < 90));
        orders.push(epoch);
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
    let mut other = MathMix::open(Settings::default(), &setup(&[Some(4000), Some(6000)], 3408)).unwrap();
    assert_ne!(draws(&mut other, 5000), orders[0]);
}

#[test]
fn several_chat_sources_share_by_length() {
    let mut mix = MathMix::open(Settings::default(), &setup(&[Some(400), Some(30), Some(60), Some(100)], 1)).unwrap();
    let epoch = draws(&mut mix, 500);
    assert_eq!((0..4).map(|s| count(&epoch, s)).collect::<Vec<_>>(), [400, 16, 31, 53]);
    let mut named = MathMix::open(settings(r#"{"reasoning": "s2", "chat": ["s0"]}"#), &setup(&[Some(400), Some(30), Some(60)], 1)).unwrap();
    let epoch = draws(&mut named, 75);
    assert_eq!((count(&epoch, 2), count(&epoch, 0), count(&epoch, 1)), (60, 15, 0));
}

#[test]
fn sources_of_unknown_length_mix_by_ratio() {
    let mut mix = MathMix::open(Settings::default(), &setup(&[None, Some(10)], 7)).unwrap();
    assert_eq!(mix.epoch_length(), None);
    // 20 % of 100,000 draws, within ten standard deviations (126 each).
    assert!(count(&draws(&mut mix, 100_000), 1).abs_diff(20_000) < 1_260);
    let mut none = MathMix::open(settings(r#"{"chat_percentage": 0}"#), &setup(&[None], 7)).unwrap();
    assert_eq!(count(&draws(&mut none, 1000), 0), 1000);
}

#[test]
fn what_cannot_be_mixed_is_an_error() {
    for (json, lengths, part) in [
        ("{}", vec![Some(100)], "needs a second source"),
        ("{}", vec![Some(0), Some(10)], "has no rows"),
        ("{}", vec![Some(100), Some(24)], "25 chat rows are wanted (0.25 of 100 reasoning rows), but \"s1\" has only 24"),
        (r#"{"repeat_chat": true}"#, vec![Some(100), Some(0)], "has only 0"),
        (r#"{"reasoning": "maths"}"#, vec![Some(100), Some(25)], "no source \"maths\" among those of the run: s0, s1"),
        (r#"{"chat": "s0"}"#, vec![Some(100), Some(25)], "both for reasoning and for chat"),
        (r#"{"chat": ["s1", "s1"]}"#, vec![Some(100), Some(25)], "twice"),
        (r#"{"chat_percentage": -0.5}"#, vec![Some(100), Some(25)], "from 0 up"),
        ("{}", vec![Some(u64::MAX), Some(u64::MAX)], ""),
    ] {
        let result = MathMix::open(settings(json), &setup(&lengths, 0));
        if !part.is_empty() {
            let error = result.map(|_| ()).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
    assert!(MathMix::open(settings(r#"{"repeat_chat": true}"#), &setup(&[Some(100), Some(1)], 0)).is_ok());
}

#[test]
fn foreign_snapshots_are_refused() {
    let setup_a = setup(&[Some(40), Some(60)], 1);
    let mut mix = MathMix::open(Settings::default(), &setup_a).unwrap();
    draws(&mut mix, 17);
    let snapshot = mix.snapshot();
    let restore = |setup: &Setup, bytes: &[u8]| MathMix::restore(Settings::default(), setup, bytes).map(|_| ());
    assert!(restore(&setup_a, &snapshot).is_ok());
    assert!(restore(&setup(&[Some(41), Some(60)], 1), &snapshot).unwrap_err().contains("counts"));
    assert!(restore(&setup(&[Some(40), Some(60), Some(9)], 1), &snapshot).unwrap_err().contains("sources of the run have changed"));
    assert!(restore(&setup_a, &snapshot[..20]).is_err());
    assert!(restore(&setup_a, b"").unwrap_err().contains("none of this plugin's version"));
    let mut forged = snapshot.clone();
    forged[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(restore(&setup_a, &forged).is_err());
}

proptest! {
    /// Cutting the draws anywhere, with a snapshot at each cut, changes nothing.
    #[test]
    fn cuts_and_snapshots_change_nothing(reasoning in 1u64..50, chat in 0u64..40, known: bool, share in 0.0f64..1.5, seed: u64, parts in prop::collection::vec(0u32..40, 1..8)) {
        let settings = Settings { chat_percentage: share, repeat_chat: true, ..Settings::default() };
        let setup = setup(&[Some(reasoning), known.then_some(chat)], seed);
        let Ok(mut whole) = MathMix::open(settings.clone(), &setup) else { return Ok(()) };
        let all = draws(&mut whole, parts.iter().sum());
        let mut mix = MathMix::open(settings.clone(), &setup).unwrap();
        let mut cut = Vec::new();
        for n in parts {
            cut.extend(draws(&mut mix, n));
            mix = MathMix::restore(settings.clone(), &setup, &mix.snapshot()).unwrap();
        }
        prop_assert_eq!(&cut, &all);
        if let Some(epoch) = mix.epoch_length() {
            for chunk in all.chunks_exact(epoch as usize) {
                prop_assert_eq!(count(chunk, 0) as u64, reasoning);
            }
        }
    }

    #[test]
    fn any_snapshot_is_refused_or_works(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut snapshot = b"mathmix1".to_vec();
        snapshot.extend(bytes);
        if let Ok(mut mix) = MathMix::restore(Settings::default(), &setup(&[Some(4), Some(6)], 1), &snapshot) {
            draws(&mut mix, 20);
        }
    }
}
