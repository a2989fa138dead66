//! What the command line's IMAGE word names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

use crate::digest::Digest;
use crate::name::{ImageName, NameError};

/// The forms of an IMAGE word that work, for messages.
const FORMS: &str = "NAME[:TAG], oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:TAG], rootfs:DIR, builtin:busybox";

/// An image named on the command line.
///
/// The path of the forms that take a tag ends at the first colon (as in skopeo and umoci), because
/// a tag may itself hold one: `docker-archive:app.tar:example/app:1.2`. The path of `rootfs:` is
/// the whole rest of the word.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `oci:DIR[:TAG]`: an OCI image layout directory.
    OciLayout {
        /// The directory that holds `oci-layout` and `index.json`.
        dir: PathBuf,
        /// The `org.opencontainers.image.ref.name` to pick; not needed when the layout holds one
        /// image.
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`: an OCI image layout in a tar file, which may be compressed.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// As in [`Reference::OciLayout`].
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:TAG]`: what `docker save` writes, which may be compressed.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// The repository tag to pick (`name:tag`); not needed when the archive holds one image.
        tag: Option<String>,
    },
    /// `rootfs:DIR`: a directory that already is a root file system.
    Rootfs {
        /// The directory.
        dir: PathBuf,
    },
    /// `builtin:busybox`: the small image that ships with the program.
    BuiltinBusybox,
    /// Any other word: an image of the local store by its name, such as `alpine:3.20`.
    Named(ImageName),
    /// `sha256:HEX`, or its digits alone: an image of the local store by its digest.
    Id(Digest),
}

/// An IMAGE word that names no image.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The word is empty.
    #[error("the image name is empty; write one of {FORMS}")]
    Empty,
    /// The prefix is known but no path follows.
    #[error("`{word}` has no path; write {form}")]
    NoPath {
        /// The whole word.
        word: String,
        /// How the form is spelled.
        form: &'static str,
    },
    /// A colon announces a tag, and none follows.
    #[error("the tag in `{word}` is empty; add one, or leave out the colon")]
    EmptyTag {
        /// The whole word.
        word: String,
    },
    /// A NUL byte, which no path can hold.
    #[error("the image name contains a NUL byte: {word:?}")]
    Nul {
        /// The whole word.
        word: String,
    },
    /// `builtin:` with a name that is not built in.
    #[error("there is no built-in image `{name}`; the only one is builtin:busybox")]
    UnknownBuiltin {
        /// What follows `builtin:`.
        name: String,
    },
    /// A path without a prefix that says what lies there.
    #[error("`{word}` looks like a path without the kind of image in front of it; write one of {FORMS}")]
    BarePath {
        /// The whole word.
        word: String,
    },
    /// The word of another tool, in which the name follows a URL's scheme.
    #[error("`{word}` begins with the scheme of a URL; write the name alone, such as alpine:3.20")]
    Scheme {
        /// The whole word.
        word: String,
    },
    /// No prefix of another form, and no name either.
    #[error("`{word}` is not an image; write one of {FORMS}")]
    Name {
        /// The beginning of the word.
        word: String,
        /// Why it is no name.
        source: NameError,
    },
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        if word.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if word.contains('\0') {
            return Err(ReferenceError::Nul { word: word.to_owned() });
        }
        if let Some(rest) = word.strip_prefix("oci:") {
            let (dir, tag) = path_and_tag(word, rest, "oci:DIR[:TAG]")?;
            return Ok(Self::OciLayout { dir, tag });
        }
        if let Some(rest) = word.strip_prefix("oci-archive:") {
            let (file, tag) = path_and_tag(word, rest, "oci-archive:FILE[:TAG]")?;
            return Ok(Self::OciArchive { file, tag });
        }
        if let Some(rest) = word.strip_prefix("docker-archive:") {
            let (file, tag) = path_and_tag(word, rest, "docker-archive:FILE[:TAG]")?;
            return Ok(Self::DockerArchive { file, tag });
        }
        if let Some(rest) = word.strip_prefix("rootfs:") {
            if rest.is_empty() {
                return Err(ReferenceError::NoPath { word: word.to_owned(), form: "rootfs:DIR" });
            }
            return Ok(Self::Rootfs { dir: PathBuf::from(rest) });
        }
        if let Some(name) = word.strip_prefix("builtin:") {
            if name == "busybox" {
                return Ok(Self::BuiltinBusybox);
            }
            return Err(ReferenceError::UnknownBuiltin { name: name.to_owned() });
        }
        // No registry host starts with a slash or a dot.
        if word.starts_with('/') || word.starts_with('.') || word.starts_with('~') {
            return Err(ReferenceError::BarePath { word: word.to_owned() });
        }
        if word.contains("://") {
            return Err(ReferenceError::Scheme { word: word.to_owned() });
        }
        if let Ok(digest) = word.parse().or_else(|_| format!("sha256:{word}").parse()) {
            return Ok(Self::Id(digest));
        }
        let bad = |source| ReferenceError::Name { word: word.chars().take(160).collect(), source };
        Ok(Self::Named(word.parse().map_err(bad)?))
    }
}

fn path_and_tag(
    word: &str,
    rest: &str,
    form: &'static str,
) -> Result<(PathBuf, Option<String>), ReferenceError> {
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ReferenceError::NoPath { word: word.to_owned(), form });
    }
    if tag.is_some_and(str::is_empty) {
        return Err(ReferenceError::EmptyTag { word: word.to_owned() });
    }
    Ok((PathBuf::from(path), tag.map(str::to_owned)))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, path, tag) = match self {
            Self::OciLayout { dir, tag } => ("oci", dir, tag),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, tag } => ("docker-archive", file, tag),
            Self::Rootfs { dir } => ("rootfs", dir, &None),
            Self::BuiltinBusybox => return f.write_str("builtin:busybox"),
            Self::Named(name) => return fmt::Display::fmt(name, f),
            Self::Id(digest) => return fmt::Display::fmt(digest, f),
        };
        write!(f, "{prefix}:{}", path.display())?;
        match tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

impl Reference {
    /// What an error says of a reference whose path was probably meant to hold a colon: what stands
    /// before the first one does not exist, or the whole does. Else nothing.
    pub(crate) fn colon_advice(&self) -> String {
        let (Self::OciLayout { dir: path, tag: Some(tag) }
        | Self::OciArchive { file: path, tag: Some(tag) }
        | Self::DockerArchive { file: path, tag: Some(tag) }) = self
        else {
            return String::new();
        };
        let mut whole = path.as_os_str().to_owned();
        whole.push(format!(":{tag}"));
        if path.exists() && !Path::new(&whole).exists() {
            return String::new();
        }
        let path = path.display();
        format!(
            " (the path ends at the first colon: here the path is `{path}` and the tag is `{tag}`; \
             a path with a colon in it is reached through a symbolic link without one)"
        )
    }

    /// The directory or file that the reference names; `None` for a built-in image and for one of
    /// the local store.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::OciLayout { dir: path, .. }
            | Self::OciArchive { file: path, .. }
            | Self::DockerArchive { file: path, .. }
            | Self::Rootfs { dir: path } => Some(path),
            Self::BuiltinBusybox | Self::Named(_) | Self::Id(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_name_an_image() {
        let path = PathBuf::from;
        let tag = |t: &str| Some(t.to_owned());
        let table = [
            ("oci:/var/img", Reference::OciLayout { dir: path("/var/img"), tag: None }),
            ("oci:img:1.0", Reference::OciLayout { dir: path("img"), tag: tag("1.0") }),
            ("oci:a:b:c", Reference::OciLayout { dir: path("a"), tag: tag("b:c") }),
            ("oci-archive:x.tar", Reference::OciArchive { file: path("x.tar"), tag: None }),
            ("oci-archive:x.tar:v", Reference::OciArchive { file: path("x.tar"), tag: tag("v") }),
            ("docker-archive:x.tar", Reference::DockerArchive { file: path("x.tar"), tag: None }),
            (
                "docker-archive:x.tar:example/app:1.2",
                Reference::DockerArchive { file: path("x.tar"), tag: tag("example/app:1.2") },
            ),
            ("rootfs:/a:b", Reference::Rootfs { dir: path("/a:b") }),
            ("builtin:busybox", Reference::BuiltinBusybox),
            ("alpine", Reference::Named("docker.io/library/alpine".parse().unwrap())),
            (&Digest::sha256(b"x").to_string(), Reference::Id(Digest::sha256(b"x"))),
            ("host:5000/a:1", Reference::Named("host:5000/a:1".parse().unwrap())),
        ];
        for (word, want) in table {
            assert_eq!(word.parse::<Reference>().as_ref(), Ok(&want), "{word}");
            assert_eq!(want.to_string(), word);
        }
    }

    #[test]
    fn words_that_name_none() {
        for (word, needle) in [
            ("", "name is empty"),
            ("oci:", "oci:DIR[:TAG]"),
            ("oci::tag", "has no path"),
            ("oci:dir:", "is empty"),
            ("oci-archive:", "oci-archive:FILE[:TAG]"),
            ("docker-archive:f:", "is empty"),
            ("rootfs:", "rootfs:DIR"),
            ("builtin:debian", "builtin:busybox"),
            ("./image", "looks like a path"),
            ("/image.tar", "looks like a path"),
            ("docker://alpine", "write the name alone"),
            ("Alpine", "`Alpine` is not an image; write one of NAME[:TAG], oci:DIR[:TAG]"),
            ("image.tar/", "is not an image"),
            ("a\0b", "NUL"),
        ] {
            let message = word.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains(needle), "{word:?}: {message}");
        }
    }
}
