#![allow(unsafe_code, reason = "system calls that no safe binding covers, each behind a safe function")]
//! System calls, each a safe function that answers an `io::Result`. The only room besides the
//! pre-exec stage with unsafe code, and the stage only uses what is here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

mod bpf;
mod clone;
mod event;
mod init;
mod mounting;
mod net;
mod netlink;
mod power;
mod process;
mod trace;
mod tty;
mod xattr;

pub use bpf::{Instruction, attach_device_program, install_seccomp};
pub use clone::{CloneRequest, clone_child};
pub use event::watch;
pub use init::{Blocked, end, execute_open, keep_on_exec, name_process, own_program, stay_as_init};
pub use mounting::{
    MountAttributes, clone_tree, mount, mount_attributes, move_tree, pivot_here, resize_ext4,
    set_propagation, set_read_ahead, unmount,
};
pub use net::{
    ReceivedBytes, VsockAddress, accept, accept_vsock, connect_result, connect_vsock, hung_up, listen_vsock,
    loopback_up, receive, send, set_no_delay, shutdown_read, shutdown_write, socket_pair,
};
pub use netlink::netlink_route;
pub use power::{add_entropy, boot_time_ns, random_bytes, real_time_ns, reset_machine, set_real_time_ns};
pub use process::{
    News, Reaped, all_signals_default, capabilities, join_new_session_keyring, keep_capabilities,
    mark_all_close_on_exec, memory_bytes, open_pidfd, reap, resource_limit, set_ids, set_no_new_privileges,
    set_not_dumpable, set_resource_limit, signal_fd, signal_pidfd, signal_pidfd_group,
};
pub use trace::{trace, untrace};
pub use tty::{Terminal, make_controlling, open_terminal, set_window_size};
pub use xattr::{copy_attributes, touch};

/// Turns the C library's -1 into an error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for a raw system call.
fn check_long(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a descriptor that a system call just made.
fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the kernel just returned this descriptor to us, nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The same for a raw system call.
fn owned_long(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check_long(fd)?;
    owned(RawFd::try_from(fd).map_err(io::Error::other)?)
}

/// A C string, or `EINVAL` when the text has a zero byte inside.
///
/// # Errors
/// `EINVAL`.
pub fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// read(2).
///
/// # Errors
/// Those of read(2); `EAGAIN` when the descriptor does not block and has nothing.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a live, writable slice.
    let n = unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// write(2).
///
/// # Errors
/// Those of write(2); `EAGAIN` when the descriptor does not block and is full.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a live slice.
    let n = unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// A pipe, both ends closed on exec, blocking: (read end, write end).
///
/// # Errors
/// Those of pipe2(2).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    Ok((owned(ends[0])?, owned(ends[1])?))
}

/// Sets or clears `O_NONBLOCK` on the open file description.
///
/// # Errors
/// Those of fcntl(2).
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: F_GETFL takes no pointer.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let flags = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    // SAFETY: F_SETFL takes no pointer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Takes over a descriptor that this process inherited by number; nothing if there is none.
///
/// The caller must be the only one to ask for that number, which only the stage and an init do,
/// once, at their start.
#[must_use]
pub fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer and tells whether the number is open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: the number is open, and only the single-threaded stage or init at its start takes
    // it, once each.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// setns(2).
///
/// # Errors
/// Those of setns(2).
pub fn join_namespaces(fd: BorrowedFd<'_>, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: setns takes no pointer.
    check(unsafe { libc::setns(fd.as_raw_fd(), kinds) }).map(drop)
}

/// execve(2); only ever returns an error.
#[must_use]
pub fn execute(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Closes an inherited pair of standard streams over: `fd` becomes 0, 1 and 2.
///
/// # Errors
/// Those of dup2(2).
pub fn become_standard_streams(fd: BorrowedFd<'_>) -> io::Result<()> {
    for target in 0..3 {
        // SAFETY: dup2 takes no pointer; 0, 1 and 2 are the standard streams, which nothing owns as
        // an OwnedFd.
        check(unsafe { libc::dup2(fd.as_raw_fd(), target) })?;
    }
    Ok(())
}
