//! A model whose weights are read while it is put on the device is the same model.

use std::sync::Arc;

use trainer_engine::Model;
use trainer_kernels::cpu::{Cpu, CpuOptions};
use trainer_kernels::ops::{HostBatch, WeightPlan};
use trainer_model::{Checkpoint, LoadOptions, ModelConfig, ModelFiles, Quantize, load_weights};
use trainer_test_support::reference_file;

#[test]
fn states_and_logits_are_equal_however_weights_are_loaded() {
    let files = ModelFiles::dir(reference_file("model/untied_bf16"));
    let config = ModelConfig::read(&files).unwrap();
    let batch = HostBatch { ids: (1..9).collect(), positions: (0..8).collect(), cu_seqlens: vec![0, 8], ..HostBatch::default() };
    for quantize in [Quantize::Nf4Double, Quantize::AsStored] {
        let states = [false, true].map(|defer| {
            let options = LoadOptions { quantize, defer, ..LoadOptions::default() };
            let weights = load_weights(&Checkpoint::open(&files).unwrap(), &config, options).unwrap();
            let cpu = Arc::new(Cpu::new(CpuOptions { threads: 2 }).unwrap());
            [WeightPlan::Unpacked, WeightPlan::Packed]
                .map(|plan| Model::new(cpu.clone(), &config, &weights, plan).unwrap().hidden_states(None, &batch).unwrap())
        });
        let [now, later] = &states;
        assert!(now == later, "{quantize:?}");
        assert!(now[0].logits.iter().all(|v| v.is_finite()));
    }
}
