//! A machine's configuration as JSON, from whoever starts the monitor, and that of its network.

use nelly_net::config::UsernetConfig;
use nelly_vmm::config::{MAX_VIRTIO_DEVICES, MachineConfig};

use super::{spelt, text};

/// Words of both.
const WORDS: &[&str] = &[
    "\"kernel\"",
    "\"initrd\"",
    "\"command_line\"",
    "\"cpus\"",
    "\"memory_bytes\"",
    "\"hotplug_bytes\"",
    "\"disks\"",
    "\"networks\"",
    "\"shares\"",
    "\"vsock\"",
    "\"console\"",
    "\"serial\"",
    "\"path\"",
    "\"fd\"",
    "\"id\"",
    "\"source\"",
    "\"read_only\"",
    "\"mac\"",
    "\"link\"",
    "\"tag\"",
    "\"cid\"",
    "\"platform\"",
    "\"boot_protocol\"",
    "\"time_limit_ms\"",
    "\"confine\"",
    "\"rng\"",
    "\"format\"",
    "\"qcow2\"",
    "\"raw\"",
    "\"layers\"",
    "\"limits\"",
    "\"sector_bytes\"",
    "\"stream\"",
    "\"datagram\"",
    "\"socket\"",
    "\"header\"",
    "\"tap\"",
    "\"vhost_user\"",
    "\"queue_pairs\"",
    "\"mtu\"",
    "\"52:54:00:12:34:56\"",
    "\"mptable\"",
    "\"acpi\"",
    "\"auto\"",
    "\"stdio\"",
    "\"output\"",
    "\"input\"",
    "\"spare_slots\"",
    "\"on_reset\"",
    "\"nested\"",
    "\"immutable_images\"",
    "\"hotplug_bytes\"",
    "\"none\"",
    "null",
    "true",
    "false",
    "18446744073709551615",
    "-1",
    "1e400",
    "4294967296",
    "268435456",
    "4096",
    "\"/a\"",
    "\"a\"",
    "[",
    "]",
    "{",
    "}",
    ":",
    ",",
    "\\u0000",
    "\"dns_servers\"",
    "\"allow\"",
    "\"deny\"",
    "\"publish\"",
    "\"max_flows\"",
    "\"subnet4\"",
    "\"10.0.2.0/24\"",
    "\"127.0.0.1\"",
    "\"log_fd\"",
    "\"peers\"",
    "\"default\"",
    "\"serial_bytes\"",
    "\"log_bytes\"",
    "\"schema\"",
    "\"threads\"",
    "\"parts\"",
];

/// Reads the text after the first byte, which chooses for whom.
///
/// # Panics
/// When what was read is not read again from what it writes, or one without a fault has too many
/// devices.
pub fn run(data: &[u8]) {
    let _ = accepts(data);
}

/// As [`run`]; whether it is a sound configuration.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn accepts(data: &[u8]) -> bool {
    let Some((choice, rest)) = data.split_first() else { return false };
    let text = text(&rest[..rest.len().min(8192)], WORDS);
    if choice & 1 != 0 {
        return UsernetConfig::from_json(text.as_bytes()).is_ok_and(|config| config.check().is_ok());
    }
    let Ok(config) = MachineConfig::from_json(text.as_bytes()) else { return false };
    let written = config.to_json();
    assert_eq!(MachineConfig::from_json(written.as_bytes()).as_ref(), Ok(&config), "{written}");
    if config.validate().is_err() {
        return false;
    }
    assert!(config.virtio_devices() <= MAX_VIRTIO_DEVICES, "every device has a slot");
    if let Ok(absolute) = config.clone().with_absolute_paths() {
        assert!(absolute.validate().is_ok());
    }
    true
}

/// Machines small and large, and a network.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let sentences: [(u8, &str); 4] = [
        (0, "{\"schema\":1,\"kernel\":{\"path\":\"/a\"}}"),
        (
            0,
            "{\"schema\":1,\"kernel\":{\"fd\":3},\"cpus\":2,\"memory_bytes\":268435456,\"disks\":[{\"id\":\"a\",\"source\":{\"path\":\"/a\"},\"read_only\":true}],\"vsock\":{\"cid\":3}}",
        ),
        (
            0,
            "{\"schema\":1,\"kernel\":{\"path\":\"/a\"},\"networks\":[{\"id\":\"a\",\"mac\":\"52:54:00:12:34:56\",\"link\":{\"stream\":{\"fd\":4}}}],\"shares\":[{\"tag\":\"a\",\"source\":{\"path\":\"/a\"}}],\"time_limit_ms\":9}",
        ),
        (1, "{\"schema\":1,\"allow\":[\"10.0.2.0/24\"],\"default\":\"deny\"}"),
    ];
    sentences.iter().map(|(choice, text)| [&[*choice], spelt(text, WORDS).as_slice()].concat()).collect()
}
