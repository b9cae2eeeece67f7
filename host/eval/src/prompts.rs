//! Conversations to tokens.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use trainer_config::{PromptsFrom, Recipe};
use trainer_jinja::{AddedToken, ModelTemplate, RendererCommand};
use trainer_model::ModelFiles;
use trainer_model::chat_template::{chat_template, special_tokens, tokenizer_settings};
use trainer_plugin_host::RowError;
use trainer_plugin_host::template::{Piece as TemplatePiece, PromptRequest, Rendered, Template};
use trainer_text::{Piece, Segment, SpecialMode, Tokenizer};

use crate::error::EvalError;

/// What renders prompts: the template plugin, or the template that comes with the model.
#[derive(Clone)]
pub struct Prompts {
    template: Arc<Template>,
    own: Option<Arc<Own>>,
}

/// The model's own template.
struct Own {
    template: ModelTemplate,
    sha256: String,
}

impl Prompts {
    /// By the plugin.
    pub fn by_plugin(template: Arc<Template>) -> Self {
        Self { template, own: None }
    }

    /// As the recipe says.
    ///
    /// # Errors
    /// The recipe wants the model's own template, and there is none, or it is too long.
    pub fn new(recipe: &Recipe, files: &ModelFiles, tokenizer: &Tokenizer, template: Arc<Template>) -> Result<Self, EvalError> {
        if recipe.template.prompts == PromptsFrom::Plugin {
            return Ok(Self::by_plugin(template));
        }
        let source = chat_template(files)?.ok_or_else(|| EvalError::NoTemplate { model: files.describe() })?;
        let sha256 = Sha256::digest(source.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        let uses = special_tokens(&tokenizer_settings(files)?);
        let added = tokenizer.added_tokens().iter().map(|t| AddedToken { text: t.text.clone(), special: t.special }).collect();
        let own = Own { template: ModelTemplate::new(source, uses, added, RendererCommand::current_exe()?)?, sha256 };
        Ok(Self { template, own: Some(Arc::new(own)) })
    }

    /// Renders prompts; one answer per request, in order.
    ///
    /// # Errors
    /// What stops a run: the plugin's deadline, or a template of the model's that is broken or takes too much time or memory.
    pub fn render(&self, requests: &[PromptRequest]) -> Result<Vec<Result<Rendered, RowError>>, EvalError> {
        match &self.own {
            Some(own) => Ok(own.template.render_prompts(requests)?),
            None => Ok(self.template.render_prompts(requests)?),
        }
    }

    /// The digest of the model's own template, where that is what renders.
    pub fn own_sha256(&self) -> Option<&str> {
        self.own.as_ref().map(|own| own.sha256.as_str())
    }
}

/// A rendered text as a reader sees it.
pub fn rendered_text(rendered: &Rendered) -> String {
    rendered
        .segments
        .iter()
        .map(|s| match &s.piece {
            TemplatePiece::Text(t) | TemplatePiece::Special(t) => t.as_str(),
        })
        .collect()
}

/// A rendered prompt as tokens; strings in its text that look like special tokens stay text.
///
/// # Errors
/// The template asks for a special token that the tokenizer does not have.
pub fn encode_prompt(tokenizer: &Tokenizer, rendered: &Rendered) -> Result<Vec<u32>, trainer_text::TextError> {
    let segments: Vec<Segment<'_>> = rendered
        .segments
        .iter()
        .map(|s| Segment {
            piece: match &s.piece {
                TemplatePiece::Text(t) => Piece::Text(t.as_str()),
                TemplatePiece::Special(t) => Piece::Special(t.as_str()),
            },
            weight: 0.0,
        })
        .collect();
    Ok(tokenizer.encode_segments(&segments, SpecialMode::Plain)?.ids)
}

/// A decoded piece as the template's parser takes it.
pub fn template_piece(piece: Piece) -> TemplatePiece {
    match piece {
        Piece::Text(t) => TemplatePiece::Text(t),
        Piece::Special(t) => TemplatePiece::Special(t),
    }
}
