//! Requests, decoded. Each operation says which structure of include/uapi/linux/fuse.h it is.

use std::ffi::CStr;

use crate::wire::name::{Name, Target};

/// Bytes of `fuse_in_header`, which every request begins with.
pub const IN_HEADER: usize = 40;

/// Bytes of `fuse_out_header`, which every answer begins with.
pub const OUT_HEADER: usize = 16;

/// Most bytes behind the header of a request other than WRITE and BATCH_FORGET: an extended
/// attribute's value of 64 KiB with its name is the largest.
pub const BODY_MAX: usize = 8 + 256 + (64 << 10);

/// `fuse_in_header`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the request, this header included.
    pub len: u32,
    /// What is asked for (`enum fuse_opcode`).
    pub opcode: u32,
    /// The driver's number of the request, which the answer repeats.
    pub unique: u64,
    /// The inode it concerns.
    pub node: u64,
    /// User of the process that asks, as the guest numbers them.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Header {
    /// Reads the header. `pid` and the length of extensions are not needed: no extension is
    /// negotiated.
    #[must_use]
    pub fn decode(bytes: &[u8; IN_HEADER]) -> Self {
        let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("40 bytes"));
        let long = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("40 bytes"));
        Self { len: word(0), opcode: word(4), unique: long(8), node: long(16), uid: word(24), gid: word(28) }
    }
}

macro_rules! operations {
    ($($name:ident = $number:literal,)*) => {
        /// What a request asks for (`enum fuse_opcode`): those that the server answers. Others
        /// (STATX, IOCTL, BMAP, POLL, mappings for DAX, CUSE) are `ENOSYS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "fuse.h has their descriptions")]
        pub enum Op { $($name,)* }

        impl Op {
            /// Every operation with its number.
            pub const ALL: &'static [(Op, u32)] = &[$((Op::$name, $number),)*];

            /// The operation with this number.
            #[must_use]
            pub fn of(opcode: u32) -> Option<Self> {
                match opcode {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

operations! {
    Lookup = 1, Forget = 2, GetAttr = 3, SetAttr = 4, ReadLink = 5, SymLink = 6, MkNod = 8, MkDir = 9,
    Unlink = 10, RmDir = 11, Rename = 12, Link = 13, Open = 14, Read = 15, Write = 16, StatFs = 17,
    Release = 18, FSync = 20, SetXattr = 21, GetXattr = 22, ListXattr = 23, RemoveXattr = 24, Flush = 25,
    Init = 26, OpenDir = 27, ReadDir = 28, ReleaseDir = 29, FSyncDir = 30, GetLk = 31, SetLk = 32,
    SetLkW = 33, Access = 34, Create = 35, Interrupt = 36, Destroy = 38, BatchForget = 42, FAllocate = 43,
    ReadDirPlus = 44, Rename2 = 45, LSeek = 46, CopyFileRange = 47, SyncFs = 50, TmpFile = 51,
}

impl Op {
    /// Whether it may change the tree, whatever its arguments say. OPEN with an access mode for
    /// writing or O_TRUNC is not among these.
    #[must_use]
    pub fn changes(self) -> bool {
        use Op::{
            CopyFileRange, Create, FAllocate, Link, MkDir, MkNod, RemoveXattr, Rename, Rename2, RmDir,
            SetAttr, SetXattr, SymLink, TmpFile, Unlink, Write,
        };
        matches!(
            self,
            SetAttr
                | SymLink
                | MkNod
                | MkDir
                | Unlink
                | RmDir
                | Rename
                | Rename2
                | Link
                | Write
                | SetXattr
                | RemoveXattr
                | Create
                | FAllocate
                | CopyFileRange
                | TmpFile
        )
    }

    /// Fewest bytes that its answer needs behind the header, so that a request whose answer cannot
    /// be told is refused before it does anything.
    #[must_use]
    pub fn answer_len(self) -> usize {
        match self {
            Self::Lookup | Self::SymLink | Self::MkNod | Self::MkDir | Self::Link => 128,
            Self::GetAttr | Self::SetAttr => 104,
            Self::Create | Self::TmpFile => 144,
            Self::Open | Self::OpenDir => 16,
            Self::Write | Self::LSeek | Self::CopyFileRange => 8,
            Self::StatFs => 80,
            Self::GetLk => 24,
            Self::Init => 64,
            _ => 0,
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The host's time now.
    Now,
    /// Seconds since 1970 (before, if negative) and nanoseconds.
    At(i64, u32),
}

/// `fuse_setattr_in`: what is to be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permissions with the bits for set-id and sticky: 12 bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length of the file.
    pub size: Option<u64>,
    /// Time of access.
    pub atime: Option<SetTime>,
    /// Time of change of the contents.
    pub mtime: Option<SetTime>,
    /// The open file by which it is asked.
    pub handle: Option<u64>,
    /// With a new length or owner: the bits for set-id are to go.
    pub kill_set_id: bool,
}

/// `fuse_write_in`, without the data that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// The open file.
    pub handle: u64,
    /// Where in the file.
    pub offset: u64,
    /// Bytes of data that follow.
    pub size: u32,
    /// The bits for set-id are to go.
    pub kill_set_id: bool,
    /// Pages of the guest's cache, which belong where they say, whatever the handle is for.
    pub cached: bool,
}

impl Write {
    /// Bytes of `fuse_write_in`.
    pub const LEN: usize = 40;

    /// Decodes it.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let word = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("40 bytes"));
        let long = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("40 bytes"));
        // FUSE_WRITE_CACHE and FUSE_WRITE_KILL_SUIDGID.
        let (cached, kill_set_id) = (word(20) & 1 != 0, word(20) & 1 << 2 != 0);
        Self { handle: long(0), offset: long(8), size: word(16), kill_set_id, cached }
    }
}

/// The kind of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// F_RDLCK: shared.
    Read,
    /// F_WRLCK: exclusive.
    Write,
    /// F_UNLCK: none.
    Unlock,
}

/// `fuse_lk_in`: a lock, its owner and its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRange {
    /// The open file.
    pub handle: u64,
    /// Whose lock it is: a number that the driver makes.
    pub owner: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, at least `start`; `i64::MAX` or more: to the end, wherever that will be.
    pub end: u64,
    /// Its kind.
    pub kind: LockKind,
    /// It is a lock of the whole open file (flock), not of a process (fcntl).
    pub flock: bool,
}

/// A decoded request, without its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "fuse.h describes the fields, and the operations' names say the rest")]
pub enum Operation<'a> {
    Lookup {
        name: Name<'a>,
    },
    Forget {
        lookups: u64,
    },
    /// The list of `fuse_forget_one` follows in the request: `count` pairs of node and lookups.
    BatchForget {
        count: u32,
    },
    GetAttr {
        handle: Option<u64>,
    },
    SetAttr(SetAttr),
    ReadLink,
    SymLink {
        name: Name<'a>,
        target: Target<'a>,
    },
    MkNod {
        name: Name<'a>,
        mode: u32,
        device: u32,
    },
    MkDir {
        name: Name<'a>,
        mode: u32,
    },
    Unlink {
        name: Name<'a>,
    },
    RmDir {
        name: Name<'a>,
    },
    Rename {
        name: Name<'a>,
        new_parent: u64,
        new_name: Name<'a>,
        flags: u32,
    },
    Link {
        old_node: u64,
        name: Name<'a>,
    },
    Open {
        flags: u32,
        kill_set_id: bool,
    },
    Create {
        name: Name<'a>,
        flags: u32,
        mode: u32,
        kill_set_id: bool,
    },
    TmpFile {
        flags: u32,
        mode: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    /// Only its header: the data stay where they are.
    Write(Write),
    StatFs,
    Release {
        handle: u64,
        owner: u64,
        unlock: bool,
    },
    ReleaseDir {
        handle: u64,
    },
    Flush {
        handle: u64,
        owner: u64,
    },
    FSync {
        handle: u64,
        data_only: bool,
    },
    FSyncDir {
        handle: u64,
        data_only: bool,
    },
    SetXattr {
        name: &'a CStr,
        value: &'a [u8],
        flags: u32,
    },
    GetXattr {
        name: &'a CStr,
        size: u32,
    },
    ListXattr {
        size: u32,
    },
    RemoveXattr {
        name: &'a CStr,
    },
    Init {
        major: u32,
        minor: u32,
        readahead: u32,
        flags: u64,
    },
    OpenDir {
        flags: u32,
    },
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
        plus: bool,
    },
    GetLk(LockRange),
    SetLk {
        lock: LockRange,
        wait: bool,
    },
    Access {
        mask: u32,
    },
    Interrupt {
        unique: u64,
    },
    Destroy,
    FAllocate {
        handle: u64,
        offset: u64,
        len: u64,
        mode: u32,
    },
    LSeek {
        handle: u64,
        offset: u64,
        whence: u32,
    },
    CopyFileRange {
        from: u64,
        from_offset: u64,
        to_node: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    },
    SyncFs,
}
