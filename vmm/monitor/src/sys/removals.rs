//! Whether something in a directory was removed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

/// Readable once something in a directory was removed, or the directory itself, and from then on.
/// On some systems it is readable, too, once something was made there.
#[derive(Debug)]
pub struct Removals(platform::Handle);

impl Removals {
    /// Watches `directory`.
    ///
    /// # Errors
    /// It is not there, or the system cannot watch so many.
    pub fn new(directory: &Path) -> io::Result<Self> {
        platform::watch(directory).map(Self)
    }
}

impl AsFd for Removals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Removals {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};

    use super::*;

    pub(super) type Handle = OwnedFd;

    pub(super) fn watch(directory: &Path) -> io::Result<Handle> {
        let watch = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let gone =
            WatchFlags::DELETE | WatchFlags::DELETE_SELF | WatchFlags::MOVED_FROM | WatchFlags::MOVE_SELF;
        add_watch(&watch, directory, gone)?;
        Ok(watch)
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    #![allow(unsafe_code, reason = "kevent takes raw descriptors")]

    use rustix::event::kqueue::{Event, EventFilter, EventFlags, VnodeEvents, kevent, kqueue};

    use super::*;

    #[derive(Debug)]
    pub(super) struct Handle {
        queue: OwnedFd,
        #[expect(dead_code, reason = "the queue forgets a directory that is closed")]
        directory: OwnedFd,
    }

    impl AsFd for Handle {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.queue.as_fd()
        }
    }

    pub(super) fn watch(directory: &Path) -> io::Result<Handle> {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Without a right to read, and without keeping its volume from being taken out.
        let flags = libc::O_EVTONLY | libc::O_DIRECTORY;
        let directory = std::fs::File::options().read(true).custom_flags(flags).open(directory)?;
        let directory = OwnedFd::from(directory);
        let queue = kqueue()?;
        let flags = VnodeEvents::WRITE | VnodeEvents::DELETE | VnodeEvents::RENAME | VnodeEvents::REVOKE;
        let filter = EventFilter::Vnode { vnode: directory.as_raw_fd(), flags };
        let change = Event::new(filter, EventFlags::ADD, std::ptr::null_mut());
        let mut none: [Event; 0] = [];
        // SAFETY: the descriptor that is named stays open for as long as the queue does.
        unsafe { kevent(&queue, &[change], &mut none, None) }?;
        Ok(Handle { queue, directory })
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn ready(watch: &Removals, seconds: i64) -> bool {
        let within = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&within)).unwrap() > 0
    }

    #[test]
    fn what_is_removed_is_told_also_when_it_is_the_directory() {
        let top = tempfile::tempdir().unwrap();
        let directory = top.path().join("watched");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("file"), "x").unwrap();
        let watch = Removals::new(&directory).unwrap();
        assert!(!ready(&watch, 0));
        std::fs::remove_file(directory.join("file")).unwrap();
        assert!(ready(&watch, 60) && ready(&watch, 0));
        let watch = Removals::new(&directory).unwrap();
        std::fs::remove_dir(&directory).unwrap();
        assert!(ready(&watch, 60));
        assert!(Removals::new(&directory).is_err());
    }
}
