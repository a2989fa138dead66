//! Lock files: one process at a time, waits that can be cancelled, and nothing to clean up after a
//! process that was killed.

use std::fs::File;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::trusted::{TrustError, TrustedDir, io_error};

/// How often a waiting process tries again and asks whether it is still wanted: the system's own
/// wait for a lock ends with the lock only.
const PATIENCE: Duration = Duration::from_millis(20);

/// What is asked before every attempt but the first: `true` gives up.
pub(crate) type GiveUp<'a> = dyn FnMut() -> bool + 'a;

/// Opens the file `name`, which is created if it does not exist, and locks it against all other
/// processes. `None` if `give_up` said so.
///
/// The holder may remove or rename the file; who waited for it then locks the new one.
pub(crate) fn lock_name(
    dir: &TrustedDir,
    name: &str,
    give_up: &mut GiveUp<'_>,
) -> Result<Option<File>, TrustError> {
    loop {
        let file = dir.open_or_make(name)?;
        if !lock(&file, dir, name, FlockOperation::NonBlockingLockExclusive, give_up)? {
            return Ok(None);
        }
        if dir.leads_to(name, &file)? {
            return Ok(Some(file));
        }
    }
}

/// Locks `file`, which is called `name` in `dir`, in the way of `how`, one that does not block.
/// False if `give_up` said so.
pub(crate) fn lock(
    file: &File,
    dir: &TrustedDir,
    name: &str,
    how: FlockOperation,
    give_up: &mut GiveUp<'_>,
) -> Result<bool, TrustError> {
    while !try_lock(file, dir, name, how)? {
        if give_up() {
            return Ok(false);
        }
        std::thread::sleep(PATIENCE);
    }
    Ok(true)
}

/// As [`lock`], once. False if another process holds it.
pub(crate) fn try_lock(
    file: &File,
    dir: &TrustedDir,
    name: &str,
    how: FlockOperation,
) -> Result<bool, TrustError> {
    match rustix::io::retry_on_intr(|| rustix::fs::flock(file, how)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(io_error("lock", &dir.path().join(name), error)),
    }
}

/// The process that holds a lock of flock(2) on `file`, as far as the system tells.
pub(crate) fn holder(file: &File) -> Option<u32> {
    let found = rustix::fs::fstat(file).ok()?;
    let (major, minor) = (rustix::fs::major(found.st_dev), rustix::fs::minor(found.st_dev));
    holder_in(
        &std::fs::read_to_string("/proc/locks").ok()?,
        &format!("{major:02x}:{minor:02x}:{}", found.st_ino),
    )
}

/// The process that holds the lock on a file in the text of `/proc/locks`. Those that wait for it
/// have an arrow before the kind.
fn holder_in(locks: &str, file: &str) -> Option<u32> {
    let holder = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        (words.next() == Some("FLOCK")).then_some(())?;
        let pid = words.nth(2)?;
        (words.next() == Some(file)).then(|| pid.parse().ok())?
    };
    locks.lines().find_map(holder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_lock_is_found_among_all_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 08:01:5 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 08:01:6 0 EOF\n\
                     2: -> FLOCK  ADVISORY  READ 13 08:01:5 0 EOF\n3: FLOCK  ADVISORY  WRITE 14 08:01:5 0 EOF\n\
                     4: FLOCK\n";
        assert_eq!(holder_in(locks, "08:01:5"), Some(14));
        assert_eq!(holder_in(locks, "08:01:6"), Some(12));
        assert_eq!(holder_in(locks, "08:01:7"), None);
        assert_eq!(holder_in("", "08:01:5"), None);
    }

    #[test]
    fn a_wait_ends_when_it_is_not_wanted_any_more_and_a_renamed_lock_is_none() {
        let place = tempfile::tempdir().unwrap();
        let dir = TrustedDir::make(place.path()).unwrap();
        let held = lock_name(&dir, "a", &mut || true).unwrap().unwrap();
        let mut asked = 0;
        let mut twice = || {
            asked += 1;
            asked == 2
        };
        assert!(lock_name(&dir, "a", &mut twice).unwrap().is_none());
        assert_eq!(asked, 2);
        // The waiting one locks a new file when the name leads elsewhere.
        let mut held = Some(held);
        let mut rename = || {
            dir.rename("a", &dir, "b").unwrap();
            held.take();
            false
        };
        let other = lock_name(&dir, "a", &mut rename).unwrap().unwrap();
        assert!(dir.leads_to("a", &other).unwrap() && !dir.leads_to("b", &other).unwrap());
    }
}
