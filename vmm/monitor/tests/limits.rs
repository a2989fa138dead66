//! What limits of a disk's rates are for (`docs/load.md`): how long the requests of one machine
//! take alone, beside a machine that keeps its disk at full depth, and beside the same one below
//! limits. All disks lie on one file system.
//!
//! `NELLY_LIMITS_REQUESTS` is the number of requests of each kind and neighbour; with it, as
//! `tests/load/run` has it, the 99th percentile beside limits must be at most twice that alone.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nelly_vmm::config::{
    CommandLine, DiskConfig, DiskId, DiskLimits, Endpoint, FileSource, MachineConfig, MemorySize,
};
use nelly_vmm::machine::{DiskState, Isolation, Machine, Resources};
use support::{scaled, watchdog};

/// Requests of each kind and neighbour in `make test`.
const REQUESTS: usize = 40;
/// At most so many at a time, then comes the next neighbour: what else this host does meanwhile
/// meets all of them alike.
const AT_ONCE: usize = 100;
/// By how much the 99th percentile may grow beside a neighbour with limits.
const TIMES: f64 = 2.0;

const DISK_BYTES: usize = 64 << 20;
/// What a neighbour with limits may do in a second.
const BYTES_PER_SECOND: u64 = 8 << 20;
const OPERATIONS_PER_SECOND: u64 = 100;
/// The largest request of a neighbour.
const WRITE_BYTES: u64 = 62 * 4096;

const KINDS: [&str; 3] = ["read", "write", "flush"];
const NEIGHBOURS: [Neighbour; 3] = [Neighbour::None, Neighbour::Free, Neighbour::Limited];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Neighbour {
    None,
    Free,
    Limited,
}

/// A disk whose blocks are all there, so that writing needs no new ones.
fn disk(place: &Path, name: &str, limits: DiskLimits) -> DiskConfig {
    let path = place.join(name);
    if !path.exists() {
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&vec![7; DISK_BYTES]).unwrap();
        file.sync_all().unwrap();
    }
    let mut disk = DiskConfig::new(DiskId::new(name).unwrap(), FileSource::Path(path), false);
    disk.limits = limits;
    disk
}

fn start(kernel: &Path, job: &str, disk: DiskConfig) -> Machine {
    let mut config = MachineConfig::new(FileSource::Path(kernel.to_owned()));
    config.memory_bytes = MemorySize::new(16 << 20).unwrap();
    config.command_line = CommandLine::new(job).unwrap();
    config.serial = Endpoint::Stream;
    config.disks = vec![disk];
    let isolation = Isolation::Process { monitor: env!("CARGO_BIN_EXE_nelly-monitor").into() };
    Machine::start(&config, Resources::new(), &isolation).unwrap()
}

/// What a machine's only disk has done.
fn done(machine: &Machine) -> DiskState {
    machine.inspect().unwrap().devices.iter().find_map(|device| device.disk).unwrap()
}

/// Has the machine's processor run only where nobody else wants to: these guests spin where others
/// would halt, and the time of processors is not what is limited here.
fn give_way(machine: &Machine) {
    let process = machine.process_id().unwrap();
    let mut given = 0;
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let task = task.unwrap();
        if fs::read_to_string(task.path().join("comm")).unwrap().starts_with("nelly-cpu") {
            let words = ["--idle", "--pid", "0", task.file_name().to_str().unwrap()].map(str::to_owned);
            assert!(Command::new("chrt").args(words).status().unwrap().success());
            given += 1;
        }
    }
    assert_eq!(given, 1);
}

/// A machine that keeps its disk at full depth, and has done so for a while.
fn neighbour(kernel: &Path, place: &Path, kind: Neighbour) -> Option<Machine> {
    let limits = match kind {
        Neighbour::None => return None,
        Neighbour::Free => DiskLimits::default(),
        Neighbour::Limited => DiskLimits {
            bytes_per_second: NonZeroU64::new(BYTES_PER_SECOND),
            operations_per_second: NonZeroU64::new(OPERATIONS_PER_SECOND),
        },
    };
    let machine = start(kernel, "full", disk(place, "neighbour", limits));
    give_way(&machine);
    let mut serial = BufReader::new(machine.serial().unwrap());
    assert_eq!(line(&mut serial), "ready");
    serial.get_mut().write_all(b"\n").unwrap();
    let limit = Instant::now() + scaled(Duration::from_secs(60));
    while done(&machine).flushes < 2 {
        assert!(Instant::now() < limit, "{:?}", done(&machine));
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(machine)
}

/// What a guest says next.
fn line(serial: &mut impl BufRead) -> String {
    let mut text = String::new();
    serial.read_line(&mut text).unwrap();
    text.trim_end().to_owned()
}

/// Nanoseconds that so many requests of each kind took.
fn measure(kernel: &Path, place: &Path, times: usize) -> [Vec<f64>; 3] {
    let machine = start(kernel, &format!("measure {times}"), disk(place, "measured", DiskLimits::default()));
    let mut serial = BufReader::new(machine.serial().unwrap());
    assert_eq!(line(&mut serial), "ready");
    serial.get_mut().write_all(b"\n").unwrap();
    let mut counter = |word: &str| {
        let said = line(&mut serial);
        let ticks = said.strip_prefix(word).unwrap_or_else(|| panic!("{said}"));
        (Instant::now(), ticks.trim().parse::<f64>().unwrap())
    };
    let (before, first) = counter("began ");
    let (after, last) = counter("ended ");
    let tick = (after - before).as_secs_f64() * 1e9 / (last - first);
    let mut took = [const { Vec::new() }; 3];
    for _ in 0..times {
        for (kind, took) in KINDS.iter().zip(&mut took) {
            took.push(counter(kind).1 * tick);
        }
    }
    assert_eq!(line(&mut serial), "done");
    let did = done(&machine);
    assert_eq!(
        [did.reads, did.writes, did.flushes, did.throttled],
        [times as u64, times as u64, times as u64, 0]
    );
    machine.kill();
    drop(machine.wait());
    took
}

/// Measures beside a neighbour, and says how many of its requests were held back.
fn beside(kernel: &Path, place: &Path, kind: Neighbour, times: usize) -> ([Vec<f64>; 3], u64) {
    let other = neighbour(kernel, place, kind);
    let before = other.as_ref().map(|other| (Instant::now(), done(other)));
    let took = measure(kernel, place, times);
    let (Some(other), Some((began, before))) = (other, before) else { return (took, 0) };
    let (after, seconds) = (done(&other), began.elapsed().as_secs_f64());
    assert!(after.flushes >= before.flushes && after.failed == 0, "{after:?}");
    if kind == Neighbour::Limited {
        // What it had saved up is that of a tenth of a second, and one request may be under way.
        let most = |rate: u64, one: u64| rate as f64 * (seconds + 0.1) + one as f64;
        let bytes = after.written_bytes - before.written_bytes;
        let operations = after.writes + after.flushes - before.writes - before.flushes;
        assert!(bytes as f64 <= most(BYTES_PER_SECOND, WRITE_BYTES), "{bytes} bytes in {seconds} s");
        assert!(operations as f64 <= most(OPERATIONS_PER_SECOND, 1), "{operations} requests in {seconds} s");
    } else {
        assert_eq!(after.throttled, 0);
    }
    other.kill();
    drop(other.wait());
    (took, after.throttled)
}

/// Of sorted values, that which so many of a hundred do not exceed.
fn percentile(sorted: &[f64], hundredths: usize) -> f64 {
    sorted[(sorted.len() * hundredths).div_ceil(100).max(1) - 1]
}

fn guest(place: &Path) -> PathBuf {
    let kernel = place.join("guest");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests/load/build.sh");
    assert!(Command::new(script).arg(&kernel).status().unwrap().success());
    kernel
}

#[test]
fn a_limited_neighbour_leaves_a_disk_its_time() {
    watchdog(Duration::from_secs(1200));
    let asked = std::env::var("NELLY_LIMITS_REQUESTS").ok().map(|text| text.parse::<usize>().unwrap());
    let requests = asked.unwrap_or(REQUESTS);
    let place = tempfile::tempdir().unwrap();
    let kernel = guest(place.path());
    let mut took = [const { [const { Vec::<f64>::new() }; 3] }; 3];
    let mut held_back = 0;
    while took[0][0].len() < requests {
        let times = AT_ONCE.min(requests - took[0][0].len());
        for (neighbour, took) in NEIGHBOURS.into_iter().zip(&mut took) {
            let (some, throttled) = beside(&kernel, place.path(), neighbour, times);
            took.iter_mut().zip(some).for_each(|(took, some)| took.extend(some));
            held_back += throttled;
        }
    }
    assert!(held_back > 0);
    for of_kind in took.iter_mut().flatten() {
        of_kind.sort_by(f64::total_cmp);
    }
    let mut worst = 0_f64;
    for (index, kind) in KINDS.iter().enumerate() {
        let of = |neighbour: usize| {
            (percentile(&took[neighbour][index], 50) / 1e3, percentile(&took[neighbour][index], 99) / 1e3)
        };
        let ((alone_half, alone), (free_half, free), (limited_half, limited)) = (of(0), of(1), of(2));
        println!(
            "load: {kind}, {requests} each: p99 (p50) {alone:.0} ({alone_half:.0}) \u{b5}s alone, {free:.0} ({free_half:.0}) \u{b5}s beside a disk at full depth, {limited:.0} ({limited_half:.0}) \u{b5}s beside the same with limits: {:.1} and {:.1} times",
            free / alone,
            limited / alone
        );
        worst = worst.max(limited / alone);
    }
    assert!(asked.is_none() || worst <= TIMES, "{worst:.2} times");
}
