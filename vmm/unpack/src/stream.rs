//! Packed files: what comes out of one is written to another, with holes where it is zero.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::FileExt as _;

use nelly_image::ZstdDecoder;
use thiserror::Error;
use zip::ZipArchive;
use zip::result::ZipError;

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

/// How a file is packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// gzip, one or several members.
    Gzip,
    /// xz, one or several streams.
    Xz,
    /// zstd, one or several frames.
    Zstd,
    /// bzip2, one or several streams.
    Bzip2,
    /// A file of a zip archive: the one of this name, or else the only one.
    Zip(Option<String>),
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
        let form = match form {
            "gz" => Form::Gzip,
            "xz" => Form::Xz,
            "zst" => Form::Zstd,
            "bz2" => Form::Bzip2,
            "zip" => Form::Zip(member.clone()),
            _ => return None,
        };
        let named = matches!(form, Form::Zip(_)) || member.is_none();
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
        Form::Gzip => copy(flate2::bufread::MultiGzDecoder::new(packed), to, order.most),
        Form::Xz => {
            copy(lzma_rust2::XzReader::new_mem_limit(packed, true, XZ_MEMORY_MAX_KIB), to, order.most)
        }
        Form::Zstd => copy(ZstdDecoder::new(packed), to, order.most),
        Form::Bzip2 => copy(bzip2::bufread::MultiBzDecoder::new(packed), to, order.most),
        Form::Zip(member) => member_of(packed, member.as_deref(), to, order.most),
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
    let has = || {
        let mut shown: Vec<String> = files.iter().take(SHOWN).map(|name| format!("{name:?}")).collect();
        shown.extend((files.len() > SHOWN).then(|| format!("{} more", files.len() - SHOWN)));
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    };
    let name = match (member, &files[..]) {
        (Some(member), files) if files.iter().any(|name| name == member) => member.to_owned(),
        (Some(member), _) => return Err(StreamError::NoMember { wanted: member.to_owned(), has: has() }),
        (None, [name]) => name.clone(),
        (None, _) => return Err(StreamError::Several(has())),
    };
    let file = archive.by_name(&name).map_err(StreamError::Archive)?;
    copy(file, to, most)
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
        let end = at.saturating_add(filled as u64);
        if end > most {
            return Err(StreamError::TooLarge(most));
        }
        if block[..filled].iter().any(|byte| *byte != 0) {
            to.write_all_at(&block[..filled], at).map_err(StreamError::Write)?;
        }
        at = end;
        if filled < BLOCK {
            // A hole at its end, too.
            to.set_len(at).map_err(StreamError::Write)?;
            return Ok(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_in_words() {
        let read = |words: &[&str]| StreamOrder::read(&words.iter().map(OsString::from).collect::<Vec<_>>());
        let order = |form, most| Some(StreamOrder { form, most });
        assert_eq!(read(&["gz", "5"]), order(Form::Gzip, 5));
        assert_eq!(read(&["zip", "5"]), order(Form::Zip(None), 5));
        assert_eq!(read(&["zip", "5", "a/b"]), order(Form::Zip(Some("a/b".into())), 5));
        for words in
            [&["gz"][..], &["gz", "5", "a"], &["rar", "5"], &["gz", "x"], &["zip", "5", "a", "b"], &[]]
        {
            assert_eq!(read(words), None, "{words:?}");
        }
    }
}
