//! Where a file comes from.

use std::path::{Path, PathBuf};

use nelly_registry::{FileUrl, RegistryError, RegistryOptions};

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A server.
    Url(FileUrl),
    /// A file of this host.
    File(PathBuf),
}

impl Source {
    /// Whether a word is one of these, and not the name of an image in a registry: it has `://`, or
    /// begins with `/`, `./` or `../`.
    #[must_use]
    pub fn is_meant(word: &str) -> bool {
        word.contains("://") || ["/", "./", "../"].iter().any(|beginning| word.starts_with(beginning))
    }

    /// Reads a word for which [`Source::is_meant`] holds. `options` say which hosts may be without
    /// TLS.
    ///
    /// # Errors
    /// It is a URL, and not one of `https`, of `http` on this machine, or of `file`.
    pub fn parse(word: &str, options: &RegistryOptions) -> Result<Self, RegistryError> {
        match word.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => Ok(Self::File(path.into())),
            _ if word.contains("://") => FileUrl::parse(word, options).map(Self::Url),
            _ => Ok(Self::File(word.into())),
        }
    }

    /// Its name, as far as that may be one of a file here.
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Url(url) => url.file_name(),
            Self::File(path) => path.file_name()?.to_str(),
        }
    }

    /// For messages.
    #[must_use]
    pub fn shown(&self) -> String {
        match self {
            Self::Url(url) => url.shown(),
            Self::File(path) => path.display().to_string(),
        }
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Url(_) => None,
            Self::File(path) => Some(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_files_and_for_images() {
        for (word, meant) in [
            ("https://h.example/x", true),
            ("./x", true),
            ("../x", true),
            ("/x", true),
            ("alpine:3.20", false),
            ("localhost:5000/x", false),
        ] {
            assert_eq!(Source::is_meant(word), meant, "{word}");
        }
        let read = |word| Source::parse(word, &RegistryOptions::default());
        assert_eq!(read("file:///a/b").unwrap(), Source::File("/a/b".into()));
        assert_eq!(read("./b.xz").unwrap().name(), Some("b.xz"));
        assert!(read("http://h.example/x").is_err() && read("file://host/x").is_err());
    }
}
