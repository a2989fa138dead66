//! Manifests and blobs to a registry.

use std::io::Read;

use nelly_image::Digest;
use ureq::http::header::{CONTENT_LENGTH, LOCATION};
use ureq::http::{Method, Response};
use ureq::{Body, http};

use super::{Action, Ask, Client};
use crate::endpoint::{Endpoint, Place};
use crate::error::RegistryError;
use crate::http::{Call, Failure, Payload, Url, header};

impl Client {
    /// Whether the registry has a blob.
    ///
    /// # Errors
    /// [`RegistryError`]: it cannot be asked, or denies access.
    pub fn has_blob(&self, place: &Place, digest: &Digest) -> Result<bool, RegistryError> {
        let endpoint = Endpoint::own(&self.options, place.domain());
        let repository = endpoint.repository(place);
        let what = format!("the blob {digest}");
        let ask = Ask { endpoint: &endpoint, repository: &repository, action: Action::Push, what: &what };
        let asked = self.attempts(|| {
            let url = self.url(&ask, &format!("blobs/{digest}"))?;
            self.ask(&ask, Method::HEAD, url, Vec::new(), true)
        });
        match asked {
            Ok(_) => Ok(true),
            Err(RegistryError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Uploads a blob of `size` bytes; `open` gives a reader of them for each attempt.
    ///
    /// # Errors
    /// [`RegistryError`]; [`RegistryError::Cancelled`] also if `open` gives none.
    pub fn upload_blob<R: Read>(
        &self,
        place: &Place,
        digest: &Digest,
        size: u64,
        open: &mut dyn FnMut() -> Option<R>,
    ) -> Result<(), RegistryError> {
        let endpoint = Endpoint::own(&self.options, place.domain());
        let repository = endpoint.repository(place);
        let what = format!("the blob {digest}");
        let ask = Ask { endpoint: &endpoint, repository: &repository, action: Action::Push, what: &what };
        self.attempts(|| {
            let url = self.url(&ask, "blobs/uploads/")?;
            let headers = vec![(CONTENT_LENGTH.as_str(), "0".to_owned())];
            let (url, answer) = self.ask(&ask, Method::POST, url, headers, true)?;
            let target = self.upload_url(&ask, &url, &answer)?.with_parameter("digest", &digest.to_string());
            let mut reader = open().ok_or(RegistryError::Cancelled)?;
            self.put(&ask, target, Payload::Reader(&mut reader, size))
        })
    }

    /// Where a begun upload goes on.
    fn upload_url(&self, ask: &Ask<'_>, url: &Url, answer: &Response<Body>) -> Result<Url, Failure> {
        let location = header(answer.headers(), LOCATION.as_str()).unwrap_or_default();
        let target = url.join(location).filter(|target| target.origin.https || !url.origin.https);
        target.ok_or_else(|| {
            let problem = format!("it sends the upload to `{location}`, which is no URL to follow");
            self.http.protocol(url, ask.what, problem).into()
        })
    }

    /// Uploads a manifest or an index under a tag or its digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn put_manifest(
        &self,
        place: &Place,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), RegistryError> {
        let endpoint = Endpoint::own(&self.options, place.domain());
        let repository = endpoint.repository(place);
        let what = format!("the manifest {}:{reference}", place.path());
        let ask = Ask { endpoint: &endpoint, repository: &repository, action: Action::Push, what: &what };
        self.attempts(|| {
            let url = self.url(&ask, &format!("manifests/{reference}"))?;
            self.put(&ask, url, Payload::Bytes(bytes, media_type))
        })
    }

    /// One request with a body. A stale authorization is forgotten, so that another attempt, which
    /// begins with a request without a body, gets a fresh one.
    fn put(&self, ask: &Ask<'_>, url: Url, body: Payload<'_>) -> Result<(), Failure> {
        let own = url.origin.authority == ask.endpoint.authority;
        let authorization = self.authorization(&url.origin, ask).filter(|_| own);
        let call =
            Call { method: Method::PUT, url: url.clone(), headers: Vec::new(), what: ask.what, small: true };
        let answer: http::Response<Body> = self.http.send(call, body, authorization.as_deref())?;
        if answer.status().is_success() {
            return Ok(());
        }
        let unauthorized = answer.status() == 401;
        match self.refusal(ask, &url, answer) {
            Failure::Final(error) if unauthorized && authorization.is_some() => {
                self.forget_authorization(&url.origin, ask);
                Err(Failure::Again(error, None))
            }
            failure => Err(failure),
        }
    }
}
