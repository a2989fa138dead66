//! What a program that watches directories hears.

use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// Watches directories, and prints a line for each thing that is told of them: `attrib NAME`, or
/// `other NAME`. It goes on until it is killed.
pub(crate) fn watch(directories: &[String], out: &mut impl Write) -> io::Result<()> {
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    for directory in directories {
        let what = WatchFlags::ATTRIB | WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, directory.as_str(), what)?;
    }
    File::create("/tmp/watching")?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(&watch, &mut buffer);
    loop {
        let event = events.next()?;
        let kind = if event.events().contains(ReadFlags::ATTRIB) { "attrib" } else { "other" };
        let name = event.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy());
        writeln!(out, "{kind} {name}")?;
        out.flush()?;
    }
}
