//! Between the engine's and the pipeline's state and a checkpoint's plain data.

use std::collections::BTreeMap;

use trainer_data::PipelineState;
use trainer_engine::TrainState;

use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::TrainError;

/// The checkpoint of a run's state.
pub(crate) fn checkpoint(train: TrainState, data: &PipelineState, seed: u64, metrics_bytes: u64) -> Result<Checkpoint, TrainError> {
    let step = train.step;
    let misfit = |e: serde_json::Error| TrainError::State { step, message: e.to_string() };
    let counters = BTreeMap::from([
        ("rows".to_owned(), data.counters.rows),
        ("samples".to_owned(), data.counters.samples),
        ("tokens".to_owned(), data.counters.tokens),
        ("target_tokens".to_owned(), data.counters.target_tokens),
        ("bad_rows".to_owned(), data.counters.bad_rows()),
    ]);
    Ok(Checkpoint {
        step,
        seed,
        metrics_bytes,
        adapter: train.parameters.into_iter().map(|(name, values)| (name, Tensor { shape: vec![values.len()], values })).collect(),
        optimizer: train.optimizer,
        data: serde_json::to_value(data).map_err(misfit)?,
        mixer: data.mixer.clone(),
        counters,
    })
}

/// The engine's part of a checkpoint.
pub(crate) fn train_state(c: &Checkpoint) -> TrainState {
    TrainState {
        step: c.step,
        parameters: c.adapter.iter().map(|(name, tensor)| (name.clone(), tensor.values.clone())).collect(),
        optimizer: c.optimizer.clone(),
    }
}

/// The pipeline's part of a checkpoint.
pub(crate) fn pipeline_state(c: &Checkpoint) -> Result<PipelineState, TrainError> {
    serde_json::from_value(c.data.clone()).map_err(|e| TrainError::State { step: c.step, message: e.to_string() })
}
