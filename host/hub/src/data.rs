//! Which files of a data set belong to a split: as its card says, or else by the names of its files.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::HubError;
use crate::listing::Listing;
use crate::name::RepoRef;
use crate::snapshot::{Hub, Snapshot, Wanted};
use crate::watch::{Silent, Watch};
use crate::yaml::front_matter;

/// The card.
const CARD: &str = "README.md";
/// The largest card that is read.
const CARD_LIMIT: u64 = 8 << 20;
/// The most files of a split.
const MAX_FILES: usize = 10_000;
/// What data files end in.
const ENDINGS: [&str; 10] = [".parquet", ".pq", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".arrow", ".feather", ".ipc"];
/// Files at the top of a repository that are about it.
const ABOUT: [&str; 3] = ["dataset_infos.json", "dataset_info.json", "configuration.json"];

/// The files of each split of a configuration.
type Splits = BTreeMap<String, Vec<String>>;

impl Hub {
    /// The files of a split, in the order of their names: paths on disk, and what was fetched for them.
    ///
    /// # Errors
    /// See [`HubError`]; a split or configuration that is not there is told with those that are.
    pub fn data_files(&self, repo: &RepoRef, watch: &dyn Watch) -> Result<(Vec<PathBuf>, Snapshot), HubError> {
        let opened = self.open(repo, watch)?;
        let mut card = None;
        if opened.listing.get(CARD).is_some_and(|f| f.size <= CARD_LIMIT) {
            let snapshot = self.fetch(&opened, &Wanted::Paths(vec![CARD.to_owned()]), &Silent)?;
            let path = snapshot.dir.join(CARD);
            card = Some(std::fs::read(&path).map_err(HubError::io("read", &path))?);
        }
        let files = choose(repo, &opened.listing, card.map(|c| String::from_utf8_lossy(&c).into_owned()).as_deref())?;
        let mut snapshot = self.fetch(&opened, &Wanted::Paths(files.clone()), watch)?;
        snapshot.repo.config.clone_from(&repo.config);
        snapshot.repo.split.clone_from(&repo.split);
        Ok((files.iter().map(|f| snapshot.dir.join(f)).collect(), snapshot))
    }
}

/// The files of the split that a name means.
fn choose(repo: &RepoRef, listing: &Listing, card: Option<&str>) -> Result<Vec<String>, HubError> {
    let configs = match card.map(front_matter).transpose() {
        Ok(head) => by_card(repo, head.flatten().as_ref(), listing)?,
        Err(message) => {
            // Data sets without a word about files in their cards have them by their names; a card that does not read is no reason to give up.
            tracing::warn!("{CARD} of {repo}: {message}; its files are told by their names");
            None
        }
    };
    let configs = configs.unwrap_or_else(|| by_name(listing));
    if configs.is_empty() {
        let help = "it holds no .parquet, .jsonl, .json, .csv, .tsv, .arrow or .feather file".to_owned();
        return Err(HubError::NoFile { repo: repo.to_string(), file: "data file".to_owned(), help });
    }
    let names = || configs.keys().cloned().collect::<Vec<_>>();
    let splits = match &repo.config {
        Some(name) => configs.get(name).ok_or_else(|| HubError::NoSplit {
            repo: repo.id.clone(),
            what: "configuration",
            name: name.clone(),
            known: names(),
        })?,
        None => match (configs.get("default"), configs.len(), configs.values().next()) {
            (Some(default), ..) => default,
            (None, 1, Some(only)) => only,
            _ => return Err(HubError::Choose { repo: repo.id.clone(), what: "configuration", key: "config", known: names() }),
        },
    };
    let known = || splits.keys().cloned().collect::<Vec<_>>();
    let files = match &repo.split {
        Some(name) => splits.get(name).ok_or_else(|| HubError::NoSplit {
            repo: repo.id.clone(),
            what: "split",
            name: name.clone(),
            known: known(),
        })?,
        None => match (splits.get("train"), splits.len(), splits.values().next()) {
            (Some(train), ..) => train,
            (None, 1, Some(only)) => only,
            _ => return Err(HubError::Choose { repo: repo.id.clone(), what: "split", key: "split", known: known() }),
        },
    };
    if files.len() > MAX_FILES {
        return Err(HubError::Card {
            repo: repo.to_string(),
            message: format!("the split has {} files, more than {MAX_FILES}", files.len()),
        });
    }
    Ok(files.clone())
}

fn is_data(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, n)| n).to_ascii_lowercase();
    let name = [".gz", ".zst", ".zstd"].iter().find_map(|e| name.strip_suffix(e)).unwrap_or(&name);
    let hidden = path.split('/').any(|p| p.starts_with(['.', '_']));
    !hidden && !ABOUT.contains(&path) && ENDINGS.iter().any(|e| name.ends_with(e))
}

/// Configurations as the card lists them; none if it lists none. The default one is called `default` whatever its name.
fn by_card(repo: &RepoRef, head: Option<&Value>, listing: &Listing) -> Result<Option<BTreeMap<String, Splits>>, HubError> {
    let Some(configs) = head.and_then(|h| h.get("configs")).and_then(Value::as_array) else { return Ok(None) };
    let wrong = |message: String| HubError::Card { repo: repo.to_string(), message };
    let mut all = BTreeMap::new();
    let mut default = None;
    for config in configs {
        let name = config.get("config_name").and_then(Value::as_str).unwrap_or("default");
        let Some(files) = config.get("data_files") else { continue };
        let folder = config.get("data_dir").and_then(Value::as_str).map(|d| d.trim_matches('/'));
        let mut splits = Splits::new();
        let mut add = |split: &str, patterns: &Value| -> Result<(), HubError> {
            let patterns = match patterns {
                Value::String(one) => vec![one.as_str()],
                Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
                _ => return Err(wrong(format!("the path of split {split:?} is no text"))),
            };
            let mut found = Vec::new();
            for pattern in patterns {
                let pattern = pattern.trim_start_matches("./");
                let pattern = folder.map_or_else(|| pattern.to_owned(), |f| format!("{f}/{pattern}"));
                // A pattern that leads elsewhere, such as https://, matches nothing here.
                found.extend(
                    listing.files.iter().map(|f| &f.path).filter(|p| is_data(p) && fits(pattern.as_bytes(), p.as_bytes())).cloned(),
                );
            }
            found.sort();
            found.dedup();
            if found.is_empty() {
                return Err(wrong(format!("no data file matches the path of split {split:?}")));
            }
            splits.insert(split.to_owned(), found);
            Ok(())
        };
        match files {
            Value::Array(list) if list.iter().any(Value::is_object) => {
                for entry in list {
                    let split = entry.get("split").and_then(Value::as_str).unwrap_or("train");
                    // Only a split that is asked for must be there.
                    match add(split, entry.get("path").unwrap_or(&Value::Null)) {
                        Err(error) if repo.split.as_deref().is_none_or(|s| s == split) => return Err(error),
                        _ => {}
                    }
                }
            }
            plain => add("train", plain)?,
        }
        if config.get("default").and_then(Value::as_str) == Some("true") {
            default = Some(splits.clone());
        }
        all.insert(name.to_owned(), splits);
    }
    if let (Some(default), None) = (default, all.get("default")) {
        all.insert("default".to_owned(), default);
    }
    Ok((!all.is_empty()).then_some(all))
}

/// By names: `data/cot-00000-of-00001.parquet` is of split `cot`, `en/train.jsonl` of split `train` of configuration `en`, anything else of `train`.
fn by_name(listing: &Listing) -> BTreeMap<String, Splits> {
    let mut configs: BTreeMap<String, Splits> = BTreeMap::new();
    let files: Vec<&str> = listing.files.iter().map(|f| f.path.as_str()).filter(|p| is_data(p)).collect();
    // Tables, where there are such: text files beside them are often the same rows, or about them.
    let tables = files.iter().any(|p| p.ends_with(".parquet"));
    for path in files.into_iter().filter(|p| !tables || p.ends_with(".parquet")) {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let split =
            sharded(name).or_else(|| keyword(name).or_else(|| keyword(folder.rsplit('/').next().unwrap_or_default())).map(str::to_owned));
        let own = folder.split('/').find(|part| !part.is_empty() && *part != "data" && keyword(part).is_none());
        let splits = configs.entry(own.unwrap_or("default").to_owned()).or_default();
        splits.entry(split.unwrap_or_else(|| "train".to_owned())).or_default().push(path.to_owned());
    }
    configs
}

/// The split in a name such as `cot-00000-of-00001.parquet`.
fn sharded(name: &str) -> Option<String> {
    let stem = name.split_once('.').map_or(name, |(s, _)| s);
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (split, number) = rest.rsplit_once('-')?;
    let digits = |t: &str| t.len() == 5 && t.bytes().all(|b| b.is_ascii_digit());
    (digits(total) && digits(number) && !split.is_empty()).then(|| split.to_owned())
}

/// The split that a word in a name means.
fn keyword(name: &str) -> Option<&'static str> {
    name.split(|c: char| !c.is_ascii_alphanumeric()).find_map(|word| match word.to_ascii_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "validation" | "valid" | "val" | "dev" => Some("validation"),
        "test" | "testing" | "eval" | "evaluation" => Some("test"),
        _ => None,
    })
}

/// Whether a path fits a pattern: `*` stands for anything within a part, `**` for anything, `?` for one byte. Work is bounded by the product of the
/// lengths.
fn fits(pattern: &[u8], path: &[u8]) -> bool {
    // The places in the path that the pattern so far can reach.
    let mut reached = vec![false; path.len() + 1];
    if let Some(first) = reached.first_mut() {
        *first = true;
    }
    let mut rest = pattern;
    while let Some((&byte, after)) = rest.split_first() {
        let (any, deep) = (byte == b'*', byte == b'*' && after.first() == Some(&b'*'));
        rest = if deep { after.get(1..).unwrap_or_default() } else { after };
        // `**/` may stand for no folder at all.
        if deep && rest.first() == Some(&b'/') {
            rest = rest.get(1..).unwrap_or_default();
        }
        let mut next = vec![false; path.len() + 1];
        let mut running = false;
        for (i, at) in next.iter_mut().enumerate() {
            let here = reached.get(i).copied().unwrap_or(false);
            let before = i.checked_sub(1).and_then(|b| Some((*path.get(b)?, reached.get(b).copied()?)));
            if any {
                running = here || running && before.is_some_and(|(c, _)| deep || c != b'/');
                *at = running;
            } else {
                *at = before.is_some_and(|(c, was)| was && (c == byte || byte == b'?' && c != b'/'));
            }
        }
        reached = next;
    }
    reached.last().copied().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::{Digest, RepoFile};

    fn listing(paths: &[&str]) -> Listing {
        let file = |p: &&str| RepoFile { path: (*p).to_owned(), size: 1, digest: Digest::Unknown, blob: None, xet: None };
        Listing::new("x", None, paths.iter().map(file).collect()).unwrap()
    }

    fn chosen(name: &str, paths: &[&str], card: Option<&str>) -> Result<Vec<String>, String> {
        choose(&RepoRef::parse(name).unwrap(), &listing(paths), card).map_err(|e| e.to_string())
    }

    const MATH: [&str; 5] = [
        ".gitattributes",
        "README.md",
        "data/additional_problems-00000-of-00001.parquet",
        "data/cot-00000-of-00002.parquet",
        "data/cot-00001-of-00002.parquet",
    ];

    #[test]
    fn splits_by_the_names_of_files() {
        let cot = ["data/cot-00000-of-00002.parquet", "data/cot-00001-of-00002.parquet"];
        assert_eq!(chosen("hf://datasets/a/b?split=cot", &MATH, None).unwrap(), cot);
        let error = chosen("hf://datasets/a/b?split=tir", &MATH, None).unwrap_err();
        assert_eq!(error, "a/b has no split `tir`; there are additional_problems, cot");
        assert!(chosen("hf://datasets/a/b", &MATH, None).unwrap_err().contains("choose one of additional_problems, cot by ?split=NAME"));
        let plain = ["train.jsonl", "test.jsonl", "val/x.jsonl.gz"];
        assert_eq!(chosen("hf://datasets/a/b", &plain, None).unwrap(), ["train.jsonl"]);
        assert_eq!(chosen("hf://datasets/a/b?split=validation", &plain, None).unwrap(), ["val/x.jsonl.gz"]);
        assert_eq!(chosen("hf://datasets/a/b", &["rows.csv", "dataset_infos.json"], None).unwrap(), ["rows.csv"]);
        let configs = ["en/train-00000-of-00001.parquet", "de/train-00000-of-00001.parquet", "notes.json"];
        assert_eq!(chosen("hf://datasets/a/b?config=de", &configs, None).unwrap(), ["de/train-00000-of-00001.parquet"]);
        assert!(chosen("hf://datasets/a/b", &configs, None).unwrap_err().contains("choose one of de, en by ?config=NAME"));
        assert!(chosen("hf://datasets/a/b?config=fr", &configs, None).unwrap_err().contains("there are de, en"));
        assert!(chosen("hf://datasets/a/b", &["README.md"], None).unwrap_err().contains("no data file"));
    }

    #[test]
    fn splits_by_the_card() {
        let card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: cot\n    path: data/cot-*\n  - split: more\n    path: [\"data/add*\", data/none-*]\n---\n";
        assert_eq!(chosen("hf://datasets/a/b?split=cot", &MATH, Some(card)).unwrap().len(), 2);
        assert_eq!(chosen("hf://datasets/a/b?split=more", &MATH, Some(card)).unwrap(), ["data/additional_problems-00000-of-00001.parquet"]);
        assert!(chosen("hf://datasets/a/b?split=train", &MATH, Some(card)).unwrap_err().contains("there are cot, more"));
        let two = "---\nconfigs:\n- config_name: en\n  data_files: data/cot*\n- config_name: de\n  data_dir: data\n  data_files: \"**/add*.parquet\"\n  default: true\n---\n";
        assert_eq!(chosen("hf://datasets/a/b", &MATH, Some(two)).unwrap(), ["data/additional_problems-00000-of-00001.parquet"]);
        assert_eq!(chosen("hf://datasets/a/b?config=en", &MATH, Some(two)).unwrap().len(), 2);
        let gone = "---\nconfigs:\n- data_files:\n  - split: train\n    path: ../../etc/*\n---\n";
        assert!(chosen("hf://datasets/a/b", &MATH, Some(gone)).unwrap_err().contains("no data file matches"));
        // A card that is broken, or says nothing about files.
        for other in ["---\nlicense: mit\n---\n", "---\na: [\n---\n", "no head"] {
            assert_eq!(chosen("hf://datasets/a/b?split=cot", &MATH, Some(other)).unwrap().len(), 2, "{other}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("data/cot-*", "data/cot-0.parquet", true),
            ("data/*", "data/x/y", false),
            ("data/**", "data/x/y", true),
            ("**/y", "data/x/y", true),
            ("**/y", "y", true),
            ("**", "a/b", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
    }
}
