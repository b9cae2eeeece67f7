//! Generation and scoring: what a request gives depends on nothing but itself.

mod common;

use std::ops::ControlFlow;

use common::*;
use trainer_engine::*;
use trainer_kernels::cpu::Cpu;
use trainer_kernels::sampling::SamplingParams;

fn options(slots: usize, prefill_tokens: usize) -> GenOptions {
    GenOptions { slots, cache_length: 64, prefill_tokens }
}

/// Requests of many lengths, every second one sampled.
fn requests(count: usize, vocab: usize) -> Vec<GenRequest> {
    let mut r = Random::new(5);
    let sampled = SamplingParams { temperature: 0.9, top_k: 40, top_p: 0.95, repetition_penalty: 1.1, ..SamplingParams::default() };
    (0..count)
        .map(|i| GenRequest {
            id: 100 + i as u64,
            prompt_ids: (0..1 + (i * 5) % 23).map(|_| r.below(vocab as u32)).collect(),
            params: if i % 2 == 0 { SamplingParams::greedy() } else { sampled },
            seed: 9,
            sample: i as u64 / 4,
            repeat: i as u32 % 4,
            max_new_tokens: 3 + (i * 3) % 14,
            stop_ids: (0..6).map(|_| r.below(vocab as u32)).collect(),
            ..GenRequest::default()
        })
        .collect()
}

fn run(generator: &mut Generator<Cpu>, adapter: Option<&Adapter<Cpu>>, requests: Vec<GenRequest>) -> Vec<GenResult> {
    generator.generate(adapter, requests, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn a_request_alone_gives_what_it_gives_in_a_batch() {
    let tiny = Tiny::default();
    let model = tiny.model(1, 2);
    let adapter = adapter(&model, lora(4), 2);
    let requests = requests(24, tiny.vocab);
    let mut single = Generator::new(model.clone(), options(1, 512)).unwrap();
    let alone: Vec<GenResult> = requests.iter().map(|r| run(&mut single, Some(&adapter), vec![r.clone()]).remove(0)).collect();
    assert!(alone.iter().any(|r| matches!(r.finish, Finish::Stop(_))) && alone.iter().any(|r| r.finish == Finish::Length));
    for (slots, prefill) in [(24, 512), (5, 64), (3, 30), (1, 25)] {
        let mut generator = Generator::new(model.clone(), options(slots, prefill)).unwrap();
        assert_eq!(run(&mut generator, Some(&adapter), requests.clone()), alone, "{slots} slots, prefill {prefill}");
        // A second time: nothing is left over in the cache.
        let mut reversed = requests.clone();
        reversed.reverse();
        let mut results = run(&mut generator, Some(&adapter), reversed);
        results.reverse();
        assert_eq!(results, alone);
    }
    assert_ne!(run(&mut single, None, requests), alone, "the adapter does nothing");
}

#[test]
fn the_cache_gives_what_the_whole_sequence_gives() {
    let tiny = Tiny { tied: false, bias: true, ..Tiny::default() };
    let model = tiny.model(3, 2);
    let mut generator = Generator::new(model.clone(), options(4, 512)).unwrap();
    for request in requests(6, tiny.vocab) {
        let request = GenRequest { stop_ids: vec![], params: SamplingParams::greedy(), max_new_tokens: 10, ..request };
        let result = run(&mut generator, None, vec![request.clone()]).remove(0);
        let mut ids = request.prompt_ids.clone();
        for token in result.ids {
            let row = Row { weights: vec![0.0; ids.len()], ids: ids.clone(), sample: 0 };
            let logits = model.hidden_states(None, &pack(&[row])).unwrap().logits;
            let last = &logits[logits.len() - tiny.vocab..];
            let best = last.iter().copied().fold(f32::MIN, f32::max);
            assert!(last[token as usize] >= best - 1e-4, "token {token} is not the best");
            ids.push(token);
        }
    }
}

#[test]
fn requests_end_as_they_should() {
    let tiny = Tiny::default();
    let model = tiny.model(1, 1);
    let mut generator = Generator::new(model, options(2, 16)).unwrap();
    let good = GenRequest { stop_ids: vec![], params: SamplingParams::greedy(), ..requests(6, tiny.vocab)[4].clone() };
    let with = |f: &dyn Fn(&mut GenRequest)| {
        let mut request = good.clone();
        f(&mut request);
        request
    };
    let all = vec![
        good.clone(),
        with(&|r| r.prompt_ids.clear()),
        with(&|r| r.prompt_ids = vec![1; 65]),
        with(&|r| r.prompt_ids[0] = 131),
        with(&|r| r.params.temperature = -1.0),
        with(&|r| r.max_new_tokens = 0),
        with(&|r| (r.prompt_ids, r.max_new_tokens) = (vec![1; 60], 100)),
        with(&|r| (r.prompt_ids, r.max_new_tokens) = (vec![1; 64], 1)),
    ];
    let results = run(&mut generator, None, all);
    let refused = |i: usize| match &results[i].finish {
        Finish::Refused(error) => error.clone(),
        other => panic!("{i}: {other:?}"),
    };
    assert_eq!(results[0].finish, Finish::Length);
    assert_eq!(refused(1), RequestError::EmptyPrompt);
    assert_eq!(refused(2), RequestError::TooLong { tokens: 65, limit: 64 });
    assert_eq!(refused(3), RequestError::UnknownToken { position: 0, id: 131, vocabulary: 131 });
    assert!(refused(4).to_string().contains("temperature"));
    assert_eq!((&results[5].finish, results[5].ids.len()), (&Finish::Length, 0));
    assert_eq!((&results[6].finish, results[6].ids.len()), (&Finish::CacheFull, 5));
    assert_eq!((&results[7].finish, results[7].ids.len()), (&Finish::Length, 1));
    // A stop token ends a sequence and is not part of it.
    let first = results[0].ids[1];
    let at = results[0].ids.iter().position(|t| *t == first).unwrap();
    let stopped = run(&mut generator, None, vec![with(&|r| r.stop_ids = vec![first])]).remove(0);
    assert_eq!((stopped.finish, &stopped.ids[..]), (Finish::Stop(first), &results[0].ids[..at]));
}

#[test]
fn callers_hear_of_every_token_and_can_stop() {
    let tiny = Tiny::default();
    let model = tiny.model(1, 1);
    let mut generator = Generator::new(model, options(3, 64)).unwrap();
    let requests = requests(9, tiny.vocab);
    let mut heard: std::collections::BTreeMap<u64, (Vec<u32>, Option<Finish>)> = Default::default();
    let results = generator
        .generate(None, requests.clone(), &mut |event| {
            let entry = heard.entry(event.id).or_default();
            assert!(entry.1.is_none(), "an event after the end");
            entry.0.extend(event.token);
            entry.1 = event.finish.cloned();
            ControlFlow::Continue(())
        })
        .unwrap();
    for result in &results {
        assert_eq!(heard[&result.id], (result.ids.clone(), Some(result.finish.clone())));
    }
    let mut count = 0;
    let stopped = generator
        .generate(None, requests.clone(), &mut |event| {
            count += 1;
            if event.id == 102 { ControlFlow::Break(Cancel::Request) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!((&stopped[2].finish, stopped[2].ids.len()), (&Finish::Cancelled, 1));
    assert_eq!(stopped[3..], results[3..]);
    assert!(count > 9);
    let all = generator.generate(None, requests, &mut |_| ControlFlow::Break(Cancel::All)).unwrap();
    assert!(all.iter().filter(|r| r.finish == Finish::Cancelled).count() >= 8);
}

#[test]
fn scores_are_sums_of_log_probabilities() {
    let tiny = Tiny::default();
    let model = tiny.model(4, 2);
    let adapter = adapter(&model, lora(4), 2);
    let mut r = Random::new(8);
    let mut ids = |len: usize| -> Vec<u32> { (0..len).map(|_| r.below(tiny.vocab as u32)).collect() };
    let mut requests: Vec<ScoreRequest> =
        (0..9).map(|i| ScoreRequest { id: i, prompt_ids: ids(1 + i as usize % 4), continuation_ids: ids(i as usize * 3) }).collect();
    requests.push(ScoreRequest { id: 9, prompt_ids: vec![], continuation_ids: vec![1] });
    requests.push(ScoreRequest { id: 10, prompt_ids: vec![1], continuation_ids: vec![1; 65] });
    for (slots, prefill) in [(4, 512), (2, 9), (16, 40)] {
        let mut generator = Generator::new(model.clone(), options(slots, prefill)).unwrap();
        let results = generator.score(Some(&adapter), &requests).unwrap();
        assert_eq!(results[9].score, Err(RequestError::EmptyPrompt));
        assert!(matches!(results[10].score, Err(RequestError::TooLong { .. })));
        for (request, result) in requests.iter().zip(&results).take(9) {
            let all: Vec<u32> = request.prompt_ids.iter().chain(&request.continuation_ids).copied().collect();
            let row = Row { weights: vec![0.0; all.len()], ids: all, sample: 0 };
            let logits = model.hidden_states(Some(&adapter), &pack(&[row])).unwrap().logits;
            let expected: f64 = request
                .continuation_ids
                .iter()
                .zip(logits.chunks(tiny.vocab).skip(request.prompt_ids.len() - 1))
                .map(|(t, l)| f64::from(l[*t as usize]) - l.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln())
                .sum();
            let score = result.score.clone().unwrap();
            assert_eq!((result.id, score.tokens), (request.id, request.continuation_ids.len()));
            assert!((score.sum_logprob - expected).abs() < 1e-4, "{} and {expected}", score.sum_logprob);
        }
    }
}

#[test]
fn the_plan_is_what_is_allocated() {
    for tiny in [Tiny::default(), Tiny { tied: false, bias: true, layers: 5, ..Tiny::default() }] {
        let model = tiny.model(2, 1);
        let mut config = lora(4);
        config.rank_pattern = vec![("layers.2.mlp.up_proj".into(), 9)];
        config.target_modules = vec!["layers.1.self_attn.q_proj".into(), "layers.2.mlp.up_proj".into(), "down_proj".into()];
        let mixed = [Keep::Lean, Keep::Input, Keep::All];
        let mut upper = config.clone();
        upper.target_modules.truncate(2);
        for (config, recompute) in [
            (lora(3), Recompute::None),
            (lora(3), Recompute::All),
            (config.clone(), Recompute::Layers(vec![1])),
            (upper.clone(), Recompute::None),
            (upper.clone(), Recompute::All),
            (upper, Recompute::Each(mixed.iter().copied().cycle().take(tiny.layers).collect())),
        ] {
            let generation = GenOptions { slots: 3, cache_length: 64, prefill_tokens: 17 };
            let optimizer = trainer_kernels::adamw::AdamWConfig::default();
            let options = PlanOptions {
                max_tokens: 77,
                recompute: recompute.clone(),
                optimizer: Some(optimizer),
                weights: model.weight_plan(),
                loss_rows: LOSS_ROWS,
                offload: false,
                host_embedding: false,
                generation: Some(generation),
            };
            let planned = plan(model.ops(), model.config(), Some(&config), &options).unwrap();
            let train =
                TrainOptions { max_tokens: 77, recompute, optimizer, max_grad_norm: None, seed: 1, loss_rows: LOSS_ROWS, offload: false };
            let trainer = Trainer::new(model.clone(), adapter(&model, config, 1), train).unwrap();
            assert!(!trainer.workspace_bytes().is_empty());
            for (part, bytes) in trainer.workspace_bytes() {
                assert_eq!(planned.part(part), *bytes, "{part}");
            }
            let state = trainer.state().unwrap();
            let values: usize = state.parameters.values().map(Vec::len).sum();
            assert_eq!((planned.part("adapter"), planned.part("adapter gradients")), (4 * values as u64, 4 * values as u64));
            assert_eq!(planned.part("optimizer states"), state.optimizer.values().map(|s| s.bytes() as u64).sum::<u64>());
            let mut generator = Generator::new(model.clone(), generation).unwrap();
            run(&mut generator, Some(trainer.adapter()), requests(1, tiny.vocab));
            assert_eq!(planned.part("generation activations"), generator.buffer_bytes(), "ranks {:?}", trainer.adapter().config().r);
            assert_eq!(planned.total(), planned.parts.values().sum::<u64>());
        }
    }
}
