//! From generated tokens to what a metric sees.

use trainer_engine::Finish as EngineFinish;
use trainer_plugin_host::metric::{Answer, Call, Finish};
use trainer_plugin_host::template::OutputPart;

/// A generated answer before the template takes it apart.
pub(crate) struct Output {
    /// Without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
}

/// How the engine's end of generation looks to a metric.
pub(crate) fn finish(f: &EngineFinish) -> Finish {
    match f {
        EngineFinish::Stop(_) => Finish::Stop,
        EngineFinish::Length => Finish::Length,
        _ => Finish::Limit,
    }
}

/// The name of a finish in files.
pub(crate) fn finish_name(f: Finish) -> &'static str {
    match f {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Limit => "limit",
    }
}

/// Joins the parts of an output by what they are.
pub(crate) fn answer(raw: String, parts: Vec<OutputPart>, finish: Finish) -> Answer {
    let mut answer = Answer { raw, text: String::new(), reasoning: String::new(), calls: Vec::new(), malformed: Vec::new(), finish };
    for part in parts {
        match part {
            OutputPart::Text(t) => answer.text.push_str(&t),
            OutputPart::Reasoning(t) => answer.reasoning.push_str(&t),
            OutputPart::ToolCall(c) => answer.calls.push(Call { name: c.name, arguments: c.arguments }),
            OutputPart::Malformed(m) => answer.malformed.push(m.message),
        }
    }
    answer
}

/// Cuts an answer's text at the first of the stop strings, if any is in it; says whether it did.
pub(crate) fn cut_at_stop(text: &mut String, stops: &[String]) -> bool {
    match stops.iter().filter(|s| !s.is_empty()).filter_map(|s| text.find(s.as_str())).min() {
        Some(at) => {
            text.truncate(at);
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_stop_string_cuts() {
        let mut text = "one two three".to_owned();
        assert!(cut_at_stop(&mut text, &["three".into(), "two".into(), String::new()]));
        assert_eq!(text, "one ");
        assert!(!cut_at_stop(&mut text, &["four".into()]));
    }
}
