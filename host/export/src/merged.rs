//! Base and adapter as one checkpoint, in 16 bits or in bitsandbytes' 4 bits.

use crate::card::{self, Card};
use crate::folder::{Folder, companions, config_text};
use crate::quantize::quantization_config;
use crate::safetensors::{Planned, Tensor, verify, write};
use crate::subject::Subject;
use crate::{ExportError, Exported, Result, bnb, dense};
use half::{bf16, f16};
use std::collections::BTreeSet;
use std::path::Path;
use trainer_kernels::nf4::{BLOCKSIZE, DoubleQuant, Nf4};
use trainer_model::layout::{ModelTensor, TensorRole};
use trainer_model::{FloatType, ModelConfig, ModelFiles, check_tensors};

/// The form of a merged checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// All weights in bfloat16 or float16, or in another type that was chosen.
    SixteenBit,
    /// Projections in bitsandbytes' NF4: those that the base has in 4 bits, or all where it has none. What is quantized is the 16-bit form, so that
    /// this equals quantizing the other export.
    FourBit,
}

impl Merged {
    fn format(self) -> &'static str {
        match self {
            Self::SixteenBit => "merged-16bit",
            Self::FourBit => "merged-4bit",
        }
    }
}

/// Which matrices go into 4 bits, and how.
pub(crate) struct FourBits {
    /// By tensor name.
    pub names: BTreeSet<String>,
    /// How scales are stored.
    pub double: DoubleQuant,
}

/// Writes a checkpoint with the adapter merged in, with tokenizer, chat template, generation settings and card, into a folder.
///
/// # Errors
/// A folder that is not free, values that 16 bits cannot hold, what the operating system refuses, and a file that differs when it is read again.
pub fn export_merged(subject: &Subject, form: Merged, shard_limit: u64, out: &Path) -> Result<Exported> {
    let origin = subject.origin();
    let four = (form == Merged::FourBit).then(|| {
        let prequantized = subject.config.quantization.is_some();
        let goes = |t: &ModelTensor| match t.role {
            TensorRole::Projection => !prequantized || subject.base_is_four_bit(t),
            TensorRole::Head => subject.base_is_four_bit(t),
            _ => false,
        };
        let plain = subject.config.quantization.as_ref().is_some_and(|q| !q.double_quant);
        let double = if plain { DoubleQuant::No } else { DoubleQuant::default() };
        FourBits { names: subject.tensors().into_iter().filter(goes).map(|t| t.name).collect(), double }
    });
    let (merging, weights) = match &subject.adapter {
        Some(_) => (format!("A LoRA adapter, {}.", origin.sentence()), Some(origin.sentence())),
        None => ("The base model, without an adapter.".to_string(), None),
    };
    let kind = match form {
        Merged::SixteenBit => format!("All weights are in {}.", subject.dtype().torch_name()),
        Merged::FourBit => {
            "Projections are in 4 bits (bitsandbytes NF4); the merged weights were rounded to them again, which costs some accuracy."
                .to_string()
        }
    };
    let usage = "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                 model = AutoModelForCausalLM.from_pretrained(\"PATH\")\ntokenizer = AutoTokenizer.from_pretrained(\"PATH\")";
    let mut notes = Vec::new();
    let folder = Folder::create(out)?;
    let verified = fill(subject, four.as_ref(), shard_limit, &folder, &mut notes)?;
    card::write(
        &folder,
        subject,
        &Card {
            what: format!("{merging} {kind}"),
            library: "transformers",
            tags: if form == Merged::FourBit { &["4-bit", "bitsandbytes"] } else { &[] },
            usage: ("python", usage.to_string()),
            verified,
            notes: &notes,
        },
    )?;
    let bytes = folder.commit()?;
    Ok(Exported { path: out.to_path_buf(), format: form.format().into(), weights, verified_tensors: verified, bytes, notes })
}

/// Writes weights, configuration, tokenizer and so on into a folder, reads the weights again, and says how many tensors are equal.
pub(crate) fn fill(
    subject: &Subject,
    four: Option<&FourBits>,
    shard_limit: u64,
    folder: &Folder,
    notes: &mut Vec<String>,
) -> Result<usize> {
    let dtype = subject.dtype();
    let tensors = subject.tensors();
    let quantized = |t: &ModelTensor| four.is_some_and(|four| four.names.contains(&t.name));
    let groups: Vec<Vec<Planned>> = tensors
        .iter()
        .map(|t| {
            let values = t.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
            let whole = || vec![Planned { name: t.name.clone(), bytes: values.saturating_mul(dtype.size() as u64) }];
            if quantized(t) { bnb::plan(&t.name, &t.shape) } else { whole() }
        })
        .collect();
    let digests = write(folder.path(), &groups, shard_limit, &mut |i| {
        let tensor = tensors.get(i).ok_or_else(|| ExportError::unfit("export", "a tensor without a plan"))?;
        if let Some(four) = four.filter(|_| quantized(tensor)) {
            let weight = match subject.four_bit(tensor)? {
                Some(weight) => weight,
                None => quantize(tensor, subject.values(tensor)?, dtype, four.double)?,
            };
            return Ok(bnb::tensors(&tensor.name, &weight));
        }
        let bytes = dense::bytes(&tensor.name, &subject.values(tensor)?, dtype)?;
        Ok(vec![Tensor { name: tensor.name.clone(), dtype: dense::stored(dtype), shape: tensor.shape.clone(), bytes }])
    })?;
    let quantization = four.map(|four| quantization_config(&tensors, &four.names, four.double, dtype));
    folder.write("config.json", config_text(&subject.files, dtype.torch_name(), quantization)?)?;
    let (files, more) = companions(&subject.files, &subject.config)?;
    for (name, bytes) in &files {
        folder.write(name, bytes)?;
    }
    notes.extend(more);
    // As every reader of the folder: configuration, names, shapes, then every byte.
    let again = ModelFiles::dir(folder.path());
    check_tensors(&trainer_model::Checkpoint::open(&again)?, &ModelConfig::read(&again)?)?;
    verify(folder.path(), &digests)
}

/// A matrix in 4 bits, from its 16-bit form, as bitsandbytes makes it.
fn quantize(tensor: &ModelTensor, values: Vec<f32>, dtype: FloatType, double: DoubleQuant) -> Result<Nf4> {
    let made = match dtype {
        FloatType::F32 => Nf4::quantize(&values, &tensor.shape, BLOCKSIZE, double),
        FloatType::Bf16 => {
            let values: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            Nf4::quantize(&values, &tensor.shape, BLOCKSIZE, double)
        }
        FloatType::F16 => {
            let values: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            Nf4::quantize(&values, &tensor.shape, BLOCKSIZE, double)
        }
    };
    made.map_err(|e| ExportError::unfit(&tensor.name, e.to_string()))
}
