//! Texts to learn from: see the crate's own words on the forms.

use trainer_plugin_sdk::{Conversation, Message, Rendered};

use crate::Revision;
use crate::render::{self, Writer};

/// The roles that the template knows. It leaves others out, which must not happen to training data unnoticed.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

fn check_roles(messages: &[Message]) -> Result<(), String> {
    match messages.iter().enumerate().find(|(_, m)| !ROLES.contains(&m.role.as_str())) {
        Some((index, message)) => Err(format!("message {index} has the role {:?}; the template knows {}", message.role, ROLES.join(", "))),
        None => Ok(()),
    }
}

/// One sample, every turn as the model writes it.
pub fn whole(revision: Revision, conversation: &Conversation, thinking: Option<bool>) -> Result<Rendered, String> {
    let messages = &conversation.messages;
    if messages.is_empty() {
        return Err("the conversation has no messages".to_owned());
    }
    check_roles(messages)?;
    let mut writer = Writer::new();
    render::preamble(&mut writer, messages, &conversation.tools)?;
    for (index, message) in messages.iter().enumerate() {
        if message.role == "assistant" {
            writer.enter(index, message);
            writer.template("<|im_start|>assistant\n");
            if thinking == Some(false) {
                writer.template("<think>\n\n</think>\n\n");
            }
            answer(&mut writer, revision, index, message, thinking)?;
        } else {
            render::other(&mut writer, revision, messages, index)?;
        }
    }
    Ok(writer.finish())
}

/// One sample per assistant turn, after the prompt that inference gives there.
pub fn split(revision: Revision, conversation: &Conversation, thinking: Option<bool>) -> Result<Vec<Rendered>, String> {
    let messages = &conversation.messages;
    check_roles(messages)?;
    let mut samples = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message.role != "assistant" || !is_learnt(message) {
            continue;
        }
        let mut writer = Writer::new();
        let before = messages.get(..index).unwrap_or_default();
        if before.is_empty() {
            render::preamble(&mut writer, before, &conversation.tools)?;
        } else {
            render::conversation(&mut writer, revision, before, &conversation.tools, false)?;
        }
        render::generation_prompt(&mut writer, thinking);
        answer(&mut writer, revision, index, message, thinking)?;
        samples.push(writer.finish());
    }
    match samples.is_empty() {
        true => Err("the conversation has no assistant turn to learn from".to_owned()),
        false => Ok(samples),
    }
}

/// Whether any part of a message has a weight.
fn is_learnt(message: &Message) -> bool {
    message.weight != Some(0.0) || message.spans.iter().any(|s| s.weight > 0.0)
}

/// What the model writes after the prompt.
fn answer(writer: &mut Writer, revision: Revision, index: usize, message: &Message, thinking: Option<bool>) -> Result<(), String> {
    let turn = render::turn(revision, index, message)?;
    writer.enter(index, message);
    writer.generated(true);
    let reasons = !turn.reasoning.text.trim_matches('\n').is_empty();
    match thinking {
        Some(false) if reasons => {
            return Err(format!("message {index} (assistant) has reasoning, but the template arguments turn thinking off"));
        }
        // The prompt has closed the empty block.
        Some(false) => {}
        _ => render::think(writer, message, turn),
    }
    writer.content(message, turn.content.lstrip());
    render::calls(writer, index, message, turn)?;
    render::end_of_turn(writer);
    Ok(())
}
