//! `trainer chat`

mod command;
mod file;
mod interrupt;
mod line;
mod replay;
mod screen;
mod session;

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use trainer_config::{PluginName, Recipe};
use trainer_engine::{Cancel, Feed, Finish, GenEvent, GenOptions, GenRequest, Generator};
use trainer_eval::{PREFILL_TOKENS, Prompts, Speaker, chat_template};
use trainer_kernels::ops::Ops;
use trainer_runtime::{Plugins, apply_plugin, compiler_command, load_base, load_tokenizer, model_texts, open_device, with_ops};
use trainer_train::rundir::RunDir;

use self::command::{Drawing, Line, understand};
use self::file::Dialogue;
use self::interrupt::Interrupt;
use self::line::Lines;
use self::screen::Screen;
use self::session::{After, Session, With};
use super::Loaded;
use crate::cli::ChatArgs;
use crate::output::check_json;
use crate::ui::safe;

/// Runs the command.
pub fn run(args: ChatArgs) -> Result<ExitCode> {
    check_json(args.json.as_deref())?;
    let (recipe, adapter) = subject(&args)?;
    let tools = super::tool_names(&args.plugin)?;
    let dialogue = args.replay.as_deref().or(args.load.as_deref()).map(file::read).transpose()?;
    if args.show_prompts || args.json.is_some() {
        let Some(dialogue) = dialogue else { bail!("--show-prompts and --json show the prompts of a conversation: add --replay FILE") };
        return show_prompts(&args, &recipe, &tools, dialogue);
    }
    let open = open_device(&recipe.device)?;
    with_ops!(open.backend, ops => talk(ops, &args, &recipe, &tools, adapter.as_deref(), dialogue))
}

/// The recipe to talk by, and the adapter.
fn subject(args: &ChatArgs) -> Result<(Recipe, Option<std::path::PathBuf>)> {
    let (mut recipe, adapter) = match &args.run {
        Some(dir) => {
            let run = RunDir::view(dir)?;
            let adapter = run.adapter_path();
            if !adapter.is_dir() {
                let dir = dir.display();
                bail!("{dir} has no adapter yet: the run is not complete; continue it with trainer run --resume {dir}");
            }
            let mut more: Vec<_> = args.device.overrides().collect();
            more.extend(args.quantization.as_deref().map(|q| ("model.quantization", super::toml_string(q))));
            (super::recipe_of(&run, &super::overrides(&[], &more)?)?, Some(adapter))
        }
        None => {
            let quantization = args.quantization.as_deref().unwrap_or("as-stored");
            (super::model_recipe(&args.model, quantization, &args.device)?, args.adapter.clone())
        }
    };
    for plugin in &args.plugin {
        apply_plugin(&mut recipe, plugin)?;
    }
    super::grant(&mut recipe, &args.grants)?;
    args.template.put(&mut recipe);
    Ok((recipe, adapter))
}

/// Shows the prompts of a conversation; needs no weights.
fn show_prompts(args: &ChatArgs, recipe: &Recipe, tools: &[PluginName], mut dialogue: Dialogue) -> Result<ExitCode> {
    let mut plugins = Plugins::new(recipe, compiler_command()?)?;
    let template = Arc::new(chat_template(recipe, &mut plugins)?);
    if dialogue.tools.is_none() && !tools.is_empty() {
        dialogue.tools = Some(super::toolbox(tools, recipe, args.limits.limits(), &mut plugins)?.offer());
    }
    dialogue.enable_thinking = args.enable_thinking.or(dialogue.enable_thinking);
    let tokenizer = load_tokenizer(&recipe.model.source)?;
    let prompts = Prompts::new(recipe, &model_texts(&recipe.model.source)?, &tokenizer, template)?;
    replay::show(&replay::prompts(&dialogue, &prompts, &tokenizer)?, args.json.as_deref())
}

fn talk<O: Ops>(
    ops: Arc<O>,
    args: &ChatArgs,
    recipe: &Recipe,
    tools: &[PluginName],
    adapter: Option<&std::path::Path>,
    dialogue: Option<Dialogue>,
) -> Result<ExitCode> {
    let base = load_base(&recipe.model.source, recipe.model.quantization, ops.reads_weights())?;
    let mut plugins = Plugins::new(recipe, compiler_command()?)?;
    let speaker = Speaker::new(recipe, &base, &mut plugins)?;
    let toolbox = Arc::new(super::toolbox(tools, recipe, args.limits.limits(), &mut plugins)?);
    for warning in toolbox.ungranted() {
        note!("warning: {warning}");
    }
    let loaded = Loaded::new(ops, &base, adapter)?;
    let context = args.max_context.min(base.config.max_position_embeddings).max(1);
    let options = GenOptions { slots: 1, cache_length: context, prefill_tokens: PREFILL_TOKENS.min(context) };
    let mut generator = Generator::new(loaded.model, options)?;
    let interrupt = Interrupt::listen()?;
    let sampling = &args.sampling;
    let drawing = Drawing { params: sampling.params(), max_new_tokens: args.max_new_tokens.max(1), seed: sampling.seed };
    if let Err(why) = drawing.with(&[]) {
        bail!(why);
    }
    let with = With { base: &base, speaker: &speaker, toolbox: &toolbox, context, interrupt: &interrupt };
    let mut lines = Lines::new()?;
    let mut session = Session::new(with, drawing, args.enable_thinking, args.system.as_deref(), Screen::new());
    if lines.is_terminal() {
        say!("{} with the chat template {}: /help shows the commands, /quit ends", base.name, safe(&speaker.name));
    }
    let mut after = After::Line;
    if let Some(mut dialogue) = dialogue {
        dialogue.enable_thinking = args.enable_thinking.or(dialogue.enable_thinking);
        if args.replay.is_some() {
            walk(&dialogue, &speaker, &base, &mut lines, &mut session.screen)?;
        }
        if session.take_over(dialogue) {
            after = After::Turn;
        }
    }
    let mut talk = Talk { session, lines, interrupt: &interrupt, after, request: None, finish: None, failed: None };
    generator.serve(&[loaded.live.as_ref()], &mut talk)?;
    match talk.failed {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// A conversation as the generator's feed: it stays in one call, so the cache keeps what was said, and only what is new is read.
struct Talk<'a> {
    session: Session<'a>,
    lines: Lines,
    interrupt: &'a Interrupt,
    after: After,
    request: Option<GenRequest>,
    /// How the turn ended, once it has.
    finish: Option<Finish>,
    failed: Option<anyhow::Error>,
}

impl Talk<'_> {
    /// Does what follows until the model is needed; whether it is.
    fn go_on(&mut self) -> Result<bool> {
        loop {
            self.after = match self.after {
                After::Quit => return Ok(false),
                After::Turn => {
                    self.interrupt.answering(true);
                    self.request = self.session.request()?;
                    self.after = After::Answer;
                    if self.request.is_some() {
                        return Ok(true);
                    }
                    After::Line
                }
                After::Answer => {
                    // A turn that was not wanted any more ends without a word.
                    let finish = self.finish.take().unwrap_or(Finish::Cancelled);
                    if self.session.ended(&finish)? { After::Turn } else { After::Line }
                }
                After::Line => {
                    self.interrupt.answering(false);
                    match self.lines.next()? {
                        None => After::Quit,
                        Some(line) => self.line(&line)?,
                    }
                }
            };
        }
    }

    fn line(&mut self, line: &str) -> Result<After> {
        Ok(match understand(line) {
            Ok(Line::Empty) => After::Line,
            Ok(Line::Say(text)) => {
                self.session.say(&text);
                After::Turn
            }
            Ok(Line::Do(command)) => self.session.command(command)?,
            Err(why) => {
                say!("{}", safe(&why));
                After::Line
            }
        })
    }
}

impl Feed for Talk<'_> {
    fn next(&mut self) -> Option<GenRequest> {
        self.request.take()
    }

    fn idle(&mut self) -> bool {
        self.go_on().unwrap_or_else(|error| {
            self.failed = Some(error);
            false
        })
    }

    fn event(&mut self, event: GenEvent<'_>) -> ControlFlow<Cancel> {
        if event.token.is_some_and(|id| self.session.token(id).is_break()) {
            self.finish = Some(Finish::Cancelled);
            return ControlFlow::Break(Cancel::Request);
        }
        self.finish = event.finish.cloned().or(self.finish.take());
        ControlFlow::Continue(())
    }

    fn wants(&mut self, _: u64) -> bool {
        !self.interrupt.wanted()
    }
}

/// Shows a conversation turn by turn; in a terminal each of the model's turns waits for a line.
fn walk(dialogue: &Dialogue, speaker: &Speaker, base: &trainer_runtime::Base, lines: &mut Lines, screen: &mut Screen) -> Result<()> {
    let replay = replay::prompts(dialogue, &speaker.prompts, &base.tokenizer)?;
    let waits = lines.is_terminal();
    if waits {
        say!("an empty line shows the model's next turn, any other goes to the end");
    }
    let mut going = true;
    replay::walk(dialogue, Some(&replay), screen, &mut || {
        if waits && going {
            going = lines.next()?.is_some_and(|l| l.trim().is_empty());
        }
        Ok(true)
    })
}
