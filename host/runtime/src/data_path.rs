//! The way of a row as a recipe says: what every command that makes samples puts together in the same way.

use std::sync::Arc;

use trainer_config::{DataCache, PromptsFrom, Recipe, SpecialTokens, TooLong, TrainOn, TruncationSide};
use trainer_data::{FeedbackPlan, PipelineSpec, PluginMixer, PreparedStore, Source, SourceInput, TextEncoder};
use trainer_plugin_host::template::Template;
use trainer_plugin_host::{Kind, Plugin};
use trainer_text::{SpecialMode, Tokenizer};

use crate::error::RuntimeError;
use crate::model::load_tokenizer;
use crate::plugins::{Plugins, cache_base, compiler_command};
use crate::sources::open_sources;

/// What a pipeline is made from, loaded.
#[derive(Clone, Copy)]
pub struct DataParts<'a> {
    /// The mixing policy.
    pub mixer: &'a Arc<Plugin>,
    /// The formatter of each source.
    pub formatters: &'a [Arc<Plugin>],
    /// The sources, in the recipe's order.
    pub sources: &'a [Arc<Source>],
    /// The chat template under its settings.
    pub template: &'a Arc<Template>,
    /// The model's tokenizer.
    pub tokenizer: &'a Arc<Tokenizer>,
}

/// How rows become samples under a recipe.
///
/// # Errors
/// A formatter refuses its settings.
pub fn pipeline_spec(recipe: &Recipe, parts: &DataParts<'_>) -> Result<PipelineSpec, RuntimeError> {
    trains_by_plugin(recipe)?;
    let mut inputs = Vec::new();
    for ((source, plugin), setting) in parts.sources.iter().zip(parts.formatters).zip(&recipe.data.sources) {
        let settings = serde_json::Value::Object(recipe.settings_of(&setting.formatter, &setting.settings));
        inputs.push(SourceInput { source: source.clone(), formatter: Arc::new(plugin.formatter(&settings)?) });
    }
    let mode = match recipe.data.special_tokens {
        SpecialTokens::Plain => SpecialMode::Plain,
        SpecialTokens::Parse => SpecialMode::Parse,
    };
    let mix_settings = serde_json::Value::Object(recipe.settings_of(&recipe.mix.plugin, &recipe.mix.settings));
    let mut spec = PipelineSpec::new(
        inputs,
        Arc::new(PluginMixer { plugin: parts.mixer.clone(), settings: mix_settings }),
        parts.template.clone(),
        Arc::new(TextEncoder { tokenizer: parts.tokenizer.clone(), mode }),
        recipe.train.seed,
    );
    spec.train_on = match recipe.data.train_on {
        TrainOn::Assistant => trainer_data::TrainOn::Assistant,
        TrainOn::All => trainer_data::TrainOn::All,
    };
    spec.max_seq_length = recipe.data.max_seq_length;
    spec.too_long = match recipe.data.too_long {
        TooLong::Error => trainer_data::TooLong::Error,
        TooLong::Drop => trainer_data::TooLong::Drop,
        TooLong::Truncate => trainer_data::TooLong::Truncate,
    };
    spec.truncation_side = match recipe.data.truncation_side {
        TruncationSide::Right => trainer_data::TruncationSide::Right,
        TruncationSide::Left => trainer_data::TruncationSide::Left,
    };
    spec.max_bad_rows = recipe.data.max_bad_rows;
    if recipe.mix.feedback_lag > 0 {
        let samples_per_step = u32::try_from(recipe.samples_per_step()).unwrap_or(u32::MAX);
        spec.feedback = Some(FeedbackPlan { lag: recipe.mix.feedback_lag, samples_per_step });
    }
    spec.workers = Some(recipe.data.workers.or_else(default_workers));
    if recipe.data.cache != DataCache::Off {
        spec.prepared = prepared_store();
    }
    Ok(spec)
}

/// Whether training texts come from the plugin, which alone can give them.
///
/// # Errors
/// The recipe's prompts are the model's own.
pub fn trains_by_plugin(recipe: &Recipe) -> Result<(), RuntimeError> {
    match recipe.template.prompts {
        PromptsFrom::Plugin => Ok(()),
        PromptsFrom::Model => Err(RuntimeError::ModelTemplateTrains { plugin: recipe.template.plugin.to_string() }),
    }
}

/// Where prepared data are kept, beside the other caches of this user. None if there is no home.
pub fn prepared_store() -> Option<PreparedStore> {
    Some(PreparedStore::new(cache_base()?.join("prepared")))
}

/// Threads that prepare data where the recipe leaves it open: all cores but the one that trains.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).saturating_sub(1).max(1)
}

/// The data half of a recipe, loaded without the model's weights.
pub struct DataSetup {
    recipe: Recipe,
    mixer: Arc<Plugin>,
    formatters: Vec<Arc<Plugin>>,
    sources: Vec<Arc<Source>>,
    template: Arc<Template>,
    tokenizer: Arc<Tokenizer>,
}

impl DataSetup {
    /// Loads what the recipe names: tokenizer, plugins, sources.
    ///
    /// # Errors
    /// Whatever of it cannot be had.
    pub fn load(recipe: Recipe) -> Result<Self, RuntimeError> {
        trains_by_plugin(&recipe)?;
        let tokenizer = load_tokenizer(&recipe.model.source)?;
        let mut plugins = Plugins::new(&recipe, compiler_command()?)?;
        let mixer = plugins.get("mix.plugin", &recipe.mix.plugin, Kind::MixingPolicy)?;
        let mut formatters = Vec::new();
        for source in &recipe.data.sources {
            formatters.push(plugins.get(&format!("data.sources.{}.formatter", source.name), &source.formatter, Kind::DatasetFormatter)?);
        }
        let template = plugins.get("template.plugin", &recipe.template.plugin, Kind::ChatTemplate)?;
        let settings = serde_json::Value::Object(recipe.settings_of(&recipe.template.plugin, &recipe.template.settings));
        let template = Arc::new(template.template(&settings)?);
        let sources = open_sources(&recipe)?;
        Ok(Self { recipe, mixer, formatters, sources, template, tokenizer })
    }

    /// How rows become samples.
    ///
    /// # Errors
    /// See [`pipeline_spec`].
    pub fn spec(&self) -> Result<PipelineSpec, RuntimeError> {
        let Self { mixer, formatters, sources, template, tokenizer, .. } = self;
        pipeline_spec(&self.recipe, &DataParts { mixer, formatters, sources, template, tokenizer })
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The sources, in the recipe's order.
    pub fn sources(&self) -> &[Arc<Source>] {
        &self.sources
    }

    /// The chat template.
    pub fn template(&self) -> &Arc<Template> {
        &self.template
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }
}
