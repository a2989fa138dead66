//! Random requests against plain bytes.

use super::*;
use crate::testing::Dice;

/// A disk beside what it must hold.
pub(super) struct Modelled {
    pub(super) store: Arc<Recorder>,
    pub(super) base: Option<Vec<u8>>,
    pub(super) disk: Option<Qcow2>,
    pub(super) model: Vec<u8>,
    dice: Dice,
}

/// Bytes of all disks here at first.
pub(super) const SIZE: u64 = 256 << 10;

impl Modelled {
    pub(super) fn new(seed: u64, cluster_bits: u32, over: bool) -> Self {
        let mut dice = Dice(seed * 2 + 1);
        dice.roll(2);
        // The base is shorter or longer than the disk.
        let base = over.then(|| {
            let sectors = dice.roll(2 * SIZE / 512);
            (0..sectors * 512).map(|at| (at / 512 % 251) as u8 + 1).collect::<Vec<u8>>()
        });
        let store = new_image(&options(SIZE, cluster_bits, over));
        let disk = Some(open(&store, base.as_deref()));
        let mut model = base.clone().unwrap_or_default();
        model.resize(SIZE as usize, 0);
        Self { store, base, disk, model, dice }
    }

    pub(super) fn disk(&self) -> &Qcow2 {
        self.disk.as_ref().unwrap()
    }

    pub(super) fn reopen(&mut self) {
        self.disk = None;
        self.disk = Some(open(&self.store, self.base.as_deref()));
    }

    fn range(&mut self) -> (u64, u64) {
        let sectors = self.model.len() as u64 / 512;
        let start = self.dice.roll(sectors);
        let most = if self.dice.roll(4) == 0 { sectors } else { 40 };
        let len = 1 + self.dice.roll(most.min(sectors - start));
        (start * 512, len * 512)
    }

    /// One request, the same to both.
    pub(super) fn step(&mut self) {
        let (offset, len) = self.range();
        let (start, end) = (offset as usize, (offset + len) as usize);
        match self.dice.roll(12) {
            0..=4 => {
                let value = self.dice.roll(255) as u8 + 1;
                let bytes: Vec<u8> = (0..len).map(|at| (at / 512) as u8 ^ value).collect();
                write(self.disk(), offset, &bytes).unwrap();
                self.model[start..end].copy_from_slice(&bytes);
            }
            5..=6 => {
                let unmap = self.dice.roll(2) == 0;
                self.disk().write_zeroes(offset, len, unmap).unwrap();
                self.model[start..end].fill(0);
            }
            7 => {
                self.disk().discard(offset, len).unwrap();
                // Whole clusters are zeroes, others stay.
                let cluster = self.disk().geometry.cluster() as usize;
                let whole_end = if end == self.model.len() { end } else { end / cluster * cluster };
                let whole_start = start.next_multiple_of(cluster);
                if whole_start < whole_end {
                    self.model[whole_start..whole_end].fill(0);
                }
            }
            8 => {
                if self.model.len() < 4 * SIZE as usize {
                    let size = self.model.len() as u64 + 512 * self.dice.roll(100);
                    self.disk().grow(size).unwrap();
                    self.model.resize(size as usize, 0);
                }
            }
            9 => self.disk().flush().unwrap(),
            _ => {
                let mut bytes = vec![0xee; len as usize];
                self.disk().read_exact_at(&mut bytes, offset).unwrap();
                assert!(bytes == self.model[start..end], "{offset} {len}");
            }
        }
    }
}

#[test]
fn random_requests_are_as_on_plain_bytes_and_qemu_agrees() {
    for seed in 0..12 {
        let bits = [9, 12, 16, 10, 14, 21][seed as usize % 6];
        let mut modelled = Modelled::new(seed, bits, seed % 2 == 1);
        for round in 0..6 {
            for _ in 0..40 {
                modelled.step();
            }
            assert!(contents(modelled.disk()) == modelled.model, "seed {seed} round {round}");
            modelled.reopen();
            assert!(contents(modelled.disk()) == modelled.model, "seed {seed} round {round}, opened again");
        }
        modelled.disk = None;
        judge(&modelled, seed);
    }
}

/// qemu-img finds no error, and the same bytes.
fn judge(modelled: &Modelled, seed: u64) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("disk.qcow2"), modelled.store.bytes()).unwrap();
    std::fs::write(path("model.raw"), &modelled.model).unwrap();
    std::fs::write(path("base.raw"), modelled.base.as_deref().unwrap_or_default()).unwrap();
    let (said, good) = qemu_img(&["check", "-f", "qcow2", word(&path("disk.qcow2"))]);
    assert!(good, "seed {seed}: {said}");
    let (disk, model) = (path("disk.qcow2"), path("model.raw"));
    let (said, good) = qemu_img(&["compare", "-f", "qcow2", "-F", "raw", word(&disk), word(&model)]);
    assert!(good, "seed {seed}: {said}");
}

#[test]
fn eight_threads_at_once_lose_nothing() {
    const THREADS: u64 = 8;
    let base: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 251) as u8 + 1).collect();
    let store = new_image(&options(SIZE, 12, true));
    let disk = open(&store, Some(&base));
    // Each has every eighth sector, so that all write to the same clusters.
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let disk = &disk;
            scope.spawn(move || {
                let mut dice = Dice(thread * 1000 + 7);
                let mut model = vec![None; (SIZE / 512 / THREADS) as usize];
                for step in 0..300_u64 {
                    let at = dice.roll(SIZE / 512 / THREADS);
                    let offset = (at * THREADS + thread) * 512;
                    if dice.roll(3) == 0 {
                        disk.write_zeroes(offset, 512, step % 2 == 0).unwrap();
                        model[at as usize] = Some(0);
                    } else {
                        let value = (step % 255) as u8 + 1;
                        write(disk, offset, &[value; 512]).unwrap();
                        model[at as usize] = Some(value);
                    }
                    if step % 50 == 0 {
                        disk.flush().unwrap();
                    }
                    let at = dice.roll(SIZE / 512 / THREADS);
                    let offset = (at * THREADS + thread) * 512;
                    let mut bytes = [0; 512];
                    disk.read_exact_at(&mut bytes, offset).unwrap();
                    let wanted = model[at as usize].unwrap_or((offset / 512 % 251) as u8 + 1);
                    assert!(bytes == [wanted; 512], "{thread} {offset}");
                }
            });
        }
    });
    drop(disk);
    judge_clean(&store.bytes());
}

#[test]
fn discards_race_with_writes_of_other_clusters() {
    let store = new_image(&options(SIZE, 12, false));
    let disk = open(&store, None);
    let clusters = SIZE / 4096;
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let disk = &disk;
            scope.spawn(move || {
                let mut dice = Dice(thread * 77 + 5);
                let mut model = vec![0; (clusters / 8) as usize];
                for step in 0..400_u64 {
                    let at = dice.roll(clusters / 8);
                    let offset = (at * 8 + thread) * 4096;
                    match dice.roll(4) {
                        0 => {
                            disk.discard(offset, 4096).unwrap();
                            model[at as usize] = 0;
                        }
                        1 => disk.flush().unwrap(),
                        _ => {
                            model[at as usize] = (step % 255) as u8 + 1;
                            write(disk, offset, &[model[at as usize]; 4096]).unwrap();
                        }
                    }
                    let at = dice.roll(clusters / 8);
                    let mut bytes = [0; 4096];
                    disk.read_exact_at(&mut bytes, (at * 8 + thread) * 4096).unwrap();
                    assert!(bytes == [model[at as usize]; 4096], "{thread} {at}");
                }
            });
        }
    });
    drop(disk);
    judge_clean(&store.bytes());
}

#[test]
fn the_refcount_table_and_the_first_level_table_grow() {
    let store = new_image(&options(512, 9, false));
    let disk = open(&store, None);
    let size = 12 << 20;
    disk.grow(size).unwrap();
    let bytes: Vec<u8> = (0..size).map(|at| (at / 512 % 251) as u8 + 1).collect();
    write(&disk, 0, &bytes).unwrap();
    disk.grow(2 * size).unwrap();
    write(&disk, size, &bytes).unwrap();
    drop(disk);
    let disk = open(&store, None);
    let header = disk.header();
    assert!(header.refcount_table_clusters > 1 && header.l1_offset > size, "{header:?}");
    assert!(contents(&disk) == [&bytes[..], &bytes[..]].concat());
    drop(disk);
    judge_clean(&store.bytes());
}
