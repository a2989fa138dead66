//! Every fuzz target on its seeds, on the inputs that are kept in `fuzz/kept`, and on some thousand
//! mutations of the seeds: the same ones in every run, on the stable compiler. `make fuzz` runs the
//! same targets for long; `FUZZ_FACTOR=n` makes this test so many times as long, where the
//! sanitizer does not run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "a library of its own for the fuzzer")]
mod targets;

use std::path::{Path, PathBuf};

/// A generator that always gives the same numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).expect("48 bits fit on every host of Nelly") % end
    }
}

/// Values that lengths and indexes break at.
const EDGES: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX.cast_unsigned(), u64::MAX];

/// Changes `input` in one to eight places.
fn mutate(random: &mut Random, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    for _ in 0..=random.below(8) {
        if input.is_empty() {
            input.push(0);
        }
        let at = random.below(input.len());
        let len = (1 + random.below(64)).min(input.len() - at);
        match random.below(9) {
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = random.next().to_le_bytes()[0],
            // Headers are small, and at the start.
            2 | 3 => {
                let at = random.below(input.len().min(256));
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let width = (1 << random.below(4)).min(input.len() - at);
                input[at..at + width].copy_from_slice(&edge[..width]);
            }
            4 => {
                let edge = EDGES[random.below(EDGES.len())].wrapping_add(random.next() & 15).to_be_bytes();
                let width = (1 << random.below(4)).min(input.len() - at);
                input[at..at + width].copy_from_slice(&edge[8 - width..]);
            }
            5 => input.truncate(at),
            6 => {
                let piece = input[at..at + len].to_vec();
                input.splice(at..at, piece);
            }
            7 => drop(input.drain(at..at + len)),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                if !other.is_empty() {
                    let from = random.below(other.len());
                    let len = len.min(other.len() - from);
                    let end = (at + len).min(input.len());
                    input.splice(at..end, other[from..from + len].iter().copied());
                }
            }
        }
    }
    input.truncate(1 << 20);
}

/// A file of the fuzzer's.
fn of_fuzz(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
}

fn corpus(name: &str) {
    let target = targets::TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    let started = std::time::Instant::now();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let kept = std::fs::read(of_fuzz("kept").join(name)).expect("fuzz/keep has written it");
    assert!(kept.len() <= targets::kept::MOST);
    let kept = targets::kept::unpacked(&kept).unwrap();
    let count = kept.len();
    let inputs = seeds.iter().cloned().chain(kept).map(|input| (input, false));
    let factor = std::env::var("FUZZ_FACTOR").map_or(1, |factor| factor.parse().expect("a whole number"));
    let mutated =
        (0..target.rounds * factor).map(|round| (seeds[round as usize % seeds.len()].clone(), true));
    for (mut input, change) in inputs.chain(mutated) {
        if change {
            mutate(&mut random, &mut input, &seeds);
        }
        if let Err(panic) = std::panic::catch_unwind(|| (target.run)(&input)) {
            let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
            std::fs::write(&file, &input).unwrap();
            eprintln!("{name} failed on {} bytes, kept as {}", input.len(), file.display());
            std::panic::resume_unwind(panic);
        }
    }
    println!(
        "{name}: {} seeds, {count} kept inputs and {} mutations in {:?}",
        seeds.len(),
        target.rounds * factor,
        started.elapsed()
    );
}

#[test]
fn agent() {
    corpus("agent");
}

#[test]
fn cloud() {
    corpus("cloud");
}

#[test]
fn kernel() {
    corpus("kernel");
}

#[test]
fn layers() {
    corpus("layers");
}

#[test]
fn mmio() {
    corpus("mmio");
}

#[test]
fn net() {
    corpus("net");
}

#[test]
fn qcow2() {
    corpus("qcow2");
}

#[test]
fn queue() {
    corpus("queue");
}

#[test]
fn share() {
    corpus("share");
}

#[test]
fn state() {
    corpus("state");
}

#[test]
fn stream() {
    corpus("stream");
}

#[test]
fn switch() {
    corpus("switch");
}

#[test]
fn usernet() {
    corpus("usernet");
}

#[test]
fn balloon() {
    corpus("balloon");
}

#[test]
fn blk() {
    corpus("blk");
}

#[test]
fn console() {
    corpus("console");
}

#[test]
fn fs() {
    corpus("fs");
}

#[test]
fn mem() {
    corpus("mem");
}

#[test]
fn archive() {
    corpus("archive");
}

#[test]
fn arm64() {
    corpus("arm64");
}

#[test]
fn config() {
    corpus("config");
}

#[test]
fn erofs() {
    corpus("erofs");
}

#[test]
fn manifests() {
    corpus("manifests");
}

#[test]
fn registry() {
    corpus("registry");
}

#[test]
fn requests() {
    corpus("requests");
}

#[test]
fn tables() {
    corpus("tables");
}

#[test]
fn words() {
    corpus("words");
}

#[test]
fn vsock() {
    corpus("vsock");
}

/// A seed that is refused at once tests nothing behind the first check.
#[test]
fn seeds_are_sound_and_every_target_has_its_test() {
    let names: Vec<_> = targets::TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(
        names,
        [
            "agent",
            "archive",
            "arm64",
            "balloon",
            "blk",
            "cloud",
            "config",
            "console",
            "erofs",
            "fs",
            "kernel",
            "layers",
            "manifests",
            "mem",
            "mmio",
            "net",
            "qcow2",
            "queue",
            "registry",
            "requests",
            "share",
            "state",
            "stream",
            "switch",
            "tables",
            "usernet",
            "vsock",
            "words"
        ]
    );
    assert!(targets::layers::seeds().iter().all(|seed| nelly_image::fuzz::layers(seed)));
    assert!(targets::cloud::seeds().iter().all(|seed| targets::cloud::accepts(seed)));
    assert!(targets::kernel::seeds().iter().all(|seed| targets::kernel::accepts(seed)));
    assert!(targets::qcow2::seeds().iter().all(|seed| targets::qcow2::accepts(seed)));
    let requests: Vec<_> =
        targets::share::seeds().iter().map(|seed| targets::share::successes(seed)).collect();
    assert!(requests.iter().zip([14, 9, 10, 6]).all(|(found, least)| *found >= least), "{requests:?}");
    // Without indirect tables negotiated, the second chain breaks the queue.
    let chains: Vec<_> = targets::queue::seeds().iter().map(|seed| targets::queue::chains(seed)).collect();
    assert_eq!(chains, [1, 2, 2]);
    assert!(targets::state::seeds().iter().all(|seed| targets::state::restores(seed)));
    let frames: Vec<_> = targets::net::seeds().iter().map(|seed| targets::net::frames(seed)).collect();
    assert_eq!(frames, [4, 2, 3]);
    assert_eq!(
        counts(targets::mmio::seeds(), targets::mmio::interrupts),
        [false, true, true, true, true, true, true, true, true]
    );
    assert_eq!(counts(targets::balloon::seeds(), targets::balloon::given), [7, 2, 0]);
    assert_eq!(counts(targets::blk::seeds(), targets::blk::served), [16, 5, 8]);
    assert_eq!(
        counts(targets::console::seeds(), targets::console::passed),
        [(900, 200), (262_128, 200), (0, 0)]
    );
    assert_eq!(counts(targets::fs::seeds(), targets::fs::answers), [4, 4, 2, 1, 1]);
    assert_eq!(counts(targets::mem::seeds(), targets::mem::acknowledged), [8, 1, 0]);
    assert_eq!(counts(targets::erofs::seeds(), targets::erofs::files), [7, 9, 50]);
    let described = counts(targets::tables::seeds(), targets::tables::described);
    assert_eq!(described, [Some(3), Some(40), Some(60), Some(9), Some(0)]);
    // The third archive wants to leave its directory.
    assert_eq!(counts(targets::archive::seeds(), targets::archive::unpacks), [true, true, false, true, true]);
    // The last answer is a refusal.
    assert_eq!(counts(targets::registry::seeds(), targets::registry::pulls), [true, true, true, true, false]);
    assert!(targets::arm64::seeds().iter().all(|seed| targets::arm64::accepts(seed)));
    assert!(targets::config::seeds().iter().all(|seed| targets::config::accepts(seed)));
    // The last one's file is a link in its archive.
    let packed = targets::stream::seeds();
    let (link, sound) = packed.split_last().unwrap();
    assert!(!targets::stream::accepts(link) && sound.iter().all(|seed| targets::stream::accepts(seed)));
    assert!(targets::manifests::seeds().iter().all(|seed| targets::manifests::accepts(seed)));
    assert!(targets::requests::seeds().iter().all(|seed| targets::requests::accepts(seed)));
    for (number, seed) in targets::words::seeds().iter().enumerate() {
        assert!(targets::words::accepts(seed), "sentence {number}");
    }
}

/// What becomes of each seed.
fn counts<T>(seeds: Vec<Vec<u8>>, of: fn(&[u8]) -> T) -> Vec<T> {
    seeds.iter().map(|seed| of(seed)).collect()
}

#[test]
fn the_table_is_what_was_written_down() {
    let read = |name: &str| std::fs::read_to_string(of_fuzz(name)).unwrap();
    let table = targets::report::table(&read("figures.tsv"), &read("findings.tsv")).unwrap();
    let document = read("../docs/fuzzing.md");
    let again = targets::report::with_table(&document, &table).expect("a place for the table");
    assert!(again == document, "docs/fuzzing.md is not what `fuzz/run --record` writes");
}

#[test]
fn inputs_that_are_kept_come_out_as_they_went_in() {
    use targets::kept::{MOST, packed, unpacked};
    let inputs = vec![vec![], vec![1], vec![1, 2], vec![7; MOST], vec![2]];
    assert_eq!(unpacked(&packed(inputs)).unwrap(), [vec![], vec![1], vec![2], vec![1, 2]], "as many as fit");
    for cut in [&[1][..], &[1, 0, 0, 0], &[255, 255, 255, 255, 1]] {
        assert!(unpacked(cut).is_err(), "{cut:?}");
    }
}
