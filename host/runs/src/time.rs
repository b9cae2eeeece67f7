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

/// A [`stamp`] as people write it, `YYYY-MM-DD HH:MM:SS`; anything else as it is.
pub fn for_people(stamp: &str) -> String {
    match stamp.split_once('T') {
        Some((date, time)) if time.bytes().all(|b| b.is_ascii_digit() || b == b'-') => format!("{date} {}", time.replace('-', ":")),
        _ => stamp.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_people_write_them() {
        assert_eq!(for_people(&stamp(1_767_225_599)), "2025-12-31 23:59:59");
        assert_eq!(for_people("2026-01-01"), "2026-01-01");
        assert_eq!(for_people("The day"), "The day");
    }
}
