//! Owners and modes that a guest sets and the host's user does not have: they are kept in an
//! extended attribute beside the file's own.

use std::ffi::CStr;

/// The attribute that keeps them.
pub(crate) const ATTRIBUTE: &CStr = c"user.nelly.owner";

/// Names that begin so are this server's: no guest reads or writes them.
const OURS: &[u8] = b"user.nelly.";

/// Most bytes of the attribute's value.
pub(crate) const RECORD_MAX: usize = 64;

/// Bits of a mode that are permissions, set-id and sticky.
const PERMISSIONS: u32 = 0o7777;

/// Whether an extended attribute is one of ours.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    name.starts_with(OURS)
}

/// What a guest is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Permissions, set-id and sticky: 12 bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Shown {
    /// Without the bits for set-id that a change of the contents or the owner ends: set-group-id
    /// without execution by the group means something else, and stays.
    pub(crate) fn without_set_id(self) -> Self {
        let group = if self.mode & 0o010 != 0 { 0o2000 } else { 0 };
        Self { mode: self.mode & !(0o4000 | group), ..self }
    }
}

/// What the attribute keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    shown: Shown,
    /// The mode of the host's file when this was written. When it is another one now, the host's
    /// user changed it, and meant it.
    host_mode: u32,
}

impl Record {
    /// `1:UID:GID:MODE:HOST-MODE`, the modes in octal.
    pub(crate) fn encode(&self) -> String {
        let Shown { mode, uid, gid } = self.shown;
        format!("1:{uid}:{gid}:{mode:o}:{:o}", self.host_mode)
    }

    /// Reads one. `None`: it is not one that this version writes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut parts = text.split(':');
        if parts.next()? != "1" {
            return None;
        }
        let uid = parts.next()?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let mut mode = || u32::from_str_radix(parts.next()?, 8).ok().filter(|mode| *mode <= PERMISSIONS);
        let record = Self { shown: Shown { mode: mode()?, uid, gid }, host_mode: mode()? };
        (parts.next().is_none() && uid != u32::MAX && gid != u32::MAX).then_some(record)
    }
}

/// The mode that the host's file gets when a guest sets `mode`: its user can always use it, and
/// nobody else can write it or runs it as somebody else.
fn host_mode(mode: u32, is_dir: bool) -> u32 {
    mode & 0o755 | if is_dir { 0o700 } else { 0o600 }
}

/// What a guest is shown of a file with the host's mode `mode` and perhaps a record. `default` has
/// the owner of files without.
pub(crate) fn shown(mode: u32, record: Option<Record>, default: (u32, u32)) -> Shown {
    let mode = mode & PERMISSIONS;
    match record {
        None => Shown { mode, uid: default.0, gid: default.1 },
        Some(record) if record.host_mode == mode => record.shown,
        Some(record) => Shown { mode: mode & 0o777, ..record.shown },
    }
}

/// How `wanted` is kept: the mode for the host's file, and a record unless the file shows it by
/// itself.
pub(crate) fn keep(wanted: Shown, is_dir: bool, default: (u32, u32)) -> (u32, Option<Record>) {
    let host = host_mode(wanted.mode, is_dir);
    let record = Record { shown: wanted, host_mode: host };
    (host, (shown(host, None, default) != wanted).then_some(record))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_set_is_shown(mode in 0..=0o7777_u32, uid in 0..u32::MAX, gid in 0..u32::MAX, is_dir: bool) {
            let wanted = Shown { mode, uid, gid };
            let (host, record) = keep(wanted, is_dir, (0, 0));
            prop_assert_eq!(host & 0o7022, 0, "nothing that others could use");
            prop_assert_eq!(host & 0o600, 0o600);
            let again = record.map(|record| Record::decode(record.encode().as_bytes()).unwrap());
            prop_assert_eq!(again, record);
            prop_assert!(record.is_none_or(|record| record.encode().len() <= RECORD_MAX));
            prop_assert_eq!(shown(host, again, (0, 0)), wanted);
        }

        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Record::decode(&bytes);
        }
    }

    #[test]
    fn ordinary_files_need_no_record() {
        for (mode, is_dir) in [(0o644, false), (0o755, false), (0o755, true), (0o700, true), (0o600, false)] {
            assert_eq!(keep(Shown { mode, uid: 5, gid: 6 }, is_dir, (5, 6)), (mode, None));
        }
        assert!(keep(Shown { mode: 0o4755, uid: 5, gid: 6 }, false, (5, 6)).1.is_some());
        assert!(keep(Shown { mode: 0, uid: 5, gid: 6 }, false, (5, 6)).1.is_some());
    }

    #[test]
    fn a_change_by_the_hosts_user_counts() {
        let (host, record) = keep(Shown { mode: 0o4711, uid: 7, gid: 8 }, false, (0, 0));
        assert_eq!(host, 0o711);
        assert_eq!(shown(0o640, record, (0, 0)), Shown { mode: 0o640, uid: 7, gid: 8 });
    }

    #[test]
    fn strange_records_are_none() {
        for bad in [
            "",
            "1",
            "2:0:0:644:644",
            "1:0:0:644",
            "1:0:0:644:644:",
            "1:-1:0:644:644",
            "1:0:0:10000:644",
            "1:4294967295:0:644:644",
            "1:0:0:888:644",
            "1:0:0: 644:644",
        ] {
            assert_eq!(Record::decode(bad.as_bytes()), None, "{bad:?}");
        }
        assert!(is_ours(b"user.nelly.owner") && is_ours(b"user.nelly.") && !is_ours(b"user.nelly"));
    }

    #[test]
    fn set_id_ends_as_linux_ends_it() {
        let of = |mode| Shown { mode, uid: 0, gid: 0 }.without_set_id().mode;
        assert_eq!([of(0o6755), of(0o2644), of(0o4644), of(0o1777)], [0o755, 0o2644, 0o644, 0o1777]);
    }
}
