//! The FUSE protocol, version 7, as Linux speaks it (include/uapi/linux/fuse.h): requests are
//! decoded and answers encoded here, without a file or a clock. All numbers have the byte order of
//! the host, which is little-endian wherever Nelly runs.
//!
//! The server speaks minor versions 31 to 38: 31 is what every driver for virtio has (Linux 5.4),
//! and what later versions add up to 7.41 (`STATX`, pass-through of files, mapped mounts) is not
//! needed.

mod decode;
mod fields;
mod init;
mod name;
mod reply;
mod request;

pub use init::{Flags, Init, MAX_PAGES, MAX_WRITE, negotiate};
pub use name::{NAME_MAX, Name, TARGET_MAX, Target};
pub use reply::{
    Attr, Entry, StatFs, attr_out, dirent, entry_out, fits_dirent, lock_out, open_out, out_header,
};
pub use request::{
    BODY_MAX, Header, IN_HEADER, LockKind, LockRange, OUT_HEADER, Op, Operation, SetAttr, SetTime, Write,
};
