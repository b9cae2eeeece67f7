//! Holds a backend against the reference data: what bitsandbytes, torch, transformers and PEFT computed on small models, through the same
//! engine that trains. Nothing here needs a compiler or test framework, so that a user can check a machine with the program alone.
//!
//! The reference was computed in f32. A backend that computes in f32 is held to rounding in f32; one with bf16 activations to what bf16 costs on
//! these models, see [`Tolerances`].

mod files;
mod models;
mod quant;
mod reduced;
mod rows;
mod training;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use trainer_engine::EngineError;
use trainer_kernels::ops::{Ops, OpsError};

/// What can go wrong beside a wrong result.
#[derive(Debug, thiserror::Error)]
pub enum SelftestError {
    /// A file of the reference data cannot be read or lacks something.
    #[error("reference data: {}: {what}", path.display())]
    Reference {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A group that does not exist.
    #[error("there are no reference checks called {0}; there are {list}", list = GROUPS.join(", "))]
    NoGroup(String),
    /// From the engine.
    #[error("{context}: {source}")]
    Engine {
        /// What was checked.
        context: String,
        /// The engine's reason.
        source: EngineError,
    },
    /// From the backend.
    #[error("{context}: {source}")]
    Ops {
        /// What was checked.
        context: String,
        /// The backend's reason.
        source: OpsError,
    },
    /// From the model's files.
    #[error(transparent)]
    Model(#[from] trainer_model::ModelError),
}

/// Shorthand for results.
pub type Result<T> = std::result::Result<T, SelftestError>;

/// Attaches what was checked to an error.
pub(crate) trait Context<T> {
    fn of(self, context: &str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, EngineError> {
    fn of(self, context: &str) -> Result<T> {
        self.map_err(|source| SelftestError::Engine { context: context.to_owned(), source })
    }
}

impl<T> Context<T> for std::result::Result<T, OpsError> {
    fn of(self, context: &str) -> Result<T> {
        self.map_err(|source| SelftestError::Ops { context: context.to_owned(), source })
    }
}

/// How an error is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The largest difference.
    Largest,
    /// `|got - want| / |want|` of one number.
    Relative,
    /// `‖got - want‖ / ‖want‖` of a tensor.
    RelativeNorm,
    /// How many values differ.
    Count,
    /// The share of values that differ.
    Share,
    /// By how much the reference preferred its token where the first other one was chosen.
    Margin,
}

/// One comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The group.
    pub group: &'static str,
    /// What was compared.
    pub name: String,
    /// How the error is measured.
    pub measure: Measure,
    /// The error.
    pub error: f64,
    /// The largest error that passes.
    pub tolerance: f64,
    /// Whether it passed.
    pub pass: bool,
}

/// The groups of checks: quantization and optimizer, then whole models.
pub const GROUPS: &[&str] =
    &["ref-nf4", "ref-blockwise8", "ref-adamw8bit", "ref-forward", "ref-lora", "ref-greedy", "ref-curves", "ref-cpu"];

/// The largest errors that pass.
///
/// For f32 they are those that the reference data's own README recommends, which leave an order of magnitude above the spread between
/// thread counts and attention kernels. For bf16 they are two to four times what the CPU backend gives on the same data with every weight, activation
/// and adapter rounded to bf16 (`tests/bf16.rs` prints it): 0.13 in logits that reach 5 and 0.014 of their norm, 5e-4 of a loss, 0.041 of the norm of
/// the worst gradient (of a key projection, a difference of nearly equal numbers), 3e-4 of a run's losses, 3e-3 of its gradient norms, 4e-3 of the trained
/// adapter, and a first other token where the reference's margin was 0.04. A backend also rounds inside attention, hence the factor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerances {
    /// Largest difference of a logit or hidden state.
    pub logits: f64,
    /// Relative norm of all logits of a batch.
    pub logits_norm: f64,
    /// Loss, relative.
    pub loss: f64,
    /// Gradient of a tensor, relative norm.
    pub gradient: f64,
    /// Loss of each step of a run, relative.
    pub curve: f64,
    /// Norm of all gradients of a step, relative.
    pub norm: f64,
    /// The trained adapter, relative norm over all its tensors together.
    pub adapter: f64,
    /// NF4 weights on the device, relative norm.
    pub weights: f64,
    /// The reference's margin at the first token that differs.
    pub margin: f64,
}

impl Tolerances {
    /// Those for a backend with activations of so many bytes.
    pub fn of(element_bytes: usize) -> Self {
        if element_bytes >= 4 {
            // README's absolute bounds, relative to losses of about 8 and norms of about 1.7.
            Self {
                logits: 1e-4,
                logits_norm: 1e-5,
                loss: 2e-6,
                gradient: 1e-4,
                curve: 1.25e-5,
                norm: 1e-4,
                adapter: 2e-5,
                weights: 1e-7,
                margin: 0.0,
            }
        } else {
            Self {
                logits: 0.3,
                logits_norm: 3e-2,
                loss: 2e-3,
                gradient: 8e-2,
                curve: 2e-3,
                norm: 1e-2,
                adapter: 2e-2,
                // Rounding to bf16 alone is about 0.0017.
                weights: 3e-3,
                margin: 0.15,
            }
        }
    }
}

/// Compares on a backend, and tells of each comparison at once.
pub(crate) struct Checks<'a, O: Ops> {
    pub ops: Arc<O>,
    pub files: files::Files,
    pub tolerances: Tolerances,
    group: &'static str,
    all: Vec<Check>,
    seen: &'a mut dyn FnMut(&Check),
}

/// Runs the reference checks of some groups (none named: all) on a backend. `seen` hears of each comparison.
///
/// # Errors
/// Reference data that is not there or broken. A wrong result, and a group that the backend ended with an error, are comparisons that did not pass.
pub fn run<O: Ops>(ops: Arc<O>, reference: &Path, groups: &[String], seen: &mut dyn FnMut(&Check)) -> Result<Vec<Check>> {
    if let Some(unknown) = groups.iter().find(|g| !GROUPS.contains(&g.as_str())) {
        return Err(SelftestError::NoGroup(unknown.clone()));
    }
    let tolerances = Tolerances::of(ops.element_bytes());
    let files = files::Files::new(reference)?;
    let mut checks = Checks { ops, files, tolerances, group: "", all: Vec::new(), seen };
    for &group in GROUPS.iter().filter(|g| groups.is_empty() || groups.iter().any(|wanted| wanted == **g)) {
        checks.group = group;
        let ran = match group {
            "ref-nf4" => checks.nf4(),
            "ref-blockwise8" => checks.blockwise8(),
            "ref-adamw8bit" => checks.adamw8bit(),
            "ref-forward" => checks.forward(),
            "ref-lora" => checks.lora(),
            "ref-greedy" => checks.greedy(),
            "ref-curves" => checks.curves(),
            _ => checks.reduced(),
        };
        match ran {
            Ok(()) => {}
            // What the device refuses is a failure of this group; the others can still tell something.
            Err(e @ (SelftestError::Engine { .. } | SelftestError::Ops { .. })) => {
                checks.note(format!("ended by an error: {e}"), Measure::Count, f64::INFINITY, 0.0);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(checks.all)
}

impl<O: Ops> Checks<'_, O> {
    /// Notes a comparison.
    pub fn note(&mut self, name: impl Into<String>, measure: Measure, error: f64, tolerance: f64) {
        // Written so that NaN fails.
        let check = Check { group: self.group, name: name.into(), measure, error, tolerance, pass: error <= tolerance };
        (self.seen)(&check);
        self.all.push(check);
    }

    /// Notes the largest difference of two tensors.
    pub fn largest(&mut self, name: impl Into<String>, got: &[f32], want: &[f32], tolerance: f64) {
        self.note(name, Measure::Largest, largest(got, want), tolerance);
    }

    /// Notes the relative norm of the difference of two tensors.
    pub fn relative_norm(&mut self, name: impl Into<String>, got: &[f32], want: &[f32], tolerance: f64) {
        self.note(name, Measure::RelativeNorm, relative_norm(got, want), tolerance);
    }

    /// Notes the relative difference of two numbers.
    pub fn relative(&mut self, name: impl Into<String>, got: f64, want: f64, tolerance: f64) {
        self.note(name, Measure::Relative, (got - want).abs() / want.abs().max(f64::MIN_POSITIVE), tolerance);
    }

    /// Notes how many values of two lists differ; none may.
    pub fn equal<T: PartialEq>(&mut self, name: impl Into<String>, got: &[T], want: &[T]) {
        let differ = got.iter().zip(want).filter(|(a, b)| a != b).count() + got.len().abs_diff(want.len());
        self.note(name, Measure::Count, differ as f64, 0.0);
    }
}

/// The largest difference; infinite where lengths differ or a value is not a number.
pub(crate) fn largest(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    got.iter().zip(want).fold(0.0, |most: f64, (g, w)| {
        let difference = (f64::from(*g) - f64::from(*w)).abs();
        if difference.is_nan() { f64::INFINITY } else { most.max(difference) }
    })
}

/// `‖got - want‖ / ‖want‖`; infinite where lengths differ.
pub(crate) fn relative_norm(got: &[f32], want: &[f32]) -> f64 {
    if got.len() != want.len() {
        return f64::INFINITY;
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        error += (f64::from(*g) - f64::from(*w)).powi(2);
        norm += f64::from(*w).powi(2);
    }
    (error / norm.max(f64::MIN_POSITIVE)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_or_of_another_length_is_infinitely_wrong() {
        assert_eq!(largest(&[1.0, f32::NAN], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(largest(&[1.0], &[1.0, 2.0]), f64::INFINITY);
        assert_eq!(largest(&[1.0, 2.5], &[1.0, 2.0]), 0.5);
        assert_eq!(relative_norm(&[3.0, 4.0], &[3.0, 4.0]), 0.0);
        assert!((relative_norm(&[3.0, 5.0], &[3.0, 4.0]) - 0.2).abs() < 1e-12);
        assert_eq!(relative_norm(&[], &[1.0]), f64::INFINITY);
        assert!(relative_norm(&[f32::NAN], &[1.0]).is_nan());
    }
}
