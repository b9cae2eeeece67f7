//! Numbers and text for people.

use std::io::IsTerminal;
use std::time::Duration;

/// Whether standard output is a terminal.
pub fn terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether text for people may be coloured: not where `NO_COLOR` is set to anything (<https://no-color.org>), nor in a terminal that cannot.
pub fn colors() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// A size such as `23.4 GiB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", units.get(unit).unwrap_or(&"B")) }
}

/// A number with thousands separated, such as `651,264`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A time such as `1.4 s`, `3:05` or `2:03:04`.
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..=59 => format!("{:.1} s", d.as_secs_f64()),
        60..=3599 => format!("{}:{:02}", s / 60, s % 60),
        _ => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(651_264), "651,264");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(bytes(17), "17 B");
        assert_eq!(bytes(25_000_000_000), "23.3 GiB");
        assert_eq!(duration(Duration::from_millis(1440)), "1.4 s");
        assert_eq!(duration(Duration::from_secs(185)), "3:05");
        assert_eq!(duration(Duration::from_secs(7384)), "2:03:04");
    }
}
