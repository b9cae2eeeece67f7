//! What the tests share: finding the reference data and reading it.
//!
//! `TRAINER_REFERENCE=<absolute folder>` points every golden test at another set of the same structure. Every function panics on missing
//! or unreadable data: a golden test without its golden must fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folder of reference data: `TRAINER_REFERENCE`, or the copy in `tests/reference`.
pub fn reference() -> PathBuf {
    let root = match std::env::var_os("TRAINER_REFERENCE") {
        Some(dir) => {
            let dir = PathBuf::from(dir);
            assert!(dir.is_absolute(), "TRAINER_REFERENCE must be an absolute path, not {}", dir.display());
            dir
        }
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../reference"),
    };
    assert!(root.join("model").is_dir(), "no reference data in {} (TRAINER_REFERENCE)", root.display());
    root
}

/// A file of the reference data by its path in it; it must exist.
pub fn reference_file(path: &str) -> PathBuf {
    let file = reference().join(path);
    assert!(file.exists(), "reference data lacks {}", file.display());
    file
}

/// The bytes of a file of the reference data; `path.zst` serves if `path` itself is not there.
pub fn bytes(path: &str) -> Vec<u8> {
    let file = reference().join(path);
    if file.exists() {
        return std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    let packed = reference().join(format!("{path}.zst"));
    let raw = std::fs::read(&packed).unwrap_or_else(|e| panic!("neither {} nor {}: {e}", file.display(), packed.display()));
    zstd::decode_all(raw.as_slice()).unwrap_or_else(|e| panic!("{}: {e}", packed.display()))
}

/// The text of a file of the reference data.
pub fn text(path: &str) -> String {
    String::from_utf8(bytes(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A JSON file of the reference data.
pub fn json(path: &str) -> serde_json::Value {
    serde_json::from_str(&text(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A JSON Lines file of the reference data; at least one line.
pub fn jsonl(path: &str) -> Vec<serde_json::Value> {
    let rows: Vec<_> = text(path)
        .lines()
        .filter(|l| !l.trim().is_empty())
        .enumerate()
        .map(|(i, l)| serde_json::from_str(l).unwrap_or_else(|e| panic!("{path}:{}: {e}", i + 1)))
        .collect();
    assert!(!rows.is_empty(), "{path} is empty");
    rows
}

/// One tensor of a safetensors file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// The stored type.
    pub dtype: safetensors::Dtype,
    /// Little-endian bytes.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// The values as f32; bf16, f16, f32 and f64 only.
    pub fn f32(&self) -> Vec<f32> {
        use safetensors::Dtype::*;
        match self.dtype {
            F32 => self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            F64 => self.bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            BF16 => self.bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            F16 => self.bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            d => panic!("not a float tensor: {d:?}"),
        }
    }

    /// The values as i64; i64, i32 and u8 only.
    pub fn i64(&self) -> Vec<i64> {
        use safetensors::Dtype::*;
        match self.dtype {
            I64 => self.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
            I32 => self.bytes.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as i64).collect(),
            U8 | BOOL => self.bytes.iter().map(|&b| b as i64).collect(),
            d => panic!("not an integer tensor: {d:?}"),
        }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All tensors of a safetensors file of the reference data; at least one.
pub fn tensors(path: &str) -> BTreeMap<String, Tensor> {
    tensors_at(&reference_file(path))
}

/// All tensors of any safetensors file; at least one.
pub fn tensors_at(file: &Path) -> BTreeMap<String, Tensor> {
    let raw = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let st = safetensors::SafeTensors::deserialize(&raw).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let map: BTreeMap<_, _> = st
        .tensors()
        .into_iter()
        .map(|(n, v)| (n, Tensor { shape: v.shape().to_vec(), dtype: v.dtype(), bytes: v.data().to_vec() }))
        .collect();
    assert!(!map.is_empty(), "{} holds no tensors", file.display());
    map
}

/// The largest absolute difference; both must be equally long and finite.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).fold(0.0, |m, (x, y)| {
        assert!(x.is_finite() && y.is_finite(), "not finite: {x} {y}");
        f32::max(m, (x - y).abs())
    })
}

/// |a - b| / |b| in the Euclidean norm.
pub fn relative_norm(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let d: f64 = a.iter().zip(b).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum();
    let n: f64 = b.iter().map(|y| (*y as f64).powi(2)).sum();
    d.sqrt() / n.sqrt().max(1e-30)
}
