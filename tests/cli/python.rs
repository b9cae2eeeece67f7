//! Programs from PyPI, installed into a folder of the build: for tests of `.ci/full`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A Python with packages, made once.
pub fn python(name: &str, packages: &[&str]) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap_or_else(|e| e.into_inner());
    // One that is there already, for quicker work on these tests.
    if let Some(python) = std::env::var_os(format!("TRAINER_PYTHON_{}", name.replace('-', "_").to_uppercase())) {
        return python.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("venv-{name}"));
    let (python, done) = (folder.join("bin/python"), folder.join("installed"));
    if std::fs::read_to_string(&done).unwrap_or_default() != packages.join(" ") {
        let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages));
        std::fs::write(done, packages.join(" ")).unwrap();
    }
    python
}

/// A script beside these tests.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cli").join(name)
}

/// Runs a command that must succeed, and gives what it said.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}
