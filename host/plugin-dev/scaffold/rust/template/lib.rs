//! ChatML: `<|im_start|>role`, the message, `<|im_end|>`.

use trainer_plugin_sdk::{
    Content, Conversation, Description, Message, NoSettings, OutputParser, OutputPart, Piece, PromptRequest, Rendered, Segment, Template,
    plugin,
};

const START: &str = "<|im_start|>";
const END: &str = "<|im_end|>";

struct ChatMl;

/// The pieces of one message. `generated` marks what the model writes itself; weights come from the data.
fn message(segments: &mut Vec<Segment>, index: usize, message: &Message) -> Result<(), String> {
    let wrong = |words: &str| format!("message {index}: {words}");
    let text = match &message.content {
        Content::Text(text) => text.as_str(),
        Content::None => "",
        Content::Json(_) => return Err(wrong("this template knows only text as content")),
    };
    if message.reasoning_content.is_some() {
        return Err(wrong("this template knows no reasoning"));
    }
    if !message.tool_calls.is_empty() {
        return Err(wrong("this template knows no tool calls"));
    }
    let generated = message.role == "assistant";
    let whole = message.weight.unwrap_or(1.0);
    let mut push = |piece, generated, weight| {
        segments.push(Segment { piece, source_message: Some(index as u32), generated, weight });
    };
    push(Piece::Special(START.to_owned()), false, whole);
    push(Piece::Text(format!("{}\n", message.role)), false, whole);
    let mut at = 0;
    for span in &message.spans {
        let (start, end) = (span.start as usize, span.end as usize);
        let (Some(before), Some(part)) = (text.get(at..start), text.get(start..end)) else {
            return Err(wrong("its spans do not fit its text"));
        };
        if !before.is_empty() {
            push(Piece::Text(before.to_owned()), generated, whole);
        }
        push(Piece::Text(part.to_owned()), generated, span.weight);
        at = end;
    }
    if let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        push(Piece::Text(rest.to_owned()), generated, whole);
    }
    push(Piece::Special(END.to_owned()), generated, whole);
    push(Piece::Text("\n".to_owned()), false, whole);
    Ok(())
}

fn render(conversation: &Conversation) -> Result<Vec<Segment>, String> {
    if !conversation.tools.is_empty() {
        return Err("this template knows no tools".to_owned());
    }
    if conversation.messages.is_empty() {
        return Err("the conversation has no messages".to_owned());
    }
    let mut segments = Vec::new();
    for (index, m) in conversation.messages.iter().enumerate() {
        message(&mut segments, index, m)?;
    }
    Ok(segments)
}

impl Template for ChatMl {
    type Settings = NoSettings;
    type Parser = Plain;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn describe(&self) -> Description {
        Description { stop_tokens: vec![END.to_owned()], stable_prefixes: true }
    }

    /// A prompt, as the model's own template writes it.
    fn render_prompt(&self, request: &PromptRequest) -> Result<Rendered, String> {
        let mut segments = render(&request.conversation)?;
        if request.add_generation_prompt {
            let piece = |piece| Segment { piece, source_message: None, generated: false, weight: 1.0 };
            segments.extend([piece(Piece::Special(START.to_owned())), piece(Piece::Text("assistant\n".to_owned()))]);
        }
        Ok(Rendered { segments })
    }

    /// A text to learn from: one sample here; a template may cut a conversation into several.
    fn render_training(&self, conversation: &Conversation) -> Result<Vec<Rendered>, String> {
        Ok(vec![Rendered { segments: render(conversation)? }])
    }
}

/// Reads the model's output: all of it is text, up to the end of the turn.
struct Plain;

impl OutputParser for Plain {
    fn new(_in_reasoning: bool) -> Self {
        Self
    }

    fn push(&mut self, pieces: Vec<Piece>) -> Vec<OutputPart> {
        let text = pieces.into_iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text),
            Piece::Special(token) => (token != END).then_some(token),
        });
        let text: String = text.collect();
        if text.is_empty() { Vec::new() } else { vec![OutputPart::Text(text)] }
    }

    fn finish(&mut self) -> Vec<OutputPart> {
        Vec::new()
    }
}

plugin! { template: ChatMl, }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_turn_is_trained() {
        let conversation = Conversation::of([Message::user("Hi"), Message::assistant("Hello")]);
        let rendered = ChatMl.render_training(&conversation).unwrap();
        let trained: String = rendered[0].segments.iter().filter(|s| s.generated).map(|s| s.piece.as_str()).collect();
        assert_eq!(trained, "Hello<|im_end|>");
    }
}
