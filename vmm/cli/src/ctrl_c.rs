//! Ctrl-C on a terminal in raw mode is an ordinary byte for the container, and not a signal. If a
//! user presses it several times and the container outputs nothing in return, the machine is
//! killed.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// This many Ctrl-C in a row kill the machine. The first process of a container often ignores
/// SIGINT.
pub(crate) const KILL_COUNT: usize = 3;

/// The byte of Ctrl-C in raw mode.
const CTRL_C: u8 = 3;

/// How long to wait for output of the container after the last Ctrl-C. The echo of `^C` by its
/// terminal is sufficient.
const ANSWER: Duration = Duration::from_millis(900);

const WHOLE: &str = "nobody panics while counting";

/// Counts Ctrl-C presses since the last output of the container.
#[derive(Debug, Default)]
pub(crate) struct CtrlCCounter {
    /// Number of Ctrl-C in a row, without output since the first of them.
    unanswered: Mutex<usize>,
    came: Condvar,
}

impl CtrlCCounter {
    /// Called for output of the container; resets the counter.
    pub(crate) fn output_seen(&self) {
        *self.unanswered() = 0;
        self.came.notify_all();
    }

    /// Called for input of at least one byte. Whether [`KILL_COUNT`] is reached.
    pub(crate) fn typed(&self, bytes: &[u8]) -> bool {
        let last = bytes.iter().rev().take_while(|byte| **byte == CTRL_C).count();
        let mut unanswered = self.unanswered();
        let before = if last == bytes.len() { *unanswered } else { 0 };
        *unanswered = last.saturating_add(before);
        *unanswered >= KILL_COUNT
    }

    /// Waits for output of the container. Whether there was none in time.
    pub(crate) fn wait_unanswered(&self) -> bool {
        let reached = |unanswered: &mut usize| *unanswered >= KILL_COUNT;
        let waited = self.came.wait_timeout_while(self.unanswered(), ANSWER, reached);
        reached(&mut waited.expect(WHOLE).0)
    }

    fn unanswered(&self) -> MutexGuard<'_, usize> {
        self.unanswered.lock().expect(WHOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ctrl_c_in_a_row_insists() {
        for (typed, presses) in [
            (&[&b"\x03"[..], b"\x03", b"\x03"][..], true),
            (&[b"\x03\x03\x03"], true),
            (&[b"ls\x03", b"\x03\x03"], true),
            (&[b"\x03\x03"], false),
            (&[b"\x03\x03", b"x", b"\x03"], false),
            (&[b"\x03\x03x\x03"], false),
            (&[b"\x03\x03\x03x"], false),
        ] {
            let ctrl_c = CtrlCCounter::default();
            let last = typed.iter().map(|bytes| ctrl_c.typed(bytes)).last();
            assert_eq!(last, Some(presses), "{typed:?}");
        }
    }

    #[test]
    fn who_is_answered_does_not_insist() {
        let ctrl_c = CtrlCCounter::default();
        assert!(!ctrl_c.typed(b"\x03\x03"));
        ctrl_c.output_seen();
        assert!(!ctrl_c.typed(b"\x03"));
        assert!(ctrl_c.typed(b"\x03\x03"));
        // Output that comes during the wait resets the counter.
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| ctrl_c.wait_unanswered());
            ctrl_c.output_seen();
            assert!(!waits.join().unwrap());
        });
        assert!(ctrl_c.typed(b"\x03\x03\x03") && ctrl_c.wait_unanswered());
    }
}
