//! The recipes in `examples/` read, and the written-out main job is the default.

use std::path::Path;

use trainer_config::Recipe;

#[test]
fn example_recipes_read() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let folder = examples.join("recipes");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        Recipe::load(&path).unwrap_or_else(|e| panic!("{e}"));
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["nano.toml"]);
    assert_eq!(Recipe::load(&folder.join("nano.toml")).unwrap(), Recipe::default());
    let tutorial = Recipe::load(&examples.join("qwen3-8b-math.toml")).unwrap();
    assert_eq!(tutorial.model.source.to_string(), "hf://unsloth/Qwen3-8B-unsloth-bnb-4bit");
    assert_eq!(tutorial.data.sources[0].path.to_string(), "hf://datasets/unsloth/OpenMathReasoning-mini?split=cot");
}
