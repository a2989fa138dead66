//! Unix stream sockets by path and the calls on them that never wait and never raise a signal.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
#[cfg(not(target_vendor = "apple"))]
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketType, recv, sendmsg,
    socket_with,
};

use super::passing::{PAIR_FLAGS, SEND_FLAGS, close_on_exec, set_nonblocking};

/// Longest path a socket address takes everywhere (Linux: 107, macOS: 103).
const ADDRESS_MAX: usize = 103;

/// Longest last part of a path that is too long for a socket address: it stands behind the
/// directory's descriptor there.
const NAME_MAX: usize = 80;

/// Connections that may wait to be accepted; the system has a bound of its own.
const WAITING_MOST: i32 = 4096;

/// Refuses a path that no socket can have: its last part is too long, where it is too long itself.
///
/// # Errors
/// It is one.
pub fn check_length(path: &Path) -> io::Result<()> {
    let (len, name) = (path.as_os_str().len(), path.file_name().map_or(0, OsStr::len));
    if len <= ADDRESS_MAX || name <= NAME_MAX {
        return Ok(());
    }
    let why = format!(
        "a socket cannot have this path of {len} bytes: it may have {ADDRESS_MAX}, or a last part of {NAME_MAX} instead of {name}"
    );
    Err(io::Error::new(io::ErrorKind::InvalidFilename, why))
}

/// Calls `call` with a path of the same file that fits a socket address. A long one is reached from
/// its directory; its last part must fit.
///
/// # Errors
/// That of [`check_length`], the directory cannot be opened, or what `call` says.
pub fn reached<T: Send>(path: &Path, call: impl FnOnce(&Path) -> io::Result<T> + Send) -> io::Result<T> {
    check_length(path)?;
    if path.as_os_str().len() <= ADDRESS_MAX {
        return call(path);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = OwnedFd::from(std::fs::File::open(directory)?);
    from_directory(&directory, name, call)
}

/// By the directory's descriptor, which this system shows as a file.
#[cfg(not(target_vendor = "apple"))]
fn from_directory<T>(
    directory: &OwnedFd,
    name: &OsStr,
    call: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let shown = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    call(&shown.join(name))
}

#[cfg(target_vendor = "apple")]
use on_a_thread_in_it as from_directory;

/// From a thread in that directory, which the others of the process are not: what works where a
/// descriptor has no path.
#[cfg(any(target_vendor = "apple", test))]
fn on_a_thread_in_it<T: Send>(
    directory: &OwnedFd,
    name: &OsStr,
    call: impl FnOnce(&Path) -> io::Result<T> + Send,
) -> io::Result<T> {
    let there = || {
        enter_alone(directory)?;
        call(Path::new(name))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, there)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Gives the calling thread a working directory of its own.
#[cfg(target_vendor = "apple")]
#[allow(unsafe_code, reason = "the call has no wrapper")]
fn enter_alone(directory: &OwnedFd) -> io::Result<()> {
    unsafe extern "C" {
        fn pthread_fchdir_np(directory: std::ffi::c_int) -> std::ffi::c_int;
    }
    // SAFETY: it takes a number alone, and that of a descriptor that is open.
    match unsafe { pthread_fchdir_np(directory.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As macOS does it, for the test of the rest.
#[cfg(all(test, not(target_vendor = "apple")))]
#[allow(unsafe_code, reason = "what a thread shares with others is its own affair here")]
fn enter_alone(directory: &OwnedFd) -> io::Result<()> {
    // SAFETY: no descriptor and no memory is concerned, but the directory, root and mask of files
    // of this thread, which ends soon.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
    Ok(rustix::process::fchdir(directory)?)
}

/// Binds and listens on `path`, non-blocking. The path may be longer than a socket address; its
/// last part may not.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, PAIR_FLAGS, None)?;
    close_on_exec([&socket])?;
    set_nonblocking(&socket)?;
    reached(path, |address| {
        rustix::net::bind(&socket, &SocketAddrUnix::new(address)?)?;
        rustix::net::listen(&socket, WAITING_MOST).inspect_err(|_| {
            // The name is there and leads nowhere: the next one could not be bound to it.
            drop(std::fs::remove_file(address));
        })?;
        Ok(())
    })?;
    Ok(socket.into())
}

/// Connects to the socket at `path` without waiting: a listener whose queue is full answers
/// `WouldBlock`. The stream is prepared, see [`prepare`].
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, PAIR_FLAGS, None)?;
    close_on_exec([&socket])?;
    prepare(&socket)?;
    reached(path, |address| Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(address)?)?))?;
    Ok(socket.into())
}

/// What a socket keeps of the messages that are sent on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// Each one, without a connection (`SOCK_DGRAM`): nobody hears that the peer is gone.
    Datagram,
    /// Each one, until the end of the connection (`SOCK_SEQPACKET`).
    SeqPacket,
    /// Bytes, until the end of the connection (`SOCK_STREAM`).
    Stream,
}

/// What kind of socket it is.
///
/// # Errors
/// It is none, or one of another kind.
pub fn socket_kind(socket: BorrowedFd<'_>) -> io::Result<SocketKind> {
    match rustix::net::sockopt::socket_type(socket)? {
        SocketType::DGRAM => Ok(SocketKind::Datagram),
        SocketType::SEQPACKET => Ok(SocketKind::SeqPacket),
        SocketType::STREAM => Ok(SocketKind::Stream),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a socket of another kind")),
    }
}

/// Makes a stream non-blocking, and silent where silence is an option of the socket.
pub fn prepare(stream: impl AsFd) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    rustix::net::sockopt::set_socket_nosigpipe(&stream, true)?;
    set_nonblocking(stream)
}

/// Sends the pieces; returns the bytes taken. A peer that is gone is an error (`EPIPE`), never a
/// signal on a prepared stream.
pub fn send_vectored(stream: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| {
        sendmsg(stream, pieces, &mut SendAncillaryBuffer::default(), SEND_FLAGS)
    })?)
}

/// Sends what there is room for without waiting, whatever the socket's mode; never a signal on a
/// prepared stream.
pub fn try_send(stream: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| rustix::net::send(stream, bytes, SEND_FLAGS | SendFlags::DONTWAIT))?)
}

/// Receives what there is without waiting, whatever the socket's mode; 0 is the end of a stream.
pub fn try_receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(rustix::io::retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::DONTWAIT))?.1)
}

/// Reads up to and including the first `end`, or what there is; never a byte behind `end`. 0 is the
/// end of the stream.
pub fn receive_until(stream: BorrowedFd<'_>, end: u8, buffer: &mut [u8]) -> io::Result<usize> {
    let (_, seen) = rustix::io::retry_on_intr(|| recv(stream, &mut *buffer, RecvFlags::PEEK))?;
    let seen = seen.min(buffer.len());
    let wanted = buffer[..seen].iter().position(|byte| *byte == end).map_or(seen, |at| at + 1);
    if wanted == 0 {
        return Ok(0);
    }
    Ok(rustix::io::retry_on_intr(|| recv(stream, &mut buffer[..wanted], RecvFlags::empty()))?.1)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};

    use super::*;

    #[test]
    fn to_accept_does_not_wait_and_a_path_that_is_taken_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = listen(&path).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        // What is there is another's, and stays.
        assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert!(connect(&path).is_ok());
    }

    #[test]
    fn long_paths_connect_and_full_queues_do_not_wait() {
        let directory = tempfile::tempdir().unwrap();
        let mut path = directory.path().to_owned();
        for _ in 0..10 {
            path.push("a-directory-with-a-long-name");
        }
        std::fs::create_dir_all(&path).unwrap();
        path.push("socket");
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
        let listener = listen(&path).unwrap();
        let mut near = connect(&path).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        near.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        assert_eq!(near.read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);
        let mut held = Vec::new();
        let refused = loop {
            match connect(&path) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            assert!(held.len() < 10_000);
        };
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    }

    /// As on macOS, whose descriptors have no paths. The rest of the process stays where it is.
    #[test]
    fn a_long_path_is_reached_from_a_thread_in_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a-long-name/".repeat(20));
        std::fs::create_dir_all(&deep).unwrap();
        let (handle, here) =
            (OwnedFd::from(std::fs::File::open(&deep).unwrap()), std::env::current_dir().unwrap());
        let name = OsStr::new("socket");
        let connects = || on_a_thread_in_it(&handle, name, |name| UnixStream::connect(name));
        assert_eq!(connects().unwrap_err().kind(), ErrorKind::NotFound);
        let listener = on_a_thread_in_it(&handle, name, |name| UnixListener::bind(name)).unwrap();
        assert!(connects().is_ok() && connect(&deep.join(name)).is_ok());
        drop(listener);
        assert_eq!(connects().unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert_eq!((std::env::current_dir().unwrap(), Path::new("socket").exists()), (here, false));
    }

    #[test]
    fn reads_a_line_and_nothing_behind_it() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        prepare(&near).unwrap();
        let mut buffer = [0; 8];
        let pending = receive_until(near.as_fd(), b'\n', &mut buffer).unwrap_err();
        assert_eq!(pending.kind(), ErrorKind::WouldBlock);
        far.write_all(b"ab").unwrap();
        assert_eq!(receive_until(near.as_fd(), b'\n', &mut buffer).unwrap(), 2);
        far.write_all(b"c\nrest").unwrap();
        assert_eq!(receive_until(near.as_fd(), b'\n', &mut buffer).unwrap(), 2);
        drop(far);
        let mut rest = String::new();
        near.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
        assert_eq!(receive_until(near.as_fd(), b'\n', &mut buffer).unwrap(), 0);
    }

    #[test]
    fn sends_pieces_in_order() {
        let (near, mut far) = UnixStream::pair().unwrap();
        assert_eq!(send_vectored(near.as_fd(), &[IoSlice::new(b"one"), IoSlice::new(b"two")]).unwrap(), 6);
        drop(near);
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let broken = send_vectored(near.as_fd(), &[IoSlice::new(b"x")]).unwrap_err();
        assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
    }
}
