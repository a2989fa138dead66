//! One end of a connection: a socket with TLS on it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nelly_net::sys::QUIET;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustls::Connection;

/// How many bytes are taken out of TLS at once.
const PART: usize = 16 << 10;
/// The most bytes that wait to be written: the longest head with its values is half of that.
const MOST_UNSENT: usize = 512 << 10;

/// An end.
pub(super) struct Side {
    file: OwnedFd,
    tls: Connection,
    /// What it said that is not passed on yet.
    pub(super) bytes: Vec<u8>,
    /// How many of these were searched for the end of a head.
    pub(super) searched: usize,
    /// Its socket says no more.
    gone: bool,
    /// It says no more, and whether it said so itself.
    ended: Option<bool>,
    /// It is told that nothing more comes.
    finishing: bool,
    finished: bool,
    /// It takes nothing any more, and what was said to it is lost.
    deaf: bool,
    /// How many bytes it has taken.
    taken: u64,
}

/// A socket that no call waits for.
struct Raw<'a>(&'a OwnedFd);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0, buffer, RecvFlags::DONTWAIT)?.0)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(self.0, bytes, QUIET | SendFlags::DONTWAIT)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Side {
    pub(super) fn new(file: OwnedFd, mut tls: Connection) -> Self {
        // Nothing is said to it while it has not taken what was said before, but a last word.
        tls.set_buffer_limit(Some(MOST_UNSENT));
        Self {
            file,
            tls,
            bytes: Vec::new(),
            searched: 0,
            gone: false,
            ended: None,
            finishing: false,
            finished: false,
            deaf: false,
            taken: 0,
        }
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Its socket says no more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Everything that it said is in [`Side::bytes`], and whether it said itself that this was all.
    pub(super) fn has_ended(&self) -> Option<bool> {
        self.ended
    }

    /// There is something that it has not taken.
    pub(super) fn has_unsent(&self) -> bool {
        !self.deaf && self.tls.wants_write()
    }

    /// It takes nothing any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// How many bytes it has taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Its socket is closed for both directions, though it was not told that nothing more comes.
    pub(super) fn is_left(&self) -> bool {
        let nothing = rustix::net::send(&self.file, &[], QUIET | SendFlags::DONTWAIT);
        !self.finishing && nothing.is_err_and(|error| !is_for_later(&error.into()))
    }

    /// It was told that nothing more comes, and has taken that.
    pub(super) fn is_finished(&self) -> bool {
        self.finished || self.deaf
    }

    /// Hears it, as long as less than `most` bytes of it wait; whether there was something.
    ///
    /// # Errors
    /// What is wrong with its TLS; an alert is left to be written.
    pub(super) fn read(&mut self, most: usize) -> Result<bool, String> {
        let mut moved = false;
        if !self.gone && self.tls.wants_read() {
            match self.tls.read_tls(&mut Raw(&self.file)) {
                Ok(0) => {
                    self.gone = true;
                    moved = true;
                }
                Ok(_) => moved = true,
                Err(error) if is_for_later(&error) => {}
                Err(_) => {
                    self.gone = true;
                    self.ended = self.ended.or(Some(false));
                    moved = true;
                }
            }
        }
        if moved {
            self.tls.process_new_packets().map_err(|error| error.to_string())?;
        }
        while self.bytes.len() < most && self.ended.is_none() {
            let had = self.bytes.len();
            self.bytes.resize(had + PART, 0);
            let read = self.tls.reader().read(&mut self.bytes[had..]);
            self.bytes.truncate(had + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => self.ended = Some(true),
                Ok(_) => moved = true,
                Err(error) if is_for_later(&error) => break,
                Err(_) => self.ended = Some(false),
            }
            moved |= self.ended.is_some();
        }
        Ok(moved)
    }

    /// Has these bytes written to it.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        if self.tls.writer().write_all(bytes).is_err() {
            // It is not to be told the one part without the other.
            self.forget_unsent();
        }
    }

    /// Has it told that nothing more comes; whether that is new.
    pub(super) fn finish(&mut self) -> bool {
        if self.finishing {
            return false;
        }
        self.finishing = true;
        self.tls.send_close_notify();
        true
    }

    /// Forgets what it said; whether there was something.
    pub(super) fn forget(&mut self) -> bool {
        let some = !self.bytes.is_empty();
        self.bytes.clear();
        self.searched = 0;
        some
    }

    /// Writes to it what is left; whether there was something.
    ///
    /// # Errors
    /// It takes nothing any more.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        let mut moved = false;
        while self.has_unsent() {
            match self.tls.write_tls(&mut Raw(&self.file)) {
                Ok(len) => {
                    moved = true;
                    self.taken = self.taken.wrapping_add(len as u64);
                }
                Err(error) if is_for_later(&error) => return Ok(moved),
                Err(_) => self.deaf = true,
            }
        }
        if self.deaf {
            self.forget_unsent();
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.finishing && !self.finished {
            self.finished = true;
            moved = true;
            // It is gone already then.
            let _gone = rustix::net::shutdown(&self.file, Shutdown::Write);
        }
        Ok(moved)
    }

    /// Nothing is said to it any more, and what it has not taken is lost.
    fn forget_unsent(&mut self) {
        self.deaf = true;
        while self.tls.wants_write() && self.tls.write_tls(&mut io::sink()).is_ok() {}
    }
}
