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
    /// It is in a tar archive.
    Tar,
    /// It is in a tar archive, which is packed by gzip.
    TarGzip,
    /// The same, by xz.
    TarXz,
    /// The same, by zstd.
    TarZstd,
    /// The same, by bzip2.
    TarBzip2,
}

/// Each with its word, which is the ending of names, too; the longer ones come first.
const ALL: [(Packing, &str); 10] = [
    (Packing::TarGzip, "tar.gz"),
    (Packing::TarXz, "tar.xz"),
    (Packing::TarZstd, "tar.zst"),
    (Packing::TarBzip2, "tar.bz2"),
    (Packing::Tar, "tar"),
    (Packing::Gzip, "gz"),
    (Packing::Xz, "xz"),
    (Packing::Zstd, "zst"),
    (Packing::Bzip2, "bz2"),
    (Packing::Zip, "zip"),
];

/// Other endings of names.
const SHORT: [(Packing, &str); 4] = [
    (Packing::TarGzip, "tgz"),
    (Packing::TarXz, "txz"),
    (Packing::TarZstd, "tzst"),
    (Packing::TarBzip2, "tbz2"),
];

/// What files have at a place of theirs.
const MAGIC: [(Packing, usize, &[u8]); 6] = [
    (Packing::Gzip, 0, &[0x1f, 0x8b, 8]),
    (Packing::Xz, 0, &[0xfd, b'7', b'z', b'X', b'Z', 0]),
    (Packing::Zstd, 0, &[0x28, 0xb5, 0x2f, 0xfd]),
    (Packing::Bzip2, 0, b"BZh"),
    (Packing::Zip, 0, &[b'P', b'K', 3, 4]),
    (Packing::Tar, 257, b"ustar"),
];

impl Packing {
    /// What a name says, and the name of what is in it.
    #[must_use]
    pub fn of_name(name: &str) -> (Self, &str) {
        for (packing, word) in ALL.into_iter().chain(SHORT) {
            let stem = name.strip_suffix(word).and_then(|stem| stem.strip_suffix('.'));
            if let Some(stem) = stem.filter(|stem| !stem.is_empty()) {
                return (packing, stem);
            }
        }
        (Self::None, name)
    }

    /// What the first bytes of a file say.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        let has = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
        let found = MAGIC.into_iter().find(|(_, at, magic)| has(*at, magic));
        found.map_or(Self::None, |(packing, ..)| packing)
    }

    /// The archive that is packed so: a tar archive, if nothing says that there is one. `None` if
    /// it is not packed.
    pub(crate) fn archive(self) -> Option<Self> {
        Some(match self {
            Self::None => return None,
            Self::Gzip => Self::TarGzip,
            Self::Xz => Self::TarXz,
            Self::Zstd => Self::TarZstd,
            Self::Bzip2 => Self::TarBzip2,
            Self::Zip | Self::Tar | Self::TarGzip | Self::TarXz | Self::TarZstd | Self::TarBzip2 => self,
        })
    }

    /// The word for it; `None` if it is not packed.
    pub(crate) fn word(self) -> Option<&'static str> {
        ALL.into_iter().find(|(packing, _)| *packing == self).map(|(_, word)| word)
    }
}

impl FromStr for Packing {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if word == "none" {
            return Ok(Self::None);
        }
        let found = ALL.into_iter().chain(SHORT).find(|(_, known)| *known == word);
        let words = || format!("{word:?} is not gz, xz, zst, bz2, zip, tar, tar.gz (and so on) or none");
        found.map(|(packing, _)| packing).ok_or_else(words)
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
            ("a.tar.gz", (Packing::TarGzip, "a")),
            ("a.qcow2.tar.xz", (Packing::TarXz, "a.qcow2")),
            ("a.tgz", (Packing::TarGzip, "a")),
            ("a.tar", (Packing::Tar, "a")),
            (".tar.gz", (Packing::Gzip, ".tar")),
            ("a.qcow2", (Packing::None, "a.qcow2")),
            (".gz", (Packing::None, ".gz")),
            ("agz", (Packing::None, "agz")),
        ] {
            assert_eq!(Packing::of_name(name), want);
        }
        assert_eq!(Packing::of_bytes(b"BZh9"), Packing::Bzip2);
        assert_eq!(Packing::of_bytes(b"QFI\xfb"), Packing::None);
        let tar = [&[b'a'; 257][..], b"ustar\x0000"].concat();
        assert_eq!(Packing::of_bytes(&tar), Packing::Tar);
        assert_eq!(Packing::of_bytes(&tar[..260]), Packing::None);
        assert_eq!("bz2".parse(), Ok(Packing::Bzip2));
        assert_eq!("tar.zst".parse(), Ok(Packing::TarZstd));
        assert!("rar".parse::<Packing>().is_err());
    }
}
