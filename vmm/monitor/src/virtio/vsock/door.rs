//! The way in and out by paths: a socket that takes `CONNECT port` lines, and the sockets beside it
//! that the guest dials.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Instant;

use crate::sys::unix;

/// Longest line: the longest that means something is `CONNECT 4294967294` with its end.
const LINE_MAX: usize = 32;

/// Clients whose line is being waited for at the same time; more wait in the listener's queue.
pub(super) const GREETINGS_MAX: usize = 256;

/// The listening socket.
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, so that only the socket made here is removed.
    made: (u64, u64),
    /// The poller watches it.
    pub(super) registered: bool,
    /// No more clients for now.
    pub(super) closed: bool,
}

impl Door {
    /// Listens on `path`.
    pub(super) fn new(path: PathBuf) -> io::Result<Self> {
        let listener = unix::listen(&path)?;
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) => {
                let made = (metadata.dev(), metadata.ino());
                Ok(Self { listener, path, made, registered: false, closed: false })
            }
            Err(error) => {
                // It was made a moment ago, and the machine is not.
                drop(std::fs::remove_file(&path));
                Err(error)
            }
        }
    }

    pub(super) fn listener(&self) -> impl AsFd {
        self.listener.as_fd()
    }

    /// The next client, if one waits.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept()?;
        unix::prepare(&stream)?;
        Ok(stream)
    }

    /// Connects to what listens beside this socket for `port`.
    pub(super) fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        unix::connect(&PathBuf::from(path))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.made);
        if ours {
            // Nothing is left to be told to if this fails.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A client that has not finished its line.
pub(super) struct Greeting {
    pub(super) stream: UnixStream,
    line: [u8; LINE_MAX],
    len: usize,
    pub(super) deadline: Instant,
}

/// What a client's line came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Not whole yet.
    Partial,
    /// `CONNECT port`.
    Connect(u32),
    /// Anything else, an end or an error.
    Bad,
}

impl Greeting {
    pub(super) fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self { stream, line: [0; LINE_MAX], len: 0, deadline }
    }

    /// Reads on. Not a byte behind the line is taken off the stream.
    pub(super) fn read(&mut self) -> Line {
        loop {
            let Some(room) = self.line.get_mut(self.len..).filter(|room| !room.is_empty()) else {
                return Line::Bad;
            };
            match unix::receive_until(self.stream.as_fd(), b'\n', room) {
                Ok(0) => return Line::Bad,
                Ok(count) => self.len += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Line::Partial,
                Err(_) => return Line::Bad,
            }
            if let Some(line) = self.line[..self.len].strip_suffix(b"\n") {
                return parse(line).map_or(Line::Bad, Line::Connect);
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = std::str::from_utf8(digits).ok()?.parse().ok()?;
    // The last port number means "any".
    (port != u32::MAX).then_some(port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn greeting() -> (Greeting, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        unix::prepare(&near).unwrap();
        (Greeting::new(near, Instant::now()), far)
    }

    #[test]
    fn lines() {
        let table: [(&[u8], Line); 12] = [
            (b"CONNECT 52\n", Line::Connect(52)),
            (b"CONNECT 0\n", Line::Connect(0)),
            (b"CONNECT 4294967294\n", Line::Connect(u32::MAX - 1)),
            (b"CONNECT 4294967295\n", Line::Bad),
            (b"CONNECT 4294967296\n", Line::Bad),
            (b"CONNECT +5\n", Line::Bad),
            (b"CONNECT \n", Line::Bad),
            (b"CONNECT 5 \n", Line::Bad),
            (b"connect 5\n", Line::Bad),
            (b"\n", Line::Bad),
            (b"CONNECT 5", Line::Partial),
            (b"CONNECT 000000000000000000000000000000001\n", Line::Bad),
        ];
        for (bytes, expected) in table {
            let (mut greeting, mut far) = greeting();
            far.write_all(bytes).unwrap();
            assert_eq!(greeting.read(), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_line_in_pieces_and_what_follows_it() {
        let (mut greeting, mut far) = greeting();
        for byte in b"CONNECT 7" {
            far.write_all(&[*byte]).unwrap();
            assert_eq!(greeting.read(), Line::Partial);
        }
        far.write_all(b"\nCONNECT 8\n").unwrap();
        assert_eq!(greeting.read(), Line::Connect(7));
        let mut rest = [0; 10];
        greeting.stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"CONNECT 8\n");
    }

    #[test]
    fn an_end_before_the_line_is_bad() {
        let (mut greeting, far) = greeting();
        drop(far);
        assert_eq!(greeting.read(), Line::Bad);
    }

    #[test]
    fn the_path_goes_with_the_door_unless_it_is_another_by_then() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v");
        drop(Door::new(path.clone()).unwrap());
        assert!(!path.exists());
        let door = Door::new(path.clone()).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "other").unwrap();
        drop(door);
        assert!(path.exists());
    }
}
