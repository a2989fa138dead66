//! File systems in memory, spelled as docker's and podman's flags. What the guest's kernel or its
//! agent would refuse is refused here, as far as it can be known before there is a guest.

use serde::{Deserialize, Serialize};

use super::{SpecError, quantity};

/// A tmpfs in the container, parsed from `PATH[:OPTIONS]` as in docker and podman.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the container.
    pub path: String,
    /// Mount options, e.g. `size=64m`, `mode=1777`, `ro`, `noexec`.
    pub options: Vec<String>,
}

/// Words of mount(8) that a tmpfs can have, with the propagation of what is mounted below it.
const WORDS: &[&str] = &[
    "async",
    "atime",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "inode32",
    "inode64",
    "loud",
    "mand",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "noswap",
    "private",
    "relatime",
    "ro",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "sync",
    "unbindable",
];

const KNOWN: &str = "the options of a tmpfs are size=SIZE, mode=OCTAL, uid=N, gid=N, nr_inodes=N, nr_blocks=N, huge=WHEN, mpol=POLICY, \
                     ro, noexec, exec, suid, dev and their kin of mount(8)";

/// The largest number of a user or group; the next one means "unchanged" to the kernel.
const LARGEST_ID: u32 = u32::MAX - 1;

impl std::str::FromStr for Tmpfs {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        if !path.starts_with('/')
            || path.trim_end_matches('/').is_empty()
            || path.contains('\0')
            || path.split('/').any(|part| part == "..")
        {
            return Err(SpecError::Tmpfs { text: text.to_owned() });
        }
        let options = options.split(',').filter(|option| !option.is_empty()).map(option);
        Ok(Self { path: path.to_owned(), options: options.collect::<Result<_, _>>()? })
    }
}

/// An option as the guest's kernel reads it.
///
/// # Errors
/// No tmpfs has it, or not with this value.
pub(super) fn option(text: &str) -> Result<String, SpecError> {
    let refuse = |hint: &str| SpecError::Quantity {
        what: "tmpfs option",
        text: text.to_owned(),
        hint: hint.to_owned(),
    };
    let Some((key, value)) = text.split_once('=') else {
        return if WORDS.contains(&text) { Ok(text.to_owned()) } else { Err(refuse(KNOWN)) };
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (good, hint) = match key {
        "size" => {
            return size(value).map(|size| format!("size={size}")).ok_or_else(|| {
                refuse("write a size such as 64M, a number of bytes, or a part of the memory such as 50%")
            });
        }
        "mode" => {
            let octal = u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777);
            (octal && digits(value), "write an octal number, such as 1777")
        }
        "uid" | "gid" => {
            let number = value.parse::<u32>().is_ok_and(|id| id <= LARGEST_ID);
            (number && digits(value), "write the number of a user or group; names are not known here")
        }
        "nr_inodes" | "nr_blocks" => {
            let number = value.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G']);
            let letters = value.len() - number.len();
            (digits(number) && number.parse::<u64>().is_ok() && letters <= 1, "write a number, such as 100k")
        }
        "huge" => (
            ["never", "always", "within_size", "advise"].contains(&value),
            "write never, always, within_size or advise",
        ),
        // The guest's kernel alone knows its nodes.
        "mpol" => (!value.is_empty(), "write a policy, such as local"),
        _ => (false, KNOWN),
    };
    if good { Ok(text.to_owned()) } else { Err(refuse(hint)) }
}

/// A size as the kernel reads it: bytes, perhaps with one letter, or per cent.
fn size(text: &str) -> Option<String> {
    let plain = |text: &str| text.parse::<u64>().is_ok() && !text.starts_with('+');
    if let Some(percent) = text.strip_suffix('%') {
        return plain(percent).then(|| text.to_owned());
    }
    if plain(text) {
        return Some(text.to_owned());
    }
    let bytes = quantity::bytes(text).ok()?;
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    // One letter behind a whole number is the kernel's own spelling.
    let is_kernels = plain(number) && text.len() == number.len() + 1;
    Some(if is_kernels { text.to_owned() } else { bytes.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_takes_dockers_spelling_and_refuses_what_could_escape() {
        let tmpfs: Tmpfs = "/cache:size=64m,mode=0700".parse().unwrap();
        assert_eq!(tmpfs.path, "/cache");
        assert_eq!(tmpfs.options, ["size=64m", "mode=0700"]);
        assert_eq!("/run".parse::<Tmpfs>().unwrap().options, Vec::<String>::new());
        for bad in ["", "cache", "/", "//", "/a/../..", ":size=1m", "/a\0b"] {
            assert!(bad.parse::<Tmpfs>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn options_that_cannot_be_are_refused_by_name() {
        for (text, wanted) in [
            ("size=64m", "size=64m"),
            ("size=64M", "size=64M"),
            ("size=65536", "size=65536"),
            ("size=50%", "size=50%"),
            ("size=64MB", "size=67108864"),
            ("size=0.5g", "size=536870912"),
            ("mode=1777", "mode=1777"),
            ("mode=0700", "mode=0700"),
            ("uid=1000", "uid=1000"),
            ("gid=0", "gid=0"),
            ("nr_inodes=100k", "nr_inodes=100k"),
            ("nr_blocks=1024", "nr_blocks=1024"),
            ("huge=within_size", "huge=within_size"),
            ("mpol=local", "mpol=local"),
            ("noexec", "noexec"),
            ("rw", "rw"),
            ("rprivate", "rprivate"),
        ] {
            assert_eq!(option(text).as_deref(), Ok(wanted));
        }
        for (bad, part) in [
            ("size=lots", "such as 64M"),
            ("size=", "such as 64M"),
            ("size=%", "such as 64M"),
            ("size=64Q", "such as 64M"),
            ("size=+1", "such as 64M"),
            ("size=-1", "such as 64M"),
            ("size=99999999999T", "such as 64M"),
            ("mode=999", "octal"),
            ("mode=10000", "octal"),
            ("mode=+7", "octal"),
            ("mode=", "octal"),
            ("uid=web", "number"),
            ("gid=4294967295", "number"),
            ("nr_inodes=kk", "100k"),
            ("nr_blocks=1kk", "100k"),
            ("huge=yes", "within_size"),
            ("mpol=", "policy"),
            ("colour=red", "options of a tmpfs are"),
            ("remount", "options of a tmpfs are"),
            ("bind", "options of a tmpfs are"),
            ("tmpcopyup", "options of a tmpfs are"),
        ] {
            let error = option(bad).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains(&format!("{bad:?}")), "{bad}: {error}");
            assert!(format!("/x:ro,{bad}").parse::<Tmpfs>().is_err());
        }
    }
}
