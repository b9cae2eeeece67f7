//! `--dry-run`: what a run would be.

use crate::support::Sandbox;

#[test]
fn prints_a_recipe_that_gives_itself() {
    let sandbox = Sandbox::new();
    let first = sandbox.ok(["run", "--dry-run", "--plugin", "math_mix.wasm", "--seed", "7", "--set", "adapter.r=8"]);
    assert_eq!(sandbox.names(), [""; 0], "a dry run writes nothing");
    assert!(first.contains("seed = 7\n") && first.contains("r = 8\n"), "{first}");
    sandbox.write("recipe.toml", &first);
    let second = sandbox.ok(["run", "recipe.toml", "--dry-run"]);
    assert_eq!(second, first);
    assert_eq!(sandbox.names(), ["recipe.toml"]);
}

#[test]
fn prints_the_plan() {
    let sandbox = Sandbox::new();
    let text = sandbox.ok(["run", "--dry-run"]);
    let plan = text.split_once("# plan\n").unwrap().1;
    insta::with_settings!({filters => vec![(r"[0-9a-f]{64}", "[DIGEST]"), (r"[0-9.]+ [KMG]iB", "[SIZE]")]}, {
        insta::assert_snapshot!(plan, @r#"
        #   steps           30
        #   samples a step  2 x 4
        #   packing         without padding
        #   frozen weights  nf4 (double-quantized), unpacked to f32
        #   recompute       0 of 6 layers
        #   memory          [SIZE] at the most, for micro-batches of 8192 tokens
        #     adapter                [SIZE]
        #     adapter gradients      [SIZE]
        #     backward scratch       [SIZE]
        #     embedding and head     [SIZE]
        #     frozen projections     [SIZE]
        #     kept activations       [SIZE]
        #     layer inputs           [SIZE]
        #     norms and biases       [SIZE]
        #     optimizer states       [SIZE]
        #   lock digest     [DIGEST]
        "#);
    });
}

#[test]
fn as_json() {
    let sandbox = Sandbox::new();
    let json = sandbox.json(["run", "--dry-run", "--max-steps", "12", "--json"]);
    assert_eq!(json["plan"]["steps"], 12);
    assert_eq!(json["recipe"]["train"]["max_steps"], 12);
    let parts: u64 = json["memory"].as_object().map_or_else(
        || json["memory"].as_array().unwrap().iter().map(|p| p[1].as_u64().unwrap()).sum(),
        |m| m.values().map(|v| v.as_u64().unwrap()).sum(),
    );
    assert_eq!(json["memory_total"], parts);
    // The same question has the same answer, another seed another.
    let digest = |args: &[&str]| sandbox.json(args)["lock_digest"].clone();
    assert_eq!(digest(&["run", "--dry-run", "--max-steps", "12", "--json", "-"]), json["lock_digest"]);
    assert_ne!(digest(&["run", "--dry-run", "--max-steps", "12", "--seed", "1", "--json", "-"]), json["lock_digest"]);
    assert_eq!(sandbox.names(), [""; 0]);
}

#[test]
fn does_not_go_with_resuming() {
    let sandbox = Sandbox::new();
    for extra in [["--dry-run"].as_slice(), &["--max-steps", "60"], &["--set", "train.seed=1"], &["--plugin", "math_mix"]] {
        let mut args = vec!["run", "--resume", "run"];
        args.extend(extra);
        let output = sandbox.run(args);
        assert_eq!(output.status.code(), Some(2), "{extra:?} is refused as a wrong use, not ignored");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be used with"), "{extra:?}");
    }
}
