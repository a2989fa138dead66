//! Faults that were there once: lost writes, a search without an end, clusters that are not
//! counted.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use super::*;
use crate::buffer::{ReadBuffer, WriteBuffer};
use crate::store::Store;

type Then = Box<dyn FnOnce() + Send>;

/// A file that does something after it has said its length.
struct Pausing {
    file: Arc<Recorder>,
    then: Arc<Mutex<Option<Then>>>,
}

impl Store for Pausing {
    fn len(&self) -> io::Result<u64> {
        let bytes = self.file.len();
        let then = self.then.lock().unwrap().take();
        if let Some(then) = then {
            then();
        }
        bytes
    }
    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        self.file.read_into(into, range, offset)
    }
    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        self.file.write_from(from, range, offset)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch_hole(offset, len)
    }
}

#[test]
fn a_flush_cuts_off_nothing_that_another_queue_writes_meanwhile() {
    let file = new_image(&CreateOptions::new(8 << 20));
    let then = Arc::new(Mutex::new(None));
    let store = Pausing { file: Arc::clone(&file), then: Arc::clone(&then) };
    let disk = Qcow2::open(Box::new(store), None, false).unwrap();
    // The file ends within this cluster.
    write(&disk, 0, &[1; 4096]).unwrap();
    let (begin, begun) = mpsc::channel::<()>();
    let (end, ended) = mpsc::channel();
    *then.lock().unwrap() = Some(Box::new(move || {
        begin.send(()).unwrap();
        // The other may have to wait for this flush.
        let _ = ended.recv_timeout(Duration::from_millis(200));
    }));
    let other = &disk;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            begun.recv().unwrap();
            write(other, 1 << 20, &[2; 65536]).unwrap();
            let _ = end.send(());
        });
        disk.flush().unwrap();
    });
    disk.flush().unwrap();
    let found = contents(&disk);
    assert!(found[1 << 20..(1 << 20) + 65536].iter().all(|byte| *byte == 2), "what was written is there");
    drop(disk);
    judge_clean(&file.bytes());
}

#[test]
fn a_first_level_table_longer_than_a_block_counts_finds_room() {
    for gibibytes in [1, 4, 64] {
        let file = new_image(&CreateOptions { size: gibibytes << 30, cluster_bits: 9, backing: None });
        judge_clean(&file.bytes());
        let disk = open(&file, None);
        write(&disk, (gibibytes << 30) - 4096, &[5; 4096]).unwrap();
        drop(disk);
        judge_clean(&file.bytes());
    }
}

#[test]
fn what_an_entry_calls_its_own_and_is_counted_as_free_is_not_written() {
    let file = new_image(&CreateOptions::new(8 << 20));
    let disk = open(&file, None);
    write(&disk, 0, &[1; 65536]).unwrap();
    drop(disk);
    let mut bytes = file.bytes();
    // The header, the table, its block, the first-level table; then the data and its table.
    let counts = 2 << 16;
    let host = [4, 5].into_iter().find(|cluster| bytes[cluster << 16] == 1).unwrap();
    assert_eq!(bytes[counts + 2 * host + 1], 1);
    bytes[counts + 2 * host + 1] = 0;
    let file = Arc::new(Recorder::new(bytes.clone()));
    let disk = open(&file, None);
    write(&disk, 512, &[2; 512]).unwrap();
    disk.flush().unwrap();
    let mut expected = [1; 65536];
    expected[512..1024].fill(2);
    assert!(contents(&disk).starts_with(&expected));
    drop(disk);
    judge_clean(&file.bytes());
}

/// A file of which one read fails.
struct Failing {
    file: Arc<Recorder>,
    /// Reads until then.
    left: Arc<Mutex<Option<u32>>>,
}

impl Store for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        let mut left = self.left.lock().unwrap();
        if let Some(count) = &mut *left {
            if *count == 0 {
                *left = None;
                return Err(io::Error::other("a scratch"));
            }
            *count -= 1;
        }
        drop(left);
        self.file.read_into(into, range, offset)
    }
    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        self.file.write_from(from, range, offset)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch_hole(offset, len)
    }
}

#[test]
fn a_read_that_fails_anywhere_leaves_an_image_that_goes_on() {
    // Clusters of 512 bytes: each block counts 256, so new blocks and tables are made all the time.
    for at in 0..24 {
        let file = new_image(&CreateOptions { size: 4 << 20, cluster_bits: 9, backing: None });
        let left = Arc::new(Mutex::new(None));
        let store = Failing { file: Arc::clone(&file), left: Arc::clone(&left) };
        let disk = Qcow2::open(Box::new(store), None, false).unwrap();
        let mut failed = 0;
        for round in 0..40_u64 {
            if round % 4 == 0 {
                *left.lock().unwrap() = Some(at);
            }
            let offset = (round * 100) << 10;
            while let Err(error) = write(&disk, offset, &[round as u8 + 1; 60 << 10]) {
                assert_eq!(error.to_string(), "a scratch", "{at} {round}");
                failed += 1;
            }
            if round % 7 == 0 {
                disk.flush().unwrap_or_else(|_| disk.flush().unwrap());
            }
        }
        *left.lock().unwrap() = None;
        assert!(failed > 0 || at > 8, "{at}: nothing failed");
        disk.flush().unwrap();
        for round in 0..40_u64 {
            let mut found = vec![0; 60 << 10];
            disk.read_exact_at(&mut found, (round * 100) << 10).unwrap();
            assert!(found.iter().all(|byte| *byte == round as u8 + 1), "{at} {round}");
        }
        drop(disk);
        let (code, said) = judged(&file.bytes());
        assert!(matches!(code, Some(0 | 3)), "{at}: leaks at worst: {said}");
    }
}

#[test]
fn zeroes_on_a_part_of_what_is_zero_take_no_space() {
    let file = new_image(&CreateOptions::new(8 << 20));
    let disk = open(&file, None);
    disk.write_zeroes(512, 1024, false).unwrap();
    disk.write_zeroes((1 << 20) - 512, (1 << 20) + 1024, true).unwrap();
    disk.flush().unwrap();
    assert_eq!(disk.extent(0, 8 << 20).unwrap().kind, crate::traits::ExtentKind::Zero);
    drop(disk);
    assert!(file.bytes().len() <= 6 << 16, "{}", file.bytes().len());
    judge_clean(&file.bytes());
}

/// A file on a host that has room for so many bytes.
struct Full {
    file: Arc<Recorder>,
    room: Arc<Mutex<u64>>,
}

impl Store for Full {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_into(&self, into: &mut dyn ReadBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        self.file.read_into(into, range, offset)
    }
    fn write_from(&self, from: &dyn WriteBuffer, range: Range<usize>, offset: u64) -> io::Result<usize> {
        // As a file system does, it takes what there is room for.
        let room = self.room.lock().unwrap().saturating_sub(offset) as usize;
        if room == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_from(from, range.start..range.end.min(range.start + room), offset)
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch_hole(offset, len)
    }
}

#[test]
fn a_full_host_costs_nothing_that_was_flushed_and_writing_goes_on_when_there_is_room() {
    for bits in [9, 12, 16] {
        let file = new_image(&CreateOptions { size: 4 << 20, cluster_bits: bits, backing: None });
        let room = Arc::new(Mutex::new(file.len().unwrap() + (1 << 20)));
        let store = Full { file: Arc::clone(&file), room: Arc::clone(&room) };
        let disk = Qcow2::open(Box::new(store), None, false).unwrap();
        let (mut refused, mut at) = (0, 0);
        while at < 4 << 20 {
            // Every fourth block is left out, so that tables are made in between.
            match write(&disk, at, &[(at >> 12) as u8 | 1; 3072]) {
                Ok(()) => at += 4096,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{bits}");
                    refused += 1;
                    // What was written before is made durable in spite of it, and is there.
                    disk.flush().unwrap();
                    let copy = Qcow2::open(Box::new(Recorder::new(file.bytes())), None, true).unwrap();
                    let found = contents(&copy);
                    for done in (0..at as usize).step_by(4096) {
                        let expected = (done >> 12) as u8 | 1;
                        assert!(
                            found[done..done + 3072].iter().all(|byte| *byte == expected),
                            "{bits} {done}"
                        );
                    }
                    *room.lock().unwrap() += 700_000;
                }
            }
        }
        disk.flush().unwrap();
        drop(disk);
        assert!(refused > 2, "{bits}: {refused}");
        let (code, said) = judged(&file.bytes());
        assert!(matches!(code, Some(0 | 3)), "{bits}: leaks at worst: {said}");
    }
}
