//! Where the sockets of a sandbox are: `$XDG_RUNTIME_DIR/nelly/ID12`, where that is this user's;
//! else `/run/nelly/ID12` for root, and `/tmp/nelly-UID/ID12` for others. On macOS the last two are
//! `/var/run/nelly/ID12` and `$TMPDIR/nelly/ID12`.
//!
//! The address of a Unix socket has at most 107 bytes, which a path may well exceed. So sockets are
//! bound and reached through the descriptor of their directory, where the system can do that.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nelly_image::trusted::TrustedDir;
use nelly_protocol::sandbox::CONTROL_SOCKET;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::error::io_error;
use super::{Id, StateError};
use crate::sys;

/// The directory of the sockets of one sandbox, mode 0700.
#[derive(Debug)]
pub struct RuntimeDir {
    dir: TrustedDir,
}

impl RuntimeDir {
    /// Where [`RuntimeDir::make`] makes the directory for sandbox `id`; what is above it is made.
    ///
    /// # Errors
    /// As [`RuntimeDir::make`].
    pub fn path_for(get: impl Fn(&str) -> Option<PathBuf>, id: Id) -> Result<PathBuf, StateError> {
        Ok(place(&get)?.path().join(id.short()))
    }

    /// Makes the directory for sandbox `id`, by an environment (`std::env::var_os`, or a table in
    /// tests). `NELLY_HOME` moves it, too.
    ///
    /// # Errors
    /// None of the places can be used; the message says why.
    pub fn make(get: impl Fn(&str) -> Option<PathBuf>, id: Id) -> Result<Self, StateError> {
        let dir = place(&get)?.make_subdirectory(&id.short())?;
        Ok(Self { dir })
    }

    /// Opens the directory that a sandbox's state names; `None` if it is gone, as after a logout.
    ///
    /// # Errors
    /// It belongs to another user, or is writable by others.
    pub fn open(path: &Path) -> Result<Option<Self>, StateError> {
        Ok(TrustedDir::open(path)?.map(|dir| Self { dir }))
    }

    /// Its path, to be recorded in the state.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A listening socket called `name`, mode 0600. One that is there is replaced: the caller holds
    /// the sandbox's lock, so nobody serves it.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn bind(&self, name: &str) -> Result<UnixListener, StateError> {
        self.dir.remove(name)?;
        let path = self.dir.reach(name);
        let refuse = |source| io_error("make the socket", &self.path().join(name), source);
        let listener = UnixListener::bind(&path).map_err(refuse)?;
        // Nobody else enters the directory meanwhile.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(refuse)?;
        Ok(listener)
    }

    /// Connects to the socket called `name`, without waiting for a process that does not accept.
    ///
    /// # Errors
    /// There is no such socket, nobody serves it, or (`WouldBlock`) its process does not answer.
    pub fn connect(&self, name: &str) -> Result<UnixStream, StateError> {
        let connected = || -> io::Result<OwnedFd> {
            let socket = nelly_net::sys::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(self.dir.reach(name))?)?;
            Ok(socket)
        };
        let stream = connected().map(UnixStream::from).and_then(|stream| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        stream.map_err(|source| io_error("connect to", &self.path().join(name), source))
    }

    /// As [`RuntimeDir::bind`], a message socket.
    ///
    /// # Errors
    /// As [`RuntimeDir::bind`].
    pub fn bind_packets(&self, name: &str) -> Result<OwnedFd, StateError> {
        self.dir.remove(name)?;
        let path = self.dir.reach(name);
        let bound = || -> io::Result<OwnedFd> {
            let socket = nelly_net::sys::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
            rustix::io::ioctl_fionbio(&socket, false)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?)?;
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            rustix::net::listen(&socket, 128)?;
            Ok(socket)
        };
        bound().map_err(|source| io_error("make the socket", &self.path().join(name), source))
    }

    /// As [`RuntimeDir::connect`], to a message socket. The socket does not wait for room, either.
    ///
    /// # Errors
    /// As [`RuntimeDir::connect`].
    pub fn connect_packets(&self, name: &str) -> Result<OwnedFd, rustix::io::Errno> {
        let socket = nelly_net::sys::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(self.dir.reach(name))?)?;
        Ok(socket)
    }

    /// Removes the directory at `path` as [`RuntimeDir::remove`], unless it is not there or
    /// somebody serves its sockets, as the keeper of a copy of the sandbox. The caller holds the
    /// sandbox's lock. Whether it was removed.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn clean(path: &Path, id: Id) -> Result<bool, StateError> {
        match Self::open(path)? {
            Some(dir) if dir.connect(CONTROL_SOCKET).is_err() => Self::remove(path, id).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Removes the directory at `path` with its sockets, if it is that of sandbox `id`.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(path: &Path, id: Id) -> Result<(), StateError> {
        let short = id.short();
        if path.file_name().is_none_or(|name| *name != *short) {
            return Ok(());
        }
        match path.parent().map(TrustedDir::open).transpose()?.flatten() {
            Some(parent) => Ok(parent.remove_tree(&short)?),
            None => Ok(()),
        }
    }
}

impl AsFd for RuntimeDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// The directory of all sandboxes' sockets.
fn place(get: &impl Fn(&str) -> Option<PathBuf>) -> Result<TrustedDir, StateError> {
    let absolute = |name: &str| get(name).filter(|path| path.is_absolute());
    if let Some(home) = absolute("NELLY_HOME") {
        return Ok(TrustedDir::make(&home.join("run"))?);
    }
    let mut why = Vec::new();
    if let Some(session) = absolute("XDG_RUNTIME_DIR") {
        // Under su and sudo it may be another user's, and under cron it is gone.
        match TrustedDir::open(&session) {
            Ok(Some(session)) => match session.make_subdirectory("nelly") {
                Ok(dir) => return Ok(dir),
                Err(error) => why.push(error.to_string()),
            },
            Ok(None) => why.push(format!("{} does not exist", session.display())),
            Err(error) => why.push(error.to_string()),
        }
    }
    let user = rustix::process::geteuid();
    // A system may give each user a directory for what does not stay.
    let own = if sys::TEMPORARY_IS_OWN { absolute("TMPDIR").map(|own| own.join("nelly")) } else { None };
    let last = match own {
        _ if user.is_root() => PathBuf::from(sys::ROOT_RUN),
        Some(own) => own,
        None => format!("/tmp/nelly-{}", user.as_raw()).into(),
    };
    TrustedDir::make(&last).map_err(|error| {
        why.push(error.to_string());
        StateError::NoRuntimeDir { why: why.join("; ") }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn at(home: &Path) -> impl Fn(&str) -> Option<PathBuf> {
        let home = home.to_owned();
        move |name| (name == "NELLY_HOME").then(|| home.clone())
    }

    #[test]
    fn sockets_are_reached_below_paths_of_any_length() {
        let top = tempfile::tempdir().unwrap();
        let id = Id::random().unwrap();
        for home in [top.path().to_owned(), top.path().join("d".repeat(200)).join("e".repeat(200))] {
            let made = RuntimeDir::make(at(&home), id).unwrap();
            assert_eq!(made.path(), home.join("run").join(id.short()));
            let listener = made.bind("control").unwrap();
            let mode = std::fs::metadata(made.dir.reach("control")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let opened = RuntimeDir::open(made.path()).unwrap().unwrap();
            let mut client = opened.connect("control").unwrap();
            client.write_all(b"x").unwrap();
            drop(client);
            let mut text = String::new();
            listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
            assert_eq!(text, "x");
            // The next holder takes the place of one that was killed.
            drop(listener);
            assert!(opened.connect("control").is_err());
            let _again = made.bind("control").unwrap();
            assert!(opened.connect("control").is_ok() && opened.connect("stream").is_err());
            RuntimeDir::remove(made.path(), Id::random().unwrap()).unwrap();
            assert!(RuntimeDir::open(made.path()).unwrap().is_some(), "that of another one");
            RuntimeDir::remove(made.path(), id).unwrap();
            RuntimeDir::remove(made.path(), id).unwrap();
            assert!(RuntimeDir::open(made.path()).unwrap().is_none());
        }
    }

    #[test]
    fn one_that_does_not_accept_delays_nobody() {
        let top = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::make(at(top.path()), Id::random().unwrap()).unwrap();
        let _stopped = dir.bind("control").unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match dir.connect("control") {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 1 << 16, "the backlog ends");
        };
        let StateError::Io { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn the_session_of_another_user_or_of_nobody_is_passed_by() {
        let top = tempfile::tempdir().unwrap();
        let session = |path: PathBuf| move |name: &str| (name == "XDG_RUNTIME_DIR").then(|| path.clone());
        let own = place(&session(top.path().to_owned())).unwrap();
        assert_eq!(own.path(), top.path().join("nelly"));
        let open = top.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        for unusable in [top.path().join("gone"), open.clone(), "relative".into()] {
            let other = place(&session(unusable.clone()));
            assert!(other.is_ok_and(|dir| !dir.path().starts_with(&unusable)));
            assert!(!top.path().join("gone").exists() && !open.join("nelly").exists());
        }
    }
}
