//! Requests that come while others are being generated, of several adapters: what each gives depends on nothing but itself.

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use common::*;
use trainer_engine::*;
use trainer_kernels::cpu::Cpu;
use trainer_kernels::sampling::SamplingParams;

/// Everything that was said of a request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Heard {
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    prompt: Option<Vec<TokenLogprobs>>,
    finish: Option<Finish>,
}

/// Gives requests as time goes by, which is counted in questions for the next one, and writes down what it is told.
#[derive(Default)]
struct Script {
    /// When, and what; in this order.
    requests: VecDeque<(u64, GenRequest)>,
    clock: u64,
    heard: BTreeMap<u64, Heard>,
    reused: BTreeMap<u64, usize>,
    order: Vec<u64>,
    /// Requests that are cancelled at their token of this number.
    cancel: BTreeMap<u64, usize>,
    unwanted: Vec<u64>,
    end_at: Option<u64>,
    idles: u64,
}

impl Script {
    fn new(requests: impl IntoIterator<Item = (u64, GenRequest)>) -> Self {
        Script { requests: requests.into_iter().collect(), ..Script::default() }
    }
}

impl Feed for Script {
    fn next(&mut self) -> Option<GenRequest> {
        self.clock += 1;
        if self.requests.front()?.0 > self.clock {
            return None;
        }
        self.requests.pop_front().map(|(_, request)| request)
    }

    fn idle(&mut self) -> bool {
        self.idles += 1;
        self.clock = self.clock.max(self.requests.front().map_or(0, |r| r.0));
        !self.requests.is_empty()
    }

    fn event(&mut self, event: GenEvent<'_>) -> ControlFlow<Cancel> {
        let heard = self.heard.entry(event.id).or_default();
        assert!(heard.finish.is_none(), "an event after the end of {}", event.id);
        heard.ids.extend(event.token);
        heard.logprobs.extend(event.logprobs.cloned());
        if let Some(prompt) = event.prompt {
            assert!(heard.prompt.is_none() && heard.ids.is_empty());
            heard.prompt = Some(prompt.to_vec());
        }
        heard.finish = event.finish.cloned();
        self.reused.insert(event.id, event.reused);
        self.order.push(event.id);
        if self.end_at == Some(event.id) {
            return ControlFlow::Break(Cancel::All);
        }
        match self.cancel.get(&event.id) {
            Some(count) if *count == heard.ids.len() => ControlFlow::Break(Cancel::Request),
            _ => ControlFlow::Continue(()),
        }
    }

    fn wants(&mut self, id: u64) -> bool {
        !self.unwanted.contains(&id)
    }
}

fn options(slots: usize, prefill_tokens: usize) -> GenOptions {
    GenOptions { slots, cache_length: 64, prefill_tokens }
}

/// Requests of many lengths for three adapters: greedy and sampled, with and without log-probabilities.
fn requests(count: usize, vocab: usize) -> Vec<GenRequest> {
    let mut r = Random::new(6);
    let sampled = SamplingParams { temperature: 0.9, top_k: 40, top_p: 0.95, repetition_penalty: 1.1, ..SamplingParams::default() };
    (0..count)
        .map(|i| GenRequest {
            id: 100 + i as u64,
            adapter: (i * 7 / 2) % 3,
            prompt_ids: (0..1 + (i * 11) % 37).map(|_| r.below(vocab as u32)).collect(),
            params: if i % 5 < 3 { SamplingParams::greedy() } else { sampled },
            seed: 9,
            sample: i as u64,
            max_new_tokens: 3 + (i * 3) % 14,
            stop_ids: (0..4).map(|_| r.below(vocab as u32)).collect(),
            logprobs: [None, Some(0), None, Some(5)][i % 4],
            prompt_logprobs: (i % 6 == 1).then_some(i % 3),
            ..GenRequest::default()
        })
        .collect()
}

fn serve(generator: &mut Generator<Cpu>, adapters: &[Option<&Adapter<Cpu>>], mut script: Script) -> Script {
    generator.serve(adapters, &mut script).unwrap();
    assert!(script.requests.is_empty());
    script
}

#[test]
fn what_a_request_gives_depends_on_no_other() {
    let tiny = Tiny::default();
    let model = tiny.model(1, 2);
    let (first, second) = (adapter(&model, lora(4), 2), adapter(&model, lora(9), 3));
    let adapters = [None, Some(&first), Some(&second)];
    let requests = requests(30, tiny.vocab);
    let mut alone = BTreeMap::new();
    for request in &requests {
        // With its own adapter and nothing else ever in the generator, whose buffers have other sizes for each.
        let mut generator = Generator::new(model.clone(), options(1, 64)).unwrap();
        let only = GenRequest { adapter: 0, ..request.clone() };
        let script = serve(&mut generator, &adapters[request.adapter..][..1], Script::new([(0, only)]));
        let heard = script.heard[&request.id].clone();
        assert_eq!((heard.logprobs.is_empty(), heard.prompt.is_some()), (request.logprobs.is_none(), request.prompt_logprobs.is_some()));
        let plain = GenRequest { adapter: 0, logprobs: None, prompt_logprobs: None, ..request.clone() };
        let mut continued = |_: GenEvent<'_>| ControlFlow::Continue(());
        let result = generator.generate(adapters[request.adapter], vec![plain], &mut continued).unwrap().remove(0);
        assert_eq!((&result.ids, Some(&result.finish)), (&heard.ids, heard.finish.as_ref()), "log-probabilities change nothing");
        alone.insert(request.id, heard);
    }
    assert!(alone.values().any(|h| matches!(h.finish, Some(Finish::Stop(_)))) && alone.values().any(|h| h.finish == Some(Finish::Length)));
    let mut interleaved = false;
    for (slots, prefill, pace) in [(30, 512, 0), (5, 64, 1), (3, 30, 4), (4, 7, 2), (1, 5, 0), (8, 37, 40)] {
        let mut generator = Generator::new(model.clone(), options(slots, prefill)).unwrap();
        for reversed in [false, true] {
            let mut requests = requests.clone();
            if reversed {
                requests.reverse();
            }
            let script = serve(&mut generator, &adapters, Script::new((0..).map(|i| i * pace).zip(requests)));
            assert_eq!(script.heard, alone, "{slots} slots, prefill {prefill}, pace {pace}");
            let of = |id: &u64| (id - 100) as usize * 7 / 2 % 3;
            interleaved |= script.order.windows(3).any(|w| of(&w[0]) != of(&w[1]) && of(&w[1]) != of(&w[2]) && of(&w[0]) != of(&w[2]));
        }
    }
    assert!(interleaved, "the adapters never ran side by side");
    let mut generator = Generator::new(model, options(4, 64)).unwrap();
    let base = requests.iter().map(|r| (0, GenRequest { adapter: 0, ..r.clone() }));
    assert_ne!(serve(&mut generator, &[None], Script::new(base)).heard, alone, "the adapters do nothing");
}

#[test]
fn a_prompt_that_goes_on_from_an_earlier_one_is_not_read_again() {
    let tiny = Tiny::default();
    let model = tiny.model(2, 2);
    let adapter = adapter(&model, lora(4), 2);
    let adapters = [None, Some(&adapter)];
    let mut r = Random::new(12);
    let mut ids = |len: usize| -> Vec<u32> { (0..len).map(|_| r.below(tiny.vocab as u32)).collect() };
    let greedy = |id: u64, adapter: usize, prompt_ids: Vec<u32>| GenRequest {
        id,
        adapter,
        prompt_ids,
        params: SamplingParams::greedy(),
        max_new_tokens: 6,
        logprobs: Some(3),
        ..GenRequest::default()
    };
    // A caller that waits for each answer before it asks on.
    struct Talk<'a> {
        script: Script,
        turns: Vec<Vec<u32>>,
        next: &'a dyn Fn(u64, usize, Vec<u32>) -> GenRequest,
        prompts: Vec<(usize, Vec<u32>)>,
    }
    impl Feed for Talk<'_> {
        fn next(&mut self) -> Option<GenRequest> {
            self.script.next()
        }
        fn idle(&mut self) -> bool {
            let number = self.prompts.len();
            if number == 2 * self.turns.len() {
                return false;
            }
            // Two conversations in turns, one with the adapter and one without.
            let talk = number % 2;
            let mut prompt = match number.checked_sub(2) {
                Some(before) => [&self.prompts[before].1[..], &self.script.heard[&(before as u64)].ids].concat(),
                None => Vec::new(),
            };
            prompt.extend(&self.turns[number / 2]);
            self.script.requests.push_back((0, (self.next)(number as u64, talk, prompt.clone())));
            self.prompts.push((talk, prompt));
            true
        }
        fn event(&mut self, event: GenEvent<'_>) -> ControlFlow<Cancel> {
            self.script.event(event)
        }
    }
    for (slots, prefill) in [(1, 64), (2, 64), (2, 5), (3, 9)] {
        let turns = vec![ids(13), ids(1), ids(7), ids(2)];
        let mut generator = Generator::new(model.clone(), options(slots, prefill)).unwrap();
        let mut talk = Talk { script: Script::default(), turns, next: &greedy, prompts: Vec::new() };
        generator.serve(&adapters, &mut talk).unwrap();
        for (number, (adapter, prompt)) in talk.prompts.iter().enumerate() {
            let id = number as u64;
            let mut fresh = Generator::new(model.clone(), options(slots, prefill)).unwrap();
            let one = serve(&mut fresh, &adapters, Script::new([(0, greedy(id, *adapter, prompt.clone()))]));
            assert_eq!(one.heard[&id], talk.script.heard[&id], "turn {number}, {slots} slots, prefill {prefill}");
            assert_eq!(one.reused[&id], 0);
            // All but the newest token of the answer before is in the cache, unless the other conversation has taken the only slot.
            let expected = if slots == 1 || number < 2 { 0 } else { talk.prompts[number - 2].1.len() + 5 };
            assert_eq!(talk.script.reused[&id], expected, "turn {number}, {slots} slots");
        }
    }
    // The same prompt again: only its last token is computed. Where all tokens are to be scored, all are computed.
    let prompt = ids(20);
    let mut generator = Generator::new(model.clone(), options(2, 64)).unwrap();
    let scored = GenRequest { prompt_logprobs: Some(0), ..greedy(3, 1, prompt.clone()) };
    let again = [greedy(0, 1, prompt.clone()), greedy(1, 1, prompt.clone()), greedy(2, 0, prompt.clone()), scored];
    let script = serve(&mut generator, &adapters, Script::new((0..).map(|i| i * 100).zip(again)));
    assert_eq!(script.reused.values().copied().collect::<Vec<_>>(), [0, 19, 0, 0]);
    assert_eq!(script.heard[&0], script.heard[&1]);
    assert_eq!(script.heard[&0].ids, script.heard[&3].ids);
}

#[test]
fn log_probabilities_are_those_of_the_model() {
    let tiny = Tiny::default();
    let model = tiny.model(4, 2);
    let adapter = adapter(&model, lora(4), 2);
    let mut generator = Generator::new(model.clone(), options(3, 10)).unwrap();
    for request in requests(12, tiny.vocab) {
        let request = GenRequest { adapter: 0, logprobs: Some(5), prompt_logprobs: Some(2), ..request };
        let script = serve(&mut generator, &[Some(&adapter)], Script::new([(0, request.clone())]));
        let heard = &script.heard[&request.id];
        let mut ids = [&request.prompt_ids[..], &heard.ids].concat();
        if let Some(Finish::Stop(stop)) = heard.finish {
            ids.push(stop);
        }
        let row = Row { weights: vec![0.0; ids.len()], ids: ids.clone(), sample: 0 };
        let logits = model.hidden_states(Some(&adapter), &pack(&[row])).unwrap().logits;
        let prompt = heard.prompt.as_ref().unwrap();
        assert_eq!((prompt.len(), heard.logprobs.len()), (request.prompt_ids.len() - 1, ids.len() - request.prompt_ids.len()));
        for ((logits, said), id) in logits.chunks(tiny.vocab).zip(prompt.iter().chain(&heard.logprobs)).zip(&ids[1..]) {
            let total = logits.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
            let of = |id: u32| f64::from(logits[id as usize]) - total;
            assert_eq!(said.id, *id);
            assert!((said.logprob - of(*id)).abs() < 1e-4, "{said:?}");
            assert!(said.top.iter().all(|(id, p)| (p - of(*id)).abs() < 1e-4), "{said:?}");
            assert!(said.top.windows(2).all(|w| w[0].1 >= w[1].1));
            assert!(logits.iter().all(|v| f64::from(*v) - total <= said.top[0].1 + 1e-4));
        }
        // Alone, without an answer, they are what scoring a continuation gives.
        let (head, rest) = request.prompt_ids.split_at(1);
        let score = ScoreRequest { id: 0, prompt_ids: head.to_vec(), continuation_ids: rest.to_vec() };
        let score = generator.score(Some(&adapter), &[score]).unwrap().remove(0).score.unwrap();
        let only = GenRequest { max_new_tokens: 0, ..request.clone() };
        let script = serve(&mut generator, &[Some(&adapter)], Script::new([(0, only)]));
        let heard = &script.heard[&request.id];
        assert_eq!((heard.ids.len(), heard.finish.clone()), (0, Some(Finish::Length)));
        let sum: f64 = heard.prompt.as_ref().unwrap().iter().map(|t| t.logprob).sum();
        assert!((sum - score.sum_logprob).abs() < 1e-9);
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_the_others() {
    let tiny = Tiny::default();
    let model = tiny.model(1, 1);
    let mut generator = Generator::new(model, options(2, 2)).unwrap();
    let request = |id: u64, prompt: usize, max_new_tokens: usize| GenRequest {
        id,
        prompt_ids: vec![3; prompt],
        params: SamplingParams::greedy(),
        max_new_tokens,
        ..GenRequest::default()
    };
    let script = serve(&mut generator, &[None], Script::new([(0, request(0, 2, 40)), (6, request(1, 60, 1))]));
    let first = script.order.iter().position(|id| *id == 1).unwrap();
    let before = script.order[..first].iter().filter(|id| **id == 0).count();
    // Thirty passes, a step after every fourth.
    assert!((7..40).contains(&before), "{before} tokens");
    assert_eq!(script.order.iter().filter(|id| **id == 0).count(), 40);
}

#[test]
fn requests_end_when_nobody_wants_them() {
    let tiny = Tiny::default();
    let model = tiny.model(1, 1);
    let mut generator = Generator::new(model, options(2, 4)).unwrap();
    let request = |id: u64, adapter: usize| GenRequest {
        id,
        adapter,
        prompt_ids: vec![7, id as u32, 9, 4, 4, 4],
        params: SamplingParams::greedy(),
        max_new_tokens: 8,
        ..GenRequest::default()
    };
    let mut script = Script::new((0..6).map(|id| (id * 50, request(id, usize::from(id == 3)))));
    script.cancel.insert(1, 3);
    script.unwanted.push(2);
    let script = serve(&mut generator, &[None], script);
    let lengths: Vec<usize> = script.heard.values().map(|h| h.ids.len()).collect();
    assert_eq!((script.heard.keys().copied().collect::<Vec<_>>(), lengths), (vec![0, 1, 3, 4, 5], vec![8, 3, 0, 8, 8]));
    assert_eq!(script.heard[&1].finish, None);
    assert_eq!(script.heard[&3].finish, Some(Finish::Refused(RequestError::UnknownAdapter { number: 1, count: 1 })));
    assert!(script.idles >= 5, "a generator with nothing to do asks whether there will be more");
    // Everything ends at once when the caller says so.
    let mut script = Script::new((0..6).map(|id| (0, request(id, 0))));
    script.end_at = Some(1);
    generator.serve(&[None], &mut script).unwrap();
    assert_eq!((script.requests.len(), script.heard.values().filter(|h| h.finish.is_some()).count()), (4, 0));
    // A generator is as new afterwards.
    assert_eq!(serve(&mut generator, &[None], Script::new([(0, request(5, 0))])).heard[&5].ids.len(), 8);
}
