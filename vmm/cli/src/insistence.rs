//! Ctrl-C on a terminal in raw mode: a byte for the container like any other, and no signal here. A
//! person who types it again and again and sees nothing come back wants the end, and gets it.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// So many Ctrl-C end the machine: the first processes of containers often ignore the signal.
pub(crate) const INSIST: usize = 3;

/// What Ctrl-C is in raw mode.
const CTRL_C: u8 = 3;

/// How long the container may take to show that it is alive, once somebody insists. Its terminal
/// alone shows `^C`, and that is enough.
const ANSWER: Duration = Duration::from_millis(900);

const WHOLE: &str = "nobody panics while counting";

/// What was typed last, and whether anything came back since.
#[derive(Debug, Default)]
pub(crate) struct Insistence {
    /// How many Ctrl-C in a row were typed last, without anything coming back.
    unanswered: Mutex<usize>,
    came: Condvar,
}

impl Insistence {
    /// Something came back from the container.
    pub(crate) fn answered(&self) {
        *self.unanswered() = 0;
        self.came.notify_all();
    }

    /// These bytes were typed, at least one. Whether somebody insists by now.
    pub(crate) fn typed(&self, bytes: &[u8]) -> bool {
        let last = bytes.iter().rev().take_while(|byte| **byte == CTRL_C).count();
        let mut unanswered = self.unanswered();
        let before = if last == bytes.len() { *unanswered } else { 0 };
        *unanswered = last.saturating_add(before);
        *unanswered >= INSIST
    }

    /// Waits until the container answers somebody who insists. Whether it does not.
    pub(crate) fn in_vain(&self) -> bool {
        let insists = |unanswered: &mut usize| *unanswered >= INSIST;
        let waited = self.came.wait_timeout_while(self.unanswered(), ANSWER, insists);
        insists(&mut waited.expect(WHOLE).0)
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
        for (typed, insists) in [
            (&[&b"\x03"[..], b"\x03", b"\x03"][..], true),
            (&[b"\x03\x03\x03"], true),
            (&[b"ls\x03", b"\x03\x03"], true),
            (&[b"\x03\x03"], false),
            (&[b"\x03\x03", b"x", b"\x03"], false),
            (&[b"\x03\x03x\x03"], false),
            (&[b"\x03\x03\x03x"], false),
        ] {
            let insistence = Insistence::default();
            let last = typed.iter().map(|bytes| insistence.typed(bytes)).last();
            assert_eq!(last, Some(insists), "{typed:?}");
        }
    }

    #[test]
    fn who_is_answered_does_not_insist() {
        let insistence = Insistence::default();
        assert!(!insistence.typed(b"\x03\x03"));
        insistence.answered();
        assert!(!insistence.typed(b"\x03"));
        assert!(insistence.typed(b"\x03\x03"));
        // The answer comes late, but comes.
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| insistence.in_vain());
            insistence.answered();
            assert!(!waits.join().unwrap());
        });
        assert!(insistence.typed(b"\x03\x03\x03") && insistence.in_vain());
    }
}
