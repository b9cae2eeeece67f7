//! The recipes in `examples/` read, and the written-out main job is the default.

use std::path::Path;

use trainer_config::Recipe;

#[test]
fn example_recipes_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/recipes");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        Recipe::load(&path).unwrap_or_else(|e| panic!("{e}"));
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["nano.toml", "tutorial.toml"]);
    assert_eq!(Recipe::load(&folder.join("nano.toml")).unwrap(), Recipe::default());
}
