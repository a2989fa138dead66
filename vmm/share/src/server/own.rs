//! What the driver changed itself, so that it is not told of that.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nelly_disk::number::fits;

/// The name of an attribute that no file has. To set it changes nothing on the host, also where
/// nothing may be changed; the guest's kernel tells its programs that something of the file is
/// another (`IN_ATTRIB` of inotify), which is what it is for: whoever watches the host's tree has
/// the guest's agent set it. `EAGAIN`: nobody but the guest has changed this inode.
pub const TOUCH: &std::ffi::CStr = c"user.nelly.touch";

/// Inodes that are remembered. Beyond, all are forgotten, and the guest is told of some changes of
/// its own.
const MAX: usize = 16 << 10;

/// When the driver changed which inode last, in nanoseconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Own(Mutex<HashMap<u64, i128>>);

impl Own {
    fn inner(&self) -> MutexGuard<'_, HashMap<u64, i128>> {
        // A map that only whole entries are put into.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The driver has just changed this inode. The time is read after the host's file system has
    /// set the inode's own.
    pub(crate) fn note(&self, node: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now: i128 = fits(now.as_nanos(), "the time in nanoseconds is far below 2^127");
        let mut inner = self.inner();
        if inner.len() >= MAX && !inner.contains_key(&node) {
            inner.clear();
        }
        inner.insert(node, now);
    }

    /// Whether the driver was the last to change this inode, whose time of change this is. A change
    /// of the host within the same tick of its clock counts as the driver's.
    pub(crate) fn was_last(&self, node: u64, (seconds, nanoseconds): (i64, u32)) -> bool {
        let changed = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        self.inner().get(&node).is_some_and(|noted| changed <= *noted)
    }

    /// The driver knows nothing any more.
    pub(crate) fn reset(&self) {
        self.inner().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_change_is_the_drivers_until_the_time_is_a_later_one() {
        let own = Own::default();
        let now = || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            (i64::try_from(now.as_secs()).unwrap(), now.subsec_nanos())
        };
        let before = now();
        assert!(!own.was_last(5, before));
        own.note(5);
        assert!(own.was_last(5, before) && !own.was_last(6, before));
        assert!(!own.was_last(5, (before.0 + 60, 0)));
        own.reset();
        assert!(!own.was_last(5, before));
        for node in 0..3 * MAX as u64 {
            own.note(node);
        }
        assert!(own.inner().len() <= MAX);
        assert!(own.was_last(3 * MAX as u64 - 1, before));
    }
}
