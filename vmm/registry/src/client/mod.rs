//! The protocol of registries (OCI distribution specification).

mod access;
mod get;
mod put;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Mutex;
use std::time::SystemTime;

use ureq::http::Response;
use ureq::http::header::RETRY_AFTER;
use ureq::{Body, http};

pub use self::get::RawManifest;
use crate::cancel::Cancel;
use crate::credentials::CredentialStore;
use crate::endpoint::{Endpoint, Place};
use crate::error::RegistryError;
use crate::http::{Call, Failure, Http, Origin, Url, header};
use crate::options::RegistryOptions;
use crate::retry;
use crate::warnings::Warnings;

const WHOLE: &str = "nobody panics while holding it";

/// Talks with registries. Blocking, for any number of threads.
pub struct Client {
    pub(crate) options: RegistryOptions,
    pub(crate) http: Http,
    credentials: CredentialStore,
    warnings: Warnings,
    /// What to show a server for a repository and what is done there.
    authorizations: Mutex<HashMap<(Origin, String), String>>,
    /// Whether servers that were not known to speak TLS do.
    schemes: Mutex<HashMap<String, bool>>,
    /// Mirrors that failed for a repository since its last pull began, each with that.
    failed_mirrors: Mutex<HashSet<(String, Place)>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What is done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Pull,
    Push,
}

impl Action {
    fn scope(self, repository: &str) -> String {
        let actions = match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        };
        format!("repository:{repository}:{actions}")
    }
}

/// A request to a repository.
struct Ask<'a> {
    endpoint: &'a Endpoint,
    repository: &'a str,
    action: Action,
    what: &'a str,
}

impl Client {
    /// A client, whose transfers `cancel` ends. Nothing is read or sent yet.
    #[must_use]
    pub fn new(options: RegistryOptions, cancel: Cancel) -> Self {
        let warnings = Warnings::default();
        let credentials =
            CredentialStore::new(&options.environment, cancel.clone()).warning(warnings.clone());
        let http = Http::new(options.environment.clone(), options.hosts.clone(), options.patience, cancel);
        let (authorizations, schemes) = (Mutex::default(), Mutex::default());
        let failed_mirrors = Mutex::default();
        Self { options, http, credentials, warnings, authorizations, schemes, failed_mirrors }
    }

    /// What ends its transfers.
    #[must_use]
    pub fn cancel(&self) -> &Cancel {
        &self.http.cancel
    }

    /// Where its credentials are.
    #[must_use]
    pub fn credentials(&self) -> &CredentialStore {
        &self.credentials
    }

    /// What its user should know since the last call although nothing failed of it: mirrors that
    /// did not work, a credential helper that is not installed. One line each, without control
    /// characters of a server.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// Begins a pull: every mirror is asked again.
    fn try_mirrors_again(&self, place: &Place) {
        self.failed_mirrors.lock().expect(WHOLE).retain(|(_, failed)| failed != place);
    }

    /// Does something with the first server that has it; if none has, the registry's own error
    /// counts. A mirror that failed is not asked again in the same pull: its time limits would be
    /// waited for at each blob.
    fn first<T>(
        &self,
        place: &Place,
        mut with: impl FnMut(&Endpoint) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let endpoints = Endpoint::all(&self.options, place.domain())?;
        let (own, mirrors) = endpoints.split_last().expect("the registry itself is there");
        for mirror in mirrors {
            let failed = (mirror.shown(), place.clone());
            if self.failed_mirrors.lock().expect(WHOLE).contains(&failed) {
                continue;
            }
            match with(mirror) {
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => {
                    self.warnings.add(&mirror.shown(), || {
                        let (mirror, domain) = (mirror.shown(), place.domain());
                        format!("the mirror {mirror} did not help, so {domain} itself or its next mirror is asked: {error}")
                    });
                    self.failed_mirrors.lock().expect(WHOLE).insert(failed);
                }
                done => return done,
            }
        }
        with(own)
    }

    /// Tries as often as is worth it.
    fn attempts<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, RegistryError> {
        let mut number = 1;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error, _)) if number >= self.options.patience.attempts => {
                    return Err(error);
                }
                Err(Failure::Again(_, after)) => self.pause(number, after)?,
            }
            number += 1;
        }
    }

    pub(crate) fn pause(&self, number: u32, after: Option<std::time::Duration>) -> Result<(), RegistryError> {
        let delay = after.unwrap_or_else(|| retry::delay(&self.options.patience, number));
        if self.http.cancel.wait(delay) { Err(RegistryError::Cancelled) } else { Ok(()) }
    }

    /// Whether the server speaks TLS.
    fn is_https(&self, endpoint: &Endpoint) -> Result<bool, Failure> {
        if let Some(known) = endpoint.https {
            return Ok(known);
        }
        if let Some(found) = self.schemes.lock().expect(WHOLE).get(&endpoint.authority) {
            return Ok(*found);
        }
        let call = Call {
            method: http::Method::GET,
            url: endpoint.url(true, ""),
            headers: Vec::new(),
            what: "the first request",
            small: true,
        };
        // What is no TLS at all is a registry without; a bad certificate is an error.
        let https = match self.http.follow(&call, None) {
            Ok(_) => true,
            Err(Failure::Final(RegistryError::Connect { problem, .. }))
                if problem.contains("does not speak TLS") =>
            {
                false
            }
            Err(Failure::Again(RegistryError::Connect { .. }, _)) => false,
            Err(error) => return Err(error),
        };
        self.schemes.lock().expect(WHOLE).insert(endpoint.authority.clone(), https);
        Ok(https)
    }

    /// The URL of something of a repository.
    fn url(&self, ask: &Ask<'_>, rest: &str) -> Result<Url, Failure> {
        let https = self.is_https(ask.endpoint)?;
        Ok(ask.endpoint.url(https, &format!("{}/{rest}", ask.repository)))
    }

    /// Sends a request without a body, with what the server wants to see, and gives what it
    /// answers if that is a success.
    fn ask(
        &self,
        ask: &Ask<'_>,
        method: http::Method,
        url: Url,
        headers: Vec<(&'static str, String)>,
        small: bool,
    ) -> Result<(Url, Response<Body>), Failure> {
        let call = Call { method, url, headers, what: ask.what, small };
        let known = self.authorization(&call.url.origin, ask);
        let (mut url, mut answer) = self.http.follow(&call, known.as_deref())?;
        if answer.status() == 401 && url.origin == call.url.origin {
            let Some(fresh) = self.authorize(ask, &call.url, &answer, known.as_deref())? else {
                return Err(self.refusal(ask, &url, answer));
            };
            (url, answer) = self.http.follow(&call, Some(&fresh))?;
        }
        if answer.status().is_success() { Ok((url, answer)) } else { Err(self.refusal(ask, &url, answer)) }
    }

    /// What a status that is no success means.
    fn refusal(&self, ask: &Ask<'_>, url: &Url, answer: Response<Body>) -> Failure {
        let host = if url.origin.authority == ask.endpoint.authority {
            ask.endpoint.credentials.clone()
        } else {
            url.origin.authority.clone()
        };
        let (status, what) = (answer.status().as_u16(), ask.what.to_owned());
        let wait = header(answer.headers(), RETRY_AFTER.as_str())
            .and_then(|value| retry::retry_after(value, SystemTime::now()));
        let detail = self.http.complaint(answer);
        match status {
            401 | 403 => RegistryError::Denied { host, what, detail }.into(),
            404 => RegistryError::NotFound { host, what, detail }.into(),
            429 => {
                let error = RegistryError::TooManyRequests { host, retry_after: wait, detail };
                if wait.is_some_and(|wait| wait > self.options.patience.most_retry_after) {
                    error.into()
                } else {
                    Failure::Again(error, wait)
                }
            }
            408 | 500 | 502..=504 => {
                let wait = wait.filter(|wait| *wait <= self.options.patience.most_retry_after);
                Failure::Again(RegistryError::Status { host, what, status, detail }, wait)
            }
            _ => RegistryError::Status { host, what, status, detail }.into(),
        }
    }
}
