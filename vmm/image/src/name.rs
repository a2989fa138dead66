//! Names of images as docker spells them: `alpine`, `user/app:1`, `host:5000/a/b@sha256:...`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::{Digest, DigestError};

/// The registry that is meant when a name has none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// An older name of the same registry.
const OLD_DEFAULT_DOMAIN: &str = "index.docker.io";
/// Where the images with names of one word are.
const OFFICIAL: &str = "library/";
/// The tag that is meant when a name has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest path of a repository in bytes.
const PATH_MAX: usize = 255;
/// Longest tag in bytes.
const TAG_MAX: usize = 128;
/// Hexadecimal digits of an image id.
const ID_LEN: usize = 64;

/// The name of an image in a registry: where it is, and which of its versions by tag, by digest, or
/// by both (then the digest decides).
///
/// Parsing applies docker's rules: a first part with a dot, a colon or a capital letter, or
/// `localhost`, is a registry's host; else it is `docker.io`, whose names of one word are in
/// `library/`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A word that is no image's name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing before the tag or the digest.
    #[error("`{0}` has no name in front of the tag or digest")]
    Empty(String),
    /// Capital letters in the path.
    #[error("`{0}` has capital letters, but the name of an image is lower-case")]
    Uppercase(String),
    /// A host that is none.
    #[error("`{host}` in `{word}` is not the host of a registry")]
    Host {
        /// The whole word.
        word: String,
        /// Its first part.
        host: String,
    },
    /// The path does not follow the grammar.
    #[error(
        "`{0}` is not the name of an image: its parts are letters a to z and digits, with single dots, one or \
         two underscores, or dashes between them"
    )]
    Path(String),
    /// The path is too long.
    #[error("the name has {0} characters, and at most {PATH_MAX} are allowed")]
    TooLong(usize),
    /// The tag does not follow the grammar.
    #[error(
        "the tag `{0}` is not valid: at most {TAG_MAX} letters, digits, underscores, dots and dashes, the first \
         being none of the last two"
    )]
    Tag(String),
    /// The digest is none.
    #[error("the digest is not valid")]
    Digest(#[from] DigestError),
    /// The name is an image's id.
    #[error("`{0}` is an image id, not a name")]
    Id(String),
}

/// The beginning of a word, for messages: a hostile archive does not get to fill the terminal.
fn short(word: &str) -> String {
    word.chars().take(160).collect()
}

/// Letters and digits, at least one, with dashes inside.
fn is_domain_component(word: &str) -> bool {
    let bytes = word.as_bytes();
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// A host name, an IPv4 address or an IPv6 address in brackets, and perhaps a port.
fn is_domain(word: &str) -> bool {
    let (host, rest) = match word.strip_prefix('[') {
        Some(inside) => match inside.split_once(']') {
            Some((host, rest)) => {
                let address =
                    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
                (address, rest)
            }
            None => return false,
        },
        None => {
            let end = word.find(':').unwrap_or(word.len());
            (word[..end].split('.').all(is_domain_component), &word[end..])
        }
    };
    let port = |rest: &str| {
        let port = rest.strip_prefix(':').unwrap_or_default();
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    };
    host && (rest.is_empty() || port(rest))
}

/// Runs of small letters and digits, separated by a dot, one or two underscores, or dashes.
fn is_path_component(word: &str) -> bool {
    let small = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = word.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| small(*byte));
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.split(|byte| small(*byte)).all(|separator| match separator {
            b"" | b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|byte| *byte == b'-'),
        })
}

fn is_tag(word: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    word.len() <= TAG_MAX
        && word.bytes().next().is_some_and(letter)
        && word.bytes().all(|byte| letter(byte) || matches!(byte, b'.' | b'-'))
}

/// Whether the word before the first slash names a host, and not a user of the default registry.
fn names_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

impl FromStr for ImageName {
    type Err = NameError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        if word.len() == ID_LEN && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(NameError::Id(word.to_owned()));
        }
        let (named, digest) = match word.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse()?)),
            None => (word, None),
        };
        let (domain, rest) = match named.split_once('/') {
            Some((first, rest)) if names_host(first) => (first, rest),
            _ => (DEFAULT_DOMAIN, named),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(NameError::Empty(short(word)));
        }
        if !is_domain(domain) {
            return Err(NameError::Host { word: short(word), host: short(domain) });
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(NameError::Uppercase(short(path)));
        }
        if !path.split('/').all(is_path_component) {
            return Err(NameError::Path(short(path)));
        }
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(NameError::Tag(short(tag)));
        }
        let domain = if domain == OLD_DEFAULT_DOMAIN { DEFAULT_DOMAIN } else { domain };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL}{path}")
        } else {
            path.to_owned()
        };
        if path.len() > PATH_MAX {
            return Err(NameError::TooLong(path.len()));
        }
        Ok(Self { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }
}

impl ImageName {
    /// The registry's host, with its port if it has one; `docker.io` is Docker Hub.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path in the registry, such as `library/alpine`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if the name has one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name has one: that of a manifest or an index.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Host and path, such as `docker.io/library/alpine`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Host and path as people write them, such as `alpine`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        let whole = self.repository();
        if self.domain != DEFAULT_DOMAIN {
            return whole;
        }
        let short = match self.path.strip_prefix(OFFICIAL) {
            Some(official) if !official.contains('/') => official,
            _ => &self.path,
        };
        // A path may begin with what looks like a host, or be what looks like an id.
        match short.parse::<Self>() {
            Ok(read) if (&read.domain, &read.path) == (&self.domain, &self.path) => short.to_owned(),
            _ => whole,
        }
    }

    /// The whole name: host, path, and the digest if there is one, else the tag, by default
    /// `latest`. Two names with the same canonical form mean the same image.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.with_version(self.repository())
    }

    /// [`ImageName::canonical`] with the repository as people write it, such as `alpine:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_version(self.familiar_repository())
    }

    fn with_version(&self, repository: String) -> String {
        match &self.digest {
            Some(digest) => format!("{repository}@{digest}"),
            None => format!("{repository}:{}", self.tag.as_deref().unwrap_or(DEFAULT_TAG)),
        }
    }

    /// The same repository, with this digest and without a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

/// As people write it; the tag and the digest as they were given.
impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.familiar_repository())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn words_and_their_canonical_and_familiar_forms() {
        let long_tag = format!("a:{}", "t".repeat(128));
        let long_path = format!("x.io/{}", "p".repeat(255));
        let table: &[(&str, &str, &str)] = &[
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
            ("user/app:1", "docker.io/user/app:1", "user/app:1"),
            ("library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
            ("localhost/c", "localhost/c:latest", "localhost/c:latest"),
            ("localhost:5000/c:d", "localhost:5000/c:d", "localhost:5000/c:d"),
            ("localhost", "docker.io/library/localhost:latest", "localhost:latest"),
            ("HOST/c", "HOST/c:latest", "HOST/c:latest"),
            ("ghcr.io/a/b__c-d---e.f_g:V_1.2-x", "ghcr.io/a/b__c-d---e.f_g:V_1.2-x", ""),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("[fe80::1]/a", "[fe80::1]/a:latest", "[fe80::1]/a:latest"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest", "127.0.0.1:5000/a/b/c:latest"),
            ("a-b.c-d.example/x", "a-b.c-d.example/x:latest", "a-b.c-d.example/x:latest"),
            ("app:1@DIGEST", "docker.io/library/app@DIGEST", "app@DIGEST"),
            ("app@DIGEST", "docker.io/library/app@DIGEST", "app@DIGEST"),
            ("h:1/a/b:t@DIGEST", "h:1/a/b@DIGEST", "h:1/a/b@DIGEST"),
            (&long_tag, &format!("docker.io/library/{long_tag}"), &long_tag),
            (&long_path, &format!("{long_path}:latest"), &format!("{long_path}:latest")),
            (
                &format!("docker.io/library/{}", &HASH[7..]),
                &format!("docker.io/library/{}:latest", &HASH[7..]),
                &format!("docker.io/library/{}:latest", &HASH[7..]),
            ),
        ];
        for (word, canonical, familiar) in table {
            let full = |text: &str| text.replace("DIGEST", HASH);
            let familiar = if familiar.is_empty() { canonical } else { familiar };
            let name: ImageName = full(word).parse().unwrap_or_else(|error| panic!("{word}: {error}"));
            assert_eq!(name.canonical(), full(canonical), "{word}");
            assert_eq!(name.familiar(), full(familiar), "{word}");
            for form in [name.canonical(), name.familiar()] {
                assert_eq!(form.parse::<ImageName>().unwrap().canonical(), name.canonical(), "{form}");
            }
            assert_eq!(name.to_string().parse::<ImageName>().as_ref(), Ok(&name), "{word}");
        }
        let both: ImageName = format!("app:1@{HASH}").parse().unwrap();
        assert_eq!((both.tag(), both.digest().unwrap().to_string().as_str()), (Some("1"), HASH));
        assert_eq!(both.to_string(), format!("app:1@{HASH}"));
        assert_eq!(both.with_digest(Digest::sha256(b"x")).tag(), None);
    }

    #[test]
    fn words_that_are_no_names() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_path = format!("x.io/{}", "p".repeat(256));
        let long_official = "p".repeat(248);
        let upper = format!("a@sha256:{}", "AB".repeat(32));
        for word in [
            "",
            ":",
            ":tag",
            "@",
            &format!("@{HASH}"),
            "a:",
            "a@",
            "a@sha256:12",
            "a@md5:00",
            &upper,
            "Alpine",
            "docker.io/Alpine",
            "a/B",
            "a b",
            "a//b",
            "/a",
            "a/",
            "host.io/",
            "-a",
            "a-",
            ".a",
            "a.",
            "a..b",
            "a._b",
            "a___b",
            "_a",
            "a_-b",
            "a:-t",
            "a:.t",
            "a:t/u",
            "a:b:c",
            "a:tä",
            "ä",
            "a\0",
            "a\nb",
            "../a",
            "a/../b",
            "host:/a",
            "host:x/a",
            "-host.io/a",
            "host-.io/a",
            "host..io/a",
            "[::1/a",
            "[]/a",
            "[::g]/a",
            "[::1]x/a",
            "docker://alpine",
            "https://a.io/b",
            &long_tag,
            &long_path,
            &long_official,
            &HASH[7..],
            HASH,
        ] {
            let read = word.parse::<ImageName>();
            // A digest alone reads as the tag of an image `sha256`, as in docker.
            assert_eq!(read.is_err(), word != HASH, "{word:?}: {read:?}");
        }
        let message = |word: &str| word.parse::<ImageName>().unwrap_err().to_string();
        assert!(message("My/App").contains("lower-case"));
        assert!(message("a___b").contains("underscores"));
        assert!(message("a:").contains("the tag `` is not valid"));
        assert!(message("a@sha256:12").contains("the digest is not valid"));
        assert!(message(&long_path).contains("has 256 characters"));
        assert!(message(&HASH[7..]).contains("an image id"));
    }

    proptest! {
        #[test]
        fn what_the_grammar_makes_is_read_back(
            host in "([a-z0-9]{1,5}(\\.[a-zA-Z0-9](-?[a-z0-9]){0,4}){1,2}|localhost)(:[0-9]{1,5})?",
            path in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}){0,3}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            hashed: bool,
        ) {
            let mut word = format!("{host}/{path}");
            if let Some(tag) = &tag {
                word = format!("{word}:{tag}");
            }
            if hashed {
                word = format!("{word}@{HASH}");
            }
            let name: ImageName = word.parse().unwrap();
            prop_assert_eq!((name.domain(), name.path(), name.tag()), (host.as_str(), path.as_str(), tag.as_deref()));
            prop_assert_eq!(name.to_string(), word);
        }

        #[test]
        fn any_word_is_refused_or_means_the_same_when_read_again(word in "[a-zA-Z0-9:./@_\\[\\]-]{0,40}|\\PC{0,40}") {
            if let Ok(name) = word.parse::<ImageName>() {
                let familiar: ImageName = name.familiar().parse().unwrap();
                prop_assert_eq!(familiar.canonical(), name.canonical());
                let canonical: ImageName = name.canonical().parse().unwrap();
                prop_assert_eq!(canonical.canonical(), name.canonical());
                prop_assert_eq!(name.to_string().parse::<ImageName>().unwrap(), name);
            }
        }
    }
}
