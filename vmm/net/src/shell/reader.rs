//! The reader of `resolv.conf`: a process beside this one, which opens no file itself any more.
//!
//! The file is often a link, and is replaced rather than written, by whom and in which directory
//! differs from host to host. So no list of paths would let this process read it and nothing else.
//! The reader is made before the guest is heard, knows the path from then on, and hears one thing:
//! that it is to read it again. The first time this process reads the file itself, while it still
//! may: so a start, which somebody waits for, does not wait for the reader.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::sys::{self, QUIET, Role};

/// No longer file is read, in bytes.
const MOST: usize = 64 << 10;
/// What a question is.
const READ: &[u8] = b"r";
/// What stands before what the file holds.
const HELD: u8 = b'+';
/// What is said where there is no such file.
const NONE: u8 = b'-';

/// The process that reads. It ends with this one.
#[derive(Debug)]
pub struct Reader {
    file: OwnedFd,
    /// What the file held when the process was made, until that is taken.
    first: Option<Vec<u8>>,
    /// It was asked, and has not answered.
    asked: bool,
}

impl Reader {
    /// Makes the process, to be called while this one has a single thread.
    ///
    /// # Errors
    /// The system does not make it.
    pub fn start(path: &Path, confined: bool) -> io::Result<Self> {
        let (file, theirs) = sys::message_pair()?;
        sys::in_a_child(&theirs, || serve(&theirs, path, confined))?;
        let mut text = vec![0; MOST];
        // Where there is no such file, there is nothing in it.
        let len = held(path, &mut text).unwrap_or(0);
        text.truncate(len);
        Ok(Self { file, first: Some(text), asked: false })
    }

    /// What the file holds now, or nothing where there is none. `None`: that is not known within
    /// `patience`, and is told at a later call.
    pub(super) fn read(&mut self, patience: std::time::Duration) -> Option<Vec<u8>> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let dont_wait = QUIET | SendFlags::DONTWAIT;
        if !self.asked {
            self.asked = send(&self.file, READ, dont_wait).is_ok();
        }
        let mut files = [PollFd::new(&self.file, PollFlags::IN)];
        let patience = Timespec::try_from(patience).ok()?;
        if !self.asked || poll(&mut files, Some(&patience)) != Ok(1) {
            return None;
        }
        let mut text = vec![0; 1 + MOST];
        let len = recv(&self.file, &mut *text, RecvFlags::DONTWAIT).ok()?.0;
        self.asked = false;
        text.truncate(len);
        match text.split_first() {
            Some((&HELD, rest)) => Some(rest.to_vec()),
            Some((&NONE, _)) => Some(Vec::new()),
            // It is no more: what was known stays.
            _ => None,
        }
    }
}

/// What the process does, until the other end is closed.
fn serve(file: &OwnedFd, path: &Path, confined: bool) {
    // Nobody hears why: the resolvers stay as they are known.
    if confined && sys::confine(Role::Reader, &[]).is_err() {
        return;
    }
    let mut question = [0];
    loop {
        match recv(file, &mut question, RecvFlags::empty()) {
            Ok((1.., _)) => {}
            Err(Errno::INTR) => continue,
            _ => return,
        }
        // Only while it is needed: this process idles for as long as its machine runs.
        let mut text = vec![0; 1 + MOST];
        let len = match held(path, &mut text[1..]) {
            Ok(len) => {
                text[0] = HELD;
                len
            }
            Err(_) => {
                text[0] = NONE;
                0
            }
        };
        if send(file, &text[..=len], QUIET).is_err() {
            return;
        }
    }
}

/// Reads a file, or the beginning of one that is too long.
fn held(path: &Path, into: &mut [u8]) -> Result<usize, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    // A pipe has no end that comes.
    if FileType::from_raw_mode(rustix::fs::fstat(file.as_fd())?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut len = 0;
    while len < into.len() {
        match rustix::io::read(&file, &mut into[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
