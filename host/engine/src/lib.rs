//! The Qwen3 decoder with LoRA: forward and backward written once over [`trainer_kernels::ops::Ops`], its optimizer step, and generation with
//! a key/value cache.
//!
//! ```text
//! // loading
//! Model::new(ops: Arc<O>, config: &ModelConfig, weights: &ModelWeights, plan: WeightPlan) -> Result<Arc<Model<O>>, EngineError>
//! Model::merged(ops, config, weights, &trainer_model::Adapter) -> Result<Arc<Model<O>>, EngineError>          // adapter folded into dense weights
//! Adapter::init(&model, trainer_model::AdapterConfig, seed) -> Result<Adapter<O>, _>                           // as PEFT: A random, B zero
//! Adapter::load(&model, &trainer_model::Adapter) -> Result<Adapter<O>, _>;   adapter.to_host(&model) -> Result<trainer_model::Adapter, _>
//! adapter.parameters() -> u64;  adapter.share(&model) -> f64
//!
//! // training
//! Trainer::new(model: Arc<Model<O>>, adapter: Adapter<O>, TrainOptions{ max_tokens, recompute, optimizer, max_grad_norm, seed }) -> Result<Trainer<O>, _>
//! trainer.train_micro_batch(&HostBatch, inv_total_weight: f32) -> Result<MicroLoss{ sums: Vec<f64>, .. }, _>   // accumulates gradients
//! trainer.loss(&HostBatch) -> Result<MicroLoss, _>                                                             // forward only
//! trainer.optimizer_step(lr: f64) -> Result<StepReport{ step, grad_norm, clip }, _>
//! trainer.state() -> Result<TrainState, _>;  trainer.load_state(&TrainState) -> Result<(), _>                   // exact
//! trainer.adapter() -> &Adapter<O>;  trainer.into_adapter() -> Adapter<O>
//! schedule::lr(Schedule, step /* from 1 */, total, warmup, base) -> f64
//!
//! // generation
//! Generator::new(model: Arc<Model<O>>, GenOptions{ slots, cache_length, prefill_tokens }) -> Result<Generator<O>, _>
//! generator.generate(adapter: Option<&Adapter<O>>, Vec<GenRequest>, on_event: &mut dyn FnMut(GenEvent) -> ControlFlow<Cancel>) -> Result<Vec<GenResult>, _>
//! generator.serve(adapters: &[Option<&Adapter<O>>], feed: &mut dyn Feed) -> Result<(), _>                      // requests come as others go on
//! generator.score(adapter: Option<&Adapter<O>>, &[ScoreRequest{ id, prompt_ids, continuation_ids }]) -> Result<Vec<ScoreResult>, _>
//!
//! // planning
//! plan(ops: &O, &ModelConfig, adapter: Option<&AdapterConfig>, &PlanOptions) -> Result<MemoryPlan /* bytes by part */, _>
//! ```

pub mod adapter;
mod decoder;
pub mod error;
mod forward;
pub mod generate;
pub mod model;
pub mod modules;
pub mod plan;
pub mod planner;
pub mod schedule;
pub mod score;
pub mod synthetic;
pub mod train;
mod workspace;

pub use adapter::{Adapter, trained_parameters};
pub use error::{EngineError, Result};
pub use generate::{Cancel, Feed, Finish, GenEvent, GenOptions, GenRequest, GenResult, Generator, RequestError, TokenLogprobs};
pub use model::{HiddenStates, Model, ModelOptions};
pub use modules::{Dims, Module, Projection};
pub use plan::{MemoryPlan, PlanOptions, plan};
pub use schedule::Schedule;
pub use score::{Score, ScoreRequest, ScoreResult};
pub use train::{LOSS_ROWS, MicroLoss, StepReport, TrainOptions, TrainState, Trainer};
pub use workspace::{Keep, Parts, Recompute};
