//! Many machines of a few instructions: some hundred one after the other and 64 at once, in
//! processes of their own and in threads of this one. What their holder had before, it has
//! afterwards.
//!
//! `NELLY_LOAD_MACHINES` is the number of machines of either kind, one after the other; `make soak`
//! has 10,000, and commits the lines that begin with `load:` in `docs/load.md`.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nelly_vmm::config::{
    DatagramLink, DiskConfig, DiskId, Endpoint, FileSource, MacAddress, MachineConfig, MemorySize,
    NetworkConfig, NetworkId, NetworkLink, VsockConfig,
};
use nelly_vmm::machine::{EndReason, Isolation, Machine, Resources, State};
use support::{SPIN, kernel, watchdog};

/// Machines of either kind in `make test`, one after the other.
const MACHINES: usize = 500;

/// Machines that live at the same time.
const AT_ONCE: usize = 64;

/// Times that so many live at once, for each that many machines one after the other.
const CROWD_EVERY: usize = 500;

/// By how much the holder's own memory may grow, in KiB, however many machines it has held: what
/// the allocator keeps for later. 10,000 machines that leave 100 bytes each would be found.
const GROWTH_MAX: u64 = 1024;

/// The most memory of its own, in KiB, that one of many monitors may have: its program's data, its
/// threads' stacks, the tables of its devices, and the pages that its guest has touched.
const MONITOR_MAX: u64 = 1024;

/// The most descriptors of a monitor with a serial port, a disk, an entropy and a socket device.
const MONITOR_DESCRIPTORS: usize = 32;

/// The most threads of such a monitor.
const MONITOR_THREADS: usize = 6;

/// mov al, 0xfe; out 0x64, al; then jmp $
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// mov dx, 0x600; mov al, 0x34; out dx, al; jmp $
const OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe];
/// xor eax, eax; push rax; push rax; lidt [rsp]; ud2: a table without a handler
const TRIPLE: &[u8] = &[0x31, 0xc0, 0x50, 0x50, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];
/// Asserts RTS, then sends back what it receives plus one, as in `machine.rs`.
const ECHO: &[u8] = &[
    0x66, 0xba, 0xfc, 0x03, 0xb0, 0x03, 0xee, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66,
    0xba, 0xf8, 0x03, 0xec, 0xfe, 0xc0, 0xee, 0xeb, 0xed,
];

/// Says a byte, then rests: many that waited for input in a loop would wait for a processor.
/// mov dx, 0x3f8; mov al, '.'; out dx, al; again: cli; hlt; jmp again
const REST: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xfa, 0xf4, 0xeb, 0xfc];

/// What the holder of machines may be left with. Children are named, so that a failure says whose.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    sockets: usize,
    threads: usize,
    /// Mappings of the hypervisor and of memory files.
    mappings: usize,
    children: String,
    /// What is below the directory of temporary files, in which machines have theirs, too.
    files: BTreeSet<PathBuf>,
}

impl Holdings {
    fn now() -> Self {
        let targets: Vec<_> = fs::read_dir("/proc/self/fd")
            .unwrap()
            // That of the list itself is closed by then.
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .collect();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        Self {
            descriptors: targets.len(),
            sockets: targets.iter().filter(|path| path.to_string_lossy().starts_with("socket:")).count(),
            threads: threads(std::process::id()),
            mappings: maps.lines().filter(|line| line.contains("kvm") || line.contains("memfd")).count(),
            children: children(),
            files: files(&std::env::temp_dir()),
        }
    }

    /// The same, once threads that were joined are out of the list: they may still be on their way.
    fn settled(threads: usize) -> Self {
        for _ in 0..500 {
            if Self::now().threads == threads {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Self::now()
    }
}

/// The children of this process, by all of its threads: that of one that has ended is another's.
fn children() -> String {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    // A thread may end meanwhile.
    let lists = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("children")).ok());
    lists.collect()
}

/// Everything below a directory.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut left) = (BTreeSet::new(), vec![directory.to_owned()]);
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

fn threads(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/task")).unwrap().count()
}

/// A line of a process's status, in KiB.
fn status(process: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Private memory of this process.
fn own_memory() -> u64 {
    status(std::process::id(), "RssAnon")
}

fn start(
    isolation: &Isolation,
    code: &[u8],
    change: impl FnOnce(&mut MachineConfig, &mut Resources),
) -> Machine {
    let mut resources = Resources::new();
    let mut config = MachineConfig::new(resources.add(kernel(code)));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    change(&mut config, &mut resources);
    Machine::start(&config, resources, isolation).unwrap()
}

/// A disk in `place`.
fn disk(place: &Path) -> DiskConfig {
    let path = place.join("disk");
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    DiskConfig::new(DiskId::new("disk").unwrap(), FileSource::Path(path), false)
}

/// A network device, and the other end of its link.
fn network(resources: &mut Resources) -> (NetworkConfig, OwnedFd) {
    let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let link = DatagramLink { socket: resources.add(theirs), header: false };
    let id = NetworkId::new("net0").unwrap();
    (NetworkConfig::new(id, MacAddress::from_seed("load"), NetworkLink::Datagram(link)), ours.into())
}

/// Says a byte to a guest that answers with the next one.
fn echoes(machine: &Machine, byte: u8) {
    let mut serial = machine.serial().unwrap();
    serial.write_all(&[byte]).unwrap();
    let mut answer = [0];
    serial.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [byte + 1]);
}

/// The life of one machine, each with other devices and another end.
fn live_and_die(isolation: &Isolation, number: usize) {
    let place = tempfile::tempdir().unwrap();
    let log = place.path().join("log");
    match number % 6 {
        0 => {
            let machine = start(isolation, RESET, |config, _| config.rng = true);
            assert_eq!(machine.wait().reason, EndReason::Reset);
        }
        1 => {
            let machine = start(isolation, OFF, |config, _| {
                config.serial = Endpoint::Log(FileSource::Path(log.clone()));
                config.spare_slots = 2;
            });
            assert_eq!(machine.wait().reason, EndReason::PowerOff);
        }
        2 => {
            let machine = start(isolation, TRIPLE, |config, _| config.disks = vec![disk(place.path())]);
            assert_eq!(machine.wait().reason, EndReason::TripleFault);
        }
        3 => {
            let socket = place.path().join("socket");
            let machine = start(isolation, SPIN, |config, _| {
                config.vsock = Some(VsockConfig { unix_socket: Some(socket.clone()), ..Default::default() });
            });
            let listener = machine.vsock().listen(5).unwrap();
            machine.kill();
            assert_eq!(machine.wait().reason, EndReason::Killed);
            drop(listener);
            // A process that is killed cannot remove the path of its socket: its holder knows it.
            assert!(matches!(isolation, Isolation::Process { .. }) || !socket.exists());
        }
        4 => {
            let machine = start(isolation, ECHO, |config, _| config.serial = Endpoint::Stream);
            echoes(&machine, b'a');
            machine.stop().unwrap();
            assert_eq!(machine.wait().reason, EndReason::Stopped);
        }
        _ => {
            let mut peer = None;
            let machine = start(isolation, ECHO, |config, resources| {
                config.serial = Endpoint::Stream;
                let (device, end) = network(resources);
                config.networks = vec![device];
                peer = Some(end);
            });
            machine.pause().unwrap();
            machine.resume().unwrap();
            echoes(&machine, b'b');
            drop(machine);
        }
    }
}

/// So many machines at once, which eight threads start at the same time, so that whatever one
/// inherits of another shows. All are there, all
/// obey, and each ends in another way than the next.
fn crowd(isolation: &Isolation) -> Crowd {
    let places: Vec<_> = (0..AT_ONCE).map(|_| tempfile::tempdir().unwrap()).collect();
    let machines: Vec<Machine> = std::thread::scope(|scope| {
        let starters = places.chunks(AT_ONCE / 8).map(|places| {
            scope
                .spawn(move || places.iter().map(|place| member(isolation, place.path())).collect::<Vec<_>>())
        });
        let starters: Vec<_> = starters.collect();
        starters.into_iter().flat_map(|starter| starter.join().unwrap()).collect()
    });
    for machine in &machines {
        let mut said = [0];
        machine.serial().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(said, *b".");
    }
    machines.iter().for_each(|machine| machine.pause().unwrap());
    assert!(machines.iter().all(|machine| machine.state().unwrap() == State::Paused));
    machines.iter().for_each(|machine| machine.resume().unwrap());
    assert!(machines.iter().all(|machine| machine.state().unwrap() == State::Running));
    let seen = Crowd::of(&machines);
    for (index, machine) in machines.into_iter().enumerate() {
        match index % 4 {
            0 => drop(machine),
            1 => {
                machine.kill();
                assert_eq!(machine.wait().reason, EndReason::Killed);
            }
            2 => {
                machine.stop().unwrap();
                assert_eq!(machine.wait().reason, EndReason::Stopped);
            }
            _ => assert_eq!(machine.close().reason, EndReason::Killed),
        }
    }
    seen
}

/// One of many.
fn member(isolation: &Isolation, place: &Path) -> Machine {
    start(isolation, REST, |config, _| {
        config.serial = Endpoint::Stream;
        config.disks = vec![disk(place)];
        config.rng = true;
        config.vsock = Some(VsockConfig::default());
    })
}

/// The most that any monitor of many had; zero for machines in threads.
#[derive(Clone, Copy, Debug, Default)]
struct Crowd {
    memory: u64,
    descriptors: usize,
    threads: usize,
}

impl Crowd {
    fn of(machines: &[Machine]) -> Self {
        let mut most = Self::default();
        let cgroups = |process: &str| fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap();
        let own = cgroups("self");
        for process in machines.iter().filter_map(Machine::process_id) {
            // Nobody makes one for it, so none is left either.
            assert_eq!(cgroups(&process.to_string()), own);
            most = most.or(Self {
                memory: status(process, "RssAnon"),
                descriptors: fs::read_dir(format!("/proc/{process}/fd")).unwrap().count(),
                threads: threads(process),
            });
        }
        assert!(most.memory < MONITOR_MAX, "{most:?}");
        assert!(most.descriptors < MONITOR_DESCRIPTORS && most.threads < MONITOR_THREADS, "{most:?}");
        most
    }

    fn or(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

/// As many machines as were asked for, and crowds between them.
fn hold(isolation: &Isolation, name: &str, machines: usize) {
    // What stays for good is there after this.
    let before_all = threads(std::process::id());
    crowd(isolation);
    (0..24).for_each(|number| live_and_die(isolation, number));
    let (before, memory) = (Holdings::settled(before_all), own_memory());
    let (began, mut most) = (Instant::now(), Crowd::default());
    for number in 0..machines {
        live_and_die(isolation, number);
        if number % CROWD_EVERY == 0 {
            most = most.or(crowd(isolation));
            assert_eq!(Holdings::settled(before.threads), before, "after {number} machines");
        }
    }
    assert_eq!(Holdings::settled(before.threads), before);
    let (after, crowds) = (own_memory(), machines.div_ceil(CROWD_EVERY));
    println!(
        "load: {machines} machines one after the other and {crowds} times {AT_ONCE} at once in {name}: {:.0} s; the holder's \
         private memory {memory} KiB before, {after} after; descriptors, sockets, threads, children and files as before",
        began.elapsed().as_secs_f64()
    );
    if most.threads > 0 {
        println!(
            "load: each of {AT_ONCE} monitors at once has at most {} KiB of private memory with its guest, {} threads, {} \
             descriptors",
            most.memory, most.threads, most.descriptors
        );
    }
    assert!(after < memory + GROWTH_MAX, "private memory of {memory} KiB became {after}");
}

/// Set in the process that the test starts of itself, whose temporary files are its own.
const CHILD: &str = "NELLY_TEST_LOAD";

#[test]
fn many_machines_leave_their_holder_as_it_was() {
    let number = std::env::var("NELLY_LOAD_MACHINES").ok();
    let machines = number.map_or(MACHINES, |text| text.parse().expect("NELLY_LOAD_MACHINES is a number"));
    if std::env::var_os(CHILD).is_some() {
        // Ten times what it takes.
        watchdog(Duration::from_secs(600) + Duration::from_millis(850) * u32::try_from(machines).unwrap());
        let monitor = env!("CARGO_BIN_EXE_nelly-monitor").into();
        hold(&Isolation::Process { monitor }, "processes", machines);
        hold(&Isolation::Thread, "threads of one process", machines);
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "many_machines_leave_their_holder_as_it_was", "--nocapture"])
        .env(CHILD, "")
        // One heap of the allocator's for all threads: what it keeps in each is not what is looked
        // for.
        .env("MALLOC_ARENA_MAX", "1")
        .env("TMPDIR", place.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert!(files(place.path()).is_empty(), "{:?}", files(place.path()));
}
