//! What a server of files wants to see, and where it is.

use std::fmt;

use crate::credentials::Credentials;
use crate::error::{RegistryError, clean};
use crate::http::Url;
use crate::options::RegistryOptions;
use crate::resolve::is_loopback;

/// What to show a server. It is never sent to another one, nor without TLS to another machine.
#[derive(Clone, PartialEq, Eq)]
pub enum FileCredentials {
    /// A token, as `Authorization: Bearer`.
    Bearer(String),
    /// A name and a password, as `Authorization: Basic`.
    Basic {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// A header of the server's own, such as `PRIVATE-TOKEN`.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
}

impl fmt::Debug for FileCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never a secret in a log.
        f.write_str(match self {
            Self::Bearer(_) => "FileCredentials::Bearer(..)",
            Self::Basic { .. } => "FileCredentials::Basic(..)",
            Self::Header { .. } => "FileCredentials::Header(..)",
        })
    }
}

impl FileCredentials {
    /// Reads `bearer TOKEN`, `basic USER:PASSWORD` or `header NAME: VALUE`. `None` if it is none of
    /// them; an error must not repeat the text, which may be a secret all the same.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.trim_matches(['\n', '\r', ' ', '\t']).split_once(' ')?;
        let rest = rest.trim_start();
        let one = match kind {
            "bearer" => Self::Bearer(rest.to_owned()),
            "basic" => {
                let (user, password) = rest.split_once(':')?;
                Self::Basic { user: user.to_owned(), password: password.to_owned() }
            }
            "header" => {
                let (name, value) = rest.split_once(':')?;
                Self::Header { name: name.trim().to_owned(), value: value.trim().to_owned() }
            }
            _ => return None,
        };
        one.is_sendable().then_some(one)
    }

    /// Whether it can stand in a header of HTTP.
    fn is_sendable(&self) -> bool {
        let word = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        match self {
            Self::Bearer(token) => word(token),
            // Base 64 makes it one, whatever it holds.
            Self::Basic { user, .. } => !user.is_empty(),
            Self::Header { name, value } => {
                let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
                !name.is_empty()
                    && name.bytes().all(letter)
                    && !value.is_empty()
                    && value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
            }
        }
    }

    /// The header that shows it.
    pub(super) fn header(&self) -> (&str, String) {
        const AUTHORIZATION: &str = "authorization";
        match self {
            Self::Bearer(token) => (AUTHORIZATION, format!("Bearer {token}")),
            Self::Basic { user, password } => {
                (AUTHORIZATION, format!("Basic {}", Credentials::encode(user, password)))
            }
            Self::Header { name, value } => (name, value.clone()),
        }
    }
}

/// The URL of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUrl(pub(super) Url);

impl FileUrl {
    /// Reads a URL, which begins with `https://`, or with `http://` if it is on this machine or the
    /// settings of its host allow it (`plain_http`).
    ///
    /// # Errors
    /// [`RegistryError::Name`].
    pub fn parse(text: &str, options: &RegistryOptions) -> Result<Self, RegistryError> {
        // What comes behind the question mark may be a secret.
        let shown = text.split(['?', '#']).next().unwrap_or_default();
        let bad = |problem| RegistryError::Name { word: clean(shown), problem };
        if shown.split('/').nth(2).is_some_and(|authority| authority.contains('@')) {
            // It would be in the list of processes, too.
            let word = "the URL".to_owned();
            let problem = "has a user or a password in it: give them as credentials";
            return Err(RegistryError::Name { word, problem });
        }
        let whole = text.split('#').next().unwrap_or_default();
        let url = Url::parse(whole).ok_or_else(|| bad("is no URL of a file, such as https://HOST/PATH"))?;
        is_private(&url, options)
            .map_err(|()| bad("is not encrypted, and not on this machine: write https://"))?;
        Ok(Self(url))
    }

    /// The host, and its port if it is not the usual one.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.origin.authority
    }

    /// The whole URL, which may have secrets behind the question mark.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.text()
    }

    /// The last name of its path, if that may be the name of a file; `None` if not.
    #[must_use]
    pub fn file_name(&self) -> Option<&str> {
        let path = self.0.path.split('?').next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default();
        let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+~".contains(&byte);
        let good = !name.is_empty() && name.len() <= 128 && !name.starts_with(['.', '-']);
        Some(name).filter(|name| good && name.bytes().all(letter))
    }

    /// For messages: without what may be secret.
    #[must_use]
    pub fn shown(&self) -> String {
        let text = self.0.text();
        clean(text.split('?').next().unwrap_or_default())
    }
}

/// Whether nobody on the way reads what is asked for there, as far as settings do not allow that.
pub(super) fn is_private(url: &Url, options: &RegistryOptions) -> Result<(), ()> {
    let plain = || options.hosts.get(&url.origin.authority).is_some_and(|host| host.plain_http);
    (url.origin.https || is_loopback(url.origin.host()) || plain()).then_some(()).ok_or(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_files() {
        let read = |text: &str| FileUrl::parse(text, &RegistryOptions::default());
        for (text, name) in [
            ("https://h.example/a/debian.qcow2", Some("debian.qcow2")),
            ("https://h.example/a/debian.qcow2?token=/x#y", Some("debian.qcow2")),
            ("http://127.0.0.1:8000/x.raw", Some("x.raw")),
            ("http://localhost/", None),
            ("https://h.example/..", None),
            ("https://h.example/.ssh", None),
            ("https://h.example/a%2fb", None),
        ] {
            assert_eq!(read(text).unwrap().file_name(), name, "{text}");
        }
        for (text, needle) in [
            ("http://h.example/x", "not encrypted"),
            ("ftp://h.example/x", "no URL"),
            ("x", "no URL"),
            ("https://", "no URL"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
        let error = read("https://me:secret@h.example/x").unwrap_err().to_string();
        assert!(error.contains("password") && !error.contains("secret"), "{error}");
        assert_eq!(read("https://h.example/x?sig=secret").unwrap().shown(), "https://h.example/x");
    }

    #[test]
    fn credentials_in_words() {
        let header = |text| {
            FileCredentials::parse(text).map(|one| {
                assert!(!format!("{one:?}").contains("secret"));
                let (name, value) = one.header();
                format!("{name}: {value}")
            })
        };
        for (text, want) in [
            ("bearer secret\n", Some("authorization: Bearer secret")),
            ("basic me:secret", Some("authorization: Basic bWU6c2VjcmV0")),
            ("header PRIVATE-TOKEN: secret", Some("PRIVATE-TOKEN: secret")),
            ("bearer", None),
            ("bearer a b", None),
            ("bearer a\nb", None),
            ("basic me", None),
            ("header A B: c", None),
            ("header A: c\nHost: x", None),
            ("token secret", None),
            ("", None),
        ] {
            assert_eq!(header(text).as_deref(), want, "{text:?}");
        }
    }
}
