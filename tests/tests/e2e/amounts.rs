//! Many bytes through a sandbox that stays. `make soak` has a gibibyte of each: `NELLY_EXEC_MIB`,
//! `NELLY_FLOOD_MIB`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::thread;

use nelly_tests::wait;

use super::LIMIT;
use super::keeper::{Kept, spawn};

/// Bytes at a time.
const CHUNK: usize = 1 << 20;

/// KiB of memory that a figure may grow by between a small part of the bytes and all of them.
const FLAT_KIB: u64 = 1024;

/// A number of the environment, in MiB.
fn mebibytes(variable: &str, otherwise: usize) -> usize {
    let text = std::env::var(variable).ok();
    text.map_or(otherwise, |word| word.parse().unwrap_or_else(|_| panic!("{variable} is no number: {word}")))
}

/// Bytes that no pattern repeats: xorshift64*.
struct Noise(u64);

impl Noise {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, chunk: &mut [u8]) {
        for part in chunk.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            part.copy_from_slice(&self.0.to_le_bytes()[..part.len()]);
        }
    }
}

/// A figure of a process's memory, in KiB, by its name in /proc/PID/status.
fn figure(pid: u64, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = lines.next().expect("a process that runs");
    value.split_whitespace().next().unwrap().parse().unwrap()
}

/// The most memory that a process had at a time, in KiB.
fn peak(pid: u64) -> u64 {
    figure(pid, "VmHWM")
}

#[test]
fn an_exec_carries_many_bytes_both_ways_in_flat_memory() {
    let chunks = mebibytes("NELLY_EXEC_MIB", 32);
    let kept = Kept::new();
    kept.keep(&[], "sleep 1000000");
    let mut client = spawn(kept.0.path(), &["exec", "-i", "box", "cat"]);
    let pids = [kept.pid("holder"), client.id().into()];
    let mut stdin = client.stdin.take().unwrap();
    let writer = thread::spawn(move || {
        let (mut noise, mut chunk) = (Noise::new(), vec![0; CHUNK]);
        for _ in 0..chunks {
            noise.fill(&mut chunk);
            stdin.write_all(&chunk).unwrap();
        }
        // Its end is that of `cat`, after the last peak was read.
        stdin
    });
    let mut stdout = client.stdout.take().unwrap();
    let (mut noise, mut sent, mut back) = (Noise::new(), vec![0; CHUNK], vec![0; CHUNK]);
    let mut early = [0; 2];
    for number in 0..chunks {
        noise.fill(&mut sent);
        stdout.read_exact(&mut back).unwrap();
        assert!(back == sent, "bytes changed on the way in MiB {number}");
        if number == 3 {
            early = pids.map(peak);
        }
    }
    let late = pids.map(peak);
    // Of its own: the pages of its program are shared by all keepers.
    let own = figure(pids[0], "RssAnon");
    assert!(own < 2048, "the keeper has {own} KiB of its own");
    drop(writer.join().unwrap());
    assert_eq!(stdout.read(&mut back).unwrap(), 0);
    assert_eq!(wait(&mut client, LIMIT).code(), Some(0));
    println!(
        "{chunks} MiB both ways: keeper and client, largest memory in KiB: {early:?} -> {late:?}, \
         of the keeper's own now: {own}"
    );
    for (early, late) in early.into_iter().zip(late) {
        assert!(late <= early + FLAT_KIB, "memory grows with the bytes: {early} -> {late} KiB");
    }
}

#[test]
fn a_flood_of_output_ends_in_the_log_in_flat_memory() {
    let amount = mebibytes("NELLY_FLOOD_MIB", 24);
    let kept = Kept::new();
    let line = "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopq";
    // Of a file: `yes` writes little at a time.
    let script = format!(
        "yes {line} | head -c 1048576 >/lines; read go; cat $(yes /lines | head -n {amount})
        echo last words; read go; exit 7"
    );
    kept.keep(&["-i"], &script);
    let keeper = kept.pid("holder");
    let mut attached = spawn(kept.0.path(), &["attach", "box"]);
    let (mut stdin, mut stdout) = (attached.stdin.take().unwrap(), attached.stdout.take().unwrap());
    let before = peak(keeper);
    stdin.write_all(b"\n").unwrap();
    // Whoever reads too slowly loses bytes, and the container never waits: only the end is sure.
    let (mut all, mut part) = (Vec::new(), vec![0; CHUNK]);
    while !all.ends_with(b"last words\n") {
        let count = stdout.read(&mut part).unwrap();
        assert!(count > 0, "it ended early");
        all.extend_from_slice(&part[..count]);
        let beyond = all.len().saturating_sub(100);
        all.drain(..beyond);
    }
    let after = peak(keeper);
    println!("{amount} MiB of output: the keeper's largest memory in KiB: {before} -> {after}");
    assert!(after <= before + FLAT_KIB, "memory grows with the output: {before} -> {after} KiB");
    // The newest lines are in the log, whole, and the log has its size.
    let newest = kept.out(&["logs", "--tail", "1000", "box"]);
    let (lines, last) = newest.rsplit_once('\n').unwrap();
    assert!(last == "last words" && lines.lines().all(|one| one == line), "{last}");
    assert_eq!(lines.lines().count(), 999);
    let logs = kept.sandboxes().join("names/box/logs");
    let files = fs::read_dir(logs).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
    let bytes: u64 = files.sum();
    assert!((16 << 20..=64 << 20).contains(&bytes), "{bytes} bytes of log");
    stdin.write_all(b"\n").unwrap();
    drop(stdin);
    assert_eq!(kept.out(&["wait", "box"]), "7");
    wait(&mut attached, LIMIT);
}
