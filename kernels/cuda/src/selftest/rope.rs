//! Query and key norms with the rotary embedding.

use super::{BF16, Checks, F32, Outcome};
use trainer_kernels::ops::{AttentionShape, HostBatch, Ops};

impl Checks<'_> {
    pub(super) fn all_rope(&mut self) -> Outcome<()> {
        for n in [1, 127, 2049] {
            for (heads, kv_heads, head_dim) in [(4, 2, 16), (3, 1, 64), (32, 8, 128)] {
                self.check_rope(n, AttentionShape { heads, kv_heads, head_dim })?;
            }
        }
        Ok(())
    }

    fn check_rope(&mut self, n: usize, shape: AttentionShape) -> Outcome<()> {
        if self.large(n * shape.qkv_width()) {
            return Ok(());
        }
        let (d, eps, theta) = (self.device, 1e-6, 1e6);
        let qkv = self.random.values(n * shape.qkv_width());
        let dqk = self.random.values(n * shape.qk_width());
        let before = self.random.values(n * shape.qkv_width());
        let (qw, kw) = (self.random.values(shape.head_dim), self.random.values(shape.head_dim));
        // Two samples in a pack where there is room: positions restart.
        let cut = n / 3;
        let positions: Vec<u32> = (0..cut as u32).chain(0..(n - cut) as u32).collect();
        let cu_seqlens = if cut > 0 { vec![0, cut as u32, n as u32] } else { vec![0, n as u32] };
        let batch = self.cpu.batch(&HostBatch { ids: vec![0; n], positions: positions.clone(), cu_seqlens, ..HostBatch::default() })?;
        let stats = n * (shape.heads + shape.kv_heads);
        let (card_positions, angles) = (d.upload(&positions, "positions")?, d.angles(n, shape.head_dim, theta)?);
        let (card_qkv, card_qw, card_kw) = (d.tensor(shape.qkv_width(), &qkv)?, d.floats(&qw)?, d.floats(&kw)?);
        let (mut qk, mut rstd) = (self.poison(n, shape.qk_width())?, self.poison_floats(stats)?);
        d.qk_norm_rope(n, &card_positions, &angles, shape, &card_qkv, &card_qw, &card_kw, eps, &mut qk, &mut rstd)?;
        let cpu_qkv = self.host(n, shape.qkv_width(), &qkv)?;
        let (cpu_qw, cpu_kw) = (self.cpu.vector(&qw)?, self.cpu.vector(&kw)?);
        let (mut cpu_qk, mut cpu_rstd) = (self.cpu.tensor(n, shape.qk_width())?, self.cpu.stats(n, shape.heads + shape.kv_heads)?);
        self.cpu.qk_norm_rope(&batch, n, shape, &cpu_qkv, &cpu_qw, &cpu_kw, eps, theta, &mut cpu_qk, &mut cpu_rstd)?;
        let name = format!("{n} rows {}/{}x{}", shape.heads, shape.kv_heads, shape.head_dim);
        self.note("qk_norm_rope", name.clone(), &d.read_tensor(n, &qk)?, &self.cpu.read_tensor(n, &cpu_qk)?, BF16);
        self.note("qk_norm_rope rstd", name.clone(), &rstd.read()?, &self.cpu.read_tensor(n, &cpu_rstd)?, F32);
        // The v columns must stay as they were: both sides begin with the same values.
        let ((mut dqkv, _gap), mut cpu_dqkv) = (self.apart(shape.qkv_width(), 64, &before)?, self.host(n, shape.qkv_width(), &before)?);
        d.qk_norm_rope_backward(
            n,
            &card_positions,
            &angles,
            shape,
            &d.tensor(shape.qk_width(), &dqk)?,
            &card_qkv,
            &card_qw,
            &card_kw,
            &rstd,
            &mut dqkv,
        )?;
        let cpu_dqk = self.host(n, shape.qk_width(), &dqk)?;
        self.cpu.qk_norm_rope_backward(&batch, n, shape, &cpu_dqk, &cpu_qkv, &cpu_qw, &cpu_kw, &cpu_rstd, theta, &mut cpu_dqkv)?;
        self.note("qk_norm_rope_backward", name, &d.read_tensor(n, &dqkv)?, &self.cpu.read_tensor(n, &cpu_dqkv)?, BF16);
        Ok(())
    }
}
