//! One fuzz target per trust boundary. Each is a function of bytes that ends, panics only for a
//! bug, and leaves nothing behind.
//!
//! libFuzzer runs them for long (`make fuzz`); `tests/tests/fuzz_corpus.rs` includes this file and
//! runs each on its seeds, on what is kept of the fuzzer's corpus, and on a few thousand mutations
//! of the seeds, by a generator that always does the same.

pub mod agent;
pub mod archive;
pub mod arm64;
pub mod balloon;
pub mod blk;
pub mod cloud;
pub mod config;
pub mod console;
mod devices;
pub mod erofs;
pub mod fs;
pub mod kept;
pub mod kernel;
pub mod layers;
pub mod manifests;
pub mod mem;
pub mod mmio;
pub mod net;
mod place;
pub mod qcow2;
pub mod queue;
pub mod registry;
pub mod report;
pub mod requests;
pub mod share;
pub mod state;
pub mod stream;
pub mod switch;
pub mod tables;
mod tarball;
pub mod usernet;
pub mod vsock;
pub mod words;

/// A target.
pub struct Target {
    /// Its name: the module, the program in `targets`, the directory of its corpus.
    pub name: &'static str,
    /// What is attacked, in a few words.
    pub attacks: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Sound input to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutations that the bounded corpus runs: a second's worth, about.
    pub rounds: u32,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "agent",
        attacks: "frames of the guest's agent, read by the host",
        run: agent::run,
        seeds: agent::seeds,
        rounds: 1_000,
    },
    Target {
        name: "archive",
        attacks: "tar streams of a copy, both directions, and what they write",
        run: archive::run,
        seeds: archive::seeds,
        rounds: 1_000,
    },
    Target {
        name: "arm64",
        attacks: "kernel and initrd files for 64-bit Arm",
        run: arm64::run,
        seeds: arm64::seeds,
        rounds: 3_000,
    },
    Target {
        name: "balloon",
        attacks: "reports of free memory, against a list of pages",
        run: balloon::run,
        seeds: balloon::seeds,
        rounds: 300,
    },
    Target {
        name: "blk",
        attacks: "requests to a disk, against a list of bytes",
        run: blk::run,
        seeds: blk::seeds,
        rounds: 300,
    },
    Target {
        name: "cloud",
        attacks: "partition tables (MBR, GPT), ext4 and FAT, boot loaders' configurations",
        run: cloud::run,
        seeds: cloud::seeds,
        rounds: 1_500,
    },
    Target {
        name: "config",
        attacks: "a machine's and a network's configuration as JSON",
        run: config::run,
        seeds: config::seeds,
        rounds: 3_000,
    },
    Target {
        name: "console",
        attacks: "a console's queues and its stream, pauses included",
        run: console::run,
        seeds: console::seeds,
        rounds: 150,
    },
    Target {
        name: "erofs",
        attacks: "an image's file system, read back by a reader of its own",
        run: erofs::run,
        seeds: erofs::seeds,
        rounds: 50,
    },
    Target {
        name: "fs",
        attacks: "the file system device's queues, locks and pauses",
        run: fs::run,
        seeds: fs::seeds,
        rounds: 300,
    },
    Target {
        name: "kernel",
        attacks: "kernel and initrd files for x86-64",
        run: kernel::run,
        seeds: kernel::seeds,
        rounds: 3_000,
    },
    Target {
        name: "layers",
        attacks: "tar streams of an image's layers",
        run: layers::run,
        seeds: layers::seeds,
        rounds: 4_000,
    },
    Target {
        name: "manifests",
        attacks: "indexes, manifests and configurations of images, layouts and docker archives",
        run: manifests::run,
        seeds: manifests::seeds,
        rounds: 500,
    },
    Target {
        name: "mem",
        attacks: "requests to the memory device, against a list of blocks",
        run: mem::run,
        seeds: mem::seeds,
        rounds: 800,
    },
    Target {
        name: "mmio",
        attacks: "register accesses and memory writes before every device",
        run: mmio::run,
        seeds: mmio::seeds,
        rounds: 4_000,
    },
    Target {
        name: "net",
        attacks: "frames and commands of a guest, frames of its peer",
        run: net::run,
        seeds: net::seeds,
        rounds: 200,
    },
    Target { name: "qcow2", attacks: "disk images", run: qcow2::run, seeds: qcow2::seeds, rounds: 3_000 },
    Target {
        name: "queue",
        attacks: "rings and descriptors in guest memory",
        run: queue::run,
        seeds: queue::seeds,
        rounds: 4_000,
    },
    Target {
        name: "registry",
        attacks: "answers of a registry and its token server over HTTP",
        run: registry::run,
        seeds: registry::seeds,
        rounds: 60,
    },
    Target {
        name: "requests",
        attacks: "messages to the guest's agent, and OCI specifications in them",
        run: requests::run,
        seeds: requests::seeds,
        rounds: 3_000,
    },
    Target {
        name: "share",
        attacks: "a guest's requests to a shared directory",
        run: share::run,
        seeds: share::seeds,
        rounds: 2_000,
    },
    Target {
        name: "state",
        attacks: "the saved state of every device",
        run: state::run,
        seeds: state::seeds,
        rounds: 8_000,
    },
    Target {
        name: "stream",
        attacks: "packed files that were fetched: gzip, xz, zstd, bzip2, zip and tar",
        run: stream::run,
        seeds: stream::seeds,
        rounds: 2_000,
    },
    Target {
        name: "switch",
        attacks: "frames of machines on a network",
        run: switch::run,
        seeds: switch::seeds,
        rounds: 4_000,
    },
    Target {
        name: "tables",
        attacks: "MP table, ACPI and device tree, read back",
        run: tables::run,
        seeds: tables::seeds,
        rounds: 500,
    },
    Target {
        name: "usernet",
        attacks: "frames of a guest, and what sockets and resolvers say",
        run: usernet::run,
        seeds: usernet::seeds,
        rounds: 4_000,
    },
    Target {
        name: "vsock",
        attacks: "packets of a guest, and host sockets",
        run: vsock::run,
        seeds: vsock::seeds,
        rounds: 1_000,
    },
    Target {
        name: "words",
        attacks: "image references, volumes, ports, rules, profiles and other words",
        run: words::run,
        seeds: words::seeds,
        rounds: 8_000,
    },
];

/// Takes bytes off the front of an input; zeros when it has ended.
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    /// The next `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        bytes[..len].copy_from_slice(&self.0[..len]);
        self.0 = &self.0[len..];
        bytes
    }

    /// Whether all was taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Text of which a byte below 0x80 stands for itself, and any other for one of `words`: bytes alone
/// would take long to find the words of a language.
pub(crate) fn text(data: &[u8], words: &[&str]) -> String {
    let mut text = String::new();
    for &byte in data {
        match byte.checked_sub(0x80) {
            None => text.push(char::from(byte)),
            Some(number) => text.push_str(words[usize::from(number) % words.len()]),
        }
    }
    text
}

/// What [`text`] reads as `text`: the longest of `words` wherever one stands.
pub(crate) fn spelt(text: &str, words: &[&str]) -> Vec<u8> {
    assert!(words.len() <= 128, "each has a byte");
    let mut bytes = Vec::new();
    let mut left = text;
    while let Some(first) = left.chars().next() {
        let word = (0x80..)
            .zip(words)
            .filter(|(_, word)| left.starts_with(**word))
            .max_by_key(|(_, word)| word.len());
        let len = match word {
            Some((byte, word)) => {
                bytes.push(byte);
                word.len()
            }
            None => {
                bytes.push(u8::try_from(first).expect("a seed's letters are ASCII"));
                1
            }
        };
        left = &left[len..];
    }
    bytes
}
