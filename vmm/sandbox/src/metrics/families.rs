//! The names, in the order in which they are told.

/// A name that can be counted on.
pub(super) struct Family {
    pub(super) name: &'static str,
    /// `counter` or `gauge`.
    pub(super) kind: &'static str,
    pub(super) help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: "counter", help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: "gauge", help }
}

/// All of them. Counters of a machine begin at 0 with each of its starts.
pub(super) static FAMILIES: &[Family] = &[
    gauge(
        "nelly_sandbox_up",
        "Whether the keeper of the sandbox and the monitor of its machine answered in time.",
    ),
    gauge("nelly_sandbox_info", "1, with the status of the sandbox."),
    counter("nelly_sandbox_restarts_total", "Starts of the sandbox by its restart policy."),
    counter("nelly_monitor_cpu_seconds_total", "CPU time of the monitor, that of the guest included."),
    gauge(
        "nelly_monitor_resident_memory_bytes",
        "Resident memory of the monitor, what the guest touched of its memory included.",
    ),
    gauge("nelly_monitor_confinement", "Whether this layer confines the monitor."),
    counter("nelly_machine_starts_total", "Starts of the guest, resets included."),
    gauge(
        "nelly_machine_memory_bytes",
        "Memory of the guest: from the start (boot), wanted beyond that (requested), and plugged in of it (plugged).",
    ),
    counter(
        "nelly_machine_unclaimed_accesses_total",
        "Accesses of the guest to ports and memory where no device is.",
    ),
    counter("nelly_vcpu_exits_total", "Exits of a virtual processor from the guest, by kind."),
    counter("nelly_device_interrupts_total", "Interrupts that the device raised."),
    counter("nelly_device_requests_total", "Requests that the device gave back to the guest, by queue."),
    counter(
        "nelly_device_ignored_accesses_total",
        "Accesses to the device that its specification forbids, and that were ignored.",
    ),
    counter(
        "nelly_device_faults_total",
        "What the driver of the guest broke, or what failed behind the device, by kind.",
    ),
    gauge("nelly_device_needs_reset", "Whether the device does nothing until the driver resets it."),
    gauge("nelly_device_connections", "Connections of the socket device."),
    counter(
        "nelly_disk_operations_total",
        "Requests that the disk answered, by kind; those with an error as failed.",
    ),
    counter("nelly_disk_read_bytes_total", "Bytes that the guest read from the disk."),
    counter("nelly_disk_written_bytes_total", "Bytes that the guest wrote to the disk."),
    counter("nelly_disk_throttled_total", "Requests that were held back by the limits of the disk."),
    gauge("nelly_disk_waits_for_room", "Whether requests wait because the file system of the host is full."),
    counter(
        "nelly_balloon_reported_bytes_total",
        "Bytes that the guest reported as free to the balloon device.",
    ),
    counter("nelly_balloon_given_back_bytes_total", "Bytes of them that were given back to the host."),
    gauge("nelly_network_link_up", "Whether the link of the network device is up."),
    counter(
        "nelly_network_frames_total",
        "Frames of the network device: passed on, dropped because they broke the rules (bad), or because nobody could take them (lost).",
    ),
    counter("nelly_network_bytes_total", "Bytes of the frames that were passed on."),
    counter("nelly_console_output_bytes_total", "Bytes that the guest wrote to the console."),
    counter(
        "nelly_console_lost_bytes_total",
        "Bytes of them that were dropped because the guest did not wait.",
    ),
];
