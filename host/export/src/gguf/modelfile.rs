//! Ollama's Modelfile: the file, the template in Go's language, stops and sampling.

use crate::Result;
use crate::subject::Subject;
use std::fmt::Write;
use trainer_model::GenerationConfig;

/// ChatML with Qwen3's tools and thinking, in Go's templates. Ollama takes no Jinja.
const TEMPLATE: &str = include_str!("../../assets/qwen3.ollama.tmpl");

/// The text of a Modelfile beside the file `model`.
pub(crate) fn text(subject: &Subject, model: &str) -> Result<String> {
    let generation = GenerationConfig::read(&subject.files)?;
    let mut text = format!("FROM ./{model}\n\nTEMPLATE \"\"\"{}\"\"\"\n\n", TEMPLATE.trim_end());
    for stop in ["<|im_start|>", "<|im_end|>"] {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "PARAMETER stop \"{stop}\"");
    }
    let greedy = generation.do_sample == Some(false);
    let temperature = if greedy { Some(0.0) } else { generation.temperature };
    let numbers = [("temperature", temperature), ("top_p", generation.top_p), ("min_p", generation.min_p)];
    for (name, value) in numbers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        let _ = writeln!(text, "PARAMETER {name} {value}");
    }
    if let Some(k) = generation.top_k {
        let _ = writeln!(text, "PARAMETER top_k {k}");
    }
    if let Some(penalty) = generation.repetition_penalty {
        let _ = writeln!(text, "PARAMETER repeat_penalty {penalty}");
    }
    let _ = writeln!(text, "PARAMETER num_ctx {}", subject.config.max_position_embeddings.min(8192));
    Ok(text)
}
