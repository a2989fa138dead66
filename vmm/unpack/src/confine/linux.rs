//! The layers of Linux.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nelly_confine::denied;
use nelly_confine::privilege::{self, CapabilitySet};
use nelly_confine::program::{self, Calls, Denial, Must, Speculation, Threads, Ways};
use nelly_confine::tree::{self, May};
use nelly_image::Order;
use nelly_image::trusted::TrustedDir;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Signal, set_parent_process_death_signal};

use super::ConfineError;

/// The program of orders.
const PROGRAM: &str = "nelly-unpack";

/// Bytes of memory of a process that unpacks one file: the largest of decoders takes half of them.
const MEMORY: u64 = 1 << 30;

/// The files that a process reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    /// Those that it has open.
    Open,
    /// The same, by one thread.
    Archive,
    /// The same, and their locks.
    Images,
    /// Those that Landlock leaves it, too.
    ByName,
}

/// The version of Landlock that lets a file without a name get one in another directory.
const LINKS: u32 = 2;

pub(super) fn begin() -> io::Result<()> {
    privilege::close_inherited()?;
    // An unpacker that an image has taken over would not look whether anybody waits.
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

pub(super) fn confine(order: &Order) -> Result<Vec<&'static str>, ConfineError> {
    // Root reads images of all users, as it did before.
    layers(PROGRAM, CapabilitySet::DAC_READ_SEARCH, || restrict(order), Files::ByName)
}

pub(super) fn confine_to_streams() -> Result<Vec<&'static str>, ConfineError> {
    // What is open needs no rule.
    let restrict = || Ok(tree::version() > 0 && tree::restrict_to(&[])? > 0);
    limit(Resource::As, MEMORY)?;
    layers(PROGRAM, CapabilitySet::empty(), restrict, Files::Open)
}

fn limit(resource: Resource, most: u64) -> Result<(), ConfineError> {
    privilege::lower(resource, most).map_err(|source| ConfineError { layer: "limits", source })
}

pub(super) fn confine_to_archive(most_written: u64) -> Result<Vec<&'static str>, ConfineError> {
    let restrict = || Ok(tree::version() > 0 && tree::restrict_to(&[])? > 0);
    limit(Resource::As, MEMORY)?;
    limit(Resource::Fsize, most_written)?;
    layers(PROGRAM, CapabilitySet::empty(), restrict, Files::Archive)
}

pub(super) fn confine_to_images(most_written: u64) -> Result<Vec<&'static str>, ConfineError> {
    let restrict = || Ok(tree::version() > 0 && tree::restrict_to(&[])? > 0);
    limit(Resource::As, MEMORY)?;
    limit(Resource::Fsize, most_written)?;
    // It is the client's program, with a verb of its own.
    layers("nelly", CapabilitySet::empty(), restrict, Files::Images)
}

/// Gives up what there is to give up; `name` is what the process calls itself when it is denied a
/// system call.
fn layers(
    name: &'static str,
    kept: CapabilitySet,
    restrict: impl FnOnce() -> io::Result<bool>,
    files: Files,
) -> Result<Vec<&'static str>, ConfineError> {
    let mut done = Vec::new();
    let mut layer = |layer: &'static str, result: io::Result<bool>| match result {
        Ok(true) => {
            done.push(layer);
            Ok(())
        }
        Ok(false) => Ok(()),
        Err(error) if is_missing(&error) => Ok(()),
        Err(source) => Err(ConfineError { layer, source }),
    };
    let all = |()| true;
    layer("no_new_privs", privilege::keep_down().map(all))?;
    let kept = privilege::drop_capabilities(kept);
    layer("capabilities", kept.map(|_| true))?;
    let limits = [Resource::Memlock, Resource::Msgqueue];
    layer("limits", privilege::set_to_nothing(&limits).map(all))?;
    layer("undumpable", privilege::hide().map(all))?;
    layer("landlock", restrict())?;
    if program::available() {
        let errors = io::stderr();
        layer("a word on denied system calls", denied::tell(name, &[errors.as_fd()], None).map(all))?;
        let filter = calls(files);
        let install = |filter| program::install(&filter, Threads::This, Speculation::AsTheSystemHasIt);
        layer("seccomp", filter.and_then(install).map(all))?;
    }
    Ok(done)
}

/// Whether the system does not have what was asked for, or does not let this process have it, as in
/// some containers.
fn is_missing(error: &io::Error) -> bool {
    let refusals = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::INVAL, Errno::PERM, Errno::ACCESS, Errno::TOOBIG];
    error.raw_os_error().is_some_and(|number| refusals.iter().any(|one| one.raw_os_error() == number))
}

/// Landlock; whether it is in force.
fn restrict(order: &Order) -> io::Result<bool> {
    if tree::version() < LINKS {
        return Ok(false);
    }
    // A cache that cannot be used is told by the store, which says more of it.
    let cache = TrustedDir::make(order.cache()).ok();
    let source = order.source().and_then(|path| {
        let place = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open(path, place, Mode::empty()).ok()
    });
    let linked = order.linked()?;
    let mut places: Vec<_> = cache.iter().map(|cache| (cache.as_fd(), May::Change)).collect();
    places.extend(source.iter().filter(|source| has_rules(source)).map(|source| (source.as_fd(), May::Read)));
    places.extend(linked.iter().map(|file| (file.as_fd(), May::Read)));
    Ok(tree::restrict_to(&places)? > 0)
}

/// Whether a place is one that rules are made for: a pipe is none.
fn has_rules(place: &OwnedFd) -> bool {
    let kind = rustix::fs::fstat(place).map(|found| FileType::from_raw_mode(found.st_mode));
    matches!(kind, Ok(FileType::RegularFile | FileType::Directory))
}

/// What acts on memory, time, the process itself and what is open.
const OPEN: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_ppoll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What reaches files by their names, of which Landlock leaves few.
const BY_NAME: &[i64] = &[
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_statfs,
    libc::SYS_unlinkat,
];

/// What the libraries use of older calls.
#[cfg(target_arch = "x86_64")]
const OLDER: &[i64] = &[
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];

/// The other architectures never had them.
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[i64] = &[];

/// ENOSYS
const NO_CALL: u16 = 38;

/// A constant of the system, as an argument has it.
const fn bits(value: libc::c_int) -> u32 {
    value.cast_unsigned()
}

/// The list of system calls.
fn calls(files: Files) -> io::Result<program::BpfProgram> {
    let mut calls = Calls::new();
    let mut put = |number: i64, ways: Ways| {
        calls.insert(u32::try_from(number).map_err(io::Error::other)?, ways);
        io::Result::Ok(())
    };
    for &number in OPEN {
        put(number, Ways::All)?;
    }
    // The word on a denied call is not waited for.
    #[cfg(target_arch = "x86_64")]
    put(libc::SYS_poll, Ways::All)?;
    let these = |ways: &[&[(u8, Must)]]| Ways::These(ways.iter().map(|way| way.to_vec()).collect());
    // No memory becomes a program.
    let data = Must::BeWithin(bits(libc::PROT_READ | libc::PROT_WRITE));
    put(libc::SYS_mmap, these(&[&[(2, data)]]))?;
    put(libc::SYS_mprotect, these(&[&[(2, data)]]))?;
    // A stream is decompressed by a thread; the C library makes it by the older call when the newer
    // one, whose flags are in memory, is not there. Archives and images are read by one thread.
    if matches!(files, Files::Open | Files::ByName) {
        put(libc::SYS_clone3, Ways::Error(NO_CALL))?;
        put(libc::SYS_clone, these(&[&[(0, program::MAKES_A_THREAD)]]))?;
    }
    put(
        libc::SYS_prctl,
        these(&[&[(0, Must::Be(bits(libc::PR_SET_NAME)))], &[(0, Must::Be(bits(libc::PR_GET_NAME)))]]),
    )?;
    if files == Files::ByName {
        for &number in BY_NAME.iter().chain(OLDER) {
            put(number, Ways::All)?;
        }
        // Before its version 3 Landlock does not keep a file that may be read from being cut.
        let whole = Must::BeWithin(!OFlags::TRUNC.bits());
        put(libc::SYS_openat, these(&[&[(2, whole)]]))?;
        #[cfg(target_arch = "x86_64")]
        put(libc::SYS_open, these(&[&[(1, whole)]]))?;
    }
    // A panic ends this process by a signal to itself.
    put(libc::SYS_tgkill, these(&[&[(0, Must::Be(std::process::id()))]]))?;
    let mut own = vec![libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];
    if files == Files::Images {
        put(libc::SYS_flock, Ways::All)?;
        own.extend([libc::F_OFD_GETLK, libc::F_OFD_SETLK]);
    }
    let own = own.into_iter().map(|how| vec![(1, Must::Be(bits(how)))]).collect();
    put(libc::SYS_fcntl, Ways::These(own))?;
    program::compile(&calls, Denial::Signal)
}
