//! The lock reads back, and tells what differs.

use serde_json::json;
use trainer_config::Recipe;

use super::*;

pub(crate) fn lock() -> Lock {
    let digest = |text: &str| sha256(text.as_bytes());
    Lock {
        version: VERSION,
        trainer: "0.1.0".into(),
        recipe: Recipe::default().identity(),
        model: ModelLock::new([("config.json".to_owned(), digest("c")), ("model.safetensors".to_owned(), digest("m"))].into()),
        tokenizer: digest("t"),
        adapter_from: None,
        data: vec![SourceLock { name: "math".into(), path: "builtin:math_train".into(), sha256: digest("d"), rows: Some(4000) }],
        eval_data: Some(SourceLock { name: "eval".into(), path: "builtin:math_test".into(), sha256: digest("e"), rows: Some(300) }),
        plugins: [(
            "math_mix".to_owned(),
            PluginLock {
                version: "0.1.0".into(),
                sha256: digest("p"),
                kinds: [("mixing-policy".to_owned(), "0.1.0".to_owned())].into(),
                grants: vec![],
                limits: json!({"memory": "64MiB"}),
                settings: [("mix".to_owned(), json!({}))].into(),
            },
        )]
        .into(),
        plan: PlanLock {
            micro_batch: 2,
            accumulation: 4,
            packing: true,
            max_tokens: 16384,
            recompute: vec![false; 4],
            weights: "nf4".into(),
            steps: 30,
            algorithms: [("attention".to_owned(), "blocked".to_owned())].into(),
            memory: Some(PlanChoice {
                max_tokens: 16384,
                packed: 2048,
                packed_weights: false,
                keep: vec![trainer_engine::Keep::All; 4],
                offload: false,
                loss_rows: 1024,
            }),
            products: ProductsLock::new(vec![("a product".to_owned(), "1:07".to_owned())]),
        },
        machine: MachineLock {
            backend: "cpu".into(),
            device: None,
            compute_capability: None,
            architecture: "x86_64".into(),
            features: vec!["avx2".into(), "fma".into()],
        },
        libraries: libraries(),
        recorded: Recorded { threads: 2, workers: 1, ..Recorded::default() },
    }
}

#[test]
fn a_saved_lock_reads_back_and_differs_in_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock.json");
    lock().save(&path).unwrap();
    let read = Lock::load(&path).unwrap();
    assert_eq!(read, lock());
    assert_eq!(read.differences(&lock()).unwrap(), []);
    assert_eq!(read.digest().unwrap(), lock().digest().unwrap());
}

#[test]
fn a_lock_without_what_is_new_in_the_plan_is_the_same_lock() {
    let mut old = lock();
    (old.plan.memory, old.plan.products) = (None, ProductsLock::default());
    let text = old.to_json().unwrap();
    assert!(!text.contains("products") && !text.contains("loss_rows"), "{text}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock.json");
    std::fs::write(&path, text).unwrap();
    let read = Lock::load(&path).unwrap();
    assert_eq!(read, old);
    assert_eq!(read.digest().unwrap(), lock().digest().unwrap());
    read.check(&lock()).unwrap();
}

#[test]
fn algorithms_of_products_come_back_by_problem() {
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    let choices = vec![pair("1x1", "9:b"), pair("2x2", "9:a"), pair("3x3", "9:b")];
    let products = ProductsLock::new(choices.clone());
    assert_eq!(products.algorithms, ["9:a", "9:b"]);
    assert_eq!(products.choices().unwrap(), choices);
    assert!(ProductsLock::new(vec![]).is_empty());
    let mut broken = products;
    broken.algorithms.pop();
    assert_eq!(broken.choices(), None);
}

#[test]
fn what_does_not_matter_is_not_compared() {
    let mut now = lock();
    now.recorded = Recorded {
        started: "2027".into(),
        threads: 64,
        workers: 9,
        model: "/elsewhere".into(),
        device: "other".into(),
        driver: Some("999".into()),
        hub: [("hf://a/b".to_owned(), "hf://a/b@1".to_owned())].into(),
    };
    now.data[0].path = "/elsewhere/rows.jsonl".into();
    now.eval_data.as_mut().unwrap().path = "/elsewhere/test.jsonl".into();
    let mut recipe = Recipe::default();
    recipe.output.dir = Some("elsewhere".into());
    recipe.device.threads = trainer_config::Count::Exactly(7);
    recipe.data.workers = trainer_config::Count::Exactly(3);
    recipe.data.sources[0].path = trainer_config::DataPath::Path("copy.jsonl".into());
    recipe.train.checkpoint_every = 5;
    let here = trainer_config::Plugin { path: Some("elsewhere/math_mix.wasm".into()), ..Default::default() };
    recipe.plugins.insert(trainer_config::PluginName::new("math_mix"), here);
    now.recipe = recipe.identity();
    assert_eq!(lock().differences(&now).unwrap(), []);
    assert_eq!(lock().digest().unwrap(), now.digest().unwrap());
}

#[test]
fn each_difference_is_named_with_both_values_and_what_to_do() {
    let mut now = lock();
    let mut recipe = Recipe::default();
    recipe.train.learning_rate = 1e-3;
    now.recipe = recipe.identity();
    now.plan.recompute[2] = true;
    now.plan.micro_batch = 8;
    now.machine.features.push("avx512f".into());
    now.plugins.insert("sharegpt".into(), PluginLock { grants: vec!["clock".into()], ..now.plugins["math_mix"].clone() });
    now.eval_data = None;
    let error = lock().check(&now).unwrap_err();
    assert!(!lock().digest().unwrap().eq(&now.digest().unwrap()));
    let text = error.to_string();
    let shortened: Vec<_> = text.lines().map(|l| if l.len() > 150 { &l[..60] } else { l }).collect();
    insta::assert_snapshot!(shortened.join("\n"), @r#"
    the run differs from the lock in 6 places:
      eval_data: locked {"name":"eval","rows":300,"sha256":"3f79
      machine.features[2]: locked absent, now "avx512f" (the same bytes need the same kind of machine)
      plan.micro_batch: locked 2, now 8 (the plan of a locked run is only taken over where everything else is equal)
      plan.recompute[2]: locked false, now true (the plan of a locked run is only taken over where everything else is equal)
      plugins.sharegpt: locked absent, now {"grants":["clock"],"
      recipe.train.learning_rate: locked 0.002, now 0.001 (set it as it was locked)
    make them equal, or run without --locked
    "#);
}

#[test]
fn every_compared_field_matters() {
    // Changing any leaf outside of what is recorded or a path must show as exactly one difference.
    fn leaves(value: &Value, pointer: String, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(k, v)| leaves(v, format!("{pointer}/{}", k.replace('~', "~0").replace('/', "~1")), out))
            }
            Value::Array(items) => items.iter().enumerate().for_each(|(i, v)| leaves(v, format!("{pointer}/{i}"), out)),
            _ => out.push(pointer),
        }
    }
    let value = serde_json::to_value(lock()).unwrap();
    let mut pointers = Vec::new();
    leaves(&value, String::new(), &mut pointers);
    let compared: Vec<_> = pointers
        .into_iter()
        .filter(|p| {
            !["/recorded", "/plan/products", "/plan/memory"].iter().any(|n| p.starts_with(n))
                && !["/data/0/path", "/eval_data/path"].contains(&p.as_str())
        })
        .collect();
    assert!(compared.len() > 60, "only {}", compared.len());
    for pointer in compared {
        let mut changed = value.clone();
        let leaf = changed.pointer_mut(&pointer).unwrap();
        *leaf = match leaf.clone() {
            Value::String(s) => Value::from(s + "x"),
            Value::Number(n) if n.is_f64() => Value::from(n.as_f64().unwrap() + 1.0),
            Value::Number(n) => Value::from(n.as_u64().unwrap() + 1),
            Value::Bool(b) => Value::from(!b),
            // `adapter_from` and `machine.device` are null here.
            _ if pointer == "/adapter_from" => json!({"adapter.safetensors": "x"}),
            _ => Value::from("x"),
        };
        let changed: Lock = serde_json::from_value(changed).unwrap();
        assert_eq!(lock().differences(&changed).unwrap().len(), 1, "{pointer}");
    }
}

#[test]
fn other_files_and_versions_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock.json");
    let message = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Lock::load(&path).unwrap_err().to_string().replace(path.to_str().unwrap(), "FILE")
    };
    insta::assert_snapshot!(message(r#"{"version": 9, "new": 1}"#), @"FILE has version 9 of the lock format, but this program reads version 1; use the program that wrote it");
    insta::assert_snapshot!(message("{"), @"FILE is not a lock file: EOF while parsing an object at line 1 column 1");
    let extra = lock().to_json().unwrap().replacen('{', "{\"surprise\": 1,", 1);
    assert!(message(&extra).contains("unknown field `surprise`"));
}

#[test]
fn the_versions_that_decide_bits_are_known() {
    let libraries = libraries();
    for name in ["gemm", "tokenizers", "wasmtime", "rustc", "safetensors"] {
        assert!(libraries.get(name).is_some_and(|v| v.contains('.')), "{name}: {libraries:?}");
    }
}
