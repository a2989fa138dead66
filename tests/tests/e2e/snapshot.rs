//! Linux guests that are paused, written to files, and go on in a new process.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nelly_image::{Silent, Store, StoreOptions};
use nelly_protocol::ports::{AGENT_PORT, STREAM_PORT};
use nelly_sandbox::agent::{Agent, ProcessId};
use nelly_sandbox::instance::Sandbox;
use nelly_sandbox::spec::MachineSpec;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_tests::asset;
use nelly_vmm::config::{
    CommandLine, CpuCount, DiskConfig, DiskId, Endpoint, FileSource, MachineConfig, MemorySize, Platform,
};
use nelly_vmm::machine::{EndReason, Machine, Resources, Snapshot, State};

use super::Home;
use super::boot::initramfs;
use super::machine::{container, out_of_process, process};

/// Where a machine is saved.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn create(&self) -> Snapshot {
        let create = |name| File::create(self.0.join(name)).unwrap().into();
        Snapshot { state: create("state"), memory: create("memory") }
    }

    fn open(&self) -> Snapshot {
        let open = |name| File::open(self.0.join(name)).unwrap().into();
        Snapshot { state: open("state"), memory: open("memory") }
    }

    /// Bytes of the file system that the memory takes.
    fn memory_bytes(&self) -> u64 {
        std::fs::metadata(self.0.join("memory")).unwrap().blocks() * 512
    }
}

/// Counts on the console and on its disk, whose block of each number holds the number, while its
/// other processor counts for itself.
const COUNTING: &str = r#"
(m=0; while :; do m=$((m + 1)); echo $m > /other.new; mv /other.new /other; done) &
n=0
while :; do
  n=$((n + 1))
  printf '%511d\n' $n | dd of=/dev/vda bs=512 seek=$n conv=fsync 2>/dev/null || { echo "DISK FAILED"; exit 1; }
  echo "COUNT $n $(cat /other) $(cut -d. -f1 /proc/uptime) $(date +%s)"
done
"#;

/// One line of the guest: its count, the other processor's, seconds of its uptime and of its clock.
fn count(line: &str) -> Option<[u64; 4]> {
    let mut words = line.trim().strip_prefix("COUNT ")?.split(' ').map(|word| word.parse().ok());
    let mut next = || words.next().flatten();
    Some([next()?, next()?, next()?, next()?])
}

#[test]
fn a_linux_goes_on_in_a_new_process() {
    let home = Home::new();
    let image = home.path().join("disk");
    File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let initrd = initramfs(&home, Some(COUNTING), None);
    let machine = || {
        let mut resources = Resources::new();
        let mut config = MachineConfig::new(resources.add(File::open(nelly_tests::kernel()).unwrap()));
        config.initrd = Some(FileSource::Path(initrd.clone()));
        config.command_line = CommandLine::new("console=ttyS0 quiet panic=-1 reboot=t").unwrap();
        config.memory_bytes = MemorySize::new(256 << 20).unwrap();
        config.cpus = CpuCount::new(2).unwrap();
        let source = FileSource::Path(image.clone());
        config.disks.push(DiskConfig::new(DiskId::new("data").unwrap(), source, false));
        config.rng = true;
        config.serial = Endpoint::Stream;
        config.time_limit_ms = nelly_tests::scaled_ms(std::time::Duration::from_secs(200));
        (config, resources)
    };
    let files = Files(home.path());
    // Everything that any of its machines wrote to the console, as one guest.
    let mut text = String::new();
    let read_until = |text: &mut String, serial: &mut BufReader<UnixStream>, wanted: u64| {
        while text.lines().filter_map(count).next_back().is_none_or(|[n, ..]| n < wanted) {
            assert!(serial.read_line(text).unwrap() > 0, "it ended: {text}");
        }
    };

    let (config, resources) = machine();
    let mut machine_now = Machine::start(&config, resources, &out_of_process()).unwrap();
    for wanted in [8, 16, 24] {
        let mut serial = BufReader::new(machine_now.serial().unwrap());
        if machine_now.state().unwrap() == State::Paused {
            machine_now.resume().unwrap();
        }
        read_until(&mut text, &mut serial, wanted);
        machine_now.pause().unwrap();
        machine_now.save(files.create()).unwrap();
        let used = files.memory_bytes();
        assert!((1 << 20..200 << 20).contains(&used), "{used} bytes of memory");
        machine_now.stop().unwrap();
        assert_eq!(machine_now.wait().reason, EndReason::Stopped);
        // The end of it may be half a line.
        serial.read_to_string(&mut text).unwrap();
        let (config, resources) = machine();
        machine_now = Machine::restore(&config, resources, files.open(), &out_of_process()).unwrap();
    }
    let mut serial = BufReader::new(machine_now.serial().unwrap());
    machine_now.resume().unwrap();
    read_until(&mut text, &mut serial, 32);
    machine_now.kill();
    machine_now.wait();

    assert_eq!(text.matches("INIT-READY cpus=2").count(), 1, "it started once: {text}");
    let counts: Vec<_> = text.lines().filter_map(count).collect();
    let numbers: Vec<_> = counts.iter().map(|[n, ..]| *n).collect();
    assert_eq!(numbers, (1..=counts.len() as u64).collect::<Vec<_>>(), "{text}");
    for pair in counts.windows(2) {
        let ([_, other, uptime, date], [_, other_next, uptime_next, date_next]) = (pair[0], pair[1]);
        assert!(other_next >= other && uptime_next >= uptime && date_next >= date, "{pair:?}");
        assert!(uptime_next - uptime < 20 && date_next - date < 20, "its clocks jump: {pair:?}");
    }
    let (first, last) = (counts[0], counts[counts.len() - 1]);
    assert!(last[1] > first[1] && last[2] > first[2] && last[3] > first[3], "{first:?} {last:?}");
    let disk = std::fs::read(&image).unwrap();
    for n in 1..=32 {
        let block = String::from_utf8_lossy(&disk[n * 512..(n + 1) * 512]);
        assert_eq!(block.trim().parse(), Ok(n), "{block}");
    }
}

/// The output of a command in the container `c`, by an agent that nobody else speaks to.
async fn output(machine: &Machine, agent: &Agent, id: &str, script: &str) -> String {
    let id = ProcessId { container: "c", exec: id };
    let tokens = agent.exec(id, &process(&["sh", "-c", script]), None).await.unwrap().unwrap();
    let dial = |token: Option<_>| {
        token.map(|token: [u8; _]| {
            let mut stream = machine.vsock().connect(STREAM_PORT).unwrap();
            stream.write_all(&token).unwrap();
            stream
        })
    };
    let (mut out, _err) = (dial(tokens.stdout).unwrap(), dial(tokens.stderr));
    let text = tokio::task::spawn_blocking(move || std::io::read_to_string(&mut out).unwrap()).await.unwrap();
    assert_eq!(agent.wait(id).await.unwrap().exit_code, 0, "{text}");
    text
}

async fn greet(machine: &Machine) -> (Agent, u64) {
    let agent = Agent::new(machine.vsock().connect(AGENT_PORT).unwrap()).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let greeting = agent.hello("test", i64::try_from(now).unwrap(), vec![7; 32], None).await.unwrap();
    (agent, greeting.boot_ns)
}

/// Connections of the guest's agent are reset, and it answers new ones; its container never
/// noticed.
#[test]
fn the_agent_answers_again_and_its_container_goes_on() {
    let home = Home::new();
    let mut options = StoreOptions::new(home.path().join("cache"));
    options.builtin = Some(asset("busybox"));
    let image =
        Store::open(options).unwrap().resolve(&"builtin:busybox".parse().unwrap(), &mut Silent).unwrap();
    let machine = || {
        let mut resources = Resources::new();
        let kernel = resources.add(File::open(nelly_tests::kernel()).unwrap());
        let initrd = resources.add(File::open(asset("initramfs.cpio")).unwrap());
        let disk = resources.add_all(image.disk.iter().map(|file| file.try_clone().unwrap()));
        let mut spec = MachineSpec::new(kernel, initrd, disk);
        spec.platform = Platform::Mptable;
        spec.memory = MemorySize::new(256 << 20).unwrap();
        (spec.config().unwrap(), resources)
    };
    let files = Files(home.path());
    let count = "n=0; while :; do n=$((n + 1)); echo $n > /tmp/new; mv /tmp/new /tmp/n; sleep 0.05; done";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (config, resources) = machine();
        let sandbox = Sandbox::start(config, resources, out_of_process(), "test").await.unwrap();
        sandbox.run("c", &container(&["sh", "-c", count]), IMAGE_DEVICE, None).await.unwrap().unwrap();
        let boot_ns = sandbox.greeting().unwrap().boot_ns;
        let machine_now = sandbox.machine();
        let until = "until [ -e /tmp/n ]; do sleep 0.1; done; cat /tmp/n";
        let before: u64 = output(machine_now, sandbox.agent(), "a", until).await.trim().parse().unwrap();
        machine_now.pause().unwrap();
        machine_now.save(files.create()).unwrap();
        drop(sandbox);

        let (config, resources) = machine();
        let restored = Machine::restore(&config, resources, files.open(), &out_of_process()).unwrap();
        restored.resume().unwrap();
        let (agent, booted_ns) = greet(&restored).await;
        assert_eq!(booted_ns, boot_ns, "it is the same guest");
        let after: u64 = output(&restored, &agent, "b", "cat /tmp/n").await.trim().parse().unwrap();
        assert!(after >= before, "{after} after {before}");
        let wait = format!("until [ $(cat /tmp/n) -gt {} ]; do sleep 0.1; done; echo more", after + 2);
        assert_eq!(output(&restored, &agent, "d", &wait).await, "more\n");
        restored.kill();
        assert_eq!(restored.wait().reason, EndReason::Killed);
    });
}
