//! A hub in this process, a cache in a temporary folder, and files to serve.

#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use trainer_hub::{Hub, HubError, RepoRef, Settings, Snapshot, Wanted, Watch};
use trainer_test_hub::FakeHub;

pub const TOKEN: &str = "hf_secretsecret";

/// Bytes that look like nothing and are the same each time.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub struct Place {
    pub hub: FakeHub,
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { hub: FakeHub::start(), dir: tempfile::tempdir().unwrap() }
    }

    /// What a new process with this environment over the usual one is.
    pub fn process(&self, more: &[(&str, &str)]) -> Hub {
        let all = [
            ("HF_ENDPOINT", self.hub.url()),
            ("MODELSCOPE_ENDPOINT", self.hub.url()),
            ("HF_HOME", self.path("hf").display().to_string()),
            ("MODELSCOPE_CACHE", self.path("ms").display().to_string()),
        ];
        let variable = |name: &str| -> Option<OsString> {
            let given = more.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into());
            given.or_else(|| all.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
        };
        Hub::new(Settings::from(&variable).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The model of this name, by a new process.
    pub fn pull(&self, name: &str, more: &[(&str, &str)]) -> Result<Snapshot, HubError> {
        self.process(more).snapshot(&RepoRef::parse(name).unwrap(), &Wanted::Model, &Notes::default())
    }

    /// An error's text.
    pub fn fails(&self, name: &str, more: &[(&str, &str)]) -> String {
        let error = self.pull(name, more).map(|s| s.dir).unwrap_err().to_string();
        assert!(!error.contains(TOKEN) && !error.contains("secret-signature"), "{error}");
        error
    }
}

/// A model's files, with large ones of these sizes.
pub fn model(shards: &[usize]) -> Vec<(String, Vec<u8>, bool)> {
    let mut files = vec![
        (".gitattributes".to_owned(), b"*.safetensors filter=lfs\n".to_vec(), false),
        ("README.md".to_owned(), b"# Model\n".to_vec(), false),
        ("config.json".to_owned(), b"{\"model_type\": \"qwen3\"}".to_vec(), false),
        ("tokenizer.json".to_owned(), noise(300_000, 7), true),
        ("pytorch_model.bin".to_owned(), noise(100, 8), true),
        ("onnx/model.onnx".to_owned(), noise(100, 9), true),
    ];
    if let [one] = shards {
        files.push(("model.safetensors".to_owned(), noise(*one, 1), true));
        return files;
    }
    let name = |i: usize| format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
    let map: serde_json::Map<String, serde_json::Value> = (0..shards.len()).map(|i| (format!("t{i}"), name(i).into())).collect();
    files.push(("model.safetensors.index.json".to_owned(), serde_json::json!({ "weight_map": map }).to_string().into_bytes(), false));
    files.extend(shards.iter().enumerate().map(|(i, size)| (name(i), noise(*size, i as u64 + 1), true)));
    files
}

/// Adds it to a hub.
pub fn serve(hub: &FakeHub, kind: &str, id: &str, files: &[(String, Vec<u8>, bool)]) -> String {
    let files: Vec<_> = files.iter().map(|(p, b, l)| (p.as_str(), b.clone(), *l)).collect();
    hub.commit(kind, id, &files)
}

/// Every file below a folder that is not a link.
pub fn plain_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => found.extend(plain_files(&entry.path())),
            kind if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
    found.sort();
    found
}

/// Keeps what a person would be told.
#[derive(Default)]
pub struct Notes {
    pub notes: Mutex<Vec<String>>,
    /// Announced, there already, received, lost.
    pub bytes: Mutex<(u64, u64, u64, u64)>,
}

impl Watch for Notes {
    fn begin(&self, _: &str, _: usize, bytes: u64, present: u64) {
        let mut all = self.bytes.lock().unwrap();
        all.0 += bytes;
        all.1 += present;
    }
    fn received(&self, bytes: u64) {
        self.bytes.lock().unwrap().2 += bytes;
    }
    fn lost(&self, bytes: u64) {
        self.bytes.lock().unwrap().3 += bytes;
    }
    fn file(&self, _: &str, _: u64) {}
    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_owned());
    }
    fn end(&self) {
        let (all, present, received, lost) = *self.bytes.lock().unwrap();
        assert!(present + received >= lost && present + received - lost <= all, "{all} {present} {received} {lost}");
    }
}
