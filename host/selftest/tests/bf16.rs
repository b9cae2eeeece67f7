//! What bf16 activations cost on the reference data, without a card: the CPU backend with every activation and weight rounded to bf16. The tolerances for
//! bf16 are held against it, and the checks of such backends run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::bf16;
use trainer_kernels::adamw::{AdamWConfig, OptimizerState};
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels::ops::*;
use trainer_selftest::{Check, Measure, run};

/// Rounds what the operations write.
struct Rounded(Cpu);

/// A batch with its number of rows.
struct Batch(<Cpu as Ops>::Batch, usize);

fn rounded(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
}

fn dense(matrix: HostMatrix<'_>) -> Vec<f32> {
    match matrix {
        HostMatrix::Nf4(w) => rounded(&w.dequantize::<f32>()),
        HostMatrix::F32(w) => rounded(w),
        HostMatrix::Bf16(w) => w.iter().map(|v| v.to_f32()).collect(),
        HostMatrix::Stored { .. } => unreachable!("no model here is loaded that way"),
    }
}

impl Rounded {
    fn round(&self, n: usize, t: &mut <Cpu as Ops>::Tensor) -> Result<()> {
        let values = rounded(&self.0.read_tensor(n, t)?);
        self.0.write_tensor(&values, t)
    }

    /// Adapters as products see them.
    fn params(&self, lora: &[Option<LoraMember<'_, <Cpu as Ops>::Param>>]) -> Result<Vec<[<Cpu as Ops>::Param; 2]>> {
        let round = |p| self.0.param(&rounded(&self.0.read_param(p)?));
        lora.iter().flatten().map(|l| Ok([round(l.a)?, round(l.b)?])).collect()
    }
}

/// Members with other values.
fn members<'a>(
    lora: &[Option<LoraMember<'a, <Cpu as Ops>::Param>>],
    values: &'a [[<Cpu as Ops>::Param; 2]],
) -> Vec<Option<LoraMember<'a, <Cpu as Ops>::Param>>> {
    let mut values = values.iter();
    let member = |l: &LoraMember<'a, <Cpu as Ops>::Param>, [a, b]: &'a [<Cpu as Ops>::Param; 2]| LoraMember {
        a,
        b,
        rank: l.rank,
        scale: l.scale,
        bias: l.bias,
    };
    lora.iter().map(|l| l.as_ref().and_then(|l| Some(member(l, values.next()?)))).collect()
}

#[allow(clippy::too_many_arguments, reason = "the trait's")]
impl Ops for Rounded {
    type Tensor = <Cpu as Ops>::Tensor;
    type Stats = <Cpu as Ops>::Stats;
    type Param = <Cpu as Ops>::Param;
    type Group = <Cpu as Ops>::Group;
    type Table = <Cpu as Ops>::Table;
    type Vector = <Cpu as Ops>::Vector;
    type Batch = Batch;
    type Cache = <Cpu as Ops>::Cache;
    type State = <Cpu as Ops>::State;
    type Offloaded = <Cpu as Ops>::Offloaded;
    type Recording = <Cpu as Ops>::Recording;

    fn describe(&self) -> String {
        "cpu, rounded to bf16".into()
    }
    fn element_bytes(&self) -> usize {
        2
    }
    fn tensor(&self, rows: usize, cols: usize) -> Result<Self::Tensor> {
        self.0.tensor(rows, cols)
    }
    fn write_tensor(&self, values: &[f32], t: &mut Self::Tensor) -> Result<()> {
        self.0.write_tensor(&rounded(values), t)
    }
    fn group(&self, members: &[HostLinear<'_>], plan: WeightPlan, ranks: usize) -> Result<Self::Group> {
        let values: Vec<Vec<f32>> = members.iter().map(|m| dense(m.weight)).collect();
        let members: Vec<HostLinear<'_>> =
            members.iter().zip(&values).map(|(m, v)| HostLinear { weight: HostMatrix::F32(v), ..*m }).collect();
        self.0.group(&members, plan, ranks)
    }
    fn table(&self, weight: HostMatrix<'_>, rows: usize, cols: usize) -> Result<Self::Table> {
        self.0.table(HostMatrix::F32(&dense(weight)), rows, cols)
    }
    fn linear(
        &self,
        batch: &Self::Batch,
        n: usize,
        x: &Self::Tensor,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        dropout: Option<Dropout>,
        out: &mut Self::Tensor,
        mid: &mut Self::Tensor,
    ) -> Result<()> {
        let params = self.params(lora)?;
        self.0.linear(&batch.0, n, x, w, &members(lora, &params), dropout, out, mid)?;
        self.round(n, mid)?;
        self.round(n, out)
    }
    fn linear_backward(
        &self,
        batch: &Self::Batch,
        n: usize,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        mid: &Self::Tensor,
        w: &Self::Group,
        lora: &[Option<LoraMember<'_, Self::Param>>],
        dropout: Option<Dropout>,
        grads: &mut [Option<LoraGrads<'_, Self::Param>>],
        dmid: &mut Self::Tensor,
        mut dx: Option<&mut Self::Tensor>,
    ) -> Result<()> {
        let params = self.params(lora)?;
        self.0.linear_backward(&batch.0, n, dy, x, mid, w, &members(lora, &params), dropout, grads, dmid, dx.as_deref_mut())?;
        dx.map_or(Ok(()), |dx| self.round(n, dx))
    }
    fn stats(&self, rows: usize, cols: usize) -> Result<Self::Stats> {
        self.0.stats(rows, cols)
    }
    fn read_tensor(&self, n: usize, t: &Self::Tensor) -> Result<Vec<f32>> {
        self.0.read_tensor(n, t)
    }
    fn zero(&self, n: usize, t: &mut Self::Tensor) -> Result<()> {
        self.0.zero(n, t)
    }
    fn copy(&self, n: usize, from: &Self::Tensor, to: &mut Self::Tensor) -> Result<()> {
        self.0.copy(n, from, to)?;
        self.round(n, to)
    }
    fn copy_mid(&self, n: usize, ranks: usize, from: &Self::Tensor, to: &mut Self::Tensor) -> Result<()> {
        self.0.copy_mid(n, ranks, from, to)?;
        self.round(n, to)
    }
    fn param(&self, values: &[f32]) -> Result<Self::Param> {
        self.0.param(values)
    }
    fn read_param(&self, p: &Self::Param) -> Result<Vec<f32>> {
        self.0.read_param(p)
    }
    fn write_param(&self, values: &[f32], p: &mut Self::Param) -> Result<()> {
        self.0.write_param(values, p)
    }
    fn zero_param(&self, p: &mut Self::Param) -> Result<()> {
        self.0.zero_param(p)
    }
    fn offloaded(&self, rows: usize, cols: usize) -> Result<Self::Offloaded> {
        self.0.offloaded(rows, cols)
    }
    fn offload(&self, n: usize, from: &Self::Tensor, to: &mut Self::Offloaded) -> Result<()> {
        self.0.offload(n, from, to)
    }
    fn fetch(&self, n: usize, from: &mut Self::Offloaded, to: &mut Self::Tensor) -> Result<()> {
        self.0.fetch(n, from, to)?;
        self.round(n, to)
    }
    fn settle(&self, of: &Self::Offloaded) -> Result<()> {
        self.0.settle(of)
    }
    fn vector(&self, values: &[f32]) -> Result<Self::Vector> {
        self.0.vector(values)
    }
    fn batch(&self, batch: &HostBatch) -> Result<Batch> {
        Ok(Batch(self.0.batch(batch)?, batch.ids.len()))
    }
    fn embed(&self, batch: &Batch, table: &Self::Table, out: &mut Self::Tensor) -> Result<()> {
        self.0.embed(&batch.0, table, out)?;
        self.round(batch.1, out)
    }
    fn rms_norm(
        &self,
        n: usize,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
        rstd: &mut Self::Stats,
    ) -> Result<()> {
        self.0.rms_norm(n, x, weight, eps, out, rstd)?;
        self.round(n, out)
    }
    fn add_rms_norm(
        &self,
        n: usize,
        x_acc: &mut Self::Tensor,
        delta: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Tensor,
        rstd: &mut Self::Stats,
    ) -> Result<()> {
        // The norm is that of the sum as it is kept, which is what makes plans that compute it again agree to the bit.
        self.add(n, x_acc, delta)?;
        self.rms_norm(n, x_acc, weight, eps, out, rstd)
    }
    fn rms_norm_backward(
        &self,
        n: usize,
        dy: &Self::Tensor,
        x: &Self::Tensor,
        weight: &Self::Vector,
        rstd: &Self::Stats,
        dx_acc: &mut Self::Tensor,
    ) -> Result<()> {
        self.0.rms_norm_backward(n, dy, x, weight, rstd, dx_acc)?;
        self.round(n, dx_acc)
    }
    fn add(&self, n: usize, x_acc: &mut Self::Tensor, delta: &Self::Tensor) -> Result<()> {
        self.0.add(n, x_acc, delta)?;
        self.round(n, x_acc)
    }
    fn qk_norm_rope(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        qkv: &Self::Tensor,
        q_weight: &Self::Vector,
        k_weight: &Self::Vector,
        eps: f32,
        theta: f64,
        qk: &mut Self::Tensor,
        rstd: &mut Self::Stats,
    ) -> Result<()> {
        self.0.qk_norm_rope(&batch.0, n, shape, qkv, q_weight, k_weight, eps, theta, qk, rstd)?;
        self.round(n, qk)
    }
    fn qk_norm_rope_backward(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        dqk: &Self::Tensor,
        qkv: &Self::Tensor,
        q_weight: &Self::Vector,
        k_weight: &Self::Vector,
        rstd: &Self::Stats,
        theta: f64,
        dqkv: &mut Self::Tensor,
    ) -> Result<()> {
        self.0.qk_norm_rope_backward(&batch.0, n, shape, dqk, qkv, q_weight, k_weight, rstd, theta, dqkv)?;
        self.round(n, dqkv)
    }
    fn attention(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        qk: &Self::Tensor,
        qkv: &Self::Tensor,
        out: &mut Self::Tensor,
        lse: &mut Self::Stats,
    ) -> Result<()> {
        self.0.attention(&batch.0, n, shape, qk, qkv, out, lse)?;
        self.round(n, out)
    }
    fn attention_backward(
        &self,
        batch: &Batch,
        n: usize,
        shape: AttentionShape,
        dout: &Self::Tensor,
        out: &Self::Tensor,
        qk: &Self::Tensor,
        qkv: &Self::Tensor,
        lse: &Self::Stats,
        dqk: &mut Self::Tensor,
        dqkv: &mut Self::Tensor,
    ) -> Result<()> {
        self.0.attention_backward(&batch.0, n, shape, dout, out, qk, qkv, lse, dqk, dqkv)?;
        self.round(n, dqk)?;
        self.round(n, dqkv)
    }
    fn swiglu(&self, n: usize, width: usize, gate_up: &Self::Tensor, out: &mut Self::Tensor) -> Result<()> {
        self.0.swiglu(n, width, gate_up, out)?;
        self.round(n, out)
    }
    fn swiglu_backward(&self, n: usize, width: usize, dout: &Self::Tensor, gate_up: &mut Self::Tensor) -> Result<()> {
        self.0.swiglu_backward(n, width, dout, gate_up)?;
        self.round(n, gate_up)
    }
    fn cross_entropy(
        &self,
        batch: &Batch,
        n: usize,
        hidden: &Self::Tensor,
        head: &Self::Table,
        grad_scale: f32,
        mut dhidden: Option<&mut Self::Tensor>,
    ) -> Result<Vec<f64>> {
        let done = self.0.cross_entropy(&batch.0, n, hidden, head, grad_scale, dhidden.as_deref_mut())?;
        if let Some(dhidden) = dhidden {
            self.round(n, dhidden)?;
        }
        Ok(done)
    }
    fn cache(&self, layers: usize, slots: usize, length: usize, shape: AttentionShape) -> Result<Self::Cache> {
        self.0.cache(layers, slots, length, shape)
    }
    fn cache_append(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Self::Tensor,
        qkv: &Self::Tensor,
        cache: &mut Self::Cache,
    ) -> Result<()> {
        self.0.cache_append(&batch.0, n, layer, shape, qk, qkv, cache)
    }
    fn attention_cached(
        &self,
        batch: &Batch,
        n: usize,
        layer: usize,
        shape: AttentionShape,
        qk: &Self::Tensor,
        cache: &Self::Cache,
        out: &mut Self::Tensor,
    ) -> Result<()> {
        self.0.attention_cached(&batch.0, n, layer, shape, qk, cache, out)?;
        self.round(n, out)
    }
    fn gather(&self, rows: &[u32], from: &Self::Tensor, to: &mut Self::Tensor) -> Result<()> {
        self.0.gather(rows, from, to)?;
        self.round(rows.len(), to)
    }
    fn logits(&self, n: usize, hidden: &Self::Tensor, head: &Self::Table) -> Result<Vec<f32>> {
        self.0.logits(n, hidden, head)
    }
    fn grad_norm_sq(&self, grads: &[&Self::Param]) -> Result<f64> {
        self.0.grad_norm_sq(grads)
    }
    fn state(&self, len: usize, config: &AdamWConfig) -> Result<Self::State> {
        self.0.state(len, config)
    }
    fn read_state(&self, state: &Self::State) -> Result<OptimizerState> {
        self.0.read_state(state)
    }
    fn write_state(&self, host: &OptimizerState) -> Result<Self::State> {
        self.0.write_state(host)
    }
    fn adamw(
        &self,
        param: &mut Self::Param,
        grad: &Self::Param,
        state: &mut Self::State,
        config: &AdamWConfig,
        lr: f32,
        grad_scale: f32,
        step: u64,
    ) -> Result<()> {
        self.0.adamw(param, grad, state, config, lr, grad_scale, step)
    }
}

#[test]
fn reference_passes_at_the_tolerances_for_bf16() {
    let root = std::env::var_os("TRAINER_REFERENCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reference"), PathBuf::from);
    let ops = Arc::new(Rounded(Cpu::new(CpuOptions { threads: 2 }).unwrap()));
    let all = run(ops, &root, &[], &mut |_| {}).unwrap();
    // The largest errors by measure and kind of comparison: `--nocapture` shows what the tolerances leave.
    let kind = |c: &Check| {
        let what = ["logits", "hidden", "loss", "gradient of", "gradient norms", "adapter", "prompt", "on the device"];
        (c.group, what.into_iter().find(|w| c.name.contains(w)).unwrap_or("other"))
    };
    let mut kinds: Vec<_> = all.iter().map(|c| (kind(c), c.measure)).collect();
    kinds.dedup();
    kinds.sort_by_key(|(k, m)| (*k, *m as u8));
    kinds.dedup();
    for (k, measure) in kinds.into_iter().filter(|(_, m)| *m != Measure::Count) {
        let of_kind = all.iter().filter(|c| kind(c) == k && c.measure == measure);
        let worst = of_kind.max_by(|a, b| (a.error / a.tolerance).total_cmp(&(b.error / b.tolerance))).unwrap();
        println!("{:14} {:16} {measure:?}: {:.2e} of {:.0e} ({})", k.0, k.1, worst.error, worst.tolerance, worst.name);
    }
    let failed: Vec<&Check> = all.iter().filter(|c| !c.pass).collect();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), all.len());
}
