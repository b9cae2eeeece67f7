//! The adapter by itself, in PEFT's format.

use crate::card::{self, Card};
use crate::folder::{Folder, companions};
use crate::subject::Subject;
use crate::{ExportError, Exported, Result};
use std::path::Path;
use trainer_model::adapter::{CONFIG_FILE, WEIGHTS_FILE};
use trainer_model::{Adapter, ModelFiles};

/// Writes the adapter with tokenizer, chat template and card into a folder.
///
/// # Errors
/// A subject without an adapter, a folder that is not free, and what the operating system refuses.
pub fn export_adapter(subject: &Subject, out: &Path) -> Result<Exported> {
    let mut adapter = subject.adapter.clone().ok_or_else(|| ExportError::unfit("export adapter", "there is no adapter"))?;
    if adapter.config.base_model.is_none() {
        adapter.config.base_model = Some(subject.provenance.base.clone());
    }
    let folder = Folder::create(out)?;
    let (config, weights) = adapter.to_files()?;
    folder.write(WEIGHTS_FILE, weights)?;
    folder.write(CONFIG_FILE, config)?;
    let again = Adapter::read(&ModelFiles::dir(folder.path()))?;
    if again != adapter {
        let problem = "the adapter differs from what was written".to_string();
        return Err(ExportError::Verify { file: folder.path().join(WEIGHTS_FILE), tensor: "(all)".to_string(), problem });
    }
    let (files, notes) = companions(&subject.files, &subject.config)?;
    for (name, bytes) in &files {
        folder.write(name, bytes)?;
    }
    let base = &subject.provenance.base;
    let usage = format!(
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
         model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"{base}\"), \"PATH\")\n\
         tokenizer = AutoTokenizer.from_pretrained(\"PATH\")"
    );
    let verified = adapter.modules.values().map(|m| if m.rank > 0 { 2 } else { 0 } + usize::from(m.bias.is_some())).sum();
    card::write(
        &folder,
        subject,
        &Card {
            what: format!("A LoRA adapter for `{base}`, in PEFT's format."),
            library: "peft",
            tags: &["lora"],
            usage: ("python", usage),
            verified,
            notes: &notes,
        },
    )?;
    let bytes = folder.commit()?;
    Ok(Exported { path: out.to_path_buf(), format: "adapter".into(), weights: None, verified_tensors: verified, bytes, notes })
}
