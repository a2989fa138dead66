//! How a process in a sandbox ended, and the exit code that says so.

use serde::Serialize;

/// `nelly` itself failed.
pub const FAILED: u8 = 125;
/// The program cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const NOT_FOUND: u8 = 127;
/// `--timeout` was over.
pub const TIMED_OUT: u8 = 124;

/// The table of `nelly help exit-codes`. README has the same.
pub const TABLE: [(&str, &str); 10] = [
    ("0-255", "run: the container's own exit code"),
    ("121", "boot: the guest's kernel panicked"),
    ("122", "boot: triple fault"),
    ("124", "--timeout was over"),
    (
        "125",
        "nelly itself failed, or output of a program that did not fail could not be written; usage errors of run and boot too",
    ),
    ("126", "run: the program cannot be executed"),
    ("127", "run: no such program"),
    ("128+n", "ended by signal n"),
    ("129", "among them: the terminal hung up"),
    ("141", "among them: nobody reads the output any more (SIGPIPE)"),
];

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Exit {
    /// Its exit code, or 128 + the signal, or one of this module's.
    pub code: u8,
    /// Why, in a word: `exited`, `signaled`, `oom_killed`, `timeout`, `killed` (the machine was ended for a signal), `hung_up` (its
    /// terminal went away), `output_lost` (what it wrote could not be passed on), `not_found`, `not_executable`, `failed`.
    pub reason: &'static str,
}
