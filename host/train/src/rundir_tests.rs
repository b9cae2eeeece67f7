//! The run directory: whole or absent, for one process at a time.

use super::*;
use crate::lock::tests::lock;

fn create(root: &Path) -> Result<RunDir, RunDirError> {
    RunDir::create(root, "[train]\n", &lock())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_run_has_its_recipe_and_lock_and_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("deep/er/run");
    let run = create(&root).unwrap();
    assert_eq!(names(&root), ["lock.json", "recipe.toml", "run.lock"]);
    assert_eq!(names(root.parent().unwrap()), ["run"]);
    assert_eq!(run.lock().unwrap(), lock());
    assert!(run.is_held());
    assert!(RunDir::view(&root).is_ok());

    let message = RunDir::open(&root).unwrap_err().to_string();
    assert_eq!(message, format!("{} is in use by process {}; wait until it ends, or stop it", root.display(), std::process::id()));
    drop(run);
    assert!(RunDir::open(&root).unwrap().is_held());
}

#[test]
fn only_free_places_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let message = |root: &Path| create(root).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR");
    let path = |name: &str| dir.path().join(name);

    fs::create_dir(path("empty")).unwrap();
    assert!(create(&path("empty")).is_ok());
    insta::assert_snapshot!(message(&path("empty")), @"DIR/empty already holds a run; choose another folder with --out, or continue a run with --resume");
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/thesis.tex"), "mine").unwrap();
    insta::assert_snapshot!(message(&path("foreign")), @"DIR/foreign is not empty; choose another folder with --out, or continue a run with --resume");
    assert_eq!(names(&path("foreign")), ["thesis.tex"]);
    fs::write(path("file"), "mine").unwrap();
    insta::assert_snapshot!(message(&path("file")), @"DIR/file exists and is no folder; choose another folder with --out, or continue a run with --resume");
    let error = RunDir::open(&path("foreign")).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR");
    insta::assert_snapshot!(error, @"DIR/foreign is not a run directory: it has no recipe.toml");
}

/// A disk that refuses after so many operations.
struct Full(std::cell::Cell<usize>);

impl Full {
    fn take(&self) -> std::io::Result<()> {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        if left == 0 { Err(std::io::Error::other("full")) } else { Ok(()) }
    }
}

impl Storage for Full {
    fn create_dir(&self, path: &Path) -> std::io::Result<()> {
        self.take().and_then(|()| Disk.create_dir(path))
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        self.take().and_then(|()| Disk.write(path, bytes))
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.take().and_then(|()| Disk.rename(from, to))
    }
    fn sync_dir(&self, path: &Path) -> std::io::Result<()> {
        self.take().and_then(|()| Disk.sync_dir(path))
    }
    fn remove_dir(&self, path: &Path) -> std::io::Result<()> {
        self.take().and_then(|()| Disk.remove_dir(path))
    }
    fn remove_file(&self, path: &Path) -> std::io::Result<()> {
        self.take().and_then(|()| Disk.remove_file(path))
    }
}

#[test]
fn a_run_directory_is_never_half_there() {
    for operations in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("run");
        let made = RunDir::create_in(&Full(std::cell::Cell::new(operations)), &root, "[train]\n", &lock());
        if root.exists() {
            assert_eq!(RunDir::view(&root).unwrap().lock().unwrap(), lock());
        }
        if made.is_ok() {
            assert!(operations >= 6, "only {operations} operations");
            return;
        }
        drop(made);
        // What is left does not stand in the way.
        if !root.exists() {
            create(&root).unwrap();
        }
    }
}

#[test]
fn folders_are_replaced_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let run = create(&dir.path().join("run")).unwrap();
    let fill = |text: &'static str, file: &'static str| {
        move |dir: &Path| {
            fs::create_dir(dir.join("sub"))
                .and_then(|()| fs::write(dir.join("sub").join(file), text))
                .map_err(FileError::at("write", dir))
                .map_err(RunDirError::File)
        }
    };
    run.install("adapter", fill("one", "a")).unwrap();
    run.install("adapter", fill("two", "b")).unwrap();
    assert_eq!(names(&run.adapter_path().join("sub")), ["b"]);
    // A failure leaves the old one.
    let failed = run.install("adapter", |_| Err(RunDirError::NotARun { path: "x".into(), missing: "y" }));
    assert!(failed.is_err());
    assert_eq!(names(&run.adapter_path().join("sub")), ["b"]);
    run.write("eval/before.json", b"{}").unwrap();
    assert_eq!(names(&run.eval_path()), ["before.json"]);
}

#[test]
fn opening_cleans_up_after_a_killed_process() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("run");
    let run = create(&root).unwrap();
    drop(run);
    fs::create_dir(root.join(".adapter.tmp")).unwrap();
    fs::write(root.join(".lock.json.tmp"), "half").unwrap();
    // Between the two renames of a replacement.
    fs::create_dir(root.join(".adapter.old")).unwrap();
    fs::write(root.join(".adapter.old/weights"), "kept").unwrap();
    fs::write(root.join(".mine"), "kept").unwrap();
    let run = RunDir::open(&root).unwrap();
    assert_eq!(names(&root), [".mine", "adapter", "lock.json", "recipe.toml", "run.lock"]);
    assert_eq!(names(&run.adapter_path()), ["weights"]);
}

#[test]
fn default_names_hold_date_and_plugin_and_do_not_collide() {
    assert_eq!(stamp(0), "1970-01-01T00-00-00");
    assert_eq!(stamp(951_782_400), "2000-02-29T00-00-00");
    assert_eq!(stamp(1_798_761_599), "2026-12-31T23-59-59");
    assert_eq!(stamp(4_107_542_400), "2100-03-01T00-00-00");
    let at = UNIX_EPOCH + std::time::Duration::from_secs(1_798_761_599);
    assert_eq!(default_path("math_mix", at), Path::new("runs/2026-12-31T23-59-59-math_mix"));
}
