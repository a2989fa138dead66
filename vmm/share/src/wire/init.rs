//! What the server and the driver agree on (`fuse_init_in`, `fuse_init_out`).

use crate::config::{CacheMode, Locks, Options};
use crate::errno::Errno;

/// Most bytes of one WRITE or READ.
pub const MAX_WRITE: u32 = 1 << 20;

/// The same in pages of 4 KiB.
pub const MAX_PAGES: u16 = 256;

/// The newest minor version that is spoken.
const MINOR: u32 = 38;

/// The oldest: what Linux 5.4, the first with virtio-fs, speaks.
const MINOR_MIN: u32 = 31;

/// Flags of INIT, each of which is asked for with a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u64);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal;)*) => {
        impl Flags {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
        }
    };
}

flags! {
    /// Several reads of one file at a time: read-ahead overlaps.
    ASYNC_READ = 0;
    /// Locks of fcntl are held here, if they are to be the host's.
    POSIX_LOCKS = 1;
    /// O_TRUNC comes with OPEN: one request instead of two, and no moment between them.
    ATOMIC_O_TRUNC = 3;
    /// Writes of more than 4 KiB.
    BIG_WRITES = 5;
    /// Locks of flock are held here, if they are to be the host's.
    FLOCK_LOCKS = 10;
    /// Cached data are dropped when the size or the time of change differs.
    AUTO_INVAL_DATA = 12;
    /// Entries come with their attributes: `ls -l` and `find` need no LOOKUP of each.
    DO_READDIRPLUS = 13;
    /// But only where the driver sees that they are wanted.
    READDIRPLUS_AUTO = 14;
    /// Direct I/O overlaps.
    ASYNC_DIO = 15;
    /// Several lookups in one directory at a time: the server locks nothing for them.
    PARALLEL_DIROPS = 18;
    /// `max_pages` below is valid: requests of 1 MiB.
    MAX_PAGES = 22;
    /// Targets of symbolic links are kept, where everything is.
    CACHE_SYMLINKS = 23;
    /// The server drops the bits for set-id and file capabilities on WRITE, new length and new
    /// owner. Without it the driver asks for an attribute before each write.
    HANDLE_KILLPRIV_V2 = 28;
    /// `flags2` of the structures is valid.
    INIT_EXT = 30;
    /// A shared mapping is possible although nothing is cached.
    DIRECT_IO_ALLOW_MMAP = 36;
}

impl Flags {
    /// Flags of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all flags of `other` are among these.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What is asked for. Not among them: WRITEBACK_CACHE (the guest would decide sizes and times
    /// of files that the host changes too), POSIX_ACL (it needs the host's users), EXPORT_SUPPORT
    /// (`.` and `..` are no names here), SECURITY_CTX, SETXATTR_EXT, SUBMOUNTS, DAX.
    #[must_use]
    pub fn wanted(options: &Options) -> Self {
        let mut wanted = Self(0);
        let mut ask = |flags: &[Self]| flags.iter().for_each(|flag| wanted = wanted.and(*flag));
        ask(&[Self::ASYNC_READ, Self::ATOMIC_O_TRUNC, Self::BIG_WRITES, Self::DO_READDIRPLUS]);
        ask(&[Self::READDIRPLUS_AUTO, Self::ASYNC_DIO, Self::PARALLEL_DIROPS, Self::MAX_PAGES]);
        ask(&[Self::HANDLE_KILLPRIV_V2, Self::INIT_EXT]);
        match options.cache {
            CacheMode::Auto => ask(&[Self::AUTO_INVAL_DATA]),
            CacheMode::Always => ask(&[Self::CACHE_SYMLINKS]),
            CacheMode::None => ask(&[Self::DIRECT_IO_ALLOW_MMAP]),
        }
        if matches!(options.locks, Locks::Host { .. }) {
            ask(&[Self::POSIX_LOCKS, Self::FLOCK_LOCKS]);
        }
        wanted
    }
}

/// What was agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// `fuse_init_out`.
    pub out: [u8; 64],
    /// The flags that both know; `None`: the driver asks again with a version that is ours.
    pub flags: Option<Flags>,
}

/// Answers INIT.
///
/// # Errors
/// `EPROTO`: the driver's version is older than 7.31.
pub fn negotiate(major: u32, minor: u32, readahead: u32, offered: u64, wanted: Flags) -> Result<Init, Errno> {
    let mut out = [0; 64];
    let mut put = |at: usize, value: u32| out[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, 7);
    if major > 7 {
        put(4, MINOR);
        return Ok(Init { out, flags: None });
    }
    if major < 7 || minor < MINOR_MIN {
        return Err(Errno::PROTO);
    }
    let flags = Flags(offered & wanted.0);
    let [low, high] = [flags.0 & 0xffff_ffff, flags.0 >> 32]
        .map(|half| u32::try_from(half).unwrap_or_else(|_| unreachable!("a half has 32 bits")));
    put(4, minor.min(MINOR));
    put(8, readahead);
    put(12, low);
    // max_background and congestion_threshold: requests that the driver keeps on their way.
    put(16, 64 | 48 << 16);
    put(20, MAX_WRITE);
    // time_gran: nanoseconds.
    put(24, 1);
    put(28, u32::from(MAX_PAGES));
    put(32, high);
    Ok(Init { out, flags: Some(flags) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(out: &[u8; 64], at: usize) -> u32 {
        u32::from_le_bytes(*out[at..].first_chunk().unwrap())
    }

    #[test]
    fn the_smaller_version_is_spoken_and_only_flags_of_both() {
        let wanted = Flags::wanted(&Options::default());
        for (minor, spoken) in [(31, 31), (36, 36), (41, 38), (u32::MAX, 38)] {
            let init = negotiate(7, minor, 0x20000, u64::MAX, wanted).unwrap();
            assert_eq!((word(&init.out, 0), word(&init.out, 4)), (7, spoken));
            assert_eq!(word(&init.out, 8), 0x20000);
            assert_eq!(init.flags, Some(wanted));
            assert_eq!(word(&init.out, 20), MAX_WRITE);
            assert_eq!(word(&init.out, 28) & 0xffff, 256);
        }
        let init = negotiate(7, 31, 0, 1 | 1 << 16, wanted).unwrap();
        assert_eq!(word(&init.out, 12), 1, "never write-back, whatever is offered");
        assert!(init.flags.unwrap().has(Flags::ASYNC_READ));
        assert!(!init.flags.unwrap().has(Flags::MAX_PAGES));
    }

    #[test]
    fn other_versions_are_refused_or_asked_again() {
        let wanted = Flags::wanted(&Options::default());
        for (major, minor) in [(6, 99), (0, 0), (7, 30), (7, 0)] {
            assert_eq!(negotiate(major, minor, 0, 0, wanted), Err(Errno::PROTO));
        }
        let init = negotiate(8, 0, 0, 0, wanted).unwrap();
        assert_eq!((word(&init.out, 0), init.flags), (7, None));
    }

    #[test]
    fn each_mode_asks_for_what_it_means() {
        let of = |cache, locks| Flags::wanted(&Options { cache, locks, ..Options::default() });
        let auto = of(CacheMode::Auto, Locks::Guest);
        assert!(auto.has(Flags::AUTO_INVAL_DATA) && !auto.has(Flags::POSIX_LOCKS));
        assert!(!of(CacheMode::Always, Locks::Guest).has(Flags::AUTO_INVAL_DATA));
        let none = of(CacheMode::None, Locks::Host { waiters: 1 });
        assert!(none.has(Flags::DIRECT_IO_ALLOW_MMAP) && none.has(Flags::FLOCK_LOCKS));
    }
}
