//! Times for people and for names of folders.

/// Seconds since 1970 as `YYYY-MM-DDTHH-MM-SS` in UTC, without characters that a file system refuses.
pub fn stamp(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days, by 400-year cycles that begin on 1 March (Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (cycle, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (400 * cycle + year, month + 3) } else { (400 * cycle + year + 1, month - 9) };
    format!("{year:04}-{month:02}-{date:02}T{:02}-{:02}-{:02}", time / 3600, time / 60 % 60, time % 60)
}
