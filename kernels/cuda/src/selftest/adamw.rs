//! AdamW against the CPU, bit for bit over several steps; the gradient norm; cleared gradients.

use super::{CheckError, Checks, Outcome};
use crate::launch::{AdamwEntry, DeviceState};
use crate::memory::Floats;
use trainer_kernels::adamw::{self, AdamWConfig, OptimizerState, StateBits};
use trainer_kernels::blockwise8::Rounding;

fn other(e: impl std::fmt::Display) -> CheckError {
    CheckError::Other(e.to_string())
}

/// A parameter here and on the card.
struct Pair {
    param: Vec<f32>,
    state: OptimizerState,
    card_param: Floats,
    card_grad: Floats,
    card_state: DeviceState,
}

/// Bits as numbers that a comparison of floats tells apart exactly, 16 at a time.
fn halves(values: &[f32]) -> Vec<f32> {
    values.iter().flat_map(|v| [(v.to_bits() >> 16) as f32, (v.to_bits() & 0xffff) as f32]).collect()
}

fn bytes(values: &[u8]) -> Vec<f32> {
    values.iter().map(|&v| f32::from(v)).collect()
}

impl Checks<'_> {
    pub(super) fn all_adamw(&mut self) -> Outcome<()> {
        for bits in [StateBits::Eight, StateBits::ThirtyTwo] {
            for betas in [(0.9, 0.999), (0.95, 0.9), (0.0, 0.5)] {
                let config = AdamWConfig { beta1: betas.0, beta2: betas.1, bits, ..AdamWConfig::default() };
                self.check_adamw(&config)?;
            }
        }
        Ok(())
    }

    /// Gradients with all that moments can meet: tiny and vanishing ones beside large ones, blocks of zeros, subnormals.
    fn gradients(&mut self, len: usize, step: u64) -> Vec<f32> {
        let mut g = self.random.values(len);
        for (i, g) in g.iter_mut().enumerate() {
            *g *= match (i % 256, i / 256 % 8) {
                (_, 1) => 0.0,
                (_, 2) => 1e-38,
                (_, 3) => 1e-30,
                (7, _) if step.is_multiple_of(2) => 0.0,
                (j, _) if j.is_multiple_of(5) => 1e-4,
                (j, _) if j.is_multiple_of(11) => 1e-12,
                _ => 1e-2,
            };
        }
        g
    }

    fn check_adamw(&mut self, config: &AdamWConfig) -> Outcome<()> {
        let (d, lr) = (self.device, 3e-3);
        let mut pairs = Vec::new();
        for len in [1, 0, 7, 255, 4095, 4096, 4097, 8192, 65_536, 100_003, 300_001] {
            if self.large(len) {
                continue;
            }
            let param = self.random.values(len);
            let (card_param, card_grad) = (d.floats(&param)?, d.zeros(len, "a gradient")?);
            let (state, card_state) = (OptimizerState::new(len, config), d.state(len, config)?);
            if d.read_state(&card_state)? != state {
                return Err(other("a fresh state is not the CPU's"));
            }
            pairs.push(Pair { param, state, card_param, card_grad, card_state });
        }
        let entries: Vec<_> = pairs.iter().map(|p| AdamwEntry { param: &p.card_param, grad: &p.card_grad, state: &p.card_state }).collect();
        let list = d.adamw_list(&entries)?;
        if d.adamw_list(&[
            AdamwEntry { ..*entries.first().ok_or_else(|| other("no entries"))? },
            entries.into_iter().next().ok_or_else(|| other("no entries"))?,
        ])
        .is_ok()
        {
            return Err(other("a parameter was accepted twice"));
        }
        let name = if config.bits == StateBits::Eight { "adamw 8-bit" } else { "adamw 32-bit" };
        for step in 1..=4u64 {
            let scale = if step == 3 { 0.37 } else { 1.0 };
            let mut norm = 0.0;
            for i in 0..pairs.len() {
                let Some(len) = pairs.get(i).map(|p| p.param.len()) else { continue };
                let grad = self.gradients(len, step);
                norm += adamw::grad_norm_sq(&grad);
                let Some(p) = pairs.get_mut(i) else { continue };
                p.card_grad.write_at(0, &grad)?;
                adamw::step(&mut p.param, &grad, &mut p.state, config, lr, scale, step).map_err(other)?;
            }
            let got = d.grad_norm_sq(&list)?;
            let shape = format!("betas {} {} step {step}", config.beta1, config.beta2);
            self.note("grad_norm_sq", shape.clone(), &[(got / norm) as f32], &[1.0], 1e-7);
            d.adamw(&list, config, lr, scale, step)?;
            let (mut got, mut want) = (Vec::new(), Vec::new());
            let (mut got_codes, mut want_codes) = (Vec::new(), Vec::new());
            for p in &pairs {
                got.extend(halves(&p.card_param.read()?));
                want.extend(halves(&p.param));
                for (state, values, codes) in
                    [(d.read_state(&p.card_state)?, &mut got, &mut got_codes), (p.state.clone(), &mut want, &mut want_codes)]
                {
                    match state {
                        OptimizerState::ThirtyTwo { m, v } => [m, v].iter().for_each(|x| values.extend(halves(x))),
                        OptimizerState::Eight { m, v, m_absmax, v_absmax } => {
                            [m_absmax, v_absmax].iter().for_each(|x| values.extend(halves(x)));
                            [m, v].iter().for_each(|x| codes.extend(bytes(x)));
                        }
                    }
                }
            }
            self.note(name, format!("{shape} bits of values"), &got, &want, 0.0);
            if config.bits == StateBits::Eight {
                self.note(name, format!("{shape} codes"), &got_codes, &want_codes, 0.0);
            }
        }
        // A checkpoint's way.
        for p in &mut pairs {
            let fresh = OptimizerState::new(p.param.len(), config);
            d.write_state(&fresh, &mut p.card_state)?;
            if d.read_state(&p.card_state)? != fresh {
                return Err(other("a state came back changed"));
            }
        }
        d.zero_grads(&list)?;
        let left: Vec<f32> = pairs.iter().map(|p| p.card_grad.read()).collect::<Result<Vec<_>, _>>()?.concat();
        self.note("zero_grads", format!("{} values", left.len()), &halves(&left), &vec![0.0; 2 * left.len()], 0.0);
        let refused = [
            d.adamw(&list, config, lr, 1.0, 0).is_err(),
            d.adamw(&list, &AdamWConfig { rounding: Rounding::CpuTable, ..*config }, lr, 1.0, 1).is_err(),
            d.adamw(&list, &AdamWConfig { beta2: 1.0, ..*config }, lr, 1.0, 1).is_err(),
        ];
        if refused.contains(&false) {
            return Err(other("adamw took what it must refuse"));
        }
        Ok(())
    }
}
