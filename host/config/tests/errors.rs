//! What a user sees for a wrong recipe.

use std::path::Path;

use trainer_config::{ConfigError, Count, DataPath, DeviceBackend, Length, ModelSource, Override, Recipe};

fn errors(text: &str) -> String {
    Recipe::parse_with("recipe.toml", text, None, &[]).expect_err("the recipe is wrong").to_string()
}

fn with(text: &str, flags: &[&str]) -> Result<Recipe, ConfigError> {
    let overrides: Result<Vec<_>, _> = flags.iter().map(|f| Override::parse(f)).collect();
    Recipe::parse_with("recipe.toml", text, None, &overrides?)
}

fn flag_error(text: &str, flags: &[&str]) -> String {
    with(text, flags).expect_err("the flags are wrong").to_string()
}

#[test]
fn unknown_keys_name_the_nearest() {
    insta::assert_snapshot!(errors("[train]\nlearning_rat = 1e-4\n\n[trian]\nbatch = 2\n"), @"
    recipe.toml:2:1: train.learning_rat: unknown key
      help: did you mean `learning_rate`?
    recipe.toml:4:2: trian: unknown key
      help: did you mean `train`?
    2 problems in the recipe
    ");
    insta::assert_snapshot!(errors("[output]\nzzz = 1\n"), @"
    recipe.toml:2:1: output.zzz: unknown key
      help: known here: dir
    ");
}

#[test]
fn wrong_types_name_both() {
    insta::assert_snapshot!(errors("train = 3\nmodel.quantization = 4\n[data]\npacking = \"yes\"\nworkers = \"many\"\nsources = \"rows.jsonl\"\n[adapter]\nr = 3.5\ntargets = [\"q_proj\", 1]\n"), @r#"
    recipe.toml:1:9: train: expected a table, found an integer
    recipe.toml:2:22: model.quantization: expected one of "nf4", "none", "as-stored", found an integer
    recipe.toml:4:11: data.packing: expected true or false, found a string
    recipe.toml:5:11: data.workers: expected "auto" or an integer, not "many"
    recipe.toml:6:11: data.sources: expected an array, found a string
    recipe.toml:8:5: adapter.r: expected an integer, found a float
    recipe.toml:9:22: adapter.targets[1]: expected one of "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", found an integer
    7 problems in the recipe
    "#);
}

#[test]
fn values_out_of_range_say_what_is_allowed() {
    insta::assert_snapshot!(errors("[adapter]\nr = 0\ndropout = 1.0\nalpha = nan\ntargets = []\n[train]\nlearning_rate = -1\nbetas = [0.9, 0.99, 0.1]\nbatch = -2\nmax_steps = 0\n[sample]\ntop_p = 0\n[device]\nthreads = 0\n"), @r#"
    recipe.toml:2:5: adapter.r: must be from 1 to 65536, not 0
    recipe.toml:3:11: adapter.dropout: must be at least 0 and less than 1, not 1.0
    recipe.toml:4:9: adapter.alpha: must be a finite number greater than 0, not nan
    recipe.toml:5:11: adapter.targets: must be at least one projection, not []
    recipe.toml:7:17: train.learning_rate: must be a finite number greater than 0, not -1.0
    recipe.toml:8:9: train.betas: expected two numbers, found 3
    recipe.toml:9:9: train.batch: must be from 0 to 9223372036854775807, not -2
    recipe.toml:10:13: train.max_steps: must be at least 1, not 0
    recipe.toml:12:9: sample.top_p: must be greater than 0 and at most 1, not 0.0
    recipe.toml:14:11: device.threads: must be "auto" or from 1 to 4096, not 0
    10 problems in the recipe
    "#);
}

#[test]
fn devices_are_named_as_the_flag_names_them() {
    for (text, backend) in [("auto", DeviceBackend::Auto), ("cpu", DeviceBackend::Cpu), ("cuda", DeviceBackend::Cuda(0))] {
        assert_eq!(Recipe::parse(&format!("[device]\nbackend = {text:?}\n")).unwrap().device.backend, backend);
        assert_eq!(backend.to_string(), text);
    }
    assert_eq!(DeviceBackend::parse("cuda:0"), Some(DeviceBackend::Cuda(0)));
    assert_eq!(DeviceBackend::parse("cuda:12"), Some(DeviceBackend::Cuda(12)));
    for text in ["", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:+1", "cuda:1 ", "cuda:123456", "cuda1"] {
        assert_eq!(DeviceBackend::parse(text), None, "{text:?}");
    }
    insta::assert_snapshot!(errors("[device]\nbackend = \"cude\"\nplan = \"small\"\nmemory_limit = -1\n"), @r#"
    recipe.toml:2:11: device.backend: must be "auto", "cpu", "cuda" or "cuda:N" with the card's number, not "cude"
      help: did you mean "cuda"?
    recipe.toml:3:8: device.plan: must be one of "auto", "fastest", "smallest", not "small"
      help: did you mean "smallest"?
    recipe.toml:4:16: device.memory_limit: must be from 0 to 1048576 GiB, not -1.0
    3 problems in the recipe
    "#);
}

#[test]
fn choices_name_the_nearest() {
    insta::assert_snapshot!(errors("[train]\noptimizer = \"adamw8bit\"\n[adapter]\ntargets = [\"q_prj\"]\n[data]\nsources = [{ name = \"a\", path = \"builtin:math_tran\", formatter = \"sharegpt\" }]\n[mix]\nplugin = \"./my_mix.wasm\"\n"), @r#"
    recipe.toml:2:13: train.optimizer: must be one of "adamw_8bit", "adamw", not "adamw8bit"
      help: did you mean "adamw_8bit"?
    recipe.toml:4:12: adapter.targets[0]: must be one of "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", not "q_prj"
      help: did you mean "q_proj"?
    recipe.toml:6:33: data.sources[0].path: there is no embedded data "math_tran"
      help: did you mean `math_train`?
    recipe.toml:8:10: mix.plugin: "./my_mix.wasm" is not a plugin's name (1 to 64 letters, digits, `_` or `-`)
      help: a plugin has a name here; give its file as `path` in `[plugins.NAME]`
    4 problems in the recipe
    "#);
}

#[test]
fn contradictions_say_how_to_fix_them() {
    insta::assert_snapshot!(errors("[train]\nmax_steps = 3\nepochs = 1\n"), @"
    recipe.toml:3:1: train.epochs: set together with train.max_steps (1 and 3), but a run has one length
      help: remove one of the two
    ");
    insta::assert_snapshot!(errors("[train]\nmax_steps = 3\n[adapter]\ntargets = [\"q_proj\", \"q_proj\"]\n"), @r#"
    recipe.toml:1:2: train.warmup_steps: 5 steps of warmup do not fit into train.max_steps = 3
      help: lower train.warmup_steps or raise train.max_steps
    recipe.toml:4:1: adapter.targets: "q_proj" is named twice
      help: remove one of them
    2 problems in the recipe
    "#);
}

#[test]
fn sources_need_name_path_and_formatter() {
    insta::assert_snapshot!(errors("[[data.sources]]\nname = \"a\"\npath = \"x.jsonl\"\nformatter = \"sharegpt\"\n\n[[data.sources]]\nname = \"a\"\npath = \"\"\n\n[[data.sources]]\nformat = \"csv\"\n"), @"recipe.toml:8:8: data.sources[1].path: the path is empty");
    insta::assert_snapshot!(errors("[[data.sources]]\nname = \"a\"\npath = \"x.jsonl\"\nformatter = \"sharegpt\"\n\n[[data.sources]]\nname = \"a\"\npath = \"y\"\n\n[[data.sources]]\nformat = \"csv\"\n"), @r#"
    recipe.toml:7:1: data.sources[1].name: "a" is already the name of data.sources[0]
      help: metrics and the mixing policy tell sources apart by their names: give each its own
    recipe.toml:6:1: data.sources[1].formatter: missing, but required
      help: the dataset-formatter plugin of its rows, such as "sharegpt"
    recipe.toml:10:1: data.sources[2].name: missing, but required
      help: give the source a name of its own, such as "math"
    recipe.toml:10:1: data.sources[2].path: missing, but required
      help: a file, a folder, a glob, or "builtin:math_train"
    recipe.toml:10:1: data.sources[2].formatter: missing, but required
      help: the dataset-formatter plugin of its rows, such as "sharegpt"
    5 problems in the recipe
    "#);
}

#[test]
fn plugin_sections_must_be_used_and_sane() {
    insta::assert_snapshot!(errors("[plugins.math_mx]\n[plugins.sharegpt]\nlimits = { memory = -1, fuel_per_call = true, deadline = \"fast\", wasm_stack = \"64KiB\" }\ngrants = [\"clock\", \"clock\", \" \"]\n[eval.settings.boxed_answr]\nx = 1\n"), @r#"
    recipe.toml:5:16: eval.settings.boxed_answr: is not one of eval.metrics
      help: did you mean `boxed_answer`?
    recipe.toml:1:10: plugins.math_mx: nothing in the recipe uses this plugin
      help: did you mean `math_mix`?
    recipe.toml:3:47: plugins.sharegpt.limits.deadline: must be a whole number, at least 0, or a size such as "64MiB", not "fast"
    recipe.toml:3:25: plugins.sharegpt.limits.fuel_per_call: must be a whole number, at least 0, or a size such as "64MiB", not true
    recipe.toml:3:12: plugins.sharegpt.limits.memory: must be a whole number, at least 0, or a size such as "64MiB", not -1
    recipe.toml:4:20: plugins.sharegpt.grants[1]: "clock" is granted twice
      help: remove one of them
    recipe.toml:4:29: plugins.sharegpt.grants[2]: an empty grant grants nothing
      help: remove it
    7 problems in the recipe
    "#);
    insta::assert_snapshot!(errors("[mix]\nsettings = { x = inf }\n"), @"recipe.toml:2:18: mix.settings.x: inf cannot be given to a plugin, whose settings are JSON");
}

#[test]
fn broken_toml_has_its_place() {
    let text = errors("[train]\nbatch = \n");
    assert!(text.starts_with("recipe.toml:2:"), "{text}");
    let text = errors("[train]\nbatch = 1\nbatch = 2\n");
    assert!(text.contains("recipe.toml:3:1") && text.contains("duplicate key"), "{text}");
    // Columns count characters.
    assert!(errors("x = \"ééé\" oops\n").starts_with("recipe.toml:1:11: not TOML"), "{}", errors("x = \"ééé\" oops\n"));
}

#[test]
fn flags_are_checked_like_the_file() {
    insta::assert_snapshot!(flag_error("", &["train.learning_rat=1"]), @"
    --set train.learning_rat=1: train.learning_rat: unknown key
      help: did you mean `learning_rate`?
    ");
    insta::assert_snapshot!(flag_error("", &["adapter.r=0"]), @"--set adapter.r=0: adapter.r: must be from 1 to 65536, not 0");
    insta::assert_snapshot!(flag_error("", &["train.schedule=linea"]), @r#"
    --set train.schedule=linea: train.schedule: must be one of "linear", "cosine", "constant", not "linea"
      help: did you mean "linear"?
    "#);
    insta::assert_snapshot!(flag_error("", &["train.batch"]), @"
    --set train.batch: there is no `=`
      help: write --set key.path=value, such as --set train.max_steps=100
    ");
    insta::assert_snapshot!(flag_error("", &["a..b=1"]), @"
    --set a..b=1: `a..b` is not a key
      help: write --set key.path=value, such as --set train.max_steps=100
    ");
    insta::assert_snapshot!(flag_error("", &["data.sources.0.path=x"]), @"--set data.sources.0.path=x: data.sources: expected an array, found a table");
    insta::assert_snapshot!(flag_error("data.sources = []", &["data.sources.3.path=x"]), @"
    --set data.sources.3.path=x: data.sources.3.path: `3` is no index into the array of 0 written in the recipe (the first is 0)
    recipe.toml:1:16: data.sources: must be at least one source, not []
    2 problems in the recipe
    ");
    let broken = flag_error("", &["train.betas=[0.9"]);
    assert!(broken.starts_with("--set train.betas=[0.9: train.betas: not a TOML value"), "{broken}");
}

#[test]
fn flags_win_over_the_file() {
    let text = "[train]\nmax_steps = 50\nschedule = \"cosine\"\n[mix.settings]\na = 1\nb = 2\n[[data.sources]]\nname = \"s\"\npath = \"a.jsonl\"\nformatter = \"sharegpt\"\n";
    let recipe = with(
        text,
        &["train.schedule=constant", "mix.settings.b=3", "mix.settings.\"c.d\"=[1, 2]", "data.sources.0.path=b.jsonl", "data.workers=auto"],
    )
    .unwrap();
    assert_eq!(recipe.train.schedule.as_str(), "constant");
    assert_eq!(serde_json::to_string(&recipe.mix.settings).unwrap(), r#"{"a":1,"b":3,"c.d":[1,2]}"#);
    assert_eq!(recipe.data.sources[0].path, DataPath::Path("b.jsonl".into()));
    assert_eq!(recipe.data.workers, Count::Auto);
    assert_eq!(recipe.length(), Length::Steps(50));
    // One length displaces the other.
    let epochs = with(text, &["train.epochs=0.5"]).unwrap();
    assert_eq!((epochs.length(), epochs.train.max_steps), (Length::Epochs(0.5), None));
    assert_eq!(with("[train]\nepochs = 2\n", &["train.max_steps=9"]).unwrap().length(), Length::Steps(9));
    assert_eq!(with("[train]\nepochs = 2\n", &[]).unwrap().length(), Length::Epochs(2.0));
    assert!(with("", &["train.max_steps=9", "train.epochs=1"]).is_err());
    // The last of several wins, and an inline table replaces.
    assert_eq!(with(text, &["adapter.r=4", "adapter.r=8"]).unwrap().adapter.r, 8);
    assert!(with(text, &["mix.settings={}"]).unwrap().mix.settings.is_empty());
}

#[test]
fn paths_are_relative_to_the_file() {
    let dir = tempfile_dir();
    let path = dir.join("r.toml");
    std::fs::create_dir_all(dir.join("models/m")).unwrap();
    let text = "[model]\nsource = \"models/m\"\n[output]\ndir = \"/abs/out\"\n[[data.sources]]\nname = \"s\"\npath = \"../rows/*.parquet\"\nformatter = \"f\"\n[eval]\ndata = \"builtin:math_test\"\n";
    std::fs::write(&path, text).unwrap();
    let recipe = Recipe::load_with(&path, &[Override::parse("adapter.from=here").unwrap()]).unwrap();
    assert_eq!(recipe.model.source, ModelSource::Folder(dir.join("models/m")));
    assert_eq!(recipe.output.dir.as_deref(), Some(Path::new("/abs/out")));
    assert_eq!(recipe.data.sources[0].path, DataPath::Path(dir.join("../rows/*.parquet")));
    assert_eq!(recipe.adapter.from, Some(std::env::current_dir().unwrap().join("here")));
    assert_eq!(recipe.eval.data.to_string(), "builtin:math_test");
    // What is printed means the same from any folder.
    assert_eq!(Recipe::parse(&recipe.to_toml().unwrap()).unwrap(), recipe);
    assert!(matches!(Recipe::load(&dir.join("absent.toml")), Err(ConfigError::Read { .. })));
    std::fs::write(&path, b"a = \"\xff\"").unwrap();
    assert!(Recipe::load(&path).unwrap_err().to_string().ends_with("not UTF-8 at byte 5"));
    std::fs::remove_dir_all(dir).unwrap();
}

fn tempfile_dir() -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("trainer-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn a_changed_recipe_is_checked_by_the_same_rules() {
    let mut recipe = Recipe::default();
    assert!(recipe.validate().is_ok());
    recipe.adapter.r = 0;
    assert!(recipe.validate().is_err());
}

#[test]
fn what_is_watched_during_training_must_be_measured_there() {
    let watch = "[eval]\nevery = 10\n[eval.best]\nmetric = \"boxed_answer/accuracy\"\n[eval.early_stopping]\nmetric = \"boxed_answer/accuracy\"\npatience = 2\n";
    let recipe = Recipe::parse(watch).unwrap();
    assert_eq!((recipe.eval.every, recipe.eval.early_stopping.patience), (10, 2));
    insta::assert_snapshot!(errors("[eval]\nevery = 1\n[eval.best]\nmetric = \"accuracy\"\n[eval.early_stopping]\nmetric = \"boxed/accuracy\"\npatience = 0\nmin_delta = -1\nmode = \"up\"\n"), @r#"
    recipe.toml:4:10: eval.best.metric: must be a metric's name and that of its number, such as "boxed_answer/accuracy", or "loss/eval", not "accuracy"
    recipe.toml:7:12: eval.early_stopping.patience: must be at least 1, not 0
    recipe.toml:8:13: eval.early_stopping.min_delta: must be a finite number, at least 0, not -1.0
    recipe.toml:9:8: eval.early_stopping.mode: must be one of "auto", "max", "min", not "up"
    4 problems in the recipe
    "#);
    insta::assert_snapshot!(errors("[eval]\nbefore = false\nafter = false\nevery = 5\nmetrics = []\n"), @r"
    recipe.toml:4:1: eval.every: there is nothing to measure during training
      help: name a metric in eval.metrics, or hold rows out of a source with its holdout
    ");
    // Without evaluations during training none of it decides anything, so older locks stay good.
    let idle = Recipe::parse("[eval.early_stopping]\npatience = 9\n").unwrap();
    assert_eq!(idle.identity(), Recipe::default().identity());
    assert_ne!(recipe.identity(), Recipe::default().identity());
}
