//! What the user demands of plugins: `CONFIG/plugins.toml`.

use std::path::Path;

use serde::Deserialize;

use crate::{StoreError, files};

const MAX_POLICY: u64 = 1 << 20;

/// The user's policy. Unknown keys are errors: a demand that is not understood must not be taken for none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Plugins that are not official are only installed and used with a good signature by a trusted key.
    pub require_signatures: bool,
}

impl Policy {
    /// Reads the file; where there is none, nothing is demanded.
    ///
    /// # Errors
    /// It does not read.
    pub fn load(path: &Path) -> Result<Self, StoreError> {
        let Some(text) = files::read_text(path, MAX_POLICY)? else { return Ok(Self::default()) };
        toml::from_str(&text).map_err(|e| StoreError::Broken { path: path.to_owned(), message: e.message().to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_or_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plugins.toml");
        assert_eq!(Policy::load(&path).unwrap(), Policy::default());
        std::fs::write(&path, "require_signatures = true\n").unwrap();
        assert!(Policy::load(&path).unwrap().require_signatures);
        for bad in ["require_signature = true", "require_signatures = 1", "[[", "x"] {
            std::fs::write(&path, bad).unwrap();
            assert!(Policy::load(&path).unwrap_err().to_string().contains("plugins.toml"), "{bad}");
        }
    }
}
