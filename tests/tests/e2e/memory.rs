//! Memory that comes when it is needed, in our kernel, and while the guest runs, by the driver of a kernel that is not ours.

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nelly_tests::run;
use nelly_vmm::config::{CommandLine, Endpoint, FileSource, HotplugSize, MachineConfig, MemorySize};
use nelly_vmm::machine::{ControlError, EndReason, Machine, Place, Resources};

use super::boot::{initramfs, ours, stock};
use super::machine::out_of_process;
use super::{Home, LIMIT};

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

/// What programs see of memory that nobody has made yet, what walks over all of it, and four processors that fill it at once, twice, the
/// second time to the last page.
const FILL: &str = r#"
mount -t tmpfs -o size=100% tmpfs /mnt
meminfo() { sed -n "s/^\(Mem[A-Za-z]*\): *\([0-9]*\) kB/$1\1 \2 END/p" /proc/meminfo; }
free() { sed -n 's/^MemFree: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
meminfo BEFORE-
echo 1 >/proc/sys/vm/compact_memory
echo FLAGS $(cat /proc/kpageflags | wc -c) END
# What the kernel keeps for itself, 3 MiB of so much memory, shall not be what ends the filling.
echo 512 >/proc/sys/vm/min_free_kbytes
for turn in 1 2; do
  for writer in 1 2 3 4; do
    (cd /mnt
     yes "$turn-$writer" | head -c 1048576 >$writer
     for times in 2 4 8 16 32 64; do cat $writer $writer >$writer.more && mv $writer.more $writer; done) &
  done
  wait
  # Less is free in the end than the last of it that is made at a time (8 MiB here, before the struct pages), so that nothing can be left.
  [ $turn = 1 ] || while least=$(free) && [ $least -gt 7168 ]; do
    dd if=/dev/zero bs=128k count=$(((least - 6656) / 128)) 2>/dev/null >>/mnt/rest
  done
  for writer in 1 2 3 4; do
    echo SUM-$turn-$writer $(md5sum </mnt/$writer | cut -d' ' -f1) END
  done
  # Processors give free pages of their own back whenever they like, which are none of these: two readings must agree once.
  [ $turn = 1 ] || for try in $(seq 100); do
    made=$(sed -n 's/^nr_free_pages //p' /proc/vmstat)
    between=$(($(free) - made * 4))
    [ ${between#-} -ge 4096 ] || break
    sleep 0.05
  done
  [ $turn = 1 ] || echo LEAST $least END
  [ $turn = 1 ] || echo NOT-MADE ${between#-} END
  rm /mnt/*
done
echo 1 >/proc/sys/vm/compact_memory
echo 100 >/proc/sys/vm/nr_hugepages
echo HUGE $(cat /proc/sys/vm/nr_hugepages) END
meminfo AFTER-
"#;

#[test]
fn memory_that_is_not_made_yet_is_free_and_comes_to_who_needs_it() {
    let home = Home::new();
    let done = ours(&home, FILL, &["--cpus", "4", "-m", "512M"], 4 * LIMIT);
    let out = done.expect(0).out();
    let word = |name: &str| {
        let line = out.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_suffix(" END"));
        line.unwrap_or_else(|| panic!("no {name} in {out}")).trim()
    };
    let figure = |name: &str| word(name).parse::<u64>().unwrap();
    let total = figure("BEFORE-MemTotal");
    let (free, available) = (figure("BEFORE-MemFree"), figure("BEFORE-MemAvailable"));
    assert!(total > 490_000 && total < 512 << 10, "{out}");
    assert!(free > total - 40_000 && free < total && available > total - 60_000, "{out}");
    assert_eq!(figure("FLAGS"), (512 * MIB) / 4096 * 8, "{out}");
    for (turn, writer) in [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3), (2, 4)] {
        let expected = format!("{turn}-{writer}\n").repeat(64 << 18);
        let expected = run(&mut Command::new("md5sum"), expected.as_bytes(), LIMIT).out();
        assert_eq!(word(&format!("SUM-{turn}-{writer}")), &expected[..32], "{out}");
    }
    // The last of it was made: what is free is all in the allocator's lists, but for a moment's difference.
    assert!(figure("LEAST") < 8 << 10 && figure("NOT-MADE") < 4096, "{out}");
    assert_eq!(figure("HUGE"), 100, "{out}");
    // Counted once, though it was counted as managed before it was made.
    assert_eq!(figure("AFTER-MemTotal"), total, "{out}");
    assert!(out.contains("INIT-DONE 0"), "{out}");
}

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
