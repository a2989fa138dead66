//! A panic is a bug of ours. Whatever thread it happens on, nothing is unwound: this process says
//! what it was, gives the terminal back and ends with 125, and its machine ends with it.

use std::io;
use std::sync::{Mutex, PoisonError};

use nelly_sandbox::state::outcome;
use nelly_vmm::sys::terminal::RawMode;

use crate::out;

/// The terminal of this process while it is in raw mode.
static TERMINAL: Mutex<Option<RawMode>> = Mutex::new(None);

/// The terminal behind standard input is in raw mode for as long as this lives, or until a panic.
pub(crate) struct Raw(());

impl Raw {
    /// Puts it into raw mode.
    ///
    /// # Errors
    /// It is no terminal, or the process is in the background and may not change it.
    pub(crate) fn enter() -> io::Result<Self> {
        let raw = RawMode::enter(io::stdin())?;
        *TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(raw);
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        TERMINAL.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// What the async runtime panics of where the host has no descriptor, thread or memory for it: no
/// bug of ours, and it returns no error.
fn of_host(said: &str) -> Option<&str> {
    if let Some((_, error)) = said.split_once("failed to create UnixStream: Os {") {
        return error.split_once("message: \"")?.1.split('"').next();
    }
    Some(said.split_once("OS can't spawn worker thread: ")?.1)
}

/// To be called first: what a panic does from then on.
pub(crate) fn expect() {
    std::panic::set_hook(Box::new(|panic| {
        // Who holds the lock is changing the terminal at this moment, or is the one that panics.
        if let Ok(raw) = TERMINAL.try_lock()
            && let Some(raw) = &*raw
        {
            raw.restore();
        }
        match panic.payload_as_str().and_then(of_host) {
            Some(reason) => {
                out::message(format_args!("the host has no room for the async runtime: {reason}"))
            }
            None => out::message(format_args!("a bug, please report it: {panic}")),
        }
        std::process::exit(outcome::FAILED.into());
    }));
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::{LocalModes, tcgetattr};

    use super::*;

    #[test]
    fn a_host_without_descriptors_is_told_apart_from_a_bug() {
        let error = std::io::Error::from_raw_os_error(24);
        assert_eq!(of_host(&format!("failed to create UnixStream: {error:?}")), Some("Too many open files"));
        assert_eq!(
            of_host(&format!("OS can't spawn worker thread: {error}")),
            Some("Too many open files (os error 24)")
        );
        assert_eq!(of_host("index out of bounds: message: \"x\""), None);
    }

    /// Set for the process that has the bug.
    const HAS_BUG: &str = "NELLY_TEST_HAS_BUG";

    #[test]
    fn a_bug_in_any_thread_gives_the_terminal_back_and_ends_with_125() {
        if std::env::var_os(HAS_BUG).is_some() {
            expect();
            let _raw = Raw::enter().unwrap();
            assert!(!cooked(io::stdin()), "it is raw");
            let _never = std::thread::spawn(|| panic!("\x1b[2J one too many")).join();
            unreachable!("the process has ended");
        }
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let name = ptsname(&main, Vec::new()).unwrap();
        let user = File::from(
            rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap(),
        );
        assert!(cooked(&user));
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "bug::tests::a_bug_in_any_thread_gives_the_terminal_back_and_ends_with_125"])
            .arg("--nocapture")
            .env(HAS_BUG, "1")
            .stdin(user.try_clone().unwrap())
            // Not of this process's terminal, which would stop one that changes it.
            .process_group(0)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(125), "{said}");
        assert!(said.contains("nelly: a bug") && said.contains("[2J one too many"), "{said}");
        assert!(!said.contains('\x1b'), "{said}");
        assert!(cooked(&user));
    }

    fn cooked(terminal: impl std::os::fd::AsFd) -> bool {
        tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }
}
