//! Which tensor is stored how: llama.cpp's mixtures (`llama_tensor_get_type` of `llama-quant.cpp`).

use crate::subject::Subject;
use trainer_model::gguf::GgmlType;
use trainer_model::layout::{ModelTensor, TensorRole};

/// The types of GGUF files that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufQuant {
    /// All matrices in f16.
    F16,
    /// All matrices in bf16.
    Bf16,
    /// All matrices in eight bits.
    Q8_0,
    /// Four bits, with six for the output head, half of the values' and of the MLPs' output projections.
    Q4KM,
}

impl GgufQuant {
    /// All.
    pub const ALL: [Self; 4] = [Self::F16, Self::Bf16, Self::Q8_0, Self::Q4KM];

    /// The name for users.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4KM => "q4_k_m",
        }
    }

    /// `general.file_type`: llama.cpp's number of the mixture.
    pub(crate) fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Bf16 => 32,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
        }
    }
}

/// How a tensor is stored.
pub(crate) fn kind(subject: &Subject, quant: GgufQuant, tensor: &ModelTensor) -> GgmlType {
    if matches!(tensor.role, TensorRole::Norm | TensorRole::Bias) {
        return GgmlType::F32;
    }
    let wanted = match quant {
        GgufQuant::F16 => GgmlType::F16,
        GgufQuant::Bf16 => GgmlType::BF16,
        GgufQuant::Q8_0 => GgmlType::Q8_0,
        GgufQuant::Q4KM => four_bit_kind(subject, tensor),
    };
    fitting(wanted, tensor.shape.last().copied().unwrap_or(0))
}

fn four_bit_kind(subject: &Subject, tensor: &ModelTensor) -> GgmlType {
    let layers = subject.config.num_hidden_layers;
    match tensor.role {
        TensorRole::Head => GgmlType::Q6_K,
        TensorRole::Embedding if subject.config.tie_word_embeddings => GgmlType::Q6_K,
        TensorRole::Projection if tensor.name.ends_with(".v_proj.weight") || tensor.name.ends_with(".down_proj.weight") => {
            let layer = tensor.name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            if layer.is_some_and(|layer| more_bits(layer, layers)) { GgmlType::Q6_K } else { GgmlType::Q4_K }
        }
        _ => GgmlType::Q4_K,
    }
}

/// The first and the last eighth of the layers, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// The type, or the next one whose blocks fit into rows of this length.
fn fitting(wanted: GgmlType, row: usize) -> GgmlType {
    let fits = |kind: GgmlType| row > 0 && row.is_multiple_of(kind.block().0);
    let next = match wanted {
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q6_K => GgmlType::Q8_0,
        other => other,
    };
    match (fits(wanted), fits(next)) {
        (true, _) => wanted,
        (false, true) => next,
        (false, false) => GgmlType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_more_bits_are_llama_cpps() {
        let with: Vec<usize> = (0..28).filter(|l| more_bits(*l, 28)).collect();
        assert_eq!(with, [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]);
        assert_eq!((0..6).filter(|l| more_bits(*l, 6)).collect::<Vec<_>>(), [2, 5]);
    }

    #[test]
    fn rows_decide_what_fits() {
        let cases = [(GgmlType::Q4_K, 512, GgmlType::Q4_K), (GgmlType::Q4_K, 192, GgmlType::Q5_0), (GgmlType::Q6_K, 96, GgmlType::Q8_0)];
        for (wanted, row, found) in cases {
            assert_eq!(fitting(wanted, row), found);
        }
        assert_eq!(fitting(GgmlType::Q8_0, 33), GgmlType::F16);
        assert_eq!(fitting(GgmlType::BF16, 33), GgmlType::BF16);
    }
}
