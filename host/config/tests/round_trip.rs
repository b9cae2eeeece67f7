//! A recipe that is written reads back as the same recipe, and the documentation is that of the definitions.

use std::collections::BTreeMap;

use proptest::prelude::*;
use trainer_config::*;
use trainer_hub::{HubKind, RepoRef};

fn settings() -> impl Strategy<Value = Settings> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_filter("JSON has only finite numbers", |x| x.is_finite()).prop_map(serde_json::Value::from),
        ".{0,12}".prop_map(serde_json::Value::from),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
        ]
    });
    prop::collection::btree_map(".{0,8}", value, 0..4).prop_map(|m| m.into_iter().collect())
}

fn positive() -> impl Strategy<Value = f64> {
    any::<f64>().prop_map(f64::abs).prop_filter("positive and finite", |x| x.is_finite() && *x > 0.0)
}

fn one_of<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    prop::sample::select(all.to_vec())
}

fn count(low: usize) -> impl Strategy<Value = Count> {
    prop_oneof![Just(Count::Auto), (low..1000).prop_map(Count::Exactly)]
}

fn path() -> impl Strategy<Value = String> {
    "[^\\x00]{1,20}".prop_filter("not a name of its own", |p| {
        p != "nano" && !p.starts_with("builtin:") && !RepoRef::has_scheme(p) && RepoRef::model(p, HubKind::HuggingFace).is_err()
    })
}

fn data_path() -> impl Strategy<Value = DataPath> {
    prop_oneof![
        prop::sample::select(DataPath::BUILTIN.to_vec()).prop_map(|n| DataPath::Builtin(n.to_owned())),
        "hf://datasets/[a-z]{1,5}/[a-z]{1,5}(@v1)?(\\?split=[a-z]{1,5})?".prop_map(|n| DataPath::Hub(RepoRef::parse(&n).unwrap())),
        path().prop_map(|p| DataPath::Path(p.into()))
    ]
}

fn device() -> impl Strategy<Value = Device> {
    let backend = prop_oneof![Just(DeviceBackend::Auto), Just(DeviceBackend::Cpu), (0..10_000usize).prop_map(DeviceBackend::Cuda)];
    (backend, count(1), one_of(DevicePlan::ALL), 0.0..1024.0f64).prop_map(|(backend, threads, plan, memory_limit)| Device {
        backend,
        threads,
        plan,
        memory_limit,
    })
}

fn track() -> impl Strategy<Value = Track> {
    let name = prop::option::of("[^\\p{C}\\s]{1,20}");
    (prop::sample::subsequence(Tracker::ALL.to_vec(), 0..=3), name).prop_map(|(report_to, name)| Track {
        report_to,
        name,
        mlflow_uri: Some("https://mlflow.example:8443/base".to_owned()),
        ..Track::default()
    })
}

fn adapter() -> impl Strategy<Value = Adapter> {
    let shape = (1..65_536u32, positive(), 0.0..1.0f64, one_of(Bias::ALL), any::<bool>());
    let rest = (
        prop::sample::subsequence(Target::ALL.to_vec(), 1..=7),
        prop::collection::btree_map(".{1,8}", 1..100u32, 0..3),
        prop::collection::btree_map(".{1,8}", positive(), 0..3),
        prop::option::of(path()),
    );
    (shape, rest).prop_map(|((r, alpha, dropout, bias, rslora), (targets, rank_pattern, alpha_pattern, from))| Adapter {
        r,
        alpha,
        dropout,
        bias,
        rslora,
        targets,
        rank_pattern,
        alpha_pattern,
        from: from.map(Into::into),
    })
}

/// A source's settings about its rows.
fn rows() -> impl Strategy<Value = Source> {
    let scalars = || {
        let one = prop_oneof![
            any::<bool>().prop_map(serde_json::Value::from),
            "[a-z]{0,4}".prop_map(serde_json::Value::from),
            any::<i64>().prop_map(serde_json::Value::from)
        ];
        prop::collection::vec(one, 0..3).prop_map(Scalars)
    };
    let filter = ("[a-z/]{1,5}", scalars(), scalars(), prop::option::of(-1e6..1e6f64), prop::option::of(0..9u64), any::<bool>());
    let filter = filter.prop_map(|(column, is, is_not, min, max_length, present)| Filter {
        column,
        is,
        is_not,
        min,
        max_length,
        present: Some(present),
        ..Filter::default()
    });
    let columns = prop::collection::btree_map("[a-z]{1,4}", "[a-z/]{1,4}", 0..3);
    (prop::collection::vec(filter, 0..3), columns, prop::option::of(1..99u64), positive(), 0.01..1.0f64, any::<bool>(), 0..9u32).prop_map(
        |(filter, columns, limit, weight, holdout, shuffle, shuffle_window)| Source {
            filter,
            columns,
            limit,
            weight,
            holdout,
            holdout_by: limit.map(|_| "a".to_owned()),
            shuffle,
            shuffle_window,
            ..Source::default()
        },
    )
}

fn data() -> impl Strategy<Value = Data> {
    let source = (
        ".{1,8}".prop_filter("printable", |n| !n.chars().any(char::is_control)),
        data_path(),
        one_of(SourceFormat::ALL),
        settings(),
        rows(),
    );
    let sources = prop::collection::vec(source, 1..4).prop_map(|sources| {
        let named = sources.into_iter().enumerate();
        named
            .map(|(i, (name, path, format, settings, rows))| Source {
                name: format!("{i}{name}"),
                path,
                format,
                formatter: PluginName::new("sharegpt"),
                settings,
                ..rows
            })
            .collect::<Vec<_>>()
    });
    let longer = (one_of(TooLong::ALL), one_of(TruncationSide::ALL), one_of(DataCache::ALL));
    (one_of(TrainOn::ALL), 2..1_000_000usize, longer, any::<bool>(), 0..i64::MAX as u64, count(0), sources).prop_map(
        |(train_on, max_seq_length, (too_long, truncation_side, cache), packing, max_bad_rows, workers, sources)| Data {
            train_on,
            max_seq_length,
            too_long,
            truncation_side,
            packing,
            max_bad_rows,
            workers,
            cache,
            sources,
            ..Data::default()
        },
    )
}

fn train() -> impl Strategy<Value = Train> {
    let length = prop_oneof![(1000..i64::MAX as u64).prop_map(|n| (Some(n), None)), positive().prop_map(|e| (None, Some(e)))];
    let numbers = (positive(), positive(), 0.0..1.0f64, 0.0..1.0f64, positive());
    let names = (one_of(Schedule::ALL), one_of(Optimizer::ALL), one_of(Recompute::ALL), one_of(Precision::ALL));
    (length, numbers, names, 0..i64::MAX as u64, 0..1000u64, 1..100usize).prop_map(
        |(
            (max_steps, epochs),
            (learning_rate, weight_decay, b1, b2, eps),
            (schedule, optimizer, recompute, precision),
            seed,
            warmup_steps,
            batch,
        )| {
            Train {
                max_steps,
                epochs,
                learning_rate,
                weight_decay,
                betas: [b1, b2],
                eps,
                schedule,
                optimizer,
                recompute,
                precision,
                seed,
                warmup_steps,
                batch,
                ..Train::default()
            }
        },
    )
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let thinking = prop_oneof![Just(Thinking::Template), any::<bool>().prop_map(Thinking::Given)];
    let limits = prop::collection::btree_map("[a-z_]{1,8}", 0..i64::MAX, 0..3);
    let plugin = (prop::option::of(path()), prop::option::of("[0-9a-f]{64}"), settings(), limits, any::<bool>()).prop_map(
        |(path, sha256, settings, limits, isolated)| Plugin {
            path: path.map(Into::into),
            sha256,
            settings,
            limits: limits.into_iter().map(|(k, v)| (k, v.into())).collect(),
            grants: vec!["http=https://api.example.com".to_owned()],
            secrets: [("KEY".to_owned(), "env:SOME_KEY".to_owned())].into(),
            isolated,
        },
    );
    let model = prop_oneof![
        Just(ModelSource::Nano),
        "(hf|ms)://[a-z]{1,5}/[a-zA-Z0-9.]{0,5}x(@refs/pr/1)?"
            .prop_filter_map("no name", |n| RepoRef::parse(&n).ok().map(ModelSource::Hub)),
        path().prop_map(|p| ModelSource::Folder(p.into()))
    ];
    let first = (adapter(), data(), train(), prop::option::of(plugin), settings());
    (first, model, one_of(Quantization::ALL), thinking, ".{0,30}", prop::option::of(path()), data_path(), settings(), (device(), track()))
        .prop_map(
            |(
                (adapter, data, train, plugin, mix),
                source,
                quantization,
                enable_thinking,
                prompt,
                dir,
                eval_data,
                metric,
                (device, track),
            )| Recipe {
                model: Model { source, quantization },
                adapter,
                data,
                train,
                mix: Mix { settings: mix, ..Mix::default() },
                eval: Eval {
                    data: eval_data,
                    enable_thinking,
                    settings: BTreeMap::from([(PluginName::new("boxed_answer"), metric)]),
                    ..Eval::default()
                },
                sample: Sample { prompt, enable_thinking, ..Sample::default() },
                plugins: plugin.into_iter().map(|p| (PluginName::new("math_mix"), p)).collect(),
                output: Output { dir: dir.map(Into::into) },
                track,
                device,
                ..Recipe::default()
            },
        )
}

proptest! {
    #[test]
    fn a_written_recipe_reads_back_the_same(recipe in recipe()) {
        let text = recipe.to_toml().unwrap();
        let read = Recipe::parse(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&read, &recipe);
        // The order of keys in settings does not reach the text.
        prop_assert_eq!(read.to_toml().unwrap(), text);
        prop_assert_eq!(read.identity(), recipe.identity());
    }

    #[test]
    fn no_text_makes_reading_panic(text in "(\\[\\[?[a-z.]{0,12}\\]?\\]|[a-z_.]{1,12} = ([0-9.e-]{1,8}|\"[^\"]{0,5}\"|\\[.{0,5}\\]|\\{.{0,8}\\})|.{0,12}|\n){0,12}") {
        let _ = Recipe::parse(&text);
    }

    #[test]
    fn no_flag_makes_reading_panic(key in "[a-z.\"0-9]{0,20}", value in ".{0,12}") {
        if let Ok(flag) = Override::parse(&format!("{key}={value}")) {
            let _ = Recipe::default_with(&[flag]);
        }
    }
}

#[test]
fn an_empty_file_is_the_main_job() {
    let recipe = Recipe::parse("").unwrap();
    assert_eq!(recipe, Recipe::default());
    assert_eq!(recipe.length(), Length::Steps(30));
    assert_eq!(recipe.samples_per_step(), 8);
    let names: Vec<_> = recipe.plugin_names().into_iter().map(|n| n.to_string()).collect();
    assert_eq!(names, ["boxed_answer", "math_mix", "qwen3_chat", "sharegpt"]);
}

#[test]
fn the_resolved_main_job_is_this_text() {
    insta::assert_snapshot!(Recipe::default().to_toml().unwrap(), @r#"
    [model]
    source = "nano"
    quantization = "nf4"

    [adapter]
    r = 32
    alpha = 32.0
    dropout = 0.0
    bias = "none"
    rslora = false
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

    [adapter.rank_pattern]

    [adapter.alpha_pattern]

    [data]
    train_on = "assistant"
    max_seq_length = 8192
    too_long = "error"
    truncation_side = "right"
    packing = true
    special_tokens = "plain"
    max_bad_rows = 0
    workers = "auto"
    cache = "auto"

    [[data.sources]]
    name = "math"
    path = "builtin:math_train"
    format = "auto"
    filter = []
    weight = 1.0
    holdout = 0.0
    shuffle = true
    shuffle_window = 0
    formatter = "math_mix"

    [data.sources.columns]

    [data.sources.settings]

    [[data.sources]]
    name = "chat"
    path = "builtin:chat_train"
    format = "auto"
    filter = []
    weight = 1.0
    holdout = 0.0
    shuffle = true
    shuffle_window = 0
    formatter = "sharegpt"

    [data.sources.columns]

    [data.sources.settings]

    [mix]
    plugin = "math_mix"
    feedback_lag = 0

    [mix.settings]

    [template]
    plugin = "qwen3_chat"
    prompts = "plugin"

    [template.settings]

    [train]
    batch = 2
    accumulation = 4
    max_steps = 30
    warmup_steps = 5
    learning_rate = 0.002
    schedule = "linear"
    optimizer = "adamw_8bit"
    weight_decay = 0.01
    betas = [0.9, 0.999]
    eps = 0.00000001
    max_grad_norm = 1.0
    seed = 3407
    recompute = "auto"
    precision = "bf16"
    checkpoint_every = 0
    keep_checkpoints = 2

    [eval]
    data = "builtin:math_test"
    format = "auto"
    metrics = ["boxed_answer"]
    before = true
    after = true
    every = 0
    batch = 128
    max_new_tokens = 256
    temperature = 0.0
    top_k = 0
    top_p = 1.0
    min_p = 0.0
    repetition_penalty = 1.0
    enable_thinking = "template"
    tools = []
    max_turns = 8
    max_calls = 32
    max_context = 4096

    [eval.settings]

    [eval.early_stopping]
    patience = 3
    min_delta = 0.0
    mode = "auto"

    [eval.best]
    mode = "auto"

    [sample]
    every = 0
    prompt = "Solve for x: 4(x + 2) + 9 = 37."
    max_new_tokens = 256
    temperature = 0.7
    top_k = 20
    top_p = 0.8
    min_p = 0.0
    repetition_penalty = 1.0
    enable_thinking = false

    [plugins]

    [output]

    [track]
    report_to = []
    project = "trainer"

    [device]
    backend = "auto"
    threads = "auto"
    plan = "auto"
    memory_limit = 0.0
    "#);
}

#[test]
fn settings_merge_key_by_key() {
    let recipe = Recipe::parse("[plugins.math_mix.settings]\nb = 1\na = { x = 1 }\n[mix.settings]\na = { y = 2 }\nc = 3\n").unwrap();
    let merged = recipe.settings_of(&recipe.mix.plugin, &recipe.mix.settings);
    assert_eq!(serde_json::to_string(&merged).unwrap(), r#"{"a":{"y":2},"b":1,"c":3}"#);
}

#[test]
fn identity_forgets_what_must_not_matter() {
    let same = Recipe::parse(
        "[output]\ndir = \"x\"\n[device]\nbackend = \"cuda:1\"\nthreads = 3\nplan = \"smallest\"\nmemory_limit = 22.5\n[data]\nworkers = 2\n[train]\ncheckpoint_every = 4\nkeep_checkpoints = 9\n[sample]\nprompt = \"\"\n[model]\nsource = \"/m\"\n[plugins.math_mix]\npath = \"/p.wasm\"\n",
    )
    .unwrap();
    let mut bare = Recipe::default();
    bare.plugins.insert(PluginName::new("math_mix"), Plugin::default());
    assert_eq!(same.identity(), bare.identity());
    let limited = |text: &str| Recipe::parse(&format!("[plugins.math_mix.limits]\n{text}\n")).unwrap().identity();
    assert_eq!(limited("deadline = \"1s\""), bare.identity());
    assert_ne!(limited("memory = \"1MiB\""), bare.identity());
    let other = Recipe::parse("[train]\nseed = 1\n").unwrap();
    assert_ne!(other.identity(), Recipe::default().identity());
}

#[test]
fn docs_are_those_of_the_definitions() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/recipe.md");
    let now = markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, &now).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == now, "docs/src/recipe.md is stale: UPDATE_DOCS=1 cargo test --release -p trainer-config docs");
}
