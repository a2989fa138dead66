//! Single requests: connections, trust, redirects.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use ureq::http::{HeaderMap, Method, Request, Response, Uri};
use ureq::tls::Certificate;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body, Proxy, SendBody};

use crate::cancel::{Cancel, Covered};
use crate::error::{RegistryError, clean};
use crate::options::{Environment, HostOptions, Patience};
use crate::proxy::proxy_for;
use crate::resolve::HostResolver;
use crate::tls;

/// Most redirects of one request.
const HOPS: usize = 5;
/// Most bytes of the header of an answer.
const HEADER: usize = 32 << 10;
/// Most bytes of an answer that tells of an error.
const COMPLAINT: u64 = 8 << 10;

/// How long reading such a reason goes on.
const COMPLAINT_TIME: Duration = Duration::from_secs(10);

/// Where a request goes: `https://host:port`, without a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) https: bool,
    /// Host and perhaps port, as in the URL.
    pub(crate) authority: String,
}

/// A URL of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    /// Path and query, with the slash.
    pub(crate) path: String,
}

impl Url {
    /// Reads a whole URL. `None` if it is none of HTTP, or holds a name or password.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        if authority.contains('@') || authority.is_empty() {
            return None;
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Some(Self { origin: Origin { https, authority: authority.to_owned() }, path: path.to_owned() })
    }

    /// Follows a `Location`, which may leave out the scheme, the origin, or the path to its last
    /// name. One that goes up (`../x`) is not followed.
    pub(crate) fn join(&self, location: &str) -> Option<Self> {
        let scheme = if self.origin.https { "https" } else { "http" };
        if location.starts_with("//") {
            return Self::parse(&format!("{scheme}:{location}"));
        }
        if location.starts_with('/') {
            return Self::parse(&format!("{}{location}", self.origin.text()));
        }
        let first = location.split(['/', '?', '#']).next().unwrap_or_default();
        if first.is_empty() || first.contains(':') || first == ".." || first == "." {
            return Self::parse(location);
        }
        let path = self.path.split('?').next().unwrap_or_default();
        let directory = path.rfind('/').map_or("/", |at| &path[..=at]);
        Self::parse(&format!("{}{directory}{location}", self.origin.text()))
    }

    pub(crate) fn text(&self) -> String {
        format!("{}{}", self.origin.text(), self.path)
    }

    /// With one more parameter in the query.
    pub(crate) fn with_parameter(mut self, name: &str, value: &str) -> Self {
        let sign = if self.path.contains('?') { '&' } else { '?' };
        self.path.extend([sign.to_string(), name.to_owned(), "=".to_owned(), percent(value)]);
        self
    }
}

/// A value for a query.
pub(crate) fn percent(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

impl Origin {
    fn text(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }

    pub(crate) fn host(&self) -> &str {
        without_port(&self.authority)
    }

    fn port(&self) -> u16 {
        let rest = &self.authority[self.host().len()..];
        let default = if self.https { 443 } else { 80 };
        rest.strip_prefix(':').and_then(|port| port.parse().ok()).unwrap_or(default)
    }
}

/// A host without its port.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

/// What to send.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: Vec<(&'a str, String)>,
    /// What it is about, for messages.
    pub(crate) what: &'a str,
    /// Its answer is short, and has to be there soon.
    pub(crate) small: bool,
}

/// The body of a request.
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8], &'a str),
    /// A reader of so many bytes.
    Reader(&'a mut dyn std::io::Read, u64),
}

/// Whether another attempt may help.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No.
    Final(RegistryError),
    /// Yes, after the time that the registry named, if it did.
    Again(RegistryError, Option<Duration>),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Final(error)
    }
}

/// Connections to all hosts.
pub(crate) struct Http {
    environment: Environment,
    hosts: std::collections::BTreeMap<String, HostOptions>,
    pub(crate) patience: Patience,
    pub(crate) cancel: Cancel,
    agents: Mutex<HashMap<Origin, (Agent, Covered)>>,
    system: OnceLock<Vec<Certificate<'static>>>,
}

impl Http {
    pub(crate) fn new(
        environment: Environment,
        hosts: std::collections::BTreeMap<String, HostOptions>,
        patience: Patience,
        cancel: Cancel,
    ) -> Self {
        Self { environment, hosts, patience, cancel, agents: Mutex::default(), system: OnceLock::new() }
    }

    /// Connections to one origin, which know its certificates and its proxy.
    fn agent(&self, origin: &Origin) -> Result<Agent, RegistryError> {
        const WHOLE: &str = "nobody panics while holding it";
        if let Some((agent, _)) = self.agents.lock().expect(WHOLE).get(origin) {
            return Ok(agent.clone());
        }
        let stall = Some(self.patience.stall);
        let mut config = Config::builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("nelly/", env!("CARGO_PKG_VERSION")))
            .max_response_header_size(HEADER)
            .max_idle_connections_per_host(8)
            .timeout_resolve(Some(self.patience.connect))
            .timeout_connect(Some(self.patience.connect))
            .timeout_recv_response(stall)
            .timeout_per_read(stall)
            .timeout_per_write(stall)
            .proxy(self.proxy(origin)?);
        if origin.https {
            config = config.tls_config(tls::config(self.authorities(origin)?));
        }
        let resolver = HostResolver { cancel: self.cancel.clone(), most: self.patience.connect };
        let agent = Agent::with_parts(config.build(), DefaultConnector::default(), resolver);
        let covered = self.cancel.covers(&agent);
        Ok(self.agents.lock().expect(WHOLE).entry(origin.clone()).or_insert((agent, covered)).0.clone())
    }

    fn proxy(&self, origin: &Origin) -> Result<Option<Proxy>, RegistryError> {
        let url = proxy_for(&self.environment, origin.https, origin.host(), origin.port());
        let Some(url) = url else { return Ok(None) };
        Proxy::new(url).map(Some).map_err(|_secret| {
            let problem =
                "the proxy in the environment (HTTPS_PROXY, HTTP_PROXY or ALL_PROXY) is not http://HOST:PORT";
            RegistryError::Connect { host: origin.authority.clone(), problem: problem.to_owned() }
        })
    }

    fn authorities(&self, origin: &Origin) -> Result<Vec<Certificate<'static>>, RegistryError> {
        let configured = self.hosts.get(&origin.authority).and_then(|host| host.ca.as_deref());
        let mut all = tls::of_host(&origin.authority, configured)?;
        if self.system.get().is_none() {
            // Another thread may have been faster.
            let _ = self.system.set(tls::system(&self.environment)?);
        }
        all.extend(self.system.get().into_iter().flatten().cloned());
        if all.is_empty() {
            let problem =
                "this host has no certificates of authorities to check it with; install the package \
                 ca-certificates, or set SSL_CERT_FILE"
                    .to_owned();
            return Err(RegistryError::Connect { host: origin.authority.clone(), problem });
        }
        Ok(all)
    }

    /// Sends a request once, without following redirects.
    pub(crate) fn send(
        &self,
        call: Call<'_>,
        body: Payload<'_>,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, Failure> {
        let Call { method, url, headers, what, small } = call;
        if self.cancel.is_cancelled() {
            return Err(RegistryError::Cancelled.into());
        }
        let agent = self.agent(&url.origin)?;
        let mut request = Request::builder().method(method).uri(url.text());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        match body {
            Payload::None => self.run(&agent, request.body(SendBody::none()), what, &url, small),
            Payload::Bytes(mut bytes, media_type) => {
                request = request.header(CONTENT_TYPE, media_type).header(CONTENT_LENGTH, bytes.len());
                self.run(&agent, request.body(SendBody::from_reader(&mut bytes)), what, &url, small)
            }
            Payload::Reader(reader, size) => {
                request =
                    request.header(CONTENT_TYPE, "application/octet-stream").header(CONTENT_LENGTH, size);
                self.run(&agent, request.body(SendBody::from_reader(reader)), what, &url, small)
            }
        }
    }

    fn run(
        &self,
        agent: &Agent,
        request: ureq::http::Result<Request<SendBody<'_>>>,
        what: &str,
        url: &Url,
        small: bool,
    ) -> Result<Response<Body>, Failure> {
        let request = request.map_err(|error| self.protocol(url, what, error.to_string()))?;
        let request = if small {
            agent.configure_request(request).timeout_recv_body(Some(self.patience.stall)).build()
        } else {
            request
        };
        agent.run(request).map_err(|error| self.failed(&url.origin, what, error))
    }

    pub(crate) fn protocol(&self, url: &Url, what: &str, problem: impl Into<String>) -> RegistryError {
        RegistryError::Protocol {
            host: url.origin.authority.clone(),
            what: what.to_owned(),
            problem: clean(&problem.into()),
        }
    }

    /// Sorts what went wrong before an answer came.
    pub(crate) fn failed(&self, origin: &Origin, what: &str, error: ureq::Error) -> Failure {
        if self.cancel.is_cancelled() {
            return RegistryError::Cancelled.into();
        }
        let host = origin.authority.clone();
        let connect = |problem: String| RegistryError::Connect { host: host.clone(), problem };
        match error {
            ureq::Error::HostNotFound => connect("the host is not known".to_owned()).into(),
            ureq::Error::Rustls(error) => tls_failure(&host, &error),
            ureq::Error::Tls(problem) => connect(problem.to_owned()).into(),
            ureq::Error::Io(error) => {
                if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                    return tls_failure(&host, error);
                }
                let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
                let error = connect(clean(&error.to_string()));
                if refused { error.into() } else { Failure::Again(error, None) }
            }
            ureq::Error::Timeout(which) => {
                let problem = format!("no answer in time ({which})");
                Failure::Again(connect(problem), None)
            }
            ureq::Error::ConnectionFailed => {
                Failure::Again(connect("the connection failed".to_owned()), None)
            }
            ureq::Error::ConnectProxyFailed(why) => {
                Failure::Again(connect(format!("the proxy refuses: {}", clean(&why))), None)
            }
            other => {
                let problem = clean(&other.to_string());
                RegistryError::Protocol { host, what: what.to_owned(), problem }.into()
            }
        }
    }

    /// Sends a request without a body and follows its redirects; `authorization` goes to the first
    /// origin alone.
    pub(crate) fn follow(
        &self,
        call: &Call<'_>,
        authorization: Option<&str>,
    ) -> Result<(Url, Response<Body>), Failure> {
        let secret = authorization.map(|value| (AUTHORIZATION.as_str(), value));
        self.follow_within(call, secret, &|_| Ok(()))
    }

    /// Sends a request without a body and follows its redirects, as far as `may_go` has no reason
    /// against it; the header `secret` goes to the first origin alone.
    pub(crate) fn follow_within(
        &self,
        call: &Call<'_>,
        secret: Option<(&str, &str)>,
        may_go: &dyn Fn(&Url) -> Result<(), String>,
    ) -> Result<(Url, Response<Body>), Failure> {
        let mut url = call.url.clone();
        for _ in 0..=HOPS {
            let mut headers = call.headers.clone();
            if let Some((name, value)) = secret.filter(|_| url.origin == call.url.origin) {
                headers.push((name, value.to_owned()));
            }
            let next = Call {
                method: call.method.clone(),
                url: url.clone(),
                headers,
                what: call.what,
                small: call.small,
            };
            let answer = self.send(next, Payload::None, None)?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((url, answer));
            }
            let location = header(answer.headers(), LOCATION.as_str()).unwrap_or_default();
            let target = url.join(location).ok_or_else(|| {
                let problem = format!("it redirects to `{location}`, which is no URL to follow");
                self.protocol(&url, call.what, problem)
            })?;
            if url.origin.https && !target.origin.https {
                let problem = format!("it redirects to {}, which is not encrypted", target.origin.text());
                return Err(self.protocol(&url, call.what, problem).into());
            }
            may_go(&target).map_err(|why| {
                let problem = format!("it redirects to {}: {why}", target.origin.text());
                self.protocol(&url, call.what, problem)
            })?;
            url = target;
        }
        let problem = format!("it redirects more than {HOPS} times");
        Err(self.protocol(&call.url, call.what, problem).into())
    }

    /// The bytes of a small answer.
    pub(crate) fn bytes(
        &self,
        answer: Response<Body>,
        most: u64,
        url: &Url,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let told = answer.body().content_length();
        if told.is_some_and(|told| told > most) {
            let problem = format!("it has more than {most} bytes");
            return Err(self.protocol(url, what, problem).into());
        }
        match answer.into_body().into_with_config().limit(most).read_to_vec() {
            Ok(bytes) => Ok(bytes),
            Err(ureq::Error::BodyExceedsLimit(_)) => {
                let problem = format!("it has more than {most} bytes");
                Err(self.protocol(url, what, problem).into())
            }
            Err(error) => Err(self.failed(&url.origin, what, error)),
        }
    }

    /// The registry's reason, for a message: its words in brackets, or nothing.
    pub(crate) fn complaint(&self, answer: Response<Body>) -> String {
        let mut body = answer.into_body().into_reader().take(COMPLAINT);
        let (mut text, mut chunk) = (Vec::new(), [0; 1024]);
        let begun = Instant::now();
        // A registry that sends a byte now and then is not heard to its end.
        while begun.elapsed() < COMPLAINT_TIME
            && let Ok(count @ 1..) = body.read(&mut chunk)
        {
            text.extend_from_slice(&chunk[..count]);
        }
        let told: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let first = &told["errors"][0];
        let word = [&first["message"], &first["code"], &told["message"], &told["error"], &told["details"]]
            .into_iter()
            .find_map(|word| word.as_str().map(clean).filter(|word| !word.is_empty()));
        word.map_or_else(String::new, |word| format!(" ({word})"))
    }
}

/// Another attempt does not make a certificate good.
fn tls_failure(host: &str, error: &rustls::Error) -> Failure {
    let problem = match error {
        rustls::Error::InvalidCertificate(why) => format!(
            "its certificate is not trusted ({}); name the authority with `ca` for this registry in config.toml, or in \
             /etc/docker/certs.d/{host}/ca.crt",
            clean(&format!("{why:?}"))
        ),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS; if it is meant to, `plain_http = true` for this registry in config.toml goes \
             without"
                .to_owned()
        }
        other => clean(&format!("TLS failed: {other}")),
    };
    RegistryError::Connect { host: host.to_owned(), problem }.into()
}

/// A header's value as text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The first byte and the whole size of `bytes FIRST-LAST/SIZE`, if it goes to the end.
pub(crate) fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |word: &str| word.trim().parse::<u64>().ok();
    let (first, last, size) = (number(first)?, number(last)?, number(size)?);
    (first <= last && last.checked_add(1) == Some(size)).then_some((first, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_end_with_their_client_whoever_can_still_end_them() {
        let cancel = Cancel::new();
        let make = || {
            Http::new(
                Environment::default(),
                std::collections::BTreeMap::new(),
                Patience::default(),
                cancel.clone(),
            )
        };
        let (one, other) = (make(), make());
        for authority in ["r.example", "r.example", "s.example"] {
            for http in [&one, &other] {
                http.agent(&Origin { https: false, authority: authority.into() }).unwrap();
            }
        }
        drop(one);
        assert!(!cancel.is_alone());
        drop(other);
        assert!(cancel.is_alone());
    }

    #[test]
    fn locations_that_are_followed() {
        let base = Url::parse("https://r.example:5000/v2/a/blobs/uploads/").unwrap();
        for (location, want) in [
            ("/x?y=z", Some("https://r.example:5000/x?y=z")),
            ("https://cdn.example/b", Some("https://cdn.example/b")),
            ("http://cdn.example", Some("http://cdn.example/")),
            ("//cdn.example/b", Some("https://cdn.example/b")),
            ("b?c=d", Some("https://r.example:5000/v2/a/blobs/uploads/b?c=d")),
            ("../b", None),
            ("", None),
            ("ftp://cdn.example/b", None),
            ("file:///etc/passwd", None),
            ("https://u:p@cdn.example/b", None),
            ("https://cdn.example/a b", None),
        ] {
            assert_eq!(base.join(location).map(|url| url.text()).as_deref(), want, "{location}");
        }
        let url = base.clone().with_parameter("digest", "sha256:ab").with_parameter("x", "a b&c");
        assert!(url.text().ends_with("/uploads/?digest=sha256:ab&x=a%20b%26c"), "{}", url.text());
        assert_eq!(Url::parse("http://[::1]:5000/").unwrap().origin.port(), 5000);
        assert_eq!(Url::parse("http://[::1]/").unwrap().origin.host(), "[::1]");
        assert_eq!(base.origin.host(), "r.example");
    }
}
