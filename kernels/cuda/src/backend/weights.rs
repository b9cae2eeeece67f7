//! Groups of frozen projections with their adapters: each is one product, forward and backward.
//!
//! The weight of a group lies in a larger matrix
//!
//! ```text
//!            in columns   R columns
//! out rows [     W      |   s B     ]        (member i: its rows, its columns; zeros elsewhere)
//!   R rows [     A      |    -      ]
//! ```
//!
//! so that `x Wᵀ + s (x Aᵀ) Bᵀ` is `[x | mid] [W | s B]ᵀ`, and `dy W + dmid A` is `[dy | dmid] [W ; A]`, where `mid` and `dmid` lie beside `x` and
//! `dy` (see [`Ops::tensor_with_mid`]). The adapter's share of a product is then a few columns more, instead of another pass over its output.
//!
//! [`Ops::tensor_with_mid`]: trainer_kernels::ops::Ops::tensor_with_mid

use super::fp8::Eights;
use super::linear::{Ranks, shape};
use super::types::Param;
use super::{Cuda, Outcome};
use crate::launch::{DeviceNf4, LoraPart, QuantSource};
use crate::matrix::Matrix;
use crate::memory::{Floats, Tensor};
use std::sync::{Mutex, PoisonError};
use trainer_kernels::nf4::DoubleQuant;
use trainer_kernels::ops::{HostLinear, HostMatrix, LoraMember, OpsError, Random, WeightPlan};

/// Rows of weights with adapters start at multiples of this many values: 128 bytes.
pub(super) const ROW: usize = 64;

/// A group of frozen projections of one input.
pub struct Group {
    pub(super) members: Vec<Member>,
    pub(super) in_features: usize,
    /// Sum of the members' outputs.
    pub(super) out_features: usize,
    /// The weights in 16 bits with room for adapters, if they are kept that way; where they are in e4m3, that room alone.
    kept: Option<Mutex<Extended>>,
    /// The weights in e4m3, if that is what is multiplied.
    pub(super) eights: Option<Eights>,
}

pub(super) struct Member {
    pub(super) out: usize,
    /// Its first column in a row of the result.
    pub(super) column: usize,
    pub(super) bias: Option<Floats>,
    /// What the checkpoint holds; dropped where the weights are kept unpacked.
    pub(super) frozen: Option<Frozen>,
}

pub(super) enum Frozen {
    Nf4(DeviceNf4),
    Dense(Tensor),
}

/// A weight matrix with its adapters: see the module. Without the frozen weight, its two other parts are tensors of their own.
pub(super) struct Extended {
    /// All of it, or `s B`, `[out, R]`.
    tensor: Tensor,
    /// A, `[R, in]`, where it lies apart.
    ins: Option<Tensor>,
    /// Where adapters go into products in e4m3: see `eight_adapters.cu`.
    pub(super) factors: Option<Floats>,
    out: usize,
    in_features: usize,
    /// Sum of ranks that fit.
    room: usize,
    /// What adapters are in it: versions of A and B, rank and scale of each member.
    holds: Vec<(u64, u64, usize, u32)>,
}

impl Extended {
    /// Values of a row with `ranks` columns of adapters.
    pub(super) fn stride(in_features: usize, ranks: usize) -> usize {
        (in_features + ranks).next_multiple_of(ROW)
    }

    fn part(tensor: &Tensor, first_row: usize, rows: usize, first_col: usize, cols: usize) -> Matrix {
        let stride = tensor.stride();
        Matrix { ptr: tensor.ptr() + 2 * (first_row * stride + first_col) as u64, rows, cols, stride }
    }

    /// A part of the matrix that has all parts.
    pub(super) fn matrix(&self, first_row: usize, rows: usize, first_col: usize, cols: usize) -> Matrix {
        Self::part(&self.tensor, first_row, rows, first_col, cols)
    }

    /// Rows of A.
    pub(super) fn a(&self, start: usize, rank: usize) -> Matrix {
        match &self.ins {
            Some(ins) => Self::part(ins, start, rank, 0, self.in_features),
            None => self.matrix(self.out + start, rank, 0, self.in_features),
        }
    }

    /// `s B` and A, of the first ranks, where they lie apart.
    pub(super) fn parts(&self, ranks: usize) -> (Matrix, Matrix) {
        (self.b(0, self.out, 0, ranks), self.a(0, ranks))
    }

    /// Rows and columns of `s B`.
    pub(super) fn b(&self, first_row: usize, rows: usize, start: usize, rank: usize) -> Matrix {
        let first_col = if self.ins.is_some() { 0 } else { self.in_features };
        self.matrix(first_row, rows, first_col + start, rank)
    }
}

impl Cuda {
    pub(super) fn make_group(&self, members: &[HostLinear<'_>], plan: WeightPlan, ranks: usize) -> Outcome<Group> {
        let op = "group";
        let in_features = members.first().map_or(0, |m| m.in_features);
        if in_features == 0 || !in_features.is_multiple_of(8) {
            return Err(OpsError::Device(format!("a projection has {in_features} inputs; on CUDA they must be a multiple of 8")));
        }
        let mut group = Group { members: Vec::new(), in_features, out_features: 0, kept: None, eights: None };
        for m in members {
            let len = m.out_features.saturating_mul(m.in_features);
            let got = m.weight.len();
            if m.in_features != in_features || got != len || m.out_features == 0 {
                return Err(shape(op, "a frozen weight", got, len));
            }
            if !m.out_features.is_multiple_of(8) {
                return Err(OpsError::Device(format!("a projection has {} outputs; on CUDA they must be a multiple of 8", m.out_features)));
            }
            if let Some(bias) = m.bias.filter(|b| b.len() != m.out_features) {
                return Err(shape(op, "a frozen bias", bias.len(), m.out_features));
            }
            let frozen = match m.weight {
                HostMatrix::Nf4(w) => Frozen::Nf4(self.device.nf4(w)?),
                HostMatrix::Stored { source, quantize: Some(double) } => {
                    Frozen::Nf4(self.stored_nf4(source, m.out_features, in_features, double)?)
                }
                other => Frozen::Dense(self.dense(other, m.out_features, in_features)?),
            };
            let bias = m.bias.map(|b| self.device.floats(b)).transpose()?;
            group.members.push(Member { out: m.out_features, column: group.out_features, bias, frozen: Some(frozen) });
            group.out_features += m.out_features;
        }
        self.keep(&mut group, plan, ranks)?;
        Ok(group)
    }

    /// A group with random weights, made and quantized on the card.
    pub(super) fn make_random_group(&self, members: &[(usize, usize)], random: Random, plan: WeightPlan, ranks: usize) -> Outcome<Group> {
        let in_features = members.first().map_or(0, |m| m.1);
        let mut group = Group { members: Vec::new(), in_features, out_features: 0, kept: None, eights: None };
        for (&(out, inner), member) in members.iter().zip(0u64..) {
            let mut values = Tensor::new(self.device.arena(), out, inner, "random weights")?;
            self.device.random_normal(random.seed.wrapping_add(member), random.deviation, 0, &mut values)?;
            let frozen = if random.nf4 {
                Frozen::Nf4(self.device.quantize_nf4(QuantSource::Bf16(&values), out, inner, DoubleQuant::default())?)
            } else {
                Frozen::Dense(values)
            };
            group.members.push(Member { out, column: group.out_features, bias: None, frozen: Some(frozen) });
            group.out_features += out;
        }
        self.keep(&mut group, plan, ranks)?;
        Ok(group)
    }

    /// Unpacks the weights of a group that keeps them unpacked.
    fn keep(&self, group: &mut Group, plan: WeightPlan, ranks: usize) -> Outcome<()> {
        group.eights = self.eights(group, plan, ranks, |dense| self.fill(group, dense))?;
        let (out, inner) = (group.out_features, group.in_features);
        if plan == WeightPlan::Unpacked {
            group.kept = Some(Mutex::new(match group.eights {
                Some(_) => self.apart(out, inner, ranks)?,
                None => {
                    let mut extended = self.extended(out, inner, ranks)?;
                    self.fill(group, &mut extended.tensor)?;
                    extended
                }
            }));
        }
        if plan == WeightPlan::Unpacked || group.eights.as_ref().is_some_and(Eights::kept) {
            group.members.iter_mut().for_each(|m| m.frozen = None);
        }
        Ok(())
    }

    /// A dense matrix in bf16.
    pub(super) fn dense(&self, matrix: HostMatrix<'_>, rows: usize, cols: usize) -> Outcome<Tensor> {
        let op = "dense";
        Ok(match matrix {
            HostMatrix::Nf4(w) => {
                let mut t = Tensor::new(self.device.arena(), rows, cols, "a matrix")?;
                self.device.nf4_unpack(&self.device.nf4(w)?, &mut t, 0)?;
                t
            }
            HostMatrix::F32(w) if w.len() == rows * cols => self.device.tensor(cols, w)?,
            HostMatrix::Bf16(w) if w.len() == rows * cols => Tensor::of(self.device.upload(w, "a matrix")?, rows, cols)?,
            HostMatrix::Stored { source, quantize: None } => self.stored_dense(source, rows, cols)?,
            HostMatrix::Stored { source, quantize: Some(double) } => {
                let mut t = Tensor::new(self.device.arena(), rows, cols, "a matrix")?;
                self.device.nf4_unpack(&self.stored_nf4(source, rows, cols, double)?, &mut t, 0)?;
                t
            }
            other => return Err(shape(op, "the matrix", other.len(), rows * cols)),
        })
    }

    fn extended(&self, out: usize, in_features: usize, ranks: usize) -> Outcome<Extended> {
        let stride = Extended::stride(in_features, ranks);
        let tensor = Tensor::new(self.device.arena(), out + ranks, stride, "weights in 16 bits")?;
        Ok(Extended { tensor, ins: None, factors: None, out, in_features, room: ranks, holds: Vec::new() })
    }

    /// Room for adapters alone.
    fn apart(&self, out: usize, in_features: usize, ranks: usize) -> Outcome<Extended> {
        let tensor = Tensor::new(self.device.arena(), out, ranks, "adapters in 16 bits")?;
        let ins = Tensor::new(self.device.arena(), ranks, in_features, "adapters in 16 bits")?;
        let factors = Some(self.device.buffer(2 * ranks, "adapters' factors")?);
        Ok(Extended { tensor, ins: Some(ins), factors, out, in_features, room: ranks, holds: Vec::new() })
    }

    /// The frozen weights into the top left.
    pub(super) fn fill(&self, group: &Group, extended: &mut Tensor) -> Outcome<()> {
        let mut part = extended.columns(0, group.in_features)?;
        for m in &group.members {
            match &m.frozen {
                Some(Frozen::Nf4(w)) => self.device.nf4_unpack(w, &mut part, m.column)?,
                Some(Frozen::Dense(w)) => self.device.copy_tensor(m.out, w, &mut part.rows_from(m.column)?)?,
                None => return Err(OpsError::Device("weights were dropped that are needed: a bug in trainer-kernels-cuda".into())),
            }
        }
        Ok(())
    }

    /// Runs `work` with the group's weights and these adapters in one matrix.
    pub(super) fn with_weights<T>(
        &self,
        group: &Group,
        lora: &[Option<LoraMember<'_, Param>>],
        ranks: &Ranks,
        work: impl FnOnce(&Extended) -> Outcome<T>,
    ) -> Outcome<T> {
        let wanted: Vec<(u64, u64, usize, u32)> =
            lora.iter().map(|l| l.as_ref().map_or((0, 0, 0, 0), |l| (l.a.version(), l.b.version(), l.rank, l.scale.to_bits()))).collect();
        if let Some(kept) = &group.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if ranks.total <= kept.room {
                if ranks.total > 0 && kept.holds != wanted {
                    self.pack(group, lora, ranks, &mut kept)?;
                    kept.holds = wanted;
                }
                return work(&kept);
            }
            if group.eights.is_none() {
                // More than there is room for: right, but a copy slower.
                let mut scratch = self.scratch();
                let extended = self.shared_weights(&mut scratch.weights, group, ranks.total)?;
                let from = kept.tensor.columns(0, group.in_features)?;
                self.device.copy_tensor(group.out_features, &from, &mut extended.tensor.columns(0, group.in_features)?)?;
                self.pack(group, lora, ranks, extended)?;
                return work(extended);
            }
        }
        let mut scratch = self.scratch();
        let extended = if group.eights.is_some() {
            self.shared_adapters(&mut scratch.adapters, group, ranks.total)?
        } else {
            let extended = self.shared_weights(&mut scratch.weights, group, ranks.total)?;
            self.fill(group, &mut extended.tensor)?;
            extended
        };
        if ranks.total > 0 {
            self.pack(group, lora, ranks, extended)?;
        }
        work(extended)
    }

    /// The buffers that the adapters of groups in e4m3 take turns in, in the shape of this one's.
    fn shared_adapters<'s>(&self, shared: &'s mut Option<Extended>, group: &Group, ranks: usize) -> Outcome<&'s mut Extended> {
        let (out, inner) = (group.out_features, group.in_features);
        let (outs, ins, factors) = match shared.take() {
            Some(held) => (Some(held.tensor), held.ins, held.factors),
            None => (None, None, None),
        };
        // Each of the two only grows: the group with the longest B need not be the one with the longest A.
        let room = |held: Option<Tensor>, rows: usize, cols: usize| -> Outcome<Tensor> {
            match held.filter(|t| t.capacity() >= rows * cols) {
                Some(t) => Ok(t.reshaped(rows, cols)?),
                None => {
                    self.replace();
                    Ok(Tensor::new(self.device.arena(), rows, cols, "adapters in 16 bits")?)
                }
            }
        };
        let (tensor, ins) = (room(outs, out, ranks)?, room(ins, ranks, inner)?);
        let factors = match factors.filter(|f| f.len() >= 2 * ranks) {
            Some(factors) => factors,
            None => {
                self.replace();
                self.device.buffer(2 * ranks, "adapters' factors")?
            }
        };
        Ok(shared.insert(Extended {
            tensor,
            ins: Some(ins),
            factors: Some(factors),
            out,
            in_features: inner,
            room: ranks,
            holds: Vec::new(),
        }))
    }

    /// The buffer that groups take turns in, in the shape of this one.
    fn shared_weights<'s>(&self, shared: &'s mut Option<Extended>, group: &Group, ranks: usize) -> Outcome<&'s mut Extended> {
        let (rows, stride) = (group.out_features + ranks, Extended::stride(group.in_features, ranks));
        let fits = shared.as_ref().is_some_and(|e| e.tensor.capacity() >= rows * stride);
        if !fits {
            *shared = None;
            self.replace();
            *shared = Some(self.extended(group.out_features, group.in_features, ranks)?);
        }
        match shared {
            Some(extended) => {
                extended.tensor = extended.tensor.reshaped(rows, stride)?;
                (extended.out, extended.in_features, extended.room) = (group.out_features, group.in_features, ranks);
                Ok(extended)
            }
            None => Err(OpsError::Device("no shared weights: a bug in trainer-kernels-cuda".into())),
        }
    }

    fn pack(&self, group: &Group, lora: &[Option<LoraMember<'_, Param>>], ranks: &Ranks, extended: &mut Extended) -> Outcome<()> {
        let parts: Vec<LoraPart<'_>> = group
            .members
            .iter()
            .zip(lora)
            .zip(&ranks.starts)
            .filter_map(|((m, l), &start)| {
                let l = l.as_ref().filter(|l| l.rank > 0)?;
                let (a, b) = (l.a.values(), l.b.values());
                Some(LoraPart { a, b, rank: l.rank, scale: l.scale, out_start: m.column, out: m.out, rank_start: start })
            })
            .collect();
        match &mut extended.ins {
            Some(ins) => {
                let mut outs = extended.tensor.columns(0, ranks.total)?;
                self.device.lora_pack_apart(&parts, &mut outs, ins)?;
                match &group.eights {
                    Some(eights) if eights.takes(&ranks.ranks, ranks.total) => self.pack8(eights, ranks.total, extended),
                    _ => Ok(()),
                }
            }
            None => Ok(self.device.lora_pack(&parts, group.out_features, group.in_features, ranks.total, &mut extended.tensor)?),
        }
    }
}
