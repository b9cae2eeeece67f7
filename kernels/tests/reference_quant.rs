//! Quantization and optimizer against what bitsandbytes computed (`tests/reference/quant`). Sizes, settings and names come from the files.

use half::{bf16, f16};
use std::collections::BTreeMap;
use trainer_kernels::adamw::{self, AdamWConfig, OptimizerState, StateBits};
use trainer_kernels::blockwise8::{self, Map, Rounding};
use trainer_kernels::nf4::{Absmax, DoubleQuant, Element, NF4_CODE, Nf4};
use trainer_test_support::{Tensor, json, max_abs_diff, tensors};

const NF4: &str = "quant/nf4.safetensors";
const ADAMW: &str = "quant/adamw8bit.safetensors";

fn get<'a>(map: &'a BTreeMap<String, Tensor>, name: &str) -> &'a Tensor {
    map.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
}

fn values<T: Element>(tensor: &Tensor) -> Vec<T> {
    tensor.f32().into_iter().map(T::from_f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn size(value: &serde_json::Value, key: &str) -> usize {
    value[key].as_u64().unwrap_or_else(|| panic!("no {key} in {value}")) as usize
}

fn shape(value: &serde_json::Value) -> Vec<usize> {
    value["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect()
}

fn nf4_case<T: Element>(all: &BTreeMap<String, Tensor>, case: &serde_json::Value) {
    let name = case["name"].as_str().unwrap();
    let part = |suffix: &str| get(all, &format!("{name}.{suffix}"));
    let (shape, blocksize, nested) = (shape(case), size(case, "blocksize"), size(case, "nested_blocksize"));
    let input: Vec<T> = values(part("input"));

    let plain = Nf4::quantize(&input, &shape, blocksize, DoubleQuant::No).unwrap();
    assert_eq!(plain.packed(), part("packed").bytes, "{name}: packed");
    let Absmax::Plain(scales) = plain.absmax() else { panic!("{name}: plain scales") };
    assert_eq!(bits(scales), bits(&part("absmax").f32()), "{name}: absmax");
    check_dequant::<T>(name, &plain, part("dequant"));

    let mut matched = 0;
    for (rounding, file) in [(Rounding::Nearest, "nested_absmax_u8_nearest"), (Rounding::CpuTable, "nested_absmax_u8")] {
        let double = Nf4::quantize(&input, &shape, blocksize, DoubleQuant::Yes { blocksize: nested, rounding }).unwrap();
        assert_eq!(double.packed(), part("packed").bytes, "{name}: packed");
        let Absmax::Nested(scales) = double.absmax() else { panic!("{name}: nested scales") };
        let close = |got: &[f32], want: &[f32], what: &str| {
            assert_eq!(got.len(), want.len(), "{name}: {what}");
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() <= 1e-6 * w.abs(), "{name}: {what} is {g}, not {w}");
            }
        };
        close(&[scales.offset], &part("nested_offset").f32(), "nested_offset");
        // A nested scale is a difference to the offset; its error is that of the offset, not relative to itself.
        let worst = max_abs_diff(&scales.absmax, &part("nested_absmax").f32());
        assert!(
            worst <= 1e-6 * scales.offset.abs().max(part("nested_absmax").f32().iter().fold(0.0, |m, v| m.max(v.abs()))),
            "{name}: nested_absmax {worst}"
        );
        assert_eq!(scales.codes, part(file).bytes, "{name}: {file}");
        matched += 1;
    }
    assert_eq!(matched, 2);

    // What was stored under double quantization (by the CPU kernel) dequantizes to the stored values.
    let stored = Nf4::from_parts(
        part("packed").bytes.clone(),
        Absmax::Nested(trainer_kernels::nf4::NestedAbsmax {
            codes: part("nested_absmax_u8").bytes.clone(),
            absmax: part("nested_absmax").f32(),
            offset: part("nested_offset").f32()[0],
            code: Box::new(get(all, "nested_code").f32().try_into().unwrap()),
            blocksize: nested,
        }),
        &shape,
        blocksize,
        get(all, "nf4_code").f32().try_into().unwrap(),
        T::TYPE,
    )
    .unwrap();
    check_dequant::<T>(name, &stored, part("dequant_nested"));
}

/// f32 bit for bit (stricter than the recommended 1e-7), 16-bit types exactly.
fn check_dequant<T: Element>(name: &str, quantized: &Nf4, want: &Tensor) {
    let got: Vec<T> = quantized.dequantize();
    let got: Vec<f32> = got.into_iter().map(T::to_f32).collect();
    let want = want.f32();
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        assert!(g == w, "{name}: value {i} is {g:e}, not {w:e}");
    }
}

#[test]
fn reference_nf4() {
    let all = tensors(NF4);
    let index = json("quant/nf4_index.json");
    let cases = index.as_array().unwrap();
    assert!(!cases.is_empty());
    assert_eq!(bits(&get(&all, "nf4_code").f32()), bits(&NF4_CODE), "the 16 code points");
    assert_eq!(bits(&get(&all, "nested_code").f32()), bits(Map::signed().code()), "the nested code book");
    for case in cases {
        match case["dtype"].as_str().unwrap() {
            "float32" => nf4_case::<f32>(&all, case),
            "bfloat16" => nf4_case::<bf16>(&all, case),
            "float16" => nf4_case::<f16>(&all, case),
            other => panic!("unknown dtype {other}"),
        }
    }
    let named = all.keys().filter(|k| k.ends_with(".input")).count();
    assert_eq!(named, cases.len(), "the index names every tensor of the file");
}

#[test]
fn reference_blockwise8() {
    let all = tensors("quant/blockwise8.safetensors");
    let index = json("quant/blockwise8_index.json");
    let cases = index.as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let part = |suffix: &str| get(&all, &format!("{name}.{suffix}"));
        let which = case["map"].as_str().unwrap();
        let map = match which {
            "signed" => Map::signed(),
            "unsigned" => Map::unsigned(),
            other => panic!("unknown map {other}"),
        };
        assert_eq!(bits(map.code()), bits(&get(&all, &format!("dynamic_map_{which}")).f32()), "the {which} map");
        let (input, blocksize) = (part("input").f32(), size(case, "blocksize"));
        assert_eq!(input.len(), size(case, "n"));
        for (rounding, file) in [(Rounding::Nearest, "q_nearest"), (Rounding::CpuTable, "q")] {
            let got = blockwise8::quantize(&input, map, blocksize, rounding);
            assert_eq!(bits(&got.absmax), bits(&part("absmax").f32()), "{name}: absmax");
            assert_eq!(got.codes, part(file).bytes, "{name}: {file}");
        }
        let mut out = vec![0f32; input.len()];
        blockwise8::dequantize(&part("q").bytes, &part("absmax").f32(), map.code(), blocksize, &mut out);
        assert!(out.iter().zip(part("dequant").f32()).all(|(a, b)| *a == b), "{name}: dequant");
    }
}

struct Optimizer {
    config: AdamWConfig,
    lr: f64,
}

fn optimizer(rounding: Rounding) -> Optimizer {
    let index = json("quant/adamw8bit_index.json");
    let hyper = &index["hyper"];
    let number = |v: &serde_json::Value| v.as_f64().unwrap_or_else(|| panic!("not a number: {v}"));
    assert_eq!(size(&index, "blocksize"), adamw::BLOCKSIZE, "bitsandbytes' optimizers always use this block size");
    Optimizer {
        config: AdamWConfig {
            beta1: number(&hyper["betas"][0]),
            beta2: number(&hyper["betas"][1]),
            eps: number(&hyper["eps"]),
            weight_decay: number(&hyper["weight_decay"]),
            bits: StateBits::Eight,
            min_8bit_size: size(&index, "min_8bit_size"),
            rounding,
        },
        lr: number(&hyper["lr"]),
    }
}

/// Runs the steps of one parameter. `prefix` picks the goldens; states are compared by code and scale, parameters within `tolerance`.
fn adamw_case<P: Element>(all: &BTreeMap<String, Tensor>, case: &serde_json::Value, rounding: Rounding, prefix: &str) {
    let name = case["name"].as_str().unwrap();
    let Optimizer { config, lr } = optimizer(rounding);
    let golden = |suffix: &str| all.get(&format!("{prefix}{name}.{suffix}"));
    let steps = size(case, "step");
    assert!(steps > 0);
    let mut param: Vec<P> = values(get(all, &format!("{name}.step0.param")));
    let mut state = OptimizerState::new(param.len(), &config);
    match (&state, case["state_dtype"].as_str().unwrap()) {
        (OptimizerState::Eight { .. }, "uint8") | (OptimizerState::ThirtyTwo { .. }, "float32") => {}
        (_, other) => panic!("{name}: states should be {other}"),
    }
    for step in 1..=steps {
        let grad: Vec<P> = values(get(all, &format!("{name}.step{step}.grad")));
        adamw::step(&mut param, &grad, &mut state, &config, lr, 1.0, step as u64).unwrap();
        let want = golden(&format!("step{step}.param")).unwrap_or_else(|| panic!("{prefix}{name} has no step {step}")).f32();
        for (i, (got, want)) in param.iter().zip(&want).enumerate() {
            let got = got.to_f32();
            // A 16-bit parameter may fall on the other side of a rounding boundary: one unit in its last place.
            let tolerance = 1e-5 + if size_of::<P>() == 2 { want.abs() / 128.0 } else { 0.0 };
            assert!((got - want).abs() <= tolerance, "{prefix}{name} step {step}: parameter {i} is {got}, not {want}");
        }
        match &state {
            OptimizerState::ThirtyTwo { m, v } => {
                for (mine, file) in [(m, "state1"), (v, "state2")] {
                    let want = golden(&format!("step{step}.{file}")).unwrap().f32();
                    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                    assert!(max_abs_diff(mine, &want) <= 1e-6 * largest, "{name} step {step}: {file}");
                }
            }
            OptimizerState::Eight { m, v, m_absmax, v_absmax } => {
                for (codes, scales, file) in [(m, m_absmax, 1), (v, v_absmax, 2)] {
                    let want = &golden(&format!("step{step}.state{file}")).unwrap().bytes;
                    assert_eq!(codes.len(), want.len());
                    // A last-bit difference before rounding may move a code to its neighbour, nowhere else, and seldom.
                    let off = codes.iter().zip(want).filter(|(a, b)| a != b).count();
                    assert!(codes.iter().zip(want).all(|(a, b)| a.abs_diff(*b) <= 1), "{prefix}{name} step {step}: codes of state {file}");
                    assert!(off * 1000 <= codes.len(), "{prefix}{name} step {step}: {off} of {} codes of state {file}", codes.len());
                    let want = golden(&format!("step{step}.absmax{file}")).unwrap().f32();
                    for (got, want) in scales.iter().zip(&want) {
                        assert!((got - want).abs() <= 1e-5 * want.abs(), "{prefix}{name} step {step}: absmax{file} {got} {want}");
                    }
                }
            }
        }
    }
}

fn adamw_cases(rounding: Rounding, prefix: &str) -> usize {
    let all = tensors(ADAMW);
    let index = json("quant/adamw8bit_index.json");
    assert_eq!(bits(&get(&all, "qmap1").f32()), bits(Map::signed().code()));
    assert_eq!(bits(&get(&all, "qmap2").f32()), bits(Map::unsigned().code()));
    let mut run = 0;
    for case in index["params"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        if !all.keys().any(|k| k.starts_with(&format!("{prefix}{name}.step1"))) {
            // 32-bit states have no variant of rounding.
            assert_eq!(case["state_dtype"], "float32", "{prefix}{name} is missing");
            continue;
        }
        match case["dtype"].as_str().unwrap() {
            "float32" => adamw_case::<f32>(&all, case, rounding, prefix),
            "bfloat16" => adamw_case::<bf16>(&all, case, rounding, prefix),
            "float16" => adamw_case::<f16>(&all, case, rounding, prefix),
            other => panic!("unknown dtype {other}"),
        }
        run += 1;
    }
    run
}

#[test]
fn reference_adamw8bit_nearest() {
    assert!(adamw_cases(Rounding::Nearest, "nearest.") > 0);
}

#[test]
fn reference_adamw8bit_cpu_table() {
    assert!(adamw_cases(Rounding::CpuTable, "") > 0);
}

/// Clipping as the recorded 20-step runs: the norm before clipping and whether it was clipped.
#[test]
fn reference_clip_factor() {
    for model in ["tied_f32", "nf4"] {
        let curve = json(&format!("model/{model}_goldens/train/curve.json"));
        let max_norm = curve["settings"]["max_grad_norm"].as_f64().unwrap();
        for step in curve["steps"].as_array().unwrap() {
            let norm = step["grad_norm"].as_f64().unwrap();
            let factor = adamw::clip_factor(norm, max_norm);
            assert_eq!(factor < 1.0, step["clipped"].as_bool().unwrap(), "{model}: norm {norm}");
            assert!(norm * factor <= max_norm);
        }
    }
}
