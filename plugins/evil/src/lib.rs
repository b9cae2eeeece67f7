//! `evil`: a formatter and a metric that do what a row like `{"evil": "loop"}` says, for the tests of the host's limits. See [`Payload`] and
//! [`metric::Payload`]. Without a payload a row becomes an ordinary sample, and is asked and scored in an ordinary way.

pub mod metric;

use std::hint::black_box;

use serde::Deserialize;
use trainer_plugin_sdk::bindings::exports::trainer::dataset_formatter::formatter;
use trainer_plugin_sdk::log::{self, Level};
use trainer_plugin_sdk::{BadRow, Content, Conversation, Json, Message, Outcome, SpanWeight};

/// The ways to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// Never returns.
    Loop,
    /// Allocates and touches memory without end.
    Alloc,
    /// Calls itself without end.
    Recurse,
    /// Returns a string of a gigabyte.
    Gigabyte,
    /// Returns a million messages of one character.
    Amplify,
    /// Executes `unreachable`.
    Trap,
    /// Panics with a message.
    Panic,
    /// Answers with one outcome too many.
    WrongCount,
    /// Answers with none.
    NoOutcome,
    /// A message with the weight NaN.
    NanWeight,
    /// A conversation with an infinite weight.
    InfiniteWeight,
    /// A message with a negative weight.
    NegativeWeight,
    /// A span beyond the text.
    BadSpan,
    /// A span that cuts a character.
    SplitSpan,
    /// Spans that overlap.
    OverlappingSpans,
    /// Tools that are not JSON.
    BadJson,
    /// Content that is JSON nested 100,000 deep.
    DeepJson,
    /// A list of ten million tools.
    HugeList,
    /// A conversation without messages.
    NoMessages,
    /// Floods the log.
    LogFlood,
    /// A log line of ten megabytes.
    LongLog,
    /// A skip reason that differs from row to row.
    ManyReasons,
    /// A pointer that is none.
    BadPointer,
    /// Allocates without end, one memory page at a time.
    Pages,
}

#[derive(Deserialize)]
struct Row {
    evil: Option<String>,
}

struct Evil;

impl formatter::Guest for Evil {
    fn configure(settings: Json) -> Result<(), String> {
        #[cfg(target_arch = "wasm32")]
        std::panic::set_hook(Box::new(|info| log::write(Level::Error, &info.to_string())));
        match serde_json::from_str::<Row>(&settings) {
            Ok(Row { evil: Some(payload) }) if payload == "refuse" => Err("the settings say no".to_owned()),
            Ok(Row { evil: Some(payload) }) => {
                let mut outcomes = Vec::new();
                perform(&payload, &settings, &mut outcomes);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn format(rows: Vec<Json>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for row in &rows {
            let payload = serde_json::from_str::<Row>(row).ok().and_then(|row| row.evil).unwrap_or_default();
            perform(&payload, row, &mut outcomes);
        }
        outcomes
    }
}

fn perform(payload: &str, row: &str, outcomes: &mut Vec<Outcome>) {
    let payload = serde_json::from_value::<Payload>(payload.into()).ok();
    let sample = |message: Message| Outcome::Sample(Conversation::of([message]));
    let outcome = match payload {
        None => sample(Message::user("harmless")),
        Some(Payload::Loop) => loop {
            black_box(row);
        },
        Some(Payload::Alloc) => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; 1 << 20]);
                black_box(&hoard);
            }
        }
        Some(Payload::Pages) => {
            let mut hoard: Vec<Vec<u8>> = Vec::new();
            loop {
                hoard.push(vec![1; 1 << 16]);
                black_box(&hoard);
            }
        }
        Some(Payload::Recurse) => sample(Message::user(descend(0, u64::MAX - row.len() as u64).to_string())),
        Some(Payload::Gigabyte) => sample(Message::user("x".repeat(1 << 30))),
        Some(Payload::Amplify) => {
            let messages: Vec<Message> = (0..1_000_000).map(|_| Message::user("x")).collect();
            Outcome::Sample(Conversation::of(messages))
        }
        #[cfg(target_arch = "wasm32")]
        Some(Payload::Trap) => core::arch::wasm32::unreachable(),
        #[cfg(not(target_arch = "wasm32"))]
        Some(Payload::Trap) => std::process::abort(),
        Some(Payload::Panic) => panic!("evil panics on purpose"),
        Some(Payload::WrongCount) => {
            outcomes.push(sample(Message::user("one")));
            sample(Message::user("two"))
        }
        Some(Payload::NoOutcome) => return,
        Some(Payload::NanWeight) => sample(Message { weight: Some(f32::NAN), ..Message::user("x") }),
        Some(Payload::NegativeWeight) => sample(Message { weight: Some(-1.0), ..Message::user("x") }),
        Some(Payload::InfiniteWeight) => Outcome::Sample(Conversation { weight: f32::INFINITY, ..Conversation::of([Message::user("x")]) }),
        Some(Payload::BadSpan) => sample(Message { spans: vec![span(0, 1000)], ..Message::user("short") }),
        Some(Payload::SplitSpan) => sample(Message { spans: vec![span(0, 1)], ..Message::user("é") }),
        Some(Payload::OverlappingSpans) => sample(Message { spans: vec![span(0, 3), span(2, 4)], ..Message::user("abcdef") }),
        Some(Payload::BadJson) => {
            Outcome::Sample(Conversation { tools: vec!["{\"name\": ".to_owned()], ..Conversation::of([Message::user("x")]) })
        }
        Some(Payload::DeepJson) => {
            let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
            sample(Message { content: Content::Json(deep), ..Message::user("") })
        }
        Some(Payload::HugeList) => {
            Outcome::Sample(Conversation { tools: vec!["{}".to_owned(); 10_000_000], ..Conversation::of([Message::user("x")]) })
        }
        Some(Payload::NoMessages) => Outcome::Sample(Conversation::of([])),
        Some(Payload::LogFlood) => {
            for i in 0..100_000 {
                log::write(Level::Error, &format!("flood {i}"));
            }
            sample(Message::user("flooded"))
        }
        Some(Payload::LongLog) => {
            log::write(Level::Error, &"x".repeat(10 << 20));
            sample(Message::user("logged"))
        }
        Some(Payload::ManyReasons) => Outcome::Skip(format!("because of {row}")),
        Some(Payload::BadPointer) => Outcome::Bad(BadRow { pointer: "no/slash".to_owned(), message: String::new() }),
    };
    outcomes.push(outcome);
}

fn span(start: u32, end: u32) -> SpanWeight {
    SpanWeight { start, end, weight: 1.0 }
}

/// Needs the result of the inner call for something that no compiler turns into a loop, and no memory: so it is the stack of calls that
/// runs out, not the guest's own stack in its memory.
#[inline(never)]
fn descend(depth: u64, stop: u64) -> u64 {
    if depth == stop {
        return depth;
    }
    descend(depth + 1, stop).rotate_left(7) ^ depth
}

trainer_plugin_sdk::plugin_manifest! {
    name: "evil",
    description: "Misbehaves in every way that a row asks for",
    settings_schema: r#"{"type":"object"}"#,
}
trainer_plugin_sdk::export_raw_formatter!(Evil);
trainer_plugin_sdk::__export! {
    metric::EvilMetric, METRIC, "component-type:trainer:eval-metric", eval_metric, metric, __export_trainer_eval_metric_metric_0_1_0_cabi
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainer_plugin_sdk::bindings::exports::trainer::dataset_formatter::formatter::Guest;

    #[test]
    fn rows_without_a_payload_are_harmless() {
        let outcomes = Evil::format(vec!["{}".to_owned(), "[".to_owned(), r#"{"evil": "unheard of"}"#.to_owned()]);
        assert_eq!(outcomes.len(), 3);
        assert!(outcomes.iter().all(|o| matches!(o, Outcome::Sample(_))));
        assert_eq!(Evil::format(vec![r#"{"evil": "wrong_count"}"#.to_owned()]).len(), 2);
        assert!(Evil::format(vec![r#"{"evil": "no_outcome"}"#.to_owned()]).is_empty());
    }

    #[test]
    fn the_metric_judges_other_rows() {
        use trainer_plugin_sdk::bindings::exports::trainer::eval_metric::metric::Guest;
        use trainer_plugin_sdk::{Item, Response};
        let rows = |rows: &[&str]| rows.iter().map(|r| (*r).to_owned()).collect::<Vec<String>>();
        assert_eq!(metric::EvilMetric::prepare(rows(&["{}", r#"{"evil": "loop"}"#])).len(), 2);
        assert_eq!(metric::EvilMetric::prepare(rows(&[r#"{"evil": "ask_twice"}"#])).len(), 2);
        let item = |row: &str| Item { row: row.to_owned(), response: Response::Failed(String::new()) };
        let scores = metric::EvilMetric::score(vec![item("{}"), item(r#"{"evil": "sum_nan"}"#)]);
        assert_eq!(scores.len(), 2);
        assert!(metric::EvilMetric::aggregate(scores).unwrap()[0].value.is_nan());
        assert_eq!(metric::EvilMetric::aggregate(Vec::new()).unwrap()[0].value, 1.0);
    }
}
