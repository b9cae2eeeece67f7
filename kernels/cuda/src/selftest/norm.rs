//! RMSNorm, alone and with the residual sum.

use super::{BF16, Checks, F32, Outcome};
use half::bf16;
use trainer_kernels::ops::Ops;

impl Checks<'_> {
    pub(super) fn all_norm(&mut self) -> Outcome<()> {
        for n in [1, 127, 2049] {
            for width in [8, 136, 1024, 4096] {
                self.check_norm(n, width)?;
            }
        }
        self.check_norm(3, 20000)
    }

    fn check_norm(&mut self, n: usize, width: usize) -> Outcome<()> {
        if self.large(n * width) {
            return Ok(());
        }
        let (d, eps) = (self.device, 1e-6);
        let [x, delta, dy, before] = std::array::from_fn(|_| self.random.values(n * width));
        let weight = self.random.values(width);
        let shape = format!("{n}x{width}");
        let (card_weight, cpu_weight) = (d.floats(&weight)?, self.cpu.vector(&weight)?);
        let ((mut out, _gap), mut rstd) = (self.apart(width, 64, &vec![f32::NAN; n * width])?, self.poison_floats(n)?);
        let (mut cpu_out, mut cpu_rstd) = (self.cpu.tensor(n, width)?, self.cpu.stats(n, 1)?);
        let (card_x, cpu_x) = (d.tensor(width, &x)?, self.host(n, width, &x)?);
        d.rms_norm(n, &card_x, &card_weight, eps, &mut out, &mut rstd)?;
        self.cpu.rms_norm(n, &cpu_x, &cpu_weight, eps, &mut cpu_out, &mut cpu_rstd)?;
        self.note("rms_norm", shape.clone(), &d.read_tensor(n, &out)?, &self.cpu.read_tensor(n, &cpu_out)?, BF16);
        self.note("rms_norm rstd", shape.clone(), &rstd.read()?, &self.cpu.read_tensor(n, &cpu_rstd)?, F32);

        let (card_dy, cpu_dy) = (d.tensor(width, &dy)?, self.host(n, width, &dy)?);
        let ((mut card_dx, _gap), mut cpu_dx) = (self.apart(width, 64, &before)?, self.host(n, width, &before)?);
        d.rms_norm_backward(n, &card_dy, &card_x, &card_weight, &rstd, &mut card_dx)?;
        self.cpu.rms_norm_backward(n, &cpu_dy, &cpu_x, &cpu_weight, &cpu_rstd, &mut cpu_dx)?;
        self.note("rms_norm_backward", shape.clone(), &d.read_tensor(n, &card_dx)?, &self.cpu.read_tensor(n, &cpu_dx)?, BF16);

        // The card normalises the sum as stored: the reference is given that sum.
        let sum: Vec<f32> = x.iter().zip(&delta).map(|(a, b)| bf16::from_f32(a + b).to_f32()).collect();
        self.cpu.rms_norm(n, &self.host(n, width, &sum)?, &cpu_weight, eps, &mut cpu_out, &mut cpu_rstd)?;
        let mut card_x = card_x;
        for in_place in [false, true] {
            let (mut out, mut rstd, mut card_sum) = (self.poison(n, width)?, self.poison_floats(n)?, self.poison(n, width)?);
            if in_place {
                d.add_rms_norm_in_place(n, &mut card_x, &d.tensor(width, &delta)?, &card_weight, eps, &mut out, &mut rstd)?;
            } else {
                d.add_rms_norm(n, &card_x, &d.tensor(width, &delta)?, &mut card_sum, &card_weight, eps, &mut out, &mut rstd)?;
            }
            let stored = if in_place { &card_x } else { &card_sum };
            self.note("add_rms_norm sum", shape.clone(), &d.read_tensor(n, stored)?, &sum, 0.0);
            self.note("add_rms_norm", shape.clone(), &d.read_tensor(n, &out)?, &self.cpu.read_tensor(n, &cpu_out)?, BF16);
            self.note("add_rms_norm rstd", shape.clone(), &rstd.read()?, &self.cpu.read_tensor(n, &cpu_rstd)?, F32);
        }
        Ok(())
    }
}
