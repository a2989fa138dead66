//! How a process in a sandbox ended, and the corresponding exit code.

use nelly_vmm::machine::EndReason;
use serde::Serialize;

/// `nelly` itself failed.
pub const FAILED: u8 = EndReason::FAILED;
/// The program cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const NOT_FOUND: u8 = 127;
/// The `--timeout` expired.
pub const TIMED_OUT: u8 = EndReason::TIMED_OUT;

/// The table of `nelly help exit-codes`. README has the same.
#[must_use]
pub fn table() -> [(String, &'static str); 10] {
    let one = |code: u8| code.to_string();
    [
        ("0-255".into(), "run, exec, attach: the command's own exit code"),
        (one(EndReason::PANICKED), "boot, isolated, host: the guest's kernel panicked"),
        (one(EndReason::TRIPLE_FAULTED), "boot, isolated, host: the guest caused a triple fault"),
        (one(TIMED_OUT), "the --timeout expired"),
        (
            one(FAILED),
            "Nelly itself failed, run, exec, attach, boot, isolated or host was used wrongly, or the output of a successful program could not be written",
        ),
        (one(NOT_EXECUTABLE), "run, exec: the program cannot be executed"),
        (one(NOT_FOUND), "run, exec: the program was not found"),
        ("128+n".into(), "terminated by signal n"),
        ("129".into(), "for example: the terminal hung up (SIGHUP)"),
        ("141".into(), "for example: the reader of the output has gone (SIGPIPE)"),
    ]
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Exit {
    /// Its exit code, or 128 + the signal number, or one of the constants in this module.
    pub code: u8,
    /// The reason: `exited`, `signaled`, `oom_killed`, `timeout`, `killed` (the machine was killed
    /// because of a signal), `hung_up` (its terminal hung up), `output_lost` (its output could not
    /// be written), `not_found`, `not_executable`, `failed`.
    pub reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_same_codes() {
        let readme = include_str!("../../../../README.md");
        let rows = readme.lines().skip_while(|line| !line.starts_with("| exit code |")).skip(2);
        let rows: Vec<_> = rows.take_while(|line| line.starts_with('|')).collect();
        for (code, _) in table() {
            assert!(rows.iter().any(|row| row.contains(&code)), "{code}");
        }
        let codes = [EndReason::PANICKED, EndReason::TRIPLE_FAULTED, TIMED_OUT, FAILED];
        assert_eq!(codes, [121, 122, 124, 125]);
    }
}
