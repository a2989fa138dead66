//! Memory that comes when it is needed, in our kernel, also when there is hardly any left, and
//! memory that comes while the guest runs, by the driver of a kernel that is not ours.

use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_tests::run;
use nelly_vmm::config::{CommandLine, Endpoint, FileSource, HotplugSize, MachineConfig, MemorySize};
use nelly_vmm::machine::{ControlError, EndReason, Isolation, Machine, Resources};

use super::boot::{initramfs, ours, stock};
use super::boundary::sh;
use super::machine::{container, out_of_process, sandbox};
use super::{Home, LIMIT};

const MIB: u64 = 1 << 20;

/// Says how much memory there is, ten times a second; and that what was plugged in can be used,
/// once there is a lot of it.
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

/// What programs see of memory that nobody has made yet, what walks over all of it, and four
/// processors that fill it at once, twice, the second time to the last page.
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
  # Less is free in the end than the last of it that is made at a time (8 MiB here, before the
  # struct pages), so that nothing can be left.
  [ $turn = 1 ] || while least=$(free) && [ $least -gt 7168 ]; do
    dd if=/dev/zero bs=128k count=$(((least - 6656) / 128)) 2>/dev/null >>/mnt/rest
  done
  for writer in 1 2 3 4; do
    echo SUM-$turn-$writer $(md5sum </mnt/$writer | cut -d' ' -f1) END
  done
  # Processors give free pages of their own back whenever they like, which are none of these: two
  # readings must agree once.
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

/// What stands between `name` and "END" on a line of `out`.
fn word<'a>(out: &'a str, name: &str) -> &'a str {
    let line = out.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_suffix(" END"));
    line.unwrap_or_else(|| panic!("no {name} in {out}")).trim()
}

fn figure(out: &str, name: &str) -> u64 {
    word(out, name).parse().unwrap()
}

fn md5(bytes: &[u8]) -> String {
    run(&mut Command::new("md5sum"), bytes, LIMIT).out()[..32].to_owned()
}

/// What `yes LINE | head -c 1048576` prints. (Guests make larger files of it: `yes` writes little
/// at a time, which costs more than all that is tested.)
fn mebibyte(line: &str) -> Vec<u8> {
    line.bytes().cycle().take(1 << 20).collect()
}

#[test]
fn memory_that_is_not_made_yet_is_free_and_comes_to_who_needs_it() {
    let home = Home::new();
    let done = ours(&home, FILL, &["--cpus", "4", "-m", "512M"], 4 * LIMIT);
    let out = done.expect(0).out();
    let figure = |name: &str| figure(&out, name);
    let total = figure("BEFORE-MemTotal");
    let (free, available) = (figure("BEFORE-MemFree"), figure("BEFORE-MemAvailable"));
    assert!(total > 490_000 && total < 512 << 10, "{out}");
    assert!(free > total - 40_000 && free < total && available > total - 60_000, "{out}");
    assert_eq!(figure("FLAGS"), (512 * MIB) / 4096 * 8, "{out}");
    for (turn, writer) in [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (2, 3), (2, 4)] {
        let expected = format!("{turn}-{writer}\n").repeat(64 << 18);
        assert_eq!(word(&out, &format!("SUM-{turn}-{writer}")), md5(expected.as_bytes()), "{out}");
    }
    // The last of it was made: what is free is all in the allocator's lists, but for a moment's
    // difference.
    assert!(figure("LEAST") < 8 << 10 && figure("NOT-MADE") < 4096, "{out}");
    assert_eq!(figure("HUGE"), 100, "{out}");
    // Counted once, though it was counted as managed before it was made.
    assert_eq!(figure("AFTER-MemTotal"), total, "{out}");
    assert!(out.contains("INIT-DONE 0"), "{out}");
}

/// Huge pages of memory that nobody has made yet, of memory in pieces of a page, and for a program;
/// what two files have in turn, a page each, is in pieces when one of them is gone.
const PIECES: &str = r#"
mount -t tmpfs -o size=100% tmpfs /mnt
free() { sed -n 's/^MemFree: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
# Free blocks of 2 MiB and of 4 MiB, in kB.
blocks() { awk '{ sum += $14 * 2048 + $15 * 4096 } END { print sum }' /proc/buddyinfo; }
huge() { echo $2 >/proc/sys/vm/nr_hugepages; echo $1 $(cat /proc/sys/vm/nr_hugepages) END; }
huge FRESH 100
huge NONE 0
echo FREE $(free) END
yes pieces | head -c 1048576 >/pieces
half=$((($(free) - 12288) / 2048 * 1024))
cat $(yes /pieces | head -n $((half / 1024))) | tee /mnt/gone >/mnt/kept
rm /mnt/gone
echo HALF $half END
echo PIECES-FREE $(free) END
pieces=$(blocks)
echo PIECES-BLOCKS $pieces END
# Compaction promises nothing: it gives up where it met something, and goes on from there when it
# is asked again.
asked=0
until echo $((half / 4096)) >/proc/sys/vm/nr_hugepages; [ $(cat /proc/sys/vm/nr_hugepages) = $((half / 4096)) ] || [ $asked = 50 ]; do
  echo 1 >/proc/sys/vm/compact_memory
  asked=$((asked + 1))
done
echo HUGE $(cat /proc/sys/vm/nr_hugepages) END
echo 1 >/proc/sys/vm/compact_memory
# Whoever touches memory waits for whole blocks: the huge pages above may have left none.
echo always >/sys/kernel/mm/transparent_hugepage/enabled
echo always >/sys/kernel/mm/transparent_hugepage/defrag
mkfifo /tmp/held
asked=0
got=0
# dd has all of it in its memory when it writes the first byte.
until [ $got -ge 14336 ] || [ $asked = 20 ]; do
  dd if=/dev/zero of=/tmp/held bs=16M count=1 2>/dev/null &
  exec 3</tmp/held
  head -c 1 <&3 >/dev/null
  got=$(sed -n 's/^AnonHugePages: *\([0-9]*\) kB/\1/p' /proc/meminfo)
  exec 3<&-
  wait
  echo 1 >/proc/sys/vm/compact_memory
  asked=$((asked + 1))
done
echo TRANSPARENT $got END
huge NONE 0
echo SUM $(md5sum </mnt/kept | cut -d' ' -f1) END
rm /mnt/kept
echo LEFT $(free) END
"#;

#[test]
fn huge_pages_come_of_memory_in_pieces() {
    let home = Home::new();
    let done = ours(&home, PIECES, &["-m", "256M"], 4 * LIMIT);
    let out = done.expect(0).out();
    let figure = |name: &str| figure(&out, name);
    assert_eq!(figure("FRESH"), 100, "{out}");
    // What one file had lies in pieces.
    let half = figure("HALF");
    assert!(half > 100 << 10 && figure("PIECES-FREE") > half * 3 / 4, "{out}");
    // Most of what is free is in pieces; whole is at most what no file took, and what processes
    // gave back. The huge pages need more than that, so compaction made more of it whole.
    let pieces = figure("PIECES-BLOCKS");
    assert!(pieces < figure("PIECES-FREE") / 3, "{out}");
    assert!(figure("HUGE") == half / 4096 && half / 2 > pieces, "{out}");
    // A buffer of 16 MiB has seven whole huge pages wherever it begins.
    assert!(figure("TRANSPARENT") >= 7 * 2048, "{out}");
    // What was moved is what it was, and what was taken is free again.
    assert_eq!(word(&out, "SUM"), md5(&mebibyte("pieces\n").repeat(half as usize / 1024)), "{out}");
    // (but for what was made of it: struct pages, and lists of each processor).
    assert!(figure("LEFT") + (32 << 10) > figure("FREE"), "{out}");
    assert!(out.contains("INIT-DONE 0"), "{out}");
}

#[test]
fn a_container_that_takes_all_memory_ends_and_its_machine_goes_on() {
    let home = Home::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // Of 256 MiB.
        let sandbox = sandbox(&home, out_of_process(), None).await;
        let keeper = container(&["sleep", "100000"]);
        let keeper = sandbox.run("c", &keeper, IMAGE_DEVICE, None).await.unwrap().unwrap();
        let meminfo = async |exec: &str, name: &str| {
            let script = format!("sed -n 's/^{name}: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
            sh(&sandbox, exec, "0", &script).await.trim().parse::<u64>().unwrap()
        };
        let total = meminfo("total", "MemTotal").await;
        let before = meminfo("before", "MemAvailable").await;
        assert!(before > 200 << 10, "{before}");

        // More than there can ever be is refused at once; more than there is ends whoever takes it,
        // once all memory was made, and nobody else.
        let said = sh(&sandbox, "refused", "0", "dd if=/dev/zero of=/dev/null bs=1G count=1; echo $?").await;
        assert_eq!(said, "1\ndd: out of memory\n");
        let most = format!("bs={}K", total - 1024);
        for turn in ["first", "second"] {
            let hog = container(&["dd", "if=/dev/zero", "of=/dev/null", &most, "count=1"]);
            let streams = sandbox.run(turn, &hog, IMAGE_DEVICE, None).await.unwrap().unwrap();
            let end = sandbox.agent().wait(ProcessId { container: turn, exec: "" }).await.unwrap();
            assert_eq!((end.exit_code, end.oom_killed), (137, true), "{turn}");
            drop(streams);
        }

        // What it had is free, whole, and usable.
        let after = meminfo("after", "MemAvailable").await;
        assert!(after + (16 << 10) > before, "{before} {after}");
        let fill = "yes again | head -c 1048576 >/tmp/again
            cat $(yes /tmp/again | head -n 160) | dd bs=160M count=1 iflag=fullblock 2>/dev/null | md5sum";
        let sum = sh(&sandbox, "fill", "0", fill).await;
        assert_eq!(sum[..32], md5(&mebibyte("again\n").repeat(160)));
        assert!(sandbox.machine().try_wait().is_none());
        drop(keeper);
    });
}

/// Debian's kernel and its driver: takes what it is asked to take, gives it back, and takes it
/// again; also across pauses.
fn a_stock_driver_follows(isolation: &Isolation) {
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
    config.time_limit_ms = nelly_tests::scaled_ms(Duration::from_secs(400));
    let machine = Machine::start(&config, Resources::new(), isolation).unwrap();
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

/// Fills a file system in memory, and empties it, when it is told to.
const FREED: &str = r#"
mount -t tmpfs -o size=90% tmpfs /mnt
echo BEGIN
for turn in 1 2; do
  read line
  dd if=/dev/zero of=/mnt/file bs=1M count=256 2>/dev/null
  echo FILLED
  read line
  rm /mnt/file
  echo FREED
done
read line
"#;

/// What a guest of our kernel has freed comes back to the host, twice, and memory that came back is
/// memory.
#[test]
fn memory_that_a_guest_has_freed_comes_back_to_the_host() {
    let home = Home::new();
    let mut config = MachineConfig::new(FileSource::Path(nelly_tests::kernel()));
    config.initrd = Some(FileSource::Path(initramfs(&home, Some(FREED), None)));
    config.command_line = CommandLine::new("console=ttyS0 quiet panic=-1 reboot=k").unwrap();
    config.memory_bytes = MemorySize::new(512 * MIB).unwrap();
    config.give_back = true;
    config.serial = Endpoint::Stream;
    config.time_limit_ms = nelly_tests::scaled_ms(Duration::from_secs(400));
    let machine = Machine::start(&config, Resources::new(), &out_of_process()).unwrap();
    let process = machine.process_id().unwrap();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    };
    let serial = machine.serial().unwrap();
    let mut says = serial.try_clone().unwrap();
    let mut lines = BufReader::new(serial).lines().map(Result::unwrap);
    let mut next = |word: &str| {
        lines.by_ref().inspect(|line| eprintln!("{line}")).find(|line| line.contains(word)).unwrap();
    };
    next("BEGIN");
    let begun = resident();
    for turn in 1..=2 {
        says.write_all(b"\n").unwrap();
        next("FILLED");
        let filled = resident();
        assert!(filled > 256 * MIB, "{turn}: {filled}");
        says.write_all(b"\n").unwrap();
        next("FREED");
        // The guest reports two seconds after it has freed something, and blocks of 2 MiB that are
        // free as a whole. What is in the lists of a processor, or beside something in use, stays.
        let limit = Instant::now() + LIMIT;
        while resident() > filled - 192 * MIB {
            assert!(Instant::now() < limit, "{turn}: {begun} {filled} {}", resident());
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("turn {turn}: {} MiB resident, then {}", filled / MIB, resident() / MIB);
    }
    let seen = machine.inspect().unwrap();
    let balloon = seen.devices.iter().find_map(|device| device.balloon).unwrap();
    assert!(balloon.given_back_bytes >= 2 * 192 * MIB, "{balloon:?}");
    machine.stop().unwrap();
    assert_eq!(machine.wait().reason, EndReason::Stopped);
}

#[test]
fn a_stock_driver_takes_memory_and_gives_it_back() {
    a_stock_driver_follows(&Isolation::Thread);
}

#[test]
fn a_stock_driver_takes_memory_of_a_monitor_and_gives_it_back() {
    a_stock_driver_follows(&out_of_process());
}
