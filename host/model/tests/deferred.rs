//! Weights that stay in their files until a device takes them are the weights that are loaded at once.

use half::bf16;
use trainer_kernels::ops::MatrixSource;
use trainer_model::{Checkpoint, LinearWeight, LoadOptions, ModelConfig, ModelFiles, ModelWeights, Quantize, load_weights};
use trainer_test_support::reference_file;

const BF16: &str = "model/untied_bf16";

fn load(files: &ModelFiles, quantize: Quantize, defer: bool) -> ModelWeights {
    let config = ModelConfig::read(files).unwrap();
    let options = LoadOptions { quantize, defer, ..LoadOptions::default() };
    load_weights(&Checkpoint::open(files).unwrap(), &config, options).unwrap()
}

fn matrices(weights: &ModelWeights) -> Vec<&LinearWeight> {
    let layers = weights.layers.iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]);
    layers.chain([&weights.embed]).chain(&weights.lm_head).collect()
}

#[test]
fn every_form_has_the_same_values() {
    for path in [BF16, "model/tied_f32", "model/nf4"] {
        let files = ModelFiles::dir(reference_file(path));
        for quantize in [Quantize::Nf4Double, Quantize::None, Quantize::AsStored] {
            let (now, later) = (load(&files, quantize, false), load(&files, quantize, true));
            let mut stored = 0;
            for (a, b) in matrices(&now).into_iter().zip(matrices(&later)) {
                assert_eq!((a.out_features(), a.in_features(), a.is_quantized()), (b.out_features(), b.in_features(), b.is_quantized()));
                assert_eq!(a.bias(), b.bias());
                assert_eq!(a.to_f32().unwrap(), b.to_f32().unwrap(), "{path} {quantize:?}");
                if matches!(b, LinearWeight::Stored { .. }) {
                    stored += 1;
                    assert_eq!(b.bytes(), 0);
                }
            }
            assert_eq!(stored > 0, path == BF16, "{path}: only what is in bfloat16 stays in its file");
        }
    }
}

#[test]
fn pieces_are_read_where_they_are_and_a_file_that_was_cut_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(reference_file(&format!("{BF16}/{name}")), folder.path().join(name)).unwrap();
    }
    let weights = load(&ModelFiles::dir(folder.path()), Quantize::Nf4Double, true);
    let LinearWeight::Stored { tensor, quantize: Some(_), .. } = &weights.layers[0].q else { panic!("{:?}", weights.layers[0].q) };
    let all = tensor.values().unwrap();
    let (from, mut piece) = (all.len() / 3, vec![bf16::ZERO; all.len() / 2]);
    tensor.read(from, &mut piece).unwrap();
    assert_eq!(piece, all[from..from + piece.len()]);
    tensor.read(all.len(), &mut []).unwrap();
    assert!(tensor.read(from, &mut vec![bf16::ZERO; all.len()]).unwrap_err().contains("q_proj"));
    std::fs::OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).unwrap().set_len(64).unwrap();
    let error = tensor.read(0, &mut piece).unwrap_err();
    assert!(error.contains("model.safetensors"), "{error}");
    assert!(weights.layers[0].q.to_f32().is_err());
}
