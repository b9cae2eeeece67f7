//! From the paths of a recipe to a sorted list of data files.

use std::path::{Path, PathBuf};

use super::spec::Format;
use crate::error::DataError;

/// The most files of a source.
const MAX_FILES: usize = 100_000;
/// How deep folders are searched.
const MAX_DEPTH: usize = 32;

/// The files that `paths` name: files as they are, folders with all their data files, patterns with what they match; within one path
/// sorted by name, so that the order does not depend on the file system.
pub(crate) fn resolve(source: &str, paths: &[String], format: Option<Format>) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    if paths.is_empty() {
        return Err(refuse(source, "it names no path".to_owned()));
    }
    for text in paths {
        let path = Path::new(text);
        let before = files.len();
        // A file whose name holds a star wins over the pattern.
        if path.is_dir() {
            folder(source, path, format, &mut files, 0)?;
            if files.len() == before {
                return Err(refuse(
                    source,
                    format!("folder {text} holds no .jsonl, .json, .csv, .tsv (plain, .gz or .zst), .parquet, .arrow or .feather file"),
                ));
            }
        } else if path.exists() {
            files.push(path.to_owned());
        } else if text.contains(['*', '?']) {
            pattern(source, path, format, &mut files)?;
            if files.len() == before {
                return Err(refuse(source, format!("no data file matches {text}")));
            }
        } else {
            let error = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(DataError::Io { source_name: source.to_owned(), path: path.to_owned(), error });
        }
        if let Some(part) = files.get_mut(before..) {
            part.sort();
        }
    }
    Ok(files)
}

fn refuse(source: &str, message: String) -> DataError {
    DataError::Source { source_name: source.to_owned(), message }
}

fn is_data(path: &Path, format: Option<Format>) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy());
    let Some(name) = name.filter(|n| !n.starts_with(['.', '_'])) else { return false };
    match (Format::of_name(&name), format) {
        (Some(found), Some(wanted)) => found == wanted,
        (found, _) => found.is_some(),
    }
}

fn entries(source: &str, dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let failed = |error| DataError::Io { source_name: source.to_owned(), path: dir.to_owned(), error };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        found.push(entry.map_err(failed)?.path());
        if found.len() > MAX_FILES {
            return Err(refuse(
                source,
                format!("folder {} holds more than {MAX_FILES} entries; join the files or name fewer", dir.display()),
            ));
        }
    }
    Ok(found)
}

fn folder(source: &str, dir: &Path, format: Option<Format>, files: &mut Vec<PathBuf>, depth: usize) -> Result<(), DataError> {
    if depth > MAX_DEPTH {
        return Err(refuse(source, format!("folder {} lies more than {MAX_DEPTH} deep (a loop of links?)", dir.display())));
    }
    for path in entries(source, dir)? {
        let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with(['.', '_']));
        if path.is_dir() && !hidden {
            folder(source, &path, format, files, depth + 1)?;
        } else if path.is_file() && is_data(&path, format) {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(refuse(source, format!("more than {MAX_FILES} files; join them or name fewer")));
        }
    }
    Ok(())
}

fn pattern(source: &str, path: &Path, format: Option<Format>, files: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let parts: Vec<_> = path.components().collect();
    let plain = parts.iter().take_while(|p| !p.as_os_str().to_string_lossy().contains(['*', '?'])).count();
    let (base, rest) = parts.split_at_checked(plain).unwrap_or_default();
    let base: PathBuf = base.iter().collect();
    let rest: Vec<String> = rest.iter().map(|p| p.as_os_str().to_string_lossy().into_owned()).collect();
    let base = if base.as_os_str().is_empty() { PathBuf::from(".") } else { base };
    expand(source, &base, &rest, format, files, 0)?;
    // `**` may reach a file in more than one way.
    files.sort();
    files.dedup();
    Ok(())
}

/// What the parts of a pattern match below a folder. Hidden folders are only entered by name.
fn expand(
    source: &str,
    dir: &Path,
    parts: &[String],
    format: Option<Format>,
    files: &mut Vec<PathBuf>,
    depth: usize,
) -> Result<(), DataError> {
    if depth > MAX_DEPTH {
        return Err(refuse(source, format!("folder {} lies more than {MAX_DEPTH} deep (a loop of links?)", dir.display())));
    }
    let Some((part, rest)) = parts.split_first() else { return Ok(()) };
    if part == "**" {
        expand(source, dir, rest, format, files, depth)?;
    } else if !part.contains(['*', '?']) && !rest.is_empty() {
        let below = dir.join(part);
        return if below.is_dir() { expand(source, &below, rest, format, files, depth + 1) } else { Ok(()) };
    }
    for found in entries(source, dir)? {
        let Some(name) = found.file_name().map(|n| n.to_string_lossy().into_owned()) else { continue };
        let hidden = name.starts_with(['.', '_']);
        match (part.as_str(), rest.is_empty()) {
            ("**", _) if found.is_dir() && !hidden => expand(source, &found, parts, format, files, depth + 1)?,
            // `**` at the end means every data file below.
            ("**", true) if found.is_file() && is_data(&found, format) => files.push(found),
            ("**", _) => {}
            (_, false) if found.is_dir() && !hidden && matches(part.as_bytes(), name.as_bytes()) => {
                expand(source, &found, rest, format, files, depth + 1)?;
            }
            // With the format given, the pattern alone decides.
            (_, true) if found.is_file() && matches(part.as_bytes(), name.as_bytes()) && (format.is_some() || is_data(&found, format)) => {
                files.push(found);
            }
            _ => {}
        }
        if files.len() > MAX_FILES {
            return Err(refuse(source, format!("more than {MAX_FILES} files; join them or name fewer")));
        }
    }
    Ok(())
}

/// `*` stands for any bytes, `?` for one byte. Linear in the product of the lengths at worst: on a mismatch only the last star is moved.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(b'?') => (p, n) = (p + 1, n + 1),
            Some(c) if Some(c) == name.get(n) => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    (p, n) = (at + 1, from + 1);
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*.jsonl", "a.jsonl", true),
            ("*.jsonl", "a.json", false),
            ("a?c*", "abcd", true),
            ("*a*b", "xaxbxab", true),
            ("*a*b", "xaxbxa", false),
            ("?", "", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn folders_patterns_and_their_errors() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n).display().to_string();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.jsonl", "a.parquet", "sub/c.csv", "notes.txt", ".hidden.jsonl", "_SUCCESS.json"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let names = |paths: &[String], format| {
            resolve("s", paths, format).map(|f| f.iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[at("")], None).unwrap(), ["a.parquet", "b.jsonl", "c.csv"]);
        assert_eq!(names(&[at("")], Some(Format::Jsonl)).unwrap(), ["b.jsonl"]);
        assert_eq!(names(&[at("*.jsonl"), at("a.parquet")], None).unwrap(), ["b.jsonl", "a.parquet"]);
        assert_eq!(names(&[at("*.txt")], Some(Format::Jsonl)).unwrap(), ["notes.txt"]);
        assert!(names(&[at("*.zip")], None).unwrap_err().to_string().contains("no data file matches"));
        assert!(names(&[at("none.jsonl")], None).unwrap_err().to_string().contains("none.jsonl"));
        std::fs::create_dir_all(dir.path().join("deep/er/.git")).unwrap();
        for name in ["deep/b.jsonl.gz", "deep/er/d.jsonl", "deep/er/.git/e.jsonl"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(names(&[at("*/*.csv")], None).unwrap(), ["c.csv"]);
        assert_eq!(names(&[at("d*/er/*")], None).unwrap(), ["d.jsonl"]);
        assert_eq!(names(&[at("**/*.jsonl")], None).unwrap(), ["b.jsonl", "d.jsonl"]);
        assert_eq!(names(&[at("deep/**")], None).unwrap(), ["b.jsonl.gz", "d.jsonl"]);
        assert_eq!(names(&[at("**/**/d.*")], None).unwrap(), ["d.jsonl"]);
        assert!(names(&[at("sub/*/x")], None).unwrap_err().to_string().contains("no data file matches"));
        assert!(names(&[], None).is_err());
    }
}
