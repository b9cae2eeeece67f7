//! What a plugin may do beyond computing: requests to servers that the user granted, with secrets that the plugin never sees; and this machine's
//! clock and randomness, where WASI's are asked for.
//!
//! Two keys are needed. The plugin's manifest declares what it needs ([`Need`]); the user grants it ([`Grants`]). What is neither declared
//! nor granted is refused with words that say how to grant it.
//!
//! A request goes from the guest through a [`Transport`]. The plugin's own is the gate: it checks the request and its server, puts secrets
//! in the place of their placeholders, resolves the server's name once, refuses addresses that are not of the public internet, connects to
//! the checked address, and strikes the secrets out of what comes back. A recording lies before the gate, so it holds neither secrets
//! nor their placeholders, and a replay needs neither grants nor a network.

mod address;
mod gate;
mod grant;
mod need;
mod network;
mod recorder;
mod request;
mod secret;
mod server;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use wasmtime::StoreContextMut;
use wasmtime::component::Linker;

pub use address::Network as AddressRange;
pub use grant::{GrantError, Grants};
pub use need::Need;
pub use network::{Network, Resolver, SystemResolver};
pub use recorder::{Answer, Body, Exchange, Recorder};
pub use secret::{SecretGrant, Source as SecretSource};
pub use server::{Method, ServerPattern};

pub(crate) use gate::Gate;

use crate::bindings::http::trainer::http::client::{Error, Request, Response};
use crate::call::{State, hint};
use crate::error::PluginError;
use crate::limits::{Limits, Span};
use crate::manifest::Manifest;
use secret::{Scrubber, Secret};

/// The types of `wit/http`.
pub mod http {
    pub use crate::bindings::http::trainer::http::client::{Error, Header, Request, Response};
}

/// The interface of requests.
pub(crate) const CLIENT: &str = "trainer:http/client@0.1.0";
/// The interface of secrets.
pub(crate) const SECRETS: &str = "trainer:http/secrets@0.1.0";

/// Names of servers and methods that a message lists.
const LISTED: usize = 8;

/// A request on its way from a guest.
pub struct Outgoing<'a> {
    /// The plugin.
    pub plugin: &'a str,
    /// The request as the guest made it, with its placeholders of secrets. It must not be kept or shown: see [`Self::redacted`].
    pub request: &'a Request,
    /// The same with marks such as `[secret KEY]`: equal in every session, fit for recordings.
    pub redacted: Request,
    /// When the host stops waiting.
    pub deadline: Instant,
    /// The limit that the deadline comes from.
    bound: (&'static str, Span),
    limits: &'a Limits,
    capabilities: &'a Capabilities,
}

/// What carries a guest's requests: the gate to the network, or a recording before it.
pub trait Transport: Send + Sync {
    /// Carries one request. What it gives holds no secrets.
    ///
    /// # Errors
    /// As the guest sees them.
    fn fetch(&self, outgoing: &Outgoing<'_>) -> Result<Response, Error>;

    /// Whether answers come from a recording. Then a guest gets placeholders also of secrets that nobody granted.
    fn replays(&self) -> bool {
        false
    }
}

/// What one plugin declares and was granted, made ready.
pub(crate) struct Capabilities {
    plugin: String,
    version: String,
    needs: Vec<Need>,
    grants: Grants,
    described: Vec<String>,
    /// One for each declared secret, granted or not.
    secrets: Vec<Secret>,
    scrubber: Scrubber,
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capabilities").field("needs", &self.needs).field("granted", &self.described).finish_non_exhaustive()
    }
}

/// Reads the needs of a manifest.
pub(crate) fn needs(manifest: &Manifest) -> Result<Vec<Need>, PluginError> {
    let read = |text: &String| match Need::parse(text) {
        Ok(Some(need)) => Ok(need),
        Ok(None) => Err(PluginError::Need { plugin: manifest.name.clone(), version: manifest.version.clone(), need: text.clone() }),
        Err(reason) => Err(PluginError::Manifest { plugin: manifest.name.clone(), reason }),
    };
    manifest.needs.iter().map(read).collect()
}

impl Capabilities {
    /// Holds the grants against the needs and reads the secrets. A secret that cannot be read is no error until it is used.
    pub(crate) fn new(manifest: &Manifest, grants: Grants) -> Result<Self, PluginError> {
        let needs = needs(manifest)?;
        let refuse = |reason: String| PluginError::Grant { plugin: manifest.name.clone(), version: manifest.version.clone(), reason };
        for (granted, need) in [(grants.clock, Need::Clock), (grants.random, Need::Random)] {
            if granted && !needs.contains(&need) {
                return Err(refuse(format!("is granted {need}, but its manifest does not ask for it: remove the grant")));
            }
        }
        let declares_http = needs.iter().any(|n| matches!(n, Need::Http(_)));
        let of_http = |g: &String| g.starts_with("http=") || g.starts_with("network=");
        if let Some(grant) = grants.describe().into_iter().find(of_http).filter(|_| !declares_http) {
            return Err(refuse(format!("is granted {grant}, but its manifest does not ask for http: remove the grant")));
        }
        let declared = |name: &str| needs.iter().any(|n| matches!(n, Need::Secret(own) if own == name));
        if let Some(name) = grants.secrets.keys().find(|name| !declared(name)) {
            let known: Vec<&str> = needs.iter().filter_map(|n| if let Need::Secret(own) = n { Some(own.as_str()) } else { None }).collect();
            let known = if known.is_empty() { "no secret".to_owned() } else { known.join(", ") };
            return Err(refuse(format!("is granted the secret {name}, but its manifest asks for {known}: remove the grant")));
        }
        let host = |e: String| PluginError::Host(e);
        let mut secrets = Vec::new();
        for name in needs.iter().filter_map(|n| if let Need::Secret(name) = n { Some(name) } else { None }) {
            let Some(grant) = grants.secrets.get(name) else {
                secrets.push(Secret::absent(name).map_err(host)?);
                continue;
            };
            let servers = grants.servers_of(grant);
            if let Some(server) = servers.iter().find(|s| s.in_the_clear()) {
                tracing::warn!("plugin `{}`: the secret {name} would be sent to {} without encryption", manifest.name, server.servers());
            }
            let secret = Secret::new(name, grant, servers.to_vec()).map_err(host)?;
            if let Err(why) = secret.in_header() {
                tracing::warn!("plugin `{}` cannot use the secret {name}: {why}", manifest.name);
            }
            secrets.push(secret);
        }
        let scrubber = Scrubber::new(secrets.iter()).map_err(host)?;
        let described = grants.describe();
        Ok(Self { plugin: manifest.name.clone(), version: manifest.version.clone(), needs, grants, described, secrets, scrubber })
    }

    /// What was granted, in its normal form.
    pub(crate) fn described(&self) -> &[String] {
        &self.described
    }

    /// What the manifest declares and nobody granted.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &Need> {
        self.needs.iter().filter(|need| match need {
            Need::Log => false,
            // Any server will do: the settings may name another one than the manifest.
            Need::Http(_) => self.grants.http.is_empty(),
            Need::Secret(name) => !self.grants.secrets.contains_key(name),
            Need::Clock => !self.grants.clock,
            Need::Random => !self.grants.random,
        })
    }

    /// Whether it may know the time.
    pub(crate) fn may_read_clock(&self) -> bool {
        self.grants.clock
    }

    /// Whether it may have random bytes that follow from nothing.
    pub(crate) fn may_draw_random(&self) -> bool {
        self.grants.random
    }

    /// Strikes secrets and placeholders out of a text.
    pub(crate) fn scrub(&self, text: String) -> String {
        self.scrubber.text(text)
    }

    /// The placeholder of a secret, or how to grant it.
    fn placeholder(&self, name: &str, replays: bool) -> Result<String, String> {
        let Some(secret) = self.secrets.iter().find(|s| s.name == name) else {
            return Err(format!(
                "the manifest of plugin `{}` {} does not ask for the secret {}: add \"secret: NAME\" to its needs",
                self.plugin,
                self.version,
                request::Shown(name)
            ));
        };
        if replays {
            return Ok(secret.placeholder.clone());
        }
        if !self.grants.secrets.contains_key(name) {
            let need = Need::Secret(name.to_owned());
            return Err(format!("plugin `{}` has no secret {name}: {}", self.plugin, how(&self.plugin, &need)));
        }
        match secret.in_header() {
            Ok(_) => Ok(secret.placeholder.clone()),
            Err(why) => Err(format!("plugin `{}` cannot use the secret {name}: {why}", self.plugin)),
        }
    }

    /// A request as a recording holds it.
    fn redacted(&self, request: &Request) -> Request {
        let scrub = |text: &String| self.scrubber.text(text.clone());
        Request {
            method: scrub(&request.method),
            url: scrub(&request.url),
            headers: request.headers.iter().map(|h| http::Header { name: scrub(&h.name), value: scrub(&h.value) }).collect(),
            body: request.body.clone().map(|body| self.scrubber.bytes(body)),
        }
    }
}

/// How the user grants a need, in both ways.
fn how(plugin: &str, need: &Need) -> String {
    match (need.flag(plugin), need.recipe(plugin)) {
        (Some(flag), Some(recipe)) => format!("grant it with {flag}, or in the recipe: {recipe}"),
        _ => String::new(),
    }
}

/// What a store keeps for its guest's requests.
pub(crate) struct Connection {
    pub(crate) capabilities: Arc<Capabilities>,
    pub(crate) transport: Arc<dyn Transport>,
    /// Requests in this call.
    pub(crate) requests: u64,
    /// When the call has to be over.
    pub(crate) deadline: Instant,
}

/// The limit that ends a wait.
fn limited(plugin: &str, limit: &str, text: &str, raise_to: &str) -> String {
    format!("plugin `{plugin}`: {text}, its {limit} limit; {}", hint(plugin, limit, raise_to))
}

/// Adds the interfaces of requests and secrets. Which plugins may import them is checked before.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker
        .instance(CLIENT)?
        .func_wrap("fetch", |mut store: StoreContextMut<'_, State>, (request,): (Request,)| Ok((fetch(store.data_mut(), &request),)))?;
    linker.instance(SECRETS)?.func_wrap("placeholder", |store: StoreContextMut<'_, State>, (name,): (String,)| {
        let connection = &store.data().connection;
        Ok((connection.capabilities.placeholder(&name, connection.transport.replays()),))
    })
}

fn fetch(state: &mut State, request: &Request) -> Result<Response, Error> {
    let limits = Arc::clone(&state.limits);
    let connection = &mut state.connection;
    connection.requests = connection.requests.saturating_add(1);
    let capabilities = Arc::clone(&connection.capabilities);
    let plugin = capabilities.plugin.as_str();
    let most = limits.http_requests;
    if connection.requests > most {
        let text = format!("{most} requests in one call are allowed");
        return Err(Error::Limit(limited(plugin, "http_requests", &text, &most.saturating_mul(2).to_string())));
    }
    let (deadline, bound) = match Instant::now().checked_add(limits.http_time.0) {
        Some(own) if own <= connection.deadline => (own, ("http_time", limits.http_time)),
        _ => (connection.deadline, ("deadline", limits.deadline)),
    };
    let redacted = capabilities.redacted(request);
    let outgoing = Outgoing { plugin, request, redacted, deadline, bound, limits: &limits, capabilities: &capabilities };
    connection.transport.fetch(&outgoing)
}
