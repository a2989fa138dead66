//! One fuzz target per trust boundary. Each is a function of bytes that ends, panics only for a
//! bug, and leaves nothing behind.
//!
//! libFuzzer runs them for long (`make fuzz`); `tests/tests/fuzz_corpus.rs` includes this file and
//! runs each on its seeds and on a few thousand mutations of them, by a generator that always does
//! the same.

pub mod agent;
pub mod cloud;
pub mod kernel;
pub mod layers;
pub mod mmio;
pub mod net;
pub mod qcow2;
pub mod queue;
pub mod share;
pub mod state;
pub mod switch;
pub mod usernet;
pub mod vsock;

/// A target.
pub struct Target {
    /// Its name: the module, the program in `targets`, the directory of its corpus.
    pub name: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
    /// Sound input to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Mutations that the bounded corpus runs: a second's worth, about.
    pub rounds: u32,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "agent", run: agent::run, seeds: agent::seeds, rounds: 1_000 },
    Target { name: "cloud", run: cloud::run, seeds: cloud::seeds, rounds: 4_000 },
    Target { name: "kernel", run: kernel::run, seeds: kernel::seeds, rounds: 3_000 },
    Target { name: "layers", run: layers::run, seeds: layers::seeds, rounds: 4_000 },
    Target { name: "mmio", run: mmio::run, seeds: mmio::seeds, rounds: 4_000 },
    Target { name: "net", run: net::run, seeds: net::seeds, rounds: 200 },
    Target { name: "qcow2", run: qcow2::run, seeds: qcow2::seeds, rounds: 3_000 },
    Target { name: "queue", run: queue::run, seeds: queue::seeds, rounds: 4_000 },
    Target { name: "share", run: share::run, seeds: share::seeds, rounds: 2_000 },
    Target { name: "state", run: state::run, seeds: state::seeds, rounds: 8_000 },
    Target { name: "switch", run: switch::run, seeds: switch::seeds, rounds: 4_000 },
    Target { name: "usernet", run: usernet::run, seeds: usernet::seeds, rounds: 4_000 },
    Target { name: "vsock", run: vsock::run, seeds: vsock::seeds, rounds: 1_000 },
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
