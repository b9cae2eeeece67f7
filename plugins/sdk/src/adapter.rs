//! From the plain traits to the generated ones. A plugin does not use this itself: [`plugin!`](crate::plugin) does.

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use serde::de::DeserializeOwned;

use crate::bindings::exports::trainer::{
    chat_template::template, dataset_formatter::formatter, eval_metric::metric, mixing_policy::policy, tool_executor::executor,
};
use crate::log::install_panic_hook;
use crate::traits::{Executor, Formatter, Metric, OutputParser, Policy, Session, Template};
use crate::types::*;

/// Exports a [`Formatter`].
pub struct FormatterExport<T>(PhantomData<T>);
/// Exports a [`Template`].
pub struct TemplateExport<T>(PhantomData<T>);
/// Exports a [`Policy`].
pub struct PolicyExport<T>(PhantomData<T>);
/// Exports an [`Executor`].
pub struct ExecutorExport<T>(PhantomData<T>);
/// Exports a [`Metric`].
pub struct MetricExport<T>(PhantomData<T>);

thread_local! {
    /// The configured plugin of each kind: an instance has one thread and at most one plugin of a kind.
    static CONFIGURED: RefCell<Vec<Rc<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn set<T: 'static>(plugin: T) {
    CONFIGURED.with_borrow_mut(|all| {
        all.retain(|p| !p.is::<T>());
        all.push(Rc::new(plugin));
    });
}

/// The configured plugin, or one under no settings where the host has not configured it.
pub(crate) fn get<T: 'static>(new: impl FnOnce() -> Result<T, String>) -> Rc<T> {
    let find = || CONFIGURED.with_borrow(|all| all.iter().find_map(|p| Rc::clone(p).downcast::<T>().ok()));
    if let Some(found) = find() {
        return found;
    }
    set(new().unwrap_or_else(|e| panic!("called before `configure`, and without settings: {e}")));
    find().unwrap_or_else(|| unreachable!("set above"))
}

pub(crate) fn settings<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|e| format!("settings: {e}"))
}

impl<T: Formatter> formatter::Guest for FormatterExport<T> {
    fn configure(json: Json) -> Result<(), String> {
        install_panic_hook();
        set(T::new(settings(&json)?)?);
        Ok(())
    }

    fn format(rows: Vec<Json>) -> Vec<Outcome> {
        install_panic_hook();
        let plugin = get(|| T::new(settings("{}")?));
        rows.iter().map(|row| plugin.format(row).unwrap_or_else(Into::into)).collect()
    }
}

impl<T: Template> template::Guest for TemplateExport<T> {
    type OutputParser = ParserResource<T::Parser>;

    fn configure(json: Json) -> Result<(), String> {
        install_panic_hook();
        set(T::new(settings(&json)?)?);
        Ok(())
    }

    fn describe() -> Description {
        install_panic_hook();
        get(|| T::new(settings("{}")?)).describe()
    }

    fn render_prompts(requests: Vec<PromptRequest>) -> Vec<Result<Rendered, String>> {
        install_panic_hook();
        let plugin = get(|| T::new(settings("{}")?));
        requests.iter().map(|request| plugin.render_prompt(request)).collect()
    }

    fn render_training(conversations: Vec<Conversation>) -> Vec<Result<Vec<Rendered>, String>> {
        install_panic_hook();
        let plugin = get(|| T::new(settings("{}")?));
        conversations.iter().map(|conversation| plugin.render_training(conversation)).collect()
    }

    fn parse(outputs: Vec<Vec<Piece>>) -> Vec<Vec<OutputPart>> {
        install_panic_hook();
        let parse = |pieces| {
            let mut parser = T::Parser::new(false);
            let mut parts = parser.push(pieces);
            parts.extend(parser.finish());
            join_parts(parts)
        };
        outputs.into_iter().map(parse).collect()
    }
}

/// Joins neighbouring parts of text and of reasoning.
pub fn join_parts(parts: Vec<OutputPart>) -> Vec<OutputPart> {
    let mut joined: Vec<OutputPart> = Vec::with_capacity(parts.len());
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(OutputPart::Text(to)), OutputPart::Text(from)) | (Some(OutputPart::Reasoning(to)), OutputPart::Reasoning(from)) => {
                to.push_str(&from);
            }
            (_, part) => joined.push(part),
        }
    }
    joined
}

/// An [`OutputParser`] behind the resource.
pub struct ParserResource<P>(RefCell<P>);

impl<P: OutputParser> template::GuestOutputParser for ParserResource<P> {
    fn new(in_reasoning: bool) -> Self {
        install_panic_hook();
        Self(RefCell::new(P::new(in_reasoning)))
    }

    fn push(&self, pieces: Vec<Piece>) -> Vec<OutputPart> {
        self.0.borrow_mut().push(pieces)
    }

    fn finish(&self) -> Vec<OutputPart> {
        self.0.borrow_mut().finish()
    }
}

impl<T: Policy> policy::Guest for PolicyExport<T> {
    type Mixer = PolicyResource<T>;
}

/// A [`Policy`] behind the resource.
pub struct PolicyResource<P>(RefCell<P>);

impl<P: Policy> policy::GuestMixer for PolicyResource<P> {
    fn open(setup: Setup) -> Result<policy::Mixer, String> {
        install_panic_hook();
        let policy = P::open(settings(&setup.settings)?, &setup)?;
        Ok(policy::Mixer::new(Self(RefCell::new(policy))))
    }

    fn restore(setup: Setup, snapshot: Vec<u8>) -> Result<policy::Mixer, String> {
        install_panic_hook();
        let policy = P::restore(settings(&setup.settings)?, &setup, &snapshot)?;
        Ok(policy::Mixer::new(Self(RefCell::new(policy))))
    }

    fn epoch_length(&self) -> Option<u64> {
        self.0.borrow().epoch_length()
    }

    fn next(&self, n: u32) -> Result<Vec<Draw>, String> {
        self.0.borrow_mut().next(n)
    }

    fn feedback(&self, feedback: Feedback) {
        self.0.borrow_mut().feedback(&feedback);
    }

    fn snapshot(&self) -> Vec<u8> {
        self.0.borrow().snapshot()
    }
}

impl<T: Executor> executor::Guest for ExecutorExport<T> {
    type Session = SessionResource<T>;

    fn tools(json: Json) -> Result<Vec<Tool>, String> {
        install_panic_hook();
        T::new(settings(&json)?)?.tools()
    }
}

/// A [`Session`] behind the resource.
pub struct SessionResource<T: Executor>(RefCell<T::Session>);

impl<T: Executor> executor::GuestSession for SessionResource<T> {
    fn open(context: Context) -> Result<executor::Session, String> {
        install_panic_hook();
        let session = T::new(settings(&context.settings)?)?.open(&context)?;
        Ok(executor::Session::new(Self(RefCell::new(session))))
    }

    fn call(&self, calls: Vec<Call>) -> Vec<CallOutcome> {
        let mut session = self.0.borrow_mut();
        calls.iter().map(|call| session.call(call)).collect()
    }

    fn state_digest(&self) -> Option<String> {
        self.0.borrow().state_digest()
    }
}

impl<T: Metric> metric::Guest for MetricExport<T> {
    fn configure(json: Json) -> Result<(), String> {
        install_panic_hook();
        set(T::new(settings(&json)?)?);
        Ok(())
    }

    fn scoring_version() -> String {
        install_panic_hook();
        get(|| T::new(settings("{}")?)).scoring_version()
    }

    fn prepare(rows: Vec<Json>) -> Vec<Plan> {
        install_panic_hook();
        let plugin = get(|| T::new(settings("{}")?));
        let prepare = |row: &Json| plugin.prepare(row).unwrap_or_else(|e| Plan::Bad((e.pointer.to_string(), e.message)));
        rows.iter().map(prepare).collect()
    }

    fn score(items: Vec<Item>) -> Vec<Vec<Score>> {
        install_panic_hook();
        let plugin = get(|| T::new(settings("{}")?));
        items.iter().map(|item| plugin.score(item)).collect()
    }

    fn aggregate(samples: Vec<Vec<Score>>) -> Result<Vec<Aggregate>, String> {
        install_panic_hook();
        get(|| T::new(settings("{}")?)).aggregate(&samples)
    }
}
