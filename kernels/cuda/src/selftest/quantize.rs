//! Quantization to NF4, bit for bit, and normal random values.

use super::{CheckError, Checks, Outcome};
use crate::launch::QuantSource;
use crate::{Cuda, CudaError, CudaOptions};
use half::bf16;
use trainer_kernels::blockwise8::Rounding;
use trainer_kernels::nf4::{DoubleQuant, FloatType, Nf4, Nf4Error};
use trainer_kernels::ops::{MatrixSource, OpsError};

fn bf16s(random: &mut super::Random, n: usize) -> Vec<bf16> {
    random.values(n).into_iter().map(|v| bf16::from_f32(v * 0.02)).collect()
}

/// A source in memory.
#[derive(Debug)]
struct Kept(Vec<bf16>);

impl MatrixSource for Kept {
    fn name(&self) -> String {
        "kept values".into()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn read(&self, first: usize, out: &mut [bf16]) -> Result<(), String> {
        let from = self.0.get(first..).and_then(|rest| rest.get(..out.len())).ok_or("too few values")?;
        out.copy_from_slice(from);
        Ok(())
    }
}

impl Checks<'_> {
    pub(super) fn all_quantize(&mut self) -> Outcome<()> {
        for (rows, cols) in [(1, 8), (8, 8), (72, 200), (129, 64), (512, 1024), (1000, 2568)] {
            for double in [DoubleQuant::default(), DoubleQuant::No] {
                self.check_quantize(rows, cols, double)?;
            }
        }
        self.check_broken()?;
        self.check_stored()?;
        self.check_normal()
    }

    /// Weights that are read and quantized while they are put on the card, against those that the host quantizes.
    fn check_stored(&mut self) -> Outcome<()> {
        let cuda = Cuda::open(CudaOptions { ordinal: self.device.context().ordinal(), ..CudaOptions::default() })?;
        // The last one has more pieces than are under way at a time, and an end in the middle of a block.
        for (rows, cols) in [(8, 8), (72, 200), (129, 64), (10_001, 3400)] {
            if self.large(rows * cols) {
                continue;
            }
            let values = bf16s(&mut self.random, rows * cols);
            let (source, shape) = (Kept(values.clone()), format!("{rows}x{cols}"));
            let table = DoubleQuant::Yes { blocksize: 256, rounding: Rounding::CpuTable };
            for double in [DoubleQuant::default(), DoubleQuant::No, table] {
                let want = Nf4::quantize(&values, &[rows, cols], 64, double).map_err(|e| CheckError::Other(e.to_string()))?;
                // Twice: the second time the pieces have been used before.
                for _ in 0..2 {
                    let got = cuda.device().read_nf4(&cuda.stored_nf4(&source, rows, cols, double)?, FloatType::Bf16)?;
                    self.note("NF4 weight from a file", shape.clone(), &[f32::from(u8::from(got == want))], &[1.0], 0.0);
                }
            }
            let dense = cuda.stored_dense(&source, rows, cols)?;
            let got = cuda.device().read_tensor(rows, &dense)?;
            self.note("bf16 weight from a file", shape, &got, &values.iter().map(|v| v.to_f32()).collect::<Vec<_>>(), 0.0);
        }
        let mut broken = bf16s(&mut self.random, 64 * 64);
        broken[777] = bf16::INFINITY;
        match cuda.stored_nf4(&Kept(broken), 64, 64, DoubleQuant::default()) {
            Err(OpsError::Source(text)) if text.contains("kept") && text.contains("777") => Ok(()),
            _ => Err(CheckError::Other("a weight in a file with an infinity was not refused as it should be".into())),
        }
    }

    fn check_quantize(&mut self, rows: usize, cols: usize, double: DoubleQuant) -> Outcome<()> {
        if self.large(rows * cols) {
            return Ok(());
        }
        let d = self.device;
        let mut values = self.random.values(rows * cols);
        // Blocks of zeros, of subnormals, of one outlier.
        for (i, v) in values.iter_mut().enumerate() {
            *v *= match i / 64 % 7 {
                1 => 0.0,
                2 => 1e-39,
                3 if i % 64 == 5 => 1000.0,
                _ => 0.02,
            };
        }
        let shape = format!("{rows}x{cols}{}", if double == DoubleQuant::No { "" } else { " dq" });
        let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
        let fail = |e: Nf4Error| CheckError::Other(e.to_string());
        let want = [
            Nf4::quantize(&rounded, &[rows, cols], 64, double).map_err(fail)?,
            Nf4::quantize(&values, &[rows, cols], 64, double).map_err(fail)?,
        ];
        let (dense, floats) = (d.tensor(cols, &values)?, d.floats(&values)?);
        let (apart, _gap) = self.apart(cols, 8, &values)?;
        let got = [
            d.read_nf4(&d.quantize_nf4(QuantSource::Bf16(&dense), rows, cols, double)?, FloatType::Bf16)?,
            d.read_nf4(&d.quantize_nf4(QuantSource::Bf16(&apart), rows, cols, double)?, FloatType::Bf16)?,
            d.read_nf4(&d.quantize_nf4(QuantSource::F32(&floats), rows, cols, double)?, FloatType::F32)?,
        ];
        let [of_bf16, of_f32] = &want;
        for (name, got, want) in [("bf16", &got[0], of_bf16), ("bf16 apart", &got[1], of_bf16), ("f32", &got[2], of_f32)] {
            let bytes = |w: &Nf4| w.packed().iter().map(|&b| f32::from(b)).collect::<Vec<_>>();
            self.note(&format!("quantize_nf4 {name}"), shape.clone(), &bytes(got), &bytes(want), 0.0);
            self.note(&format!("quantize_nf4 {name} scales"), shape.clone(), &got.scales(), &want.scales(), 0.0);
            if got != want {
                self.note(&format!("quantize_nf4 {name} parts"), shape.clone(), &[1.0], &[0.0], 0.0);
            }
        }
        Ok(())
    }

    fn check_broken(&mut self) -> Outcome<()> {
        let d = self.device;
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = self.random.values(64 * 64);
            for i in [777, 3000] {
                values[i] = bad;
            }
            let (tensor, floats) = (d.tensor(64, &values)?, d.floats(&values)?);
            for source in [QuantSource::Bf16(&tensor), QuantSource::F32(&floats)] {
                match d.quantize_nf4(source, 64, 64, DoubleQuant::default()) {
                    Err(CudaError::Nf4(Nf4Error::NotFinite { index: 777, value, .. })) if !value.is_finite() => {}
                    _ => return Err(CheckError::Other(format!("a weight with {bad} was not refused as it should be"))),
                }
            }
        }
        Ok(())
    }

    fn check_normal(&mut self) -> Outcome<()> {
        let (d, seed) = (self.device, self.random.bits());
        let (rows, cols, std) = (1000, 1032, 0.02f32);
        let ((mut a, _gap), mut b) = (self.apart(cols, 8, &vec![f32::NAN; rows * cols])?, self.poison(rows, cols)?);
        d.random_normal(seed, std, 0, &mut a)?;
        d.random_normal(seed, std, 0, &mut b)?;
        let (first, second) = (d.read_tensor(rows, &a)?, d.read_tensor(rows, &b)?);
        self.note("random_normal again", format!("{rows}x{cols}"), &second, &first, 0.0);
        // Piece by piece, the last one shorter.
        let mut pieces = Vec::new();
        for from in (0..rows).step_by(300) {
            let mut piece = self.poison(300.min(rows - from), cols)?;
            d.random_normal(seed, std, from, &mut piece)?;
            pieces.extend(d.read_tensor(piece.rows(), &piece)?);
        }
        self.note("random_normal in pieces", format!("{rows}x{cols}"), &pieces, &first, 0.0);
        d.random_normal(seed ^ 1, std, 0, &mut b)?;
        let other = d.read_tensor(rows, &b)?;
        let n = first.len() as f64;
        let mean = |f: &dyn Fn(f64, f64) -> f64| {
            first.iter().zip(&other).map(|(&x, &y)| f(f64::from(x / std), f64::from(y / std))).sum::<f64>() / n
        };
        let within = first.iter().filter(|x| x.abs() <= std).count() as f64 / n;
        // Mean, variance, fourth moment, correlation with another seed, share within one deviation; each has a standard error of at most sqrt(96 / n).
        let got =
            [mean(&|x, _| 1.0 + x), mean(&|x, _| x * x), mean(&|x, _| x.powi(4)) / 3.0, mean(&|x, y| 1.0 + x * y), within / 0.682_689_5];
        self.note("random_normal moments", format!("{rows}x{cols}"), &got.map(|v| v as f32), &[1.0; 5], 1e-2);
        Ok(())
    }
}
