//! Values in 16-bit types, as the bytes of a file.

use crate::{ExportError, Result};
use half::{bf16, f16};
use rayon::prelude::*;
use trainer_model::{Dtype, FloatType};

/// The stored type of a 16- or 32-bit type.
pub(crate) fn stored(kind: FloatType) -> Dtype {
    match kind {
        FloatType::F32 => Dtype::F32,
        FloatType::Bf16 => Dtype::BF16,
        FloatType::F16 => Dtype::F16,
    }
}

/// Little-endian bytes of values, rounded to nearest even.
///
/// # Errors
/// A value that is not finite in that type; `name` is the tensor's.
pub(crate) fn bytes(name: &str, values: &[f32], kind: FloatType) -> Result<Vec<u8>> {
    let finite = |v: f32| match kind {
        FloatType::F32 => v.is_finite(),
        FloatType::Bf16 => bf16::from_f32(v).is_finite(),
        FloatType::F16 => f16::from_f32(v).is_finite(),
    };
    if let Some(at) = values.par_iter().position_first(|v| !finite(*v)) {
        let value = values.get(at).copied().unwrap_or(f32::NAN);
        return Err(ExportError::unfit(name, format!("value {at} is {value}, which {} cannot hold", kind.torch_name())));
    }
    Ok(match kind {
        FloatType::F32 => values.par_iter().flat_map_iter(|v| v.to_le_bytes()).collect(),
        FloatType::Bf16 => values.par_iter().flat_map_iter(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        FloatType::F16 => values.par_iter().flat_map_iter(|v| f16::from_f32(*v).to_le_bytes()).collect(),
    })
}

/// The values that [`bytes`] would keep.
pub(crate) fn rounded(mut values: Vec<f32>, kind: FloatType) -> Vec<f32> {
    match kind {
        FloatType::F32 => {}
        FloatType::Bf16 => values.par_iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
        FloatType::F16 => values.par_iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
    }
    values
}
