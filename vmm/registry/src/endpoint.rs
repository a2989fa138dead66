//! Where the repositories of a registry are: its own host and its mirrors.

use crate::error::{RegistryError, clean};
use crate::http::{Origin, Url, without_port};
use crate::options::RegistryOptions;
use crate::resolve::is_loopback;

/// The host of Docker Hub in names, and where its registry is.
const HUB: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    domain: String,
    path: String,
}

impl Place {
    /// The repository `path` of the registry `domain`, as an image's name gives them:
    /// `docker.io` and `library/alpine`.
    ///
    /// # Errors
    /// [`RegistryError::Name`]: one of them has characters that none has.
    pub fn new(domain: &str, path: &str) -> Result<Self, RegistryError> {
        let bad = |word: &str, problem| RegistryError::Name { word: clean(word), problem };
        let host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
        if !domain.chars().all(host)
            || !domain.contains(|c: char| c.is_ascii_alphanumeric())
            || domain.len() > 300
        {
            return Err(bad(domain, "is not the host of a registry, such as docker.io or localhost:5000"));
        }
        let part = |part: &str| {
            let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            part.starts_with(letter) && part.chars().all(|c| letter(c) || matches!(c, '.' | '_' | '-'))
        };
        if !path.split('/').all(part) || path.len() > 300 {
            return Err(bad(path, "is not the path of a repository, such as library/alpine"));
        }
        Ok(Self { domain: domain.to_owned(), path: path.to_owned() })
    }

    /// The registry's host.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A server that has the repositories of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port of its URL.
    pub(crate) authority: String,
    /// A path before the repositories', with a slash at its end, or nothing.
    prefix: String,
    /// Whether it is known to speak TLS, or not to; `None`: it is found out.
    pub(crate) https: Option<bool>,
    /// The registry whose credentials it gets.
    pub(crate) credentials: String,
}

impl Endpoint {
    /// The servers to ask for the repositories of `domain`, in order; the registry is the last.
    pub(crate) fn all(options: &RegistryOptions, domain: &str) -> Result<Vec<Self>, RegistryError> {
        let mirrors = options.hosts.get(domain).map(|host| &host.mirrors[..]).unwrap_or_default();
        let mut all =
            mirrors.iter().map(|mirror| Self::mirror(options, mirror)).collect::<Result<Vec<_>, _>>()?;
        all.push(Self::own(options, domain));
        Ok(all)
    }

    /// The registry itself.
    pub(crate) fn own(options: &RegistryOptions, domain: &str) -> Self {
        let authority = if domain == HUB { HUB_HOST } else { domain };
        let https = Self::scheme(options, domain);
        Self { authority: authority.to_owned(), prefix: String::new(), https, credentials: domain.to_owned() }
    }

    fn mirror(options: &RegistryOptions, word: &str) -> Result<Self, RegistryError> {
        let bad = || RegistryError::Name {
            word: clean(word),
            problem: "is not a mirror: write HOST[:PORT][/PATH], or a URL that begins with http:// or https://",
        };
        let whole = if word.contains("://") { word.to_owned() } else { format!("https://{word}") };
        let url = Url::parse(&whole).filter(|url| !url.path.contains('?')).ok_or_else(bad)?;
        let authority = url.origin.authority;
        let https =
            if word.contains("://") { Some(url.origin.https) } else { Self::scheme(options, &authority) };
        let prefix = url.path.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { credentials: authority.clone(), authority, prefix, https })
    }

    /// Docker's rule: everything is encrypted but what is configured not to be; a host that is this
    /// machine may be either.
    fn scheme(options: &RegistryOptions, host: &str) -> Option<bool> {
        if options.hosts.get(host).is_some_and(|host| host.plain_http) {
            return Some(false);
        }
        (!is_loopback(without_port(host))).then_some(true)
    }

    /// The server for a message.
    pub(crate) fn shown(&self) -> String {
        format!("{}/{}", self.authority, self.prefix).trim_end_matches('/').to_owned()
    }

    /// The repository's path on this server.
    pub(crate) fn repository(&self, place: &Place) -> String {
        format!("{}{}", self.prefix, place.path())
    }

    /// A URL of the server, whose scheme is known.
    pub(crate) fn url(&self, https: bool, rest: &str) -> Url {
        let origin = Origin { https, authority: self.authority.clone() };
        Url { origin, path: format!("/v2/{rest}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::HostOptions;

    #[test]
    fn places_by_their_names() {
        for (domain, path, good) in [
            ("docker.io", "library/alpine", true),
            ("[::1]:5000", "a", true),
            ("h", "a/b__c/d-e.f", true),
            ("..", "a", false),
            ("a/b", "a", false),
            ("h", "../x", false),
            ("h", "a//b", false),
            ("h", "A", false),
            ("h", "a?b", false),
            ("h@x", "a", false),
            ("", "a", false),
            ("h", "", false),
        ] {
            assert_eq!(Place::new(domain, path).is_ok(), good, "{domain}/{path}");
        }
    }

    #[test]
    fn mirrors_come_first_and_schemes_follow_the_configuration() {
        let mut options = RegistryOptions::default();
        let host = |mirrors: &[&str], plain_http| HostOptions {
            mirrors: mirrors.iter().map(|&mirror| mirror.to_owned()).collect(),
            plain_http,
            ca: None,
        };
        let mirrors = ["m.example/hub", "http://n.example:5000/", "localhost:5001", "plain.example"];
        options.hosts.insert("docker.io".to_owned(), host(&mirrors, false));
        options.hosts.insert("plain.example".to_owned(), host(&[], true));
        let place = Place::new("docker.io", "library/alpine").unwrap();
        let shown: Vec<_> = Endpoint::all(&options, "docker.io")
            .unwrap()
            .into_iter()
            .map(|endpoint| {
                format!("{:?} {} {}", endpoint.https, endpoint.authority, endpoint.repository(&place))
            })
            .collect();
        assert_eq!(
            shown,
            [
                "Some(true) m.example hub/library/alpine",
                "Some(false) n.example:5000 library/alpine",
                "None localhost:5001 library/alpine",
                "Some(false) plain.example library/alpine",
                "Some(true) registry-1.docker.io library/alpine",
            ]
        );
        options.hosts.insert("bad.example".to_owned(), host(&["ftp://x"], false));
        assert!(Endpoint::all(&options, "bad.example").unwrap_err().to_string().contains("ftp://x"));
    }
}
