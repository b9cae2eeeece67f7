//! Where the time of a training step goes: each kernel's time beside the least that its work could take.

use serde::Serialize;
use trainer_engine::Dims;
use trainer_runtime::KernelTime;

/// What the limits are computed with: an H100's measured rates (docs/src/bench.md), of large bf16 products and of copies, read and written bytes together.
const PRODUCTS: f64 = 690e12;
/// See [`PRODUCTS`].
const BYTES: f64 = 3.02e12;

/// One kernel of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The kernel, or a product with its sizes.
    pub kernel: String,
    /// Launches in the step.
    pub launches: usize,
    /// All of them together.
    pub microseconds: f64,
    /// Share of the step's time in kernels.
    pub share: f64,
    /// Floating-point operations of all launches, where they are the limit.
    pub flops: Option<f64>,
    /// Bytes read and written at the least, where they are the limit.
    pub bytes: Option<f64>,
    /// The least time over the time: 1 is the limit of an H100.
    pub share_of_limit: Option<f64>,
}

/// What a launch of a kernel cannot do without.
enum Work {
    Flops(f64),
    Bytes(f64),
}

/// The shapes of a step.
pub struct Step<'a> {
    /// The model.
    pub dims: &'a Dims,
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Tokens of a sample.
    pub sequence: usize,
    /// Trained values.
    pub trained: u64,
}

impl Step<'_> {
    /// Rows of a profile, the longest first.
    pub fn rows(&self, profile: &[KernelTime]) -> Vec<Row> {
        let all: f64 = profile.iter().map(|k| k.microseconds).sum();
        profile
            .iter()
            .map(|k| {
                let work = self.work(&k.name);
                let (flops, bytes) = match work {
                    Some(Work::Flops(f)) => (Some(f * k.launches as f64), None),
                    Some(Work::Bytes(b)) => (None, Some(b * k.launches as f64)),
                    None => (None, None),
                };
                let least = flops.map(|f| f / PRODUCTS).or(bytes.map(|b| b / BYTES));
                Row {
                    kernel: k.name.clone(),
                    launches: k.launches,
                    microseconds: k.microseconds,
                    share: k.microseconds / all.max(1e-9),
                    flops,
                    bytes,
                    share_of_limit: least.map(|s| s * 1e6 / k.microseconds.max(1e-9)),
                }
            })
            .collect()
    }

    fn work(&self, kernel: &str) -> Option<Work> {
        if let Some(sizes) = kernel.strip_prefix("product ") {
            return product(sizes);
        }
        let d = self.dims;
        let a = d.attention;
        let n = self.tokens as f64;
        let (h, i, qk) = (d.hidden as f64, d.intermediate as f64, a.qk_width() as f64);
        let q = a.q_width() as f64;
        // Half of the square of a sequence, two products of the forward; the backward has five.
        let causal = n * self.sequence as f64 * q;
        Some(match kernel {
            "rms_norm" => Work::Bytes(4.0 * n * h),
            "add_rms_norm" | "rms_norm_backward" => Work::Bytes(8.0 * n * h),
            "qk_norm_rope" => Work::Bytes(4.0 * n * qk),
            "qk_norm_rope_backward" => Work::Bytes(6.0 * n * qk),
            "swiglu" => Work::Bytes(6.0 * n * i),
            "swiglu_backward" => Work::Bytes(10.0 * n * i),
            "embed" => Work::Bytes(4.0 * n * h),
            "adamw" => Work::Bytes(16.0 * self.trained as f64),
            "grad_squares" | "zero_grads" => Work::Bytes(4.0 * self.trained as f64),
            name if name.starts_with("attention_backward_sm90") => Work::Flops(5.0 * causal),
            name if name.starts_with("attention_dq") => Work::Flops(3.0 * causal),
            name if name.starts_with("attention_dkv") => Work::Flops(4.0 * causal),
            "attention_delta" => Work::Bytes(4.0 * n * q),
            name if name.starts_with("attention_") => Work::Flops(2.0 * causal),
            _ => return None,
        })
    }
}

/// A product by its name, `m x n x k`, with ` +=` where it adds to an f32 result: whichever of its two limits is the higher.
fn product(sizes: &str) -> Option<Work> {
    let (sizes, adds) = sizes.strip_suffix(" +=").map_or((sizes, false), |s| (s, true));
    let mut numbers = sizes.split(" x ").map(|s| s.trim().parse::<f64>());
    let (m, n, k) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
    let flops = 2.0 * m * n * k;
    let bytes = 2.0 * (m * k + n * k) + if adds { 8.0 } else { 2.0 } * m * n;
    Some(if flops / PRODUCTS > bytes / BYTES { Work::Flops(flops) } else { Work::Bytes(bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_limited_by_whichever_is_more() {
        assert!(matches!(product("4096 x 4096 x 4096"), Some(Work::Flops(f)) if f == 2.0 * 4096f64.powi(3)));
        assert!(
            matches!(product("32 x 4096 x 4096 +="), Some(Work::Bytes(b)) if b == 2.0 * (32.0 * 4096.0 + 4096.0 * 4096.0) + 8.0 * 32.0 * 4096.0)
        );
        assert!(product("nonsense").is_none());
    }
}
