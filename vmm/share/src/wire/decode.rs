//! How a request is decoded: its fields in the order of include/uapi/linux/fuse.h.

use super::fields::Fields;
use super::request::{LockKind, LockRange, Op, Operation, SetAttr, SetTime, Write};
use crate::errno::Errno;

impl<'a> Operation<'a> {
    /// Decodes what follows the header. `body` ends where the header's length says.
    ///
    /// # Errors
    /// `EINVAL`: it is cut short, longer than its fields, or a field has a value that cannot be.
    /// `ENAMETOOLONG`, `ERANGE`: a name.
    pub fn decode(op: Op, body: &'a [u8]) -> Result<Self, Errno> {
        let mut fields = Fields(body);
        let f = &mut fields;
        let operation = match op {
            Op::Lookup => Self::Lookup { name: f.name()? },
            Op::Forget => Self::Forget { lookups: f.u64()? },
            Op::BatchForget => {
                let count = f.u32()?;
                return Ok(Self::BatchForget { count });
            }
            Op::Write => {
                let bytes = f.bytes(Write::LEN)?.first_chunk().ok_or(Errno::INVAL)?;
                return Ok(Self::Write(Write::decode(bytes)));
            }
            Op::GetAttr | Op::SetAttr | Op::ReadLink | Op::Access => attributes(op, f)?,
            Op::SymLink | Op::MkNod | Op::MkDir | Op::Unlink | Op::RmDir => entries(op, f)?,
            Op::Rename | Op::Rename2 | Op::Link => moves(op, f)?,
            Op::Open | Op::OpenDir | Op::Create | Op::TmpFile => opens(op, f)?,
            Op::Release | Op::ReleaseDir | Op::Flush | Op::FSync | Op::FSyncDir => closes(op, f)?,
            Op::SetXattr | Op::GetXattr | Op::ListXattr | Op::RemoveXattr => extended(op, f)?,
            Op::Read | Op::ReadDir | Op::ReadDirPlus | Op::FAllocate | Op::LSeek | Op::CopyFileRange => {
                data(op, f)?
            }
            Op::GetLk => Self::GetLk(lock(f)?),
            Op::SetLk | Op::SetLkW => Self::SetLk { lock: lock(f)?, wait: op == Op::SetLkW },
            Op::Interrupt => Self::Interrupt { unique: f.u64()? },
            // Some drivers send eight bytes of padding, others nothing.
            Op::SyncFs => {
                f.0 = &[];
                Self::SyncFs
            }
            Op::StatFs => Self::StatFs,
            Op::Destroy => Self::Destroy,
            Op::Init => init(f)?,
        };
        fields.end()?;
        Ok(operation)
    }
}

/// Before 7.36 `fuse_init_in` has 16 bytes, then 64. With a version that shares nothing with ours
/// there may be anything behind it.
fn init<'a>(f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    const INIT_EXT: u64 = 1 << 30;
    let (major, minor) = (f.u32()?, f.u32()?);
    if major != 7 {
        f.0 = &[];
        return Ok(Operation::Init { major, minor, readahead: 0, flags: 0 });
    }
    let readahead = f.u32()?;
    let mut flags = u64::from(f.u32()?);
    if flags & INIT_EXT != 0 {
        flags |= u64::from(f.u32()?) << 32;
    }
    f.0 = &[];
    Ok(Operation::Init { major, minor, readahead, flags })
}

fn attributes<'a>(op: Op, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match op {
        Op::GetAttr => {
            let (flags, _, handle) = (f.u32()?, f.u32()?, f.u64()?);
            // FUSE_GETATTR_FH.
            Operation::GetAttr { handle: (flags & 1 != 0).then_some(handle) }
        }
        Op::SetAttr => Operation::SetAttr(setattr(f)?),
        Op::Access => {
            let (mask, _) = (f.u32()?, f.u32()?);
            Operation::Access { mask }
        }
        _ => Operation::ReadLink,
    })
}

/// `fuse_setattr_in`. A time of change of the inode (FATTR_CTIME) cannot be set anywhere and is
/// ignored, as is the owner of a lock.
fn setattr(f: &mut Fields<'_>) -> Result<SetAttr, Errno> {
    let (valid, _) = (f.u32()?, f.u32()?);
    let (handle, size, _lock_owner) = (f.u64()?, f.u64()?, f.u64()?);
    let (atime, mtime, _ctime) = (f.u64()?, f.u64()?, f.u64()?);
    let (atime_ns, mtime_ns, _ctime_ns) = (f.u32()?, f.u32()?, f.u32()?);
    let (mode, _, uid, gid, _) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?, f.u32()?);
    let has = |bit: u32| valid & 1 << bit != 0;
    let time = |bit: u32, now: u32, seconds: u64, nanos: u32| match (has(bit), has(now)) {
        (false, _) => Ok(None),
        (true, true) => Ok(Some(SetTime::Now)),
        (true, false) if nanos < 1_000_000_000 => Ok(Some(SetTime::At(seconds.cast_signed(), nanos))),
        (true, false) => Err(Errno::INVAL),
    };
    // Ids of all ones mean "none" to the host.
    let id = |bit: u32, id: u32| match (has(bit), id) {
        (false, _) => Ok(None),
        (true, u32::MAX) => Err(Errno::INVAL),
        (true, id) => Ok(Some(id)),
    };
    Ok(SetAttr {
        mode: has(0).then_some(mode & 0o7777),
        uid: id(1, uid)?,
        gid: id(2, gid)?,
        size: has(3).then_some(size),
        atime: time(4, 7, atime, atime_ns)?,
        mtime: time(5, 8, mtime, mtime_ns)?,
        handle: has(6).then_some(handle),
        kill_set_id: has(11),
    })
}

fn entries<'a>(op: Op, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match op {
        Op::SymLink => Operation::SymLink { name: f.name()?, target: f.target()? },
        Op::MkNod => {
            let (mode, device, _umask, _) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
            Operation::MkNod { name: f.name()?, mode, device }
        }
        Op::MkDir => {
            let (mode, _umask) = (f.u32()?, f.u32()?);
            Operation::MkDir { name: f.name()?, mode: mode & 0o7777 }
        }
        Op::Unlink => Operation::Unlink { name: f.name()? },
        _ => Operation::RmDir { name: f.name()? },
    })
}

fn moves<'a>(op: Op, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let node = f.u64()?;
    if op == Op::Link {
        return Ok(Operation::Link { old_node: node, name: f.name()? });
    }
    let flags = if op == Op::Rename2 {
        let (flags, _) = (f.u32()?, f.u32()?);
        flags
    } else {
        0
    };
    Ok(Operation::Rename { new_parent: node, flags, name: f.name()?, new_name: f.name()? })
}

fn opens<'a>(op: Op, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let flags = f.u32()?;
    if matches!(op, Op::Open | Op::OpenDir) {
        let open_flags = f.u32()?;
        return Ok(match op {
            Op::Open => Operation::Open { flags, kill_set_id: open_flags & 1 != 0 },
            _ => Operation::OpenDir { flags },
        });
    }
    let (mode, _umask, open_flags) = (f.u32()?, f.u32()?, f.u32()?);
    let mode = mode & 0o7777;
    if op == Op::Create {
        let kill_set_id = open_flags & 1 != 0;
        return Ok(Operation::Create { name: f.name()?, flags, mode, kill_set_id });
    }
    // The driver sends the name `/`, which stands for none.
    f.terminated()?;
    Ok(Operation::TmpFile { flags, mode })
}

fn closes<'a>(op: Op, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let handle = f.u64()?;
    Ok(match op {
        Op::Release | Op::ReleaseDir => {
            let (_flags, release, owner) = (f.u32()?, f.u32()?, f.u64()?);
            match op {
                // FUSE_RELEASE_FLOCK_UNLOCK.
                Op::Release => Operation::Release { handle, owner, unlock: release & 2 != 0 },
                _ => Operation::ReleaseDir { handle },
            }
        }
        Op::Flush => {
            let (_, _, owner) = (f.u32()?, f.u32()?, f.u64()?);
            Operation::Flush { handle, owner }
        }
        _ => {
            let (flags, _) = (f.u32()?, f.u32()?);
            // FUSE_FSYNC_FDATASYNC.
            let data_only = flags & 1 != 0;
            match op {
                Op::FSync => Operation::FSync { handle, data_only },
                _ => Operation::FSyncDir { handle, data_only },
            }
        }
    })
}

fn extended<'a>(op: Op, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match op {
        // FUSE_SETXATTR_EXT is not negotiated, so that `fuse_setxattr_in` has 8 bytes.
        Op::SetXattr => {
            let (size, flags) = (f.u32()?, f.u32()?);
            let name = f.attribute()?;
            let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
            Operation::SetXattr { name, value: f.bytes(size)?, flags }
        }
        Op::GetXattr => {
            let (size, _) = (f.u32()?, f.u32()?);
            Operation::GetXattr { name: f.attribute()?, size }
        }
        Op::ListXattr => {
            let (size, _) = (f.u32()?, f.u32()?);
            Operation::ListXattr { size }
        }
        _ => Operation::RemoveXattr { name: f.attribute()? },
    })
}

fn data<'a>(op: Op, f: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let (handle, offset) = (f.u64()?, f.u64()?);
    Ok(match op {
        Op::Read | Op::ReadDir | Op::ReadDirPlus => {
            let (size, _read_flags, _lock_owner) = (f.u32()?, f.u32()?, f.u64()?);
            let (_flags, _) = (f.u32()?, f.u32()?);
            match op {
                Op::Read => Operation::Read { handle, offset, size },
                _ => Operation::ReadDir { handle, offset, size, plus: op == Op::ReadDirPlus },
            }
        }
        Op::FAllocate => {
            let (len, mode, _) = (f.u64()?, f.u32()?, f.u32()?);
            Operation::FAllocate { handle, offset, len, mode }
        }
        Op::LSeek => {
            let (whence, _) = (f.u32()?, f.u32()?);
            Operation::LSeek { handle, offset, whence }
        }
        _ => {
            let (to_node, to, to_offset) = (f.u64()?, f.u64()?, f.u64()?);
            let (len, flags) = (f.u64()?, f.u64()?);
            if flags != 0 {
                return Err(Errno::INVAL);
            }
            Operation::CopyFileRange { from: handle, from_offset: offset, to_node, to, to_offset, len }
        }
    })
}

/// `fuse_lk_in`.
fn lock(f: &mut Fields<'_>) -> Result<LockRange, Errno> {
    let (handle, owner, start, end) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
    let (kind, _pid, flags, _) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
    let kind = match kind {
        0 => LockKind::Read,
        1 => LockKind::Write,
        2 => LockKind::Unlock,
        _ => return Err(Errno::INVAL),
    };
    if end < start {
        return Err(Errno::INVAL);
    }
    // FUSE_LK_FLOCK.
    Ok(LockRange { handle, owner, start, end, kind, flock: flags & 1 != 0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::name::Name;
    use super::*;

    proptest! {
        #[test]
        fn no_bytes_are_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), op in 0..Op::ALL.len()) {
            let (op, number) = Op::ALL[op];
            prop_assert_eq!(Op::of(number), Some(op));
            // What is accepted with something behind it is what says itself how long it is.
            if Operation::decode(op, &bytes).is_ok() {
                let mut more = bytes.clone();
                more.extend_from_slice(b"\0x");
                let open = matches!(op, Op::BatchForget | Op::Write | Op::SyncFs | Op::Init);
                prop_assert_eq!(Operation::decode(op, &more).is_ok(), open, "{:?}", op);
            }
        }
    }

    /// The numbers 1, 2, 3, ... as 32-bit fields.
    fn words(count: u32) -> Vec<u8> {
        (1..=count).flat_map(u32::to_le_bytes).collect()
    }

    fn with(mut bytes: Vec<u8>, names: &[u8]) -> Vec<u8> {
        bytes.extend_from_slice(names);
        bytes
    }

    /// Two consecutive words of [`words`] as one field of 64 bits.
    fn pair(low: u64) -> u64 {
        low | (low + 1) << 32
    }

    #[test]
    fn fields_lie_where_linux_has_them() {
        let name = |bytes| Name::new(bytes).unwrap();
        let (a, b) = (name(b"a\0"), name(b"b\0"));
        let table: Vec<(Op, Vec<u8>, Operation<'_>)> = vec![
            (Op::Lookup, b"a\0".to_vec(), Operation::Lookup { name: a }),
            (Op::Forget, words(2), Operation::Forget { lookups: pair(1) }),
            (Op::GetAttr, words(4), Operation::GetAttr { handle: Some(pair(3)) }),
            (Op::MkNod, with(words(4), b"a\0"), Operation::MkNod { name: a, mode: 1, device: 2 }),
            (Op::MkDir, with(words(2), b"a\0"), Operation::MkDir { name: a, mode: 1 }),
            (Op::Link, with(words(2), b"a\0"), Operation::Link { old_node: pair(1), name: a }),
            (
                Op::Rename,
                with(words(2), b"a\0b\0"),
                Operation::Rename { name: a, new_parent: pair(1), new_name: b, flags: 0 },
            ),
            (
                Op::Rename2,
                with(words(4), b"a\0b\0"),
                Operation::Rename { name: a, new_parent: pair(1), new_name: b, flags: 3 },
            ),
            (Op::Open, words(2), Operation::Open { flags: 1, kill_set_id: false }),
            (
                Op::Create,
                with(words(4), b"a\0"),
                Operation::Create { name: a, flags: 1, mode: 2, kill_set_id: false },
            ),
            (Op::TmpFile, with(words(4), b"/\0"), Operation::TmpFile { flags: 1, mode: 2 }),
            (Op::Read, words(10), Operation::Read { handle: pair(1), offset: pair(3), size: 5 }),
            (Op::Release, words(6), Operation::Release { handle: pair(1), owner: pair(5), unlock: false }),
            (Op::Flush, words(6), Operation::Flush { handle: pair(1), owner: pair(5) }),
            (Op::FSync, words(4), Operation::FSync { handle: pair(1), data_only: true }),
            (Op::GetXattr, with(words(2), b"n/a\0"), Operation::GetXattr { name: c"n/a", size: 1 }),
            (Op::ListXattr, words(2), Operation::ListXattr { size: 1 }),
            (
                Op::FAllocate,
                words(8),
                Operation::FAllocate { handle: pair(1), offset: pair(3), len: pair(5), mode: 7 },
            ),
            (Op::LSeek, words(6), Operation::LSeek { handle: pair(1), offset: pair(3), whence: 5 }),
            (Op::Interrupt, words(2), Operation::Interrupt { unique: pair(1) }),
        ];
        for (op, bytes, operation) in table {
            assert_eq!(Operation::decode(op, &bytes), Ok(operation), "{op:?}");
            assert_eq!(Operation::decode(op, &bytes[..bytes.len() - 1]), Err(Errno::INVAL), "{op:?}");
        }
    }

    #[test]
    fn attributes_to_set_are_told_apart() {
        let body = |valid: u32| {
            let mut bytes = words(22);
            bytes[..4].copy_from_slice(&valid.to_le_bytes());
            bytes
        };
        let of = |valid| match Operation::decode(Op::SetAttr, &body(valid)) {
            Ok(Operation::SetAttr(set)) => set,
            other => panic!("{other:?}"),
        };
        let none = SetAttr::default();
        assert_eq!(of(0), none);
        assert_eq!(of(1), SetAttr { mode: Some(18), ..none });
        assert_eq!(of(2), SetAttr { uid: Some(20), ..none });
        assert_eq!(of(4), SetAttr { gid: Some(21), ..none });
        assert_eq!(of(8), SetAttr { size: Some(pair(5)), ..none });
        let at = |seconds: u64, nanos| Some(SetTime::At(pair(seconds).cast_signed(), nanos));
        assert_eq!(of(1 << 4), SetAttr { atime: at(9, 15), ..none });
        assert_eq!(of(1 << 5), SetAttr { mtime: at(11, 16), ..none });
        assert_eq!(of(1 << 5 | 1 << 8), SetAttr { mtime: Some(SetTime::Now), ..none });
        assert_eq!(of(1 << 6), SetAttr { handle: Some(pair(3)), ..none });
        assert_eq!(of(1 << 9 | 1 << 10), none, "a lock's owner, and a time that nobody sets");
        assert_eq!(of(1 << 11), SetAttr { kill_set_id: true, ..none });
        // No nanosecond beyond a second, no owner that means none.
        let mut bytes = body(1 << 4);
        bytes[56..60].copy_from_slice(&1_000_000_000_u32.to_le_bytes());
        assert_eq!(Operation::decode(Op::SetAttr, &bytes), Err(Errno::INVAL));
        let mut bytes = body(2);
        bytes[76..80].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Operation::decode(Op::SetAttr, &bytes), Err(Errno::INVAL));
    }

    fn init(bytes: &[u8]) -> Result<Operation<'_>, Errno> {
        Operation::decode(Op::Init, bytes)
    }

    #[test]
    fn writes_and_greetings_of_any_age() {
        let Ok(Operation::Write(write)) = Operation::decode(Op::Write, &words(11)) else {
            panic!("data may follow")
        };
        assert_eq!(
            write,
            Write { handle: pair(1), offset: pair(3), size: 5, kill_set_id: true, cached: false }
        );
        let seven = |rest: &[u32]| -> Vec<u8> {
            [7, 31, 4096].iter().chain(rest).flat_map(|word: &u32| word.to_le_bytes()).collect()
        };
        let plain = Operation::Init { major: 7, minor: 31, readahead: 4096, flags: 9 };
        assert_eq!(init(&seven(&[9])), Ok(plain));
        let extended = Operation::Init { major: 7, minor: 31, readahead: 4096, flags: 1 << 30 | 5 << 32 };
        assert_eq!(init(&seven(&[1 << 30, 5, 0, 0])), Ok(extended));
        assert_eq!(init(&seven(&[1 << 30])), Err(Errno::INVAL));
        assert_eq!(init(&words(2)), Ok(Operation::Init { major: 1, minor: 2, readahead: 0, flags: 0 }));
        assert_eq!(init(&words(1)), Err(Errno::INVAL));
    }
}
