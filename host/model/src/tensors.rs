//! The safetensors format: an 8-byte length, a JSON header, and the tensors' bytes, little-endian and row-major.

use crate::files::Source;
use crate::{ModelError, Result};
use half::{bf16, f16};
use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use trainer_kernels::ops::MatrixSource;

/// The largest header that is read, as in the reference implementation.
const HEADER_LIMIT: u64 = 100_000_000;

/// The type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[expect(missing_docs, reason = "the names of the format")]
#[expect(non_camel_case_types, reason = "the names of the format")]
pub enum Dtype {
    BOOL,
    U8,
    I8,
    F8_E5M2,
    F8_E4M3,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

impl Dtype {
    /// Size of one value in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::BOOL | Self::U8 | Self::I8 | Self::F8_E5M2 | Self::F8_E4M3 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Whether weights may be of this type.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::BF16 | Self::F16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type of its values.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Its first byte in the file.
    pub(crate) start: u64,
    /// Its size in bytes.
    pub(crate) len: u64,
}

impl TensorInfo {
    /// Its size in bytes, as stored.
    pub fn bytes(&self) -> u64 {
        self.len
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A header in which no name occurs twice. Its metadata must be a map of strings, and is not used.
struct Header {
    entries: BTreeMap<String, Entry>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header { entries: BTreeMap::new() };
                let mut seen_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut seen_metadata, true) {
                            return Err(de::Error::custom("__metadata__ occurs twice"));
                        }
                        map.next_value::<BTreeMap<String, String>>()?;
                        continue;
                    }
                    let entry = map.next_value()?;
                    if header.entries.insert(name.clone(), entry).is_some() {
                        return Err(de::Error::custom(format!("tensor {name:?} occurs twice")));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A safetensors file whose header has been checked: every tensor lies inside the file, its size follows from type and shape, and the
/// tensors cover the data without overlap or hole.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    pub(crate) source: Source,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl SafetensorsFile {
    pub(crate) fn open(source: Source) -> Result<Self> {
        let file = source.name();
        let bad = |problem: String| ModelError::Safetensors { file: file.clone(), problem };
        if source.len() < 8 {
            return Err(bad(format!("it has {} bytes; the length of the header alone takes 8", source.len())));
        }
        let length = source.read(0, 8)?;
        let header_len = u64::from_le_bytes(length.as_ref().try_into().map_err(|_| bad("it ends early".to_string()))?);
        if header_len > HEADER_LIMIT || header_len > source.len() - 8 {
            return Err(bad(format!(
                "its header would have {header_len} bytes; the file has {}, and at most {HEADER_LIMIT} are read",
                source.len()
            )));
        }
        let text = source.read(8, header_len)?;
        let header: Header = serde_json::from_slice(&text).map_err(|e| bad(format!("its header: {e}")))?;
        let data_start = 8 + header_len;
        let tensors = check(&header.entries, data_start, source.len() - data_start).map_err(&bad)?;
        Ok(Self { source, tensors })
    }

    /// The values of a tensor.
    pub(crate) fn read(&self, name: &str) -> Result<TensorValues> {
        let file = self.source.name();
        let Some(info) = self.tensors.get(name) else { return Err(ModelError::tensor(&file, name, "is not in this file")) };
        let bytes = self.source.read(info.start, info.len)?;
        Ok(TensorValues { file, name: name.to_string(), dtype: info.dtype, shape: info.shape.clone(), bytes })
    }
}

/// A BF16 tensor that is still in its file.
#[derive(Clone)]
pub struct StoredTensor {
    file: Arc<SafetensorsFile>,
    name: String,
    start: u64,
    len: usize,
}

impl StoredTensor {
    /// A tensor of a file; None if it is not there or of another type.
    pub(crate) fn new(file: &Arc<SafetensorsFile>, name: &str) -> Option<Self> {
        let info = file.tensors.get(name).filter(|t| t.dtype == Dtype::BF16)?;
        let len = usize::try_from(info.len / 2).ok()?;
        Some(Self { file: Arc::clone(file), name: name.to_owned(), start: info.start, len })
    }

    /// Its values.
    ///
    /// # Errors
    /// The file cannot be read any more.
    pub fn values(&self) -> Result<Vec<bf16>> {
        let mut values = vec![bf16::ZERO; self.len];
        self.fill(0, &mut values)?;
        Ok(values)
    }

    /// An error about it.
    pub(crate) fn wrong(&self, problem: String) -> ModelError {
        ModelError::tensor(&self.file.source.name(), &self.name, problem)
    }

    fn fill(&self, first: usize, out: &mut [bf16]) -> Result<()> {
        if first.checked_add(out.len()).is_none_or(|end| end > self.len) {
            return Err(self.wrong(format!("has {} values", self.len)));
        }
        self.file.source.read_into(self.start + 2 * first as u64, bytemuck::cast_slice_mut(out))?;
        if cfg!(target_endian = "big") {
            out.iter_mut().for_each(|v| *v = bf16::from_bits(v.to_bits().swap_bytes()));
        }
        Ok(())
    }
}

impl fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} values in {})", self.name, self.len, self.file.source.name())
    }
}

/// The same place of the same open file.
impl PartialEq for StoredTensor {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && self.name == other.name
    }
}

impl MatrixSource for StoredTensor {
    fn name(&self) -> String {
        format!("{}: tensor {}", self.file.source.name(), self.name)
    }
    fn len(&self) -> usize {
        self.len
    }
    fn read(&self, first: usize, out: &mut [bf16]) -> std::result::Result<(), String> {
        self.fill(first, out).map_err(|e| e.to_string())
    }
}

fn check(entries: &BTreeMap<String, Entry>, data_start: u64, data_len: u64) -> std::result::Result<BTreeMap<String, TensorInfo>, String> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (start, end) = entry.data_offsets;
        if start > end || end > data_len {
            return Err(format!("tensor {name:?} would be bytes {start}..{end} of {data_len} bytes of data"));
        }
        let bytes = entry.shape.iter().try_fold(entry.dtype.size() as u64, |n, &d| n.checked_mul(d));
        if bytes != Some(end - start) {
            let (dtype, shape) = (entry.dtype, &entry.shape);
            return Err(format!("tensor {name:?} of type {dtype} and shape {shape:?} does not have the {} bytes it is given", end - start));
        }
        let shape: Option<Vec<usize>> = entry.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
        let Some(shape) = shape else { return Err(format!("tensor {name:?} has a shape beyond this machine's memory")) };
        ranges.push((start, end, name));
        tensors.insert(name.clone(), TensorInfo { dtype: entry.dtype, shape, start: data_start + start, len: end - start });
    }
    ranges.sort();
    let mut reached = 0;
    for (start, end, name) in ranges {
        if start != reached {
            let what = if start < reached { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(format!("tensor {name:?} at bytes {start}..{end} {what}"));
        }
        reached = end;
    }
    if reached != data_len {
        return Err(format!("the tensors end at byte {reached} of {data_len} bytes of data"));
    }
    Ok(tensors)
}

/// A tensor's bytes with what they mean.
#[derive(Clone, Debug)]
pub struct TensorValues {
    /// The file it came from.
    pub file: String,
    /// Its name.
    pub name: String,
    /// The type of its values.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Little-endian values.
    pub bytes: Cow<'static, [u8]>,
}

impl TensorValues {
    fn not(&self, wanted: &str) -> ModelError {
        ModelError::tensor(&self.file, &self.name, format!("has type {}, where {wanted} is needed", self.dtype))
    }

    /// As f32, exactly: from F32, BF16 or F16.
    ///
    /// # Errors
    /// Another type.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self.dtype {
            Dtype::F32 => Ok(self.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::BF16 => Ok(self.bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
            Dtype::F16 => Ok(self.bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
            _ => Err(self.not("F32, BF16 or F16")),
        }
    }

    /// A BF16 tensor.
    ///
    /// # Errors
    /// Another type.
    pub fn to_bf16(&self) -> Result<Vec<bf16>> {
        match self.dtype {
            Dtype::BF16 => Ok(self.bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()),
            _ => Err(self.not("BF16")),
        }
    }

    /// An F16 tensor.
    ///
    /// # Errors
    /// Another type.
    pub fn to_f16(&self) -> Result<Vec<f16>> {
        match self.dtype {
            Dtype::F16 => Ok(self.bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
            _ => Err(self.not("F16")),
        }
    }

    /// A U8 tensor.
    ///
    /// # Errors
    /// Another type.
    pub fn into_u8(self) -> Result<Vec<u8>> {
        match self.dtype {
            Dtype::U8 => Ok(self.bytes.into_owned()),
            _ => Err(self.not("U8")),
        }
    }
}
