//! Reading the reference data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;
use trainer_model::{Adapter, Checkpoint, LoadOptions, ModelConfig, ModelFiles, ModelWeights, Quantize, load_weights};

use crate::{Result, SelftestError};

/// One tensor of a safetensors file.
pub(crate) struct Tensor {
    pub shape: Vec<usize>,
    dtype: Dtype,
    pub bytes: Vec<u8>,
}

/// The tensors of a file by name.
pub(crate) struct Tensors {
    path: PathBuf,
    pub all: BTreeMap<String, Tensor>,
}

/// A folder of reference data.
pub(crate) struct Files {
    root: PathBuf,
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().unwrap_or([0; N])
}

impl Tensor {
    /// Float values as f32.
    pub fn f32(&self) -> Vec<f32> {
        let b = &self.bytes;
        match self.dtype {
            Dtype::F32 => b.chunks_exact(4).map(|b| f32::from_le_bytes(array(b))).collect(),
            Dtype::F64 => b.chunks_exact(8).map(|b| f64::from_le_bytes(array(b)) as f32).collect(),
            Dtype::BF16 => b.chunks_exact(2).map(|b| half::bf16::from_le_bytes(array(b)).to_f32()).collect(),
            Dtype::F16 => b.chunks_exact(2).map(|b| half::f16::from_le_bytes(array(b)).to_f32()).collect(),
            // Of no use as floats: no length fits, and the comparison fails.
            _ => Vec::new(),
        }
    }

    /// Integer values.
    pub fn i64(&self) -> Vec<i64> {
        let b = &self.bytes;
        match self.dtype {
            Dtype::I64 => b.chunks_exact(8).map(|b| i64::from_le_bytes(array(b))).collect(),
            Dtype::I32 => b.chunks_exact(4).map(|b| i32::from_le_bytes(array(b)).into()).collect(),
            Dtype::U8 | Dtype::BOOL => b.iter().map(|&b| b.into()).collect(),
            _ => Vec::new(),
        }
    }
}

impl Tensors {
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.all.get(name).ok_or_else(|| SelftestError::Reference { path: self.path.clone(), what: format!("there is no tensor {name}") })
    }

    /// The first value of a tensor.
    pub fn number(&self, name: &str) -> Result<f64> {
        let first = self.get(name)?.f32().first().copied();
        first.map(f64::from).ok_or_else(|| SelftestError::Reference { path: self.path.clone(), what: format!("{name} is empty") })
    }

    /// All tensors under the engine's names: PEFT's without `base_model.model.` in front.
    pub fn peft(&self) -> BTreeMap<String, Vec<f32>> {
        self.all.iter().map(|(name, t)| (name.strip_prefix("base_model.model.").unwrap_or(name).to_owned(), t.f32())).collect()
    }
}

impl Files {
    /// # Errors
    /// Not a folder of reference data.
    pub fn new(root: &Path) -> Result<Self> {
        if root.join("model").is_dir() && root.join("quant").is_dir() {
            return Ok(Self { root: root.to_owned() });
        }
        Err(SelftestError::Reference { path: root.to_owned(), what: "not a folder with the reference data's `model` and `quant`".into() })
    }

    pub fn error(&self, path: &str, what: impl Into<String>) -> SelftestError {
        SelftestError::Reference { path: self.root.join(path), what: what.into() }
    }

    pub fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        std::fs::read(self.root.join(path)).map_err(|e| self.error(path, e.to_string()))
    }

    pub fn json(&self, path: &str) -> Result<Value> {
        serde_json::from_slice(&self.read(path)?).map_err(|e| self.error(path, e.to_string()))
    }

    pub fn tensors(&self, path: &str) -> Result<Tensors> {
        let raw = self.read(path)?;
        let read = safetensors::SafeTensors::deserialize(&raw).map_err(|e| self.error(path, e.to_string()))?;
        let tensor = |view: &safetensors::tensor::TensorView<'_>| Tensor {
            shape: view.shape().to_vec(),
            dtype: view.dtype(),
            bytes: view.data().to_vec(),
        };
        let all: BTreeMap<String, Tensor> = read.tensors().iter().map(|(name, view)| (name.clone(), tensor(view))).collect();
        if all.is_empty() {
            return Err(self.error(path, "there are no tensors"));
        }
        Ok(Tensors { path: self.root.join(path), all })
    }

    /// The names of `model/<name>` that have `model/<name>_goldens`.
    pub fn models(&self) -> Result<Vec<String>> {
        let folder = self.root.join("model");
        let entries = std::fs::read_dir(&folder).map_err(|e| self.error("model", e.to_string()))?;
        let mut names: Vec<String> =
            entries.flatten().filter_map(|e| e.file_name().to_str()?.strip_suffix("_goldens").map(str::to_owned)).collect();
        names.sort();
        if names.is_empty() { Err(self.error("model", "there are no folders called <name>_goldens")) } else { Ok(names) }
    }

    /// A model as it is stored; with `defer`, matrices in bfloat16 are read when the device takes them.
    pub fn weights(&self, path: &str, defer: bool) -> Result<(ModelConfig, ModelWeights)> {
        let files = ModelFiles::dir(self.root.join(path));
        let config = ModelConfig::read(&files)?;
        let options = LoadOptions { quantize: Quantize::AsStored, defer, ..LoadOptions::default() };
        let weights = load_weights(&Checkpoint::open(&files)?, &config, options)?;
        Ok((config, weights))
    }

    /// A PEFT adapter.
    pub fn adapter(&self, path: &str) -> Result<Adapter> {
        Ok(Adapter::read(&ModelFiles::dir(self.root.join(path)))?)
    }

    /// A list in a JSON value.
    pub fn list<'v>(&self, path: &str, value: &'v Value) -> Result<&'v [Value]> {
        value.as_array().map(Vec::as_slice).ok_or_else(|| self.error(path, "a list is missing"))
    }

    /// A number in a JSON value.
    pub fn float(&self, path: &str, value: &Value, key: &str) -> Result<f64> {
        value.get(key).and_then(Value::as_f64).ok_or_else(|| self.error(path, format!("there is no number {key}")))
    }

    /// A size in a JSON value.
    pub fn size(&self, path: &str, value: &Value, key: &str) -> Result<usize> {
        let n = value.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        n.ok_or_else(|| self.error(path, format!("there is no size {key}")))
    }

    /// A text in a JSON value.
    pub fn text<'v>(&self, path: &str, value: &'v Value, key: &str) -> Result<&'v str> {
        value.get(key).and_then(Value::as_str).ok_or_else(|| self.error(path, format!("there is no text {key}")))
    }
}
