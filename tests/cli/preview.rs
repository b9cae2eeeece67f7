//! `trainer preview`: what it shows is what training sees.

use serde_json::{Value, json};

use crate::support::{Sandbox, lines, metrics};

fn list<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    value[key].as_array().unwrap_or_else(|| panic!("{key} in {value}"))
}

fn kinds(preview: &Value) -> Vec<&str> {
    list(preview, "warnings").iter().map(|w| w["kind"].as_str().unwrap()).collect()
}

/// A recipe over one file of chats.
fn chats(sandbox: &Sandbox, rows: &[Value], data: &str) {
    let text: Vec<String> = rows.iter().map(Value::to_string).collect();
    sandbox.write("chats.jsonl", text.join("\n"));
    sandbox.write(
        "recipe.toml",
        format!(
            "[data]\n{data}\nsources = [{{ name = \"talk\", path = \"chats.jsonl\", formatter = \"sharegpt\" }}]\n[mix.settings]\nchat_percentage = 0\n"
        ),
    );
}

fn chat(turns: &[(&str, &str)]) -> Value {
    let turns: Vec<Value> = turns.iter().map(|(from, value)| json!({ "from": from, "value": value })).collect();
    json!({ "conversations": turns })
}

#[test]
fn shows_the_samples_of_the_run() {
    let sandbox = Sandbox::new();
    let preview = sandbox.json(["preview", "-n", "8", "--json"]);
    assert_eq!(list(&preview, "rows").len(), 8);
    assert_eq!(kinds(&preview), [""; 0]);
    let (mut tokens, mut weight) = (0, 0.0);
    for (i, row) in list(&preview, "rows").iter().enumerate() {
        assert_eq!(row["draw"], i);
        let roles: Vec<&str> = list(row, "messages").iter().map(|m| m["role"].as_str().unwrap()).collect();
        let [sample] = list(row, "samples").as_slice() else { panic!("one sample a row") };
        assert_eq!(sample["index"], i);
        let segments = list(sample, "segments");
        // The tokens are the text, and each belongs to the segment and the message that it says.
        let text: String = segments.iter().map(|s| s["text"].as_str().unwrap()).collect();
        let mut spelt = Vec::new();
        for token in list(sample, "tokens") {
            let segment = &segments[token["segment"].as_u64().unwrap() as usize];
            assert_eq!(token["message"], segment["message"]);
            let learned = token["weight"].as_f64().unwrap() > 0.0;
            assert_eq!(learned, segment["generated"] == true, "{token} in {segment}");
            if learned {
                assert_eq!(roles[token["message"].as_u64().unwrap() as usize], "assistant");
            }
            match token["bytes"].as_str() {
                None => spelt.extend(token["text"].as_str().unwrap().bytes()),
                Some(hex) => spelt.extend((0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())),
            }
        }
        assert_eq!(String::from_utf8(spelt).unwrap(), text);
        tokens += sample["length"].as_u64().unwrap();
        weight += sample["target_weight"].as_f64().unwrap();
    }
    let packed: u64 = list(&preview["packing"], "batches").iter().map(|b| b["tokens"].as_u64().unwrap()).sum();
    assert_eq!(packed, tokens);

    // A step is eight samples: the run itself counts the same.
    let quick = ["--set", "eval.before=false", "--set", "eval.after=false", "--set", "sample.prompt=\"\"", "--set", "train.warmup_steps=0"];
    sandbox.ok(["run", "--max-steps", "1", "--out", "run"].iter().chain(&quick));
    let step = &metrics(&sandbox.path("run"))[0];
    assert_eq!(step["tokens"], tokens);
    assert!((step["target_weight"].as_f64().unwrap() - weight).abs() < 1e-6, "{step} and {weight}");
    assert_eq!(sandbox.names(), ["run"], "a preview writes nothing");
}

#[test]
fn a_source_and_a_row_as_errors_name_it() {
    let sandbox = Sandbox::new();
    let only = sandbox.json(["preview", "-n", "2", "--source", "chat", "--json"]);
    assert!(list(&only, "rows").iter().all(|r| r["source"] == "chat"), "{only}");
    // Blank lines count, as they do in an editor.
    sandbox.write("a.jsonl", format!("{}\n\n{}\n", lines("math_train", 1)[0], lines("math_train", 2)[1]));
    sandbox.write("b.jsonl", lines("math_train", 3)[2].clone());
    sandbox.write(
        "recipe.toml",
        "[data]\nsources = [{ name = \"m\", path = \"*.jsonl\", formatter = \"math_mix\" }]\n[mix.settings]\nchat_percentage = 0\n",
    );
    let row = |at: &str| sandbox.json(["preview", "recipe.toml", "--row", at, "--json"])["rows"].clone();
    let third = row("3");
    assert_eq!((third.as_array().unwrap().len(), &third[0]["row"]), (1, &json!(3)));
    assert!(third[0]["file"].as_str().unwrap().ends_with("a.jsonl"));
    assert_eq!(row("a.jsonl:3"), third);
    assert!(row("b.jsonl:1")[0]["file"].as_str().unwrap().ends_with("b.jsonl"));
    let fails = |args: &[&str]| sandbox.fails(["preview", "recipe.toml"].iter().chain(args));
    assert!(fails(&["--row", "2"]).contains("source m has no row 2"), "a blank line is no row");
    assert!(fails(&["--row", "0"]).contains("a number from 1"));
    assert!(fails(&["--source", "x"]).contains("there is no source called x; there are m"));
    assert!(sandbox.fails(["preview", "--row", "1"]).contains("--row needs --source, for there are several: math, chat"));
}

#[test]
fn as_text() {
    let sandbox = Sandbox::new();
    chats(&sandbox, &[chat(&[("human", "Hi"), ("gpt", "Yes\t\u{1b}[31m")])], "");
    let text = sandbox.ok(["preview", "recipe.toml", "-n", "1"]);
    insta::assert_snapshot!(sandbox.neutral(&text));
}

#[test]
fn warns_of_what_is_wrong() {
    let sandbox = Sandbox::new();
    let good = chat(&[("human", "Hi"), ("gpt", "Yes, of course, and with pleasure, as often as you like.")]);
    let preview = |more: &[&str]| sandbox.json(["preview", "recipe.toml", "-n", "1", "--json"].iter().chain(more));
    chats(&sandbox, std::slice::from_ref(&good), "");
    assert_eq!(kinds(&preview(&[])), [""; 0]);

    let cut = ["--set", "data.max_seq_length=12", "--set", "data.too_long=truncate"];
    let right = preview(&cut);
    assert_eq!(kinds(&right), ["truncated", "missing_stop"]);
    // Cut on the other side, the stop token stays.
    let left = preview(&[&cut[..], &["--set", "data.truncation_side=left"]].concat());
    assert_eq!(kinds(&left), ["truncated"]);
    for (preview, kept) in [(&right, 0..12), (&left, 0..12)] {
        let sample = &preview["rows"][0]["samples"][0];
        assert_eq!((&sample["length"], &sample["truncated"]), (&json!(12), &json!(true)));
        let tokens = list(sample, "tokens");
        let first = if preview == &left { tokens.len() - 12 } else { 0 };
        let kept = kept.start + first..kept.end + first;
        for (i, token) in tokens.iter().enumerate() {
            assert_eq!(token["kept"], kept.contains(&i));
        }
    }

    // A limit that nothing can be learned within, and what happens to the row by default.
    assert_eq!(kinds(&preview(&["--set", "data.max_seq_length=3", "--set", "data.too_long=truncate"])), ["left_out", "zero_weight"]);
    assert_eq!(kinds(&preview(&["--set", "data.max_seq_length=3"])), ["bad_row"]);
    assert_eq!(kinds(&preview(&["--set", "data.max_seq_length=3", "--set", "data.too_long=drop"])), ["left_out"]);

    chats(&sandbox, &[json!({ "conversations": 7 })], "");
    let bad = preview(&[]);
    assert_eq!((kinds(&bad), &bad["rows"][0]["outcome"]), (vec!["bad_row"], &json!("bad")));

    // The inference form of Qwen3's template drops the thinking of earlier turns.
    let think = "<think>\nSo.\n</think>\n\nOne";
    chats(&sandbox, &[chat(&[("human", "1?"), ("gpt", think), ("human", "2?"), ("gpt", think)])], "");
    let exact = preview(&["--set", "template.settings.form=exact"]);
    assert!(kinds(&exact).contains(&"template") && kinds(&exact).contains(&"unstable_prefix"), "{:?}", kinds(&exact));
    assert_eq!(kinds(&preview(&[])), [""; 0]);
}

#[test]
fn warns_of_padding_with_the_stop_token() {
    let sandbox = Sandbox::new();
    for (name, bytes) in trainer_nano::MODEL_FILES {
        sandbox.write(&format!("model/{name}"), bytes);
    }
    assert_eq!(kinds(&sandbox.json(["preview", "--set", "model.source=model", "--json"])), [""; 0]);
    let config = std::fs::read_to_string(sandbox.path("model/tokenizer_config.json")).unwrap();
    sandbox.write("model/tokenizer_config.json", config.replace("\"pad_token\": \"<|endoftext|>\"", "\"pad_token\": \"<|im_end|>\""));
    assert_eq!(kinds(&sandbox.json(["preview", "--set", "model.source=model", "--json"])), ["pad_is_eos"]);
}

#[test]
fn as_a_page() {
    let sandbox = Sandbox::new();
    chats(&sandbox, &[chat(&[("human", "<script>alert(1)</script>\" onload='x"), ("gpt", "<img src=http://example.com>&")])], "");
    assert_eq!(sandbox.ok(["preview", "recipe.toml", "--html", "page.html"]), "");
    let page = std::fs::read_to_string(sandbox.path("page.html")).unwrap();
    for never in ["<script", "<img", "<link", "src=\"", "href=", "onload='"] {
        assert!(!page.contains(never), "{never} in {page}");
    }
    assert!(page.contains("default-src 'none'") && page.contains("&lt;") && page.ends_with("</html>\n"));
    // As many tokens as the JSON has, each with a tooltip.
    let json = sandbox.json(["preview", "recipe.toml", "--json"]);
    let tokens: usize = list(&json, "rows").iter().flat_map(|r| list(r, "samples")).map(|s| list(s, "tokens").len()).sum();
    assert_eq!(page.matches("title=\"token ").count(), tokens);
    let text = sandbox.run(["preview", "recipe.toml", "--html", "no/such/folder/page.html"]);
    assert_eq!(text.status.code(), Some(1));
}
