//! The lock file: everything that decides the bytes of a run's result, with a digest or version for each.
//!
//! `trainer run --locked FILE` refuses on any difference, and resuming reuses the plan. What must not matter — thread counts, folders, dates —
//! is recorded apart and never compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trainer_runtime::{DeviceInfo, DeviceKind, PlanChoice};

use crate::files::{Disk, FileError, sha256, write_atomically};

/// The format of the lock file.
pub const VERSION: u32 = 1;

include!(concat!(env!("OUT_DIR"), "/libraries.rs"));

/// What a run was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`VERSION`].
    pub version: u32,
    /// The program's version.
    pub trainer: String,
    /// The recipe's settings that decide the result ([`trainer_config::Recipe::identity`]).
    pub recipe: Value,
    /// The base model.
    pub model: ModelLock,
    /// SHA-256 of the tokenizer.
    pub tokenizer: String,
    /// The adapter that the run starts from: its files' SHA-256 by name; none for a fresh one.
    pub adapter_from: Option<BTreeMap<String, String>>,
    /// The training data, in the recipe's order.
    pub data: Vec<SourceLock>,
    /// The evaluation's rows, if the run evaluates.
    pub eval_data: Option<SourceLock>,
    /// The plugins by name.
    pub plugins: BTreeMap<String, PluginLock>,
    /// How the run is carried out.
    pub plan: PlanLock,
    /// What it is carried out on.
    pub machine: MachineLock,
    /// Versions of the libraries and the compiler that decide bits.
    pub libraries: BTreeMap<String, String>,
    /// What does not matter.
    pub recorded: Recorded,
}

/// The base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelLock {
    /// SHA-256 over the names and digests of its files.
    pub digest: String,
    /// SHA-256 of each file by its name in the model's folder.
    pub files: BTreeMap<String, String>,
}

impl ModelLock {
    /// The lock of these files.
    pub fn new(files: BTreeMap<String, String>) -> Self {
        let listing: String = files.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
        Self { digest: sha256(listing.as_bytes()), files }
    }
}

/// A source of rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceLock {
    /// Its name in the recipe.
    pub name: String,
    /// Its path as it was given. Not compared: the digest is.
    pub path: String,
    /// SHA-256 of its contents, over all its files.
    pub sha256: String,
    /// Its rows, where that is known.
    pub rows: Option<u64>,
}

/// A plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginLock {
    /// Its own version.
    pub version: String,
    /// SHA-256 of the component.
    pub sha256: String,
    /// WIT version by kind that it exports.
    pub kinds: BTreeMap<String, String>,
    /// What it was granted.
    pub grants: Vec<String>,
    /// Its limits. They decide which rows are lost to them.
    pub limits: Value,
    /// Its settings by use (`mix`, `template`, `data.NAME`, `eval`), as it gets them.
    pub settings: BTreeMap<String, Value>,
}

/// How a run is carried out: what the program chose where the recipe says `auto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanLock {
    /// Samples in a micro-batch.
    pub micro_batch: usize,
    /// Micro-batches in a step.
    pub accumulation: usize,
    /// Whether samples are packed without padding.
    pub packing: bool,
    /// Tokens that a micro-batch may hold at most.
    pub max_tokens: usize,
    /// Per layer, whether activations are computed again in the backward pass.
    pub recompute: Vec<bool>,
    /// How frozen weights are held, such as `nf4` or `f32`.
    pub weights: String,
    /// Optimizer steps.
    pub steps: u64,
    /// The algorithm chosen for an operation, by its name.
    pub algorithms: BTreeMap<String, String>,
    /// The same plan as a machine reads it, from which a resumed or locked run plans again; none in locks of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<PlanChoice>,
    /// What a library chose where it has several ways to compute a product. A run learns that as it meets each problem, so this grows with it. It
    /// is not compared: a resumed or locked run takes it over.
    #[serde(default, skip_serializing_if = "ProductsLock::is_empty")]
    pub products: ProductsLock,
}

/// The algorithms of a library's products. Thousands of problems share some tens of algorithms.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductsLock {
    /// Algorithms, as the backend writes them: good for one version of one library.
    pub algorithms: Vec<String>,
    /// The place of a problem's algorithm among them.
    pub problems: BTreeMap<String, usize>,
}

impl ProductsLock {
    /// What a backend says that it chose ([`trainer_kernels::ops::Ops::choices`]).
    pub fn new(choices: Vec<(String, String)>) -> Self {
        let mut places = BTreeMap::new();
        for (_, algorithm) in &choices {
            places.insert(algorithm.clone(), 0);
        }
        for (place, number) in places.values_mut().zip(0..) {
            *place = number;
        }
        let problems = choices.into_iter().map(|(problem, algorithm)| (problem, places.get(&algorithm).copied().unwrap_or(0))).collect();
        Self { algorithms: places.into_keys().collect(), problems }
    }

    /// Whether nothing was chosen.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// For a backend ([`trainer_kernels::ops::Ops::choose`]); none where a problem's algorithm is not there.
    pub fn choices(&self) -> Option<Vec<(String, String)>> {
        self.problems.iter().map(|(problem, place)| Some((problem.clone(), self.algorithms.get(*place)?.clone()))).collect()
    }
}

/// What a run is carried out on, as far as it decides bits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineLock {
    /// The backend with whatever decides its bits, such as `cpu-f32-fma`.
    pub backend: String,
    /// The accelerator's model; none for the CPU.
    pub device: Option<String>,
    /// The accelerator's compute capability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// The processor's architecture.
    pub architecture: String,
    /// The vector extensions that the CPU backend and compiled plugins may choose by.
    pub features: Vec<String>,
}

impl MachineLock {
    /// This machine with a backend as it describes itself, on a device.
    pub fn of(backend: String, device: &DeviceInfo) -> Self {
        let card = device.kind != DeviceKind::Cpu;
        Self {
            backend,
            // The CPU's name decides nothing: its features do.
            device: card.then(|| device.name.clone()),
            compute_capability: device.compute_capability.clone(),
            architecture: std::env::consts::ARCH.to_owned(),
            features: cpu_features().into_iter().map(str::to_owned).collect(),
        }
    }
}

/// The vector extensions by which matrix kernels and compiled plugins are chosen.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    let known = [("neon", std::arch::is_aarch64_feature_detected!("neon")), ("sve", std::arch::is_aarch64_feature_detected!("sve"))];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&'static str, bool); 0] = [];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

/// Recorded for people, never compared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// When the run began, UTC.
    pub started: String,
    /// Compute threads.
    pub threads: usize,
    /// Data workers.
    pub workers: usize,
    /// Where the model was.
    pub model: String,
    /// The processor's or card's name.
    pub device: String,
    /// The card's driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Names of hubs as the recipe writes them, each with the commit that was used. A resumed or locked run uses these commits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hub: BTreeMap<String, String>,
}

/// A difference between a lock and now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where in the lock, such as `plugins.math_mix.sha256`.
    pub path: String,
    /// The locked value as JSON; none if the lock has no such entry.
    pub locked: Option<String>,
    /// The value now; none if there is none.
    pub now: Option<String>,
}

impl Difference {
    /// What to do about it.
    pub fn help(&self) -> &'static str {
        match self.path.split(['.', '[']).next().unwrap_or_default() {
            "recipe" => "set it as it was locked",
            "model" => "use the model's files of the locked run",
            "tokenizer" => "use the tokenizer of the locked run",
            "adapter_from" => "start from the adapter of the locked run",
            "data" | "eval_data" => "use the rows of the locked run",
            "plugins" => "use the component, grants and settings of the locked run",
            "plan" => "the plan of a locked run is only taken over where everything else is equal",
            "machine" => "the same bytes need the same kind of machine",
            "trainer" | "libraries" | "version" => "use the program of the locked run",
            _ => "make it as it was locked",
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let absent = || "absent".to_owned();
        let (locked, now) = (self.locked.clone().unwrap_or_else(absent), self.now.clone().unwrap_or_else(absent));
        write!(f, "{}: locked {locked}, now {now} ({})", self.path, self.help())
    }
}

/// Why a lock cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a lock file.
    #[error("{} is not a lock file: {what}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Of another version of the format.
    #[error("{} has version {found} of the lock format, but this program reads version {VERSION}; use the program that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// The run would not be the locked one.
    #[error(
        "the run differs from the lock in {} place{}:\n  {}\nmake them equal, or run without --locked",
        differences.len(),
        if differences.len() == 1 { "" } else { "s" },
        differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("\n  ")
    )]
    Differs {
        /// Every difference.
        differences: Vec<Difference>,
    },
    /// A problem whose algorithm is not there.
    #[error("plan.products of the lock is broken: a problem has the number of an algorithm that is not in the list")]
    Products,
    /// Cannot be written as JSON.
    #[error("cannot write the lock: {0}")]
    Write(serde_json::Error),
}

/// The versions of the libraries and the compiler that decide bits, as this program was built.
pub fn libraries() -> BTreeMap<String, String> {
    LIBRARIES.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect()
}

impl Lock {
    /// Reads a lock file.
    ///
    /// # Errors
    /// If it cannot be read, is none, or has another version.
    pub fn load(path: &Path) -> Result<Self, LockError> {
        let bytes = std::fs::read(path).map_err(FileError::at("read", path))?;
        let broken = |e: serde_json::Error| LockError::Broken { path: path.to_owned(), what: e.to_string() };
        let value: Value = serde_json::from_slice(&bytes).map_err(broken)?;
        // The version first: another version's other fields would only confuse.
        match value.get("version").and_then(Value::as_u64) {
            Some(found) if found != u64::from(VERSION) => return Err(LockError::Version { path: path.to_owned(), found }),
            _ => {}
        }
        // From the text, so that an error has its line.
        serde_json::from_slice(&bytes).map_err(broken)
    }

    /// The lock as indented JSON.
    ///
    /// # Errors
    /// If it holds something that JSON cannot.
    pub fn to_json(&self) -> Result<String, LockError> {
        serde_json::to_string_pretty(self).map(|s| s + "\n").map_err(LockError::Write)
    }

    /// Writes the lock, the old or the new one being there in full at any instant.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn save(&self, path: &Path) -> Result<(), LockError> {
        Ok(write_atomically(&Disk, path, self.to_json()?.as_bytes())?)
    }

    /// The SHA-256 of each plugin by its name.
    pub fn plugin_digests(&self) -> BTreeMap<String, String> {
        self.plugins.iter().map(|(name, plugin)| (name.clone(), plugin.sha256.clone())).collect()
    }

    /// What identifies the run: the SHA-256 of everything that is compared.
    ///
    /// # Errors
    /// If it holds something that JSON cannot.
    pub fn digest(&self) -> Result<String, LockError> {
        Ok(sha256(canonical(&self.compared()?).as_bytes()))
    }

    /// Every difference of what matters; `self` is the lock, `now` the run that is about to begin.
    ///
    /// # Errors
    /// If one of them holds something that JSON cannot.
    pub fn differences(&self, now: &Self) -> Result<Vec<Difference>, LockError> {
        let mut out = Vec::new();
        compare("", Some(&self.compared()?), Some(&now.compared()?), &mut out);
        Ok(out)
    }

    /// [`LockError::Differs`] if the run that is about to begin is not the locked one.
    ///
    /// # Errors
    /// The differences.
    pub fn check(&self, now: &Self) -> Result<(), LockError> {
        let differences = self.differences(now)?;
        if differences.is_empty() { Ok(()) } else { Err(LockError::Differs { differences }) }
    }

    /// The lock as JSON without what must not matter.
    fn compared(&self) -> Result<Value, LockError> {
        let mut value = serde_json::to_value(self).map_err(LockError::Write)?;
        if let Some(map) = value.as_object_mut() {
            map.remove("recorded");
        }
        if let Some(plan) = value.get_mut("plan").and_then(Value::as_object_mut) {
            plan.remove("products");
            // It says no more than the rest of the plan, and is not in every lock.
            plan.remove("memory");
        }
        let mut forget_path = |pointer: &str| {
            if let Some(source) = value.pointer_mut(pointer).and_then(Value::as_object_mut) {
                source.remove("path");
            }
        };
        forget_path("/eval_data");
        for i in 0..self.data.len() {
            forget_path(&format!("/data/{i}"));
        }
        // An entry that sets nothing only says where the component is, as `--plugin` does; its digest is compared.
        if let Some(plugins) = value.pointer_mut("/recipe/plugins").and_then(Value::as_object_mut) {
            let sets_nothing = |v: &Value| v.as_object().is_some_and(serde_json::Map::is_empty) || v.as_array().is_some_and(Vec::is_empty);
            // In which process a tool runs changes nothing that it gives.
            plugins.values_mut().filter_map(Value::as_object_mut).for_each(|entry| {
                entry.remove("isolated");
            });
            plugins.retain(|_, entry| !entry.as_object().is_some_and(|e| e.values().all(sets_nothing)));
        }
        Ok(value)
    }
}

/// JSON with sorted keys and without spaces.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<_, _> = map.iter().collect();
            let entries: Vec<_> = sorted.into_iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), canonical(v))).collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Walks two values at once and notes where they differ, as deep as both have something.
fn compare(path: &str, locked: Option<&Value>, now: Option<&Value>, out: &mut Vec<Difference>) {
    match (locked, now) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                compare(&path, a.get(key), b.get(key), out);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for i in 0..a.len().max(b.len()) {
                compare(&format!("{path}[{i}]"), a.get(i), b.get(i), out);
            }
        }
        _ if locked == now => {}
        _ => out.push(Difference { path: path.to_owned(), locked: locked.map(canonical), now: now.map(canonical) }),
    }
}

#[cfg(test)]
#[path = "lock_tests.rs"]
pub(crate) mod tests;
