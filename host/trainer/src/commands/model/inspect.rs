//! `trainer model inspect`

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::json;
use trainer_export::token_notes;
use trainer_model::{Adapter, Checkpoint, GenerationConfig, ModelConfig, ModelFiles, ModelTree};
use trainer_runtime::model_headers;

use super::args::ModelInspectArgs;
use crate::output::{check_json, write_json};

/// Runs the command.
pub fn run(args: &ModelInspectArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let source = super::named(&args.model)?;
    let (files, headers) = model_headers(&source)?;
    let config = ModelConfig::read(&files)?;
    let checkpoint = Checkpoint::open(&files)?;
    let read = |folder: &std::path::PathBuf| {
        Adapter::read(&ModelFiles::dir(folder)).with_context(|| format!("the adapter in {}", folder.display()))
    };
    let adapter = args.adapter.as_ref().map(read).transpose()?;
    let tree = ModelTree::new(&checkpoint, &config, adapter.as_ref())?;
    let notes = token_notes(&files, &config)?;
    if let Some(target) = &args.json {
        let generation = GenerationConfig::read(&files)?;
        write_json(
            target,
            &json!({
                "model": source.to_string(),
                "files": headers.as_ref().map_or_else(|| files.describe(), |h| h.repo.to_string()),
                "fetched": headers.as_ref().map(|h| h.fetched),
                "totals": tree.totals,
                "tree": tree.root,
                "config": {
                    "vocab_size": config.vocab_size,
                    "hidden_size": config.hidden_size,
                    "intermediate_size": config.intermediate_size,
                    "layers": config.num_hidden_layers,
                    "attention_heads": config.num_attention_heads,
                    "key_value_heads": config.num_key_value_heads,
                    "head_dim": config.head_dim,
                    "rope_theta": config.rope_theta,
                    "max_positions": config.max_position_embeddings,
                    "tied_head": config.tie_word_embeddings,
                    "attention_bias": config.attention_bias,
                },
                "eos_token_ids": if generation.eos_token_ids.is_empty() { &config.eos_token_ids } else { &generation.eos_token_ids },
                "pad_token_id": generation.pad_token_id.or(config.pad_token_id),
                "adapter": args.adapter,
                "notes": notes,
            }),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    crate::output::put(format_args!("{tree}"));
    say!("\n{}", tree.totals);
    for note in notes {
        say!("note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}
