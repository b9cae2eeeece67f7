//! Models and data sets of hubs, as far as a recipe names them: resolved once in a process, so that all of it sees one commit.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use trainer_config::{DataPath, ModelSource, Recipe};
use trainer_hub::{Headers, Hub, HubError, RepoRef, Silent, Snapshot, Wanted, Watch};

use crate::error::RuntimeError;

static HUB: OnceLock<Hub> = OnceLock::new();
static WATCH: OnceLock<Box<dyn Watch + Send + Sync>> = OnceLock::new();
/// What each name came to: the same with its commit.
static PINS: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Says who is told about downloads, wherever in the process they become necessary. The first one stays.
pub fn watch_downloads(watch: Box<dyn Watch + Send + Sync>) {
    let _ = WATCH.set(watch);
}

/// Who is told about downloads.
pub fn download_watch() -> &'static dyn Watch {
    WATCH.get().map_or(&Silent, |watch| watch.as_ref())
}

/// The hubs, as the environment says.
///
/// # Errors
/// Settings of the environment that do not read.
pub fn hub() -> Result<&'static Hub, HubError> {
    if let Some(hub) = HUB.get() {
        return Ok(hub);
    }
    let new = Hub::from_env()?;
    Ok(HUB.get_or_init(|| new))
}

/// A model of a hub as a folder, fetched as far as it is not there.
pub(crate) fn model(repo: &RepoRef, wanted: &Wanted) -> Result<Snapshot, RuntimeError> {
    let snapshot = hub()?.snapshot(repo, wanted, download_watch())?;
    keep_pin(repo, &snapshot.repo);
    Ok(snapshot)
}

/// What a model of a hub consists of, without its weights.
pub(crate) fn headers(repo: &RepoRef) -> Result<Headers, RuntimeError> {
    Ok(hub()?.headers(repo, download_watch())?)
}

/// The files of a split of a data set.
pub(crate) fn data_files(repo: &RepoRef) -> Result<Vec<PathBuf>, RuntimeError> {
    let (files, snapshot) = hub()?.data_files(repo, download_watch())?;
    keep_pin(repo, &snapshot.repo);
    Ok(files)
}

fn keep_pin(asked: &RepoRef, found: &RepoRef) {
    PINS.lock().unwrap_or_else(PoisonError::into_inner).insert(asked.to_string(), found.to_string());
}

/// What the names of a recipe came to, by how it writes them: the same names with the commits that were used. Empty where it names no hub.
pub fn hub_pins(recipe: &Recipe) -> BTreeMap<String, String> {
    let pins = PINS.lock().unwrap_or_else(PoisonError::into_inner);
    names(recipe).filter_map(|name| Some((name.clone(), pins.get(&name)?.clone()))).collect()
}

fn names(recipe: &Recipe) -> impl Iterator<Item = String> {
    let model = if let ModelSource::Hub(repo) = &recipe.model.source { Some(repo) } else { None };
    let paths = recipe.data.sources.iter().map(|s| &s.path).chain([&recipe.eval.data]);
    let data = paths.filter_map(|p| if let DataPath::Hub(repo) = p { Some(repo) } else { None });
    model.into_iter().chain(data).map(ToString::to_string).collect::<Vec<_>>().into_iter()
}

/// Puts the commits of an earlier run in, for names without a revision of their own: what a branch is today must not decide how a run goes on.
pub fn pin_hub_names(recipe: &mut Recipe, pins: &BTreeMap<String, String>) {
    let pinned =
        |repo: &RepoRef| pins.get(&repo.to_string()).and_then(|p| RepoRef::parse(p).ok()).filter(|p| p.id == repo.id && p.hub == repo.hub);
    if let ModelSource::Hub(repo) = &mut recipe.model.source
        && let Some(pin) = pinned(repo)
    {
        *repo = pin;
    }
    for path in recipe.data.sources.iter_mut().map(|s| &mut s.path).chain([&mut recipe.eval.data]) {
        if let DataPath::Hub(repo) = path
            && let Some(pin) = pinned(repo)
        {
            *repo = pin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_pinned_to_what_was_used() {
        let text = "[model]\nsource = \"hf://a/b\"\n[[data.sources]]\nname = \"x\"\nformatter = \"sharegpt\"\npath = \"hf://datasets/a/d?split=cot\"\n";
        let mut recipe = Recipe::parse(text).unwrap();
        assert_eq!(names(&recipe).collect::<Vec<_>>(), ["hf://a/b", "hf://datasets/a/d?split=cot"]);
        let commit = "0123456789012345678901234567890123456789";
        let pins: BTreeMap<String, String> = [
            ("hf://a/b".to_owned(), format!("hf://a/b@{commit}")),
            ("hf://datasets/a/d?split=cot".to_owned(), format!("hf://datasets/a/d@{commit}?split=cot")),
        ]
        .into();
        pin_hub_names(&mut recipe, &pins);
        assert_eq!(recipe.model.source.to_string(), format!("hf://a/b@{commit}"));
        assert_eq!(recipe.data.sources[0].path.to_string(), format!("hf://datasets/a/d@{commit}?split=cot"));
        // A pin of something else is none.
        let mut other = Recipe::parse("[model]\nsource = \"hf://a/b\"\n").unwrap();
        pin_hub_names(&mut other, &[("hf://a/b".to_owned(), format!("hf://evil/b@{commit}"))].into());
        assert_eq!(other.model.source.to_string(), "hf://a/b");
    }
}
