//! Getting in: challenges, tokens, login.

use serde::Deserialize;
use ureq::Body;
use ureq::http::header::WWW_AUTHENTICATE;
use ureq::http::{Method, Response};

use super::{Ask, Client, WHOLE};
use crate::challenge::{self, Challenge};
use crate::credentials::Credentials;
use crate::endpoint::Endpoint;
use crate::error::RegistryError;
use crate::http::{Call, Failure, Origin, Payload, Url, percent};

/// Most bytes of an answer with a token.
const MOST: u64 = 256 << 10;

/// What token servers answer.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// What the server was shown for such a request before.
    pub(super) fn authorization(&self, origin: &Origin, ask: &Ask<'_>) -> Option<String> {
        let key = (origin.clone(), ask.action.scope(ask.repository));
        self.authorizations.lock().expect(WHOLE).get(&key).cloned()
    }

    pub(super) fn forget_authorization(&self, origin: &Origin, ask: &Ask<'_>) {
        let key = (origin.clone(), ask.action.scope(ask.repository));
        self.authorizations.lock().expect(WHOLE).remove(&key);
    }

    /// What to show a server that answered 401; `None` if there is nothing else to show than
    /// `shown`.
    pub(super) fn authorize(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        answer: &Response<Body>,
        shown: Option<&str>,
    ) -> Result<Option<String>, Failure> {
        let credentials = self.credentials.find(&ask.endpoint.credentials, ask.repository)?;
        let scope = ask.action.scope(ask.repository);
        let fresh = self.answer_challenge(ask.what, url, answer, credentials.as_ref(), Some(&scope))?;
        let fresh = fresh.filter(|fresh| Some(&fresh[..]) != shown);
        if let Some(fresh) = &fresh {
            let key = (url.origin.clone(), scope);
            self.authorizations.lock().expect(WHOLE).insert(key, fresh.clone());
        }
        Ok(fresh)
    }

    /// The header that meets the challenge of an answer.
    fn answer_challenge(
        &self,
        what: &str,
        url: &Url,
        answer: &Response<Body>,
        credentials: Option<&Credentials>,
        wanted: Option<&str>,
    ) -> Result<Option<String>, Failure> {
        let headers = answer.headers().get_all(WWW_AUTHENTICATE);
        let challenges: Vec<Challenge> = headers
            .iter()
            .take(8)
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope)) = bearer {
            let scope = scope.as_deref().or(wanted);
            let token = self.token(what, url, (realm, service.as_deref(), scope), credentials)?;
            return Ok(Some(format!("Bearer {token}")));
        }
        match credentials {
            Some(Credentials::Basic { user, password }) if challenges.contains(&Challenge::Basic) => {
                Ok(Some(format!("Basic {}", Credentials::encode(user, password))))
            }
            _ => Ok(None),
        }
    }

    /// Asks a token server: with the credentials if there are some, else as nobody.
    fn token(
        &self,
        what: &str,
        url: &Url,
        (realm, service, scope): (&str, Option<&str>, Option<&str>),
        credentials: Option<&Credentials>,
    ) -> Result<String, Failure> {
        let protocol = |problem: String| self.http.protocol(url, what, problem);
        let target = Url::parse(realm).ok_or_else(|| {
            protocol(format!("it sends us for a token to `{realm}`, which is no URL of HTTP"))
        })?;
        if url.origin.https && !target.origin.https {
            return Err(
                protocol(format!("it sends us for a token to `{realm}`, which is not encrypted")).into()
            );
        }
        let parameters = [("service", service), ("scope", scope)];
        let given = || parameters.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
        let what = "a token";
        let answer = match credentials {
            Some(Credentials::IdentityToken(identity)) => {
                let mut form =
                    format!("grant_type=refresh_token&client_id=nelly&refresh_token={}", percent(identity));
                for (name, value) in given() {
                    form.push_str(&format!("&{name}={}", percent(value)));
                }
                let body = Payload::Bytes(form.as_bytes(), "application/x-www-form-urlencoded");
                let call = Call {
                    method: Method::POST,
                    url: target.clone(),
                    headers: Vec::new(),
                    what,
                    small: true,
                };
                self.http.send(call, body, None)?
            }
            other => {
                let basic = match other {
                    Some(Credentials::Basic { user, password }) => {
                        Some(format!("Basic {}", Credentials::encode(user, password)))
                    }
                    _ => None,
                };
                let url = given().fold(target.clone(), |url, (name, value)| url.with_parameter(name, value));
                let call = Call { method: Method::GET, url, headers: Vec::new(), what, small: true };
                self.http.follow(&call, basic.as_deref())?.1
            }
        };
        if !answer.status().is_success() {
            return Err(self.token_refusal(url, answer));
        }
        let bytes = self.http.bytes(answer, MOST, &target, what)?;
        let bad = || self.http.protocol(&target, what, "it is no JSON with a token");
        // An error of the parser could quote the token.
        let answer: Token = serde_json::from_slice(&bytes).map_err(|_secret| bad())?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(bad)?;
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad().into());
        }
        Ok(token)
    }

    fn token_refusal(&self, url: &Url, answer: Response<Body>) -> Failure {
        let own = Endpoint::own(&self.options, &url.origin.authority);
        let ask = Ask { endpoint: &own, repository: "", action: super::Action::Pull, what: "a token" };
        self.refusal(&ask, url, answer)
    }

    /// Whether a registry takes these credentials. `Ok(false)`: it takes anybody, and did not look
    /// at them.
    ///
    /// # Errors
    /// [`RegistryError::Denied`] if it does not; others if it cannot be asked.
    pub fn check_login(&self, domain: &str, credentials: &Credentials) -> Result<bool, RegistryError> {
        // Refuses what is no host.
        crate::endpoint::Place::new(domain, "x")?;
        let endpoint = Endpoint::own(&self.options, domain);
        let ask = Ask { endpoint: &endpoint, repository: "", action: super::Action::Pull, what: "the login" };
        self.attempts(|| {
            let url = endpoint.url(self.is_https(&endpoint)?, "");
            let call = Call {
                method: Method::GET,
                url: url.clone(),
                headers: Vec::new(),
                what: ask.what,
                small: true,
            };
            let (_, answer) = self.http.follow(&call, None)?;
            if answer.status().is_success() {
                return Ok(false);
            }
            if answer.status() != 401 {
                return Err(self.refusal(&ask, &url, answer));
            }
            match self.answer_challenge(ask.what, &url, &answer, Some(credentials), None)? {
                None => Err(self.refusal(&ask, &url, answer)),
                Some(header) => {
                    let (url, answer) = self.http.follow(&call, Some(&header))?;
                    if answer.status().is_success() {
                        Ok(true)
                    } else {
                        Err(self.refusal(&ask, &url, answer))
                    }
                }
            }
        })
    }
}
