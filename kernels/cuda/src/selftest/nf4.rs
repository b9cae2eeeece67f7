//! Unpacking NF4, bit for bit.

use super::{CheckError, Checks, Outcome};
use half::bf16;
use trainer_kernels::nf4::{DoubleQuant, Nf4};

impl Checks<'_> {
    pub(super) fn all_nf4(&mut self) -> Outcome<()> {
        for (rows, cols) in [(8, 8), (72, 200), (129, 64), (512, 1024), (1000, 2568)] {
            for (blocksize, double) in [(64, DoubleQuant::default()), (64, DoubleQuant::No), (256, DoubleQuant::default())] {
                self.check_nf4(rows, cols, blocksize, double)?;
            }
        }
        Ok(())
    }

    fn check_nf4(&mut self, rows: usize, cols: usize, blocksize: usize, double: DoubleQuant) -> Outcome<()> {
        if self.large(rows * cols) {
            return Ok(());
        }
        let w = Nf4::quantize(&self.random.values(rows * cols), &[rows, cols], blocksize, double)
            .map_err(|e| CheckError::Other(e.to_string()))?;
        let want: Vec<f32> = w.dequantize::<bf16>().into_iter().map(bf16::to_f32).collect();
        let on_card = self.device.nf4(&w)?;
        let shape = format!("{rows}x{cols} block {blocksize}{}", if double == DoubleQuant::No { "" } else { " dq" });
        let mut out = self.poison(rows, cols)?;
        self.device.nf4_unpack(&on_card, &mut out, 0)?;
        self.note("nf4_unpack", shape.clone(), &self.device.read_tensor(rows, &out)?, &want, 0.0);
        // Into rows further apart, the first three of which belong to somebody else.
        let (mut out, gap) = self.apart(cols, 8, &vec![f32::NAN; (rows + 3) * cols])?;
        self.device.nf4_unpack(&on_card, &mut out, 3)?;
        let got = self.device.read_tensor(rows + 3, &out)?;
        let (before, after) = got.split_at(3 * cols);
        let untouched = before.iter().chain(&self.device.read_tensor(rows + 3, &gap)?).all(|v| v.is_nan());
        let after = if untouched { after } else { &[] };
        self.note("nf4_unpack into a part", shape.clone(), after, &want, 0.0);
        if rows.is_multiple_of(8) {
            let transposed: Vec<f32> = (0..cols).flat_map(|c| want.iter().skip(c).step_by(cols).copied().collect::<Vec<_>>()).collect();
            let mut out = self.poison(cols, rows)?;
            self.device.nf4_unpack_transposed(&on_card, &mut out)?;
            self.note("nf4_unpack_transposed", shape, &self.device.read_tensor(cols, &out)?, &transposed, 0.0);
        }
        Ok(())
    }
}
