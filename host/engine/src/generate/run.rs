//! The state of one call of [`super::Generator::serve`]: which request has which slot, and what is told of it.

use std::ops::ControlFlow;

use trainer_kernels::sampling::{Draw, DrawStream, Said, Sampler, SamplingError};

use super::logprobs::TokenLogprobs;
use super::request::{Cancel, Feed, Finish, GenEvent, GenRequest, RequestError};

/// A drawn token, with its log-probabilities where they are wanted.
pub(super) type Drawn = std::result::Result<(u32, Option<TokenLogprobs>), SamplingError>;

/// How the next tokens of several sequences are chosen.
pub(super) enum Choice {
    /// The likeliest each, where the logits are.
    Likeliest,
    /// By these, where the logits are if the backend draws as the sampler does.
    Drawn(Vec<Draw>),
    /// By the sampler, from logits in host memory.
    OnHost,
}

/// A sequence that has a slot.
pub(super) struct Active {
    pub request: GenRequest,
    /// When it came, among all requests of the call.
    pub number: u64,
    /// Tokens in the cache: of the prompt, then of the answer.
    pub cached: usize,
    /// How many of them were there before it came.
    pub reused: usize,
    /// Prompt and generated tokens: the sampler's history.
    pub history: Vec<u32>,
    /// Log-probabilities of the prompt, as far as it was read.
    pub prompt_logprobs: Vec<TokenLogprobs>,
}

impl Active {
    pub fn prompt_done(&self) -> bool {
        self.cached >= self.request.prompt_ids.len()
    }

    fn stream(&self) -> DrawStream {
        let r = &self.request;
        DrawStream { seed: r.seed, sample: r.sample, repeat: r.repeat }
    }

    pub fn draw(&self, sampler: &mut Sampler, logits: &[f32]) -> Drawn {
        let r = &self.request;
        let said = Said { history: &self.history, prompt: r.prompt_ids.len(), bias: &r.logit_bias };
        let id = sampler.sample(logits, said, &r.params, &self.stream(), self.generated().len() as u32)?;
        Ok((id, r.logprobs.map(|count| TokenLogprobs::new(logits, id, count))))
    }

    /// Whether nothing is asked of the logits but a token, by rules that do not look at the tokens before or at single tokens.
    fn wants_token_alone(&self) -> bool {
        let r = &self.request;
        r.params.has_no_penalties() && r.logit_bias.is_empty() && r.logprobs.is_none()
    }

    /// What the next token is drawn by.
    fn next_draw(&self) -> Draw {
        Draw { params: self.request.params, uniform: self.stream().uniform(self.generated().len() as u32) }
    }

    fn generated(&self) -> &[u32] {
        self.history.get(self.request.prompt_ids.len()..).unwrap_or_default()
    }

    /// An event without anything in it.
    fn event(&self) -> GenEvent<'_> {
        GenEvent { id: self.request.id, prompt: None, reused: self.reused, token: None, logprobs: None, finish: None }
    }
}

/// What a slot's cache holds when nothing is generated in it.
#[derive(Default)]
struct Held {
    adapter: usize,
    ids: Vec<u32>,
    /// When it was left there: the number of the last request that had come by then.
    since: u64,
}

/// A place for a sequence.
#[derive(Default)]
struct Slot {
    active: Option<Active>,
    held: Held,
}

/// One call.
pub(super) struct Run<'a> {
    slots: Vec<Slot>,
    feed: &'a mut dyn Feed,
    /// Requests that came so far.
    count: u64,
    /// Whether what a slot's cache holds may serve a later request.
    reuse: bool,
    /// The caller wants no more.
    pub stopped: bool,
}

impl<'a> Run<'a> {
    pub fn new(slots: usize, reuse: bool, feed: &'a mut dyn Feed) -> Self {
        Run { slots: std::iter::repeat_with(Slot::default).take(slots).collect(), feed, count: 0, reuse, stopped: false }
    }

    pub fn get(&self, slot: usize) -> Option<&Active> {
        self.slots.get(slot)?.active.as_ref()
    }

    pub fn get_mut(&mut self, slot: usize) -> Option<&mut Active> {
        self.slots.get_mut(slot)?.active.as_mut()
    }

    /// Slots in use, with what is in them.
    pub fn active(&self) -> impl Iterator<Item = (usize, &Active)> {
        self.slots.iter().enumerate().filter_map(|(number, slot)| Some((number, slot.active.as_ref()?)))
    }

    /// Waits for requests; false if there will be none.
    pub fn wait(&mut self) -> bool {
        self.feed.idle()
    }

    /// Fills free slots.
    pub fn admit(&mut self, refuse: impl Fn(&GenRequest) -> Option<RequestError>) {
        while !self.stopped && self.slots.iter().any(|s| s.active.is_none()) {
            let Some(request) = self.feed.next() else { return };
            self.count += 1;
            let refusal = refuse(&request);
            let nothing = request.max_new_tokens == 0 && request.prompt_logprobs.is_none();
            let history = request.prompt_ids.clone();
            let mut active = Active { request, number: self.count, cached: 0, reused: 0, history, prompt_logprobs: Vec::new() };
            if let Some(error) = refusal {
                self.tell_end(&active, None, Finish::Refused(error));
            } else if nothing {
                self.tell_end(&active, None, Finish::Length);
            } else if let Some((slot, reused)) = self.place(&active.request) {
                (active.cached, active.reused) = (reused, reused);
                if let Some(place) = self.slots.get_mut(slot) {
                    place.held.ids.clear();
                    place.active = Some(active);
                }
            }
        }
    }

    /// The free slot that holds most of a prompt, the one left alone for longest among equals; and how many of the prompt's tokens it holds.
    fn place(&self, request: &GenRequest) -> Option<(usize, usize)> {
        let held = |slot: &Slot| -> usize {
            // The last token is always computed, since its logits are wanted; those of all tokens may be.
            if !self.reuse || request.prompt_logprobs.is_some() || slot.held.adapter != request.adapter {
                return 0;
            }
            let common = slot.held.ids.iter().zip(&request.prompt_ids).take_while(|(a, b)| a == b).count();
            common.min(request.prompt_ids.len().saturating_sub(1))
        };
        let free = self.slots.iter().enumerate().filter(|(_, s)| s.active.is_none());
        let best = free.map(|(number, slot)| (held(slot), std::cmp::Reverse((slot.held.since, number)))).max();
        best.map(|(reused, std::cmp::Reverse((_, number)))| (number, reused))
    }

    /// How the next tokens of these slots are to be chosen.
    pub fn choice(&self, slots: &[usize]) -> Choice {
        let all: Option<Vec<&Active>> = slots.iter().map(|slot| self.get(*slot).filter(|a| a.wants_token_alone())).collect();
        match all {
            None => Choice::OnHost,
            Some(all) if all.iter().all(|a| a.request.params.temperature == 0.0) => Choice::Likeliest,
            Some(all) => Choice::Drawn(all.into_iter().map(Active::next_draw).collect()),
        }
    }

    /// Ends the sequences whose prompt is still to be read and that nobody wants any more.
    pub fn drop_unwanted(&mut self) {
        for number in 0..self.slots.len() {
            let Some(id) = self.get(number).filter(|a| !a.prompt_done()).map(|a| a.request.id) else { continue };
            if !self.feed.wants(id) {
                self.leave(number);
            }
        }
    }

    /// The prompt in a slot is in the cache: says what was asked about it. True where a token is to be drawn now.
    pub fn prompt_read(&mut self, slot: usize) -> bool {
        let Some(active) = self.slots.get_mut(slot).and_then(|s| s.active.as_mut()) else { return false };
        if active.request.prompt_logprobs.is_some() {
            let prompt = std::mem::take(&mut active.prompt_logprobs);
            let length = active.request.max_new_tokens == 0;
            let finish = length.then_some(&Finish::Length);
            let answer = self.feed.event(GenEvent { prompt: Some(&prompt), finish, ..active.event() });
            if self.answered(slot, answer) || length {
                self.leave(slot);
                return false;
            }
        }
        true
    }

    /// Adds a drawn token to the sequence in a slot, or ends it.
    pub fn advance(&mut self, slot: usize, drawn: Drawn, cache_length: usize) {
        let Some(active) = self.slots.get_mut(slot).and_then(|s| s.active.as_mut()) else { return };
        let (token, logprobs) = match drawn {
            Ok((token, logprobs)) if active.request.stop_ids.contains(&token) => {
                return self.end(slot, None, logprobs, Finish::Stop(token));
            }
            Ok(drawn) => drawn,
            Err(e) => return self.end(slot, None, None, Finish::Refused(RequestError::Sampling(e.to_string()))),
        };
        active.history.push(token);
        // The newest token enters the cache only when the next one is computed.
        if active.generated().len() >= active.request.max_new_tokens {
            return self.end(slot, Some(token), logprobs, Finish::Length);
        }
        if active.history.len() > cache_length {
            return self.end(slot, Some(token), logprobs, Finish::CacheFull);
        }
        let answer = self.feed.event(GenEvent { token: Some(token), logprobs: logprobs.as_ref(), ..active.event() });
        if self.answered(slot, answer) {
            self.leave(slot);
        }
    }

    /// Takes note of the answer to an event; true where the request was cancelled.
    fn answered(&mut self, slot: usize, answer: ControlFlow<Cancel>) -> bool {
        if answer == ControlFlow::Break(Cancel::All) {
            self.stopped = true;
        }
        answer == ControlFlow::Break(Cancel::Request) && self.get(slot).is_some()
    }

    /// Ends a sequence and says so.
    fn end(&mut self, slot: usize, token: Option<u32>, logprobs: Option<TokenLogprobs>, finish: Finish) {
        let Some(active) = self.leave(slot) else { return };
        let answer = self.feed.event(GenEvent { token, logprobs: logprobs.as_ref(), finish: Some(&finish), ..active.event() });
        if answer == ControlFlow::Break(Cancel::All) {
            self.stopped = true;
        }
    }

    /// Says that a request which never had a slot has ended.
    fn tell_end(&mut self, active: &Active, token: Option<u32>, finish: Finish) {
        if self.feed.event(GenEvent { token, finish: Some(&finish), ..active.event() }) == ControlFlow::Break(Cancel::All) {
            self.stopped = true;
        }
    }

    /// Takes a sequence out of its slot, whose cache keeps what it holds.
    fn leave(&mut self, slot: usize) -> Option<Active> {
        let since = self.count;
        let place = self.slots.get_mut(slot)?;
        let active = place.active.take()?;
        let ids = active.history.get(..active.cached).unwrap_or_default().to_vec();
        place.held = Held { adapter: active.request.adapter, ids, since };
        Some(active)
    }
}
