//! What is chosen under which limit.

use trainer_kernels::cpu::{Cpu, CpuOptions};

use super::*;

fn cpu() -> Cpu {
    Cpu::new(CpuOptions { threads: 1 }).unwrap()
}

fn with_goal(goal: DevicePlan, limit: Option<u64>, recompute: Option<Recompute>) -> Result<Planned, RuntimeError> {
    let base = crate::load_base(&trainer_config::ModelSource::Nano, trainer_config::Quantization::Nf4, false).unwrap();
    let adapter = AdapterConfig::default();
    let (config, optimizer) = (&base.config, AdamWConfig::default());
    choose_plan(
        &cpu(),
        &PlanRequest {
            config,
            adapter: &adapter,
            optimizer,
            longest: 512,
            packed: 2048,
            sequence: 512,
            recompute,
            goal,
            limit,
            evaluation: None,
        },
    )
}

#[test]
fn an_evaluation_during_training_is_counted_and_shrinks_to_what_there_is_room_for() {
    let base = crate::load_base(&trainer_config::ModelSource::Nano, trainer_config::Quantization::Nf4, false).unwrap();
    let adapter = AdapterConfig::default();
    let sizes = EvaluationSizes { slots: 128, length: 512, prefill_tokens: 2048, merged: true };
    let plan = |limit, evaluation| {
        let (config, optimizer, goal) = (&base.config, AdamWConfig::default(), DevicePlan::Auto);
        let request = PlanRequest {
            config,
            adapter: &adapter,
            optimizer,
            longest: 512,
            packed: 2048,
            sequence: 512,
            recompute: None,
            goal,
            limit,
            evaluation,
        };
        choose_plan(&cpu(), &request)
    };
    let without = plan(None, None).unwrap();
    let with = plan(None, Some(sizes)).unwrap();
    let (more, memory) = (&with.choice.memory, with.choice.memory.total());
    assert_eq!(with.generation, Some(GenOptions { slots: 128, cache_length: 512, prefill_tokens: 2048 }));
    assert_eq!(more.part(MERGED), base.config.parameters() * 4);
    let kv = (base.config.num_key_value_heads * base.config.head_dim) as u64;
    assert_eq!(more.part("key/value cache"), 2 * base.config.num_hidden_layers as u64 * 128 * 512 * kv * 4);
    let parts = more.part(MERGED) + more.part("key/value cache");
    assert!(memory >= without.choice.memory.total() + parts, "{memory}");
    // Under a limit the cache is smaller, and everything together still fits.
    let limit = without.choice.memory.total() + (64 << 20);
    let tight = plan(Some(limit), Some(sizes)).unwrap();
    let slots = tight.generation.unwrap().slots;
    assert!((1..128).contains(&slots), "{slots}");
    assert!(tight.choice.memory.part("key/value cache") <= limit / CACHE_SHARE && tight.choice.memory.total() <= limit);
    // What cannot hold the folded weights too is refused.
    let least = with_goal(DevicePlan::Smallest, None, None).unwrap().choice.memory.total();
    assert!(matches!(plan(Some(least), Some(sizes)), Err(RuntimeError::DoesNotFit { .. })));
}

#[test]
fn without_a_limit_auto_is_the_fastest() {
    let auto = with_goal(DevicePlan::Auto, None, None).unwrap();
    assert_eq!(auto, with_goal(DevicePlan::Fastest, None, None).unwrap());
    assert_eq!((auto.choice.weights, auto.max_tokens, auto.packed, auto.limit), (WeightPlan::Unpacked, 2048, 2048, None));
    assert_eq!(auto.keeps(6), [Keep::All; 6]);
    assert_eq!(auto.weights_text(&cpu()), "unpacked to f32");
    let fixed = with_goal(DevicePlan::Auto, None, Some(Recompute::All)).unwrap();
    assert_eq!((fixed.choice.weights, fixed.keeps(6)), (WeightPlan::Unpacked, vec![Keep::Input; 6]));
}

#[test]
fn under_a_limit_auto_takes_what_fits_and_never_more() {
    let largest = with_goal(DevicePlan::Fastest, None, None).unwrap().choice.memory.total();
    let least = with_goal(DevicePlan::Smallest, None, None).unwrap();
    assert_eq!((least.choice.weights, least.max_tokens, least.packed), (WeightPlan::Packed, 512, 512));
    assert_eq!(least.keeps(6), [Keep::Input; 6]);
    let least = least.choice.memory.total();
    assert!(least < largest);
    for limit in [largest, largest - 1, largest / 2, least] {
        let planned = with_goal(DevicePlan::Auto, Some(limit), None).unwrap();
        assert!(planned.choice.memory.total() <= limit && planned.limit == Some(limit), "{limit}");
    }
}

#[test]
fn a_plan_is_made_again_from_its_choice_whatever_would_be_chosen_now() {
    let adapter = AdapterConfig::default();
    let base = crate::load_base(&trainer_config::ModelSource::Nano, trainer_config::Quantization::Nf4, false).unwrap();
    let largest = with_goal(DevicePlan::Fastest, None, None).unwrap().choice.memory.total();
    for (goal, limit) in [(DevicePlan::Auto, None), (DevicePlan::Auto, Some(largest - 1)), (DevicePlan::Smallest, None)] {
        let first = with_goal(goal, limit, None).unwrap();
        let text = serde_json::to_string(&first.choice(6)).unwrap();
        let choice: PlanChoice = serde_json::from_str(&text).unwrap();
        let request = |limit| PlanRequest {
            config: &base.config,
            adapter: &adapter,
            optimizer: AdamWConfig::default(),
            longest: 512,
            packed: 2048,
            sequence: 512,
            recompute: None,
            goal: DevicePlan::Auto,
            limit,
            evaluation: None,
        };
        assert_eq!(plan_again(&cpu(), &request(limit), &choice).unwrap(), first);
        let need = first.choice.memory.total();
        let error = plan_again(&cpu(), &request(Some(need - 1)), &choice).unwrap_err().to_string();
        assert!(error.contains("begun with a plan"), "{error}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_setting_that_would() {
    let least = with_goal(DevicePlan::Smallest, None, None).unwrap().choice.memory.total();
    let error = |goal, limit, recompute| with_goal(goal, Some(limit), recompute).unwrap_err().to_string();
    let fixed = error(DevicePlan::Auto, least, Some(Recompute::None));
    assert!(fixed.contains("train.recompute = \"auto\""), "{fixed}");
    let long = error(DevicePlan::Auto, least - 1, None);
    assert!(long.contains("data.max_seq_length = 448 makes it fit"), "{long}");
    let hopeless = error(DevicePlan::Auto, 1 << 10, None);
    assert!(hopeless.contains("even the smallest plan needs"), "{hopeless}");
}
