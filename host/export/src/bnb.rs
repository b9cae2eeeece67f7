//! A 4-bit weight as the tensors in which bitsandbytes stores it (`QuantState.as_dict(packed=True)`).

use crate::safetensors::{Planned, Tensor};
use trainer_kernels::nf4::{Absmax, Nf4};
use trainer_model::Dtype;

/// More than any quant state takes: its numbers have at most 25 characters each.
const STATE_LIMIT: u64 = 512;

/// What a 4-bit weight of `[out, in]` will take up, at the most.
pub(crate) fn plan(name: &str, shape: &[usize]) -> Vec<Planned> {
    let values = shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
    let blocks = values.div_ceil(trainer_kernels::nf4::BLOCKSIZE as u64);
    let part = |suffix: &str, bytes: u64| Planned { name: format!("{name}{suffix}"), bytes };
    vec![
        part("", values.div_ceil(2)),
        // Single scales take four bytes each, codes of them one.
        part(".absmax", blocks.saturating_mul(4)),
        part(".quant_map", 64),
        part(".nested_absmax", blocks.div_ceil(trainer_kernels::nf4::NESTED_BLOCKSIZE as u64).saturating_mul(4)),
        part(".nested_quant_map", 1024),
        part(".quant_state.bitsandbytes__nf4", STATE_LIMIT),
    ]
}

/// The tensors of a 4-bit weight.
pub(crate) fn tensors(name: &str, weight: &Nf4) -> Vec<Tensor> {
    let floats = |suffix: &str, values: &[f32]| Tensor {
        name: format!("{name}{suffix}"),
        dtype: Dtype::F32,
        shape: vec![values.len()],
        bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let bytes =
        |suffix: &str, shape: Vec<usize>, bytes: Vec<u8>| Tensor { name: format!("{name}{suffix}"), dtype: Dtype::U8, shape, bytes };
    let packed = weight.packed();
    // torch's uint8 column, as bitsandbytes has it.
    let mut all = vec![bytes("", vec![packed.len(), 1], packed.to_vec()), floats(".quant_map", weight.code())];
    let mut nested = String::new();
    match weight.absmax() {
        Absmax::Plain(scales) => all.push(floats(".absmax", scales)),
        Absmax::Nested(n) => {
            all.push(bytes(".absmax", vec![n.codes.len()], n.codes.clone()));
            all.push(floats(".nested_absmax", &n.absmax));
            all.push(floats(".nested_quant_map", n.code.as_slice()));
            // Python prints an f32 as the f64 that it is.
            let offset = f64::from(n.offset);
            nested = format!(", \"nested_blocksize\": {}, \"nested_dtype\": \"float32\", \"nested_offset\": {offset:?}", n.blocksize);
        }
    }
    let shape: Vec<String> = weight.shape().iter().map(ToString::to_string).collect();
    let state = format!(
        "{{\"quant_type\": \"nf4\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": [{}]{nested}}}",
        weight.blocksize(),
        weight.dtype().torch_name(),
        shape.join(", ")
    );
    all.push(bytes(".quant_state.bitsandbytes__nf4", vec![state.len()], state.into_bytes()));
    all
}
