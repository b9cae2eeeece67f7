//! Paths of files in a repository, which a server or a data card names, before they touch the disk.

/// The longest path.
const MAX_PATH: usize = 1024;
/// The longest part of a path that file systems take.
const MAX_PART: usize = 240;

/// A path that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is refused as the path of a file: {why}")]
pub struct BadPath {
    /// The path.
    pub path: String,
    /// Why.
    pub why: &'static str,
}

/// Checks a path: relative, with `/` between parts, each a plain name on every system that this program runs on.
pub(crate) fn check(path: &str) -> Result<(), BadPath> {
    let refuse = |why| Err(BadPath { path: path.chars().take(200).collect(), why });
    if path.is_empty() || path.len() > MAX_PATH {
        return refuse("it is empty or longer than 1024 bytes");
    }
    if path.chars().any(|c| c.is_control() || c == '\\' || c == ':') {
        return refuse("it holds a control character, a backslash or a colon");
    }
    for part in path.split('/') {
        match part {
            "" => return refuse("it is absolute or has an empty part"),
            "." | ".." => return refuse("it leads through `.` or `..`"),
            part if part.len() > MAX_PART => return refuse("a part of it is longer than 240 bytes"),
            part if part.ends_with(['.', ' ']) => return refuse("a part of it ends with a dot or a space"),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_their_folder() {
        for good in ["config.json", "data/cot-00000-of-00001.parquet", ".gitattributes", "a b/ü.txt", "..x/y..z"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let long = "x".repeat(300);
        for bad in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a//b",
            "a/",
            ".",
            "a/./b",
            "C:\\x",
            "C:x",
            "a\\..\\b",
            "a\nb",
            "a\0b",
            "a\u{85}",
            &long,
            "x/..",
            "con.",
            "a ./b",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_passes_joins_to_a_place_below(path in "[a./\\\\: \\x00-\\x20]{0,12}") {
            if check(&path).is_ok() {
                let base = std::path::Path::new("/base");
                let joined = base.join(&path);
                proptest::prop_assert!(joined.starts_with(base) && joined != base);
                proptest::prop_assert!(joined.components().all(|c| matches!(c, std::path::Component::RootDir | std::path::Component::Normal(_))));
            }
        }
    }
}
