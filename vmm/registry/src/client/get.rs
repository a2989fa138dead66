//! Manifests and blobs from a registry.

use std::io::Read;
use std::time::Instant;

use nelly_image::Digest;
use serde::Deserialize;
use ureq::http::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use ureq::http::{Method, Response};
use ureq::{Body, BodyReader};

use super::{Action, Ask, Client};
use crate::endpoint::Place;
use crate::error::{RegistryError, clean};
use crate::http::{Failure, Url, header, parse_range};

/// The manifests that are asked for.
const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Most bytes of a manifest or an index.
const MANIFEST_MOST: u64 = 4 << 20;
/// Bytes read at a time.
const CHUNK: usize = 64 << 10;
/// So many bytes show that a transfer goes on, and attempts are counted anew.
const PROGRESS: u64 = 1 << 20;
/// Less in the time of a stall is standing still.
const LEAST: u64 = 4 << 10;

/// A manifest or an index as it came; its bytes have its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawManifest {
    /// What it is, such as `application/vnd.oci.image.index.v1+json`.
    pub media_type: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// JSON, by its media type at least.
    pub bytes: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnType {
    media_type: Option<String>,
}

/// How far a blob has come.
struct Progress<'a> {
    at: u64,
    size: u64,
    sink: &'a mut dyn FnMut(&[u8]) -> bool,
}

impl Client {
    /// Fetches a manifest or an index by its tag or digest (`reference`).
    ///
    /// # Errors
    /// [`RegistryError`]; what came does not have the digest that was asked for, or that the
    /// registry announced; it has more than 4 MiB.
    pub fn manifest(&self, place: &Place, reference: &str) -> Result<RawManifest, RegistryError> {
        let digest = reference.contains(':').then(|| reference.parse::<Digest>());
        let digest = digest.transpose().map_err(|_| bad_reference(reference))?;
        if digest.is_none() && !is_tag(reference) {
            return Err(bad_reference(reference));
        }
        if digest.is_none() {
            self.try_mirrors_again(place);
        }
        let what = format!("the manifest {}:{reference}", place.path());
        let what = if digest.is_some() {
            what.replacen(&format!(":{reference}"), &format!("@{reference}"), 1)
        } else {
            what
        };
        self.first(place, |endpoint| {
            let repository = endpoint.repository(place);
            let ask = Ask { endpoint, repository: &repository, action: Action::Pull, what: &what };
            self.attempts(|| self.manifest_once(&ask, reference, digest.as_ref()))
        })
    }

    fn manifest_once(
        &self,
        ask: &Ask<'_>,
        reference: &str,
        wanted: Option<&Digest>,
    ) -> Result<RawManifest, Failure> {
        let url = self.url(ask, &format!("manifests/{reference}"))?;
        let headers = vec![(ACCEPT.as_str(), ACCEPTED.to_owned())];
        let (url, answer) = self.ask(ask, Method::GET, url, headers, true)?;
        let told = header(answer.headers(), CONTENT_TYPE.as_str()).unwrap_or_default();
        let told = told.split(';').next().unwrap_or_default().trim().to_owned();
        let announced =
            header(answer.headers(), "docker-content-digest").and_then(|value| value.parse().ok());
        let bytes = self.http.bytes(answer, MANIFEST_MOST, &url, ask.what)?;
        // The digest of the reference counts; the announced one finds damage on the way.
        let expected = wanted.copied().or(announced);
        if let Some(expected) = expected
            && !expected.matches(&bytes)
        {
            let problem = format!("they do not have the digest {expected}");
            return Err(self.mismatch(ask, problem).into());
        }
        let digest = expected.unwrap_or_else(|| Digest::sha256(&bytes));
        let own: OwnType = serde_json::from_slice(&bytes)
            .map_err(|error| self.http.protocol(&url, ask.what, format!("it is no JSON: {error}")))?;
        // What a cache serves may have lost its type; two different types would let the same bytes
        // mean two things.
        let generic =
            matches!(told.as_str(), "" | "application/json" | "application/octet-stream" | "text/plain");
        let media_type = match own.media_type {
            Some(own) if generic || own == told => own,
            None if !generic => told,
            own => {
                let own = own.unwrap_or_else(|| "none".to_owned());
                let problem =
                    format!("its type is `{told}` by the header, but `{}` by its contents", clean(&own));
                return Err(self.http.protocol(&url, ask.what, problem).into());
            }
        };
        Ok(RawManifest { media_type: clean(&media_type), digest, bytes })
    }

    /// Fetches a blob of `size` bytes from byte `offset` on into `sink`, which gets each byte once
    /// and in order, and returns whether it wants more. The caller verifies the digest, because it
    /// alone has all the bytes.
    ///
    /// Cuts are resumed, by asking for the rest; a server that sends everything again may.
    ///
    /// # Errors
    /// [`RegistryError`]; the server sends more or fewer bytes than `size`. Bytes that were given
    /// to `sink` are good to resume after.
    pub fn blob(
        &self,
        place: &Place,
        digest: &Digest,
        size: u64,
        offset: u64,
        sink: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<(), RegistryError> {
        let what = format!("the blob {digest}");
        let mut progress = Progress { at: offset, size, sink };
        self.first(place, |endpoint| {
            let repository = endpoint.repository(place);
            let ask = Ask { endpoint, repository: &repository, action: Action::Pull, what: &what };
            let (mut number, mut mark) = (1, progress.at);
            while progress.at < progress.size {
                match self.blob_once(&ask, digest, &mut progress) {
                    Ok(()) => {}
                    Err(Failure::Final(error)) => return Err(error),
                    Err(Failure::Again(error, after)) => {
                        if progress.at - mark >= PROGRESS {
                            (number, mark) = (1, progress.at);
                        }
                        if number >= self.options.patience.attempts {
                            return Err(error);
                        }
                        self.pause(number, after)?;
                        number += 1;
                    }
                }
            }
            Ok(())
        })
    }

    /// Fetches the rest of a blob, until a cut.
    fn blob_once(&self, ask: &Ask<'_>, digest: &Digest, progress: &mut Progress<'_>) -> Result<(), Failure> {
        let url = self.url(ask, &format!("blobs/{digest}"))?;
        let headers = match progress.at {
            0 => Vec::new(),
            at => vec![(RANGE.as_str(), format!("bytes={at}-"))],
        };
        let (url, answer) = self.ask(ask, Method::GET, url, headers, false)?;
        let from = self.first_byte(ask, &url, &answer, progress)?;
        let told = answer.body().content_length();
        if let Some(told) = told
            && told != progress.size - from
        {
            let problem =
                format!("the size is {} bytes, but {} come", progress.size, told.saturating_add(from));
            return Err(self.mismatch(ask, problem).into());
        }
        let reader = answer.into_body().into_with_config().limit(u64::MAX).reader();
        self.stream(ask, &url, reader, progress.at - from, progress)
    }

    /// Which byte the answer begins with.
    fn first_byte(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        answer: &Response<Body>,
        progress: &Progress<'_>,
    ) -> Result<u64, Failure> {
        match answer.status().as_u16() {
            200 => Ok(0),
            206 => {
                let range = header(answer.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
                if parse_range(range) == Some((progress.at, progress.size)) {
                    return Ok(progress.at);
                }
                let problem = format!(
                    "it sends the range `{range}` where the bytes from {} on are wanted",
                    progress.at
                );
                Err(self.http.protocol(url, ask.what, problem).into())
            }
            status => {
                Err(self.http.protocol(url, ask.what, format!("it answers with status {status}")).into())
            }
        }
    }

    /// Reads a body, passes over its first `skip` bytes, and gives the rest to the sink.
    fn stream(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        mut reader: BodyReader<'_>,
        mut skip: u64,
        progress: &mut Progress<'_>,
    ) -> Result<(), Failure> {
        let mut buffer = vec![0; CHUNK];
        let cut = |problem: String| {
            let (host, what) = (url.origin.authority.clone(), ask.what.to_owned());
            Failure::Again(RegistryError::Cut { host, what, problem }, None)
        };
        let (mut window, mut came) = (Instant::now(), 0);
        loop {
            let got = match reader.read(&mut buffer) {
                Ok(got) => got,
                Err(_) if self.http.cancel.is_cancelled() => return Err(RegistryError::Cancelled.into()),
                // It has all its bytes; how the connection ends matters no more.
                Err(_) if progress.at == progress.size => return Ok(()),
                Err(error) => return Err(cut(clean(&error.to_string()))),
            };
            if got == 0 {
                return if progress.at == progress.size {
                    Ok(())
                } else {
                    Err(cut("it ended early".to_owned()))
                };
            }
            let mut bytes = &buffer[..got];
            if skip > 0 {
                let skipped = skip.min(got as u64);
                bytes = &bytes[usize::try_from(skipped).expect("it is no more than what came")..];
                skip -= skipped;
            }
            if bytes.len() as u64 > progress.size - progress.at {
                let problem = format!("there are more than {} bytes", progress.size);
                return Err(self.mismatch(ask, problem).into());
            }
            if !bytes.is_empty() && !(progress.sink)(bytes) {
                return Err(RegistryError::Cancelled.into());
            }
            progress.at += bytes.len() as u64;
            came += got as u64;
            if window.elapsed() >= self.options.patience.stall {
                if came < LEAST {
                    return Err(cut(format!("only {came} bytes came in {} s", window.elapsed().as_secs())));
                }
                (window, came) = (Instant::now(), 0);
            }
        }
    }

    fn mismatch(&self, ask: &Ask<'_>, problem: String) -> RegistryError {
        let host = ask.endpoint.credentials.clone();
        RegistryError::Mismatch { host, what: ask.what.to_owned(), problem }
    }
}

fn bad_reference(reference: &str) -> RegistryError {
    RegistryError::Name { word: clean(reference), problem: "is neither a tag nor a digest" }
}

fn is_tag(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && !word.is_empty()
        && word.len() <= 128
        && !word.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_to_the_end() {
        for (text, want) in [
            ("bytes 5-9/10", Some((5, 10))),
            ("bytes 0-0/1", Some((0, 1))),
            ("bytes 5-8/10", None),
            ("bytes 5-9/*", None),
            ("bytes */10", None),
            ("bytes 0-18446744073709551615/0", None),
            ("", None),
        ] {
            assert_eq!(parse_range(text), want, "{text}");
        }
    }

    #[test]
    fn tags_do_not_leave_their_path() {
        for (word, good) in [
            ("latest", true),
            ("3.20-x_y", true),
            ("", false),
            ("../x", false),
            ("a/b", false),
            ("a?b", false),
        ] {
            assert_eq!(is_tag(word), good, "{word}");
        }
    }
}
