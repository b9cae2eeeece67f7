//! Writing safetensors files tensor by tensor, in shards where they are large, and reading them again.
//!
//! The header stands before the data, but the last sizes (a quant state's) are known only when all is written. So room for the longest header is
//! left, and what it does not need is filled with spaces, which the format allows. Readers in Python view the mapped file as typed memory, so every
//! tensor must lie at a multiple of its type's size; the format allows no holes. Tensors whose size is no multiple of eight therefore come last,
//! those of the larger types first.

use crate::{ExportError, Result};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;
use trainer_model::checkpoint::{INDEX_FILE, SINGLE_FILE};
use trainer_model::{Checkpoint, Dtype, ModelFiles};

/// Bytes of a shard, as transformers has it.
pub const SHARD_LIMIT: u64 = 5_000_000_000;

/// A tensor with its bytes, little-endian and row-major.
pub(crate) struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A tensor that will be written, or not.
pub(crate) struct Planned {
    pub name: String,
    /// At the most.
    pub bytes: u64,
}

/// SHA-256 of what a tensor must hold.
pub(crate) type Digests = BTreeMap<String, [u8; 32]>;

/// Writes a checkpoint into a folder: `groups` are what belongs together, and `produce` makes one of them.
///
/// # Errors
/// Whatever `produce` says, and what the operating system refuses.
pub(crate) fn write(
    folder: &Path,
    groups: &[Vec<Planned>],
    shard_limit: u64,
    produce: &mut dyn FnMut(usize) -> Result<Vec<Tensor>>,
) -> Result<Digests> {
    let shards = shards(groups, shard_limit);
    let total = shards.len();
    let mut digests = Digests::new();
    let mut map = Map::new();
    let mut size = 0u64;
    for (number, range) in shards.into_iter().enumerate() {
        let file = if total == 1 { SINGLE_FILE.to_string() } else { format!("model-{:05}-of-{total:05}.safetensors", number + 1) };
        let mut shard = Shard::create(&folder.join(&file), groups.get(range.clone()).unwrap_or_default())?;
        for group in range {
            for tensor in produce(group)? {
                digests.insert(tensor.name.clone(), Sha256::digest(&tensor.bytes).into());
                map.insert(tensor.name.clone(), json!(file));
                size = size.saturating_add(tensor.bytes.len() as u64);
                shard.add(tensor)?;
            }
        }
        shard.finish()?;
    }
    if total > 1 {
        map.sort_keys();
        let index = json!({"metadata": {"total_size": size}, "weight_map": map});
        let path = folder.join(INDEX_FILE);
        std::fs::write(&path, format!("{index:#}\n")).map_err(ExportError::io("write", &path))?;
    }
    Ok(digests)
}

/// Which groups go into which shard.
fn shards(groups: &[Vec<Planned>], limit: u64) -> Vec<std::ops::Range<usize>> {
    let mut shards = Vec::new();
    let (mut from, mut size) = (0, 0u64);
    for (i, group) in groups.iter().enumerate() {
        let bytes = group.iter().fold(0u64, |sum, t| sum.saturating_add(t.bytes));
        if i > from && size.saturating_add(bytes) > limit {
            shards.push(from..i);
            (from, size) = (i, 0);
        }
        size = size.saturating_add(bytes);
    }
    shards.push(from..groups.len());
    shards
}

struct Shard {
    path: std::path::PathBuf,
    file: BufWriter<File>,
    header: Map<String, Value>,
    /// Bytes for the header.
    room: usize,
    /// Where the next tensor's data begin.
    at: u64,
    /// Tensors that come last.
    tail: Vec<Tensor>,
}

impl Shard {
    fn create(path: &Path, groups: &[Vec<Planned>]) -> Result<Self> {
        // The longest entry: every offset and dimension with twenty digits, and four dimensions.
        let (shape, offsets) = ([u64::MAX; 4], [u64::MAX; 2]);
        let longest = |t: &Planned| json!({&t.name: {"dtype": "F8_E5M2", "shape": shape, "data_offsets": offsets}}).to_string().len();
        let room = groups.iter().flatten().map(longest).fold(64usize, |sum, len| sum.saturating_add(len)).next_multiple_of(8);
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(ExportError::io("create", path))?);
        file.seek(SeekFrom::Start(8 + room as u64)).map_err(ExportError::io("write", path))?;
        let header = Map::from_iter([("__metadata__".to_string(), json!({"format": "pt"}))]);
        Ok(Self { path: path.to_path_buf(), file, header, room, at: 0, tail: Vec::new() })
    }

    fn add(&mut self, tensor: Tensor) -> Result<()> {
        if tensor.bytes.len().is_multiple_of(8) {
            return self.put(&tensor);
        }
        self.tail.push(tensor);
        Ok(())
    }

    fn put(&mut self, tensor: &Tensor) -> Result<()> {
        let end = self.at.saturating_add(tensor.bytes.len() as u64);
        let entry = json!({"dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [self.at, end]});
        self.header.insert(tensor.name.clone(), entry);
        self.at = end;
        self.file.write_all(&tensor.bytes).map_err(ExportError::io("write", &self.path))
    }

    fn finish(mut self) -> Result<()> {
        let mut tail = std::mem::take(&mut self.tail);
        tail.sort_by_key(|t| std::cmp::Reverse(t.dtype.size()));
        for tensor in &tail {
            self.put(tensor)?;
        }
        let mut text = Value::Object(std::mem::take(&mut self.header)).to_string().into_bytes();
        if text.len() > self.room {
            return Err(ExportError::unfit(self.path.display().to_string(), "its header is longer than planned"));
        }
        text.resize(self.room, b' ');
        let failed = ExportError::io("write", &self.path);
        let mut write = || {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&(self.room as u64).to_le_bytes())?;
            self.file.write_all(&text)?;
            self.file.flush()?;
            self.file.get_ref().sync_all()
        };
        write().map_err(failed)
    }
}

/// Reads a folder's checkpoint again and compares every tensor with what was written; gives their number.
///
/// # Errors
/// [`ExportError::Verify`] for the first tensor that differs.
pub(crate) fn verify(folder: &Path, digests: &Digests) -> Result<usize> {
    let checkpoint = Checkpoint::open(&ModelFiles::dir(folder))?;
    let wrong =
        |tensor: &str, problem: &str| ExportError::Verify { file: folder.to_path_buf(), tensor: tensor.into(), problem: problem.into() };
    if let Some(name) = checkpoint.names().find(|name| !digests.contains_key(*name)) {
        return Err(wrong(name, "was not to be written"));
    }
    for (name, digest) in digests {
        if checkpoint.tensor(name).is_none() {
            return Err(wrong(name, "is not there"));
        }
        if <[u8; 32]>::from(Sha256::digest(&checkpoint.read(name)?.bytes)) != *digest {
            return Err(wrong(name, "differs from what was written"));
        }
    }
    Ok(digests.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize], fill: u8) -> Tensor {
        let len = shape.iter().product::<usize>() * dtype.size();
        Tensor { name: name.into(), dtype, shape: shape.to_vec(), bytes: (0..len).map(|i| fill.wrapping_add(i as u8)).collect() }
    }

    fn all() -> Vec<Vec<Tensor>> {
        vec![
            vec![tensor("a", Dtype::U8, &[7], 1), tensor("b", Dtype::BF16, &[3], 2), tensor("c", Dtype::F32, &[5], 3)],
            vec![tensor("d", Dtype::F32, &[4, 4], 4)],
            vec![tensor("e", Dtype::BF16, &[4, 8], 5), tensor("f", Dtype::U8, &[3, 1], 6)],
        ]
    }

    fn write_all(folder: &Path, limit: u64) -> Digests {
        let plan: Vec<Vec<Planned>> =
            all().iter().map(|g| g.iter().map(|t| Planned { name: t.name.clone(), bytes: t.bytes.len() as u64 }).collect()).collect();
        let mut groups: Vec<Option<Vec<Tensor>>> = all().into_iter().map(Some).collect();
        write(folder, &plan, limit, &mut |i| Ok(groups[i].take().unwrap())).unwrap()
    }

    #[test]
    fn files_are_read_by_the_reference_implementation_and_every_tensor_is_aligned() {
        for limit in [u64::MAX, 60] {
            let dir = tempfile::tempdir().unwrap();
            let digests = write_all(dir.path(), limit);
            assert_eq!(verify(dir.path(), &digests).unwrap(), 6);
            let mut seen = BTreeMap::new();
            for entry in std::fs::read_dir(dir.path()).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|e| e == "safetensors") {
                    seen.extend(trainer_test_support::tensors_at(&path));
                    let raw = std::fs::read(&path).unwrap();
                    let len = u64::from_le_bytes(raw[..8].try_into().unwrap()) as usize;
                    let header: Value = serde_json::from_slice(&raw[8..8 + len]).unwrap();
                    assert_eq!(len % 8, 0);
                    for (name, entry) in header.as_object().unwrap().iter().filter(|e| e.0 != "__metadata__") {
                        let size = if entry["dtype"] == "F32" {
                            4
                        } else if entry["dtype"] == "BF16" {
                            2
                        } else {
                            1
                        };
                        assert_eq!(entry["data_offsets"][0].as_u64().unwrap() % size, 0, "{name}");
                    }
                }
            }
            for t in all().into_iter().flatten() {
                assert_eq!((&seen[&t.name].bytes, &seen[&t.name].shape), (&t.bytes, &t.shape), "{}", t.name);
            }
            assert_eq!(dir.path().join(INDEX_FILE).exists(), limit == 60);
        }
    }

    #[test]
    fn a_changed_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let digests = write_all(dir.path(), u64::MAX);
        let path = dir.path().join(SINGLE_FILE);
        let mut raw = std::fs::read(&path).unwrap();
        *raw.last_mut().unwrap() ^= 1;
        std::fs::write(&path, raw).unwrap();
        assert!(verify(dir.path(), &digests).unwrap_err().to_string().contains("differs from what was written"));
    }
}
