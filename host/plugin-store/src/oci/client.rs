//! The OCI distribution protocol, as far as pulling and pushing one component needs it.

use std::path::PathBuf;

use serde::Deserialize;
use trainer_plugin_host::{ByteSize, Inspection};

use super::artifact::{INDEX, MANIFEST, Manifest, Parts, Pushed};
use super::auth::{self, Challenge, Credentials};
use crate::http::{Answer, Ask, Client, Origin, escape, is_loopback, join};
use crate::reference::{OciReference, is_tag};
use crate::{Digest, StoreError};

/// The largest manifest that registries must take.
const MAX_MANIFEST: ByteSize = ByteSize::mib(4);
const MAX_TOKEN: ByteSize = ByteSize::kib(256);
const MAX_TAGS: ByteSize = ByteSize::mib(4);
/// Pages of tags that are read.
const MAX_PAGES: usize = 50;

/// A component from a registry.
pub(crate) struct Pulled {
    pub(crate) bytes: Vec<u8>,
    pub(crate) signature: Option<String>,
    /// The digest of the manifest.
    pub(crate) manifest: Digest,
}

/// A repository of a registry.
pub(crate) struct Registry<'a> {
    http: &'a Client,
    reference: &'a OciReference,
    base: String,
    credentials: Option<Credentials>,
    docker: Option<PathBuf>,
    /// What to send in `Authorization`, once the registry has said what it wants.
    authorization: Option<String>,
}

impl<'a> Registry<'a> {
    /// The repository that a reference names, with the credentials that Docker's configuration has for its registry.
    pub(crate) fn new(http: &'a Client, reference: &'a OciReference, docker: Option<PathBuf>) -> Result<Self, StoreError> {
        let registry = &reference.registry;
        // Docker Hub's name is not that of its server.
        let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let name = if host.starts_with('[') { host.split(']').next().unwrap_or(host) } else { host.split(':').next().unwrap_or(host) };
        let scheme = if is_loopback(name) { "http" } else { "https" };
        let credentials = auth::find(docker.as_deref(), registry)?;
        let base = format!("{scheme}://{host}/v2/{}", reference.repository);
        Ok(Self { http, reference, base, credentials, docker, authorization: None })
    }

    /// Sends a request, and once more with the proof that the registry asks for.
    fn send(&mut self, ask: &Ask<'_>, writes: bool) -> Result<Answer, StoreError> {
        // What proves who asks is for the registry itself, not for where it says that something is.
        let at_home = Origin::of(ask.url) == Origin::of(&self.base);
        self.may_lead_to(ask.url, ask.what)?;
        let once = |authorization: Option<&str>| self.http.send(&Ask { authorization: authorization.filter(|_| at_home), ..*ask });
        let answer = once(self.authorization.as_deref())?;
        if answer.status != 401 || !at_home {
            return Ok(answer);
        }
        let challenge = answer.header("www-authenticate").and_then(Challenge::parse);
        let proof = match challenge {
            Some(Challenge::Basic) => self.credentials.as_ref().and_then(Credentials::basic),
            Some(Challenge::Bearer { realm, service, scope }) => {
                let actions = if writes { "pull,push" } else { "pull" };
                let scope = scope.unwrap_or_else(|| format!("repository:{}:{actions}", self.reference.repository));
                Some(format!("Bearer {}", self.token(&realm, service.as_deref(), &scope, ask.what)?))
            }
            None => None,
        };
        let Some(proof) = proof else { return Ok(answer) };
        self.authorization = Some(proof);
        let once = |authorization: Option<&str>| self.http.send(&Ask { authorization, ..*ask });
        once(self.authorization.as_deref())
    }

    /// A registry elsewhere leads to nothing on this machine.
    fn may_lead_to(&self, url: &str, what: &str) -> Result<(), StoreError> {
        match (Origin::of(&self.base), Origin::of(url)) {
            (Some(home), Some(to)) if to.is_loopback() && !home.is_loopback() => Err(StoreError::Answer {
                server: home.to_string(),
                what: what.to_owned(),
                message: format!("it leads to {to}, which is this machine"),
            }),
            _ => Ok(()),
        }
    }

    /// A token of the registry's own service.
    fn token(&self, realm: &str, service: Option<&str>, scope: &str, what: &str) -> Result<String, StoreError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let service = service.map(|s| format!("service={}&", escape(s))).unwrap_or_default();
        let query = format!("{service}scope={}", escape(scope));
        let what = format!("a token for {what}");
        self.may_lead_to(realm, &what)?;
        let mut answer = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                let body = format!("grant_type=refresh_token&client_id=trainer&refresh_token={}&{query}", escape(token));
                let headers = [("content-type", "application/x-www-form-urlencoded")];
                self.http.send(&Ask { method: "POST", headers: &headers, body: body.as_bytes(), ..Ask::get(realm, &what) })?
            }
            credentials => {
                let url = format!("{realm}{}{query}", if realm.contains('?') { '&' } else { '?' });
                let basic = credentials.as_ref().and_then(Credentials::basic);
                self.http.send(&Ask { authorization: basic.as_deref(), ..Ask::get(&url, &what) })?
            }
        };
        if !answer.is_ok() {
            return Err(self.refusal(answer, &what));
        }
        let bytes = answer.read(MAX_TOKEN, &what)?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| answer.senseless(&what, "it is not JSON with a token"))?;
        token
            .token
            .or(token.access_token)
            .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or_else(|| answer.senseless(&what, "it holds no token"))
    }

    /// The error of an answer, with where credentials were looked for.
    fn refusal(&self, mut answer: Answer, what: &str) -> StoreError {
        if !matches!(answer.status, 401 | 403) {
            return answer.refusal(what);
        }
        let (registry, config) =
            (&self.reference.registry, self.docker.as_ref().map_or("config.json".to_owned(), |p| p.display().to_string()));
        let help = match self.credentials {
            Some(_) => format!("the credentials for {registry} in {config} do not suffice"),
            None => format!(
                "there are no credentials for {registry} in {config}; `docker login {registry}` or an entry in its `auths` makes them"
            ),
        };
        let message = answer.message();
        StoreError::Access { server: answer.server, what: what.to_owned(), status: answer.status, message, help }
    }

    /// The manifest and its digest.
    fn manifest(&mut self, version: &str) -> Result<(Manifest, Digest), StoreError> {
        let reference = self.reference.to_string();
        let url = format!("{}/manifests/{version}", self.base);
        let accept = format!("{MANIFEST}, {INDEX}");
        let what = format!("the manifest of {reference}");
        let mut answer = self.send(&Ask { headers: &[("accept", &accept)], ..Ask::get(&url, &what) }, false)?;
        if !answer.is_ok() {
            return Err(self.refusal(answer, &what));
        }
        let bytes = answer.read(MAX_MANIFEST, &what)?;
        let found = Digest::of(&bytes);
        if let Ok(expected) = version.parse::<Digest>()
            && expected != found
        {
            let message = format!("its digest is {found}, but {expected} was asked for");
            return Err(answer.senseless(&what, message));
        }
        Ok((Manifest::parse(&bytes, &reference)?, found))
    }

    /// Fetches the component of the reference, or of a manifest that was seen before.
    pub(crate) fn pull(&mut self, at: Option<&Digest>, limit: ByteSize) -> Result<Pulled, StoreError> {
        let reference = self.reference.to_string();
        let version = at.map_or_else(|| self.reference.version(), Digest::to_string);
        let (manifest, found) = self.manifest(&version)?;
        let (digest, size) = manifest.component(&reference)?;
        if size > limit.0 {
            return Err(StoreError::TooLarge { what: reference, limit });
        }
        let url = format!("{}/blobs/{digest}", self.base);
        let what = format!("the component of {reference}");
        let mut answer = self.send(&Ask::get(&url, &what), false)?;
        if !answer.is_ok() {
            return Err(self.refusal(answer, &what));
        }
        let bytes = answer.read(limit, &what)?;
        let content = Digest::of(&bytes);
        if content != digest {
            return Err(answer.senseless(&what, format!("its digest is {content}, but its manifest says {digest}")));
        }
        Ok(Pulled { bytes, signature: manifest.signature().map(str::to_owned), manifest: found })
    }

    /// The digest of the component that the reference means now, without fetching it.
    pub(crate) fn peek(&mut self) -> Result<Digest, StoreError> {
        let version = self.reference.version();
        let (manifest, _) = self.manifest(&version)?;
        Ok(manifest.component(&self.reference.to_string())?.0)
    }

    /// The tags of the repository.
    pub(crate) fn tags(&mut self) -> Result<Vec<String>, StoreError> {
        #[derive(Deserialize)]
        struct List {
            tags: Option<Vec<String>>,
        }
        let what = format!("the tags of {}/{}", self.reference.registry, self.reference.repository);
        let mut url = format!("{}/tags/list", self.base);
        let mut tags = Vec::new();
        for _ in 0..MAX_PAGES {
            let mut answer = self.send(&Ask::get(&url, &what), false)?;
            if !answer.is_ok() {
                return Err(self.refusal(answer, &what));
            }
            let bytes = answer.read(MAX_TAGS, &what)?;
            let list: List = serde_json::from_slice(&bytes).map_err(|_| answer.senseless(&what, "it is no list of tags"))?;
            tags.extend(list.tags.unwrap_or_default().into_iter().filter(|t| is_tag(t)));
            // `Link: </v2/...>; rel="next"`
            let next =
                answer.header("link").filter(|l| l.contains("next")).and_then(|l| Some(l.split_once('<')?.1.split_once('>')?.0.to_owned()));
            match next.and_then(|n| join(&answer.url, &n)) {
                Some(next) => url = next,
                None => break,
            }
        }
        Ok(tags)
    }

    /// Sends a component.
    pub(crate) fn push(&mut self, component: &[u8], about: &Inspection, signature: Option<&str>) -> Result<Pushed, StoreError> {
        let reference = self.reference.to_string();
        let Some(tag) = self.reference.tag.clone().filter(|_| self.reference.digest.is_none()) else {
            return Err(StoreError::Reference { text: reference, message: "a push needs a tag, and no digest".to_owned() });
        };
        let parts = Parts::new(component, about, signature)?;
        let mut sent = self.put_blob(component, &format!("the component to {reference}"))?;
        sent += self.put_blob(&parts.config, &format!("the configuration to {reference}"))?;
        let url = format!("{}/manifests/{tag}", self.base);
        let what = format!("the manifest to {reference}");
        let headers = [("content-type", MANIFEST)];
        let answer = self.send(&Ask { method: "PUT", headers: &headers, body: &parts.manifest, ..Ask::get(&url, &what) }, true)?;
        if !answer.is_ok() {
            return Err(self.refusal(answer, &what));
        }
        let manifest = Digest::of(&parts.manifest);
        match answer.header("docker-content-digest") {
            Some(told) if told.parse::<Digest>().as_ref() != Ok(&manifest) => {
                Err(answer.senseless(&what, format!("it took {} for {manifest}", crate::http::line(told))))
            }
            _ => Ok(Pushed { manifest, sent: sent + parts.manifest.len() as u64 }),
        }
    }

    /// Sends a part, unless the registry has it. How many bytes were sent.
    fn put_blob(&mut self, bytes: &[u8], what: &str) -> Result<u64, StoreError> {
        let digest = Digest::of(bytes);
        let url = format!("{}/blobs/{digest}", self.base);
        let there = self.send(&Ask { method: "HEAD", ..Ask::get(&url, what) }, true)?;
        match there.status {
            200..=299 => return Ok(0),
            // Some registries answer so to names that are not there yet; the upload itself says whether it may be.
            401 | 403 | 404 => {}
            _ => return Err(self.refusal(there, what)),
        }
        let url = format!("{}/blobs/uploads/", self.base);
        let begun = self.send(&Ask { method: "POST", ..Ask::get(&url, what) }, true)?;
        if !begun.is_ok() {
            return Err(self.refusal(begun, what));
        }
        let place = begun.header("location").and_then(|l| join(&begun.url, l));
        let place = place.ok_or_else(|| begun.senseless(what, "it does not say where to upload"))?;
        let url = format!("{place}{}digest={}", if place.contains('?') { '&' } else { '?' }, escape(&digest.to_string()));
        let headers = [("content-type", "application/octet-stream")];
        let done = self.send(&Ask { method: "PUT", headers: &headers, body: bytes, ..Ask::get(&url, what) }, true)?;
        if !done.is_ok() {
            return Err(self.refusal(done, what));
        }
        Ok(bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_elsewhere_leads_to_nothing_here() {
        let http = Client::new(None).unwrap();
        let may = |place: &str, url: &str| {
            let reference = place.parse().unwrap();
            Registry::new(&http, &reference, None).unwrap().may_lead_to(url, "x").is_ok()
        };
        assert!(may("ghcr.io/a/b", "https://auth.example.com/token") && may("127.0.0.1:5000/a", "http://127.0.0.1:5001/token"));
        assert!(!may("ghcr.io/a/b", "http://127.0.0.1:5001/token") && !may("ghcr.io/a/b", "https://[::1]/token"));
        assert!(!may("ghcr.io/a/b", "http://localhost/token"));
    }
}
