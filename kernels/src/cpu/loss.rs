//! Cross-entropy and logits.

use super::Cpu;
use super::buffer::{Buffer, Parts, area};
use super::gemm::{self, Finish, Product, Rhs, Term, Transposed};
use super::simd::{Simd, at, at_or, dispatch, exp, largest, put, sum, vectors, zero_tail};
use super::types::{Batch, Tensor, index, same};
use crate::ops::{HostMatrix, OpsError, Result};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Positions whose logits a task holds: each pass over the head serves so many.
const POSITIONS: usize = 64;
/// Vectors whose exponentials are summed in f32 before the sum goes on in f64.
const SUM_BLOCK: usize = 64;

/// A dense table: embedding and, when asked for logits, output head.
pub struct Table {
    values: Buffer,
    rows: usize,
    cols: usize,
    /// The transpose as a right operand, made when first needed.
    panels: OnceLock<Buffer>,
}

dispatch!(
    /// The loss of one row of logits; the row becomes `factor * (softmax - onehot(target))`.
    fn cross_entropy_row(logits: &mut [f32], target: usize, factor: Option<f32>) -> f64 = cross_entropy_row_body
);

#[inline(always)]
fn cross_entropy_row_body<S: Simd>(s: S, logits: &mut [f32], target: usize, factor: Option<f32>) -> f64 {
    let n = logits.len();
    let wanted = logits.get(target).copied().unwrap_or(0.0);
    let mut top = s.splat(f32::NEG_INFINITY);
    for c in 0..vectors(n) {
        top = s.max(at_or(s, logits, c, f32::NEG_INFINITY), top);
    }
    let top = largest(s, top);
    let shift = s.splat(top);
    let mut total = 0.0f64;
    for block in (0..vectors(n)).step_by(SUM_BLOCK) {
        let mut part = s.splat(0.0);
        for c in block..(block + SUM_BLOCK).min(vectors(n)) {
            let e = zero_tail(s, exp(s, s.sub(at(s, logits, c), shift)), n, c);
            part = s.add(part, e);
            put(s, logits, c, e);
        }
        total += f64::from(sum(s, part));
    }
    if let Some(factor) = factor {
        let k = s.splat((f64::from(factor) / total) as f32);
        for c in 0..vectors(n) {
            let v = s.mul(at(s, logits, c), k);
            put(s, logits, c, v);
        }
        if let Some(t) = logits.get_mut(target) {
            *t -= factor;
        }
    }
    f64::from(top) + total.ln() - f64::from(wanted)
}

impl Cpu {
    pub(super) fn make_table(&self, weight: HostMatrix<'_>, rows: usize, cols: usize) -> Result<Table> {
        let mut values = Buffer::zeroed(area(rows, cols, "a table")?, "a table")?;
        super::linear::dense("table", weight, &mut values)?;
        Ok(Table { values, rows, cols, panels: OnceLock::new() })
    }

    pub(super) fn look_up(&self, batch: &Batch, table: &Table, out: &mut Tensor) -> Result<()> {
        const OP: &str = "embed";
        let cols = table.cols;
        let ids = &batch.host.ids;
        for &id in ids {
            index(OP, "token id", id.into(), table.rows as u64)?;
        }
        let out = out.rows_mut(OP, "out", ids.len(), cols)?;
        for (&id, out) in ids.iter().zip(out.chunks_exact_mut(cols.max(1))) {
            let start = id as usize * cols;
            out.copy_from_slice(table.values.get(start..start + cols).unwrap_or(&[]));
        }
        Ok(())
    }

    fn head_panels<'a>(&self, table: &'a Table) -> Result<&'a Buffer> {
        if let Some(panels) = table.panels.get() {
            return Ok(panels);
        }
        let mut panels = Buffer::zeroed(gemm::packed_len(table.cols, table.rows), "panels of the output head")?;
        let source = Transposed { src: &table.values, stride: table.cols, n: table.rows, factor: 1.0 };
        gemm::pack_transposed(&self.pool, &[source], table.cols, &mut panels);
        Ok(table.panels.get_or_init(|| panels))
    }

    pub(super) fn weighted_cross_entropy(
        &self,
        batch: &Batch,
        n: usize,
        hidden: &Tensor,
        head: &Table,
        grad_scale: f32,
        dhidden: Option<&mut Tensor>,
    ) -> Result<Vec<f64>> {
        const OP: &str = "cross_entropy";
        batch.check_rows(OP, n)?;
        let cols = head.cols;
        let hiddens = hidden.rows(OP, "hidden", n, cols)?;
        same(OP, "the batch's targets", batch.host.targets.len(), n)?;
        same(OP, "the batch's weights", batch.host.weights.len(), n)?;
        // Row, target and weight of the positions that count.
        let mut wanted = Vec::new();
        for (row, (&target, &weight)) in batch.host.targets.iter().zip(&batch.host.weights).enumerate() {
            if weight != 0.0 {
                index(OP, "target", target.into(), head.rows as u64)?;
                wanted.push((row, target as usize, weight));
            }
        }
        let gradient = match dhidden {
            Some(d) => {
                d.rows_mut(OP, "dhidden", n, cols)?.fill(0.0);
                Some(Parts::new(&mut d.data))
            }
            None => None,
        };
        let panels = self.head_panels(head)?;
        let positions = POSITIONS.min(wanted.len().div_ceil(8).max(16));
        // Per worker: gathered rows, their logits, and the rows' gradients.
        let size = positions * (head.rows + 2 * cols) + 32;
        let mut scratch = self.scratch.take(area(self.pool.threads(), size, "logits of a chunk")?, "logits of a chunk")?;
        let scratch = Parts::new(&mut scratch);
        let losses: Mutex<Vec<(usize, f64)>> = Mutex::new(Vec::with_capacity(wanted.len()));
        self.pool.run(wanted.len().div_ceil(positions), &|worker, task| {
            let chunk = wanted.chunks(positions).nth(task).unwrap_or(&[]);
            // SAFETY: each worker has its own scratch.
            #[expect(unsafe_code, reason = "per-thread scratch")]
            let (gathered, rest) = unsafe { scratch.part(worker * size, size) }.split_at_mut(positions * cols);
            let (d_rows, logits) = rest.split_at_mut(positions * cols);
            for (&(row, ..), to) in chunk.iter().zip(gathered.chunks_exact_mut(cols.max(1))) {
                to.copy_from_slice(hiddens.get(row * cols..(row + 1) * cols).unwrap_or(&[]));
            }
            let term = Term { lhs: gathered, lhs_stride: cols, rhs: Rhs::packed(panels, cols), k: cols };
            self.one(chunk.len(), head.rows, false, term, Parts::new(logits), 0, head.rows, Finish::STORE);
            let mut found = Vec::with_capacity(chunk.len());
            for (&(row, target, weight), logits) in chunk.iter().zip(logits.chunks_exact_mut(head.rows.max(1))) {
                let factor = gradient.map(|_| weight * grad_scale);
                found.push((row, f64::from(weight) * cross_entropy_row(self.path, logits, target, factor)));
            }
            losses.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
            let Some(gradient) = gradient else { return };
            let term = Term { lhs: logits, lhs_stride: head.rows, rhs: Rhs::in_place(head.values.padded(), cols), k: head.rows };
            self.one(chunk.len(), cols, false, term, Parts::new(d_rows), 0, cols, Finish::STORE);
            for (&(row, ..), from) in chunk.iter().zip(d_rows.chunks_exact(cols.max(1))) {
                // SAFETY: a row is in one chunk only.
                #[expect(unsafe_code, reason = "scattered rows")]
                unsafe { gradient.part(row * cols, cols) }.copy_from_slice(from);
            }
        });
        // Summed in the order of rows, whatever order the chunks came in.
        let mut losses = losses.into_inner().unwrap_or_else(PoisonError::into_inner);
        losses.sort_by_key(|(row, _)| *row);
        let mut sums = vec![0.0; batch.sequences()];
        for (row, loss) in losses {
            if let Some(sum) = batch.sequence_of.get(row).and_then(|&s| sums.get_mut(s as usize)) {
                *sum += loss;
            }
        }
        Ok(sums)
    }

    pub(super) fn all_logits(&self, n: usize, hidden: &Tensor, head: &Table) -> Result<Vec<f32>> {
        const OP: &str = "logits";
        let hiddens = hidden.rows(OP, "hidden", n, head.cols)?;
        let panels = self.head_panels(head)?;
        let len = area(n, head.rows, "logits")?;
        let mut logits = Vec::new();
        logits.try_reserve_exact(len).map_err(|_| OpsError::Memory { what: "logits".into(), bytes: len as u64 * 4 })?;
        logits.resize(len, 0.0);
        let terms = vec![Term { lhs: hiddens, lhs_stride: head.cols, rhs: Rhs::packed(panels, head.cols), k: head.cols }];
        let out = Parts::new(&mut logits);
        let product = Product { m: n, n: head.rows, transposed: false, terms, out, start: 0, stride: head.rows, finish: Finish::STORE };
        gemm::run(&self.pool, self.path, &[product]);
        Ok(logits)
    }
}
