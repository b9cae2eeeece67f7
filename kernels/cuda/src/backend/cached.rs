//! stub
use super::{Batch, Cuda, Outcome};
use crate::launch::KvCache;
use crate::memory::Tensor;
use trainer_kernels::ops::{AttentionShape, OpsError};
impl Cuda {
    pub(super) fn append(
        &self,
        _batch: &Batch,
        _n: usize,
        _layer: usize,
        _shape: AttentionShape,
        _qk: &Tensor,
        _qkv: &Tensor,
        _cache: &mut KvCache,
    ) -> Outcome<()> {
        Err(OpsError::Device("not yet".into()))
    }
    pub(super) fn attend_cache(
        &self,
        _batch: &Batch,
        _n: usize,
        _layer: usize,
        _shape: AttentionShape,
        _qk: &Tensor,
        _cache: &KvCache,
        _out: &mut Tensor,
    ) -> Outcome<()> {
        Err(OpsError::Device("not yet".into()))
    }
}
