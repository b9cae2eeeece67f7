//! What is chosen under which limit.

use trainer_kernels::cpu::{Cpu, CpuOptions};

use super::*;

fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 1 }).unwrap()
}

fn with_goal(goal: DevicePlan, limit: Option<u64>, recompute: Option<Recompute>) -> Result<Choice, RuntimeError> {
    let base = crate::load_base(&trainer_config::ModelSource::Nano, trainer_config::Quantization::Nf4).unwrap();
    let adapter = AdapterConfig::default();
    let (config, optimizer) = (&base.config, AdamWConfig::default());
    choose_plan(&cpu(), &PlanRequest { config, adapter: &adapter, optimizer, longest: 512, packed: 2048, recompute, goal, limit })
}

#[test]
fn without_a_limit_auto_is_the_fastest() {
    let auto = with_goal(DevicePlan::Auto, None, None).unwrap();
    assert_eq!(auto, with_goal(DevicePlan::Fastest, None, None).unwrap());
    assert_eq!((auto.weights, &auto.recompute, auto.max_tokens), (WeightPlan::Unpacked, &Recompute::None, 2048));
    assert_eq!(auto.weights_text(&cpu()), "unpacked to f32");
    let fixed = with_goal(DevicePlan::Auto, None, Some(Recompute::All)).unwrap();
    assert_eq!((fixed.weights, fixed.recompute), (WeightPlan::Unpacked, Recompute::All));
}

#[test]
fn under_a_limit_auto_takes_what_fits_and_never_more() {
    let largest = with_goal(DevicePlan::Fastest, None, None).unwrap().memory.total();
    let least = with_goal(DevicePlan::Smallest, None, None).unwrap();
    assert_eq!((least.weights, &least.recompute, least.max_tokens), (WeightPlan::Packed, &Recompute::All, 512));
    assert!(least.memory.total() < largest);
    for limit in [largest, largest - 1, largest / 2, least.memory.total()] {
        let choice = with_goal(DevicePlan::Auto, Some(limit), None).unwrap();
        assert!(choice.memory.total() <= limit && choice.limit == Some(limit), "{limit}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_setting_that_would() {
    let least = with_goal(DevicePlan::Smallest, None, None).unwrap().memory.total();
    let error = |goal, limit, recompute| with_goal(goal, Some(limit), recompute).unwrap_err().to_string();
    assert!(with_goal(DevicePlan::Fastest, Some(least), None).unwrap().memory.total() <= least);
    let fixed = error(DevicePlan::Auto, least, Some(Recompute::None));
    assert!(fixed.contains("train.recompute = \"auto\""), "{fixed}");
    let long = error(DevicePlan::Auto, least - 1, None);
    assert!(long.contains("data.max_seq_length = 256"), "{long}");
    let hopeless = error(DevicePlan::Auto, 1 << 10, None);
    assert!(hopeless.contains("no setting makes this model fit"), "{hopeless}");
}
