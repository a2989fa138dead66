//! Packed files: what comes out of one is written to another, with holes where it is zero.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::FileExt as _;

use nelly_archive::ArchiveError;
use nelly_image::ZstdDecoder;
use thiserror::Error;
use zip::ZipArchive;
use zip::result::ZipError;

mod tar;

/// Bytes that are written at a time, and that are a hole if all of them are zero.
const BLOCK: usize = 64 << 10;
/// Bytes that are read at a time.
const READ: usize = 256 << 10;
/// Most memory of an xz decoder in KiB: `xz -9` needs 65 MiB.
const XZ_MEMORY_MAX_KIB: u32 = 512 << 10;
/// Exit code of a program that was to unpack a file which the archive does not have.
pub const NO_MEMBER: u8 = 3;
/// Names of an archive that a message shows.
const SHOWN: usize = 5;
/// Characters of each.
const SHOWN_CHARS: usize = 60;

/// How bytes are made fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// They are not.
    None,
    /// gzip, one or several members.
    Gzip,
    /// xz, one or several streams.
    Xz,
    /// zstd, one or several frames.
    Zstd,
    /// bzip2, one or several streams.
    Bzip2,
}

impl Compression {
    fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "gz" => Self::Gzip,
            "xz" => Self::Xz,
            "zst" => Self::Zstd,
            "bz2" => Self::Bzip2,
            _ => return None,
        })
    }

    /// Reads what `packed` had before.
    fn reader<'a>(self, packed: impl BufRead + 'a) -> Box<dyn Read + 'a> {
        match self {
            Self::None => Box::new(packed),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(packed, true, XZ_MEMORY_MAX_KIB)),
            Self::Zstd => Box::new(ZstdDecoder::new(packed)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(packed)),
        }
    }
}

/// How a file is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// By itself.
    Alone(Compression),
    /// In a zip archive: the file of this name, or else the only one.
    Zip(Option<String>),
    /// In a tar archive, which may be compressed: the same.
    Tar(Compression, Option<String>),
}

/// Why a file was not unpacked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// It is damaged, cut, or not what it is taken for.
    #[error("it cannot be unpacked")]
    Damaged(#[source] io::Error),
    /// The archive is damaged, or has what is not known here.
    #[error("the archive cannot be read")]
    Archive(#[source] ZipError),
    /// The archive is damaged, cut, or has what is not known here.
    #[error("the archive cannot be read")]
    Tar(#[source] ArchiveError),
    /// What the archive has by this name is no file.
    #[error("{wanted:?} is {what} in the archive, and no file")]
    NoFile {
        /// The name.
        wanted: String,
        /// What it is.
        what: &'static str,
    },
    /// The archive does not have the file.
    #[error("the archive has no file {wanted:?}; it has {has}")]
    NoMember {
        /// The name.
        wanted: String,
        /// Some of those that it has.
        has: String,
    },
    /// The archive has several files, or none, and none was named.
    #[error("the archive has not exactly one file, so one has to be named; it has {0}")]
    Several(String),
    /// More comes out of it than may.
    #[error("more than the {0} bytes that are allowed come out of it")]
    TooLarge(u64),
    /// What came out of it could not be written.
    #[error("cannot write what comes out of it")]
    Write(#[source] io::Error),
}

/// What a program that unpacks one file is told by its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOrder {
    /// How the file is packed.
    pub form: Form,
    /// Most bytes that may come out of it.
    pub most: u64,
}

impl StreamOrder {
    /// Reads `FORM MOST [MEMBER]`. `None` if it is something else.
    #[must_use]
    pub fn read(words: &[OsString]) -> Option<Self> {
        let words: Vec<&str> = words.iter().map(|word| word.to_str()).collect::<Option<_>>()?;
        let (form, most, member) = match words[..] {
            [form, most] => (form, most, None),
            [form, most, member] => (form, most, Some(member.to_owned())),
            _ => return None,
        };
        let form = match (form, form.strip_prefix("tar.")) {
            ("zip", _) => Form::Zip(member.clone()),
            ("tar", _) => Form::Tar(Compression::None, member.clone()),
            (_, Some(compression)) => Form::Tar(Compression::of_word(compression)?, member.clone()),
            (compression, None) => Form::Alone(Compression::of_word(compression)?),
        };
        let named = !matches!(form, Form::Alone(_)) || member.is_none();
        Some(Self { form, most: most.parse().ok()? }).filter(|_| named)
    }
}

/// Unpacks `from` into `to`, which is empty; how many bytes came out.
///
/// # Errors
/// [`StreamError`].
pub fn unpack(from: &File, to: &File, order: &StreamOrder) -> Result<u64, StreamError> {
    let packed = BufReader::with_capacity(READ, from);
    match &order.form {
        Form::Alone(compression) => copy(compression.reader(packed), to, order.most),
        Form::Zip(member) => member_of(packed, member.as_deref(), to, order.most),
        Form::Tar(compression, member) => {
            tar::member_of(compression.reader(packed), member.as_deref(), to, order.most)
        }
    }
}

fn member_of(
    packed: impl Read + Seek,
    member: Option<&str>,
    to: &File,
    most: u64,
) -> Result<u64, StreamError> {
    let mut archive = ZipArchive::new(packed).map_err(StreamError::Archive)?;
    let names = archive.file_names().filter_map(Result::ok);
    let files: Vec<String> = names.filter(|name| !name.ends_with('/')).map(Into::into).collect();
    let has = || has(files.iter().map(String::as_str), files.len());
    let name = match (member, &files[..]) {
        (Some(member), files) if files.iter().any(|name| name == member) => member.to_owned(),
        (Some(member), _) => return Err(StreamError::NoMember { wanted: member.to_owned(), has: has() }),
        (None, [name]) => name.clone(),
        (None, _) => return Err(StreamError::Several(has())),
    };
    let file = archive.by_name(&name).map_err(StreamError::Archive)?;
    copy(file, to, most)
}

/// For messages: the first of an archive's `count` files.
fn has<'a>(first: impl Iterator<Item = &'a str>, count: usize) -> String {
    let short = |name: &str| name.chars().take(SHOWN_CHARS).collect::<String>();
    let mut shown: Vec<String> = first.take(SHOWN).map(|name| format!("{:?}", short(name))).collect();
    shown.extend((count > SHOWN).then(|| format!("{} more", count - SHOWN)));
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

/// Writes what `from` has to its end.
fn copy(mut from: impl Read, to: &File, most: u64) -> Result<u64, StreamError> {
    let (mut block, mut at) = (vec![0; BLOCK], 0_u64);
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match from.read(&mut block[filled..]) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(StreamError::Damaged(error)),
            }
        }
        at = put(&block[..filled], to, at, most)?;
        if filled < BLOCK {
            // A hole at its end, too.
            to.set_len(at).map_err(StreamError::Write)?;
            return Ok(at);
        }
    }
}

/// Writes some bytes at `at`, or leaves a hole; where they end, which is no more than `most`.
fn put(bytes: &[u8], to: &File, at: u64, most: u64) -> Result<u64, StreamError> {
    let end = at.saturating_add(bytes.len() as u64);
    if end > most {
        return Err(StreamError::TooLarge(most));
    }
    if bytes.iter().any(|byte| *byte != 0) {
        to.write_all_at(bytes, at).map_err(StreamError::Write)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_in_words() {
        let read = |words: &[&str]| StreamOrder::read(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let order = |form, most| Some(StreamOrder { form, most });
        assert_eq!(read(&["gz", "5"]), order(Form::Alone(Compression::Gzip), 5));
        assert_eq!(read(&["tar", "5"]), order(Form::Tar(Compression::None, None), 5));
        let named = order(Form::Tar(Compression::Xz, Some("a".into())), 5);
        assert_eq!(read(&["tar.xz", "5", "a"]), named);
        assert_eq!(read(&["zip", "5"]), order(Form::Zip(None), 5));
        assert_eq!(read(&["zip", "5", "a/b"]), order(Form::Zip(Some("a/b".into())), 5));
        for words in [
            &["gz"][..],
            &["gz", "5", "a"],
            &["rar", "5"],
            &["tar.rar", "5"],
            &["tar.tar", "5"],
            &["gz", "x"],
            &["zip", "5", "a", "b"],
            &[],
        ] {
            assert_eq!(read(words), None, "{words:?}");
        }
    }
}
