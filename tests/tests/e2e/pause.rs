//! Pauses in the middle of traffic, and a disk that comes while the guest runs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_vmm::config::{CommandLine, DiskConfig, DiskId, Endpoint, FileSource, MachineConfig, MemorySize};
use nelly_vmm::machine::{EndReason, Isolation, Machine, Resources, State};

use super::Home;
use super::boot::initramfs;
use super::machine::{container, out_of_process, sandbox};

/// Pauses `machine` again and again until `over`, and says how often.
fn pausing(machine: &Machine, over: &AtomicBool, mut while_paused: impl FnMut()) -> u32 {
    let mut pauses = 0;
    while !over.load(Ordering::SeqCst) {
        machine.pause().unwrap();
        assert_eq!(machine.state().unwrap(), State::Paused);
        while_paused();
        machine.resume().unwrap();
        pauses += 1;
        thread::sleep(Duration::from_millis(40));
    }
    pauses
}

#[test]
fn pauses_during_vsock_traffic_lose_nothing() {
    const BYTES: usize = 8 << 20;
    let home = Home::new();
    let mut random = vec![0; BYTES];
    File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandbox = sandbox(&home, out_of_process(), None).await;
        let mut words = container(&["cat"]);
        words.process.stdin = true;
        let streams = sandbox.run("c", &words, IMAGE_DEVICE, None).await.unwrap().unwrap();
        let (mut stdin, mut stdout) = (streams.stdin.unwrap(), streams.stdout.unwrap());
        let over = AtomicBool::new(false);
        let pauses = thread::scope(|scope| {
            scope.spawn(|| {
                stdin.write_all(&random).unwrap();
                stdin.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let reader = scope.spawn(|| {
                let mut back = Vec::with_capacity(BYTES);
                stdout.read_to_end(&mut back).unwrap();
                over.store(true, Ordering::SeqCst);
                back
            });
            let pauses = pausing(sandbox.machine(), &over, || thread::sleep(Duration::from_millis(5)));
            assert!(reader.join().unwrap() == random, "bytes were lost or changed");
            pauses
        });
        assert!(pauses >= 2, "{pauses} pauses: nothing was proved");
        let end = sandbox.agent().wait(ProcessId { container: "c", exec: "" }).await.unwrap();
        assert_eq!(end.exit_code, 0);
    });
}

fn disk(id: &str, source: FileSource) -> DiskConfig {
    DiskConfig::new(DiskId::new(id).unwrap(), source, false)
}

/// Writes rounds of random bytes to the disk and reads each back from the device; then waits for a
/// second disk in the empty slot.
const SCRIPT: &str = r#"
round=1
while [ $round -le 20 ]; do
  dd if=/dev/urandom of=/data bs=64k count=32 2>/dev/null
  dd if=/data of=/dev/vda bs=64k conv=fsync 2>/dev/null
  echo 3 > /proc/sys/vm/drop_caches
  written=$(sha256sum < /data); read=$(dd if=/dev/vda bs=64k count=32 2>/dev/null | sha256sum)
  [ "$written" = "$read" ] || { echo "ROUND $round differs"; exit 1; }
  echo "ROUND $round"
  round=$((round + 1))
done
echo "SUM ${written%% *}"
echo WAITING
while [ ! -e /dev/vdb ]; do
  for device in /sys/bus/platform/devices/virtio-mmio.*; do
    [ -e $device/driver ] || echo ${device##*/} > /sys/bus/platform/drivers/virtio-mmio/bind
  done 2>/dev/null
  sleep 0.1
done
echo "LATE $(head -c 5 /dev/vdb)"
echo answer | dd of=/dev/vdb bs=512 seek=1 conv=fsync,sync 2>/dev/null
exit 0
"#;

#[test]
fn pauses_during_block_traffic_and_a_disk_that_comes_late() {
    let home = Home::new();
    let image = home.path().join("disk");
    File::create(&image).unwrap().set_len(2 << 20).unwrap();
    let late = home.path().join("late");
    let mut bytes = b"hello".to_vec();
    bytes.resize(1 << 20, 0);
    std::fs::write(&late, &bytes).unwrap();

    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(File::open(nelly_tests::kernel()).unwrap()));
    config.initrd = Some(FileSource::Path(initramfs(&home, Some(SCRIPT), None)));
    config.command_line = CommandLine::new("console=ttyS0 quiet panic=-1 reboot=t").unwrap();
    config.memory_bytes = MemorySize::new(256 << 20).unwrap();
    config.disks.push(disk("data", FileSource::Path(image.clone())));
    config.rng = true;
    config.spare_slots = 1;
    config.serial = Endpoint::Stream;
    config.time_limit_ms = nelly_tests::scaled_ms(Duration::from_secs(200));
    let machine = Machine::start(&config, resources, &Isolation::Thread).unwrap();
    let mut lines = BufReader::new(machine.serial().unwrap()).lines().map(Result::unwrap);
    let mut next = |what: &str| {
        lines
            .find(|line| line.contains(what))
            .unwrap_or_else(|| panic!("no {what} before the end: {:?}", machine.wait()))
    };
    next("INIT-READY");
    let over = AtomicBool::new(false);
    let (pauses, sum) = thread::scope(|scope| {
        let pauser = scope.spawn(|| {
            pausing(&machine, &over, || {
                // Nothing in flight: the file stands still.
                let stamp = |path| std::fs::metadata(path).unwrap().modified().unwrap();
                let before = stamp(&image);
                thread::sleep(Duration::from_millis(10));
                assert_eq!(stamp(&image), before);
            })
        });
        next("ROUND 20");
        let sum = next("SUM ");
        over.store(true, Ordering::SeqCst);
        (pauser.join().unwrap(), sum)
    });
    assert!(pauses >= 3, "{pauses} pauses: nothing was proved");
    next("WAITING");
    let mut resources = Resources::new();
    let file = File::options().read(true).write(true).open(&late).unwrap();
    let source = resources.add(file);
    let asked = Instant::now();
    machine.attach_disk(&disk("late", source), resources).unwrap();
    assert!(next("LATE").ends_with("hello"));
    assert!(asked.elapsed() < Duration::from_secs(60));
    next("INIT-DONE 0");
    assert!(matches!(machine.wait().reason, EndReason::Reset | EndReason::TripleFault));
    assert_eq!(&std::fs::read(&late).unwrap()[512..518], b"answer");
    let sha = std::process::Command::new("sha256sum").arg(&image).output().unwrap();
    let sha = String::from_utf8(sha.stdout).unwrap();
    assert!(sum.contains(sha.split(' ').next().unwrap()), "{sum} {sha}");
}
