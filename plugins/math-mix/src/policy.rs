//! The mix.
//!
//! Where all lengths are known an epoch holds every reasoning row once and `floor(chat_percentage * reasoning rows)` chat rows, several
//! chat sources sharing them in proportion to their lengths. Each draw takes a source with the probability of what the epoch still owes
//! it (sequential random selection), so that every order of the epoch's draws is equally likely, the counts are exact, and what is owed
//! is the whole state. The rows inside a source follow the host's own permutation, which gives chat rows without replacement.
//!
//! Where a length is not known there is no epoch: each draw is chat with the probability `chat_percentage / (1 + chat_percentage)`.

use trainer_plugin_sdk::{Draw, Policy, Setup, Source};

use crate::rng::{at, below};
use crate::{OneOrMore, Settings};

/// The first bytes of a snapshot: name and version of its form.
const MAGIC: &[u8; 8] = b"mathmix1";

/// The policy.
#[derive(Debug)]
pub struct MathMix {
    seed: u64,
    /// Decisions given so far.
    draws: u64,
    plan: Plan,
}

#[derive(Debug, PartialEq)]
enum Plan {
    /// Exact counts.
    Counted {
        /// Per epoch and source of the run.
        counts: Vec<u64>,
        /// What the running epoch still owes.
        left: Vec<u64>,
        /// The sum of `left`.
        total: u64,
    },
    /// Shares of draws.
    Endless {
        reasoning: usize,
        chat: Vec<usize>,
        /// The probability of a chat draw in units of 2^-64; none for no chat at all.
        threshold: Option<u64>,
    },
}

impl Policy for MathMix {
    type Settings = Settings;

    fn open(settings: Settings, setup: &Setup) -> Result<Self, String> {
        Ok(Self { seed: setup.seed, draws: 0, plan: plan(&settings, &setup.sources)? })
    }

    fn restore(settings: Settings, setup: &Setup, snapshot: &[u8]) -> Result<Self, String> {
        let mut mix = Self::open(settings, setup)?;
        mix.load(snapshot).map_err(|reason| format!("the snapshot of math_mix does not fit: {reason}"))?;
        Ok(mix)
    }

    fn epoch_length(&self) -> Option<u64> {
        match &self.plan {
            Plan::Counted { counts, .. } => Some(counts.iter().sum()),
            Plan::Endless { .. } => None,
        }
    }

    fn next(&mut self, n: u32) -> Result<Vec<Draw>, String> {
        let mut draws = Vec::with_capacity(n.min(1 << 16) as usize);
        for _ in 0..n {
            let word = at(self.seed, self.draws);
            let source = self.plan.pick(word, at(self.seed ^ u64::MAX, self.draws));
            self.draws += 1;
            draws.push(Draw { source: source as u32, ordinal: None });
        }
        Ok(draws)
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.draws.to_le_bytes());
        if let Plan::Counted { left, .. } = &self.plan {
            bytes.extend(left.iter().flat_map(|n| n.to_le_bytes()));
        }
        bytes
    }
}

impl MathMix {
    fn load(&mut self, snapshot: &[u8]) -> Result<(), String> {
        let Some(numbers) = snapshot.strip_prefix(MAGIC) else {
            return Err("it is none of this plugin's version".to_owned());
        };
        let words: Vec<u64> = numbers.chunks_exact(8).filter_map(|b| b.try_into().ok().map(u64::from_le_bytes)).collect();
        let wanted = match &self.plan {
            Plan::Counted { counts, .. } => 1 + counts.len(),
            Plan::Endless { .. } => 1,
        };
        if numbers.len() != wanted * 8 {
            return Err(format!("it has {} bytes where {} belong; the sources of the run have changed", snapshot.len(), wanted * 8 + 8));
        }
        let (Some(&draws), saved) = (words.first(), words.get(1..).unwrap_or_default()) else {
            return Err("it is cut short".to_owned());
        };
        if let Plan::Counted { counts, left, total } = &mut self.plan {
            let epoch: u64 = counts.iter().sum();
            let owed = saved.iter().try_fold(0u64, |sum, n| sum.checked_add(*n));
            // `left` is refilled by the draw that needs it, so an epoch's end is a state with nothing left.
            let expected = match draws % epoch {
                0 if draws > 0 => 0,
                into => epoch - into,
            };
            if owed != Some(expected) || saved.iter().zip(counts.iter()).any(|(saved, count)| saved > count) {
                return Err("its counts are not those of the sources; their lengths or chat_percentage have changed".to_owned());
            }
            *total = expected;
            *left = saved.to_vec();
        }
        self.draws = draws;
        Ok(())
    }
}

impl Plan {
    /// The source for a random word; `second` decides among several chat sources where there are no counts.
    fn pick(&mut self, word: u64, second: u64) -> usize {
        match self {
            Self::Counted { counts, left, total } => {
                if *total == 0 {
                    left.clone_from(counts);
                    *total = counts.iter().sum();
                }
                let mut ticket = below(word, *total);
                *total -= 1;
                for (source, owed) in left.iter_mut().enumerate() {
                    if ticket < *owed {
                        *owed -= 1;
                        return source;
                    }
                    ticket -= *owed;
                }
                unreachable!("the ticket is below the sum of what is owed")
            }
            Self::Endless { reasoning, chat, threshold } => match threshold {
                Some(threshold) if word < *threshold => chat.get(below(second, chat.len() as u64) as usize).copied().unwrap_or(*reasoning),
                _ => *reasoning,
            },
        }
    }
}

fn plan(settings: &Settings, sources: &[Source]) -> Result<Plan, String> {
    let share = settings.chat_percentage;
    if !share.is_finite() || share < 0.0 {
        return Err(format!("chat_percentage must be a number from 0 up, not {share}"));
    }
    let names = || sources.iter().map(|s| s.name.as_str()).collect::<Vec<_>>().join(", ");
    let find = |name: &str| {
        let found = sources.iter().position(|s| s.name == name);
        found.ok_or_else(|| format!("there is no source {name:?} among those of the run: {}", names()))
    };
    let reasoning = settings.reasoning.as_deref().map_or(Ok(0), find)?;
    let reasoning_source = sources.get(reasoning).ok_or("math_mix needs a source with reasoning rows; the run has no source")?;
    let chat: Vec<usize> = match &settings.chat {
        _ if share == 0.0 => Vec::new(),
        Some(chosen) => chosen.names().iter().map(|name| find(name)).collect::<Result<_, _>>()?,
        None => (0..sources.len()).filter(|i| *i != reasoning).collect(),
    };
    if share > 0.0 && chat.is_empty() {
        return Err(format!(
            "math_mix needs a second source with chat rows beside {:?}; add one, or set chat_percentage = 0",
            reasoning_source.name
        ));
    }
    if chat.contains(&reasoning) {
        return Err(format!("source {:?} is named both for reasoning and for chat", reasoning_source.name));
    }
    if let Some(OneOrMore::More(chosen)) = &settings.chat
        && let Some(twice) = chosen.iter().enumerate().find_map(|(i, name)| chosen[..i].contains(name).then_some(name))
    {
        return Err(format!("chat names the source {twice:?} twice"));
    }
    let chat_lengths: Option<Vec<u64>> = chat.iter().map(|i| sources[*i].length).collect();
    let (Some(rows), Some(lengths)) = (reasoning_source.length, chat_lengths) else {
        let probability = share / (1.0 + share);
        let threshold = (share > 0.0).then_some((probability * 2f64.powi(64)) as u64);
        return Ok(Plan::Endless { reasoning, chat, threshold });
    };
    if rows == 0 {
        return Err(format!("source {:?} has no rows", reasoning_source.name));
    }
    // Rounded down, as the tutorial does; the product of a row count and a share is far below 2^53.
    let wanted = (share * rows as f64) as u64;
    let available = lengths.iter().try_fold(0u64, |sum, n| sum.checked_add(*n)).ok_or("the sources have too many rows to count")?;
    if wanted > available && !(settings.repeat_chat && available > 0) {
        return Err(format!(
            "{wanted} chat rows are wanted ({share} of {rows} reasoning rows), but {} has only {available}; lower chat_percentage{}",
            chat.iter().map(|i| format!("{:?}", sources[*i].name)).collect::<Vec<_>>().join(" with "),
            if available > 0 { ", or set repeat_chat = true" } else { "" }
        ));
    }
    let mut counts = vec![0; sources.len()];
    counts[reasoning] = rows;
    for (index, count) in chat.iter().zip(apportion(wanted, &lengths)) {
        counts[*index] = count;
    }
    if counts.iter().try_fold(0u64, |sum, n| sum.checked_add(*n)).is_none() {
        return Err("the sources have too many rows to count".to_owned());
    }
    Ok(Plan::Counted { left: vec![0; counts.len()], counts, total: 0 }.begun())
}

impl Plan {
    /// A plan at the start of its first epoch.
    fn begun(mut self) -> Self {
        if let Self::Counted { counts, left, total } = &mut self {
            left.clone_from(counts);
            *total = counts.iter().sum();
        }
        self
    }
}

/// Shares `wanted` out in proportion to `lengths` by largest remainders, earlier ones first among equals.
fn apportion(wanted: u64, lengths: &[u64]) -> Vec<u64> {
    let sum: u128 = lengths.iter().map(|n| u128::from(*n)).sum();
    if sum == 0 {
        return vec![0; lengths.len()];
    }
    let exact = |n: &u64| u128::from(wanted) * u128::from(*n);
    let mut counts: Vec<u64> = lengths.iter().map(|n| (exact(n) / sum) as u64).collect();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(exact(&lengths[*i]) % sum));
    let missing = wanted - counts.iter().sum::<u64>();
    for index in order.into_iter().take(missing as usize) {
        counts[index] += 1;
    }
    counts
}
