//! Which servers a grant means: scheme, host, port and methods.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ureq::http::Uri;

use super::address::Network;

/// The longest host name of the domain name system.
const MAX_HOST: usize = 253;

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As in an address.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// Reads.
    Get,
    /// Reads no more than the headers.
    Head,
    /// Sends.
    Post,
    /// Replaces.
    Put,
    /// Changes.
    Patch,
    /// Removes.
    Delete,
}

impl Method {
    /// All that can be granted.
    pub const ALL: [Self; 6] = [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete];
    /// Those of a grant that names none.
    const READING: [Self; 2] = [Self::Get, Self::Head];

    /// As in a request.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// The method of this name, in capitals as HTTP has it.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }

    /// Whether it only reads, so that a redirect may be followed.
    pub(crate) fn reads(self) -> bool {
        Self::READING.contains(&self)
    }
}

/// A server, as an address names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) scheme: Scheme,
    /// In lower case; an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Server {
    /// The server of an absolute address.
    pub(crate) fn of(uri: &Uri) -> Result<Self, String> {
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some(other) => return Err(format!("the scheme `{other}` is neither http nor https")),
            None => return Err("it is no absolute address; it begins with http:// or https://".to_owned()),
        };
        let authority = uri.authority().ok_or("it names no server")?;
        if authority.as_str().contains('@') {
            return Err("user information before an `@` is not taken; use a header and a secret".to_owned());
        }
        let host = authority.host().to_ascii_lowercase();
        let port = match authority.as_str().get(authority.host().len()..) {
            None | Some("") => scheme.port(),
            Some(_) => authority.port_u16().filter(|p| *p != 0).ok_or("its port is no number from 1 to 65535")?,
        };
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().map_err(|_| format!("`{host}` is no IPv6 address"))?.to_string(),
            None => host_name(&host).map(|()| host)?,
        };
        Ok(Self { scheme, host, port })
    }

    /// The host as an address, if it is written as one.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme;
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "{}://{host}", scheme.name())?;
        if self.port == scheme.port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// Checks a host's name: labels of letters, digits, `-` and `_`.
fn host_name(host: &str) -> Result<(), String> {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if host.len() <= MAX_HOST && host.split('.').all(label) {
        return Ok(());
    }
    Err(format!("{host:?} is no host name (names beyond ASCII are written in their xn-- form)"))
}

/// Which hosts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    /// This one: a name, or an address.
    Exact(String),
    /// Every name that ends in this, which begins with a dot: `.example.com`.
    Below(String),
}

/// Which servers a grant means, and with which methods: `https://api.example.com`, `https://*.example.com:8443`, `GET,POST https://api.example.com`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerPattern {
    scheme: Scheme,
    host: Host,
    port: u16,
    /// Sorted, each once.
    methods: Vec<Method>,
}

impl ServerPattern {
    /// Whether it means this server, whatever the method.
    pub(crate) fn names(&self, server: &Server) -> bool {
        let host = match &self.host {
            Host::Exact(name) => *name == server.host,
            // An address has no names below it.
            Host::Below(suffix) => server.host.len() > suffix.len() && server.host.ends_with(suffix) && server.address().is_none(),
        };
        host && self.scheme == server.scheme && self.port == server.port
    }

    /// Whether it grants a method.
    pub(crate) fn allows(&self, method: Method) -> bool {
        self.methods.contains(&method)
    }

    /// Whether it means everything that another one means, whatever the method.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (Host::Exact(a), Host::Exact(b)) => a == b,
            (Host::Below(suffix), Host::Exact(name)) => name.len() > suffix.len() && name.ends_with(suffix),
            (Host::Below(a), Host::Below(b)) => b.ends_with(a),
            (Host::Exact(_), Host::Below(_)) => false,
        };
        host && self.scheme == other.scheme && self.port == other.port
    }

    /// The addresses that naming the host grants: itself, where it is an address, and loopback for `localhost`.
    pub(crate) fn grants_address(&self, address: IpAddr) -> bool {
        match &self.host {
            Host::Exact(name) if name == "localhost" => address.is_loopback(),
            Host::Exact(name) => name.parse().is_ok_and(|own: IpAddr| Network::single(own).contains(address)),
            Host::Below(_) => false,
        }
    }

    /// Whether a secret would go to it in the clear, beyond this machine.
    pub(crate) fn in_the_clear(&self) -> bool {
        let here = matches!(&self.host, Host::Exact(n) if n == "localhost" || n.parse().is_ok_and(|a: IpAddr| a.is_loopback()));
        self.scheme == Scheme::Http && !here
    }

    /// Without methods: the servers alone.
    pub(crate) fn servers(&self) -> String {
        let host = match &self.host {
            Host::Exact(name) => name.clone(),
            Host::Below(suffix) => format!("*{suffix}"),
        };
        Server { scheme: self.scheme, host, port: self.port }.to_string()
    }
}

impl fmt::Display for ServerPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.methods != Method::READING {
            write!(f, "{} ", self.methods.iter().map(|m| m.name()).collect::<Vec<_>>().join(","))?;
        }
        f.write_str(&self.servers())
    }
}

impl FromStr for ServerPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("`{text}`: {why}; write it like https://api.example.com or \"GET,POST https://*.example.com:8443\"");
        let (methods, address) = text.trim().rsplit_once(' ').map_or((None, text.trim()), |(m, a)| (Some(m), a));
        let mut methods = match methods {
            None => Method::READING.to_vec(),
            Some(list) => list
                .split(',')
                .map(|name| {
                    let known = || Method::ALL.map(Method::name).join(", ");
                    Method::of(name.trim()).ok_or_else(|| wrong(&format!("`{}` is no method; there are {}", name.trim(), known())))
                })
                .collect::<Result<Vec<_>, _>>()?,
        };
        methods.sort_unstable();
        methods.dedup();
        // A star is no part of a host name, so the rest is read without it.
        let (below, address) = match address.split_once("://*.") {
            Some((scheme, rest)) => (true, format!("{scheme}://{rest}")),
            None => (false, address.to_owned()),
        };
        if address.contains('*') {
            return Err(wrong("a `*` stands only for the first part of a host name, as in https://*.example.com"));
        }
        let uri: Uri = address.parse().map_err(|_| wrong("it is no address"))?;
        let server = Server::of(&uri).map_err(|e| wrong(&e))?;
        if uri.path_and_query().is_some_and(|p| p.as_str() != "/" && !p.as_str().is_empty()) || address.contains('#') {
            return Err(wrong("a grant names a server, not a path on it"));
        }
        if !below {
            return Ok(Self { scheme: server.scheme, host: Host::Exact(server.host), port: server.port, methods });
        }
        if server.address().is_some() || !server.host.contains('.') {
            return Err(wrong("a `*` needs a domain of at least two parts after it"));
        }
        Ok(Self { scheme: server.scheme, host: Host::Below(format!(".{}", server.host)), port: server.port, methods })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server(text: &str) -> Result<Server, String> {
        Server::of(&text.parse().map_err(|_| "no URI".to_owned())?)
    }

    #[test]
    fn patterns_name_servers() {
        let names = |pattern: &str, address: &str| pattern.parse::<ServerPattern>().unwrap().names(&server(address).unwrap());
        for (pattern, yes, no) in [
            ("https://api.example.com", "https://api.example.com/data?q=1", "https://api.example.com.evil.net/"),
            ("https://api.example.com", "https://API.Example.COM:443/", "http://api.example.com/"),
            ("https://api.example.com", "https://api.example.com", "https://api.example.com:444/"),
            ("https://api.example.com/", "https://api.example.com", "https://example.com/"),
            ("https://*.example.com", "https://a.b.example.com/", "https://example.com/"),
            ("https://*.example.com", "https://a.example.com/", "https://aexample.com/"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/x", "http://127.0.0.1/x"),
            ("http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080/x", "http://[::2]:8080/x"),
            ("http://localhost", "http://LOCALHOST/", "http://localhost.example.com/"),
        ] {
            assert!(names(pattern, yes), "{pattern} {yes}");
            assert!(!names(pattern, no), "{pattern} {no}");
        }
    }

    #[test]
    fn addresses_that_are_refused() {
        for (address, part) in [
            ("file:///etc/passwd", "URI"),
            ("/etc/passwd", "no absolute address"),
            ("ftp://example.com/", "neither http nor https"),
            ("https://user@example.com/", "user information"),
            ("https://api.example.com@evil.net/", "user information"),
            ("https://example.com:0/", "port"),
            ("https://example.com:70000/", "port"),
            ("https://example.com./", "no host name"),
            ("https://-x.com/", "no host name"),
            ("https://exa%6dple.com/", "URI"),
            ("https://ex*mple.com/", "no host name"),
            ("https://[::zz]/", "IPv6"),
        ] {
            let error = server(address).map(|s| s.to_string()).unwrap_err();
            assert!(error.contains(part) || part == "URI", "{address}: {error}");
        }
    }

    #[test]
    fn patterns_that_are_refused() {
        for (text, part) in [
            ("", "no address"),
            ("api.example.com", "no absolute address"),
            ("https://", "no address"),
            ("https://*", "a `*`"),
            ("https://*.com", "at least two parts"),
            ("https://*.1.2.3.4", "at least two parts"),
            ("https://a.*.com", "a `*`"),
            ("*://example.com", "a `*`"),
            ("https://example.com/path", "not a path"),
            ("https://example.com/?x", "not a path"),
            ("https://example.com/#x", "not a path"),
            ("https://me@example.com", "user information"),
            ("gopher://example.com", "neither http nor https"),
            ("BREW https://example.com", "`BREW` is no method"),
            ("get https://example.com", "`get` is no method"),
            ("GET, https://example.com", "is no method"),
        ] {
            let error = text.parse::<ServerPattern>().map(|p| p.to_string()).unwrap_err();
            assert!(error.contains(part) && error.contains("write it like"), "{text}: {error}");
        }
    }

    #[test]
    fn methods_and_cover() {
        let pattern = |text: &str| text.parse::<ServerPattern>().unwrap();
        assert!(pattern("https://a.bc").allows(Method::Get) && !pattern("https://a.bc").allows(Method::Post));
        let post = pattern("POST, GET,POST https://a.bc");
        assert!(post.allows(Method::Post) && post.allows(Method::Get) && !post.allows(Method::Head));
        assert_eq!(post.to_string(), "GET,POST https://a.bc");
        assert_eq!(pattern("GET,HEAD https://A.BC:443/").to_string(), "https://a.bc");
        for (wide, narrow, yes) in [
            ("https://*.a.bc", "https://x.a.bc", true),
            ("https://*.a.bc", "https://*.x.a.bc", true),
            ("https://*.x.a.bc", "https://*.a.bc", false),
            ("https://x.a.bc", "https://*.a.bc", false),
            ("https://a.bc", "https://a.bc", true),
            ("https://a.bc", "http://a.bc", false),
            ("https://a.bc", "https://a.bc:8443", false),
        ] {
            assert_eq!(pattern(wide).covers(&pattern(narrow)), yes, "{wide} {narrow}");
        }
        assert!(pattern("http://localhost:1").grants_address("::1".parse().unwrap()));
        assert!(pattern("http://10.0.0.1").grants_address("10.0.0.1".parse().unwrap()));
        assert!(!pattern("http://10.0.0.1").grants_address("10.0.0.2".parse().unwrap()));
        assert!(!pattern("https://intra.example.com").grants_address("10.0.0.1".parse().unwrap()));
        assert!(pattern("http://a.bc").in_the_clear() && !pattern("http://127.0.0.1:8").in_the_clear());
    }

    proptest! {
        #[test]
        fn a_pattern_reads_back_as_written_and_names_nothing_beside_it(
            label in "[a-z0-9]{1,8}", domain in "[a-z]{1,8}\\.[a-z]{2,5}", port in 1_u16.., below: bool, other in "[a-z0-9.]{1,12}"
        ) {
            let host = if below { format!("*.{domain}") } else { format!("{label}.{domain}") };
            let text = format!("https://{host}:{port}");
            let pattern: ServerPattern = text.parse().unwrap();
            prop_assert_eq!(pattern.to_string().parse::<ServerPattern>().unwrap(), pattern.clone());
            let own = Server { scheme: Scheme::Https, host: format!("{label}.{domain}"), port };
            prop_assert!(pattern.names(&own));
            let longer = Server { host: format!("{label}.{domain}.{other}"), ..own.clone() };
            let suffix = format!(".{domain}");
            prop_assert!(!pattern.names(&longer) || longer.host.ends_with(&suffix));
            let before = Server { host: format!("{label}{domain}"), ..own };
            prop_assert!(!pattern.names(&before));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<ServerPattern>();
            let _ = server(&text);
        }
    }
}
