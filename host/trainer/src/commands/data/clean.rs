//! `trainer data clean`

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use serde::Serialize;
use trainer_data::{EntryInfo, EntryState};
use trainer_runtime::prepared_store;

use crate::cli::DataCleanArgs;
use crate::output::{check_json, json_on_stdout, write_json};
use crate::ui::{bytes, count};

/// The result.
#[derive(Serialize)]
struct Cleaned {
    /// Where prepared data are kept.
    folder: std::path::PathBuf,
    /// Whether nothing was touched.
    dry_run: bool,
    /// What there was.
    entries: Vec<Entry>,
    /// Bytes that were freed, or would be.
    freed: u64,
    /// Bytes that are left.
    kept: u64,
}

/// An entry and what became of it.
#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    info: EntryInfo,
    /// Whether it was removed, or would be.
    removed: bool,
}

/// Runs the command.
pub fn run(args: &DataCleanArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let store = prepared_store().ok_or_else(|| anyhow!("there is no folder for prepared data: neither XDG_CACHE_HOME nor HOME is set"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let goes = |entry: &EntryInfo| match entry.state {
        EntryState::Growing => false,
        EntryState::Stale(_) | EntryState::Damaged(_) | EntryState::Unfinished => true,
        EntryState::Usable => {
            let old = |age: Duration| entry.used.is_some_and(|used| now.saturating_sub(used) > age.as_secs());
            args.all || args.older_than.is_some_and(old)
        }
    };
    let mut cleaned = Cleaned { folder: store.folder().to_owned(), dry_run: args.dry_run, entries: Vec::new(), freed: 0, kept: 0 };
    let quiet = json_on_stdout(args.json.as_deref());
    for info in store.entries()? {
        let removed = goes(&info);
        if removed && !args.dry_run {
            store.remove(&info)?;
        }
        *(if removed { &mut cleaned.freed } else { &mut cleaned.kept }) += info.bytes;
        if !quiet && (removed || args.dry_run) {
            say!("{}", text(&info, removed, args.dry_run, now));
        }
        cleaned.entries.push(Entry { info, removed });
    }
    if !quiet {
        let (freed, kept) = (bytes(cleaned.freed), bytes(cleaned.kept));
        let verb = if args.dry_run { "would be freed" } else { "freed" };
        say!("{freed} {verb}, {kept} kept in {}", store.folder().display());
    }
    if let Some(target) = &args.json {
        write_json(target, &cleaned)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(entry: &EntryInfo, removed: bool, dry_run: bool, now: u64) -> String {
    let what = match (removed, dry_run) {
        (true, true) => "would remove",
        (true, false) => "removed",
        (false, _) => "keep",
    };
    let name = entry.path.file_stem().map(|s| s.to_string_lossy().chars().take(12).collect::<String>()).unwrap_or_default();
    let why = match &entry.state {
        EntryState::Usable => "usable".to_owned(),
        EntryState::Stale(why) | EntryState::Damaged(why) => why.clone(),
        EntryState::Unfinished => "left by a process that ended".to_owned(),
        EntryState::Growing => "being made".to_owned(),
    };
    let source = entry.source.as_deref().map(|s| format!(" source {s}")).unwrap_or_default();
    let rows = entry.rows.map(|n| format!(", {} rows", count(n))).unwrap_or_default();
    let used = entry.used.map(|at| format!(", used {} ago", ago(now.saturating_sub(at)))).unwrap_or_default();
    format!("{what} {name}{source}: {}{rows}{used}; {why}", bytes(entry.bytes))
}

/// A time for people: the largest unit that is reached.
fn ago(seconds: u64) -> String {
    match seconds {
        0..=59 => format!("{seconds} s"),
        60..=3_599 => format!("{} min", seconds / 60),
        3_600..=86_399 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A time such as `30d`, `12h`, `90m` or `45s`.
pub fn age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time such as 30d, 12h, 90m or 45s");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds = match unit {
        'd' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or_default().parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in [("30d", 2_592_000), ("12h", 43_200), ("90m", 5_400), ("0s", 0)] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)));
        }
        for wrong in ["", "d", "30", "1.5h", "-1d", "30w", "99999999999999999999d", "18446744073709551615d", "3 d", "1é"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
