//! A model's tensors by name, from one safetensors file or from several with an index.

use crate::bnb;
use crate::files::ModelFiles;
use crate::gguf::{GgufFile, names};
use crate::tensors::{SafetensorsFile, StoredTensor, TensorInfo, TensorValues};
use crate::{ModelError, Result};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// The name of an unsharded checkpoint.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The name of the index of a sharded checkpoint.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// A checkpoint whose headers have been read and checked; tensors are read on demand.
#[derive(Debug)]
pub struct Checkpoint {
    backing: Backing,
    describe: String,
}

/// Where tensors are.
#[derive(Debug)]
enum Backing {
    Safetensors {
        files: Vec<Arc<SafetensorsFile>>,
        /// Tensor name to the position in `files`.
        tensors: BTreeMap<String, usize>,
    },
    Gguf {
        file: Arc<GgufFile>,
        /// A checkpoint's name of a tensor to that in the file.
        tensors: BTreeMap<String, String>,
    },
}

/// How a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// `BF16`, `NF4`, `NF4 (double-quantized)`, `Q4_K`, ...
    pub form: String,
    /// Whether it is bitsandbytes' 4-bit form.
    pub four_bit: bool,
    /// Its bytes, those of scales and code books included, without the text of a quant state.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// `weight_map` without names that occur twice.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<WeightMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    if entries.insert(name.clone(), file).is_some() {
                        return Err(serde::de::Error::custom(format!("tensor {name:?} occurs twice")));
                    }
                }
                Ok(WeightMap(entries))
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

impl Checkpoint {
    /// Opens `model.safetensors`, or else the files that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// Files that are missing or broken, tensors that are in two files, and an index that differs from what its files hold.
    pub fn open(files: &ModelFiles) -> Result<Self> {
        let describe = files.describe();
        if let ModelFiles::Gguf(file) = files {
            let file = file.get()?;
            // A tensor that no part of Qwen3 uses keeps its name, and is told as extra.
            let tensors =
                file.tensors().keys().map(|name| (names::to_checkpoint(name).unwrap_or_else(|| name.clone()), name.clone())).collect();
            return Ok(Self { backing: Backing::Gguf { file, tensors }, describe });
        }
        if files.contains(SINGLE_FILE) {
            let file = SafetensorsFile::open(files.open(SINGLE_FILE)?)?;
            let tensors = file.tensors.keys().map(|name| (name.clone(), 0)).collect();
            return Ok(Self { backing: Backing::Safetensors { files: vec![Arc::new(file)], tensors }, describe });
        }
        let Some(text) = files.read_text(INDEX_FILE)? else {
            let names = files.names()?;
            let foreign = names.iter().find(|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth") || n.ends_with(".gguf"));
            let hint = match foreign {
                Some(name) if name.ends_with(".gguf") => format!("to use {name}, give the path of the file itself"),
                Some(name) => {
                    format!("{name} is not read; convert the model to safetensors (pickled files can run code, and are never loaded)")
                }
                None => format!("a checkpoint is one {SINGLE_FILE}, or several files with {INDEX_FILE}"),
            };
            return Err(ModelError::MissingFile { folder: describe, file: SINGLE_FILE.to_string(), hint });
        };
        Self::sharded(files, &text, describe)
    }

    fn sharded(files: &ModelFiles, text: &str, describe: String) -> Result<Self> {
        let index_name = files.describe_file(INDEX_FILE);
        let index: Index = serde_json::from_str(text).map_err(|source| ModelError::Json { file: index_name.clone(), source })?;
        let WeightMap(map) = index.weight_map;
        let names: BTreeSet<&String> = map.values().collect();
        let mut opened = Vec::with_capacity(names.len());
        let mut tensors: BTreeMap<String, usize> = BTreeMap::new();
        for name in names {
            // A shard lies beside its index; anything else would let a model folder read files elsewhere.
            if !name.ends_with(".safetensors") || name.contains(['/', '\\', ':']) {
                return Err(ModelError::config(
                    &index_name,
                    "weight_map",
                    format!("names the file {name:?}, which is not a plain name of a safetensors file"),
                ));
            }
            if !files.contains(name) {
                let hint = format!("{INDEX_FILE} names it; the download may be incomplete");
                return Err(ModelError::MissingFile { folder: describe, file: name.clone(), hint });
            }
            let file = SafetensorsFile::open(files.open(name)?)?;
            for tensor in file.tensors.keys() {
                match map.get(tensor) {
                    Some(at) if at == name => {}
                    Some(at) => {
                        let problem = format!("is in this file, but {INDEX_FILE} says it is in {at}");
                        return Err(ModelError::tensor(&files.describe_file(name), tensor, problem));
                    }
                    None => {
                        let problem = format!("is not named by {INDEX_FILE}");
                        return Err(ModelError::tensor(&files.describe_file(name), tensor, problem));
                    }
                }
                tensors.insert(tensor.clone(), opened.len());
            }
            opened.push(Arc::new(file));
        }
        if let Some((tensor, file)) = map.iter().find(|(tensor, _)| !tensors.contains_key(*tensor)) {
            return Err(ModelError::tensor(
                &files.describe_file(file),
                tensor,
                format!("is not in this file, although {INDEX_FILE} says so"),
            ));
        }
        Ok(Self { backing: Backing::Safetensors { files: opened, tensors }, describe })
    }

    /// How messages call the checkpoint.
    pub fn describe(&self) -> String {
        self.describe.clone()
    }

    /// All tensors' names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let (a, b) = match &self.backing {
            Backing::Safetensors { tensors, .. } => (Some(tensors.keys()), None),
            Backing::Gguf { tensors, .. } => (None, Some(tensors.keys())),
        };
        a.into_iter().flatten().chain(b.into_iter().flatten()).map(String::as_str)
    }

    fn safetensors(&self, name: &str) -> Option<&Arc<SafetensorsFile>> {
        match &self.backing {
            Backing::Safetensors { files, tensors } => files.get(*tensors.get(name)?),
            Backing::Gguf { .. } => None,
        }
    }

    /// Type and shape of a tensor. Blocks of a GGUF file are read as F32.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        match &self.backing {
            Backing::Safetensors { .. } => self.safetensors(name)?.tensors.get(name),
            Backing::Gguf { file, tensors } => Some(&file.tensors().get(tensors.get(name)?)?.info),
        }
    }

    /// How a tensor is stored, with the parts that go with a 4-bit one.
    pub fn storage(&self, name: &str) -> Option<Storage> {
        let bytes = self.tensor(name)?.bytes();
        if let Backing::Gguf { file, tensors } = &self.backing {
            let form = file.tensors().get(tensors.get(name)?)?.kind.to_string();
            return Some(Storage { form, four_bit: false, bytes });
        }
        if self.tensor(&bnb::state_name(name)).is_none() {
            return Some(Storage { form: self.tensor(name)?.dtype.to_string(), four_bit: false, bytes });
        }
        // Without the state's text, whose length depends on how many digits a number has: equal layers are to be equally large.
        let parts = bnb::part_names(name).into_iter().filter(|part| *part != bnb::state_name(name));
        let bytes = parts.filter_map(|part| self.tensor(&part).map(TensorInfo::bytes)).fold(bytes, u64::saturating_add);
        let nested = self.tensor(&format!("{name}.nested_absmax")).is_some();
        let form = if nested { "NF4 (double-quantized)" } else { "NF4" };
        Some(Storage { form: form.to_string(), four_bit: true, bytes })
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// A tensor that is not there, or a file that cannot be read.
    pub fn read(&self, name: &str) -> Result<TensorValues> {
        let missing = || ModelError::tensor(&self.describe, name, "is missing");
        match &self.backing {
            Backing::Safetensors { .. } => self.safetensors(name).ok_or_else(missing)?.read(name),
            Backing::Gguf { file, tensors } => file.read(tensors.get(name).ok_or_else(missing)?),
        }
    }

    /// A BF16 tensor that stays in its file until it is read; None for tensors that are not there or of other types, and for GGUF files.
    pub fn stored(&self, name: &str) -> Option<StoredTensor> {
        StoredTensor::new(self.safetensors(name)?, name)
    }

    /// Bytes of all tensors as stored.
    pub fn bytes(&self) -> u64 {
        self.names().filter_map(|name| self.tensor(name)).fold(0u64, |sum, t| sum.saturating_add(t.bytes()))
    }
}
