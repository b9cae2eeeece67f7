//! GGUF files: one file with metadata, tokenizer and tensors, as llama.cpp reads and writes them (`docs/gguf.md` of ggml, versions 2 and 3).
//!
//! A file shows itself as a model folder: [`ModelFiles`](crate::ModelFiles) gives the configuration and the tokenizer that follow from its
//! metadata, and [`Checkpoint`](crate::Checkpoint) its tensors under the names of Hugging Face's checkpoints.
//!
//! ```text
//! header, metadata ──> GgufFile ──> folder.rs   config.json, tokenizer.json, ... as texts
//!                          └──────> blocks.rs   tensors, unpacked to f32
//! ```

mod blocks;
mod folder;
pub mod metadata;
pub mod names;
mod reader;

pub use blocks::GgmlType;
pub(crate) use folder::FILES as FOLDER_FILES;
pub use metadata::Value;

use crate::files::Source;
use crate::tensors::{Dtype, TensorInfo, TensorValues};
use crate::{ModelError, Result};
use reader::Reader;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// What the file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The alignment of tensors where the metadata name no other.
pub const ALIGNMENT: u64 = 32;

/// More tensors or metadata than any model has.
const COUNT_LIMIT: u64 = 1 << 16;
const NAME_LIMIT: u64 = 1 << 16;

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// How it is stored.
    pub kind: GgmlType,
    /// Type (as it is read), row-major shape and place.
    pub(crate) info: TensorInfo,
}

impl GgufTensor {
    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.info.shape
    }
}

/// A GGUF file whose header has been checked: every tensor lies inside the file, has the size that type and shape give, and overlaps no other.
#[derive(Debug)]
pub struct GgufFile {
    source: Source,
    metadata: BTreeMap<String, Value>,
    /// By the names in the file.
    tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// A file that cannot be read, is none, is cut short or inconsistent, or has types that are not read.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_source(Source::open(path)?)
    }

    fn from_source(source: Source) -> Result<Self> {
        let (metadata, tensors) = read_header(&source).map_err(|problem| ModelError::Gguf { file: source.name(), problem })?;
        Ok(Self { source, metadata, tensors })
    }

    /// The file's name in messages.
    pub fn name(&self) -> String {
        self.source.name()
    }

    /// Metadata by key, such as `general.architecture`.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// Tensors by the names in the file, such as `blk.0.attn_q.weight`.
    pub fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// The bytes of a tensor as stored.
    ///
    /// # Errors
    /// A tensor that is not there, or a file that cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        let tensor = self.tensors.get(name).ok_or_else(|| ModelError::tensor(&self.name(), name, "is missing"))?;
        self.source.read(tensor.info.start, tensor.info.len)
    }

    /// The values of a tensor: floats as they are, blocks unpacked to f32.
    ///
    /// # Errors
    /// As [`GgufFile::bytes`].
    pub fn read(&self, name: &str) -> Result<TensorValues> {
        let bytes = self.bytes(name)?;
        let tensor = self.tensors.get(name).ok_or_else(|| ModelError::tensor(&self.name(), name, "is missing"))?;
        let bytes = match tensor.kind {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 => bytes,
            blocks => {
                let values = blocks.unpack(&bytes).map_err(|problem| ModelError::tensor(&self.name(), name, problem))?;
                Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect())
            }
        };
        let (dtype, shape) = (tensor.info.dtype, tensor.info.shape.clone());
        Ok(TensorValues { file: self.name(), name: name.to_string(), dtype, shape, bytes })
    }

    fn wrong(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::config(&self.name(), key, problem)
    }
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, GgufTensor>);

fn read_header(source: &Source) -> std::result::Result<Header, String> {
    let mut reader = Reader::new(source);
    if reader.array::<4>()? != MAGIC {
        return Err("it does not begin with GGUF".to_string());
    }
    match u32::from_le_bytes(reader.array()?) {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => return Err("it is for big-endian machines".to_string()),
        version => return Err(format!("it has version {version}; 2 and 3 are read")),
    }
    let count = |what: &str, number: u64| {
        if number <= COUNT_LIMIT { Ok(number) } else { Err(format!("it claims {number} {what}; at most {COUNT_LIMIT} are read")) }
    };
    let tensor_count = count("tensors", reader.u64()?)?;
    let pairs = count("metadata", reader.u64()?)?;
    let mut metadata = BTreeMap::new();
    let mut budget = metadata::Budget::default();
    for _ in 0..pairs {
        let key = reader.string(NAME_LIMIT)?;
        let value = Value::read(&mut reader, &mut budget).map_err(|e| format!("metadata {key:?}: {e}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("metadata {key:?} occurs twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(value) => value.as_u64().filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or("general.alignment is no power of two")?,
    };
    let mut claims = Vec::new();
    for _ in 0..tensor_count {
        claims.push(Claim::read(&mut reader)?);
    }
    let data = reader.at().checked_next_multiple_of(alignment).ok_or("its header has no end")?;
    Ok((metadata, place(claims, data, alignment, source.len())?))
}

/// What the header says about a tensor.
struct Claim {
    name: String,
    kind: GgmlType,
    shape: Vec<usize>,
    offset: u64,
    bytes: u64,
}

impl Claim {
    fn read(reader: &mut Reader<'_>) -> std::result::Result<Self, String> {
        let name = reader.string(NAME_LIMIT)?;
        let wrong = |problem: String| format!("tensor {name:?} {problem}");
        let dimensions = reader.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(wrong(format!("has {dimensions} dimensions; 1 to 4 are read")));
        }
        let mut shape = Vec::new();
        let mut values = 1u64;
        for _ in 0..dimensions {
            let size = reader.u64()?;
            values = values.checked_mul(size).filter(|n| *n <= i64::MAX as u64 / 8).ok_or_else(|| wrong("is too large".to_string()))?;
            shape.push(usize::try_from(size).map_err(|_| wrong("is too large".to_string()))?);
        }
        let number = reader.u32()?;
        let kind =
            GgmlType::from_number(number).ok_or_else(|| wrong(format!("has type {number}, which is not read: {}", GgmlType::KNOWN)))?;
        let (block, size) = kind.block();
        // The first dimension is the innermost: rows consist of whole blocks.
        if !shape.first().is_some_and(|row| row.is_multiple_of(block)) {
            return Err(wrong(format!("has rows of {shape:?} values, but {kind} has blocks of {block}")));
        }
        let bytes = (values / block as u64).checked_mul(size as u64).ok_or_else(|| wrong("is too large".to_string()))?;
        let offset = reader.u64()?;
        shape.reverse();
        Ok(Self { name, kind, shape, offset, bytes })
    }
}

/// Puts tensors at their places in the file.
fn place(claims: Vec<Claim>, data: u64, alignment: u64, len: u64) -> std::result::Result<BTreeMap<String, GgufTensor>, String> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::with_capacity(claims.len());
    for Claim { name, kind, shape, offset, bytes } in claims {
        let start = data.checked_add(offset).filter(|_| offset.is_multiple_of(alignment));
        let start = start.ok_or_else(|| format!("tensor {name:?} is at offset {offset}, which is no multiple of {alignment}"))?;
        let end = start.checked_add(bytes).filter(|end| *end <= len);
        let end = end.ok_or_else(|| format!("tensor {name:?} of {bytes} bytes at offset {offset} ends beyond the file"))?;
        ranges.push((start, end, name.clone()));
        let dtype = match kind {
            GgmlType::F16 => Dtype::F16,
            GgmlType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let info = TensorInfo { dtype, shape, start, len: bytes };
        if tensors.insert(name.clone(), GgufTensor { kind, info }).is_some() {
            return Err(format!("tensor {name:?} occurs twice"));
        }
    }
    ranges.sort();
    let mut reached = 0;
    for (start, end, name) in ranges {
        if start < reached {
            return Err(format!("tensor {name:?} overlaps the tensor before it"));
        }
        reached = end;
    }
    Ok(tensors)
}
