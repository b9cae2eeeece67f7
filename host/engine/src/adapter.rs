//! LoRA adapters (Hu et al. 2021): which projections have one, their values on the device, and their exchange with PEFT's tensors.

use std::collections::BTreeMap;

use trainer_kernels::ops::{LoraGrads, LoraMember, Ops};
use trainer_kernels::rng::{Purpose, philox4x32_10, split, stream_key};
use trainer_model::{Adapter as HostAdapter, AdapterBias, AdapterConfig, LoraModule};

use crate::error::{EngineError, OpsContext, Result};
use crate::model::Model;
use crate::modules::{Dims, Module, PROJECTIONS, Projection};
use crate::workspace::MidWidths;

/// What an adapter does at one module.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Site {
    /// Rank; 0 where only the bias is trained.
    pub rank: usize,
    /// Factor of the adapter's output.
    pub scale: f32,
    /// Whether the bias is trained.
    pub bias: bool,
}

impl Site {
    /// Trained values of this site at a module.
    pub fn parameters(&self, module: &Module) -> u64 {
        let bias = if self.bias { module.out_features as u64 } else { 0 };
        (self.rank as u64) * (module.in_features as u64 + module.out_features as u64) + bias
    }
}

/// What an adapter with these settings does at each projection of a model, by number.
///
/// # Errors
/// [`EngineError::AdapterConfig`] for a rank of 0 or beyond anything sensible, a dropout outside `0..1`, an alpha that is not finite, or a target
/// or pattern that matches no module (a misspelt name would otherwise train nothing, silently).
pub(crate) fn sites(config: &AdapterConfig, dims: &Dims) -> Result<Vec<Option<Site>>> {
    let bad = |text: String| Err(EngineError::AdapterConfig(text));
    if !(0.0..1.0).contains(&config.dropout) {
        return bad(format!("dropout {} is not in 0..1", config.dropout));
    }
    if !config.has_targets() {
        return bad("no target modules".into());
    }
    let modules = dims.modules();
    let names: Vec<&str> = modules.iter().map(|m| m.name.as_str()).collect();
    if let Some(name) = config.unmatched(&names) {
        return bad(format!("{name:?} matches no projection; names end in {}", known()));
    }
    let mut sites = Vec::with_capacity(modules.len());
    for module in &modules {
        let targeted = config.targets(&module.name);
        let bias = module.has_bias
            && match config.bias {
                AdapterBias::None => false,
                AdapterBias::All => true,
                AdapterBias::LoraOnly => targeted,
            };
        if !targeted {
            sites.push(bias.then_some(Site { rank: 0, scale: 0.0, bias }));
            continue;
        }
        let (rank, scale) = (config.rank_of(&module.name), config.scale_of(&module.name));
        // A rank beyond both sides of the matrix adds nothing; this bound also keeps sizes from overflowing.
        if rank == 0 || rank > module.in_features.max(module.out_features).saturating_mul(4) {
            return bad(format!("rank {rank} for {}, which is {} x {}", module.name, module.out_features, module.in_features));
        }
        if !scale.is_finite() {
            return bad(format!("alpha of {} is not finite", module.name));
        }
        sites.push(Some(Site { rank, scale: scale as f32, bias }));
    }
    Ok(sites)
}

/// How many values training an adapter with these settings changes.
///
/// # Errors
/// Settings that do not fit the model.
pub fn trained_parameters(config: &AdapterConfig, dims: &Dims) -> Result<u64> {
    let sites = sites(config, dims)?;
    Ok(dims.modules().iter().zip(&sites).filter_map(|(m, s)| s.map(|s| s.parameters(m))).sum())
}

fn known() -> String {
    Projection::ALL.map(|p| p.path()).join(", ")
}

/// One module's adapter on the device.
pub(crate) struct Lora<P> {
    pub module: Module,
    pub site: Site,
    pub a: P,
    pub b: P,
    pub bias: Option<P>,
}

impl<P> Lora<P> {
    /// The trained tensors in their fixed order, with the ends of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, &P)> {
        let lora = (self.site.rank > 0).then_some([("lora_A.weight", &self.a), ("lora_B.weight", &self.b)]);
        lora.into_iter().flatten().chain(self.bias.as_ref().map(|b| ("bias", b)))
    }

    /// How many values each of [`Lora::tensors`] has.
    pub fn lengths(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let (site, module) = (self.site, &self.module);
        let lora = (site.rank > 0)
            .then_some([("lora_A.weight", site.rank * module.in_features), ("lora_B.weight", site.rank * module.out_features)]);
        lora.into_iter().flatten().chain(site.bias.then_some(("bias", module.out_features)))
    }

    /// As [`Lora::tensors`].
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut P)> {
        let Lora { site, a, b, bias, .. } = self;
        let lora = (site.rank > 0).then_some([("lora_A.weight", a), ("lora_B.weight", b)]);
        lora.into_iter().flatten().chain(bias.as_mut().map(|b| ("bias", b)))
    }
}

/// An adapter on a device: the trained values of every module that has one.
pub struct Adapter<O: Ops> {
    config: AdapterConfig,
    /// By module number.
    pub(crate) loras: Vec<Option<Lora<O::Param>>>,
}

impl<O: Ops> Adapter<O> {
    /// A fresh adapter as PEFT makes it: A uniform in `±1/sqrt(in)` (`kaiming_uniform_` with `a = sqrt(5)`), B zero, biases those of the model. A
    /// value depends on the seed, the module's name and its place alone, so that other targets or ranks of other modules do not change it.
    ///
    /// # Errors
    /// As [`Adapter::load`].
    pub fn init(model: &Model<O>, config: AdapterConfig, seed: u64) -> Result<Self> {
        let sites = sites(&config, model.dims())?;
        let mut modules = BTreeMap::new();
        for (module, site) in model.dims().modules().into_iter().zip(sites) {
            let Some(site) = site else { continue };
            let a = kaiming_uniform(seed, &module.name, site.rank, module.in_features);
            let b = vec![0.0; site.rank * module.out_features];
            let bias = if site.bias { model.bias(module.index).map(<[f32]>::to_vec) } else { None };
            let (in_features, out_features) = (module.in_features, module.out_features);
            modules.insert(module.name, LoraModule { rank: site.rank, in_features, out_features, a, b, bias });
        }
        Self::load(model, &HostAdapter { config, modules })
    }

    /// An adapter with given values: those of a PEFT folder ([`HostAdapter::read`]) or of a checkpoint.
    ///
    /// # Errors
    /// [`EngineError::AdapterConfig`] if the settings do not fit the model; [`EngineError::AdapterTensor`] for tensors that are missing, misshapen,
    /// not finite, or belong to no target; [`EngineError::Ops`] from the backend.
    pub fn load(model: &Model<O>, host: &HostAdapter) -> Result<Self> {
        let sites = sites(&host.config, model.dims())?;
        check_tensors(model.dims(), &sites, &host.modules)?;
        let ops = model.ops();
        let modules = model.dims().modules();
        let mut loras = Vec::with_capacity(modules.len());
        for (module, site) in modules.into_iter().zip(sites) {
            let (Some(site), Some(t)) = (site, host.modules.get(&module.name)) else {
                loras.push(None);
                continue;
            };
            let param = |values: &[f32]| ops.param(values).at(|| format!("adapter of {}", module.name));
            let (a, b) = (param(&t.a)?, param(&t.b)?);
            let bias = t.bias.as_deref().map(param).transpose()?;
            loras.push(Some(Lora { module, site, a, b, bias }));
        }
        Ok(Adapter { config: host.config.clone(), loras })
    }

    /// Settings and values in host memory, as PEFT's files hold them ([`HostAdapter::write`]).
    ///
    /// # Errors
    /// [`EngineError::Ops`] from the backend.
    pub fn to_host(&self, model: &Model<O>) -> Result<HostAdapter> {
        let mut modules = BTreeMap::new();
        for lora in self.loras.iter().flatten() {
            let read = |p: &O::Param| model.ops().read_param(p).at(|| format!("reading the adapter of {}", lora.module.name));
            let entry = LoraModule {
                rank: lora.site.rank,
                in_features: lora.module.in_features,
                out_features: lora.module.out_features,
                a: read(&lora.a)?,
                b: read(&lora.b)?,
                bias: lora.bias.as_ref().map(read).transpose()?,
            };
            modules.insert(lora.module.name.clone(), entry);
        }
        Ok(HostAdapter { config: self.config.clone(), modules })
    }

    /// The settings.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// How many values are trained.
    pub fn parameters(&self) -> u64 {
        self.loras.iter().flatten().map(|l| l.site.parameters(&l.module)).sum()
    }

    /// Trained values as a share of all of the model's and the adapter's.
    pub fn share(&self, model: &Model<O>) -> f64 {
        let trained = self.parameters() as f64;
        trained / (trained + model.parameters() as f64)
    }

    /// The largest sum of the ranks of a group: the width of the buffer between A and B that serves all of them.
    pub(crate) fn widest(&self) -> usize {
        let sites: Vec<Option<Site>> = self.loras.iter().map(|l| l.as_ref().map(|l| l.site)).collect();
        (0..sites.len() / PROJECTIONS).map(|layer| MidWidths::of(&sites, layer).widest()).max().unwrap_or(0)
    }

    /// What [`Ops::linear`] needs of the `N` modules from number `first` on.
    pub(crate) fn members<const N: usize>(&self, first: usize) -> [Option<LoraMember<'_, O::Param>>; N] {
        std::array::from_fn(|i| {
            let lora = self.loras.get(first + i)?.as_ref()?;
            Some(LoraMember { a: &lora.a, b: &lora.b, rank: lora.site.rank, scale: lora.site.scale, bias: lora.bias.as_ref() })
        })
    }
}

/// Checks that there are tensors of the right shapes for every site, and no others.
pub(crate) fn check_tensors(dims: &Dims, sites: &[Option<Site>], tensors: &BTreeMap<String, LoraModule>) -> Result<()> {
    let error = |module: &str, what: String| Err(EngineError::AdapterTensor { module: module.to_string(), what });
    let modules = dims.modules();
    let used = |name: &str| modules.iter().zip(sites).any(|(m, s)| s.is_some() && m.name == name);
    if let Some(name) = tensors.keys().find(|name| !used(name)) {
        return error(name, "no target of the adapter's settings has this name".into());
    }
    for (module, site) in modules.iter().zip(sites) {
        let Some(site) = site else { continue };
        let Some(t) = tensors.get(&module.name) else { return error(&module.name, "missing".into()) };
        let bias = t.bias.as_deref();
        if site.bias != bias.is_some() {
            let what = if site.bias { "the trained bias is missing" } else { "has a bias, but the settings train none here" };
            return error(&module.name, what.into());
        }
        let parts = [("lora_A", t.a.as_slice(), site.rank, module.in_features), ("lora_B", &t.b, module.out_features, site.rank)];
        for (what, values, rows, cols) in parts.into_iter().chain(bias.map(|b| ("bias", b, module.out_features, 1))) {
            if values.len() != rows * cols {
                return error(&module.name, format!("{what} has {} values where [{rows}, {cols}] is needed", values.len()));
            }
            if let Some((i, value)) = values.iter().enumerate().find(|v| !v.1.is_finite()) {
                return error(&module.name, format!("{what}: value {i} is {value}"));
            }
        }
    }
    Ok(())
}

/// Gradients of an adapter, accumulated over the micro-batches of a step.
pub(crate) struct Gradients<O: Ops> {
    /// By module number, in the shape of [`Adapter::loras`].
    pub loras: Vec<Option<Lora<O::Param>>>,
}

impl<O: Ops> Gradients<O> {
    /// Zeros in the shape of an adapter.
    pub fn new(ops: &O, adapter: &Adapter<O>) -> Result<Self> {
        let mut loras = Vec::with_capacity(adapter.loras.len());
        for lora in &adapter.loras {
            let Some(lora) = lora else {
                loras.push(None);
                continue;
            };
            let (rank, module) = (lora.site.rank, &lora.module);
            let zeros = |len: usize| ops.param(&vec![0.0; len]).at(|| format!("gradient of {}", module.name));
            let a = zeros(rank * module.in_features)?;
            let b = zeros(rank * module.out_features)?;
            let bias = lora.bias.as_ref().map(|_| zeros(module.out_features)).transpose()?;
            loras.push(Some(Lora { module: module.clone(), site: lora.site, a, b, bias }));
        }
        Ok(Gradients { loras })
    }

    /// Sets all to zero.
    pub fn zero(&mut self, ops: &O) -> Result<()> {
        let mut all: Vec<&mut O::Param> = self.loras.iter_mut().flatten().flat_map(|l| l.tensors_mut().map(|t| t.1)).collect();
        ops.zero_params(&mut all).at(|| "gradients".into())
    }

    /// What [`Ops::linear_backward`] needs of the `N` modules from number `first` on.
    pub fn members<const N: usize>(&mut self, first: usize) -> [Option<LoraGrads<'_, O::Param>>; N] {
        let mut modules = self.loras.iter_mut().skip(first);
        std::array::from_fn(|_| {
            let lora = modules.next()?.as_mut()?;
            Some(LoraGrads { a_acc: &mut lora.a, b_acc: &mut lora.b, bias_acc: lora.bias.as_mut() })
        })
    }
}

/// `[rank, in]` values uniform in `±1/sqrt(in)`, from Philox keyed by the seed, with the module's name in the counter.
fn kaiming_uniform(seed: u64, name: &str, rank: usize, in_features: usize) -> Vec<f32> {
    let bound = 1.0 / (in_features as f64).sqrt();
    let [name_low, name_high] = split(fnv1a(name));
    let key = stream_key(seed, Purpose::Init);
    let len = rank * in_features;
    let mut values = Vec::with_capacity(len + 3);
    let mut block: u64 = 0;
    while values.len() < len {
        let [low, high] = split(block);
        for word in philox4x32_10([low, high, name_low, name_high], key) {
            // The middle of each of 2^32 equal cells: symmetric around 0, never the bounds themselves.
            let unit = (f64::from(word) + 0.5) / 4_294_967_296.0;
            values.push(((2.0 * unit - 1.0) * bound) as f32);
        }
        block += 1;
    }
    values.truncate(len);
    values
}

/// FNV-1a, 64 bits: a stable number for a name.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initial_values_fill_their_range_and_depend_on_seed_and_name() {
        let values = kaiming_uniform(3407, "model.layers.0.mlp.up_proj", 32, 192);
        assert_eq!(values.len(), 32 * 192);
        let bound = 1.0 / 192f32.sqrt();
        let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
        assert!(min >= -bound && max <= bound && min < -0.99 * bound && max > 0.99 * bound, "{min} {max} {bound}");
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        let variance = f64::from(bound).powi(2) / 3.0;
        // Five standard errors of mean and variance of a uniform distribution.
        assert!(mean.abs() < 5.0 * (variance / values.len() as f64).sqrt(), "{mean}");
        assert!((square / variance - 1.0).abs() < 5.0 * (0.8 / values.len() as f64).sqrt(), "{square} {variance}");
        assert_ne!(values, kaiming_uniform(3408, "model.layers.0.mlp.up_proj", 32, 192));
        assert_ne!(values, kaiming_uniform(3407, "model.layers.1.mlp.up_proj", 32, 192));
        assert_eq!(values[..192 * 8], kaiming_uniform(3407, "model.layers.0.mlp.up_proj", 8, 192)[..]);
    }
}
