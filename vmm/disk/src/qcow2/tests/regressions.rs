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
