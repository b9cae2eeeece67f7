//! How long this process has been running, loading of the program included.

use std::sync::OnceLock;
use std::time::Instant;

/// Linux counts process times in hundredths of a second for every program (USER_HZ), whatever the kernel's own tick.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds from the process's start to the first look, and when that was.
static FIRST: OnceLock<(f64, Instant)> = OnceLock::new();

/// Seconds since the process started; to a hundredth of a second where the system tells, else since the first call.
pub fn since_start() -> f64 {
    let (before, first) = FIRST.get_or_init(|| (before_now().unwrap_or(0.0), Instant::now()));
    before + first.elapsed().as_secs_f64()
}

fn before_now() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, which may hold anything; `starttime` is the 22nd.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    Some((uptime - ticks / TICKS_PER_SECOND).max(0.0))
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_goes_on_from_the_process_start() {
        let first = super::since_start();
        assert!((0.0..3600.0).contains(&first), "{first}");
        assert!(super::since_start() >= first);
    }
}
