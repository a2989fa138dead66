//! How a file is packed, by its name or by its first bytes.

use std::str::FromStr;

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// It is not.
    None,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// zstd.
    Zstd,
    /// bzip2.
    Bzip2,
    /// It is in a zip archive.
    Zip,
}

/// Each with its word, which is the ending of names, too, and with what its files begin with.
const ALL: [(Packing, &str, &[u8]); 5] = [
    (Packing::Gzip, "gz", &[0x1f, 0x8b, 8]),
    (Packing::Xz, "xz", &[0xfd, b'7', b'z', b'X', b'Z', 0]),
    (Packing::Zstd, "zst", &[0x28, 0xb5, 0x2f, 0xfd]),
    (Packing::Bzip2, "bz2", b"BZh"),
    (Packing::Zip, "zip", &[b'P', b'K', 3, 4]),
];

impl Packing {
    /// What a name says, and the name of what is in it.
    #[must_use]
    pub fn of_name(name: &str) -> (Self, &str) {
        for (packing, word, _) in ALL {
            let stem = name.strip_suffix(word).and_then(|stem| stem.strip_suffix('.'));
            if let Some(stem) = stem.filter(|stem| !stem.is_empty()) {
                return (packing, stem);
            }
        }
        (Self::None, name)
    }

    /// What the first bytes of a file say.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let found = ALL.into_iter().find(|(_, _, magic)| bytes.starts_with(magic));
        found.map_or(Self::None, |(packing, ..)| packing)
    }

    /// The word for it; `None` if it is not packed.
    pub(crate) fn word(self) -> Option<&'static str> {
        ALL.into_iter().find(|(packing, ..)| *packing == self).map(|(_, word, _)| word)
    }
}

impl FromStr for Packing {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if word == "none" {
            return Ok(Self::None);
        }
        let found = ALL.into_iter().find(|(_, known, _)| *known == word);
        found
            .map(|(packing, ..)| packing)
            .ok_or_else(|| format!("{word:?} is not gz, xz, zst, bz2, zip or none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_names_and_bytes() {
        for (name, want) in [
            ("a.qcow2.xz", (Packing::Xz, "a.qcow2")),
            ("a.raw.zst", (Packing::Zstd, "a.raw")),
            ("a.zip", (Packing::Zip, "a")),
            ("a.qcow2", (Packing::None, "a.qcow2")),
            (".gz", (Packing::None, ".gz")),
            ("agz", (Packing::None, "agz")),
        ] {
            assert_eq!(Packing::of_name(name), want);
        }
        assert_eq!(Packing::of_bytes(b"BZh9"), Packing::Bzip2);
        assert_eq!(Packing::of_bytes(b"QFI\xfb"), Packing::None);
        assert_eq!("bz2".parse(), Ok(Packing::Bzip2));
        assert!("rar".parse::<Packing>().is_err());
    }
}
