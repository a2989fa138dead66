//! End to end: the real command, the real monitor, the real kernel, the real agent, real containers. The host half and the guest half
//! of a test stand side by side. Run where a stock kernel runs; KVM absent is a failure.

mod bad_input;
mod boot;
mod bulk;
mod images;
mod kills;
mod machine;
mod pause;
mod run;
mod sockets;
mod terminal;
mod timings;
mod user;

use std::path::Path;
use std::time::Duration;

use nelly_tests::{Done, nelly, run};

/// Longest time for one command that boots a machine, under emulation and on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A home of its own for each test.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a scratch directory"))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// `nelly WORDS`, without input.
    #[track_caller]
    fn nelly(&self, words: &[&str]) -> Done {
        self.feed(words, b"")
    }

    /// `nelly WORDS` with `input` on standard input.
    #[track_caller]
    fn feed(&self, words: &[&str], input: &[u8]) -> Done {
        run(&mut nelly(self.path(), words), input, LIMIT)
    }

    /// `nelly run -- sh -c SCRIPT` in the built-in image.
    #[track_caller]
    fn sh(&self, script: &str) -> Done {
        self.nelly(&["run", "--", "sh", "-c", script])
    }
}
