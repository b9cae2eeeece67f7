//! A folder to work in, the program to run there, and runs that tests share.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes on a crowded machine; a test that reaches it fails.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A recipe's `--set` values that leave only the training: ten steps with dropout, a checkpoint after the fourth and the eighth.
pub const SHORT: [&str; 14] = [
    "--set",
    "eval.before=false",
    "--set",
    "eval.after=false",
    "--set",
    "sample.prompt=\"\"",
    "--set",
    "train.warmup_steps=2",
    "--set",
    "train.checkpoint_every=4",
    "--set",
    "adapter.dropout=0.1",
    "--max-steps",
    "10",
];

/// The steps of a run by [`SHORT`].
pub const SHORT_STEPS: u64 = 10;

/// A temporary folder in which the program runs, with its own cache.
pub struct Sandbox(tempfile::TempDir);

impl Sandbox {
    /// A folder whose cache has the official plugins compiled, which takes most of the time of a short command.
    pub fn new() -> Self {
        static CACHE: OnceLock<Sandbox> = OnceLock::new();
        let warm = CACHE.get_or_init(|| {
            let sandbox = Self::cold();
            sandbox.ok(["run", "--dry-run"]);
            sandbox
        });
        let sandbox = Self::cold();
        copy_tree(&warm.path("cache"), &sandbox.path("cache"));
        sandbox
    }

    /// A folder with nothing in it.
    pub fn cold() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, contents).unwrap();
        path
    }

    /// The names in the folder, without the cache.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(self.0.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|n| n != "cache");
        names.sort();
        names
    }

    /// The program, to run in the folder, with nothing of the tester's surroundings: without a card too, so that `auto` is the CPU everywhere.
    pub fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trainer"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("HOME", self.path("home")).env_remove("TRAINER_LOG");
        command.env("CUDA_VISIBLE_DEVICES", "");
        // The store of plugins, keys and credentials too are those below HOME.
        for name in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "DOCKER_CONFIG", "SSL_CERT_FILE"] {
            command.env_remove(name);
        }
        // Hubs are those that a test starts.
        for name in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "MODELSCOPE_CACHE", "MODELSCOPE_API_TOKEN"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", "http://127.0.0.1:9").env("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9");
        command
    }

    pub fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a command that must succeed, and gives its standard output.
    pub fn ok(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must succeed and print one JSON object and nothing else.
    pub fn json(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Value {
        let text = self.ok(args);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in {text}"));
        assert!(value.is_object(), "{text}");
        value
    }

    /// Runs a command that must fail in the way that errors do, and gives its standard error, in which the folder is `[DIR]`.
    pub fn fails(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
        self.neutral(&text)
    }

    /// The folders of this test and of the repository under neutral names.
    pub fn neutral(&self, text: &str) -> String {
        let real = self.0.path().canonicalize().unwrap();
        let text = text.replace(real.to_str().unwrap(), "[DIR]").replace(self.0.path().to_str().unwrap(), "[DIR]");
        text.replace(prebuilt("").to_str().unwrap().trim_end_matches('/'), "[PLUGINS]")
    }
}

/// Copies a folder with its permissions.
fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy_tree(&path, &target) } else { std::fs::copy(&path, &target).map(drop).unwrap() }
    }
}

/// What a command said, with its exit status, for messages of tests.
pub fn shown(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A component of the repository.
pub fn prebuilt(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/prebuilt").canonicalize().unwrap().join(file)
}

/// The reference data.
pub fn reference() -> PathBuf {
    trainer_test_support::reference().canonicalize().unwrap()
}

/// `run`, the short settings, and further arguments.
pub fn short<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["run"].iter().chain(&SHORT).chain(more).copied().collect()
}

/// What must be equal where two runs are equal: the adapter and the metrics, as bytes.
#[derive(PartialEq, Eq)]
pub struct Bytes {
    pub adapter: BTreeMap<String, Vec<u8>>,
    pub metrics: Vec<u8>,
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hash = |bytes: &[u8]| bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
        for (name, bytes) in &self.adapter {
            writeln!(f, "{name}: {} bytes, FNV {:016x}", bytes.len(), hash(bytes))?;
        }
        f.write_str(&String::from_utf8_lossy(&self.metrics))
    }
}

pub fn bytes(run: &Path) -> Bytes {
    let mut adapter = BTreeMap::new();
    for entry in std::fs::read_dir(run.join("adapter")).unwrap() {
        let path = entry.unwrap().path();
        adapter.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap());
    }
    assert!(adapter.contains_key("adapter_model.safetensors"), "{:?}", adapter.keys());
    Bytes { adapter, metrics: std::fs::read(run.join("metrics.jsonl")).unwrap() }
}

/// The lines of a run's `metrics.jsonl`.
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// A JSON file.
pub fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A run by [`SHORT`] that nothing disturbed, made once: what the other runs are compared with.
pub struct Baseline {
    _sandbox: Sandbox,
    pub dir: PathBuf,
    pub bytes: Bytes,
    pub metrics: Vec<Value>,
}

pub fn baseline() -> &'static Baseline {
    static MADE: OnceLock<Baseline> = OnceLock::new();
    MADE.get_or_init(|| {
        let sandbox = Sandbox::new();
        sandbox.ok(short(&["--out", "run"]));
        let dir = sandbox.path("run");
        let metrics = metrics(&dir);
        assert_eq!(metrics.len() as u64, SHORT_STEPS);
        Baseline { bytes: bytes(&dir), metrics, dir, _sandbox: sandbox }
    })
}

/// Looks until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Rows of an embedded data set, as their lines.
pub fn lines(data: &str, count: usize) -> Vec<String> {
    let file = trainer_nano::data(data).unwrap();
    let lines: Vec<String> = std::str::from_utf8(file.bytes).unwrap().lines().take(count).map(str::to_owned).collect();
    assert_eq!(lines.len(), count, "{data} is too short");
    lines
}
