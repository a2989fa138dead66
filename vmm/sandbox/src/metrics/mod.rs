//! What machines count, as Prometheus reads it: text of the exposition format 0.0.4.
//!
//! The names are stable: more may come, and none changes its meaning. Everything that stands in the
//! text of a machine is its monitor's word, which a guest may have taken over: what it says is
//! escaped, and cannot spoil what is told of others.

mod families;
#[cfg(test)]
pub(crate) mod strict;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};

use nelly_vmm::machine::{Confinement, ConsoleState, DeviceState, ExitCounts, Inspection, NetworkState};
use nelly_vmm::text;

use self::families::{FAMILIES, Family};

/// Most bytes of the value of a label.
const VALUE_MOST: usize = 256;

/// Most samples of one machine: what is more is left out. A machine has less by far.
const SAMPLES_MOST: usize = 20_000;

/// A sandbox as it is known from outside.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Where it is in its life, in a word.
    pub status: &'a str,
    /// How often its policy started it again.
    pub restarts: u32,
    /// What its keeper tells; `None` if it does not.
    pub told: Option<&'a Told>,
}

/// What a keeper tells of a machine that runs.
#[derive(Clone, Debug)]
pub struct Told {
    /// What the monitor shows.
    pub inspection: Inspection,
    /// CPU time of the monitor's process in nanoseconds, with that of the guest. It is not known
    /// where `resident_bytes` is 0: no process has none.
    pub cpu_ns: u64,
    /// Resident memory of the monitor's process, with what the guest has touched of its own.
    pub resident_bytes: u64,
}

/// The samples of a family: a value for each set of labels.
type Samples = BTreeMap<String, String>;

/// What is told of some sandboxes at one moment.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    samples: BTreeMap<&'static str, Samples>,
}

impl Scrape {
    /// Adds a sandbox.
    pub fn add(&mut self, seen: &Seen<'_>) {
        let mut of = self.named(seen);
        of.put("nelly_sandbox_up", &[], u64::from(seen.told.is_some()));
        of.put("nelly_sandbox_restarts_total", &[], u64::from(seen.restarts));
        if let Some(told) = seen.told {
            of.told(told);
        }
    }

    /// Adds where a sandbox is in its life, and no more: it has no machine to ask yet, or none any
    /// more.
    pub fn mention(&mut self, seen: &Seen<'_>) {
        self.named(seen);
    }

    fn named(&mut self, seen: &Seen<'_>) -> Of<'_> {
        let labels = labels(&[("sandbox", seen.name), ("id", seen.id)]);
        let mut of = Of { scrape: self, labels, left: SAMPLES_MOST };
        of.put("nelly_sandbox_info", &[("status", seen.status)], 1_u64);
        of
    }
}

impl Display for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Family { name, kind, help } in FAMILIES {
            let Some(samples) = self.samples.get(name) else { continue };
            writeln!(f, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
            for (labels, value) in samples {
                writeln!(f, "{name}{{{labels}}} {value}")?;
            }
        }
        Ok(())
    }
}

/// Labels as they stand between the braces.
fn labels(pairs: &[(&str, &str)]) -> String {
    let mut all = String::new();
    for (name, value) in pairs {
        if !all.is_empty() {
            all.push(',');
        }
        all.push_str(name);
        all.push_str("=\"");
        for c in value[..value.floor_char_boundary(VALUE_MOST)].chars() {
            match c {
                '\\' => all.push_str("\\\\"),
                '"' => all.push_str("\\\""),
                '\n' => all.push_str("\\n"),
                // A terminal may show the text, too.
                c if text::is_plain(c) => all.push(c),
                _ => all.push(char::REPLACEMENT_CHARACTER),
            }
        }
        all.push('"');
    }
    all
}

/// A duration in seconds.
fn seconds(nanoseconds: u64) -> String {
    let (whole, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    format!("{whole}.{rest:09}")
}

/// The samples of one sandbox.
struct Of<'a> {
    scrape: &'a mut Scrape,
    labels: String,
    left: usize,
}

impl Of<'_> {
    fn put(&mut self, family: &'static str, more: &[(&str, &str)], value: impl Display) {
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        let mut all = self.labels.clone();
        if !more.is_empty() {
            all.push(',');
            all.push_str(&labels(more));
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = write!(text, "{value}");
        self.scrape.samples.entry(family).or_default().insert(all, text);
    }

    fn told(&mut self, told: &Told) {
        let Told { inspection, cpu_ns, resident_bytes } = told;
        if *resident_bytes > 0 {
            self.put("nelly_monitor_cpu_seconds_total", &[], seconds(*cpu_ns));
            self.put("nelly_monitor_resident_memory_bytes", &[], *resident_bytes);
        }
        self.put("nelly_machine_starts_total", &[], inspection.starts);
        let memory = inspection.memory;
        let sizes = [
            ("boot", memory.boot_bytes),
            ("requested", memory.requested_bytes),
            ("plugged", memory.plugged_bytes),
        ];
        for (kind, bytes) in sizes {
            self.put("nelly_machine_memory_bytes", &[("kind", kind)], bytes);
        }
        for (number, exits) in inspection.vcpus.iter().enumerate() {
            self.exits(&number.to_string(), exits);
        }
        for (space, count) in
            [("port", inspection.unclaimed_port_accesses), ("memory", inspection.unclaimed_memory_accesses)]
        {
            self.put("nelly_machine_unclaimed_accesses_total", &[("space", space)], count);
        }
        for device in &inspection.devices {
            self.device(device);
        }
        for console in &inspection.consoles {
            self.console(console);
        }
        if let Some(confinement) = &inspection.confinement {
            self.confinement(confinement);
        }
    }

    fn exits(&mut self, vcpu: &str, exits: &ExitCounts) {
        let ExitCounts { port_read, port_write, memory_read, memory_write, halted, kicked, other } = *exits;
        let kinds = [
            ("port_read", port_read),
            ("port_write", port_write),
            ("memory_read", memory_read),
            ("memory_write", memory_write),
            ("halted", halted),
            ("kicked", kicked),
            ("other", other),
        ];
        for (kind, count) in kinds {
            self.put("nelly_vcpu_exits_total", &[("vcpu", vcpu), ("kind", kind)], count);
        }
    }

    fn device(&mut self, device: &DeviceState) {
        let slot = device.slot.to_string();
        let name = device.name.as_deref().unwrap_or_default();
        let labels = [("slot", slot.as_str()), ("device", device.kind.as_str()), ("name", name)];
        // Faults of devices that were in the slot before stay, also when it is empty.
        for fault in &device.faults {
            self.put(
                "nelly_device_faults_total",
                &[("slot", &slot), ("device", &fault.device), ("kind", &fault.kind)],
                fault.count,
            );
        }
        if device.kind == EMPTY {
            return;
        }
        self.put("nelly_device_interrupts_total", &labels, device.interrupts);
        self.put("nelly_device_ignored_accesses_total", &labels, device.ignored_accesses);
        self.put("nelly_device_needs_reset", &labels, u64::from(device.needs_reset));
        for (number, queue) in device.queues.iter().enumerate() {
            let number = number.to_string();
            if let Some(chains) = queue.chains {
                self.put("nelly_device_requests_total", &with(&labels, ("queue", &number)), chains);
            }
        }
        if let Some(connections) = device.connections {
            self.put("nelly_device_connections", &labels, connections);
        }
        if let Some(disk) = &device.disk {
            self.put("nelly_disk_waits_for_room", &labels, u64::from(device.waits_for_room));
            self.put("nelly_disk_read_bytes_total", &labels, disk.read_bytes);
            self.put("nelly_disk_written_bytes_total", &labels, disk.written_bytes);
            self.put("nelly_disk_throttled_total", &labels, disk.throttled);
            let operations = [
                ("read", disk.reads),
                ("write", disk.writes),
                ("flush", disk.flushes),
                ("discard", disk.discards),
                ("failed", disk.failed),
            ];
            for (operation, count) in operations {
                self.put("nelly_disk_operations_total", &with(&labels, ("operation", operation)), count);
            }
        }
        if let Some(balloon) = &device.balloon {
            self.put("nelly_balloon_reported_bytes_total", &labels, balloon.reported_bytes);
            self.put("nelly_balloon_given_back_bytes_total", &labels, balloon.given_back_bytes);
        }
        if let Some(network) = &device.network {
            self.network(&labels, network);
        }
    }

    fn network(&mut self, labels: &[(&str, &str)], network: &NetworkState) {
        self.put("nelly_network_link_up", labels, u64::from(network.link_up));
        for (direction, frames) in [("sent", network.sent), ("received", network.received)] {
            // What the host's kernel or a peer moves is counted nowhere: no zero stands for it.
            let Some(frames) = frames else { continue };
            let labels = with(labels, ("direction", direction));
            self.put("nelly_network_bytes_total", &labels, frames.bytes);
            for (result, count) in [("passed", frames.frames), ("bad", frames.bad), ("lost", frames.lost)] {
                self.put("nelly_network_frames_total", &with(&labels, ("result", result)), count);
            }
        }
    }

    fn console(&mut self, console: &ConsoleState) {
        let port = [("port", console.port.as_str())];
        self.put("nelly_console_output_bytes_total", &port, console.output_bytes);
        self.put("nelly_console_lost_bytes_total", &port, console.lost_bytes);
    }

    fn confinement(&mut self, done: &Confinement) {
        let layers = [
            ("user", done.user.is_some()),
            ("network_namespace", done.namespaces.iter().any(|name| name == "network")),
            ("mount_namespace", done.namespaces.iter().any(|name| name == "mount")),
            ("no_new_privs", done.no_new_privs),
            ("undumpable", done.undumpable),
            ("capabilities", done.capabilities.is_some()),
            ("landlock", done.landlock > 0),
            ("seccomp", done.seccomp),
        ];
        for (layer, applied) in layers {
            self.put("nelly_monitor_confinement", &[("layer", layer)], u64::from(applied));
        }
    }
}

/// Labels with one more.
fn with<'a>(labels: &[(&'a str, &'a str)], more: (&'a str, &'a str)) -> Vec<(&'a str, &'a str)> {
    [labels, &[more]].concat()
}

/// What an empty slot calls itself.
const EMPTY: &str = "none";
