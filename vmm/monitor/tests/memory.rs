//! What a monitor's own memory grows by under the heaviest use of each device has a bound
//! (`docs/load.md`): a guest gives as much at once as the rings hold, and nobody on the host reads.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod support;

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nelly_disk::{Format, NewImage, create_image};
use nelly_vmm::config::{
    CommandLine, DiskConfig, DiskFormat, DiskId, Endpoint, FileSource, HotplugSize, MacAddress,
    MachineConfig, MemorySize, Mtu, NetworkConfig, NetworkId, NetworkLink, ShareConfig, ShareTag,
    VsockConfig,
};
use nelly_vmm::machine::{Inspection, Isolation, Machine, Resources};
use support::{scaled, watchdog};

/// Streams that the guest fills. The first 64 of a machine may have 256 KiB under way, the next
/// ones up to the 512th 64 KiB, those up to the 4,096th, the last that a guest may dial, 16 KiB: at
/// most 100 MiB.
const STREAMS: u64 = 96;
/// What so many may have under way, in KiB.
const UNDER_WAY: u64 = 64 * 256 + (STREAMS - 64) * 64;

/// What grows beside the bytes themselves, in KiB: pages of the program that were not read before,
/// its heap, descriptors of connections.
const BESIDE: u64 = 1024;

/// So many looks, one after the other, must find the same.
const EQUAL_LOOKS: u32 = 40;

/// The guest's command line, what it is given, and the most that the monitor grows by, in KiB.
type Job = (&'static str, fn(&mut MachineConfig, &Path), u64);

/// Files of a shared directory that the guest looks up, opens, and keeps.
const NAMES: u64 = 2000;
/// What a monitor keeps for each of them, in KiB.
const A_NAME: u64 = 1;

const JOBS: [Job; 10] = [
    ("serial 400000", |_, _| {}, BESIDE),
    ("console", |config, _| config.console = Endpoint::Stream, BESIDE),
    ("random 20", |config, _| config.rng = true, BESIDE),
    ("disk 10", |config, place| config.disks = vec![disk(place, DiskFormat::Raw)], BESIDE),
    ("disk 10", |config, place| config.disks = vec![disk(place, DiskFormat::Qcow2)], BESIDE),
    ("streams 96", |config, _| config.vsock = Some(VsockConfig::default()), BESIDE + UNDER_WAY),
    ("frames 65520", |config, place| config.networks = vec![network(place)], BESIDE),
    ("share 2000", |config, place| config.shares = vec![share(place)], BESIDE + NAMES * A_NAME),
    ("plug 500", |config, _| config.hotplug_bytes = HotplugSize::new(128 << 20).unwrap(), BESIDE),
    ("report 200", |config, _| giving_back(config), BESIDE),
];

/// A network whose peer never reads.
fn network(place: &Path) -> NetworkConfig {
    let link = NetworkLink::Stream(FileSource::Path(place.join("peer")));
    let id = NetworkId::new("load").unwrap();
    let mut network = NetworkConfig::new(id, MacAddress::from_seed("load"), link);
    network.mtu = Mtu::new(65_520).unwrap();
    network
}

/// A directory with files of a read's size and more.
fn share(place: &Path) -> ShareConfig {
    let shared = place.join("shared");
    fs::create_dir(&shared).unwrap();
    for name in 0..NAMES {
        fs::write(
            shared.join(format!("n{name:04}")),
            if name == 0 { vec![7; 256 << 10] } else { Vec::new() },
        )
        .unwrap();
    }
    ShareConfig::new(ShareTag::new("load").unwrap(), FileSource::Path(shared), false)
}

/// A balloon device, and memory to report.
fn giving_back(config: &mut MachineConfig) {
    config.give_back = true;
    config.memory_bytes = MemorySize::new(80 << 20).unwrap();
}

fn disk(place: &Path, format: DiskFormat) -> DiskConfig {
    let path = place.join("disk");
    let kind = if format == DiskFormat::Raw { Format::Raw } else { Format::Qcow2 };
    create_image(&path, &NewImage { format: kind, size: Some(64 << 20), cluster_bits: 16, backing: None })
        .unwrap();
    let mut disk = DiskConfig::new(DiskId::new("disk").unwrap(), FileSource::Path(path), false);
    disk.format = format;
    disk
}

/// A line of a process's status, in KiB.
fn status(process: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Reads a line of the guest.
fn line(serial: &mut UnixStream) -> String {
    let (mut text, mut byte) = (String::new(), [0]);
    loop {
        serial.read_exact(&mut byte).unwrap();
        match byte[0] {
            b'\n' => return text,
            byte => text.push(char::from(byte)),
        }
    }
}

/// Waits until what the machine shows of itself is so.
fn until(machine: &Machine, holds: impl Fn(&Inspection) -> bool) {
    let limit = Instant::now() + scaled(Duration::from_secs(60));
    while !holds(&machine.inspect().unwrap()) {
        assert!(Instant::now() < limit, "{:?}", machine.inspect().unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes of the console that wait for its reader.
fn waiting(seen: &Inspection) -> u64 {
    seen.consoles.iter().find(|console| console.port == "console").unwrap().waiting_output_bytes
}

/// Frames of the guest that its peer's socket has taken.
fn sent(seen: &Inspection) -> u64 {
    seen.devices.iter().find_map(|device| device.network?.sent).unwrap().frames
}

/// Waits until a count stays what it is, for so many looks.
fn until_it_rests(machine: &Machine, count: impl Fn(&Inspection) -> u64) {
    let (last, equal) = (Cell::new(0), Cell::new(0));
    until(machine, |seen| {
        let now = count(seen);
        equal.set(if last.replace(now) == now { equal.get() + 1 } else { 0 });
        equal.get() == EQUAL_LOOKS
    });
}

/// The machine of a guest with this job.
fn start(
    kernel: &Path,
    job: &str,
    place: &Path,
    give: fn(&mut MachineConfig, &Path),
) -> (MachineConfig, Machine) {
    let mut config = MachineConfig::new(FileSource::Path(kernel.to_owned()));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    config.command_line = CommandLine::new(job).unwrap();
    config.serial = Endpoint::Stream;
    give(&mut config, place);
    let isolation = Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() };
    let machine = Machine::start(&config, Resources::new(), &isolation).unwrap();
    (config, machine)
}

/// By how many KiB the monitor has grown at most while its guest did this.
fn growth(kernel: &Path, job: &str, give: fn(&mut MachineConfig, &Path)) -> u64 {
    let place = tempfile::tempdir().unwrap();
    let peer = UnixListener::bind(place.path().join("peer")).unwrap();
    let (config, machine) = start(kernel, job, place.path(), give);
    if config.hotplug_bytes.get() > 0 {
        machine.request_memory(config.memory_bytes.get() + (32 << 20)).unwrap();
    }
    let listener = config.vsock.is_some().then(|| machine.vsock().listen(5).unwrap());
    let mut accepted = Vec::new();
    let mut serial = machine.serial().unwrap();
    assert_eq!(line(&mut serial), "ready");
    let process = machine.process_id().unwrap();
    let before = status(process, "VmRSS");
    serial.write_all(b"\n").unwrap();
    match job.split(' ').next().unwrap() {
        // It cannot say that it is done.
        "serial" => until(&machine, |seen| seen.exits.port_write >= 400_000),
        "console" => {
            assert_eq!(line(&mut serial), "done");
            until(&machine, |seen| waiting(seen) > 0);
            // All that fits is there once nothing more comes.
            until_it_rests(&machine, waiting);
        }
        // It goes on for as long as the socket takes some, and never says that it is done.
        "frames" => {
            until(&machine, |seen| sent(seen) > 0);
            until_it_rests(&machine, sent);
        }
        word => {
            if word == "streams" {
                let listener = listener.as_ref().unwrap();
                accepted.extend((0..STREAMS).map(|_| listener.accept().unwrap()));
            }
            if word == "share" {
                let said = line(&mut serial);
                let opened = said.strip_prefix("opened ").unwrap_or_else(|| panic!("{said}"));
                assert!(opened.parse::<u64>().unwrap() > 100, "{said}");
            }
            assert_eq!(line(&mut serial), "done");
        }
    }
    let grown = status(process, "VmHWM").saturating_sub(before);
    machine.kill();
    drop((machine.wait(), accepted, peer));
    grown
}

/// Builds the guest.
fn guest(place: &Path) -> PathBuf {
    let kernel = place.join("guest");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/load/build.sh");
    assert!(Command::new(script).arg(&kernel).status().unwrap().success());
    kernel
}

/// What a guest reports free comes back to the host at once, is memory again when it is used, and
/// comes back again.
#[test]
fn what_a_guest_has_freed_comes_back_to_the_host() {
    watchdog(Duration::from_secs(600));
    let place = tempfile::tempdir().unwrap();
    let kernel = guest(place.path());
    // The guest keeps 16 MiB for itself.
    let free = 64 << 10;
    let (_, machine) = start(&kernel, "give", place.path(), |config, _| giving_back(config));
    let mut serial = machine.serial().unwrap();
    let process = machine.process_id().unwrap();
    let mut resident = Vec::new();
    for word in ["ready", "given", "used", "done"] {
        assert_eq!(line(&mut serial), word);
        resident.push(status(process, "VmRSS"));
        if word != "done" {
            serial.write_all(b"\n").unwrap();
        }
    }
    println!(
        "load: with {free} KiB in use, given back, used again and given back, the monitor has {resident:?} KiB"
    );
    let [before, given, used, again] = resident[..] else { panic!("{resident:?}") };
    assert!(before > given + free - BESIDE && used > given + free - BESIDE, "{resident:?}");
    assert!(again < given + BESIDE && given < (16 << 10) + 8 * BESIDE, "{resident:?}");
    let seen = machine.inspect().unwrap();
    let balloon = seen.devices.iter().find_map(|device| device.balloon).unwrap();
    assert_eq!((balloon.reported_bytes, balloon.given_back_bytes), (3 * (free << 10), 3 * (free << 10)));
    machine.kill();
    drop(machine.wait());
}

#[test]
fn each_device_at_its_heaviest_use_keeps_to_its_bound() {
    watchdog(Duration::from_secs(600));
    let place = tempfile::tempdir().unwrap();
    let kernel = guest(place.path());
    for (number, (job, give, bound)) in JOBS.into_iter().enumerate() {
        let grown = growth(&kernel, job, give);
        println!("load: job {number}, `{job}`: the monitor grew by {grown} KiB at most, of {bound}");
        assert!(grown < bound, "{job}: {grown} KiB");
    }
}
