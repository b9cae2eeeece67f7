//! Kernel sources to cubins: which sources and architectures there are, and their way through the cache.

use crate::cache::Cache;
use crate::nvrtc::Nvrtc;
use crate::{CudaError, Result};
use sha2::{Digest, Sha256};

/// What every source begins with.
const COMMON: &str = include_str!("common.cu");

/// A kernel file.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its file name.
    pub file: &'static str,
    /// Its text, after the common part.
    text: &'static str,
    /// Its entry points.
    pub kernels: &'static [&'static str],
    /// The one architecture whose own instructions it uses, beside a portable twin; None: it serves all.
    pub only: Option<Arch>,
}

/// Every kernel file.
pub const SOURCES: &[Source] = &[
    Source {
        file: "nf4.cu",
        text: concat!(include_str!("eight.cu"), "#line 1 \"nf4.cu\"\n", include_str!("nf4.cu")),
        kernels: &[
            "nf4_unpack",
            "nf4_unpack_transposed",
            "nf4_eight",
            "nf4_eight_transposed",
            "bf16_eight_transposed",
            "eight_rows",
            "largest_of_columns",
            "scales_from_largest",
        ],
        only: None,
    },
    Source {
        file: "norm.cu",
        text: concat!(include_str!("eight.cu"), "#line 1 \"norm.cu\"\n", include_str!("norm.cu")),
        kernels: &[
            "rms_norm",
            "rms_norm_8",
            "add_rms_norm",
            "add_rms_norm_8",
            "rms_norm_backward",
            "rms_norm_backward_long",
            "rms_norm_backward_8",
        ],
        only: None,
    },
    Source {
        file: "eight_adapters.cu",
        text: concat!(include_str!("eight.cu"), "#line 1 \"eight_adapters.cu\"\n", include_str!("eight_adapters.cu")),
        kernels: &["adapter_factors", "adapter_outs_8", "adapter_ins_8", "adapter_mid_8"],
        only: None,
    },
    Source {
        file: "rope.cu",
        text: concat!(include_str!("eight.cu"), "#line 1 \"rope.cu\"\n", include_str!("rope.cu")),
        kernels: &["qk_norm_rope", "qk_norm_rope_backward", "qk_norm_rope_backward_8"],
        only: None,
    },
    Source {
        file: "elementwise.cu",
        text: concat!(include_str!("eight.cu"), "#line 1 \"elementwise.cu\"\n", include_str!("elementwise.cu")),
        kernels: &["swiglu", "swiglu_backward", "swiglu_8", "swiglu_backward_8", "add", "embed", "squares_partial", "squares_total"],
        only: None,
    },
    Source {
        file: "loss.cu",
        text: include_str!("loss.cu"),
        kernels: &["cross_entropy_rows", "logits_argmax", "gather_rows", "scatter_rows"],
        only: None,
    },
    Source {
        file: "adamw.cu",
        text: concat!(include_str!("blockwise8.cu"), include_str!("adamw.cu")),
        kernels: &["adamw", "grad_squares", "grad_squares_total", "zero_grads"],
        only: None,
    },
    Source {
        file: "lora.cu",
        text: include_str!("lora.cu"),
        kernels: &["lora_pack", "dropout", "dropout_add", "add_bias", "bias_grad"],
        only: None,
    },
    Source {
        file: "quantize.cu",
        text: concat!(include_str!("blockwise8.cu"), include_str!("quantize.cu")),
        kernels: &["nf4_quantize_bf16", "nf4_quantize_f32", "nest_scales", "random_normal"],
        only: None,
    },
    Source {
        file: "attention.cu",
        text: concat!(include_str!("attention_mma.cu"), include_str!("attention.cu")),
        kernels: &["attention_32", "attention_64", "attention_128"],
        only: None,
    },
    Source {
        file: "attention_backward.cu",
        text: concat!(include_str!("attention_mma.cu"), include_str!("attention_backward.cu")),
        kernels: &[
            "attention_delta",
            "attention_dq_32",
            "attention_dq_64",
            "attention_dq_128",
            "attention_dkv_32",
            "attention_dkv_64",
            "attention_dkv_128",
        ],
        only: None,
    },
    Source { file: "sampling.cu", text: include_str!("sampling.cu"), kernels: &["sample_rows", "penalise"], only: None },
    Source {
        file: "gemm.cu",
        text: concat!(include_str!("mma.cu"), "#line 1 \"gemm.cu\"\n", include_str!("gemm.cu")),
        kernels: &["gemm_nt_256", "gemm_nn_256", "gemm_tn_256", "gemm_nt_128", "gemm_nn_128", "gemm_tn_128"],
        only: None,
    },
    Source {
        file: "lora_gemm.cu",
        text: concat!(include_str!("mma.cu"), "#line 1 \"lora_gemm.cu\"\n", include_str!("lora_gemm.cu")),
        kernels: &[
            "lora_mid_1_32",
            "lora_mid_1_64",
            "lora_mid_1_96",
            "lora_mid_4_32",
            "lora_mid_4_64",
            "lora_mid_4_96",
            "lora_mid_4_128",
            "lora_sum",
            "lora_da_32",
            "lora_da_64",
            "lora_da_96",
            "lora_da_128",
            "lora_da_sum",
        ],
        only: None,
    },
    Source {
        file: "nf4_small.cu",
        text: concat!(
            include_str!("nf4_members.cu"),
            include_str!("nf4_tile.cu"),
            "#line 1 \"nf4_small.cu\"\n",
            include_str!("nf4_small.cu")
        ),
        kernels: &[
            "nf4_small_1_1",
            "nf4_small_2_1",
            "nf4_small_3_4",
            "nf4_ranks",
            "nf4_norm_small",
            "nf4_norm_swiglu",
            "nf4_small_2_2",
            "nf4_small_2_4",
            "nf4_small_4_4",
            "nf4_small_2_8",
            "nf4_swiglu_1_1",
            "nf4_swiglu_2_1",
            "nf4_swiglu_2_2",
            "nf4_swiglu_2_4",
            "nf4_swiglu_4_4",
            "nf4_swiglu_2_8",
            "bf16_small_1",
            "bf16_small_2",
            "bf16_small_4",
            "bf16_small_8",
            "nf4_small_any",
            "bf16_small_any",
            "lora_mid",
        ],
        only: None,
    },
    Source {
        file: "nf4_few.cu",
        text: concat!(include_str!("nf4_members.cu"), include_str!("nf4_tile.cu"), "#line 1 \"nf4_few.cu\"\n", include_str!("nf4_few.cu")),
        kernels: &[
            "nf4_few_2_2",
            "nf4_few_3_2",
            "nf4_few_4_2",
            "nf4_few_2_4",
            "nf4_few_3_4",
            "nf4_few_4_4",
            "nf4_few_swiglu_2_2",
            "nf4_few_swiglu_4_2",
            "nf4_few_swiglu_2_4",
            "nf4_few_swiglu_4_4",
        ],
        only: None,
    },
    Source {
        file: "decode.cu",
        text: include_str!("decode.cu"),
        kernels: &[
            "cache_append",
            "qk_norm_rope_append",
            "attention_cached_128",
            "attention_cached_64",
            "attention_cached_32",
            "attention_rotated_128",
            "attention_rotated_64",
            "attention_rotated_32",
        ],
        only: None,
    },
    Source {
        file: "lora_backward.cu",
        text: concat!(include_str!("mma.cu"), "#line 1 \"lora_backward.cu\"\n", include_str!("lora_backward.cu")),
        kernels: &["lora_backward_32_2", "lora_backward_32_1", "lora_backward_64_1", "lora_backward_32_2_deep", "lora_backward_sum"],
        only: None,
    },
    Source {
        file: "attention_sm90.cu",
        text: concat!(include_str!("attention_wgmma.cu"), include_str!("attention_sm90.cu")),
        kernels: &["attention_sm90"],
        only: Some(Arch::Sm90a),
    },
    Source {
        file: "attention_backward_sm90.cu",
        text: concat!(include_str!("attention_wgmma.cu"), include_str!("attention_backward_sm90.cu")),
        kernels: &["attention_backward_sm90"],
        only: Some(Arch::Sm90a),
    },
];

impl Source {
    /// Whether it is compiled for an architecture.
    pub fn serves(&self, arch: Arch) -> bool {
        self.only.is_none_or(|only| only == arch)
    }

    /// The whole text as NVRTC sees it; messages count lines from the file's own first.
    pub fn full_text(&self) -> String {
        format!("#line 1 \"common.cu\"\n{COMMON}\n#line 1 \"{}\"\n{}", self.file, self.text)
    }
}

/// A target of the compiler. The `a` forms use a generation's own instructions and run on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// A100.
    Sm80,
    /// RTX 30, A10, A40.
    Sm86,
    /// RTX 40, L4, L40.
    Sm89,
    /// H100, H200.
    Sm90a,
    /// B100, B200.
    Sm100a,
    /// RTX 50.
    Sm120a,
}

impl Arch {
    /// Every architecture.
    pub const ALL: [Arch; 6] = [Arch::Sm80, Arch::Sm86, Arch::Sm89, Arch::Sm90a, Arch::Sm100a, Arch::Sm120a];

    /// The name that NVRTC knows.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Sm80 => "sm_80",
            Arch::Sm86 => "sm_86",
            Arch::Sm89 => "sm_89",
            Arch::Sm90a => "sm_90a",
            Arch::Sm100a => "sm_100a",
            Arch::Sm120a => "sm_120a",
        }
    }

    /// The architecture whose cubins run on a card: its own, or an older minor version of the same generation.
    ///
    /// # Errors
    /// A card older than Ampere, or of a generation that is not known.
    pub fn of(major: i32, minor: i32) -> Result<Arch> {
        match (major, minor) {
            (8, 9) => Ok(Arch::Sm89),
            (8, 6..) => Ok(Arch::Sm86),
            (8, 0..) => Ok(Arch::Sm80),
            (9, 0) => Ok(Arch::Sm90a),
            (10, 0) => Ok(Arch::Sm100a),
            (12, 0) => Ok(Arch::Sm120a),
            _ => Err(CudaError::Capability { major, minor }),
        }
    }
}

/// The compiler's options: IEEE division and square roots, fused multiply-adds, no flushing of subnormals.
pub fn options(arch: Arch) -> Vec<String> {
    vec![format!("--gpu-architecture={}", arch.name()), "--std=c++17".into(), "--fmad=true".into(), "--ftz=false".into()]
}

/// What a cubin is compiled from, as one digest: source, architecture and options.
pub fn digest(source: &Source, arch: Arch) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(source.full_text().as_bytes());
    part(arch.name().as_bytes());
    options(arch).iter().for_each(|o| part(o.as_bytes()));
    digest.finalize().into()
}

/// What a cubin depends on, as one digest: what it is compiled from, and the compiler.
pub fn key(source: &Source, arch: Arch, version: (i32, i32)) -> String {
    let of = Sha256::new_with_prefix(digest(source, arch)).chain_update(version.0.to_le_bytes()).chain_update(version.1.to_le_bytes());
    crate::cache::hex(&of.finalize())
}

/// Compiles a source, or takes it from the cache.
///
/// # Errors
/// NVRTC's messages.
pub fn cubin(nvrtc: &Nvrtc, cache: Option<&Cache>, source: &Source, arch: Arch) -> Result<Vec<u8>> {
    let key = key(source, arch, nvrtc.version());
    if let Some(cubin) = cache.and_then(|c| c.get(&key)) {
        return Ok(cubin);
    }
    let start = std::time::Instant::now();
    let cubin = nvrtc.compile(source.file, &source.full_text(), &options(arch)).map_err(|f| CudaError::Compile {
        source_file: source.file,
        arch: arch.name(),
        status: f.status,
        log: f.log,
    })?;
    tracing::debug!(file = source.file, arch = arch.name(), ms = start.elapsed().as_millis(), "compiled");
    if let Some(cache) = cache {
        cache.put(&key, &cubin);
    }
    Ok(cubin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_gets_code_that_runs_on_it() {
        assert_eq!(Arch::of(8, 0).unwrap(), Arch::Sm80);
        assert_eq!(Arch::of(8, 7).unwrap(), Arch::Sm86);
        assert_eq!(Arch::of(8, 9).unwrap(), Arch::Sm89);
        assert_eq!(Arch::of(9, 0).unwrap(), Arch::Sm90a);
        // The `a` forms do not carry over to other minor versions.
        for (major, minor) in [(7, 5), (9, 1), (10, 3), (12, 1), (13, 0)] {
            assert!(Arch::of(major, minor).is_err(), "{major}.{minor}");
        }
    }

    #[test]
    fn the_key_tells_sources_architectures_and_compilers_apart() {
        let mut keys = std::collections::HashSet::new();
        for source in SOURCES {
            for arch in Arch::ALL {
                for version in [(13, 0), (13, 1)] {
                    assert!(keys.insert(key(source, arch, version)));
                }
            }
        }
        assert_eq!(key(&SOURCES[0], Arch::Sm80, (13, 0)), key(&SOURCES[0], Arch::Sm80, (13, 0)));
    }

    #[test]
    fn every_listed_kernel_is_in_its_source_and_every_kernel_is_listed() {
        for source in SOURCES {
            assert_eq!(source.text.matches("extern \"C\" __global__").count(), source.kernels.len(), "{}", source.file);
            for kernel in source.kernels {
                assert!(
                    [" ", "("]
                        .iter()
                        .any(|c| source.text.contains(&format!("{c}{kernel}(")) || source.text.contains(&format!("{c}{kernel},"))),
                    "{kernel}"
                );
            }
            assert!(!source.full_text().contains("#include"), "kernels are free of headers");
        }
    }
}
