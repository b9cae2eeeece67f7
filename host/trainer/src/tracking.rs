//! The trackers of a run, from the recipe and the flags.

use anyhow::Result;
use trainer_config::{Recipe, Tracker};
use trainer_track::{Kind, Outcome, PATIENCE, Setup, Trackers};
use trainer_train::{Banner, Event};

/// Follows the events of a run.
pub struct Tracking {
    /// From the command line, over the recipe's.
    wanted: Option<Vec<Tracker>>,
    quiet: bool,
    running: Option<Trackers>,
    dir: String,
}

impl Tracking {
    /// `wanted`: what `--report-to` says.
    pub fn new(wanted: Option<Vec<Tracker>>, quiet: bool) -> Self {
        Self { wanted, quiet, running: None, dir: String::new() }
    }

    /// Something happened.
    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Ready(banner) => match setup(banner, self.wanted.as_deref()) {
                Ok(Some(setup)) => {
                    self.dir = setup.dir.display().to_string();
                    if setup.trackers.contains(&Kind::Wandb) && expects_uploads() && !self.quiet {
                        note!(
                            "wandb: a key is set, but this program does not upload by itself: it writes an offline run, and `wandb sync {}/wandb/offline-run-*` \
                             uploads it, during the run or afterwards",
                            self.dir
                        );
                    }
                    self.running = Some(Trackers::start(&setup));
                }
                Ok(None) => {}
                Err(e) => tracing::warn!("no tracker follows this run: {e:#}"),
            },
            Event::Step(_) | Event::Evaluated { .. } | Event::Measured(_) | Event::SampleKept { .. } => {
                if let Some(trackers) = &self.running {
                    trackers.news();
                }
            }
            _ => {}
        }
    }

    /// The run has ended; says where each tracker's result is, or that it does not have everything.
    pub fn finish(self, outcome: Outcome) {
        let Some(trackers) = self.running else { return };
        for delivery in trackers.finish(outcome, PATIENCE) {
            let name = delivery.tracker.name();
            match delivery.problem {
                None if self.quiet => {}
                None => say!("{name:<12} {}", delivery.place),
                Some(problem) => note!(
                    "warning: {name} does not have everything of this run: {problem}; `trainer run --resume {} --report-to {name}` delivers the rest",
                    self.dir
                ),
            }
        }
    }
}

/// Whether the environment is set up for a client that uploads.
fn expects_uploads() -> bool {
    let set = |name: &str| std::env::var(name).is_ok_and(|v| !v.is_empty());
    let online = std::env::var("WANDB_MODE").map_or(true, |mode| mode == "online" || mode.is_empty());
    set("WANDB_API_KEY") && online
}

fn setup(banner: &Banner, wanted: Option<&[Tracker]>) -> Result<Option<Setup>> {
    let recipe = Recipe::load(&banner.dir.join("recipe.toml"))?;
    let track = recipe.track;
    let mut trackers = Vec::new();
    for tracker in wanted.unwrap_or(&track.report_to) {
        let kind = match tracker {
            Tracker::TensorBoard => Kind::TensorBoard,
            Tracker::Mlflow => Kind::Mlflow,
            Tracker::Wandb => Kind::Wandb,
        };
        if !trackers.contains(&kind) {
            trackers.push(kind);
        }
    }
    let folder = || banner.dir.file_name().map_or_else(|| "run".to_owned(), |n| n.to_string_lossy().into_owned());
    let name = track.name.unwrap_or_else(folder);
    let setup =
        Setup { dir: banner.dir.clone(), project: track.project, name, mlflow_uri: track.mlflow_uri, steps: banner.steps, trackers };
    Ok((!setup.trackers.is_empty()).then_some(setup))
}

/// What `--report-to` takes: trackers separated by commas, or `none`.
#[derive(Clone, Debug)]
pub struct ReportTo(pub Vec<Tracker>);

impl std::str::FromStr for ReportTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let known = || Tracker::ALL.iter().map(|t| t.as_str());
        let one = |name: &str| {
            let name = name.trim();
            let found = Tracker::ALL.iter().copied().find(|t| t.as_str() == name);
            found.ok_or_else(|| match known().find(|k| strsim::damerau_levenshtein(k, &name.to_lowercase()) <= 2) {
                Some(near) => format!("there is no tracker {name:?}; did you mean {near}?"),
                None => {
                    let known: Vec<_> = known().collect();
                    format!("there is no tracker {name:?}; there are {}, separated by commas, or none", known.join(", "))
                }
            })
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}
