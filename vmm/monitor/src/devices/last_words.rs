//! Finds a kernel's last words in a console's output, byte by byte.

use crate::state::fields::{FieldReader, stateful_fields};
use crate::state::{Sections, StateError, Stateful};
use crate::sys::fits;

/// What Linux prints, on every console, when it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// Before it halts, whoever asked for it.
const HALT: &[u8] = b"System halted";
/// Before that, when it was to switch off and knows no way to.
const NO_POWER_OFF: &[u8] = b"Power off not available";

/// What was found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The kernel panicked.
    pub panic: bool,
    /// The kernel is about to halt.
    pub halt: bool,
    /// It was asked to switch off.
    pub power_off: bool,
}

stateful_fields!(Said { panic, halt, power_off });

/// Looks for all of them in one stream.
#[derive(Clone, Copy, Debug)]
pub struct LastWords {
    said: Said,
    panic: Finder,
    halt: Finder,
    power_off: Finder,
}

impl Default for LastWords {
    fn default() -> Self {
        let [panic, halt, power_off] = [PANIC, HALT, NO_POWER_OFF].map(Finder::new);
        Self { said: Said::default(), panic, halt, power_off }
    }
}

impl LastWords {
    /// Takes the stream's next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.said.panic |= self.panic.feed(bytes);
        self.said.halt |= self.halt.feed(bytes);
        self.said.power_off |= self.power_off.feed(bytes);
    }

    /// What was found so far.
    #[must_use]
    pub fn said(&self) -> Said {
        self.said
    }
}

impl Stateful for LastWords {
    fn save(&self, name: &str, state: &mut Sections) {
        let Self { said, panic, halt, power_off } = self;
        state.put_fields(name, 1, |fields| {
            fields.put(said);
            for finder in [panic, halt, power_off] {
                fields.put(&fits::<_, u8>(finder.matched, "the words have less than 256 letters"));
            }
        });
    }

    fn restore(&mut self, name: &str, state: &mut Sections) -> Result<(), StateError> {
        let Self { said, panic, halt, power_off } = self;
        state.take_fields(name, 1, |fields| {
            *said = fields.get()?;
            [panic, halt, power_off].into_iter().try_for_each(|finder| finder.restore(fields))
        })
    }
}

/// A matcher that has seen part of a stream. The first letter of its words occurs nowhere else in
/// them.
#[derive(Clone, Copy, Debug)]
struct Finder {
    words: &'static [u8],
    matched: usize,
}

impl Finder {
    fn new(words: &'static [u8]) -> Self {
        Self { words, matched: 0 }
    }

    fn restore(&mut self, fields: &mut FieldReader<'_>) -> Result<(), StateError> {
        let matched = usize::from(fields.get::<u8>()?);
        if matched >= self.words.len() {
            return Err(fields.unfit(format!("{matched} letters of words that have fewer")));
        }
        self.matched = matched;
        Ok(())
    }

    /// Takes the stream's next bytes; `true` when the words end in them.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        // Every byte moves the matcher, also after a match.
        for byte in bytes {
            found |= self.step(*byte);
        }
        found
    }

    fn step(&mut self, byte: u8) -> bool {
        if self.words[self.matched] == byte {
            self.matched += 1;
        } else {
            // A mismatch starts over, at most one letter in.
            self.matched = usize::from(byte == self.words[0]);
        }
        if self.matched == self.words.len() {
            self.matched = 0;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::testing::{carry, refuses_damage};

    fn said(text: &str) -> Said {
        let mut words = LastWords::default();
        words.feed(text.as_bytes());
        words.said()
    }

    #[test]
    fn finds_the_words_after_false_starts() {
        assert!(said("[ 1.0] Kernel panic - not syncing: no init").panic);
        assert!(said("KKernel panic - not KKernel panic - not syncing").panic);
        assert!(!said("Kernel panic - not  syncing").panic);
        let halt = Said { halt: true, ..Said::default() };
        assert_eq!(said("[    1.5] reboot: SSystem halted\n"), halt);
        let off = "[    1.5] reboot: Power off not available: System halted instead\n";
        assert_eq!(said(off), Said { power_off: true, ..halt });
        assert_eq!(said("reboot: Power down\nSystem halt"), Said::default());
    }

    #[test]
    fn no_words_begin_again_within_themselves() {
        for words in [PANIC, HALT, NO_POWER_OFF] {
            assert!(!words[1..].contains(&words[0]), "{}", String::from_utf8_lossy(words));
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_however_the_stream_is_cut(
            parts in prop::collection::vec(prop_oneof!["[Ke ]{0,4}", "Kernel panic", " - not", " syncing", "x"], 0..12)
        ) {
            let text = parts.concat();
            let mut words = LastWords::default();
            for part in &parts {
                words.feed(part.as_bytes());
            }
            prop_assert_eq!(words.said().panic, text.contains("Kernel panic - not syncing"));
        }
    }

    proptest! {
        #[test]
        fn words_are_found_that_a_restore_cuts(cut in 0usize..110) {
            let text = b"Kernel panic - not syncing: x\nreboot: Power off not available: System halted instead";
            let (head, tail) = text.split_at(cut.min(text.len()));
            let (mut saved, mut restored) = (LastWords::default(), LastWords::default());
            saved.feed(head);
            carry(&saved, &mut restored).unwrap();
            prop_assert_eq!(restored.said(), saved.said());
            refuses_damage(&saved, LastWords::default, |words| words.feed(b"Kernel panic"));
            restored.feed(tail);
            prop_assert_eq!(restored.said(), Said { panic: true, halt: true, power_off: true });
        }
    }
}
