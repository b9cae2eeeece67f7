//! LoRA adapters in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

pub use crate::adapter_config::{AdapterBias, AdapterConfig};

use crate::durable;
use crate::files::{ModelFiles, Source};
use crate::tensors::SafetensorsFile;
use crate::{ModelError, Result};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The name of the settings' file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the tensors' file.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before a module's name.
const PREFIX: &str = "base_model.model.";
/// What it puts behind one.
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const BIAS: &str = ".bias";
/// A module with an adapter is wrapped; its own bias lies one level deeper.
const BASE_BIAS: &str = ".base_layer.bias";

// Values are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "safetensors are little-endian");

/// The adapter of one linear layer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraModule {
    /// Rank; 0 where only the bias was trained.
    pub rank: usize,
    /// Input features; 0 where only the bias was trained.
    pub in_features: usize,
    /// Output features.
    pub out_features: usize,
    /// `[rank, in]`.
    pub a: Vec<f32>,
    /// `[out, rank]`.
    pub b: Vec<f32>,
    /// The trained bias, `[out]`.
    pub bias: Option<Vec<f32>>,
}

/// An adapter: settings and values.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// The settings.
    pub config: AdapterConfig,
    /// By module name (`model.layers.0.self_attn.q_proj`).
    pub modules: BTreeMap<String, LoraModule>,
}

impl Adapter {
    /// Reads the two files of a folder.
    ///
    /// # Errors
    /// Files that are missing or broken, what [`AdapterConfig::parse`] refuses, tensors that are not LoRA's, that lack their partner, that
    /// have another rank than the settings, that belong to no target, or that are not finite.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        let missing = |file: &str, hint: &str| ModelError::MissingFile { folder: files.describe(), file: file.into(), hint: hint.into() };
        let Some(text) = files.read_text(CONFIG_FILE)? else {
            return Err(missing(CONFIG_FILE, "an adapter has adapter_config.json and adapter_model.safetensors"));
        };
        if !files.contains(WEIGHTS_FILE) {
            return Err(missing(WEIGHTS_FILE, "adapters saved as .bin are not read; save them with safe_serialization"));
        }
        let config = AdapterConfig::parse(&text, &files.describe_file(CONFIG_FILE))?;
        Self::from_source(config, files.open(WEIGHTS_FILE)?)
    }

    /// Reads a safetensors file that belongs to the given settings.
    ///
    /// # Errors
    /// As [`Adapter::read`].
    pub fn read_weights(config: AdapterConfig, file: &Path) -> Result<Self> {
        Self::from_source(config, Source::open(file)?)
    }

    fn from_source(config: AdapterConfig, source: Source) -> Result<Self> {
        let file = SafetensorsFile::open(source)?;
        let path = file.source.name();
        let mut parts: BTreeMap<String, Parts> = BTreeMap::new();
        for (name, info) in &file.tensors {
            let wrong = |problem: &str| ModelError::tensor(&path, name, problem);
            let inner = name.strip_prefix(PREFIX).ok_or_else(|| wrong("does not begin with base_model.model., as PEFT's tensors do"))?;
            let (module, part) =
                split(inner).ok_or_else(|| wrong("is not a part of a LoRA adapter (lora_A.weight, lora_B.weight, bias)"))?;
            let values = file.read(name)?.to_f32()?;
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                return Err(wrong(&format!("value {at} is not finite")));
            }
            let parts = parts.entry(module.to_string()).or_default();
            let slot = match part {
                Part::A => &mut parts.a,
                Part::B => &mut parts.b,
                Part::Bias => &mut parts.bias,
            };
            if slot.replace((info.shape.clone(), values)).is_some() {
                return Err(wrong("is given twice under different names"));
            }
        }
        let mut modules = BTreeMap::new();
        for (name, parts) in parts {
            let module =
                parts.join(&config, &name).map_err(|problem| ModelError::Adapter { module: format!("{path}: {name}"), problem })?;
            modules.insert(name, module);
        }
        if modules.is_empty() {
            return Err(ModelError::Safetensors { file: path, problem: "it holds no adapter".to_string() });
        }
        Ok(Self { config, modules })
    }

    /// Writes the two files durably. A folder that does not exist appears complete; in one that does, each file is replaced as a whole, the
    /// settings last. The same adapter always gives the same bytes.
    ///
    /// # Errors
    /// Values that do not fit their sizes, and what the operating system refuses.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let (config, weights) = self.to_files()?;
        if folder.exists() {
            durable::write_atomic(&folder.join(WEIGHTS_FILE), &weights)?;
            return durable::write_atomic(&folder.join(CONFIG_FILE), &config);
        }
        let temporary = durable::temporary_beside(folder)?;
        durable::write_atomic(&temporary.path().join(WEIGHTS_FILE), &weights)?;
        durable::write_atomic(&temporary.path().join(CONFIG_FILE), &config)?;
        durable::commit_dir(temporary.path(), folder)
    }

    /// The bytes of `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// Values that do not fit their sizes.
    pub fn to_files(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut tensors: BTreeMap<String, TensorView<'_>> = BTreeMap::new();
        for (name, m) in &self.modules {
            let error = |problem: String| ModelError::Adapter { module: name.clone(), problem };
            let mut add = |suffix: &str, shape: Vec<usize>, values| {
                let view = TensorView::new(safetensors::Dtype::F32, shape, bytemuck::cast_slice::<f32, u8>(values));
                view.map(|view| tensors.insert(format!("{PREFIX}{name}{suffix}"), view)).map_err(|e| error(format!("{suffix}: {e}")))
            };
            if m.rank > 0 {
                add(A, vec![m.rank, m.in_features], &m.a)?;
                add(B, vec![m.out_features, m.rank], &m.b)?;
            } else if m.bias.is_none() {
                return Err(error("has neither an adapter nor a bias".to_string()));
            }
            if let Some(bias) = &m.bias {
                add(if m.rank > 0 { BASE_BIAS } else { BIAS }, vec![m.out_features], bias)?;
            }
        }
        // One entry: the order of a hash map cannot show.
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let weights = safetensors::serialize(tensors, Some(metadata))
            .map_err(|e| ModelError::Safetensors { file: WEIGHTS_FILE.to_string(), problem: e.to_string() })?;
        Ok((self.config.to_json().into_bytes(), weights))
    }

    /// Adds a module's adapter to its dense weight `[out, in]`: `W + scale * B A`. A module without one is left alone.
    ///
    /// # Errors
    /// A weight of another shape.
    pub fn merge(&self, module: &str, weight: &mut [f32], out_features: usize, in_features: usize) -> Result<()> {
        let Some(lora) = self.modules.get(module).filter(|m| m.rank > 0) else { return Ok(()) };
        let fits = lora.out_features == out_features
            && lora.in_features == in_features
            && out_features.checked_mul(in_features) == Some(weight.len())
            && lora.rank.checked_mul(in_features) == Some(lora.a.len())
            && lora.rank.checked_mul(out_features) == Some(lora.b.len());
        if !fits {
            let problem = format!("is {} x {}; the weight is {out_features} x {in_features}", lora.out_features, lora.in_features);
            return Err(ModelError::Adapter { module: module.to_string(), problem });
        }
        let scale = self.config.scale_of(module) as f32;
        weight.par_chunks_exact_mut(in_features.max(1)).zip(lora.b.par_chunks_exact(lora.rank)).for_each_init(
            || vec![0f32; in_features],
            |delta, (row, b)| {
                delta.fill(0.0);
                for (b, a) in b.iter().zip(lora.a.chunks_exact(in_features)) {
                    delta.iter_mut().zip(a).for_each(|(d, a)| *d += b * a);
                }
                row.iter_mut().zip(delta.iter()).for_each(|(w, d)| *w += scale * d);
            },
        );
        Ok(())
    }
}

enum Part {
    A,
    B,
    Bias,
}

/// Module and part of a tensor's name.
fn split(name: &str) -> Option<(&str, Part)> {
    let parts = [(A, Part::A), (B, Part::B), (BASE_BIAS, Part::Bias), (BIAS, Part::Bias)];
    parts.into_iter().find_map(|(suffix, part)| Some((name.strip_suffix(suffix)?, part))).filter(|(module, _)| !module.is_empty())
}

type Shaped = (Vec<usize>, Vec<f32>);

#[derive(Default)]
struct Parts {
    a: Option<Shaped>,
    b: Option<Shaped>,
    bias: Option<Shaped>,
}

impl Parts {
    fn join(self, config: &AdapterConfig, name: &str) -> std::result::Result<LoraModule, String> {
        let mut module = LoraModule::default();
        match (self.a, self.b) {
            (None, None) => {}
            (Some(_), None) => return Err("has lora_A but no lora_B".to_string()),
            (None, Some(_)) => return Err("has lora_B but no lora_A".to_string()),
            (Some((a_shape, a)), Some((b_shape, b))) => {
                if !config.targets(name) {
                    return Err(format!("is not among target_modules {}", config.targets_text()));
                }
                let rank = config.rank_of(name);
                let (&[a_rank, in_features], &[out_features, b_rank]) = (a_shape.as_slice(), b_shape.as_slice()) else {
                    return Err(format!("lora_A {a_shape:?} and lora_B {b_shape:?} must be matrices"));
                };
                if a_rank != rank || b_rank != rank {
                    return Err(format!("lora_A {a_shape:?} and lora_B {b_shape:?} do not have rank {rank}, as the settings say"));
                }
                module = LoraModule { rank, in_features, out_features, a, b, bias: None };
            }
        }
        if let Some((shape, bias)) = self.bias {
            if config.bias == AdapterBias::None {
                return Err("has a bias, but the settings say that none was trained".to_string());
            }
            let &[len] = shape.as_slice() else { return Err(format!("its bias has shape {shape:?}")) };
            if module.rank > 0 && len != module.out_features {
                return Err(format!("its bias has {len} entries for {} output features", module.out_features));
            }
            module.out_features = len;
            module.bias = Some(bias);
        }
        Ok(module)
    }
}
