//! The host that measures: its fingerprint, its load, and what the kernel says of a process's memory.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Where and when figures were taken. Figures of two of these are not to be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// The processor's name.
    pub cpu_model: String,
    /// Processors that are on.
    pub cpus: usize,
    /// Memory of the host.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// How the first processor's clock is governed; `None` where the host does not say.
    pub governor: Option<String>,
    /// What its KVM is: `mainstream`, `paravirtual`, or why it cannot be used.
    pub kvm: String,
    /// Processes ready to run, averaged over a minute, times 100, before the first round.
    pub load_percent_before: u64,
    /// The same after the last.
    pub load_percent_after: u64,
    /// Version and build of Nelly.
    pub nelly: String,
    /// Seconds since 1970, when it began.
    pub began_unix_s: u64,
}

impl Environment {
    /// Reads it. `kvm` and `nelly` are what the caller knows of both.
    #[must_use]
    pub fn read(kvm: String, nelly: String) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = text("/proc/cpuinfo");
        let governor = text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            cpu_model: cpu_model(&cpuinfo).unwrap_or("unknown").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: nelly_vmm::sys::host::memory_bytes().unwrap_or(0),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            governor: Some(governor.trim().to_owned()).filter(|name| !name.is_empty()),
            kvm,
            load_percent_before: load_percent(),
            load_percent_after: 0,
            nelly,
            began_unix_s: now.as_secs(),
        }
    }

    /// Takes the load at the end.
    pub fn finish(&mut self) {
        self.load_percent_after = load_percent();
    }

    /// Why figures from here are to be read with care; empty on a quiet machine.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        // Half a processor busy on average is where medians were seen to move.
        let busy = 50 * self.cpus as u64;
        if self.load_percent_before > busy {
            let load = hundredths(self.load_percent_before);
            warnings
                .push(format!("the machine was busy: load {load} on {} processors at the start", self.cpus));
        }
        if let Some(governor) = self.governor.as_deref().filter(|name| *name != "performance") {
            warnings.push(format!("the processor's clock is governed by {governor:?}, not \"performance\""));
        }
        if self.kvm != "mainstream" {
            warnings.push(format!("KVM is not a mainstream one: {}", self.kvm));
        }
        warnings
    }
}

/// `123` as `1.23`.
#[must_use]
pub(crate) fn hundredths(value: u64) -> String {
    format!("{}.{:02}", value / 100, value % 100)
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

fn load_percent() -> u64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load_of(&text).unwrap_or(0)
}

/// `1.25 ...` as 125.
fn load_of(text: &str) -> Option<u64> {
    let (whole, part) = text.split_whitespace().next()?.split_once('.')?;
    Some(whole.parse::<u64>().ok()? * 100 + part.parse::<u64>().ok()?)
}

/// A line `Name:  123 kB` of a file of /proc, in bytes.
#[must_use]
pub(crate) fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Memory that the host can give without swapping.
pub(crate) fn available_bytes() -> u64 {
    kib_line(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable").unwrap_or(0)
}

/// The most that the process `id` held so far; `None` when it has no memory any more.
pub(crate) fn peak_rss_bytes(id: u32) -> Option<u64> {
    kib_line(&fs::read_to_string(format!("/proc/{id}/status")).ok()?, "VmHWM")
}

/// What a process holds, with its guest's memory apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Resident, shared pages by their share.
    pub pss_bytes: u64,
    /// Resident and its own alone.
    pub private_bytes: u64,
    /// The part of `pss_bytes` outside the guest's memory.
    pub outside_pss_bytes: u64,
    /// The part of `private_bytes` outside the guest's memory.
    pub outside_private_bytes: u64,
}

/// What the process `id` holds, whose guest has `guest_bytes` of memory.
///
/// # Errors
/// The process has ended, or belongs to someone else.
pub(crate) fn held(id: u32, guest_bytes: u64) -> io::Result<Held> {
    let path = format!("/proc/{id}/smaps");
    let text = fs::read_to_string(Path::new(&path))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read {path}: {error}")))?;
    Ok(split(&mappings(&text), guest_bytes))
}

/// One mapping of smaps.
#[derive(Clone, Copy, Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    pss: u64,
    private: u64,
    /// Mapped without reserving swap, as guest memory is.
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
                found.push(Mapping { start, end, ..Mapping::default() });
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
            "Pss" => last.pss = bytes,
            "Private_Clean" | "Private_Dirty" => last.private += bytes,
            _ => {}
        }
    }
    found
}

/// Adds up, with the guest's memory apart: neighbouring unreserved mappings that together are as large as it. (Kernel files mapped
/// into it divide it.)
fn split(mappings: &[Mapping], guest_bytes: u64) -> Held {
    let mut held = Held::default();
    let mut at = 0;
    while at < mappings.len() {
        let mut end = at + 1;
        while end < mappings.len()
            && mappings[at].unreserved
            && mappings[end].unreserved
            && mappings[end].start == mappings[end - 1].end
        {
            end += 1;
        }
        let group = &mappings[at..end];
        let size = group[group.len() - 1].end - group[0].start;
        let guest = group[0].unreserved && size >= guest_bytes;
        let pss: u64 = group.iter().map(|mapping| mapping.pss).sum();
        let private: u64 = group.iter().map(|mapping| mapping.private).sum();
        held.pss_bytes += pss;
        held.private_bytes += private;
        if !guest {
            held.outside_pss_bytes += pss;
            held.outside_private_bytes += private;
        }
        at = end;
    }
    held
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(cpu_model("processor: 0\nmodel name\t: A CPU @ 2\n"), Some("A CPU @ 2"));
        assert_eq!(load_of("1.25 0.50 0.1 1/2 3"), Some(125));
        assert_eq!(load_of(""), None);
        assert_eq!(kib_line("VmPeak:\t 9 kB\nVmHWM:\t  12 kB\n", "VmHWM"), Some(12 << 10));
        assert_eq!(hundredths(405), "4.05");
        assert!(peak_rss_bytes(std::process::id()).unwrap() > 0);
        assert!(available_bytes() > 0);
    }

    const SMAPS: &str = "\
00400000-00500000 r-xp 00000000 00:1 5 /bin/m
Pss:                 300 kB
Private_Clean:       100 kB
VmFlags: rd ex
7f0000000000-7f0004000000 rw-p 00000000 00:0 0
Pss:                4000 kB
Private_Dirty:      4000 kB
VmFlags: rd wr nr
7f0004000000-7f0008000000 rw-p 00000000 00:1 6 /vmlinux
Pss:                1000 kB
Private_Clean:       200 kB
Private_Dirty:       100 kB
VmFlags: rd wr nr
7f0009000000-7f0009001000 rw-p 00000000 00:0 0
Pss:                   4 kB
Private_Dirty:         4 kB
VmFlags: rd wr
";

    #[test]
    fn guest_memory_stands_apart_in_smaps() {
        let held = split(&mappings(SMAPS), 128 << 20);
        assert_eq!(held.pss_bytes, 5304 << 10);
        assert_eq!(held.private_bytes, 4404 << 10);
        assert_eq!((held.outside_pss_bytes, held.outside_private_bytes), (304 << 10, 104 << 10));
        // A larger guest is not there, so nothing is taken for it.
        assert_eq!(split(&mappings(SMAPS), 256 << 20).outside_pss_bytes, 5304 << 10);
        assert!(held_of_self().pss_bytes > 0);
    }

    fn held_of_self() -> Held {
        super::held(std::process::id(), 1 << 40).unwrap()
    }

    #[test]
    fn a_busy_machine_is_warned_of() {
        let quiet = Environment { cpus: 2, kvm: "mainstream".into(), ..Environment::default() };
        assert!(quiet.warnings().is_empty());
        let busy = Environment {
            load_percent_before: 305,
            governor: Some("powersave".into()),
            kvm: "paravirtual".into(),
            ..quiet
        };
        let warnings = busy.warnings();
        assert_eq!(warnings.len(), 3);
        assert!(warnings[0].contains("3.05 on 2"), "{warnings:?}");
    }
}
