//! A model's tensors by name, from one safetensors file or from several with an index.

use crate::files::ModelFiles;
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
    files: Vec<Arc<SafetensorsFile>>,
    /// Tensor name to the position in `files`.
    tensors: BTreeMap<String, usize>,
    describe: String,
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
        if files.contains(SINGLE_FILE) {
            let file = SafetensorsFile::open(files.open(SINGLE_FILE)?)?;
            let tensors = file.tensors.keys().map(|name| (name.clone(), 0)).collect();
            return Ok(Self { files: vec![Arc::new(file)], tensors, describe });
        }
        let Some(text) = files.read_text(INDEX_FILE)? else {
            let names = files.names()?;
            let foreign = names.iter().find(|n| n.ends_with(".bin") || n.ends_with(".pt") || n.ends_with(".pth") || n.ends_with(".gguf"));
            let hint = match foreign {
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
        Ok(Self { files: opened, tensors, describe })
    }

    /// How messages call the checkpoint.
    pub fn describe(&self) -> String {
        self.describe.clone()
    }

    /// All tensors' names, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Type and shape of a tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.files.get(*self.tensors.get(name)?)?.tensors.get(name)
    }

    /// The values of a tensor.
    ///
    /// # Errors
    /// A tensor that is not there, or a file that cannot be read.
    pub fn read(&self, name: &str) -> Result<TensorValues> {
        match self.tensors.get(name).and_then(|&at| self.files.get(at)) {
            Some(file) => file.read(name),
            None => Err(ModelError::tensor(&self.describe, name, "is missing")),
        }
    }

    /// A BF16 tensor that stays in its file until it is read; None for tensors that are not there or of other types.
    pub fn stored(&self, name: &str) -> Option<StoredTensor> {
        StoredTensor::new(self.files.get(*self.tensors.get(name)?)?, name)
    }

    /// Bytes of all tensors as stored.
    pub fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|f| f.tensors.values()).fold(0u64, |sum, t| sum.saturating_add(t.len))
    }
}
