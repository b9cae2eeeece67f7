//! What a command loads before it starts: device, model, tokenizer, plugins and sources, as the recipe says.
//!
//! Training, evaluation and generation need the same things in the same way, so they are put together once, here.

mod adapter;
mod card;
mod data_path;
mod device;
mod doctor;
mod error;
mod grant_flags;
mod hub;
mod installed;
mod model;
mod planning;
mod plugins;
mod sources;

pub use adapter::adapter_digest;
pub use card::{CardReading, CardUse, CardWatch};
pub use data_path::{DataParts, DataSetup, default_workers, pipeline_spec, prepared_store, trains_by_plugin};
pub use device::{
    Backend, DeviceInfo, DeviceKind, Gauge, KernelTime, Machine, MemoryUse, OpenDevice, Verdict, choose as choose_device, limit_in_bytes,
    open_device, open_device_as, unusable,
};
pub use doctor::{CacheState, CardState, Diagnosis, LibraryState, diagnose, from_probe as diagnosis_of};
pub use error::RuntimeError;
pub use grant_flags::{apply_grants, grants_of};
pub use hub::{download_watch, hub, hub_pins, pin_hub_names, watch_downloads};
pub use installed::{SignatureReport, SignatureState, check_policy, pin_plugins, pins, plugin_manager, signature, use_pins_beside};
pub use model::{Base, load_base, load_tokenizer, model_files, model_headers, model_texts};
pub use planning::{EvaluationSizes, PlanChoice, PlanRequest, Planned, choose_plan, inference_weights, plan_again};
pub use plugins::{PluginArg, Plugins, apply_plugin, compiler_command, find_plugin, official_names, plugin_build_dir, plugin_cache_dir};
pub use sources::{eval_source, open_held_out, open_sources, source_digest};
