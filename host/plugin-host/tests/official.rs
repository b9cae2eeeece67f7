//! Every kind's client against the repository's own guests.

mod common;

use common::{host, prebuilt};
use serde_json::json;
use trainer_plugin_host::metric::{Answer, Finish, Item, Plan, Request, Response, Value};
use trainer_plugin_host::mixing::Source;
use trainer_plugin_host::template::{OutputPart, Piece, PromptRequest};
use trainer_plugin_host::tools::{Call, Outcome};
use trainer_plugin_host::types::Content;
use trainer_plugin_host::{Kind, Limits, MixerSetup, Plugin, PluginError, RowOutcome, ToolContext};

fn plugin(name: &str) -> std::sync::Arc<Plugin> {
    let plugin = host().load(&prebuilt(name), Limits::default()).unwrap();
    assert_eq!(plugin.name(), name);
    plugin
}

fn setup() -> MixerSetup {
    let source = |name: &str, length| Source { name: name.into(), length: Some(length), random_access: true };
    MixerSetup { settings: json!({}), sources: vec![source("reasoning", 400), source("chat", 1000)], seed: 3407, feedback_lag: 2 }
}

#[test]
fn a_component_of_two_kinds() {
    let plugin = plugin("math_mix");
    assert!(plugin.is(Kind::MixingPolicy) && plugin.is(Kind::DatasetFormatter) && !plugin.is(Kind::EvalMetric));
    let formatter = plugin.formatter(&json!({})).unwrap();
    let rows = [json!({"problem": "1 + 1?", "generated_solution": "<think>\nhm\n</think>\n2"}), json!({"problem": 7})];
    let outcomes = formatter.format(&rows.map(|r| r.to_string())).unwrap();
    let [RowOutcome::Sample(sample), RowOutcome::Bad { pointer, .. }] = outcomes.as_slice() else { panic!("{outcomes:?}") };
    assert_eq!(sample.messages[0].content, Content::Text("1 + 1?".into()));
    assert_eq!(pointer, "/problem");
    let error = plugin.formatter(&json!({"no such setting": 1})).err().unwrap();
    assert!(matches!(error, PluginError::Settings { .. }), "{error}");
}

#[test]
fn a_mixer_continues_from_its_snapshot() {
    let plugin = plugin("math_mix");
    let mut whole = plugin.mixer(&setup(), None).unwrap();
    // 25 % of the number of reasoning rows.
    assert_eq!(whole.epoch_length().unwrap(), Some(500));
    let all = whole.next(700).unwrap();
    assert_eq!(all.len(), 700);
    assert_eq!(all[..500].iter().filter(|d| d.source == 0).count(), 400);
    for cut in [0, 1, 499, 500, 501] {
        let mut first = plugin.mixer(&setup(), None).unwrap();
        assert_eq!(first.next(cut).unwrap(), all[..cut as usize]);
        let snapshot = first.snapshot().unwrap();
        let mut second = plugin.mixer(&setup(), Some(&snapshot)).unwrap();
        assert_eq!(second.next(700 - cut).unwrap(), all[cut as usize..]);
        assert_eq!(second.snapshot().unwrap(), whole.snapshot().unwrap());
    }
    let error = plugin.mixer(&setup(), Some(b"no snapshot at all")).err().unwrap();
    assert!(matches!(error, PluginError::Refused { .. }), "{error}");
}

#[test]
fn a_template_renders_and_reads_back() {
    let template = plugin("qwen3_chat").template(&json!({})).unwrap();
    let description = template.describe().unwrap();
    assert!(description.stop_tokens.contains(&"<|im_end|>".to_owned()), "{description:?}");
    let formatter = plugin("math_mix").formatter(&json!({})).unwrap();
    let row = json!({"problem": "1 + 1?", "generated_solution": "2"}).to_string();
    let Some(RowOutcome::Sample(conversation)) = formatter.format(&[row]).unwrap().pop() else { panic!() };
    let mut question = conversation.clone();
    question.messages.truncate(1);
    let request = PromptRequest { conversation: question, add_generation_prompt: true, enable_thinking: None };
    let prompts = template.render_prompts(&[request]).unwrap();
    let text: String = prompts[0]
        .as_ref()
        .unwrap()
        .segments
        .iter()
        .map(|s| match &s.piece {
            Piece::Text(text) | Piece::Special(text) => text.as_str(),
        })
        .collect();
    assert_eq!(text, "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n");
    let samples = template.render_training(&[conversation]).unwrap().pop().unwrap().unwrap();
    assert!(samples[0].segments.iter().any(|s| s.generated && s.source_message == Some(1)));

    let output = vec![Piece::Text("<think>\nwell\n</think>\n\n2 <tool".into()), Piece::Text("s".into())];
    let whole = template.parse(std::slice::from_ref(&output)).unwrap().pop().unwrap().unwrap();
    let joined = |parts: &[OutputPart]| {
        parts.iter().fold((String::new(), String::new()), |(mut text, mut reasoning), part| {
            match part {
                OutputPart::Text(t) => text.push_str(t),
                OutputPart::Reasoning(r) => reasoning.push_str(r),
                other => panic!("{other:?}"),
            }
            (text, reasoning)
        })
    };
    let mut parser = template.output_parser(false).unwrap();
    let mut parts = Vec::new();
    for piece in output {
        parts.extend(parser.push(&[piece]).unwrap());
    }
    parts.extend(parser.finish().unwrap());
    assert_eq!(joined(&parts), joined(&whole));
    assert!(joined(&whole).0.contains("2 <tools") && joined(&whole).1.contains("well"), "{whole:?}");
}

#[test]
fn tools_and_a_session() {
    let plugin = plugin("calculator");
    let tools = plugin.tools(&json!({})).unwrap();
    let tool = tools.first().unwrap();
    let schema: serde_json::Value = serde_json::from_str(&tool.parameters).unwrap();
    let argument = schema["properties"].as_object().unwrap().keys().next().unwrap().clone();
    let mut session = plugin.tool_session(&ToolContext { settings: json!({}), seed: 1, now_ms: 0 }).unwrap();
    let call = |text: &str| Call { name: tool.name.clone(), arguments: json!({ argument.as_str(): text }).to_string() };
    let outcomes = session.call(&[call("6 * 7"), call("6 *"), Call { name: "no such tool".into(), arguments: "{}".into() }]).unwrap();
    assert!(matches!(&outcomes[0], Outcome::Ok(json) if json.contains("42")), "{outcomes:?}");
    assert!(matches!(&outcomes[1..], [Outcome::ToolError(_), Outcome::ToolError(_)]), "{outcomes:?}");
    session.state_digest().unwrap();
}

#[test]
fn a_metric_from_question_to_aggregate() {
    let metric = plugin("boxed_answer").metric(&json!({})).unwrap();
    assert!(!metric.scoring_version().unwrap().is_empty());
    let rows = [json!({"problem": "6 * 7?", "expected_answer": "42"}).to_string(), "{}".to_owned()];
    let plans = metric.prepare(&rows).unwrap();
    assert!(matches!(&plans[0], Ok(Plan::Ask(Request::Generate(g))) if g.repeats == 1), "{plans:?}");
    assert!(matches!(&plans[1], Ok(Plan::Bad(_))), "{plans:?}");
    let item = |text: &str| Item {
        row: rows[0].clone(),
        response: Response::Answers(vec![Answer {
            raw: text.into(),
            text: text.into(),
            reasoning: String::new(),
            calls: Vec::new(),
            malformed: Vec::new(),
            finish: Finish::Stop,
            tokens: None,
        }]),
    };
    let scores: Vec<_> = metric.score(&[item("so \\boxed{42}"), item("\\boxed{41}")]).unwrap().into_iter().map(Result::unwrap).collect();
    let aggregates = metric.aggregate(&scores).unwrap();
    let accuracy = aggregates.iter().find(|a| a.name == "accuracy").unwrap();
    assert!((accuracy.value - 0.5).abs() < 1e-12, "{aggregates:?}");
    assert!(!matches!(scores[0][0].value, Value::Unscored));
}
