//! Checks that need more than one setting.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Problem;
use crate::recipe::{self, Recipe};
use crate::section::nearest;
use crate::tree::Node;
use crate::values::DataPath;

/// Everything that does not fit together. `tree` is what the recipe was read from, for the places.
pub(crate) fn check(recipe: &Recipe, tree: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut report = |key: &str, message: String, help: Option<&str>| {
        problems.push(Problem { origin: tree.origin_of(key), key: key.to_owned(), message, help: help.map(str::to_owned) });
    };
    train(recipe, &mut report);
    adapter(recipe, &mut report);
    sources(recipe, &mut report);
    eval(recipe, &mut report);
    plugins(recipe, &mut report);
    problems
}

type Report<'a> = dyn FnMut(&str, String, Option<&str>) + 'a;

fn train(recipe: &Recipe, report: &mut Report<'_>) {
    let train = &recipe.train;
    match (train.max_steps, train.epochs) {
        (Some(steps), Some(epochs)) => report(
            "train.epochs",
            format!("set together with train.max_steps ({epochs} and {steps}), but a run has one length"),
            Some("remove one of the two"),
        ),
        (None, None) => report("train", "neither max_steps nor epochs is set".to_owned(), Some("set one of the two")),
        (Some(steps), None) if train.warmup_steps > steps => report(
            "train.warmup_steps",
            format!("{} steps of warmup do not fit into train.max_steps = {steps}", train.warmup_steps),
            Some("lower train.warmup_steps or raise train.max_steps"),
        ),
        _ => {}
    }
    if train.batch.checked_mul(train.accumulation).is_none_or(|n| n > 1 << 24) {
        report("train.accumulation", "batch times accumulation is over 16777216 samples a step".to_owned(), Some("lower one of the two"));
    }
}

fn adapter(recipe: &Recipe, report: &mut Report<'_>) {
    let mut seen = BTreeSet::new();
    for target in &recipe.adapter.targets {
        if !seen.insert(*target) {
            report("adapter.targets", format!("\"{target}\" is named twice"), Some("remove one of them"));
        }
    }
    for (key, patterns) in [
        ("adapter.rank_pattern", recipe.adapter.rank_pattern.keys().collect::<Vec<_>>()),
        ("adapter.alpha_pattern", recipe.adapter.alpha_pattern.keys().collect()),
    ] {
        if patterns.iter().any(|p| p.is_empty()) {
            report(key, "an empty module name fits no module".to_owned(), Some("name a module, such as \"layers.0.self_attn.q_proj\""));
        }
    }
}

fn sources(recipe: &Recipe, report: &mut Report<'_>) {
    let mut names = BTreeMap::new();
    for (i, source) in recipe.data.sources.iter().enumerate() {
        let key = |field: &str| format!("data.sources[{i}].{field}");
        if source.name.is_empty() {
            report(&key("name"), "missing, but required".to_owned(), Some("give the source a name of its own, such as \"math\""));
        } else if source.name.chars().any(char::is_control) || source.name.len() > 128 {
            report(&key("name"), "must be at most 128 bytes without control characters".to_owned(), None);
        } else if let Some(first) = names.insert(&source.name, i) {
            report(
                &key("name"),
                format!("{:?} is already the name of data.sources[{first}]", source.name),
                Some("metrics and the mixing policy tell sources apart by their names: give each its own"),
            );
        }
        if matches!(&source.path, DataPath::Path(p) if p.as_os_str().is_empty()) {
            report(&key("path"), "missing, but required".to_owned(), Some("a file, a folder, a glob, or \"builtin:math_train\""));
        }
        if matches!(source.path, DataPath::Holdout(_)) {
            report(&key("path"), "`holdout:` is for eval.data; training never sees those rows".to_owned(), None);
        }
        for (j, filter) in source.filter.iter().enumerate() {
            let at = format!("data.sources[{i}].filter[{j}]");
            if filter.column.is_empty() {
                report(&format!("{at}.column"), "missing, but required".to_owned(), Some("name the column that the condition is about"));
            }
            let recipe::Filter { is, is_not, contains, min, max, min_length, max_length, present, column: _ } = filter;
            let lists = is.0.is_empty() && is_not.0.is_empty() && contains.is_empty();
            if lists && min.is_none() && max.is_none() && min_length.is_none() && max_length.is_none() && present.is_none() {
                report(&at, "a filter without a condition".to_owned(), Some("set one, such as is, min, max_length or present"));
            }
        }
        if source.columns.iter().any(|(name, column)| name.is_empty() || column.is_empty()) {
            report(&key("columns"), "an empty name is no column".to_owned(), None);
        }
        if source.holdout_by.is_some() && source.holdout == 0.0 {
            report(&key("holdout_by"), "without a holdout it does nothing".to_owned(), Some("set holdout to a share, such as 0.01"));
        }
        if source.formatter.as_str().is_empty() {
            report(
                &key("formatter"),
                "missing, but required".to_owned(),
                Some("the dataset-formatter plugin of its rows, such as \"sharegpt\""),
            );
        }
    }
}

fn eval(recipe: &Recipe, report: &mut Report<'_>) {
    let eval = &recipe.eval;
    if let DataPath::Holdout(name) = &eval.data {
        match recipe.data.sources.iter().find(|s| s.name == *name) {
            Some(source) if source.holdout > 0.0 => {}
            Some(_) => report("eval.data", format!("source {name:?} holds no rows out"), Some("set its holdout to a share, such as 0.01")),
            None => {
                let near =
                    nearest(name, recipe.data.sources.iter().map(|s| s.name.as_str())).map(|n| format!("did you mean \"holdout:{n}\"?"));
                report("eval.data", format!("there is no source called {name:?}"), near.as_deref());
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (i, metric) in eval.metrics.iter().enumerate() {
        if !seen.insert(metric) {
            report(&format!("eval.metrics[{i}]"), format!("\"{metric}\" is named twice"), Some("remove one of them"));
        }
    }
    for (i, tool) in eval.tools.iter().enumerate() {
        if eval.tools.iter().take(i).any(|t| t == tool) {
            report(&format!("eval.tools[{i}]"), format!("\"{tool}\" is named twice"), Some("remove one of them"));
        }
    }
    during(recipe, report);
    if eval.metrics.is_empty() && (eval.before || eval.after) {
        report("eval.metrics", "an evaluation needs a metric".to_owned(), Some("name one, or set eval.before and eval.after to false"));
    }
    for name in eval.settings.keys().filter(|name| !seen.contains(name)) {
        let near = nearest(name.as_str(), seen.iter().map(|n| n.as_str())).map(|n| format!("did you mean `{n}`?"));
        report(&format!("eval.settings.{name}"), "is not one of eval.metrics".to_owned(), near.as_deref());
    }
}

/// What is watched during training must be measured there.
fn during(recipe: &Recipe, report: &mut Report<'_>) {
    let eval = &recipe.eval;
    let held_out = recipe.data.sources.iter().any(|s| s.holdout > 0.0);
    if eval.every > 0 && eval.metrics.is_empty() && !held_out {
        let help = "name a metric in eval.metrics, or hold rows out of a source with its holdout";
        report("eval.every", "there is nothing to measure during training".to_owned(), Some(help));
    }
    for (key, metric) in [("eval.early_stopping.metric", &eval.early_stopping.metric), ("eval.best.metric", &eval.best.metric)] {
        let Some(metric) = metric else { continue };
        if eval.every == 0 {
            report(key, "nothing is measured during training".to_owned(), Some("set eval.every to a number of steps"));
        }
        if metric == recipe::HELD_OUT_LOSS {
            if !held_out {
                report(
                    key,
                    "no source holds rows out to measure their loss".to_owned(),
                    Some("set a source's holdout to a share, such as 0.01"),
                );
            }
            continue;
        }
        let plugin = metric.split('/').next().unwrap_or_default();
        if !eval.metrics.iter().any(|m| m.as_str() == plugin) {
            let near = nearest(plugin, eval.metrics.iter().map(|m| m.as_str())).map(|n| format!("did you mean \"{n}/...\"?"));
            report(key, format!("{plugin:?} is not one of eval.metrics"), near.as_deref());
        }
    }
}

fn plugins(recipe: &Recipe, report: &mut Report<'_>) {
    let used = recipe.plugin_names();
    for (name, plugin) in &recipe.plugins {
        if !used.contains(name) {
            let near = nearest(name.as_str(), used.iter().map(|n| n.as_str()));
            let help = match near {
                Some(n) => format!("did you mean `{n}`?"),
                None => "name it in mix.plugin, template.plugin, eval.metrics, eval.tools or a source's formatter, or remove the section"
                    .to_owned(),
            };
            report(&format!("plugins.{name}"), "nothing in the recipe uses this plugin".to_owned(), Some(&help));
        }
        for (limit, value) in &plugin.limits {
            let fits = match value {
                serde_json::Value::Number(n) => n.as_u64().is_some(),
                serde_json::Value::String(s) => is_amount(s),
                _ => false,
            };
            if !fits {
                report(
                    &format!("plugins.{name}.limits.{limit}"),
                    format!("must be a whole number, at least 0, or a size such as \"64MiB\", not {value}"),
                    None,
                );
            }
        }
        let mut grants = BTreeSet::new();
        for (i, grant) in plugin.grants.iter().enumerate() {
            if grant.trim().is_empty() {
                report(&format!("plugins.{name}.grants[{i}]"), "an empty grant grants nothing".to_owned(), Some("remove it"));
            } else if !grants.insert(grant) {
                report(&format!("plugins.{name}.grants[{i}]"), format!("{grant:?} is granted twice"), Some("remove one of them"));
            }
        }
        for (secret, source) in &plugin.secrets {
            // The text is not repeated: it may be a value that somebody put there. The plugin host reads the rest.
            if !source.starts_with("env:") && !source.starts_with("file:") {
                report(
                    &format!("plugins.{name}.secrets.{secret}"),
                    "a secret's value does not stand in a recipe".to_owned(),
                    Some("say where it is: \"env:NAME\" for an environment variable, or \"file:PATH\""),
                );
            }
        }
    }
}

/// Whether a text is a number with a unit of size or time, such as `64MiB`; which ones a limit takes, the plugin host says.
fn is_amount(text: &str) -> bool {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    digits > 0 && text.bytes().skip(digits).all(|b| b.is_ascii_alphabetic() || b == b' ' || b == b'.' || b.is_ascii_digit())
}
