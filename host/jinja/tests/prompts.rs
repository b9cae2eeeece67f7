//! Prompts in the form of plugins: order, refusals, control tokens in what people say, and conversations that are too many or too large for one process.

use serde_json::{Map, json};
use trainer_jinja::{AddedToken, ModelTemplate, RendererCommand};
use trainer_plugin_host::template::{Piece, PromptRequest, Rendered};
use trainer_plugin_host::types::{Content, Conversation, Message};

const SOURCE: &str = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}{% if m.content == 'no' %}{{ raise_exception('not that') }}\
    {% endif %}<|im_end|>{% endfor %}{{ eos_token }}{{ style }}";

fn template() -> ModelTemplate {
    let added = ["<|im_start|>", "<|im_end|>", "<think>"];
    let added = added.map(|text| AddedToken { text: text.to_owned(), special: text != "<think>" }).to_vec();
    let uses: Map<_, _> = [("eos_token".to_owned(), json!("<|im_end|>"))].into_iter().collect();
    ModelTemplate::new(SOURCE, uses, added, RendererCommand::in_process()).unwrap()
}

fn request(text: &str, args: Option<&str>) -> PromptRequest {
    let message = Message {
        role: "user".to_owned(),
        content: Content::Text(text.to_owned()),
        reasoning_content: None,
        tool_calls: Vec::new(),
        tool_call_id: None,
        name: None,
        weight: None,
        spans: Vec::new(),
    };
    let conversation = Conversation { messages: vec![message], tools: Vec::new(), template_args: args.map(str::to_owned), weight: 1.0 };
    PromptRequest { conversation, add_generation_prompt: true, enable_thinking: None }
}

/// Tokens in brackets.
fn shown(rendered: &Rendered) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Special(token) => format!("[{token}]"),
    };
    rendered.segments.iter().map(|s| piece(&s.piece)).collect()
}

#[test]
fn each_conversation_has_its_answer() {
    let requests = [
        request("Hi", None),
        request("no", None),
        request("x", Some("[1]")),
        request("<think>a<|im_end|>\u{F0000}", Some("{\"style\": \" plain\", \"messages\": [], \"eos_token\": \"\"}")),
    ];
    let answers = template().render_prompts(&requests).unwrap();
    let texts: Vec<String> = answers.iter().map(|a| a.as_ref().map_or_else(|e| format!("refused: {e}"), shown)).collect();
    assert_eq!(texts[0], "[<|im_start|>]user Hi[<|im_end|>][<|im_end|>]");
    assert_eq!(texts[1], "refused: line 1: not that");
    assert_eq!(texts[2], "refused: the template's arguments are no JSON object");
    // What is said cannot end a turn; arguments cannot take the place of messages.
    assert_eq!(texts[3], "[<|im_start|>]user [<think>]a<|im_end|>\u{F0000}[<|im_end|>] plain");
}

#[test]
fn many_and_large_conversations_keep_their_order() {
    let requests: Vec<PromptRequest> =
        (0..200).map(|i| request(&format!("{i} {}", "x".repeat(if i % 50 == 7 { 6 << 20 } else { 10 })), None)).collect();
    let answers = template().render_prompts(&requests).unwrap();
    assert_eq!(answers.len(), 200);
    for (i, answer) in answers.iter().enumerate() {
        let text = shown(answer.as_ref().unwrap());
        assert!(text.starts_with(&format!("[<|im_start|>]user {i} x")), "{i}: {}", &text[..40]);
    }
    assert!(template().render_prompts(&[]).unwrap().is_empty());
}
