//! Processes, as the guest's /proc tells of them.

use std::fs::File;
use std::io::{self, Read};

use nelly_protocol::messages as m;

use super::report::Report;
use crate::sys;

/// Most processes that are told of.
pub const MOST: usize = 8192;

/// Bytes of the words of a process.
const ARGS_MOST: u64 = 4096;

/// Bytes of the other files of a process.
const FILE_MOST: u64 = 16 << 10;

/// Nanoseconds of a clock tick of /proc: 100 a second on every architecture.
const TICK_NS: u64 = 10_000_000;

/// Writes a record for each process that still runs.
pub(super) fn report(pids: &[i32], report: &mut Report) -> io::Result<()> {
    for pid in pids.iter().take(MOST) {
        if let Some(process) = process(*pid, sys::boot_time_ns()) {
            report.record(&process)?;
        }
    }
    if pids.len() > MOST {
        report.note(&format!("{} processes are not shown, only the first {MOST}", pids.len() - MOST))?;
    }
    Ok(())
}

/// A process; none if it has ended.
fn process(pid: i32, now_ns: u64) -> Option<m::Process> {
    let read = |file: &str, most| {
        let mut bytes = Vec::new();
        File::open(format!("/proc/{pid}/{file}")).ok()?.take(most).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    };
    let stat = read("stat", FILE_MOST)?;
    let status = String::from_utf8_lossy(&read("status", FILE_MOST)?).into_owned();
    let mut process = parse(&stat, &status, now_ns)?;
    process.pid = u32::try_from(pid).ok()?;
    // A kernel thread or a process at its end has none.
    process.args = words(&read("cmdline", ARGS_MOST).unwrap_or_default());
    Some(process)
}

/// What `/proc/PID/stat` and `/proc/PID/status` say. The name in the first may hold anything,
/// brackets too: the fields begin after the last bracket.
fn parse(stat: &[u8], status: &str, now_ns: u64) -> Option<m::Process> {
    let text = String::from_utf8_lossy(stat);
    let (_, rest) = text.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    // Numbered from 3, as in proc_pid_stat(5).
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let last = |name: &str| line(name)?.split_whitespace().next_back()?.parse::<u32>().ok();
    let kib = line("VmRSS:").and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Some(m::Process {
        container_pid: last("NSpid:")?,
        parent: u32::try_from(number(4)?).ok()?,
        user: line("Uid:")?.split_whitespace().nth(1)?.parse().ok()?,
        state: fields.first()?.chars().take(1).collect(),
        age_ns: now_ns.saturating_sub(number(22)?.saturating_mul(TICK_NS)),
        cpu_ns: number(14)?.saturating_add(number(15)?).saturating_mul(TICK_NS),
        resident_bytes: kib.unwrap_or(0).saturating_mul(1024),
        name: name.to_owned(),
        ..Default::default()
    })
}

/// The words of a command line, each of which a zero byte ends.
fn words(bytes: &[u8]) -> Vec<Vec<u8>> {
    // A process may write over it, or fill it up with zeros.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if end == 0 { Vec::new() } else { bytes[..end].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_brackets_moves_no_field() {
        let stat = b"12 (a) R 1 (b) S 7 12 12 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0 300 1000 10\n";
        let status = "Name:\ta\nUid:\t1\t1000\t3\t4\nVmRSS:\t   12 kB\nNSpid:\t12\t3\n";
        let process = parse(stat, status, 5_000_000_000).expect("a process");
        assert_eq!((process.name.as_str(), process.state.as_str()), ("a) R 1 (b", "S"));
        assert_eq!((process.parent, process.user, process.container_pid), (7, 1000, 3));
        assert_eq!((process.cpu_ns, process.age_ns), (2_000_000_000, 2_000_000_000));
        assert_eq!(process.resident_bytes, 12 << 10);
        for cut in 0..stat.len() {
            // Never a panic.
            let _ = parse(&stat[..cut], status, 0);
        }
        assert!(parse(stat, "", 0).is_none());
    }

    #[test]
    fn this_process_is_found_with_its_words() {
        let id = i32::try_from(std::process::id()).expect("an id");
        let process = process(id, sys::boot_time_ns()).expect("this process");
        assert_eq!(process.pid, std::process::id());
        assert!(process.resident_bytes > 0 && process.age_ns < 3_600_000_000_000);
        assert_eq!(words(b"a\0\0b\0\0\0"), [b"a".to_vec(), Vec::new(), b"b".to_vec()]);
        assert_eq!(process.args.len(), std::env::args().count());
        assert!(words(b"\0\0").is_empty());
    }
}
