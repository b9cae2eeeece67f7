//! What must not matter does not.

use crate::support::{Sandbox, baseline, bytes, metrics, short};

/// The same bytes under other settings.
fn same_bytes(more: &[&str]) {
    let sandbox = Sandbox::new();
    let mut args = short(more);
    args.extend(["--out", "run"]);
    sandbox.ok(args);
    assert_eq!(bytes(&sandbox.path("run")), baseline().bytes, "{more:?}");
}

/// The same losses to a relative 1e-5 under settings that add up in another order.
fn same_losses(more: &[&str]) {
    let sandbox = Sandbox::new();
    let mut args = short(more);
    args.extend(["--out", "run"]);
    sandbox.ok(args);
    let (here, there) = (metrics(&sandbox.path("run")), &baseline().metrics);
    assert_eq!(here.len(), there.len());
    for (a, b) in here.iter().zip(there) {
        for exact in ["step", "lr", "tokens", "target_weight"] {
            assert_eq!(a[exact], b[exact], "{exact}, {more:?}");
        }
        let (x, y) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        assert!((x - y).abs() <= 1e-5 * y, "{more:?}, step {}: {x} is not {y}", a["step"]);
    }
}

#[test]
fn again() {
    same_bytes(&[]);
}

#[test]
fn compute_threads() {
    same_bytes(&["--threads", "1"]);
    same_bytes(&["--threads", "2"]);
}

#[test]
fn data_workers() {
    same_bytes(&["--set", "data.workers=0"]);
    same_bytes(&["--set", "data.workers=3"]);
}

#[test]
fn recomputed_activations() {
    same_bytes(&["--set", "train.recompute=\"all\""]);
    same_bytes(&["--set", "train.recompute=\"none\""]);
}

#[test]
fn micro_batches() {
    // The baseline is 2 x 4.
    same_losses(&["--set", "train.batch=1", "--set", "train.accumulation=8"]);
    same_losses(&["--set", "train.batch=8", "--set", "train.accumulation=1"]);
}

#[test]
fn padding() {
    same_losses(&["--set", "data.packing=false"]);
}

#[test]
fn another_seed_does_matter() {
    let sandbox = Sandbox::new();
    sandbox.ok(short(&["--seed", "1", "--out", "run"]));
    assert_ne!(bytes(&sandbox.path("run")).metrics, baseline().bytes.metrics);
}
