//! Where the store, keys and credentials are.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::StoreError;

/// The places that a process uses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Components and their index.
    pub store: PathBuf,
    /// The policy `plugins.toml` and the folder `keys`.
    pub config: PathBuf,
    /// Docker's `config.json`, which holds credentials of registries.
    pub docker: Option<PathBuf>,
    /// Certificates, in PEM, of the authorities to trust in place of those that are built in.
    pub authorities: Option<PathBuf>,
}

impl Settings {
    /// As the environment says: `XDG_DATA_HOME`, `XDG_CONFIG_HOME`, `HOME`, `DOCKER_CONFIG`, `SSL_CERT_FILE`.
    ///
    /// # Errors
    /// If it says nothing.
    pub fn from_env() -> Result<Self, StoreError> {
        Self::from(&|name| std::env::var_os(name).filter(|v| !v.is_empty()))
    }

    /// The same, from any environment.
    ///
    /// # Errors
    /// If it says nothing.
    pub fn from(variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, StoreError> {
        let path = |name: &str| variable(name).map(PathBuf::from);
        // Relative paths are ignored, as the XDG Base Directory Specification has it.
        let absolute = |name: &str| path(name).filter(|p| p.is_absolute());
        let home = absolute("HOME");
        let base = |name: &str, usual: &str| {
            absolute(name).or_else(|| home.as_ref().map(|h| h.join(usual))).map(|p| p.join("trainer")).ok_or(StoreError::NoHome)
        };
        Ok(Self {
            store: base("XDG_DATA_HOME", ".local/share")?.join("plugins"),
            config: base("XDG_CONFIG_HOME", ".config")?,
            docker: path("DOCKER_CONFIG").or_else(|| home.as_ref().map(|h| h.join(".docker"))).map(|p| p.join("config.json")),
            authorities: path("SSL_CERT_FILE"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, StoreError> {
        Settings::from(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_environment_says_where_things_are() {
        let plain = settings(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "relative")]).unwrap();
        assert_eq!(plain.store, Path::new("/home/me/.local/share/trainer/plugins"));
        assert_eq!(plain.config, Path::new("/home/me/.config/trainer"));
        assert_eq!(plain.docker.as_deref(), Some(Path::new("/home/me/.docker/config.json")));
        let other = settings(&[("XDG_DATA_HOME", "/d"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/k")]).unwrap();
        assert_eq!((other.store, other.config), ("/d/trainer/plugins".into(), "/c/trainer".into()));
        assert_eq!(other.docker.as_deref(), Some(Path::new("/k/config.json")));
        assert!(matches!(settings(&[("XDG_DATA_HOME", "/d")]), Err(StoreError::NoHome)));
    }
}
