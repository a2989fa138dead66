//! Files of servers that are no registries: images of disks, and artefacts behind a token.

mod credentials;

use std::io::{self, Read as _};
use std::time::{Instant, SystemTime};

use ureq::Body;
use ureq::http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use ureq::http::{HeaderMap, Method, Response};

use self::credentials::is_private;
pub use self::credentials::{FileCredentials, FileUrl};
use crate::client::Client;
use crate::error::{RegistryError, clean};
use crate::http::{Call, Failure, Url, header, parse_range};
use crate::retry;

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// So many bytes show that a transfer goes on, and attempts are counted anew.
const PROGRESS: u64 = 1 << 20;
/// Less in the time of a stall is standing still.
const LEAST: u64 = 4 << 10;
/// Longest word of a server by which it knows a version again.
const TAG: usize = 1024;

/// By what a server knows a version of a file again, and how many bytes that has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileVersion {
    /// `ETag`, as it came.
    pub etag: Option<String>,
    /// `Last-Modified`, as it came.
    pub last_modified: Option<String>,
    /// Bytes of the whole file.
    pub size: Option<u64>,
}

impl FileVersion {
    fn of(headers: &HeaderMap, size: Option<u64>) -> Self {
        let word = |name| {
            let word = header(headers, name)?.trim();
            Some(word.to_owned()).filter(|word| !word.is_empty() && word.len() <= TAG)
        };
        Self { etag: word(ETAG.as_str()), last_modified: word(LAST_MODIFIED.as_str()), size }
    }

    /// What makes a server send the rest of this version and of no other: a strong tag, or a time
    /// (RFC 9110, 13.1.5).
    fn if_range(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|tag| !tag.starts_with("W/"));
        strong.or(self.last_modified.as_deref())
    }

    /// Whether the server says of both that they are one.
    fn is(&self, other: &Self) -> bool {
        let same = |one: &Option<String>, two: &Option<String>| one.is_none() || two.is_none() || one == two;
        same(&self.etag, &other.etag) && same(&self.last_modified, &other.last_modified)
    }
}

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct FileRequest<'a> {
    /// Where it is.
    pub url: &'a FileUrl,
    /// What the server is shown.
    pub credentials: Option<&'a FileCredentials>,
    /// The version that is there as a whole, which need not come again.
    pub known: Option<&'a FileVersion>,
    /// Whether the caller has a checksum of all bytes. Without one, what came before is only gone
    /// on with if the server says that it is the same version, and the server has to say how many
    /// bytes there are.
    pub verified: bool,
    /// Most bytes.
    pub most: u64,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Had {
    /// All bytes of this version came.
    All(FileVersion),
    /// It is the version that was known.
    Known,
}

/// Keeps what comes.
pub trait FileSink {
    /// How many bytes there are, and of which version.
    fn there(&self) -> (u64, FileVersion);

    /// Bytes of `version` come now, from byte `from` on, which is 0 or where it goes on.
    ///
    /// # Errors
    /// They cannot be kept.
    fn begins(&mut self, from: u64, version: &FileVersion) -> io::Result<()>;

    /// Takes the next bytes; whether more are wanted.
    ///
    /// # Errors
    /// They cannot be kept.
    fn write(&mut self, bytes: &[u8]) -> io::Result<bool>;
}

impl Client {
    /// Fetches a file. What was cut is resumed, also in a later call with the same sink.
    ///
    /// # Errors
    /// [`RegistryError`]. What the sink has is good to go on with.
    pub fn file(&self, request: &FileRequest<'_>, sink: &mut dyn FileSink) -> Result<Had, RegistryError> {
        if request.credentials.is_some() && !request.url.0.origin.https {
            self.may_show(&request.url.0)?;
        }
        let (mut number, mut mark) = (1, sink.there().0);
        loop {
            match self.file_once(request, sink) {
                Ok(had) => return Ok(had),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error, after)) => {
                    let at = sink.there().0;
                    if at.saturating_sub(mark) >= PROGRESS {
                        (number, mark) = (1, at);
                    }
                    if number >= self.options.patience.attempts {
                        return Err(error);
                    }
                    self.pause(number, after)?;
                    number += 1;
                }
            }
        }
    }

    /// `plain_http` of a host allows to read from it, not to show it secrets.
    fn may_show(&self, url: &Url) -> Result<(), RegistryError> {
        is_private(url, &crate::options::RegistryOptions::default()).map_err(|()| RegistryError::Name {
            word: clean(&url.origin.authority),
            problem: "is not asked with credentials, since the connection is not encrypted",
        })
    }

    fn file_once(&self, request: &FileRequest<'_>, sink: &mut dyn FileSink) -> Result<Had, Failure> {
        let what = request.url.shown();
        let (at, version) = sink.there();
        // Without a word that names the version, only a checksum tells whether the rest fits.
        let goes_on = at > 0 && (version.if_range().is_some() || request.verified);
        let mut headers = vec![(ACCEPT_ENCODING.as_str(), "identity".to_owned())];
        if goes_on {
            headers.push((RANGE.as_str(), format!("bytes={at}-")));
            headers.extend(version.if_range().map(|word| (IF_RANGE.as_str(), word.to_owned())));
        } else if let Some(known) = request.known {
            let tag = known.etag.as_ref().map(|tag| (IF_NONE_MATCH.as_str(), tag.clone()));
            let time = known.last_modified.as_ref().map(|time| (IF_MODIFIED_SINCE.as_str(), time.clone()));
            headers.extend(tag.or(time));
        }
        let call =
            Call { method: Method::GET, url: request.url.0.clone(), headers, what: &what, small: false };
        let shown = request.credentials.map(FileCredentials::header);
        let secret = shown.as_ref().map(|(name, value)| (*name, value.as_str()));
        let private = |url: &Url| {
            is_private(url, &self.options)
                .map_err(|()| "that is neither encrypted nor on this machine".to_owned())
        };
        let (url, answer) = self.http.follow_within(&call, secret, &private)?;
        let bad = |problem: String| Failure::from(self.http.protocol(&url, &what, problem));
        let whole = |told| FileVersion::of(answer.headers(), told);
        let (from, now) = match answer.status().as_u16() {
            200 => (0, whole(length(&answer))),
            206 if goes_on => {
                let range = header(answer.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
                let (first, size) = parse_range(range).ok_or_else(|| {
                    bad(format!(
                        "it sends the range `{}` where the bytes from {at} on are wanted",
                        clean(range)
                    ))
                })?;
                let now = whole(Some(size));
                // Whoever sends a part has to say the tag of the whole (RFC 9110, 15.3.7).
                let untold = version.etag.is_some() && now.etag.is_none() && !request.verified;
                if first != at
                    || version.size.is_some_and(|known| known != size)
                    || !version.is(&now)
                    || untold
                {
                    return Err(bad(format!("it sends the range `{}` of another file", clean(range))));
                }
                let told = length(&answer);
                if told.is_some_and(|told| Some(told) != size.checked_sub(at)) {
                    return Err(bad("its length is not that of the range".to_owned()));
                }
                (at, now)
            }
            304 if !goes_on && request.known.is_some() => return Ok(Had::Known),
            // Nothing is left of what is there, or more is there than there is.
            416 if goes_on => {
                let range = header(answer.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
                let size = range.trim().strip_prefix("bytes */").and_then(|size| size.parse::<u64>().ok());
                let now = whole(size);
                if size == Some(at) && version.size.is_none_or(|known| known == at) && version.is(&now) {
                    return Ok(Had::All(FileVersion { size, ..version }));
                }
                self.kept(&what, sink.begins(0, &FileVersion::default()))?;
                let error = self.http.protocol(&url, &what, "it does not have the rest of what came before");
                return Err(Failure::Again(error, None));
            }
            _ => return Err(self.file_refusal(request, &url, &what, answer)),
        };
        let chunked = header(answer.headers(), TRANSFER_ENCODING.as_str()).is_some();
        if now.size.is_none() && !chunked && !request.verified {
            return Err(bad(
                "it does not say how many bytes there are, so that nobody would see a cut: give a checksum"
                    .to_owned(),
            ));
        }
        if now.size.is_some_and(|told| told > request.most) {
            return Err(RegistryError::TooLarge { what, told: now.size, most: request.most }.into());
        }
        self.kept(&what, sink.begins(from, &now))?;
        let came = self.drain(request, &url, &what, answer, from, sink)?;
        match now.size {
            Some(size) if size != came => Err(cut(&url, &what, "it ended early".to_owned())),
            _ => Ok(Had::All(FileVersion { size: Some(came), ..now })),
        }
    }

    /// Reads an answer to its end; how many bytes of the file there are then.
    fn drain(
        &self,
        request: &FileRequest<'_>,
        url: &Url,
        what: &str,
        answer: Response<Body>,
        mut at: u64,
        sink: &mut dyn FileSink,
    ) -> Result<u64, Failure> {
        let mut reader = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; CHUNK];
        let (mut window, mut came) = (Instant::now(), 0);
        loop {
            let got = match reader.read(&mut buffer) {
                Ok(0) => return Ok(at),
                Ok(got) => got,
                Err(_) if self.http.cancel.is_cancelled() => return Err(RegistryError::Cancelled.into()),
                Err(error) => return Err(cut(url, what, clean(&error.to_string()))),
            };
            at += got as u64;
            if at > request.most {
                let (what, told) = (what.to_owned(), None);
                return Err(RegistryError::TooLarge { what, told, most: request.most }.into());
            }
            if !self.kept(what, sink.write(&buffer[..got]))? {
                return Err(RegistryError::Cancelled.into());
            }
            came += got as u64;
            if window.elapsed() >= self.options.patience.stall {
                if came < LEAST {
                    let problem = format!("only {came} bytes came in {} s", window.elapsed().as_secs());
                    return Err(cut(url, what, problem));
                }
                (window, came) = (Instant::now(), 0);
            }
        }
    }

    #[expect(clippy::unused_self, reason = "beside its callers")]
    fn kept<T>(&self, what: &str, result: io::Result<T>) -> Result<T, Failure> {
        result.map_err(|source| RegistryError::Kept { what: what.to_owned(), source }.into())
    }

    /// What a status that is no success means.
    fn file_refusal(
        &self,
        request: &FileRequest<'_>,
        url: &Url,
        what: &str,
        answer: Response<Body>,
    ) -> Failure {
        let (host, what) = (url.origin.authority.clone(), what.to_owned());
        let status = answer.status().as_u16();
        let wait = header(answer.headers(), RETRY_AFTER.as_str())
            .and_then(|value| retry::retry_after(value, SystemTime::now()));
        let detail = self.http.complaint(answer);
        let patient = wait.is_none_or(|wait| wait <= self.options.patience.most_retry_after);
        match status {
            401 | 403 => {
                let shown = request.credentials.is_some();
                RegistryError::FileDenied { host, what, detail, shown }.into()
            }
            404 | 410 => RegistryError::NotFound { host, what, detail }.into(),
            429 if patient => {
                Failure::Again(RegistryError::TooManyRequests { host, retry_after: wait, detail }, wait)
            }
            429 => RegistryError::TooManyRequests { host, retry_after: wait, detail }.into(),
            408 | 500 | 502..=504 => {
                let wait = wait.filter(|_| patient);
                Failure::Again(RegistryError::Status { host, what, status, detail }, wait)
            }
            _ => RegistryError::Status { host, what, status, detail }.into(),
        }
    }
}

/// How many bytes an answer has, if it says so; of an empty one, the body does not.
fn length(answer: &Response<Body>) -> Option<u64> {
    let empty = || header(answer.headers(), CONTENT_LENGTH.as_str()).filter(|length| length.trim() == "0");
    answer.body().content_length().or_else(|| empty().map(|_| 0))
}

fn cut(url: &Url, what: &str, problem: String) -> Failure {
    let (host, what) = (url.origin.authority.clone(), what.to_owned());
    Failure::Again(RegistryError::Cut { host, what, problem }, None)
}
