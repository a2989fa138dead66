//! Memory that comes while the guest runs, by the driver of a kernel that is not ours.

use std::io::{BufRead, BufReader};
use std::thread;
use std::time::Duration;

use nelly_vmm::config::{CommandLine, Endpoint, FileSource, HotplugSize, MachineConfig, MemorySize};
use nelly_vmm::machine::{ControlError, EndReason, Machine, Place, Resources};

use super::Home;
use super::boot::{initramfs, stock};
use super::machine::out_of_process;

const MIB: u64 = 1 << 20;

/// Says how much memory there is, ten times a second; and that what was plugged in can be used, once there is a lot of it.
const SCRIPT: &str = r#"
mount -t tmpfs -o size=90% tmpfs /mnt
used=
while :; do
  total=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
  echo "TOTAL $((total / 1024))"
  if [ -z "$used" ] && [ $total -gt 450000 ]; then
    used=1
    dd if=/dev/zero of=/mnt/file bs=1M count=300 2>/dev/null && rm /mnt/file && echo USED
  fi
  sleep 0.1
done
"#;

/// Debian's kernel and its driver: takes what it is asked to take, gives it back, and takes it again; also across pauses.
fn a_stock_driver_follows(place: &Place) {
    let home = Home::new();
    let modules = stock("modules");
    let words = ["virtio_mmio", "virtio_mem"];
    let mut config = MachineConfig::new(FileSource::Path(stock("vmlinux").into()));
    config.initrd = Some(FileSource::Path(initramfs(&home, Some(SCRIPT), Some((&modules, &words)))));
    config.command_line =
        CommandLine::new("console=ttyS0 quiet panic=-1 memhp_default_state=online_movable").unwrap();
    config.memory_bytes = MemorySize::new(256 * MIB).unwrap();
    config.hotplug_bytes = HotplugSize::new(384 * MIB).unwrap();
    config.serial = Endpoint::Stream;
    config.time_limit_ms = Some(400_000);
    let machine = Machine::start(&config, Resources::new(), place).unwrap();
    for wrong in [0, 255 * MIB, 641 * MIB, u64::MAX, 300 * MIB + 4096] {
        assert!(matches!(machine.request_memory(wrong), Err(ControlError::Refused(_))), "{wrong}");
    }
    // Before there is a driver: it is told when it comes.
    machine.request_memory(512 * MIB).unwrap();
    let mut lines = BufReader::new(machine.serial().unwrap()).lines().map(Result::unwrap);
    let mut next = |what: &dyn Fn(&str) -> bool| {
        lines
            .by_ref()
            .inspect(|line| eprintln!("{line}"))
            .find(|line| what(line))
            .unwrap_or_else(|| panic!("ended too soon: {:?}", machine.wait()))
    };
    let total = |line: &str| line.trim().strip_prefix("TOTAL ").and_then(|mib| mib.parse::<u64>().ok());
    let grown = total(&next(&|line| total(line).is_some_and(|mib| mib > 440))).unwrap();
    next(&|line| line.contains("USED"));
    machine.request_memory(640 * MIB).unwrap();
    next(&|line| total(line) == Some(grown + 128));
    machine.request_memory(256 * MIB).unwrap();
    for _ in 0..5 {
        machine.pause().unwrap();
        thread::sleep(Duration::from_millis(5));
        machine.resume().unwrap();
    }
    next(&|line| total(line).is_some_and(|mib| mib < 260));
    machine.request_memory(640 * MIB).unwrap();
    next(&|line| total(line) == Some(grown + 128));
    machine.stop().unwrap();
    assert_eq!(machine.wait().reason, EndReason::Stopped);
}

#[test]
fn a_stock_driver_takes_memory_and_gives_it_back() {
    a_stock_driver_follows(&Place::Thread);
}

#[test]
fn a_stock_driver_takes_memory_of_a_monitor_and_gives_it_back() {
    a_stock_driver_follows(&out_of_process());
}
