//! End to end: the real command, the real monitor, the real kernel, the real agent, real
//! containers. The host half and the guest half of a test stand side by side. Run where a stock
//! kernel runs; KVM absent is a failure.

mod amounts;
mod bad_input;
mod bench;
mod beside_runc;
mod boot;
mod boot_agent;
mod boots;
mod boundary;
mod bulk;
mod disks;
mod faults;
mod files;
mod foreground;
mod health;
mod image_boot;
mod image_store;
mod images;
mod inside;
mod install;
mod keeper;
mod kernel;
mod kills;
mod library;
mod machine;
mod memory;
mod network;
mod network_rules;
mod network_vhost_user;
mod network_world;
mod pause;
mod pulled;
mod random_kills;
mod relay;
mod relay_programs;
mod rights;
mod run;
mod secrets;
mod sessions;
mod shares;
mod shares_programs;
mod snapshot;
mod sockets;
mod storage;
mod switch;
mod terminal;
mod timings;
mod user;
mod volumes;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nelly_tests::{Done, Watchdog, nelly, run};

/// Longest time for one command that boots a machine, under emulation and on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Longest time for one test, far beyond what any needs.
const TEST_LIMIT: Duration = Duration::from_secs(600);

/// A home of its own for each test, and the clock of that test.
struct Home {
    directory: tempfile::TempDir,
    /// Whether `nelly` is run by an ordinary user without capability ([`user::home`]).
    ordinary: bool,
    _clock: Watchdog,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a scratch directory");
        Self { directory, ordinary: false, _clock: Watchdog::new(TEST_LIMIT) }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// `nelly WORDS`, without input.
    #[track_caller]
    fn nelly(&self, words: &[&str]) -> Done {
        self.feed(words, b"")
    }

    /// `nelly WORDS` with `input` on standard input.
    #[track_caller]
    fn feed(&self, words: &[&str], input: &[u8]) -> Done {
        self.run(&mut nelly(self.path(), words), input)
    }

    /// A command, by whoever the home belongs to.
    #[track_caller]
    fn run(&self, command: &mut Command, input: &[u8]) -> Done {
        if self.ordinary {
            let place = tempfile::tempdir().expect("a scratch directory");
            return run(&mut user::without_rights(command, true, place.path()), input, LIMIT);
        }
        run(command, input, LIMIT)
    }

    /// `nelly run -- sh -c SCRIPT` in the built-in image.
    #[track_caller]
    fn sh(&self, script: &str) -> Done {
        self.nelly(&["run", "--rm", "--", "sh", "-c", script])
    }
}
