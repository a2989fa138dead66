//! What fio's verify does, over the engine: sixteen threads write, discard, flush and read back on
//! a warm overlay with a backing file, and qemu-img is the judge of what is left.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::process::Command;
use std::thread;

use nelly_disk::{Disk, Follow, Format, NewImage, create_image, open_image};

const JOBS: u64 = 16;
const BLOCK: u64 = 4096;

/// A generator of numbers that look random (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What a block holds: its place, and how often it was written; all zeroes after a discard.
fn pattern(at: u64, generation: u32) -> Vec<u8> {
    let mut bytes = at.to_le_bytes().to_vec();
    bytes.extend_from_slice(&u64::from(generation).to_le_bytes());
    bytes.repeat(BLOCK as usize / 16)
}

fn write(disk: &dyn Disk, at: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        done += disk.write_at(&&bytes[done..], at + done as u64).unwrap();
    }
}

/// What a job knows of a block.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Base,
    Written(u32),
    Zero,
}

/// Blocks of one job: each sixteenth, so that all jobs meet in every cluster.
fn job(disk: &dyn Disk, number: u64, blocks: u64, steps: u64) -> Vec<Known> {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (number + 1) << 32);
    let mut known = vec![Known::Base; (blocks / JOBS) as usize];
    let place = |index: u64| (index * JOBS + number) * BLOCK;
    for step in 0..steps {
        let index = numbers.next() % (blocks / JOBS);
        let (at, now) = (place(index), &mut known[index as usize]);
        match numbers.next() % 16 {
            0 => {
                disk.write_zeroes(at, BLOCK, step % 2 == 0).unwrap();
                *now = Known::Zero;
            }
            1..=4 => expect(disk, at, *now),
            5 if step % 8 == 0 => disk.flush().unwrap(),
            _ => {
                let generation = step as u32 + 1;
                write(disk, at, &pattern(at, generation));
                *now = Known::Written(generation);
            }
        }
    }
    known
}

#[track_caller]
fn expect(disk: &dyn Disk, at: u64, known: Known) {
    let mut found = vec![0; BLOCK as usize];
    disk.read_exact_at(&mut found, at).unwrap();
    let expected = match known {
        Known::Base => pattern(at, 0),
        Known::Written(generation) => pattern(at, generation),
        Known::Zero => vec![0; BLOCK as usize],
    };
    assert!(found == expected, "other bytes at {at}");
}

/// Bytes of the disk and steps of a job: few, unless `NELLY_DISK_VERIFY` names MiB of the disk
/// (6144 is what another monitor's fault was found with).
#[test]
fn sixteen_jobs_on_a_warm_overlay_leave_what_they_wrote_and_whole_metadata() {
    let mebibytes = std::env::var("NELLY_DISK_VERIFY").ok().and_then(|text| text.parse().ok());
    let blocks = mebibytes.unwrap_or(48_u64) << 20 >> 12;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (base, top) = (directory.path().join("base.raw"), directory.path().join("top.qcow2"));
    create_image(
        &base,
        &NewImage { format: Format::Raw, size: Some(blocks * BLOCK), cluster_bits: 16, backing: None },
    )
    .unwrap();
    let raw = open_image(&base, Format::Raw, false, Follow::Beside).unwrap();
    (0..blocks).for_each(|block| write(&*raw, block * BLOCK, &pattern(block * BLOCK, 0)));
    drop(raw);
    let backing = Some((base.clone(), Format::Raw));
    create_image(&top, &NewImage { format: Format::Qcow2, size: None, cluster_bits: 16, backing }).unwrap();
    // Warm: every second cluster is there already.
    let disk = open_image(&top, Format::Qcow2, false, Follow::Beside).unwrap();
    for cluster in (0..blocks / 16).step_by(2) {
        write(&*disk, cluster << 16, &pattern(cluster << 16, 0));
    }
    let steps = blocks / JOBS / 2;
    let known: Vec<Vec<Known>> = thread::scope(|scope| {
        let disk = &*disk;
        let jobs: Vec<_> = (0..JOBS).map(|n| scope.spawn(move || job(disk, n, blocks, steps))).collect();
        jobs.into_iter().map(|job| job.join().unwrap()).collect()
    });
    disk.flush().unwrap();
    drop(disk);
    let disk = open_image(&top, Format::Qcow2, true, Follow::Beside).unwrap();
    for (number, known) in (0..).zip(&known) {
        for (index, known) in (0..).zip(known) {
            expect(&*disk, (index * JOBS + number) * BLOCK, *known);
        }
    }
    drop(disk);
    let report = nelly_disk::check_image(&top, &mut |_, _| {}).unwrap();
    assert!(report.corruptions == 0 && report.leaks == 0, "{report:?}");
    let checked = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&top).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
