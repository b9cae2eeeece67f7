//! Training on from an adapter: its folder says what the recipe would otherwise have to repeat.

use std::path::Path;

use anyhow::{Context, Result, bail};
use trainer_model::layout::{TensorRole, tensors};
use trainer_model::{Adapter, AdapterBias, ModelConfig, ModelFiles};

use super::model::named_model;
use super::toml_string;

/// The projections that a recipe can name.
const PROJECTIONS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The recipe's keys that make a run go on from the adapter of a folder: where it is, and its shape, as `key=value`.
///
/// # Errors
/// An adapter that cannot be read, is not one for the model, or has targets that a recipe cannot express.
pub fn settings(model: &str, folder: &Path) -> Result<Vec<String>> {
    let adapter = Adapter::read(&ModelFiles::dir(folder)).with_context(|| format!("the adapter in {}", folder.display()))?;
    let (files, _) = named_model(model)?;
    let config = ModelConfig::read(&files)?;
    let c = &adapter.config;
    let modules: Vec<String> = tensors(&config).filter(|t| t.role == TensorRole::Projection).map(|t| t.module().to_owned()).collect();
    // A projection has an adapter in every layer, or in none: that is what a recipe says.
    let mut targets = Vec::new();
    for name in PROJECTIONS {
        let of_name: Vec<&String> = modules.iter().filter(|m| m.rsplit('.').next() == Some(name)).collect();
        match of_name.iter().filter(|m| c.targets(m)).count() {
            0 => {}
            n if n == of_name.len() => targets.push(toml_string(name)),
            n => bail!(
                "the adapter in {} has {name} in {n} of {} layers, and a recipe gives a projection to all layers or to none; it can be used, exported and served, but not trained on",
                folder.display(),
                of_name.len()
            ),
        }
    }
    if targets.is_empty() {
        bail!("the adapter in {} is on none of the projections of {model}", folder.display());
    }
    let mut ranks = Vec::new();
    let mut alphas = Vec::new();
    for module in modules.iter().filter(|m| c.targets(m)) {
        let rank = c.rank_of(module);
        if rank != c.r {
            ranks.push(format!("{} = {rank}", toml_string(module)));
        }
        let factor = if c.rslora { (rank as f64).sqrt() } else { rank as f64 };
        let alpha = c.scale_of(module) * factor;
        if (alpha - c.alpha).abs() > 1e-9 * c.alpha.abs() {
            alphas.push(format!("{} = {alpha:?}", toml_string(module)));
        }
    }
    let bias = match c.bias {
        AdapterBias::None => "none",
        AdapterBias::All => "all",
        AdapterBias::LoraOnly => "lora_only",
    };
    let folder = std::path::absolute(folder).with_context(|| format!("cannot resolve {}", folder.display()))?;
    Ok(vec![
        format!("adapter.from={}", toml_string(&folder.to_string_lossy())),
        format!("adapter.r={}", c.r),
        format!("adapter.alpha={:?}", c.alpha),
        format!("adapter.dropout={:?}", c.dropout),
        format!("adapter.rslora={}", c.rslora),
        format!("adapter.bias={}", toml_string(bias)),
        format!("adapter.targets=[{}]", targets.join(", ")),
        format!("adapter.rank_pattern={{ {} }}", ranks.join(", ")),
        format!("adapter.alpha_pattern={{ {} }}", alphas.join(", ")),
    ])
}
