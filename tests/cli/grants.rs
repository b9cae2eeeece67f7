//! `--grant`, `--secret`, and the same in a recipe.

use crate::support::Sandbox;

#[test]
fn flags_that_do_not_read_say_how_to_write_them() {
    let sandbox = Sandbox::new();
    let fails = |args: &[&str]| sandbox.fails(["run", "--dry-run"].iter().chain(args));
    insta::assert_snapshot!(fails(&["--grant", "math_mix"]), @"error: --grant math_mix: write --grant PLUGIN:http=https://HOST");
    insta::assert_snapshot!(fails(&["--grant", "math_mix:files"]), @"error: --grant math_mix:files: `files` is no grant; there are http=SERVER, such as http=https://api.example.com, network=ADDRESSES, such as network=10.0.0.0/8, clock and random; secrets are named apart, as KEY=env:NAME");
    insta::assert_snapshot!(fails(&["--grant", "math_mix:clock"]), @"error: plugin `math_mix` 0.1.0 is granted clock, but its manifest does not ask for it: remove the grant");
    insta::assert_snapshot!(fails(&["--grant", "wether:http=https://a.bc"]), @"error: --grant wether:...: no plugin of this name is in use (in use are boxed_answer, math_mix, qwen3_chat, sharegpt); add it with --plugin");
    insta::assert_snapshot!(fails(&["--secret", "math_mix=env:X"]), @"error: --secret: write --secret PLUGIN:KEY=env:NAME, or file:PATH in place of env:NAME");
    insta::assert_snapshot!(fails(&["--grant", "math_mix:http=https://a.bc"]), @"error: plugin `math_mix` 0.1.0 is granted http=https://a.bc, but its manifest does not ask for http: remove the grant");
    insta::assert_snapshot!(fails(&["--secret", "math_mix:KEY=env:X"]), @"error: plugin `math_mix` 0.1.0 is granted the secret KEY, but its manifest asks for no secret: remove the grant");
}

#[test]
fn a_chat_takes_them_too() {
    let sandbox = Sandbox::new();
    insta::assert_snapshot!(sandbox.fails(["chat", "--grant", "weather:http=https://api.openweathermap.org"]), @"error: --grant weather:...: no plugin of this name is in use (in use are boxed_answer, math_mix, qwen3_chat, sharegpt); add it with --plugin");
    insta::assert_snapshot!(sandbox.fails(["chat", "--plugin", "calculator", "--grant", "calculator:http=https://a.bc"]), @"error: plugin `calculator` 0.1.0 is granted http=https://a.bc, but its manifest does not ask for http: remove the grant");
}

#[test]
fn a_value_in_the_place_of_its_source_is_not_repeated() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", "[plugins.math_mix.secrets]\nKEY = \"hunter2hunter2\"\n");
    for args in [
        &["run", "--dry-run", "--secret", "math_mix:KEY=hunter2hunter2"][..],
        &["run", "--dry-run", "--set", "plugins.math_mix.secrets.KEY=hunter2hunter2"],
        &["run", "--dry-run", "recipe.toml"],
    ] {
        let words = sandbox.fails(args);
        assert!(words.contains("env:NAME") && !words.contains("hunter2"), "{words}");
    }
}

#[test]
fn a_recipes_grants_are_read_as_the_flags_are() {
    let sandbox = Sandbox::new();
    sandbox.write("recipe.toml", "[plugins.math_mix]\ngrants = [\"http=https://a.bc/path\"]\n");
    insta::assert_snapshot!(sandbox.fails(["run", "--dry-run", "recipe.toml"]), @"error: the grants of [plugins.math_mix]: http=`https://a.bc/path`: a grant names a server, not a path on it; write it like https://api.example.com or \"GET,POST https://*.example.com:8443\"");
}

#[test]
fn an_authors_calls_read_them_alike() {
    let sandbox = Sandbox::new();
    let fails = |args: &[&str]| sandbox.fails(["plugin", "run", "weather"].iter().chain(args));
    insta::assert_snapshot!(fails(&["--grant", "weather"]), @"error: --grant weather: write --grant PLUGIN:http=https://HOST");
    insta::assert_snapshot!(fails(&["--grant", "weather:files"]), @"error: --grant weather:files: `files` is no grant; there are http=SERVER, such as http=https://api.example.com, network=ADDRESSES, such as network=10.0.0.0/8, clock and random; secrets are named apart, as KEY=env:NAME");
    insta::assert_snapshot!(fails(&["--grant", "wether:http=https://a.bc"]), @"error: --grant wether:...: no plugin of this name is in use (in use is weather)");
    insta::assert_snapshot!(fails(&["--secret", "weather=env:X"]), @"error: --secret: write --secret PLUGIN:KEY=env:NAME, or file:PATH in place of env:NAME");
    // No error repeats what may be a secret.
    let said = fails(&["--secret", "weather:KEY=hunter2"]);
    insta::assert_snapshot!(said, @"error: --secret weather:KEY=...: write --secret PLUGIN:KEY=env:NAME, or file:PATH in place of env:NAME");
    // As in a recipe, what is said twice is said once, and the last secret counts.
    let grant = "weather:http=https://a.bc";
    let secret = ["--secret", "weather:OPENWEATHER_API_KEY=env:NONE_1", "--secret", "weather:OPENWEATHER_API_KEY=env:NONE_2"];
    let output = sandbox.run([&["plugin", "run", "weather", "--grant", grant, "--grant", grant], &secret[..]].concat());
    let said = crate::support::shown(&output);
    assert!(output.status.success() && said.contains("NONE_2 is not set") && !said.contains("NONE_1"), "{said}");
}
