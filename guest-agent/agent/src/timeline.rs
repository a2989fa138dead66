//! When things happened in the guest: the agent's stamps by the raw counter, the kernel's out of
//! its log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arch::counter;

/// The agent's own stamps, raw counts; 0: not yet.
#[derive(Debug, Default)]
pub struct Marks {
    main: u64,
    listening: AtomicU64,
    ready: AtomicU64,
}

impl Marks {
    /// Of a process whose `main` began at this count.
    #[must_use]
    pub fn new(main: u64) -> Self {
        Self { main, ..Self::default() }
    }

    /// The agent listens now.
    pub fn listening(&self) {
        self.listening.store(counter(), Ordering::Relaxed);
    }

    /// The agent is ready now.
    pub fn ready(&self) {
        self.ready.store(counter(), Ordering::Relaxed);
    }

    /// Name and count of each that was taken.
    pub fn taken(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = [
            ("agent_main", self.main),
            ("agent_listening", self.listening.load(Ordering::Relaxed)),
            ("agent_ready", self.ready.load(Ordering::Relaxed)),
        ];
        all.into_iter().filter(|(_, count)| *count != 0)
    }
}

/// The kernel's stamps and how its clock relates to the counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelLog {
    /// The counter when the kernel's clock showed `clock_ns`.
    pub counter: u64,
    /// The kernel's scheduler clock, in nanoseconds since it began to run; the log tells whole
    /// microseconds.
    pub clock_ns: u64,
    /// When the kernel executed the first program, by that clock; nothing when that line is no
    /// longer in the log.
    pub init_ns: Option<u64>,
}

/// Longest record of /dev/kmsg.
const RECORD_BYTES: usize = 8192;

/// Reads the kernel's log: from its first record, and then one line more that is written here, so
/// that both clocks are read at one moment. The line is of the lowest level: no console prints it.
///
/// # Errors
/// There is no /dev/kmsg, or it may not be used, or the line does not come back.
pub fn kernel_log() -> io::Result<KernelLog> {
    let path = "/dev/kmsg";
    let mut log = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let before = counter();
    let line = format!("nelly-agent: the timeline was read at count {before}");
    // One more reading: formatting took its time.
    let before = counter();
    log.write_all(format!("<7>{line}\n").as_bytes())?;
    let after = counter();
    let (mut shift, mut init) = (0, None);
    let mut buffer = vec![0; RECORD_BYTES];
    while let Some(record) = next_record(&mut log, &mut buffer)? {
        // Most records are none of these; the whole log is read, so they are passed over fast.
        let Some((at_ns, words)) = std::str::from_utf8(record).ok().and_then(parse) else { continue };
        if let Some(offset_ns) = stable_offset(words) {
            shift = offset_ns;
        }
        if words.starts_with("Run ") && words.ends_with(" as init process") {
            init = init.or(Some(at_ns));
        }
        if words == line {
            let clock = |at_ns: u64| at_ns.checked_add_signed(-shift);
            let Some(clock_ns) = clock(at_ns) else { break };
            let counter = before + (after - before) / 2;
            return Ok(KernelLog { counter, clock_ns, init_ns: init.and_then(clock) });
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        "the kernel log does not contain the line that was written to it",
    ))
}

/// The next record, or nothing at the end. Records that were overwritten meanwhile are passed over.
fn next_record<'a>(log: &mut File, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    loop {
        match log.read(buffer) {
            Ok(0) => return Ok(None),
            Ok(count) => return Ok(buffer.get(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error),
        }
    }
}

/// "6,339,5140900,-;text" and perhaps further lines: when, in nanoseconds, and the text, if it
/// begins as one that is looked for.
fn parse(record: &str) -> Option<(u64, &str)> {
    let (head, text) = record.split_at_checked(record.bytes().position(|byte| byte == b';')?)?;
    let text = text.get(1..)?;
    if !["Run ", "sched_clock: ", "nelly-agent: "].iter().any(|start| text.starts_with(start)) {
        return None;
    }
    let microseconds: u64 = head.split(',').nth(2)?.parse().ok()?;
    Some((microseconds.checked_mul(1000)?, text.lines().next().unwrap_or_default()))
}

/// What the log's times differ from the scheduler clock by, in nanoseconds, from this line on:
/// "sched_clock: Marking stable (80002335, 98861470)->(203230856, -24367051)". Before it, an x86
/// kernel keeps its log by a clock that only ticks move, and that loses time; from it on, by the
/// scheduler clock and this offset. Other kernels have one clock all the time.
fn stable_offset(line: &str) -> Option<i64> {
    let last = line.strip_prefix("sched_clock: Marking stable (")?.rsplit_once(", ")?.1;
    let offset: i64 = last.strip_suffix(')')?.parse().ok()?;
    // Its negative is needed.
    (offset != i64::MIN).then_some(offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_fields() {
        assert_eq!(parse("6,0,0,-;sched_clock: x\n"), Some((0, "sched_clock: x")));
        assert_eq!(parse("6,0,0,-;Linux version 6.12\n"), None, "nobody looks for that");
        assert_eq!(
            parse("6,89,25047,-,caller=T1;Run /init as init process\n SUBSYSTEM=x\n"),
            Some((25_047_000, "Run /init as init process"))
        );
        for strange in ["", "6,1", "6,1,2,-", "6,1,x,-;Run ", "6,1,18446744073709551615,-;Run "] {
            assert_eq!(parse(strange), None, "{strange}");
        }
    }

    #[test]
    fn the_offset_of_a_clock_that_became_stable() {
        let line = "sched_clock: Marking stable (80002335, 98861470)->(203230856, -24367051)";
        assert_eq!(stable_offset(line), Some(-24_367_051));
        assert_eq!(stable_offset("sched_clock: Marking stable (1, 2)->(3, 4)"), Some(4));
        for strange in
            ["", "sched_clock: Marking unstable (1, 2)<-(3, 4)", "sched_clock: Marking stable (1, x)"]
        {
            assert_eq!(stable_offset(strange), None, "{strange}");
        }
    }

    #[test]
    fn marks_that_were_not_taken_are_not_told() {
        let marks = Marks::new(counter());
        marks.ready();
        let names: Vec<_> = marks.taken().map(|(name, _)| name).collect();
        assert_eq!(names, ["agent_main", "agent_ready"]);
        assert!(marks.taken().is_sorted_by_key(|(_, count)| count));
        assert_eq!(Marks::default().taken().count(), 0);
    }
}
