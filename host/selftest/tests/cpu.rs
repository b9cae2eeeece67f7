//! The CPU backend passes; wrong reference data does not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_selftest::{Check, GROUPS, SelftestError, run};

fn reference() -> PathBuf {
    std::env::var_os("TRAINER_REFERENCE").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference"), PathBuf::from)
}

fn checks(root: &Path, groups: &[&str]) -> Result<Vec<Check>, SelftestError> {
    let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
    run(Arc::new(Cpu::new(CpuOptions { threads: 2 }).unwrap()), root, &groups, &mut |_| {})
}

#[test]
fn reference_every_group_passes_on_the_cpu() {
    let all = checks(&reference(), &[]).unwrap();
    for group in GROUPS {
        assert!(all.iter().any(|c| c.group == *group), "{group} compared nothing");
    }
    let failed: Vec<&Check> = all.iter().filter(|c| !c.pass).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), all.len());
}

#[test]
fn reference_other_values_fail() {
    // The files of one model under the name of another: same shapes, other values.
    let folder = tempfile::tempdir().unwrap();
    let link = |from: &str, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(reference().canonicalize().unwrap().join(from), to).unwrap();
    };
    std::fs::create_dir(folder.path().join("quant")).unwrap();
    link("model/nf4", "model/a");
    link("model/tied_f32_goldens", "model/a_goldens");
    for group in ["ref-lora", "ref-greedy"] {
        let all = checks(folder.path(), &[group]).unwrap();
        let failed = all.iter().filter(|c| !c.pass).count();
        assert!(failed * 2 > all.len(), "{group}: only {failed} of {} failed", all.len());
    }
    let error = checks(folder.path(), &["ref-nf4"]).unwrap_err().to_string();
    assert!(error.contains("nf4.safetensors"), "{error}");
}

#[test]
fn what_is_not_reference_data_or_no_group_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let error = checks(folder.path(), &[]).unwrap_err().to_string();
    assert!(error.contains("`model` and `quant`"), "{error}");
    let error = checks(&reference(), &["norm"]).unwrap_err().to_string();
    assert!(error.contains("no reference checks called norm") && error.contains("ref-curves"), "{error}");
}
