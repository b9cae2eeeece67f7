//! Quantization and optimizer against what bitsandbytes computed.

use half::{bf16, f16};
use serde_json::Value;
use trainer_kernels::adamw::{AdamWConfig, BLOCKSIZE, OptimizerState, StateBits};
use trainer_kernels::blockwise8::{self, Map, Rounding};
use trainer_kernels::nf4::{Absmax, DoubleQuant, Element, NF4_CODE, NestedAbsmax, Nf4, Nf4Error};
use trainer_kernels::ops::{HostBatch, HostLinear, HostMatrix, Ops, OpsError, WeightPlan};

use crate::files::{Tensor, Tensors};
use crate::{Checks, Context, Measure, Result, largest};

const NF4: &str = "quant/nf4.safetensors";
const NF4_INDEX: &str = "quant/nf4_index.json";
const BLOCKWISE: &str = "quant/blockwise8_index.json";
const ADAMW: &str = "quant/adamw8bit.safetensors";
const ADAMW_INDEX: &str = "quant/adamw8bit_index.json";
/// Weights of sizes that are not multiples of this may be refused by a backend; models have none.
const ALIGNED: usize = 8;
/// Below this largest value a weight's rounding in 16 bits says nothing.
const TINY: f32 = 1e-30;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

impl<O: Ops> Checks<'_, O> {
    /// Quantizing in host memory bit for bit, and what the device makes of the stored blocks.
    pub fn nf4(&mut self) -> Result<()> {
        let all = self.files.tensors(NF4)?;
        let index = self.files.json(NF4_INDEX)?;
        let cases = self.files.list(NF4_INDEX, &index)?.to_vec();
        self.equal("the 16 code points", &bits(&all.get("nf4_code")?.f32()), &bits(&NF4_CODE));
        self.equal("the code book of the scales", &bits(&all.get("nested_code")?.f32()), &bits(Map::signed().code()));
        for case in &cases {
            match self.files.text(NF4_INDEX, case, "dtype")? {
                "float32" => self.nf4_case::<f32>(&all, case)?,
                "bfloat16" => self.nf4_case::<bf16>(&all, case)?,
                "float16" => self.nf4_case::<f16>(&all, case)?,
                other => return Err(self.files.error(NF4_INDEX, format!("unknown dtype {other}"))),
            }
        }
        Ok(())
    }

    fn nf4_case<T: Element>(&mut self, all: &Tensors, case: &Value) -> Result<()> {
        let name = self.files.text(NF4_INDEX, case, "name")?.to_owned();
        let (blocksize, nested) = (self.files.size(NF4_INDEX, case, "blocksize")?, self.files.size(NF4_INDEX, case, "nested_blocksize")?);
        let part = |suffix: &str| all.get(&format!("{name}.{suffix}"));
        let shape = part("input")?.shape.clone();
        let input: Vec<T> = part("input")?.f32().into_iter().map(T::from_f32).collect();
        let broken = |e: Nf4Error| self.files.error(NF4, format!("{name}: {e}"));
        let plain = Nf4::quantize(&input, &shape, blocksize, DoubleQuant::No).map_err(broken)?;
        let double = |rounding| Nf4::quantize(&input, &shape, blocksize, DoubleQuant::Yes { blocksize: nested, rounding }).map_err(broken);
        let (nearest, table) = (double(Rounding::Nearest)?, double(Rounding::CpuTable)?);
        let stored = NestedAbsmax {
            codes: part("nested_absmax_u8")?.bytes.clone(),
            absmax: part("nested_absmax")?.f32(),
            offset: all.number(&format!("{name}.nested_offset"))? as f32,
            code: Box::new(code(all.get("nested_code")?)),
            blocksize: nested,
        };
        let stored =
            Nf4::from_parts(part("packed")?.bytes.clone(), Absmax::Nested(stored), &shape, blocksize, code(all.get("nf4_code")?), T::TYPE)
                .map_err(broken)?;

        self.equal(format!("{name}: blocks"), plain.packed(), &part("packed")?.bytes);
        if let Absmax::Plain(scales) = plain.absmax() {
            self.equal(format!("{name}: scales"), &bits(scales), &bits(&part("absmax")?.f32()));
        }
        for (quantized, file) in [(&nearest, "nested_absmax_u8_nearest"), (&table, "nested_absmax_u8")] {
            if let Absmax::Nested(scales) = quantized.absmax() {
                self.equal(format!("{name}: {file}"), &scales.codes, &part(file)?.bytes);
            }
        }
        let whole = |quantized: &Nf4| -> Vec<f32> { quantized.dequantize::<T>().into_iter().map(T::to_f32).collect() };
        self.equal(format!("{name}: unpacked"), &whole(&plain), &part("dequant")?.f32());
        self.equal(format!("{name}: unpacked, double-quantized"), &whole(&stored), &part("dequant_nested")?.f32());
        for (quantized, file) in [(&plain, "dequant"), (&stored, "dequant_nested")] {
            // In f32, as a device unpacks: what was compared above is rounded to the stored type.
            let want: Vec<f32> = quantized.dequantize();
            if let &[rows, cols] = shape.as_slice()
                && rows.is_multiple_of(ALIGNED)
                && cols.is_multiple_of(ALIGNED)
                && want.iter().any(|v| v.abs() > TINY)
            {
                for plan in [WeightPlan::Packed, WeightPlan::Unpacked] {
                    let got = self.through_device(quantized, rows, cols, plan).of(&name)?;
                    let tolerance = self.tolerances.weights;
                    self.relative_norm(format!("{name}: {file} on the device, {plan:?}"), &got, &want, tolerance);
                }
            }
        }
        Ok(())
    }

    /// A weight as the device sees it: the projection of the identity matrix is its transpose.
    fn through_device(&self, weight: &Nf4, rows: usize, cols: usize, plan: WeightPlan) -> std::result::Result<Vec<f32>, OpsError> {
        let ops = self.ops.as_ref();
        let member = HostLinear { weight: HostMatrix::Nf4(weight), out_features: rows, in_features: cols, bias: None };
        let group = ops.group(&[member], plan, 0)?;
        let n = u32::try_from(cols).unwrap_or(u32::MAX);
        let batch = ops.batch(&HostBatch {
            ids: vec![0; cols],
            positions: (0..n).collect(),
            cu_seqlens: vec![0, n],
            samples: vec![0],
            ..HostBatch::default()
        })?;
        let mut identity = vec![0f32; cols * cols];
        identity.iter_mut().step_by(cols + 1).for_each(|v| *v = 1.0);
        let mut x = ops.tensor(cols, cols)?;
        ops.write_tensor(&identity, &mut x)?;
        let (mut out, mut mid) = (ops.tensor(cols, rows)?, ops.tensor(cols, 0)?);
        ops.linear(&batch, cols, &x, &group, &[None], None, &mut out, &mut mid)?;
        let transposed = ops.read_tensor(cols, &out)?;
        Ok((0..rows * cols).map(|i| transposed.get(i % cols * rows + i / cols).copied().unwrap_or(f32::NAN)).collect())
    }

    /// The 8-bit codes of optimizer states and scales, which are made in host memory.
    pub fn blockwise8(&mut self) -> Result<()> {
        let all = self.files.tensors("quant/blockwise8.safetensors")?;
        let index = self.files.json(BLOCKWISE)?;
        for case in self.files.list(BLOCKWISE, &index)?.to_vec() {
            let name = self.files.text(BLOCKWISE, &case, "name")?.to_owned();
            let which = self.files.text(BLOCKWISE, &case, "map")?.to_owned();
            let map = if which == "signed" { Map::signed() } else { Map::unsigned() };
            let blocksize = self.files.size(BLOCKWISE, &case, "blocksize")?;
            let part = |suffix: &str| all.get(&format!("{name}.{suffix}"));
            self.equal(format!("{name}: the {which} map"), &bits(map.code()), &bits(&all.get(&format!("dynamic_map_{which}"))?.f32()));
            let input = part("input")?.f32();
            for (rounding, file) in [(Rounding::Nearest, "q_nearest"), (Rounding::CpuTable, "q")] {
                let got = blockwise8::quantize(&input, map, blocksize, rounding);
                self.equal(format!("{name}: scales"), &bits(&got.absmax), &bits(&part("absmax")?.f32()));
                self.equal(format!("{name}: {file}"), &got.codes, &part(file)?.bytes);
            }
            let mut out = vec![0f32; input.len()];
            blockwise8::dequantize(&part("q")?.bytes, &part("absmax")?.f32(), map.code(), blocksize, &mut out);
            self.equal(format!("{name}: unpacked"), &out, &part("dequant")?.f32());
        }
        Ok(())
    }

    /// Optimizer steps on the device, for the parameters that are f32 as a backend's are.
    pub fn adamw8bit(&mut self) -> Result<()> {
        let all = self.files.tensors(ADAMW)?;
        let index = self.files.json(ADAMW_INDEX)?;
        self.equal("the first moment's map", &bits(&all.get("qmap1")?.f32()), &bits(Map::signed().code()));
        self.equal("the second moment's map", &bits(&all.get("qmap2")?.f32()), &bits(Map::unsigned().code()));
        let hyper = index.get("hyper").cloned().unwrap_or_default();
        let number = |value: Option<&Value>, key: &str| {
            value.and_then(Value::as_f64).ok_or_else(|| self.files.error(ADAMW_INDEX, format!("there is no number {key}")))
        };
        let config = AdamWConfig {
            beta1: number(hyper.pointer("/betas/0"), "betas")?,
            beta2: number(hyper.pointer("/betas/1"), "betas")?,
            eps: number(hyper.get("eps"), "eps")?,
            weight_decay: number(hyper.get("weight_decay"), "weight_decay")?,
            bits: StateBits::Eight,
            min_8bit_size: self.files.size(ADAMW_INDEX, &index, "min_8bit_size")?,
            rounding: Rounding::Nearest,
        };
        let lr = number(hyper.get("lr"), "lr")?;
        self.equal("the block size", &[self.files.size(ADAMW_INDEX, &index, "blocksize")?], &[BLOCKSIZE]);
        let params = index.get("params").cloned().unwrap_or_default();
        let mut seen = 0;
        for case in self.files.list(ADAMW_INDEX, &params)? {
            if self.files.text(ADAMW_INDEX, case, "dtype")? == "float32" {
                self.adamw_case(&all, case, &config, lr)?;
                seen += 1;
            }
        }
        if seen == 0 {
            return Err(self.files.error(ADAMW_INDEX, "there are no f32 parameters"));
        }
        Ok(())
    }

    /// The steps of one parameter. Eight-bit states are those of nearest rounding; small parameters have one file for both.
    fn adamw_case(&mut self, all: &Tensors, case: &Value, config: &AdamWConfig, lr: f64) -> Result<()> {
        let name = self.files.text(ADAMW_INDEX, case, "name")?.to_owned();
        let steps = self.files.size(ADAMW_INDEX, case, "step")?;
        let eight = self.files.text(ADAMW_INDEX, case, "state_dtype")? == "uint8";
        let prefix = if eight { "nearest." } else { "" };
        let golden = |suffix: String| all.get(&format!("{prefix}{name}.{suffix}"));
        let ops = self.ops.clone();
        let first = all.get(&format!("{name}.step0.param"))?.f32();
        let mut param = ops.param(&first).of(&name)?;
        let mut state = ops.state(first.len(), config).of(&name)?;
        for step in 1..=steps {
            let grad = ops.param(&all.get(&format!("{name}.step{step}.grad"))?.f32()).of(&name)?;
            ops.adamw(&mut param, &grad, &mut state, config, lr as f32, 1.0, step as u64).of(&name)?;
            let got = ops.read_param(&param).of(&name)?;
            self.largest(format!("{name} step {step}: parameters"), &got, &golden(format!("step{step}.param"))?.f32(), 1e-5);
            match (ops.read_state(&state).of(&name)?, eight) {
                (OptimizerState::ThirtyTwo { m, v }, false) => {
                    for (mine, file) in [(m, "state1"), (v, "state2")] {
                        let want = golden(format!("step{step}.{file}"))?.f32();
                        let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                        self.largest(format!("{name} step {step}: {file}"), &mine, &want, 1e-6 * f64::from(most));
                    }
                }
                (OptimizerState::Eight { m, v, m_absmax, v_absmax }, true) => {
                    for (codes, scales, file) in [(m, m_absmax, 1), (v, v_absmax, 2)] {
                        // A last-bit difference before rounding may move a code to its neighbour, nowhere else, and seldom.
                        let want = &golden(format!("step{step}.state{file}"))?.bytes;
                        let far = codes.iter().zip(want).filter(|(a, b)| a.abs_diff(**b) > 1).count() + codes.len().abs_diff(want.len());
                        self.note(
                            format!("{name} step {step}: codes of state {file} off by more than one"),
                            Measure::Count,
                            far as f64,
                            0.0,
                        );
                        let off = codes.iter().zip(want).filter(|(a, b)| a != b).count() as f64 / want.len().max(1) as f64;
                        self.note(format!("{name} step {step}: codes of state {file} off by one"), Measure::Share, off, 1e-3);
                        let want = golden(format!("step{step}.absmax{file}"))?.f32();
                        let most = want.iter().fold(0f32, |m, v| m.max(v.abs()));
                        let error = largest(&scales, &want) / f64::from(most.max(f32::MIN_POSITIVE));
                        self.note(format!("{name} step {step}: scales of state {file}"), Measure::Relative, error, 1e-5);
                    }
                }
                _ => self.note(format!("{name} step {step}: the states' form"), Measure::Count, 1.0, 0.0),
            }
        }
        Ok(())
    }
}

/// A code book; one of another length is all zeros, and nothing compares equal.
fn code<const N: usize>(tensor: &Tensor) -> [f32; N] {
    tensor.f32().try_into().unwrap_or([0.0; N])
}
