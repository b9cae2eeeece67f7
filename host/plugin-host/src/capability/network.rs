//! Names to addresses, and one exchange with an address that was checked.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{Request, Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver as UreqResolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body, Error};

/// Look-ups at once; the system offers no way to stop one.
const LOOKUPS: usize = 64;
/// Addresses of a server that are tried.
const ADDRESSES: usize = 4;
/// Bytes of an answer's headers.
const HEADERS: usize = 64 << 10;

/// Turns the name of a server into its addresses.
pub trait Resolver: fmt::Debug + Send + Sync {
    /// The addresses of a name, within a time.
    ///
    /// # Errors
    /// There are none, or it took too long ([`io::ErrorKind::TimedOut`]).
    fn resolve(&self, host: &str, within: Duration) -> io::Result<Vec<IpAddr>>;
}

/// What the system says.
#[derive(Debug, Default)]
pub struct SystemResolver {
    running: Arc<AtomicUsize>,
}

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str, within: Duration) -> io::Result<Vec<IpAddr>> {
        if self.running.fetch_add(1, Ordering::Relaxed) >= LOOKUPS {
            self.running.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::other(format!("{LOOKUPS} look-ups of names are already waiting for the system")));
        }
        let (send, receive) = sync_channel(1);
        let (host, running) = (host.to_owned(), Arc::clone(&self.running));
        let lookup = move || {
            let found = (host.as_str(), 0).to_socket_addrs().map(|all| all.map(|a| a.ip()).collect::<Vec<_>>());
            running.fetch_sub(1, Ordering::Relaxed);
            // Nobody waits any more if it took too long.
            let _ = send.send(found);
        };
        if let Err(e) = std::thread::Builder::new().name("plugin-dns".into()).spawn(lookup) {
            self.running.fetch_sub(1, Ordering::Relaxed);
            return Err(e);
        }
        match receive.recv_timeout(within) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the look-up broke off")),
        }
    }
}

/// How plugins' requests reach servers.
#[derive(Clone)]
pub struct Network {
    /// Names to addresses.
    pub resolver: Arc<dyn Resolver>,
    /// Certificates that are trusted in place of the built-in ones, in DER; none: the built-in ones.
    pub roots: Option<Arc<Vec<Vec<u8>>>>,
}

impl Default for Network {
    fn default() -> Self {
        Self { resolver: Arc::new(SystemResolver::default()), roots: None }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

/// Gives the addresses that were checked, whatever the name.
#[derive(Debug)]
struct Checked(Vec<SocketAddr>);

impl UreqResolver for Checked {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut out = self.empty();
        for address in self.0.iter().take(ADDRESSES) {
            out.push(*address);
        }
        if out.is_empty() { Err(Error::HostNotFound) } else { Ok(out) }
    }
}

impl Network {
    /// Sends one request to one of these addresses and gives the head of the answer; its body is read under the same time limit. The name in
    /// the request serves TLS and the header `host` alone. Follows no redirect, uses no proxy.
    pub(crate) fn exchange(
        &self,
        request: Request<Option<Vec<u8>>>,
        addresses: Vec<SocketAddr>,
        within: Duration,
    ) -> Result<Response<Body>, Error> {
        let mut tls = TlsConfig::builder();
        if let Some(roots) = &self.roots {
            let roots: Vec<Certificate<'static>> = roots.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
            tls = tls.root_certs(RootCerts::new_with_certs(&roots));
        }
        let config = Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_global(Some(within))
            .max_response_header_size(HEADERS)
            .max_idle_connections(0)
            .user_agent(concat!("trainer/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            .accept_encoding("identity")
            .tls_config(tls.build())
            .build();
        let agent = Agent::with_parts(config, DefaultConnector::new(), Checked(addresses));
        let (parts, body) = request.into_parts();
        match body {
            Some(body) => agent.run(Request::from_parts(parts, body)),
            None => agent.run(Request::from_parts(parts, ())),
        }
    }
}
