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
use nelly_sandbox::spec::{ContainerSpec, MachineSpec, Overrides, ProcessSpec, Seccomp};
use nelly_tests::{asset, program, top};
use nelly_vmm::config::{MemorySize, Platform};
use nelly_vmm::machine::{Place, Resources};

use super::Home;

pub(crate) fn process(words: &[&str]) -> ProcessSpec {
    let overrides =
        Overrides { command: words.iter().map(|word| (*word).to_owned()).collect(), ..Overrides::default() };
    ProcessSpec::merge(&Default::default(), &overrides, "test").unwrap()
}

pub(crate) fn container(words: &[&str]) -> ContainerSpec {
    ContainerSpec {
        process: process(words),
        hostname: "test".into(),
        read_only: false,
        tmpfs: Vec::new(),
        upper_bytes: 0,
        seccomp: Seccomp::Default,
    }
}

/// Puts busybox into a root file system, under its own name and those of `applets`, beside the directories that a container needs.
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
pub(crate) async fn sandbox(home: &Home, place: Place, image: Option<&str>) -> Sandbox {
    let mut options = StoreOptions::new(home.path().join("cache"));
    options.builtin = Some(asset("busybox"));
    let reference: Reference = image.unwrap_or("builtin:busybox").parse().unwrap();
    let image = Store::open(options).unwrap().resolve(&reference, &mut Silent).unwrap();
    let mut resources = Resources::new();
    let kernel = resources.add(File::open(asset("vmlinux")).unwrap());
    let initrd = resources.add(File::open(asset("initramfs.cpio")).unwrap());
    let mut spec = MachineSpec::new(kernel, initrd, resources.add(image.disk));
    spec.platform = Platform::Mptable;
    spec.memory = MemorySize::new(256 << 20).unwrap();
    Sandbox::start(spec.config().unwrap(), resources, place, "test").await.unwrap()
}

pub(crate) fn out_of_process() -> Place {
    Place::Process { monitor: program("nelly-monitor") }
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
    // The allocator's arenas and stacks come and go; what a machine maps is guest memory and vCPU pages.
    let of_machines = maps
        .lines()
        .filter(|line| line.contains("kvm") || line.contains("memfd") || line.contains("vmlinux"));
    (entries("/proc/self/fd").len(), entries("/proc/self/task").len(), of_machines.count())
}

/// What `count` says once nothing changes any more: a thread's entry in /proc goes a moment after its join, and a monitor closes a stream
/// a moment after its peer did.
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
    fs::read_to_string("/proc/thread-self/children").unwrap_or_default()
}

#[test]
fn two_machines_of_one_process_give_everything_back() {
    let home = Home::new();
    let round = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for (first, second) in [
                (out_of_process(), out_of_process()),
                (Place::Thread, Place::Thread),
                (out_of_process(), Place::Thread),
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

#[test]
fn many_execs_leave_nothing() {
    const COUNT: usize = 1000;
    let home = Home::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let sandbox = sandbox(&home, out_of_process(), None).await;
        let streams = sandbox.run("c", &container(&["sleep", "100000"]), IMAGE_DEVICE, None).await.unwrap().unwrap();
        let monitor = sandbox.machine().process_id().unwrap();
        // Counted by the shell itself: the parts of a pipe may or may not be there yet.
        let guest = "set -- /proc/[0-9]*; echo $#; find /sys/fs/cgroup -type d | wc -l; grep -c . /proc/net/vsock 2>/dev/null || true";
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
        for number in 0..COUNT {
            let (code, out) = exec(100 + number, &["sh", "-c", &format!("echo {number}; exit {}", number % 200)]).await;
            assert_eq!((code as usize, out), (number % 200, format!("{number}\n")));
        }
        assert_eq!(exec(50, &["sh", "-c", guest]).await, in_guest, "processes and cgroups of the guest");
        assert_eq!(settled(|| counts(monitor)), of_monitor, "descriptors and threads of the monitor");
        let grown = sandbox.agent().stats("").await.unwrap().agent_resident_bytes;
        assert!(grown <= agent + (256 << 10), "the agent's memory went from {agent} to {grown}");
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
