//! Learning-rate schedules: pure functions of the step, equal to transformers' `get_scheduler`.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Straight down to 0 after the last step.
    #[default]
    Linear,
    /// Half a cosine wave down to 0 after the last step (Loshchilov & Hutter 2017, one cycle).
    Cosine,
    /// The base rate throughout.
    Constant,
}

/// The learning rate of optimizer step `step` (from 1) of `total`, after `warmup` steps that rise linearly from 0: the first step of a run with
/// warm-up has rate 0, step `warmup + 1` the full one. After `total`, the falling shapes stay at 0.
pub fn lr(schedule: Schedule, step: u64, total: u64, warmup: u64, base: f64) -> f64 {
    let done = step.saturating_sub(1);
    if done < warmup {
        return base * (done as f64 / warmup.max(1) as f64);
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    let factor = match schedule {
        Schedule::Linear => (total.saturating_sub(done) as f64 / span).max(0.0),
        Schedule::Cosine => {
            let progress = ((done - warmup) as f64 / span).min(1.0);
            0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        }
        Schedule::Constant => 1.0,
    };
    base * factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_starts_at_zero_and_reaches_the_base_rate() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            assert_eq!(lr(schedule, 1, 30, 5, 2e-3), 0.0);
            assert_eq!(lr(schedule, 3, 30, 5, 2e-3), 2e-3 * 0.4);
            assert_eq!(lr(schedule, 6, 30, 5, 2e-3), 2e-3);
        }
        assert_eq!(lr(Schedule::Linear, 1, 30, 0, 2e-3), 2e-3);
    }

    #[test]
    fn linear_falls_to_one_part_at_the_last_step_and_to_zero_after_it() {
        assert!((lr(Schedule::Linear, 30, 30, 5, 1.0) - 1.0 / 25.0).abs() < 1e-15);
        assert_eq!(lr(Schedule::Linear, 31, 30, 5, 1.0), 0.0);
        assert_eq!(lr(Schedule::Linear, 99, 30, 5, 1.0), 0.0);
    }

    #[test]
    fn cosine_is_half_way_down_in_the_middle() {
        assert!((lr(Schedule::Cosine, 16, 25, 5, 1.0) - 0.5).abs() < 1e-15);
        assert!(lr(Schedule::Cosine, 26, 25, 5, 1.0).abs() < 1e-15);
        assert!(lr(Schedule::Cosine, 40, 25, 5, 1.0).abs() < 1e-15);
        let mut last = 1.0;
        for step in 6..=25 {
            let now = lr(Schedule::Cosine, step, 25, 5, 1.0);
            assert!(now <= last, "step {step} rises");
            last = now;
        }
    }

    #[test]
    fn no_setting_gives_a_negative_or_undefined_rate() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            for (step, total, warmup) in [(0, 0, 0), (1, 0, 0), (1, 1, 1), (2, 1, 1), (5, 3, 9), (u64::MAX, 10, 3)] {
                let rate = lr(schedule, step, total, warmup, 1e-3);
                assert!((0.0..=1e-3).contains(&rate), "{schedule:?} {step} {total} {warmup}: {rate}");
            }
        }
    }
}
