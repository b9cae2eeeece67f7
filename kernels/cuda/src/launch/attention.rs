//! stub
use crate::Result;
use crate::device::Device;
use crate::memory::{Buffer, Floats, Tensor};
use trainer_kernels::ops::AttentionShape;
pub struct Sequences(Buffer<u32>);
pub struct AttentionScratch;
pub fn attention_scratch_bytes(_rows: usize, _shape: AttentionShape) -> u64 {
    0
}
impl AttentionScratch {
    pub fn serves(&self, _rows: usize, _shape: AttentionShape) -> bool {
        true
    }
}
impl Device {
    pub fn sequences(&self, cu: &[u32]) -> Result<Sequences> {
        Ok(Sequences(self.upload(cu, "x")?))
    }
    pub fn attention_scratch(&self, _rows: usize, _shape: AttentionShape) -> Result<AttentionScratch> {
        Ok(AttentionScratch)
    }
    pub fn attention(
        &self,
        _n: usize,
        _s: &Sequences,
        _shape: AttentionShape,
        _qk: &Tensor,
        _qkv: &Tensor,
        _out: &mut Tensor,
        _lse: &mut Floats,
    ) -> Result<()> {
        Err(crate::CudaError::NoDriver)
    }
    pub fn attention_backward(
        &self,
        _n: usize,
        _s: &Sequences,
        _shape: AttentionShape,
        _dout: &Tensor,
        _out: &Tensor,
        _qk: &Tensor,
        _qkv: &Tensor,
        _lse: &Floats,
        _scratch: &mut AttentionScratch,
        _dqk: &mut Tensor,
        _dqkv: &mut Tensor,
    ) -> Result<()> {
        Err(crate::CudaError::NoDriver)
    }
}
pub struct KvCache;
impl Device {
    pub fn kv_cache(&self, _l: usize, _s: usize, _n: usize, _shape: AttentionShape) -> Result<KvCache> {
        Ok(KvCache)
    }
}
