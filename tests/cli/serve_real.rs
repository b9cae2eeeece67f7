//! The server as programs from PyPI see it. They are installed into a folder of the build, so these tests are for `.ci/full`.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::python::{python, run};
use crate::serve::Server;
use crate::support::{Sandbox, lines};

#[test]
#[ignore = "installs a Python package"]
fn openais_own_client() {
    let python = python("openai", &["openai==2.*"]);
    let server = Server::start(Sandbox::new(), &[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/cli/openai_client.py");
    run(Command::new(python).arg(script).args([&server.address, &lines("tools_eval", 1)[0]]));
}

/// The sum of the log-probabilities of `end` after `start`, from the server itself.
fn likelihood(server: &Server, start: &str, end: &str) -> f64 {
    let body = json!({ "model": "nano", "prompt": format!("{start}{end}"), "max_tokens": 0, "echo": true, "logprobs": 0 });
    let logprobs = server.post("/v1/completions", &body).json()["choices"][0]["logprobs"].clone();
    let numbers = |key: &str| logprobs[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap_or(0.0)).collect::<Vec<_>>();
    numbers("text_offset")
        .into_iter()
        .zip(numbers("token_logprobs"))
        .filter(|(at, _)| *at >= start.chars().count() as f64)
        .map(|(_, p)| p)
        .sum()
}

#[test]
#[ignore = "installs Python packages"]
fn lm_eval_scores_and_generates() {
    let python = python("lm-eval", &["lm-eval[api]==0.4.13", "transformers==5.*"]);
    let sandbox = Sandbox::new();
    for file in trainer_nano::MODEL_FILES {
        sandbox.write(&format!("model/{}", file.0), file.1);
    }
    let (model, rows, tasks) = (sandbox.path("model"), sandbox.path("tasks/rows.jsonl"), sandbox.path("tasks"));
    let (results, home) = (sandbox.path("results"), sandbox.path("home"));
    let problems: Vec<Value> = lines("math_test", 12).iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    let server = Server::start(Sandbox::new(), &[]);
    let choices = [" 7", " 12", " hello there", " the answer"];
    let mut all = String::new();
    for (i, problem) in problems.iter().enumerate() {
        let question = problem["problem"].as_str().unwrap();
        // What the server itself thinks likeliest is right for two rows of three, so that the accuracy is known.
        let likely =
            choices.iter().map(|c| likelihood(&server, &format!("{question}\nAnswer:"), c)).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        let label = (likely.unwrap().0 + usize::from(i % 3 == 2)) % choices.len();
        let ask = json!({ "model": "nano", "messages": [{ "role": "user", "content": question }], "temperature": 0, "max_tokens": 60 });
        let answer =
            server.post("/v1/chat/completions", &ask).json()["choices"][0]["message"]["content"].as_str().unwrap().trim().to_owned();
        let row = json!({ "question": question, "choices": choices, "label": label, "answer": answer });
        all.push_str(&format!("{row}\n"));
    }
    std::fs::create_dir_all(&tasks).unwrap();
    std::fs::write(&rows, all).unwrap();
    let task = |name: &str, more: &str| {
        let text = format!(
            "task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {}\ntest_split: test\n{more}",
            rows.display()
        );
        std::fs::write(tasks.join(format!("{name}.yaml")), text).unwrap();
    };
    task(
        "nano_choice",
        "output_type: multiple_choice\ndoc_to_text: \"{{question}}\\nAnswer:\"\ndoc_to_choice: choices\ndoc_to_target: label\n\
         target_delimiter: \"\"\nmetric_list:\n  - metric: acc\n",
    );
    task(
        "nano_chat",
        "output_type: generate_until\ndoc_to_text: question\ndoc_to_target: answer\n\
         generation_kwargs:\n  max_gen_toks: 60\n  temperature: 0\n  until: [\"@@\"]\n\
         filter_list:\n  - name: whole\n    filter:\n      - function: take_first\nmetric_list:\n  - metric: exact_match\n",
    );
    let evaluate = |kind: &str, path: &str, task: &str, more: &[&str]| -> Value {
        let args = format!(
            "model=nano,base_url=http://{}{path},num_concurrent=4,max_retries=1,tokenizer_backend=huggingface,tokenizer={}",
            server.address,
            model.display()
        );
        let out = results.join(task);
        let mut command = Command::new(&python);
        command.args(["-m", "lm_eval", "--model", kind, "--model_args", &args, "--tasks", task]).args(more);
        command.arg("--include_path").arg(&tasks).arg("--output_path").arg(&out);
        command.env("HOME", &home).env("HF_HUB_OFFLINE", "1").env("OPENAI_API_KEY", "none");
        let log = run(&mut command);
        let mut found: Vec<PathBuf> = walk(&out).into_iter().filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
        let file = found.pop().unwrap_or_else(|| panic!("no results: {log}"));
        serde_json::from_slice::<Value>(&std::fs::read(file).unwrap()).unwrap()["results"][task].clone()
    };
    let scored = evaluate("local-completions", "/v1/completions", "nano_choice", &["--batch_size", "4"]);
    assert!((scored["acc,none"].as_f64().unwrap() - 8.0 / 12.0).abs() < 1e-9, "{scored}");
    let generated = evaluate("local-chat-completions", "/v1/chat/completions", "nano_chat", &["--apply_chat_template"]);
    assert_eq!(generated["exact_match,whole"].as_f64(), Some(1.0), "{generated}");
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    entries.flat_map(|p| if p.is_dir() { walk(&p) } else { vec![p] }).collect()
}
