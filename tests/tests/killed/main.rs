//! kill -9 at random moments of what needs no Linux in the guest: commands, keepers, monitors and
//! network processes of machines of a few instructions, commands that add images, and a program
//! that holds machines through the library. Nothing stays, nothing that was flushed is lost, and
//! nothing half-written is believed. What needs Linux, the agent among it, is killed by
//! `random_kills` of the end-to-end tests.
//!
//! `NELLY_NATIVE_KILLS` is the number of moments of all tests here together, and
//! `NELLY_KILLS_SEED` repeats a sequence.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod embedder;
mod images;
mod machines;
mod processes;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nelly_tests::random::number;

/// Moments of all tests in `make test`; `make soak` has twenty times as many.
const MOMENTS: u64 = 45;

/// What of all moments a test has: so many of nine.
fn moments(of_nine: u64) -> u64 {
    number("NELLY_NATIVE_KILLS").unwrap_or(MOMENTS) * of_nine / 9
}

/// How long what ends with another process may take to do so.
const SETTLES: Duration = Duration::from_secs(20);

/// Longest time for one command.
const LIMIT: Duration = Duration::from_secs(60);

/// Longest time for one test.
const TEST_LIMIT: Duration = Duration::from_secs(3000);

/// Held by each test: every process that this one is left with is of the test that runs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let held = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    processes::adopt_orphans();
    held
}
