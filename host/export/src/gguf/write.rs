//! The file itself: header, metadata, tensors, each at a multiple of the alignment.

use crate::{ExportError, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use trainer_model::gguf::metadata::{Value, kind};
use trainer_model::gguf::{ALIGNMENT, GgmlType, MAGIC};

const VERSION: u32 = 3;

/// A tensor that will be written.
pub(crate) struct Planned {
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    pub kind: GgmlType,
}

impl Planned {
    fn bytes(&self) -> Option<u64> {
        let (block, size) = self.kind.block();
        let values = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))?;
        (values / block as u64).checked_mul(size as u64)
    }
}

pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    /// Bytes of each tensor, the next one last.
    waiting: Vec<(String, u64)>,
}

impl Writer {
    pub fn create(path: &Path, metadata: &[(String, Value)], tensors: &[Planned]) -> Result<Self> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            string(&mut header, key);
            put(&mut header, value);
        }
        let mut offset = 0u64;
        let mut waiting = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let bytes = tensor.bytes().ok_or_else(|| ExportError::unfit(&tensor.name, "is too large"))?;
            string(&mut header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in tensor.shape.iter().rev() {
                header.extend((*size as u64).to_le_bytes());
            }
            header.extend(tensor.kind.number().to_le_bytes());
            header.extend(offset.to_le_bytes());
            let next = offset.checked_add(bytes).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            offset = next.ok_or_else(|| ExportError::unfit(&tensor.name, "is too large"))?;
            waiting.push((tensor.name.clone(), bytes));
        }
        waiting.reverse();
        let file = File::create(path).map_err(ExportError::io("create", path))?;
        let mut this = Self { path: path.to_path_buf(), file: BufWriter::with_capacity(1 << 20, file), waiting };
        this.put_padded(&header)?;
        Ok(this)
    }

    /// The next tensor.
    pub fn tensor(&mut self, bytes: &[u8]) -> Result<()> {
        match self.waiting.pop() {
            Some((_, size)) if size == bytes.len() as u64 => self.put_padded(bytes),
            Some((name, size)) => Err(ExportError::unfit(name, format!("has {} bytes instead of {size}", bytes.len()))),
            None => Err(ExportError::unfit(self.path.display().to_string(), "has more tensors than planned")),
        }
    }

    fn put_padded(&mut self, bytes: &[u8]) -> Result<()> {
        let alignment = ALIGNMENT as usize;
        let padding = bytes.len().next_multiple_of(alignment) - bytes.len();
        let zeros = [0u8; ALIGNMENT as usize];
        let written = self.file.write_all(bytes).and_then(|()| self.file.write_all(zeros.get(..padding).unwrap_or_default()));
        written.map_err(ExportError::io("write", &self.path))
    }

    pub fn finish(mut self) -> Result<()> {
        if let Some((name, _)) = self.waiting.pop() {
            return Err(ExportError::unfit(name, "was planned and not written"));
        }
        let done = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        done.map_err(ExportError::io("write", &self.path))
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A value: integers as 32 bits where they fit, as llama.cpp expects them, floats as f32.
fn put(out: &mut Vec<u8>, value: &Value) {
    let mut list = |kind: u32, len: usize| {
        out.extend(kind::ARRAY.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::Unsigned(n) => match u32::try_from(*n) {
            Ok(n) => {
                out.extend(kind::U32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Err(_) => {
                out.extend(kind::U64.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
        },
        Value::Signed(n) => {
            out.extend(kind::I64.to_le_bytes());
            out.extend(n.to_le_bytes());
        }
        Value::Float(x) => {
            out.extend(kind::F32.to_le_bytes());
            out.extend((*x as f32).to_le_bytes());
        }
        Value::Bool(b) => {
            out.extend(kind::BOOL.to_le_bytes());
            out.push(u8::from(*b));
        }
        Value::Text(text) => {
            out.extend(kind::STRING.to_le_bytes());
            string(out, text);
        }
        Value::Integers(items) => {
            list(kind::I32, items.len());
            // Kinds of tokens: small numbers.
            items.iter().for_each(|n| out.extend(i32::try_from(*n).unwrap_or(i32::MAX).to_le_bytes()));
        }
        Value::Floats(items) => {
            list(kind::F32, items.len());
            items.iter().for_each(|x| out.extend((*x as f32).to_le_bytes()));
        }
        Value::Bools(items) => {
            list(kind::BOOL, items.len());
            items.iter().for_each(|b| out.push(u8::from(*b)));
        }
        Value::Texts(items) => {
            list(kind::STRING, items.len());
            items.iter().for_each(|text| string(out, text));
        }
    }
}
