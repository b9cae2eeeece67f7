//! The reference's templates on its golden conversations, and templates that want too much.

use serde_json::{Map, Value};
use trainer_jinja::{Context, JinjaError, JinjaTemplate, Limits, RendererCommand, probes};

fn template(source: &str) -> JinjaTemplate {
    JinjaTemplate::new(source, Limits::default(), RendererCommand::in_process()).unwrap()
}

fn context(case: &Value) -> Context {
    Context {
        messages: case["messages"].clone(),
        tools: case["tools"].clone(),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        enable_thinking: case["enable_thinking"].as_bool(),
        special_tokens: Map::new(),
        args: Map::new(),
    }
}

#[test]
fn reference_templates_give_transformers_texts() {
    let cases = trainer_test_support::jsonl("chat_template/cases.jsonl");
    let cases: Vec<&Value> = cases.iter().collect();
    let folder = trainer_test_support::reference_file("chat_template/templates");
    let mut revisions = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let revision = path.file_stem().unwrap().to_string_lossy().into_owned();
        let contexts: Vec<Context> = cases.iter().map(|c| context(c)).collect();
        let texts = template(&std::fs::read_to_string(&path).unwrap()).render(&contexts).unwrap();
        let mut compared = 0;
        for (case, text) in cases.iter().zip(texts) {
            let variant = &case["variants"][&revision];
            let expected = if variant.is_object() { &variant["text"] } else { &case["expected_text"] };
            if let Some(expected) = expected.as_str() {
                assert_eq!(text.as_deref(), Ok(expected), "{} {revision}", case["id"]);
                compared += 1;
            }
        }
        assert!(compared > 50, "{revision}: {compared}");
        revisions += 1;
    }
    assert!(revisions >= 3);
}

#[test]
fn probes_are_rendered_by_every_template() {
    let qwen = trainer_test_support::text("chat_template/templates/qwen3.jinja");
    let contexts: Vec<Context> = probes::all(&Map::new()).into_iter().map(|p| p.context).collect();
    let texts = template(&qwen).render(&contexts).unwrap();
    assert!(contexts.len() >= 20 && texts.iter().all(Result::is_ok), "{texts:?}");
    let distinct: std::collections::BTreeSet<_> = texts.iter().map(|t| t.as_ref().unwrap()).collect();
    assert!(distinct.len() + 1 >= texts.len(), "thinking on and not passed are alike; no other two are");
}

fn fails(source: &str) -> String {
    let one = probes::all(&Map::new()).into_iter().map(|p| p.context).take(1).collect::<Vec<_>>();
    match template(source).render(&one) {
        Ok(texts) => texts.into_iter().next().unwrap().unwrap_err(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_a_template_may_not_is_said() {
    for (source, needle) in [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more steps than are allowed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        (
            "{% for i in range(60000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}",
            "more than 8388608 bytes",
        ),
        ("{{ raise_exception('no system message') }}", "no system message"),
        ("{{ strftime_now('%Y') }}", "must not depend on the day"),
        ("{% include 'secret' %}", "unknown statement include"),
        ("\n{% for %}", "line 2"),
        ("{{ nothing.of.it }}", "undefined"),
    ] {
        let error = fails(source);
        assert!(error.contains(needle), "{needle:?} is not in: {error}");
    }
    let long = "x".repeat((1 << 20) + 1);
    assert!(matches!(JinjaTemplate::new(long, Limits::default(), RendererCommand::in_process()), Err(JinjaError::TooLong { .. })));
}
