//! Samples to micro-batches without padding: sequences lie one after another, `cu_seqlens` says where each begins.
//!
//! A step is always batch x accumulation samples. Packing only arranges them, so the loss of a step does not depend on it.

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// One training text as tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Loss weight of each token AS TARGET: `weights[i]` weighs predicting `ids[i]` from those before it. As long as `ids`.
    /// `weights[0]` is never used, since nothing predicts the first token.
    pub weights: Vec<f32>,
    /// Index of the source in the recipe.
    pub source: u32,
    /// The file it comes from.
    pub file: std::sync::Arc<str>,
    /// Line or row in the file, from 1.
    pub row: u64,
    /// Global number of the draw, from 0. Samples of one conversation share it.
    pub draw: u64,
    /// Global number of the sample, from 0.
    pub index: u64,
}

impl Sample {
    /// How much weight the sample adds to the step's normalisation: the summed weight of all its predicted tokens.
    pub fn target_weight(&self) -> f64 {
        self.weights.iter().skip(1).map(|&w| f64::from(w)).sum()
    }
}

/// Sequences of a micro-batch, one after another, T tokens in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Token ids, shape (T).
    pub ids: Vec<u32>,
    /// The token that each position predicts: the next of the same sequence; 0, with weight 0, at a sequence's last position. Shape (T).
    pub targets: Vec<u32>,
    /// Weight of predicting `targets`; 0 at the last position of each sequence. Shape (T).
    pub weights: Vec<f32>,
    /// Position in its own sequence, from 0. Shape (T).
    pub positions: Vec<u32>,
    /// Where each sequence begins, and T at the end. Shape (sequences + 1).
    pub cu_seqlens: Vec<u32>,
    /// The global number of each sequence's sample: the key of its dropout. Shape (sequences).
    pub sample_index: Vec<u64>,
    /// The source of each sequence, for per-source losses. Shape (sequences).
    pub source: Vec<u32>,
}
