//! SwiGLU, sums, the embedding and the sum of squares.

use super::{BF16, CheckError, Checks, Outcome};
use half::bf16;
use trainer_kernels::ops::{HostBatch, HostMatrix, Ops};

impl Checks<'_> {
    pub(super) fn all_elementwise(&mut self) -> Outcome<()> {
        for n in [1, 127, 2049] {
            for width in [8, 136, 1024, 4096] {
                self.check_swiglu(n, width)?;
                self.check_embed(n, width)?;
                self.check_add(n, width)?;
            }
        }
        for n in [1, 127, 1_000_003] {
            self.check_squares(n)?;
        }
        Ok(())
    }

    fn check_swiglu(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(2 * n * width) {
            return Ok(());
        }
        let d = self.device;
        let (gate_up, dout) = (self.random.values(2 * n * width), self.random.values(n * width));
        let (card, mut cpu) = (d.tensor(2 * width, &gate_up)?, self.host(n, 2 * width, &gate_up)?);
        let ((mut out, _gap), mut cpu_out) = (self.apart(width, 64, &vec![f32::NAN; n * width])?, self.cpu.tensor(n, width)?);
        d.swiglu(n, width, &card, &mut out)?;
        self.cpu.swiglu(n, width, &cpu, &mut cpu_out)?;
        self.note("swiglu", format!("{n}x{width}"), &d.read_tensor(n, &out)?, &self.cpu.read_tensor(n, &cpu_out)?, BF16);
        let (mut dx, _gap) = self.apart(2 * width, 64, &vec![f32::NAN; 2 * n * width])?;
        let card_dout = d.tensor(width, &dout)?;
        d.swiglu_backward(n, width, &card_dout, &card, &mut dx)?;
        self.cpu.swiglu_backward(n, width, &self.host(n, width, &dout)?, &mut cpu)?;
        let want = d.read_tensor(n, &dx)?;
        self.note("swiglu_backward", format!("{n}x{width}"), &want, &self.cpu.read_tensor(n, &cpu)?, BF16);
        let (mut both, _gap) = self.apart(2 * width, 64, &gate_up)?;
        d.swiglu_backward(n, width, &card_dout, &both.columns(0, 2 * width)?, &mut both)?;
        self.note("swiglu_backward in place", format!("{n}x{width}"), &d.read_tensor(n, &both)?, &want, 0.0);
        Ok(())
    }

    fn check_embed(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(n.max(301) * width) {
            return Ok(());
        }
        let (d, rows) = (self.device, 301);
        let table = self.random.values(rows * width);
        let ids: Vec<u32> = (0..n).map(|_| self.random.below(rows as u64) as u32).collect();
        let largest = ids.iter().max().copied().unwrap_or(0);
        let cpu_table = self.cpu.table(HostMatrix::F32(&table), rows, width)?;
        let positions = (0..n as u32).collect();
        let batch = self.cpu.batch(&HostBatch { ids: ids.clone(), positions, cu_seqlens: vec![0, n as u32], ..HostBatch::default() })?;
        let mut want = self.cpu.tensor(n, width)?;
        self.cpu.embed(&batch, &cpu_table, &mut want)?;
        let (mut out, card_table, ids) = (self.poison(n, width)?, d.tensor(width, &table)?, d.upload(&ids, "ids")?);
        d.embed(n, &ids, largest, &card_table, &mut out)?;
        self.note("embed", format!("{n}x{width}"), &d.read_tensor(n, &out)?, &self.cpu.read_tensor(n, &want)?, 0.0);
        if d.embed(n, &ids, rows as u32, &card_table, &mut out).is_ok() {
            return Err(CheckError::Other("an id outside of the table was accepted".into()));
        }
        Ok(())
    }

    fn check_add(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(n * width) {
            return Ok(());
        }
        let [x, delta] = std::array::from_fn(|_| self.random.values(n * width));
        let want: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| bf16::from_f32(a + b).to_f32()).collect();
        let (mut x, _gap) = self.apart(width, 8, &x)?;
        self.device.add(n, &mut x, &self.device.tensor(width, &delta)?)?;
        self.note("add", format!("{n}x{width}"), &self.device.read_tensor(n, &x)?, &want, 0.0);
        Ok(())
    }

    fn check_squares(&mut self, n: usize) -> Outcome<()> {
        if self.large(n) {
            return Ok(());
        }
        let d = self.device;
        let g = self.random.values(n);
        let (mut scratch, mut sum) = (d.sum_scratch()?, d.upload(&[1.0f64], "a sum")?);
        d.sum_of_squares(&d.floats(&g)?, &mut scratch, &mut sum)?;
        let got = sum.read()?.first().copied().unwrap_or(f64::NAN) - 1.0;
        self.note("sum_of_squares", format!("{n}"), &[got as f32], &[trainer_kernels::adamw::grad_norm_sq(&g) as f32], 1e-6);
        Ok(())
    }
}
