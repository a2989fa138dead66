//! What differs between operating systems: how a path is looked up below a directory that it must
//! not lead out of, and the widths of what a file system tells.

use rustix::ffi::CString;
use rustix::fs::{FileType, Mode, OFlags, RawMode, Stat};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(test, not(target_os = "linux")))]
mod walk;

#[cfg(target_os = "linux")]
pub(crate) use linux::{directory_in, identity, look, look_in, makes_files_up};
#[cfg(not(target_os = "linux"))]
pub(crate) use walk::{directory_in, identity, look, look_in, makes_files_up};

/// How a directory is opened.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What is at a path. A link at its end was not followed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A link, and where it leads.
    Link(CString),
    /// Something else.
    Other(FileType),
}

/// The permissions of a file, and its set-user-id, set-group-id and sticky bits.
pub(crate) fn bits(found: &Stat) -> u32 {
    let bits: RawMode = found.st_mode & 0o7777;
    // Sixteen bits wide on some systems.
    #[allow(clippy::useless_conversion)]
    bits.into()
}

/// Twelve bits as a mode to set.
pub(crate) fn mode(bits: u32) -> Mode {
    Mode::from_bits_truncate(RawMode::try_from(bits & 0o7777).expect("twelve bits fit in every width"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_as_they_are_read() {
        let file = tempfile::tempfile().unwrap();
        for one in [0, 0o644, 0o1777, 0o4755, 0o7777, 0o600] {
            rustix::fs::fchmod(&file, mode(one | 0o100_000)).unwrap();
            assert_eq!(bits(&rustix::fs::fstat(&file).unwrap()), one, "{one:o}");
        }
    }
}
