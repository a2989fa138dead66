//! The library: machines held by this process, in and out of it, with everything given back.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nelly_image::{Reference, Silent, Store, StoreOptions};
use nelly_sandbox::agent::ProcessId;
use nelly_sandbox::instance::Sandbox;
use nelly_sandbox::spec::machine::IMAGE_DEVICE;
use nelly_sandbox::spec::{ContainerSpec, MachineSpec, Overrides, ProcessSpec};
use nelly_tests::{asset, program, top};
use nelly_vmm::config::{DeviceName, DiskConfig, DiskId, FileSource, MachineConfig, MemorySize, Platform};
use nelly_vmm::machine::{Isolation, Resources};

use super::Home;

pub(crate) fn process(words: &[&str]) -> ProcessSpec {
    let overrides =
        Overrides { command: words.iter().map(|word| (*word).to_owned()).collect(), ..Overrides::default() };
    ProcessSpec::merge(&Default::default(), &overrides, "test").unwrap()
}

pub(crate) fn container(words: &[&str]) -> ContainerSpec {
    ContainerSpec::new(process(words), "test")
}

/// Puts busybox into a root file system, under its own name and those of `applets`, beside the
/// directories that a container needs.
pub(crate) fn busybox(root: &Path, applets: &[&str]) {
    for directory in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in applets {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// A root file system of busybox and the guest half of tests of sockets.
pub(crate) fn root(home: &Home, applets: &[&str]) -> PathBuf {
    let root = home.path().join("root");
    busybox(&root, applets);
    let helper = top().join("target/nelly/tests/guest-vsock");
    fs::copy(&helper, root.join("bin/guest-vsock"))
        .unwrap_or_else(|error| panic!("{}: {error}", helper.display()));
    root
}

/// A sandbox of the built-in image, or of `image`.
pub(crate) async fn sandbox(home: &Home, isolation: Isolation, image: Option<&str>) -> Sandbox {
    sandbox_of(home, isolation, image, |_| {}, |_, _| {}).await
}

/// The same with a disk for the container's writable layer.
pub(crate) async fn sandbox_on(home: &Home, isolation: Isolation, storage: &Path) -> Sandbox {
    let storage = FileSource::Path(storage.to_owned());
    sandbox_of(home, isolation, None, |spec| spec.storage = Some(storage), |_, _| {}).await
}

/// The same of a machine that is changed before it starts; `change` gets the image's disk, too,
/// in one file.
async fn sandbox_of(
    home: &Home,
    isolation: Isolation,
    image: Option<&str>,
    specify: impl FnOnce(&mut MachineSpec),
    change: impl FnOnce(&mut MachineConfig, &File),
) -> Sandbox {
    let mut options = StoreOptions::new(home.path().join("cache"));
    options.builtin = Some(asset("busybox"));
    let reference: Reference = image.unwrap_or("builtin:busybox").parse().unwrap();
    let image = Store::open(options).unwrap().resolve(&reference, &mut Silent).unwrap();
    let mut resources = Resources::new();
    let kernel = resources.add(File::open(nelly_tests::kernel()).unwrap());
    let initrd = resources.add(File::open(asset("initramfs.cpio")).unwrap());
    let mut disk = tempfile::tempfile().unwrap();
    for mut file in &image.disk {
        std::io::copy(&mut file, &mut disk).unwrap();
    }
    let mut spec = MachineSpec::new(kernel, initrd, resources.add_all(image.disk));
    // As the installation says of its kernel.
    spec.platform = if cfg!(target_arch = "x86_64") { Platform::Mptable } else { Platform::Auto };
    spec.memory = MemorySize::new(256 << 20).unwrap();
    specify(&mut spec);
    let mut config = spec.config().unwrap();
    change(&mut config, &disk);
    Sandbox::start(config, resources, isolation, "test").await.unwrap()
}

pub(crate) fn out_of_process() -> Isolation {
    Isolation::Process { monitor: program("nelly-monitor") }
}

fn entries(path: &str) -> BTreeSet<String> {
    fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Descriptors, threads and mappings of this process.
fn holdings() -> (usize, usize, usize) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    // The allocator's arenas and stacks come and go; what a machine maps is vCPU pages, files, and
    // guest memory, which has no name but is large and can be written.
    let of_machine = |line: &&str| {
        let named = line.contains("kvm") || line.contains("memfd") || line.contains("/share/nelly/");
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let address = |text: &str| u64::from_str_radix(text, 16).unwrap();
        named || (rest.starts_with("rw") && address(to) - address(from) >= 64 << 20)
    };
    let of_machines = maps.lines().filter(of_machine);
    (entries("/proc/self/fd").len(), entries("/proc/self/task").len(), of_machines.count())
}

/// What `count` says once nothing changes any more: a thread's entry in /proc goes a moment after
/// its join, and a monitor closes a stream a moment after its peer did.
fn settled<T: PartialEq>(count: impl Fn() -> T) -> T {
    let mut last = count();
    let mut same = 0;
    while same < 10 {
        std::thread::sleep(Duration::from_millis(50));
        let now = count();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    last
}

fn children() -> String {
    fs::read_to_string("/proc/thread-self/children").unwrap()
}

#[test]
fn two_machines_of_one_process_give_everything_back() {
    let home = Home::new();
    let round = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for (first, second) in [
                (out_of_process(), out_of_process()),
                (Isolation::Thread, Isolation::Thread),
                (out_of_process(), Isolation::Thread),
            ] {
                let (one, two) = tokio::join!(sandbox(&home, first, None), sandbox(&home, second, None));
                for (machine, name) in [(&one, "one"), (&two, "two")] {
                    let spec = container(&["sh", "-c", &format!("echo {name}; exit 3")]);
                    let streams = machine.run(name, &spec, IMAGE_DEVICE, None).await.unwrap().unwrap();
                    let end = machine.agent().wait(ProcessId { container: name, exec: "" }).await.unwrap();
                    assert_eq!(end.exit_code, 3);
                    let mut out = String::new();
                    streams.stdout.unwrap().read_to_string(&mut out).unwrap();
                    assert_eq!(out, format!("{name}\n"));
                }
                drop((one, two));
            }
        });
    };
    // The first round warms up what stays for good: the allocator, the cache, the runtime's own.
    round();
    let before = settled(holdings);
    round();
    assert_eq!(settled(holdings), before, "descriptors, threads, mappings");
    assert_eq!(children(), "", "processes");
}

/// More disks than a PC has interrupt lines come, are used as images of containers, and go again.
#[test]
fn disks_come_and_go_while_the_guest_runs() {
    const SPARE: u8 = 24;
    let home = Home::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut image = None;
        let sandbox = sandbox_of(
            &home,
            out_of_process(),
            None,
            |_| {},
            |config, disk| {
                config.spare_slots = SPARE;
                image = Some(disk.try_clone().unwrap());
            },
        );
        let sandbox = sandbox.await;
        let image = image.unwrap();
        let id = |n: u8| DiskId::new(format!("late-{n}")).unwrap();
        let attach = |n: u8| {
            let mut resources = Resources::new();
            let source = resources.add(image.try_clone().unwrap());
            let disk = DiskConfig::new(id(n), source, true);
            sandbox.machine().attach_disk(&disk, resources).unwrap();
        };
        let run = async |name: &str, device: &str| {
            let streams =
                sandbox.run(name, &container(&["echo", name]), device, None).await.unwrap().unwrap();
            let mut out = String::new();
            streams.stdout.unwrap().read_to_string(&mut out).unwrap();
            let end = sandbox.agent().wait(ProcessId { container: name, exec: "" }).await.unwrap();
            assert_eq!((end.exit_code, out), (0, format!("{name}\n")));
        };
        // What the container's mounts hold is free a moment after its end.
        let leave = async |n: u8| {
            let mut refusals = 0;
            while let Err(error) = sandbox.agent().release_disk(id(n).as_str()).await {
                let error = sentences(&error);
                assert!(error.contains("is in use") && refusals < 10_000, "{error}");
                refusals += 1;
            }
            sandbox.machine().detach(&DeviceName::Disk(id(n))).unwrap();
        };
        let before = sandbox.agent().probe_devices().await.unwrap();
        assert_eq!(before.len(), 1);
        (0..SPARE).for_each(attach);
        let disks = sandbox.agent().probe_devices().await.unwrap();
        assert_eq!(disks.len(), 1 + usize::from(SPARE));
        let last = disks.iter().find(|disk| disk.id == id(SPARE - 1).as_str()).unwrap();
        assert_eq!(last.bytes, before[0].bytes);
        run("last", &last.device).await;
        for n in 0..SPARE {
            leave(n).await;
        }
        assert_eq!(sandbox.agent().probe_devices().await.unwrap(), before);
        let monitor = format!("/proc/{}/fd", sandbox.machine().process_id().unwrap());
        let held = settled(|| entries(&monitor).len());
        for n in 0..20 {
            attach(n);
            let disks = sandbox.agent().probe_devices().await.unwrap();
            assert_eq!((disks.len(), &disks[1].id), (2, &id(n).as_str().to_owned()));
            run(&format!("c{n}"), &disks[1].device).await;
            leave(n).await;
        }
        assert_eq!(settled(|| entries(&monitor).len()), held, "descriptors of the monitor");
        let error = sandbox.agent().release_disk("nothing").await.unwrap_err();
        assert!(sentences(&error).contains("no such disk"), "{error}");
    });
}

/// An error and its sources.
fn sentences(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| (*error).source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What a monitor has for itself, in bytes: its private memory without the guest's, which is in
/// mappings that are far larger than any other.
fn own_memory(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut is_own, mut sum) = (false, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (name, number) =
            (words.next().unwrap_or_default(), words.next().and_then(|word| word.parse::<u64>().ok()));
        match (name, number) {
            ("Size:", Some(kib)) => is_own = kib < 16 << 10,
            ("Private_Clean:" | "Private_Dirty:", Some(kib)) if is_own => sum += kib << 10,
            _ => {}
        }
    }
    sum
}

/// 86,400 of them, one a second of a day, are in `make soak`.
#[test]
fn many_execs_leave_nothing() {
    let count = std::env::var("NELLY_EXECS").map_or(1000, |text| text.parse::<usize>().unwrap());
    let home = Home::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandbox = sandbox(&home, out_of_process(), None).await;
        let streams =
            sandbox.run("c", &container(&["sleep", "100000"]), IMAGE_DEVICE, None).await.unwrap().unwrap();
        let monitor = sandbox.machine().process_id().unwrap();
        // Counted by the shell itself: the parts of a pipe may or may not be there yet.
        let guest = "set -- /proc/[0-9]*; echo $#; find /sys/fs/cgroup -type d | wc -l";
        let exec = async |number: usize, words: &[&str]| {
            let name = format!("e{number}");
            let id = ProcessId { container: "c", exec: &name };
            let streams = sandbox.exec(id, &process(words), None).await.unwrap().unwrap();
            let end = sandbox.agent().wait(id).await.unwrap();
            let mut out = String::new();
            streams.stdout.unwrap().read_to_string(&mut out).unwrap();
            (end.exit_code, out)
        };
        let counts = |pid: u32| {
            (entries(&format!("/proc/{pid}/fd")).len(), entries(&format!("/proc/{pid}/task")).len())
        };
        for number in 0..20 {
            exec(number, &["true"]).await;
        }
        let in_guest = exec(20, &["sh", "-c", guest]).await;
        let of_monitor = settled(|| counts(monitor));
        let agent = sandbox.agent().stats("").await.unwrap().agent_resident_bytes;
        let own = own_memory(monitor);
        let began = std::time::Instant::now();
        for number in 0..count {
            let (code, out) =
                exec(100 + number, &["sh", "-c", &format!("echo {number}; exit {}", number % 200)]).await;
            assert_eq!((code as usize, out), (number % 200, format!("{number}\n")));
        }
        assert_eq!(exec(50, &["sh", "-c", guest]).await, in_guest, "processes and cgroups of the guest");
        assert_eq!(settled(|| counts(monitor)), of_monitor, "descriptors and threads of the monitor");
        let grown = sandbox.agent().stats("").await.unwrap().agent_resident_bytes;
        // Results that nobody deleted are kept of the last 1024 execs, some 300 bytes each.
        assert!(grown <= agent + (400 << 10), "the agent's memory went from {agent} to {grown}");
        let own_after = own_memory(monitor);
        assert!(own_after <= own + (1 << 20), "the monitor's own memory went from {own} to {own_after}");
        println!(
            "{count} execs in {} s: the agent's memory went from {} to {} KiB, the monitor's own from {} to {} KiB",
            began.elapsed().as_secs(),
            agent >> 10,
            grown >> 10,
            own >> 10,
            own_after >> 10
        );
        drop(streams);
    });
}

#[test]
fn another_protocol_is_refused() {
    use nelly_protocol::messages::HelloRequest;
    use nelly_protocol::service::AgentClient;
    let home = Home::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandbox = sandbox(&home, out_of_process(), None).await;
        let vsock = sandbox.machine().vsock();
        let stream = tokio::task::spawn_blocking(move || vsock.connect(nelly_protocol::ports::AGENT_PORT)).await.unwrap();
        let stream = stream.unwrap();
        stream.set_nonblocking(true).unwrap();
        let socket = ttrpc::r#async::transport::Socket::try_from(stream).unwrap();
        let client = AgentClient::new(ttrpc::r#async::Client::new(socket));
        for (protocol, feature, names) in [(2, None, "2"), (1, Some("no-such-feature"), "no-such-feature")] {
            let request = HelloRequest { protocol, features: feature.map(str::to_owned).into_iter().collect(), ..Default::default() };
            let error = client.hello(ttrpc::context::with_timeout(10_000_000_000), &request).await.unwrap_err();
            assert!(matches!(&error, ttrpc::Error::RpcStatus(status) if status.code.enum_value() == Ok(ttrpc::Code::UNIMPLEMENTED)), "{error}");
            assert!(error.to_string().contains(names), "{error}");
        }
    });
}
