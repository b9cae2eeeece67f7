//! The embedded defaults: the nano model, its data sets and the official plugins, so that the main job runs from one file.
//!
//! What is embedded is addressed by name: the model is `nano`, data files are `builtin:<name>`, and a plugin is its own name with or without
//! `.wasm`. Model and data are described in `assets/README.md`; the plugins are built from `plugins/` by `trainer-plugin-build`, which CI repeats.

/// The files of the model folder: name and contents.
pub const MODEL_FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../assets/model/config.json")),
    ("generation_config.json", include_bytes!("../assets/model/generation_config.json")),
    ("model.safetensors", include_bytes!("../assets/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("../assets/model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../assets/model/tokenizer_config.json")),
];

/// The name under which a recipe asks for the embedded model.
pub const MODEL_NAME: &str = "nano";

/// What a recipe writes before the name of an embedded data file.
pub const DATA_PREFIX: &str = "builtin:";

/// An embedded data file.
#[derive(Clone, Copy, Debug)]
pub struct DataFile {
    /// What a recipe calls it, after [`DATA_PREFIX`].
    pub name: &'static str,
    /// Its file name, whose ending tells the format.
    pub file: &'static str,
    /// Its contents.
    pub bytes: &'static [u8],
}

/// All embedded data files.
pub const DATA_FILES: &[DataFile] = &[
    DataFile { name: "math_train", file: "math_train.jsonl", bytes: include_bytes!("../assets/data/math_train.jsonl") },
    DataFile { name: "chat_train", file: "chat_train.parquet", bytes: include_bytes!("../assets/data/chat_train.parquet") },
    DataFile { name: "math_test", file: "math_test.jsonl", bytes: include_bytes!("../assets/data/math_test.jsonl") },
    DataFile { name: "tools_eval", file: "tools_eval.jsonl", bytes: include_bytes!("../assets/data/tools_eval.jsonl") },
];

/// An official plugin.
#[derive(Clone, Copy, Debug)]
pub struct PluginFile {
    /// Its name.
    pub name: &'static str,
    /// The component.
    pub bytes: &'static [u8],
}

/// All official plugins.
pub const PLUGINS: &[PluginFile] = &[
    PluginFile { name: "bfcl", bytes: include_bytes!("../../../plugins/prebuilt/bfcl.wasm") },
    PluginFile { name: "boxed_answer", bytes: include_bytes!("../../../plugins/prebuilt/boxed_answer.wasm") },
    PluginFile { name: "calculator", bytes: include_bytes!("../../../plugins/prebuilt/calculator.wasm") },
    PluginFile { name: "exact_match", bytes: include_bytes!("../../../plugins/prebuilt/exact_match.wasm") },
    PluginFile { name: "math_equal", bytes: include_bytes!("../../../plugins/prebuilt/math_equal.wasm") },
    PluginFile { name: "math_mix", bytes: include_bytes!("../../../plugins/prebuilt/math_mix.wasm") },
    PluginFile { name: "perplexity", bytes: include_bytes!("../../../plugins/prebuilt/perplexity.wasm") },
    PluginFile { name: "qwen3_chat", bytes: include_bytes!("../../../plugins/prebuilt/qwen3_chat.wasm") },
    PluginFile { name: "sharegpt", bytes: include_bytes!("../../../plugins/prebuilt/sharegpt.wasm") },
    PluginFile { name: "tool_calls", bytes: include_bytes!("../../../plugins/prebuilt/tool_calls.wasm") },
    PluginFile { name: "weather", bytes: include_bytes!("../../../plugins/prebuilt/weather.wasm") },
];

/// The embedded data file of this name (without [`DATA_PREFIX`]).
pub fn data(name: &str) -> Option<&'static DataFile> {
    DATA_FILES.iter().find(|f| f.name == name)
}

/// The official plugin of this name, which may end in `.wasm`.
pub fn plugin(name: &str) -> Option<&'static PluginFile> {
    let name = name.strip_suffix(".wasm").unwrap_or(name);
    PLUGINS.iter().find(|p| p.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_with_and_without_ending() {
        assert_eq!(plugin("math_mix.wasm").unwrap().name, "math_mix");
        assert_eq!(plugin("math_mix").unwrap().name, "math_mix");
        assert!(plugin("nothing").is_none());
        assert_eq!(data("math_test").unwrap().file, "math_test.jsonl");
    }

    #[test]
    fn plugins_are_components() {
        for p in PLUGINS {
            assert_eq!(&p.bytes[..8], b"\0asm\x0d\0\x01\0", "{} is no component", p.name);
        }
    }
}
