//! Grants: what a user lets a plugin do beyond computing.

use std::collections::BTreeMap;

use super::address::Network;
use super::secret::{SecretGrant, is_name};
use super::server::ServerPattern;

/// A grant that does not read, or cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GrantError {
    message: String,
}

impl GrantError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// What one plugin is granted. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Servers and methods.
    pub(crate) http: Vec<ServerPattern>,
    /// Addresses that a server's name may have although they are not of the public internet.
    pub(crate) networks: Vec<Network>,
    /// Whether `wasi:clocks` tells this machine's time.
    pub(crate) clock: bool,
    /// Whether `wasi:random` gives this machine's random bytes.
    pub(crate) random: bool,
    /// Secrets by name.
    pub(crate) secrets: BTreeMap<String, SecretGrant>,
}

impl Grants {
    /// Reads what a recipe says of a plugin: `grants`, each `http=SERVER`, `network=ADDRESSES`, `clock` or `random`, and `secrets`, a source by name.
    ///
    /// # Errors
    /// A grant that does not read, or a secret for servers that are not granted or not clear.
    pub fn parse<'a>(
        grants: impl IntoIterator<Item = &'a str>,
        secrets: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, GrantError> {
        let mut out = Self::default();
        for grant in grants {
            match grant.split_once('=').map(|(kind, value)| (kind.trim(), value)) {
                Some(("http", server)) => out.http.push(server.parse().map_err(|e| GrantError::new(format!("http={e}")))?),
                Some(("network", range)) => {
                    out.networks.push(range.trim().parse().map_err(|e: String| GrantError::new(format!("network={e}")))?);
                }
                None if grant.trim() == "clock" => out.clock = true,
                None if grant.trim() == "random" => out.random = true,
                _ => {
                    return Err(GrantError::new(format!(
                        "`{grant}` is no grant; there are http=SERVER, such as http=https://api.example.com, network=ADDRESSES, such as \
                         network=10.0.0.0/8, clock and random; secrets are named apart, as KEY=env:NAME"
                    )));
                }
            }
        }
        out.http.sort_unstable();
        out.http.dedup();
        out.networks.sort_unstable();
        out.networks.dedup();
        for (name, source) in secrets {
            if !is_name(name) {
                return Err(GrantError::new(format!("{name:?} is no name of a secret (1 to 64 letters, digits and `_`, no digit first)")));
            }
            let grant: SecretGrant = source.parse().map_err(|e| GrantError::new(format!("secret {name}: {e}")))?;
            for server in &grant.to {
                if !out.http.iter().any(|granted| granted.covers(server)) {
                    let server = server.servers();
                    return Err(GrantError::new(format!("secret {name} is for {server}, which is not granted: add http={server}")));
                }
            }
            if grant.to.is_empty() && out.http.len() > 1 {
                let servers = out.http.iter().map(ServerPattern::servers).collect::<Vec<_>>().join(" and ");
                return Err(GrantError::new(format!(
                    "secret {name} could go to {servers}: say to which, as in {name}={}:... to {}",
                    grant.source.kind(),
                    out.http.first().map(ServerPattern::servers).unwrap_or_default()
                )));
            }
            out.secrets.insert(name.to_owned(), grant);
        }
        Ok(out)
    }

    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        self.http.is_empty() && self.networks.is_empty() && !self.clock && !self.random && self.secrets.is_empty()
    }

    /// The servers that may be sent a secret.
    pub(crate) fn servers_of<'a>(&'a self, secret: &'a SecretGrant) -> &'a [ServerPattern] {
        // Without servers of its own it goes to the only one that is granted; `parse` has seen to it that there is but one.
        if secret.to.is_empty() { &self.http } else { &secret.to }
    }

    /// Every grant in its normal form, sorted: for locks, reports and banners. A secret by its name, the kind of its source and its servers.
    pub fn describe(&self) -> Vec<String> {
        let http = self.http.iter().map(|p| format!("http={p}"));
        let networks = self.networks.iter().map(|n| format!("network={n}"));
        let own = [(self.clock, "clock"), (self.random, "random")].into_iter().filter(|(is, _)| *is).map(|(_, name)| name.to_owned());
        let secrets = self.secrets.iter().map(|(name, grant)| {
            let servers = self.servers_of(grant).iter().map(ServerPattern::servers).collect::<Vec<_>>().join(", ");
            let to = if servers.is_empty() { String::new() } else { format!(" to {servers}") };
            format!("secret={name} from {}{to}", grant.source.kind())
        });
        http.chain(networks).chain(own).chain(secrets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(grants: &[&str], secrets: &[(&str, &str)]) -> Result<Grants, String> {
        Grants::parse(grants.iter().copied(), secrets.iter().copied()).map_err(|e| e.to_string())
    }

    #[test]
    fn grants_are_described_without_values_and_places() {
        let grants = parse(
            &[
                "random",
                "network=10.0.0.0/8",
                "clock",
                "http=POST,GET https://b.example.com",
                "http=https://A.example.com/",
                "http=https://a.example.com",
            ],
            &[("KEY", "env:SOME_VARIABLE to https://a.example.com"), ("TOKEN", "file:/run/secrets/t to https://b.example.com")],
        )
        .unwrap();
        assert_eq!(
            grants.describe(),
            [
                "http=https://a.example.com",
                "http=GET,POST https://b.example.com",
                "network=10.0.0.0/8",
                "clock",
                "random",
                "secret=KEY from env to https://a.example.com",
                "secret=TOKEN from file to https://b.example.com",
            ]
        );
        assert!(parse(&[], &[]).unwrap().is_empty());
        let one = parse(&["http=https://a.bc"], &[("KEY", "env:V")]).unwrap();
        assert_eq!(one.describe(), ["http=https://a.bc", "secret=KEY from env to https://a.bc"]);
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        for (grants, secrets, golden) in [
            (
                &["files"][..],
                &[][..],
                "`files` is no grant; there are http=SERVER, such as http=https://api.example.com, network=ADDRESSES, such as \
                 network=10.0.0.0/8, clock and random; secrets are named apart, as KEY=env:NAME",
            ),
            (
                &["http=ftp://a.bc"],
                &[],
                "http=`ftp://a.bc`: the scheme `ftp` is neither http nor https; write it like https://api.example.com or \"GET,POST \
                 https://*.example.com:8443\"",
            ),
            (&["network=10.0.0.1/8"], &[], "network=`10.0.0.1/8` has bits set beyond its prefix of 8; name the first address of the range"),
            (
                &["http=https://a.bc"],
                &[("KEY", "my-very-secret-value")],
                "secret KEY: a secret is named by where its value is, env:NAME or file:PATH, with ` to https://HOST` after it where the \
                 plugin has several servers; the value itself never stands in a recipe or a command line",
            ),
            (
                &["http=https://a.bc"],
                &[("KEY", "env:V to https://d.ef")],
                "secret KEY is for https://d.ef, which is not granted: add http=https://d.ef",
            ),
            (
                &["http=https://a.bc", "http=https://d.ef"],
                &[("KEY", "env:V")],
                "secret KEY could go to https://a.bc and https://d.ef: say to which, as in KEY=env:... to https://a.bc",
            ),
            (&[], &[("1KEY", "env:V")], "\"1KEY\" is no name of a secret (1 to 64 letters, digits and `_`, no digit first)"),
        ] {
            assert_eq!(parse(grants, secrets).unwrap_err(), golden);
        }
    }
}
