//! The host that measures: its fingerprint and its load.

use std::fs;

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
            warnings.push(format!("the processor's frequency governor is {governor:?}, not \"performance\""));
        }
        if self.kvm != "mainstream" {
            warnings.push(format!("the host's KVM is not a standard one: {}", self.kvm));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        assert_eq!(cpu_model("processor: 0\nmodel name\t: A CPU @ 2\n"), Some("A CPU @ 2"));
        assert_eq!(load_of("1.25 0.50 0.1 1/2 3"), Some(125));
        assert_eq!(load_of(""), None);
        assert_eq!(hundredths(405), "4.05");
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
