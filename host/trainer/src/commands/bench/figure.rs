//! A measured figure and how it is taken.

use std::fmt;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// What a figure should reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// No less.
    AtLeast(f64),
    /// No more.
    AtMost(f64),
}

/// A measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Part and name, such as `train/tokens_per_second`.
    pub name: String,
    /// The median of the samples.
    pub value: f64,
    /// Of value, target and samples.
    pub unit: &'static str,
    /// What it should reach, where something is asked of it.
    pub target: Option<Target>,
    /// Whether it does.
    pub met: Option<bool>,
    /// The single measurements, in the order in which they were taken.
    pub samples: Vec<f64>,
}

impl Figure {
    /// The median of `samples`.
    pub fn new(name: impl Into<String>, unit: &'static str, samples: Vec<f64>) -> Self {
        Self { name: name.into(), value: median(&samples), unit, target: None, met: None, samples }
    }

    /// With what it should reach.
    pub fn target(mut self, target: Target) -> Self {
        self.met = Some(match target {
            Target::AtLeast(wanted) => self.value >= wanted,
            Target::AtMost(wanted) => self.value <= wanted,
        });
        self.target = Some(target);
        self
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<44} {:>12} {:<9}", self.name, digits(self.value), self.unit)?;
        let verdict = if self.met == Some(false) { "missed" } else { "met" };
        match self.target {
            Some(Target::AtLeast(t)) => write!(f, " target >= {}, {verdict}", digits(t)),
            Some(Target::AtMost(t)) => write!(f, " target <= {}, {verdict}", digits(t)),
            None => Ok(()),
        }
    }
}

/// As many digits as mean something.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or_default();
    match sorted.len() {
        0 => 0.0,
        n if n.is_multiple_of(2) => f64::midpoint(at(n / 2 - 1), at(n / 2)),
        n => at(n / 2),
    }
}

/// Seconds that `work` takes, `times` over, after one run that warms up.
pub fn seconds(times: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
    work()?;
    let mut samples = Vec::with_capacity(times);
    for _ in 0..times {
        let began = Instant::now();
        work()?;
        samples.push(began.elapsed().as_secs_f64());
    }
    Ok(samples)
}

/// `amount` per second, of seconds.
pub fn rates(amount: usize, seconds: &[f64]) -> Vec<f64> {
    seconds.iter().map(|s| amount as f64 / s.max(1e-12)).collect()
}

/// Each sample times `factor`.
pub fn scaled(factor: f64, samples: &[f64]) -> Vec<f64> {
    samples.iter().map(|s| s * factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_target_is_met_on_its_own_side() {
        let figure = |target| Figure::new("x", "s", vec![5.0]).target(target).met;
        assert_eq!(figure(Target::AtLeast(5.0)), Some(true));
        assert_eq!(figure(Target::AtLeast(5.1)), Some(false));
        assert_eq!(figure(Target::AtMost(5.0)), Some(true));
        assert_eq!(figure(Target::AtMost(4.9)), Some(false));
    }
}
