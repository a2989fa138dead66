//! Finds the kernel's last words in a console's output, byte by byte.

/// What Linux prints, on every console, when it panics.
const LAST_WORDS: &[u8] = b"Kernel panic - not syncing";

/// A matcher that has seen part of a stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct PanicText {
    matched: usize,
}

impl PanicText {
    /// Takes the stream's next bytes; `true` when the words end in them.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        let mut found = false;
        // Every byte moves the matcher, also after a match.
        for byte in bytes {
            found |= self.step(*byte);
        }
        found
    }

    fn step(&mut self, byte: u8) -> bool {
        if LAST_WORDS[self.matched] == byte {
            self.matched += 1;
        } else {
            // The first letter occurs nowhere else in the words: a mismatch starts over, at most one letter in.
            self.matched = usize::from(byte == LAST_WORDS[0]);
        }
        if self.matched == LAST_WORDS.len() {
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

    #[test]
    fn finds_the_words_after_false_starts() {
        assert!(PanicText::default().feed(b"[ 1.0] Kernel panic - not syncing: no init"));
        assert!(PanicText::default().feed(b"KKernel panic - not KKernel panic - not syncing"));
        assert!(!PanicText::default().feed(b"Kernel panic - not  syncing"));
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_however_the_stream_is_cut(
            parts in prop::collection::vec(prop_oneof!["[Ke ]{0,4}", "Kernel panic", " - not", " syncing", "x"], 0..12)
        ) {
            let text = parts.concat();
            let mut matcher = PanicText::default();
            let mut found = false;
            for part in &parts {
                found |= matcher.feed(part.as_bytes());
            }
            prop_assert_eq!(found, text.contains("Kernel panic - not syncing"));
        }
    }
}
