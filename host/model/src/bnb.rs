//! The stored 4-bit form of bitsandbytes: a weight `NAME` comes with `NAME.absmax`, `NAME.quant_map`, under double quantization
//! `NAME.nested_absmax` and `NAME.nested_quant_map`, and JSON bytes in `NAME.quant_state.bitsandbytes__nf4`.

use crate::checkpoint::Checkpoint;
use crate::config::float_type;
use crate::json::{Object, parse_object};
use crate::tensors::{Dtype, TensorValues};
use crate::{ModelError, Result};
use trainer_kernels::nf4::{Absmax, NestedAbsmax, Nf4};

/// The tensor whose presence says that a weight is stored in 4 bits.
pub(crate) fn state_name(weight: &str) -> String {
    format!("{weight}.quant_state.bitsandbytes__nf4")
}

/// All tensors that go with a 4-bit weight.
pub(crate) fn part_names(weight: &str) -> [String; 5] {
    let part = |suffix: &str| format!("{weight}.{suffix}");
    [part("absmax"), part("quant_map"), part("nested_absmax"), part("nested_quant_map"), state_name(weight)]
}

/// Reads the weight of a linear layer, which must have the shape `[out, in]`.
pub(crate) fn read(checkpoint: &Checkpoint, weight: &str, shape: [usize; 2]) -> Result<Nf4> {
    let state = checkpoint.read(&state_name(weight))?;
    let file = state.file.clone();
    let wrong = |problem: String| ModelError::tensor(&file, weight, problem);
    let text = String::from_utf8(state.into_u8()?).map_err(|_| wrong("its quant_state is not UTF-8".to_string()))?;
    let place = format!("{file}: {}", state_name(weight));
    let map = parse_object(&text, &place)?;
    let object = Object { map: &map, file: &place, prefix: "" };

    match object.string("quant_type")? {
        Some("nf4") => {}
        other => return Err(ModelError::unsupported(&place, format!("quant_type {other:?}"), "only \"nf4\" is")),
    }
    let dtype = match object.string("dtype")? {
        None => return Err(object.error("dtype", "is missing")),
        Some(name) => float_type(name).ok_or_else(|| object.error("dtype", format!("is {name:?}")))?,
    };
    let sizes: Option<Vec<u64>> = object.get("shape").and_then(|v| v.as_array()).and_then(|a| a.iter().map(|d| d.as_u64()).collect());
    let sizes = sizes.ok_or_else(|| object.error("shape", "is missing or not a list of sizes"))?;
    if !sizes.iter().copied().eq(shape.iter().map(|&d| d as u64)) {
        return Err(wrong(format!("has shape {sizes:?} instead of {shape:?}")));
    }
    let blocksize = object.size("blocksize", 65536)?.ok_or_else(|| object.error("blocksize", "is missing"))?;

    let packed = checkpoint.read(weight)?.into_u8()?;
    let code = floats(checkpoint.read(&format!("{weight}.quant_map"))?)?;
    let code: [f32; 16] = code.try_into().map_err(|v: Vec<f32>| wrong(format!("its quant_map has {} entries; NF4 has 16", v.len())))?;
    let absmax = checkpoint.read(&format!("{weight}.absmax"))?;
    let nested = checkpoint.tensor(&format!("{weight}.nested_absmax")).is_some();
    let absmax = match (absmax.dtype, nested) {
        (Dtype::F32, false) => Absmax::Plain(floats(absmax)?),
        (Dtype::U8, true) => {
            match object.string("nested_dtype")? {
                None | Some("float32") => {}
                Some(other) => return Err(ModelError::unsupported(&place, format!("nested_dtype {other:?}"), "only \"float32\" is")),
            }
            let code = floats(checkpoint.read(&format!("{weight}.nested_quant_map"))?)?;
            let code: Box<[f32; 256]> = code
                .into_boxed_slice()
                .try_into()
                .map_err(|v: Box<[f32]>| wrong(format!("its nested_quant_map has {} entries; 8-bit codes need 256", v.len())))?;
            Absmax::Nested(NestedAbsmax {
                codes: absmax.into_u8()?,
                absmax: floats(checkpoint.read(&format!("{weight}.nested_absmax"))?)?,
                offset: object.number("nested_offset")?.ok_or_else(|| object.error("nested_offset", "is missing"))? as f32,
                code,
                blocksize: object.size("nested_blocksize", 65536)?.ok_or_else(|| object.error("nested_blocksize", "is missing"))?,
            })
        }
        (dtype, nested) => {
            let form = if nested { "with" } else { "without" };
            return Err(wrong(format!("its absmax has type {dtype} {form} nested_absmax; it must be F32 without or U8 with it")));
        }
    };
    Nf4::from_parts(packed, absmax, &shape, blocksize, code, dtype).map_err(|e| wrong(e.to_string()))
}

fn floats(tensor: TensorValues) -> Result<Vec<f32>> {
    tensor.to_f32()
}
