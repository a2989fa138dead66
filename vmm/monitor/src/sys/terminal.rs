//! The user's terminal: raw mode that ends with its guard, and the window's size.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{
    OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

/// Rows and columns of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
}

/// Whether `fd` is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    isatty(fd)
}

/// The window's size.
///
/// # Errors
/// `fd` is not a terminal.
pub fn size(fd: impl AsFd) -> io::Result<Size> {
    let size = tcgetwinsize(fd)?;
    Ok(Size { rows: size.ws_row, columns: size.ws_col })
}

/// Sets the window's size (of a pseudo-terminal).
///
/// # Errors
/// `fd` is not a terminal.
pub fn set_size(fd: impl AsFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(fd, size)?)
}

/// Waits until the terminal behind `fd` has hung up, at most for `limit`; `false` when it has not,
/// or cannot be watched. What is typed meanwhile stays for others to read.
pub fn hung_up(fd: impl AsFd, limit: Option<Duration>) -> bool {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    let mut polled = [PollFd::new(&fd, PollFlags::empty())];
    loop {
        match poll(&mut polled, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) | Ok(0) => return false,
            Ok(_) => return polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
        }
    }
}

/// A terminal in raw mode: bytes pass as they are typed, no signal keys, no echo. Dropping the
/// guard restores what was before.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts the terminal behind `fd` into raw mode.
    ///
    /// # Errors
    /// `fd` is not a terminal, or the process is in the background and may not change it.
    pub fn enter(fd: impl AsFd) -> io::Result<Self> {
        let terminal = fd.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        // Drain: what was written in the old mode is printed in the old mode.
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }

    /// Restores the terminal. Idempotent; for paths that end the process without unwinding.
    pub fn restore(&self) {
        // A terminal that went away needs no restoring.
        let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.restore();
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    #[expect(clippy::unwrap_used, reason = "a test")]
    fn pty() -> (OwnedFd, OwnedFd) {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap();
        use rustix::fs::{Mode, OFlags};
        let user = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        (main, user)
    }

    #[test]
    fn raw_mode_ends_with_its_guard() {
        let (_main, user) = pty();
        let cooked =
            |fd: &OwnedFd| tcgetattr(fd).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO);
        assert!(is_terminal(&user) && cooked(&user));
        let guard = RawMode::enter(&user).unwrap();
        assert!(!cooked(&user));
        drop(guard);
        assert!(cooked(&user));
    }

    #[test]
    fn a_terminal_hangs_up_with_its_other_end_and_not_before() {
        let (main, user) = pty();
        assert!(!hung_up(&user, Some(Duration::ZERO)));
        rustix::io::write(&main, b"typed\n").unwrap();
        assert!(!hung_up(&user, Some(Duration::ZERO)));
        let watcher = std::thread::spawn(move || hung_up(&user, None));
        drop(main);
        assert!(watcher.join().unwrap());
    }

    #[test]
    fn size_is_read_back() {
        let (main, user) = pty();
        set_size(&main, Size { rows: 33, columns: 101 }).unwrap();
        assert_eq!(size(&user).unwrap(), Size { rows: 33, columns: 101 });
        let file = tempfile::tempfile().unwrap();
        assert!(!is_terminal(&file) && size(&file).is_err() && RawMode::enter(&file).is_err());
    }
}
