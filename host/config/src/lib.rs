//! The recipe: one TOML file with every setting, checked key by key, with flags over it.
//!
//! [`Recipe::default`] is the main job on the embedded nano model. [`Recipe::load`] reads a file, [`Recipe::parse`] a text; both take
//! overrides (`--set key.path=value`) that go through the same checks. Every problem is reported at once, each with its place, its full
//! key and how to fix it. One definition of a setting (the `section!` and `choices!` macros) gives the struct, its default, its reader, its
//! limits and its line in the documentation.

#[macro_use]
mod section;

mod check;
mod docs;
mod error;
mod recipe;
mod resolve;
mod tree;
mod values;

pub use docs::markdown;
pub use error::{ConfigError, Origin, Problem};
pub use recipe::{
    Adapter, Best, Better, Bias, Data, DataCache, Device, DevicePlan, EarlyStopping, Eval, Filter, HELD_OUT_LOSS, Mix, Model, Optimizer,
    Output, Plugin, Precision, PromptsFrom, Quantization, Recipe, Recompute, Sample, Schedule, Source, SourceFormat, SpecialTokens, Target,
    Template, TooLong, Track, Tracker, Train, TrainOn, TruncationSide,
};
pub use resolve::{Length, Override};
pub use values::{Count, DataPath, DeviceBackend, ModelSource, PluginName, Scalars, Settings, Thinking};
