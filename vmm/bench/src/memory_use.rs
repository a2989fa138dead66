//! Memory use of processes, without their guest's memory, and free memory of the host.

use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

/// Parses a line `Name:  123 kB` of a file in /proc; returns bytes.
fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Memory that is available without swapping, in bytes.
pub(crate) fn available_bytes() -> u64 {
    kib_line(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable").unwrap_or(0)
}

/// Peak resident memory of the process `id` in bytes; `None` if it has released its memory.
pub(crate) fn peak_rss_bytes(id: u32) -> Option<u64> {
    kib_line(&fs::read_to_string(format!("/proc/{id}/status")).ok()?, "VmHWM")
}

/// Memory use of a process, with and without its guest's memory. The mapped file of a kernel counts
/// as guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryUse {
    /// Resident memory, including shared pages (RSS).
    pub rss_bytes: u64,
    /// Resident memory, with a proportional share of shared pages (PSS).
    pub pss_bytes: u64,
    /// Resident private memory.
    pub private_bytes: u64,
    /// The part of `rss_bytes` outside the guest's memory: private and shared.
    pub outside_rss_bytes: u64,
    /// The part of `pss_bytes` outside the guest's memory.
    pub outside_pss_bytes: u64,
    /// The part of `private_bytes` outside the guest's memory.
    pub outside_private_bytes: u64,
}

/// Memory use of the process `id`, whose guest has `guest_bytes` of memory.
///
/// # Errors
/// The process has ended, belongs to another user, or has no mappings of this size.
pub(crate) fn measure(id: u32, guest_bytes: u64) -> io::Result<MemoryUse> {
    let path = format!("/proc/{id}/smaps");
    let text = fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))?;
    let absent = || io::Error::other(format!("{path} has no guest memory of {guest_bytes} bytes"));
    split(&mappings(&text), guest_bytes).ok_or_else(absent)
}

/// One mapping of smaps.
#[derive(Clone, Copy, Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    rss: u64,
    pss: u64,
    private: u64,
    writable: bool,
    /// Mapped without reserving swap, as some monitors map guest memory.
    unreserved: bool,
}

fn mappings(text: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        let Some(name) = first.strip_suffix(':') else {
            let range = first.split_once('-').and_then(|(start, end)| {
                Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
            });
            if let Some((start, end)) = range {
                let writable = words.next().is_some_and(|rights| rights.contains('w'));
                found.push(Mapping { start, end, writable, ..Mapping::default() });
            }
            continue;
        };
        let Some(last) = found.last_mut() else { continue };
        if name == "VmFlags" {
            last.unreserved = words.any(|flag| flag == "nr");
            continue;
        }
        let bytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) * 1024;
        match name {
            "Rss" => last.rss = bytes,
            "Pss" => last.pss = bytes,
            "Private_Clean" | "Private_Dirty" => last.private += bytes,
            _ => {}
        }
    }
    found
}

/// Whether `next` may belong to the same guest memory as the preceding `mapping`; parts with
/// different backing are separate mappings.
fn goes_on(mapping: &Mapping, next: &Mapping) -> bool {
    let alike = mapping.unreserved && next.unreserved || mapping.writable && next.writable;
    next.start == mapping.end && mapping.unreserved == next.unreserved && alike
}

/// The indices of the groups of mappings that are the guest's memory: the smallest group that
/// contains all of it or, if it is split by a hole, the largest groups that contain it together.
/// Empty if there is none.
fn guest(groups: &[&[Mapping]], guest_bytes: u64) -> Vec<usize> {
    let size = |group: &[Mapping]| group[group.len() - 1].end - group[0].start;
    let fits = |group: &[Mapping]| group[0].unreserved || group[0].writable;
    let mut places: Vec<(u64, usize)> = groups
        .iter()
        .enumerate()
        .filter(|(_, group)| fits(group))
        .map(|(at, group)| (size(group), at))
        .collect();
    places.sort_unstable();
    if let Some((_, whole)) = places.iter().find(|(size, _)| *size >= guest_bytes) {
        return vec![*whole];
    }
    let (mut sum, mut parts) = (0, Vec::new());
    for (size, at) in places.into_iter().rev() {
        sum += size;
        parts.push(at);
        if sum >= guest_bytes {
            return parts;
        }
    }
    Vec::new()
}

/// Adds up the mappings; `None` if there is no guest memory.
fn split(mappings: &[Mapping], guest_bytes: u64) -> Option<MemoryUse> {
    let groups: Vec<&[Mapping]> = mappings.chunk_by(goes_on).collect();
    let guest = guest(&groups, guest_bytes);
    let mut held = MemoryUse::default();
    for (at, group) in groups.iter().enumerate() {
        for mapping in *group {
            held.rss_bytes += mapping.rss;
            held.pss_bytes += mapping.pss;
            held.private_bytes += mapping.private;
            if !guest.contains(&at) {
                held.outside_rss_bytes += mapping.rss;
                held.outside_pss_bytes += mapping.pss;
                held.outside_private_bytes += mapping.private;
            }
        }
    }
    (!guest.is_empty()).then_some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(kib_line("VmPeak:\t 9 kB\nVmHWM:\t  12 kB\n", "VmHWM"), Some(12 << 10));
        assert!(peak_rss_bytes(std::process::id()).unwrap() > 0);
        assert!(available_bytes() > 0);
    }

    /// 128 MiB in two pieces, the second of a file, and what a monitor has beside them.
    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:1 5 /bin/m
Rss:                 400 kB
Pss:                 300 kB
Private_Clean:       100 kB
VmFlags: rd ex
7f0000000000-7f0004000000 rw-p 00000000 00:0 0
Rss:                4000 kB
Pss:                4000 kB
Private_Dirty:      4000 kB
VmFlags: rd wr nr
7f0004000000-7f0008000000 rw-p 00000000 00:1 6 /vmlinux
Rss:                1100 kB
Pss:                1000 kB
Private_Clean:       200 kB
Private_Dirty:       100 kB
VmFlags: rd wr nr
7f0008000000-7f0008001000 rw-p 00000000 00:0 0
Rss:                   4 kB
Pss:                   4 kB
Private_Dirty:         4 kB
VmFlags: rd wr
";

    #[test]
    fn guest_memory_stands_apart_in_smaps() {
        let held = split(&mappings(SMAPS), 128 << 20).unwrap();
        assert_eq!((held.rss_bytes, held.outside_rss_bytes), (5504 << 10, 404 << 10));
        assert_eq!((held.pss_bytes, held.outside_pss_bytes), (5304 << 10, 304 << 10));
        assert_eq!((held.private_bytes, held.outside_private_bytes), (4404 << 10, 104 << 10));
    }

    #[test]
    fn memory_that_was_reserved_or_is_shared_is_told_too() {
        for (from, to) in [(" nr", ""), ("rw-p", "rw-s")] {
            let text =
                SMAPS.replace(from, to).replace("7f0008000000-7f0008001000", "7f0009000000-7f0009001000");
            assert_eq!(split(&mappings(&text), 128 << 20).unwrap().outside_rss_bytes, 404 << 10, "{from}");
        }
    }

    #[test]
    fn memory_on_both_sides_of_a_hole_is_one_guest() {
        let text = SMAPS.replace("7f0004000000-7f0008000000", "7f0004000000-7f0007000000");
        let apart = text.replace("7f0004000000-", "7f0004800000-");
        assert_eq!(split(&mappings(&apart), 100 << 20).unwrap().outside_rss_bytes, 404 << 10);
        assert_eq!(split(&mappings(&apart), 128 << 20), None);
        // A larger mapping beside it is not the guest's.
        assert_eq!(split(&mappings(&apart), 40 << 20).unwrap().outside_rss_bytes, 4404 << 10);
    }

    #[test]
    fn without_guest_memory_nothing_is_said() {
        assert_eq!(split(&mappings(SMAPS), 256 << 20), None);
        let error = measure(std::process::id(), 1 << 46).unwrap_err().to_string();
        assert!(error.contains("no guest memory"), "{error}");
        assert!(measure(u32::MAX, 1).unwrap_err().to_string().contains("smaps"));
    }
}
