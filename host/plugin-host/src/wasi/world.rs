//! What one instance's empty world remembers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::{EPOCH, SEED};

/// The most timers of an instance, as many as it may hold handles.
const MAX_TIMERS: usize = 1024;

/// Why the empty world ends a call, in words.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Stopped(pub(crate) String);

/// One instance's world.
pub(crate) struct World {
    /// Whether the clocks are this machine's.
    pub(super) real_clock: bool,
    /// Whether random bytes are this machine's.
    pub(super) real_random: bool,
    random: Random,
    seed: u64,
    /// Whether random bytes begin anew in every call.
    each_call: bool,
    /// Nanoseconds since 1970 at which the wall clock stands.
    wall: u128,
    /// Where the monotonic clock stands.
    monotonic: u64,
    /// Where this machine's monotonic clock began.
    began: Instant,
    /// The times that pollables wait for; other pollables are always ready.
    timers: BTreeMap<u32, u64>,
    next: u32,
}

impl World {
    pub(crate) fn new(real_clock: bool, real_random: bool) -> Self {
        Self {
            real_clock,
            real_random,
            random: Random(SEED),
            seed: SEED,
            each_call: true,
            wall: u128::from(EPOCH) * 1_000_000_000,
            monotonic: 0,
            began: Instant::now(),
            timers: BTreeMap::new(),
            next: 0,
        }
    }

    /// Begins an episode with its own seed and time, through which random bytes go on.
    pub(crate) fn begin(&mut self, seed: u64, now_ms: u64) {
        self.seed = seed;
        self.random = Random(seed);
        self.each_call = false;
        self.wall = u128::from(now_ms) * 1_000_000;
    }

    /// Begins a call.
    pub(crate) fn enter(&mut self) {
        if self.each_call {
            self.random = Random(self.seed);
        }
    }

    /// Nanoseconds since 1970.
    pub(super) fn wall(&self) -> u128 {
        if self.real_clock { SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos() } else { self.wall }
    }

    /// Nanoseconds since some moment.
    pub(super) fn monotonic(&self) -> u64 {
        if self.real_clock { u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX) } else { self.monotonic }
    }

    /// The number of a pollable that is ready at a time; 0 for one that is ready.
    pub(super) fn timer(&mut self, at: u64) -> Result<u32, Stopped> {
        if at <= self.monotonic() {
            return Ok(0);
        }
        if self.timers.len() >= MAX_TIMERS {
            return Err(Stopped(format!("more than {MAX_TIMERS} timers")));
        }
        // As there are fewer timers than numbers, one is free.
        loop {
            self.next = self.next.wrapping_add(1).max(1);
            if let std::collections::btree_map::Entry::Vacant(free) = self.timers.entry(self.next) {
                free.insert(at);
                return Ok(self.next);
            }
        }
    }

    /// Drops a pollable.
    pub(super) fn forget(&mut self, number: u32) {
        self.timers.remove(&number);
    }

    /// Whether a pollable is ready.
    pub(super) fn ready(&self, number: u32) -> bool {
        self.timers.get(&number).is_none_or(|at| *at <= self.monotonic())
    }

    /// Waits until one of the pollables is ready, no longer than to the call's deadline. Where the clock stands still it is moved.
    pub(super) fn wait(&mut self, numbers: &[u32], deadline: Instant) {
        if numbers.iter().any(|n| self.ready(*n)) {
            return;
        }
        let Some(until) = numbers.iter().filter_map(|n| self.timers.get(n)).min().copied() else { return };
        if self.real_clock {
            let wanted = Duration::from_nanos(until.saturating_sub(self.monotonic()));
            // The call ends at its deadline by itself, as soon as the guest goes on.
            std::thread::sleep(wanted.min(deadline.saturating_duration_since(Instant::now())));
        } else {
            self.monotonic = until;
        }
    }

    /// Random bytes.
    pub(super) fn bytes(&mut self, length: usize) -> Result<Vec<u8>, Stopped> {
        let mut out = vec![0; length];
        if self.real_random {
            fill(&mut out).map_err(|e| Stopped(format!("the system gives no random bytes: {e}")))?;
        } else {
            out.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.random.next().to_le_bytes()[..chunk.len()]));
        }
        Ok(out)
    }
}

/// SplitMix64. Its numbers are known to everybody: they are no secret, and need not be.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn fill(bytes: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_splitmix64() {
        // The reference implementation's first numbers from seed 1234567.
        let mut random = Random(1_234_567);
        assert_eq!([random.next(), random.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }

    #[test]
    fn waiting_moves_a_clock_that_stands_still() {
        let mut world = World::new(false, false);
        let soon = Instant::now() + Duration::from_secs(60);
        assert_eq!((world.monotonic(), world.wall()), (0, u128::from(EPOCH) * 1_000_000_000));
        let (a, b) = (world.timer(1_000_000_000_000).unwrap(), world.timer(5).unwrap());
        assert!(!world.ready(a) && !world.ready(b) && world.ready(0));
        world.wait(&[a, b], soon);
        assert_eq!(world.monotonic(), 5);
        assert!(world.ready(b) && !world.ready(a));
        world.wait(&[0, a], soon);
        assert_eq!(world.monotonic(), 5, "one of them was ready");
        world.wait(&[a], soon);
        assert_eq!(world.monotonic(), 1_000_000_000_000);
        world.forget(a);
        world.forget(b);
        assert_eq!(world.timer(7).unwrap(), 0, "its time is over");
        for _ in 0..MAX_TIMERS {
            world.timer(u64::MAX).unwrap();
        }
        assert!(world.timer(u64::MAX).is_err());
    }

    #[test]
    fn random_bytes_begin_anew_in_a_call_and_go_on_in_an_episode() {
        let mut world = World::new(false, false);
        let first = world.bytes(11).unwrap();
        assert_ne!(world.bytes(11).unwrap(), first);
        world.enter();
        assert_eq!(world.bytes(11).unwrap(), first);
        world.begin(7, 0);
        let first = world.bytes(8).unwrap();
        world.enter();
        assert_ne!(world.bytes(8).unwrap(), first);
        world.begin(7, 0);
        assert_eq!(world.bytes(8).unwrap(), first);
        let mut real = World::new(false, true);
        assert_ne!(real.bytes(16).unwrap(), real.bytes(16).unwrap());
    }
}
