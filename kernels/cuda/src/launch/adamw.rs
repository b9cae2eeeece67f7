//! AdamW over all parameters at once, the norm of their gradients, and clearing them.

use super::{fail, grid, launch, least};
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats, Memory};
use std::collections::HashSet;
use std::sync::Arc;
use trainer_kernels::adamw::{AdamWConfig, AdamWError, BLOCKSIZE, OptimizerState, StateBits, Step};
use trainer_kernels::blockwise8::{Map, Rounding};

/// Values of a parameter that one thread block works on: the kernels' constant, a multiple of the block of 8-bit states.
const CHUNK: usize = 8192;
/// Words of a parameter's entry in the table.
const WORDS: usize = 8;

/// The moments of one parameter on the card; as [`OptimizerState`].
pub enum DeviceState {
    /// 32-bit moments.
    ThirtyTwo {
        /// First moment.
        m: Floats,
        /// Second moment.
        v: Floats,
    },
    /// 8-bit moments in blocks of 256 values.
    Eight {
        /// Codes of the first moment, in the signed map.
        m: Buffer<u8>,
        /// Codes of the second moment, in the unsigned map.
        v: Buffer<u8>,
        /// Scale of each block of the first moment.
        m_absmax: Floats,
        /// Scale of each block of the second moment.
        v_absmax: Floats,
    },
}

impl DeviceState {
    /// How many values the parameter has.
    pub fn len(&self) -> usize {
        match self {
            Self::ThirtyTwo { m, .. } => m.len(),
            Self::Eight { m, .. } => m.len(),
        }
    }

    /// Whether the parameter has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::ThirtyTwo { m, v } => m.bytes() + v.bytes(),
            Self::Eight { m, v, m_absmax, v_absmax } => m.bytes() + v.bytes() + m_absmax.bytes() + v_absmax.bytes(),
        }
    }
}

/// A parameter with its gradient and its moments.
pub struct AdamwEntry<'a> {
    /// The trained values.
    pub param: &'a Floats,
    /// Their gradient.
    pub grad: &'a Floats,
    /// Their moments.
    pub state: &'a DeviceState,
}

/// A table of parameters on the card. It keeps their memory from being given back, and stays valid whatever is written to them.
pub struct AdamwList {
    /// Per parameter: addresses of values, gradient, moments and scales, and the length.
    table: Buffer<u64>,
    /// Per thread block: parameter and chunk of it.
    chunks: Buffer<u32>,
    /// Code points and boundaries of both 8-bit maps.
    maps: Floats,
    partial: Buffer<f64>,
    total: Buffer<f64>,
    blocks: u32,
    values: usize,
    _held: Vec<Arc<Memory>>,
}

impl AdamwList {
    /// Values of all parameters together.
    pub fn values(&self) -> usize {
        self.values
    }
}

/// The 255 boundaries of a map as a search tree in the order of its levels: the children of entry k are 2k and 2k + 1; entry 0 is unused.
pub(super) fn tree(map: &Map) -> [f32; 256] {
    std::array::from_fn(|k| {
        let Some(level) = k.checked_ilog2() else { return 0.0 };
        let place = k - (1 << level);
        map.bounds().get((2 * place + 1) * (128 >> level) - 1).copied().unwrap_or(f32::INFINITY)
    })
}

impl Device {
    /// The moments of a parameter of `len` values before its first step: zeros.
    ///
    /// # Errors
    /// The card has no more memory.
    pub fn state(&self, len: usize, config: &AdamWConfig) -> Result<DeviceState> {
        let what = "the optimizer's moments";
        Ok(match config.bits_for(len) {
            StateBits::ThirtyTwo => DeviceState::ThirtyTwo { m: self.zeros(len, what)?, v: self.zeros(len, what)? },
            StateBits::Eight => {
                let (mut m, mut v) = (self.buffer(len, what)?, self.buffer(len, what)?);
                if len > 0 {
                    m.fill_bytes(Map::signed().nearest(0.0))?;
                    v.fill_bytes(Map::unsigned().nearest(0.0))?;
                }
                let blocks = len.div_ceil(BLOCKSIZE);
                DeviceState::Eight { m, v, m_absmax: self.zeros(blocks, what)?, v_absmax: self.zeros(blocks, what)? }
            }
        })
    }

    /// The moments as they are now. Waits for everything launched so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn read_state(&self, state: &DeviceState) -> Result<OptimizerState> {
        Ok(match state {
            DeviceState::ThirtyTwo { m, v } => OptimizerState::ThirtyTwo { m: m.read()?, v: v.read()? },
            DeviceState::Eight { m, v, m_absmax, v_absmax } => {
                OptimizerState::Eight { m: m.read()?, v: v.read()?, m_absmax: m_absmax.read()?, v_absmax: v_absmax.read()? }
            }
        })
    }

    /// Overwrites the moments.
    ///
    /// # Errors
    /// Moments of another form or length, or the driver's.
    pub fn write_state(&self, from: &OptimizerState, to: &mut DeviceState) -> Result<()> {
        from.validate(to.len())?;
        match (from, to) {
            (OptimizerState::ThirtyTwo { m, v }, DeviceState::ThirtyTwo { m: to_m, v: to_v }) => {
                to_m.write_at(0, m)?;
                to_v.write_at(0, v)
            }
            (
                OptimizerState::Eight { m, v, m_absmax, v_absmax },
                DeviceState::Eight { m: to_m, v: to_v, m_absmax: to_ms, v_absmax: to_vs },
            ) => {
                to_m.write_at(0, m)?;
                to_v.write_at(0, v)?;
                to_ms.write_at(0, m_absmax)?;
                to_vs.write_at(0, v_absmax)
            }
            (from, _) => Err(fail("write_state", "the moments' form", from.bytes(), "the same form, 8-bit or 32-bit, as on the card")),
        }
    }

    /// A table of parameters, in the order in which the gradient norm sums them.
    ///
    /// # Errors
    /// Gradients or moments that are not as long as their parameter, a parameter that occurs twice, or no memory.
    pub fn adamw_list(&self, entries: &[AdamwEntry<'_>]) -> Result<AdamwList> {
        let op = "adamw_list";
        let (mut table, mut chunks, mut held) = (Vec::with_capacity(entries.len() * WORDS), Vec::new(), Vec::new());
        let (mut seen, mut values) = (HashSet::new(), 0usize);
        for (i, AdamwEntry { param, grad, state }) in entries.iter().enumerate() {
            let len = param.len();
            let check = |what, got| if got == len { Ok(()) } else { Err(AdamWError::Length { what, got, need: len }) };
            check("the gradient", grad.len())?;
            let [m, v, m_absmax, v_absmax] = match state {
                DeviceState::ThirtyTwo { m, v } => {
                    check("the first moment", m.len())?;
                    check("the second moment", v.len())?;
                    held.extend([m.hold(), v.hold()]);
                    [m.ptr(), v.ptr(), 0, 0]
                }
                DeviceState::Eight { m, v, m_absmax, v_absmax } => {
                    check("the first moment", m.len())?;
                    check("the second moment", v.len())?;
                    least(op, "the scales", m_absmax.len().min(v_absmax.len()), Some(len.div_ceil(BLOCKSIZE)))?;
                    held.extend([m.hold(), v.hold(), m_absmax.hold(), v_absmax.hold()]);
                    [m.ptr(), v.ptr(), m_absmax.ptr(), v_absmax.ptr()]
                }
            };
            held.extend([param.hold(), grad.hold()]);
            if len == 0 {
                continue;
            }
            for address in [param.ptr(), grad.ptr(), m, v] {
                if !seen.insert(address) {
                    return Err(fail(op, "a parameter, gradient or moment", i, "in one entry only"));
                }
            }
            let number = (table.len() / WORDS) as u32;
            table.extend([param.ptr(), grad.ptr(), m, v, m_absmax, v_absmax, len as u64, 0]);
            let count = u32::try_from(len.div_ceil(CHUNK)).map_err(|_| fail(op, "a parameter", len, "less than 2^45 values"))?;
            chunks.extend((0..count).flat_map(|chunk| [number, chunk]));
            values += len;
        }
        let blocks = super::blocks(op, chunks.len() / 2, 1)?;
        let (signed, unsigned) = (Map::signed(), Map::unsigned());
        let maps = [*signed.code(), tree(signed), *unsigned.code(), tree(unsigned)].concat();
        Ok(AdamwList {
            table: self.upload(&table, "the table of parameters")?,
            chunks: self.upload(&chunks, "the table of parameters")?,
            maps: self.floats(&maps)?,
            partial: self.buffer(chunks.len() / 2, "scratch of the gradient norm")?,
            total: self.zeros(1, "the gradient norm")?,
            blocks,
            values,
            _held: held,
        })
    }

    /// A table of gradients alone, for their norm and for clearing them, not for steps.
    ///
    /// # Errors
    /// No memory.
    pub fn gradient_list(&self, grads: &[&Floats]) -> Result<AdamwList> {
        let (mut table, mut chunks, mut values) = (Vec::with_capacity(grads.len() * WORDS), Vec::new(), 0usize);
        for grad in grads.iter().filter(|g| !g.is_empty()) {
            let number = (table.len() / WORDS) as u32;
            table.extend([0, grad.ptr(), 0, 0, 0, 0, grad.len() as u64, 0]);
            let count = u32::try_from(grad.len().div_ceil(CHUNK))
                .map_err(|_| fail("gradient_list", "a gradient", grad.len(), "less than 2^45 values"))?;
            chunks.extend((0..count).flat_map(|chunk| [number, chunk]));
            values += grad.len();
        }
        Ok(AdamwList {
            table: self.upload(&table, "the table of gradients")?,
            chunks: self.upload(&chunks, "the table of gradients")?,
            maps: self.buffer(0, "no maps")?,
            partial: self.buffer(chunks.len() / 2, "scratch of the gradient norm")?,
            total: self.zeros(1, "the gradient norm")?,
            blocks: super::blocks("gradient_list", chunks.len() / 2, 1)?,
            values,
            _held: grads.iter().map(|g| g.hold()).collect(),
        })
    }

    /// A state with these moments.
    ///
    /// # Errors
    /// Moments of different lengths, or no memory.
    pub fn upload_state(&self, from: &OptimizerState) -> Result<DeviceState> {
        let (what, floats) = ("the optimizer's moments", |values: &[f32]| self.floats(values));
        from.validate(from.len())?;
        Ok(match from {
            OptimizerState::ThirtyTwo { m, v } => DeviceState::ThirtyTwo { m: floats(m)?, v: floats(v)? },
            OptimizerState::Eight { m, v, m_absmax, v_absmax } => DeviceState::Eight {
                m: self.upload(m, what)?,
                v: self.upload(v, what)?,
                m_absmax: floats(m_absmax)?,
                v_absmax: floats(v_absmax)?,
            },
        })
    }

    /// One AdamW step on every parameter of the list, from `gradient * grad_scale`: [`trainer_kernels::adamw::step`], bit for bit. `step` counts from 1.
    ///
    /// # Errors
    /// Settings out of range, step 0, or a rounding other than to the nearest code.
    pub fn adamw(&self, list: &AdamwList, config: &AdamWConfig, lr: f64, grad_scale: f64, step: u64) -> Result<()> {
        config.validate()?;
        if step == 0 {
            return Err(AdamWError::StepZero.into());
        }
        if config.rounding != Rounding::Nearest {
            return Err(fail("adamw", "the rounding of moments", 1, "to the nearest code: bitsandbytes' CPU table has no CUDA kernel"));
        }
        if list.blocks == 0 {
            return Ok(());
        }
        if list.maps.is_empty() {
            return Err(fail("adamw", "the list", 0, "one with parameters and states"));
        }
        let n = Step::new(config, lr, grad_scale, step);
        launch!(
            self,
            "adamw",
            grid(list.blocks, 1, 256),
            list.table.ptr(),
            list.chunks.ptr(),
            list.maps.ptr(),
            n.beta1,
            n.one_minus_beta1,
            n.beta2,
            n.one_minus_beta2,
            n.eps,
            n.decay,
            n.size,
            n.root,
            n.scale,
            n.limit
        );
        Ok(())
    }

    /// `Σ g²` over all gradients of the list, in f64 and in an order that depends on their lengths alone. Waits for everything launched so far.
    ///
    /// # Errors
    /// The driver's.
    pub fn grad_norm_sq(&self, list: &AdamwList) -> Result<f64> {
        if list.blocks == 0 {
            return Ok(0.0);
        }
        launch!(self, "grad_squares", grid(list.blocks, 1, 256), list.table.ptr(), list.chunks.ptr(), list.partial.ptr());
        launch!(self, "grad_squares_total", grid(1, 1, 1024), list.partial.ptr(), list.blocks, list.total.ptr());
        let mut sum = [0.0];
        list.total.read_at(0, &mut sum)?;
        Ok(sum[0])
    }

    /// Sets all gradients of the list to zero.
    ///
    /// # Errors
    /// The driver's.
    pub fn zero_grads(&self, list: &AdamwList) -> Result<()> {
        if list.blocks > 0 {
            launch!(self, "zero_grads", grid(list.blocks, 1, 256), list.table.ptr(), list.chunks.ptr());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's search, on the CPU.
    #[test]
    fn the_tree_finds_what_the_map_finds() {
        for map in [Map::signed(), Map::unsigned()] {
            let tree = tree(map);
            let values = map.bounds().iter().take(255).flat_map(|b| [b.next_down(), *b, b.next_up()]).chain([-1.0, 0.0, 1.0]);
            for value in values {
                let mut k = 1;
                for _ in 0..8 {
                    k = 2 * k + usize::from(value > tree[k]);
                }
                assert_eq!(k - 256, usize::from(map.nearest(value)), "{value:e}");
            }
        }
    }
}
