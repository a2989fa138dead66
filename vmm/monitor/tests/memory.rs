//! What a monitor's own memory grows by under the heaviest use of each device has a bound
//! (`docs/load.md`): a guest gives as much at once as the rings hold, and nobody on the host reads.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod support;

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nelly_disk::{Format, NewImage, create_image};
use nelly_vmm::config::{
    CommandLine, DiskConfig, DiskFormat, DiskId, Endpoint, FileSource, MachineConfig, MemorySize, VsockConfig,
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

const JOBS: [Job; 6] = [
    ("serial 400000", |_, _| {}, BESIDE),
    ("console", |config, _| config.console = Endpoint::Stream, BESIDE),
    ("random 20", |config, _| config.rng = true, BESIDE),
    ("disk 10", |config, place| config.disks = vec![disk(place, DiskFormat::Raw)], BESIDE),
    ("disk 10", |config, place| config.disks = vec![disk(place, DiskFormat::Qcow2)], BESIDE),
    ("streams 96", |config, _| config.vsock = Some(VsockConfig::default()), BESIDE + UNDER_WAY),
];

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

/// By how many KiB the monitor has grown at most while its guest did this.
fn growth(kernel: &Path, job: &str, give: fn(&mut MachineConfig, &Path)) -> u64 {
    let place = tempfile::tempdir().unwrap();
    let mut config = MachineConfig::new(FileSource::Path(kernel.to_owned()));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    config.command_line = CommandLine::new(job).unwrap();
    config.serial = Endpoint::Stream;
    give(&mut config, place.path());
    let isolation = Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() };
    let machine = Machine::start(&config, Resources::new(), &isolation).unwrap();
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
            // All that fits is there once nothing more comes, for as many looks.
            let (last, equal) = (Cell::new(0), Cell::new(0));
            until(&machine, |seen| {
                let now = waiting(seen);
                equal.set(if last.replace(now) == now { equal.get() + 1 } else { 0 });
                equal.get() == EQUAL_LOOKS
            });
        }
        word => {
            if word == "streams" {
                let listener = listener.as_ref().unwrap();
                accepted.extend((0..STREAMS).map(|_| listener.accept().unwrap()));
            }
            assert_eq!(line(&mut serial), "done");
        }
    }
    let grown = status(process, "VmHWM").saturating_sub(before);
    machine.kill();
    drop((machine.wait(), accepted));
    grown
}

#[test]
fn each_device_at_its_heaviest_use_keeps_to_its_bound() {
    watchdog(Duration::from_secs(600));
    let place = tempfile::tempdir().unwrap();
    let kernel = place.path().join("guest");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/load/build.sh");
    assert!(Command::new(script).arg(&kernel).status().unwrap().success());
    for (number, (job, give, bound)) in JOBS.into_iter().enumerate() {
        let grown = growth(&kernel, job, give);
        println!("load: job {number}, `{job}`: the monitor grew by {grown} KiB at most, of {bound}");
        assert!(grown < bound, "{job}: {grown} KiB");
    }
}
