//! How to reach registries.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// How to reach registries.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RegistryOptions {
    /// Settings of single registries, by host and port as in the names of images.
    pub hosts: BTreeMap<String, HostOptions>,
    /// Proxies, and places of credentials and certificates.
    pub environment: Environment,
    /// How long to wait, and how often to try.
    pub patience: Patience,
}

/// How to reach one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOptions {
    /// Where to look first when pulling, in order: a host with an optional port and path, or a URL
    /// that begins with `http://` or `https://`.
    pub mirrors: Vec<String>,
    /// Without TLS.
    pub plain_http: bool,
    /// A PEM file with further certificates of authorities to trust.
    pub ca: Option<PathBuf>,
}

/// How long to wait, and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Attempts at a request, or at a part of a blob in which less than a mebibyte came.
    pub attempts: u32,
    /// Time before the second attempt; it doubles for each further one.
    pub first_delay: Duration,
    /// Longest time between two attempts.
    pub most_delay: Duration,
    /// Longest time that a registry may ask to wait (`Retry-After`).
    pub most_retry_after: Duration,
    /// For finding and connecting to a host, TLS included.
    pub connect: Duration,
    /// How long a transfer may stand still, which is to transfer less than 4 KiB; and the time for
    /// an answer to begin.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_delay: Duration::from_millis(500),
            most_delay: Duration::from_secs(10),
            most_retry_after: Duration::from_secs(120),
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(30),
        }
    }
}

/// The variables of the environment that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<&'static str, String>);

/// Their names.
const NAMES: [&str; 15] = [
    "HOME",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "PATH",
];

impl Environment {
    /// Takes the values from `get`; an empty one counts as none.
    #[must_use]
    pub fn new(get: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name| Some((name, get(name).filter(|value| !value.is_empty())?));
        Self(NAMES.into_iter().filter_map(value).collect())
    }

    pub(crate) fn get(&self, name: &'static str) -> Option<&str> {
        debug_assert!(NAMES.contains(&name), "{name} is not read");
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn path(&self, name: &'static str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }
}
