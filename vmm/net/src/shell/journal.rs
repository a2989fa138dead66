//! The log, which may be a pipe that nobody reads: it never holds the network up.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::net::{SendFlags, send};

/// The longest line, in bytes: a pipe takes so many as a whole or not at all.
const MOST: usize = 4096;

/// An object with one member, of at most [`MOST`] bytes, nearly.
fn note_of(note: &str) -> String {
    // A character may take six bytes there.
    let short = &note[..note.floor_char_boundary(MOST / 6 - 100)];
    serde_json::json!({"note": short}).to_string()
}

/// A line: an object with the time in it.
fn timed(now: &str, object: &str) -> String {
    format!("{{\"time\":\"{now}\",{}\n", object.strip_prefix('{').unwrap_or(object))
}

/// Where log lines go.
#[derive(Debug)]
pub struct Journal {
    file: File,
    is_socket: bool,
    /// Lines that were not taken, and not told of yet.
    lost: AtomicU64,
}

impl Journal {
    /// A log in `file`, whose own mode, which others may share, stays as it is.
    #[must_use]
    pub fn new(file: File) -> Self {
        let kind = fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
        let waits = matches!(kind, Ok(FileType::Fifo | FileType::CharacterDevice));
        // Opened anew, a pipe or terminal has a mode of its own. Where that is refused, it is asked
        // for room before each line, as the others are.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let own = if waits { open(path, flags, Mode::empty()).ok() } else { None };
        Self {
            file: own.map_or(file, File::from),
            is_socket: matches!(kind, Ok(FileType::Socket)),
            lost: AtomicU64::new(0),
        }
    }

    /// What lines are written to.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Writes a line about the network itself.
    pub fn say(&self, note: &str) {
        self.write_line(&note_of(note));
    }

    /// Writes a line, an object of JSON, with the time before its other members, or loses it where
    /// there is no room for it at once. How many were lost is told before the next one.
    pub fn write_line(&self, object: &str) {
        let lost = self.lost.load(Ordering::Relaxed);
        let now = time::now();
        let mut text = match lost {
            0 => String::new(),
            lost => timed(&now, &note_of(&format!("{lost} lines were lost: nobody read the log"))),
        };
        text.push_str(&timed(&now, object));
        if self.has_room() && self.write(text.as_bytes()) {
            self.lost.fetch_sub(lost, Ordering::Relaxed);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn has_room(&self) -> bool {
        let mut files = [PollFd::new(&self.file, PollFlags::OUT)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut files, Some(&now)).is_ok_and(|ready| ready > 0)
            && files[0].revents().contains(PollFlags::OUT)
    }

    fn write(&self, text: &[u8]) -> bool {
        if self.is_socket {
            return send(&self.file, text, crate::sys::QUIET | SendFlags::DONTWAIT) == Ok(text.len());
        }
        (&self.file).write(text).is_ok_and(|len| len == text.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::*;

    fn note(line: &str) -> String {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
        value["note"].as_str().unwrap().to_owned()
    }

    /// Fills a log that nobody reads, then reads what there is and what one line more says.
    fn filled(file: OwnedFd, mut reader: File) {
        let mode = rustix::fs::fcntl_getfl(&file).unwrap();
        let journal = Journal::new(File::from(file.try_clone().unwrap()));
        let begun = Instant::now();
        let mut said = 0_u64;
        while journal.lost.load(Ordering::Relaxed) < 100 {
            journal.say(&format!("line {said} {}", "x".repeat(500)));
            said += 1;
        }
        assert!(begun.elapsed() < Duration::from_secs(10));
        assert_eq!(rustix::fs::fcntl_getfl(&file).unwrap(), mode, "the mode is changed for others, too");
        let mut room = vec![0; 4 << 20];
        let len = reader.read(&mut room).unwrap();
        assert!(
            note(std::str::from_utf8(&room[..len]).unwrap().lines().next().unwrap()).starts_with("line 0 x")
        );
        journal.say("and then");
        drop((journal, file));
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let all = format!("{}{rest}", std::str::from_utf8(&room[..len]).unwrap());
        let lines: Vec<&str> = all.lines().collect();
        let whole = usize::try_from(said).unwrap() - 100;
        assert_eq!(lines.len(), whole + 2);
        let last: Vec<String> = lines[whole..].iter().map(|line| note(line)).collect();
        assert_eq!(last, ["100 lines were lost: nobody read the log", "and then"]);
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up() {
        let (reader, writer) = std::io::pipe().unwrap();
        filled(writer.into(), OwnedFd::from(reader).into());
        let (reader, writer) = UnixStream::pair().unwrap();
        filled(writer.into(), OwnedFd::from(reader).into());
    }

    #[test]
    fn a_line_is_cut_and_a_reader_that_is_gone_is_no_error() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let journal = Journal::new(OwnedFd::from(writer).into());
        journal.say(&"é".repeat(MOST));
        let mut line = vec![0; 2 * MOST];
        let len = reader.read(&mut line).unwrap();
        assert!(len <= MOST && line[len - 1] == b'\n');
        assert!(note(std::str::from_utf8(&line[..len]).unwrap()).starts_with("éé"));
        drop(reader);
        journal.say("nobody");
        assert_eq!(journal.lost.load(Ordering::Relaxed), 1);
    }
}
