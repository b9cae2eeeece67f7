//! Rows of the reference data and the micro-batches that they make.

use trainer_kernels::ops::HostBatch;

use crate::Result;
use crate::files::{Files, Tensor, Tensors};

/// A sequence.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub ids: Vec<u32>,
    /// Weight of predicting the next token, per position.
    pub weights: Vec<f32>,
    pub sample: u64,
}

/// The rows of a file: right-padded, with -100 where there is nothing to predict.
pub(crate) fn rows(files: &Files, path: &str, tensors: &Tensors) -> Result<Vec<Row>> {
    let (ids, mask, labels) = (tensors.get("input_ids")?, tensors.get("attention_mask")?.i64(), tensors.get("labels")?.i64());
    let &[_, width] = ids.shape.as_slice() else { return Err(files.error(path, "input_ids is not a matrix")) };
    let ids = ids.i64();
    if width == 0 || mask.len() != ids.len() || labels.len() != ids.len() {
        return Err(files.error(path, "input_ids, attention_mask and labels are not of one size"));
    }
    let mut rows = Vec::new();
    for ((ids, mask), labels) in ids.chunks(width).zip(mask.chunks(width)).zip(labels.chunks(width)) {
        let len = mask.iter().take_while(|m| **m != 0).count();
        let target = |p: usize| p + 1 < len && labels.get(p + 1).is_some_and(|l| *l != -100);
        rows.push(Row {
            ids: ids.iter().take(len).map(|i| *i as u32).collect(),
            weights: (0..len).map(|p| f32::from(u8::from(target(p)))).collect(),
            sample: rows.len() as u64,
        });
    }
    Ok(rows)
}

/// Rows packed into one micro-batch.
pub(crate) fn pack(rows: &[Row]) -> HostBatch {
    let mut batch = HostBatch { cu_seqlens: vec![0], ..HostBatch::default() };
    for row in rows {
        batch.ids.extend(&row.ids);
        batch.targets.extend(row.ids.iter().skip(1).chain([&0]));
        batch.weights.extend(&row.weights);
        batch.positions.extend(0..row.ids.len() as u32);
        batch.cu_seqlens.push(batch.ids.len() as u32);
        batch.samples.push(row.sample);
    }
    batch
}

/// Targets of rows.
pub(crate) fn total_weight(rows: &[Row]) -> f64 {
    rows.iter().flat_map(|r| &r.weights).map(|w| f64::from(*w)).sum()
}

/// The stored values at the real positions of right-padded rows, in packed order.
pub(crate) fn unpadded(tensor: &Tensor, rows: &[Row]) -> Vec<f32> {
    let &[_, width, size] = tensor.shape.as_slice() else { return Vec::new() };
    let values = tensor.f32();
    let chunks = values.chunks(width.saturating_mul(size).max(1));
    chunks.zip(rows).flat_map(|(chunk, row)| chunk.iter().take(row.ids.len() * size).copied().collect::<Vec<_>>()).collect()
}

/// The values at each row's last position.
pub(crate) fn last(values: &[f32], rows: &[Row], size: usize) -> Vec<f32> {
    let mut end = 0;
    rows.iter()
        .flat_map(|row| {
            end += row.ids.len();
            values.get(end.saturating_sub(1) * size..end * size).unwrap_or_default().to_vec()
        })
        .collect()
}
